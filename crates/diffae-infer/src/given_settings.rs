//! Settings that a caller gives, resolved against those of a model, of codes and of the paper.

use diffae_schedule::{Sampler, Spacing};

use crate::codes::Codes;
use crate::error::{Error, Result};
use crate::model_config::ModelConfig;
use crate::settings::{LatentMethod, PipelineSettings, XTerminalSource};
use crate::stochastic_code::{ChainSettings, CodeChain, Inversion, SampledSettings};

/// Settings of chains as a caller gives them: what is `None` is left to the model, to the codes, or to the paper's chains.
///
/// Messages name settings as options of the program: `num_steps` is `--steps`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GivenSettings {
    /// Decoding steps, and steps of inversions but DDIM in reverse.
    pub num_steps: Option<usize>,
    /// The sampler that decodes.
    pub sampler: Option<Sampler>,
    /// Noise that DDIM adds at each step, 0 to 1.
    pub eta: Option<f64>,
    /// Spacing of the timesteps.
    pub spacing: Option<Spacing>,
    /// Whether what is not given is that of the paper's chains.
    pub reference: bool,
    /// The inversion.
    pub inversion: Option<Inversion>,
    /// Steps of [`Inversion::Ddim`].
    pub num_invert_steps: Option<usize>,
    /// The `x_T` of codes that have none.
    pub x_terminal: Option<XTerminalSource>,
    /// Pictures per batch.
    pub batch_size: Option<usize>,
}

/// The chain of codes that are given, for [`GivenSettings::inverting`].
#[derive(Debug, Clone, Copy)]
pub struct GivenCodes<'a> {
    /// The chain of the codes; `None` for DDIM in reverse.
    pub chain: Option<ChainSettings>,
    /// Name of the codes in messages, such as the path of their file.
    pub name: &'a str,
}

impl GivenSettings {
    /// Returns the settings of decoding random `x_T` with a model.
    ///
    /// # Errors
    /// [`Error::Option`] if `eta` is out of range, or the sampler takes none.
    pub fn decoding(&self, model: &ModelConfig) -> Result<PipelineSettings> {
        let base = if self.reference { PipelineSettings::REFERENCE } else { PipelineSettings::of_model(model) };
        self.with_base(base, model)
    }

    /// Returns the settings of decoding the `x_T` of codes: along the chain that made them, others along the paper's, from
    /// which they come. Samples are decoded as they were, unless something else is given.
    ///
    /// # Errors
    /// [`Error::Conflict`] if something else is given than the chain that made the codes.
    pub fn decoding_codes(&self, codes: &Codes, name: &str, model: &ModelConfig) -> Result<PipelineSettings> {
        match &codes.chain {
            Some(CodeChain { settings: ChainSettings::Sampled(sampled), .. }) => {
                self.of_samples(*sampled, model, PipelineSettings::REFERENCE)
            }
            Some(chain) => {
                self.check_agreement(chain.settings, name)?;
                let usual = PipelineSettings { batch_size: self.batch_size, ..PipelineSettings::DEFAULT };
                Ok(usual.with_chain(chain.settings))
            }
            None => Self { reference: true, ..*self }.decoding(model),
        }
    }

    /// Returns the settings of decoding samples: along their chain, but for what is given.
    fn of_samples(
        &self,
        sampled: SampledSettings,
        model: &ModelConfig,
        reference: PipelineSettings,
    ) -> Result<PipelineSettings> {
        let along = || PipelineSettings::of_model(model).with_chain(sampled.into());
        self.with_base(if self.reference { reference } else { along() }, model)
    }

    /// Returns the settings of inverting pictures and decoding what becomes of their codes; `reference` are those of the paper's
    /// chains. The chain of codes that are given is taken over, that of samples but for what
    /// is given.
    ///
    /// # Errors
    /// [`Error::Conflict`] if what is given contradicts itself or the chain of the codes; [`Error::Option`] as
    /// [`decoding`](Self::decoding).
    pub fn inverting(
        &self,
        model: &ModelConfig,
        reference: PipelineSettings,
        codes: Option<GivenCodes<'_>>,
    ) -> Result<PipelineSettings> {
        let usual = PipelineSettings::of_model(model);
        if let Some(GivenCodes { chain: Some(chain), name }) = codes {
            let ChainSettings::Sampled(sampled) = chain else { return self.along(chain, name) };
            if self.inversion.is_some() || self.num_invert_steps.is_some() {
                let problem = format!(
                    "{name} holds codes of {chain}: nothing is inverted; leave out --inversion and --invert-steps"
                );
                return Err(Error::Conflict { problem });
            }
            return self.of_samples(sampled, model, reference);
        }
        let wants_ddim = self.reference
            || codes.is_some()
            || self.num_invert_steps.is_some()
            || self.sampler.is_some()
            || self.eta.is_some();
        let usual_inversion = if wants_ddim { Inversion::Ddim } else { usual.inversion };
        let inversion = self.inversion.unwrap_or(usual_inversion);
        if inversion != Inversion::Ddim {
            if wants_ddim {
                return Err(Error::Conflict {
                    problem: format!(
                        "--inversion {inversion} decodes along the chain that it inverts along; --reference, --sampler, \
                         --eta, --invert-steps and codes of other inversions do not go with it"
                    ),
                });
            }
            return self.with_base(PipelineSettings { inversion, ..usual }, model);
        }
        let num_invert_steps = self.num_invert_steps.unwrap_or(reference.num_invert_steps);
        Ok(PipelineSettings { num_invert_steps, ..self.with_base(reference, model)? })
    }

