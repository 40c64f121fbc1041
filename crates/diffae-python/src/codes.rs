//! `diffae.Codes`: the codes of pictures as arrays, and their files.

#![expect(clippy::doc_markdown, reason = "doc comments are docstrings, shown as they stand")]
#![expect(clippy::needless_pass_by_value, reason = "arguments of Python are values")]

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use diffae_data::Overwrite;
use diffae_infer::{ChainSettings, CodeChain, ExactSettings, FixedPointSettings, Model, SampledSettings, Settings};
use diffae_nets::weights::SafetensorsFile;
use numpy::PyArrayDyn;
use pyo3::exceptions::{PyIndexError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyMapping, PySlice, PyTuple};
use serde_json::Value;

use crate::arrays::{read_only_from, tensor_of, values_of};
use crate::error::{Error, Result};

/// Name of codes in messages that were read from no file.
const UNNAMED: &str = "this set of codes";
/// Beginning of the names of settings in files of codes.
const PREFIX: &str = "diffae:";

type FloatArray = Py<PyArrayDyn<f32>>;

/// Codes of N pictures: z_sem, which holds what they show, and x_T, which holds the rest.
///
/// Made by Model.encode, read by Codes.open, or put together from arrays: Codes(z_sem, x_T, residual=..., chain=...,
/// names=..., fingerprint=...). The arrays are float32; those that attributes return cannot be written to.
#[pyclass(frozen, module = "diffae", name = "Codes")]
pub(crate) struct Codes {
    inner: diffae_infer::Codes,
    name: String,
    /// Settings by which they were made, as text of their file.
    notes: Vec<(String, String)>,
    z_sem: PyOnceLock<Option<FloatArray>>,
    x_terminal: PyOnceLock<Option<FloatArray>>,
    residual: PyOnceLock<Option<FloatArray>>,
}

impl Codes {
    /// Wraps codes that no file holds.
    pub(crate) fn new(inner: diffae_infer::Codes) -> Self {
        let (z_sem, x_terminal, residual) = (PyOnceLock::new(), PyOnceLock::new(), PyOnceLock::new());
        Self { inner, name: UNNAMED.to_owned(), notes: vec![], z_sem, x_terminal, residual }
    }

    /// Notes the settings that made the codes.
    pub(crate) fn with_settings(self, settings: &Settings) -> Self {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let note = |(name, value): (&String, &Value)| (format!("{PREFIX}{name}"), text(value));
        self.with_notes(settings.iter().map(note).collect())
    }

    /// Notes the settings that made the codes, as text of their file.
    pub(crate) fn with_notes(self, notes: Vec<(String, String)>) -> Self {
        Self { notes, ..self }
    }

    /// Returns the settings that made the codes.
    pub(crate) fn notes(&self) -> &[(String, String)] {
        &self.notes
    }

    /// Returns the codes.
    pub(crate) fn inner(&self) -> &diffae_infer::Codes {
        &self.inner
    }

    /// Returns the name of the codes in messages: the path of their file.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Fails if the codes are of another model, or of other sizes than a model's.
    pub(crate) fn check(&self, model: &Model) -> Result<()> {
        let path = Path::new(&self.name);
        self.inner.check_made_by(model, path)?;
        Ok(self.inner.check_sizes(model, path)?)
    }

    /// Returns the codes of some pictures; settings and name stay.
    fn select(&self, indices: &[usize]) -> Result<Self> {
        let inner = self.inner.select(indices)?;
        Ok(Self { name: self.name.clone(), ..Self::new(inner).with_notes(self.notes.clone()) })
    }

    fn chain_json(&self) -> Result<Option<String>> {
        let chain = self.inner.chain.as_ref().map(|chain| chain_text(chain.settings));
        chain.transpose().map_err(|error| Error::Conflict { problem: error.to_string() })
    }
}

