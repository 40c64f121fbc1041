//! `Model.evaluate`: measures of diffae-eval, and their reports as dicts.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use diffae_data::{Crop, Overwrite, PictureSet};
use diffae_eval::measures::{Inversion, InversionOptions, Recon, ReconOptions, ReconSubject, ZUsage, ZUsageOptions};
use diffae_eval::{EvaluatedModel, Evaluation, EvaluationEvent, Measure, Report};
use diffae_schedule::Sampler;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::settings::{Callback, Keywords, Progress};
use crate::work::{Link, compute};

/// Keyword arguments of all measures.
const OF_ALL: [&str; 4] = ["out", "limit", "seed", "overwrite"];

/// A measure with its options.
enum Chosen {
    Recon(ReconOptions),
    Inversion(InversionOptions),
    ZUsage(ZUsageOptions),
}

impl Chosen {
    /// Takes a measure by its name, with its keyword arguments.
    fn new<'py>(name: &str, settings: Option<&Bound<'py, PyDict>>) -> Result<(Self, Keywords<'py>)> {
        let keywords = |own: &[&'static str]| {
            Keywords::new(&format!("evaluate({name:?})"), settings, &[], &[own, &OF_ALL].concat())
        };
        let (chosen, keywords) = match name {
            "recon" => {
                let keywords = keywords(&["steps", "invert_steps", "sampler"])?;
                let usual = ReconOptions::default();
                let options = ReconOptions {
                    steps: list(&keywords, "steps")?.unwrap_or(usual.steps),
                    invert_steps: keywords.count("invert_steps")?,
                    sampler: keywords.choice::<Sampler>("sampler")?.unwrap_or(usual.sampler),
                    protocol: usual.protocol,
                };
                (Self::Recon(options), keywords)
            }
            "inversion" => {
                let keywords = keywords(&["exact_steps"])?;
                let usual = InversionOptions::default();
                let exact = list(&keywords, "exact_steps")?.map(|steps| InversionOptions::exact_of(&steps));
                // Their DDIM chains take 250 steps: whoever chooses exact chains chooses all.
                let ddim = if exact.is_some() { vec![] } else { usual.ddim };
                let options = InversionOptions { exact: exact.unwrap_or(usual.exact), ddim, ..usual };
                (Self::Inversion(options), keywords)
            }
            "z_usage" => {
                let keywords = keywords(&["steps", "sampler"])?;
                let usual = ZUsageOptions::default();
                let options = ZUsageOptions {
                    steps: keywords.count("steps")?.unwrap_or(usual.steps),
                    sampler: keywords.choice::<Sampler>("sampler")?.unwrap_or(usual.sampler),
                };
                (Self::ZUsage(options), keywords)
            }
            other => return Err(Error::argument("the measure", format!("{other:?}"), "recon, inversion or z_usage")),
        };
        Ok((chosen, keywords))
    }

    fn run(self, model: &EvaluatedModel, pictures: &PictureSet, evaluation: &Evaluation<'_>) -> Result<Report> {
        let measure: Box<dyn Measure + '_> = match self {
            Self::Recon(options) => {
                Box::new(Recon { subject: ReconSubject::Model(model), pictures, lpips: None, options })
            }
            Self::Inversion(options) => Box::new(Inversion { model, pictures, options }),
            Self::ZUsage(options) => Box::new(ZUsage { model, pictures, options }),
        };
        Ok(measure.run(evaluation)?)
    }
}

fn list(keywords: &Keywords<'_>, name: &str) -> Result<Option<Vec<usize>>> {
    keywords.get::<Vec<usize>>(name, "a list of whole numbers")
}

/// Measures a model on pictures, and returns the report as a dict.
pub(crate) fn evaluate(
    py: Python<'_>,
    model: &Model,
    (measure, data): (&str, &Path),
    settings: Option<&Bound<'_, PyDict>>,
) -> Result<Py<PyAny>> {
    let (chosen, keywords) = Chosen::new(measure, settings)?;
    let (limit, batch_size) = (keywords.count("limit")?, keywords.count("batch_size")?);
    let seed = keywords.get::<u64>("seed", "a whole number, 0 or more")?.unwrap_or(0);
    let overwrite = if keywords.switch("overwrite")? { Overwrite::Replace } else { Overwrite::Refuse };
    let out = keywords.get::<PathBuf>("out", "the path of a folder")?;
    let callback = keywords.progress()?;
    let mut listener = callback.map(|callback: Callback| move |py: Python<'_>, progress| callback.call(py, progress));
    let listener = listener.as_mut().map(|listener| listener as _);
    let report = compute(py, keywords.threads()?, listener, |link| {
        let pictures = PictureSet::first(data, Crop::Center, limit).map_err(|error| Error::from(error).of_input())?;
        let model = model.evaluated(batch_size)?;
        let passing = if out.is_none() { Some(passing_folder()?) } else { None };
        let folder = out.as_deref().or_else(|| passing.as_ref().map(tempfile::TempDir::path)).unwrap_or(data);
        let evaluation = Evaluation::new(folder, observer(link)).with_seed(seed).with_overwrite(overwrite);
        chosen.run(&model, &pictures, &evaluation)
    })?;
    let json = serde_json::to_string(&report).map_err(|error| Error::Conflict { problem: error.to_string() })?;
    Ok(py.import("json")?.call_method1("loads", (json,))?.unbind())
}

/// Makes a folder for results that are not kept.
fn passing_folder() -> Result<tempfile::TempDir> {
    let failed = |source| diffae_infer::Error::Io { path: std::env::temp_dir(), source };
    Ok(tempfile::tempdir().map_err(failed)?)
}

/// Hands the events of an evaluation on as numbers: of the stage in progress.
fn observer<'a>(link: &'a Link<'a, Progress>) -> impl FnMut(&EvaluationEvent) -> ControlFlow<()> + Send + 'a {
    let mut progress = Progress::of(0, 0);
    move |event| {
        progress = match *event {
            EvaluationEvent::Begin { num_items, calls_per_item, .. } => Progress::of(0, num_items * calls_per_item),
            EvaluationEvent::Calls { count } => progress.plus(count),
            EvaluationEvent::End => return ControlFlow::Continue(()),
        };
        link.report(|| progress)
    }
}
