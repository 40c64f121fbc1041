//! The pictures of a folder, or of archives and databases in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use diffae_infer::{CropBox, picture_files, picture_from_bytes};

use super::lmdb::{self, Lmdb};
use super::{archives, tables};
use crate::config::{Crop, DataSettings};
use crate::error::{Error, Result, at};

/// The part of aligned `CelebA` pictures that the paper uses.
pub const CELEBA_BOX: CropBox = CropBox { left: 25, top: 57, width: 128, height: 128 };

/// Which pictures of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Those that are trained on.
    Train,
    /// Those that are not.
    Validation,
}

/// Pictures in order of their names: files of a folder, members of tar archives or of Parquet files in it, or the
/// values of an LMDB.
#[derive(Debug, Clone)]
pub struct Pictures {
    root: PathBuf,
    items: Vec<Item>,
    crop: Crop,
    /// Files that are deleted when nobody reads them any more.
    #[cfg(feature = "parquet")]
    _unpacked: Vec<std::sync::Arc<tempfile::NamedTempFile>>,
}

#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) file: PathBuf,
    /// Path below the folder, or in the archive; the key in a database.
    pub(super) name: String,
    pub(super) place: Place,
}

/// Where the bytes of a picture are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// They are the file.
    File,
    /// A part of it.
    Part { offset: u64, length: usize },
    /// The value of the name.
    Value(Arc<Lmdb>),
}

impl Pictures {
    /// Finds the pictures below a folder that belong to a split: picture files, and the pictures in `.tar` archives, such
    /// as the shards of a `WebDataset`, and in `.parquet` files, right below it. The folder may also be one such file, or
    /// an LMDB in the layout of the released data sets.
    ///
    /// A picture belongs to the validation split by a hash of its name, so adding files moves no other.
    ///
    /// # Errors
    /// If the folder cannot be read or holds no pictures, or an archive is damaged.
    pub fn find(root: &Path, settings: &DataSettings, split: Split) -> Result<Self> {
        let tables = ending_in(root, tables::EXTENSION)?;
        let mut items = match root.is_file() {
            true if ends_in(root, archives::EXTENSION) => archives::members(root)?,
            true if ends_in(root, tables::EXTENSION) => vec![],
            true => {
                let problem = "it is neither a folder nor a .tar archive nor a .parquet file".to_owned();
                return Err(Error::Data { path: root.to_owned(), problem });
            }
            false if lmdb::is_database(root) => lmdb::values(root)?,
            false => Self::below(root)?,
        };
        let belongs = |name: &str| is_validation(name, settings.validation_share) == (split == Split::Validation);
        let unpacked = tables::Unpacked::new(&tables, &belongs)?;
        let all = items.len() + unpacked.num_rows;
        items.retain(|item| belongs(&item.name));
        items.extend(unpacked.items);
        if all == 0 || (items.is_empty() && split == Split::Train) {
            let problem = match all {
                0 => "there are no pictures in it".to_owned(),
                _ => format!("all {all} pictures fall to validation; set data.validation_share=0"),
            };
            return Err(Error::Data { path: root.to_owned(), problem });
        }
        Ok(Self {
            root: root.to_owned(),
            items,
            crop: settings.crop,
            #[cfg(feature = "parquet")]
            _unpacked: unpacked.files,
        })
    }

    /// Finds all pictures below a folder, of both splits.
    ///
    /// # Errors
    /// As [`Pictures::find`].
    pub fn all(root: &Path, crop: Crop) -> Result<Self> {
        let settings =
            DataSettings { crop, flip: 0., validation_share: 0., max_broken_share: 0., workers: 1, prefetch: 1 };
        Self::find(root, &settings, Split::Train)
    }

    fn below(root: &Path) -> Result<Vec<Item>> {
        let files = picture_files(root)?.into_iter();
        let mut items: Vec<Item> =
            files.map(|file| Item { name: relative(root, &file), file, place: Place::File }).collect();
        for archive in ending_in(root, archives::EXTENSION)? {
            items.extend(archives::members(&archive)?);
        }
        Ok(items)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Where they come from.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file of one, or the archive that it is in.
    #[must_use]
    pub fn file(&self, idx: usize) -> &Path {
        self.items.get(idx).map_or(Path::new(""), |item| &item.file)
    }

    /// Its path below the folder, or in its archive, with `/` between the parts.
    #[must_use]
    pub fn name(&self, idx: usize) -> String {
        self.items.get(idx).map_or_else(String::new, |item| item.name.clone())
    }

    /// Reads one.
    ///
    /// # Shapes
    /// - result: `[C, image_size, image_size]`, f32 in `[-1, 1]`.
    /// # Errors
    /// If it cannot be read, or is no picture.
    pub fn read(&self, idx: usize, channels: usize, image_size: usize) -> Result<Tensor> {
        let bytes = self.bytes(idx)?;
        let crop = (self.crop == Crop::Celeba).then_some(CELEBA_BOX);
        let name = self.root.join(self.name(idx));
        Ok(picture_from_bytes(&bytes, &name, (channels, image_size), crop)?)
    }

    /// One as it is stored.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn bytes(&self, idx: usize) -> Result<Vec<u8>> {
        let Some(item) = self.items.get(idx) else {
            return Err(Error::Data { path: self.root.clone(), problem: format!("there is no picture {idx}") });
        };
        match &item.place {
            Place::File => std::fs::read(&item.file).map_err(at(&item.file)),
            Place::Part { offset, length } => archives::read(&item.file, *offset, *length).map_err(at(&item.file)),
            Place::Value(database) => database.read(&item.name),
        }
    }
}

fn ends_in(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// The files right below a folder whose names end so, in order; or the file itself.
fn ending_in(root: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = vec![];
    if root.is_file() {
        found.push(root.to_owned());
    } else {
        for entry in std::fs::read_dir(root).map_err(at(root))? {
            found.push(entry.map_err(at(root))?.path());
        }
    }
    found.retain(|path| ends_in(path, extension));
    found.sort();
    Ok(found)
}

fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Whether a picture belongs to a share that is not trained on, by a hash of its name.
pub(crate) fn is_validation(name: &str, share: f64) -> bool {
    let hash = blake3::hash(name.as_bytes());
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
            let shade = |idx| pictures.read(idx, 1, 4).unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!((shade(0) - (10. / 127.5 - 1.)).abs() < 1e-6 && (shade(1) - (250. / 127.5 - 1.)).abs() < 1e-6);
        }
    }

    #[test]
    fn an_empty_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Pictures::find(folder.path(), &settings(0.), Split::Train).unwrap_err();
        assert!(error.to_string().contains("no pictures"), "{error}");
    }
}
