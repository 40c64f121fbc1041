//! New attributes for an existing model: the third stage without a run.

use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use diffae_data::{Crop, Labels, Pictures, is_validation};
use diffae_infer::{Model, NewAttributes, NewDirections};
use diffae_kernels::{linear, no_gradients};
use diffae_nets::EditDirection;
use diffae_nets::weights::LatentMoments;

use crate::classifier::{Examples, Fitted, Labeled};
use crate::code_stage::CodeStage;
use crate::codes::{Codes, Encoding};
use crate::collective::Group;
use crate::config::{EditDirections, StageSettings};
use crate::edit_direction::PairedCodes;
use crate::error::{Error, Result};
use crate::run::Stage;
use crate::{OnStep, presets};

/// File of the labeled pictures' codes, in the folder of the new model.
const CODES_FILE: &str = "attribute-codes.safetensors";
/// Time between saves of codes while pictures are encoded.
const SAVE_EVERY: Duration = Duration::from_secs(30);
/// Number of codes that a classifier sees, repeats included: the paper's, and fewer for one attribute and codes of pairs.
const NUM_CODES: usize = 300_000;
const NUM_PAIR_CODES: usize = 100_000;

/// Settings for learning attributes.
#[derive(Debug, Clone)]
pub struct AttributeSettings {
    /// Length and optimizer of the classifier's training.
    pub classifier: StageSettings,
    /// Seed of initial weights and of the order of the pictures.
    pub seed: u64,
    /// Computation of edit directions from labels.
    pub edit_directions: EditDirections,
    /// Share of the pictures that are held out to measure the result, by a hash of their names.
    pub held_out: f64,
    /// Crop of a picture, applied before it is resized.
    pub crop: Crop,
}

impl AttributeSettings {
    /// Returns the default settings.
    ///
    /// Number of codes and learning rate are the paper's, with a moving average that also suits fewer steps. A tenth of the
    /// pictures is held out. Edit directions are differences of class means, so that the model knows the strength of a full
    /// edit.
    ///
    /// # Errors
    /// Never, unless the preset is damaged.
    pub fn usual() -> Result<Self> {
        let classifier = StageSettings { images: NUM_CODES, ..presets::config("small64", &[])?.classifier };
        let edit_directions = EditDirections::ClassMeans;
        Ok(Self { classifier, seed: 0, edit_directions, held_out: 0.1, crop: Crop::Center })
    }

    fn check(&self) -> Result<()> {
        self.classifier.check()?;
        if (0. ..1.).contains(&self.held_out) {
            return Ok(());
        }
        let expected = "a share of at least 0 and below 1";
        Err(Error::Setting { key: "the share that is held out", got: self.held_out.to_string(), expected })
    }
}

/// Labeled pictures, and a model to learn their attributes.
#[derive(Debug, Clone, Copy)]
pub struct Lesson<'a> {
    /// Model, in f32.
    pub model: &'a Model,
    /// Statistics of `z_sem` of the model, if it has any.
    pub moments: Option<&'a LatentMoments>,
    /// All pictures; those without labels are ignored.
    pub pictures: &'a Pictures,
    /// Labels of the pictures.
    pub labels: &'a Labels,
    /// Settings of the classifier.
    pub settings: &'a AttributeSettings,
    /// Folder for codes, so that interrupted encoding resumes.
    pub folder: &'a Path,
}

/// Learned attributes.
#[derive(Debug)]
pub struct Taught {
    /// Attributes to add to the model.
    pub attributes: NewAttributes,
    /// Statistics that codes were normalized with: of the model, or of the pictures if it has none.
    pub moments: LatentMoments,
    /// Number of training pictures.
    pub num_trained: usize,
    /// Scores of each attribute on held-out pictures.
    pub scores: Vec<AttributeScore>,
}

/// Scores of an attribute on held-out pictures.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct AttributeScore {
    /// Name of the attribute.
    pub attribute: String,
    /// The logit and the label of each held-out picture; none if no picture was held out.
    pub held_out: Vec<(f64, bool)>,
}

impl AttributeScore {
    /// Returns the number of held-out pictures that have the attribute.
    #[must_use]
    pub fn num_present(&self) -> usize {
        self.held_out.iter().filter(|(_, present)| *present).count()
    }

