//! The pictures of a folder, or of archives and databases in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::image_io::CropBox;
use crate::raster::Raster;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::format::PictureFormat;
use crate::found::Found;
use crate::source::{Items, Source};
use crate::tensors::{Tensors, is_tensors};
use crate::unreadable::Unreadable;

/// The part of aligned `CelebA` pictures that the paper uses.
pub const CELEBA_BOX: CropBox = CropBox { left: 25, top: 57, width: 128, height: 128 };

/// Side that pictures are resized to when they are opened only to check that they can be read.
const CHECKED_SIZE: usize = 64;

/// The part of a picture that is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Crop {
    /// Resize the shorter side, then crop to the center.
    #[default]
    Center,
    /// First cut out rows 57 to 185 and columns 25 to 153 ([`CELEBA_BOX`]), as the paper does with aligned `CelebA`.
    Celeba,
}

/// Settings of [`Pictures::find`]. The default takes every picture, cropped to the center.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FindSettings<'a> {
    /// The crop of each picture.
    pub crop: Crop,
    /// Share of pictures held out for validation, by a hash of their names; in `[0, 1]`.
    pub validation_share: f64,
    /// Maximum share of unreadable pictures that [`Loader`](crate::Loader) tolerates; in `[0, 1]`.
    pub max_broken_share: f64,
    /// The picture to take from a sample: a key of a `WebDataset` (`jpg`, `seg.png`; `;` between alternatives; `*` for
    /// every picture) or a column of Parquet files. If it is empty, the obvious one.
    pub picture_key: &'a str,
}

/// A part of the pictures of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// The training split.
    Train,
    /// The pictures held out for validation.
    Validation,
}

/// Pictures in order of their names: files of a folder, members of tar archives or rows of Parquet files in it, or the
/// values of an LMDB.
#[derive(Debug, Clone)]
pub struct Pictures {
    root: PathBuf,
    source: Arc<dyn Source>,
    /// Indices of the split's pictures in the source, ascending.
    kept: Vec<usize>,
    crop: Crop,
    unreadable: Arc<Unreadable>,
}

impl Pictures {
    /// Finds the pictures below a folder that belong to a split: picture files, and the pictures in `.tar` archives
    /// (gzipped or not), such as the shards of a `WebDataset`, in `.parquet` files and in LMDBs of one file, right
    /// below it. The folder may also be one such file, an LMDB, or a `.safetensors` file that holds `x` `[N, C, H, W]` in
    /// `[-1, 1]`, at the size of the model. Archives and tables have one picture per sample
    /// ([`FindSettings::picture_key`]).
    ///
    /// A picture belongs to the validation split by a hash of its name, so adding files moves no other. What is found
    /// but cannot be read, such as files of other formats, is logged once.
    ///
    /// # Errors
    /// If the folder cannot be read or holds no pictures that are read, an archive is damaged or cut off, or it is unclear
    /// which picture of a sample is meant.
    pub fn find(root: &Path, settings: &FindSettings<'_>, split: Split) -> Result<Self> {
        let source: Arc<dyn Source> = if is_tensors(root) && root.exists() {
            Arc::new(Tensors::open(root)?)
        } else {
            Arc::new(Items(Found::of_data(root, settings.picture_key)?.with_warning(root)?))
        };
        Self::from_source(root, source, settings, split)
    }

    /// Takes the pictures of a source that belong to a split. `root` names the source in messages.
    ///
    /// # Errors
    /// [`Error::Data`] if there are none, or none to train on.
    pub fn from_source(
        root: &Path,
        source: Arc<dyn Source>,
        settings: &FindSettings<'_>,
        split: Split,
    ) -> Result<Self> {
        let failed = |problem| Err(Error::Data { path: root.to_owned(), problem });
        let all = source.len();
        if all == 0 {
            return failed("there are no pictures in it".to_owned());
        }
        let belongs =
            |idx: &usize| is_validation(source.name(*idx), settings.validation_share) == (split == Split::Validation);
        let kept: Vec<usize> = (0..all).filter(belongs).collect();
        if kept.is_empty() && split == Split::Train {
            let pictures = if all == 1 { "the only picture falls" } else { &format!("all {all} pictures fall") };
            return failed(format!("{pictures} to validation; set data.validation_share=0"));
        }
        let unreadable = Arc::new(Unreadable::new(all, settings.max_broken_share));
        Ok(Self { root: root.to_owned(), source, kept, crop: settings.crop, unreadable })
    }

    /// Finds all pictures below a folder, of both splits.
    ///
    /// # Errors
    /// As [`Pictures::find`].
    pub fn all(root: &Path, crop: Crop) -> Result<Self> {
        let settings = FindSettings { crop, ..FindSettings::default() };
        Self::find(root, &settings, Split::Train)
    }

