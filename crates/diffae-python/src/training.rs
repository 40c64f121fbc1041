//! `diffae.train`: runs of training, from settings in Python.

#![expect(clippy::doc_markdown, reason = "doc comments are docstrings, shown as they stand")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use diffae_data::FOLDER_LABELS;
use diffae_infer::BUILT_IN_MODEL;
use diffae_kernels::kernels_from_environment;
use diffae_train::presets as known_presets;
use diffae_train::{Notes, Outcome, RunFolder, Stage, StepReport, TrainConfig, TrainOptions, Work};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::error::{Error, Result};
use crate::settings::Keywords;
use crate::work::compute;

/// Keyword arguments of training.
const KEYWORDS: [&str; 8] = ["data", "out", "labels", "init_from", "freeze", "stage", "resume", "settings"];
/// Key of a dict of settings that names the preset which the others change.
const EXTENDS: &str = "extends";

/// Trains a model: encoder and decoder, a latent diffusion, and with labels an attribute classifier. Returns "finished", or
/// "stopped" if on_step has returned False.
///
/// config is the name of a preset, the path of a TOML file, or a dict of settings, which may extend a preset
/// ({"extends": "small64", "autoencoder": {"images": 1000}}); None goes on with the run of the folder. on_step gets a dict of stage, work, step,
/// num_steps, loss and batch after each step; False stops, and an exception or Ctrl-C does, too. In all cases the run is saved
/// in the folder out, and resume=True goes on with it, to the same bits. Other arguments: data, labels, init_from, freeze, stage, settings
/// (a dict of dotted keys, as --set), threads. Raises InvalidInput for settings that are wrong, Failure if training diverges.
#[pyfunction]
#[pyo3(signature = (config=None, on_step=None, **arguments))]
pub(crate) fn train(
    py: Python<'_>,
    config: Option<&Bound<'_, PyAny>>,
    on_step: Option<Py<PyAny>>,
    arguments: Option<&Bound<'_, PyDict>>,
) -> Result<&'static str> {
    trained(py, config, on_step, &Keywords::new("train", arguments, &[], &KEYWORDS)?)
}

