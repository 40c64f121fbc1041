//! Conversion of originals into pictures, on all threads: as files, or as the values of an LMDB.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use diffae_data::LmdbWriter;
use diffae_data::{CropBox, Overwrite, ResizeFilter, png_bytes, square_from_bytes, write_atomically};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageReader, RgbImage};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Format, Originals};
use crate::commands::dataset::output::{Fingerprint, MANIFEST};

/// Folder of the pictures.
pub(super) const PICTURES: &str = "images";
/// One original in so many may be broken.
const ONE_BROKEN_IN: usize = 100;
/// JPEG quality of the reference.
const JPEG_QUALITY: u8 = 100;
/// Number of pictures per transaction.
const BATCH: usize = 256;
/// Key of the progress in a database that is not finished yet.
const PROGRESS_KEY: &str = "progress";
const LENGTH_KEY: &str = "length";

/// A picture to create.
#[derive(Debug, Clone)]
pub(crate) struct Picture {
    /// Index of the original.
    pub(crate) original: usize,
    /// Path below the folder of pictures, without extension.
    pub(crate) name: String,
}

/// Crop and resize of an original.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) shape: Shape,
    /// Part of the original that is used; the center if `None`.
    pub(crate) part: Option<CropBox>,
    pub(crate) filter: ResizeFilter,
}

/// Width and height that originals must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Any,
    Exactly(u32, u32),
    /// As wide as high, and not smaller than the pictures created from them.
    Square,
}

/// Pictures to create, with their originals and their destination.
#[derive(Debug)]
pub(super) struct Making<'a> {
    pub(super) out: &'a Path,
    pub(super) size: u32,
    pub(super) originals: &'a Originals,
    pub(super) pictures: &'a [Picture],
    pub(super) cut: Cut,
    /// Digits of the index in the keys of a database.
    pub(super) key_digits: usize,
}

/// Broken pictures by their index, with the reason.
type Broken = BTreeMap<usize, String>;

/// State of a database that is not finished yet.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// Number of pictures that are created or found to be broken.
    done: usize,
    broken: Broken,
}

/// Returns the fingerprint of pictures, from their names.
pub(super) fn fingerprint(pictures: &[Picture]) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    for picture in pictures {
        hasher.update(picture.name.as_bytes()).update(b"\n");
    }
    Fingerprint { count: pictures.len(), listing_blake3: hasher.finalize().to_hex().to_string() }
}

