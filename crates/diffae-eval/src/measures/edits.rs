//! Accuracy of edits, on pairs of pictures that differ in one attribute.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use diffae_data::{AttributePairs, Fingerprint, PictureSet, rgb_from_tensor};
use diffae_infer::{ChainSettings, PipelineSettings, Sheet, keep_residual};
use diffae_nets::weights::float_bytes;
use diffae_schedule::Sampler;

use super::Measure;
use crate::error::{Result, unsuitable};
use crate::evaluated_model::{EvaluatedModel, to_unit};
use crate::evaluation::{Evaluation, Stage, batches};
use crate::journal::{Journal, Values};
use crate::report::{Figure, Report};

const NAME: &str = "edits";
const SHEET: &str = "edits.png";
/// One pair in so many calibrates the strength of an edit, and is not measured.
const ONE_IN: usize = 5;
/// Difference, of `[0, 1]`, above which a value counts as changed: more than rounding to 8 bits makes.
const CHANGED: f64 = 1.5 / 255.;
/// Number of pairs of an attribute on the sheet.
const NUM_SHOWN: usize = 4;
/// Names of the figures of an attribute, in the order of the report.
const MEASURES: [&str; 6] =
    ["nearer", "rmse_edited", "rmse_unedited", "mae_inside_edited", "mae_inside_unedited", "mae_outside_edited"];

/// Direction and strength of an edit.
enum Edit {
    /// Along the model's direction of an attribute.
    Along { attribute_idx: usize, strength: f64 },
    /// By a difference of `z_sem`, `[1, D]`.
    By(Tensor),
}

/// Accuracy of edits: the pictures without each attribute are edited, and compared with those that truly have it.
#[derive(Debug)]
pub struct Edits<'a> {
    /// The model.
    pub model: &'a EvaluatedModel,
    /// Pairs of pictures, by attribute. Attributes that the model does not know are left out.
    pub pairs: &'a [AttributePairs],
    /// Options.
    pub options: EditsOptions,
}

/// Source of edit directions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DirectionSource {
    /// The model's own directions, and the strength along them. Without one it is fitted to `z_sem` on the first fifth of
    /// the pairs, which is then not measured.
    Classifier {
        /// Strength of the edits, if it is not fitted.
        strength: Option<f64>,
    },
    /// Mean difference of `z_sem` over the pairs that are not measured.
    Pairs,
}

/// Options of [`Edits`].
#[derive(Debug, Clone, PartialEq)]
pub struct EditsOptions {
    /// Source of edit directions. Default: the model's, with a strength that is fitted.
    pub direction: DirectionSource,
    /// Decoding steps. Default: 50.
    pub steps: usize,
    /// Inversion steps. Default: 50.
    pub invert_steps: usize,
    /// Chain of inversion and decoding that takes the place of steps, inversion steps and sampler. Default: none.
    pub chain: Option<ChainSettings>,
    /// Whether the residual of an exact chain is dropped, so that codes are `x_T` alone. Default: no.
    pub drop_residual: bool,
    /// Sampler. Default: DDIM.
    pub sampler: Sampler,
    /// Whether the reconstruction residual is added to the edit; see [`keep_residual`]. Default: no.
    pub keep_residual: bool,
    /// Levels of a hierarchical `z_sem` that are edited; empty for all. Default: all.
    pub levels: Vec<usize>,
}

impl Default for EditsOptions {
    fn default() -> Self {
        Self {
            direction: DirectionSource::Classifier { strength: None },
            steps: 50,
            invert_steps: 50,
            chain: None,
            drop_residual: false,
            sampler: Sampler::DDIM,
            keep_residual: false,
            levels: vec![],
        }
    }
}

