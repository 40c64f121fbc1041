//! `diffae eval recon`: how near reconstructions are, over numbers of decoding steps.

use std::collections::BTreeSet;

use anyhow::Result;
use candle_core::Tensor;
use diffae_infer::{NoiseSource, Overwrite, png_bytes, rgb_from_tensor, write_atomically};

use super::journal::{Journal, Settings, Values};
use super::pictures::EvalPictures;
use super::report::{Figure, Report};
use crate::args::{GlobalArgs, ReconArgs};
use crate::drawing::{Curve, SheetRow, captioned_sheet, plot};
use crate::output::Provenance;
use crate::progress::Progress;
use crate::session::{Session, to_unit};

const NAME: &str = "recon";
/// Where `x_T` comes from.
const KINDS: [&str; 2] = ["inverted", "random"];
/// Measures, in the order of the report.
const MEASURES: [&str; 4] = ["psnr", "ssim", "ms_ssim", "mse"];
/// Pictures on the sheet.
const NUM_SHOWN: usize = 8;

/// One way to reconstruct.
#[derive(Debug, Clone, Copy)]
struct Way {
    kind: &'static str,
    steps: usize,
    invert_steps: usize,
}

impl Way {
    fn item(&self, name: &str) -> String {
        format!("{}/{}/{name}", self.kind, self.steps)
    }
}

/// Reconstructs every picture in every way, and measures.
pub(super) fn run(global: &GlobalArgs, args: &ReconArgs) -> Result<()> {
    let pictures = EvalPictures::find(&args.data)?;
    let session = Session::open(global, &args.model, &args.run.batch)?;
    let steps: BTreeSet<usize> = if session.is_one_shot() { [1].into() } else { args.steps.iter().copied().collect() };
    let ways: Vec<Way> = KINDS
        .into_iter()
        .flat_map(|kind| {
            steps.iter().map(move |&steps| {
                let invert_steps = if kind == "inverted" { args.invert_steps.unwrap_or(steps) } else { 0 };
                Way { kind, steps, invert_steps }
            })
        })
        .collect();
    let seed = args.run.random.seed;
    let settings = Settings::from([
        ("model".to_owned(), session.model.fingerprint().into()),
        ("data".to_owned(), pictures.fingerprint()?.into()),
        ("count".to_owned(), pictures.len().into()),
        ("steps".to_owned(), steps.iter().copied().collect::<Vec<_>>().into()),
        ("invert_steps".to_owned(), args.invert_steps.into()),
        ("seed".to_owned(), seed.into()),
    ]);
    let mut journal = Journal::open(&args.run.out, NAME, &settings, args.run.force.overwrite())?;
    let calls = ways.iter().map(|way| way.steps + way.invert_steps).sum();
    let progress = Progress::start(NAME, pictures.len(), calls);
    let mut rows = vec![];
    let sheet_path = args.run.out.join("recon.png");
    // The pictures of the sheet are not in the journal: they are decoded again, unless there is nothing left to do.
    let is_known = |idx| ways.iter().all(|way| journal.get(&way.item(&pictures.name(idx))).is_some());
    let has_sheet = sheet_path.is_file() && (0..pictures.len()).all(is_known);
    for batch in pictures.batches(session.batch_size()) {
        let shown = batch.start < NUM_SHOWN && !has_sheet;
        let missing: Vec<Way> = ways
            .iter()
            .copied()
            .filter(|way| shown || batch.clone().any(|idx| journal.get(&way.item(&pictures.name(idx))).is_none()))
            .collect();
        let kept: usize = calls - missing.iter().map(|way| way.steps + way.invert_steps).sum::<usize>();
        progress.check(kept * batch.len())?;
        if missing.is_empty() {
            continue;
        }
        let x_0 = pictures.read(&session, batch.clone())?;
        let z_sem = session.encode_semantic(&x_0)?;
        let mut columns = vec![x_0.clone()];
        for way in missing {
            let x_terminal = if way.kind == "inverted" {
                session.invert(&x_0, z_sem.as_ref(), way.invert_steps, &progress)?
            } else {
                session.random_x_terminal(NoiseSource::new(seed), batch.start as u64..batch.end as u64)?
            };
            let decoded = session.decode(&x_terminal, z_sem.as_ref(), way.steps, &progress)?;
            for (idx, values) in batch.clone().zip(measure(&x_0, &decoded)?) {
                if journal.get(&way.item(&pictures.name(idx))).is_none() {
                    journal.add(way.item(&pictures.name(idx)), values)?;
                }
            }
            columns.push(decoded);
        }
        if shown {
            rows.extend(sheet_rows(&columns)?);
        }
    }
    progress.finish();
    rows.truncate(NUM_SHOWN);
    let provenance = Provenance::new(session.model.fingerprint());
    if !has_sheet {
        let names = ways.iter().map(|way| format!("{} {}", way.kind, way.steps));
        let columns: Vec<String> = ["real".to_owned()].into_iter().chain(names).collect();
        let bytes = png_bytes(&captioned_sheet(&columns, &rows)?, provenance.entries(), &sheet_path)?;
        write_atomically(&sheet_path, &bytes, Overwrite::Replace)?;
    }
    let figures = figures(&ways, &pictures, &journal, seed);
    for (name, label) in [("psnr", "PSNR, dB"), ("ssim", "SSIM")] {
        let picture = plot("Reconstructions", ["decoding steps T", label], &curves(&figures, name))?;
        let path = args.run.out.join(format!("recon.{name}.png"));
        write_atomically(&path, &png_bytes(&picture, provenance.entries(), &path)?, Overwrite::Replace)?;
    }
    Report::new(NAME, settings, figures).finish(&args.run)
}

