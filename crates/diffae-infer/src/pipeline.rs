//! All operations of a model, from codes of a batch to whole sets of pictures.

mod pictures;
mod subjects;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;
use diffae_schedule::{Clip, Spacing, StepChain};

use crate::codes::Codes;
use crate::error::{Error, Result, computing};
use crate::model::{LoadOptions, Model};
use crate::noise::{NoisePurpose, NoiseSource};
use crate::observer::{CallEvent, NetworkCall, Observer, on_step};
use crate::settings::{PipelineSettings, XTerminalSource};
use crate::stochastic_code::{CodeChain, Inversion, StochasticCode};
use crate::subjects::{CodesNeed, Encoded};

/// Evaluations that a step of an inversion by fixed points takes, about: 6 of 5 steps, 3 of 10, 2 of 20 (built-in model).
const USUAL_FIXED_POINT_EVALUATIONS: usize = 3;

/// A model in use: encoding, decoding, editing, interpolating and sampling, with settings and an observer per call.
///
/// A clone shares the model. Methods whose names end in `_batch` take one batch on the model's device and compute it at
/// once; all others take any number, and compute batch by batch.
///
/// ```
/// use std::path::Path;
/// use diffae_infer::{Pipeline, PipelineSettings, no_observer};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fixtures = Path::new("../../tests/fixtures");
/// let pipeline = Pipeline::from_dir(&fixtures.join("golden/autoenc16_latent/last.ckpt"))?;
/// let settings = PipelineSettings { num_steps: 4, num_invert_steps: 4, seed: 7, ..PipelineSettings::DEFAULT };
/// let photograph = image::open(fixtures.join("photographs/cat.jpg"))?.to_rgb8();
/// let codes = pipeline.encode(&[photograph], &settings, &mut no_observer)?; // z_sem and x_T
/// let [reconstruction] = &pipeline.decode(&codes, &settings, &mut no_observer)?[..] else { panic!("one in, one out") };
/// assert_eq!(reconstruction.dimensions(), (16, 16));
/// assert_eq!(pipeline.variations(&codes, 3, &settings, &mut no_observer)?.len(), 3); // the same z_sem, new x_T
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Pipeline {
    model: Arc<Model>,
}