    /// Returns the settings of encoding pictures with a model; `num_steps` are those of any inversion.
    ///
    /// # Errors
    /// [`Error::Conflict`] if a spacing is given for DDIM in reverse, or another inversion with the paper's chain.
    pub fn encoding(&self, model: &ModelConfig) -> Result<PipelineSettings> {
        let batch_size = self.batch_size;
        if let Some(inversion) = self.inversion.filter(|&inversion| self.reference && inversion != Inversion::Ddim) {
            return Err(Error::Conflict {
                problem: format!("--reference inverts by ddim, not by --inversion {inversion}"),
            });
        }
        if self.reference || self.inversion == Some(Inversion::Ddim) {
            if self.spacing.is_some() {
                let problem = "--spacing is for --inversion exact and fixed-point; ddim takes even steps".to_owned();
                return Err(Error::Conflict { problem });
            }
            let num_invert_steps = self.num_steps.unwrap_or(PipelineSettings::REFERENCE.num_invert_steps);
            return Ok(PipelineSettings { num_invert_steps, batch_size, ..PipelineSettings::REFERENCE });
        }
        let usual = PipelineSettings::of_model(model);
        let (num_steps, spacing) = (self.num_steps.unwrap_or(usual.num_steps), self.spacing.unwrap_or(usual.spacing));
        let inversion = self.inversion.unwrap_or(usual.inversion);
        Ok(PipelineSettings { inversion, spacing, num_steps, batch_size, ..usual })
    }

    /// Returns the settings of the chain of codes.
    fn along(&self, chain: ChainSettings, name: &str) -> Result<PipelineSettings> {
        self.check_agreement(chain, name)?;
        let settings = PipelineSettings::DEFAULT.with_chain(chain);
        let asked = self.num_invert_steps.map(|_| Inversion::Ddim).or(self.inversion);
        if let Some(asked) = asked.filter(|asked| asked.to_string() != settings.inversion.to_string()) {
            let problem = format!("{name} holds codes of {chain}, which --inversion {asked} does not go with");
            return Err(Error::Conflict { problem });
        }
        Ok(PipelineSettings { batch_size: self.batch_size, ..settings })
    }

    /// Fails if something is given that contradicts the chain of codes.
    fn check_agreement(&self, chain: ChainSettings, name: &str) -> Result<()> {
        let differs = self.num_steps.is_some_and(|steps| steps != chain.steps())
            || self.spacing.is_some_and(|spacing| spacing != chain.spacing());
        if differs || self.reference || self.sampler.is_some() || self.eta.is_some() {
            let problem = format!(
                "{name} holds codes of {chain}, and is decoded along that chain: leave out --steps, --spacing, --sampler, \
                 --eta and --reference"
            );
            return Err(Error::Conflict { problem });
        }
        Ok(())
    }

    fn with_base(&self, base: PipelineSettings, model: &ModelConfig) -> Result<PipelineSettings> {
        let (num_steps, spacing) = (self.num_steps.unwrap_or(base.num_steps), self.spacing.unwrap_or(base.spacing));
        let tuned = self.spacing.filter(|&spacing| spacing == Spacing::Tuned);
        let tuned = tuned.and_then(|_| PipelineSettings::tuned_sampler(model, num_steps));
        let sampler = match (self.sampler, self.eta) {
            (Some(sampler), _) => sampler,
            (None, Some(_)) => Sampler::DDIM,
            (None, None) => tuned.unwrap_or(base.sampler),
        };
        let sampler = self.eta.map_or(Ok(sampler), |eta| sampler.with_eta(eta));
        Ok(PipelineSettings {
            num_steps,
            sampler: sampler.map_err(|source| Error::Option { name: "--eta", source: Box::new(source.into()) })?,
            spacing,
            x_terminal: self.x_terminal.unwrap_or(base.x_terminal),
            batch_size: self.batch_size,
            ..base
        })
    }
}