impl Measure for Edits<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, evaluation: &Evaluation<'_>) -> Result<Report> {
        let Self { model, options, .. } = self;
        if !options.levels.is_empty() {
            model.model().check_levels(&options.levels)?;
        }
        let all = self.known_pairs()?;
        let both = all.iter().flat_map(|pairs| [&pairs.without, &pairs.with]);
        let fingerprints = both.map(PictureSet::fingerprint).collect::<diffae_data::Result<Vec<String>>>()?;
        let direction = options.direction.name();
        // The classifier's directions are those of normalized z_sem.
        let latent = match options.direction {
            DirectionSource::Pairs => None,
            DirectionSource::Classifier { .. } => model.latent_fingerprint()?,
        };
        let decoding = PipelineSettings {
            num_steps: options.steps,
            num_invert_steps: options.invert_steps,
            sampler: options.sampler,
            ..PipelineSettings::REFERENCE_EDITS
        };
        let decoding = match options.chain {
            Some(chain) => decoding.with_chain(chain),
            None => model.along_own_chain(decoding)?,
        };
        let mut settings = model.settings();
        settings.extend([
            ("attributes".to_owned(), all.iter().map(|pairs| pairs.attribute.clone()).collect::<Vec<_>>().into()),
            ("data".to_owned(), fingerprints.into()),
            ("direction".to_owned(), direction.into()),
            ("classifier".to_owned(), directions_fingerprint(model, &all, options)?.into()),
            ("latent".to_owned(), latent.into()),
            ("strength".to_owned(), options.direction.strength().into()),
            ("steps".to_owned(), options.steps.into()),
            ("invert_steps".to_owned(), options.invert_steps.into()),
            ("keep_residual".to_owned(), options.keep_residual.into()),
        ]);
        settings.extend(decoding.sampler_settings());
        let chain = options.chain.or_else(|| decoding.chain());
        settings.extend(chain.map(|chain| ("chain".to_owned(), chain.to_string().into())));
        settings.extend(options.drop_residual.then(|| ("drop_residual".to_owned(), true.into())));
        let levels = (!options.levels.is_empty()).then(|| options.levels.clone());
        settings.extend(levels.map(|levels| ("levels".to_owned(), levels.into())));
        let mut journal = Journal::of(evaluation, NAME, &settings)?;
        // The pictures of the sheet are not in the journal: they are made again, unless there is nothing left to do.
        let is_known = |pairs: &AttributePairs| {
            (first_measured(pairs, options)..pairs.without.len()).all(|idx| journal.get(&item(pairs, idx)).is_some())
        };
        let has_sheet = evaluation.out().join(SHEET).is_file() && all.iter().all(|pairs| is_known(pairs));
        let num_shown = if has_sheet || evaluation.shard().is_some() { 0 } else { NUM_SHOWN };
        let measured = |pairs: &AttributePairs| {
            let first = first_measured(pairs, options);
            let items = evaluation.items(pairs.without.len() - first);
            first + items.start..first + items.end
        };
        let total = all.iter().map(|pairs| measured(pairs).len()).sum();
        let stage = evaluation.stage(NAME, total, steps_a_pair(model, &decoding, options));
        let columns = ["without", "edited", "with"].repeat(NUM_SHOWN);
        let (mut figures, mut sheet) = (vec![], Sheet::new().with_columns(columns));
        for pairs in &all {
            let edit = edit_of(model, pairs, options)?;
            let first = first_measured(pairs, options);
            let mut work = Work { model, options, settings: decoding, journal: &mut journal, stage: &stage, num_shown };
            let pictures = measure_pairs(&mut work, pairs, &edit, measured(pairs))?;
            sheet.push(&pairs.attribute, pictures);
            let seed = evaluation.seed();
            let of = [("attribute", pairs.attribute.as_str())];
            if let Edit::Along { strength, .. } = edit {
                figures.push(Figure::single("strength", &of, strength, pairs.without.len() - first));
            }
            for name in MEASURES {
                let value = |idx| journal.get(&item(pairs, idx))?.get(name).copied();
                let values: Vec<f64> = (first..pairs.without.len()).filter_map(value).collect();
                figures.extend(Figure::mean(name, &of, &values, seed));
            }
        }
        stage.finish();
        if let Some(shard) = evaluation.shard() {
            return Ok(Report::of_shard(NAME, settings, shard));
        }
        if !has_sheet {
            evaluation.write_picture(SHEET, &sheet.draw(), Some(model.model()))?;
        }
        Report::new(NAME, settings, figures).written(evaluation)
    }
}