    /// Counts the unreadable pictures of both splits together; with the folder of a run, over its stages and its
    /// resumptions: a list there names them.
    ///
    /// # Errors
    /// If the list in the run folder cannot be read.
    pub fn count_unreadable(splits: [&mut Self; 2], run: Option<&Path>, limit: f64) -> Result<()> {
        let unreadable = Unreadable::new(splits.iter().map(|split| split.len()).sum(), limit);
        let paths = || splits.iter().flat_map(|split| split.kept.iter().map(|&idx| split.source.path(idx)));
        let unreadable = Arc::new(match run {
            Some(run) => unreadable.of_run(run, paths)?,
            None => unreadable,
        });
        for split in splits {
            split.unreadable = Arc::clone(&unreadable);
        }
        Ok(())
    }

    /// Returns the number of pictures.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Keeps only the pictures whose index `is_kept` accepts.
    pub fn retain(&mut self, is_kept: impl Fn(usize) -> bool) {
        let mut place = 0;
        self.kept.retain(|_| {
            place += 1;
            is_kept(place - 1)
        });
    }

    /// Returns whether there are no pictures.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Returns the folder or file that was searched.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the file of a picture, or the archive that holds it.
    #[must_use]
    pub fn file(&self, idx: usize) -> &Path {
        self.kept.get(idx).map_or(Path::new(""), |&idx| self.source.file(idx))
    }

    /// Returns the path of a picture below the folder, or in its archive, with `/` between the parts.
    #[must_use]
    pub fn name(&self, idx: usize) -> String {
        self.kept.get(idx).map_or_else(String::new, |&idx| self.source.name(idx).to_owned())
    }

    /// Returns the pictures that could not be read so far.
    #[must_use]
    pub fn unreadable(&self) -> &Unreadable {
        &self.unreadable
    }

    /// Reads a picture.
    ///
    /// # Shapes
    /// - result: `[C, H, W]` or `[C, D, H, W]` as the format says, f32 in `[-1, 1]`.
    /// # Errors
    /// If it cannot be read, or is no picture of that format.
    pub fn read(&self, idx: usize, format: impl Into<PictureFormat>) -> Result<Tensor> {
        let crop = (self.crop == Crop::Celeba).then_some(CELEBA_BOX);
        self.source.read(self.known(idx)?, format.into(), crop)
    }

    /// Fails if a picture cannot be read; whether numbers are those of a picture, a model decides.
    ///
    /// # Errors
    /// As [`Pictures::read`].
    pub fn check(&self, idx: usize) -> Result<()> {
        match self.read(idx, PictureFormat::new(3, CHECKED_SIZE)) {
            Ok(_) => Ok(()),
            Err(error) => {
                let (bytes, path) = (self.source.bytes(self.known(idx)?)?, self.path(idx));
                Raster::check_file(&bytes, &path).unwrap_or(Err(error))
            }
        }
    }

    /// Computes a checksum of names, files and crop of some pictures, by which caches know the data that they were made of.
    ///
    /// # Errors
    /// As [`Source::stamp`].
    pub fn fingerprint(&self, indices: &[usize]) -> Result<String> {
        let known = indices.iter().map(|&idx| self.known(idx)).collect::<Result<Vec<_>>>()?;
        Ok(format!("{:?} {}", self.crop, self.source.fingerprint(&known)?))
    }

    /// Reads a picture; returns `None`, with a warning for the first time, if it cannot be read.
    ///
    /// # Shapes
    /// - result: `[C, H, W]` or `[C, D, H, W]` as the format says, f32 in `[-1, 1]`.
    /// # Errors
    /// [`Error::TooManyBroken`] if more pictures are unreadable than the settings allow; [`Error::Mismatch`] and
    /// [`Error::Tensors`] if tensors are of another size than the model's, or are to be cropped.
    pub fn read_or_leave_out(&self, idx: usize, format: impl Into<PictureFormat>) -> Result<Option<Tensor>> {
        match self.read(idx, format) {
            Ok(picture) => self.unreadable.remove(|| self.path(idx)).map(|()| Some(picture)),
            // All tensors of a file are of one size.
            Err(error @ (Error::Mismatch { .. } | Error::Tensors { .. })) => Err(error),
            Err(error) => self.unreadable.add(self.path(idx), &error).map(|()| None),
        }
    }

    /// Returns the error of data without any readable picture, with the reason for the first.
    #[must_use]
    pub fn none_readable(&self) -> Error {
        let reason = self.unreadable.first().map(|reason| format!(": {reason}")).unwrap_or_default();
        Error::Data { path: self.root.clone(), problem: format!("none of its pictures can be read{reason}") }
    }

    /// Reads the bytes of a picture as stored.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn bytes(&self, idx: usize) -> Result<Vec<u8>> {
        self.source.bytes(self.known(idx)?)
    }

    /// Returns the index of a picture in the source.
    fn known(&self, idx: usize) -> Result<usize> {
        let problem = || format!("there is no picture {idx}");
        self.kept.get(idx).copied().ok_or_else(|| Error::Data { path: self.root.clone(), problem: problem() })
    }

    /// Returns the name of a picture in messages.
    fn path(&self, idx: usize) -> PathBuf {
        self.kept.get(idx).map_or_else(PathBuf::new, |&idx| self.source.path(idx))
    }
}