    /// Returns the share of held-out pictures whose logit has the right sign; `None` without pictures.
    #[must_use]
    pub fn accuracy(&self) -> Option<f64> {
        let right = self.held_out.iter().filter(|(logit, present)| (*logit > 0.) == *present).count();
        (!self.held_out.is_empty()).then(|| right as f64 / self.held_out.len() as f64)
    }
}

/// Encodes the labeled pictures and fits a linear classifier to them, as the third stage of a run does.
///
/// Returns `None` if `on_step` stops it; the codes so far are kept.
///
/// # Errors
/// [`Error::Setting`] for settings out of range; [`Error::Data`] if an attribute does not vary among the pictures that are
/// trained on, or none can be read; [`Error::Diverged`] if the loss or the gradient is NaN or infinite.
pub fn teach(lesson: &Lesson<'_>, on_step: &mut OnStep<'_>) -> Result<Option<Taught>> {
    let &Lesson { model, pictures, labels, settings, .. } = lesson;
    settings.check()?;
    let is_labeled = |idx: &usize| labels.of(&pictures.name(*idx)).is_some();
    let wanted: Vec<usize> = (0..pictures.len()).filter(is_labeled).collect();
    let is_held_out = |idx: usize| is_validation(&pictures.name(idx), settings.held_out);
    lesson.check_labels(wanted.iter().copied().filter(|&idx| !is_held_out(idx)))?;
    let encoding = Encoding {
        file: &lesson.folder.join(CODES_FILE),
        stage: Stage::Classifier,
        save_every: SAVE_EVERY,
        model,
        pictures,
        wanted: &wanted,
        origin: pictures.fingerprint(&wanted)?,
    };
    let group = &mut Group::alone();
    let Some(codes) = Codes::of(&encoding, (group, on_step))? else { return Ok(None) };
    let (held_out, trained) = codes.split(&|picture| is_held_out(picture))?;
    let moments = lesson.moments.cloned().map_or_else(|| trained.moments(), Ok)?;
    let train = Labeled::new(&trained, &moments, pictures, labels)?;
    let num_trained = train.samples.len();
    let validation = match held_out {
        Some(codes) => Some(Labeled::new(&codes, &moments, pictures, labels)?),
        None => None,
    };
    let stage = CodeStage {
        folder: None,
        stage: Stage::Classifier,
        settings: &settings.classifier,
        seed: settings.seed,
        num_samples: num_trained,
    };
    let examples = Examples { train, validation, num_attributes: labels.names.len() };
    let Some(fitted) = examples.fit(&stage, settings.edit_directions, (group, on_step))? else { return Ok(None) };
    let scores = scores(&fitted, examples.validation.as_ref(), &labels.names)?;
    let Fitted { weight, bias, directions } = fitted;
    let directions = match settings.edit_directions {
        EditDirections::Weights => NewDirections::Weights(directions),
        EditDirections::ClassMeans => NewDirections::MeanDifferences(EditDirection::fixed_all(&directions)?),
    };
    let attributes = NewAttributes { names: labels.names.clone(), weight, bias, directions };
    Ok(Some(Taught { attributes, moments, num_trained, scores }))
}

impl Lesson<'_> {
    /// Checks that every attribute varies among the training pictures.
    fn check_labels(&self, trained: impl Iterator<Item = usize>) -> Result<()> {
        let mut seen = vec![[0usize; 2]; self.labels.names.len()];
        for idx in trained {
            for (seen, &present) in seen.iter_mut().zip(self.labels.of(&self.pictures.name(idx)).unwrap_or_default()) {
                seen[usize::from(present)] += 1;
            }
        }
        let Some((name, [absent, present])) = self.labels.names.iter().zip(&seen).find(|(_, seen)| seen.contains(&0))
        else {
            return Ok(());
        };
        let problem = format!(
            "of the labeled pictures that are trained on {present} have {name} and {absent} have not; both are needed"
        );
        Err(diffae_data::Error::Data { path: self.pictures.root().to_owned(), problem }.into())
    }
}

