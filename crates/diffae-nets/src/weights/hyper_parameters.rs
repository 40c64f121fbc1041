//! Hyper-parameters of checkpoints.

use serde_json::Value;

use crate::config::{
    AutoencoderConfig, Conditioning, EncoderConfig, LatentNetConfig, RawEncoderConfig, RawLatentNetConfig,
    RawUnetConfig, UnetConfig,
};
use crate::error::{Error, Result};
use crate::weights::architecture::{Architecture, ArchitectureHints, LatentArchitecture, Parts};
use crate::z_levels::ZLevels;

/// Sizes that a `UNet` needs besides those of the hints, by their keys in `model_conf` and as `net_*`.
const UNET_SIZES: [(&str, &str); 5] = [
    ("channel_mult", "net_ch_mult"),
    ("attention_resolutions", "net_attn"),
    ("model_channels", "net_ch"),
    ("num_res_blocks", "net_num_res_blocks"),
    ("embed_channels", "net_beatgans_embed_channels"),
];

/// A fact that both hyper-parameters and an option of the program may state.
struct Fact {
    name: &'static str,
    option: &'static str,
    conf_key: &'static str,
    net_key: &'static str,
}

const IMAGE_SIZE: Fact =
    Fact { name: "the image size", option: "--image-size", conf_key: "image_size", net_key: "img_size" };
const NUM_HEADS: Fact = Fact {
    name: "the number of attention heads",
    option: "--num-heads",
    conf_key: "num_heads",
    net_key: "net_beatgans_attn_head",
};
const ENCODER_RES_BLOCKS: Fact = Fact {
    name: "the number of residual blocks a level of the encoder",
    option: "--encoder-res-blocks",
    conf_key: "enc_num_res_block",
    net_key: "net_enc_num_res_blocks",
};
const TRAIN_TIMESTEPS: Fact =
    Fact { name: "the length of the noise schedule", option: "--train-timesteps", conf_key: "T", net_key: "T" };
const BETA_SCHEDULE: Fact = Fact {
    name: "the noise schedule",
    option: "--beta-schedule",
    conf_key: "beta_scheduler",
    net_key: "beta_scheduler",
};
const LATENT_BETA_SCHEDULE: Fact = Fact {
    name: "the noise schedule of the latent diffusion",
    option: "--latent-beta-schedule",
    conf_key: "latent_beta_scheduler",
    net_key: "latent_beta_scheduler",
};

impl Fact {
    /// Joins the value of the option and that of the hyper-parameter, which must agree.
    fn joined<T: PartialEq + std::fmt::Display>(&self, given: Option<T>, told: Option<T>) -> Result<Option<T>> {
        match (given, told) {
            (Some(given), Some(told)) if given != told => Err(Error::Contradiction {
                first: format!("{} is {given} by {}", self.name, self.option),
                second: format!("{told} by the hyper-parameter {} of the checkpoint", self.conf_key),
                remedy: "leave the option out",
            }),
            (given, told) => Ok(told.or(given)),
        }
    }
}

/// Hyper-parameters of a checkpoint: `model_conf`, or the `net_*` fields from which it is derived.
pub(super) struct HyperParameters<'a>(&'a Value);

impl<'a> HyperParameters<'a> {
    pub(super) fn new(hyper_parameters: &'a Value) -> Self {
        Self(hyper_parameters)
    }

    /// Adds the facts of the hyper-parameters to the hints, which fill in the others.
    /// # Errors
    /// [`Error::Contradiction`] if the two differ on one fact.
    pub(super) fn join(&self, hints: &ArchitectureHints, parts: Parts) -> Result<ArchitectureHints> {
        let count = |fact: Fact, given: Option<usize>| -> Result<Option<usize>> {
            let told = self.optional_count(fact.conf_key, fact.net_key)?;
            fact.joined(given, told)
        };
        let text = |fact: Fact, given: &Option<String>| -> Result<Option<String>> {
            fact.joined(given.clone(), self.text(fact.conf_key).map(str::to_owned))
        };
        let encoder_res_blocks =
            if parts.encoder { count(ENCODER_RES_BLOCKS, hints.encoder_res_blocks)? } else { hints.encoder_res_blocks };
        let latent_beta_schedule = if parts.latent_net {
            text(LATENT_BETA_SCHEDULE, &hints.latent_beta_schedule)?
        } else {
            hints.latent_beta_schedule.clone()
        };
        Ok(ArchitectureHints {
            parameters: hints.parameters,
            image_size: count(IMAGE_SIZE, hints.image_size)?,
            num_heads: count(NUM_HEADS, hints.num_heads)?,
            encoder_res_blocks,
            num_train_timesteps: count(TRAIN_TIMESTEPS, hints.num_train_timesteps)?,
            beta_schedule: text(BETA_SCHEDULE, &hints.beta_schedule)?,
            latent_beta_schedule,
        })
    }

