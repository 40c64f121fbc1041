//! `diffae.load` and `diffae.Model`.

#![expect(clippy::doc_markdown, reason = "doc comments are docstrings, shown as they stand")]
#![expect(clippy::needless_pass_by_value, reason = "arguments of Python are values")]

mod calls;

use std::path::{Path, PathBuf};

use candle_core::DType;
use diffae_eval::EvaluatedModel;
use diffae_infer::{
    BUILT_IN_MODEL, CodesNeed, GivenSettings, LoadOptions, ModelSource, NetworkCall, Pipeline, PipelineSettings,
    Settings, XTerminalSource, device_from_name, rounded_full_strength,
};
use diffae_kernels::kernels_from_environment;
use numpy::PyArrayDyn;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMapping, PyTuple};

use self::calls::{counted, on_pool};
use crate::arrays::{Pictures, array_from};
use crate::codes::Codes;
use crate::error::{Error, Result};
use crate::evaluation;
use crate::settings::{Group, Keywords};
use crate::subject::{Subject, repeated};

/// Description of `levels` for messages.
const LEVELS: &str = "whole numbers, 0 the finest resolution";

type PictureArray = Py<PyArrayDyn<u8>>;

/// Names of number types.
pub(crate) const NUMBER_TYPES: [(&str, DType); 3] = [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)];

/// A model in use; diffae.load makes it.
///
/// Methods that compute take settings as keyword arguments: steps, sampler, eta, spacing, reference, clip, seed, and those
/// of inversions and of the latent diffusion, named as the options of the program and with its defaults; batch_size, threads
/// (one per core if None) and progress, a function of two numbers, done and total. They release the interpreter's lock while they compute,
/// and end at Ctrl-C. A model can be pickled: what is sent is its path, device and fingerprint.
#[pyclass(frozen, module = "diffae", name = "Model")]
pub(crate) struct Model {
    pipeline: Pipeline,
    path: PathBuf,
    device: String,
    number_type: &'static str,
    options: LoadOptions,
}

/// Loads a model: a folder, a run of training, a released checkpoint (.ckpt, .pt, .safetensors), or "toonheads", which is
/// built in.
///
/// device is auto, cpu, cuda, cuda:N or metal; dtype, the number type of the weights, f32, bf16 or f16. Raises InvalidInput if there
/// is no model, or no such device.
#[pyfunction]
#[pyo3(signature = (path=PathBuf::from(BUILT_IN_MODEL), device="auto", *, dtype="f32"))]
pub(crate) fn load(py: Python<'_>, path: PathBuf, device: &str, dtype: &str) -> Result<Model> {
    Model::load(py, &path, device, dtype)
}

/// Loads a model that was pickled, and fails if it has become another.
#[pyfunction]
pub(crate) fn _load_again(
    py: Python<'_>,
    path: PathBuf,
    device: &str,
    dtype: &str,
    fingerprint: &str,
) -> Result<Model> {
    let model = Model::load(py, &path, device, dtype)?;
    model.check_unchanged(model.fingerprint(), ("pickled", fingerprint))?;
    Ok(model)
}

/// Returns eight cartoon faces that the built-in model was not trained on: their names, and uint8 pictures [8, 64, 64, 3].
#[pyfunction]
pub(crate) fn built_in_pictures(py: Python<'_>) -> Result<(Vec<String>, PictureArray)> {
    let pictures = diffae_infer::built_in_pictures()?;
    let (names, pictures): (Vec<String>, Vec<_>) = pictures.into_iter().unzip();
    let sides = pictures.first().map_or([0; 2], |picture| [picture.height() as usize, picture.width() as usize]);
    let bytes = pictures.iter().flat_map(|picture| picture.as_raw().iter().copied()).collect();
    Ok((names, array_from(py, bytes, &[pictures.len(), sides[0], sides[1], 3])?))
}

