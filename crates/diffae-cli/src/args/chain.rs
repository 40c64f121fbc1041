//! Arguments of chains between noise and images.

use anyhow::Result;
use clap::{Args, ValueEnum};
use diffae_infer::{
    CodesNeed, GivenCodes, GivenSettings, Inversion, LatentMethod, ModelConfig, PipelineSettings, Settings, Subjects,
};
use diffae_schedule::{Sampler, Spacing};

use super::{BatchArgs, one_of, positive};

/// Options of decoding.
#[derive(Debug, Clone, Args)]
pub(crate) struct DecodingArgs {
    /// Decoding steps [default: 10, or what the model was distilled or polished to; with --reference 20]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) steps: Option<usize>,
    /// Sampler [default: ddim; with --spacing tuned that of the timesteps]; the ddpm samplers add noise at each step
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
        Ok(LatentMethod::given(usual, self.latent_sampler, self.latent_spacing)?)
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

impl From<InversionName> for Inversion {
    fn from(name: InversionName) -> Self {
        match name {
            InversionName::Exact => PipelineSettings::DEFAULT.inversion,
            InversionName::FixedPoint => Self::FixedPoint,
            InversionName::Ddim => Self::Ddim,
        }
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

impl InversionArgs {
    /// Returns whether the command line says how pictures are inverted.
    pub(crate) fn is_given(&self) -> bool {
        self.inversion.is_some() || self.invert_steps.is_some()
    }
}

impl DecodingArgs {
    /// Returns what the command line gives of the settings of decoding.
    pub(crate) fn given(&self, batch: &BatchArgs) -> GivenSettings {
        GivenSettings {
            num_steps: self.steps,
            sampler: self.sampler,
            eta: self.eta,
            spacing: self.spacing,
            reference: self.reference,
            batch_size: batch.batch_size,
            ..GivenSettings::default()
        }
    }

    /// Returns the settings of decoding random `x_T` with a model.
    pub(crate) fn settings(&self, batch: &BatchArgs, model: &ModelConfig) -> Result<PipelineSettings> {
        Ok(self.given(batch).decoding(model)?)
    }

    /// Returns the settings of inverting images and decoding what becomes of their codes; see
    /// [`GivenSettings::inverting`].
    pub(crate) fn with_inversion(
        &self,
        inversion: &InversionArgs,
        (model, reference): (&ModelConfig, PipelineSettings),
        batch: &BatchArgs,
        subjects: Option<&Subjects>,
    ) -> Result<PipelineSettings> {
        let given = GivenSettings {
            inversion: inversion.inversion.map(Inversion::from),
            num_invert_steps: inversion.invert_steps,
            ..self.given(batch)
        };
        let codes = subjects.map(Subjects::chain).transpose()?.flatten();
        let codes = codes.map(|(chain, path)| (chain, path.display().to_string()));
        Ok(given.inverting(model, reference, codes.as_ref().map(|&(chain, ref name)| GivenCodes { chain, name }))?)
    }
}

/// Returns the chains as settings of a result: that of decoding, and with both codes of images that of their inversion.
pub(crate) fn chain_settings(settings: &PipelineSettings, codes: CodesNeed) -> Settings {
    let is_inverted = codes == CodesNeed::Both;
    let mut named = Settings::from([("steps".to_owned(), settings.num_steps.into())]);
    if is_inverted {
        named.insert("inversion".to_owned(), settings.inversion.to_string().into());
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
