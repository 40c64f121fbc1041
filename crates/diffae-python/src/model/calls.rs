//! The calls of a model, without their arguments: encoding, decoding, edits.

use diffae_data::rgb_from_tensor;
use diffae_infer::{
    AttributeEdit, CodesNeed, GivenCodes, NetworkCall, PipelineSettings, USUAL_EDIT_STRENGTH, rounded_full_strength,
};
use pyo3::exceptions::PyUserWarning;
use pyo3::prelude::*;
use pyo3::types::PyMapping;

use super::{Model, PictureArray};
use crate::arrays::{Pictures, array_from};
use crate::error::{Error, Result};
use crate::settings::{Counter, Keywords, Progress};
use crate::subject::{Encoding, Subject};
use crate::work::compute;

impl Model {
    /// Encodes pictures, and warns of those that the model was not made for.
    pub(super) fn encoded(
        &self,
        py: Python<'_>,
        pictures: &Pictures<'_>,
        (need, settings): (CodesNeed, PipelineSettings),
        keywords: &Keywords<'_>,
    ) -> Result<diffae_infer::Codes> {
        let pipeline = &self.pipeline;
        if need == CodesNeed::Both {
            pipeline.check_inversion(&settings)?;
        }
        let count = pictures.len();
        let names = match keywords.get::<Vec<String>>("names", "a list of names")? {
            Some(names) if names.len() == count => names,
            Some(names) => {
                let expected = format!("one for each of {count} pictures");
                return Err(Error::argument("the number of names", names.len(), &expected));
            }
            None => (0..count).map(|idx| format!("{idx:04}")).collect(),
        };
        let checks_domain = keywords.get::<bool>("check_domain", "True or False")?.unwrap_or(true);
        let pixels = pictures.pixels()?;
        let encoding = Encoding { pipeline, pixels, count, need, settings: &settings, checks_domain };
        let work = match need {
            CodesNeed::Both => (NetworkCall::Decoder, count * pipeline.num_inversion_calls(&settings)),
            CodesNeed::ZSem => (NetworkCall::Encoder, count),
        };
        let (codes, warning) =
            counted(py, keywords, work, |counter| encoding.run(&names, &mut |event| counter.count(event)))?;
        warn(py, warning)?;
        Ok(codes)
    }

    /// Decodes codes to the pixels of pictures; random `x_T` and the noise of samplers by their numbers. Warns of `x_T` of other
    /// programs that are not close to noise.
    pub(super) fn decoded(
        &self,
        py: Python<'_>,
        (codes, numbers): (&diffae_infer::Codes, &[u64]),
        settings: PipelineSettings,
        keywords: &Keywords<'_>,
    ) -> Result<Vec<u8>> {
        warn(py, codes.foreign_noise_warning("the codes")?)?;
        let pipeline = &self.pipeline;
        let size = pipeline.model().image_shape().size;
        let work = (NetworkCall::Decoder, codes.len() * pipeline.num_decoding_calls(&settings));
        counted(py, keywords, work, |counter| {
            let mut bytes = Vec::with_capacity(codes.len() * size.num_pixels() * 3);
            for batch in pipeline.decode_batches(codes, numbers, &settings, &mut |event| counter.count(event)) {
                let (range, x_0) = batch?;
                for idx in 0..range.len() {
                    bytes.extend_from_slice(rgb_from_tensor(&x_0.get(idx)?)?.as_raw());
                }
            }
            Ok(bytes)
        })
    }

    /// Hands the pixels of pictures over to an array, `[.., H, W, 3]`.
    pub(super) fn array(&self, py: Python<'_>, pixels: Vec<u8>, counts: &[usize]) -> Result<PictureArray> {
        let size = self.pipeline.model().image_shape().size;
        array_from(py, pixels, &[counts, &[size.height(), size.width(), 3]].concat())
    }

    /// Completes settings of decoding, and fails if there is no chain of so many steps.
    pub(super) fn decoding(&self, keywords: &Keywords<'_>, settings: PipelineSettings) -> Result<PipelineSettings> {
        let settings = keywords.complete(settings)?;
        self.pipeline.check_steps(settings.spacing, settings.num_steps)?;
        Ok(settings)
    }

