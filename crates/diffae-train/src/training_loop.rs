//! The training loop that all stages share: step, log, report, validation, checkpoint and stop, in this order.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use diffae_kernels::StatePart;
use serde::Serialize;

use crate::checkpoint::Checkpoints;
use crate::collective::Group;
use crate::config::{RunSettings, StageSettings};
use crate::error::{Error, Result};
use crate::loss_scale::LossScale;
use crate::optimization::{Stepped, TrainState};
use crate::parameters::GRADIENT_NORM;
use crate::run::{Metrics, RunFolder, Stage, ValidationLine};
use crate::{OnStep, Outcome, StepReport, Work};

/// A stage as the training loop sees it.
pub(crate) trait Learner {
    /// Fields of a log line that only this stage has.
    type Details: Serialize;

    /// Parameters and step.
    fn state(&self) -> &TrainState;

    /// Parameters and step, to share them with other processes.
    fn state_mut(&mut self) -> &mut TrainState;

    /// Makes one optimizer step on the next batch, together with the other processes of the group.
    fn step(&mut self, group: &mut Group) -> Result<Stepped>;

    /// Names the samples of the last batch, for the error of a step that diverges.
    fn batch(&self) -> String;

    /// Describes the steps since the last call.
    fn details(&mut self) -> Self::Details;

    /// Returns whether validation follows a step, counted from 1.
    fn is_validated_after(&self, step: usize) -> bool;

    /// Validates, and draws previews; `None` without held-out samples.
    fn validate(&mut self) -> Result<Option<Validation>>;
}

/// Figures of held-out samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validation {
    pub(crate) loss: f64,
    /// Relative increase of the loss with the codes of other images; of the first stage of an autoencoder only.
    pub(crate) z_usage: Option<f64>,
}

/// Details of a stage that logs nothing of its own.
#[derive(Debug, Serialize)]
pub(crate) struct NoDetails {}

/// A line of the log.
#[derive(Debug, Serialize)]
struct Line<D> {
    stage: Stage,
    step: usize,
    images: usize,
    loss: f64,
    lr: f64,
    /// Null for a step that was skipped.
    grad_norm: f64,
    /// Factor of the loss in the backward pass, in training in f16.
    #[serde(skip_serializing_if = "Option::is_none")]
    loss_scale: Option<f64>,
    /// Number of steps skipped so far since gradients overflowed, in training in f16.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<usize>,
    #[serde(flatten)]
    details: D,
}

/// The training of one stage, from its newest checkpoint to its end.
pub(crate) struct TrainingLoop<'a> {
    stage: Stage,
    settings: &'a StageSettings,
    group: &'a mut Group,
    record: Option<Record<'a>>,
    /// Number of validations without a lower loss after which training ends; 0 for none.
    patience: usize,
}

/// Checkpoints and log of a stage, in the folder of its run.
struct Record<'a> {
    settings: &'a RunSettings,
    checkpoints: Checkpoints,
    metrics: Metrics,
    last_save: Instant,
    plateau: Plateau,
}

/// The lowest loss of validation, and the number of validations since.
#[derive(Debug)]
struct Plateau {
    lowest: f64,
    since: usize,
}

impl Plateau {
    /// Counts validations with these losses, the oldest first.
    fn of(losses: impl IntoIterator<Item = f64>) -> Self {
        let mut plateau = Self { lowest: f64::INFINITY, since: 0 };
        losses.into_iter().for_each(|loss| plateau.add(loss));
        plateau
    }

    fn add(&mut self, loss: f64) {
        if loss < self.lowest {
            (self.lowest, self.since) = (loss, 0);
        } else {
            self.since += 1;
        }
    }
}

impl<'a> Record<'a> {
    /// Loads the newest checkpoint into `state`, if there is one, and opens the log behind it.
    fn resume(folder: &'a RunFolder, stage: Stage, state: &mut TrainState) -> Result<Self> {
        let settings = &folder.config().run;
        let checkpoints = Checkpoints::new(folder.path(), stage.name(), settings.keep);
        checkpoints.clear_partial();
        if checkpoints.any() {
            state.load_newest(&checkpoints)?;
        }
        let metrics = folder.metrics(stage, state.step)?;
        let plateau = Plateau::of(folder.validation_losses(stage)?);
        Ok(Self { settings, checkpoints, metrics, last_save: Instant::now(), plateau })
    }
}

