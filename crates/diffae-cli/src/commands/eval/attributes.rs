//! `diffae eval attributes`: linear-probe accuracy of attributes in `z_sem`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use diffae_data::{FOLDER_LABELS, Labels, Strangers};
use diffae_eval::{InversePenalty, auroc, average_precision, cross_validated_logits, logits_of_others};

use super::codes::encode_all;
use super::feature_file::fingerprint_of_file;
use super::journal::Settings;
use super::report::{Figure, Report};
use crate::args::{AttributesArgs, DisentanglementArgs, GlobalArgs, LabelledArgs};
use crate::pictures::PictureSet;
use crate::progress::Progress;
use crate::session::Session;

const NAME: &str = "attributes";

/// A measure of scores against labels.
type ScoreMeasure = fn(&[f64], &[bool]) -> diffae_eval::Result<f64>;

/// Codes of pictures with labels.
pub(super) struct Labelled {
    pub(super) session: Session,
    /// Codes of the pictures, `[N, D]`.
    pub(super) z_sem: Tensor,
    pub(super) names: Vec<String>,
    /// Labels of each attribute, N each.
    pub(super) present: Vec<Vec<bool>>,
    pub(super) settings: Settings,
}

/// Fits linear probes, and scores them on held-out pictures.
pub(super) fn run(global: &GlobalArgs, args: &AttributesArgs) -> Result<Report> {
    let penalty = args.labelled.inverse_penalty.map_or_else(|| "chosen".into(), Into::into);
    let train = args.train_data.as_deref().zip(args.train_labels.as_deref());
    let train = train.map(|(data, labels)| {
        let pictures = PictureSet::first(data, args.labelled.data.crop.into(), None)?;
        LabelledPictures::find(pictures.handling_broken(&args.labelled.data.broken)?, labels, 2)
    });
    let train = train.transpose()?;
    let more = |_: &Session, names: &[String]| {
        let mut settings = Settings::from([("inverse_penalty".to_owned(), penalty)]);
        match &train {
            Some(train) => {
                train.present_as(names)?; // before anything is encoded
                let prefixed = |(name, value)| (format!("train_{name}"), value);
                settings.extend(train.settings()?.into_iter().map(prefixed));
            }
            None => settings.extend([("folds".to_owned(), args.folds.into())]),
        }
        Ok(settings)
    };
    let least = if train.is_some() { 2 } else { args.folds };
    let labelled = encode(global, &args.labelled, NAME, least, more)?;
    let train = train.as_ref().map(|train| {
        let folder = args.labelled.run.out.join("train");
        Ok::<_, anyhow::Error>((train.encode(&labelled.session, &folder)?, train.present_as(&labelled.names)?))
    });
    let figures = figures(&labelled, args, train.transpose()?.as_ref())?;
    Report::new(NAME, labelled.settings, figures).written(&args.labelled.run.out)
}

/// Measures whether single dimensions stand for single attributes.
pub(super) fn run_disentanglement(global: &GlobalArgs, args: &DisentanglementArgs) -> Result<Report> {
    let labelled = &args.labelled;
    let penalty = labelled.fixed_inverse_penalty();
    let more = |_: &Session, _: &[String]| {
        let settings = [("resamples", args.resamples.into()), ("inverse_penalty", penalty.into())];
        Ok(Settings::from(settings.map(|(name, value)| (name.to_owned(), value))))
    };
    let Labelled { z_sem, names, present, settings, .. } = encode(global, labelled, "disentanglement", 2, more)?;
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
    let resampling = (args.resamples, labelled.run.random.seed);
    let mut figures = Figure::of_resamples((names, &[]), count, resampling, |rows| {
        let chosen = rows.iter().map(|&row| u32::try_from(row)).collect::<Result<Vec<_>, _>>()?;
        let z_sem = z_sem.index_select(&Tensor::new(chosen, z_sem.device())?, 0)?;
        let of_rows = |present: &Vec<bool>| rows.iter().map(|&row| present[row]).collect::<Vec<bool>>();
        let present: Vec<Vec<bool>> = present.iter().map(of_rows).collect();
        let dci = diffae_eval::dci(&z_sem, &present, penalty)?;
        let difference = diffae_eval::total_auroc_difference(&z_sem, &present)?;
        Ok([dci.disentanglement, dci.completeness, difference.total, difference.num_captured as f64])
    })?;
    figures.push(Figure::single("attributes", &[], present.len() as f64, count));
    Report::new("disentanglement", settings, figures).written(&labelled.run.out)
}

