//! Stochastic codes: the noise map `x_T`, and its residual in an exact chain.

use candle_core::Tensor;
use diffae_schedule::{ExactWeights, Sampler, Spacing};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codes::concatenated;
use crate::codes_file::RESIDUAL;
use crate::error::{Error, Result, computing};
use crate::interpolate::lerp;

/// The inversion that turns pictures into noise maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inversion {
    /// DDIM in reverse, as in the paper: approximate, better with more steps.
    Ddim,
    /// A chain that runs exactly in either direction, whatever its number of steps: codes hold a residual beside `x_T`.
    Exact(ExactWeights),
    /// Each step of decoding solved for the state that it starts from: codes are `x_T` alone, which any implementation of DDIM
    /// decodes; nearly exact, at several evaluations a step.
    FixedPoint,
}

impl Inversion {
    /// The inversions by their names, with the default weights of exact chains.
    const NAMED: [(&str, Self); 3] =
        [("exact", Self::Exact(ExactWeights::Balanced)), ("fixed-point", Self::FixedPoint), ("ddim", Self::Ddim)];
}

impl std::fmt::Display for Inversion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Exact(_) => "exact",
            Self::FixedPoint => "fixed-point",
            Self::Ddim => "ddim",
        })
    }
}

impl std::str::FromStr for Inversion {
    type Err = Error;

    /// Finds an inversion by its name; exact chains have the default weights.
    fn from_str(name: &str) -> Result<Self> {
        let named = Self::NAMED.into_iter().find(|(known, _)| *known == name);
        named.map(|(_, inversion)| inversion).ok_or_else(|| Error::OutOfRange {
            what: "the inversion",
            got: format!("{name:?}"),
            expected: "exact, fixed-point or ddim",
        })
    }
}

/// An exact chain by its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExactSettings {
    /// Number of steps, N: N + 1 evaluations to invert, N to decode.
    pub steps: usize,
    /// Spacing of its timesteps.
    #[serde(serialize_with = "write_text", deserialize_with = "read_text")]
    pub spacing: Spacing,
    /// Weights of its updates.
    #[serde(serialize_with = "write_text", deserialize_with = "read_text")]
    pub weights: ExactWeights,
}

impl std::fmt::Display for ExactSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} exact {} steps ({})", self.steps, self.spacing, self.weights)
    }
}

/// A chain of inversion by fixed points: DDIM in so many steps, without clipping on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedPointSettings {
    /// Number of steps.
    pub steps: usize,
    /// Spacing of its timesteps.
    #[serde(serialize_with = "write_text", deserialize_with = "read_text")]
    pub spacing: Spacing,
}

/// The chain by which a random `x_T` was decoded to a sample. Any other makes a picture of it, too.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "SampledFile", into = "SampledFile")]
pub struct SampledSettings {
    /// Number of steps.
    pub steps: usize,
    /// Spacing of its timesteps.
    pub spacing: Spacing,
    /// The sampler.
    pub sampler: Sampler,
}

/// [`SampledSettings`] as they are written, with `eta` beside the name of the sampler.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SampledFile {
    steps: usize,
    #[serde(serialize_with = "write_text", deserialize_with = "read_text")]
    spacing: Spacing,
    #[serde(serialize_with = "write_text", deserialize_with = "read_text")]
    sampler: Sampler,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eta: Option<f64>,
}

impl TryFrom<SampledFile> for SampledSettings {
    type Error = diffae_schedule::Error;

    fn try_from(SampledFile { steps, spacing, sampler, eta }: SampledFile) -> diffae_schedule::Result<Self> {
        Ok(Self { steps, spacing, sampler: sampler.with_eta(eta.unwrap_or(0.))? })
    }
}

impl From<SampledSettings> for SampledFile {
    fn from(SampledSettings { steps, spacing, sampler }: SampledSettings) -> Self {
        let eta = match sampler {
            Sampler::Ddim { eta } if eta > 0. => Some(eta),
            _ => None,
        };
        Self { steps, spacing, sampler, eta }
    }
}

/// The chain of stochastic codes, by its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ChainSettings {
    /// An exact chain, which made them of pictures and decodes them.
    Exact(ExactSettings),
    /// DDIM, inverted by fixed points.
    FixedPoint(FixedPointSettings),
    /// One that decodes: `x_T` was drawn at random.
    Sampled(SampledSettings),
}

impl ChainSettings {
    /// Returns the number of steps.
    #[must_use]
    pub const fn steps(&self) -> usize {
        match self {
            Self::Exact(ExactSettings { steps, .. })
            | Self::FixedPoint(FixedPointSettings { steps, .. })
            | Self::Sampled(SampledSettings { steps, .. }) => *steps,
        }
    }

    /// Returns the spacing of the timesteps.
    #[must_use]
    pub const fn spacing(&self) -> Spacing {
        match self {
            Self::Exact(ExactSettings { spacing, .. })
            | Self::FixedPoint(FixedPointSettings { spacing, .. })
            | Self::Sampled(SampledSettings { spacing, .. }) => *spacing,
        }
    }

    /// Returns whether `x_T` was drawn: any chain decodes it.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        matches!(self, Self::Sampled(_))
    }
}

impl From<SampledSettings> for ChainSettings {
    fn from(settings: SampledSettings) -> Self {
        Self::Sampled(settings)
    }
}

impl From<ExactSettings> for ChainSettings {
    fn from(settings: ExactSettings) -> Self {
        Self::Exact(settings)
    }
}

