//! A loaded model, and what every command does with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use diffae_infer::{
    DecodeOptions, Input, LoadOptions, Model, ModelConfig, ModelSource, NoisePurpose, NoiseSource, keep_residual,
    read_batch,
};
use diffae_nets::weights::ArchitectureHints;
use diffae_schedule::{StepChain, StepSequence};
use serde_json::Value;

use crate::args::{BatchArgs, GlobalArgs, HintArgs, ModelArgs};
use crate::device::{device_from_name, dtype};
use crate::progress::Progress;

/// Set by Ctrl-C; chains look at it after every step.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// A model in memory, and how it is used.
pub(crate) struct Session {
    pub(crate) model: Model,
    batch_size: Option<usize>,
    path: PathBuf,
    options: LoadOptions,
}

/// Pictures, and what their codes decode to.
pub(crate) struct Original {
    x_0: Tensor,
    decoded: Tensor,
}

impl Session {
    /// Loads the model.
    pub(crate) fn open(global: &GlobalArgs, args: &ModelArgs, batch: &BatchArgs) -> Result<Self> {
        catch_interrupts();
        let options = load_options(global, &args.hints)?;
        let model = Model::load(&args.model, &options)?;
        tracing::info!("loaded {} on {:?}", args.model.display(), options.device.location());
        Ok(Self { model, batch_size: batch.batch_size, path: args.model.clone(), options })
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

    /// What names the latent net and the moments of `z_sem`, which are no part of the model's fingerprint.
    pub(crate) fn latent_fingerprint(&self) -> Result<Option<String>> {
        Ok(ModelSource::open(&self.path, &self.options.hints)?.latent_fingerprint()?)
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
    pub(crate) fn random_x_terminal(&self, noise: NoiseSource, indices: std::ops::Range<u64>) -> Result<Tensor> {
        Ok(self.model.random_x_terminal(noise, indices)?)
    }

    /// The `z_sem` that the latent net makes of the noise with the given numbers.
    pub(crate) fn invent(
        &self,
        noise: NoiseSource,
        indices: std::ops::Range<u64>,
        num_steps: usize,
        progress: &Progress,
    ) -> Result<Tensor> {
        let width = self.model.latent_net()?.config().z_channels;
        let z_terminal = noise.batch(NoisePurpose::ZTerminal, indices, &[width], self.model.device())?;
        self.denoise(&z_terminal, num_steps, progress)
    }

    /// The same of given noise.
    pub(crate) fn denoise(&self, z_terminal: &Tensor, num_steps: usize, progress: &Progress) -> Result<Tensor> {
        let count = z_terminal.dim(0)?;
        Ok(self.model.sample_z_sem(z_terminal, num_steps, &mut |_| progress.step(count))?)
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
        let count = x_terminal.dim(0)?;
        let options = DecodeOptions::ddim(num_steps);
        let on_step = &mut |_: &diffae_schedule::Step<'_>| progress.step(count);
        Ok(self.model.decode(x_terminal, z_sem, &options, &mut diffae_schedule::no_noise, on_step)?)
    }
}

/// Device, number type and hints of the command line.
pub(crate) fn load_options(global: &GlobalArgs, hints: &HintArgs) -> Result<LoadOptions> {
    let device = device_from_name(&global.device)?;
    Ok(LoadOptions { device, dtype: dtype(global.dtype), hints: architecture_hints(hints) })
}

/// What the command line says about a checkpoint without hyper-parameters.
pub(crate) fn architecture_hints(args: &HintArgs) -> ArchitectureHints {
    ArchitectureHints {
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

/// Work that Ctrl-C has ended; says what is there of it, and how it goes on.
#[derive(Debug)]
pub(crate) struct Stopped(pub(crate) String);

impl std::fmt::Display for Stopped {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&self.0)
    }
}

impl std::error::Error for Stopped {}

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
