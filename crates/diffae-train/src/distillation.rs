//! Distillation: a decoder learns to do in few DDIM steps what another does in many.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Tensor};
use diffae_infer::{ChainsConfig, DistilledChain, LoadOptions, Model, ModelSource, TunedChain};
use diffae_kernels::{differentiable, no_gradients};
use diffae_nets::weights::ArchitectureHints;
use diffae_nets::{BatchMoments, TrainingMode};
use diffae_schedule::{Clip, Denoiser, ReverseProcess, Sampler, Spacing, Step, StepChain, StepIdx, Timestep, no_noise};

use crate::compute::Compute;
use crate::config::{Kind, ObjectiveSettings, StageSettings, TrainConfig, require};
use crate::distillation_settings::DistillationSettings;
use crate::draw::{Draw, Drawing};
use crate::error::{Error, Result};
use crate::networks::{DiffusionModel, ImageModel};
use crate::objective::Noised;
use crate::semantic_loss::SemanticLoss;

/// Clamping of `x_0` estimates along both chains, as in decoding.
const CLIP: Clip = Clip::UnitRange;

/// A student with its teacher, whose encoder is that of the student.
///
/// From noise `x_T` and `z_sem` of a training picture the teacher computes a trajectory in many steps. The student visits N
/// of its timesteps by DDIM, from its own states, which count as constants. The loss of a step is the mean absolute difference
/// between its estimate of `x_0` and that with which DDIM would meet the teacher's next state; for the last step that is the
/// teacher's picture, which may also be compared in the code of the encoder ([`SemanticLoss`]).
/// # Source
/// The training along the student's own trajectory is that of Zhou et al. 2024 (arXiv:2409.19681), SFD.
#[derive(Debug)]
pub(crate) struct Distillation {
    student: DiffusionModel,
    teacher: Box<Model>,
    student_chain: StepChain,
    teacher_chain: StepChain,
    perceptual: Option<SemanticLoss>,
}

/// States of a batch of N pictures at the K timesteps of the student, with their targets.
pub(crate) struct Trajectories {
    /// States `[N K, C, H, W]`, the K of a picture in a row, the noisiest first; the target is an estimate of `x_0`.
    states: Noised,
    /// Codes of the pictures, each K times, `[N K, D]`; absent in a plain DDPM.
    z_sem: Option<Tensor>,
    /// Codes of the teacher's pictures, `[N, D]`, where they are compared.
    wanted: Option<Tensor>,
}

impl Distillation {
    /// Puts a student that begins with the weights of `teacher` beside it; `perceptual` is the term of
    /// [`DistillationSettings::semantic_weight`].
    pub(crate) fn new(
        student: DiffusionModel,
        teacher: Model,
        settings: &DistillationSettings,
        perceptual: Option<SemanticLoss>,
    ) -> Result<Self> {
        let schedule = student.schedule();
        let student_chain = StepChain::from_timesteps(schedule, settings.timesteps(schedule)?)?;
        let mut timesteps = Spacing::LogSnr.timesteps(schedule, settings.teacher_steps)?;
        timesteps.extend_from_slice(student_chain.timesteps());
        timesteps.sort_unstable();
        timesteps.dedup();
        let teacher_chain = StepChain::from_timesteps(schedule, timesteps)?;
        Ok(Self { student, teacher: Box::new(teacher), student_chain, teacher_chain, perceptual })
    }

    /// Returns the states of the student before each step, the noisiest first.
    fn student_states(&self, x_terminal: &Tensor, z_sem: Option<&Tensor>) -> Result<Vec<Tensor>> {
        let mut states = vec![x_terminal.clone()];
        // No step begins at the picture, where the last one ends.
        let count = self.student_chain.len() - 1;
        if count > 0 {
            let denoiser = self.student.denoiser(z_sem);
            states.extend(states_after(count, Sampler::DDIM, &self.student_chain, &denoiser, x_terminal)?);
        }
        Ok(states)
    }