impl Edits<'_> {
    /// Returns the pairs of attributes that the model knows.
    fn known_pairs(&self) -> Result<Vec<&AttributePairs>> {
        let Self { model, pairs, options } = self;
        let known = |pairs: &&AttributePairs| {
            let known =
                options.direction == DirectionSource::Pairs || model.model().attribute_idx(&pairs.attribute).is_ok();
            if !known {
                tracing::warn!("the model has no attribute {}; its pairs are left out", pairs.attribute);
            }
            known
        };
        if options.direction != DirectionSource::Pairs {
            model.model().classifier()?;
        }
        let all: Vec<&AttributePairs> = pairs.iter().filter(known).collect();
        if all.is_empty() {
            return Err(unsuitable("the model has none of the attributes of the pairs"));
        }
        Ok(all)
    }
}

impl DirectionSource {
    /// Returns the name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Classifier { .. } => "classifier",
            Self::Pairs => "pairs",
        }
    }

    /// Returns the strength that is given, and not fitted.
    fn strength(self) -> Option<f64> {
        match self {
            Self::Classifier { strength } => strength,
            Self::Pairs => None,
        }
    }
}

/// Returns the number of steps that the edit of one picture takes, by fixed points about that many.
fn steps_a_pair(model: &EvaluatedModel, settings: &PipelineSettings, options: &EditsOptions) -> usize {
    let decodings = 1 + usize::from(options.keep_residual);
    let pipeline = model.pipeline();
    pipeline.num_inversion_calls(settings) + decodings * pipeline.num_decoding_calls(settings)
}

/// Returns the number of pairs that calibrate the edit.
fn calibrated(pairs: &AttributePairs) -> usize {
    pairs.without.len().div_ceil(ONE_IN)
}

/// Returns the index of the first pair that is measured.
fn first_measured(pairs: &AttributePairs, options: &EditsOptions) -> usize {
    if options.direction.strength().is_some() { 0 } else { calibrated(pairs) }
}

/// Returns a checksum of the classifier's directions, which are no part of the model's fingerprint; `None` where
/// unused.
fn directions_fingerprint(
    model: &EvaluatedModel,
    all: &[&AttributePairs],
    options: &EditsOptions,
) -> Result<Option<String>> {
    if options.direction == DirectionSource::Pairs {
        return Ok(None);
    }
    let mut fingerprint = Fingerprint::new();
    let classifier = model.model().classifier()?;
    let (width, device) = (classifier.config().z_channels, model.model().device());
    let mut places = vec![Tensor::zeros((1, width), DType::F32, device)?];
    if classifier.config().local_units > 0 {
        // A network is told by what it says near and far.
        let axes = Tensor::eye(width, DType::F32, device)?;
        places.extend([(&axes * 4.)?, (&axes * -4.)?, axes]);
    }
    for pairs in all {
        let idx = model.model().attribute_idx(&pairs.attribute)?;
        for place in &places {
            fingerprint.update(&float_bytes(&classifier.directions_at(idx, place)?.flatten_all()?.to_vec1()?));
        }
    }
    Ok(Some(fingerprint.digits()))
}

