//! The architecture of a released checkpoint: from its hyper-parameters, or from the shapes of its tensors.

use serde_json::Value;

use crate::config::{
    AutoencoderConfig, Conditioning, EncoderConfig, LatentNetConfig, RawEncoderConfig, RawLatentNetConfig,
    RawUnetConfig, UnetConfig,
};
use crate::error::{Error, Result};
use crate::weights::source::TensorSource;

/// What a checkpoint is.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// The noise predictor.
    pub unet: UnetConfig,
    /// The semantic encoder; absent in a plain DDPM.
    pub encoder: Option<EncoderConfig>,
    /// The diffusion over pictures.
    pub diffusion: DiffusionFacts,
    /// The diffusion over `z_sem`, where there is one.
    pub latent: Option<LatentArchitecture>,
}

/// The diffusion over `z_sem` of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatentArchitecture {
    /// Its network.
    pub net: LatentNetConfig,
    /// Its noise schedule.
    pub diffusion: DiffusionFacts,
}

/// A noise schedule by name; this crate does not interpret it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiffusionFacts {
    /// T
    pub num_train_timesteps: usize,
    /// `"linear"`, `"const0.008"`, ..
    pub beta_schedule: String,
}

/// What shapes alone cannot tell; used only where a checkpoint has no hyper-parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchitectureHints {
    /// Height and width of pictures; not needed if the checkpoint holds an `x_T`.
    pub image_size: Option<usize>,
    /// Heads of attention blocks; 1 if not given.
    pub num_heads: Option<usize>,
    /// Blocks a level of the encoder; needed only if several numbers fit.
    pub encoder_res_blocks: Option<usize>,
    /// T; 1000 if not given.
    pub num_train_timesteps: Option<usize>,
    /// Noise schedule of pictures; `linear` if not given.
    pub beta_schedule: Option<String>,
    /// Noise schedule of `z_sem`; `const0.008` if not given.
    pub latent_beta_schedule: Option<String>,
}

/// Which parts a set of parameters has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) encoder: bool,
    pub(crate) latent_net: bool,
}

impl Parts {
    pub(crate) fn of(source: &dyn TensorSource) -> Self {
        let names = source.names();
        let any = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
        Self { encoder: any("encoder."), latent_net: any("latent_net.") }
    }
}

impl Architecture {
    /// Reads hyper-parameters as the released checkpoints store them: `model_conf`, or the `net_*` fields that it was
    /// made from. Which parts there are is told by the parameters.
    pub(crate) fn from_hyper_parameters(hyper_parameters: &Value, parts: Parts) -> Result<Self> {
        let hp = HyperParameters(hyper_parameters);
        hp.reject_unsupported(parts)?;
        let encoder = parts.encoder.then(|| hp.encoder()).transpose()?;
        let conditioning = if parts.encoder { Conditioning::TimeAndZSem } else { Conditioning::Time };
        let unet = hp.unet(conditioning)?;
        if let Some(encoder) = &encoder {
            AutoencoderConfig::new(encoder.clone(), unet.clone())?;
        }
        let num_train_timesteps = hp.count("T", "T")?;
        let schedule = |key: &str, default: &str| hp.text(key).unwrap_or(default).to_owned();
        let net = parts.latent_net.then(|| hp.latent_net()).transpose()?;
        let facts = |beta_schedule| DiffusionFacts { num_train_timesteps, beta_schedule };
        Ok(Self {
            unet,
            encoder,
            diffusion: facts(schedule("beta_scheduler", "linear")),
            latent: net.map(|net| LatentArchitecture {
                net,
                diffusion: facts(schedule("latent_beta_scheduler", "const0.008")),
            }),
        })
    }
}

/// The hyper-parameters of a checkpoint.
struct HyperParameters<'a>(&'a Value);

impl<'a> HyperParameters<'a> {
    /// `model_conf[conf_key]`, or else the top-level `net_key`.
    fn get(&self, conf_key: &str, net_key: &str) -> Option<&'a Value> {
        let present = |value: &&Value| !value.is_null();
        let conf = self.0.get("model_conf").and_then(|conf| conf.get(conf_key)).filter(present);
        conf.or_else(|| self.0.get(net_key).filter(present))
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

    fn unet(&self, conditioning: Conditioning) -> Result<UnetConfig> {
        let image_size = self.count("image_size", "img_size")?;
        let channel_mult = self.counts("channel_mult", "net_ch_mult")?;
        let attention = self.counts("attention_resolutions", "net_attn")?;
        UnetConfig::new(RawUnetConfig {
            attention_resolutions: occurring(attention, image_size, channel_mult.len(), "unet"),
            image_size,
            in_channels: self.optional_count("in_channels", "in_channels")?.unwrap_or(3),
            out_channels: self.optional_count("out_channels", "out_channels")?.unwrap_or(3),
            model_channels: self.count("model_channels", "net_ch")?,
            channel_mult,
            num_res_blocks: self.count("num_res_blocks", "net_num_res_blocks")?,
            num_input_res_blocks: self.optional_count("num_input_res_blocks", "net_num_input_res_blocks")?,
            embed_channels: self.count("embed_channels", "net_beatgans_embed_channels")?,
            num_heads: self.optional_count("num_heads", "net_beatgans_attn_head")?.unwrap_or(1),
            dropout: self.get("dropout", "dropout").and_then(Value::as_f64).unwrap_or(0.),
            conditioning,
        })
    }

    fn encoder(&self) -> Result<EncoderConfig> {
        let image_size = self.count("image_size", "img_size")?;
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
            image_size,
            in_channels: self.optional_count("in_channels", "in_channels")?.unwrap_or(3),
            out_channels: self.count("enc_out_channels", "style_ch")?,
            model_channels: self.count("model_channels", "net_ch")?,
            channel_mult,
            num_res_blocks: self.count("enc_num_res_block", "net_enc_num_res_blocks")?,
            num_heads: self.optional_count("num_heads", "net_beatgans_attn_head")?.unwrap_or(1),
        })
    }

    fn latent_net(&self) -> Result<LatentNetConfig> {
        let nested = self.0.get("model_conf").and_then(|conf| conf.get("latent_net_conf"));
        let conf = HyperParameters(nested.filter(|conf| conf.is_object()).unwrap_or(self.0));
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
    fn reject_unsupported(&self, parts: Parts) -> Result<()> {
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

/// The attention resolutions that the levels reach. The reference implementation passes over the others, so a
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
