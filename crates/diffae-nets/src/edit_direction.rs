//! The direction in which codes move when an attribute is edited.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use diffae_kernels::{differentiable, linear};

use crate::config::ClassifierConfig;
use crate::error::{Error, Result};
use crate::weights::is_finite;

/// Edit direction of one attribute in normalized codes z, fixed or local:
/// `d(z) = w + U^T (tanh(M tanh(V z + b) + d) - c)`, where the part after w is the [`LocalOffset`].
///
/// A beard has the color of the hair, so its direction depends on the code.
#[derive(Debug, Clone)]
pub struct EditDirection {
    mean: Tensor, // [D]
    local: Option<LocalOffset>,
}

/// The part of an [`EditDirection`] that depends on the code, a network of two small hidden layers.
#[derive(Debug, Clone)]
pub struct LocalOffset {
    /// V, weights of the first hidden layer, `[h, D]`.
    pub inputs: Tensor,
    /// b, biases of the first hidden layer, `[h]`.
    pub bias: Tensor,
    /// M, weights of the second hidden layer, `[h, h]`.
    pub hidden: Tensor,
    /// d, biases of the second hidden layer, `[h]`.
    pub hidden_bias: Tensor,
    /// c, mean activations of the second hidden layer, already part of the mean direction; `[h]`.
    pub center: Tensor,
    /// U, weights of the output, `[h, D]`.
    pub outputs: Tensor,
}

/// Names of the tensors of local offsets, in the order of [`LocalOffset::tensors`].
const LOCAL: [&str; 6] =
    ["local_inputs", "local_bias", "local_hidden", "local_hidden_bias", "local_center", "local_outputs"];

impl LocalOffset {
    fn tensors(&self) -> [&Tensor; 6] {
        [&self.inputs, &self.bias, &self.hidden, &self.hidden_bias, &self.center, &self.outputs]
    }

    fn from_tensors([inputs, bias, hidden, hidden_bias, center, outputs]: [Tensor; 6]) -> Self {
        Self { inputs, bias, hidden, hidden_bias, center, outputs }
    }

    /// Computes the second hidden layer, `tanh(M tanh(V z + b) + d)`.
    ///
    /// # Shapes
    /// - `z_sem_normalized`: `[N, D]`; result: `[N, h]`.
    /// # Errors
    /// If the width differs.
    pub fn features(&self, z_sem_normalized: &Tensor) -> candle_core::Result<Tensor> {
        let tanh = |x: Tensor| differentiable([&x], |[x]| x.tanh());
        let first = tanh(linear(z_sem_normalized, &self.inputs, &self.bias)?)?;
        tanh(linear(&first, &self.hidden, &self.hidden_bias)?)
    }

    /// Returns the tensors padded with zeros, which change nothing, to a number of hidden units.
    fn padded(&self, units: usize) -> candle_core::Result<[Tensor; 6]> {
        let padded = |tensor: &Tensor, axis: usize| {
            tensor.to_dtype(DType::F32)?.pad_with_zeros(axis, 0, units.saturating_sub(tensor.dim(axis)?))
        };
        let hidden = padded(&padded(&self.hidden, 0)?, 1)?;
        let [bias, hidden_bias, center] = [&self.bias, &self.hidden_bias, &self.center].map(|tensor| padded(tensor, 0));
        Ok([padded(&self.inputs, 0)?, bias?, hidden, hidden_bias?, center?, padded(&self.outputs, 0)?])
    }
}

impl EditDirection {
    /// Creates a direction that is the same at every code.
    ///
    /// # Shapes
    /// - `direction`: `[D]`.
    /// # Errors
    /// [`Error::ShapeMismatch`] if it is not a vector, [`Error::NotFinite`] if a value is not finite.
    pub fn fixed(direction: Tensor) -> Result<Self> {
        Self { mean: direction, local: None }.checked()
    }

    /// Creates the fixed directions of several attributes.
    ///
    /// # Shapes
    /// - `directions`: `[A, D]`.
    /// # Errors
    /// [`Error::Tensor`] if it is no matrix, [`Error::NotFinite`] if a value is not finite.
    pub fn fixed_all(directions: &Tensor) -> Result<Vec<Self>> {
        let failed = |source| Error::Tensor { part: "splitting directions", source };
        let (count, _) = directions.dims2().map_err(failed)?;
        (0..count).map(|idx| Self::fixed(directions.get(idx).map_err(failed)?)).collect()
    }