fn edit_of(evaluated: &EvaluatedModel, pairs: &AttributePairs, options: &EditsOptions) -> Result<Edit> {
    let model = evaluated.model();
    if let Some(strength) = options.direction.strength() {
        return Ok(Edit::Along { attribute_idx: model.attribute_idx(&pairs.attribute)?, strength });
    }
    let count = calibrated(pairs);
    if count >= pairs.without.len() {
        return Err(unsuitable(format!("{} has {count} pair, expected at least two", pairs.attribute)));
    }
    let z_without = evaluated.encode(&pairs.without, 0..count)?;
    let z_with = evaluated.encode(&pairs.with, 0..count)?;
    if options.direction == DirectionSource::Pairs {
        return Ok(Edit::By((z_with - z_without)?.mean_keepdim(0)?));
    }
    // |z + s d - z'|^2, d being the move at strength 1, is least in the mean where s = sum((z' - z) . d) / sum(d . d).
    let attribute_idx = model.attribute_idx(&pairs.attribute)?;
    let start = model.normalize(&z_without)?;
    let direction = (model.normalize(&model.edit(&z_without, attribute_idx, 1.)?)? - &start)?;
    let truth = (model.normalize(&z_with)? - start)?;
    let sum = |x: Tensor| -> Result<f64> { Ok(f64::from(x.sum_all()?.to_scalar::<f32>()?)) };
    Ok(Edit::Along { attribute_idx, strength: sum((truth * &direction)?)? / sum(direction.sqr()?)? })
}

fn item(pairs: &AttributePairs, idx: usize) -> String {
    format!("{}/{}", pairs.attribute, pairs.without.name(idx))
}

/// State shared by the measures of all attributes.
struct Work<'a, 'o> {
    model: &'a EvaluatedModel,
    options: &'a EditsOptions,
    settings: PipelineSettings,
    journal: &'a mut Journal,
    stage: &'a Stage<'o>,
    /// Number of pairs per attribute whose pictures are shown.
    num_shown: usize,
}

/// Measures the remaining pairs from `first` on, and returns the first pictures: without, edited, with.
fn measure_pairs(
    work: &mut Work<'_, '_>,
    pairs: &AttributePairs,
    edit: &Edit,
    measured: Range<usize>,
) -> Result<Vec<image::RgbImage>> {
    let Work { model, options, settings, journal, stage, num_shown } = work;
    let mut row = vec![];
    for batch in batches(measured.clone(), model.batch_size()) {
        let shown = batch.start < measured.start + *num_shown;
        let known = batch.clone().all(|idx| journal.get(&item(pairs, idx)).is_some());
        if known && !shown {
            stage.check(batch.len() * steps_a_pair(model, settings, options))?;
            continue;
        }
        let without = model.read(&pairs.without, batch.clone())?;
        let with = model.read(&pairs.with, batch.clone())?;
        let z_sem = model.model().encode_semantic(&without)?;
        let observer = &mut stage.observer();
        let mut code = model.pipeline().invert_batch(&without, Some(&z_sem), settings, observer)?;
        if let Some(chain) = code.chain.as_mut().filter(|_| options.drop_residual) {
            chain.residual = None;
        }
        let moved = match edit {
            Edit::Along { attribute_idx, strength } => model.model().edit(&z_sem, *attribute_idx, *strength)?,
            Edit::By(difference) => z_sem.broadcast_add(difference)?,
        };
        let moved = match options.levels[..] {
            [] => moved,
            ref levels => model.model().with_levels_of(&z_sem, &moved, levels)?,
        };
        let decode = |z_sem: &Tensor| model.decode_code((&code, Some(z_sem)), batch.start, settings, stage);
        let mut edited = decode(&moved)?;
        if options.keep_residual {
            edited = keep_residual(&edited, &without, &decode(&z_sem)?)?;
        }
        for (place, idx) in batch.clone().enumerate() {
            if shown && row.len() < 3 * *num_shown {
                for x in [&without, &edited, &with] {
                    row.push(rgb_from_tensor(&x.get(place)?)?);
                }
            }
            if journal.get(&item(pairs, idx)).is_none() {
                let unit = |x: &Tensor| -> Result<Vec<Vec<f32>>> {
                    Ok(to_unit(&x.get(place)?)?.to_device(&Device::Cpu)?.flatten_from(1)?.to_vec2()?)
                };
                journal.add(item(pairs, idx), compare(&unit(&without)?, &unit(&edited)?, &unit(&with)?))?;
            }
        }
    }
    Ok(row)
}

