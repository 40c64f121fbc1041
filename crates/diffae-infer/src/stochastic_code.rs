//! Stochastic codes: the noise map `x_T`, and its residual in an exact chain.

use candle_core::Tensor;
use diffae_schedule::{ExactWeights, Spacing};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

/// Part of a stochastic code that an exact chain adds to `x_T`, with the chain that must decode the two.
#[derive(Debug, Clone)]
pub struct Residual {
    /// `x_{T-1} - DDIM(x_T)`, shape of `x_T`, f32.
    pub tensor: Tensor,
    /// The chain.
    pub chain: ExactSettings,
}

impl Residual {
    /// Applies an operation to the tensor.
    ///
    /// # Errors
    /// As the operation.
    pub fn map(&self, operation: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>) -> Result<Self> {
        let tensor = computing("selecting residuals", operation(&self.tensor))?;
        Ok(Self { tensor, chain: self.chain })
    }

    /// Concatenates the residuals of several batches; `None` if no batch has one.
    ///
    /// # Errors
    /// [`Error::MixedChains`] unless all are of one chain.
    pub fn joined<'a>(all: impl IntoIterator<Item = Option<&'a Self>>) -> Result<Option<Self>> {
        let all: Vec<Option<&Self>> = all.into_iter().collect();
        let Some(chain) = same_chain(all.iter().map(|residual| residual.map(|residual| residual.chain)))? else {
            return Ok(None);
        };
        let tensors: Vec<&Tensor> = all.iter().flatten().map(|residual| &residual.tensor).collect();
        Ok(Some(Self { tensor: computing("joining residuals", Tensor::cat(&tensors, 0))?, chain }))
    }

    /// Interpolates linearly between the residuals of two pictures, by their rows: `x_T` goes along an arc to keep its
    /// length, but a residual is a difference.
    pub(crate) fn between(&self, from: usize, to: usize, alpha: f64) -> candle_core::Result<Tensor> {
        lerp(&self.tensor.get(from)?, &self.tensor.get(to)?, alpha)
    }
}

/// Returns the chain of several codes, `None` for DDIM.
///
/// # Errors
/// [`Error::MixedChains`] unless it is the same.
pub(crate) fn same_chain(chains: impl IntoIterator<Item = Option<ExactSettings>>) -> Result<Option<ExactSettings>> {
    let mut chains = chains.into_iter();
    let first = chains.next().flatten();
    let name = |chain: Option<ExactSettings>| chain.map_or("DDIM".to_owned(), |chain| chain.to_string());
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
    /// Residual of the noise maps, if an exact chain made them.
    pub residual: Option<Residual>,
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