impl Making<'_> {
    /// Creates the missing pictures. Returns the path or key of each picture in order; `None` if the original is
    /// broken.
    pub(super) fn run(&self, format: Format) -> Result<Vec<Option<String>>> {
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} pictures, ETA {eta}");
        let bar = ProgressBar::new(self.pictures.len() as u64).with_style(style.context("the progress bar is wrong")?);
        let made = match format {
            Format::Folder => self.files(&bar),
            Format::Lmdb => self.values(&bar),
        };
        bar.finish_and_clear();
        made
    }

    fn files(&self, bar: &ProgressBar) -> Result<Vec<Option<String>>> {
        let broken = Mutex::new(Broken::new());
        let names = self.pictures.par_iter().enumerate().map(|(idx, picture)| {
            let name = format!("{PICTURES}/{}.png", picture.name);
            let path = self.out.join(&name);
            bar.inc(1);
            if path.is_file() {
                return Ok(Some(name));
            }
            let made = match self.square(idx) {
                Ok(made) => made,
                Err(error) => {
                    self.note(idx, &error, &mut broken.lock().unwrap_or_else(PoisonError::into_inner), bar)?;
                    return Ok(None);
                }
            };
            let folder = path.parent().context("a name without a folder")?;
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            write_atomically(&path, &png_bytes(&made, &[], &path)?, Overwrite::Replace)?;
            Ok(Some(name))
        });
        names.collect()
    }

    fn values(&self, bar: &ProgressBar) -> Result<Vec<Option<String>>> {
        let database = self.writer()?;
        let mut progress: Progress = match database.get(PROGRESS_KEY)? {
            Some(json) => serde_json::from_slice(&json)
                .with_context(|| format!("the state in {} is damaged", self.out.display()))?,
            None if database.get(LENGTH_KEY)?.is_some() => bail!(
                "{} is a finished LMDB, but not with what its manifest says; delete it, make it again",
                self.out.display()
            ),
            None => Progress::default(),
        };
        bar.set_position(progress.done as u64);
        while progress.done < self.pictures.len() {
            let batch = progress.done..self.pictures.len().min(progress.done + BATCH);
            let made: Vec<Result<Vec<u8>>> =
                batch.clone().into_par_iter().map(|idx| self.square(idx).and_then(|made| jpeg(&made))).collect();
            let mut entries = vec![];
            for (idx, made) in batch.clone().zip(made) {
                match made {
                    Ok(bytes) => entries.push((self.key(idx - progress.broken.len()), bytes)),
                    Err(error) => self.note(idx, &error, &mut progress.broken, bar)?,
                }
            }
            progress.done = batch.end;
            entries.push((PROGRESS_KEY.to_owned(), serde_json::to_vec(&progress).context("cannot write JSON")?));
            database.write(&entries, &[])?;
            bar.inc(batch.len() as u64);
        }
        let mut keys = (0..self.pictures.len()).map(|idx| self.key(idx));
        let key = |idx| if progress.broken.contains_key(&idx) { None } else { keys.next() };
        Ok((0..self.pictures.len()).map(key).collect())
    }

    /// Finishes a database: the count is the last value written.
    pub(super) fn seal(&self, count: usize) -> Result<()> {
        let length = (LENGTH_KEY.to_owned(), count.to_string().into_bytes());
        self.writer()?.write(&[length], &[PROGRESS_KEY])?;
        // LMDB makes files for their owner alone.
        let failed = || format!("cannot change who may read {}", self.out.display());
        let permissions = fs::metadata(self.out.join(MANIFEST)).with_context(failed)?.permissions();
        for entry in fs::read_dir(self.out).with_context(failed)? {
            let path = entry.with_context(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "mdb") {
                fs::set_permissions(&path, permissions.clone()).with_context(failed)?;
            }
        }
        Ok(())
    }

    fn writer(&self) -> Result<LmdbWriter> {
        let side = usize::try_from(self.size)?;
        // Twice what the pixels take, and whole pages for small ones.
        let most = self.pictures.len().saturating_mul(side * side * 6 + (8 << 10)).saturating_add(64 << 20);
        Ok(LmdbWriter::open(self.out, most)?)
    }

    fn key(&self, number: usize) -> String {
        format!("{}-{number:0digits$}", self.size, digits = self.key_digits)
    }

    fn square(&self, idx: usize) -> Result<RgbImage> {
        let picture = self.pictures.get(idx).context("there is no such picture")?;
        let bytes = self.originals.read(picture.original)?;
        let name = PathBuf::from(self.originals.name(picture.original));
        self.cut.shape.check(&bytes, self.size)?;
        Ok(square_from_bytes(&bytes, &name, usize::try_from(self.size)?, self.cut.part, self.cut.filter)?)
    }

    /// Notes a broken picture, which is left out.
    ///
    /// # Errors
    /// If there are too many.
    fn note(&self, idx: usize, error: &anyhow::Error, broken: &mut Broken, bar: &ProgressBar) -> Result<()> {
        let name = self.pictures.get(idx).map_or("", |picture| self.originals.name(picture.original));
        let error = format!("{error:#}");
        let is_named = error.contains(name.rsplit('/').next().unwrap_or(name));
        let message = if is_named { error } else { format!("{name}: {error}") };
        bar.suspend(|| tracing::warn!("left out {message}"));
        broken.insert(idx, message);
        ensure!(
            broken.len() * ONE_BROKEN_IN <= self.pictures.len(),
            "{} of {} originals cannot be used, more than one in {ONE_BROKEN_IN}, such as {}",
            broken.len(),
            self.pictures.len(),
            broken.get(&idx).map_or("", String::as_str)
        );
        Ok(())
    }
}

impl Shape {
    fn check(self, bytes: &[u8], size: u32) -> Result<()> {
        if self == Self::Any {
            return Ok(());
        }
        let (width, height) = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?.into_dimensions()?;
        match self {
            Self::Exactly(w, h) => {
                ensure!((width, height) == (w, h), "it has {width}x{height} pixels, expected {w}x{h}");
            }
            Self::Square => ensure!(
                width == height && width >= size,
                "it has {width}x{height} pixels, expected a square of {size} or more"
            ),
            Self::Any => {}
        }
        Ok(())
    }
}

fn jpeg(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    picture
        .write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY))
        .context("cannot encode a JPEG")?;
    Ok(bytes)
}

/// Returns the number of pictures of a finished database.
pub(super) fn length(database: &diffae_data::Lmdb) -> Result<Option<usize>> {
    let text = database.get(LENGTH_KEY)?.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(text.and_then(|text| text.parse().ok()))
}