    /// Returns the teacher's states after each step of the student, the noisiest first and the picture last.
    fn teacher_states(&self, x_terminal: &Tensor, z_sem: Option<&Tensor>) -> Result<Vec<Tensor>> {
        let chain = &self.teacher_chain;
        let denoiser = self.teacher.denoiser(z_sem, chain, x_terminal)?;
        let after = states_after(chain.len(), Sampler::DpmSolverPp2M, chain, &denoiser, x_terminal)?;
        let reached = chain.timesteps().iter().rev().skip(1).map(Some).chain([None]);
        let is_wanted =
            |timestep: Option<&Timestep>| timestep.is_none_or(|t| self.student_chain.timesteps().contains(t));
        // The chain begins at the noisiest timestep of the student, which is a state before a step only.
        Ok(reached.zip(after).filter(|(timestep, _)| is_wanted(*timestep)).map(|(_, state)| state).collect())
    }

    /// Computes the estimate of `x_0` with which DDIM moves a state to the next one:
    /// `x_0 = (next - s x) / (alpha_next - s alpha)` with `s = sigma_next / sigma`.
    fn target(&self, step: StepIdx, x: &Tensor, next: &Tensor) -> Result<Tensor> {
        let (alpha_bar, next_alpha_bar) =
            (self.student_chain.alpha_bar(step)?, self.student_chain.alpha_bar_prev(step)?);
        let s = ((1. - next_alpha_bar) / (1. - alpha_bar)).sqrt();
        let scale = (next_alpha_bar.sqrt() - s * alpha_bar.sqrt()).recip();
        Ok((next.affine(scale, 0.)? - x.affine(scale * s, 0.)?)?)
    }
}

/// Runs the first steps of a chain, as many as `count`, and returns the state after each.
fn states_after(
    count: usize,
    sampler: Sampler,
    chain: &StepChain,
    denoiser: &impl Denoiser,
    x_terminal: &Tensor,
) -> Result<Vec<Tensor>> {
    let mut states = vec![];
    let mut keep = |step: &Step<'_>| {
        states.push(step.x_t.clone());
        if states.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let process = ReverseProcess::new(sampler, chain.clone(), CLIP);
    match no_gradients(|| process.run(denoiser, x_terminal, &mut no_noise, &mut keep)) {
        Ok(_) | Err(diffae_schedule::Error::Cancelled { .. }) => Ok(states),
        Err(error) => Err(error.into()),
    }
}

/// Repeats each row `count` times in place: `[N, ..]` to `[N count, ..]`.
fn repeat_rows(rows: &Tensor, count: usize) -> Result<Tensor> {
    Ok(Tensor::stack(&vec![rows; count], 1)?.flatten(0, 1)?)
}

/// Selects the last of each `count` rows in a row: `[N count, ..]` to `[N, ..]`.
fn last_of_each(rows: &Tensor, count: usize) -> candle_core::Result<Tensor> {
    let num_rows = rows.dim(0)?.checked_div(count).unwrap_or(0);
    let dims: Vec<usize> = [num_rows, count].into_iter().chain(rows.dims().iter().skip(1).copied()).collect();
    rows.reshape(dims)?.narrow(1, count - 1, 1)?.squeeze(1)
}

impl ImageModel for Distillation {
    type Input = Trajectories;
    /// `z_sem`, `[N, D]`, where there is an encoder.
    type Code = Option<Tensor>;
    type Output = Tensor;