#[pymethods]
impl Codes {
    #[new]
    #[pyo3(signature = (z_sem=None, x_T=None, **parts))]
    #[expect(non_snake_case, reason = "the name that papers and files of codes have")]
    fn from_arrays(
        z_sem: Option<&Bound<'_, PyAny>>,
        x_T: Option<&Bound<'_, PyAny>>,
        parts: Option<&Bound<'_, PyDict>>,
    ) -> Result<Self> {
        let part = |name: &str| -> Result<Option<Bound<'_, PyAny>>> {
            Ok(parts.map(|parts| parts.get_item(name)).transpose()?.flatten().filter(|part| !part.is_none()))
        };
        let (residual, chain) = (part("residual")?, part("chain")?);
        let (names, fingerprint) = (part("names")?, part("fingerprint")?);
        for name in parts.into_iter().flat_map(PyDictMethods::keys) {
            if !["residual", "chain", "names", "fingerprint"].contains(&name.extract::<String>()?.as_str()) {
                let message = format!("Codes() got an unexpected keyword argument {name}");
                return Err(PyTypeError::new_err(message).into());
            }
        }
        let arrays = [z_sem, x_T, residual.as_ref()].map(|array| array.filter(|array| !array.is_none()));
        let names = names.map(|names| names.extract::<Vec<String>>()).transpose()?;
        let fingerprint = fingerprint.map(|print| print.extract::<String>()).transpose()?.unwrap_or_default();
        let inner = joined(arrays, chain.as_ref(), names, fingerprint)?;
        Ok(Self::new(inner))
    }

    /// Semantic codes, float32 [N, D]; None in a plain DDPM. Read only.
    #[getter]
    fn z_sem(&self, py: Python<'_>) -> Result<Option<FloatArray>> {
        array(py, &self.z_sem, self.inner.z_sem.as_ref())
    }

    /// Noise maps, float32 [N, C, H, W], or [N, D] in a one-shot autoencoder; None if only z_sem was encoded. Read only.
    #[getter(x_T)]
    fn x_terminal(&self, py: Python<'_>) -> Result<Option<FloatArray>> {
        array(py, &self.x_terminal, self.inner.x_terminal.as_ref())
    }

    /// Residuals of an exact chain, float32, shape of x_T; None of other chains. Read only.
    #[getter]
    fn residual(&self, py: Python<'_>) -> Result<Option<FloatArray>> {
        let residual = self.inner.chain.as_ref().and_then(|chain| chain.residual.as_ref());
        array(py, &self.residual, residual)
    }

    /// The chain that made x_T and decodes it, as a dict: its kind, steps, spacing and, if exact, weights. Of samples the one that
    /// decoded them, of kind sampled: steps, spacing, sampler and, if not 0, eta. None for DDIM in reverse, and where it is not
    /// known.
    #[getter]
    fn chain(&self, py: Python<'_>) -> Result<Option<Py<PyAny>>> {
        let json = self.chain_json()?;
        json.map(|json| Ok(py.import("json")?.call_method1("loads", (json,))?.unbind())).transpose()
    }

    /// Names of the pictures, one each.
    #[getter]
    fn names(&self) -> Vec<String> {
        self.inner.names.clone()
    }

    /// Fingerprint of the model that made the codes; empty if it is not known.
    #[getter]
    fn fingerprint(&self) -> &str {
        &self.inner.fingerprint
    }

    /// Writes the codes to a .safetensors file, as `diffae encode` does: whole or not at all.
    ///
    /// Raises InvalidInput if the path ends otherwise or is there already and overwrite is not set, Failure if it cannot be
    /// written.
    #[pyo3(signature = (path, *, overwrite=false))]
    #[expect(clippy::fn_params_excessive_bools, reason = "a keyword has its name at the call")]
    fn save(&self, py: Python<'_>, path: PathBuf, overwrite: bool) -> Result<()> {
        if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors")) {
            let got = path.display();
            return Err(Error::argument("the path of codes", got, "a name that ends in .safetensors"));
        }
        let mut text = vec![("Software".to_owned(), concat!("diffae ", env!("CARGO_PKG_VERSION")).to_owned())];
        text.extend(self.notes.iter().cloned());
        let overwrite = if overwrite { Overwrite::Replace } else { Overwrite::Refuse };
        Ok(py.detach(|| self.inner.write(&path, &text, overwrite))?)
    }

    /// Reads codes that Codes.save or `diffae encode` wrote.
    ///
    /// Raises InvalidInput if there is no such file, it holds no codes or is damaged, Failure if it cannot be read.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> Result<Self> {
        py.detach(|| -> Result<Self> {
            let inner = diffae_infer::Codes::read(&path).map_err(|error| Error::from(error).of_input())?;
            let text = SafetensorsFile::open(&path)?.text();
            let notes = text.into_iter().filter(|(name, _)| name.starts_with(PREFIX) && name != "diffae:command");
            Ok(Self { name: path.display().to_string(), ..Self::new(inner).with_notes(notes.collect()) })
        })
    }

    /// Joins several codes of one model and one chain, in their order. Settings in which all agree are kept for their file.
    ///
    /// Raises InvalidInput if there are none, or they do not go together.
    #[staticmethod]
    fn join(py: Python<'_>, all: Vec<Py<Self>>) -> Result<Self> {
        let mut notes = all.first().map(|first| first.get().notes.clone()).unwrap_or_default();
        notes.retain(|note| all.iter().all(|codes| codes.get().notes.contains(note)));
        let all: Vec<diffae_infer::Codes> = all.iter().map(|codes| codes.get().inner.clone()).collect();
        check_alike(&all)?;
        Ok(Self::new(py.detach(|| diffae_infer::Codes::joined(&all))?).with_notes(notes))
    }

    fn __len__(&self) -> usize {
        self.inner.len()
    }

    /// Returns the codes of one picture by its number, or of those of a slice, as Codes.
    fn __getitem__(&self, index: &Bound<'_, PyAny>) -> Result<Self> {
        let count = self.inner.len();
        if let Ok(slice) = index.cast::<PySlice>() {
            let range = slice.indices(isize::try_from(count).unwrap_or(isize::MAX))?;
            let (mut at, mut indices) = (range.start, vec![]);
            for _ in 0..range.slicelength {
                indices.extend(usize::try_from(at));
                at += range.step;
            }
            return self.select(&indices);
        }
        let signed = index.extract::<isize>()?;
        let from_start =
            if signed < 0 { count.checked_sub(signed.unsigned_abs()) } else { Some(signed.unsigned_abs()) };
        match from_start.filter(|&idx| idx < count) {
            Some(idx) => self.select(&[idx]),
            None => Err(PyIndexError::new_err(format!("there are no codes {signed}, only {count}")).into()),
        }
    }

    fn __repr__(&self) -> String {
        let chain = self.inner.chain.as_ref().map_or("no chain".to_owned(), |chain| chain.settings.to_string());
        let shape = |tensor: Option<&Tensor>| tensor.map_or("none".to_owned(), |tensor| format!("{:?}", tensor.dims()));
        let (z_sem, x_terminal) = (shape(self.inner.z_sem.as_ref()), shape(self.inner.x_terminal.as_ref()));
        format!("<diffae.Codes: {}, z_sem {z_sem}, x_T {x_terminal}, {chain}>", self.inner.len())
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyTuple>> {
        let rebuild = py.import("diffae")?.getattr("_codes_of_parts")?;
        let arrays = (self.z_sem(py)?, self.x_terminal(py)?, self.residual(py)?);
        let text = (self.chain(py)?, self.names(), self.fingerprint(), &self.notes, &self.name);
        Ok((rebuild, (arrays, text)).into_pyobject(py)?)
    }
}

