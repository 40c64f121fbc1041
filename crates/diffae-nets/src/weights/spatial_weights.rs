//! Weights of spatial autoencoders: our own, and released ones of latent diffusion models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::safetensors::{SafetensorsFile, safetensors_bytes};
use super::source::{TensorMap, TensorSource, Weights};
use super::weight_file::WeightFile;
use super::wrappers::Renamed;
use crate::error::{Error, Result};
use crate::spatial::{RawSpatialConfig, SpatialAutoencoder, SpatialConfig};

/// Prefix of the parameters in models of ours.
const OURS: &str = "spatial.";
/// Groups of the norms of released networks.
const RELEASED_GROUPS: usize = 32;
/// Prefix of the parameters in a whole latent diffusion model.
const FIRST_STAGE: &str = "first_stage_model.";
/// Factor of all activations between the blocks of a released network: its norms add 1e-6 to a variance where ours add 1e-5,
/// which is the same for activations that are `sqrt(10)` times as large.
const ACTIVATION_SCALE: f64 = 3.162_277_660_168_379_5;

/// Weights of a [`SpatialAutoencoder`](crate::SpatialAutoencoder), under the names of our networks.
#[derive(Debug, Clone)]
pub struct SpatialWeights {
    /// Sizes of the network, for the given size of pictures.
    pub config: SpatialConfig,
    /// Parameters by name. Of released weights without the statistics of latents, which are those of data.
    pub tensors: BTreeMap<String, Tensor>,
}

impl SpatialWeights {
    /// Key of the config, as JSON, in the header of a file of a spatial autoencoder of this project.
    pub const CONFIG_KEY: &str = "spatial_autoencoder";

    /// Reads the spatial autoencoder of a file, of f32: of one of this project (`spatial.safetensors` of a run), or the
    /// KL-regularized autoencoder of a latent diffusion model such as Stable Diffusion, under the names of diffusers
    /// (`vae/diffusion_pytorch_model.safetensors`) or of the original program (alone, or within a whole model). The sizes of a
    /// released one follow from its shapes; `image_size` is the size of pictures that it is to be used for.
    ///
    /// Parameters of released networks are multiplied by constants such that they compute the same with our norms, which add
    /// another epsilon.
    ///
    /// # Errors
    /// [`Error::NoSpatialAutoencoder`] if the file has no such network, or one with other layers; others if it cannot be read,
    /// is damaged, or a number is not finite.
    pub fn read(path: &Path, image_size: usize) -> Result<Self> {
        let own = SafetensorsFile::open(path).ok().and_then(|file| file.text().remove(Self::CONFIG_KEY));
        let state = Renamed::unwrapped(WeightFile::open(path)?.state)?;
        let read = |name: &str| state.read(name)?.to_tensor(DType::F32, &Device::Cpu);
        let names = state.names();
        if let Some(config) = own {
            let damaged = |error: serde_json::Error| unfit(path, format!("its config is damaged: {error}"));
            let config: RawSpatialConfig = serde_json::from_str(&config).map_err(damaged)?;
            let own = names.iter().filter_map(|name| Some((name, name.strip_prefix(OURS)?)));
            let tensors = own.map(|(name, short)| Ok((short.to_owned(), read(name)?))).collect::<Result<_>>()?;
            let config = SpatialConfig::new(RawSpatialConfig { image_size, ..config })?;
            return Self { config, tensors }.checked(path);
        }
        let mut tensors = released(path, &names, &read)?;
        let config = inferred(path, &tensors, image_size)?;
        complete(&mut tensors, config.latent_channels)?;
        for (name, tensor) in &mut tensors {
            if is_scaled(name) {
                *tensor = computed((&*tensor * ACTIVATION_SCALE).and_then(|scaled| scaled.contiguous()))?;
            }
        }
        Self { config, tensors }.checked(path)
    }