impl<'a> TrainingLoop<'a> {
    /// Loads the newest checkpoint of a run into `state`, if there is one, and opens the log behind it. The first process of
    /// the group does so, and the others get its state.
    pub(crate) fn resume(
        folder: &'a RunFolder,
        stage: Stage,
        (state, group): (&mut TrainState, &'a mut Group),
    ) -> Result<Self> {
        let record = group.is_first().then(|| Record::resume(folder, stage, state)).transpose();
        let record = group.agree(record)?;
        let settings = folder.config().stage(stage);
        state.share(group, settings.accumulate)?;
        let patience = match stage {
            Stage::Autoencoder => folder.config().polish.as_ref().map_or(0, |polish| polish.patience),
            Stage::Spatial | Stage::Latent | Stage::Classifier => 0,
        };
        Ok(Self { stage, settings, group, record, patience })
    }

    /// Trains outside of a run: without log and checkpoints.
    pub(crate) fn unrecorded(stage: Stage, settings: &'a StageSettings, group: &'a mut Group) -> Self {
        Self { stage, settings, group, record: None, patience: 0 }
    }

    /// Trains to the end of the stage, or until `on_step` breaks in any process.
    pub(crate) fn run<L: Learner>(mut self, learner: &mut L, on_step: &mut OnStep<'_>) -> Result<Outcome> {
        let (stage, num_steps) = (self.stage, self.settings.num_steps());
        let report = |work, step, loss, batch| StepReport { stage, work, step, num_steps, loss, batch };
        let stop = on_step(&report(Work::Starting, learner.state().step, 0., 0)) == ControlFlow::Break(());
        let [stop] = self.group.any([stop])?;
        if stop {
            return Ok(Outcome::Stopped);
        }
        while learner.state().step < num_steps && !self.is_at_plateau()? {
            // A gradient is that of all processes, a loss that of this one.
            let others = if self.group.size() > 1 { ", or those of another process" } else { "" };
            let stepped = learner.step(self.group).map_err(|error| {
                let of_all = matches!(error, Error::Diverged { quantity: GRADIENT_NORM, .. });
                error.on_batch(|| format!("{}{}", learner.batch(), if of_all { others } else { "" }))
            });
            let logged = stepped.and_then(|stepped| self.log(learner, &stepped).map(|()| stepped));
            let stepped = self.group.agree(logged)?;
            let step = learner.state().step;
            let work = Work::Training;
            let stop = on_step(&report(work, step, stepped.loss, stepped.num_samples)) == ControlFlow::Break(());
            let [stop, save] = self.group.any([stop, self.is_save_due()])?;
            // A run that counts validations makes them all, wherever it is stopped, and may end after any.
            let validate = (!stop || self.patience > 0) && learner.is_validated_after(step);
            let save = save || stop || step == num_steps || (validate && self.patience > 0);
            if validate || save {
                let read = if save { &StatePart::ALL[..] } else { &[StatePart::Average] };
                learner.state_mut().gather_in_first(self.group, read)?;
                let outcome = self.record(learner, [validate, save]);
                learner.state_mut().keep_held()?;
                self.group.agree(outcome)?;
            }
            if stop {
                return Ok(Outcome::Stopped);
            }
        }
        learner.state_mut().gather_averages(self.group)?;
        Ok(Outcome::Finished)
    }

    /// Returns whether the loss on held-out pictures has not fallen for as long as the run waits: the first process of the group
    /// knows.
    fn is_at_plateau(&mut self) -> Result<bool> {
        if self.patience == 0 {
            return Ok(false);
        }
        let patience = self.patience;
        let [is_over] =
            self.group.any([self.record.as_ref().is_some_and(|record| record.plateau.since >= patience)])?;
        if is_over && self.group.is_first() {
            tracing::info!("the loss on held-out pictures has not fallen for {patience} validations: training ends");
        }
        Ok(is_over)
    }

    fn is_save_due(&self) -> bool {
        let is_due = |record: &Record<'_>| {
            record.last_save.elapsed() >= Duration::from_secs_f64(record.settings.save_every_secs)
        };
        self.record.as_ref().is_some_and(is_due)
    }

