//! Trainable parameters: seeded initial values, optimizer, moving average, and storage.

mod in_group;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Shape, Tensor, TensorId, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use diffae_kernels::{
    AdamConfig, AdamStep, Gradients, ParameterState, ParameterUpdate, StatePart, adam_steps, sums_of_squares,
};
use diffae_nets::BatchMoments;
use diffae_nets::weights::{SafetensorsFile, TensorSource, float_bytes};
use safetensors::Dtype;
use safetensors::tensor::View;

use crate::compute::Compute;
use crate::config::{OptimizerKind, StageSettings};
use crate::error::{Error, Result, at};
use crate::random::{Purpose, below, normal, stream, unit};
use crate::reduce::{Plan, Summand};

/// Second beta and epsilon of Adam: PyTorch's defaults, which the reference keeps.
const BETA_2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// Parts of the optimizer state by their names in checkpoints.
const STATE: [(&str, StatePart); 3] =
    [("m", StatePart::FirstMoment), ("v", StatePart::SecondMoment), ("ema", StatePart::Average)];

/// The quantity of an error about a gradient.
pub(crate) const GRADIENT_NORM: &str = "norm of the gradient";

/// A parameter with its optimizer state.
#[derive(Debug)]
struct Parameter {
    var: Var,
    /// Moments and average, of `held` alone where other processes hold the rest.
    state: ParameterState,
    /// Elements whose state is here.
    held: Range<usize>,
    /// Excludes the parameter from updates; the network still reads it.
    frozen: bool,
    /// Place in the order in which layers have requested parameters, that of a forward pass.
    place: usize,
}

/// All parameters of a stage, by name.
#[derive(Debug)]
pub(crate) struct Parameters {
    by_name: BTreeMap<String, Parameter>,
    device: Device,
    /// Number type in which layers read parameters.
    dtype: DType,
}

/// Norms of a gradient before clipping.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Norms {
    /// Norm of the whole gradient.
    pub(crate) whole: f64,
    /// Norm of the part below `encoder.`.
    pub(crate) encoder: f64,
    /// Norm of the part below `unet.` or `decoder.`.
    pub(crate) unet: f64,
}

/// Norms of the gradient of a part, before an update.
#[derive(Debug)]
pub(crate) struct Measured {
    part: Part,
    /// Sums of squares of the gradients, by parameter.
    squares: HashMap<TensorId, f64>,
    pub(crate) norms: Norms,
}

/// The part of the parameters that an update applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Encoder and decoder.
    Model,
    /// The discriminator of the adversarial term.
    Discriminator,
}

impl Part {
    fn of(name: &str) -> Self {
        if name.starts_with("discriminator.") { Self::Discriminator } else { Self::Model }
    }
}

/// Creates variables as layers request them.
#[derive(Debug, Clone)]
struct Maker {
    seed: u64,
    device: Device,
    /// Values from another model.
    given: Arc<HashMap<String, Tensor>>,
    /// Variables, each with the number of those made before it.
    made: Arc<Mutex<BTreeMap<String, (usize, Var)>>>,
    /// Mismatch of a given value, which an error of the layers cannot carry.
    misfit: Arc<Mutex<Option<String>>>,
}

impl Parameters {
    /// Builds networks over variables of f32: those in `given` have its values, the others begin at random by seed and
    /// name.
    pub(crate) fn build<M>(
        (seed, compute): (u64, impl Into<Compute>),
        given: HashMap<String, Tensor>,
        build: impl FnOnce(&VarBuilder<'_>) -> Result<M>,
    ) -> Result<(M, Self)> {
        let (Compute { device, dtype }, given) = (compute.into(), Arc::new(given));
        let maker = Maker { seed, device: device.clone(), given, made: Arc::default(), misfit: Arc::default() };
        let built = build(&VarBuilder::from_backend(Box::new(maker.clone()), dtype, device.clone()));
        if let Some(problem) = maker.misfit.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(Error::OtherNetworks { problem });
        }
        let built = built?;
        let made = std::mem::take(&mut *maker.made.lock().unwrap_or_else(PoisonError::into_inner));
        let parameter = |(name, (place, var)): (String, (usize, Var))| -> Result<(String, Parameter)> {
            let (state, held) = (ParameterState::new(&var)?, 0..var.elem_count());
            Ok((name, Parameter { var, state, held, frozen: false, place }))
        };
        let by_name = made.into_iter().map(parameter).collect::<Result<_>>()?;
        Ok((built, Self { by_name, device, dtype }))
    }

