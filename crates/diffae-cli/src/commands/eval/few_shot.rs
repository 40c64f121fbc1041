//! `diffae eval few-shot`: few-shot classification of `z_sem`, and attribute-conditioned sampling.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use diffae_data::{Overwrite, png_bytes, rgb_from_tensor, write_atomically};
use diffae_eval::{LinearProbe, auroc};
use diffae_infer::{PipelineSettings, Sheet};
use image::RgbImage;

use super::attributes::{Labelled, encode};
use super::codes::invent_all;
use super::journal::Settings;
use super::report::{Figure, Report};
use crate::args::{FewShotArgs, GlobalArgs};
use crate::output::Provenance;
use crate::progress::Progress;
use crate::session::Session;

const NAME: &str = "few-shot";

/// Supervision of a classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// Positives and negatives, as many of each.
    Binary,
    /// Positives only; all other pictures count as negatives.
    PositiveUnlabelled,
}

impl Knowledge {
    const ALL: [Self; 2] = [Self::Binary, Self::PositiveUnlabelled];

    fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::PositiveUnlabelled => "positive-unlabelled",
        }
    }
}

/// Sampled semantic codes.
struct Invented {
    session: Session,
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

/// Measures few-shot classification, for each attribute and number of labels: how well a classifier of `z_sem` ranks
/// the other pictures, how many sampled `z_sem` it accepts, and how many of these truly have the attribute by a probe
/// of all labels.
///
/// # Source
/// Preechakul et al. 2022 (arXiv:2111.15640), section 5.4; Sinha et al. 2021 (arXiv:2106.06819), section 5.
pub(super) fn run(global: &GlobalArgs, args: &FewShotArgs) -> Result<Report> {
    // One picture of each kind is left to judge by.
    let least = args.shots.iter().copied().min().unwrap_or(0) + 2;
    let penalty = args.labelled.fixed_inverse_penalty();
    let more = |session: &Session, _: &[String]| {
        let invents = args.invented > 0 && session.model().latent_net().is_ok();
        let mut settings = Settings::from([
            ("shots".to_owned(), args.shots.clone().into()),
            ("draws".to_owned(), args.draws.into()),
            ("invented".to_owned(), args.invented.into()),
            ("inverse_penalty".to_owned(), penalty.into()),
        ]);
        if invents {
            settings.insert("latent".to_owned(), session.latent_fingerprint()?.into());
            settings.insert("latent_steps".to_owned(), args.latent_steps.into());
        }
        Ok(settings)
    };
    let Labelled { session, z_sem, names, present, settings } = encode(global, &args.labelled, NAME, least, more)?;
    let scale = Scale::of(&z_sem)?;
    let standardized = scale.apply(&z_sem)?;
    let invented = if args.invented > 0 { invent(args, session, &scale)? } else { None };
    let seed = args.labelled.run.random.seed;
    let (mut figures, mut sheet) = (vec![], Sheet::new());
    for (name, present) in names.iter().zip(&present) {
        let whole = match LinearProbe::fit(&standardized, present, penalty) {
            Ok(whole) => whole,
            Err(diffae_eval::Error::OneClass) => {
                tracing::warn!("attribute {name} is constant and is left out");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for knowledge in Knowledge::ALL {
            for &shots in &args.shots {
                let trials = (0..args.draws).filter_map(|draw| {
                    let seed = format!("{seed} {name} {} {shots} {draw}", knowledge.name());
                    trial((&standardized, present), (knowledge, shots, &seed), penalty, &whole, invented.as_ref())
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
                let of = [("attribute", name.as_str()), ("labels", &shots.to_string()), ("knows", knowledge.name())];
                let mut add = |figure: &str, value: fn(&Trial) -> Option<f64>| {
                    let values: Vec<f64> = trials.iter().filter_map(value).collect();
                    figures.extend(Figure::mean(figure, &of, &values, seed));
                };
                add("auroc", |trial| Some(trial.auroc));
                add("accepted", |trial| trial.accepted);
                add("precision", |trial| trial.precision);
                if let (Some(invented), Some(first)) = (&invented, trials.first()) {
                    let label = format!("{name} {shots} {}", knowledge.name());
                    if let Some(pictures) = decode(args, invented, &first.chosen, &label)? {
                        sheet.push(label, pictures);
                    }
                }
            }
        }
    }
    if figures.is_empty() {
        bail!("every attribute is constant: none is present in some images and absent in others")
    }
    if !sheet.is_empty() {
        let path = args.labelled.run.out.join("few-shot.png");
        let provenance = invented.map(|invented| Provenance::new(invented.session.model().fingerprint()));
        let entries = provenance.as_ref().map_or(&[][..], |provenance| provenance.entries());
        write_atomically(&path, &png_bytes(&sheet.draw(), entries, &path)?, Overwrite::Replace)?;
    }
    Report::new(NAME, settings, figures).written(&args.labelled.run.out)
}

/// Fits a classifier to drawn pictures; `None` if there are too few of a class.
fn trial(
    (z_sem, present): (&Tensor, &[bool]),
    (knowledge, shots, seed): (Knowledge, usize, &str),
    inverse_penalty: f64,
    whole: &LinearProbe,
    invented: Option<&Invented>,
) -> Result<Option<Trial>> {
    let order = shuffled(present.len(), seed);
    let of_kind = |kind: bool| order.iter().copied().filter(move |&idx| present.get(idx) == Some(&kind));
    let drawn: Vec<usize> = match knowledge {
        Knowledge::Binary => {
            let negative = shots.div_euclid(2);
            of_kind(true).take(shots - negative).chain(of_kind(false).take(negative)).collect()
        }
        Knowledge::PositiveUnlabelled => of_kind(true).take(shots).collect(),
    };
    let mut is_drawn = vec![false; present.len()];
    for &idx in &drawn {
        is_drawn[idx] = true;
    }
    // Half of the pictures that are not drawn are unlabelled; every classifier is judged by the other half.
    let others: Vec<usize> = order.iter().copied().filter(|&idx| !is_drawn[idx]).collect();
    let (unlabelled, others) = others.split_at(others.len().div_euclid(2));
    let (rows, labels): (Vec<usize>, Vec<bool>) = match knowledge {
        Knowledge::Binary => drawn.iter().map(|&idx| (idx, present[idx])).unzip(),
        Knowledge::PositiveUnlabelled => drawn.iter().chain(unlabelled).map(|&idx| (idx, is_drawn[idx])).unzip(),
    };
    let select = |rows: &[usize]| -> Result<Tensor> {
        let rows = rows.iter().map(|&row| u32::try_from(row)).collect::<Result<Vec<_>, _>>()?;
        Ok(z_sem.index_select(&Tensor::new(rows, z_sem.device())?, 0)?)
    };
    let of_others: Vec<bool> = others.iter().map(|&idx| present[idx]).collect();
    let is_mixed = of_others.contains(&true) && of_others.contains(&false);
    if drawn.len() < shots || !is_mixed {
        return Ok(None);
    }
    let probe = LinearProbe::fit(&select(&rows)?, &labels, inverse_penalty)?;
    let auroc = auroc(&probe.logits(&select(others)?)?, &of_others)?;
    let Some(invented) = invented else {
        return Ok(Some(Trial { auroc, accepted: None, precision: None, chosen: vec![] }));
    };
    let logits = probe.logits(&invented.standardized)?;
    // Unlabelled pictures count as negative, so that few logits are above 0: what scores above the median of the known
    // pictures is taken.
    let threshold = match knowledge {
        Knowledge::Binary => 0.,
        Knowledge::PositiveUnlabelled => median(probe.logits(&select(&drawn)?)?),
    };
    let truth = whole.logits(&invented.standardized)?;
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

/// Mean and standard deviation of each dimension.
struct Scale {
    mean: Tensor,
    std: Tensor,
}

impl Scale {
    fn of(z_sem: &Tensor) -> Result<Self> {
        let mean = z_sem.mean_keepdim(0)?;
        let var = z_sem.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?;
        Ok(Self { mean, std: (var + 1e-12)?.sqrt()? })
    }

    fn apply(&self, z_sem: &Tensor) -> Result<Tensor> {
        Ok(z_sem.broadcast_sub(&self.mean)?.broadcast_div(&self.std)?)
    }
}

/// Samples vectors of the latent net; `None` if the model has none.
fn invent(args: &FewShotArgs, session: Session, scale: &Scale) -> Result<Option<Invented>> {
    if session.model().latent_net().is_err() {
        tracing::warn!("the model has no latent net: no z_sem are sampled");
        return Ok(None);
    }
    let z_sem = invent_all(&session, &args.labelled.run, args.invented, args.latent_steps)?;
    let standardized = scale.apply(&z_sem)?;
    Ok(Some(Invented { session, z_sem, standardized }))
}

/// Removes the images that an earlier command has decoded into a folder, of which there may have been more.
fn clear(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot write {}", folder.display()))?;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_ours = stem.parse::<u32>().is_ok() && path.extension().is_some_and(|ending| ending == "png");
        if is_ours {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Decodes the first chosen vectors into `few-shot/LABEL/`; returns a row of the sheet.
fn decode(args: &FewShotArgs, invented: &Invented, chosen: &[u32], label: &str) -> Result<Option<Vec<RgbImage>>> {
    let folder = args.labelled.run.out.join(NAME).join(label.replace(' ', "-"));
    clear(&folder)?;
    let chosen: Vec<u32> = chosen.iter().copied().take(args.decoded).collect();
    if chosen.is_empty() {
        return Ok(None);
    }
    let Invented { session, z_sem, .. } = invented;
    let settings = PipelineSettings {
        num_steps: args.steps,
        sampler: args.sampler.get()?,
        seed: args.labelled.run.random.seed,
        ..PipelineSettings::DEFAULT
    };
    let progress = Progress::start("decode", chosen.len(), args.steps);
    let provenance = Provenance::new(session.model().fingerprint());
    let mut pictures = vec![];
    for chosen in chosen.chunks(session.batch_size()) {
        let first = pictures.len();
        let numbers: Vec<u64> = (first as u64..).take(chosen.len()).collect();
        let z_sem =
            z_sem.index_select(&Tensor::new(chosen, z_sem.device())?, 0)?.to_device(session.model().device())?;
        let x_terminal = session.pipeline.random_x_terminal_batch(&numbers, &settings)?;
        let x_0 = session.decode((&x_terminal, Some(&z_sem)), first, &settings, &progress)?;
        for row in 0..chosen.len() {
            let picture = rgb_from_tensor(&x_0.get(row)?)?;
            let path = folder.join(format!("{:05}.png", pictures.len()));
            write_atomically(&path, &png_bytes(&picture, provenance.entries(), &path)?, Overwrite::Replace)?;
            pictures.push(picture);
        }
    }
    progress.finish();
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
