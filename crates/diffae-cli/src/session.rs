//! A loaded model, and the operations that commands share.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Once;

use anyhow::{Context, Result};
use candle_core::Tensor;
use diffae_data::{Input, read_batch};
use diffae_eval::EvaluatedModel;
use diffae_infer::{
    CodesNeed, Encoded, Inversion, LoadOptions, Model, ModelConfig, ModelSource, Pipeline, PipelineSettings, Settings,
    Subjects, XTerminalSource, arithmetic_name,
};
use diffae_nets::weights::{ArchitectureHints, ParameterSet};
use diffae_schedule::Spacing;
use serde_json::Value;

use crate::args::{BatchArgs, GlobalArgs, HintArgs, ModelArgs, WeightsChoice};
use crate::device::{device, dtype};
use crate::interrupt::catch_interrupts;
use crate::progress::{Job, Progress};

/// A loaded model with the options of its use.
pub(crate) struct Session {
    pub(crate) pipeline: Pipeline,
    batch_size: Option<usize>,
    source: ModelSource,
    options: LoadOptions,
}

impl Session {
    /// Loads the model.
    pub(crate) fn open(global: &GlobalArgs, args: &ModelArgs, batch: &BatchArgs) -> Result<Self> {
        catch_interrupts();
        let options = load_options(global, &args.hints)?;
        let source = ModelSource::open(&args.model, &options.hints)?;
        let model = source.build(&options)?;
        tracing::info!("loaded {} on {:?}", args.model.display(), options.device.location());
        Ok(Self { pipeline: Pipeline::new(model), batch_size: batch.batch_size, source, options })
    }

    /// Returns the model.
    pub(crate) fn model(&self) -> &Model {
        self.pipeline.model()
    }

    /// Returns the model as evaluations take it.
    pub(crate) fn into_evaluated(self) -> EvaluatedModel {
        EvaluatedModel::new(self.pipeline, self.source, self.options.dtype, self.batch_size)
    }

    /// Returns the config of the model.
    pub(crate) fn config(&self) -> &ModelConfig {
        self.model().config()
    }

    /// Fails, before anything is computed, if the model has no chains of these settings: that of decoding, and with both
    /// codes that of the inversion; or no endpoint network where they ask for its `x_T`.
    pub(crate) fn check_chains(&self, settings: &PipelineSettings, codes: CodesNeed) -> Result<()> {
        self.pipeline.check_steps(settings.spacing, settings.num_steps).context("--steps")?;
        if codes == CodesNeed::Both && settings.inversion == Inversion::Ddim {
            self.pipeline.check_steps(Spacing::Leading, settings.num_invert_steps).context("--invert-steps")?;
        }
        if settings.x_terminal == XTerminalSource::Endpoint {
            self.model().endpoint_net()?;
        }
        Ok(())
    }

