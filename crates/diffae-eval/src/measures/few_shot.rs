//! Few-shot classification of `z_sem`, and attribute-conditioned sampling.

use std::fs;
use std::path::Path;

use candle_core::Tensor;
use diffae_data::rgb_from_tensor;
use diffae_infer::{PipelineSettings, Settings, Sheet};
use diffae_nets::weights::LatentMoments;
use diffae_schedule::Sampler;
use image::RgbImage;

use super::Measure;
use super::attributes::checked_penalty;
use super::labeled::{LabeledCodes, LabeledPictures, select};
use crate::classification::auroc;
use crate::codes::sample_all;
use crate::error::{Error, Result, cannot, check_at_least, unsuitable};
use crate::evaluated_model::EvaluatedModel;
use crate::evaluation::Evaluation;
use crate::linear_probe::LinearProbe;
use crate::report::{Figure, Report};

const NAME: &str = "few-shot";

/// Supervision of a classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// Positives and negatives, as many of each.
    Binary,
    /// Positives only; all other pictures count as negatives.
    PositiveUnlabeled,
}

impl Knowledge {
    const ALL: [Self; 2] = [Self::Binary, Self::PositiveUnlabeled];

    fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::PositiveUnlabeled => "positive-unlabelled",
        }
    }
}

/// Sampled semantic codes.
struct Sampled {
    /// Codes `[N, D]`; `standardized` holds them scaled as the probes' inputs.
    z_sem: Tensor,
    standardized: Tensor,
}

/// One classifier and its figures.
struct Trial {
    auroc: f64,
    /// Share of sampled vectors that the classifier accepts, and the share of these that a probe of all labels accepts
    /// too.
    accepted: Option<f64>,
    precision: Option<f64>,
    chosen: Vec<u32>,
}

/// Few-shot classification, for each attribute and number of labels: how well a classifier of `z_sem` ranks the other
/// pictures, how many sampled `z_sem` it accepts, and how many of these truly have the attribute by a probe of all
/// labels.
///
/// # Source
/// Preechakul et al. 2022 (arXiv:2111.15640), section 5.4; Sinha et al. 2021 (arXiv:2106.06819), section 5.
#[derive(Debug)]
pub struct FewShot<'a> {
    /// The model; it must have a `z_sem`. Without a latent net nothing is sampled.
    pub model: &'a EvaluatedModel,
    /// The pictures.
    pub labeled: &'a LabeledPictures<'a>,
    /// Options.
    pub options: FewShotOptions,
}

/// Options of [`FewShot`].
#[derive(Debug, Clone, PartialEq)]
pub struct FewShotOptions {
    /// Numbers of labels, each 2 or more: balanced positives and negatives, or positives only. Default: 10 and 100.
    pub shots: Vec<usize>,
    /// Random draws of the labeled pictures, one or more. Default: 5.
    pub draws: usize,
    /// Number of `z_sem` to sample, from which the classifiers choose; 0 for none. Default: 512.
    pub samples: usize,
    /// Number of chosen `z_sem` to decode, for each attribute and classifier. Default: 8.
    pub decoded: usize,
    /// Decoding steps. Default: 20.
    pub steps: usize,
    /// Steps of the latent diffusion. Default: 20.
    pub latent_steps: usize,
    /// Sampler. Default: DDIM.
    pub sampler: Sampler,
    /// Inverse regularization strength of the classifiers, above 0. Default: 1.
    pub inverse_penalty: f64,
}

impl Default for FewShotOptions {
    fn default() -> Self {
        Self {
            shots: vec![10, 100],
            draws: 5,
            samples: 512,
            decoded: 8,
            steps: 20,
            latent_steps: 20,
            sampler: Sampler::DDIM,
            inverse_penalty: 1.,
        }
    }
}

