//! Pieces of work that the benchmark measures.

use anyhow::Result;
use candle_core::DType;
use diffae_infer::{ChainsConfig, DiffusionConfig, LatentConfig, ModelConfig, RawModelConfig, ZSemConfig};
use diffae_nets::{
    AutoencoderConfig, Conditioning, EncoderConfig, LatentNetConfig, RawEncoderConfig, RawLatentNetConfig,
    RawUnetConfig, UnetConfig, ZLevels,
};
use diffae_schedule::{BetaSchedule, PredictionTarget};
use serde::Serialize;

/// One piece of work, the same for us and the peer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Work {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) preset: Preset,
    pub(crate) batch: usize,
    pub(crate) numbers: Numbers,
}

/// Number type of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Numbers {
    /// f32.
    F32,
    /// f32, with products and convolutions in TF32.
    Tf32,
    /// bf16; parameters under training are f32.
    Bf16,
}

impl Numbers {
    /// Returns Candle's name of the type.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// One noise prediction, with the projections of t and `z_sem`.
    Unet,
    /// One semantic encoding.
    Encoder,
    /// Encode, invert and decode, ten steps each way.
    Chain,
    /// Sample a code and decode it, ten steps each.
    Sample,
    /// Reconstruct a picture file with a model directory, from the start of a process to its end.
    Reconstruct,
    /// Reconstruct a picture file with the built-in model, from the start of a process to its end; no model is read.
    BuiltInReconstruct,
    /// Sample faces with the built-in model, from the start of a process to its end.
    BuiltInSample,
    /// One training step: forward, backward, clip, Adam, EMA.
    Train,
    /// The end of a training step alone: clip, Adam, EMA.
    Update,
}

/// Sizes of an autoencoder.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Preset {
    pub(crate) image_size: usize,
    pub(crate) model_channels: usize,
    pub(crate) channel_mult: Vec<usize>,
    pub(crate) encoder_channel_mult: Vec<usize>,
    pub(crate) num_res_blocks: usize,
    pub(crate) embed_channels: usize,
    pub(crate) latent_hidden_channels: usize,
    pub(crate) latent_num_layers: usize,
}

impl Work {
    /// Returns all work, quick pieces first.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![];
        let mut add = |kind: Kind, (label, preset): (&str, &Preset), batches: &[usize]| {
            for &batch in batches {
                let kind_name = match kind {
                    Kind::Unet => "unet",
                    Kind::Encoder => "encoder",
                    Kind::Chain => "chain",
                    Kind::Train => "train",
                    Kind::Update => "update",
                    Kind::Sample => "sample",
                    Kind::Reconstruct => "reconstruct",
                    Kind::BuiltInReconstruct => "reconstruct-built-in",
                    Kind::BuiltInSample => "sample-built-in",
                };
                let name = format!("{kind_name}-{label}-b{batch}");
                all.push(Self { name, kind, preset: preset.clone(), batch, numbers: Numbers::F32 });
            }
        };
        let (small, p_64, p_128, p_256) = (Preset::small(), Preset::of_64(), Preset::of_128(), Preset::of_256());
        add(Kind::Unet, ("small", &small), &[1, 32]);
        add(Kind::Unet, ("64", &p_64), &[1, 2, 4, 8, 16]);
        add(Kind::Unet, ("128", &p_128), &[1]);
        add(Kind::Unet, ("256", &p_256), &[1]);
        add(Kind::Encoder, ("64", &p_64), &[1, 4]);
        add(Kind::Encoder, ("128", &p_128), &[1]);
        add(Kind::Train, ("small", &small), &[32]);
        add(Kind::Train, ("64", &p_64), &[4]);
        add(Kind::Chain, ("small", &small), &[1]);
        add(Kind::Sample, ("small", &small), &[1]);
        add(Kind::Chain, ("64", &p_64), &[1]);
        add(Kind::Sample, ("64", &p_64), &[1]);
        add(Kind::Reconstruct, ("64", &p_64), &[1]);
        add(Kind::BuiltInReconstruct, ("64", &small), &[1]);
        add(Kind::BuiltInSample, ("64", &small), &[16]);
        for (label, preset) in [("128", &p_128), ("256", &p_256)] {
            add(Kind::Encoder, (label, preset), if label == "256" { &[1] } else { &[] });
            add(Kind::Train, (label, preset), &[1]);
            add(Kind::Chain, (label, preset), &[1]);
            add(Kind::Sample, (label, preset), &[1]);
        }
        all
    }

    /// Returns the work that is measured on a GPU.
    pub(crate) fn on_gpu(numbers: Numbers) -> Vec<Self> {
        let (p_64, p_128) = (Preset::of_64(), Preset::of_128());
        let of = |name: &str, kind: Kind, preset: &Preset, batch: usize| Self {
            name: format!("{name}, batch {batch}"),
            kind,
            preset: preset.clone(),
            batch,
            numbers,
        };
        let mut all = vec![
            of("UNet of 64 pixels", Kind::Unet, &p_64, 1),
            of("UNet of 64 pixels", Kind::Unet, &p_64, 16),
            of("UNet of 64 pixels", Kind::Unet, &p_64, 64),
            of("training step of 64 pixels", Kind::Train, &p_64, 64),
            of("UNet of 128 pixels", Kind::Unet, &p_128, 16),
        ];
        match numbers {
            Numbers::F32 | Numbers::Tf32 => all.push(Self {
                name: "clipping, Adam and average of the parameters of 64 pixels".to_owned(),
                ..of("", Kind::Update, &p_64, 1)
            }),
            Numbers::Bf16 => all.push(of("training step of 128 pixels", Kind::Train, &p_128, 32)),
        }
        all
    }

    /// Returns work of the same kinds that a CPU does in a second.
    pub(crate) fn on_small_gpu(numbers: Numbers) -> Vec<Self> {
        let (preset, batch) = (Preset::small(), 2);
        let of = |kind: Kind| {
            let (name, preset) = (format!("{kind:?} of 32 pixels"), preset.clone());
            Self { name, kind, preset, batch, numbers }
        };
        vec![of(Kind::Unet), of(Kind::Train), of(Kind::Update)]
    }

    /// Returns whether `--quick` leaves this work out.
    pub(crate) fn is_long(&self) -> bool {
        let is_many_calls = matches!(self.kind, Kind::Train | Kind::Chain | Kind::Sample);
        // What another row says nearly as well.
        let is_repeated =
            self.preset.image_size == 64 && (matches!(self.kind, Kind::Sample | Kind::Chain) || self.batch == 2);
        self.preset.image_size > 128
            || is_repeated
            || (is_many_calls && self.preset.image_size > 64)
            || (self.kind == Kind::Unet && self.batch > 4 && self.preset.image_size > 32)
    }

    pub(crate) fn is_training(&self) -> bool {
        self.kind == Kind::Train
    }
}