    /// Validates, saves a checkpoint, or both: in the first process of the group.
    fn record<L: Learner>(&mut self, learner: &mut L, [validate, save]: [bool; 2]) -> Result<()> {
        if validate && self.group.is_first() {
            self.validate(learner)?;
        }
        if save { self.save(learner.state()) } else { Ok(()) }
    }

    /// Writes a line of the log, if it is due.
    fn log<L: Learner>(&mut self, learner: &mut L, stepped: &Stepped) -> Result<()> {
        let (stage, step) = (self.stage, learner.state().step);
        let Some(record) = &mut self.record else { return Ok(()) };
        if step != self.settings.num_steps() && !step.is_multiple_of(record.settings.log_every_steps) {
            return Ok(());
        }
        let images = step * self.settings.batch_size;
        let (lr, details) = (self.settings.lr_at(step - 1), learner.details());
        let &Stepped { loss, grad_norm, loss_scale, .. } = stepped;
        let skipped = learner.state().loss_scale().map(LossScale::skipped);
        let loss_scale = loss_scale.map(LossScale::factor);
        record.metrics.write(&Line { stage, step, images, loss, lr, grad_norm, loss_scale, skipped, details })
    }

    /// Validates, and writes the figures to the log.
    fn validate<L: Learner>(&mut self, learner: &mut L) -> Result<()> {
        let validation = learner.validate()?;
        let (Some(record), Some(Validation { loss, z_usage })) = (&mut self.record, validation) else { return Ok(()) };
        let (stage, step) = (self.stage, learner.state().step);
        let images = step * self.settings.batch_size;
        record.plateau.add(loss);
        record.metrics.write(&ValidationLine { stage, step, images, validation_loss: loss, z_usage })
    }

    /// Saves a checkpoint.
    fn save(&mut self, state: &TrainState) -> Result<()> {
        let Some(record) = &mut self.record else { return Ok(()) };
        state.save(&record.checkpoints)?;
        record.last_save = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::path::Path;

    use candle_core::{Device, Tensor};
    use candle_nn::{Init, VarBuilder};
    use diffae_kernels::differentiable;

    use crate::error::Error;
    use crate::parameters::Parameters;
    use crate::{Notes, presets};

    /// A single weight whose loss is its product with a constant.
    struct Slope<'a> {
        settings: &'a StageSettings,
        state: TrainState,
        weight: Tensor,
        factor: f64,
        validated: Vec<usize>,
    }

    impl<'a> Slope<'a> {
        fn new(settings: &'a StageSettings, factor: f64) -> Self {
            let build = |vb: &VarBuilder<'_>| Ok(vb.get_with_hints(1, "weight", Init::Const(1.))?);
            let (weight, parameters) = Parameters::build((0, &Device::Cpu), HashMap::new(), build).unwrap();
            Self { settings, state: TrainState::new(parameters), weight, factor, validated: vec![] }
        }

        fn value(&self) -> f32 {
            self.state.parameters.current().unwrap()["weight"].to_vec1::<f32>().unwrap()[0]
        }
    }

    impl Learner for Slope<'_> {
        type Details = NoDetails;

        fn state(&self) -> &TrainState {
            &self.state
        }

        fn state_mut(&mut self) -> &mut TrainState {
            &mut self.state
        }

        fn step(&mut self, group: &mut Group) -> Result<Stepped> {
            let (weight, factor) = (&self.weight, self.factor);
            let loss = |_| Ok(differentiable([weight], |[weight]| (weight * factor)?.sum_all())?);
            self.state.minimize((self.settings, group), (32, 1), loss)
        }

        fn batch(&self) -> String {
            format!("sample {}", self.state.step)
        }

        fn details(&mut self) -> NoDetails {
            NoDetails {}
        }

        fn is_validated_after(&self, step: usize) -> bool {
            step.is_multiple_of(5)
        }