    /// Fails unless a network of the config uses each tensor exactly once.
    fn checked(self, path: &Path) -> Result<Self> {
        let mut tensors = self.tensors.clone();
        for name in SpatialAutoencoder::STATISTICS {
            let ones = computed(Tensor::ones(self.config.latent_channels, DType::F32, &Device::Cpu))?;
            tensors.entry(name.to_owned()).or_insert(ones);
        }
        let weights = Weights::new(Arc::new(TensorMap(tensors)));
        let built = SpatialAutoencoder::new(&self.config, &weights.var_builder(DType::F32, &Device::Cpu));
        built.map_err(|error| unfit(path, error.to_string().lines().next().unwrap_or_default().to_owned()))?;
        weights.check_each_used_once().map_err(|error| unfit(path, error.to_string()))?;
        Ok(self)
    }

    /// Writes the network as a file that [`read`](Self::read) reads.
    ///
    /// # Errors
    /// [`Error::Safetensors`] if a tensor cannot be written.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let config = serde_json::to_string(&self.config).unwrap_or_default();
        let text = [(Self::CONFIG_KEY.to_owned(), config), ("format".to_owned(), "pt".to_owned())];
        let named = self.tensors.iter().map(|(name, tensor)| (format!("{OURS}{name}"), tensor.clone()));
        safetensors_bytes(&named.collect(), &BTreeMap::from(text))
    }
}

/// Reads the tensors of a released network, under our names.
fn released(path: &Path, names: &[String], read: &dyn Fn(&str) -> Result<Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let is_whole = names.iter().any(|name| name.starts_with(FIRST_STAGE));
    let prefix = if is_whole { FIRST_STAGE } else { "" };
    let short = |name: &str| name.strip_prefix(prefix).map(str::to_owned);
    let of_network = |name: &String| {
        let is_part = |short: &String| {
            ["encoder.", "decoder.", "quant_conv.", "post_quant_conv."].iter().any(|part| short.starts_with(part))
        };
        short(name).filter(is_part)
    };
    let num_levels =
        names.iter().filter_map(of_network).filter_map(|name| level_of(&name)).max().map_or(0, |last| last + 1);
    if num_levels == 0 {
        let problem = "there is no spatial autoencoder (encoder.down_blocks.. or encoder.down..) in it";
        return Err(unfit(path, problem.to_owned()));
    }
    if names.iter().any(|name| name.contains("quantize.")) {
        return Err(unfit(path, "it is vector-quantized, not KL-regularized".to_owned()));
    }
    let mut tensors = BTreeMap::new();
    let mut attention: BTreeMap<String, [Option<Tensor>; 3]> = BTreeMap::new();
    for name in names {
        let Some(short) = of_network(name) else { continue };
        let Some(ours) = our_name(&short, num_levels) else {
            return Err(unfit(path, format!("{name} belongs to no layer of a KL-regularized autoencoder")));
        };
        let tensor = read(name)?;
        // q, k and v are one layer of ours.
        let part = ["q", "k", "v"].iter().position(|part| ours.contains(&format!(".attention.{part}.")));
        if let Some(part) = part {
            let joined = ours.replacen(&format!(".{}.", ["q", "k", "v"][part]), ".qkv.", 1);
            attention.entry(joined).or_default()[part] = Some(tensor);
        } else {
            tensors.insert(ours, tensor);
        }
    }
    for (name, parts) in attention {
        let [Some(q), Some(k), Some(v)] = parts else {
            return Err(unfit(path, format!("its attention has no {name} of three parts")));
        };
        tensors.insert(name, computed(Tensor::cat(&[q, k, v], 0))?);
    }
    // Linear layers and 1x1 convolutions of attention are stored as one of ours is.
    for (name, tensor) in &mut tensors {
        if name.contains(".attention.") && name.ends_with(".weight") && tensor.rank() != 1 {
            let outputs = tensor.dims().first().copied().unwrap_or(1);
            *tensor = computed(tensor.reshape((outputs, (), 1)))?;
        }
    }
    Ok(tensors)
}