/// Pictures that have labels.
struct LabelledPictures {
    pictures: PictureSet,
    labels: Labels,
    fingerprint_of_labels: String,
    /// Indices of the pictures with labels.
    rows: Vec<usize>,
}

impl LabelledPictures {
    /// Fails with fewer than `least` pictures that have labels.
    fn find(pictures: PictureSet, path: &Path, least: usize) -> Result<Self> {
        let labels = read_labels(path, &pictures)?;
        let rows: Vec<usize> = (0..pictures.len()).filter(|&idx| labels.of(&pictures.name(idx)).is_some()).collect();
        if rows.len() < least {
            let (root, count) = (pictures.all().root().display(), rows.len());
            bail!("{count} images of {root} have labels, expected at least {least}")
        }
        let is_folders = path == Path::new(FOLDER_LABELS);
        let fingerprint_of_labels = if is_folders { FOLDER_LABELS.to_owned() } else { fingerprint_of_file(path)? };
        Ok(Self { pictures, labels, fingerprint_of_labels, rows })
    }

    fn settings(&self) -> Result<Settings> {
        Ok(Settings::from([
            ("data".to_owned(), self.pictures.fingerprint()?.into()),
            ("count".to_owned(), self.rows.len().into()),
            ("labels".to_owned(), self.fingerprint_of_labels.clone().into()),
        ]))
    }

    /// Encodes the pictures with labels, `[N, D]` on the CPU.
    fn encode(&self, session: &Session, folder: &Path) -> Result<Tensor> {
        let z_sem = encode_all(session, &self.pictures, folder)?;
        let rows = self.rows.iter().map(|&idx| u32::try_from(idx)).collect::<Result<Vec<_>, _>>()?;
        Ok(z_sem.index_select(&Tensor::new(rows, &candle_core::Device::Cpu)?, 0)?)
    }

    /// Returns N labels for each of the named attributes.
    fn present_as(&self, names: &[String]) -> Result<Vec<Vec<bool>>> {
        let of_name = |name: &String| {
            let known = self.labels.names.iter().position(|known| known == name);
            let attribute = known.with_context(|| format!("the labels of --train-data have no attribute {name}"))?;
            let label = |&idx: &usize| {
                let row = self.labels.of(&self.pictures.name(idx));
                row.and_then(|row| row.get(attribute).copied()).unwrap_or(false)
            };
            Ok(self.rows.iter().map(label).collect())
        };
        names.iter().map(of_name).collect()
    }
}

/// Encodes all pictures for a measure, and keeps those with labels, of which there must be `least`. `settings` are
/// those of the measure besides model, pictures and labels.
pub(super) fn encode(
    global: &GlobalArgs,
    args: &LabelledArgs,
    measure: &str,
    least: usize,
    settings: impl FnOnce(&Session, &[String]) -> Result<Settings>,
) -> Result<Labelled> {
    if let Some(value) = args.inverse_penalty {
        ensure!(value > 0. && value.is_finite(), "--inverse-penalty is {value}, expected a number above 0");
    }
    let pictures = LabelledPictures::find(PictureSet::find(&args.data)?, &args.labels, least)?;
    let session = Session::open(global, &args.model, &args.run.batch)?;
    let mut settings = settings(&session, &pictures.labels.names)?;
    settings.extend(session.settings());
    settings.extend(pictures.settings()?);
    settings.insert("seed".to_owned(), args.run.random.seed.into());
    Report::check_folder(&args.run, measure, &settings)?;
    let z_sem = pictures.encode(&session, &args.run.out)?;
    let present = pictures.present_as(&pictures.labels.names)?;
    Ok(Labelled { session, z_sem, names: pictures.labels.names, present, settings })
}

