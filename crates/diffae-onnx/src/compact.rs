//! The graphs of a compact one-shot autoencoder: `x_0 -> z_sem` and `(z_sem, x_T) -> x_0`.

use candle_core::Tensor;
use diffae_nets::weights::Weights;
use diffae_nets::{CompactConfig, RawCompactConfig};

use crate::error::{Error, Result};
use crate::graph::{Graph, GraphBuilder, Precision, Value, integer, integers, signed};

/// Height and width of the smallest maps.
const LAST_SIZE: usize = RawCompactConfig::LAST_SIZE;

/// Builds the graph of the encoder from the weights below `encoder.`.
pub(crate) fn encoder(config: &CompactConfig, weights: &Weights, precision: Precision) -> Result<Graph> {
    let mut graph = GraphBuilder::new(weights, precision);
    let x_0 = graph.input("x_0", &[config.image_channels, config.image_size, config.image_size]);
    let mut h = graph.in_precision(&x_0, "encoder");
    for level in 0..config.widths().len() {
        h = graph.strided(&format!("encoder.conv{level}"), "Conv", &h)?;
        h = graph.batch_norm(&format!("encoder.norm{level}"), &h)?;
    }
    let flat = graph.node("encoder", "Flatten", &[&h], vec![integer("axis", 1)]);
    let z_sem = graph.linear("encoder.out", &flat)?;
    graph.output("z_sem", &z_sem, &[config.z_channels]);
    Ok(graph.finish("encoder"))
}

/// Builds the graph of the decoder from the weights below `decoder.`. Its `x_T` is the noise level and the noise, side by
/// side.
pub(crate) fn decoder(config: &CompactConfig, weights: &Weights, precision: Precision) -> Result<Graph> {
    let mut graph = GraphBuilder::new(weights, precision);
    let z_sem = graph.input("z_sem", &[config.z_channels]);
    let x_terminal = graph.input("x_T", &[1 + config.noise_channels]);
    let (z_sem, x_terminal) = (graph.in_precision(&z_sem, "decoder"), graph.in_precision(&x_terminal, "decoder"));
    let [level, noise] = graph.split("decoder", &x_terminal, (1, [1, config.noise_channels]));
    let scaled = graph.node("decoder", "Mul", &[&noise, &level], vec![]);
    let inputs = graph.node("decoder", "Concat", &[&z_sem, &level, &scaled], vec![integer("axis", 1)]);
    let flat = graph.linear("decoder.in", &inputs)?;
    let num_levels = config.widths().len();
    let widest = config.widths().last().copied().unwrap_or(config.model_channels);
    let shape = graph.integers("decoder", "shape", &[0, signed(widest), signed(LAST_SIZE), signed(LAST_SIZE)]);
    let h = graph.node("decoder", "Reshape", &[&flat, &shape], vec![]);
    let mut h = graph.batch_norm("decoder.norm0", &h)?;
    for level in 0..num_levels {
        h = graph.strided(&format!("decoder.conv{level}"), "ConvTranspose", &h)?;
        if level + 1 < num_levels {
            h = graph.batch_norm(&format!("decoder.norm{}", level + 1), &h)?;
        }
    }
    let x_0 = graph.node("decoder", "Tanh", &[&h], vec![]);
    graph.output("x_0", &x_0, &[config.image_channels, config.image_size, config.image_size]);
    Ok(graph.finish("decoder"))
}

impl GraphBuilder<'_> {
    /// A convolution of stride 2 with one pixel of zeros around, or its transpose; the kernel is square.
    fn strided(&mut self, path: &str, operator: &str, x: &Value) -> Result<Value> {
        let name = format!("{path}.weight");
        let kernel = self.weight_shape(&name).and_then(|shape| shape.last().copied()).unwrap_or(1);
        let (weight, bias) = (self.weight(&name)?, self.weight(&format!("{path}.bias"))?);
        let attributes = vec![
            integers("kernel_shape", &[signed(kernel); 2]),
            integers("strides", &[2; 2]),
            integers("pads", &[1; 4]),
        ];
        Ok(self.node(path, operator, &[x, &weight, &bias], attributes))
    }

    /// Batch norm with the running statistics, and `ReLU`: the norm is folded into a scale and a shift of each channel, in
    /// f32 as it is computed, since f16 has too few digits for statistics and no variance above 65504.
    fn batch_norm(&mut self, path: &str, x: &Value) -> Result<Value> {
        let [weight, bias, mean, variance] =
            ["weight", "bias", "running_mean", "running_var"].map(|name| self.weight_in_f32(&format!("{path}.{name}")));
        let [scale, shift] = folded([weight?, bias?, mean?, variance?])
            .map_err(|source| Error::Tensor { part: "folding a batch norm", source })?;
        let (scale, shift) = (self.constant(path, "scale", &scale)?, self.constant(path, "shift", &shift)?);
        let single = self.in_f32(x, path);
        let scaled = self.node(path, "Mul", &[&single, &scale], vec![]);
        let shifted = self.add(path, &scaled, &shift);
        let y = self.node(path, "Relu", &[&shifted], vec![]);
        Ok(self.in_precision(&y, path))
    }
}

/// Returns the scale and the shift that a norm of these parameters is, `[1, C, 1, 1]`.
fn folded([weight, bias, mean, variance]: [Tensor; 4]) -> candle_core::Result<[Tensor; 2]> {
    let scale = (weight / (variance + RawCompactConfig::BATCH_NORM_EPS)?.sqrt()?)?;
    let shift = (bias - (mean * &scale)?)?;
    let channels = scale.elem_count();
    Ok([scale.reshape((1, channels, 1, 1))?, shift.reshape((1, channels, 1, 1))?])
}