impl Measure for FewShot<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, evaluation: &Evaluation<'_>) -> Result<Report> {
        let Self { model, labeled, options } = self;
        check_at_least("the count of numbers of labels", options.shots.len(), 1)?;
        check_at_least("the number of labels", options.shots.iter().copied().min().unwrap_or(0), 2)?;
        check_at_least("the number of draws", options.draws, 1)?;
        // One picture of each kind is left to test on.
        labeled.check_count(options.shots.iter().copied().min().unwrap_or(0) + 2)?;
        let penalty = checked_penalty(options.inverse_penalty)?;
        let has_latent_net = model.model().latent_net().is_ok();
        let settings = self.settings(penalty)?;
        if let Some(shard) = evaluation.shard() {
            labeled.encode_shard(evaluation, model, (evaluation.codes(), shard))?;
            return Ok(Report::of_shard(NAME, settings, shard));
        }
        let codes = labeled.codes(evaluation, model, (NAME, settings))?;
        let LabeledCodes { z_sem, names, present, settings } = codes;
        let scale = moments_of(&z_sem)?;
        let standardized = scale.normalize(&z_sem)?;
        if options.samples > 0 && !has_latent_net {
            tracing::warn!("the model has no latent net: no z_sem are sampled");
        }
        let sampled = (options.samples > 0 && has_latent_net).then(|| {
            let z_sem = sample_all(evaluation, model, options.samples, options.latent_steps)?;
            let standardized = scale.normalize(&z_sem)?;
            Ok::<_, Error>(Sampled { z_sem, standardized })
        });
        let (sampled, seed) = (sampled.transpose()?, evaluation.seed());
        let (mut figures, mut sheet) = (vec![], Sheet::new());
        for (name, present) in names.iter().zip(&present) {
            let whole = match LinearProbe::fit(&standardized, present, penalty) {
                Ok(whole) => whole,
                Err(Error::OneClass) => {
                    tracing::warn!("attribute {name} is constant and is left out");
                    continue;
                }
                Err(error) => return Err(error),
            };
            for knowledge in Knowledge::ALL {
                for &shots in &options.shots {
                    let trials = (0..options.draws).filter_map(|draw| {
                        let seed = format!("{seed} {name} {} {shots} {draw}", knowledge.name());
                        trial((&standardized, present), (knowledge, shots, &seed), penalty, &whole, sampled.as_ref())
                            .transpose()
                    });
                    let trials = trials.collect::<Result<Vec<_>>>()?;
                    if trials.is_empty() {
                        tracing::warn!(
                            "{name}: there are too few images for a {} classifier with {shots} labels",
                            knowledge.name()
                        );
                        continue;
                    }
                    let of =
                        [("attribute", name.as_str()), ("labels", &shots.to_string()), ("knows", knowledge.name())];
                    let mut add = |figure: &str, value: fn(&Trial) -> Option<f64>| {
                        let values: Vec<f64> = trials.iter().filter_map(value).collect();
                        figures.extend(Figure::mean(figure, &of, &values, seed));
                    };
                    add("auroc", |trial| Some(trial.auroc));
                    add("accepted", |trial| trial.accepted);
                    add("precision", |trial| trial.precision);
                    if let (Some(sampled), Some(first)) = (&sampled, trials.first()) {
                        let label = format!("{name} {shots} {}", knowledge.name());
                        if let Some(pictures) = decode(evaluation, self, sampled, (&first.chosen, &label))? {
                            sheet.push(label, pictures);
                        }
                    }
                }
            }
        }
        if figures.is_empty() {
            return Err(unsuitable("every attribute is constant: none is present in some images and absent in others"));
        }
        if !sheet.is_empty() {
            evaluation.write_picture("few-shot.png", &sheet.draw(), Some(model.model()))?;
        }
        Report::new(NAME, settings, figures).written(evaluation)
    }
}

