//! Attributes in `z_sem`: the accuracy of linear probes, and disentanglement.

use candle_core::Tensor;
use diffae_infer::Settings;

use super::Measure;
use super::labeled::{LabeledCodes, LabeledPictures, select};
use crate::classification::{auroc, average_precision};
use crate::disentanglement::{dci, total_auroc_difference};
use crate::error::{Error, Result, unsuitable};
use crate::evaluated_model::EvaluatedModel;
use crate::evaluation::Evaluation;
use crate::linear_probe::{InversePenalty, cross_validated_logits, logits_of_others};
use crate::report::{Figure, Report};

const NAME: &str = "attributes";
const DISENTANGLEMENT: &str = "disentanglement";

/// A measure of scores against labels.
type ScoreMeasure = fn(&[f64], &[bool]) -> Result<f64>;

/// Accuracy of linear probes of attributes on `z_sem`: AUROC and average precision, cross-validated, or fitted to other
/// pictures. Of a hierarchical `z_sem` also on each of its levels alone.
#[derive(Debug)]
pub struct Attributes<'a> {
    /// The model; it must have a `z_sem`.
    pub model: &'a EvaluatedModel,
    /// The pictures that are scored.
    pub labeled: &'a LabeledPictures<'a>,
    /// Pictures to fit the probes to, whose labels include the attributes of the others; `None` cross-validates.
    pub train: Option<&'a LabeledPictures<'a>>,
    /// Options.
    pub options: AttributesOptions,
}

/// Options of [`Attributes`].
#[derive(Debug, Clone, PartialEq)]
pub struct AttributesOptions {
    /// Folds of the cross-validation, two or more. Default: 5.
    pub folds: usize,
    /// Inverse regularization strength of the probes. Default: chosen for each probe on held-out pictures.
    pub inverse_penalty: InversePenalty,
}

impl Default for AttributesOptions {
    fn default() -> Self {
        Self { folds: 5, inverse_penalty: InversePenalty::Chosen }
    }
}

impl Measure for Attributes<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, evaluation: &Evaluation<'_>) -> Result<Report> {
        let Self { model, labeled, train, options } = self;
        let penalty = match options.inverse_penalty {
            InversePenalty::Chosen => "chosen".into(),
            InversePenalty::Fixed(value) => checked_penalty(value)?.into(),
        };
        let mut settings = Settings::from([("inverse_penalty".to_owned(), penalty)]);
        match train {
            Some(train) => {
                train.check_count(2)?;
                train.present_as(labeled.attributes())?; // before anything is encoded
                let prefixed = |(name, value)| (format!("train_{name}"), value);
                settings.extend(train.settings()?.into_iter().map(prefixed));
            }
            None => settings.extend([("folds".to_owned(), options.folds.into())]),
        }
        labeled.check_count(if train.is_some() { 2 } else { options.folds })?;
        let folder = evaluation.out().join("train").join("z_sem");
        if let Some(shard) = evaluation.shard() {
            labeled.encode_shard(evaluation, model, (evaluation.codes(), shard))?;
            train.iter().try_for_each(|train| train.encode_shard(evaluation, model, (&folder, shard)))?;
            return Ok(Report::of_shard(NAME, settings, shard));
        }
        let codes = labeled.codes(evaluation, model, (NAME, settings))?;
        let train = train
            .map(|train| Ok::<_, Error>((train.encode(evaluation, model, &folder)?, train.present_as(&codes.names)?)));
        let train = train.transpose()?;
        let mut figures = figures(evaluation, (&codes, None), options, train.as_ref())?;
        let z_levels = model.model().config().z_levels();
        for level in 0..z_levels.len() {
            let part = |z_sem: &Tensor| {
                let part = z_levels.range(level, z_sem.dim(1)?);
                z_sem.narrow(1, part.start, part.len())?.contiguous()
            };
            let codes = LabeledCodes { z_sem: part(&codes.z_sem)?, ..codes.clone() };
            let train = train.as_ref().map(|(z_sem, present)| Ok::<_, Error>((part(z_sem)?, present.clone())));
            figures.extend(self::figures(evaluation, (&codes, Some(level)), options, train.transpose()?.as_ref())?);
        }
        Report::new(NAME, codes.settings, figures).written(evaluation)
    }
}

/// Disentanglement of `z_sem`: [`dci`] and [`total_auroc_difference`], which are high if single dimensions stand for
/// single attributes.
#[derive(Debug)]
pub struct Disentanglement<'a> {
    /// The model; it must have a `z_sem`.
    pub model: &'a EvaluatedModel,
    /// The pictures.
    pub labeled: &'a LabeledPictures<'a>,
    /// Options.
    pub options: DisentanglementOptions,
}

/// Options of [`Disentanglement`].
#[derive(Debug, Clone, PartialEq)]
pub struct DisentanglementOptions {
    /// Bootstrap resamples of the pictures for intervals; each takes as long as the figures themselves. Default: 0.
    pub resamples: usize,
    /// Inverse regularization strength of the probes, above 0. Default: 1.
    pub inverse_penalty: f64,
}

impl Default for DisentanglementOptions {
    fn default() -> Self {
        Self { resamples: 0, inverse_penalty: 1. }
    }
}