/// Text that belongs to codes: chain, names, fingerprint, settings, name in messages.
type Text<'py> = (Option<Bound<'py, PyAny>>, Vec<String>, String, Vec<(String, String)>, String);
/// `z_sem`, `x_T` and residual.
type Arrays<'py> = (Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>);

/// Rebuilds codes that were pickled.
#[pyfunction]
pub(crate) fn _codes_of_parts(arrays: Arrays<'_>, text: Text<'_>) -> Result<Codes> {
    let (chain, names, fingerprint, notes, name) = text;
    let arrays = [arrays.0.as_ref(), arrays.1.as_ref(), arrays.2.as_ref()];
    let inner = joined(arrays, chain.as_ref(), Some(names), fingerprint)?;
    Ok(Codes { name, ..Codes::new(inner).with_notes(notes) })
}

/// Fails if codes are of different models or sizes.
fn check_alike(all: &[diffae_infer::Codes]) -> Result<()> {
    let Some(first) = all.first() else { return Ok(()) };
    if let Some(other) = all.iter().find(|codes| codes.fingerprint != first.fingerprint) {
        let (first, second) = (&first.fingerprint, &other.fingerprint);
        let problem = format!("codes of model {first:?} and of model {second:?} do not go together");
        return Err(Error::Conflict { problem });
    }
    check_shapes("z_sem", all.iter().filter_map(|codes| codes.z_sem.as_ref()))?;
    check_shapes("x_T", all.iter().filter_map(|codes| codes.x_terminal.as_ref()))
}

/// Fails if tensors of several codes differ in more than the number of pictures.
fn check_shapes<'a>(name: &str, tensors: impl Iterator<Item = &'a Tensor>) -> Result<()> {
    let mut shapes = tensors.map(|tensor| &tensor.dims()[1..]);
    let first = shapes.next();
    match (first, shapes.find(|&other| Some(other) != first)) {
        (Some(first), Some(other)) => {
            let problem = format!("{name} of shapes {first:?} and {other:?} do not go together");
            Err(Error::Conflict { problem })
        }
        _ => Ok(()),
    }
}

/// Returns the array of a tensor, which is made at the first call.
fn array(py: Python<'_>, kept: &PyOnceLock<Option<FloatArray>>, tensor: Option<&Tensor>) -> Result<Option<FloatArray>> {
    let make = || {
        let values = tensor.map(|tensor| py.detach(|| values_of(tensor))).transpose()?;
        values.map(|values| read_only_from(py, values)).transpose()
    };
    Ok(kept.get_or_try_init(py, make)?.as_ref().map(|array| array.clone_ref(py)))
}

