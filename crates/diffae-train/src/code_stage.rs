//! Training of the two small stages, whose samples are the codes of all pictures.

use candle_core::Tensor;

use crate::collective::Group;
use crate::config::StageSettings;
use crate::error::Result;
use crate::optimization::{Stepped, TrainState};
use crate::parameters::Parameters;
use crate::random::permutation;
use crate::run::{RunFolder, Stage};
use crate::training_loop::{Learner, NoDetails, TrainingLoop, Validation};
use crate::{OnStep, Outcome};

/// Number of validations of a stage, evenly spread over its steps.
pub(crate) const NUM_VALIDATIONS: usize = 10;

/// A stage that is trained on `num_samples` codes.
pub(crate) struct CodeStage<'a> {
    /// Run with checkpoints and log; without one the stage is trained in one go.
    pub(crate) folder: Option<&'a RunFolder>,
    pub(crate) stage: Stage,
    pub(crate) settings: &'a StageSettings,
    pub(crate) seed: u64,
    pub(crate) num_samples: usize,
}

/// Functions in which the stages on codes differ.
pub(crate) struct CodeObjective<L, V> {
    /// Loss on the samples at some places of the sequence of all samples, a scalar; it is recorded. The places begin at the
    /// first number.
    pub(crate) loss: L,
    /// Loss on held-out samples, if there are any, after a number of samples; it may draw previews.
    pub(crate) validate: V,
}

impl CodeStage<'_> {
    /// Trains `state` to the end, in a run from its newest checkpoint on.
    pub(crate) fn run<L, V>(
        &self,
        state: &mut TrainState,
        objective: CodeObjective<L, V>,
        (group, on_step): (&mut Group, &mut OnStep<'_>),
    ) -> Result<Outcome>
    where
        L: Fn(usize, &[usize]) -> Result<Tensor> + Sync,
        V: Fn(&Parameters, usize) -> Result<Option<f64>>,
    {
        let training = match self.folder {
            Some(folder) => TrainingLoop::resume(folder, self.stage, (state, group))?,
            None => TrainingLoop::unrecorded(self.stage, self.settings, group),
        };
        let order = EpochOrder { epoch: usize::MAX, samples: vec![] };
        training.run(&mut CodeLearner { stage: self, state, objective, order, batch: vec![] }, on_step)
    }
}

/// A stage on codes under training.
struct CodeLearner<'a, L, V> {
    stage: &'a CodeStage<'a>,
    state: &'a mut TrainState,
    objective: CodeObjective<L, V>,
    order: EpochOrder,
    /// Samples of the last step.
    batch: Vec<usize>,
}

impl<L, V> Learner for CodeLearner<'_, L, V>
where
    L: Fn(usize, &[usize]) -> Result<Tensor> + Sync,
    V: Fn(&Parameters, usize) -> Result<Option<f64>>,
{
    type Details = NoDetails;

    fn state(&self) -> &TrainState {
        self.state
    }

    fn state_mut(&mut self) -> &mut TrainState {
        self.state
    }

    fn step(&mut self, group: &mut Group) -> Result<Stepped> {
        let settings = self.stage.settings;
        let (first, part_size) = (self.state.step * settings.batch_size, settings.part_size());
        self.batch = self.order.batch(self.stage, self.state.step);
        let (batch, loss) = (&self.batch, &self.objective.loss);
        let part = |part: usize| loss(first + part * part_size, &batch[part * part_size..(part + 1) * part_size]);
        self.state.minimize((settings, group), (batch.len(), settings.accumulate), part)
    }

    fn batch(&self) -> String {
        format!("the codes {:?}", self.batch)
    }

    fn details(&mut self) -> NoDetails {
        NoDetails {}
    }

    fn is_validated_after(&self, step: usize) -> bool {
        let shows = |folder: &RunFolder| folder.config().run.preview_every_images > 0;
        self.stage.folder.is_some_and(shows) && ends_a_part(step, self.stage.settings.num_steps())
    }

    fn validate(&mut self) -> Result<Option<Validation>> {
        let num_seen = self.state.step * self.stage.settings.batch_size;
        let loss = (self.objective.validate)(&self.state.parameters, num_seen)?;
        Ok(loss.map(|loss| Validation { loss, z_usage: None }))
    }
}

/// The order of the samples in one epoch.
struct EpochOrder {
    epoch: usize,
    samples: Vec<usize>,
}

impl EpochOrder {
    /// Samples of a step; the order is drawn anew with each epoch.
    fn batch(&mut self, stage: &CodeStage<'_>, step: usize) -> Vec<usize> {
        let (size, num_samples) = (stage.settings.batch_size, stage.num_samples);
        let mut batch = Vec::with_capacity(size);
        for place in step * size..(step + 1) * size {
            let epoch = place.checked_div(num_samples).unwrap_or(0);
            if self.epoch != epoch {
                *self = Self { epoch, samples: permutation(stage.seed, epoch as u64, num_samples) };
            }
            batch.push(self.samples[place % num_samples]);
        }
        batch
    }
}

/// Returns whether a step is the last of one of the parts between validations.
fn ends_a_part(step: usize, num_steps: usize) -> bool {
    (step * NUM_VALIDATIONS).checked_div(num_steps) > ((step - 1) * NUM_VALIDATIONS).checked_div(num_steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_seen_once_an_epoch_and_a_batch_may_span_two() {
        let mut settings = crate::presets::config("smoke", &[]).unwrap().latent;
        settings.batch_size = 4;
        let stage = CodeStage { folder: None, stage: Stage::Latent, settings: &settings, seed: 3, num_samples: 6 };
        let mut order = EpochOrder { epoch: usize::MAX, samples: vec![] };
        let seen: Vec<usize> = (0..3).flat_map(|step| order.batch(&stage, step)).collect();
        for epoch in seen.chunks(6) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            assert_eq!(epoch, [0, 1, 2, 3, 4, 5]);
        }
        // A resumed stage begins anywhere.
        let mut resumed = EpochOrder { epoch: usize::MAX, samples: vec![] };
        assert_eq!(resumed.batch(&stage, 2), seen[8..]);
    }

    #[test]
    fn a_stage_is_validated_ten_times_and_at_its_end() {
        for num_steps in [10, 37, 200] {
            let validated: Vec<usize> = (1..=num_steps).filter(|&step| ends_a_part(step, num_steps)).collect();
            assert_eq!((validated.len(), validated.last()), (10, Some(&num_steps)));
        }
    }
}