/// Returns the level of a block of the encoder, by its released name.
fn level_of(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("encoder.down_blocks.").or_else(|| name.strip_prefix("encoder.down."))?;
    rest.split('.').next()?.parse().ok()
}

/// Converts a released name: `<half>.<place>.<layer>.<weight or bias>`.
fn our_name(name: &str, num_levels: usize) -> Option<String> {
    let (layer, kind) = name.rsplit_once('.')?;
    if !["weight", "bias"].contains(&kind) {
        return None;
    }
    let parts: Vec<&str> = layer.split('.').collect();
    let renamed = match parts[..] {
        ["quant_conv"] => "to_moments".to_owned(),
        ["post_quant_conv"] => "from_latents".to_owned(),
        [half, "conv_in"] => format!("{half}.first"),
        [half, "conv_norm_out" | "norm_out"] => format!("{half}.out.0"),
        [half, "conv_out"] => format!("{half}.out.2"),
        ["encoder", "down_blocks", level, "resnets", idx, part] | ["encoder", "down", level, "block", idx, part] => {
            format!("encoder.levels.{level}.blocks.{idx}.{}", of_block(part)?)
        }
        ["encoder", "down_blocks", level, "downsamplers", "0", "conv"]
        | ["encoder", "down", level, "downsample", "conv"] => format!("encoder.levels.{level}.down"),
        ["decoder", "up_blocks", level, "resnets", idx, part] => {
            format!("decoder.levels.{level}.blocks.{idx}.{}", of_block(part)?)
        }
        ["decoder", "up_blocks", level, "upsamplers", "0", "conv"] => format!("decoder.levels.{level}.up"),
        // Counted from the largest resolution.
        ["decoder", "up", level, "block", idx, part] => {
            format!("decoder.levels.{}.blocks.{idx}.{}", mirrored(level, num_levels)?, of_block(part)?)
        }
        ["decoder", "up", level, "upsample", "conv"] => format!("decoder.levels.{}.up", mirrored(level, num_levels)?),
        [half, "mid_block", "resnets", "0", part] | [half, "mid", "block_1", part] => {
            format!("{half}.middle.first.{}", of_block(part)?)
        }
        [half, "mid_block", "resnets", "1", part] | [half, "mid", "block_2", part] => {
            format!("{half}.middle.second.{}", of_block(part)?)
        }
        [half, "mid_block", "attentions", "0", ref part @ ..] | [half, "mid", "attn_1", ref part @ ..] => {
            let part = match part {
                ["group_norm" | "norm"] => "norm",
                ["to_q" | "query" | "q"] => "q",
                ["to_k" | "key" | "k"] => "k",
                ["to_v" | "value" | "v"] => "v",
                ["to_out", "0"] | ["proj_attn" | "proj_out"] => "proj_out",
                _ => return None,
            };
            format!("{half}.middle.attention.{part}")
        }
        _ => return None,
    };
    Some(format!("{renamed}.{kind}"))
}

fn of_block(part: &str) -> Option<&'static str> {
    Some(match part {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" | "nin_shortcut" => "skip_connection",
        _ => return None,
    })
}

fn mirrored(level: &str, num_levels: usize) -> Option<usize> {
    (num_levels - 1).checked_sub(level.parse().ok()?)
}

/// Returns whether a parameter is multiplied by [`ACTIVATION_SCALE`]: those whose sum with an activation, or whose product with
/// something else, is an activation that a norm sees.
fn is_scaled(name: &str) -> bool {
    let (layer, kind) = name.rsplit_once('.').unwrap_or((name, ""));
    let makes = ["encoder.first", "decoder.first"].contains(&layer)
        || [".in_layers.2", ".out_layers.3", ".attention.proj_out"].iter().any(|end| layer.ends_with(end));
    let passes_on = [".skip_connection", ".down", ".up"].iter().any(|end| layer.ends_with(end));
    makes || (passes_on && kind == "bias")
}

