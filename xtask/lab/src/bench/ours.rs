//! Our side of the measurement.

use std::collections::HashMap;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use diffae_infer::{LatentConfig, LoadOptions, ModelSource, Pipeline, PipelineSettings, no_observer};
use diffae_kernels::{AdamConfig, AdamStep, ParameterState, ParameterUpdate, adam_steps, run_in_pool, sums_of_squares};
use diffae_nets::weights::LatentMoments;
use diffae_nets::{ChainConditions, DiffusionAutoencoder, LatentNet, UnetReplays};
use diffae_schedule::Timestep;
use diffae_train::{Compute, Trainer, presets};

use super::machine;
use super::work::{Kind, Preset, Work};

/// Number of steps of a chain, in each direction.
const CHAIN_STEPS: usize = 10;
const SETTINGS: PipelineSettings = PipelineSettings {
    num_steps: CHAIN_STEPS,
    num_invert_steps: CHAIN_STEPS,
    num_latent_steps: CHAIN_STEPS,
    ..PipelineSettings::REFERENCE
};
/// Timestep of single calls.
const TIMESTEP: f32 = 500.;

/// Work that is ready to run.
pub(crate) struct Prepared {
    runner: Runner,
}

enum Runner {
    Unet {
        pipeline: Pipeline,
        x_t: Tensor,
        z_sem: Tensor,
    },
    /// A noise prediction within a chain, where it is recorded.
    Recorded {
        pipeline: Pipeline,
        x_t: Tensor,
        conditions: ChainConditions,
        replays: UnetReplays,
    },
    Encoder {
        pipeline: Pipeline,
        x_0: Tensor,
    },
    Chain {
        pipeline: Pipeline,
        x_0: Tensor,
    },
    Sample {
        pipeline: Pipeline,
        numbers: Vec<u64>,
    },
    Train(Box<Training>),
    Update(Update),
}

impl Prepared {
    /// Prepares work with random weights and inputs on the CPU.
    pub(crate) fn new(work: &Work) -> Result<Self> {
        Self::new_on(work, &Device::Cpu)
    }

    /// Prepares work with random weights and inputs on a device.
    pub(crate) fn new_on(work: &Work, device: &Device) -> Result<Self> {
        let size = work.preset.image_size;
        let x = Tensor::randn(0f32, 1., (work.batch, 3, size, size), device)?;
        let dtype = work.numbers.dtype();
        if work.kind == Kind::Train {
            let compute = Compute { device: device.clone(), dtype };
            return Ok(Self { runner: Runner::Train(Box::new(Training::new(work, compute, x)?)) });
        }
        if work.kind == Kind::Update {
            let vars = VarMap::new();
            DiffusionAutoencoder::new(&work.preset.config()?, &VarBuilder::from_varmap(&vars, DType::F32, device))?;
            return Ok(Self { runner: Runner::Update(Update::new(&vars)?) });
        }
        let latent = (work.kind == Kind::Sample).then(|| work.preset.latent_model_config()).transpose()?;
        let pipeline = Pipeline::new(
            random_source(&work.preset, latent)?.build(&LoadOptions { dtype, ..LoadOptions::on(device) })?,
        );
        let runner = match work.kind {
            Kind::Encoder => Runner::Encoder { pipeline, x_0: x },
            Kind::Sample => Runner::Sample { pipeline, numbers: (0..work.batch as u64).collect() },
            Kind::Chain => Runner::Chain { pipeline, x_0: x },
            _ => {
                let z_sem = Tensor::randn(0f32, 1., (work.batch, work.preset.embed_channels), device)?;
                let unet = pipeline.model().unet()?;
                let (time, z) = (unet.project_time(&[TIMESTEP], &x)?, unet.project_z_sem(&z_sem)?);
                match unet.chain_conditions(&time, Some(&z))? {
                    Some(conditions) => {
                        Runner::Recorded { pipeline, x_t: x, conditions, replays: UnetReplays::default() }
                    }
                    None => Runner::Unet { pipeline, x_t: x, z_sem },
                }
            }
        };
        Ok(Self { runner })
    }