    fn draw(&self, x_0: &Tensor, how: Drawing) -> Result<Trajectories> {
        let x_terminal = Draw::new(self.student.schedule(), x_0, how)?.noise;
        let z_sem = self.teacher.has_z_sem().then(|| self.teacher.encode_semantic(x_0)).transpose()?;
        let states = self.student_states(&x_terminal, z_sem.as_ref())?;
        let next = self.teacher_states(&x_terminal, z_sem.as_ref())?;
        let steps: Vec<StepIdx> = self.student_chain.indices().rev().collect();
        let targets = steps.iter().zip(states.iter().zip(&next)).map(|(&step, (x, next))| self.target(step, x, next));
        let targets = targets.collect::<Result<Vec<_>>>()?;
        // The last of the states after a step is the teacher's picture.
        let wanted = match (&self.perceptual, next.last()) {
            (Some(perceptual), Some(picture)) => Some(perceptual.codes(picture)?),
            _ => None,
        };
        let timesteps = self.student_chain.timesteps().iter().rev().copied();
        let states = Noised {
            x_t: Tensor::stack(&states, 1)?.flatten(0, 1)?,
            target: Tensor::stack(&targets, 1)?.flatten(0, 1)?,
            timesteps: timesteps.cycle().take(steps.len() * x_0.dim(0)?).collect(),
        };
        let z_sem = z_sem.map(|z_sem| repeat_rows(&z_sem, steps.len())).transpose()?;
        Ok(Trajectories { states, z_sem, wanted })
    }

    fn encode(&self, x_0: &Tensor) -> Result<Option<Tensor>> {
        self.student.encode(x_0)
    }

    fn shifted(code: &Option<Tensor>) -> Result<Option<Option<Tensor>>> {
        DiffusionModel::shifted(code)
    }

    fn decode(&self, code: &Option<Tensor>, input: &Trajectories) -> Result<Tensor> {
        let repeated = code.as_ref().map(|z_sem| repeat_rows(z_sem, self.student_chain.len())).transpose()?;
        self.student.decode(&repeated, &input.states)
    }

    fn forward_training(
        &self,
        _: &Tensor,
        input: &Trajectories,
        mode: TrainingMode,
        _: &mut Vec<BatchMoments>,
    ) -> Result<Tensor> {
        self.student.predict_training(&input.states, input.z_sem.as_ref(), mode)
    }

    fn loss(&self, _: &Tensor, input: &Trajectories, output: &Tensor, _: &ObjectiveSettings) -> Result<Tensor> {
        let estimates = self.student.x_0_estimates(&input.states, output)?;
        let target = &input.states.target;
        let loss = differentiable([&estimates], |[estimates]| (estimates - target)?.abs()?.mean_all())?;
        let (Some(perceptual), Some(wanted)) = (&self.perceptual, &input.wanted) else { return Ok(loss) };
        let last = differentiable([&estimates], |[estimates]| last_of_each(estimates, self.student_chain.len()))?;
        perceptual.added_to(&loss, &last, wanted)
    }
}

/// Returns the timesteps that a teacher has for so many steps of DDIM, which a student takes.
fn tuned_for_ddim(chains: Option<&ChainsConfig>, steps: usize) -> Result<Vec<usize>> {
    let key = "distillation.chain";
    let Some(TunedChain { timesteps, sampler }) = chains.and_then(|chains| chains.tuned(steps)) else {
        let tuned = chains.iter().flat_map(|chains| &chains.tuned).map(|chain| chain.timesteps.len()).collect();
        return Err(Error::Chain { key, source: diffae_schedule::Error::NotTuned { got: steps, tuned } });
    };
    let expected =
        "timesteps for ddim, in which students decode: tune with --sampler ddim, or name them by --timesteps";
    require(*sampler == Sampler::DDIM, key, format!("timesteps tuned for {sampler}"), expected)?;
    Ok(timesteps.clone())
}

/// Opens the teacher of a run.
pub(crate) fn open_teacher(path: &Path) -> Result<ModelSource> {
    Ok(ModelSource::open(path, &ArchitectureHints::default())?)
}

/// Builds the networks of the teacher.
pub(crate) fn build_teacher(path: &Path, compute: &Compute) -> Result<Model> {
    let Compute { device, dtype } = compute.clone();
    Ok(open_teacher(path)?.build(&LoadOptions { dtype, ..LoadOptions::on(&device) })?)
}

