//! Indexed sources of encoded pictures.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use image::RgbImage;
use tempfile::NamedTempFile;

use crate::error::{Error, Result, at};
use crate::fingerprint::Fingerprint;
use crate::format::PictureFormat;
use crate::image_io::{CropBox, picture_from_bytes, rgb_from_bytes};
use crate::raster::series_bytes;
use crate::tar_members;

/// An indexed collection of encoded pictures, in a fixed order.
///
/// [`Pictures::from_source`](crate::Pictures::from_source) splits, crops and decodes them.
pub trait Source: fmt::Debug + Send + Sync {
    /// Returns the number of pictures.
    fn len(&self) -> usize;

    /// Returns whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the name of a picture, `idx` below [`len`](Self::len): its path below the folder or in the archive, with `/`
    /// between the parts, or its key. Labels, splits and caches refer to it.
    fn name(&self, idx: usize) -> &str;

    /// Returns the file of a picture, or the archive, table or database that holds it.
    fn file(&self, idx: usize) -> &Path;

    /// Returns the name of a picture in messages: its path, or the path of its archive followed by its own.
    fn path(&self, idx: usize) -> PathBuf;

    /// Reads a picture as it is stored, in any format that [`picture_from_bytes`] decodes.
    ///
    /// # Errors
    /// If it cannot be read.
    fn bytes(&self, idx: usize) -> Result<Vec<u8>>;

    /// Decodes a picture as [`picture_from_bytes`].
    ///
    /// # Shapes
    /// - result: `[C, H, W]` or `[C, D, H, W]` as the format says, f32 in `[-1, 1]`, on the CPU.
    /// # Errors
    /// If it cannot be read, or is no picture of that format.
    fn read(&self, idx: usize, format: PictureFormat, crop: Option<CropBox>) -> Result<Tensor> {
        picture_from_bytes(&self.bytes(idx)?, &self.path(idx), format, crop)
    }

    /// Decodes a picture at its own size, as bytes.
    ///
    /// # Errors
    /// If it cannot be read, or is no picture.
    fn read_rgb(&self, idx: usize) -> Result<RgbImage> {
        rgb_from_bytes(&self.bytes(idx)?, &self.path(idx))
    }

    /// Fails if a picture cannot be read.
    ///
    /// # Errors
    /// As [`Source::read_rgb`].
    fn check(&self, idx: usize) -> Result<()> {
        self.read_rgb(idx).map(drop)
    }

    /// Returns a stamp that distinguishes a picture from others of its name, without reading it: its path, and the size and
    /// time of the [`file`](Self::file). A source that is no file must define its own.
    ///
    /// # Errors
    /// [`Error::Io`] if the file is gone.
    fn stamp(&self, idx: usize) -> Result<String> {
        Ok(format!("{} of {}", self.path(idx).display(), stamp(self.file(idx))?))
    }

    /// Computes a checksum of the names and the [`stamp`](Self::stamp)s of some pictures, by which caches know the data that
    /// they were made of.
    ///
    /// # Errors
    /// As [`Source::stamp`].
    fn fingerprint(&self, indices: &[usize]) -> Result<String> {
        let mut fingerprint = Fingerprint::new();
        for &idx in indices {
            fingerprint.update(format!("{}\n{}\n", self.name(idx), self.stamp(idx)?).as_bytes());
        }
        Ok(fingerprint.digits())
    }
}

/// Returns the size and time of a file.
///
/// # Errors
/// [`Error::Io`] if the file is gone.
pub fn stamp(path: &Path) -> Result<String> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    let modified = metadata.modified().map_err(failed)?;
    let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{} bytes of {} ns", metadata.len(), since.as_nanos()))
}

/// Values by name, such as those of a database.
pub(crate) trait Values: fmt::Debug + Send + Sync {
    /// Reads the value of a name.
    fn value(&self, name: &str) -> Result<Vec<u8>>;
}

/// One picture of a source.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// The file, or the archive, table or database that holds it.
    pub(crate) file: Arc<Path>,
    /// Path below the folder, or in the archive; the key in a database.
    pub(crate) name: String,
    pub(crate) place: Place,
}

/// Location of the bytes of a picture.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// The whole file.
    File,
    /// A part of the file, or of its unpacked copy, which is deleted with its last reader.
    Part { unpacked: Option<Arc<NamedTempFile>>, offset: u64, length: usize },
    /// The value of the item's name in a database.
    Value(Arc<dyn Values>),
    /// Several files, the slices of a DICOM series.
    Series(Vec<PathBuf>),
    /// The whole file, a picture of the numbers that another file holds.
    View(PathBuf),
}

/// Pictures of files, archives, tables and databases.
#[derive(Debug)]
pub(crate) struct Items(pub(crate) Vec<Item>);

impl Item {
    /// Returns the name of the picture in messages.
    pub(crate) fn path(&self) -> PathBuf {
        match self.place {
            Place::File | Place::Series(_) | Place::View(_) => self.file.to_path_buf(),
            Place::Part { .. } | Place::Value(_) => self.file.join(&self.name),
        }
    }