/// Computes the figures of the probes: fitted to `train` and scored on `labelled`, or cross-validated without `train`.
fn figures(
    labelled: &Labelled,
    args: &AttributesArgs,
    train: Option<&(Tensor, Vec<Vec<bool>>)>,
) -> Result<Vec<Figure>> {
    const MEASURES: [(&str, ScoreMeasure); 2] = [("auroc", auroc), ("average_precision", average_precision)];
    let seed = args.labelled.run.random.seed;
    let (mut figures, mut shares) = (vec![], vec![]);
    let constant = |name: &str, data: &str| {
        tracing::warn!("attribute {name} is (nearly) constant over {data} and is left out");
    };
    let penalty = args.labelled.inverse_penalty.map_or(InversePenalty::Chosen, InversePenalty::Fixed);
    let progress = Progress::start("probe", labelled.names.len(), 1);
    for (attribute, (name, present)) in labelled.names.iter().zip(&labelled.present).enumerate() {
        progress.check(1)?;
        if !(present.contains(&true) && present.contains(&false)) {
            constant(name, "--data");
            continue;
        }
        let logits = match train {
            Some((z_sem, of_train)) => logits_of_others((z_sem, &of_train[attribute]), &labelled.z_sem, penalty),
            None => cross_validated_logits(&labelled.z_sem, present, args.folds, penalty),
        };
        let logits = match logits {
            Ok(logits) => logits,
            Err(diffae_eval::Error::OneClass) => {
                constant(name, if train.is_some() { "--train-data" } else { "--data" });
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        shares.push(present.iter().filter(|&&present| present).count() as f64 / present.len() as f64);
        for (measure_name, measure) in MEASURES {
            let of_items = |items: &[usize]| {
                let pick = |item: &usize| Some((*logits.get(*item)?, *present.get(*item)?));
                let (logits, present): (Vec<_>, Vec<_>) = items.iter().filter_map(pick).unzip();
                measure(&logits, &present).ok()
            };
            figures.extend(Figure::of_items(measure_name, &[("attribute", name)], logits.len(), seed, of_items));
        }
    }
    progress.finish();
    if shares.is_empty() {
        bail!("every attribute is constant: none is present in some images and absent in others")
    }
    for (measure_name, _) in MEASURES {
        let values: Vec<f64> = figures.iter().filter(|f| f.name == measure_name).map(|f: &Figure| f.value).collect();
        figures.extend(Figure::mean(measure_name, &[("attribute", "(mean)")], &values, seed));
        // Weighted by how often the attribute is there.
        let weighted = |items: &[usize]| {
            let pairs = || items.iter().filter_map(|&item| Some((values.get(item)?, shares.get(item)?)));
            Some(
                pairs().map(|(value, share)| value * share).sum::<f64>() / pairs().map(|(_, share)| share).sum::<f64>(),
            )
        };
        figures.extend(Figure::of_items(
            measure_name,
            &[("attribute", "(weighted mean)")],
            values.len(),
            seed,
            weighted,
        ));
    }
    Ok(figures)
}

/// Reads labels from a file or from folders.
fn read_labels(path: &Path, pictures: &PictureSet) -> Result<Labels> {
    let labels = if path == Path::new(FOLDER_LABELS) {
        Labels::from_folders(&[pictures.all()])?
    } else {
        Labels::matched(path, &[pictures.all()], Strangers::PassOver)?
    };
    Ok(labels)
}
