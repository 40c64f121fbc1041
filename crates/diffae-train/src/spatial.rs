//! The stage that trains the spatial autoencoder of a model on latents, or takes one over.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use diffae_data::{Overwrite, PictureFormat, Pictures, write_atomically};
use diffae_infer::ModelSource;
use diffae_kernels::{differentiable, no_gradients};
use diffae_nets::features::LpipsNetwork;
use diffae_nets::weights::{ArchitectureHints, SpatialWeights};
use diffae_nets::{
    BatchMoments, Posterior, RawSpatialConfig, SpatialAutoencoder, SpatialConfig, TrainingMode, Winograd,
};

use crate::collective::Group;
use crate::compute::Compute;
use crate::config::{ObjectiveSettings, TrainConfig, only_pictures};
use crate::draw::Drawing;
use crate::error::{Error, Result};
use crate::frozen;
use crate::networks::ImageModel;
use crate::parameters::Parameters;
use crate::perceptual::{color, open_perceptual};
use crate::preview::Preview;
use crate::random::{Purpose, below, normal, stream};
use crate::run::{Notes, RunFolder, Stage};
use crate::spatial_settings::{PART, PixelLoss, SpatialSettings};
use crate::trainer::Trainer;
use crate::{Data, OnStep, Outcome, TrainOptions, autoencoder};

/// File of a run with the finished spatial autoencoder.
const FILE: &str = "spatial.safetensors";
/// Prefix of its parameters in a model.
pub(crate) const PREFIX: &str = "spatial.";
/// Maximum number of training pictures whose latents give the statistics by which latents are normalized.
const MAX_MEASURED: usize = 256;

/// A spatial autoencoder under training.
#[derive(Debug)]
pub(crate) struct SpatialModel {
    net: SpatialAutoencoder,
    settings: SpatialSettings,
    /// Side of crops.
    size: usize,
    perceptual: Option<LpipsNetwork>,
}

/// Pictures, or parts of them, that a step trains on.
#[derive(Debug)]
pub(crate) struct Crops {
    /// Crops of pictures, `[N, C, H, W]`.
    x_0: Tensor,
    /// Noise of latents, `[N, c, h, w]`; `None` for their means.
    noise: Option<Tensor>,
    /// Activations of LPIPS of the crops, where it is part of the loss.
    wanted: Option<Vec<Tensor>>,
}

/// Decoded crops, and the distribution of the latents that they are decoded from.
#[derive(Debug)]
pub(crate) struct Decoded {
    x: Tensor,
    posterior: Posterior,
}

/// Logarithm of the variance of latents at the beginning, when they are small: noise of their own size, or larger, keeps
/// it from learning which latents matter.
const FIRST_LOG_VARIANCE: f32 = -12.;

/// Returns initial values of parameters that are not drawn at random.
pub(crate) fn initial(config: &TrainConfig) -> Result<HashMap<String, Tensor>> {
    let Some(sizes) = config.spatial_config()? else { return Ok(HashMap::new()) };
    let count = sizes.latent_channels;
    let bias = [vec![0.; count], vec![FIRST_LOG_VARIANCE; count]].concat();
    let bias = Tensor::from_vec(bias, 2 * count, &Device::Cpu)?;
    Ok(HashMap::from([(format!("{PREFIX}to_moments.bias"), bias)]))
}

impl SpatialModel {
    /// Builds the network of a config.
    pub(crate) fn new(config: &TrainConfig, perceptual: Option<LpipsNetwork>, vb: &VarBuilder<'_>) -> Result<Self> {
        let (Some(settings), Some(sizes)) = (&config.spatial_net, config.spatial_config()?) else {
            return Err(Error::Nets(diffae_nets::Error::NotOneModel));
        };
        Ok(Self {
            net: SpatialAutoencoder::new(&sizes, &vb.pp("spatial"))?,
            size: settings.trained_size(&config.model),
            settings: settings.clone(),
            perceptual,
        })
    }