/// Fits one row of a classifier, which separates the two codes of each pair: weight `[1, D]` and bias `[1]`.
///
/// # Errors
/// [`Error::Diverged`] if the loss or the gradient is NaN or infinite; others if shapes do not fit.
pub fn fit_pair_row(pairs: PairedCodes<'_>, seed: u64) -> Result<(Tensor, Tensor)> {
    let z = Tensor::cat(&[pairs.without, pairs.with], 0)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let (count, _) = pairs.without.dims2()?;
    let sample =
        |row: usize| (u32::try_from(row).unwrap_or(u32::MAX), if row < count { &[false][..] } else { &[true] });
    let samples: Vec<(u32, &[bool])> = (0..z.dim(0)?).map(sample).collect();
    let settings = StageSettings { images: NUM_PAIR_CODES, ..AttributeSettings::usual()?.classifier };
    let num_samples = samples.len();
    let stage = CodeStage { folder: None, stage: Stage::Classifier, settings: &settings, seed, num_samples };
    let examples = Examples { train: Labeled { z, samples }, validation: None, num_attributes: 1 };
    let go_on = &mut |_: &crate::StepReport| std::ops::ControlFlow::Continue(());
    let fitted = examples.fit(&stage, EditDirections::Weights, (&mut Group::alone(), go_on))?;
    let stopped = || Error::Pairs { problem: "the fit of its classifier was stopped".to_owned() };
    fitted.map(|fitted| (fitted.weight, fitted.bias)).ok_or_else(stopped)
}

impl Codes {
    /// Splits codes into held-out ones, if there are any, and training ones.
    fn split(self, is_held_out: &dyn Fn(usize) -> bool) -> Result<(Option<Self>, Self)> {
        let of = |wanted: bool| -> Result<Self> {
            let is_wanted = |&(_, &picture): &(usize, &u32)| {
                usize::try_from(picture).is_ok_and(|picture| is_held_out(picture) == wanted)
            };
            let chosen = self.indices.iter().enumerate().filter(is_wanted);
            let (rows, indices): (Vec<u32>, Vec<u32>) =
                chosen.map(|(row, &picture)| (u32::try_from(row).unwrap_or(u32::MAX), picture)).unzip();
            Ok(Self { z_sem: self.z_sem.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?, indices })
        };
        let any = self.indices.iter().any(|&picture| usize::try_from(picture).is_ok_and(is_held_out));
        Ok((if any { Some(of(true)?) } else { None }, of(false)?))
    }
}

