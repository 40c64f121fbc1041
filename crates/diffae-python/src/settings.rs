//! Settings of calls as keyword arguments: names and defaults of [`PipelineSettings`].

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::str::FromStr;

use diffae_infer::{CallEvent, GivenSettings, Inversion, LatentMethod, NetworkCall, PipelineSettings, one_sentence};
use diffae_schedule::{Clip, Sampler, Spacing};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Error, Result};
use crate::work::Link;

/// Keyword arguments of all calls that compute.
const OF_ALL: [&str; 3] = ["batch_size", "threads", "progress"];
/// Keyword arguments of decoding.
const DECODING: [&str; 7] = ["steps", "sampler", "eta", "spacing", "reference", "clip", "seed"];
/// Keyword arguments of inversions.
const INVERTING: [&str; 2] = ["inversion", "invert_steps"];
/// Keyword arguments of the latent diffusion.
const LATENT: [&str; 3] = ["latent_steps", "latent_sampler", "latent_spacing"];

/// A group of keyword arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// Settings of decoding.
    Decoding,
    /// Settings of inversions.
    Inverting,
    /// Settings of the latent diffusion.
    Latent,
}

/// Keyword arguments of a call.
pub(crate) struct Keywords<'py> {
    given: BTreeMap<String, Bound<'py, PyAny>>,
}

impl<'py> Keywords<'py> {
    /// Takes keyword arguments of a call that computes: `own` ones, those of some groups, and those of all such calls.
    ///
    /// # Errors
    /// As [`Keywords::among`].
    pub(crate) fn new(
        call: &str,
        keywords: Option<&Bound<'py, PyDict>>,
        groups: &[Group],
        own: &[&'static str],
    ) -> Result<Self> {
        let of_group = |group: &Group| match group {
            Group::Decoding => &DECODING[..],
            Group::Inverting => &INVERTING,
            Group::Latent => &LATENT,
        };
        let mut known: Vec<&str> = own.to_vec();
        known.extend(groups.iter().flat_map(of_group).chain(&OF_ALL));
        Self::among(call, keywords, &known)
    }

    /// Takes keyword arguments that are known to a call. `None` is as good as nothing.
    ///
    /// # Errors
    /// `TypeError` for other names, with those that there are.
    pub(crate) fn among(call: &str, keywords: Option<&Bound<'py, PyDict>>, known: &[&str]) -> Result<Self> {
        let mut given = BTreeMap::new();
        for (name, value) in keywords.into_iter().flatten() {
            let name = name.extract::<String>()?;
            if !known.contains(&name.as_str()) {
                let known = known.join(", ");
                let message = format!("{call} got an unexpected keyword argument {name:?}; there are {known}");
                return Err(PyTypeError::new_err(message).into());
            }
            if !value.is_none() {
                given.insert(name, value);
            }
        }
        Ok(Self { given })
    }

    /// Returns an argument; `None` if it is not given.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is of another type.
    pub(crate) fn get<T>(&self, name: &str, expected: &str) -> Result<Option<T>>
    where
        T: for<'a> FromPyObject<'a, 'py>,
    {
        let Some(value) = self.given.get(name) else { return Ok(None) };
        match value.extract::<T>() {
            Ok(extracted) => Ok(Some(extracted)),
            Err(_) => Err(Error::argument(name, value.repr()?, expected)),
        }
    }

    /// Returns an argument as it is.
    pub(crate) fn object(&self, name: &str) -> Option<&Bound<'py, PyAny>> {
        self.given.get(name)
    }

    /// Returns a count; `None` if it is not given.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is no positive whole number.
    pub(crate) fn count(&self, name: &str) -> Result<Option<usize>> {
        let expected = "a positive whole number";
        match self.get::<usize>(name, expected)? {
            Some(0) => Err(Error::argument(name, 0, expected)),
            count => Ok(count),
        }
    }

    /// Returns whether a switch is on.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is no bool.
    pub(crate) fn switch(&self, name: &str) -> Result<bool> {
        Ok(self.get::<bool>(name, "True or False")?.unwrap_or(false))
    }

