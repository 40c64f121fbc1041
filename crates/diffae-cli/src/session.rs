//! A loaded model, and what every command does with it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use diffae_infer::{
    CodesNeed, DecodeOptions, Encoded, Error, Input, LoadOptions, Model, ModelConfig, ModelSource, NetworkCall,
    NoisePurpose, NoiseSource, Settings, Subjects, keep_residual, read_batch,
};
use diffae_nets::weights::{ArchitectureHints, ParameterSet};
use diffae_schedule::{StepChain, StepSequence};
use serde_json::Value;

use crate::args::{BatchArgs, GlobalArgs, HintArgs, ModelArgs, WeightsChoice};
use crate::device::{device_from_name, dtype};
use crate::progress::{Job, Progress};

/// Set by Ctrl-C; chains look at it after every step.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A model in memory, and how it is used.
pub(crate) struct Session {
    pub(crate) model: Model,
    batch_size: Option<usize>,
    source: ModelSource,
    options: LoadOptions,
}

/// Pictures, and what their codes decode to.
pub(crate) struct Original {
    x_0: Tensor,
    decoded: Tensor,
}

/// How pictures are decoded.
pub(crate) struct Decoding<'a> {
    pub(crate) options: DecodeOptions,
    pub(crate) noise: &'a mut diffae_schedule::NoiseFn<'a>,
}

impl Session {
    /// Loads the model.
    pub(crate) fn open(global: &GlobalArgs, args: &ModelArgs, batch: &BatchArgs) -> Result<Self> {
        catch_interrupts();
        let options = load_options(global, &args.hints)?;
        let source = ModelSource::open(&args.model, &options.hints)?;
        let model = source.build(&options)?;
        tracing::info!("loaded {} on {:?}", args.model.display(), options.device.location());
        Ok(Self { model, batch_size: batch.batch_size, source, options })
    }

    /// Fails if the model cannot go in so many steps, which an option has asked for: before anything is computed.
    pub(crate) fn check_steps(&self, option: &'static str, num_steps: usize) -> Result<()> {
        if self.is_one_shot() {
            return Ok(());
        }
        StepChain::new(self.model.schedule()?, &StepSequence::Ddim(num_steps)).map(|_| ()).context(option)
    }

