//! Files of codes: `z_sem` and `x_T` of many pictures, with their names and the fingerprint of their model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use diffae_nets::weights::{SafetensorsFile, TensorSource, safetensors_bytes};

use crate::codes_file::{CodesHeader, RESIDUAL, X_TERMINAL, Z_SEM};
use crate::error::{Error, Result, computing};
use crate::interpolate::{PathFrame, lerp, slerp};
use crate::model::Model;
use crate::noise::noise_warning;
use crate::stochastic_code::{ChainSettings, CodeChain};
use diffae_data::{Overwrite, read_tensor, write_atomically};

/// The codes of N pictures.
#[derive(Debug, Clone)]
pub struct Codes {
    /// Semantic codes, `[N, D]`, f32; absent from a plain DDPM.
    pub z_sem: Option<Tensor>,
    /// Noise maps `x_T`, `[N, C, H, W]`, f32; absent if only the semantic code was requested.
    pub x_terminal: Option<Tensor>,
    /// The chain that made `x_T`, which decodes it, too, or by which a random one was decoded; `None` for DDIM in reverse, and
    /// where it is not known.
    pub chain: Option<CodeChain>,
    /// Names, one per picture; after reading, valid as file names and unique.
    pub names: Vec<String>,
    /// Fingerprint of the model that encoded the pictures.
    pub fingerprint: String,
}