impl Model {
    fn load(py: Python<'_>, path: &Path, device: &str, dtype: &str) -> Result<Self> {
        kernels_from_environment()?;
        let known = NUMBER_TYPES.into_iter().find(|(name, _)| *name == dtype);
        let Some((number_type, dtype)) = known else {
            return Err(Error::argument("dtype", format!("{dtype:?}"), "f32, bf16 or f16"));
        };
        let opened = device_from_name(device).map_err(|error| Error::Absent(Box::new(error.into())))?;
        let options = LoadOptions { device: opened, dtype, ..LoadOptions::cpu() };
        let load = || diffae_infer::Model::load(path, &options).map_err(|error| Error::from(error).of_input());
        let pipeline = Pipeline::new(on_pool(py, None, load)?);
        let format = pipeline.model().picture_format();
        if !format.is_plain() {
            let window = format.window.map(|window| format!(" in the window {window}")).unwrap_or_default();
            let expected = "one of pictures of bytes in gray or color, which are the arrays of this module";
            return Err(Error::argument("the model", format!("one of the shape {}{window}", format.shape), expected));
        }
        Ok(Self { pipeline, path: absolute(path, BUILT_IN_MODEL)?, device: device.to_owned(), number_type, options })
    }

    /// Returns the model for an evaluation, which also reads weights that the pipeline does not keep.
    pub(crate) fn evaluated(&self, batch_size: Option<usize>) -> Result<EvaluatedModel> {
        let source = ModelSource::open(&self.path, &self.options.hints);
        let source = source.map_err(|error| Error::from(error).of_input())?;
        self.check_unchanged(&source.fingerprint()?, ("loaded", self.fingerprint()))?;
        Ok(EvaluatedModel::new(self.pipeline.clone(), source, self.options.dtype, batch_size))
    }

    /// Fails if another model is at the path than there was.
    fn check_unchanged(&self, now: &str, (what, then): (&str, &str)) -> Result<()> {
        if now == then {
            return Ok(());
        }
        let problem = format!("{} is model {now} now; what was {what} was model {then} there", self.path.display());
        Err(Error::Conflict { problem })
    }

    /// Returns the codes that pictures are encoded to if these are wanted.
    fn need(&self, wanted: CodesNeed) -> Result<CodesNeed> {
        if wanted == CodesNeed::ZSem && !self.pipeline.model().has_z_sem() {
            let problem = format!("{} is a plain DDPM, which has no semantic code", self.path.display());
            return Err(Error::Conflict { problem });
        }
        Ok(if self.pipeline.is_one_shot() { CodesNeed::ZSem } else { wanted })
    }
}

#[pymethods]
impl Model {
    /// Encodes pictures to Codes: z_sem [N, D], and x_T [N, C, H, W] unless semantic_only is set.
    ///
    /// pictures is a C-contiguous uint8 array [N, H, W, 3], read in place; other sizes than the model's are resized and cropped
    /// to the center. Settings: steps, inversion (exact, fixed-point, ddim), spacing, reference, batch_size, threads, progress;
    /// names of the pictures; check_domain=False leaves out the warning of pictures that the model was not made for, and its two network calls
    /// for each. Raises InvalidInput for other arrays.
    #[pyo3(signature = (pictures, **settings))]
    fn encode(
        &self,
        py: Python<'_>,
        pictures: &Bound<'_, PyAny>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> Result<Codes> {
        let own = ["steps", "inversion", "spacing", "reference", "names", "semantic_only", "check_domain"];
        let keywords = Keywords::new("encode()", settings, &[], &own)?;
        let settings = keywords.chains()?.encoding(self.pipeline.model().config())?;
        let wanted = if keywords.switch("semantic_only")? { CodesNeed::ZSem } else { CodesNeed::Both };
        let need = self.need(wanted)?;
        let pictures = Pictures::new(pictures)?;
        let codes = self.encoded(py, &pictures, (need, settings), &keywords)?;
        let mut noted = Settings::from([("model".to_owned(), self.fingerprint().into())]);
        if need == CodesNeed::Both {
            noted.extend(settings.inversion_settings());
        }
        Ok(Codes::new(codes).with_settings(&noted))
    }

