//! The pictures of a folder.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use diffae_infer::{CropBox, picture_files, picture_from_bytes};

use crate::config::{Crop, DataSettings};
use crate::error::{Error, Result, at};

/// The part of aligned `CelebA` pictures that the paper uses.
const CELEBA_BOX: CropBox = CropBox { left: 25, top: 57, width: 128, height: 128 };

/// Which pictures of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Those that are trained on.
    Train,
    /// Those that are not.
    Validation,
}

/// Picture files, in order of their names.
#[derive(Debug, Clone)]
pub struct Pictures {
    root: PathBuf,
    files: Vec<PathBuf>,
    crop: Crop,
}

impl Pictures {
    /// Finds the pictures below a folder that belong to a split.
    ///
    /// A picture belongs to the validation split by a hash of its path below the folder, so adding files moves no other.
    ///
    /// # Errors
    /// If the folder cannot be read or holds no pictures.
    pub fn find(root: &Path, settings: &DataSettings, split: Split) -> Result<Self> {
        let mut files = picture_files(root)?;
        let all = files.len();
        files.retain(|path| is_validation(root, path, settings.validation_share) == (split == Split::Validation));
        if all == 0 || (files.is_empty() && split == Split::Train) {
            let problem = match all {
                0 => "there are no pictures in it".to_owned(),
                _ => format!("all {all} pictures fall to validation; set data.validation_share=0"),
            };
            return Err(Error::Data { path: root.to_owned(), problem });
        }
        Ok(Self { root: root.to_owned(), files, crop: settings.crop })
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Where they come from.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file of one.
    #[must_use]
    pub fn file(&self, idx: usize) -> &Path {
        self.files.get(idx).map_or(Path::new(""), PathBuf::as_path)
    }

    /// Its path below the folder, with `/` between the parts.
    #[must_use]
    pub fn name(&self, idx: usize) -> String {
        relative(&self.root, self.file(idx))
    }

    /// Reads one.
    ///
    /// # Shapes
    /// - result: `[C, image_size, image_size]`, f32 in `[-1, 1]`.
    /// # Errors
    /// If it cannot be read, or is no picture.
    pub fn read(&self, idx: usize, channels: usize, image_size: usize) -> Result<Tensor> {
        let path = self.file(idx);
        let bytes = std::fs::read(path).map_err(at(path))?;
        let crop = (self.crop == Crop::Celeba).then_some(CELEBA_BOX);
        Ok(picture_from_bytes(&bytes, path, (channels, image_size), crop)?)
    }
}

fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn is_validation(root: &Path, path: &Path, share: f64) -> bool {
    let hash = blake3::hash(relative(root, path).as_bytes());
    let number = hash.as_bytes().iter().take(4).fold(0u32, |all, &byte| (all << 8) | u32::from(byte));
    f64::from(number) / 4_294_967_296. < share
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    fn settings(share: f64) -> DataSettings {
        let mut settings = crate::presets::config("smoke", &[]).unwrap().data;
        settings.validation_share = share;
        settings
    }

    #[test]
    fn the_split_stays_when_files_are_added() {
        let folder = tempfile::tempdir().unwrap();
        let add = |i: usize| RgbImage::new(2, 2).save(folder.path().join(format!("{i}.png"))).unwrap();
        (0..40).for_each(add);
        let names = |split| {
            let pictures = Pictures::find(folder.path(), &settings(0.3), split).unwrap();
            (0..pictures.len()).map(|i| pictures.name(i)).collect::<Vec<_>>()
        };
        let (train, validation) = (names(Split::Train), names(Split::Validation));
        assert_eq!(train.len() + validation.len(), 40);
        assert!((4..20).contains(&validation.len()), "{}", validation.len());
        (40..60).for_each(add);
        assert!(validation.iter().all(|name| names(Split::Validation).contains(name)));
        assert!(train.iter().all(|name| names(Split::Train).contains(name)));
    }

    #[test]
    fn an_empty_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Pictures::find(folder.path(), &settings(0.), Split::Train).unwrap_err();
        assert!(error.to_string().contains("no pictures"), "{error}");
    }
}
