//! Loss and gradients of the first training step, from the parameters that the optimizer works on.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use diffae_infer::ModelSource;
use diffae_kernels::{differentiable, record};
use diffae_nets::weights::{ArchitectureHints, ParameterSet, name_from_pytorch};
use diffae_nets::{SemanticNetwork, Unet};
use diffae_schedule::Timestep;

use super::fixture::Fixture;
use super::report::{Report, Tolerance, largest, numbers};

/// Gradients smaller than this part of the whole gradient's norm are compared with it: they are sums that cancel, such
/// as those of a bias before a norm.
const NEGLIGIBLE: f64 = 1e-4;

/// Checks the first golden training step of a model folder, if there is one.
pub(crate) fn check(folder: &Path, report: &mut Report) -> Result<()> {
    let golden = Fixture::open(&folder.join("golden.safetensors"))?;
    if golden.get("train_loss")?.is_none() {
        return Ok(());
    }
    let hints = ArchitectureHints::default();
    let source = ModelSource::open_checkpoint(&folder.join("last.ckpt"), ParameterSet::Online, &hints)?;
    let trainable = Trainable::new(&source)?;
    let ((loss_per_sample, loss), tape) = record(|| -> Result<_> {
        let loss_per_sample = trainable.loss_per_sample(&source, &golden)?;
        let loss = differentiable([&loss_per_sample], |[losses]| losses.mean_all())?;
        Ok((loss_per_sample, loss))
    })?;
    let expected = golden.tensor("train_loss_per_sample_0")?;
    report.tensors("train_loss_per_sample_0", &loss_per_sample, &expected, Tolerance::Loss)?;
    let expected = golden.tensor("train_loss")?.get(0)?;
    report.tensors("train_loss_0", &loss, &expected, Tolerance::Loss)?;

    let mut gradients = diffae_kernels::Gradients::default();
    tape.backward(&loss, &mut gradients)?;
    let gradients = Gradients::new(&trainable, &gradients)?;
    let grad_norm = golden.numbers("train_grad_norm")?;
    let grad_norm = *grad_norm.first().context("train_grad_norm is empty")?;
    report.add("train_grad_norm_0", (gradients.norm() - grad_norm).abs() / grad_norm, Tolerance::Gradient);
    gradients.check_each(&golden, grad_norm, report)
}

/// Networks whose parameters are variables.
struct Trainable {
    vars: BTreeMap<String, Var>,
    encoder: Option<SemanticNetwork>,
    unet: Unet,
}

impl Trainable {
    fn new(source: &ModelSource) -> Result<Self> {
        let tensors = source.networks(DType::F32)?;
        let vars: BTreeMap<String, Var> =
            tensors.into_iter().map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?))).collect::<Result<_>>()?;
        let by_name: HashMap<String, Tensor> =
            vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let vb = VarBuilder::from_tensors(by_name, DType::F32, &Device::Cpu);
        let config = source.config();
        let encoder = config.encoder().map(|encoder| SemanticNetwork::new(encoder, &vb.pp("encoder")));
        Ok(Self {
            encoder: encoder.transpose()?,
            unet: Unet::new(config.unet().context("there is no unet")?, &vb.pp("unet"))?,
            vars,
        })
    }

    /// Computes `mean over pixels of (eps - eps_pred)^2`, one number per picture.
    fn loss_per_sample(&self, source: &ModelSource, golden: &Fixture) -> Result<Tensor> {
        let step = |name: &str| -> Result<Tensor> { Ok(golden.tensor(name)?.get(0)?) };
        let (x_0, noise) = (step("train_x")?, step("train_noise")?);
        let timesteps = step("train_t")?.to_vec1::<i64>()?;
        let timesteps: Vec<Timestep> =
            timesteps.into_iter().map(|t| Ok(Timestep::new(usize::try_from(t)?))).collect::<Result<_>>()?;
        let schedule = source.config().diffusion().context("there is no diffusion")?.noise_schedule()?;
        let x_t = schedule.q_sample(&x_0, &noise, &timesteps)?;
        let z_sem = self.encoder.as_ref().map(|encoder| encoder.forward(&x_0)).transpose()?;
        let timesteps: Vec<f32> = timesteps.iter().map(|t| t.get() as f32).collect();
        let eps_pred = self.unet.forward(&x_t, &timesteps, z_sem.as_ref())?;
        Ok(differentiable([&eps_pred], |[eps_pred]| (noise - eps_pred)?.sqr()?.mean((1, 2, 3)))?)
    }
}

/// Gradients of the parameters that the loss depends on, by name.
struct Gradients(BTreeMap<String, Vec<f64>>);

impl Gradients {
    fn new(trainable: &Trainable, store: &diffae_kernels::Gradients) -> Result<Self> {
        let present = trainable.vars.iter().filter_map(|(name, var)| Some((name, store.get(var)?)));
        present.map(|(name, gradient)| Ok((name.clone(), numbers(gradient)?))).collect::<Result<_>>().map(Self)
    }

    fn norm(&self) -> f64 {
        self.0.values().flatten().map(|value| value * value).sum::<f64>().sqrt()
    }

    /// Compares each golden gradient, or its norm, and reports the worst of each kind.
    fn check_each(&self, golden: &Fixture, whole_norm: f64, report: &mut Report) -> Result<()> {
        let floor = NEGLIGIBLE * whole_norm;
        let (mut worst_value, mut worst_norm) = (0., 0.);
        for name in golden.names() {
            if let Some(parameter) = name.strip_prefix("train_grad0.") {
                let (got, expected) = (self.of(parameter)?, golden.numbers(&name)?);
                let difference = got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs());
                let magnitude = expected.iter().map(|value| value.abs()).fold(floor, largest);
                let same_length = if got.len() == expected.len() { 0. } else { f64::INFINITY };
                worst_value = largest(worst_value, difference.fold(same_length, largest) / magnitude);
            } else if let Some(parameter) = name.strip_prefix("train_gradnorm0.") {
                let norm = self.of(parameter)?.iter().map(|value| value * value).sum::<f64>().sqrt();
                let expected = *golden.numbers(&name)?.first().context("empty gradient norm")?;
                worst_norm = largest(worst_norm, (norm - expected).abs() / expected.max(floor));
            }
        }
        report.add("train_grad0", worst_value, Tolerance::Gradient);
        report.add("train_gradnorm0", worst_norm, Tolerance::Gradient);
        Ok(())
    }

    fn of(&self, parameter: &str) -> Result<&[f64]> {
        let gradient = self.0.get(&name_from_pytorch(parameter));
        gradient.map(Vec::as_slice).with_context(|| format!("{parameter} has no gradient"))
    }
}