/// The codes of a batch to decode, on the model's device.
#[derive(Debug, Clone, Copy)]
pub struct CodesBatch<'a> {
    /// Noise maps `x_T`, `[N, ..]` as [`Model::x_terminal_shape`], f32.
    pub x_terminal: &'a Tensor,
    /// The chain that made `x_terminal`; it then decodes it, too, whatever the sampler of the settings. Samples are decoded by
    /// the settings: see [`PipelineSettings::along`].
    pub chain: Option<&'a CodeChain>,
    /// Semantic codes, `[N, D]`, f32; absent in a plain DDPM.
    pub z_sem: Option<&'a Tensor>,
    /// Indices of the N pictures, which determine the noise of stochastic samplers; others ignore them.
    pub numbers: &'a [u64],
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("model", &self.model.fingerprint()).finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Loads a model directory or a released checkpoint, f32 on the CPU.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_dir(path: &Path) -> Result<Self> {
        Ok(Self::new(Model::load(path, &LoadOptions::cpu())?))
    }

    /// Loads the built-in model of cartoon faces, f32 on the CPU.
    ///
    /// # Errors
    /// None that can be brought about.
    #[cfg(feature = "built-in")]
    pub fn from_built_in() -> Result<Self> {
        Ok(Self::new(crate::ModelSource::built_in()?.build(&LoadOptions::cpu())?))
    }

    /// Wraps a loaded model, on any device.
    #[must_use]
    pub fn new(model: impl Into<Arc<Model>>) -> Self {
        Self { model: model.into() }
    }

    /// Returns the model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Returns the names of the attributes that [`Pipeline::edit`] knows; none without a classifier.
    #[must_use]
    pub fn attributes(&self) -> &[String] {
        self.model.classifier().map_or(&[], |classifier| &classifier.config().attributes)
    }

    /// Returns whether the model is a one-shot autoencoder, without steps and inversion.
    #[must_use]
    pub fn is_one_shot(&self) -> bool {
        self.model.config().one_shot().is_some()
    }

    /// Splits a range of pictures into batches.
    pub fn batches(
        &self,
        range: Range<usize>,
        settings: &PipelineSettings,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let size = settings.batch_size_for(self.model.config());
        range.clone().step_by(size).map(move |start| start..range.end.min(start + size))
    }

    /// Fails if the schedule has no chain of `num_steps` steps with this spacing; a one-shot autoencoder takes any number.
    ///
    /// # Errors
    /// [`Error::Schedule`](crate::Error::Schedule), with the numbers of steps that there are.
    pub fn check_steps(&self, spacing: Spacing, num_steps: usize) -> Result<()> {
        if self.is_one_shot() {
            return Ok(());
        }
        self.model.step_chain(spacing, num_steps).map(drop)
    }

    /// Fails if the schedule has no chain of the inversion of these settings.
    ///
    /// # Errors
    /// As [`check_steps`](Self::check_steps).
    pub fn check_inversion(&self, settings: &PipelineSettings) -> Result<()> {
        match settings.chain() {
            Some(chain) => self.check_steps(chain.spacing(), chain.steps()),
            None => self.check_steps(Spacing::Leading, settings.num_invert_steps),
        }
    }

    /// Fails if the schedule of the latent diffusion has no chain of these settings, or if there is none.
    ///
    /// # Errors
    /// As [`check_steps`](Self::check_steps); [`Error::MissingPart`] without a latent net.
    pub fn check_latent_steps(&self, settings: &PipelineSettings) -> Result<()> {
        let options = settings.latent_options();
        StepChain::spaced(&self.model.latent()?.schedule, options.spacing, options.num_steps)?;
        Ok(())
    }

    /// Returns whether decoding gives back the pictures that are inverted with these settings, up to rounding: along exact chains,
    /// unless a spatial autoencoder loses details. A one-shot autoencoder inverts nothing.
    #[must_use]
    pub fn is_lossless(&self, settings: &PipelineSettings) -> bool {
        let is_of_pictures = !self.is_one_shot() && self.model.config().spatial().is_none();
        matches!(settings.inversion, Inversion::Exact(_)) && is_of_pictures
    }

    /// Returns the number of [`NetworkCall::Decoder`] calls that decoding a batch takes.
    #[must_use]
    pub fn num_decoding_calls(&self, settings: &PipelineSettings) -> usize {
        if self.is_one_shot() { 1 } else { settings.num_steps }
    }

    /// Returns the number of [`NetworkCall::Decoder`] calls that inverting a batch takes; by fixed points about that many.
    #[must_use]
    pub fn num_inversion_calls(&self, settings: &PipelineSettings) -> usize {
        match settings.inversion {
            _ if self.is_one_shot() => 0,
            Inversion::Exact(_) => settings.num_steps + 1,
            Inversion::FixedPoint => settings.num_steps * USUAL_FIXED_POINT_EVALUATIONS + 1,
            Inversion::Ddim => settings.num_invert_steps,
        }
    }

    /// Encodes a batch of pictures to `z_sem`; `None` in a plain DDPM.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`; result: `[N, D]`, f32.
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the shape does not fit; [`Error::Cancelled`].
    pub fn encode_semantic_batch(&self, x_0: &Tensor, observer: &mut Observer<'_>) -> Result<Option<Tensor>> {
        if !self.model.has_z_sem() {
            return Ok(None);
        }
        let z_sem = self.model.encode_semantic(x_0)?;
        called(NetworkCall::Encoder, x_0, observer)?;
        Ok(Some(z_sem))
    }

    /// Inverts a batch of pictures to stochastic codes; returns zeros, which add nothing, in a one-shot autoencoder.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`; `z_sem`: `[N, D]`, absent in a plain DDPM; result: `x_T`, `[N, ..]` as
    ///   [`Model::x_terminal_shape`].
    /// # Errors
    /// As [`Model::invert`] and [`Model::invert_along`].
    pub fn invert_batch(
        &self,
        x_0: &Tensor,
        z_sem: Option<&Tensor>,
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<StochasticCode> {
        let count = computing("inverting pictures", x_0.dim(0))?;
        if self.is_one_shot() {
            return Ok(StochasticCode { x_terminal: self.model.zero_x_terminal(count)?, chain: None });
        }
        let mut on_step = on_step(NetworkCall::Decoder, count, observer);
        if let Some(chain) = settings.chain() {
            return self.model.invert_along(x_0, z_sem, chain, &mut on_step);
        }
        let x_terminal = self.model.invert(x_0, z_sem, settings.num_invert_steps, &mut on_step)?;
        Ok(StochasticCode { x_terminal, chain: None })
    }

    /// Encodes a batch of pictures to the codes that `need` names.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`.
    /// # Errors
    /// As [`Pipeline::encode_semantic_batch`] and [`Pipeline::invert_batch`].
    pub fn encode_batch(
        &self,
        x_0: &Tensor,
        need: CodesNeed,
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Encoded> {
        let z_sem = self.encode_semantic_batch(x_0, observer)?;
        let (x_terminal, chain) = match need {
            CodesNeed::ZSem => (None, None),
            CodesNeed::Both => {
                let StochasticCode { x_terminal, chain } =
                    self.invert_batch(x_0, z_sem.as_ref(), settings, observer)?;
                (Some(x_terminal), chain)
            }
        };
        Ok(Encoded { z_sem, x_terminal, chain, x_0: Some(x_0.clone()) })
    }

    /// Decodes a batch of codes: along the chain that made them, or without one with the sampler of the settings.
    ///
    /// # Shapes
    /// - result: `x_0`, `[N, C, H, W]`, f32, in `[-1, 1]` if clipped; along the chain of codes at the end alone.
    /// # Errors
    /// As [`Model::decode`] and [`Model::decode_along`]; [`Error::OutOfRange`] if the sampler adds noise and there are not
    /// N numbers.
    pub fn decode_batch(
        &self,
        codes: CodesBatch<'_>,
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Tensor> {
        let CodesBatch { x_terminal, chain, z_sem, numbers } = codes;
        let count = computing("decoding", x_terminal.dim(0))?;
        if let Some(chain) = chain.filter(|chain| !chain.settings.is_sampled()) {
            let mut on_step = on_step(NetworkCall::Decoder, count, observer);
            let x_0 = self.model.decode_along(x_terminal, chain, z_sem, &mut on_step)?;
            return match settings.clip {
                Clip::UnitRange => computing("clipping", x_0.clamp(-1f32, 1f32)),
                Clip::None => Ok(x_0),
            };
        }
        if !settings.sampler.is_deterministic() {
            check_numbers(numbers, count)?;
        }
        let mut noise = NoiseSource::new(settings.seed).steps(numbers.iter().copied());
        let x_0 = {
            let mut on_step = on_step(NetworkCall::Decoder, count, observer);
            self.model.decode(x_terminal, z_sem, &settings.decode_options(), &mut noise, &mut on_step)?
        };
        if self.is_one_shot() {
            called(NetworkCall::Decoder, x_terminal, observer)?;
        }
        Ok(x_0)
    }

    /// Draws the noise maps `x_T` of the pictures with the given numbers. See [`Model::random_x_terminal`].
    ///
    /// # Errors
    /// If there is no number, or the tensor cannot be made.
    pub fn random_x_terminal_batch(&self, numbers: &[u64], settings: &PipelineSettings) -> Result<Tensor> {
        self.model.random_x_terminal(NoiseSource::new(settings.seed), numbers.iter().copied())
    }

    /// Makes the `x_T` of codes that have none, as the settings say: noise by the numbers of the pictures, or endpoints.
    ///
    /// # Shapes
    /// - `z_sem`: `[N, D]`, f32, absent in a plain DDPM; result: `[N, ..]` as [`Model::x_terminal_shape`].
    /// # Errors
    /// [`Error::MissingPart`] if the model has no endpoint network; as [`Pipeline::random_x_terminal_batch`].
    pub fn x_terminal_batch(
        &self,
        z_sem: Option<&Tensor>,
        numbers: &[u64],
        settings: &PipelineSettings,
    ) -> Result<Tensor> {
        match (settings.x_terminal, z_sem) {
            (XTerminalSource::Endpoint, Some(z_sem)) => self.model.endpoint(z_sem),
            // Without a code there is no network, either.
            (XTerminalSource::Endpoint, None) => self.model.endpoint_net().map(|_| ()).and_then(|()| {
                let hint = "an endpoint is computed from it";
                Err(Error::MissingPart { part: "z_sem", hint })
            }),
            (XTerminalSource::Random, _) => self.random_x_terminal_batch(numbers, settings),
        }
    }

    /// Samples the `z_sem` of the pictures with the given numbers; `None` in a plain DDPM.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if the model has a `z_sem` but no latent net; [`Error::Cancelled`].
    pub fn sample_z_sem_batch(
        &self,
        numbers: &[u64],
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Option<Tensor>> {
        if !self.model.has_z_sem() {
            return Ok(None);
        }
        let width = self.model.latent_net()?.config().z_channels;
        let noise = NoiseSource::new(settings.seed);
        let drawn = noise.batch(NoisePurpose::ZTerminal, numbers.iter().copied(), &[width], self.model.device());
        self.denoise_z_sem_batch(&computing("drawing noise", drawn)?, settings, observer).map(Some)
    }

    /// Turns noise into `z_sem` with the latent diffusion.
    ///
    /// # Shapes
    /// - `z_terminal`: standard normal noise, `[N, D]`, f32; result: the same.
    /// # Errors
    /// As [`Model::sample_z_sem`].
    pub fn denoise_z_sem_batch(
        &self,
        z_terminal: &Tensor,
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Tensor> {
        let count = computing("sampling z_sem", z_terminal.dim(0))?;
        let mut on_step = on_step(NetworkCall::LatentNet, count, observer);
        let options = settings.latent_options();
        self.model.sample_z_sem(z_terminal, &options, &mut on_step)
    }

    /// Encodes a tensor of pictures at the model's size, batch by batch.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`, on any device.
    /// # Errors
    /// [`Error::OutOfRange`] without pictures; as [`Pipeline::encode_batch`].
    pub fn encode_tensor(
        &self,
        x_0: &Tensor,
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Codes> {
        let count = computing("reading pictures", x_0.dim(0))?;
        check_count("pictures", count)?;
        let mut parts = vec![];
        for batch in self.batches(0..count, settings) {
            let encoded = self.encode_batch(&self.part(x_0, &batch)?, CodesNeed::Both, settings, observer)?;
            let chain = encoded.chain;
            parts.push(Codes { chain, ..self.codes(encoded.z_sem, encoded.x_terminal, batch) });
        }
        Codes::joined(&parts)
    }

    /// Decodes codes batch by batch: the iterator computes each batch on demand, and yields it with its range of
    /// pictures. Noise is drawn by `numbers`, one for each picture: `x_T` where the codes hold none, and the noise of
    /// samplers that add some.
    ///
    /// # Shapes
    /// - items: `x_0`, `[N, C, H, W]`, f32, in `[-1, 1]` if clipped, on the model's device.
    /// # Errors
    /// Items, if codes do not fit the model; [`Error::OutOfRange`] unless there are as many numbers; [`Error::Cancelled`].
    pub fn decode_batches<'a>(
        &'a self,
        codes: &'a Codes,
        numbers: &'a [u64],
        settings: &'a PipelineSettings,
        observer: &'a mut Observer<'_>,
    ) -> impl Iterator<Item = Result<(Range<usize>, Tensor)>> + 'a {
        self.batches(0..codes.len(), settings).map(move |batch| {
            check_numbers(numbers, codes.len())?;
            let numbers = &numbers[batch.clone()];
            let z_sem = codes.z_sem.as_ref().map(|z_sem| self.part(z_sem, &batch)).transpose()?;
            let (x_terminal, chain) = match &codes.x_terminal {
                Some(x_terminal) => {
                    let chain = codes.chain.as_ref().map(|chain| {
                        chain.map(|tensor| tensor.narrow(0, batch.start, batch.len())?.to_device(self.model.device()))
                    });
                    (self.part(x_terminal, &batch)?, chain.transpose()?)
                }
                None => (self.x_terminal_batch(z_sem.as_ref(), numbers, settings)?, None),
            };
            let codes = CodesBatch { x_terminal: &x_terminal, chain: chain.as_ref(), z_sem: z_sem.as_ref(), numbers };
            Ok((batch, self.decode_batch(codes, settings, observer)?))
        })
    }

    /// Decodes codes. Noise, where needed, is drawn for pictures 0, 1, ..
    ///
    /// # Shapes
    /// - result: `[N, C, H, W]`, f32, in `[-1, 1]` if clipped, on the model's device.
    /// # Errors
    /// [`Error::OutOfRange`] without codes; as [`Pipeline::decode_batches`].
    pub fn decode_tensor(
        &self,
        codes: &Codes,
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Tensor> {
        let numbers: Vec<u64> = (0..codes.len() as u64).collect();
        self.decode_numbered(codes, &numbers, settings, observer)
    }

    fn decode_numbered(
        &self,
        codes: &Codes,
        numbers: &[u64],
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Tensor> {
        check_count("codes", codes.len())?;
        let pictures = self.decode_batches(codes, numbers, settings, observer).map(|batch| Ok(batch?.1));
        computing("joining pictures", Tensor::cat(&pictures.collect::<Result<Vec<_>>>()?, 0))
    }

    /// Samples codes by their index in the sequence of the seed, independently of the batch.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] without numbers; [`Error::MissingPart`] if the model has a `z_sem` but no latent net;
    /// [`Error::Cancelled`].
    pub fn sample_codes(
        &self,
        numbers: &[u64],
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Codes> {
        check_count("samples", numbers.len())?;
        let mut parts = vec![];
        for batch in self.batches(0..numbers.len(), settings) {
            let numbers = &numbers[batch.clone()];
            let z_sem = self.sample_z_sem_batch(numbers, settings, observer)?;
            let x_terminal = self.x_terminal_batch(z_sem.as_ref(), numbers, settings)?;
            let chain = CodeChain { settings: settings.sampled().into(), residual: None };
            let chain = (!self.is_one_shot()).then_some(chain);
            parts.push(Codes { chain, ..self.codes(z_sem, Some(x_terminal), batch) });
        }
        Codes::joined(&parts)
    }

    /// Returns some rows of a tensor, on the model's device.
    fn part(&self, tensor: &Tensor, batch: &Range<usize>) -> Result<Tensor> {
        let part = tensor.narrow(0, batch.start, batch.len());
        computing("moving a batch", part.and_then(|part| part.to_device(self.model.device())))
    }

    fn codes(&self, z_sem: Option<Tensor>, x_terminal: Option<Tensor>, numbers: Range<usize>) -> Codes {
        let fingerprint = self.model.fingerprint().to_owned();
        let names = numbers.map(|number| format!("{number:04}")).collect();
        Codes { z_sem, x_terminal, chain: None, names, fingerprint }
    }
}

/// Notifies the observer of a call outside of chains.
fn called(call: NetworkCall, batch: &Tensor, observer: &mut Observer<'_>) -> Result<()> {
    let num_pictures = computing("counting pictures", batch.dim(0))?;
    let event = CallEvent { call, num_pictures, step: None };
    if observer(&event).is_break() { Err(Error::Cancelled) } else { Ok(()) }
}

fn check_numbers(numbers: &[u64], num_codes: usize) -> Result<()> {
    if numbers.len() != num_codes {
        let got = format!("{} for {num_codes} codes", numbers.len());
        return Err(Error::OutOfRange { what: "the count of numbers", got, expected: "one for each of the codes" });
    }
    Ok(())
}

fn check_count(what: &'static str, count: usize) -> Result<()> {
    if count == 0 {
        return Err(Error::OutOfRange { what, got: "none".to_owned(), expected: "one or more" });
    }
    Ok(())
}