/// Returns the presets of training: their names, each with its purpose.
#[pyfunction]
pub(crate) fn presets(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let named = PyDict::new(py);
    known_presets::PRESETS.iter().try_for_each(|preset| named.set_item(preset.name, preset.summary))?;
    Ok(named)
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
    let config = config.map(|config| config_of(config, &assignments)).transpose()?;
    let notes = notes(keywords)?;
    let options = TrainOptions { stage: stage(keywords)?, resume };
    let mut listener = on_step.map(|on_step| move |py: Python<'_>, report| tell(py, &on_step, &report));
    let listener = listener.as_mut().map(|listener| listener as _);
    let outcome = compute(py, keywords.threads()?, listener, |link| {
        let mut folder = match (&config, &notes) {
            (Some(config), Some(notes)) => RunFolder::open_or_create(&out, config, notes)?,
            (None, _) if resume => {
                let mut folder = RunFolder::open(&out)?;
                let wanted = folder.config_from(folder.config(), &assignments)?;
                folder.change(&wanted)?;
                folder
            }
            (None, _) => {
                let expected = "a preset, a file or a dict, or resume=True with the folder of a run";
                return Err(Error::argument("config", "None", expected));
            }
            (Some(_), None) => return Err(Error::argument("data", "None", "the folder of the pictures")),
        };
        Ok(diffae_train::train(&mut folder, options, &mut |report| link.report(|| *report))?)
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

/// Returns the inputs of a run by absolute paths, since it may be resumed from anywhere; `None` without data.
fn notes(keywords: &Keywords<'_>) -> Result<Option<Notes>> {
    let absolute = |path: PathBuf, name: &str| -> Result<PathBuf> {
        if path == Path::new(name) {
            return Ok(path);
        }
        Ok(std::path::absolute(&path).map_err(|source| diffae_infer::Error::Io { path, source })?)
    };
    let path = |name, expected| keywords.get::<PathBuf>(name, expected);
    let Some(data) = path("data", "the folder of the pictures")? else { return Ok(None) };
    let labels = path("labels", "the file of the labels")?.map(|path| absolute(path, FOLDER_LABELS)).transpose()?;
    let init_from = path("init_from", "a model")?.map(|path| absolute(path, BUILT_IN_MODEL)).transpose()?;
    let freeze = keywords.get::<Vec<String>>("freeze", "a list of parts")?.unwrap_or_default();
    Ok(Some(Notes { data: absolute(data, "")?, labels, init_from, freeze, ..Notes::default() }))
}

fn stage(keywords: &Keywords<'_>) -> Result<Option<Stage>> {
    let expected = "autoencoder, latent or classifier";
    let Some(name) = keywords.get::<String>("stage", expected)? else { return Ok(None) };
    let stage = Stage::ALL.into_iter().find(|stage| stage.name() == name);
    stage.map(Some).ok_or_else(|| Error::argument("stage", format!("{name:?}"), expected))
}

/// Returns the settings of `settings={"autoencoder.lr": 1e-4}` as the command line gives them.
fn assignments(keywords: &Keywords<'_>) -> Result<Vec<String>> {
    let Some(settings) = keywords.object("settings") else { return Ok(vec![]) };
    let Ok(settings) = settings.cast::<PyDict>() else {
        return Err(Error::argument("settings", settings.repr()?, "a dict of settings by their keys"));
    };
    flat("", settings)
}

/// Reads the config of a run, with some settings changed.
fn config_of(config: &Bound<'_, PyAny>, assignments: &[String]) -> Result<TrainConfig> {
    if let Ok(settings) = config.cast::<PyDict>() {
        return config_of_dict(settings, assignments);
    }
    let expected = "the name of a preset, the path of a config, or a dict of settings";
    let Ok(path) = config.extract::<PathBuf>() else {
        return Err(Error::argument("config", config.repr()?, expected));
    };
    let is_path = path.extension().is_some() || config.cast::<PyString>().is_err();
    match path.to_str() {
        Some(name) if !is_path => Ok(known_presets::config(name, assignments)?),
        _ => {
            let read = std::fs::read_to_string(&path);
            let text = read.map_err(|source| diffae_infer::Error::Io { path: path.clone(), source })?;
            Ok(TrainConfig::from_toml_with(&text, assignments)?)
        }
    }
}

/// Reads a dict: all settings, or those that differ from the preset after `extends`.
fn config_of_dict(settings: &Bound<'_, PyDict>, assignments: &[String]) -> Result<TrainConfig> {
    let Some(base) = settings.get_item(EXTENDS)? else {
        let text = toml_table(settings)?;
        return Ok(TrainConfig::from_toml_with(&text, assignments)?);
    };
    let own = settings.copy()?;
    own.del_item(EXTENDS)?;
    let mut all = flat("", &own)?;
    all.extend_from_slice(assignments);
    Ok(known_presets::config(&base.extract::<String>()?, &all)?)
}

/// Returns the settings of nested dicts as `key=value` with dotted keys.
fn flat(prefix: &str, settings: &Bound<'_, PyDict>) -> Result<Vec<String>> {
    let mut all = vec![];
    for (key, value) in settings {
        let key = format!("{prefix}{}", key.extract::<String>()?);
        match value.cast::<PyDict>() {
            Ok(inner) => all.extend(flat(&format!("{key}."), inner)?),
            Err(_) => all.push(format!("{key}={}", toml_value(&key, &value)?)),
        }
    }
    Ok(all)
}

/// Writes a dict as TOML.
fn toml_table(settings: &Bound<'_, PyDict>) -> Result<String> {
    Ok(flat("", settings)?.join("\n"))
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
