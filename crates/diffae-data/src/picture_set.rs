//! The first pictures of a data set, under unique names, for evaluation or fitting.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

use candle_core::Tensor;
use rayon::prelude::*;

use crate::error::{Error, Result, computing};
use crate::fingerprint::Fingerprint;
use crate::format::PictureFormat;
use crate::inputs::BrokenInput;
use crate::pictures::{Crop, FindSettings, Pictures, Split};

/// The pictures of a data set, or the first of them, in a fixed order and under unique names.
#[derive(Debug)]
pub struct PictureSet {
    pictures: Pictures,
    crop: Crop,
    count: usize,
    fingerprint: OnceLock<String>,
}

impl PictureSet {
    /// Finds the pictures below a folder or in an archive, or the first `limit` of them.
    ///
    /// # Errors
    /// As [`Pictures::all`]; [`Error::Data`] if two pictures have the same name, by which results would be confused.
    pub fn first(root: &Path, crop: Crop, limit: Option<usize>) -> Result<Self> {
        Self::find(root, &FindSettings { crop, ..FindSettings::default() }, limit)
    }

    /// Finds the pictures of the training split of some settings, or the first `limit` of them.
    ///
    /// # Errors
    /// As [`PictureSet::first`], for these settings.
    pub fn find(root: &Path, settings: &FindSettings<'_>, limit: Option<usize>) -> Result<Self> {
        let (pictures, crop) = (Pictures::find(root, settings, Split::Train)?, settings.crop);
        let count = limit.unwrap_or(usize::MAX).min(pictures.len());
        let mut names = BTreeSet::new();
        if let Some(twice) = (0..count).map(|idx| pictures.name(idx)).find(|name| !names.insert(name.clone())) {
            let problem = format!("two pictures are named {twice}; give every picture a name of its own");
            return Err(Error::Data { path: root.to_owned(), problem });
        }
        Ok(Self { pictures, crop, count, fingerprint: OnceLock::new() })
    }

    /// Returns the number of pictures.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there are no pictures.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns the name of a picture: its path below the root.
    #[must_use]
    pub fn name(&self, idx: usize) -> String {
        self.pictures.name(idx)
    }

    /// Returns the crop of the pictures.
    #[must_use]
    pub fn crop(&self) -> Crop {
        self.crop
    }

    /// Returns all pictures of the data set, of which this set holds the first.
    #[must_use]
    pub fn all(&self) -> &Pictures {
        &self.pictures
    }

    /// Returns a checksum of names, contents and crop, which tells sets apart; computed once.
    ///
    /// # Errors
    /// As [`Pictures::bytes`].
    pub fn fingerprint(&self) -> Result<String> {
        if let Some(known) = self.fingerprint.get() {
            return Ok(known.clone());
        }
        let mut fingerprint = Fingerprint::new();
        fingerprint.update(format!("{:?}", self.crop).as_bytes());
        for idx in 0..self.count {
            let bytes = self.pictures.bytes(idx)?;
            fingerprint.update(format!("\n{} {}\n", self.name(idx), bytes.len()).as_bytes()).update(&bytes);
        }
        let found = fingerprint.digits();
        Ok(self.fingerprint.get_or_init(|| found).clone())
    }

    /// Reads pictures by their indices.
    ///
    /// # Shapes
    /// - result: `[N, C, H, W]` or `[N, C, D, H, W]` as the format says, f32 in `[-1, 1]`, on the CPU.
    /// # Errors
    /// As [`Pictures::read`].
    pub fn read(&self, indices: impl Iterator<Item = usize>, format: impl Into<PictureFormat>) -> Result<Tensor> {
        let format = format.into();
        let pictures = indices.map(|idx| self.pictures.read(idx, format)).collect::<Result<Vec<_>>>()?;
        computing("stacking pictures", Tensor::stack(&pictures, 0))
    }

    /// Opens every picture, and returns those that cannot be read.
    #[must_use]
    pub fn broken(&self) -> Vec<BrokenInput> {
        let check = |idx| {
            let error = self.pictures.check(idx).err()?;
            Some(BrokenInput { place: idx, error })
        };
        (0..self.count).into_par_iter().filter_map(check).collect()
    }

    /// Keeps those pictures of the set whose indices satisfy a condition, asked once for each.
    pub fn retain(&mut self, mut is_kept: impl FnMut(usize) -> bool) {
        let kept: Vec<bool> = (0..self.count).map(&mut is_kept).collect();
        self.count = kept.iter().filter(|&&kept| kept).count();
        self.pictures.retain(|idx| kept.get(idx) != Some(&false));
        self.fingerprint = OnceLock::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};

    fn folder_of(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (shade, name) in (0..).zip(names) {
            RgbImage::from_pixel(4, 4, Rgb([shade; 3])).save(folder.path().join(name)).unwrap();
        }
        folder
    }

    #[test]
    fn a_fingerprint_is_of_names_contents_crop_and_count() {
        let folder = folder_of(&["a.png", "b.png"]);
        let fingerprint = |crop, limit| PictureSet::first(folder.path(), crop, limit).unwrap().fingerprint().unwrap();
        let whole = fingerprint(Crop::Center, None);
        assert_eq!(whole, fingerprint(Crop::Center, Some(9)));
        assert_ne!(whole, fingerprint(Crop::Center, Some(1)));
        assert_ne!(whole, fingerprint(Crop::Celeba, None));
        std::fs::rename(folder.path().join("b.png"), folder.path().join("c.png")).unwrap();
        let renamed = fingerprint(Crop::Center, None);
        assert_ne!(whole, renamed);
        RgbImage::from_pixel(4, 4, Rgb([9; 3])).save(folder.path().join("c.png")).unwrap();
        assert_ne!(renamed, fingerprint(Crop::Center, None));
    }

    #[test]
    fn broken_pictures_are_found_and_left_out_within_the_limit() {
        let folder = folder_of(&["a.png", "c.png", "d.png"]);
        std::fs::write(folder.path().join("b.png"), b"\x89PNG\r\n\x1a\n").unwrap();
        let mut set = PictureSet::first(folder.path(), Crop::Center, Some(3)).unwrap();
        let broken: Vec<usize> = set.broken().iter().map(|broken| broken.place).collect();
        assert_eq!(broken, [1]);
        let before = set.fingerprint().unwrap();
        set.retain(|idx| !broken.contains(&idx));
        assert_eq!((0..set.len()).map(|idx| set.name(idx)).collect::<Vec<_>>(), ["a.png", "c.png"]);
        assert_ne!(set.fingerprint().unwrap(), before);
        assert_eq!(set.read(0..2, PictureFormat::new(3, 8)).unwrap().dims(), [2, 3, 8, 8]);
    }

    #[test]
    fn a_key_chooses_among_the_pictures_of_a_sample() {
        let shard = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/datasets/masks.tar");
        let set = |picture_key| {
            PictureSet::find(&shard, &FindSettings { picture_key, ..FindSettings::default() }, Some(15)).unwrap()
        };
        assert_eq!((set("").len(), set("*").len()), (10, 15));
        assert!(set("seg.png").name(0).ends_with(".seg.png"));
    }
}