/// Returns the teacher with the networks of the student: a model that decodes in few steps, with the latent net, the
/// classifier and the statistics of the teacher.
pub(crate) fn distilled(
    teacher: &ModelSource,
    student: impl IntoIterator<Item = (String, Tensor)>,
    chains: ChainsConfig,
) -> Result<ModelSource> {
    let mut tensors = teacher.networks(DType::F32)?;
    // An endpoint network belongs to the decoder that it was trained with.
    tensors.retain(|name, _| !name.starts_with("endpoint."));
    tensors.extend(student);
    let mut source = teacher.with_networks(teacher.config().with_endpoint(None)?, tensors);
    source.set_chains(chains)?;
    Ok(source)
}

impl TrainConfig {
    /// Returns the config of a run that distills `teacher`, with changed settings (`key=value`). A tuned chain of the student
    /// is that of the teacher unless the settings have timesteps.
    ///
    /// # Errors
    /// [`Error::OtherNetworks`] if the teacher's architecture is none that can be trained; as
    /// [`TrainConfig::from_toml_with`].
    pub fn of_teacher(
        teacher: &ModelSource,
        mut distillation: DistillationSettings,
        assignments: &[String],
    ) -> Result<Self> {
        let networks = teacher.config();
        let knows_any_chain = networks.chains().is_none_or(|chains| chains.distilled.is_none());
        let own = "a decoder that was distilled or polished to steps of its own";
        require(
            knows_any_chain,
            "the teacher",
            own,
            "the model that it was made of, which decodes in any number of steps",
        )?;
        let DistilledChain { steps, spacing } = distillation.chain;
        if spacing == Spacing::Tuned && distillation.timesteps.is_none() {
            distillation.timesteps = Some(tuned_for_ddim(networks.chains(), steps)?);
        }
        let base = Self::of_networks(networks, "the teacher")?;
        let config = Self {
            autoencoder: StageSettings {
                images: 50_000,
                batch_size: 16,
                lr: 1e-4,
                weight_decay: 0.,
                warmup_images: 1000,
                ema_decay: 0.998,
                ema_warmup: true,
                ..base.autoencoder
            },
            distillation: Some(distillation),
            ..base
        };
        let config = config.with(assignments)?;
        config.check_architecture(networks)?;
        Ok(config)
    }

