//! Trains Diffusion Autoencoders: encoder and `UNet`, then a diffusion over `z_sem`, then an attribute classifier.
//!
//! A run lives in a folder, is described by a [`TrainConfig`], and resumes after any interruption, bit-identical to one
//! that never stopped (with the same number of threads and the same kernels): all random numbers follow from the seed
//! and from counters, and a checkpoint holds the rest.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//! use diffae_train::{Notes, RunFolder, TrainOptions, presets, train};
//!
//! let config = presets::config("small32", &["autoencoder.images=1000".to_owned()])?;
//! let notes = Notes { data: "pictures".into(), ..Notes::default() };
//! let mut run = RunFolder::open_or_create(Path::new("run"), &config, &notes)?;
//! train(&mut run, &TrainOptions::default(), &mut |report| {
//!     println!("{} of {}: {}", report.step, report.num_steps, report.loss);
//!     ControlFlow::Continue(())
//! })?;
//! # Ok::<(), diffae_train::Error>(())
//! ```
//!
//! # Features
//! - `nccl`: groups of processes that NCCL connects (`Rendezvous<Nccl>`); nothing of NVIDIA is needed to build it.
//! - `mpi`: groups of processes that MPI connects (`Mpi`); to build it takes MPI's development files and libclang.
//! - `cuda`, `metal`, `accelerate`: compile the Candle backend of that name in. None is on by default; training
//!   itself runs on the CPU.

mod adversarial;
mod assignment;
mod autoencoder;
mod checkpoint;
mod classifier;
mod code_stage;
mod codes;
mod collective;
mod compute;
mod config;
mod data_settings;
mod distillation;
mod distillation_settings;
mod draw;
mod edit_direction;
mod error;
mod estimate;
mod existing_model;
mod frozen;
mod latent;
mod loss_scale;
mod networks;
mod objective;
mod optimization;
mod order;
mod parameters;
mod part_report;
mod perceptual;
mod picture_cache;
mod polish;
mod polish_settings;
pub mod presets;
mod preview;
mod random;
mod reduce;
mod run;
mod semantic_loss;
mod sharding;
mod spatial;
mod spatial_settings;
mod teach;
mod tensorboard;
mod trainer;
mod training_loop;

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use diffae_data::{Fingerprint, Labels, Overwrite, Pictures, Split, Window};
use diffae_infer::{ModelConfig, ModelSource};
use diffae_nets::weights::ArchitectureHints;

pub use checkpoint::wait_for_checkpoint;
pub use codes::moments_of;
#[cfg(feature = "mpi")]
pub use collective::Mpi;
#[cfg(feature = "nccl")]
pub use collective::Nccl;
pub use collective::{
    Alone, Collective, DEFAULT_PORT, Group, Launcher, OnLoss, Place, Reduction, Rendezvous, Tcp, Threads, Transport,
};
pub use compute::Compute;
pub use config::{
    Activations, EditDirections, Kind, LatentNetSettings, LossWeight, ModelSettings, ObjectiveSettings, OptimizerKind,
    RunSettings, StageSettings, TrainConfig,
};
pub use data_settings::DataSettings;
pub use distillation_settings::DistillationSettings;
pub use edit_direction::{NUM_VALIDATIONS, OtherCodes, PairedCodes, fit_edit_direction};
pub use error::{Error, Result};
pub use estimate::{Estimate, GroupEstimate, GroupKind, Planned, StageEstimate};
pub use frozen::EncoderKind;
pub use latent::{LatentTrainer, latent_loss};
pub use perceptual::check_lpips_weights;
pub use polish_settings::PolishSettings;
pub use run::{Change, Notes, RunFolder, Stage, require_same};
pub use spatial::check_given_weights;
pub use spatial_settings::{PixelLoss, SpatialSettings};
pub use teach::{AttributeScore, AttributeSettings, Lesson, Taught, fit_pair_row, teach};
pub use trainer::{StepResult, Trainer, check_parts};