    /// What of the model decides the values that are measured on it.
    pub(crate) fn settings(&self) -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("model".to_owned(), self.model.fingerprint().into()),
            ("dtype".to_owned(), self.options.dtype.as_str().into()),
        ])
    }

    /// Settings that a command shares with all others whose values depend on the model: they go into results, and decide
    /// whether a run can go on with what another has kept.
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
        Progress::of(job, &self.model)
    }

    /// The number of calls that a chain of so many steps takes for a picture: one where there are no steps.
    pub(crate) fn decoding_calls(&self, num_steps: usize) -> usize {
        if self.is_one_shot() { 1 } else { num_steps }
    }

    /// The number of calls that an inversion takes for a picture.
    pub(crate) fn inversion_calls(&self, num_steps: usize) -> usize {
        if self.is_one_shot() { 0 } else { num_steps }
    }

    /// Pictures of which the encoder must be asked: all, or none in a plain DDPM.
    pub(crate) fn encoder_calls(&self, num_pictures: usize) -> usize {
        if self.has_z_sem() { num_pictures } else { 0 }
    }

    /// The codes of some subjects.
    pub(crate) fn encode(
        &self,
        subjects: &Subjects,
        range: Range<usize>,
        need: CodesNeed,
        progress: &Progress,
    ) -> Result<Encoded> {
        let encoded =
            subjects.encode(&self.model, range.clone(), need, &mut |call, count| progress.call(call, count))?;
        if let (Some(x_0), Some(z_sem)) = (&encoded.x_0, &encoded.z_sem) {
            self.warn_of_foreign(subjects.all()[range].iter().map(|subject| &subject.name), x_0, z_sem)?;
        }
        Ok(encoded)
    }

    /// Says, once in a run, that pictures are not of the kind that the model was made for.
    fn warn_of_foreign<'a>(&self, names: impl Iterator<Item = &'a String>, x_0: &Tensor, z_sem: &Tensor) -> Result<()> {
        static WARNED: Once = Once::new();
        let Some(domain) = self.model.config().domain.as_ref().filter(|_| !WARNED.is_completed()) else {
            return Ok(());
        };
        let foreign = self.model.foreign_pictures(x_0, z_sem)?;
        let names: Vec<&String> = names.collect();
        let Some(name) = foreign.first().and_then(|&idx| names.get(idx)) else { return Ok(()) };
        let others = if foreign.len() > 1 { format!(" and {} more", foreign.len() - 1) } else { String::new() };
        WARNED.call_once(|| {
            tracing::warn!(
                "{name}{others}: this model was made for {}, and these are others; edits and blends of them will be blurred \
                 ghosts of {}. Use a model of such pictures",
                domain.pictures,
                domain.pictures
            );
        });
        Ok(())
    }

    /// What names the latent net and the moments of `z_sem`, which are no part of the model's fingerprint.
    pub(crate) fn latent_fingerprint(&self) -> Result<Option<String>> {
        Ok(self.source.latent_fingerprint()?)
    }

    /// Pictures at once: what was asked for, or what keeps activations of a step below about a gigabyte.
    pub(crate) fn batch_size(&self) -> usize {
        self.batch_size.unwrap_or_else(|| default_batch_size(self.model.config()))
    }

    /// Reads pictures.
    pub(crate) fn read(&self, inputs: &[Input]) -> Result<Tensor> {
        Ok(read_batch(inputs, self.model.image_shape(), self.model.device())?)
    }

    /// Whether the model decodes without steps.
    pub(crate) fn is_one_shot(&self) -> bool {
        self.model.config().compact.is_some()
    }

    /// Whether the model has a semantic code.
    pub(crate) fn has_z_sem(&self) -> bool {
        self.model.has_z_sem()
    }

    /// The semantic codes of pictures; none in a plain DDPM.
    pub(crate) fn encode_semantic(&self, x_0: &Tensor) -> Result<Option<Tensor>> {
        let z_sem = self.has_z_sem().then(|| self.model.encode_semantic(x_0)).transpose()?;
        Ok(z_sem)
    }

    /// [`Session::encode_semantic`] of inputs that were read, shown as progress.
    pub(crate) fn encode_semantic_of(
        &self,
        inputs: &[Input],
        x_0: &Tensor,
        progress: &Progress,
    ) -> Result<Option<Tensor>> {
        let z_sem = self.encode_semantic(x_0)?;
        if let Some(z_sem) = &z_sem {
            self.warn_of_foreign(inputs.iter().map(|input| &input.name), x_0, z_sem)?;
        }
        if z_sem.is_some() && progress.call(NetworkCall::Encoder, x_0.dim(0)?).is_break() {
            return Err(Error::Interrupted.into());
        }
        Ok(z_sem)
    }

    /// The noise maps of pictures; of a one-shot autoencoder, which has none to invert, those that add nothing.
    pub(crate) fn invert(
        &self,
        x_0: &Tensor,
        z_sem: Option<&Tensor>,
        num_steps: usize,
        progress: &Progress,
    ) -> Result<Tensor> {
        let count = x_0.dim(0)?;
        if self.is_one_shot() {
            return Ok(self.model.zero_x_terminal(count)?);
        }
        Ok(self.model.invert(x_0, z_sem, num_steps, &mut |_| progress.step(count))?)
    }

    /// Fresh noise maps for the pictures with the given numbers.
    pub(crate) fn random_x_terminal(
        &self,
        noise: NoiseSource,
        indices: impl IntoIterator<Item = u64>,
    ) -> Result<Tensor> {
        Ok(self.model.random_x_terminal(noise, indices)?)
    }

    /// The `z_sem` that the latent net makes of the noise with the given numbers.
    pub(crate) fn invent(
        &self,
        noise: NoiseSource,
        indices: impl IntoIterator<Item = u64>,
        num_steps: usize,
        progress: &Progress,
    ) -> Result<Tensor> {
        let width = self.model.latent_net()?.config().z_channels;
        let z_terminal = noise.batch(NoisePurpose::ZTerminal, indices, &[width], self.model.device())?;
        self.denoise(&z_terminal, num_steps, progress)
    }

    /// The `z_sem` that the latent net makes of given noise.
    pub(crate) fn denoise(&self, z_terminal: &Tensor, num_steps: usize, progress: &Progress) -> Result<Tensor> {
        let count = z_terminal.dim(0)?;
        Ok(self.model.sample_z_sem(z_terminal, num_steps, &mut |_| progress.call(NetworkCall::LatentNet, count))?)
    }

    /// Pictures with what their codes decode to.
    pub(crate) fn original(
        &self,
        x_0: &Tensor,
        (x_terminal, z_sem): (&Tensor, &Tensor),
        num_steps: usize,
        progress: &Progress,
    ) -> Result<Original> {
        Ok(Original { x_0: x_0.clone(), decoded: self.decode(x_terminal, Some(z_sem), num_steps, progress)? })
    }

    /// Decodes edited codes, deterministically. With `original`, a picture with its codes as they are decoded, what these
    /// lose of the picture is given back.
    pub(crate) fn decode_edited(
        &self,
        (x_terminal, z_sem): (&Tensor, &Tensor),
        original: Option<&Original>,
        num_steps: usize,
        progress: &Progress,
    ) -> Result<Tensor> {
        let edited = self.decode(x_terminal, Some(z_sem), num_steps, progress)?;
        Ok(match original {
            Some(Original { x_0, decoded }) => keep_residual(&edited, x_0, decoded)?,
            None => edited,
        })
    }

    /// Decodes pictures deterministically.
    pub(crate) fn decode(
        &self,
        x_terminal: &Tensor,
        z_sem: Option<&Tensor>,
        num_steps: usize,
        progress: &Progress,
    ) -> Result<Tensor> {
        let how = Decoding { options: DecodeOptions::ddim(num_steps), noise: &mut diffae_schedule::no_noise };
        self.decode_as(x_terminal, z_sem, how, progress)
    }

    /// Decodes pictures.
    pub(crate) fn decode_as(
        &self,
        x_terminal: &Tensor,
        z_sem: Option<&Tensor>,
        how: Decoding<'_>,
        progress: &Progress,
    ) -> Result<Tensor> {
        let count = x_terminal.dim(0)?;
        let on_step = &mut |_: &diffae_schedule::Step<'_>| progress.step(count);
        let Decoding { options, noise } = how;
        let x_0 = self.model.decode(x_terminal, z_sem, &options, noise, on_step)?;
        if self.is_one_shot() && progress.step(count).is_break() {
            return Err(Error::Interrupted.into());
        }
        Ok(x_0)
    }
}

