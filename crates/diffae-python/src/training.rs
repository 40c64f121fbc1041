//! `diffae.train`: runs of training, from settings in Python.

#![expect(clippy::doc_markdown, reason = "doc comments are docstrings, shown as they stand")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use diffae_data::FOLDER_LABELS;
use diffae_infer::{BUILT_IN_MODEL, device_from_name};
use diffae_kernels::kernels_from_environment;
use diffae_train::presets as known_presets;
use diffae_train::{
    Compute, Notes, Outcome, RunFolder, Stage, StepReport, TrainConfig, TrainOptions, Work, require_same,
};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple};

use crate::error::{Error, Result};
use crate::model::{NUMBER_TYPES, absolute};
use crate::settings::Keywords;
use crate::work::compute;

/// Keyword arguments of training.
const KEYWORDS: [&str; 14] = [
    "data",
    "out",
    "labels",
    "init_from",
    "spatial_weights",
    "encoder_weights",
    "lpips_weights",
    "freeze",
    "stage",
    "resume",
    "settings",
    "threads",
    "device",
    "dtype",
];
/// Key of a dict of settings that names the preset which the others change.
const EXTENDS: &str = "extends";

/// Trains a model: encoder and decoder, a latent diffusion, and with labels an attribute classifier. Returns "finished", or
/// "stopped" if on_step has returned False.
///
/// config is the name of a preset, the path of a TOML file, or a dict of settings, which may extend a preset
/// ({"extends": "small64", "autoencoder": {"images": 1000}}). on_step gets a dict of stage, work, step, num_steps, loss and batch
/// after each step; False stops, and an exception or Ctrl-C does, too. In all cases the run is saved in the folder out, and
/// resume=True goes on with it, to the same bits. Other arguments: data, labels, init_from, spatial_weights, encoder_weights,
/// lpips_weights, freeze, stage, settings (a dict of dotted keys, as --set), threads, device (cpu unless it is given), dtype (of the arithmetic: f32 unless
/// it is given, or on a GPU bf16 or f16). To resume a run takes no more than out; a config changes the settings of it that may change,
/// labels replace those that it has, and what else is given must be what it was started with. Raises InvalidInput for settings that
/// are wrong and for paths that are not there, Failure if training diverges.
#[pyfunction]
#[pyo3(signature = (config=None, on_step=None, **arguments))]
pub(crate) fn train(
    py: Python<'_>,
    config: Option<&Bound<'_, PyAny>>,
    on_step: Option<Py<PyAny>>,
    arguments: Option<&Bound<'_, PyDict>>,
) -> Result<&'static str> {
    trained(py, config, on_step, &Keywords::among("train()", arguments, &KEYWORDS)?)
}

/// Returns the presets of training: their names, each with its purpose.
#[pyfunction]
pub(crate) fn presets(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let named = PyDict::new(py);
    known_presets::PRESETS.iter().try_for_each(|preset| named.set_item(preset.name, preset.summary))?;
    Ok(named)
}

/// Returns the number type of the arithmetic.
fn dtype(keywords: &Keywords<'_>) -> Result<DType> {
    let name: Option<String> = keywords.get("dtype", "f32, bf16 or f16")?;
    let Some(name) = name else { return Ok(DType::F32) };
    let known = NUMBER_TYPES.into_iter().find(|(known, _)| *known == name);
    known.map(|(_, dtype)| dtype).ok_or_else(|| Error::argument("dtype", format!("{name:?}"), "f32, bf16 or f16"))
}

fn trained(
    py: Python<'_>,
    config: Option<&Bound<'_, PyAny>>,
    on_step: Option<Py<PyAny>>,
    keywords: &Keywords<'_>,
) -> Result<&'static str> {
    kernels_from_environment()?;
    let out = required(keywords, "out", "the folder of the run")?;
    let resume = keywords.switch("resume")?;
    let assignments = assignments(keywords)?;
    let given = config.map(|config| Given::new(config, &assignments)).transpose()?;
    let inputs = Inputs::new(keywords)?;
    let device: Option<String> = keywords.get("device", "cpu, cuda, cuda:N or metal")?;
    let device = device.map(|name| device_from_name(&name).map_err(|error| Error::Absent(Box::new(error.into()))));
    let device = device.transpose()?.unwrap_or(Device::Cpu);
    let options = TrainOptions { stage: stage(keywords)?, resume, compute: Compute::new(device, dtype(keywords)?)? };
    let mut listener = on_step.map(|on_step| move |py: Python<'_>, report| tell(py, &on_step, &report));
    let listener = listener.as_mut().map(|listener| listener as _);
    let outcome = compute(py, keywords.threads()?, listener, |link| {
        let run = || {
            let mut folder = match &given {
                given if resume => resumed(&out, given.as_ref(), &assignments, &inputs)?,
                Some(given) => RunFolder::open_or_create(&out, &given.config, &inputs.notes()?)?,
                None => {
                    let expected = "a preset, a file or a dict, or resume=True with the folder of a run";
                    return Err(Error::argument("config", "None", expected));
                }
            };
            Ok(diffae_train::train(&mut folder, &options, &mut |report| link.report(|| *report))?)
        };
        run().map_err(Error::of_input)
    })?;
    Ok(match outcome {
        Outcome::Finished => "finished",
        Outcome::Stopped => "stopped",
    })
}