/// The measures of each picture.
fn measure(x_0: &Tensor, decoded: &Tensor) -> Result<Vec<Values>> {
    let (x, y) = (to_unit(x_0)?, to_unit(decoded)?);
    let ms_ssim = diffae_eval::ms_ssim(&x, &y);
    let measured = [
        ("psnr", Some(diffae_eval::psnr(&x, &y)?)),
        ("ssim", Some(diffae_eval::ssim(&x, &y)?)),
        ("mse", Some(diffae_eval::mse(&x, &y)?)),
        (
            "ms_ssim",
            match ms_ssim {
                // Small pictures have too few scales.
                Err(diffae_eval::Error::TooSmall { .. }) => None,
                other => Some(other?),
            },
        ),
    ];
    let count = x.dim(0)?;
    let values_of = |idx: usize| {
        let value = |(name, values): &(&str, Option<Vec<f64>>)| {
            // A perfect copy has no finite PSNR, which JSON could not hold.
            let value = values.as_ref()?.get(idx).copied().filter(|value| value.is_finite())?;
            Some(((*name).to_owned(), value))
        };
        measured.iter().filter_map(value).collect()
    };
    Ok((0..count).map(values_of).collect())
}

/// A row a picture: the picture, then each of its reconstructions.
fn sheet_rows(columns: &[Tensor]) -> Result<Vec<SheetRow>> {
    let count = columns.first().map_or(Ok(0), |x| x.dim(0))?;
    let row = |idx| {
        let pictures = columns.iter().map(|x| Ok(rgb_from_tensor(&x.get(idx)?)?)).collect::<Result<_>>()?;
        Ok(SheetRow { label: String::new(), pictures })
    };
    (0..count).map(row).collect()
}

fn figures(ways: &[Way], pictures: &EvalPictures, journal: &Journal, seed: u64) -> Vec<Figure> {
    let mut figures = vec![];
    for way in ways {
        for name in MEASURES {
            let value = |idx| journal.get(&way.item(&pictures.name(idx)))?.get(name).copied();
            let values: Vec<f64> = (0..pictures.len()).filter_map(value).collect();
            let of = [("x_T", way.kind), ("steps", &way.steps.to_string())];
            figures.extend(Figure::mean(name, &of, &values, seed));
        }
    }
    figures
}

/// A measure over the steps, a curve for each origin of `x_T`.
fn curves(figures: &[Figure], name: &str) -> Vec<Curve> {
    let of_kind = |kind: &str| {
        let points =
            figures.iter().filter(|figure| figure.name == name && figure.of.get("x_T").is_some_and(|k| k == kind));
        points.filter_map(|figure| Some((figure.of.get("steps")?.parse().ok()?, figure.value))).collect()
    };
    KINDS.iter().map(|kind| (format!("{kind} x_T"), of_kind(kind))).collect()
}
