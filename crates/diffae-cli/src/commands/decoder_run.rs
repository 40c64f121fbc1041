//! Runs that train the decoder of a model: `diffae distill` and `diffae polish`.

use anyhow::{Context, Result};
use diffae_train::{Group, Notes, Outcome, RunFolder, TrainConfig, TrainOptions};
use serde_json::json;

use super::say_either;
use super::train::{StepProgress, absolute, model_path, picture_key_setting};
use crate::args::{DecoderArgs, DecoderRunArgs, JsonArgs};
use crate::interrupt::Interruption;
use crate::progress::Noun;

impl DecoderRunArgs {
    /// Returns the settings that the command line changes.
    pub(super) fn assignments(&self, subject: &DecoderArgs) -> Vec<String> {
        let given = [
            self.images.map(|images| format!("autoencoder.images={images}")),
            self.batch_size.map(|size| format!("autoencoder.batch_size={size}")),
            self.lr.map(|lr| format!("autoencoder.lr={lr}")),
            self.seed.map(|seed| format!("seed={seed}")),
            subject.picture_key.as_ref().map(|key| picture_key_setting(key)),
        ];
        self.set.iter().cloned().chain(given.into_iter().flatten()).collect()
    }
}

/// A run that is about to begin, or to resume.
pub(super) struct DecoderRun<'a> {
    /// Name of the command.
    pub(super) command: &'static str,
    pub(super) subject: &'a DecoderArgs,
    pub(super) config: TrainConfig,
    /// Notes of the run but for model and data.
    pub(super) notes: Notes,
    pub(super) options: TrainOptions,
    pub(super) group: Group,
    pub(super) json: &'a JsonArgs,
}

impl DecoderRun<'_> {
    /// Trains to the end, and says in how many steps the model decodes.
    pub(super) fn train(self, steps: usize) -> Result<()> {
        let Self { command, subject, config, notes, options, mut group, json } = self;
        let (data, init_from) = (absolute(&subject.data)?, Some(model_path(&subject.model)?));
        let notes = Notes { data, init_from, ..notes };
        let open = || RunFolder::open_or_create(&subject.out, &config, &notes).context(command);
        let mut folder = RunFolder::open_in_group(&mut group, open)?;
        let progress = StepProgress::new();
        let is_first = group.is_first();
        let outcome = progress.train(&mut folder, &options, &mut group)?;
        group.leave();
        progress.finish();
        let out = &subject.out;
        match outcome {
            Outcome::Finished if !is_first => Ok(()),
            Outcome::Finished => {
                let report = json!({ "command": command, "out": out, "steps": steps });
                let steps = Noun::Steps.counted(steps);
                say_either(json, &report, &format!("the model is in {}; it decodes in {steps}", out.display()))
            }
            Outcome::Stopped => {
                let go_on = format!("diffae train --out {} --resume", out.display());
                Err(Interruption::new(format!("the run is saved; go on with: {go_on}")).into())
            }
        }
    }
}
