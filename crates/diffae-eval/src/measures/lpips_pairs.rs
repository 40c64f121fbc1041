//! Perceptual distance of same-named pictures, and the network that other measures share.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use candle_core::{Device, Tensor};
use diffae_data::{PictureFormat, PictureSet};
use diffae_infer::Settings;
use image::ImageReader;

use super::Measure;
use crate::error::{Result, unsuitable};
use crate::evaluated_model::to_unit;
use crate::evaluation::Evaluation;
use crate::feature_file::fingerprint_of_file;
use crate::features::{Lpips, LpipsBackbone};
use crate::journal::Journal;
use crate::report::{Figure, Report};

const NAME: &str = "lpips";

/// The network of LPIPS, with a fingerprint of its weights.
#[derive(Debug)]
pub struct PerceptualNetwork {
    network: Lpips,
    backbone: LpipsBackbone,
    fingerprint: String,
}

impl PerceptualNetwork {
    /// Reads the weights of a backbone; see [`Lpips::open`].
    ///
    /// # Errors
    /// [`Error::Weights`](crate::Error::Weights) if the file cannot be read or is of another network.
    pub fn open(backbone: LpipsBackbone, path: &Path, device: &Device) -> Result<Self> {
        let network = Lpips::open(backbone, path, device)?;
        Ok(Self { network, backbone, fingerprint: fingerprint_of_file(path)? })
    }

    /// Returns the backbone.
    #[must_use]
    pub fn backbone(&self) -> LpipsBackbone {
        self.backbone
    }

    /// Returns the network.
    #[must_use]
    pub fn network(&self) -> &Lpips {
        &self.network
    }

    /// Returns the settings that determine the distances.
    pub(super) fn settings(&self) -> Settings {
        Settings::from([
            ("lpips_backbone".to_owned(), self.backbone.name().into()),
            ("lpips_weights".to_owned(), self.fingerprint.clone().into()),
        ])
    }
}

/// LPIPS between the pictures of two sets that have the same names, extensions aside. Pictures of the first set are
/// cropped and resized to those of the second, which must be squares.
#[derive(Debug)]
pub struct LpipsPairs<'a> {
    /// Real pictures.
    pub pictures: &'a PictureSet,
    /// Pictures to compare with them.
    pub others: &'a PictureSet,
    /// The network.
    pub lpips: &'a PerceptualNetwork,
}

impl Measure for LpipsPairs<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, evaluation: &Evaluation<'_>) -> Result<Report> {
        let &Self { pictures, others, lpips } = self;
        let pairs = pairs_by_name(pictures, others)?;
        let mut settings = lpips.settings();
        settings.insert("data".to_owned(), pictures.fingerprint()?.into());
        settings.insert("pictures".to_owned(), others.fingerprint()?.into());
        settings.insert("count".to_owned(), pairs.len().into());
        let mut journal = Journal::of(evaluation, NAME, &settings)?;
        let items = evaluation.items(pairs.len());
        let stage = evaluation.stage(NAME, items.len(), 1);
        for &pair in &pairs[items] {
            stage.check(1)?;
            let name = pictures.name(pair.0);
            if journal.get(&name).is_none() {
                let [real, made] = read_pair(pictures, others, pair)?;
                let distance = lpips.network.distance(&real, &made)?;
                journal.add(name, distance.into_iter().map(|distance| (NAME.to_owned(), distance)).collect())?;
            }
        }
        stage.finish();
        if let Some(shard) = evaluation.shard() {
            return Ok(Report::of_shard(NAME, settings, shard));
        }
        let value = |&(idx, _): &(usize, usize)| journal.get(&pictures.name(idx))?.get(NAME).copied();
        let values: Vec<f64> = pairs.iter().filter_map(value).collect();
        let figure = Figure::mean(NAME, &[("backbone", lpips.backbone.name())], &values, evaluation.seed());
        Report::new(NAME, settings, figure.into_iter().collect()).written(evaluation)
    }
}

/// Matches same-named images of two folders, extensions aside: indices in the first and in the second.
pub(super) fn pairs_by_name(x: &PictureSet, y: &PictureSet) -> Result<Vec<(usize, usize)>> {
    let stem = |name: String| Path::new(&name).with_extension("").display().to_string();
    let places: BTreeMap<String, usize> = (0..y.len()).map(|idx| (stem(y.name(idx)), idx)).collect();
    if places.len() < y.len() {
        return Err(unsuitable("two of the images have the same name but for the extension"));
    }
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
    if pairs.is_empty() {
        return Err(unsuitable("the folders have no images of the same names"));
    }
    Ok(pairs)
}

/// Reads two pictures in `[0, 1]`, the first cropped and resized to the size of the second.
pub(super) fn read_pair(x: &PictureSet, y: &PictureSet, (of_x, of_y): (usize, usize)) -> Result<[Tensor; 2]> {
    let name = y.name(of_y);
    let unread = |source| diffae_data::Error::Image { path: name.clone().into(), source };
    let reader = ImageReader::new(Cursor::new(y.all().bytes(of_y)?)).with_guessed_format();
    let (width, height) =
        reader.map_err(image::ImageError::IoError).and_then(ImageReader::into_dimensions).map_err(unread)?;
    if width != height {
        return Err(unsuitable(format!("{name} has {width} by {height} pixels, expected a square")));
    }
    let format = PictureFormat::new(3, height as usize);
    let read = |pictures: &PictureSet, idx: usize| to_unit(&pictures.read(std::iter::once(idx), format)?);
    Ok([read(x, of_x)?, read(y, of_y)?])
}
