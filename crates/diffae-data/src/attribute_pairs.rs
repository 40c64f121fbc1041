//! Pairs of pictures that differ in one attribute.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, at};
use crate::picture_set::PictureSet;
use crate::pictures::FindSettings;

/// Pictures without and with an attribute, in pairs of the same name that differ in nothing else.
#[derive(Debug)]
pub struct AttributePairs {
    /// Name of the attribute.
    pub attribute: String,
    /// The pictures without it.
    pub without: PictureSet,
    /// The pictures with it, in the same order.
    pub with: PictureSet,
    folder: PathBuf,
    picture_key: String,
    /// Names of pairs that were left out.
    left_out: BTreeSet<String>,
}

/// Pictures that lack an attribute in other ways than those of its pairs.
#[derive(Debug)]
pub struct OtherPictures {
    /// All pictures of the folder.
    pub pictures: PictureSet,
    /// Indices of those pictures whose pair exists.
    pub places: Vec<usize>,
    /// Index of the pair of each of them.
    pub pairs: Vec<u32>,
}

impl AttributePairs {
    /// Finds the pairs below a folder, by attribute: `ATTRIBUTE/without` and `ATTRIBUTE/with`, or the first `limit` of
    /// each attribute.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read; [`Error::Data`] if there are no pairs, or if names differ; as
    /// [`PictureSet::first`].
    pub fn find(root: &Path, limit: Option<usize>) -> Result<Vec<Self>> {
        Self::find_with(root, limit, "")
    }

    /// Finds the pairs as [`AttributePairs::find`] does, with a choice among the pictures of a sample
    /// ([`FindSettings::picture_key`]).
    ///
    /// # Errors
    /// As [`AttributePairs::find`].
    pub fn find_with(root: &Path, limit: Option<usize>, picture_key: &str) -> Result<Vec<Self>> {
        let entries = fs::read_dir(root).map_err(at(root))?;
        let folders = entries.map(|entry| entry.map(|entry| entry.path()));
        let mut folders = folders.collect::<std::io::Result<Vec<_>>>().map_err(at(root))?;
        folders.retain(|folder| folder.join("without").is_dir() && folder.join("with").is_dir());
        folders.sort();
        if folders.is_empty() {
            let problem = "there is no folder ATTRIBUTE with folders `without` and `with`".to_owned();
            return Err(Error::Data { path: root.to_owned(), problem });
        }
        let mut all = vec![];
        for folder in folders {
            let attribute = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let settings = FindSettings { picture_key, ..FindSettings::default() };
            let side = |name| PictureSet::find(&folder.join(name), &settings, limit);
            let (without, with) = (side("without")?, side("with")?);
            let same = without.len() == with.len() && (0..with.len()).all(|idx| without.name(idx) == with.name(idx));
            if !same {
                let problem = "it has pictures in `without` and `with` whose names differ".to_owned();
                return Err(Error::Data { path: folder, problem });
            }
            all.push(Self {
                attribute,
                without,
                with,
                folder,
                picture_key: picture_key.to_owned(),
                left_out: BTreeSet::new(),
            });
        }
        Ok(all)
    }

    /// Keeps those pairs whose indices satisfy a condition, asked once for each.
    pub fn retain(&mut self, mut is_kept: impl FnMut(usize) -> bool) {
        let kept: Vec<bool> = (0..self.with.len()).map(&mut is_kept).collect();
        let names = (0..kept.len()).filter(|&idx| !kept[idx]).map(|idx| self.with.name(idx));
        self.left_out.extend(names.collect::<Vec<_>>());
        for side in [&mut self.without, &mut self.with] {
            side.retain(|idx| kept.get(idx) != Some(&false));
        }
    }

    /// Finds the pictures in `ATTRIBUTE/others`, which bear names of pictures in `with`; `None` without that folder.
    ///
    /// # Errors
    /// [`Error::Data`] if a picture has no counterpart; as [`PictureSet::first`].
    pub fn others(&self) -> Result<Option<OtherPictures>> {
        let folder = self.folder.join("others");
        if !folder.is_dir() {
            return Ok(None);
        }
        let settings = FindSettings { picture_key: &self.picture_key, ..FindSettings::default() };
        let pictures = PictureSet::find(&folder, &settings, None)?;
        let all = self.with.all();
        let known: BTreeMap<String, usize> = (0..all.len()).map(|place| (all.name(place), place)).collect();
        let (mut places, mut pairs) = (vec![], vec![]);
        for here in 0..pictures.len() {
            let name = pictures.name(here);
            if self.left_out.contains(&name) {
                continue;
            }
            let Some(&there) = known.get(&name) else {
                return Err(Error::Data { path: folder, problem: format!("{name} is missing in `with`") });
            };
            if there < self.with.len() {
                places.push(here);
                pairs.push(u32::try_from(there).unwrap_or(u32::MAX));
            }
        }
        Ok((!places.is_empty()).then_some(OtherPictures { pictures, places, pairs }))
    }
}
