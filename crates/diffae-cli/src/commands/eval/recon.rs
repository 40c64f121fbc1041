//! `diffae eval recon`: reconstruction quality by number of decoding steps.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use candle_core::Tensor;
use diffae_data::Crop;
use diffae_data::{Overwrite, png_bytes, rgb_from_tensor, write_atomically};
use diffae_eval::Lpips;
use diffae_infer::{PipelineSettings, Sheet};
use image::RgbImage;

use super::journal::{Journal, Settings, Values};
use super::perceptual;
use super::report::{Figure, Report};
use crate::args::{GlobalArgs, Judged, ReconArgs};
use crate::output::Provenance;
use crate::picture_output::sampler_settings;
use crate::pictures::PictureSet;
use crate::plot::{Curve, Plot};
use crate::progress::Progress;
use crate::session::{Session, catch_interrupts, to_unit};

const NAME: &str = "recon";
/// Sources of `x_T`.
const KINDS: [&str; 2] = ["inverted", "random"];
/// Measures, in the order of the report.
const MEASURES: [&str; 5] = ["psnr", "ssim", "ms_ssim", "mse", "lpips"];
/// Number of pictures on the sheet.
const NUM_SHOWN: usize = 8;

/// An image and its reconstructions.
struct SheetRow {
    name: String,
    pictures: Vec<RgbImage>,
}

/// A method of reconstruction.
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

    fn settings(self) -> PipelineSettings {
        PipelineSettings { num_steps: self.steps, num_invert_steps: self.invert_steps, ..PipelineSettings::DEFAULT }
    }

    fn reconstruct(
        self,
        session: &Session,
        (x_0, z_sem): (&Tensor, Option<&Tensor>),
        batch: &Range<usize>,
        settings: &PipelineSettings,
        progress: &Progress,
    ) -> Result<Tensor> {
        let x_terminal = if self.kind == "inverted" {
            session.pipeline.invert_batch(x_0, z_sem, settings, &mut progress.observer())?
        } else {
            let numbers: Vec<u64> = (batch.start as u64..batch.end as u64).collect();
            session.pipeline.random_x_terminal_batch(&numbers, settings)?
        };
        session.decode((&x_terminal, z_sem), batch.start, settings, progress)
    }
}

/// Reconstructs every picture by every method, and measures the results.
pub(super) fn run(global: &GlobalArgs, args: &ReconArgs) -> Result<Report> {
    let pictures = PictureSet::find(&args.data)?;
    let lpips = perceptual::open(global, &args.lpips)?;
    let model = match args.judged.get()? {
        Judged::Model(model) => model,
        Judged::Pictures(folder) => return run_given(args, &folder, &pictures, lpips.as_ref()),
    };
    let session = Session::open(global, &model, &args.run.batch)?;
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
    let (seed, sampler) = (args.run.random.seed, args.sampler.get()?);
    let mut settings = session.settings();
    settings.extend([
        ("data".to_owned(), pictures.fingerprint()?.into()),
        ("count".to_owned(), pictures.len().into()),
        ("steps".to_owned(), steps.iter().copied().collect::<Vec<_>>().into()),
        ("invert_steps".to_owned(), args.invert_steps.into()),
        ("seed".to_owned(), seed.into()),
    ]);
    settings.extend(sampler_settings(sampler));
    settings.extend(perceptual::settings(&args.lpips)?);
    let mut journal = Journal::open(&args.run.out, NAME, &settings, args.run.force.overwrite())?;
    let calls = ways.iter().map(|way| way.steps + way.invert_steps).sum();
    let progress = Progress::start(NAME, pictures.len(), calls);
    let mut rows: Vec<SheetRow> = vec![];
    let names = |batch: Range<usize>| batch.map(|idx| pictures.name(idx)).collect::<Vec<_>>();
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
        let z_sem = session.has_z_sem().then(|| session.model().encode_semantic(&x_0)).transpose()?;
        let mut columns = vec![x_0.clone()];
        for way in missing {
            let settings = PipelineSettings { sampler, seed, ..way.settings() };
            let decoded = way.reconstruct(&session, (&x_0, z_sem.as_ref()), &batch, &settings, &progress)?;
            for (idx, values) in batch.clone().zip(measure(&to_unit(&x_0)?, &to_unit(&decoded)?, lpips.as_ref())?) {
                if journal.get(&way.item(&pictures.name(idx))).is_none() {
                    journal.add(way.item(&pictures.name(idx)), values)?;
                }
            }
            columns.push(decoded);
        }
        if shown {
            rows.extend(sheet_rows(&columns, &names(batch))?);
        }
    }
    progress.finish();
    rows.truncate(NUM_SHOWN);
    let provenance = Provenance::new(session.model().fingerprint());
    if !has_sheet {
        let titles = ways.iter().map(|way| format!("{} {}", way.kind, way.steps));
        let columns: Vec<String> = ["original".to_owned()].into_iter().chain(titles).collect();
        let bytes = png_bytes(&sheet_of(&columns, rows).draw(), provenance.entries(), &sheet_path)?;
        write_atomically(&sheet_path, &bytes, Overwrite::Replace)?;
    }
    let figures = figures(&ways, &pictures, &journal, seed);
    write_plots(&figures, args, &provenance)?;
    Report::new(NAME, settings, figures).written(&args.run.out)
}