    /// Creates a direction that depends on the code.
    ///
    /// # Shapes
    /// - `mean`: `[D]`, w; for the others see [`LocalOffset`].
    /// # Errors
    /// [`Error::ShapeMismatch`] if shapes do not fit each other, [`Error::NotFinite`] if a value is not finite.
    pub fn local(mean: Tensor, offset: LocalOffset) -> Result<Self> {
        Self { mean, local: Some(offset) }.checked()
    }

    fn checked(self) -> Result<Self> {
        let (width, units) = (self.mean.elem_count(), self.num_units());
        let by_unit =
            [vec![units, width], vec![units], vec![units, units], vec![units], vec![units], vec![units, width]];
        let local = self.local.iter().flat_map(LocalOffset::tensors).zip(LOCAL).zip(by_unit);
        let mean = ((&self.mean, "directions"), vec![width]);
        for ((tensor, name), expected) in std::iter::once(mean).chain(local) {
            if tensor.dims() != expected {
                return Err(Error::ShapeMismatch { name: name.to_owned(), got: tensor.dims().to_vec(), expected });
            }
            let failed = |source| Error::Tensor { part: "checking a direction", source };
            if !is_finite(tensor).map_err(failed)? {
                return Err(Error::NotFinite { name: name.to_owned() });
            }
        }
        Ok(self)
    }

    /// Returns w, the mean direction, `[D]`.
    #[must_use]
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// Returns the part that depends on the code; `None` in a fixed direction.
    #[must_use]
    pub fn offset(&self) -> Option<&LocalOffset> {
        self.local.as_ref()
    }

    /// Returns the number of hidden units, h; 0 in a fixed direction.
    #[must_use]
    pub fn num_units(&self) -> usize {
        self.local.as_ref().map_or(0, |local| local.bias.elem_count())
    }

    /// Computes the length of the mean direction, `|w|`.
    ///
    /// # Errors
    /// If the tensor cannot be read.
    pub fn norm(&self) -> candle_core::Result<f64> {
        Ok(f64::from(self.mean.to_dtype(DType::F32)?.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?))
    }

    /// Computes the direction at each code, `d(z)`. A row of the result depends on that row of the input alone.
    ///
    /// # Shapes
    /// - `z_sem_normalized`, result: `[N, D]`.
    /// # Errors
    /// If the width differs.
    pub fn forward(&self, z_sem_normalized: &Tensor) -> candle_core::Result<Tensor> {
        let Some(local) = &self.local else { return self.mean.broadcast_as(z_sem_normalized.shape())?.contiguous() };
        let features = local.features(z_sem_normalized)?;
        let centered = differentiable([&features], |[features]| features.broadcast_sub(&local.center))?;
        let outputs = differentiable([&local.outputs], |[outputs]| outputs.t()?.contiguous())?;
        linear(&centered, &outputs, &self.mean)
    }

    /// Reads the directions of all attributes below `vb`: `directions` (w) `[A, D]`, and if the config says so
    /// `local_inputs` (V) and `local_outputs` (U), `[A, h, D]`, `local_hidden` (M) `[A, h, h]`, and `local_bias`,
    /// `local_hidden_bias` and `local_center` (b, d and c), `[A, h]`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn read_all(config: &ClassifierConfig, vb: &VarBuilder<'_>) -> candle_core::Result<Vec<Self>> {
        let (count, units, width) = (config.attributes.len(), config.local_units, config.z_channels);
        let means = vb.get((count, width), "directions")?;
        let shapes = [vec![count, units, width], vec![count, units], vec![count, units, units]];
        let shape_of = |place: usize| shapes[[0, 1, 2, 1, 1, 0][place]].as_slice();
        let mut stacks = vec![];
        for (place, name) in LOCAL.iter().enumerate().filter(|_| units > 0) {
            stacks.push(vb.get(shape_of(place), name)?);
        }
        let direction = |idx: usize| {
            let parts = stacks.iter().map(|stack| stack.get(idx)).collect::<candle_core::Result<Vec<_>>>()?;
            let local = <[Tensor; 6]>::try_from(parts).ok().map(LocalOffset::from_tensors);
            Ok(Self { mean: means.get(idx)?, local })
        };
        (0..count).map(direction).collect()
    }

    /// Stacks the directions of all attributes to the tensors that [`read_all`](Self::read_all) reads, in f32 on the
    /// CPU. Offsets of fewer hidden units than others are padded with zeros.
    ///
    /// # Errors
    /// If there is none, or the widths differ.
    pub fn stack_all(directions: &[Self]) -> candle_core::Result<Vec<(&'static str, Tensor)>> {
        let here = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu);
        let means =
            directions.iter().map(|direction| here(&direction.mean)).collect::<candle_core::Result<Vec<_>>>()?;
        let mut named = vec![("directions", Tensor::stack(&means, 0)?)];
        let units = directions.iter().map(Self::num_units).max().unwrap_or(0);
        if units == 0 {
            return Ok(named);
        }
        let mut stacks = [const { Vec::<Tensor>::new() }; 6];
        for direction in directions {
            let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
            let parts = if let Some(local) = &direction.local {
                local.padded(units)?
            } else {
                let (wide, long) = (zeros(&[units, direction.mean.elem_count()])?, zeros(&[units])?);
                [wide.clone(), long.clone(), zeros(&[units, units])?, long.clone(), long, wide]
            };
            for (stack, part) in stacks.iter_mut().zip(parts) {
                stack.push(here(&part)?);
            }
        }
        for (name, stack) in LOCAL.into_iter().zip(&stacks) {
            named.push((name, Tensor::stack(stack, 0)?));
        }
        Ok(named)
    }
}