    /// Runs the work several times; returns the milliseconds of one run.
    pub(crate) fn run_ms(&mut self, repeats: usize) -> Result<f64> {
        self.run_ms_on(&Device::Cpu, repeats)
    }

    /// Runs the work, prepared on `device`, several times; returns the milliseconds of one run.
    pub(crate) fn run_ms_on(&mut self, device: &Device, repeats: usize) -> Result<f64> {
        device.synchronize()?;
        let start = Instant::now();
        for _ in 0..repeats {
            self.run(device)?;
        }
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64() * 1e3 / repeats as f64)
    }

    fn run(&mut self, device: &Device) -> Result<()> {
        run_in_pool(device, || {
            match &mut self.runner {
                Runner::Unet { pipeline, x_t, z_sem } => {
                    drop(pipeline.model().unet()?.forward(x_t, &[TIMESTEP], Some(z_sem))?);
                }
                Runner::Recorded { pipeline, x_t, conditions, replays } => {
                    let predicted = pipeline.model().unet()?.forward_replayed(replays, x_t, conditions, 0)?;
                    predicted.context("the network cannot be recorded")?;
                }
                Runner::Encoder { pipeline, x_0 } => drop(pipeline.encode_semantic_batch(x_0, &mut no_observer)?),
                Runner::Chain { pipeline, x_0 } => {
                    let codes = pipeline.encode_tensor(x_0, &SETTINGS, &mut no_observer)?;
                    pipeline.decode_tensor(&codes, &SETTINGS, &mut no_observer)?;
                }
                Runner::Sample { pipeline, numbers } => {
                    let codes = pipeline.sample_codes(numbers, &SETTINGS, &mut no_observer)?;
                    pipeline.decode_tensor(&codes, &SETTINGS, &mut no_observer)?;
                }
                Runner::Train(training) => training.step()?,
                Runner::Update(update) => update.step()?,
            }
            Ok(())
        })
    }
}

/// Returns a model with random weights, with a latent net if there is a config of one.
pub(crate) fn random_source(preset: &Preset, latent: Option<LatentConfig>) -> Result<ModelSource> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    DiffusionAutoencoder::new(&preset.config()?, &vb)?;
    if let Some(latent) = &latent {
        LatentNet::new(&latent.net, &vb.pp("latent_net"))?;
    }
    let tensors = match vars.data().lock() {
        Ok(data) => data.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect(),
        Err(_) => bail!("the variables are locked"),
    };
    let width = preset.embed_channels;
    let mut source = ModelSource::from_networks(preset.model_config(latent)?, tensors);
    let moment = |of: fn(usize, DType, &Device) -> candle_core::Result<Tensor>| of(width, DType::F32, &Device::Cpu);
    source.set_latent_moments(LatentMoments { mean: moment(Tensor::zeros)?, std: moment(Tensor::ones)? })?;
    Ok(source)
}

/// A model in training, and a batch.
struct Training {
    trainer: Trainer,
    x_0: Tensor,
    noise: Tensor,
    timesteps: Vec<Timestep>,
}

impl Training {
    fn new(work: &Work, compute: Compute, x_0: Tensor) -> Result<Self> {
        let settings = ["model.kind=autoencoder", "autoencoder.accumulate=1", "autoencoder.clip_norm=1"];
        let config = presets::config("smoke", &settings.map(str::to_owned))?;
        let trainer = Trainer::of_model((&work.preset.model_config(None)?, compute), &config, HashMap::new())?;
        let (noise, timesteps) =
            (x_0.randn_like(0., 1.)?, (0..x_0.dim(0)?).map(|i| Timestep::new(31 * i % 1000)).collect());
        Ok(Self { trainer, x_0, noise, timesteps })
    }

    fn step(&mut self) -> Result<()> {
        self.trainer.step_with(&self.x_0, &self.noise, &self.timesteps)?;
        Ok(())
    }
}

/// Parameters with their gradients.
struct Update {
    parameters: Vec<(Var, ParameterState, Tensor)>,
    step_idx: usize,
}