/// The kind of work a step report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Training of a stage is about to begin, or to resume after the step of its newest checkpoint.
    Starting,
    /// Pictures are encoded for a later stage.
    Encoding,
    /// Parameters are trained.
    Training,
}

/// Progress of a stage, reported before its first step and after each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Stage that reports.
    pub stage: Stage,
    /// Kind of work.
    pub work: Work,
    /// Number of steps made.
    pub step: usize,
    /// Number of steps in the stage.
    pub num_steps: usize,
    /// Loss of this step; 0 if nothing is trained.
    pub loss: f64,
    /// Number of pictures, or of codes, in this step.
    pub batch: usize,
}

/// Callback for reports; a break after a step saves a checkpoint and stops.
pub type OnStep<'a> = dyn FnMut(&StepReport) -> ControlFlow<()> + 'a;

/// The outcome of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All requested stages are done.
    Finished,
    /// The caller stopped training, which can be resumed.
    Stopped,
}

/// Options of [`train`].
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// Trains one stage instead of all.
    pub stage: Option<Stage>,
    /// Resumes from the newest checkpoint of a stage that was begun.
    pub resume: bool,
    /// Device and numbers with which networks compute; a run may go on with others.
    pub compute: Compute,
}

impl Default for TrainOptions {
    /// Returns options for all stages of a new run, on the CPU.
    fn default() -> Self {
        Self { stage: None, resume: false, compute: Compute::from(&Device::Cpu) }
    }
}

/// Trains the missing stages of a run and logs which ones it skips. The folder then holds the model.
///
/// # Errors
/// [`Error::Run`] if a stage needs an earlier one that is not done; [`Error::Started`] if it was begun and is not resumed;
/// [`Error::Data`] if there are too few pictures or labels for a stage that is to run, before anything is trained;
/// [`Error::Diverged`] if a loss or a gradient is NaN or infinite; others if data or files fail.
pub fn train(folder: &mut RunFolder, options: &TrainOptions, on_step: &mut OnStep<'_>) -> Result<Outcome> {
    train_in_group(folder, options, &mut Group::alone(), on_step)
}

