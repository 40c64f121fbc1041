//! LPIPS in measures, and `diffae eval lpips`: perceptual distance of same-named pictures.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use diffae_data::Crop;
use diffae_eval::{Lpips, LpipsBackbone};
use image::ImageReader;

use super::feature_file::fingerprint_of_file;
use super::journal::{Journal, Settings};
use super::report::{Figure, Report};
use crate::args::{GlobalArgs, LpipsArgs, LpipsPairsArgs};
use crate::device::device_from_name;
use crate::pictures::PictureSet;
use crate::progress::Progress;
use crate::session::catch_interrupts;

const NAME: &str = "lpips";

/// Opens the LPIPS network; `None` without weights.
pub(super) fn open(global: &GlobalArgs, args: &LpipsArgs) -> Result<Option<Lpips>> {
    let Some(path) = &args.lpips_weights else { return Ok(None) };
    let backbone = LpipsBackbone::from(args.lpips_backbone);
    Ok(Some(Lpips::open(backbone, path, &device_from_name(&global.device)?)?))
}

/// Returns the settings that determine the distances.
pub(super) fn settings(args: &LpipsArgs) -> Result<Settings> {
    let Some(path) = &args.lpips_weights else { return Ok(Settings::new()) };
    let backbone = LpipsBackbone::from(args.lpips_backbone).name();
    Ok(Settings::from([
        ("lpips_backbone".to_owned(), backbone.into()),
        ("lpips_weights".to_owned(), fingerprint_of_file(path)?.into()),
    ]))
}

/// Matches same-named images of two folders, extensions aside: indices in the first and in the second.
pub(super) fn pairs(x: &PictureSet, y: &PictureSet) -> Result<Vec<(usize, usize)>> {
    let stem = |name: String| Path::new(&name).with_extension("").display().to_string();
    let places: BTreeMap<String, usize> = (0..y.len()).map(|idx| (stem(y.name(idx)), idx)).collect();
    ensure!(places.len() == y.len(), "two of the images have the same name but for the extension");
    let pair = |idx: usize| Some((idx, *places.get(&stem(x.name(idx)))?));
    let pairs: Vec<(usize, usize)> = (0..x.len()).filter_map(pair).collect();
    if pairs.len() < x.len() {
        let first = (0..x.len()).map(|idx| x.name(idx)).find(|name| !places.contains_key(&stem(name.clone())));
        tracing::warn!(
            "images without a partner: {}, the first is {}",
            x.len() - pairs.len(),
            first.unwrap_or_default()
        );
    }
    ensure!(!pairs.is_empty(), "the folders have no images of the same names");
    Ok(pairs)
}

/// Reads two pictures in `[0, 1]`, the first cropped and resized to the size of the second.
pub(super) fn read_pair(x: &PictureSet, y: &PictureSet, (of_x, of_y): (usize, usize)) -> Result<[Tensor; 2]> {
    let bytes = y.all().bytes(of_y)?;
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let (width, height) = reader.into_dimensions().with_context(|| format!("cannot read {}", y.name(of_y)))?;
    ensure!(width == height, "{} has {width} by {height} pixels, expected a square", y.name(of_y));
    let size = usize::try_from(width)?;
    let read = |pictures: &PictureSet, idx: usize| -> Result<Tensor> {
        crate::session::to_unit(&pictures.all().read(idx, 3, size)?.unsqueeze(0)?)
    };
    Ok([read(x, of_x)?, read(y, of_y)?])
}

/// Compares the pictures of two folders.
pub(super) fn run(global: &GlobalArgs, args: &LpipsPairsArgs) -> Result<Report> {
    catch_interrupts();
    let (x, y) = (PictureSet::find(&args.data)?, PictureSet::first(&args.pictures, Crop::Center, None)?);
    let pairs = pairs(&x, &y)?;
    let lpips_args = LpipsArgs { lpips_backbone: args.backbone, lpips_weights: Some(args.weights.clone()) };
    let lpips = open(global, &lpips_args)?.context("LPIPS needs weights")?;
    let mut settings = settings(&lpips_args)?;
    settings.insert("data".to_owned(), x.fingerprint()?.into());
    settings.insert("pictures".to_owned(), y.fingerprint()?.into());
    settings.insert("count".to_owned(), pairs.len().into());
    let mut journal = Journal::open(&args.run.out, NAME, &settings, args.run.force.overwrite())?;
    let progress = Progress::start(NAME, pairs.len(), 1);
    for &pair in &pairs {
        progress.check(1)?;
        let name = x.name(pair.0);
        if journal.get(&name).is_none() {
            let [real, made] = read_pair(&x, &y, pair)?;
            let distance = lpips.distance(&real, &made)?;
            journal.add(name, distance.into_iter().map(|distance| (NAME.to_owned(), distance)).collect())?;
        }
    }
    progress.finish();
    let value = |&(idx, _): &(usize, usize)| journal.get(&x.name(idx))?.get(NAME).copied();
    let values: Vec<f64> = pairs.iter().filter_map(value).collect();
    let backbone = LpipsBackbone::from(args.backbone).name();
    let figure = Figure::mean(NAME, &[("backbone", backbone)], &values, args.run.random.seed);
    Report::new(NAME, settings, figure.into_iter().collect()).written(&args.run.out)
}