/// Returns whether a picture is held out for validation, by a hash of its name.
#[must_use]
pub fn is_validation(name: &str, share: f64) -> bool {
    let hash = blake3::hash(name.as_bytes());
    let number = hash.as_bytes().iter().take(4).fold(0u32, |all, &byte| (all << 8) | u32::from(byte));
    f64::from(number) / 4_294_967_296. < share
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    fn settings(validation_share: f64) -> FindSettings<'static> {
        FindSettings { validation_share, max_broken_share: 0.01, ..FindSettings::default() }
    }

    #[test]
    fn a_single_picture_cannot_be_held_out() {
        let folder = tempfile::tempdir().unwrap();
        RgbImage::new(2, 2).save(folder.path().join("a.png")).unwrap();
        let error = Pictures::find(folder.path(), &settings(1.), Split::Train).unwrap_err().to_string();
        assert!(error.contains("the only picture falls to validation"), "{error}");
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
    fn pictures_in_archives_are_read_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = tar::Builder::new(std::fs::File::create(folder.path().join("000.tar")).unwrap());
        for (name, shade) in [("a/0.png", 10), ("a/0.txt", 0), ("b/1.png", 250)] {
            let mut bytes = std::io::Cursor::new(vec![]);
            RgbImage::from_pixel(4, 4, image::Rgb([shade; 3])).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            let bytes = bytes.into_inner();
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
        archive.finish().unwrap();
        for root in [folder.path().to_owned(), folder.path().join("000.tar")] {
            let pictures = Pictures::find(&root, &settings(0.), Split::Train).unwrap();
            assert_eq!((pictures.len(), pictures.name(1)), (2, "b/1.png".to_owned()));
            let shade = |idx| {
                pictures.read(idx, PictureFormat::new(1, 4)).unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
            };
            assert!((shade(0) - (10. / 127.5 - 1.)).abs() < 1e-6 && (shade(1) - (250. / 127.5 - 1.)).abs() < 1e-6);
        }
    }

    #[test]
    fn an_empty_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Pictures::find(folder.path(), &settings(0.), Split::Train).unwrap_err();
        assert!(error.to_string().contains("no pictures"), "{error}");
    }

    #[test]
    fn formats_that_cannot_be_decoded_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.heic", "b.HEIC", "c.avif", "shards.zip", ".hidden.heic"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let message = || Pictures::find(folder.path(), &settings(0.), Split::Train).unwrap_err().to_string();
        assert!(message().contains("that are read, only 1 AVIF picture and 2 HEIC pictures"), "{}", message());
        assert!(message().contains("1 .zip file (shards.zip); unpack it first: unzip FILE -d FOLDER"), "{}", message());
        RgbImage::new(2, 2).save(folder.path().join("d.png")).unwrap();
        assert_eq!(Pictures::find(folder.path(), &settings(0.), Split::Train).unwrap().len(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_to_folders_are_followed_but_not_in_circles() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (folder.path().join("root"), folder.path().join("elsewhere"));
        for dir in [root.join("cat"), elsewhere.join("deep")] {
            std::fs::create_dir_all(dir).unwrap();
        }
        for path in [root.join("cat/0.png"), elsewhere.join("1.png"), elsewhere.join("deep/2.png")] {
            RgbImage::new(2, 2).save(path).unwrap();
        }
        symlink(&elsewhere, root.join("dog")).unwrap();
        symlink(&root, root.join("cat/again")).unwrap();
        symlink(&elsewhere, elsewhere.join("deep/up")).unwrap();
        symlink("nowhere.png", root.join("lost.png")).unwrap();
        let pictures = Pictures::find(&root, &settings(0.), Split::Train).unwrap();
        let names: Vec<String> = (0..pictures.len()).map(|idx| pictures.name(idx)).collect();
        assert_eq!(names, ["cat/0.png", "dog/1.png", "dog/deep/2.png", "lost.png"]);
        assert!(pictures.read(3, crate::PictureFormat::new(3, 4)).is_err(), "a link that leads nowhere cannot be read");
    }

    /// Pipes, which nobody writes into, would be waited for forever.
    #[cfg(unix)]
    #[test]
    fn a_data_set_has_the_pictures_that_a_command_would_take() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["a/0.png", "a/1", "b.jpg", "@eaDir/b.jpg", "__MACOSX/b.jpg", ".cache/b.jpg", "._b.jpg"] {
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            RgbImage::new(2, 2).save_with_format(root.join(name), image::ImageFormat::Png).unwrap();
        }
        std::fs::write(root.join("LICENSE"), "text").unwrap();
        symlink(root.join("a"), root.join("alias")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(root.join("pipe.png")).status().unwrap();
        assert!(pipe.success());
        let pictures = Pictures::all(root, Crop::Center).unwrap();
        let names: Vec<String> = (0..pictures.len()).map(|idx| pictures.name(idx)).collect();
        assert_eq!(names, ["a/0.png", "a/1", "b.jpg"]);
        let of_command: Vec<PathBuf> = names.iter().map(|name| root.join(name)).collect();
        assert_eq!(crate::picture_files(root).unwrap(), of_command);
    }
}
