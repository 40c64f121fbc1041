//! Pictures named by a user: files, folders, tensors.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use image::RgbImage;
use indexmap::IndexSet;
use rayon::prelude::*;

use crate::error::{Error, Result, at, computing};
use crate::fingerprint::Fingerprint;
use crate::format::PictureFormat;
use crate::geometry::Geometry;
use crate::image_io::{check_picture, picture_with_geometry, read_rgb, rgb_from_bytes};
use crate::search::{FoundBelow, found_below, found_in};
use crate::source::{Item, Place, Source, stamp};
use crate::tensors::{Tensors, is_tensors};

/// Maximum length of a name; longer ones are cut, so that endings can be added.
const MAX_NAME_CHARS: usize = 100;

/// A picture that was listed but not read yet.
#[derive(Debug, Clone)]
pub struct Input {
    /// Unique name among all inputs, without folder and ending; fit for a file name.
    pub name: String,
    source: InputSource,
}

#[derive(Debug, Clone)]
enum InputSource {
    File(PathBuf),
    Stored(Item),
    Tensor { tensors: Arc<Tensors>, idx: usize },
}

impl Input {
    /// Reads the picture.
    ///
    /// # Shapes
    /// - result: `[C, H, W]` or `[C, D, H, W]` as the format says, f32 in `[-1, 1]`, on the CPU.
    /// # Errors
    /// As [`read_image`](crate::read_image); [`Error::Mismatch`] if a tensor has another shape.
    pub fn read(&self, format: impl Into<PictureFormat>) -> Result<Tensor> {
        self.read_with_geometry(format).map(|(picture, _)| picture)
    }

    /// Reads the picture as [`read`](Self::read), with the place in space of its voxels, where the file tells it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_with_geometry(&self, format: impl Into<PictureFormat>) -> Result<(Tensor, Option<Geometry>)> {
        match &self.source {
            InputSource::File(path) => picture_with_geometry(&fs::read(path).map_err(at(path))?, path, format, None),
            InputSource::Stored(item) => {
                let format = format.into();
                let (bytes, path) = item.bytes_for(format)?;
                picture_with_geometry(&bytes, &path, format, None)
            }
            InputSource::Tensor { tensors, idx } => Ok((tensors.read(*idx, format.into(), None)?, None)),
        }
    }

    /// Reads the picture at its own size, as bytes.
    ///
    /// # Errors
    /// As [`read_rgb`]; as [`rgb_from_tensor`](crate::rgb_from_tensor) for a tensor.
    pub fn read_rgb(&self) -> Result<RgbImage> {
        match &self.source {
            InputSource::File(path) => read_rgb(path),
            InputSource::Stored(item) => rgb_from_bytes(&item.bytes()?, &item.path()),
            InputSource::Tensor { tensors, idx } => tensors.read_rgb(*idx),
        }
    }

    /// Fails if the picture cannot be read; tensors are checked when they are opened.
    fn check(&self) -> Result<()> {
        match &self.source {
            InputSource::File(path) => check_picture(&fs::read(path).map_err(at(path))?, path),
            InputSource::Stored(item) => check_picture(&item.bytes()?, &item.path()),
            InputSource::Tensor { tensors, idx } => tensors.check(*idx),
        }
    }

    /// Returns a stamp that distinguishes the input from others of its name: size and time of its file, with its place in
    /// an archive, table, database or tensor.
    ///
    /// # Errors
    /// [`Error::Io`] if the file is gone.
    pub fn stamp(&self) -> Result<String> {
        match &self.source {
            InputSource::File(path) => stamp(path),
            InputSource::Stored(item) => item.stamp(),
            InputSource::Tensor { tensors, idx } => tensors.stamp(*idx),
        }
    }
}

/// Lists the pictures in a mix of picture files, folders (searched as by [`picture_files`](crate::picture_files), in
/// order of their names), archives, tables and databases as [`Pictures::find`](crate::Pictures::find) reads them, also
/// right below a folder, and `.safetensors` files that hold `x` `[N, C, H, W]` in `[-1, 1]`.
///
/// # Errors
/// [`Error::Io`] if a path does not exist; [`Error::NoPictures`] or [`Error::OnlyUnreadPictures`] for a folder or an archive
/// without pictures; [`Error::Data`] for a damaged archive, or if it is unclear which picture of a sample is meant;
/// [`Error::Tensors`] or [`Error::Weights`] for a `.safetensors` file without usable `x`.
pub fn list_inputs(paths: &[PathBuf]) -> Result<Vec<Input>> {
    list_inputs_with(paths, "")
}