impl Preset {
    /// Sizes that a CPU trains in an hour.
    pub(crate) fn small() -> Self {
        Self {
            image_size: 32,
            model_channels: 32,
            channel_mult: vec![1, 2, 2, 4],
            encoder_channel_mult: vec![1, 2, 2, 4],
            num_res_blocks: 1,
            embed_channels: 128,
            latent_hidden_channels: 512,
            latent_num_layers: 6,
        }
    }

    /// Sizes of ffhq64 and celeba64.
    pub(crate) fn of_64() -> Self {
        Self {
            image_size: 64,
            model_channels: 64,
            channel_mult: vec![1, 2, 4, 8],
            encoder_channel_mult: vec![1, 2, 4, 8, 8],
            num_res_blocks: 2,
            embed_channels: 512,
            latent_hidden_channels: 2048,
            latent_num_layers: 10,
        }
    }

    /// Sizes of ffhq128, horse128 and bedroom128.
    pub(crate) fn of_128() -> Self {
        Self {
            image_size: 128,
            model_channels: 128,
            channel_mult: vec![1, 1, 2, 3, 4],
            encoder_channel_mult: vec![1, 1, 2, 3, 4, 4],
            ..Self::of_64()
        }
    }

    /// Sizes of ffhq256.
    fn of_256() -> Self {
        Self {
            image_size: 256,
            model_channels: 128,
            channel_mult: vec![1, 1, 2, 2, 4, 4],
            encoder_channel_mult: vec![1, 1, 2, 2, 4, 4, 4],
            ..Self::of_64()
        }
    }

    /// Returns the config of a model of these networks, with the schedule and the target of the released ones.
    pub(crate) fn model_config(&self, latent: Option<LatentConfig>) -> Result<ModelConfig> {
        let (diffusion, z_sem) = (diffusion(BetaSchedule::Linear), ZSemConfig { latent, ..ZSemConfig::default() });
        let chains = ChainsConfig::default();
        Ok(ModelConfig::new(RawModelConfig::Autoencoder {
            networks: self.config()?,
            diffusion,
            chains,
            endpoint: None,
            z_sem,
            window: None,
        })?)
    }

    /// Returns the config of a latent diffusion with the schedule of the released ones.
    pub(crate) fn latent_model_config(&self) -> Result<LatentConfig> {
        let diffusion = diffusion(BetaSchedule::Constant { value: 0.008 });
        Ok(LatentConfig { net: self.latent_config()?, diffusion })
    }

    /// Returns the config of the latent net.
    pub(crate) fn latent_config(&self) -> Result<LatentNetConfig> {
        Ok(LatentNetConfig::new(RawLatentNetConfig {
            z_channels: self.embed_channels,
            hidden_channels: self.latent_hidden_channels,
            num_layers: self.latent_num_layers,
            skip_layers: (1..self.latent_num_layers).collect(),
            time_embed_channels: 64,
        })?)
    }

    /// Returns the config of the networks.
    pub(crate) fn config(&self) -> Result<AutoencoderConfig> {
        let unet = UnetConfig::new(RawUnetConfig {
            image_size: self.image_size.into(),
            in_channels: 3,
            out_channels: 3,
            model_channels: self.model_channels,
            channel_mult: self.channel_mult.clone(),
            num_res_blocks: self.num_res_blocks,
            num_input_res_blocks: None,
            embed_channels: self.embed_channels,
            attention_resolutions: vec![16],
            num_heads: 1,
            dropout: 0.,
            conditioning: Conditioning::TimeAndZSem,
            z_levels: ZLevels::NONE,
        })?;
        let encoder = EncoderConfig::new(RawEncoderConfig {
            image_size: self.image_size.into(),
            in_channels: 3,
            out_channels: self.embed_channels,
            model_channels: self.model_channels,
            channel_mult: self.encoder_channel_mult.clone(),
            num_res_blocks: self.num_res_blocks,
            attention_resolutions: vec![16],
            num_heads: 1,
            z_levels: ZLevels::NONE,
        })?;
        Ok(AutoencoderConfig::new(encoder, unet)?)
    }
}

fn diffusion(beta_schedule: BetaSchedule) -> DiffusionConfig {
    DiffusionConfig { num_train_timesteps: 1000, beta_schedule, prediction: PredictionTarget::Eps }
}