    /// Returns a choice by its name; `None` if it is not given.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no choice of that name.
    pub(crate) fn choice<T>(&self, name: &str) -> Result<Option<T>>
    where
        T: FromStr,
        T::Err: std::error::Error + 'static,
    {
        let Some(text) = self.get::<String>(name, "a name")? else { return Ok(None) };
        let parsed = text.parse::<T>();
        parsed.map(Some).map_err(|error| Error::Conflict { problem: format!("{name}: {}", one_sentence(&error)) })
    }

    /// Returns the settings of chains as they are given.
    pub(crate) fn chains(&self) -> Result<GivenSettings> {
        Ok(GivenSettings {
            num_steps: self.count("steps")?,
            sampler: self.choice::<Sampler>("sampler")?,
            eta: self.get("eta", "a number from 0 to 1")?,
            spacing: self.choice::<Spacing>("spacing")?,
            reference: self.switch("reference")?,
            inversion: self.choice::<Inversion>("inversion")?,
            num_invert_steps: self.count("invert_steps")?,
            x_terminal: None,
            batch_size: self.count("batch_size")?,
        })
    }

    /// Adds what is no matter of chains: seed, clipping, and the latent diffusion.
    pub(crate) fn complete(&self, settings: PipelineSettings) -> Result<PipelineSettings> {
        let latent = settings.latent_options();
        let usual = LatentMethod { sampler: latent.sampler, spacing: latent.spacing };
        let latent_method = LatentMethod::given(usual, self.choice("latent_sampler")?, self.choice("latent_spacing")?)?;
        let clip = match self.get::<bool>("clip", "True or False")? {
            Some(true) => Clip::UnitRange,
            Some(false) => Clip::None,
            None => settings.clip,
        };
        Ok(PipelineSettings {
            seed: self.get("seed", "a whole number, 0 or more")?.unwrap_or(settings.seed),
            clip,
            num_latent_steps: self.count("latent_steps")?.unwrap_or(settings.num_latent_steps),
            latent_method: latent_method.or(settings.latent_method),
            ..settings
        })
    }

    /// Returns the number of threads; `None` for one per core.
    pub(crate) fn threads(&self) -> Result<Option<usize>> {
        self.count("threads")
    }

    /// Returns the callback for progress.
    ///
    /// # Errors
    /// [`Error::Argument`] if it cannot be called.
    pub(crate) fn progress(&self) -> Result<Option<Callback>> {
        let Some(callback) = self.object("progress") else { return Ok(None) };
        if callback.is_callable() {
            return Ok(Some(Callback(callback.clone().unbind())));
        }
        Err(Error::argument("progress", callback.repr()?, "a function of two numbers, done and total"))
    }
}

/// A callback for progress, called with how much is done and how much there is in all.
pub(crate) struct Callback(Py<PyAny>);

impl Callback {
    /// Calls it, unless there is nothing to do. What it returns does not matter; an exception ends the work.
    pub(crate) fn call(&self, py: Python<'_>, progress: Progress) -> PyResult<ControlFlow<()>> {
        if progress.total > 0 {
            self.0.call1(py, (progress.done, progress.total))?;
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Progress of a call, in network calls times pictures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    done: usize,
    total: usize,
}

impl Progress {
    /// Returns so much done of so much.
    pub(crate) fn of(done: usize, total: usize) -> Self {
        Self { done, total }
    }

    /// Returns the progress after so much more; there is never less in all than is done.
    pub(crate) fn plus(self, count: usize) -> Self {
        let done = self.done + count;
        Self { done, total: self.total.max(done) }
    }
}

/// Counts network calls of one kind and reports them.
pub(crate) struct Counter<'a> {
    link: &'a Link<'a, Progress>,
    counted: NetworkCall,
    progress: Progress,
}

impl<'a> Counter<'a> {
    /// Starts to count up to `total`. Beside calls of the decoder, those of the encoder and the latent net are little.
    pub(crate) fn new(link: &'a Link<'a, Progress>, (counted, total): (NetworkCall, usize)) -> Self {
        Self { link, counted, progress: Progress::of(0, total) }
    }

    /// Counts a network call, if it is of the kind.
    pub(crate) fn count(&mut self, event: &CallEvent<'_>) -> ControlFlow<()> {
        if event.call == self.counted {
            self.progress = self.progress.plus(event.num_pictures);
        }
        let progress = self.progress;
        self.link.report(|| progress)
    }
}