/// Lists pictures as [`list_inputs`] does, with a choice among the pictures of a sample: the key of a `WebDataset` or the
/// column of a table, as [`FindSettings::picture_key`](crate::FindSettings::picture_key).
///
/// # Errors
/// As [`list_inputs`]; [`Error::Data`] if no sample has that key.
pub fn list_inputs_with(paths: &[PathBuf], picture_key: &str) -> Result<Vec<Input>> {
    let (mut stems, mut sources) = (vec![], vec![]);
    let mut add = |name: String, source| {
        stems.push(name);
        sources.push(source);
    };
    for path in paths {
        let metadata = fs::metadata(path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let (mut files, mut stored) = (vec![], vec![]);
        if is_tensors(path) {
            let tensors = Arc::new(Tensors::open(path)?);
            for idx in 0..tensors.len() {
                add(stem(Path::new(tensors.name(idx))), InputSource::Tensor { tensors: Arc::clone(&tensors), idx });
            }
        } else if let Some(items) = found_in(path, picture_key)? {
            stored = items;
        } else if metadata.is_dir() {
            FoundBelow { files, stored } = found_below(path, picture_key)?;
        } else {
            files.push(path.clone());
        }
        for file in files {
            add(stem(&file), InputSource::File(file));
        }
        for item in stored {
            let name = match item.place {
                // That of a folder, in which dots mean nothing.
                Place::Series(_) => item.name.clone(),
                _ => stem(Path::new(&item.name)),
            };
            add(name, InputSource::Stored(item));
        }
    }
    Ok(file_names(stems).into_iter().zip(sources).map(|(name, source)| Input { name, source }).collect())
}

/// Computes a checksum of the names and the [`stamp`](Input::stamp)s of inputs, which differs between sets of inputs.
///
/// # Errors
/// [`Error::Io`] if a file is gone.
pub fn inputs_fingerprint(inputs: &[Input]) -> Result<String> {
    let mut fingerprint = Fingerprint::new();
    for input in inputs {
        fingerprint.update(format!("{}\n{}\n", input.name, input.stamp()?).as_bytes());
    }
    Ok(fingerprint.digits())
}

/// Reads and stacks inputs into one batch.
///
/// # Shapes
/// - result: `[N, C, H, W]`, or volumes, `[N, C, D, H, W]`, f32, on `device`.
/// # Errors
/// As [`Input::read`].
pub fn read_batch(inputs: &[Input], format: impl Into<PictureFormat>, device: &Device) -> Result<Tensor> {
    let format = format.into();
    let pictures: Vec<Tensor> = inputs.iter().map(|input| input.read(format)).collect::<Result<_>>()?;
    computing("stacking pictures", Tensor::stack(&pictures, 0).and_then(|batch| batch.to_device(device)))
}

/// A picture that cannot be read.
#[derive(Debug)]
pub struct BrokenInput {
    /// Index of the picture in the list.
    pub place: usize,
    /// The cause.
    pub error: Error,
}

/// Finds the inputs that cannot be read, by decoding all files, several at a time. Whether numbers are those of a picture, a model
/// decides when they are read.
#[must_use]
pub fn broken_inputs(inputs: &[Input]) -> Vec<BrokenInput> {
    let check = |(place, input): (usize, &Input)| Some(BrokenInput { place, error: input.check().err()? });
    inputs.par_iter().enumerate().filter_map(check).collect()
}

/// Returns the name of a file without its ending, `.nii.gz` being one.
pub(crate) fn stem(path: &Path) -> String {
    let stem = path.file_stem().map_or_else(|| "picture".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let is_packed = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz"));
    match stem.len().checked_sub(4).and_then(|length| stem.split_at_checked(length)) {
        Some((name, ending)) if is_packed && ending.eq_ignore_ascii_case(".nii") => name.to_owned(),
        _ => stem,
    }
}

/// Names reserved for sheets, which no picture of the same folder may have.
const RESERVED_NAMES: [&str; 1] = ["sheet"];

/// Makes names fit for files of one folder: without separators, none hidden, each different, `a`, `a_2`, `a_3`.
pub fn file_names(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut taken: IndexSet<String> = RESERVED_NAMES.iter().map(|&name| name.to_owned()).collect();
    // The next number of each name that was there twice.
    let mut next: HashMap<String, u64> = HashMap::new();
    for name in names {
        let stem = file_name(&name);
        if !taken.contains(&stem) {
            taken.insert(stem);
            continue;
        }
        let next = next.entry(stem.clone()).or_insert(2);
        while !taken.insert(format!("{stem}_{next}")) {
            *next += 1;
        }
        *next += 1;
    }
    taken.into_iter().skip(RESERVED_NAMES.len()).collect()
}

/// Replaces all parts of a name that have a meaning in a file system.
fn file_name(name: &str) -> String {
    let forbidden = |c: char| c.is_control() || "/\\:*?\"<>|".contains(c);
    let plain: String = name.chars().map(|c| if forbidden(c) { '_' } else { c }).take(MAX_NAME_CHARS).collect();
    let plain = plain.trim_start_matches('.').trim();
    if plain.is_empty() { "picture".to_owned() } else { plain.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_made_distinct() {
        let folder = tempfile::tempdir().unwrap();
        for sub in ["b", "a", "a_2"] {
            fs::create_dir(folder.path().join(sub)).unwrap();
            RgbImage::new(2, 2).save(folder.path().join(sub).join("x.png")).unwrap();
        }
        RgbImage::new(2, 2).save(folder.path().join("x_2.png")).unwrap();
        fs::write(folder.path().join("notes.txt"), "").unwrap();
        let names: Vec<_> = list_inputs(&[folder.path().to_owned()]).unwrap().into_iter().map(|i| i.name).collect();
        assert_eq!(names, ["x", "x_2", "x_3", "x_2_2"]);
    }

    #[test]
    fn many_of_one_name_are_numbered_in_order() {
        // As of folders that hold one picture each; a search from 2 on for each would not end.
        let names = file_names((0..100_000).map(|_| "frame".to_owned()));
        assert_eq!(
            (names[0].as_str(), names[1].as_str(), names[99_999].as_str()),
            ("frame", "frame_2", "frame_100000")
        );
        let taken = file_names(["a", "a_2", "a", "a_3", "a", "a_2"].map(str::to_owned));
        assert_eq!(taken, ["a", "a_2", "a_3", "a_3_2", "a_4", "a_2_2"]);
    }

    #[test]
    fn names_cannot_leave_their_folder_or_hide() {
        let names = ["../../a", "/etc/b", "..", ".c", "", "sheet", "a\nb"].map(str::to_owned);
        assert_eq!(file_names(names), ["_.._a", "_etc_b", "picture", "c", "picture_2", "sheet_2", "a_b"]);
    }

    #[test]
    fn archives_and_databases_are_inputs_by_the_rules_of_data_sets() {
        let folder = tempfile::tempdir().unwrap();
        let picture = |shade: u8| {
            let mut bytes = std::io::Cursor::new(vec![]);
            RgbImage::from_pixel(4, 4, image::Rgb([shade; 3])).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            bytes.into_inner()
        };
        let shard = folder.path().join("shard.tar");
        let mut tar = tar::Builder::new(fs::File::create(&shard).unwrap());
        for (shade, name) in [(10, "a/x.png"), (20, "./b/x.png"), (30, "b/._x.png")] {
            let bytes = picture(shade);
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap();
        let database = folder.path().join("pictures.lmdb");
        let entries = [("y".to_owned(), picture(40))];
        crate::LmdbWriter::open(&database, 1 << 20).unwrap().write(&entries, &[]).unwrap();
        RgbImage::from_pixel(4, 4, image::Rgb([50; 3])).save(folder.path().join("z.png")).unwrap();
        let shades = |path: &Path| {
            let inputs = list_inputs(&[path.to_owned()]).unwrap();
            assert!(broken_inputs(&inputs).is_empty());
            let shade = |input: &Input| {
                let x = input.read(PictureFormat::new(3, 4)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                (input.name.clone(), input.read_rgb().unwrap().get_pixel(0, 0).0[0], (x[0] * 127.5 + 127.5).round())
            };
            let found: Vec<(String, u8, f32)> = inputs.iter().map(shade).collect();
            let stamps: BTreeSet<String> = inputs.iter().map(|input| input.stamp().unwrap()).collect();
            assert_eq!(stamps.len(), inputs.len(), "inputs are told apart");
            found.into_iter().map(|(name, rgb, x)| (name, [f32::from(rgb), x])).collect::<Vec<_>>()
        };
        let of_shard = [("x".to_owned(), [10.; 2]), ("x_2".to_owned(), [20.; 2])];
        assert_eq!(shades(&shard), of_shard);
        assert_eq!(shades(&database), [("y".to_owned(), [40.; 2])]);
        // A folder: its pictures, and the archives right below it.
        let of_folder = shades(folder.path());
        assert_eq!(of_folder[0], ("z".to_owned(), [50.; 2]));
        assert_eq!(of_folder[1..], of_shard);
        fs::write(&shard, &fs::read(&shard).unwrap()[..700]).unwrap();
        assert!(list_inputs(&[shard]).unwrap_err().to_string().contains("shard.tar"));
    }

    #[test]
    fn a_key_chooses_among_the_pictures_of_a_sample() {
        let shard = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/datasets/masks.tar");
        let names = |key: &str| -> Vec<String> {
            let inputs = list_inputs_with(std::slice::from_ref(&shard), key).unwrap();
            inputs.into_iter().map(|input| input.name).collect()
        };
        assert_eq!((names("").len(), names("*").len()), (10, 20));
        assert!(names("seg.png").iter().all(|name| name.contains(".seg")), "{:?}", names("seg.png"));
        let error = list_inputs_with(&[shard], "tif").unwrap_err().to_string();
        assert!(error.contains("under --picture-key tif; there are jpg (10), seg.png (10)"), "{error}");
    }

    #[test]
    fn weights_that_cannot_be_loaded_are_named_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        fs::write(&path, b"PK\x03\x04").unwrap();
        let error = list_inputs(&[path]).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap();
        let said = format!("{error}: {cause}");
        assert!(said.starts_with("cannot load the weights: ") && said.matches("x.safetensors").count() == 1, "{said}");
    }

    #[test]
    fn an_empty_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = list_inputs(&[folder.path().to_owned()]).unwrap_err();
        assert!(matches!(error, Error::NoPictures { .. }), "{error}");
    }
}
