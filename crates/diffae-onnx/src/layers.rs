//! Layers that have no condition: convolution, linear layer, norms, SiLU, resampling, the embedding of timesteps.

use diffae_kernels::NORM_EPS;
use diffae_nets::{Resample, timestep_frequencies};

use crate::error::Result;
use crate::graph::{GraphBuilder, Value, float, integer, integers, signed, word};

/// A batch of square feature maps, `[N, channels, size, size]`.
#[derive(Debug, Clone)]
pub(crate) struct Map {
    pub(crate) value: Value,
    pub(crate) channels: usize,
    pub(crate) size: usize,
}

impl Map {
    /// Replaces the values, of the same shape.
    pub(crate) fn with(&self, value: Value) -> Self {
        Self { value, ..*self }
    }
}

impl GraphBuilder<'_> {
    /// Convolution with "same" padding; a weight `[C_out, C_in, 1]` is that of a 1x1 convolution.
    pub(crate) fn conv(&mut self, path: &str, x: &Map) -> Result<Map> {
        let name = format!("{path}.weight");
        let shape = self.weight_shape(&name).unwrap_or_default();
        let [channels, inputs, kernel] = [0, 1, 2].map(|axis| shape.get(axis).copied().unwrap_or(1));
        let weight = self.weight_as(&name, &[channels, inputs, kernel, kernel])?;
        let bias = self.weight(&format!("{path}.bias"))?;
        let (kernel, padding) = (signed(kernel), signed(kernel >> 1));
        let attributes = vec![integers("kernel_shape", &[kernel; 2]), integers("pads", &[padding; 4])];
        let value = self.node(path, "Conv", &[&x.value, &weight, &bias], attributes);
        Ok(Map { value, channels, size: x.size })
    }

    /// Fully connected layer on rows, `x W^T + b`.
    pub(crate) fn linear(&mut self, path: &str, x: &Value) -> Result<Value> {
        let (weight, bias) = (self.weight(&format!("{path}.weight"))?, self.weight(&format!("{path}.bias"))?);
        Ok(self.node(path, "Gemm", &[x, &weight, &bias], vec![integer("transB", 1)]))
    }

    /// Normalizes each group of channels to zero mean and unit variance, with statistics in f32; without groups nothing.
    pub(crate) fn standardize(&mut self, path: &str, x: &Map) -> Result<Map> {
        let groups = self.num_groups(x.channels);
        if groups == 0 {
            return Ok(x.clone());
        }
        let grouped_shape = self.integers(path, "grouped", &[0, signed(groups), -1]);
        let single = self.in_f32(&x.value, path);
        let grouped = self.node(path, "Reshape", &[&single, &grouped_shape], vec![]);
        // The operator scales and shifts each group; channels get theirs afterwards.
        let scale = self.singles(path, "scale", (&vec![1.; groups], &[groups]))?;
        let shift = self.singles(path, "shift", (&vec![0.; groups], &[groups]))?;
        let inputs = [&grouped, &scale, &shift];
        let normalized = self.node(path, "InstanceNormalization", &inputs, vec![float("epsilon", NORM_EPS)]);
        let size = signed(x.size);
        let shape = self.integers(path, "shape", &[0, signed(x.channels), size, size]);
        let value = self.node(path, "Reshape", &[&normalized, &shape], vec![]);
        Ok(x.with(self.in_precision(&value, path)))
    }

    /// Group norm with the learned scale and shift.
    pub(crate) fn group_norm(&mut self, path: &str, x: &Map) -> Result<Map> {
        let x_hat = self.standardize(path, x)?;
        let pixel = [1, x.channels, 1, 1];
        let weight = self.weight_as(&format!("{path}.weight"), &pixel)?;
        let bias = self.weight_as(&format!("{path}.bias"), &pixel)?;
        let scaled = self.node(path, "Mul", &[&x_hat.value, &weight], vec![]);
        Ok(x.with(self.node(path, "Add", &[&scaled, &bias], vec![])))
    }

    /// Layer norm of rows with statistics in f32.
    pub(crate) fn layer_norm(&mut self, path: &str, x: &Value) -> Result<Value> {
        self.layer_norm_with(path, x, NORM_EPS)
    }

    /// Layer norm of rows, with another epsilon.
    pub(crate) fn layer_norm_with(&mut self, path: &str, x: &Value, epsilon: f64) -> Result<Value> {
        let (weight, bias) = (self.weight(&format!("{path}.weight"))?, self.weight(&format!("{path}.bias"))?);
        let [x, weight, bias] = [x, &weight, &bias].map(|value| self.in_f32(value, path));
        let attributes = vec![integer("axis", -1), float("epsilon", epsilon)];
        let y = self.node(path, "LayerNormalization", &[&x, &weight, &bias], attributes);
        Ok(self.in_precision(&y, path))
    }

    /// `x * sigmoid(x)`.
    pub(crate) fn silu(&mut self, path: &str, x: &Value) -> Value {
        let gate = self.node(path, "Sigmoid", &[x], vec![]);
        self.node(path, "Mul", &[x, &gate], vec![])
    }

    /// Nearest-neighbor doubling, 2x2 mean, or nothing.
    pub(crate) fn resample(&mut self, path: &str, resample: Resample, x: &Map) -> Result<Map> {
        match resample {
            Resample::Keep => Ok(x.clone()),
            Resample::Up => {
                let scales = self.singles(path, "scales", (&[1., 1., 2., 2.], &[4]))?;
                let attributes = vec![
                    word("mode", "nearest"),
                    word("coordinate_transformation_mode", "asymmetric"),
                    word("nearest_mode", "floor"),
                ];
                let value = self.node(path, "Resize", &[&x.value, &Value::none(), &scales], attributes);
                Ok(Map { value, size: 2 * x.size, ..*x })
            }
            Resample::Down => {
                let attributes = vec![integers("kernel_shape", &[2; 2]), integers("strides", &[2; 2])];
                let value = self.node(path, "AveragePool", &[&x.value], attributes);
                Ok(Map { value, size: x.size >> 1, ..*x })
            }
        }
    }

    /// Adds two values of one shape, or of shapes that broadcast.
    pub(crate) fn add(&mut self, path: &str, x: &Value, y: &Value) -> Value {
        self.node(path, "Add", &[x, y], vec![])
    }

    /// Concatenates the channels of two values.
    pub(crate) fn concat(&mut self, path: &str, x: &Value, y: &Value) -> Value {
        self.node(path, "Concat", &[x, y], vec![integer("axis", 1)])
    }

    /// Computes `1 + x`.
    pub(crate) fn one_plus(&mut self, path: &str, x: &Value) -> Result<Value> {
        let one = self.numbers(path, "one", (&[1.], &[1]))?;
        Ok(self.add(path, x, &one))
    }

    /// Embeds timesteps `[N]` by sinusoids in f32 and the two layers below `path`, and applies SiLU, of which all users
    /// of an embedding begin; result: `[N, E]`.
    pub(crate) fn time_embedding(&mut self, path: &str, timestep: &Value, sinusoid_channels: usize) -> Result<Value> {
        let column = self.integers(path, "column", &[-1, 1]);
        let column = self.node(path, "Reshape", &[timestep, &column], vec![]);
        let frequencies = timestep_frequencies(sinusoid_channels);
        let is_odd = 2 * frequencies.len() < sinusoid_channels;
        let frequencies = self.singles(path, "frequencies", (&frequencies, &[1, frequencies.len()]))?;
        let angles = self.node(path, "Mul", &[&column, &frequencies], vec![]);
        let (cos, sin) = (self.node(path, "Cos", &[&angles], vec![]), self.node(path, "Sin", &[&angles], vec![]));
        let mut sinusoids = self.concat(path, &cos, &sin);
        if is_odd {
            let zero = self.singles(path, "zero", (&[0.], &[1, 1]))?;
            let zeros = self.node(path, "Mul", &[&column, &zero], vec![]);
            sinusoids = self.concat(path, &sinusoids, &zeros);
        }
        let sinusoids = self.in_precision(&sinusoids, path);
        let first = self.linear(&format!("{path}.0"), &sinusoids)?;
        let hidden = self.silu(path, &first);
        let embedded = self.linear(&format!("{path}.2"), &hidden)?;
        Ok(self.silu(path, &embedded))
    }
}