impl Codes {
    /// Returns the number of pictures.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Returns whether there is no picture.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Returns the codes of some pictures, in the order of `indices`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is no picture of a number, or no number.
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        if indices.is_empty() || indices.iter().any(|&idx| idx >= self.len()) {
            let got = format!("{indices:?} of {}", self.len());
            return Err(Error::OutOfRange {
                what: "a choice of codes",
                got,
                expected: "numbers of codes that there are",
            });
        }
        let are_consecutive = indices.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        let part = |tensor: &Tensor| {
            // A view: codes of many pictures are large.
            if are_consecutive {
                return tensor.narrow(0, indices[0], indices.len());
            }
            let rows = indices.iter().map(|&idx| tensor.narrow(0, idx, 1)).collect::<candle_core::Result<Vec<_>>>()?;
            Tensor::cat(&rows, 0)
        };
        Ok(Self {
            z_sem: computing("choosing z_sem", self.z_sem.as_ref().map(part).transpose())?,
            x_terminal: computing("choosing x_T", self.x_terminal.as_ref().map(part).transpose())?,
            chain: self.chain.as_ref().map(|chain| chain.map(part)).transpose()?,
            names: indices.iter().map(|&idx| self.names[idx].clone()).collect(),
            fingerprint: self.fingerprint.clone(),
        })
    }

    /// Returns whether `x_T` was drawn: any chain decodes it.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.chain.as_ref().is_some_and(|chain| chain.settings.is_sampled())
    }

    /// Returns whether they are of samples whose sampler adds noise, which the codes do not hold.
    #[must_use]
    pub fn is_noisy_sample(&self) -> bool {
        let settings = self.chain.as_ref().map(|chain| chain.settings);
        matches!(settings, Some(ChainSettings::Sampled(sampled)) if !sampled.sampler.is_deterministic())
    }

    /// Returns codes whose `x_T` was drawn along the chain of others, with a residual of 0 if those have one.
    pub(crate) fn along(&self, other: Option<&CodeChain>) -> Result<Self> {
        let zeros = |x_terminal: &Tensor| computing("making zeros", x_terminal.zeros_like());
        let has_residual = other.is_some_and(|other| other.residual.is_some());
        let residual = self.x_terminal.as_ref().filter(|_| has_residual).map(zeros).transpose()?;
        Ok(Self { chain: other.map(|other| CodeChain { settings: other.settings, residual }), ..self.clone() })
    }

    /// Concatenates several codes in their order; fingerprint and names are taken over unchanged.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there are none; [`Error::MixedChains`] if their stochastic codes are of different chains;
    /// [`Error::Mismatch`] if some have `z_sem`, `x_T` or a residual and others not; [`Error::Tensor`] if sizes differ.
    pub fn joined(all: &[Self]) -> Result<Self> {
        let first = all.first().ok_or(Error::OutOfRange {
            what: "the number of codes to join",
            got: "0".to_owned(),
            expected: "one or more",
        })?;
        Ok(Self {
            z_sem: concatenated(Z_SEM, all.iter().map(|codes| codes.z_sem.as_ref()))?,
            x_terminal: concatenated(X_TERMINAL, all.iter().map(|codes| codes.x_terminal.as_ref()))?,
            chain: CodeChain::joined(all.iter().map(|codes| codes.chain.as_ref()))?,
            names: all.iter().flat_map(|codes| codes.names.iter().cloned()).collect(),
            fingerprint: first.fingerprint.clone(),
        })
    }

    /// Interpolates the codes at the frames of a path: `z_sem` and residuals on a straight line, `x_T` on an arc.
    ///
    /// # Errors
    /// [`Error::Tensor`] if a frame is between pictures that there are not.
    pub fn at_frames(&self, frames: &[PathFrame]) -> Result<Self> {
        let between = |all: &Tensor, path: fn(&Tensor, &Tensor, f64) -> candle_core::Result<Tensor>| {
            let at = |frame: &PathFrame| path(&all.get(frame.from)?, &all.get(frame.to)?, frame.alpha);
            Tensor::stack(&frames.iter().map(at).collect::<candle_core::Result<Vec<_>>>()?, 0)
        };
        let along = |chain: &CodeChain| {
            chain.map(|residual| {
                let at = |frame: &PathFrame| CodeChain::between(residual, frame.from, frame.to, frame.alpha);
                Tensor::stack(&frames.iter().map(at).collect::<candle_core::Result<Vec<_>>>()?, 0)
            })
        };
        let z_sem = self.z_sem.as_ref().map(|z_sem| between(z_sem, lerp)).transpose();
        let x_terminal = self.x_terminal.as_ref().map(|x_terminal| between(x_terminal, slerp)).transpose();
        Ok(Self {
            z_sem: computing("interpolating z_sem", z_sem)?,
            x_terminal: computing("interpolating x_T", x_terminal)?,
            chain: self.chain.as_ref().map(along).transpose()?,
            names: (0..frames.len()).map(|idx| format!("{idx:04}")).collect(),
            fingerprint: self.fingerprint.clone(),
        })
    }

    /// Repeats the codes of the first picture.
    ///
    /// # Errors
    /// [`Error::Tensor`] without pictures.
    pub fn first_repeated(&self, count: usize) -> Result<Self> {
        self.at_frames(&vec![PathFrame { from: 0, to: 0, alpha: 0. }; count])
    }

    /// Returns a warning if `x_T` is of another program, made along no chain that is known, and not close to the noise that models
    /// expect; see [`noise_warning`].
    ///
    /// # Errors
    /// As [`noise_warning`].
    pub fn foreign_noise_warning(&self, name: &str) -> Result<Option<String>> {
        // A one-shot autoencoder's is no map, and holds its level, too.
        let is_foreign =
            self.fingerprint.is_empty() && self.chain.as_ref().is_none_or(|chain| chain.settings.is_sampled());
        let own = |x_terminal: &&Tensor| is_foreign && x_terminal.rank() > 2;
        let warning = |x_terminal: &Tensor| noise_warning(&format!("x_T of {name}"), x_terminal);
        Ok(self.x_terminal.as_ref().filter(own).map(warning).transpose()?.flatten())
    }

    /// Fails if the codes are of another model; codes of an unknown model pass.
    ///
    /// # Errors
    /// [`Error::ForeignCodes`]. `path` is for the message.
    pub fn check_made_by(&self, model: &Model, path: &Path) -> Result<()> {
        if self.fingerprint.is_empty() || self.fingerprint == model.fingerprint() {
            return Ok(());
        }
        let (got, expected) = (self.fingerprint.clone(), model.fingerprint().to_owned());
        Err(Error::ForeignCodes { path: path.to_owned(), got, expected })
    }

    /// Fails if the shapes of the codes do not fit the model.
    ///
    /// # Errors
    /// [`Error::Mismatch`]. `path` is for the message.
    pub fn check_sizes(&self, model: &Model, path: &Path) -> Result<()> {
        let width = self.z_sem.as_ref().map(|z_sem| z_sem.dims()[1]);
        let expected = model.config().z_channels();
        if width != expected {
            let show = |width: Option<usize>| width.map_or("none".to_owned(), |width| format!("of width {width}"));
            let what = format!("z_sem in {}", path.display());
            return Err(Error::Mismatch { what, got: show(width), expected: show(expected) });
        }
        if let Some(x_terminal) = &self.x_terminal
            && x_terminal.dims()[1..] != model.x_terminal_shape()
        {
            let (got, expected) = (&x_terminal.dims()[1..], model.x_terminal_shape());
            let what = format!("x_T of a picture in {}", path.display());
            return Err(Error::Mismatch { what, got: format!("{got:?}"), expected: format!("{expected:?}") });
        }
        Ok(())
    }

    /// Writes tensors `z_sem`, `x_T` and `residual`, and the rest as text.
    ///
    /// # Errors
    /// [`diffae_data::Error::Exists`] or [`Error::Io`] if the file cannot be written.
    pub fn write(&self, path: &Path, text: &[(String, String)], overwrite: Overwrite) -> Result<()> {
        Ok(write_atomically(path, &self.to_bytes(text)?, overwrite)?)
    }

    /// Returns the bytes of the file that [`write`](Self::write) writes.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the tensors cannot be read.
    pub fn to_bytes(&self, text: &[(String, String)]) -> Result<Vec<u8>> {
        let mut tensors = BTreeMap::new();
        let residual = self.chain.as_ref().and_then(|chain| chain.residual.as_ref());
        for (name, tensor) in
            [(Z_SEM, self.z_sem.as_ref()), (X_TERMINAL, self.x_terminal.as_ref()), (RESIDUAL, residual)]
        {
            tensors.extend(tensor.map(|tensor| (name.to_owned(), tensor.clone())));
        }
        let path = PathBuf::from("codes.safetensors");
        safetensors_bytes(&tensors, &self.header(text).entries()?).map_err(|source| Error::Weights { path, source })
    }

    /// Returns the header of the file, with text entries.
    fn header(&self, text: &[(String, String)]) -> CodesHeader {
        CodesHeader {
            chain: self.chain.as_ref().map(|chain| chain.settings),
            names: self.names.clone(),
            fingerprint: self.fingerprint.clone(),
            shard: None,
            text: text.iter().cloned().collect(),
            shapes: BTreeMap::new(),
        }
    }

    /// Reads a file that [`Codes::write`] wrote. Codes of other programs may lack the text: they get numbered names and
    /// an empty fingerprint.
    ///
    /// # Errors
    /// [`Error::Tensors`] if there is neither `z_sem` nor `x_T`, or their counts differ; [`Error::Codes`] if the file is
    /// damaged or holds NaN.
    pub fn read(path: &Path) -> Result<Self> {
        let file = SafetensorsFile::open(path).map_err(|source| Error::Codes { source })?;
        let problem = |problem: String| Error::Tensors { path: path.to_owned(), problem };
        let read =
            |name: &str, num_axes: &[usize]| file.shape(name).map(|_| read_tensor(&file, name, num_axes)).transpose();
        // A one-shot autoencoder's noise is a vector.
        let (z_sem, x_terminal) = (read(Z_SEM, &[2])?, read(X_TERMINAL, &[2, 4, 5])?);
        let CodesHeader { chain: settings, names, fingerprint, .. } = CodesHeader::of(&file, path)?;
        let chain = match (read(RESIDUAL, &[4, 5])?, settings) {
            (Some(tensor), _) if x_terminal.as_ref().is_none_or(|x_terminal| x_terminal.dims() != tensor.dims()) => {
                return Err(problem(format!("its residual of shape {:?} does not fit its x_T", tensor.dims())));
            }
            (Some(tensor), Some(settings @ ChainSettings::Exact(_))) => {
                Some(CodeChain { settings, residual: Some(tensor) })
            }
            (Some(_), _) => {
                return Err(problem("it holds a residual, but does not say of which exact chain".to_owned()));
            }
            // Codes of a chain are joined with others of it, all with a residual or all without.
            (None, Some(settings @ ChainSettings::Exact(_))) => {
                let residual = x_terminal.as_ref().map(Tensor::zeros_like).transpose();
                Some(CodeChain { settings, residual: computing("making zeros", residual)? })
            }
            (None, settings) => settings.map(|settings| CodeChain { settings, residual: None }),
        };
        Ok(Self { z_sem, x_terminal, chain, names, fingerprint })
    }
}