    /// Returns the parameters of a network that is not trained, on the CPU: those given, or for a trial without any random ones.
    pub(crate) fn constants<M>(
        seed: u64,
        given: HashMap<String, Tensor>,
        build: impl FnOnce(&VarBuilder<'_>) -> Result<M>,
    ) -> Result<BTreeMap<String, Tensor>> {
        if given.is_empty() {
            return Self::build((seed, &Device::Cpu), given, build)?.1.averages();
        }
        given.into_iter().map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?))).collect()
    }

    /// Returns the number type in which layers read the parameters.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Returns the device of the parameters.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Freezes all parameters below a prefix, and counts them.
    pub(crate) fn freeze(&mut self, prefix: &str) -> usize {
        let some = self.by_name.iter_mut().filter(|(name, _)| name.starts_with(prefix));
        some.map(|(_, parameter)| parameter.frozen = true).count()
    }

    /// Returns detached views of all parameters below a prefix: they share the values, but receive no gradient.
    pub(crate) fn views(&self, prefix: &str) -> HashMap<String, Tensor> {
        let some = self.by_name.iter().filter(|(name, _)| name.starts_with(prefix));
        some.map(|(name, parameter)| (name.clone(), parameter.var.as_detached_tensor())).collect()
    }

    /// Counts the values of the model.
    pub(crate) fn count(&self) -> usize {
        let model = self.by_name.iter().filter(|(name, _)| Part::of(name) == Part::Model);
        model.map(|(_, parameter)| parameter.var.elem_count()).sum()
    }

    /// Plans sums of all gradients over some processes.
    pub(crate) fn plan(&self, num_processes: usize) -> Plan {
        let trained = self.by_name.iter().filter(|(_, parameter)| !parameter.frozen);
        let mut trained: Vec<(bool, Reverse<usize>, &Parameter)> = trained
            .map(|(name, parameter)| (Part::of(name) == Part::Discriminator, Reverse(parameter.place), parameter))
            .collect();
        // A backward pass completes the gradient of the last one first; that of the discriminator follows the model's.
        trained.sort_unstable_by_key(|&(is_second, place, _)| (is_second, place));
        let summand = |parameter: &Parameter| Summand { id: parameter.var.id(), shape: parameter.var.dims().to_vec() };
        Plan::new(trained.into_iter().map(|(_, _, parameter)| summand(parameter)), num_processes)
    }

    /// Moves the running statistics of a norm, which have no gradient, by those of a batch, and their moving averages to the
    /// same values. Frozen ones stay as they are.
    pub(crate) fn move_statistics(&mut self, BatchMoments { path, mean, variance }: &BatchMoments) -> Result<()> {
        for (kind, of_batch) in [("running_mean", mean), ("running_var", variance)] {
            let name = format!("{path}.{kind}");
            let missing = || candle_core::Error::Msg(format!("there is no parameter {name}"));
            let parameter = self.by_name.get_mut(&name).ok_or_else(missing)?;
            if !parameter.frozen {
                // Those of other processes have come to the CPU.
                let moved = BatchMoments::moved(&parameter.var, &of_batch.to_device(parameter.var.device())?)?;
                parameter.var.set(&moved)?;
                let held = moved.flatten_all()?.narrow(0, parameter.held.start, parameter.held.len())?;
                parameter.state.set(StatePart::Average, held.to_vec1()?)?;
            }
        }
        Ok(())
    }

    /// Computes sums of squares and norms of the gradients of a part, which are `loss_scale` times those of the loss.
    pub(crate) fn measured(&self, part: Part, (gradients, loss_scale): (&Gradients, f64)) -> Result<Measured> {
        let of = |parameter: &Parameter| Some((parameter.var.id(), gradients.get(&parameter.var)?));
        let (ids, with): (Vec<_>, Vec<_>) = self.trained(part).filter_map(|(_, parameter)| of(parameter)).unzip();
        let squares = ids.into_iter().zip(sums_of_squares(&with)?).collect();
        Ok(self.with_norms(part, squares, loss_scale))
    }

    /// Parameters of a part that are updated.
    fn trained(&self, part: Part) -> impl Iterator<Item = (&String, &Parameter)> {
        self.by_name.iter().filter(move |(name, parameter)| !parameter.frozen && Part::of(name) == part)
    }

    /// Computes norms of gradients from the sums of squares of scaled ones.
    fn with_norms(&self, part: Part, squares: HashMap<TensorId, f64>, loss_scale: f64) -> Measured {
        let (mut whole, mut encoder, mut unet) = (0f64, 0f64, 0f64);
        for (name, parameter) in self.trained(part) {
            if let Some(sum) = squares.get(&parameter.var.id()) {
                whole += sum;
                let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
                encoder += if begins(&["encoder.", "spatial.encoder."]) { *sum } else { 0. };
                unet += if begins(&["unet.", "decoder.", "spatial.decoder."]) { *sum } else { 0. };
            }
        }
        let [whole, encoder, unet] = [whole, encoder, unet].map(|squares| squares.sqrt() / loss_scale);
        Measured { part, squares, norms: Norms { whole, encoder, unet } }
    }

    /// Clips the gradients of a part, which are `loss_scale` times those of the loss, and applies an optimizer step to the elements
    /// whose state is here. Parameters without a gradient are left alone. Steps are counted from 0: all of them, and those that
    /// were not skipped.
    pub(crate) fn apply(
        &mut self,
        Measured { part, norms: Norms { whole: grad_norm, .. }, .. }: &Measured,
        (gradients, loss_scale): (&Gradients, f64),
        settings: &StageSettings,
        (step, step_idx): (usize, usize),
    ) -> Result<()> {
        let (part, grad_norm) = (*part, *grad_norm);
        let clipped = settings.clip_norm > 0. && grad_norm > settings.clip_norm;
        // With the epsilon of the reference's clipping.
        let gradient_scale = if clipped { settings.clip_norm / (grad_norm + 1e-6) } else { 1. };
        let weight_decay = if settings.optimizer == OptimizerKind::Adamw { settings.weight_decay } else { 0. };
        let config = AdamConfig {
            lr: settings.lr_at(step),
            beta_1: settings.beta_1,
            beta_2: BETA_2,
            eps: EPS,
            weight_decay,
            ema_decay: settings.ema_decay_at(step),
        };
        let update = AdamStep { config, step_idx, gradient_scale: gradient_scale / loss_scale };
        let mut updates = vec![];
        for (_, parameter) in self.by_name.iter_mut().filter(|(name, p)| !p.frozen && Part::of(name) == part) {
            if let Some(gradient) = gradients.get(&parameter.var) {
                let (first, state) = (parameter.held.start, &mut parameter.state);
                updates.push(ParameterUpdate { parameter: &parameter.var, first, gradient, state });
            }
        }
        Ok(adam_steps(&mut updates, &update)?)
    }

    /// Copies the moving averages of the model.
    pub(crate) fn averages(&self) -> Result<BTreeMap<String, Tensor>> {
        let tensor = |(name, parameter): (&String, &Parameter)| {
            let values = parameter.state.values(StatePart::Average)?.into_owned();
            Ok((name.clone(), Tensor::from_vec(values, parameter.var.shape(), &Device::Cpu)?))
        };
        self.by_name.iter().filter(|(name, _)| Part::of(name) == Part::Model).map(tensor).collect()
    }

    /// Replaces the moving averages of the model.
    pub(crate) fn set_averages(&mut self, averages: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, parameter) in self.by_name.iter_mut().filter(|(name, _)| Part::of(name) == Part::Model) {
            let average = averages.get(name).filter(|average| average.dims() == parameter.var.dims());
            let missing = || candle_core::Error::Msg(format!("there is no moving average that fits {name}"));
            let average = average.ok_or_else(missing)?;
            parameter.state.set(StatePart::Average, average.flatten_all()?.to_vec1()?)?;
        }
        Ok(())
    }

    /// Copies the parameters under training.
    pub(crate) fn current(&self) -> Result<BTreeMap<String, Tensor>> {
        let copied = |var: &Var| if var.device().is_cpu() { var.copy() } else { var.to_device(&Device::Cpu) };
        self.by_name.iter().map(|(name, p)| Ok((name.clone(), copied(&p.var)?))).collect()
    }

    /// Writes parameters and optimizer state to a safetensors file: `parameter/..`, `m/..`, `v/..`, `ema/..`.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let mut views = vec![];
        for (name, Parameter { var, state, .. }) in &self.by_name {
            let values = var.flatten_all()?.to_vec1::<f32>()?;
            views.push((format!("parameter/{name}"), Floats { values: Cow::Owned(values), shape: var.dims() }));
            for (kind, part) in STATE {
                views.push((format!("{kind}/{name}"), Floats { values: state.values(part)?, shape: var.dims() }));
            }
        }
        safetensors::serialize_to_file(views, None, path).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(source) => at(path)(source),
            other => damaged(path, &other.to_string()),
        })
    }

    /// Reads a file of [`save`](Self::save).
    pub(crate) fn load(&mut self, path: &Path) -> Result<()> {
        let file = SafetensorsFile::open(path)?;
        if file.names().len() != 4 * self.by_name.len() {
            return Err(damaged(path, "it is of a run with other networks"));
        }
        for (name, Parameter { var, state, .. }) in &mut self.by_name {
            let read = |kind: &str| -> Result<Tensor> {
                let tensor = file.read(&format!("{kind}/{name}"))?.to_tensor(DType::F32, &Device::Cpu)?;
                if tensor.dims() == var.dims() {
                    Ok(tensor)
                } else {
                    Err(damaged(path, "a parameter has another shape"))
                }
            };
            var.set(&read("parameter")?.to_device(var.device())?)?;
            for (kind, part) in STATE {
                state.set(part, read(kind)?.flatten_all()?.to_vec1()?)?;
            }
        }
        Ok(())
    }
}