impl LatentMethod {
    /// Returns the method that a caller gives, of which what is `None` is that of `usual`; `None` if nothing is given.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the sampler adds noise, or the spacing is tuned.
    pub fn given(usual: Self, sampler: Option<Sampler>, spacing: Option<Spacing>) -> Result<Option<Self>> {
        if let Some(sampler) = sampler.filter(|sampler| !sampler.is_deterministic()) {
            let problem = format!("--latent-sampler is {sampler}, expected one that adds no noise");
            return Err(Error::Conflict { problem });
        }
        if spacing == Some(Spacing::Tuned) {
            let problem = "--latent-spacing is tuned, but timesteps are tuned for decoding alone".to_owned();
            return Err(Error::Conflict { problem });
        }
        let is_given = sampler.is_some() || spacing.is_some();
        Ok(is_given
            .then(|| Self { sampler: sampler.unwrap_or(usual.sampler), spacing: spacing.unwrap_or(usual.spacing) }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use diffae_nets::weights::ArchitectureHints;

    use super::*;
    use crate::stochastic_code::ExactSettings;
    use crate::{ChainsConfig, ModelSource, TunedChain};

    /// A model with timesteps that are tuned for `unipc2`.
    fn model() -> ModelConfig {
        let path = Path::new("../../tests/fixtures/golden/autoenc16_latent/last.ckpt");
        let mut source = ModelSource::open(path, &ArchitectureHints::default()).unwrap();
        let tuned = TunedChain { timesteps: vec![1, 2, 9], sampler: Sampler::UniPc { order: 2 } };
        source.set_chains(ChainsConfig { distilled: None, tuned: vec![tuned] }).unwrap();
        source.config().clone()
    }

    fn inverting(settings: GivenSettings, codes: Option<GivenCodes<'_>>) -> Result<PipelineSettings> {
        settings.inverting(&model(), PipelineSettings::REFERENCE_EDITS, codes)
    }

    fn given(settings: GivenSettings) -> Result<PipelineSettings> {
        inverting(settings, None)
    }

    #[test]
    fn tuned_timesteps_have_their_sampler_wherever_something_is_decoded() {
        let tuned = GivenSettings { spacing: Some(Spacing::Tuned), num_steps: Some(3), ..GivenSettings::default() };
        let sampled = SampledSettings { steps: 5, spacing: Spacing::LogSnr, sampler: Sampler::DDIM };
        let samples = Some(GivenCodes { chain: Some(sampled.into()), name: "codes.safetensors" });
        let of_ddim = Some(GivenCodes { chain: None, name: "codes.safetensors" });
        let sampler = |settings: Result<PipelineSettings>| settings.unwrap().sampler;
        let expected = Sampler::UniPc { order: 2 };
        assert_eq!(sampler(tuned.decoding(&model())), expected);
        assert_eq!(sampler(inverting(tuned, samples)), expected);
        assert_eq!(sampler(inverting(tuned, of_ddim)), expected);
        assert_eq!(sampler(given(GivenSettings { inversion: Some(Inversion::Ddim), ..tuned })), expected);
        let named = GivenSettings { sampler: Some(Sampler::DpmSolverPp3M), ..tuned };
        assert_eq!(sampler(inverting(named, samples)), Sampler::DpmSolverPp3M);
        // Without them, samples keep their own.
        assert_eq!(sampler(inverting(GivenSettings::default(), samples)), Sampler::DDIM);
    }

    #[test]
    fn what_is_not_given_is_usual_or_of_the_paper() {
        let nothing = GivenSettings::default();
        assert_eq!(given(nothing).unwrap(), PipelineSettings::DEFAULT);
        assert_eq!(given(GivenSettings { reference: true, ..nothing }).unwrap(), PipelineSettings::REFERENCE_EDITS);
        let ddim = given(GivenSettings { num_invert_steps: Some(7), ..nothing }).unwrap();
        assert_eq!(ddim, PipelineSettings { num_invert_steps: 7, ..PipelineSettings::REFERENCE_EDITS });
        let sampler = Some(Sampler::DpmSolverPp2M);
        let conflict = GivenSettings { sampler, inversion: Some(Inversion::FixedPoint), ..nothing };
        let problem = given(conflict).unwrap_err().to_string();
        assert!(problem.starts_with("--inversion fixed-point decodes along the chain"), "{problem}");
        let eta = given(GivenSettings { eta: Some(3.), ..nothing }).unwrap_err();
        assert!(crate::one_sentence(&eta).starts_with("--eta: "), "{eta:?}");
    }

    #[test]
    fn the_chain_of_codes_is_not_contradicted() {
        let PipelineSettings { spacing, .. } = PipelineSettings::DEFAULT;
        let Inversion::Exact(weights) = PipelineSettings::DEFAULT.inversion else { panic!("another default") };
        let codes = Some(GivenCodes {
            chain: Some(ExactSettings { steps: 5, spacing, weights }.into()),
            name: "codes.safetensors",
        });
        let nothing = GivenSettings::default();
        assert_eq!(inverting(nothing, codes).unwrap().num_steps, 5);
        assert!(inverting(GivenSettings { num_steps: Some(5), ..nothing }, codes).is_ok());
        for other in [
            GivenSettings { num_steps: Some(6), ..nothing },
            GivenSettings { reference: true, ..nothing },
            GivenSettings { inversion: Some(Inversion::Ddim), ..nothing },
        ] {
            let problem = inverting(other, codes).unwrap_err().to_string();
            assert!(problem.starts_with("codes.safetensors holds codes of 5 exact log-snr steps"), "{problem}");
        }
    }
}