    /// Decodes Codes to pictures, uint8 [N, H, W, 3]: along the chain that made them, samples as they were decoded unless settings
    /// name another chain, other x_T along the paper's chain.
    ///
    /// x_T="random" draws it by the seed, "endpoint" computes it from z_sem by the network of a polished model, "zero" leaves it out. Raises InvalidInput for codes of another model.
    #[pyo3(signature = (codes, **settings))]
    fn decode(
        &self,
        py: Python<'_>,
        codes: &Bound<'_, PyAny>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> Result<PictureArray> {
        let keywords = Keywords::new("decode()", settings, &[Group::Decoding], &["x_T"])?;
        let Ok(codes) = codes.cast::<Codes>() else {
            let got = format!("of type {}", codes.get_type().name()?);
            return Err(Error::argument("codes", got, "diffae.Codes"));
        };
        let codes = codes.get();
        codes.check(self.pipeline.model())?;
        let (given, config) = (keywords.chains()?, self.pipeline.model().config());
        let stored = codes.inner();
        let from = |source| GivenSettings { x_terminal: Some(source), ..given }.decoding(config);
        let without = || diffae_infer::Codes { x_terminal: None, chain: None, ..stored.clone() };
        let expected = "stored, random, endpoint or zero";
        let source = keywords.get::<String>("x_T", expected)?;
        let (codes, settings) = match source.as_deref().unwrap_or("stored") {
            "stored" if stored.x_terminal.is_none() && !self.pipeline.is_one_shot() => {
                let problem = "the codes hold no x_T; use x_T=\"random\", \"endpoint\" or \"zero\"".to_owned();
                return Err(Error::Conflict { problem });
            }
            "stored" => {
                let settings = given.decoding_codes(stored, codes.name(), config)?;
                (self.with_noise(stored.clone())?, settings)
            }
            "random" => (without(), from(XTerminalSource::Random)?),
            "endpoint" => (without(), from(XTerminalSource::Endpoint)?),
            "zero" => {
                let zero = self.pipeline.model().zero_x_terminal(stored.len())?;
                let codes = diffae_infer::Codes { x_terminal: Some(zero), ..without() };
                (codes, given.decoding(config)?)
            }
            other => return Err(Error::argument("x_T", format!("{other:?}"), expected)),
        };
        let numbers: Vec<u64> = (0..codes.len() as u64).collect();
        let pictures = self.decoded(py, (&codes, &numbers), self.decoding(&keywords, settings)?, &keywords)?;
        self.array(py, pictures, &[codes.len()])
    }

    /// Edits attributes of pictures, or of Codes, and decodes the result: uint8 [N, H, W, 3].
    ///
    /// edits is a dict of attributes with their strengths; None is a full edit, or 0.3 where none is known, and negative strengths
    /// remove the attribute. levels are those of a hierarchical z_sem to edit, by default all. Raises InvalidInput for attributes and levels that the model does not have.
    #[pyo3(signature = (pictures_or_codes, edits, **settings))]
    fn edit(
        &self,
        py: Python<'_>,
        pictures_or_codes: &Bound<'_, PyAny>,
        edits: &Bound<'_, PyMapping>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> Result<PictureArray> {
        let groups = [Group::Decoding, Group::Inverting];
        let keywords = Keywords::new("edit()", settings, &groups, &["check_domain", "levels"])?;
        // Before the long inversion.
        let strengths = self.strengths(edits)?;
        let levels = self.levels(keywords.get("levels", LEVELS)?)?;
        let subject = Subject::new(pictures_or_codes, &self.pipeline)?;
        let settings = self.settings_of(&[&subject], PipelineSettings::REFERENCE_EDITS, &keywords)?;
        let codes = self.codes_of(py, &subject, settings, &keywords)?;
        let edited = on_pool(py, keywords.threads()?, || {
            self.with_noise(self.edited(&codes, &strengths, levels.as_deref())?)
        })?;
        let numbers: Vec<u64> = (0..edited.len() as u64).collect();
        let pictures = self.decoded(py, (&edited, &numbers), settings, &keywords)?;
        self.array(py, pictures, &[edited.len()])
    }

    /// Edits attributes of Codes, without decoding: their z_sem moves, at all levels or those given, the rest stays. See edit.
    #[pyo3(signature = (codes, edits, levels=None))]
    fn edit_codes(
        &self,
        py: Python<'_>,
        codes: &Bound<'_, Codes>,
        edits: &Bound<'_, PyMapping>,
        levels: Option<Vec<usize>>,
    ) -> Result<Codes> {
        let codes = codes.get();
        codes.check(self.pipeline.model())?;
        let strengths = self.strengths(edits)?;
        let levels = self.levels(levels)?;
        let edited = on_pool(py, None, || self.edited(codes.inner(), &strengths, levels.as_deref()))?;
        Ok(Codes::new(edited).with_notes(codes.notes().to_vec()))
    }