impl std::fmt::Display for ChainSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(exact) => exact.fmt(f),
            Self::FixedPoint(FixedPointSettings { steps, spacing }) => {
                write!(f, "{steps} DDIM {spacing} steps inverted by fixed points")
            }
            Self::Sampled(SampledSettings { steps, spacing, sampler }) => {
                write!(f, "{steps} {sampler} {spacing} steps from random x_T")?;
                match sampler {
                    Sampler::Ddim { eta } if *eta > 0. => write!(f, " (eta {eta})"),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// The chain of stochastic codes, and what it adds to `x_T`.
#[derive(Debug, Clone)]
pub struct CodeChain {
    /// The chain.
    pub settings: ChainSettings,
    /// The residual of an exact chain, `x_{T-1} - DDIM(x_T)`, shape of `x_T`, f32; without it it is 0.
    pub residual: Option<Tensor>,
}

impl CodeChain {
    /// Applies an operation to the residual.
    ///
    /// # Errors
    /// As the operation.
    pub fn map(&self, operation: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>) -> Result<Self> {
        let residual = computing("selecting residuals", self.residual.as_ref().map(operation).transpose())?;
        Ok(Self { settings: self.settings, residual })
    }

    /// Returns the chain of `settings` for random `x_T`, with a residual of 0 where it has one.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the zeros cannot be made.
    pub(crate) fn of_random(settings: ChainSettings, x_terminal: &Tensor) -> Result<Self> {
        let is_exact = matches!(settings, ChainSettings::Exact(_));
        let residual = computing("making zeros", is_exact.then(|| x_terminal.zeros_like()).transpose())?;
        Ok(Self { settings, residual })
    }

    /// Concatenates the chains of several batches; `None` if no batch has one.
    ///
    /// # Errors
    /// [`Error::MixedChains`] unless all are of one chain; [`Error::Mismatch`] if some have a residual and others not.
    pub fn joined<'a>(all: impl IntoIterator<Item = Option<&'a Self>>) -> Result<Option<Self>> {
        let all: Vec<Option<&Self>> = all.into_iter().collect();
        let Some(settings) = same_chain(all.iter().map(|chain| chain.map(|chain| chain.settings)))? else {
            return Ok(None);
        };
        let residuals = all.iter().flatten().map(|chain| chain.residual.as_ref());
        Ok(Some(Self { settings, residual: concatenated(RESIDUAL, residuals)? }))
    }

    /// Interpolates linearly between the residuals of two pictures, by their rows: `x_T` goes along an arc to keep its
    /// length, but a residual is a difference.
    pub(crate) fn between(residual: &Tensor, from: usize, to: usize, alpha: f64) -> candle_core::Result<Tensor> {
        lerp(&residual.get(from)?, &residual.get(to)?, alpha)
    }
}

/// Returns the chain of several codes, `None` for DDIM in reverse.
///
/// # Errors
/// [`Error::MixedChains`] unless it is the same.
pub(crate) fn same_chain(chains: impl IntoIterator<Item = Option<ChainSettings>>) -> Result<Option<ChainSettings>> {
    let mut chains = chains.into_iter();
    let first = chains.next().flatten();
    let name = |chain: Option<ChainSettings>| chain.map_or("DDIM in reverse".to_owned(), |chain| chain.to_string());
    match chains.find(|other| *other != first) {
        Some(other) => Err(Error::MixedChains { first: name(first), second: name(other) }),
        None => Ok(first),
    }
}

/// Stochastic codes of a batch.
#[derive(Debug, Clone)]
pub struct StochasticCode {
    /// Noise maps `x_T`, `[N, ..]`.
    pub x_terminal: Tensor,
    /// The chain that made them, which decodes them, too; `None` for DDIM in reverse.
    pub chain: Option<CodeChain>,
}

pub(crate) fn write_text<T: ToString, S: Serializer>(value: &T, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

pub(crate) fn read_text<'de, T, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<T, D::Error>
where
    T: std::str::FromStr<Err = diffae_schedule::Error>,
{
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inversions_have_names() {
        for (name, inversion) in Inversion::NAMED {
            assert_eq!((inversion.to_string().as_str(), name.parse::<Inversion>().unwrap()), (name, inversion));
        }
        let error = "exactly".parse::<Inversion>().unwrap_err().to_string();
        assert_eq!(error, "the inversion is \"exactly\", expected exact, fixed-point or ddim");
    }

    #[test]
    fn chains_of_samples_are_written_with_their_noise() {
        for (sampler, json) in [
            (Sampler::DpmSolverPp2M, r#"{"steps":5,"spacing":"log-snr","sampler":"dpm++2m"}"#),
            (Sampler::DDIM, r#"{"steps":5,"spacing":"log-snr","sampler":"ddim"}"#),
            (Sampler::Ddim { eta: 0.5 }, r#"{"steps":5,"spacing":"log-snr","sampler":"ddim","eta":0.5}"#),
        ] {
            let settings = SampledSettings { steps: 5, spacing: Spacing::LogSnr, sampler };
            assert_eq!(serde_json::to_string(&settings).unwrap(), json);
            assert_eq!(serde_json::from_str::<SampledSettings>(json).unwrap(), settings);
        }
        for wrong in [r#""ddim","eta":2.0"#, r#""ddpm","eta":0.5"#, r#""euler""#] {
            let json = format!(r#"{{"steps":5,"spacing":"log-snr","sampler":{wrong}}}"#);
            serde_json::from_str::<SampledSettings>(&json).unwrap_err();
        }
    }
}