/// Puts codes together from arrays: `z_sem`, `x_T` and residual.
fn joined(
    [z_sem, x_terminal, residual]: [Option<&Bound<'_, PyAny>>; 3],
    chain: Option<&Bound<'_, PyAny>>,
    names: Option<Vec<String>>,
    fingerprint: String,
) -> Result<diffae_infer::Codes> {
    let z_sem = z_sem.map(|array| tensor_of("z_sem", array, &[2])).transpose()?;
    // A one-shot autoencoder's noise is a vector.
    let x_terminal = x_terminal.map(|array| tensor_of("x_T", array, &[2, 4])).transpose()?;
    let residual = residual.map(|array| tensor_of("residual", array, &[4])).transpose()?;
    let count = match (&z_sem, &x_terminal) {
        (Some(z_sem), Some(x_terminal)) if z_sem.dims()[0] != x_terminal.dims()[0] => {
            let (codes, maps) = (z_sem.dims()[0], x_terminal.dims()[0]);
            let problem = format!("there are {codes} codes z_sem, but {maps} noise maps x_T");
            return Err(Error::Conflict { problem });
        }
        (Some(first), _) | (None, Some(first)) => first.dims()[0],
        (None, None) => return Err(Error::Conflict { problem: "there is neither z_sem nor x_T".to_owned() }),
    };
    let chain = chain.map(chain_of).transpose()?;
    let chain = match (chain, residual) {
        (_, Some(residual)) if x_terminal.as_ref().is_none_or(|x_terminal| x_terminal.dims() != residual.dims()) => {
            let problem = format!("a residual of shape {:?} does not fit x_T", residual.dims());
            return Err(Error::Conflict { problem });
        }
        // As of files: without one it is 0, and codes with and without one can be joined.
        (Some(settings @ ChainSettings::Exact(_)), residual) => {
            let zeros = || x_terminal.as_ref().map(Tensor::zeros_like).transpose();
            Some(CodeChain { settings, residual: residual.map_or_else(zeros, |residual| Ok(Some(residual)))? })
        }
        (_, Some(_)) => {
            let problem = "there is a residual, but no exact chain that it belongs to".to_owned();
            return Err(Error::Conflict { problem });
        }
        (settings, None) => settings.map(|settings| CodeChain { settings, residual: None }),
    };
    let names = match names {
        Some(names) if names.len() == count => names,
        Some(names) => {
            return Err(Error::argument("the number of names", names.len(), &format!("one for each of {count} codes")));
        }
        None => (0..count).map(|idx| format!("{idx:04}")).collect(),
    };
    Ok(diffae_infer::Codes { z_sem, x_terminal, chain, names, fingerprint })
}

/// Writes a chain as JSON: its kind, and its settings as in files of codes.
fn chain_text(chain: ChainSettings) -> serde_json::Result<String> {
    let (kind, settings) = match chain {
        ChainSettings::Exact(exact) => ("exact", serde_json::to_value(exact)?),
        ChainSettings::FixedPoint(fixed) => ("fixed-point", serde_json::to_value(fixed)?),
        ChainSettings::Sampled(sampled) => ("sampled", serde_json::to_value(sampled)?),
        _ => ("unknown", Value::Null),
    };
    let mut chain = serde_json::Map::from_iter([("kind".to_owned(), Value::from(kind))]);
    chain.extend(settings.as_object().cloned().unwrap_or_default());
    Ok(Value::from(chain).to_string())
}

/// Reads a chain from a dict, as [`chain_text`] writes it.
fn chain_of(chain: &Bound<'_, PyAny>) -> Result<ChainSettings> {
    let expected =
        "a dict with kind exact, fixed-point or sampled, steps, spacing, of exact chains weights, of samples sampler";
    let Ok(mapping) = chain.cast::<PyMapping>() else {
        return Err(Error::argument("the chain", chain.repr()?, expected));
    };
    let chain = chain.py().get_type::<PyDict>().call1((mapping,))?;
    let json: String = chain.py().import("json")?.call_method1("dumps", (chain,))?.extract()?;
    let unknown = || Error::argument("the chain", &json, expected);
    let mut settings: serde_json::Map<String, Value> = serde_json::from_str(&json).map_err(|_error| unknown())?;
    let kind = settings.remove("kind");
    let settings = Value::from(settings);
    match kind.as_ref().and_then(Value::as_str) {
        Some("exact") => serde_json::from_value::<ExactSettings>(settings).map(ChainSettings::Exact),
        Some("fixed-point") => serde_json::from_value::<FixedPointSettings>(settings).map(ChainSettings::FixedPoint),
        Some("sampled") => serde_json::from_value::<SampledSettings>(settings).map(ChainSettings::Sampled),
        _ => return Err(unknown()),
    }
    .map_err(|_error| unknown())
}