#[cfg(test)]
mod tests {
    use candle_nn::VarBuilder;

    use super::*;
    use crate::config::RawClassifierConfig;

    fn vector(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    /// Along axis 0, and along axis 1 by the code's value on axis 2.
    fn bent() -> EditDirection {
        EditDirection::local(vector(&[2., 0., 0.]), offset()).unwrap()
    }

    fn offset() -> LocalOffset {
        LocalOffset {
            inputs: vector(&[0., 0., 1.]).unsqueeze(0).unwrap(),
            bias: vector(&[0.5]),
            hidden: vector(&[2.]).unsqueeze(0).unwrap(),
            hidden_bias: vector(&[-1.]),
            center: vector(&[0.25]),
            outputs: vector(&[0., 2., 0.]).unsqueeze(0).unwrap(),
        }
    }

    #[test]
    fn a_local_direction_follows_the_formula() {
        let z = vector(&[5., 0., -3.]).unsqueeze(0).unwrap();
        let at_z = bent().forward(&z).unwrap().to_vec2::<f32>().unwrap();
        let expected = 2. * ((2. * (-2.5f32).tanh() - 1.).tanh() - 0.25);
        assert!((at_z[0][0] - 2.).abs() < 1e-6 && (at_z[0][1] - expected).abs() < 1e-6 && at_z[0][2] == 0.);
        let fixed = EditDirection::fixed(vector(&[3., 4., 0.])).unwrap();
        assert_eq!(fixed.forward(&z).unwrap().to_vec2::<f32>().unwrap(), [[3., 4., 0.]]);
        assert!((fixed.norm().unwrap() - 5.).abs() < 1e-6);
    }

    #[test]
    fn stacked_directions_are_read_back_whatever_their_units() {
        let fixed = EditDirection::fixed(vector(&[0., 0., 1.])).unwrap();
        let twice = |tensor: &Tensor| Tensor::cat(&[tensor, tensor], 0).unwrap();
        let LocalOffset { inputs, bias, hidden_bias, center, outputs, .. } = offset();
        let wide = LocalOffset {
            inputs: twice(&inputs),
            bias: twice(&bias),
            hidden: Tensor::new(&[[1f32, 0.5], [0.2, 1.]], &Device::Cpu).unwrap(),
            hidden_bias: twice(&hidden_bias),
            center: twice(&center),
            outputs: twice(&outputs),
        };
        let wide = EditDirection::local(vector(&[1., 1., 1.]), wide).unwrap();
        let all = [bent(), fixed, wide];
        let stacked = EditDirection::stack_all(&all).unwrap();
        let named = stacked.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        let raw = RawClassifierConfig {
            z_channels: 3,
            attributes: ["a", "b", "c"].map(str::to_owned).to_vec(),
            local_units: 2,
            calibrated: vec![],
        };
        let vb = VarBuilder::from_tensors(named, DType::F32, &Device::Cpu);
        let read = EditDirection::read_all(&ClassifierConfig::new(raw).unwrap(), &vb).unwrap();
        let z = Tensor::new(&[[0.3f32, -1., 2.], [0., 0.5, -0.5]], &Device::Cpu).unwrap();
        for (one, other) in all.iter().zip(&read) {
            let [one, other] = [one, other].map(|direction| direction.forward(&z).unwrap());
            let difference = (one - other).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(difference < 1e-6, "{difference}");
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let refused = |offset| EditDirection::local(vector(&[2., 0., 0.]), offset).unwrap_err().to_string();
        assert!(
            refused(LocalOffset { outputs: vector(&[1., 2.]).unsqueeze(0).unwrap(), ..offset() }).contains("outputs")
        );
        assert!(refused(LocalOffset { center: vector(&[f32::NAN]), ..offset() }).contains("not finite"));
        assert!(EditDirection::fixed(offset().inputs).is_err());
    }
}
