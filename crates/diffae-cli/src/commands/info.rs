//! `diffae info MODEL`

use anyhow::Result;
use diffae_data::Window;
use diffae_infer::{ChainsConfig, DistilledChain, LoadOptions, ModelKind, ModelSource};
use diffae_nets::{ImageShape, ImageSize, SemanticConfig, ZLevels};
use serde::Serialize;

use crate::args::{GlobalArgs, InfoArgs};
use crate::output::{say, say_json};
use crate::session::architecture_hints;

/// Description of a model, as printed.
#[derive(Debug, Serialize)]
struct Info {
    kind: ModelKind,
    image_size: ImageSize,
    channels: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<Window>,
    /// `[c, h, w]` of a model on latents.
    latent_shape: Option<[usize; 3]>,
    z_sem_width: Option<usize>,
    /// Widths of the parts of a hierarchical `z_sem`, and the widths of the maps that each conditions.
    #[serde(skip_serializing_if = "ZLevels::is_empty")]
    z_levels: ZLevels,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    z_resolutions: Vec<usize>,
    /// Pretrained network that is the encoder.
    encoder: Option<&'static str>,
    parameters: Parameters,
    num_train_timesteps: Option<usize>,
    beta_schedule: Option<String>,
    prediction: Option<String>,
    latent_beta_schedule: Option<String>,
    chains: Option<ChainsConfig>,
    /// Reason why the model cannot edit, and why it cannot sample.
    #[serde(skip)]
    hints: [&'static str; 2],
    attributes: Vec<String>,
    can_encode: bool,
    can_edit: bool,
    can_sample: bool,
    fingerprint: String,
}

#[derive(Debug, Serialize)]
struct Parameters {
    total: usize,
    unet: usize,
    decoder: usize,
    encoder: usize,
    spatial: usize,
    endpoint: usize,
    latent_net: usize,
}

/// Opens the model, checks that its tensors fit, and prints its description.
pub(crate) fn run(_: &GlobalArgs, args: &InfoArgs) -> Result<()> {
    let source = ModelSource::open(&args.model, &architecture_hints(&args.hints))?;
    source.build(&LoadOptions::cpu())?;
    let info = Info::new(&source)?;
    if args.json { say_json(&info) } else { info.say() }
}

impl Info {
    fn new(source: &ModelSource) -> Result<Self> {
        let config = source.config();
        let [unet, decoder, encoder, spatial, endpoint, latent_net] =
            ["unet.", "decoder.", "encoder.", "spatial.", "endpoint.", "latent_net."]
                .map(|prefix| source.num_parameters(prefix));
        let total = unet + decoder + encoder + spatial + endpoint + latent_net;
        let classifier = config.classifier();
        let ImageShape { channels, size: image_size } = config.image_shape();
        let has_moments = source.latent_moments().is_some();
        Ok(Self {
            kind: config.kind(),
            image_size,
            channels,
            window: config.picture_format().window,
            latent_shape: config.spatial().map(|spatial| spatial.latent_shape()),
            z_sem_width: config.z_channels(),
            z_levels: config.z_levels().clone(),
            z_resolutions: config.z_resolutions(),
            encoder: config.encoder().and_then(SemanticConfig::frozen).map(|frozen| frozen.network.name()),
            parameters: Parameters { total, unet, decoder, encoder, spatial, endpoint, latent_net },
            num_train_timesteps: config.diffusion().map(|diffusion| diffusion.num_train_timesteps),
            beta_schedule: config.diffusion().map(|diffusion| diffusion.beta_schedule.to_string()),
            prediction: config.diffusion().map(|diffusion| diffusion.prediction.to_string()),
            latent_beta_schedule: config.latent().map(|latent| latent.diffusion.beta_schedule.to_string()),
            chains: config.chains().cloned(),
            hints: [missing_of_edits(source), missing_of_samples(source)],
            attributes: classifier.map(|classifier| classifier.attributes.clone()).unwrap_or_default(),
            can_encode: config.z_channels().is_some(),
            can_edit: classifier.is_some() && has_moments,
            can_sample: config.z_channels().is_none() || (config.latent().is_some() && has_moments),
            fingerprint: source.fingerprint()?,
        })
    }