/// Draws the curves over the steps.
fn write_plots(figures: &[Figure], args: &ReconArgs, provenance: &Provenance) -> Result<()> {
    for (name, label) in [("psnr", "PSNR (dB)"), ("ssim", "SSIM"), ("lpips", "LPIPS")] {
        if name == "lpips" && args.lpips.lpips_weights.is_none() {
            continue;
        }
        let curves = curves(figures, name);
        let plot = Plot { title: "Reconstructions", x_label: "decoding steps", y_label: label, curves: &curves };
        let path = args.run.out.join(format!("recon.{name}.png"));
        write_atomically(&path, &png_bytes(&plot.draw(), provenance.entries(), &path)?, Overwrite::Replace)?;
    }
    Ok(())
}

/// Measures reconstructions that another program has generated.
fn run_given(args: &ReconArgs, folder: &Path, pictures: &PictureSet, lpips: Option<&Lpips>) -> Result<Report> {
    catch_interrupts();
    let made = PictureSet::first(folder, Crop::Center, None)?;
    let pairs = perceptual::pairs(pictures, &made)?;
    let way = Way { kind: args.made_with.name(), steps: args.steps.first().copied().unwrap_or(0), invert_steps: 0 };
    let mut settings = Settings::from([
        ("pictures".to_owned(), made.fingerprint()?.into()),
        ("data".to_owned(), pictures.fingerprint()?.into()),
        ("count".to_owned(), pairs.len().into()),
        ("steps".to_owned(), way.steps.into()),
        ("made_with".to_owned(), way.kind.into()),
    ]);
    settings.extend(perceptual::settings(&args.lpips)?);
    let mut journal = Journal::open(&args.run.out, NAME, &settings, args.run.force.overwrite())?;
    let progress = Progress::start(NAME, pairs.len(), 1);
    let mut rows = vec![];
    for (place, &pair) in pairs.iter().enumerate() {
        progress.check(1)?;
        let item = way.item(&pictures.name(pair.0));
        let shown = place < NUM_SHOWN;
        if journal.get(&item).is_some() && !shown {
            continue;
        }
        let [x, y] = perceptual::read_pair(pictures, &made, pair)?;
        if journal.get(&item).is_none() {
            for values in measure(&x, &y, lpips)? {
                journal.add(item.clone(), values)?;
            }
        }
        if shown {
            rows.extend(sheet_rows(
                &[x, y].map(|x| x.affine(2., -1.)).into_iter().collect::<candle_core::Result<Vec<_>>>()?,
                &[pictures.name(pair.0)],
            )?);
        }
    }
    progress.finish();
    let columns = ["original".to_owned(), format!("{} {}", way.kind, way.steps)];
    let path = args.run.out.join("recon.png");
    let bytes = png_bytes(&sheet_of(&columns, rows).draw(), &[], &path)?;
    write_atomically(&path, &bytes, Overwrite::Replace)?;
    let figures = figures(&[way], pictures, &journal, args.run.random.seed);
    Report::new(NAME, settings, figures).written(&args.run.out)
}

/// Measures each pair of pictures in `[0, 1]`.
fn measure(x: &Tensor, y: &Tensor, lpips: Option<&Lpips>) -> Result<Vec<Values>> {
    let ms_ssim = diffae_eval::ms_ssim(x, y);
    let measured = [
        ("psnr", Some(diffae_eval::psnr(x, y)?)),
        ("ssim", Some(diffae_eval::ssim(x, y)?)),
        ("mse", Some(diffae_eval::mse(x, y)?)),
        ("lpips", lpips.map(|lpips| lpips.distance(x, y)).transpose()?),
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

/// Lays out a row per image: its name, the image, then each of its reconstructions.
fn sheet_rows(columns: &[Tensor], names: &[String]) -> Result<Vec<SheetRow>> {
    let row = |(idx, name): (usize, &String)| {
        let pictures = columns.iter().map(|x| Ok(rgb_from_tensor(&x.get(idx)?)?)).collect::<Result<_>>()?;
        Ok(SheetRow { name: name.clone(), pictures })
    };
    names.iter().enumerate().map(row).collect()
}

fn sheet_of(columns: &[String], rows: Vec<SheetRow>) -> Sheet {
    let mut sheet = Sheet::new().with_columns(columns);
    for SheetRow { name, pictures } in rows {
        sheet.push(name, pictures);
    }
    sheet
}

fn figures(ways: &[Way], pictures: &PictureSet, journal: &Journal, seed: u64) -> Vec<Figure> {
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

/// Returns the curves of a measure over the steps, one for each source of `x_T`.
fn curves(figures: &[Figure], name: &str) -> Vec<Curve> {
    let of_kind = |kind: &str| {
        let points =
            figures.iter().filter(|figure| figure.name == name && figure.of.get("x_T").is_some_and(|k| k == kind));
        points.filter_map(|figure| figure.point("steps")).collect()
    };
    KINDS.iter().map(|kind| Curve { name: format!("{kind} x_T"), points: of_kind(kind) }).collect()
}