/// Trains like [`train`], together with the other processes of a group, which call this function with the same options.
///
/// Micro-batches are spread over the processes ([`StageSettings::accumulate`] of them are a step); the first process alone
/// writes, validates and draws previews. With [`Reduction::Ordered`] the model has the same bits for any number of processes
/// with the same number of threads each, and a run may go on with another number. A break of `on_step` in any process stops
/// all.
///
/// # Errors
/// As [`train`]; [`Error::Setting`] if the first stage has fewer micro-batches than there are processes; [`Error::Lost`] if
/// another process ends; [`Error::Elsewhere`] if it fails.
pub fn train_in_group(
    folder: &mut RunFolder,
    options: &TrainOptions,
    group: &mut Group,
    on_step: &mut OnStep<'_>,
) -> Result<Outcome> {
    let config = folder.config().clone();
    let (data, labels) = group.agree(Data::open(folder))?;
    group.check_same("pictures or labels", &fingerprint_of(&data, labels.as_ref()))?;
    let is_missing = |stage: &Stage| options.stage.is_none_or(|only| only == *stage) && !folder.is_done(*stage);
    options.stage.map_or(Ok(()), |stage| config.check_stage(stage))?;
    let missing: Vec<Stage> = config.stages().iter().copied().filter(is_missing).collect();
    if group.is_first() {
        note_done(folder, options);
    }
    check_data(&config, &missing, (&data.train, labels.as_ref()))?;
    check_parts(&config, &missing, group.size())?;
    if missing.contains(&Stage::Autoencoder) {
        // What cannot be used is told now, not after the stage before.
        group.agree(frozen::of_run(folder))?;
    }
    for stage in missing.iter().copied() {
        let lacks_spatial = stage == Stage::Autoencoder && config.spatial.is_some() && !folder.is_done(Stage::Spatial);
        let notes = folder.notes();
        if lacks_spatial && (notes.spatial_weights.is_some() || notes.init_from.is_some()) {
            // Nothing has to be trained for it.
            let outcome = spatial::run(folder, &data, options, (group, on_step));
            group.agree(outcome)?;
            group.agree(folder.set_done(Stage::Spatial))?;
        } else if lacks_spatial {
            let problem =
                "stage autoencoder needs the spatial one; make it with `diffae train --stage spatial`".to_owned();
            return Err(Error::Run { path: folder.path().to_owned(), problem });
        }
        if stage > Stage::Autoencoder {
            if config.is_of_decoder() {
                tracing::debug!("a model whose decoder alone is trained keeps its {}", stage.name());
                continue;
            }
            if config.model.kind == Kind::Ddpm {
                if group.is_first() {
                    tracing::warn!("a plain DDPM has no stage {}", stage.name());
                }
                continue;
            }
            if !folder.is_done(Stage::Autoencoder) {
                let problem = format!(
                    "stage {} needs the autoencoder; make it with `diffae train --stage autoencoder`",
                    stage.name()
                );
                return Err(Error::Run { path: folder.path().to_owned(), problem });
            }
        }
        let outcome = match (stage, &labels) {
            (Stage::Spatial, _) => spatial::run(folder, &data, options, (group, on_step)),
            (Stage::Autoencoder, _) => train_autoencoder(folder, &data, options, (group, on_step)),
            (Stage::Latent, _) => latent::run((folder, &options.compute), &data, (group, on_step)),
            (Stage::Classifier, Some(labels)) => {
                group.agree(folder.note_labels(labels))?;
                classifier::run((folder, &options.compute.device), (&data, labels), (group, on_step))
            }
            (Stage::Classifier, None) if options.stage.is_none() => {
                if group.is_first() {
                    tracing::warn!("stage classifier is left out: there are no labels (--labels)");
                }
                continue;
            }
            (Stage::Classifier, None) => {
                let problem = "stage classifier needs labels: give the file, or `folders`, by --labels".to_owned();
                return Err(Error::Run { path: folder.path().to_owned(), problem });
            }
        };
        // The first process has written the model, or could not; the next stage reads it.
        if group.agree(outcome)? == Outcome::Stopped {
            return Ok(Outcome::Stopped);
        }
        group.agree(folder.set_done(stage))?;
    }
    if group.is_first() {
        data.train.unreadable().say();
    }
    Ok(Outcome::Finished)
}

/// Logs which of the requested stages are done: a warning unless the run is resumed.
fn note_done(folder: &RunFolder, options: &TrainOptions) {
    let is_done = |stage: &Stage| options.stage.is_none_or(|only| only == *stage) && folder.is_done(*stage);
    let done: Vec<&str> = Stage::ALL.into_iter().filter(is_done).map(Stage::name).collect();
    match &done[..] {
        [] => {}
        done if options.resume => tracing::info!("done already: {}", done.join(", ")),
        [only] => tracing::warn!("stage {only} is done already, and is not trained again"),
        done => tracing::warn!("the stages {} are done already, and are not trained again", done.join(", ")),
    }
}

/// Checks in advance that there are enough training pictures, and labels of them, for some stages.
///
/// # Errors
/// [`Error::Data`].
pub fn check_data(
    config: &TrainConfig,
    stages: &[Stage],
    (pictures, labels): (&Pictures, Option<&Labels>),
) -> Result<()> {
    let problem = |problem| Err(diffae_data::Error::Data { path: pictures.root().to_owned(), problem }.into());
    let has_codes = config.model.kind != Kind::Ddpm && !config.is_of_decoder();
    let needs = |stage: Stage| has_codes && stages.contains(&stage);
    let classifies = labels.filter(|_| needs(Stage::Classifier));
    if pictures.len() < 2 && (needs(Stage::Latent) || classifies.is_some()) {
        return problem(
            "there is only 1 picture to train on, and the stages after the autoencoder need at least 2; add pictures, or \
             train that stage alone with --stage autoencoder"
                .to_owned(),
        );
    }
    match classifies {
        Some(labels) if !(0..pictures.len()).any(|idx| labels.of(&pictures.name(idx)).is_some()) => {
            problem("no picture that is trained on has labels".to_owned())
        }
        _ => Ok(()),
    }
}