impl FewShot<'_> {
    /// Returns the settings that decide the figures, besides model and pictures.
    fn settings(&self, penalty: f64) -> Result<Settings> {
        let Self { model, options, .. } = self;
        let has_latent_net = model.model().latent_net().is_ok();
        let mut settings = Settings::from([
            ("shots".to_owned(), options.shots.clone().into()),
            ("draws".to_owned(), options.draws.into()),
            ("invented".to_owned(), options.samples.into()),
            ("inverse_penalty".to_owned(), penalty.into()),
        ]);
        if options.samples > 0 && has_latent_net {
            settings.insert("latent".to_owned(), model.latent_fingerprint()?.into());
            settings.insert("latent_steps".to_owned(), options.latent_steps.into());
        }
        Ok(settings)
    }
}

/// Fits a classifier to drawn pictures; `None` if there are too few of a class.
fn trial(
    (z_sem, present): (&Tensor, &[bool]),
    (knowledge, shots, seed): (Knowledge, usize, &str),
    inverse_penalty: f64,
    whole: &LinearProbe,
    sampled: Option<&Sampled>,
) -> Result<Option<Trial>> {
    let order = shuffled(present.len(), seed);
    let of_kind = |kind: bool| order.iter().copied().filter(move |&idx| present.get(idx) == Some(&kind));
    let drawn: Vec<usize> = match knowledge {
        Knowledge::Binary => {
            let negative = shots.div_euclid(2);
            of_kind(true).take(shots - negative).chain(of_kind(false).take(negative)).collect()
        }
        Knowledge::PositiveUnlabeled => of_kind(true).take(shots).collect(),
    };
    let mut is_drawn = vec![false; present.len()];
    for &idx in &drawn {
        is_drawn[idx] = true;
    }
    // Half of the pictures that are not drawn are unlabeled; every classifier is tested on the other half.
    let others: Vec<usize> = order.iter().copied().filter(|&idx| !is_drawn[idx]).collect();
    let (unlabeled, others) = others.split_at(others.len().div_euclid(2));
    let (rows, labels): (Vec<usize>, Vec<bool>) = match knowledge {
        Knowledge::Binary => drawn.iter().map(|&idx| (idx, present[idx])).unzip(),
        Knowledge::PositiveUnlabeled => drawn.iter().chain(unlabeled).map(|&idx| (idx, is_drawn[idx])).unzip(),
    };
    let of_others: Vec<bool> = others.iter().map(|&idx| present[idx]).collect();
    let is_mixed = of_others.contains(&true) && of_others.contains(&false);
    if drawn.len() < shots || !is_mixed {
        return Ok(None);
    }
    let probe = LinearProbe::fit(&select(z_sem, &rows)?, &labels, inverse_penalty)?;
    let auroc = auroc(&probe.logits(&select(z_sem, others)?)?, &of_others)?;
    let Some(sampled) = sampled else {
        return Ok(Some(Trial { auroc, accepted: None, precision: None, chosen: vec![] }));
    };
    let logits = probe.logits(&sampled.standardized)?;
    // Unlabeled pictures count as negative, so that few logits are above 0: what scores above the median of the known
    // pictures is taken.
    let threshold = match knowledge {
        Knowledge::Binary => 0.,
        Knowledge::PositiveUnlabeled => median(probe.logits(&select(z_sem, &drawn)?)?),
    };
    let truth = whole.logits(&sampled.standardized)?;
    let chosen: Vec<u32> = (0..).zip(&logits).filter(|&(_, &logit)| logit > threshold).map(|(row, _)| row).collect();
    let is_true = |&&row: &&u32| truth.get(row as usize).is_some_and(|&logit| logit > 0.);
    let num_true = chosen.iter().filter(is_true).count();
    let precision = (!chosen.is_empty()).then(|| num_true as f64 / chosen.len() as f64);
    Ok(Some(Trial { auroc, accepted: Some(chosen.len() as f64 / logits.len() as f64), precision, chosen }))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().div_euclid(2)).copied().unwrap_or(0.)
}

/// Returns the numbers below `count` in an order that the seed decides.
fn shuffled(count: usize, seed: &str) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_cached_key(|idx| *blake3::hash(format!("{seed} {idx}").as_bytes()).as_bytes());
    order
}