/// Measures one pair of pictures, a list of values per channel; the measures inside the change are missing if the pair
/// does not differ. A pixel is changed if any of its channels is.
fn compare(without: &[Vec<f32>], edited: &[Vec<f32>], with: &[Vec<f32>]) -> Values {
    let mut changed = vec![false; with.first().map_or(0, Vec::len)];
    for (without, with) in without.iter().zip(with) {
        for (changed, (a, b)) in changed.iter_mut().zip(without.iter().zip(with)) {
            *changed |= f64::from((a - b).abs()) > CHANGED;
        }
    }
    let distance = |a: &[Vec<f32>], power: i32, of: &dyn Fn(bool) -> bool| {
        let (mut sum, mut number) = (0., 0.);
        for (a, b) in a.iter().zip(with) {
            for ((a, b), _) in a.iter().zip(b).zip(&changed).filter(|(_, changed)| of(**changed)) {
                sum += f64::from((a - b).abs()).powi(power);
                number += 1.;
            }
        }
        (sum, number)
    };
    let rmse = |a: &[Vec<f32>]| {
        let (sum, number): (f64, f64) = distance(a, 2, &|_| true);
        (sum / number.max(1.)).sqrt()
    };
    let (edited_rmse, unedited_rmse) = (rmse(edited), rmse(without));
    let mut values = Values::from([
        ("nearer".to_owned(), f64::from(u8::from(edited_rmse < unedited_rmse))),
        ("rmse_edited".to_owned(), edited_rmse),
        ("rmse_unedited".to_owned(), unedited_rmse),
    ]);
    let means = [
        ("mae_inside_edited", distance(edited, 1, &|changed| changed)),
        ("mae_inside_unedited", distance(without, 1, &|changed| changed)),
        ("mae_outside_edited", distance(edited, 1, &|changed| !changed)),
    ];
    values.extend(means.into_iter().filter(|(_, (_, n))| *n > 0.).map(|(name, (sum, n))| (name.to_owned(), sum / n)));
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_edit_is_nearer_and_a_wild_one_is_not() {
        let of = |values: [f32; 4]| [values.to_vec()];
        let (without, with) = (of([0., 0., 0.5, 0.5]), of([1., 0.5, 0.5, 0.5]));
        let rmse_unedited = ((1. + 0.25) / 4_f64).sqrt();
        let expected = |nearer, rmse_edited: f64, inside, outside| {
            let all = [
                ("nearer", nearer),
                ("rmse_edited", rmse_edited),
                ("rmse_unedited", rmse_unedited),
                ("mae_inside_edited", inside),
                ("mae_inside_unedited", 0.75),
                ("mae_outside_edited", outside),
            ];
            Values::from(all.map(|(name, value)| (name.to_owned(), value)))
        };
        assert_eq!(compare(&without, &with, &with), expected(1., 0., 0., 0.));
        assert_eq!(compare(&without, &of([1., 0.5, 0., 1.5]), &with), expected(0., rmse_unedited, 0., 0.75));
        assert_eq!(compare(&without, &of([1., 0.5, 0.25, 0.5]), &with), expected(1., 0.125, 0., 0.125));
        let nothing = compare(&without, &without, &without);
        assert!(!nothing.contains_key("mae_inside_edited") && nothing.contains_key("mae_outside_edited"));
    }

    #[test]
    fn a_pixel_is_changed_as_a_whole() {
        // Two channels, two pixels; the first pixel differs in its second channel only.
        let picture = |first_green: f32, first_red: f32| [vec![first_red, 0.5], vec![first_green, 0.5]];
        let values = compare(&picture(0., 0.5), &picture(1., 1.), &picture(1., 0.5));
        assert!((values["mae_inside_edited"] - 0.25).abs() < 1e-9, "{values:?}");
        assert!(values["mae_outside_edited"].abs() < 1e-9, "{values:?}");
    }
}