/// Pictures of a run, by split.
#[derive(Debug, Clone)]
pub(crate) struct Data {
    /// Training pictures.
    pub(crate) train: Pictures,
    /// Held-out pictures.
    pub(crate) validation: Pictures,
}

impl Data {
    /// Lists the pictures of a run, and reads its labels.
    fn open(folder: &RunFolder) -> Result<(Self, Option<Labels>)> {
        let config = folder.config();
        let find = |split| Pictures::find(&folder.notes().data, &config.data.find_settings(), split);
        let mut data = Self { train: find(Split::Train)?, validation: find(Split::Validation)? };
        let list = (!folder.is_followed()).then(|| folder.path());
        let splits = [&mut data.train, &mut data.validation];
        Pictures::count_unreadable(splits, list, config.data.max_broken_share)?;
        let pictures = [&data.train, &data.validation];
        let labels = folder.notes().labels.as_ref().map(|path| Labels::of_pictures(path, &pictures)).transpose()?;
        Ok((data, labels))
    }
}

/// Returns the fingerprint of the names of all pictures and of the labels.
fn fingerprint_of(data: &Data, labels: Option<&Labels>) -> String {
    let mut fingerprint = Fingerprint::new();
    for split in [&data.train, &data.validation] {
        for idx in 0..split.len() {
            fingerprint.update(split.name(idx).as_bytes()).update(b"\n");
        }
        fingerprint.update(b"\n");
    }
    fingerprint.update(labels.map(Labels::fingerprint).unwrap_or_default().as_bytes());
    fingerprint.digits()
}