    /// Returns the settings of an edit of a subject or an interpolation of several, of their inversion and of decoding: along the
    /// chain of those that are codes.
    pub(super) fn settings_of(
        &self,
        subjects: &[&Subject<'_>],
        reference: PipelineSettings,
        keywords: &Keywords<'_>,
    ) -> Result<PipelineSettings> {
        let mut of_codes: Option<GivenCodes<'_>> = None;
        let mut of_samples = None;
        for subject in subjects {
            let Subject::Codes(codes) = subject else { continue };
            let codes = codes.get();
            self.require_noise(codes.inner())?;
            let chain = codes.inner().chain.as_ref().map(|chain| chain.settings);
            let given = GivenCodes { chain, name: codes.name() };
            if codes.inner().is_sampled() {
                of_samples.get_or_insert(given);
            } else if of_codes.is_none_or(|known| known.chain.is_none()) {
                of_codes = Some(given);
            }
        }
        // Samples go along with the pictures and codes that are beside them.
        let has_pictures = subjects.iter().any(|subject| matches!(subject, Subject::Pictures(_)));
        let of_codes = of_codes.or(of_samples.filter(|_| !has_pictures));
        self.decoding(keywords, keywords.chains()?.inverting(self.pipeline.model().config(), reference, of_codes)?)
    }

    /// Returns the codes of a subject; pictures are encoded.
    pub(super) fn codes_of(
        &self,
        py: Python<'_>,
        subject: &Subject<'_>,
        settings: PipelineSettings,
        keywords: &Keywords<'_>,
    ) -> Result<diffae_infer::Codes> {
        match subject {
            Subject::Codes(codes) => Ok(codes.get().inner().clone()),
            Subject::Pictures(pictures) => {
                self.encoded(py, pictures, (self.need(CodesNeed::Both)?, settings), keywords)
            }
        }
    }

    pub(super) fn require_noise(&self, codes: &diffae_infer::Codes) -> Result<()> {
        if codes.x_terminal.is_some() || self.pipeline.is_one_shot() {
            return Ok(());
        }
        let problem = "the codes hold no x_T; encode the pictures without semantic_only".to_owned();
        Err(Error::Conflict { problem })
    }

    /// Gives codes of a one-shot autoencoder, which hold no `x_T`, the one that adds nothing.
    pub(super) fn with_noise(&self, codes: diffae_infer::Codes) -> Result<diffae_infer::Codes> {
        if codes.x_terminal.is_some() || !self.pipeline.is_one_shot() {
            return Ok(codes);
        }
        let x_terminal = Some(self.pipeline.model().zero_x_terminal(codes.len())?);
        Ok(diffae_infer::Codes { x_terminal, ..codes })
    }

    /// Returns the strengths of edits, usual ones in place of `None`; fails if they cannot be made.
    pub(super) fn strengths(&self, edits: &Bound<'_, PyMapping>) -> Result<Vec<(String, f64)>> {
        if edits.is_empty()? {
            return Err(Error::argument("edits", "an empty dict", "a dict of attributes with their strengths"));
        }
        let model = self.pipeline.model();
        let classifier = model.classifier()?;
        let (mut strengths, mut checked) = (vec![], vec![]);
        for item in edits.items()? {
            let (name, strength) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            let what = "the name of an attribute";
            let Ok(name) = name.extract::<String>() else { return Err(Error::argument(what, name.repr()?, "text")) };
            let attribute_idx = model.attribute_idx(&name)?;
            let strength = if strength.is_none() {
                rounded_full_strength(classifier, attribute_idx)?.unwrap_or(USUAL_EDIT_STRENGTH)
            } else {
                let what = format!("the strength of {name}");
                let number = strength.extract::<f64>();
                number.map_err(|_error| Error::argument(&what, strength.to_string(), "a number or None"))?
            };
            checked.push(AttributeEdit { attribute_idx, strength });
            strengths.push((name, strength));
        }
        model.check_edits(&checked)?;
        Ok(strengths)
    }

    /// Edits codes, at all levels of `z_sem` or at some.
    pub(super) fn edited(
        &self,
        codes: &diffae_infer::Codes,
        strengths: &[(String, f64)],
        levels: Option<&[usize]>,
    ) -> Result<diffae_infer::Codes> {
        let edits: Vec<(&str, f64)> = strengths.iter().map(|(name, strength)| (name.as_str(), *strength)).collect();
        let edited = self.pipeline.edit_many(codes, &edits)?;
        match levels {
            None => Ok(edited),
            Some(levels) => Ok(self.pipeline.with_levels_of(codes, &edited, levels)?),
        }
    }

    /// Returns levels of `z_sem` that were given; fails if the model lacks one.
    pub(super) fn levels(&self, given: Option<Vec<usize>>) -> Result<Option<Vec<usize>>> {
        if let Some(levels) = &given {
            self.pipeline.model().check_levels(levels)?;
        }
        Ok(given)
    }
}

/// Issues a warning, if there is one.
fn warn(py: Python<'_>, warning: Option<String>) -> Result<()> {
    if let Some(warning) = warning {
        let text = std::ffi::CString::new(warning).unwrap_or_default();
        PyErr::warn(py, &py.get_type::<PyUserWarning>(), &text, 1)?;
    }
    Ok(())
}

/// Runs a job with a counter of its network calls of a kind, which the callback `progress` hears of.
pub(super) fn counted<T: Send>(
    py: Python<'_>,
    keywords: &Keywords<'_>,
    work: (NetworkCall, usize),
    job: impl FnOnce(&mut Counter<'_>) -> Result<T> + Send,
) -> Result<T> {
    let callback = keywords.progress()?;
    let mut listener = callback.map(|callback| move |py: Python<'_>, progress: Progress| callback.call(py, progress));
    let listener = listener.as_mut().map(|listener| listener as _);
    compute(py, keywords.threads()?, listener, |link| job(&mut Counter::new(link, work)))
}

/// Runs a job that reports nothing.
pub(super) fn on_pool<T: Send>(
    py: Python<'_>,
    num_threads: Option<usize>,
    job: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    compute::<T, ()>(py, num_threads, None, |_| job())
}