/// Adds the 1x1 convolutions of latents to networks that were released without them, where they change nothing.
fn complete(tensors: &mut BTreeMap<String, Tensor>, latent_channels: usize) -> Result<()> {
    for (name, channels) in [("to_moments", 2 * latent_channels), ("from_latents", latent_channels)] {
        if !tensors.contains_key(&format!("{name}.weight")) {
            let identity = Tensor::eye(channels, DType::F32, &Device::Cpu);
            let identity = computed(identity.and_then(|identity| identity.reshape((channels, channels, 1, 1))))?;
            tensors.insert(format!("{name}.weight"), identity);
            tensors.insert(format!("{name}.bias"), computed(Tensor::zeros(channels, DType::F32, &Device::Cpu))?);
        }
    }
    Ok(())
}

/// Infers sizes from the shapes of our names.
fn inferred(path: &Path, tensors: &BTreeMap<String, Tensor>, image_size: usize) -> Result<SpatialConfig> {
    let dim = |name: &str, axis: usize| {
        let missing = || unfit(path, format!("it has no {name} of a spatial autoencoder"));
        tensors.get(name).and_then(|tensor| tensor.dims().get(axis).copied()).ok_or_else(missing)
    };
    let count =
        |name: &dyn Fn(usize) -> String| (0..tensors.len()).take_while(|&idx| tensors.contains_key(&name(idx))).count();
    let first = |level: usize| format!("encoder.levels.{level}.blocks.0.in_layers.2.weight");
    let widths = (0..count(&first)).map(|level| dim(&first(level), 0)).collect::<Result<Vec<_>>>()?;
    let model_channels = widths.iter().copied().reduce(greatest_divisor).unwrap_or(0);
    let multiples = widths.iter().map(|width| width.checked_div(model_channels).unwrap_or(0)).collect();
    SpatialConfig::new(RawSpatialConfig {
        image_size,
        image_channels: dim("encoder.first.weight", 1)?,
        latent_channels: dim("encoder.out.2.weight", 0)? >> 1,
        model_channels,
        channel_mult: multiples,
        num_res_blocks: count(&|idx| format!("encoder.levels.0.blocks.{idx}.in_layers.2.weight")),
        num_groups: RELEASED_GROUPS,
        shortcut: false,
        middle_attention: tensors.contains_key("encoder.middle.attention.qkv.weight"),
    })
}

fn greatest_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

fn unfit(path: &Path, problem: String) -> Error {
    Error::NoSpatialAutoencoder { path: PathBuf::from(path), problem }
}

fn computed<T>(result: candle_core::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Tensor { part: "converting the weights of a spatial autoencoder", source })
}

#[cfg(test)]
mod tests {
    use candle_nn::VarBuilder;

    use super::*;
    use crate::unet::TrainingMode;
    use crate::weights::read_state_dict;