    /// Returns whether the hyper-parameters have all sizes of the networks, so that no shapes are needed.
    pub(super) fn describes_networks(&self, parts: Parts, hints: &ArchitectureHints) -> bool {
        let has = |conf_key: &str, net_key: &str| self.get(conf_key, net_key).is_some();
        let unet = UNET_SIZES.iter().all(|(conf_key, net_key)| has(conf_key, net_key));
        let encoder = has("enc_out_channels", "style_ch") && hints.encoder_res_blocks.is_some();
        let latent_keys = ["net_latent_num_hid_channels", "net_latent_layers", "net_latent_skip_layers"];
        let latent = self.latent_conf().is_some() || latent_keys.iter().all(|key| has(key, key));
        unet && (encoder || !parts.encoder) && (latent || !parts.latent_net)
    }

    /// Checks the sizes of the `UNet` in the hyper-parameters against those inferred from shapes.
    /// # Errors
    /// [`Error::Contradiction`] for the first one that differs.
    pub(super) fn check_against(&self, architecture: &Architecture) -> Result<()> {
        let unet = &architecture.unet;
        let found: [(&str, &str, Value); 4] = [
            ("channel_mult", "net_ch_mult", unet.channel_mult.clone().into()),
            ("model_channels", "net_ch", unet.model_channels.into()),
            ("num_res_blocks", "net_num_res_blocks", unet.num_res_blocks.into()),
            ("embed_channels", "net_beatgans_embed_channels", unet.embed_channels.into()),
        ];
        for (conf_key, net_key, found) in found {
            if let Some(told) = self.get(conf_key, net_key).filter(|told| **told != found) {
                return Err(Error::Contradiction {
                    first: format!("the hyper-parameter {conf_key} is {told}"),
                    second: format!("{found} by the shapes of the tensors"),
                    remedy: "correct the hyper-parameters",
                });
            }
        }
        Ok(())
    }

    /// Returns the architecture by the sizes in the hyper-parameters; the hints are those of [`HyperParameters::join`].
    /// # Errors
    /// [`Error::BadHyperParameter`] if a size is missing; others if this is no Diffusion Autoencoder.
    pub(super) fn architecture(&self, parts: Parts, hints: &ArchitectureHints) -> Result<Architecture> {
        let encoder = parts.encoder.then(|| self.encoder(hints)).transpose()?;
        let conditioning = if parts.encoder { Conditioning::TimeAndZSem } else { Conditioning::Time };
        let unet = self.unet(conditioning, hints)?;
        if let Some(encoder) = &encoder {
            AutoencoderConfig::new(encoder.clone(), unet.clone())?;
        }
        let net = parts.latent_net.then(|| self.latent_net()).transpose()?;
        Ok(Architecture {
            unet,
            encoder,
            diffusion: hints.diffusion(),
            latent: net.map(|net| LatentArchitecture { net, diffusion: hints.latent_diffusion() }),
        })
    }