fn train_autoencoder(
    folder: &RunFolder,
    data: &Data,
    options: &TrainOptions,
    (group, on_step): (&mut Group, &mut OnStep<'_>),
) -> Result<Outcome> {
    let is_begun = group.is_first() && autoencoder::is_begun(folder, Stage::Autoencoder) && !options.resume;
    let started = || Err(Error::Started { path: folder.path().to_owned(), how: String::new() });
    group.agree(if is_begun { started() } else { Ok(()) })?;
    let config = folder.config();
    let mut constants = group.agree(spatial::finished(folder))?;
    constants.extend(group.agree(frozen::of_run(folder))?);
    let mut trainer = group.agree(Trainer::with_constants(constants, config, folder.notes(), &options.compute))?;
    let outcome = autoencoder::run((folder, Stage::Autoencoder), config, &mut trainer, data, (group, on_step))?;
    if outcome == Outcome::Finished && group.is_first() {
        let (config, networks) = (folder.config().model_config()?, trainer.averages()?);
        let original = || distillation::open_teacher(teacher(folder.notes())?);
        let source = if folder.config().distillation.is_some() {
            let chains = config.chains().cloned().unwrap_or_default();
            distillation::distilled(&original()?, networks, chains)?
        } else if folder.config().polish.is_some() {
            polish::polished(&original()?, networks, &config)?
        } else {
            ModelSource::from_networks(config, networks)
        };
        source.write(folder.path(), DType::F32, Overwrite::Replace)?;
    }
    Ok(outcome)
}

impl Trainer {
    /// Builds the networks of a new run, with initial weights of another model and frozen parts as its notes say.
    ///
    /// # Errors
    /// [`Error::OtherNetworks`] if that model has another architecture; [`Error::Setting`] if a part to freeze is missing;
    /// others if it cannot be read.
    pub fn of_run(config: &TrainConfig, notes: &Notes, compute: impl Into<Compute>) -> Result<Self> {
        Self::with_constants(frozen::given(config, notes)?.into_iter().collect(), config, notes, compute)
    }

    /// Builds the networks as [`Trainer::of_run`] does, with given parameters of those that are not trained: a spatial autoencoder,
    /// a pretrained encoder.
    fn with_constants(
        constants: HashMap<String, Tensor>,
        config: &TrainConfig,
        notes: &Notes,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let compute = compute.into();
        let model = config.model_config()?;
        let given = notes.init_from.as_deref().map(|path| parameters_of(path, &model)).transpose()?;
        // An endpoint network may be new.
        let names =
            |of: &mut dyn Iterator<Item = String>| of.filter(|name| !is_of_endpoint(name)).collect::<BTreeSet<_>>();
        let given_names = given.as_ref().map(|given| names(&mut given.keys().cloned()));
        let mut given = given.unwrap_or_default();
        given.extend(constants);
        let mut trainer = Self::of_model((&model, &compute), config, given)?;
        if let Some(given_names) = given_names {
            check_names(&given_names, &names(&mut trainer.averages()?.into_keys()))?;
        }
        notes.freeze.iter().try_for_each(|part| trainer.freeze(part))?;
        match (&config.distillation, &config.polish) {
            (Some(settings), _) => trainer.distill(distillation::build_teacher(teacher(notes)?, &compute)?, settings),
            (None, Some(settings)) => {
                let expected = "the path of VGG-16's weights, for a config with [polish]";
                let missing = || Error::Setting { key: "lpips_weights", got: "nothing".to_owned(), expected };
                let weights = notes.lpips_weights.as_deref().ok_or_else(missing)?;
                trainer.polish(perceptual::open_perceptual(weights, &compute.device)?, settings)
            }
            (None, None) => Ok(trainer),
        }
    }
}

/// Returns whether a parameter is one of an endpoint network.
fn is_of_endpoint(name: &str) -> bool {
    name.starts_with("endpoint.")
}

/// Returns the model whose decoder a run distills or polishes.
fn teacher(notes: &Notes) -> Result<&Path> {
    let expected = "the model's path, for a config with [distillation] or [polish]";
    notes.init_from.as_deref().ok_or_else(|| Error::Setting { key: "init_from", got: "nothing".to_owned(), expected })
}

/// Checks that initial weights have exactly the parameters of the networks.
fn check_names(given: &BTreeSet<String>, of_networks: &BTreeSet<String>) -> Result<()> {
    let problem = match (of_networks.difference(given).next(), given.difference(of_networks).next()) {
        (Some(name), _) => format!("they have no {name}"),
        (None, Some(name)) => format!("they have {name}, which these networks have not"),
        (None, None) => return Ok(()),
    };
    Err(Error::OtherNetworks { problem })
}

/// Reads the parameters of a model's encoder and decoder, and those of its endpoint network if it is that of another config.
fn parameters_of(path: &Path, model: &ModelConfig) -> Result<HashMap<String, Tensor>> {
    let source = ModelSource::open(path, &ArchitectureHints::default())?;
    let [given, own] = [source.config(), model].map(|config| config.picture_format().window);
    if given != own {
        let text = |window: Option<Window>| window.map_or_else(|| "[]".to_owned(), |window| window.to_string());
        let problem = format!("the model {} is of another window: --set data.window={}", path.display(), text(given));
        return Err(Error::OtherNetworks { problem });
    }
    let has_endpoint = source.config().endpoint() == model.endpoint();
    let is_wanted = |name: &str| !name.starts_with("latent_net.") && (has_endpoint || !is_of_endpoint(name));
    Ok(source.networks(DType::F32)?.into_iter().filter(|(name, _)| is_wanted(name)).collect())
}