/// Concatenates a tensor that all of several codes have, or none.
pub(crate) fn concatenated<'a>(name: &str, all: impl Iterator<Item = Option<&'a Tensor>>) -> Result<Option<Tensor>> {
    let all: Vec<Option<&Tensor>> = all.collect();
    let parts: Vec<&Tensor> = all.iter().copied().flatten().collect();
    match parts.len() {
        0 => Ok(None),
        count if count == all.len() => Ok(Some(computing("joining codes", Tensor::cat(&parts, 0))?)),
        count => {
            let what = format!("{name} of codes that are joined");
            Err(Error::Mismatch {
                what,
                got: format!("{count} of {} codes", all.len()),
                expected: "all or none".to_owned(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::stochastic_code::ExactSettings;

    /// The code of one picture, whose residual is filled with a value.
    fn code(residual: Option<f64>) -> Codes {
        let map = |value: f64| Tensor::full(value, (1, 3, 2, 2), &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        let settings = ChainSettings::from(ExactSettings {
            steps: 4,
            spacing: diffae_schedule::Spacing::LogSnr,
            weights: diffae_schedule::ExactWeights::default(),
        });
        Codes {
            z_sem: None,
            x_terminal: Some(map(0.)),
            chain: Some(CodeChain { settings, residual: residual.map(map) }),
            names: vec!["a".to_owned()],
            fingerprint: String::new(),
        }
    }

    #[test]
    fn codes_are_joined_if_all_have_the_same_parts() {
        let joined = Codes::joined(&[code(Some(1.)), code(Some(2.))]).unwrap();
        assert_eq!(joined.chain.unwrap().residual.unwrap().dims(), [2, 3, 2, 2]);
        assert!(Codes::joined(&[code(None), code(None)]).unwrap().chain.unwrap().residual.is_none());
        // The residual of the second would else become that of the first.
        let error = Codes::joined(&[code(None), code(Some(2.))]).unwrap_err();
        assert!(matches!(&error, Error::Mismatch { what, .. } if what.starts_with("residual")), "{error}");
        let lacking = Codes { x_terminal: None, chain: None, ..code(None) };
        let error = Codes::joined(&[Codes { chain: None, ..code(None) }, lacking]).unwrap_err();
        assert!(matches!(&error, Error::Mismatch { what, .. } if what.starts_with("x_T")), "{error}");
    }
}