        fn validate(&mut self) -> Result<Option<Validation>> {
            self.validated.push(self.state.step);
            Ok(Some(Validation { loss: 0.5, z_usage: None }))
        }
    }

    /// A run whose classifier has ten steps.
    fn run(folder: &Path) -> RunFolder {
        let settings = ["classifier.images=320", "run.log_every_steps=4", "run.save_every_secs=1e6"];
        let config = presets::config("smoke", &settings.map(str::to_owned)).unwrap();
        RunFolder::open_or_create(&folder.join("run"), &config, &Notes::default()).unwrap()
    }

    /// Trains until a step, or to the end.
    fn train(folder: &RunFolder, learner: &mut Slope<'_>, until: usize) -> Outcome {
        let mut group = Group::alone();
        let training = TrainingLoop::resume(folder, Stage::Classifier, (&mut learner.state, &mut group)).unwrap();
        let on_step = &mut |report: &StepReport| {
            if report.step == until { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        training.run(learner, on_step).unwrap()
    }

    fn checkpoints(folder: &RunFolder) -> Option<usize> {
        Checkpoints::new(folder.path(), Stage::Classifier.name(), 1).newest_step()
    }

    #[test]
    fn a_stage_that_is_stopped_and_resumed_ends_as_one_that_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let folder = run(parent.path());
        let settings = &folder.config().classifier;
        let mut stopped = Slope::new(settings, 0.5);
        assert_eq!(train(&folder, &mut stopped, 5), Outcome::Stopped);
        assert_eq!((checkpoints(&folder), stopped.validated), (Some(5), vec![]));
        let mut resumed = Slope::new(settings, 0.5);
        assert_eq!(train(&folder, &mut resumed, usize::MAX), Outcome::Finished);
        assert_eq!((checkpoints(&folder), &resumed.validated[..]), (Some(10), &[10][..]));
        let mut whole = Slope::new(settings, 0.5);
        let on_step = &mut |_: &StepReport| ControlFlow::Continue(());
        TrainingLoop::unrecorded(Stage::Classifier, settings, &mut Group::alone()).run(&mut whole, on_step).unwrap();
        assert_eq!(whole.validated, [5, 10]);
        assert!(whole.value() < 1. && whole.value().to_bits() == resumed.value().to_bits());
        let log = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap();
        assert_eq!(log.lines().map(step).collect::<Vec<_>>(), [4, 8, 10, 10], "{log}");
        assert!(log.lines().last().unwrap().contains("validation_loss"), "{log}");
    }

    #[test]
    fn patience_ends_a_run_at_the_same_step_however_it_was_stopped() {
        let parent = tempfile::tempdir().unwrap();
        let settings = ["classifier.images=640", "run.log_every_steps=4", "run.save_every_secs=1e6"];
        let config = presets::config("smoke", &settings.map(str::to_owned)).unwrap();
        let folder = RunFolder::open_or_create(&parent.path().join("run"), &config, &Notes::default()).unwrap();
        let patient = |until: usize| {
            let mut learner = Slope::new(&folder.config().classifier, 0.5);
            let mut group = Group::alone();
            let mut training =
                TrainingLoop::resume(&folder, Stage::Classifier, (&mut learner.state, &mut group)).unwrap();
            training.patience = 2;
            let on_step = &mut |report: &StepReport| {
                if report.step == until { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            (training.run(&mut learner, on_step).unwrap(), learner.state.step)
        };
        // Validations after 5, 10 and 15 steps have the same loss; the first of them is the lowest.
        assert_eq!(patient(5), (Outcome::Stopped, 5));
        assert_eq!(patient(12), (Outcome::Stopped, 12));
        assert_eq!(patient(usize::MAX), (Outcome::Finished, 15));
        assert_eq!(patient(usize::MAX), (Outcome::Finished, 15));
    }

    #[test]
    fn a_step_that_diverges_names_its_batch_and_leaves_no_checkpoint() {
        let parent = tempfile::tempdir().unwrap();
        let folder = run(parent.path());
        let mut learner = Slope::new(&folder.config().classifier, f64::INFINITY);
        let mut group = Group::alone();
        let training = TrainingLoop::resume(&folder, Stage::Classifier, (&mut learner.state, &mut group)).unwrap();
        let error = training.run(&mut learner, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(matches!(error, Error::Diverged { step: 0, .. }), "{error}");
        assert!(error.to_string().contains("the loss is inf at step 0, on sample 0"), "{error}");
        assert_eq!((checkpoints(&folder), learner.value()), (None, 1.));
    }
}
