//! The graphs of the spatial autoencoder: `x_0 -> latents` and back.

use diffae_nets::weights::Weights;
use diffae_nets::{ResPlan, Resample, SpatialAutoencoder, SpatialConfig};

use crate::error::Result;
use crate::graph::{Graph, GraphBuilder, Precision, Value, computed, integers, values};
use crate::layers::Map;

/// Mean and standard deviation of each channel of latents.
struct Statistics {
    mean: Vec<f32>,
    std: Vec<f32>,
}

/// Builds both graphs from the weights below `spatial.`; latents are normalized.
pub(crate) fn spatial(
    config: &SpatialConfig,
    weights: &Weights,
    precision: Precision,
) -> Result<[(&'static str, Graph); 2]> {
    let mut to_latents = GraphBuilder::new(weights, precision).with_groups(config.num_groups);
    let [mean, std] =
        SpatialAutoencoder::STATISTICS.map(|name| values(&to_latents.weight_in_f32(&format!("spatial.{name}"))?));
    let statistics = Statistics { mean: mean?, std: std? };
    encode(&mut to_latents, config, &statistics)?;
    let mut from_latents = GraphBuilder::new(weights, precision).with_groups(config.num_groups);
    decode(&mut from_latents, config, &statistics)?;
    Ok([("to_latents", to_latents.finish("to_latents")), ("from_latents", from_latents.finish("from_latents"))])
}

fn encode(graph: &mut GraphBuilder<'_>, config: &SpatialConfig, statistics: &Statistics) -> Result<()> {
    let (channels, size) = (config.image_channels, config.image_size);
    let x_0 = graph.input("x_0", &[channels, size, size]);
    let value = graph.in_precision(&x_0, "spatial.encoder");
    let picture = Map { value, channels, size };
    let mut h = graph.conv("spatial.encoder.first", &picture)?;
    let last = config.channel_mult.len() - 1;
    for (level, mult) in config.channel_mult.iter().enumerate() {
        let path = format!("spatial.encoder.levels.{level}");
        for idx in 0..config.num_res_blocks {
            h = block(graph, &format!("{path}.blocks.{idx}"), mult * config.model_channels, &h)?;
        }
        if level < last {
            h = halved(graph, &format!("{path}.down"), &h)?;
        }
    }
    h = middle(graph, "spatial.encoder.middle", config, &h)?;
    h = out(graph, "spatial.encoder.out", &h)?;
    // Of the moments the means, normalized: (W h + b - mean) / std.
    let Statistics { mean, std } = statistics;
    let count = config.latent_channels;
    let part = |name: &str| {
        let tensor = graph.weight_in_f32(&format!("spatial.to_moments.{name}"))?;
        values(&computed(tensor.narrow(0, 0, count))?)
    };
    let (weight, bias) = (part("weight")?, part("bias")?);
    let by_row = |idx: usize| idx.checked_div(2 * count).unwrap_or(0);
    let weight: Vec<f32> = weight.iter().enumerate().map(|(idx, value)| value / std[by_row(idx)]).collect();
    let bias: Vec<f32> = bias.iter().zip(mean).zip(std).map(|((bias, mean), std)| (bias - mean) / std).collect();
    let mut latents = pointwise(graph, "spatial.to_moments", (&weight, &[count, 2 * count]), &bias, &h.value)?;
    if config.shortcut {
        // The reduced picture belongs to the means before they are normalized.
        let path = "spatial.encoder.shortcut";
        let mut reduced = picture;
        for _ in 0..last {
            reduced = graph.resample(path, Resample::Down, &reduced)?;
        }
        let factor = |row: usize, column: usize| if row == column { std[row].recip() } else { 0. };
        let weight: Vec<f32> =
            (0..count).flat_map(|row| (0..channels).map(move |column| factor(row, column))).collect();
        let reduced = pointwise(graph, path, (&weight, &[count, channels]), &vec![0.; count], &reduced.value)?;
        latents = graph.add(path, &latents, &reduced);
    }
    graph.output("latents", &latents, &config.latent_shape());
    Ok(())
}

fn decode(graph: &mut GraphBuilder<'_>, config: &SpatialConfig, statistics: &Statistics) -> Result<()> {
    let [count, size, _] = config.latent_shape();
    let latents = graph.input("latents", &[count, size, size]);
    let normalized = graph.in_precision(&latents, "spatial.decoder");
    // Of latents as they were before normalization: W (std x + mean) + b.
    let Statistics { mean, std } = statistics;
    let read = |name: &str| values(&graph.weight_in_f32(&format!("spatial.from_latents.{name}"))?);
    let (weight, bias) = (read("weight")?, read("bias")?);
    let row = |idx: usize| &weight[idx * count..(idx + 1) * count];
    let moved = |idx: usize| row(idx).iter().zip(mean).map(|(weight, mean)| weight * mean).sum::<f32>();
    let bias: Vec<f32> = bias.iter().enumerate().map(|(idx, bias)| bias + moved(idx)).collect();
    let weight: Vec<f32> =
        (0..count).flat_map(|idx| row(idx).iter().zip(std).map(|(weight, std)| weight * std)).collect();
    let value = pointwise(graph, "spatial.from_latents", (&weight, &[count, count]), &bias, &normalized)?;
    let mut h = graph.conv("spatial.decoder.first", &Map { value, channels: count, size })?;
    h = middle(graph, "spatial.decoder.middle", config, &h)?;
    let last = config.channel_mult.len() - 1;
    for (level, mult) in config.channel_mult.iter().rev().enumerate() {
        let path = format!("spatial.decoder.levels.{level}");
        for idx in 0..=config.num_res_blocks {
            h = block(graph, &format!("{path}.blocks.{idx}"), mult * config.model_channels, &h)?;
        }
        if level < last {
            let path = format!("{path}.up");
            h = graph.resample(&path, Resample::Up, &h)?;
            h = graph.conv(&path, &h)?;
        }
    }
    let mut x_0 = out(graph, "spatial.decoder.out", &h)?.value;
    let channels = config.image_channels;
    if config.shortcut {
        let path = "spatial.decoder.shortcut";
        let factor = |row: usize, column: usize| if row == column { std[row] } else { 0. };
        let weight: Vec<f32> =
            (0..channels).flat_map(|row| (0..count).map(move |column| factor(row, column))).collect();
        let value = pointwise(graph, path, (&weight, &[channels, count]), &mean[..channels], &normalized)?;
        let mut enlarged = Map { value, channels, size };
        for _ in 0..last {
            enlarged = graph.resample(path, Resample::Up, &enlarged)?;
        }
        x_0 = graph.add(path, &x_0, &enlarged.value);
    }
    graph.output("x_0", &x_0, &[channels, config.image_size, config.image_size]);
    Ok(())
}

fn block(graph: &mut GraphBuilder<'_>, path: &str, out_channels: usize, x: &Map) -> Result<Map> {
    let plan = ResPlan { in_channels: x.channels, out_channels, resample: Resample::Keep, axes: 2 };
    graph.two_conv_block(path, plan, x)
}

/// Convolution of stride 2 with zeros below and on the right.
fn halved(graph: &mut GraphBuilder<'_>, path: &str, x: &Map) -> Result<Map> {
    let (weight, bias) = (graph.weight(&format!("{path}.weight"))?, graph.weight(&format!("{path}.bias"))?);
    let attributes =
        vec![integers("kernel_shape", &[3; 2]), integers("strides", &[2; 2]), integers("pads", &[0, 0, 1, 1])];
    let value = graph.node(path, "Conv", &[&x.value, &weight, &bias], attributes);
    Ok(Map { value, size: x.size >> 1, ..*x })
}

fn middle(graph: &mut GraphBuilder<'_>, path: &str, config: &SpatialConfig, x: &Map) -> Result<Map> {
    let mut h = block(graph, &format!("{path}.first"), x.channels, x)?;
    if config.middle_attention {
        h = graph.attention(&format!("{path}.attention"), 1, &h)?;
    }
    block(graph, &format!("{path}.second"), x.channels, &h)
}

fn out(graph: &mut GraphBuilder<'_>, path: &str, x: &Map) -> Result<Map> {
    let norm = format!("{path}.0");
    let h = graph.group_norm(&norm, x)?;
    let h = h.with(graph.silu(&norm, &h.value));
    graph.conv(&format!("{path}.2"), &h)
}

/// 1x1 convolution with constant weights, `[C_out, C_in]`.
fn pointwise(
    graph: &mut GraphBuilder<'_>,
    path: &str,
    (weight, [outputs, inputs]): (&[f32], &[usize; 2]),
    bias: &[f32],
    x: &Value,
) -> Result<Value> {
    let weight = graph.numbers(path, "weight", (weight, &[*outputs, *inputs, 1, 1]))?;
    let bias = graph.numbers(path, "bias", (bias, &[*outputs]))?;
    let attributes = vec![integers("kernel_shape", &[1; 2]), integers("pads", &[0; 4])];
    Ok(graph.node(path, "Conv", &[x, &weight, &bias], attributes))
}