    fn decoded(&self, crops: &Crops, mode: TrainingMode) -> Result<Decoded> {
        let posterior = self.net.posterior(&crops.x_0, mode)?;
        let latents = match &crops.noise {
            Some(noise) => posterior.sample(noise)?,
            None => posterior.mean.clone(),
        };
        Ok(Decoded { x: self.net.decode_posterior(&latents, mode)?, posterior })
    }
}

impl ImageModel for SpatialModel {
    type Input = Crops;
    type Code = ();
    type Output = Decoded;

    /// Crops pictures at random places and draws the noise of their latents; in validation the pictures are whole, and latents
    /// are the means.
    fn draw(&self, x_0: &Tensor, how: Drawing) -> Result<Crops> {
        let (count, _, height, width) = x_0.dims4()?;
        let (x_0, noise) = if how.purpose == Purpose::Preview {
            (x_0.clone(), None)
        } else {
            let (mut crops, mut noise) = (vec![], vec![]);
            let side = self.size.checked_div(self.net.config().factor()).unwrap_or(0);
            let channels = self.net.config().latent_channels;
            for item in 0..count {
                let mut stream = stream(how.seed, Purpose::SpatialNoise, (how.first + item) as u64);
                let top = below(&mut stream, height - self.size + 1);
                let left = below(&mut stream, width - self.size + 1);
                crops.push(x_0.get(item)?.narrow(1, top, self.size)?.narrow(2, left, self.size)?);
                noise.extend(normal(&mut stream, channels * side * side));
            }
            let noise = Tensor::from_vec(noise, (count, channels, side, side), x_0.device())?;
            (Tensor::stack(&crops, 0)?, Some(noise))
        };
        let wanted = |network: &LpipsNetwork| no_gradients(|| network.activations(&color(&x_0)?));
        let wanted = self.perceptual.as_ref().map(wanted).transpose()?;
        Ok(Crops { x_0, noise, wanted })
    }

