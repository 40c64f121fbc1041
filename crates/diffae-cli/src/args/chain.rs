//! Arguments of chains between noise and images.

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use diffae_infer::{
    ChainSettings, CodesNeed, Inversion, LatentMethod, ModelConfig, PipelineSettings, Settings, Subjects,
};
use diffae_schedule::{Sampler, Spacing};

use super::{BatchArgs, one_of, positive};

/// Options of decoding.
#[derive(Debug, Clone, Args)]
pub(crate) struct DecodingArgs {
    /// Decoding steps [default: 10, or what the model was distilled to; with --reference 20]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) steps: Option<usize>,
    /// Sampler [default: ddim, dpm++2m for --spacing tuned]; the ddpm samplers add noise at each step
    #[arg(
        long,
        value_name = "NAME",
        value_parser = one_of::<Sampler>(Sampler::names())
    )]
    pub(crate) sampler: Option<Sampler>,
    /// Noise that ddim adds at each step: from 0 for none to 1 for as much as ddpm-small [default: 0]
    #[arg(long, value_name = "ETA")]
    pub(crate) eta: Option<f64>,
    /// Spacing of the timesteps [default: log-snr, or that of the distillation; with --reference leading]
    #[arg(
        long,
        value_name = "NAME",
        value_parser = one_of::<Spacing>(Spacing::names())
    )]
    pub(crate) spacing: Option<Spacing>,
    /// Use the chain of the paper: ddim on evenly spaced timesteps
    #[arg(long)]
    pub(crate) reference: bool,
}

/// Options of the latent diffusion.
#[derive(Debug, Clone, Args)]
pub(crate) struct LatentArgs {
    /// Sampler of the latent diffusion [default: that of decoding; in `sample` without --reference dpm++2m]
    #[arg(
        long,
        value_name = "NAME",
        value_parser = one_of::<Sampler>(Sampler::names())
    )]
    latent_sampler: Option<Sampler>,
    /// Spacing of its timesteps [default: that of decoding; in `sample` without --reference log-snr]
    #[arg(
        long,
        value_name = "NAME",
        value_parser = one_of::<Spacing>(Spacing::names())
    )]
    latent_spacing: Option<Spacing>,
}

impl LatentArgs {
    /// Returns the method, of which what is not given is that of `usual`; `None` if nothing is given.
    pub(crate) fn method(&self, usual: LatentMethod) -> Result<Option<LatentMethod>> {
        if let Some(sampler) = self.latent_sampler.filter(|sampler| !sampler.is_deterministic()) {
            bail!("--latent-sampler is {sampler}, expected one that adds no noise")
        }
        if self.latent_spacing == Some(Spacing::Tuned) {
            bail!("--latent-spacing is tuned, but timesteps are tuned for decoding alone")
        }
        let is_given = self.latent_sampler.is_some() || self.latent_spacing.is_some();
        Ok(is_given.then(|| LatentMethod {
            sampler: self.latent_sampler.unwrap_or(usual.sampler),
            spacing: self.latent_spacing.unwrap_or(usual.spacing),
        }))
    }
}

/// Inversions on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InversionName {
    /// Exactly invertible chain with as many steps as decoding; codes hold a residual beside x_T
    Exact,
    /// DDIM, each step solved for the state that it starts from; codes are x_T alone, for any implementation of DDIM
    FixedPoint,
    /// DDIM in reverse, as in the paper
    Ddim,
}

impl InversionName {
    /// Returns the name of an inversion.
    pub(crate) fn of(inversion: Inversion) -> Self {
        match inversion {
            Inversion::FixedPoint => Self::FixedPoint,
            Inversion::Ddim => Self::Ddim,
            _ => Self::Exact,
        }
    }
}

impl std::fmt::Display for InversionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// Options of the inversion.
#[derive(Debug, Clone, Args)]
pub(crate) struct InversionArgs {
    /// Inversion of images to x_T [default: exact; ddim where --invert-steps, --sampler or --eta is given]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) inversion: Option<InversionName>,
    /// Steps of --inversion ddim [default: 250]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) invert_steps: Option<usize>,
}

impl DecodingArgs {
    /// Returns the settings of decoding random `x_T` with a model.
    pub(crate) fn settings(&self, batch: &BatchArgs, model: &ModelConfig) -> Result<PipelineSettings> {
        let mut base = if self.reference { PipelineSettings::REFERENCE } else { PipelineSettings::of_model(model) };
        if self.spacing == Some(Spacing::Tuned) {
            base.sampler = PipelineSettings::tuned_sampler(model);
        }
        self.with_base(base, batch)
    }

