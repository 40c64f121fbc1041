//! A model under evaluation.

use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use diffae_data::PictureSet;
use diffae_infer::{
    CodesBatch, DistilledChain, LoadOptions, Model, ModelSource, Pipeline, PipelineSettings, Settings, StochasticCode,
    arithmetic_name,
};
use diffae_kernels::Winograd;

use crate::error::{Result, unsuitable};
use crate::evaluation::Stage;

/// A model under evaluation, with the settings that name it in reports.
#[derive(Debug)]
pub struct EvaluatedModel {
    pipeline: Pipeline,
    source: ModelSource,
    dtype: DType,
    batch_size: usize,
}

impl EvaluatedModel {
    /// Loads a model. `batch_size` is the number of pictures per batch; `None` chooses it by the size of the model.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn open(path: &Path, options: &LoadOptions, batch_size: Option<usize>) -> Result<Self> {
        let source = ModelSource::open(path, &options.hints)?;
        let pipeline = Pipeline::new(source.build(options)?);
        Ok(Self::new(pipeline, source, options.dtype, batch_size))
    }

    /// Wraps a loaded model: `source` is the model's, `dtype` the number type that it was loaded with.
    #[must_use]
    pub fn new(pipeline: Pipeline, source: ModelSource, dtype: DType, batch_size: Option<usize>) -> Self {
        let settings = PipelineSettings { batch_size, ..PipelineSettings::REFERENCE };
        let batch_size = settings.batch_size_for(pipeline.model().config());
        Self { pipeline, source, dtype, batch_size }
    }

    /// Returns the pipeline.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Returns the model.
    #[must_use]
    pub fn model(&self) -> &Model {
        self.pipeline.model()
    }

    /// Returns the number of pictures per batch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Returns whether pictures have a semantic code.
    pub(crate) fn has_z_sem(&self) -> bool {
        self.model().has_z_sem()
    }

    /// Fails before any work where pretrained networks of photographs have no meaning for what the model makes.
    ///
    /// # Errors
    /// [`Error::Unsuitable`](crate::Error::Unsuitable) for volumes, and for channels other than 1 and 3.
    pub(crate) fn check_is_of_photographs(&self, network: &str) -> Result<()> {
        let shape = self.model().config().image_shape();
        if !shape.size.is_volume() && matches!(shape.channels, 1 | 3) {
            return Ok(());
        }
        let of = if shape.size.is_volume() { "volumes".to_owned() } else { format!("{} channels", shape.channels) };
        Err(unsuitable(format!("{network} knows pictures of 1 or 3 channels; this model is of {of}")))
    }

    /// Returns the chain of a distilled decoder.
    pub(crate) fn distilled(&self) -> Option<DistilledChain> {
        self.model().config().chains()?.distilled
    }

    /// Returns settings of the paper's chain as they are, but of a distilled decoder those of its own chain, with the `x_T` that
    /// it begins at.
    ///
    /// # Errors
    /// [`Error::Unsuitable`](crate::Error::Unsuitable) if it was trained for another number of steps, or another sampler.
    pub(crate) fn along_own_chain(&self, decoding: PipelineSettings) -> Result<PipelineSettings> {
        let Some(DistilledChain { steps, spacing }) = self.distilled() else { return Ok(decoding) };
        let PipelineSettings { inversion, sampler, x_terminal, .. } = PipelineSettings::of_model(self.model().config());
        if decoding.num_steps != steps || decoding.sampler != sampler {
            let (got, other) = (decoding.num_steps, decoding.sampler);
            return Err(unsuitable(format!(
                "the decoder was trained for --steps {steps} of --sampler {sampler}, not for {got} of {other}"
            )));
        }
        Ok(PipelineSettings { inversion, spacing, x_terminal, ..decoding })
    }

    /// Returns the settings of the model that determine the values measured on it.
    pub(crate) fn settings(&self) -> Settings {
        Settings::from([
            ("model".to_owned(), self.model().fingerprint().into()),
            ("dtype".to_owned(), arithmetic_name(self.dtype, self.model().device()).into()),
        ])
    }

    /// Returns a fingerprint of the latent net and the moments of `z_sem`, which are no part of the model's
    /// fingerprint.
    pub(crate) fn latent_fingerprint(&self) -> Result<Option<String>> {
        Ok(self.source.latent_fingerprint()?)
    }

    /// Reads pictures, `[N, C, H, W]` in `[-1, 1]`, to the model's device.
    pub(crate) fn read(&self, pictures: &PictureSet, indices: impl Iterator<Item = usize>) -> Result<Tensor> {
        Ok(self.pipeline.read_batch(pictures, indices)?)
    }

    /// Encodes pictures batch by batch, `[N, D]` on the model's device.
    pub(crate) fn encode(&self, pictures: &PictureSet, indices: Range<usize>) -> Result<Tensor> {
        let mut codes = vec![];
        for start in indices.clone().step_by(self.batch_size) {
            let batch = start..(start + self.batch_size).min(indices.end);
            codes.push(self.model().encode_semantic(&self.read(pictures, batch)?)?);
        }
        Ok(Tensor::cat(&codes, 0)?)
    }

    /// Decodes a batch of codes; the noise of stochastic samplers is numbered from `first` on.
    pub(crate) fn decode(
        &self,
        (x_terminal, z_sem): (&Tensor, Option<&Tensor>),
        first: usize,
        settings: &PipelineSettings,
        stage: &Stage<'_>,
    ) -> Result<Tensor> {
        let code = StochasticCode { x_terminal: x_terminal.clone(), chain: None };
        self.decode_code((&code, z_sem), first, settings, stage)
    }

    /// Decodes a batch of stochastic codes, along the exact chain that made them if one did.
    pub(crate) fn decode_code(
        &self,
        (code, z_sem): (&StochasticCode, Option<&Tensor>),
        first: usize,
        settings: &PipelineSettings,
        stage: &Stage<'_>,
    ) -> Result<Tensor> {
        decode_with(&self.pipeline, (code, z_sem), first, settings, stage)
    }

    /// Builds the networks once more, from the same weights, with a choice of convolution algorithms.
    pub(crate) fn built_with(&self, winograd: Winograd) -> Result<Pipeline> {
        let (device, dtype) = (self.model().device().clone(), self.dtype);
        let options = LoadOptions { device, dtype, winograd, ..LoadOptions::cpu() };
        Ok(Pipeline::new(self.source.build(&options)?))
    }

    /// Makes the `x_T` of codes that have none, numbered from `first` on, as the settings say.
    pub(crate) fn x_terminal(
        &self,
        z_sem: Option<&Tensor>,
        (first, count): (usize, usize),
        settings: &PipelineSettings,
    ) -> Result<Tensor> {
        let numbers: Vec<u64> = (first as u64..).take(count).collect();
        Ok(self.pipeline.x_terminal_batch(z_sem, &numbers, settings)?)
    }

    /// Returns [`ModelSource::endpoint_settings`].
    pub(crate) fn endpoint_settings(&self, decoding: &PipelineSettings) -> Result<Settings> {
        Ok(self.source.endpoint_settings(decoding)?)
    }

    /// Draws the `x_T` of `count` pictures, numbered from `first` on.
    pub(crate) fn random_x_terminal(&self, first: usize, count: usize, settings: &PipelineSettings) -> Result<Tensor> {
        let numbers: Vec<u64> = (first as u64..).take(count).collect();
        Ok(self.pipeline.random_x_terminal_batch(&numbers, settings)?)
    }
}

/// Decodes a batch of stochastic codes with the networks of a pipeline, as [`EvaluatedModel::decode_code`].
pub(crate) fn decode_with(
    pipeline: &Pipeline,
    (code, z_sem): (&StochasticCode, Option<&Tensor>),
    first: usize,
    settings: &PipelineSettings,
    stage: &Stage<'_>,
) -> Result<Tensor> {
    let StochasticCode { x_terminal, chain } = code;
    let numbers: Vec<u64> = (first as u64..).take(x_terminal.dim(0)?).collect();
    let codes = CodesBatch { x_terminal, chain: chain.as_ref(), z_sem, numbers: &numbers };
    Ok(pipeline.decode_batch(codes, settings, &mut stage.observer())?)
}

/// Converts pictures from `[-1, 1]`, as networks use them, to `[0, 1]`, as measures do, on the CPU; values beyond are
/// clipped, as in a file.
///
/// # Errors
/// If the tensor cannot be brought to the CPU.
pub fn to_unit(x: &Tensor) -> Result<Tensor> {
    Ok(((x.to_device(&Device::Cpu)? + 1.)? * 0.5)?.clamp(0., 1.)?)
}