    fn encode(&self, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn shifted(&(): &()) -> Result<Option<()>> {
        Ok(None)
    }

    fn decode(&self, &(): &(), crops: &Crops) -> Result<Decoded> {
        no_gradients(|| self.decoded(crops, TrainingMode::default()))
    }

    fn forward_training(
        &self,
        _: &Tensor,
        crops: &Crops,
        mode: TrainingMode,
        _: &mut Vec<BatchMoments>,
    ) -> Result<Decoded> {
        self.decoded(crops, mode)
    }

    fn loss(&self, _: &Tensor, crops: &Crops, output: &Decoded, _: &ObjectiveSettings) -> Result<Tensor> {
        let Decoded { x, posterior } = output;
        let (x_0, weight) = (&crops.x_0, self.settings.kl_weight);
        let divergence = posterior.divergence()?;
        let pixel_loss = self.settings.pixel_loss;
        let loss = differentiable([x, &divergence], |[x, divergence]| {
            let difference = (x - x_0)?;
            let difference = match pixel_loss {
                PixelLoss::L1 => difference.abs()?,
                PixelLoss::L2 => difference.sqr()?,
            };
            difference.mean_all()? + (divergence * weight)?
        })?;
        let (Some(network), Some(wanted)) = (&self.perceptual, &crops.wanted) else { return Ok(loss) };
        let (distance, weight) = (network.distance_from(wanted, &color(x)?)?, self.settings.perceptual_weight);
        Ok(differentiable([&loss, &distance], |[loss, distance]| loss + (distance.mean_all()? * weight)?)?)
    }

    fn compared(
        &self,
        _: &Tensor,
        crops: &Crops,
        output: &Decoded,
        _: &ObjectiveSettings,
    ) -> Result<Option<(Tensor, Tensor)>> {
        Ok(Some((crops.x_0.clone(), output.x.clone())))
    }
}

/// Trains the spatial autoencoder of a run, or takes that of other weights, and writes it with the statistics of its latents and a
/// sheet.
pub(crate) fn run(
    folder: &RunFolder,
    data: &Data,
    options: &TrainOptions,
    (group, on_step): (&mut Group, &mut OnStep<'_>),
) -> Result<Outcome> {
    let config = folder.config();
    let (Some(of_stage), Some(sizes)) = (config.of_spatial_stage(), config.spatial_config()?) else {
        return Ok(Outcome::Finished);
    };
    let notes = folder.notes();
    let (tensors, images) = if let Some(tensors) = group.agree(given(config, notes))? {
        (tensors, 0)
    } else {
        let is_begun = group.is_first() && autoencoder::is_begun(folder, Stage::Spatial) && !options.resume;
        let started = || Err(Error::Started { path: folder.path().to_owned(), how: String::new() });
        group.agree(if is_begun { started() } else { Ok(()) })?;
        let mut trainer = group.agree(Trainer::of_spatial(&of_stage, notes, &options.compute))?;
        let outcome = autoencoder::run((folder, Stage::Spatial), &of_stage, &mut trainer, data, (group, on_step))?;
        if outcome == Outcome::Stopped {
            return Ok(outcome);
        }
        let short = |name: String| name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
        let mut tensors: BTreeMap<String, Tensor> =
            trainer.averages()?.into_iter().map(|(name, tensor)| (short(name), tensor)).collect();
        tensors.retain(|name, _| !is_statistic(name));
        (tensors, of_stage.autoencoder.num_steps() * of_stage.autoencoder.batch_size)
    };
    if group.is_first() {
        let device = &options.compute.device;
        let weights =
            measured(SpatialWeights { config: sizes, tensors }, (&data.train, config.picture_format()), device)?;
        write_atomically(&path(folder.path()), &weights.to_bytes()?, Overwrite::Replace)?;
        let watched = autoencoder::watched(data, config)?;
        let preview = Preview::new((folder.path(), device), (config, Stage::Spatial), &watched)?;
        preview.write(named(weights.tensors).into_iter().collect(), images)?;
    }
    Ok(Outcome::Finished)
}

/// Returns whether a tensor is a statistic of latents, and no parameter that is trained.
fn is_statistic(name: &str) -> bool {
    SpatialAutoencoder::STATISTICS.contains(&name)
}

/// Returns parameters under the names of a model.
fn named(tensors: BTreeMap<String, Tensor>) -> HashMap<String, Tensor> {
    tensors.into_iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor)).collect()
}

/// Reads the spatial autoencoder that a run was given, if it was: of weights of one, or of the model that it begins with, whose
/// latents keep their statistics.
fn given(config: &TrainConfig, notes: &Notes) -> Result<Option<BTreeMap<String, Tensor>>> {
    let (weights, path) = match (&notes.spatial_weights, &notes.init_from) {
        (Some(path), _) => (of_file(path, only_pictures(PART, config.model.image_size)?)?, path),
        (None, Some(path)) => (of_model(path)?, path),
        (None, None) => return Ok(None),
    };
    fitting(weights, config, path).map(Some)
}

/// Returns the parameters of a spatial autoencoder that is of the sizes of a config.
fn fitting(weights: SpatialWeights, config: &TrainConfig, path: &Path) -> Result<BTreeMap<String, Tensor>> {
    if config.spatial_config()?.is_some_and(|sizes| sizes == weights.config) {
        return Ok(weights.tensors);
    }
    let sizes = SpatialSettings::assignments(&weights.config);
    let channels = weights.config.image_channels;
    let problem = if channels != config.model.image_channels {
        format!("the spatial autoencoder of {} is for pictures of {channels} channels", path.display())
    } else if config.model.image_size != weights.config.image_size.into() {
        let size = weights.config.image_size;
        format!("the model {} is for pictures of {size} pixels: --set model.image_size={size}", path.display())
    } else {
        format!("the spatial autoencoder of {} has other sizes: {sizes}", path.display())
    };
    Err(Error::OtherNetworks { problem })
}