    /// Returns the settings of the model that determine the values measured on it.
    pub(crate) fn settings(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("model".to_owned(), self.model().fingerprint().into()),
            ("dtype".to_owned(), arithmetic_name(self.options.dtype, &self.options.device).into()),
        ])
    }

    /// Returns the settings that all commands whose values depend on the model share: they go into results, and decide
    /// whether an interrupted run can be resumed.
    pub(crate) fn run_settings(&self, global: &GlobalArgs) -> Settings {
        let mut settings = self.settings();
        settings.insert("program".to_owned(), env!("CARGO_PKG_VERSION").into());
        settings.insert("device".to_owned(), format!("{:?}", self.options.device.location()).into());
        settings.insert("threads".to_owned(), global.threads.map_or("all".into(), Value::from));
        settings.insert("exact".to_owned(), global.exact.into());
        settings
    }

    /// Starts to show the progress of a job.
    pub(crate) fn progress(&self, job: Job) -> Progress {
        Progress::of(job, self.model())
    }

    /// Returns the number of encoder calls for so many pictures: one each, or none in a plain DDPM.
    pub(crate) fn encoder_calls(&self, num_pictures: usize) -> usize {
        if self.has_z_sem() { num_pictures } else { 0 }
    }

    /// Returns the codes of some subjects.
    pub(crate) fn encode(
        &self,
        subjects: &Subjects,
        range: Range<usize>,
        need: CodesNeed,
        settings: &PipelineSettings,
        progress: &Progress,
    ) -> Result<Encoded> {
        let encoded = subjects.encode(&self.pipeline, range.clone(), need, settings, &mut progress.observer())?;
        if let (Some(x_0), Some(z_sem)) = (&encoded.x_0, &encoded.z_sem) {
            self.warn_of_foreign(subjects.all()[range].iter().map(|subject| &subject.name), x_0, z_sem)?;
        }
        Ok(encoded)
    }

    /// Warns, once in a run, that pictures are not of the kind that the model was trained on.
    fn warn_of_foreign<'a>(&self, names: impl Iterator<Item = &'a String>, x_0: &Tensor, z_sem: &Tensor) -> Result<()> {
        static WARNED: Once = Once::new();
        if WARNED.is_completed() {
            return Ok(());
        }
        if let Some(warning) = self.model().domain_warning(names, x_0, z_sem)? {
            WARNED.call_once(|| tracing::warn!("{warning}"));
        }
        Ok(())
    }

    /// Returns a fingerprint of the latent net and the moments of `z_sem`, which are no part of the model's
    /// fingerprint.
    pub(crate) fn latent_fingerprint(&self) -> Result<Option<String>> {
        Ok(self.source.latent_fingerprint()?)
    }

    /// Returns [`ModelSource::endpoint_settings`].
    pub(crate) fn endpoint_settings(&self, decoding: &PipelineSettings) -> Result<Settings> {
        Ok(self.source.endpoint_settings(decoding)?)
    }

    /// Returns the batch size: as on the command line, or by the size of the model.
    pub(crate) fn batch_size(&self) -> usize {
        let settings = PipelineSettings { batch_size: self.batch_size, ..PipelineSettings::DEFAULT };
        settings.batch_size_for(self.model().config())
    }

    /// Reads pictures.
    pub(crate) fn read(&self, inputs: &[Input]) -> Result<Tensor> {
        Ok(read_batch(inputs, self.model().picture_format(), self.model().device())?)
    }

    /// Returns whether the model decodes in one step.
    pub(crate) fn is_one_shot(&self) -> bool {
        self.pipeline.is_one_shot()
    }

    /// Returns whether the model has a semantic code.
    pub(crate) fn has_z_sem(&self) -> bool {
        self.model().has_z_sem()
    }

    /// Encodes inputs that were read.
    pub(crate) fn encode_inputs(
        &self,
        (inputs, x_0): (&[Input], &Tensor),
        need: CodesNeed,
        settings: &PipelineSettings,
        progress: &Progress,
    ) -> Result<Encoded> {
        let encoded = self.pipeline.encode_batch(x_0, need, settings, &mut progress.observer())?;
        if let Some(z_sem) = &encoded.z_sem {
            self.warn_of_foreign(inputs.iter().map(|input| &input.name), x_0, z_sem)?;
        }
        Ok(encoded)
    }
}

/// Returns device, number type and hints of the command line.
pub(crate) fn load_options(global: &GlobalArgs, hints: &HintArgs) -> Result<LoadOptions> {
    Ok(LoadOptions {
        device: device(global)?,
        dtype: dtype(global.dtype),
        hints: architecture_hints(hints),
        ..LoadOptions::cpu()
    })
}

/// Returns the facts about a file of weights that the command line states.
pub(crate) fn architecture_hints(args: &HintArgs) -> ArchitectureHints {
    ArchitectureHints {
        parameters: match args.weights {
            WeightsChoice::Auto => ParameterSet::Auto,
            WeightsChoice::Ema => ParameterSet::Ema,
            WeightsChoice::Model => ParameterSet::Online,
        },
        image_size: args.image_size,
        num_heads: args.num_heads,
        encoder_res_blocks: args.encoder_res_blocks,
        num_train_timesteps: args.train_timesteps,
        beta_schedule: args.beta_schedule.clone(),
        latent_beta_schedule: args.latent_beta_schedule.clone(),
    }
}