    /// Numbers of the autoencoder of diffusers, whose parameters are waves; see `xtask/peer/spatial_fixtures.py`.
    fn fixture() -> BTreeMap<String, Tensor> {
        let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "data", "spatial.safetensors"].iter().collect();
        read_state_dict(&path).unwrap().0
    }

    fn wave(shape: &[usize], frequency: f64, amplitude: f64) -> Tensor {
        #[expect(clippy::cast_possible_truncation, reason = "the script rounds in the same way")]
        let values = (0..shape.iter().product::<usize>())
            .map(|idx| ((idx as f64 * frequency).sin() * amplitude) as f32)
            .collect();
        Tensor::from_vec::<_, f32>(values, shape, &Device::Cpu).unwrap()
    }

    /// The parameters of the script, under the names of diffusers.
    fn parameters() -> BTreeMap<String, Tensor> {
        let shape = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec());
        let mut shapes = vec![shape("quant_conv.weight", &[8, 8, 1, 1]), shape("quant_conv.bias", &[8])];
        shapes.extend([shape("post_quant_conv.weight", &[4, 4, 1, 1]), shape("post_quant_conv.bias", &[4])]);
        let mut layer = |name: String, dims: &[usize]| {
            shapes.extend([shape(&format!("{name}.weight"), dims), shape(&format!("{name}.bias"), &dims[..1])]);
        };
        let block = |layer: &mut dyn FnMut(String, &[usize]), name: String, inputs: usize, outputs: usize| {
            layer(format!("{name}.norm1"), &[inputs]);
            layer(format!("{name}.conv1"), &[outputs, inputs, 3, 3]);
            layer(format!("{name}.norm2"), &[outputs]);
            layer(format!("{name}.conv2"), &[outputs, outputs, 3, 3]);
            if inputs != outputs {
                layer(format!("{name}.conv_shortcut"), &[outputs, inputs, 1, 1]);
            }
        };
        for (half, inputs, first, last, outputs) in [("encoder", 3, 32, 64, 8), ("decoder", 4, 64, 32, 3)] {
            layer(format!("{half}.conv_in"), &[first, inputs, 3, 3]);
            layer(format!("{half}.conv_norm_out"), &[last]);
            layer(format!("{half}.conv_out"), &[outputs, last, 3, 3]);
            for idx in 0..2 {
                block(&mut layer, format!("{half}.mid_block.resnets.{idx}"), 64, 64);
            }
            let attention = format!("{half}.mid_block.attentions.0");
            layer(format!("{attention}.group_norm"), &[64]);
            for part in ["to_q", "to_k", "to_v", "to_out.0"] {
                layer(format!("{attention}.{part}"), &[64, 64]);
            }
        }
        block(&mut layer, "encoder.down_blocks.0.resnets.0".to_owned(), 32, 32);
        layer("encoder.down_blocks.0.downsamplers.0.conv".to_owned(), &[32, 32, 3, 3]);
        block(&mut layer, "encoder.down_blocks.1.resnets.0".to_owned(), 32, 64);
        for idx in 0..2 {
            block(&mut layer, format!("decoder.up_blocks.0.resnets.{idx}"), 64, 64);
            block(&mut layer, format!("decoder.up_blocks.1.resnets.{idx}"), if idx == 0 { 64 } else { 32 }, 32);
        }
        layer("decoder.up_blocks.0.upsamplers.0.conv".to_owned(), &[64, 64, 3, 3]);
        shapes.sort();
        let value = |(idx, (name, shape)): (usize, (String, Vec<usize>))| {
            let fan_in: usize = shape[1..].iter().product();
            let amplitude = if shape.len() > 1 { (3. / fan_in as f64).sqrt() } else { 0.1 };
            let mut tensor = wave(&shape, 0.7 + 0.01 * idx as f64, amplitude);
            if name.contains("norm") && name.ends_with("weight") {
                tensor = (tensor + 1.).unwrap();
            }
            (name, tensor)
        };
        shapes.into_iter().enumerate().map(value).collect()
    }

    fn written(tensors: &BTreeMap<String, Tensor>) -> tempfile::TempPath {
        let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap().into_temp_path();
        std::fs::write(&file, super::super::safetensors_bytes(tensors, &BTreeMap::new()).unwrap()).unwrap();
        file
    }

    /// Names of the original program.
    fn original(name: &str) -> String {
        let mut name = name.to_owned();
        for (from, to) in [
            ("down_blocks", "down"),
            ("up_blocks.0", "up.1"),
            ("up_blocks.1", "up.0"),
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0", "mid.attn_1"),
            ("resnets", "block"),
            ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"),
            ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"),
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ] {
            name = name.replace(from, to);
        }
        format!("first_stage_model.{name}")
    }

    fn far(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    fn built(weights: &SpatialWeights) -> SpatialAutoencoder {
        let tensors = weights.tensors.clone().into_iter().chain([
            ("latents.mean".to_owned(), Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap()),
            ("latents.std".to_owned(), Tensor::ones(4, DType::F32, &Device::Cpu).unwrap()),
        ]);
        let vb = VarBuilder::from_tensors(tensors.collect(), DType::F32, &Device::Cpu);
        SpatialAutoencoder::new(&weights.config, &vb).unwrap()
    }

    #[test]
    fn released_weights_compute_what_diffusers_does() {
        let expected = fixture();
        let parameters = parameters();
        let linear_as_convolution = |(name, tensor): (&String, &Tensor)| {
            let is_linear = name.contains("attentions") && tensor.rank() == 2;
            let tensor = if is_linear { tensor.reshape((64, 64, 1, 1)).unwrap() } else { tensor.clone() };
            (original(name), tensor)
        };
        let of_original = parameters.iter().map(linear_as_convolution).collect();
        for file in [written(&parameters), written(&of_original)] {
            let weights = SpatialWeights::read(&file, 16).unwrap();
            let config = &weights.config;
            assert_eq!((config.model_channels, &config.channel_mult[..], config.num_res_blocks), (32, &[1, 2][..], 1));
            assert_eq!((config.latent_channels, config.image_channels, config.middle_attention), (4, 3, true));
            let (net, mode) = (built(&weights), TrainingMode::default());
            let posterior = net.posterior(&wave(&[2, 3, 16, 16], 0.05, 1.), mode).unwrap();
            assert!(far(&posterior.mean, &expected["mean"]) < 1e-5);
            assert!(far(&posterior.log_variance, &expected["log_variance"]) < 1e-5);
            // Some variances are small: f32 is off by 2e-4 of up to 4, and the other epsilon by 4e-2.
            let decoded = net.decode_posterior(&wave(&[2, 4, 8, 8], 1.7, 1.), mode).unwrap();
            assert!(far(&decoded, &expected["decoded"]) < 1e-3, "{}", far(&decoded, &expected["decoded"]));
        }
    }

    #[test]
    fn own_weights_are_read_as_they_are_and_networks_without_1x1_convolutions_completed() {
        let of_diffusers = SpatialWeights::read(&written(&parameters()), 32).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&file, of_diffusers.to_bytes().unwrap()).unwrap();
        let again = SpatialWeights::read(&file, 32).unwrap();
        assert_eq!(SpatialWeights::read(&file, 16).unwrap().config.image_size, 16);
        assert_eq!(again.config, of_diffusers.config);
        for (name, tensor) in &of_diffusers.tensors {
            assert!(far(&again.tensors[name], tensor) <= 0., "{name}");
        }
        let without = parameters().into_iter().filter(|(name, _)| !name.contains("quant_conv")).collect();
        let (net, mode) = (built(&SpatialWeights::read(&written(&without), 16).unwrap()), TrainingMode::default());
        let decoded = net.decode_posterior(&wave(&[1, 4, 8, 8], 1.7, 1.), mode).unwrap();
        assert_eq!(decoded.dims(), [1, 3, 16, 16]);
    }

    #[test]
    fn other_files_are_refused() {
        let refused = |tensors: BTreeMap<String, Tensor>| {
            SpatialWeights::read(&written(&tensors), 16).map(|_| ()).unwrap_err().to_string()
        };
        let one = || Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
        assert!(refused(BTreeMap::from([("a.weight".to_owned(), one())])).contains("no spatial autoencoder"));
        let mut more = parameters();
        more.insert("encoder.down_blocks.0.attentions.0.norm.weight".to_owned(), one());
        assert!(refused(more).contains("belongs to no layer"));
        let mut less = parameters();
        less.remove("encoder.mid_block.attentions.0.to_k.weight");
        assert!(refused(less).contains("three parts"));
        let mut quantized = parameters();
        quantized.insert("quantize.embedding.weight".to_owned(), one());
        assert!(refused(quantized).contains("vector-quantized"));
        let mut deeper = parameters();
        let again = deeper["decoder.up_blocks.0.resnets.1.norm1.weight"].clone();
        deeper.insert("decoder.up_blocks.0.resnets.2.norm1.weight".to_owned(), again);
        assert!(refused(deeper).contains("decoder.levels.0.blocks.2.in_layers.0.weight"));
        let mut none = parameters();
        none.remove("encoder.conv_in.weight");
        assert!(refused(none).contains("encoder.first.weight"));
    }
}