/// Reads a spatial autoencoder: of its file, of a run, of a model, or of a folder of diffusers. Its latents have no statistics
/// yet, since they are those of the pictures of a run.
fn of_file(path: &Path, image_size: usize) -> Result<SpatialWeights> {
    let inside = [FILE, "diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"];
    let file = inside.iter().map(|name| path.join(name)).find(|file| path.is_dir() && file.exists());
    let mut weights = match &file {
        None if path.is_dir() || path.ends_with("model.safetensors") => of_model(path)?,
        _ => {
            let file = file.as_deref().unwrap_or(path);
            let failed = |source| diffae_infer::Error::Weights { path: file.to_owned(), source };
            SpatialWeights::read(file, image_size).map_err(failed)?
        }
    };
    weights.tensors.retain(|name, _| !is_statistic(name));
    // That of a model may be for pictures of another size; the network itself is for any.
    let config = SpatialConfig::new(RawSpatialConfig { image_size, ..(*weights.config).clone() })?;
    Ok(SpatialWeights { config, ..weights })
}

/// Reads the spatial autoencoder of a model, with the statistics of its latents.
fn of_model(path: &Path) -> Result<SpatialWeights> {
    let model = ModelSource::open(path, &ArchitectureHints::default())?;
    let problem = format!("{} has no spatial autoencoder", path.display());
    let config = model.config().spatial().ok_or(Error::OtherNetworks { problem })?.clone();
    let of_network = |(name, tensor): (String, Tensor)| Some((name.strip_prefix(PREFIX)?.to_owned(), tensor));
    Ok(SpatialWeights { config, tensors: model.networks(DType::F32)?.into_iter().filter_map(of_network).collect() })
}

/// Checks the files of weights that a run is given, before it is begun.
///
/// # Errors
/// [`Error::OtherNetworks`] if the spatial autoencoder is of other sizes; [`Error::Setting`] if LPIPS or a pretrained encoder needs
/// weights and there are none; others if they cannot be read.
pub fn check_given_weights(config: &TrainConfig, notes: &Notes) -> Result<()> {
    frozen::given(config, notes)?;
    if config.spatial_net.is_none() {
        return Ok(());
    }
    match given(config, notes)? {
        Some(_) => Ok(()),
        None => perceptual(config, notes.lpips_weights.as_deref(), &Device::Cpu).map(|_| ()),
    }
}

/// Completes weights with the statistics of the latents of training pictures, unless they have some.
fn measured(weights: SpatialWeights, pictures: (&Pictures, PictureFormat), device: &Device) -> Result<SpatialWeights> {
    let SpatialWeights { config, mut tensors } = weights;
    let [mean_name, std_name] = SpatialAutoencoder::STATISTICS;
    if tensors.contains_key(mean_name) {
        return Ok(SpatialWeights { config, tensors });
    }
    let channels = config.latent_channels;
    tensors.insert(mean_name.to_owned(), Tensor::zeros(channels, DType::F32, &Device::Cpu)?);
    tensors.insert(std_name.to_owned(), Tensor::ones(channels, DType::F32, &Device::Cpu)?);
    let vb = VarBuilder::from_tensors(tensors.clone().into_iter().collect(), DType::F32, device);
    let mut net = SpatialAutoencoder::new(&config, &vb)?;
    net.freeze(Winograd::Process);
    let (mean, std) = statistics(&net, pictures, device)?;
    tensors.insert(mean_name.to_owned(), Tensor::from_vec(mean, channels, &Device::Cpu)?);
    tensors.insert(std_name.to_owned(), Tensor::from_vec(std, channels, &Device::Cpu)?);
    Ok(SpatialWeights { config, tensors })
}

/// Builds the spatial autoencoder of a model that is trained on its latents, of given parameters under the names of the model;
/// without any of random ones, for a trial. Also returns them on the CPU.
pub(crate) fn constant(
    sizes: &SpatialConfig,
    given: HashMap<String, Tensor>,
    (seed, compute): (u64, &Compute),
) -> Result<(Option<SpatialAutoencoder>, BTreeMap<String, Tensor>)> {
    let tensors = Parameters::constants(seed, given, |vb| Ok(SpatialAutoencoder::new(sizes, &vb.pp("spatial"))?))?;
    let vb = VarBuilder::from_tensors(tensors.clone().into_iter().collect(), compute.dtype, &compute.device);
    let mut net = SpatialAutoencoder::new(sizes, &vb.pp("spatial"))?;
    net.freeze(Winograd::Process);
    Ok((Some(net), tensors))
}