/// Computes the scores of attributes on held-out pictures.
fn scores(fitted: &Fitted, held_out: Option<&Labeled<'_>>, names: &[String]) -> Result<Vec<AttributeScore>> {
    let nothing = |name: &String| AttributeScore { attribute: name.clone(), held_out: vec![] };
    let Some(held_out) = held_out else { return Ok(names.iter().map(nothing).collect()) };
    let all: Vec<usize> = (0..held_out.samples.len()).collect();
    let (z, _) = held_out.batch(&all, names.len())?;
    let logits = no_gradients(|| linear(&z, &fitted.weight, &fitted.bias))?.to_dtype(DType::F64)?; // [N, A]
    let score = |(idx, name): (usize, &String)| {
        let logits: Vec<f64> = logits.narrow(1, idx, 1)?.flatten_all()?.to_vec1()?;
        let present = held_out.samples.iter().map(|(_, present)| present[idx]);
        Ok(AttributeScore { attribute: name.clone(), held_out: logits.into_iter().zip(present).collect() })
    };
    names.iter().enumerate().map(score).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use std::collections::HashMap;
    use std::ops::ControlFlow;

    use diffae_infer::{LoadOptions, ModelSource};
    use image::{Rgb, RgbImage};

    use crate::{Trainer, Work};

    /// A tiny model with weights as they begin.
    fn model() -> Model {
        let config = presets::config("smoke", &[]).unwrap();
        let averages = Trainer::new(&config, HashMap::new()).unwrap().averages().unwrap();
        ModelSource::from_networks(config.model_config().unwrap(), averages).build(&LoadOptions::cpu()).unwrap()
    }

    /// Forty pictures, and labels by which every other one is bright.
    fn pictures(folder: &Path) -> (Pictures, Labels) {
        let mut text = "file,Bright\n".to_owned();
        for i in 0..40u8 {
            let shade = if i % 2 == 0 { 200 + i } else { 2 * i };
            RgbImage::from_pixel(16, 16, Rgb([shade, 255 - shade, i]))
                .save(folder.join(format!("{i:02}.png")))
                .unwrap();
            writeln!(text, "{i:02}.png,{}", u8::from(i % 2 == 0)).unwrap();
        }
        let pictures = Pictures::all(folder, Crop::Center).unwrap();
        (pictures, Labels::from_bytes(text.as_bytes(), Path::new("labels.csv")).unwrap())
    }

    fn settings() -> AttributeSettings {
        let mut settings = AttributeSettings { held_out: 0.25, ..AttributeSettings::usual().unwrap() };
        (settings.classifier.images, settings.classifier.lr) = (3200, 0.05);
        settings
    }

    #[test]
    fn encoding_that_is_stopped_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (model, settings) = (model(), settings());
        let (pictures, labels) = pictures(folder.path());
        let kept = folder.path().join("taught");
        let base = Lesson {
            model: &model,
            moments: None,
            pictures: &pictures,
            labels: &labels,
            settings: &settings,
            folder: &kept,
        };
        let mut encoded = vec![];
        let stopped = teach(&base, &mut |report| {
            encoded.push(report.step);
            ControlFlow::Break(())
        });
        assert!(stopped.unwrap().is_none() && encoded == [1] && kept.join(CODES_FILE).exists());
        let learn = |settings: &AttributeSettings| {
            let mut encoded = vec![];
            let taught = teach(&Lesson { settings, ..base }, &mut |report| {
                encoded.extend((report.work == Work::Encoding).then_some(report.step));
                ControlFlow::Continue(())
            });
            (taught.unwrap().unwrap(), encoded)
        };
        let (taught, encoded) = learn(&settings);
        assert_eq!(encoded, [2], "the second of two batches is left");
        let logits = |of: bool| taught.scores[0].held_out.iter().filter(move |(_, present)| *present == of);
        let (present, absent) = (logits(true), logits(false).map(|(logit, _)| *logit));
        let highest = absent.fold(f64::NEG_INFINITY, f64::max);
        assert!(present.count() > 0 && logits(true).all(|(logit, _)| *logit > highest), "{:?}", taught.scores);
        // Other settings ask for no other codes, a file that has changed does.
        let (_, encoded) = learn(&AttributeSettings { held_out: 0.5, seed: 7, ..settings.clone() });
        assert!(encoded.is_empty(), "{encoded:?}");
        RgbImage::from_pixel(9, 9, Rgb([1, 2, 3])).save(folder.path().join("03.png")).unwrap();
        let (_, encoded) = learn(&settings);
        assert_eq!(encoded, [1, 2]);
    }

    #[test]
    fn an_attribute_of_all_that_are_trained_on_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let model = model();
        let (pictures, _) = pictures(folder.path());
        let labels = Labels::from_bytes(b"file,Bright\n00.png,1\n01.png,1\n", Path::new("labels.csv")).unwrap();
        let settings = AttributeSettings { held_out: 0., ..settings() };
        let folder = folder.path();
        let lesson =
            Lesson { model: &model, moments: None, pictures: &pictures, labels: &labels, settings: &settings, folder };
        let error = teach(&lesson, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(error.contains("2 have Bright and 0 have not"), "{error}");
    }

    #[test]
    fn a_row_tells_pairs_apart() {
        let without = Tensor::new(&[[0.1f32, 1., -1.], [0.3, -2., 0.], [-0.2, 0.5, 2.]], &Device::Cpu).unwrap();
        let way = Tensor::new(&[[1f32, 0.1, 0.], [1.2, 0., 0.], [0.9, 0., 0.1]], &Device::Cpu).unwrap();
        let with = &without + &way;
        let with = with.unwrap();
        let pairs = PairedCodes { without: &without, with: &with, others: None };
        let (weight, bias) = fit_pair_row(pairs, 0).unwrap();
        let logits = |z: &Tensor| -> Vec<f32> {
            let logits = z.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
            logits.flatten_all().unwrap().to_vec1().unwrap()
        };
        assert!(logits(&without).iter().all(|&logit| logit < 0.), "{:?}", logits(&without));
        assert!(logits(&with).iter().all(|&logit| logit > 0.), "{:?}", logits(&with));
    }
}