impl Update {
    fn new(vars: &VarMap) -> Result<Self> {
        let with_gradient = |var: Var| -> Result<(Var, ParameterState, Tensor)> {
            let (state, gradient) = (ParameterState::new(&var)?, var.randn_like(0., 1e-3)?);
            Ok((var, state, gradient))
        };
        Ok(Self { parameters: vars.all_vars().into_iter().map(with_gradient).collect::<Result<_>>()?, step_idx: 0 })
    }

    fn step(&mut self) -> Result<()> {
        let gradients: Vec<&Tensor> = self.parameters.iter().map(|(.., gradient)| gradient).collect();
        let squares: f64 = sums_of_squares(&gradients)?.iter().sum();
        let gradient_scale = (1. / squares.sqrt()).min(1.);
        let config =
            AdamConfig { lr: 1e-4, beta_1: 0.9, beta_2: 0.999, eps: 1e-8, weight_decay: 0., ema_decay: 0.9999 };
        let update = |(parameter, state, gradient)| ParameterUpdate { parameter, first: 0, gradient, state };
        let parts = self.parameters.iter_mut().map(|(var, state, gradient)| (&*var, state, &*gradient));
        let mut updates: Vec<ParameterUpdate<'_>> = parts.map(update).collect();
        adam_steps(&mut updates, &AdamStep { config, step_idx: self.step_idx, gradient_scale })?;
        self.step_idx += 1;
        Ok(())
    }
}

/// Returns the peak memory of three steps above the idle process, in bytes.
pub(crate) fn peak_bytes(work: &Work) -> Result<u64> {
    let idle = machine::resident_bytes()?;
    let mut prepared = Prepared::new(work)?;
    for _ in 0..3 {
        prepared.run_ms(1)?;
    }
    Ok(machine::peak_resident_bytes()?.saturating_sub(idle))
}

/// Measures [`peak_bytes`] in a fresh process.
pub(crate) fn peak_bytes_in_child(work: &Work, threads: usize) -> Result<u64> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let arguments = ["bench", "--threads", &threads.to_string(), "--memory-of", &work.name];
    let output = Command::new(program).args(arguments).args(super::exact_flag()).output();
    let output = output.context("cannot start this program again")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| format!("the process of {} failed", work.name))
}

/// Reports the memory of the 128-pixel model once it has run, against the f32 file that it came from.
pub(crate) fn memory_of_a_loaded_model() -> Result<String> {
    let folder = std::env::temp_dir().join(format!("diffae-memory-{}", std::process::id()));
    let measured = (|| {
        let work = Work::all().into_iter().find(|work| work.name == "unet-128-b1").context("there is no such work")?;
        super::end_to_end::write_model(&folder, &work)?;
        let file = std::fs::metadata(folder.join(diffae_infer::WEIGHTS_FILE)).context("cannot find the model")?.len();
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.args(["bench", "--loaded-memory"]).arg(&folder).args(super::exact_flag());
        let output = command.output();
        let output = output.context("cannot start this program again")?;
        let held: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().context("the process has failed")?;
        let mib = f64::from(1 << 20);
        let (held, file) = (held / mib, file as f64 / mib);
        Ok(format!("128-pixel model: {held:.0} MiB in memory, {file:.0} MiB as f32 file: {:.2} times", held / file))
    })();
    // Best effort: what matters is the measurement.
    let _ = std::fs::remove_dir_all(&folder);
    measured
}

/// Returns the bytes that a model holds in this process after two uses.
pub(crate) fn held_bytes(model: &std::path::Path) -> Result<u64> {
    let idle = machine::resident_bytes()?;
    let model = diffae_infer::Model::load(model, &diffae_infer::LoadOptions::cpu())?;
    let x = Tensor::zeros(model.image_shape().of_batch(1), DType::F32, &Device::Cpu)?;
    for _ in 0..2 {
        let z_sem = model.encode_semantic(&x)?;
        model.unet()?.forward(&model.states(&x)?, &[TIMESTEP], Some(&z_sem))?;
        // What the allocator holds back goes after a moment.
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    Ok(machine::resident_bytes()?.saturating_sub(idle))
}