fn path(run: &Path) -> PathBuf {
    run.join(FILE)
}

/// Computes mean and standard deviation of each channel of the latents of training pictures, spread over all.
#[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
fn statistics(
    net: &SpatialAutoencoder,
    (pictures, format): (&Pictures, PictureFormat),
    device: &Device,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let channels = net.config().latent_channels;
    let (mut sums, mut squares, mut count) = (vec![0f64; channels], vec![0f64; channels], 0f64);
    let num_pictures = pictures.len().min(MAX_MEASURED);
    for place in 0..num_pictures {
        let idx = (place * pictures.len()).checked_div(num_pictures).unwrap_or(0);
        let read = pictures.read_or_leave_out(idx, format)?;
        let Some(x_0) = read else { continue };
        let latents = net.latents(&x_0.unsqueeze(0)?.to_device(device)?)?;
        let rows = latents.get(0)?.flatten_from(1)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        for (channel, row) in rows.to_vec2::<f64>()?.into_iter().enumerate() {
            sums[channel] += row.iter().sum::<f64>();
            squares[channel] += row.iter().map(|value| value * value).sum::<f64>();
        }
        count += rows.dim(1)? as f64;
    }
    if count <= 0. {
        return Err(pictures.none_readable().into());
    }
    let mean = sums.iter().map(|sum| sum / count);
    let deviation = |(square, mean): (&f64, f64)| (square / count - mean * mean).max(1e-12).sqrt() as f32;
    let std = squares.iter().zip(mean.clone()).map(deviation).collect();
    Ok((mean.map(|mean| mean as f32).collect(), std))
}

/// Reads the finished spatial autoencoder of a run, under the names of a model; none for a model of pictures.
pub(crate) fn finished(folder: &RunFolder) -> Result<HashMap<String, Tensor>> {
    let config = folder.config();
    if config.spatial_net.is_none() {
        return Ok(HashMap::new());
    }
    let path = path(folder.path());
    let failed = |source| diffae_infer::Error::Weights { path: path.clone(), source };
    let weights = SpatialWeights::read(&path, only_pictures(PART, config.model.image_size)?).map_err(failed)?;
    fitting(weights, config, &path).map(named)
}

/// Opens the perceptual network of the loss, if there is one.
pub(crate) fn perceptual(
    config: &TrainConfig,
    weights: Option<&Path>,
    device: &Device,
) -> Result<Option<LpipsNetwork>> {
    if config.spatial_net.as_ref().is_none_or(|settings| settings.perceptual_weight <= 0.) {
        return Ok(None);
    }
    let expected = "the path of VGG-16's weights, or spatial_net.perceptual_weight=0";
    let missing = || Error::Setting { key: "lpips_weights", got: "nothing".to_owned(), expected };
    open_perceptual(weights.ok_or_else(missing)?, device).map(Some)
}

#[cfg(test)]
mod tests {
    use diffae_infer::{CodesBatch, CodesNeed, LoadOptions, Pipeline, PipelineSettings, no_observer};

    use super::*;
    use crate::presets;

    fn config(assignments: &[&str]) -> TrainConfig {
        let assignments: Vec<String> = assignments.iter().map(|&text| text.to_owned()).collect();
        presets::config("smoke_latent", &assignments).unwrap()
    }

    fn trainer(config: &TrainConfig) -> Trainer {
        let of_stage = config.of_spatial_stage().unwrap();
        Trainer::of_spatial(&of_stage, &Notes::default(), &Compute::from(&Device::Cpu)).unwrap()
    }

    fn pictures(count: usize) -> Tensor {
        let values: Vec<f32> = (0..count * 3 * 256).map(|idx| (idx as f32 * 0.037).sin()).collect();
        Tensor::from_vec(values, (count, 3, 16, 16), &Device::Cpu).unwrap()
    }