/// Tells the callback of a step; only `False` stops.
fn tell(py: Python<'_>, on_step: &Py<PyAny>, report: &StepReport) -> PyResult<ControlFlow<()>> {
    let work = match report.work {
        Work::Starting => "starting",
        Work::Encoding => "encoding",
        Work::Training => "training",
    };
    let numbers = PyDict::new(py);
    numbers.set_item("stage", report.stage.name())?;
    numbers.set_item("work", work)?;
    numbers.set_item("step", report.step)?;
    numbers.set_item("num_steps", report.num_steps)?;
    numbers.set_item("loss", report.loss)?;
    numbers.set_item("batch", report.batch)?;
    let answer = on_step.call1(py, (numbers,))?;
    let stops = answer.bind(py).cast::<PyBool>().is_ok_and(|answer| !answer.is_true());
    Ok(if stops { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
}

fn required(keywords: &Keywords<'_>, name: &str, expected: &str) -> Result<PathBuf> {
    keywords.get::<PathBuf>(name, expected)?.ok_or_else(|| Error::argument(name, "None", expected))
}

/// Opens a run to go on with, and takes over settings and labels that are given; by the rules of `diffae train --resume`.
fn resumed(out: &Path, given: Option<&Given>, assignments: &[String], inputs: &Inputs) -> Result<RunFolder> {
    let mut folder = RunFolder::open(out)?;
    inputs.check(&folder)?;
    let wanted = match given {
        Some(Given { of_preset: Some((preset, changes)), .. }) => folder.config_from(preset, changes)?,
        Some(Given { config, of_preset: None }) => config.clone(),
        None => folder.config_from(folder.config(), assignments)?,
    };
    folder.change(&wanted)?;
    if let Some(labels) = &inputs.labels {
        folder.set_labels(labels.clone())?;
    }
    Ok(folder)
}

/// Inputs of a run as they are given, by absolute paths, since it may be resumed from anywhere.
struct Inputs {
    data: Option<PathBuf>,
    labels: Option<PathBuf>,
    init_from: Option<PathBuf>,
    spatial_weights: Option<PathBuf>,
    encoder_weights: Option<PathBuf>,
    lpips_weights: Option<PathBuf>,
    freeze: Option<Vec<String>>,
}

impl Inputs {
    fn new(keywords: &Keywords<'_>) -> Result<Self> {
        let path = |keyword, expected, name| {
            keywords.get::<PathBuf>(keyword, expected)?.map(|path| absolute(&path, name)).transpose()
        };
        Ok(Self {
            data: path("data", "the folder of the pictures", "")?,
            labels: path("labels", "the file of the labels", FOLDER_LABELS)?,
            init_from: path("init_from", "a model", BUILT_IN_MODEL)?,
            spatial_weights: path("spatial_weights", "weights of a spatial autoencoder", "")?,
            encoder_weights: path("encoder_weights", "weights of a pretrained encoder", "")?,
            lpips_weights: path("lpips_weights", "weights of VGG-16", "")?,
            freeze: keywords.get("freeze", "a list of parts")?,
        })
    }

    /// Returns the notes of a new run.
    fn notes(&self) -> Result<Notes> {
        let Self { data, labels, init_from, spatial_weights, encoder_weights, lpips_weights, freeze } = self;
        let data = data.clone().ok_or_else(|| Error::argument("data", "None", "the folder of the pictures"))?;
        let freeze = freeze.clone().unwrap_or_default();
        Ok(Notes {
            data,
            labels: labels.clone(),
            init_from: init_from.clone(),
            spatial_weights: spatial_weights.clone(),
            encoder_weights: encoder_weights.clone(),
            lpips_weights: lpips_weights.clone(),
            freeze,
            ..Notes::default()
        })
    }

    /// Fails if data, initial weights or frozen parts are given and differ from those of a run.
    fn check(&self, folder: &RunFolder) -> Result<()> {
        let (notes, out) = (folder.notes(), folder.path().display());
        if let Some(data) = &self.data {
            require_same(folder, "data", (&notes.data, data))?;
        }
        for (keyword, given, noted) in [
            ("init_from", &self.init_from, &notes.init_from),
            ("spatial_weights", &self.spatial_weights, &notes.spatial_weights),
            ("encoder_weights", &self.encoder_weights, &notes.encoder_weights),
            ("lpips_weights", &self.lpips_weights, &notes.lpips_weights),
        ] {
            match (given, noted) {
                (Some(given), Some(noted)) => require_same(folder, keyword, (noted, given))?,
                (Some(given), None) => {
                    let given = given.display();
                    let problem = format!("{out}: the run was started without {keyword}, not with {given}");
                    return Err(Error::Conflict { problem });
                }
                (None, _) => {}
            }
        }
        match &self.freeze {
            Some(freeze) if *freeze != notes.freeze => {
                let problem = format!("{out}: the run was started with freeze {:?}, not {freeze:?}", notes.freeze);
                Err(Error::Conflict { problem })
            }
            _ => Ok(()),
        }
    }
}

fn stage(keywords: &Keywords<'_>) -> Result<Option<Stage>> {
    let expected = "spatial, autoencoder, latent or classifier";
    let Some(name) = keywords.get::<String>("stage", expected)? else { return Ok(None) };
    let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name);
    stage.map(Some).ok_or_else(|| Error::argument("stage", format!("{name:?}"), expected))
}

/// Returns the settings of `settings={"autoencoder.lr": 1e-4}` as the command line gives them.
fn assignments(keywords: &Keywords<'_>) -> Result<Vec<String>> {
    let Some(settings) = keywords.object("settings") else { return Ok(vec![]) };
    let Ok(settings) = settings.cast::<PyMapping>() else {
        return Err(Error::argument("settings", settings.repr()?, "a dict of settings by their keys"));
    };
    flat("", settings)
}

/// Settings of a run as they are given.
struct Given {
    /// The config of a new run.
    config: TrainConfig,
    /// The preset that it extends, if it does, and what is changed of it.
    of_preset: Option<(TrainConfig, Vec<String>)>,
}

impl Given {
    /// Reads settings, with some of them changed.
    fn new(config: &Bound<'_, PyAny>, assignments: &[String]) -> Result<Self> {
        if let Ok(settings) = config.cast::<PyMapping>() {
            return Self::of_dict(settings, assignments);
        }
        let expected = "the name of a preset, the path of a config, or a dict of settings";
        let Ok(path) = config.extract::<PathBuf>() else {
            return Err(Error::argument("config", config.repr()?, expected));
        };
        let is_path = path.extension().is_some() || config.cast::<PyString>().is_err();
        match path.to_str() {
            Some(name) if !is_path => Self::of_preset(name, assignments.to_vec()),
            _ => {
                let failed = |source| Error::from(diffae_infer::Error::Io { path: path.clone(), source }).of_input();
                Self::of_toml(&std::fs::read_to_string(&path).map_err(failed)?, assignments)
            }
        }
    }

    /// Reads a dict: all settings, or those that differ from the preset after `extends`.
    fn of_dict(settings: &Bound<'_, PyMapping>, assignments: &[String]) -> Result<Self> {
        let mut own = flat("", settings)?;
        if !settings.contains(EXTENDS)? {
            return Self::of_toml(&own.join("\n"), assignments);
        }
        let preset = settings.get_item(EXTENDS)?.extract::<String>()?;
        own.retain(|setting| setting.split_once('=').is_none_or(|(key, _)| key != EXTENDS));
        own.extend_from_slice(assignments);
        Self::of_preset(&preset, own)
    }

    fn of_preset(name: &str, changes: Vec<String>) -> Result<Self> {
        let config = known_presets::config(name, &changes)?;
        Ok(Self { config, of_preset: Some((known_presets::config(name, &[])?, changes)) })
    }

    fn of_toml(text: &str, assignments: &[String]) -> Result<Self> {
        Ok(Self { config: TrainConfig::from_toml_with(text, assignments)?, of_preset: None })
    }
}

/// Returns the settings of nested dicts as `key=value` with dotted keys.
fn flat(prefix: &str, settings: &Bound<'_, PyMapping>) -> Result<Vec<String>> {
    let mut all = vec![];
    for item in settings.items()? {
        let (key, value) = item.extract::<(String, Bound<'_, PyAny>)>()?;
        let key = format!("{prefix}{key}");
        match value.cast::<PyMapping>() {
            Ok(inner) => all.extend(flat(&format!("{key}."), inner)?),
            Err(_) => all.push(format!("{key}={}", toml_value(&key, &value)?)),
        }
    }
    Ok(all)
}

/// Writes a value as TOML.
fn toml_value(key: &str, value: &Bound<'_, PyAny>) -> Result<String> {
    if let Ok(switch) = value.cast::<PyBool>() {
        return Ok(switch.is_true().to_string());
    }
    if value.is_instance_of::<PyInt>() {
        return Ok(value.to_string());
    }
    if let Ok(number) = value.cast::<PyFloat>() {
        return Ok(format!("{:?}", number.extract::<f64>()?));
    }
    if let Ok(text) = value.cast::<PyString>() {
        // A string of JSON is one of TOML.
        return Ok(serde_json::Value::from(text.extract::<String>()?).to_string());
    }
    if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
        let items = value.try_iter()?.map(|item| toml_value(key, &item?)).collect::<Result<Vec<_>>>()?;
        return Ok(format!("[{}]", items.join(", ")));
    }
    Err(Error::argument(key, value.repr()?, "a number, text, True, False or a list of these"))
}
