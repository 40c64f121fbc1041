//! The graph of edits: `(z_sem, strengths) -> z_sem` of the edited picture.

use candle_core::{D, Tensor};
use diffae_infer::Model;
use diffae_nets::weights::{LatentMoments, TensorMap, Weights};
use diffae_nets::{AttributeClassifier, EditDirection};

use crate::error::{Error, Result};
use crate::graph::{Graph, GraphBuilder, Precision, Value, integer, integers, signed};

/// Path of the graph's nodes.
const PATH: &str = "directions";

/// Finds the attributes that can be edited: those with a direction, of a model that can normalize codes.
///
/// # Errors
/// [`Error::Tensor`] if a direction cannot be read.
pub(crate) fn editable(model: &Model) -> Result<Vec<usize>> {
    let (Ok(classifier), Ok(_)) = (model.classifier(), model.latent_moments()) else { return Ok(vec![]) };
    let norm = |idx: usize| classifier.direction(idx).and_then(EditDirection::norm);
    let mut known = vec![];
    for idx in 0..classifier.config().attributes.len() {
        if norm(idx).map_err(failed)? > 0. {
            known.push(idx);
        }
    }
    Ok(known)
}

/// Builds the graph of edits of the attributes with the given numbers, in f32:
/// `denormalize(z + sqrt(D) * sum_k strength_k * d_k(z) / |w_k|)` with `z = normalize(z_sem)`, as
/// [`Model::edit_many`](diffae_infer::Model::edit_many) computes it.
///
/// # Errors
/// [`Error::Infer`] if the model cannot edit.
pub(crate) fn directions(model: &Model, attributes: &[usize]) -> Result<Graph> {
    let classifier = model.classifier()?;
    let width = classifier.config().z_channels;
    let no_weights = Weights::new(std::sync::Arc::new(TensorMap::default()));
    let mut graph = GraphBuilder::new(&no_weights, Precision::F32);
    let z_sem = graph.input("z_sem", &[width]);
    let strengths = graph.input("strengths", &[attributes.len()]);
    let LatentMoments { mean, std } = model.latent_moments()?; // [1, D]
    let [mean, std] = [("mean", mean), ("std", std)].map(|(name, values)| graph.constant(PATH, name, values));
    let (mean, std) = (mean?, std?);
    let centered = graph.node(PATH, "Sub", &[&z_sem, &mean], vec![]);
    let z = graph.node(PATH, "Div", &[&centered, &std], vec![]);
    let at_z = unit_directions(&mut graph, classifier, attributes, &z)?; // [A, N, D] or [A, 1, D]
    #[expect(clippy::cast_possible_truncation, reason = "a factor of f32 values")]
    let unit = (width as f64).sqrt() as f32;
    let unit = graph.singles(PATH, "unit", (&[unit], &[1]))?;
    let lengths = graph.node(PATH, "Mul", &[&strengths, &unit], vec![]);
    let by_attribute = graph.node(PATH, "Transpose", &[&lengths], vec![integers("perm", &[1, 0])]);
    let column = graph.integers(PATH, "column", &[2]);
    let lengths = graph.node(PATH, "Unsqueeze", &[&by_attribute, &column], vec![]); // [A, N, 1]
    let moves = graph.node(PATH, "Mul", &[&at_z, &lengths], vec![]);
    let axis = graph.integers(PATH, "axis", &[0]);
    let moved = graph.node(PATH, "ReduceSum", &[&moves, &axis], vec![integer("keepdims", 0)]); // [N, D]
    // Codes that nothing moves come back as they are.
    let offset = graph.node(PATH, "Mul", &[&moved, &std], vec![]);
    let edited = graph.add(PATH, &z_sem, &offset);
    graph.output("edited", &edited, &[width]);
    Ok(graph.finish("directions"))
}