    #[test]
    fn it_learns_to_give_pictures_back() {
        let config = config(&["spatial.batch_size=4", "spatial.ema_decay=0"]);
        let mut trainer = trainer(&config);
        let x_0 = pictures(4);
        let (before, usage) = trainer.validate(&x_0).unwrap();
        for _ in 0..20 {
            trainer.step(&x_0).unwrap();
        }
        let (after, _) = trainer.validate(&x_0).unwrap();
        assert!(after < 0.8 * before && usage.is_none(), "{after} after {before}");
        // Statistics of latents are no parameters that are trained.
        let [mean, std] = SpatialAutoencoder::STATISTICS
            .map(|name| trainer.parameters().unwrap()[&format!("{PREFIX}{name}")].to_vec1::<f32>().unwrap());
        assert_eq!((mean, std), (vec![0.; 4], vec![1.; 4]));
    }

    #[test]
    fn crops_are_of_pictures_and_depend_on_their_place_alone() {
        let config = config(&[]);
        let trainer = trainer(&config);
        let crate::networks::Networks::Spatial(model) = trainer.networks() else { panic!("another network") };
        let x_0 = pictures(3);
        let draw = |x_0: &Tensor, first| model.draw(x_0, Drawing::uniform(7, Purpose::Noise, first)).unwrap();
        let all = draw(&x_0, 5);
        assert_eq!(all.x_0.dims(), [3, 3, 8, 8]);
        let last = draw(&x_0.narrow(0, 2, 1).unwrap(), 7);
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&all.x_0.narrow(0, 2, 1).unwrap()), flat(&last.x_0));
        assert_eq!(flat(&all.noise.unwrap().narrow(0, 2, 1).unwrap()), flat(&last.noise.unwrap()));
        // A crop is a part of its picture.
        let found = (0..9).any(|top| {
            (0..9).any(|left| {
                let part = x_0.get(0).unwrap().narrow(1, top, 8).unwrap().narrow(2, left, 8).unwrap();
                flat(&part) == flat(&all.x_0.get(0).unwrap())
            })
        });
        assert!(found);
        let whole = model.draw(&x_0, Drawing::uniform(7, Purpose::Preview, 0)).unwrap();
        assert!(whole.noise.is_none() && whole.x_0.dims() == x_0.dims());
    }

    #[test]
    fn exact_codes_give_latents_back() {
        let config = config(&[]);
        let networks = Trainer::new(&config, HashMap::new()).unwrap().averages().unwrap();
        let source = ModelSource::from_networks(config.model_config().unwrap(), networks);
        let pipeline = Pipeline::new(source.build(&LoadOptions::cpu()).unwrap());
        let (model, settings) = (pipeline.model(), PipelineSettings { num_steps: 4, ..PipelineSettings::DEFAULT });
        let x_0 = pictures(2);
        let codes = pipeline.encode_batch(&x_0, CodesNeed::Both, &settings, &mut no_observer).unwrap();
        let x_terminal = codes.x_terminal.unwrap();
        assert_eq!((x_terminal.dims(), model.x_terminal_shape()), (&[2, 4, 8, 8][..], vec![4, 8, 8]));
        assert_eq!(model.zero_x_terminal(1).unwrap().dims(), [1, 4, 8, 8]);
        let decode = |z_sem: Option<&Tensor>| {
            let codes = CodesBatch { x_terminal: &x_terminal, chain: codes.chain.as_ref(), z_sem, numbers: &[] };
            pipeline.decode_batch(codes, &settings, &mut no_observer).unwrap()
        };
        let expected = model.pictures(&model.states(&x_0).unwrap()).unwrap().clamp(-1f32, 1f32).unwrap();
        let far =
            |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(far(&decode(codes.z_sem.as_ref()), &expected) < 1e-4);
        assert!(far(&x_0, &expected) > 0.1, "these networks are not trained");
        assert!(!pipeline.is_lossless(&settings));
    }
}
