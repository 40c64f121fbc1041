//! The graph of a pretrained encoder: `x_0 -> z_sem`.

use diffae_nets::FrozenEncoderConfig;
use diffae_nets::features::VisionTransformer;
use diffae_nets::weights::Weights;

use crate::error::Result;
use crate::graph::{Graph, GraphBuilder, Precision, Value, computed, integer, integers, signed, values};

/// Builds the graph from the weights below `encoder.`.
pub(crate) fn frozen_encoder(config: &FrozenEncoderConfig, weights: &Weights, precision: Precision) -> Result<Graph> {
    let mut graph = GraphBuilder::new(weights, precision);
    let sizes = config.transformer();
    let mut x = tokens(&mut graph, config, &sizes)?;
    for idx in 0..sizes.depth {
        let path = format!("encoder.blocks.{idx}");
        let normalized = norm(&mut graph, &format!("{path}.norm1"), &x, &sizes)?;
        let attended = attention(&mut graph, &format!("{path}.attn"), &normalized, &sizes)?;
        x = added(&mut graph, &format!("{path}.ls1"), &x, &attended)?;
        let normalized = norm(&mut graph, &format!("{path}.norm2"), &x, &sizes)?;
        let hidden = layer(&mut graph, &format!("{path}.mlp.fc1"), &normalized)?;
        let hidden = gelu(&mut graph, &format!("{path}.mlp"), &hidden)?;
        let y = layer(&mut graph, &format!("{path}.mlp.fc2"), &hidden)?;
        x = added(&mut graph, &format!("{path}.ls2"), &x, &y)?;
    }
    let [class, _] = graph.split("encoder.norm", &x, (1, [1, sizes.num_patches()]));
    let z_sem = norm(&mut graph, "encoder.norm", &class, &sizes)?;
    let shape = graph.integers("encoder.norm", "shape", &[0, signed(sizes.width)]);
    let z_sem = graph.node("encoder.norm", "Reshape", &[&z_sem, &shape], vec![]);
    graph.output("z_sem", &z_sem, &[sizes.width]);
    Ok(graph.finish("encoder"))
}

/// Resizes and normalizes pictures, and embeds their patches; result: `[N, P + 1, D]`, the class token first.
fn tokens(graph: &mut GraphBuilder<'_>, config: &FrozenEncoderConfig, sizes: &VisionTransformer) -> Result<Value> {
    let (channels, size, path) = (config.in_channels, config.image_size, "encoder.patch_embed");
    let &VisionTransformer { side, patch, width, mean, std, .. } = sizes;
    let x_0 = graph.input("x_0", &[channels, size, size]);
    let colored = if channels == 1 { graph.node(path, "Concat", &[&x_0; 3], vec![integer("axis", 1)]) } else { x_0 };
    // Rows and columns are resized by a matrix each, in f32.
    let matrix = sizes.resize_matrix(size);
    let transposed: Vec<f32> = (0..size)
        .flat_map(|old| (0..side).map(move |new| (new, old)))
        .map(|(new, old)| matrix[new * size + old])
        .collect();
    let rows = graph.singles(path, "rows", (&matrix, &[side, size]))?;
    let columns = graph.singles(path, "columns", (&transposed, &[size, side]))?;
    let resized = graph.node(path, "MatMul", &[&rows, &colored], vec![]);
    let resized = graph.node(path, "MatMul", &[&resized, &columns], vec![]);
    // From [-1, 1] to the numbers that the network was trained on: ((x + 1) / 2 - mean) / std.
    let by_channel = |f: &dyn Fn(usize) -> f32| [0, 1, 2].map(f);
    let factor = graph.singles(path, "factor", (&by_channel(&|c| 0.5 / std[c]), &[1, 3, 1, 1]))?;
    let shift = graph.singles(path, "shift", (&by_channel(&|c| (0.5 - mean[c]) / std[c]), &[1, 3, 1, 1]))?;
    let scaled = graph.node(path, "Mul", &[&resized, &factor], vec![]);
    let pixels = graph.add(path, &scaled, &shift);
    let pixels = graph.in_precision(&pixels, path);
    let weight = graph.weight("encoder.patch_embed.proj.weight")?;
    let bias = graph.weight("encoder.patch_embed.proj.bias")?;
    let strides = [signed(patch); 2];
    let attributes = vec![integers("kernel_shape", &strides), integers("strides", &strides), integers("pads", &[0; 4])];
    let patches = graph.node(path, "Conv", &[&pixels, &weight, &bias], attributes);
    let shape = graph.integers(path, "shape", &[0, signed(width), -1]);
    let patches = graph.node(path, "Reshape", &[&patches, &shape], vec![]);
    let patches = graph.node(path, "Transpose", &[&patches], vec![integers("perm", &[0, 2, 1])]); // [N, P, D]
    let positions = values(&graph.weight_in_f32("encoder.pos_embed")?)?;
    let (of_class, of_patches) = positions.split_at(width);
    let class: Vec<f32> =
        values(&graph.weight_in_f32("encoder.cls_token")?)?.iter().zip(of_class).map(|(a, b)| a + b).collect();
    let of_patches = graph.numbers(path, "positions", (of_patches, &[1, sizes.num_patches(), width]))?;
    let patches = graph.add(path, &patches, &of_patches);
    // The class token is the same for all pictures: it takes their number from that of the patches.
    let [first, _] = graph.split(path, &patches, (1, [1, sizes.num_patches() - 1]));
    let zero = graph.numbers(path, "zero", (&[0.], &[1]))?;
    let zeros = graph.node(path, "Mul", &[&first, &zero], vec![]);
    let class = graph.numbers(path, "class", (&class, &[1, 1, width]))?;
    let class = graph.add(path, &zeros, &class);
    Ok(graph.concat(path, &class, &patches))
}