impl Measure for Disentanglement<'_> {
    fn name(&self) -> &'static str {
        DISENTANGLEMENT
    }

    fn run(&self, evaluation: &Evaluation<'_>) -> Result<Report> {
        let Self { model, labeled, options } = self;
        let penalty = checked_penalty(options.inverse_penalty)?;
        labeled.check_count(2)?;
        let settings = [("resamples", options.resamples.into()), ("inverse_penalty", penalty.into())];
        let settings = Settings::from(settings.map(|(name, value)| (name.to_owned(), value)));
        if let Some(shard) = evaluation.shard() {
            labeled.encode_shard(evaluation, model, (evaluation.codes(), shard))?;
            return Ok(Report::of_shard(DISENTANGLEMENT, settings, shard));
        }
        let codes = labeled.codes(evaluation, model, (DISENTANGLEMENT, settings))?;
        let LabeledCodes { z_sem, names, present, settings } = codes;
        let varies = |(name, present): &(String, Vec<bool>)| {
            let varies = present.contains(&true) && present.contains(&false);
            if !varies {
                tracing::warn!("attribute {name} is constant and is left out");
            }
            varies
        };
        let (_, present): (Vec<String>, Vec<Vec<bool>>) = names.into_iter().zip(present).filter(varies).unzip();
        let count = z_sem.dim(0)?;
        let names = ["disentanglement", "completeness", "total_auroc_difference", "attributes_captured"];
        let resampling = (options.resamples, evaluation);
        let mut figures = Figure::of_resamples((names, &[]), count, resampling, |rows| {
            let z_sem = select(&z_sem, rows)?;
            let of_rows = |present: &Vec<bool>| rows.iter().map(|&row| present[row]).collect::<Vec<bool>>();
            let present: Vec<Vec<bool>> = present.iter().map(of_rows).collect();
            let dci = dci(&z_sem, &present, penalty)?;
            let difference = total_auroc_difference(&z_sem, &present)?;
            Ok([dci.disentanglement, dci.completeness, difference.total, difference.num_captured as f64])
        })?;
        figures.push(Figure::single("attributes", &[], present.len() as f64, count));
        Report::new(DISENTANGLEMENT, settings, figures).written(evaluation)
    }
}

/// Refuses an inverse penalty that is not above 0.
pub(super) fn checked_penalty(value: f64) -> Result<f64> {
    if value > 0. && value.is_finite() {
        return Ok(value);
    }
    Err(Error::OutOfRange { what: "the inverse penalty", got: value.to_string(), expected: "a number above 0" })
}

/// Computes the figures of the probes: fitted to `train` and scored on `labeled`, or cross-validated without `train`. They are
/// named after the level, if the codes are of one alone.
fn figures(
    evaluation: &Evaluation<'_>,
    (labeled, level): (&LabeledCodes, Option<usize>),
    options: &AttributesOptions,
    train: Option<&(Tensor, Vec<Vec<bool>>)>,
) -> Result<Vec<Figure>> {
    const MEASURES: [(&str, ScoreMeasure); 2] = [("auroc", auroc), ("average_precision", average_precision)];
    let (seed, penalty) = (evaluation.seed(), options.inverse_penalty);
    let (mut figures, mut shares) = (vec![], vec![]);
    let constant = |name: &str, data: &str| {
        tracing::warn!("attribute {name} is (nearly) constant over {data} and is left out");
    };
    let level = level.map(|level| level.to_string());
    let of =
        |attribute| std::iter::once(("attribute", attribute)).chain(level.as_deref().map(|level| ("level", level)));
    let of = |attribute| of(attribute).collect::<Vec<(&str, &str)>>();
    let stage = evaluation.stage("probe", labeled.names.len(), 1);
    for (attribute, (name, present)) in labeled.names.iter().zip(&labeled.present).enumerate() {
        stage.check(1)?;
        if !(present.contains(&true) && present.contains(&false)) {
            constant(name, "the data");
            continue;
        }
        let logits = match train {
            Some((z_sem, of_train)) => logits_of_others((z_sem, &of_train[attribute]), &labeled.z_sem, penalty),
            None => cross_validated_logits(&labeled.z_sem, present, options.folds, penalty),
        };
        let logits = match logits {
            Ok(logits) => logits,
            Err(Error::OneClass) => {
                constant(name, if train.is_some() { "the training data" } else { "the data" });
                continue;
            }
            Err(error) => return Err(error),
        };
        shares.push(present.iter().filter(|&&present| present).count() as f64 / present.len() as f64);
        for (measure_name, measure) in MEASURES {
            let of_items = |items: &[usize]| {
                let pick = |item: &usize| Some((*logits.get(*item)?, *present.get(*item)?));
                let (logits, present): (Vec<_>, Vec<_>) = items.iter().filter_map(pick).unzip();
                measure(&logits, &present).ok()
            };
            figures.extend(Figure::of_items(measure_name, &of(name), logits.len(), seed, of_items));
        }
    }
    stage.finish();
    if shares.is_empty() {
        return Err(unsuitable("every attribute is constant: none is present in some images and absent in others"));
    }
    for (measure_name, _) in MEASURES {
        let values: Vec<f64> = figures.iter().filter(|f| f.name == measure_name).map(|f: &Figure| f.value).collect();
        figures.extend(Figure::mean(measure_name, &of("(mean)"), &values, seed));
        // Weighted by how often the attribute is there.
        let weighted = |items: &[usize]| {
            let pairs = || items.iter().filter_map(|&item| Some((values.get(item)?, shares.get(item)?)));
            Some(
                pairs().map(|(value, share)| value * share).sum::<f64>() / pairs().map(|(_, share)| share).sum::<f64>(),
            )
        };
        figures.extend(Figure::of_items(measure_name, &of("(weighted mean)"), values.len(), seed, weighted));
    }
    Ok(figures)
}