/// Adds the directions at each code in units of their means, `d_k(z) / |w_k|`.
fn unit_directions(
    graph: &mut GraphBuilder<'_>,
    classifier: &AttributeClassifier,
    attributes: &[usize],
    z: &Value,
) -> Result<Value> {
    let directions = attributes.iter().map(|&idx| classifier.direction(idx).cloned());
    let directions: Vec<EditDirection> = directions.collect::<candle_core::Result<_>>().map_err(failed)?;
    let norms = directions.iter().map(EditDirection::norm).collect::<candle_core::Result<Vec<f64>>>();
    #[expect(clippy::cast_possible_truncation, reason = "lengths of f32 vectors")]
    let inverse: Vec<f32> = norms.map_err(failed)?.into_iter().map(|norm| norm.recip() as f32).collect();
    let stacked = EditDirection::stack_all(&directions).map_err(failed)?;
    let of = |name: &str| stacked.iter().find(|(known, _)| *known == name).map(|(_, tensor)| tensor);
    let (Some(means), count) = (of("directions"), inverse.len()) else {
        return Err(failed(candle_core::Error::Msg("there are no directions".to_owned())));
    };
    let inverse = Tensor::from_vec(inverse, (count, 1, 1), means.device()).map_err(failed)?;
    let scaled = |tensor: Tensor| tensor.broadcast_mul(&inverse);
    let means = means.unsqueeze(1).and_then(scaled).map_err(failed)?; // [A, 1, D]
    let means = graph.constant(PATH, "means", &means)?;
    let names = ["local_inputs", "local_bias", "local_hidden", "local_hidden_bias", "local_center", "local_outputs"];
    let [Some(inputs), Some(bias), Some(hidden), Some(hidden_bias), Some(center), Some(outputs)] = names.map(of) else {
        return Ok(means);
    };
    let transposed = |tensor: &Tensor| tensor.transpose(D::Minus1, D::Minus2)?.contiguous();
    let hidden = transposed(hidden).map_err(failed)?; // [A, h, h]
    let outputs = scaled(outputs.clone()).map_err(failed)?; // [A, h, D]
    let [hidden_bias, center] = [hidden_bias, center].map(|tensor| tensor.unsqueeze(1)); // [A, 1, h]
    let first = first_layer(graph, z, (inputs, bias))?; // [A, N, h]
    let second = tanh_layer(graph, &first, (&hidden, &hidden_bias.map_err(failed)?))?;
    let center = graph.constant(PATH, "center", &center.map_err(failed)?)?;
    let centered = graph.node(PATH, "Sub", &[&second, &center], vec![]);
    let outputs = graph.constant(PATH, "outputs", &outputs)?;
    let offsets = graph.node(PATH, "MatMul", &[&centered, &outputs], vec![]); // [A, N, D]
    Ok(graph.add(PATH, &offsets, &means))
}

/// Adds the first hidden layers of all attributes as one product of matrices: not all runtimes multiply one matrix by many.
fn first_layer(graph: &mut GraphBuilder<'_>, z: &Value, (weight, bias): (&Tensor, &Tensor)) -> Result<Value> {
    let (attributes, units, width) = weight.dims3().map_err(failed)?;
    let weight = weight.reshape((attributes * units, width)).map_err(failed)?;
    let weight = graph.constant(PATH, "weight", &weight)?;
    let bias = graph.constant(PATH, "bias", &bias.flatten_all().map_err(failed)?)?;
    let sums = graph.node(PATH, "Gemm", &[z, &weight, &bias], vec![integer("transB", 1)]);
    let hidden = graph.node(PATH, "Tanh", &[&sums], vec![]);
    let shape = graph.integers(PATH, "by_attribute", &[0, signed(attributes), signed(units)]);
    let by_code = graph.node(PATH, "Reshape", &[&hidden, &shape], vec![]);
    Ok(graph.node(PATH, "Transpose", &[&by_code], vec![integers("perm", &[1, 0, 2])]))
}

fn tanh_layer(graph: &mut GraphBuilder<'_>, x: &Value, (weight, bias): (&Tensor, &Tensor)) -> Result<Value> {
    let (weight, bias) = (graph.constant(PATH, "weight", weight)?, graph.constant(PATH, "bias", bias)?);
    let product = graph.node(PATH, "MatMul", &[x, &weight], vec![]);
    let sum = graph.add(PATH, &product, &bias);
    Ok(graph.node(PATH, "Tanh", &[&sum], vec![]))
}

fn failed(source: candle_core::Error) -> Error {
    Error::Tensor { part: "exporting edit directions", source }
}