    /// Returns the settings of inverting images and decoding what becomes of their codes; `usual` are those of the model,
    /// `reference` those of the paper's chains. The chain of exact codes among the subjects is taken over, and then the options must not
    /// contradict it.
    pub(crate) fn with_inversion(
        &self,
        inversion: &InversionArgs,
        [usual, reference]: [PipelineSettings; 2],
        batch: &BatchArgs,
        subjects: Option<&Subjects>,
    ) -> Result<PipelineSettings> {
        let of_codes = subjects.map(Subjects::chain).transpose()?.flatten();
        let path = subjects.and_then(Subjects::codes_path);
        if let (Some(chain), Some(path)) = (of_codes, path) {
            self.check_agreement(chain, &path.display().to_string())?;
            let settings = PipelineSettings::DEFAULT.with_chain(chain);
            let asked = inversion.invert_steps.map(|_| InversionName::Ddim).or(inversion.inversion);
            if let Some(asked) = asked.filter(|&asked| asked != InversionName::of(settings.inversion)) {
                bail!("{} holds codes of {chain}, which --inversion {asked} does not go with", path.display())
            }
            return Ok(PipelineSettings { batch_size: batch.batch_size, ..settings });
        }
        let wants_ddim = self.reference
            || path.is_some()
            || inversion.invert_steps.is_some()
            || self.sampler.is_some()
            || self.eta.is_some();
        let name = inversion.inversion.unwrap_or(if wants_ddim { InversionName::Ddim } else { InversionName::Exact });
        if name != InversionName::Ddim && wants_ddim {
            bail!(
                "--inversion {name} decodes along the chain that it inverts along; --reference, --sampler, --eta, \
                 --invert-steps and codes of other inversions do not go with it"
            )
        }
        match name {
            InversionName::Exact => return self.with_base(usual, batch),
            InversionName::FixedPoint => {
                return self.with_base(PipelineSettings { inversion: Inversion::FixedPoint, ..usual }, batch);
            }
            InversionName::Ddim => {}
        }
        let num_invert_steps = inversion.invert_steps.unwrap_or(reference.num_invert_steps);
        Ok(PipelineSettings { num_invert_steps, ..self.with_base(reference, batch)? })
    }

    /// Fails if an option contradicts the chain of codes.
    pub(crate) fn check_agreement(&self, chain: ChainSettings, path: &str) -> Result<()> {
        let differs = self.steps.is_some_and(|steps| steps != chain.steps())
            || self.spacing.is_some_and(|spacing| spacing != chain.spacing());
        if differs || self.reference || self.sampler.is_some() || self.eta.is_some() {
            bail!(
                "{path} holds codes of {chain}, and is decoded along that chain: leave out --steps, --spacing, --sampler, --eta and --reference"
            )
        }
        Ok(())
    }

    fn with_base(&self, base: PipelineSettings, batch: &BatchArgs) -> Result<PipelineSettings> {
        let sampler = match (self.sampler, self.eta) {
            (None, Some(_)) => Sampler::DDIM,
            (sampler, _) => sampler.unwrap_or(base.sampler),
        };
        Ok(PipelineSettings {
            num_steps: self.steps.unwrap_or(base.num_steps),
            sampler: sampler.with_eta(self.eta.unwrap_or(0.)).context("--eta")?,
            spacing: self.spacing.unwrap_or(base.spacing),
            batch_size: batch.batch_size,
            ..base
        })
    }
}

/// Returns the chains as settings of a result: that of decoding, and with both codes of images that of their inversion.
pub(crate) fn chain_settings(settings: &PipelineSettings, codes: CodesNeed) -> Settings {
    let is_inverted = codes == CodesNeed::Both;
    let mut named = Settings::from([("steps".to_owned(), settings.num_steps.into())]);
    if is_inverted {
        named.insert("inversion".to_owned(), InversionName::of(settings.inversion).to_string().into());
        if let Inversion::Exact(weights) = settings.inversion {
            named.insert("weights".to_owned(), weights.to_string().into());
        }
        if settings.chain().is_some() {
            named.insert("spacing".to_owned(), settings.spacing.to_string().into());
            return named;
        }
        named.insert("invert_steps".to_owned(), settings.num_invert_steps.into());
    }
    named.extend(settings.sampler_settings());
    named
}