/// The end of a command by Ctrl-C: says what is there of its results, and how it goes on.
#[derive(Debug)]
pub(crate) struct Interruption(String);

impl Interruption {
    pub(crate) fn new(sentence: String) -> Self {
        Self(sentence)
    }
}

impl std::fmt::Display for Interruption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interruption {}

/// Device, number type and hints of the command line.
pub(crate) fn load_options(global: &GlobalArgs, hints: &HintArgs) -> Result<LoadOptions> {
    let device = device_from_name(&global.device)?;
    Ok(LoadOptions { device, dtype: dtype(global.dtype), hints: architecture_hints(hints) })
}

/// Facts about a file of weights from the command line.
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

/// `[-1, 1]` as the networks speak to `[0, 1]` as measures do, on the CPU; values beyond are clipped, as in a file.
pub(crate) fn to_unit(x: &Tensor) -> Result<Tensor> {
    Ok(((x.to_device(&Device::Cpu)? + 1.)? * 0.5)?.clamp(0., 1.)?)
}

/// Whether Ctrl-C was pressed.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Lets the first Ctrl-C end the work in good order, and the second at once.
pub(crate) fn catch_interrupts() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let installed = ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        });
        if let Err(error) = installed {
            tracing::warn!("Ctrl-C will end this program without cleaning up: {error}");
        }
    });
}

/// About twelve activations of the widest level live at once; together they may take a gigabyte.
fn default_batch_size(config: &ModelConfig) -> usize {
    let [_, height, width] = config.image_shape();
    let unet = config.unet.as_ref();
    let widest = unet.map_or(1, |unet| unet.channel_mult.first().copied().unwrap_or(1) * unet.model_channels);
    let bytes_per_picture = 12 * 4 * widest * height * width;
    (1_usize << 30).checked_div(bytes_per_picture).unwrap_or(1).clamp(1, 32)
}