fn norm(graph: &mut GraphBuilder<'_>, path: &str, x: &Value, sizes: &VisionTransformer) -> Result<Value> {
    graph.layer_norm_with(path, x, sizes.norm_epsilon)
}

/// Fully connected layer on the last axis of `[N, T, I]`.
fn layer(graph: &mut GraphBuilder<'_>, path: &str, x: &Value) -> Result<Value> {
    let transposed = computed(graph.weight_in_f32(&format!("{path}.weight"))?.t())?;
    let (inputs, outputs) = computed(transposed.dims2())?;
    let weight = graph.numbers(path, "weight", (&values(&transposed)?, &[inputs, outputs]))?;
    let bias = graph.weight(&format!("{path}.bias"))?;
    let y = graph.node(path, "MatMul", &[x, &weight], vec![]);
    Ok(graph.add(path, &y, &bias))
}

/// Self-attention of tokens, `[N, T, D]`.
fn attention(graph: &mut GraphBuilder<'_>, path: &str, x: &Value, sizes: &VisionTransformer) -> Result<Value> {
    let (width, heads) = (sizes.width, sizes.num_heads());
    let qkv = layer(graph, &format!("{path}.qkv"), x)?;
    let by_head = graph.integers(path, "by_head", &[0, 0, signed(3 * heads), signed(sizes.head_width)]);
    let qkv = graph.node(path, "Reshape", &[&qkv, &by_head], vec![]);
    let qkv = graph.node(path, "Transpose", &[&qkv], vec![integers("perm", &[0, 2, 1, 3])]); // [N, 3 heads, T, D / heads]
    let [q, k, v] = graph.split(path, &qkv, (1, [heads; 3]));
    // Scaling q and k by the fourth root each keeps the products small in half precision.
    #[expect(clippy::cast_possible_truncation, reason = "a factor of f32 values")]
    let root = (sizes.head_width as f64).powf(-0.25) as f32;
    let root = graph.numbers(path, "scale", (&[root], &[1]))?;
    let q = graph.node(path, "Mul", &[&q, &root], vec![]);
    let k = graph.node(path, "Mul", &[&k, &root], vec![]);
    let k = graph.node(path, "Transpose", &[&k], vec![integers("perm", &[0, 1, 3, 2])]);
    let scores = graph.node(path, "MatMul", &[&q, &k], vec![]);
    let scores = graph.in_f32(&scores, path);
    let shares = graph.node(path, "Softmax", &[&scores], vec![integer("axis", -1)]);
    let shares = graph.in_precision(&shares, path);
    let y = graph.node(path, "MatMul", &[&shares, &v], vec![]);
    let y = graph.node(path, "Transpose", &[&y], vec![integers("perm", &[0, 2, 1, 3])]);
    let shape = graph.integers(path, "shape", &[0, 0, signed(width)]);
    let y = graph.node(path, "Reshape", &[&y, &shape], vec![]);
    layer(graph, &format!("{path}.proj"), &y)
}

/// Adds a branch, scaled by channel, to its input.
fn added(graph: &mut GraphBuilder<'_>, path: &str, x: &Value, branch: &Value) -> Result<Value> {
    let gamma = graph.weight(&format!("{path}.gamma"))?;
    let scaled = graph.node(path, "Mul", &[branch, &gamma], vec![]);
    Ok(graph.add(path, x, &scaled))
}

/// `x (1 + erf(x / sqrt 2)) / 2`.
fn gelu(graph: &mut GraphBuilder<'_>, path: &str, x: &Value) -> Result<Value> {
    let root = graph.numbers(path, "root", (&[std::f32::consts::FRAC_1_SQRT_2], &[1]))?;
    let half = graph.numbers(path, "half", (&[0.5], &[1]))?;
    let scaled = graph.node(path, "Mul", &[x, &root], vec![]);
    let erf = graph.node(path, "Erf", &[&scaled], vec![]);
    let gate = graph.one_plus(path, &erf)?;
    let gate = graph.node(path, "Mul", &[&gate, &half], vec![]);
    Ok(graph.node(path, "Mul", &[x, &gate], vec![]))
}