    /// Checks that a distillation has the chains that it asks for, and no objective of another kind.
    pub(crate) fn check_distillation(&self) -> Result<()> {
        let Some(settings) = &self.distillation else { return Ok(()) };
        let DistillationSettings { chain, ref timesteps, teacher_steps, semantic_weight } = *settings;
        let kind = "autoencoder or ddpm, whose decoders take steps";
        require(self.model.kind != Kind::Compact, "model.kind", "compact", kind)?;
        let weight = self.objective.adversarial_weight;
        require(weight <= 0., "objective.adversarial_weight", weight, "0 while a decoder is distilled")?;
        let is_weight = semantic_weight >= 0. && semantic_weight.is_finite();
        require(is_weight, "distillation.semantic_weight", semantic_weight, "0 or more")?;
        let has_encoder = semantic_weight <= 0. || self.model.kind == Kind::Autoencoder;
        let kind_on_latents = "a model on pictures";
        require(self.spatial_net.is_none(), "model.kind", "latent-autoencoder", kind_on_latents)?;
        let expected = "0 for a model without semantic encoder";
        require(has_encoder, "distillation.semantic_weight", semantic_weight, expected)?;
        let schedule = self.diffusion.noise_schedule()?;
        let failed = |key| move |source| Error::Chain { key, source };
        Spacing::LogSnr.timesteps(&schedule, teacher_steps).map_err(failed("distillation.teacher_steps"))?;
        if let Some(timesteps) = timesteps {
            let given = format!("{timesteps:?} with {}", chain.spacing);
            let is_tuned = chain.spacing == Spacing::Tuned && timesteps.is_sorted_by(|a, b| a < b);
            let key = "distillation.timesteps";
            require(is_tuned, key, &given, "strictly increasing timesteps of the spacing tuned")?;
            require(timesteps.len() == chain.steps, key, &given, "as many timesteps as distillation.chain has steps")?;
            let last = schedule.num_train_timesteps().checked_sub(1);
            require(timesteps.last().copied() == last, key, &given, "timesteps that end with the last one, T - 1")?;
        }
        let timesteps = settings.timesteps(&schedule).map_err(failed("distillation.chain"))?;
        // A student begins with noise alone, and so does its teacher.
        let first = timesteps.last().copied();
        let begins_at_noise = first == schedule.num_train_timesteps().checked_sub(1).map(Timestep::new);
        let expected = "a spacing that begins at the last timestep, such as trailing, linspace, log-snr or karras";
        require(
            begins_at_noise,
            "distillation.chain",
            format!("{} with {} steps", chain.spacing, chain.steps),
            expected,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use candle_core::Device;
    use diffae_infer::{GivenSettings, PipelineSettings};

    use super::*;
    use crate::random::Purpose;
    use crate::{Trainer, presets};

    /// A teacher with random weights, and the config of a run that distills it to `steps` steps.
    fn teacher(steps: usize, assignments: &[&str]) -> (ModelSource, TrainConfig) {
        teacher_along(DistilledChain { steps, spacing: Spacing::Trailing }, assignments)
    }

    fn teacher_along(chain: DistilledChain, assignments: &[&str]) -> (ModelSource, TrainConfig) {
        let smoke = presets::config("smoke", &["diffusion.prediction=v".to_owned()]).unwrap();
        let networks = Trainer::new(&smoke, HashMap::new()).unwrap().averages().unwrap();
        let mut teacher = ModelSource::from_networks(smoke.model_config().unwrap(), networks);
        let last = smoke.diffusion.num_train_timesteps - 1;
        let mut chains = ChainsConfig::default();
        for timesteps in [vec![last], vec![last.div_euclid(9), last], vec![2, last.div_euclid(5), last]] {
            chains.set_tuned(TunedChain { timesteps, sampler: Sampler::DDIM });
        }
        teacher.set_chains(chains).unwrap();
        let assignments: Vec<String> = assignments.iter().map(|&text| text.to_owned()).collect();
        let distillation = DistillationSettings { chain, timesteps: None, teacher_steps: 5, semantic_weight: 0. };
        let config = TrainConfig::of_teacher(&teacher, distillation, &assignments).unwrap();
        (teacher, config)
    }

    fn networks(teacher: &ModelSource) -> HashMap<String, Tensor> {
        teacher.networks(DType::F32).unwrap().into_iter().collect()
    }

    fn pictures(count: usize) -> Tensor {
        let values: Vec<f32> = (0..count * 3 * 256).map(|idx| (idx as f32 * 0.37).sin()).collect();
        Tensor::from_vec(values, (count, 3, 16, 16), &Device::Cpu).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    /// Puts a student that is its teacher beside it.
    fn undistilled(chain: DistilledChain) -> Distillation {
        let (teacher, config) = teacher_along(chain, &[]);
        let parameters = networks(&teacher);
        let vb = candle_nn::VarBuilder::from_tensors(parameters, DType::F32, &Device::Cpu);
        let built = crate::networks::Networks::new(&config.model_config().unwrap(), (None, None), &vb).unwrap();
        let crate::networks::Networks::Diffusion(student) = built else { panic!("a diffusion") };
        let settings = config.distillation.unwrap();
        Distillation::new(student, teacher.build(&LoadOptions::cpu()).unwrap(), &settings, None).unwrap()
    }

    #[test]
    fn a_step_with_its_target_leads_to_the_teachers_next_state() {
        let spacings = [Spacing::Trailing, Spacing::Linspace, Spacing::LogSnr, Spacing::Karras, Spacing::Tuned];
        for (steps, spacing) in [1, 2, 3].into_iter().flat_map(|steps| spacings.map(|spacing| (steps, spacing))) {
            let distillation = undistilled(DistilledChain { steps, spacing });
            let x_0 = pictures(2);
            let how = Drawing::uniform(3, Purpose::Noise, 0);
            let x_terminal = Draw::new(distillation.student.schedule(), &x_0, how).unwrap().noise;
            let z_sem = distillation.teacher.encode_semantic(&x_0).unwrap();
            let next = distillation.teacher_states(&x_terminal, Some(&z_sem)).unwrap();
            assert_eq!(next.len(), steps);
            let Trajectories { states, z_sem: repeated, .. } = distillation.draw(&x_0, how).unwrap();
            assert_eq!((states.x_t.dim(0).unwrap(), repeated.unwrap().dim(0).unwrap()), (2 * steps, 2 * steps));
            for (picture, step) in (0..2).flat_map(|picture| (0..steps).map(move |step| (picture, step))) {
                let row = |tensor: &Tensor| tensor.get(picture * steps + step).unwrap();
                let (x, x_0) = (row(&states.x_t), row(&states.target));
                let idx = StepIdx::new(steps - 1 - step);
                let chain = &distillation.student_chain;
                assert_eq!(states.timesteps[picture * steps + step], chain.timestep(idx).unwrap());
                // x_next = alpha_next x_0 + sigma_next eps
                let (now, after) = (chain.alpha_bar(idx).unwrap(), chain.alpha_bar_prev(idx).unwrap());
                let eps = ((&x - (&x_0 * now.sqrt()).unwrap()).unwrap() / (1. - now).sqrt()).unwrap();
                let moved = ((&x_0 * after.sqrt()).unwrap() + (eps * (1. - after).sqrt()).unwrap()).unwrap();
                let expected = next[step].get(picture).unwrap();
                assert!(distance(&moved, &expected) < 1e-4, "{}", distance(&moved, &expected));
            }
        }
    }

    #[test]
    fn the_student_learns_the_teachers_pictures_and_keeps_its_codes() {
        for (semantic_weight, spacing) in [(0., Spacing::Trailing), (0.5, Spacing::Trailing), (0., Spacing::Tuned)] {
            check_learning(semantic_weight, spacing);
        }
    }

    fn check_learning(semantic_weight: f64, spacing: Spacing) {
        let settings = ["batch_size=4", "accumulate=2", "lr=2e-3", "warmup_images=0"];
        let settings = settings.map(|setting| format!("autoencoder.{setting}"));
        let chain = DistilledChain { steps: 2, spacing };
        let (teacher, config) = teacher_along(chain, &settings.each_ref().map(String::as_str));
        let mut trainer = Trainer::new(&config, networks(&teacher)).unwrap();
        trainer.freeze("encoder").unwrap();
        let built = || teacher.build(&LoadOptions::cpu()).unwrap();
        let distillation = DistillationSettings { semantic_weight, ..config.distillation.clone().unwrap() };
        let mut trainer = trainer.distill(built(), &distillation).unwrap();
        let x_0 = pictures(4);
        let validated = |trainer: &Trainer| trainer.validate(&x_0).unwrap().0;
        let before = validated(&trainer);
        for _ in 0..12 {
            trainer.step(&x_0).unwrap();
        }
        assert!(validated(&trainer) < 0.8 * before, "{} after {before}", validated(&trainer));
        let chains = config.model_config().unwrap().chains().unwrap().clone();
        let student = distilled(&teacher, trainer.averages().unwrap(), chains).unwrap();
        let student = student.build(&LoadOptions::cpu()).unwrap();
        let codes = |model: &Model| model.encode_semantic(&x_0).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(codes(&student), codes(&built()));
        let usual = PipelineSettings::of_model(student.config());
        assert_eq!((usual.num_steps, usual.spacing, usual.sampler), (2, spacing, Sampler::DDIM));
        let tuned = |model: &Model| PipelineSettings::tuned_sampler(model.config(), 2);
        let of_student = (spacing == Spacing::Tuned).then_some(Sampler::DDIM);
        assert_eq!((tuned(&student), tuned(&built())), (of_student, Some(Sampler::DDIM)));
        let given = GivenSettings { spacing: Some(Spacing::Tuned), num_steps: Some(2), ..GivenSettings::default() };
        let sampler = |model: &Model| given.decoding(model.config()).unwrap().sampler;
        assert_eq!((sampler(&student), sampler(&built())), (Sampler::DDIM, Sampler::DDIM));
        let timesteps = |model: &Model| model.step_chain(spacing, 2).unwrap().timesteps().to_vec();
        assert_eq!(timesteps(&student), timesteps(&built()));
        // More steps of the decoder are no reason to sample codes with another method.
        let latent = PipelineSettings { num_steps: 5, ..usual }.latent_options();
        assert_eq!(latent, PipelineSettings::DEFAULT.latent_options());
    }

    #[test]
    fn what_cannot_be_distilled_is_refused() {
        let chain = DistilledChain { steps: 2, spacing: Spacing::Trailing };
        let distillation = DistillationSettings { chain, timesteps: None, teacher_steps: 5, semantic_weight: 0. };
        let compact = presets::config("smoke", &["model.kind=compact".to_owned()]).unwrap();
        let one_shot = ModelSource::from_networks(compact.model_config().unwrap(), BTreeMap::new());
        let error = TrainConfig::of_teacher(&one_shot, distillation.clone(), &[]).unwrap_err().to_string();
        assert!(error.contains("one-shot"), "{error}");
        let (teacher, _) = teacher(2, &[]);
        let refused = |distillation| TrainConfig::of_teacher(&teacher, distillation, &[]).unwrap_err();
        let plain = || distillation.clone();
        let error = refused(DistillationSettings { teacher_steps: 0, ..plain() });
        assert!(matches!(error, Error::Chain { key: "distillation.teacher_steps", .. }), "{error}");
        let tuned = DistilledChain { spacing: Spacing::Tuned, steps: 4 };
        let error = refused(DistillationSettings { chain: tuned, ..plain() });
        assert!(matches!(error, Error::Chain { key: "distillation.chain", .. }), "{error}");
        let tuned = DistilledChain { steps: 2, ..tuned };
        let (mut other, _) = teacher_along(chain, &[]);
        let mut chains = ChainsConfig::default();
        chains.set_tuned(TunedChain { timesteps: vec![3, 9], sampler: Sampler::UniPc { order: 2 } });
        other.set_chains(chains).unwrap();
        let of_other = DistillationSettings { chain: tuned, ..plain() };
        let error = TrainConfig::of_teacher(&other, of_other, &[]).unwrap_err().to_string();
        assert!(error.contains("timesteps tuned for unipc2") && error.contains("--sampler ddim"), "{error}");
        for (chain, timesteps) in [(tuned, vec![5, 3]), (tuned, vec![5, 5]), (chain, vec![2, 5])] {
            let error = refused(DistillationSettings { chain, timesteps: Some(timesteps), ..plain() }).to_string();
            assert!(error.contains("strictly increasing timesteps of the spacing tuned"), "{error}");
        }
        let error = refused(DistillationSettings { chain: tuned, timesteps: Some(vec![2, 5]), ..plain() }).to_string();
        assert!(error.contains("end with the last one"), "{error}");
        for spacing in [Spacing::Leading, Spacing::Interior] {
            let chain = DistilledChain { spacing, ..chain };
            let error = refused(DistillationSettings { chain, ..plain() }).to_string();
            assert!(error.contains("begins at the last timestep"), "{error}");
        }
        for semantic_weight in [-0.5, f64::NAN] {
            let error = refused(DistillationSettings { semantic_weight, ..plain() }).to_string();
            assert!(error.contains("semantic_weight"), "{error}");
        }
        let adversarial = ["objective.adversarial_weight=0.1".to_owned()];
        assert!(TrainConfig::of_teacher(&teacher, distillation, &adversarial).is_err());
    }
}