    fn say(&self) -> Result<()> {
        let kind = match self.kind {
            ModelKind::Autoencoder => "diffusion autoencoder",
            ModelKind::AutoencoderWithLatentNet => "diffusion autoencoder with latent net",
            ModelKind::Ddpm => "plain DDPM (no semantic code)",
            ModelKind::OneShot => "compact autoencoder (one shot, no noise map)",
        };
        let Self { image_size, channels, parameters, .. } = self;
        let can = |able: bool, otherwise: &'static str| if able { "yes" } else { otherwise };
        say(&format!("kind         {kind}"))?;
        let kind_of_data = if image_size.is_volume() { "volumes " } else { "pictures" };
        let sides: Vec<String> = image_size.sides().iter().map(usize::to_string).collect();
        let window = self.window.map(|window| format!(", values from {window}")).unwrap_or_default();
        say(&format!("{kind_of_data}     {}, {}{window}", sides.join("x"), counted(*channels, "channel")))?;
        if let Some([channels, height, width]) = self.latent_shape {
            say(&format!("latents      {height}x{width}, {}, of a spatial autoencoder", counted(channels, "channel")))?;
        }
        if let Some(width) = self.z_sem_width {
            let of_network = self.encoder.map(|name| format!(", the features of {name}"));
            let has_levels = !self.z_levels.is_empty();
            let sides = || self.z_resolutions.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            let of_levels = has_levels.then(|| format!(": {} for maps of {} pixels", self.z_levels, sides()));
            say(&format!("z_sem        {width} numbers{}", of_network.or(of_levels).unwrap_or_default()))?;
        }
        say(&format!("parameters   {} ({})", grouped(parameters.total), parts(parameters)))?;
        if let (Some(schedule), Some(timesteps)) = (&self.beta_schedule, self.num_train_timesteps) {
            let prediction = self.prediction.as_deref().unwrap_or_default();
            say(&format!("schedule     {schedule}, {timesteps} timesteps, predicts {prediction}"))?;
        }
        if let Some(schedule) = &self.latent_beta_schedule {
            say(&format!("latent       {schedule}"))?;
        }
        if let Some(ChainsConfig { distilled, tuned }) = &self.chains {
            if let Some(DistilledChain { steps, spacing }) = distilled {
                let how = if self.parameters.endpoint > 0 { "polished along" } else { "distilled to" };
                say(&format!("decoder      {how} {}, {spacing}", counted(*steps, "step")))?;
            }
            if !tuned.is_empty() {
                let numbers: Vec<String> = tuned.iter().map(|chain| chain.timesteps.len().to_string()).collect();
                say(&format!("tuned        --spacing tuned --steps {}", numbers.join(", ")))?;
            }
        }
        say(&format!("can encode   {}", can(self.can_encode, "x_T only: no semantic code")))?;
        say(&format!("can edit     {}", can(self.can_edit, self.hints[0])))?;
        say(&format!("can sample   {}", can(self.can_sample, self.hints[1])))?;
        if !self.attributes.is_empty() {
            say(&format!("attributes   {}", self.attributes.join(", ")))?;
        }
        say(&format!("fingerprint  {}", self.fingerprint))
    }
}

fn missing_of_edits(source: &ModelSource) -> &'static str {
    let config = source.config();
    match (config.z_channels(), config.classifier()) {
        (None, _) => "no: a plain DDPM has no semantic code",
        (_, None) => "no: it has no attributes; `diffae fit-attributes` adds them from labeled images",
        _ => "no: it has no latent statistics",
    }
}

fn missing_of_samples(source: &ModelSource) -> &'static str {
    match (source.config().latent(), source.latent_moments()) {
        (None, Some(_)) => "no: it has no latent net (`diffae train --stage latent`, or `diffae import --latent`)",
        (None, None) => {
            "no: it has neither latent net nor latent statistics (`diffae train --stage latent`, or `diffae import --latent`)"
        }
        _ => "no: it has no latent statistics",
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn parts(parameters: &Parameters) -> String {
    let parts = [
        ("unet", parameters.unet),
        ("decoder", parameters.decoder),
        ("encoder", parameters.encoder),
        ("spatial autoencoder", parameters.spatial),
        ("endpoint network", parameters.endpoint),
        ("latent net", parameters.latent_net),
    ];
    let present = parts.iter().filter(|(_, count)| *count > 0);
    present.map(|(name, count)| format!("{name} {}", grouped(*count))).collect::<Vec<_>>().join(", ")
}

/// Formats `1234567` as `1,234,567`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([7, 1234, 123_456, 1_234_567].map(grouped), ["7", "1,234", "123,456", "1,234,567"]);
    }
}
