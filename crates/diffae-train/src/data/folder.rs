//! The pictures of a folder, or of archives in it.

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

/// Pictures in order of their names: files of a folder, or members of tar archives in it.
#[derive(Debug, Clone)]
pub struct Pictures {
    root: PathBuf,
    items: Vec<Item>,
    crop: Crop,
}

#[derive(Debug, Clone)]
struct Item {
    file: PathBuf,
    /// Path below the folder; a member's path in its archive.
    name: String,
    /// Where a member's bytes are in its archive: offset and length.
    member: Option<(u64, usize)>,
}

impl Pictures {
    /// Finds the pictures below a folder that belong to a split: picture files, and the pictures in `.tar` archives, such
    /// as the shards of a `WebDataset`. The folder may also be one archive.
    ///
    /// A picture belongs to the validation split by a hash of its name, so adding files moves no other.
    ///
    /// # Errors
    /// If the folder cannot be read or holds no pictures, or an archive is damaged.
    pub fn find(root: &Path, settings: &DataSettings, split: Split) -> Result<Self> {
        let mut items = match root.is_file() {
            true if archives::is_archive(root) => archives::members(root)?,
            true => {
                let problem = "it is neither a folder nor a .tar archive".to_owned();
                return Err(Error::Data { path: root.to_owned(), problem });
            }
            false => Self::below(root)?,
        };
        let all = items.len();
        items.retain(|item| is_validation(&item.name, settings.validation_share) == (split == Split::Validation));
        if all == 0 || (items.is_empty() && split == Split::Train) {
            let problem = match all {
                0 => "there are no pictures in it".to_owned(),
                _ => format!("all {all} pictures fall to validation; set data.validation_share=0"),
            };
            return Err(Error::Data { path: root.to_owned(), problem });
        }
        Ok(Self { root: root.to_owned(), items, crop: settings.crop })
    }

    fn below(root: &Path) -> Result<Vec<Item>> {
        let files = picture_files(root)?.into_iter();
        let mut items: Vec<Item> = files.map(|file| Item { name: relative(root, &file), file, member: None }).collect();
        for archive in archives::below(root)? {
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
        let Some(item) = self.items.get(idx) else {
            return Err(Error::Data { path: self.root.clone(), problem: format!("there is no picture {idx}") });
        };
        let bytes = match item.member {
            None => std::fs::read(&item.file),
            Some((offset, length)) => archives::read(&item.file, offset, length),
        };
        let crop = (self.crop == Crop::Celeba).then_some(CELEBA_BOX);
        let name = self.root.join(&item.name);
        Ok(picture_from_bytes(&bytes.map_err(at(&item.file))?, &name, (channels, image_size), crop)?)
    }
}

/// Pictures in tar archives.
mod archives {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom};
    use std::path::{Path, PathBuf};

    use super::{Item, Result, at};

    /// Endings of members that are taken for pictures.
    const PICTURES: [&str; 6] = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"];

    /// Whether a path ends as archives do.
    pub(super) fn is_archive(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tar"))
    }

    /// The archives right below a folder, in order of their names.
    pub(super) fn below(folder: &Path) -> Result<Vec<PathBuf>> {
        let mut found = vec![];
        for entry in std::fs::read_dir(folder).map_err(at(folder))? {
            let path = entry.map_err(at(folder))?.path();
            found.extend(is_archive(&path).then_some(path));
        }
        found.sort();
        Ok(found)
    }

    /// The pictures of an archive; only its headers are read.
    pub(super) fn members(archive: &Path) -> Result<Vec<Item>> {
        let file = File::open(archive).map_err(at(archive))?;
        let mut reader = tar::Archive::new(file);
        let mut items = vec![];
        for entry in reader.entries_with_seek().map_err(at(archive))? {
            let entry = entry.map_err(at(archive))?;
            let name = entry.path().map_err(at(archive))?.to_string_lossy().into_owned();
            let is_picture = PICTURES.iter().any(|ending| name.to_ascii_lowercase().ends_with(ending));
            if entry.header().entry_type().is_file() && is_picture {
                let length = usize::try_from(entry.size()).unwrap_or(usize::MAX);
                items.push(Item { file: archive.to_owned(), name, member: Some((entry.raw_file_position(), length)) });
            }
        }
        Ok(items)
    }

    /// The bytes of a member.
    pub(super) fn read(archive: &Path, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
        let mut file = File::open(archive)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn is_validation(name: &str, share: f64) -> bool {
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