fn damaged(path: &Path, problem: &str) -> Error {
    Error::Run { path: PathBuf::from(path), problem: problem.to_owned() }
}

/// Values in the form that safetensors serializes.
struct Floats<'a> {
    values: Cow<'a, [f32]>,
    shape: &'a [usize],
}

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        float_bytes(&self.values)
    }

    fn data_len(&self) -> usize {
        size_of_val(&*self.values)
    }
}

impl SimpleBackend for Maker {
    fn get(&self, shape: Shape, name: &str, init: Init, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, var)) = made.get(name) {
            return Ok(var.as_tensor().clone());
        }
        let var = match self.given.get(name) {
            Some(tensor) if tensor.shape() == &shape => Var::from_tensor(&tensor.to_device(&self.device)?)?,
            Some(tensor) => {
                let problem = format!("{name} has shape {:?}, these networks have {:?}", tensor.dims(), shape.dims());
                *self.misfit.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem.clone());
                return Err(candle_core::Error::Msg(problem));
            }
            None => Var::from_vec(initial(self.seed, name, &shape, init), shape, &self.device)?,
        };
        let place = made.len();
        Ok(made.entry(name.to_owned()).or_insert((place, var)).1.as_tensor().clone())
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} is asked for without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Draws the initial values of a parameter.
fn initial(seed: u64, name: &str, shape: &Shape, init: Init) -> Vec<f32> {
    let hash = blake3::hash(name.as_bytes());
    let counter = hash.as_bytes().iter().take(8).fold(0u64, |all, &byte| (all << 8) | u64::from(byte));
    let mut stream = stream(seed, Purpose::Weights, counter);
    let count = shape.elem_count();
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
    let scaled = |values: Vec<f32>, mean: f64, stdev: f64| -> Vec<f32> {
        values.into_iter().map(|value| (f64::from(value) * stdev + mean) as f32).collect()
    };
    match init {
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        Init::Const(value) => vec![value as f32; count],
        Init::Randn { mean, stdev } => scaled(normal(&mut stream, count), mean, stdev),
        #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
        Init::Uniform { lo, up } => (0..count).map(|_| (lo + (up - lo) * unit(&mut stream)) as f32).collect(),
        Init::Kaiming { fan, non_linearity, .. } => {
            let stdev = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            scaled(normal(&mut stream, count), 0., stdev)
        }
    }
}