/// Computes mean and standard deviation of each dimension.
fn moments_of(z_sem: &Tensor) -> Result<LatentMoments> {
    let mean = z_sem.mean_keepdim(0)?;
    let var = z_sem.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?;
    Ok(LatentMoments { mean, std: (var + 1e-12)?.sqrt()? })
}

/// Removes the images that an earlier evaluation has decoded into a folder, of which there may have been more.
fn clear(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(cannot("write", folder))?;
    for entry in fs::read_dir(folder).map_err(cannot("read", folder))? {
        let path = entry.map_err(cannot("read", folder))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_ours = stem.parse::<u32>().is_ok() && path.extension().is_some_and(|ending| ending == "png");
        if is_ours {
            fs::remove_file(&path).map_err(cannot("remove", &path))?;
        }
    }
    Ok(())
}

/// Decodes the first chosen vectors into `few-shot/LABEL/`; returns a row of the sheet.
fn decode(
    evaluation: &Evaluation<'_>,
    FewShot { model, options, .. }: &FewShot<'_>,
    sampled: &Sampled,
    (chosen, label): (&[u32], &str),
) -> Result<Option<Vec<RgbImage>>> {
    let folder = format!("{NAME}/{}", label.replace(' ', "-"));
    clear(&evaluation.out().join(&folder))?;
    let chosen: Vec<usize> = chosen.iter().map(|&row| row as usize).take(options.decoded).collect();
    if chosen.is_empty() {
        return Ok(None);
    }
    let settings = PipelineSettings {
        num_steps: options.steps,
        sampler: options.sampler,
        seed: evaluation.seed(),
        ..PipelineSettings::REFERENCE
    };
    let settings = model.along_own_chain(settings)?;
    let stage = evaluation.stage("decode", chosen.len(), options.steps);
    let mut pictures = vec![];
    for chosen in chosen.chunks(model.batch_size()) {
        let first = pictures.len();
        let z_sem = select(&sampled.z_sem, chosen)?.to_device(model.model().device())?;
        let x_terminal = model.x_terminal(Some(&z_sem), (first, chosen.len()), &settings)?;
        let x_0 = model.decode((&x_terminal, Some(&z_sem)), first, &settings, &stage)?;
        for row in 0..chosen.len() {
            let picture = rgb_from_tensor(&x_0.get(row)?)?;
            let name = format!("{folder}/{:05}.png", pictures.len());
            evaluation.write_picture(&name, &picture, Some(model.model()))?;
            pictures.push(picture);
        }
    }
    stage.finish();
    Ok(Some(pictures))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn few_labels_tell_what_is_easily_told() {
        // The attribute is the sign of the first of two dimensions.
        let rows: Vec<f32> = (0..60).flat_map(|i| [((i * 7) % 13) as f32 - 6.2, ((i * 5) % 11) as f32]).collect();
        let present: Vec<bool> = rows.chunks(2).map(|row| row[0] > 0.).collect();
        let z_sem = Tensor::from_vec(rows, (60, 2), &Device::Cpu).unwrap();
        let whole = LinearProbe::fit(&z_sem, &present, 1.).unwrap();
        for knowledge in Knowledge::ALL {
            let found = trial((&z_sem, &present), (knowledge, 10, "seed"), 1., &whole, None).unwrap().unwrap();
            assert!(found.auroc > 0.9, "{knowledge:?}: {}", found.auroc);
            let again = trial((&z_sem, &present), (knowledge, 10, "seed"), 1., &whole, None).unwrap().unwrap();
            assert!((found.auroc - again.auroc).abs() < 1e-12);
            assert!(trial((&z_sem, &present), (knowledge, 58, "seed"), 1., &whole, None).unwrap().is_none());
        }
    }

    #[test]
    fn shuffling_loses_nothing() {
        let mut order = shuffled(50, "a");
        assert_ne!(order, shuffled(50, "b"));
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
    }
}