    /// Reads the picture as it is stored.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        match &self.place {
            Place::File | Place::View(_) => std::fs::read(&self.file).map_err(at(&*self.file)),
            Place::Part { unpacked, offset, length } => {
                let file = unpacked.as_ref().map_or(&*self.file, |unpacked| unpacked.path());
                tar_members::read_part(file, *offset, *length).map_err(at(self.path()))
            }
            Place::Value(values) => values.value(&self.name),
            Place::Series(files) => {
                let files = files.iter().map(|file| std::fs::read(file).map_err(at(file)));
                Ok(series_bytes(&files.collect::<Result<Vec<_>>>()?))
            }
        }
    }

    /// Reads the file of the picture that a format asks for, with its path: that of its numbers, where the picture is one of them.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn bytes_for(&self, format: PictureFormat) -> Result<(Vec<u8>, PathBuf)> {
        match &self.place {
            Place::View(numbers) if !format.is_plain() => {
                Ok((std::fs::read(numbers).map_err(at(numbers))?, numbers.clone()))
            }
            _ => Ok((self.bytes()?, self.path())),
        }
    }

    /// Returns the stamp of the picture, as [`Source::stamp`].
    ///
    /// # Errors
    /// [`Error::Io`] if the file is gone.
    pub(crate) fn stamp(&self) -> Result<String> {
        let mut stamps = match &self.place {
            Place::Series(files) => files.iter().map(|file| stamp(file)).collect::<Result<Vec<_>>>()?,
            Place::View(numbers) => vec![stamp(&self.file)?, stamp(numbers)?],
            Place::File | Place::Part { .. } | Place::Value(_) => vec![stamp(&self.file)?],
        };
        if stamps.len() > 1 {
            stamps = vec![Fingerprint::new().update(stamps.join("\n").as_bytes()).digits()];
        }
        Ok(format!("{} of {}", self.path().display(), stamps.concat()))
    }
}

impl Items {
    fn item(&self, idx: usize) -> Result<&Item> {
        self.0.get(idx).ok_or_else(|| Error::OutOfRange {
            what: "the index of a picture",
            got: idx.to_string(),
            expected: "below the number of pictures",
        })
    }
}

impl Source for Items {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn name(&self, idx: usize) -> &str {
        self.0.get(idx).map_or("", |item| &item.name)
    }

    fn file(&self, idx: usize) -> &Path {
        self.0.get(idx).map_or(Path::new(""), |item| &item.file)
    }

    fn path(&self, idx: usize) -> PathBuf {
        self.0.get(idx).map_or_else(PathBuf::new, Item::path)
    }

    fn bytes(&self, idx: usize) -> Result<Vec<u8>> {
        self.item(idx)?.bytes()
    }

    fn read(&self, idx: usize, format: PictureFormat, crop: Option<CropBox>) -> Result<Tensor> {
        let (bytes, path) = self.item(idx)?.bytes_for(format)?;
        picture_from_bytes(&bytes, &path, format, crop)
    }

    fn stamp(&self, idx: usize) -> Result<String> {
        self.0.get(idx).map_or_else(|| Ok(String::new()), Item::stamp)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, Rgb, RgbImage};

    use super::*;
    use crate::{FindSettings, Pictures, Split};

    /// Pictures that are nowhere on disk: of one color each, by number.
    #[derive(Debug)]
    struct Shades(Vec<String>);

    impl Source for Shades {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn name(&self, idx: usize) -> &str {
            &self.0[idx]
        }

        fn file(&self, _idx: usize) -> &Path {
            Path::new("shades")
        }

        fn path(&self, idx: usize) -> PathBuf {
            Path::new("shades").join(&self.0[idx])
        }

        fn bytes(&self, idx: usize) -> Result<Vec<u8>> {
            let mut bytes = Cursor::new(vec![]);
            let shade = u8::try_from(idx * 5).unwrap();
            RgbImage::from_pixel(8, 8, Rgb([shade; 3])).write_to(&mut bytes, ImageFormat::Png).unwrap();
            Ok(bytes.into_inner())
        }
    }

    #[test]
    fn any_source_is_split_and_read() {
        let source: Arc<dyn Source> = Arc::new(Shades((0..50).map(|idx| format!("{idx}.png")).collect()));
        let settings = FindSettings { validation_share: 0.3, ..FindSettings::default() };
        let split = |split| Pictures::from_source(Path::new("shades"), Arc::clone(&source), &settings, split).unwrap();
        let (train, validation) = (split(Split::Train), split(Split::Validation));
        assert_eq!(train.len() + validation.len(), 50);
        assert!(train.len() > 25 && !validation.is_empty());
        for pictures in [&train, &validation] {
            for idx in 0..pictures.len() {
                let number: f32 = pictures.name(idx).trim_end_matches(".png").parse().unwrap();
                let value = pictures
                    .read(idx, PictureFormat::new(3, 8))
                    .unwrap()
                    .max_all()
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap();
                assert!((value - (number * 5. / 127.5 - 1.)).abs() < 1e-6, "{number}");
            }
        }
    }

    #[test]
    fn an_empty_source_and_an_index_beyond_it_are_refused() {
        let empty: Arc<dyn Source> = Arc::new(Items(vec![]));
        assert!(matches!(empty.bytes(0), Err(Error::OutOfRange { .. })));
        let found = Pictures::from_source(Path::new("."), empty, &FindSettings::default(), Split::Train);
        assert!(matches!(found, Err(Error::Data { .. })));
    }
}