    /// Looks up `model_conf[conf_key]`, or else the top-level `net_key`, or else the top-level `conf_key`.
    fn get(&self, conf_key: &str, net_key: &str) -> Option<&'a Value> {
        let present = |value: &&Value| !value.is_null();
        let conf = self.0.get("model_conf").and_then(|conf| conf.get(conf_key)).filter(present);
        let top = |key: &str| self.0.get(key).filter(present);
        conf.or_else(|| top(net_key)).or_else(|| top(conf_key))
    }

    /// Returns the sizes of the latent net in `model_conf`.
    fn latent_conf(&self) -> Option<&'a Value> {
        let nested = self.0.get("model_conf").and_then(|conf| conf.get("latent_net_conf"));
        nested.filter(|conf| conf.is_object())
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.0.get(key).and_then(Value::as_str)
    }

    fn count(&self, conf_key: &str, net_key: &str) -> Result<usize> {
        self.optional_count(conf_key, net_key)?.ok_or_else(|| bad(conf_key, "missing", "a positive whole number"))
    }

    fn optional_count(&self, conf_key: &str, net_key: &str) -> Result<Option<usize>> {
        self.get(conf_key, net_key).map(|value| count_of(conf_key, value)).transpose()
    }

    fn optional_counts(&self, conf_key: &str, net_key: &str) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.get(conf_key, net_key) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| bad(conf_key, &value.to_string(), "a list of whole numbers"))?;
        list.iter().map(|item| count_of(conf_key, item)).collect::<Result<_>>().map(Some)
    }

    fn counts(&self, conf_key: &str, net_key: &str) -> Result<Vec<usize>> {
        self.optional_counts(conf_key, net_key)?.ok_or_else(|| bad(conf_key, "missing", "a list of whole numbers"))
    }

    fn unet(&self, conditioning: Conditioning, hints: &ArchitectureHints) -> Result<UnetConfig> {
        let image_size = hints.known_image_size()?;
        let channel_mult = self.counts("channel_mult", "net_ch_mult")?;
        let attention = self.counts("attention_resolutions", "net_attn")?;
        UnetConfig::new(RawUnetConfig {
            attention_resolutions: occurring(attention, image_size, channel_mult.len(), "unet"),
            image_size: image_size.into(),
            in_channels: self.optional_count("in_channels", "in_channels")?.unwrap_or(3),
            out_channels: self.optional_count("out_channels", "out_channels")?.unwrap_or(3),
            model_channels: self.count("model_channels", "net_ch")?,
            channel_mult,
            num_res_blocks: self.count("num_res_blocks", "net_num_res_blocks")?,
            num_input_res_blocks: self.optional_count("num_input_res_blocks", "net_num_input_res_blocks")?,
            embed_channels: self.count("embed_channels", "net_beatgans_embed_channels")?,
            num_heads: hints.num_heads.unwrap_or(1),
            dropout: self.get("dropout", "dropout").and_then(Value::as_f64).unwrap_or(0.),
            conditioning,
            z_levels: ZLevels::NONE,
        })
    }

    fn encoder(&self, hints: &ArchitectureHints) -> Result<EncoderConfig> {
        let image_size = hints.known_image_size()?;
        let channel_mult = match self.optional_counts("enc_channel_mult", "net_enc_channel_mult")? {
            Some(own) => own,
            None => self.counts("channel_mult", "net_ch_mult")?,
        };
        let attention = match self.optional_counts("enc_attn_resolutions", "net_enc_attn")? {
            Some(own) => own,
            None => self.counts("attention_resolutions", "net_attn")?,
        };
        EncoderConfig::new(RawEncoderConfig {
            attention_resolutions: occurring(attention, image_size, channel_mult.len(), "encoder"),
            image_size: image_size.into(),
            in_channels: self.optional_count("in_channels", "in_channels")?.unwrap_or(3),
            out_channels: self.count("enc_out_channels", "style_ch")?,
            model_channels: self.count("model_channels", "net_ch")?,
            channel_mult,
            num_res_blocks: match hints.encoder_res_blocks {
                Some(given) => given,
                None => self.count("enc_num_res_block", "net_enc_num_res_blocks")?,
            },
            num_heads: hints.num_heads.unwrap_or(1),
            z_levels: ZLevels::NONE,
        })
    }

    fn latent_net(&self) -> Result<LatentNetConfig> {
        let conf = HyperParameters(self.latent_conf().unwrap_or(self.0));
        LatentNetConfig::new(RawLatentNetConfig {
            z_channels: conf
                .count("num_channels", "num_channels")
                .or_else(|_| self.count("enc_out_channels", "style_ch"))?,
            hidden_channels: conf
                .count("num_hid_channels", "num_hid_channels")
                .or_else(|_| self.count("net_latent_num_hid_channels", "net_latent_num_hid_channels"))?,
            num_layers: conf
                .count("num_layers", "num_layers")
                .or_else(|_| self.count("net_latent_layers", "net_latent_layers"))?,
            skip_layers: conf
                .counts("skip_layers", "skip_layers")
                .or_else(|_| self.counts("net_latent_skip_layers", "net_latent_skip_layers"))?,
            time_embed_channels: conf
                .optional_count("num_time_emb_channels", "num_time_emb_channels")?
                .or(self.optional_count("net_latent_time_emb_channels", "net_latent_time_emb_channels")?)
                .unwrap_or(64),
        })
    }

    /// Rejects choices that the reference implementation offers but no released model makes.
    /// # Errors
    /// [`Error::UnsupportedHyperParameter`] for the first one.
    pub(super) fn reject_unsupported(&self, parts: Parts) -> Result<()> {
        let mut expected = vec![
            ("use_new_attention_order", "use_new_attention_order", vec![Value::Bool(false)]),
            ("resblock_updown", "net_resblock_updown", vec![Value::Bool(true)]),
            ("num_head_channels", "num_head_channels", vec![(-1).into()]),
            ("num_classes", "num_classes", vec![]),
            ("dims", "dims", vec![2.into()]),
            ("resnet_cond_channels", "net_beatgans_resnet_cond_channels", vec![]),
            ("beatgans_rescale_timesteps", "beatgans_rescale_timesteps", vec![Value::Bool(false)]),
        ];
        if parts.encoder {
            expected.push(("enc_pool", "net_enc_pool", vec!["adaptivenonzero".into()]));
            expected.push(("resnet_two_cond", "net_beatgans_resnet_two_cond", vec![Value::Bool(true)]));
            expected.push(("net_enc_use_time", "net_enc_use_time", vec![Value::Bool(false)]));
            expected.push(("autoenc_mid_attn", "autoenc_mid_attn", vec![Value::Bool(true)]));
        }
        if parts.latent_net {
            expected.push(("net_latent_condition_bias", "net_latent_condition_bias", vec![1.into(), 1.0.into()]));
            expected.push(("net_latent_use_norm", "net_latent_use_norm", vec![Value::Bool(true)]));
            expected.push(("net_latent_time_last_act", "net_latent_time_last_act", vec![Value::Bool(false)]));
            expected.push(("net_latent_num_time_layers", "net_latent_num_time_layers", vec![2.into()]));
            expected.push(("latent_znormalize", "latent_znormalize", vec![Value::Bool(true)]));
            expected.push(("latent_clip_sample", "latent_clip_sample", vec![Value::Bool(false)]));
            expected.push(("latent_rescale_timesteps", "latent_rescale_timesteps", vec![Value::Bool(false)]));
        }
        for (conf_key, net_key, supported) in expected {
            self.expect_value(conf_key, net_key, &supported)?;
        }
        for (key, same_as, net_key) in [
            ("time_embed_channels", "model_channels", "net_ch"),
            ("num_heads_upsample", "num_heads", "net_beatgans_attn_head"),
        ] {
            let allowed: Vec<Value> = self.get(same_as, net_key).cloned().into_iter().chain([(-1).into()]).collect();
            self.expect_value(key, key, &allowed)?;
        }
        let mult: Vec<Value> = self.get("channel_mult", "net_ch_mult").cloned().into_iter().collect();
        self.expect_value("input_channel_mult", "input_channel_mult", &mult)
    }

    fn expect_value(&self, conf_key: &str, net_key: &str, supported: &[Value]) -> Result<()> {
        match self.get(conf_key, net_key) {
            Some(got) if !supported.contains(got) => Err(Error::UnsupportedHyperParameter {
                key: conf_key.to_owned(),
                got: got.to_string(),
                supported: supported.first().map_or_else(|| "no value".to_owned(), Value::to_string),
            }),
            _ => Ok(()),
        }
    }
}

/// Filters the attention resolutions that the levels reach. The reference implementation passes over the others, so a
/// checkpoint may name some; a config may not.
fn occurring(attention: Vec<usize>, image_size: usize, num_levels: usize, network: &str) -> Vec<usize> {
    let (kept, dropped): (Vec<_>, Vec<_>) =
        attention.into_iter().partition(|r| (0..num_levels.min(64)).any(|level| image_size >> level == *r));
    if !dropped.is_empty() {
        tracing::warn!(
            "{network}: attention resolutions {dropped:?} never occur in this checkpoint and have no effect"
        );
    }
    kept
}

fn count_of(key: &str, value: &Value) -> Result<usize> {
    let whole = value.as_u64().and_then(|count| usize::try_from(count).ok());
    whole.ok_or_else(|| bad(key, &value.to_string(), "a positive whole number"))
}

fn bad(key: &str, got: &str, expected: &'static str) -> Error {
    Error::BadHyperParameter { key: key.to_owned(), got: got.to_owned(), expected }
}