    /// Interpolates between one picture, or the Codes of one, and another: uint8 [frames, H, W, 3] with both ends.
    ///
    /// levels are those of a hierarchical z_sem to interpolate, while all else stays that of the first; by default all is
    /// interpolated. Raises InvalidInput unless each is one, and there are two frames or more.
    #[pyo3(signature = (codes_a, codes_b, frames, **settings))]
    fn interpolate(
        &self,
        py: Python<'_>,
        codes_a: &Bound<'_, PyAny>,
        codes_b: &Bound<'_, PyAny>,
        frames: usize,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> Result<PictureArray> {
        let groups = [Group::Decoding, Group::Inverting];
        let keywords = Keywords::new("interpolate()", settings, &groups, &["check_domain", "levels"])?;
        let levels = self.levels(keywords.get("levels", LEVELS)?)?;
        let [from, to] = [codes_a, codes_b].map(|end| Subject::new(end, &self.pipeline));
        let (from, to) = (from?, to?);
        // As the library says it, but before the long inversion.
        if [from.len(), to.len()] != [1, 1] || frames < 2 {
            let got = format!("{} and {} pictures, {frames} frames", from.len(), to.len());
            return Err(Error::argument("an interpolation", got, "one and one, two or more"));
        }
        let settings = self.settings_of(&[&from, &to], PipelineSettings::REFERENCE, &keywords)?;
        let from = self.codes_of(py, &from, settings, &keywords)?;
        let to = self.codes_of(py, &to, settings, &keywords)?;
        let path = || {
            let path = self.pipeline.interpolate(&self.with_noise(from)?, &self.with_noise(to)?, frames)?;
            match levels {
                None => Ok(path),
                Some(levels) => Ok(self.pipeline.with_levels_of(&path.first_repeated(frames)?, &path, &levels)?),
            }
        };
        let path = on_pool(py, keywords.threads()?, path)?;
        let numbers: Vec<u64> = (0..path.len() as u64).collect();
        let pictures = self.decoded(py, (&path, &numbers), settings, &keywords)?;
        self.array(py, pictures, &[path.len()])
    }

    /// Samples n new pictures, uint8 [n, H, W, 3]: those of the seed from number first on.
    ///
    /// The same seed and number give the same picture in any batch. Raises InvalidInput if the model has no latent net.
    /// x_T="random" and "endpoint" say where the x_T comes from: random by default, that of its endpoint network in a polished model.
    #[pyo3(signature = (n, **settings))]
    fn sample(&self, py: Python<'_>, n: usize, settings: Option<&Bound<'_, PyDict>>) -> Result<PictureArray> {
        let groups = [Group::Decoding, Group::Latent];
        let keywords = Keywords::new("sample()", settings, &groups, &["first", "x_T"])?;
        let (pipeline, model) = (&self.pipeline, self.pipeline.model());
        let x_terminal = match keywords.get::<String>("x_T", "random or endpoint")?.as_deref() {
            None => None,
            Some("random") => Some(XTerminalSource::Random),
            Some("endpoint") => Some(XTerminalSource::Endpoint),
            Some(other) => return Err(Error::argument("x_T", format!("{other:?}"), "random or endpoint")),
        };
        let given = GivenSettings { x_terminal, ..keywords.chains()? };
        let settings = self.decoding(&keywords, given.decoding(model.config())?)?;
        let first = keywords.get::<u64>("first", "a whole number, 0 or more")?.unwrap_or(0);
        let numbers: Vec<u64> = (first..).take(n).collect();
        if model.has_z_sem() {
            pipeline.check_latent_steps(&settings)?;
        }
        let codes =
            counted(py, &keywords, (NetworkCall::Decoder, n * pipeline.num_decoding_calls(&settings)), |counter| {
                Ok(pipeline.sample_codes(&numbers, &settings, &mut |event| counter.count(event))?)
            })?;
        let pictures = self.decoded(py, (&codes, &numbers), settings, &keywords)?;
        self.array(py, pictures, &[codes.len()])
    }

    /// Decodes the z_sem of each picture, or of each of the Codes, with n random x_T of the seed: uint8 [N, n, H, W, 3].
    #[pyo3(signature = (pictures_or_codes, n, **settings))]
    fn variations(
        &self,
        py: Python<'_>,
        pictures_or_codes: &Bound<'_, PyAny>,
        n: usize,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> Result<PictureArray> {
        let keywords = Keywords::new("variations()", settings, &[Group::Decoding], &["check_domain"])?;
        if n == 0 {
            return Err(Error::argument("variations", "none", "one or more"));
        }
        let given = keywords.chains()?.decoding(self.pipeline.model().config())?;
        let settings = PipelineSettings { x_terminal: XTerminalSource::Random, ..self.decoding(&keywords, given)? };
        let codes = match Subject::new(pictures_or_codes, &self.pipeline)? {
            Subject::Codes(codes) => codes.get().inner().clone(),
            Subject::Pictures(pictures) => {
                self.encoded(py, &pictures, (self.need(CodesNeed::ZSem)?, settings), &keywords)?
            }
        };
        let varied = repeated(&codes, n)?;
        // As in the program, each picture has noise of its own.
        let numbers: Vec<u64> = (0..varied.len() as u64).collect();
        let pictures = self.decoded(py, (&varied, &numbers), settings, &keywords)?;
        self.array(py, pictures, &[codes.len(), n])
    }

    /// Measures the model on the pictures of a folder or an archive, and returns the report as a dict.
    ///
    /// measure is recon, inversion or z_usage. out is the folder of the report with its tables and plots, where an interrupted
    /// evaluation resumes; without it they are not kept. Settings: limit, seed, overwrite, batch_size, threads, progress; of recon steps
    /// (a list), invert_steps and sampler, of inversion exact_steps (a list), of z_usage steps and sampler. Raises InvalidInput
    /// if there are no such pictures, or another model is at the path now than was loaded.
    #[pyo3(signature = (measure, data, **settings))]
    fn evaluate(
        &self,
        py: Python<'_>,
        measure: &str,
        data: PathBuf,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> Result<Py<PyAny>> {
        evaluation::evaluate(py, self, (measure, &data), settings)
    }

    /// Attributes that edit knows, each with the strength of a full edit; None where that is not known.
    #[getter]
    fn directions<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let directions = PyDict::new(py);
        for (idx, name) in self.pipeline.attributes().iter().enumerate() {
            let classifier = self.pipeline.model().classifier()?;
            directions.set_item(name, rounded_full_strength(classifier, idx)?)?;
        }
        Ok(directions)
    }

    /// Fingerprint of the weights that encode and decode, by which codes know their model.
    #[getter]
    fn fingerprint(&self) -> &str {
        self.pipeline.model().fingerprint()
    }

    /// Absolute path or name that the model was loaded from.
    #[getter]
    fn path(&self) -> String {
        self.path.display().to_string()
    }

    /// Shape of the model's pictures: channels, height, width.
    #[getter]
    fn image_shape<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyTuple>> {
        Ok(PyTuple::new(py, self.pipeline.model().image_shape().dims())?)
    }

    fn __repr__(&self) -> String {
        let shape = self.pipeline.model().image_shape();
        let device = self.pipeline.model().device().location();
        format!("<diffae.Model {}: {shape}, {device:?}>", self.path.display())
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyTuple>> {
        let load = py.import("diffae")?.getattr("_load_again")?;
        Ok((load, (&self.path, &self.device, self.number_type, self.fingerprint())).into_pyobject(py)?)
    }
}

/// Returns the absolute path, since the process may go elsewhere; a name stays as it is.
pub(crate) fn absolute(path: &Path, name: &str) -> Result<PathBuf> {
    if path == Path::new(name) {
        return Ok(path.to_owned());
    }
    let failed = |source| diffae_infer::Error::Io { path: path.to_owned(), source };
    Ok(std::path::absolute(path).map_err(failed)?)
}