/// Refuses a loss or a norm that is NaN or infinite: no optimizer step is ever made on one.
pub(crate) fn require_finite(quantity: &'static str, value: f64, step: usize) -> Result<()> {
    let batch = || "samples that the caller chose".to_owned();
    if value.is_finite() { Ok(()) } else { Err(Error::Diverged { quantity, value, step, batch: batch() }) }
}

/// Draws the seed of dropout for one part of a step.
pub(crate) fn dropout_seed(seed: u64, step: usize, part: usize) -> u64 {
    let counter = (step as u64) << 16 | part as u64;
    below(&mut stream(seed, Purpose::Dropout, counter), 1 << 62) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use diffae_kernels::{differentiable, record};

    use crate::collective::Group;
    use crate::optimization::TrainState;

    #[test]
    fn an_infinite_gradient_changes_no_parameter() {
        let build = |vb: &VarBuilder<'_>| Ok(vb.get_with_hints(2, "unet.weight", Init::Const(0.))?);
        let (weight, parameters) = Parameters::build((0, &Device::Cpu), HashMap::new(), build).unwrap();
        // The loss is 0 and its gradient infinite.
        let (loss, tape) = record(|| differentiable([&weight], |[weight]| weight.sqrt()?.sum_all())).unwrap();
        let mut gradients = Gradients::default();
        tape.backward(&loss, &mut gradients).unwrap();
        let settings = crate::presets::config("smoke", &[]).unwrap().autoencoder;
        let mut state = TrainState::new(parameters);
        state.step = 7;
        let updated = state.update(&mut Group::alone(), &[Part::Model], &gradients, &settings);
        let (error, parameters) = (updated.unwrap_err().to_string(), state.parameters);
        assert!(error.contains("norm of the gradient is inf at step 7"), "{error}");
        assert_eq!(parameters.current().unwrap()["unet.weight"].to_vec1::<f32>().unwrap(), [0., 0.]);
        assert_eq!(parameters.averages().unwrap()["unet.weight"].to_vec1::<f32>().unwrap(), [0., 0.]);
    }
}
