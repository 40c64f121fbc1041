//! Label files, with the names of created pictures in place of those of the originals.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use diffae_data::{LabelForm, LabelTable, Labels};

use super::Originals;
use crate::progress::Noun;

/// Labels in the form of `CelebA`'s attribute file, or as CSV with the file names first.
#[derive(Debug)]
pub(crate) struct LabelFile {
    path: PathBuf,
    bytes: Vec<u8>,
    table: LabelTable,
    is_of_owner: bool,
}

/// Originals by their paths, and by the ends of these, such as the file names, where they tell them apart.
struct Known<'a>(HashMap<&'a str, Option<usize>>);

impl LabelFile {
    /// File name of labels in this form, beside the pictures.
    pub(super) const CELEBA: &'static str = "attributes.txt";
    pub(super) const CSV: &'static str = "attributes.csv";

    /// Parses the labels in the contents of `path`.
    pub(crate) fn new(path: &Path, contents: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = contents.into();
        Labels::from_bytes(&bytes, path)?;
        let table = LabelTable::from_bytes(&bytes, path)?;
        Ok(Self { path: path.to_owned(), bytes, table, is_of_owner: false })
    }

    /// Parses an owner's file, which labels the whole data set, even for someone who has only a part of the pictures.
    pub(crate) fn of_owner(path: &Path, contents: impl Into<Vec<u8>>) -> Result<Self> {
        Ok(Self { is_of_owner: true, ..Self::new(path, contents)? })
    }

    pub(super) fn file_name(&self) -> &'static str {
        match self.table.form {
            LabelForm::Celeba => Self::CELEBA,
            LabelForm::Csv => Self::CSV,
        }
    }

    /// Returns a checksum that tells labels from others.
    pub(crate) fn blake3(&self) -> String {
        blake3::hash(&self.bytes).to_hex().chars().take(16).collect()
    }

    /// Checks that the labels fit the originals.
    ///
    /// # Errors
    /// If they label none of the originals; if a picture that they name is not among them, unless the file is the
    /// owner's.
    pub(super) fn check(&self, originals: &Originals) -> Result<()> {
        let known = Known::new(originals);
        let rows = &self.table.rows;
        let mut without_picture = 0;
        for row in rows {
            without_picture += usize::from(self.find(&known, &row.name)?.is_none());
        }
        ensure!(without_picture < rows.len(), "{} labels none of the pictures", self.path.display());
        if without_picture > 0 {
            let pictures = Noun::Pictures.counted(without_picture);
            let are = if without_picture == 1 { "is" } else { "are" };
            tracing::warn!("{} labels {pictures} that {are} not there", self.path.display());
        }
        Ok(())
    }

    /// Returns the labels under the names in `made`, by the index of the original. Rows of other originals are dropped.
    ///
    /// # Errors
    /// If two rows of one picture contradict each other.
    pub(super) fn renamed(&self, originals: &Originals, made: &BTreeMap<usize, &str>) -> Result<String> {
        let known = Known::new(originals);
        let file_name = |name: &'_ str| name.rsplit('/').next().unwrap_or_default().to_owned();
        let file_names: BTreeSet<String> = made.values().map(|name| file_name(name)).collect();
        let are_distinct = file_names.len() == made.len();
        let (mut rows, mut labeled) = (vec![], HashMap::new());
        for row in &self.table.rows {
            let original = self.find(&known, &row.name)?;
            let Some((original, new)) = original.and_then(|original| Some((original, made.get(&original)?))) else {
                continue;
            };
            if let Some(before) = labeled.insert(original, row) {
                let (path, lines) = (self.path.display(), (before.line, row.line));
                ensure!(before.values == row.values, "{path}: lines {} and {} contradict each other", lines.0, lines.1);
                continue;
            }
            let name = if are_distinct { file_name(new) } else { (*new).to_owned() };
            rows.push([name].into_iter().chain(row.values.iter().cloned()).collect::<Vec<String>>());
        }
        ensure!(!rows.is_empty(), "{} labels none of the pictures that were made", self.path.display());
        if rows.len() < made.len() {
            let count = made.len() - rows.len();
            let have = if count == 1 { "has" } else { "have" };
            tracing::warn!("{} {have} no labels", Noun::Pictures.counted(count));
        }
        let attributes = &self.table.attributes;
        if self.table.form == LabelForm::Celeba {
            let lines: String = rows.iter().flat_map(|row| [row.join(" "), "\n".to_owned()]).collect();
            return Ok(format!("{}\n{}\n{lines}", rows.len(), attributes.join(" ")));
        }
        let mut csv = csv::Writer::from_writer(vec![]);
        let first = Some(&self.table.name_header).filter(|name| !name.is_empty()).map_or("file", String::as_str);
        csv.write_record([first].into_iter().chain(attributes.iter().map(String::as_str)))?;
        rows.iter().try_for_each(|row| csv.write_record(row))?;
        String::from_utf8(csv.into_inner().context("cannot write CSV")?).context("cannot write CSV")
    }

    /// Returns the index of an original; `None` for a picture of the owner that the user lacks.
    fn find(&self, known: &Known<'_>, name: &str) -> Result<Option<usize>> {
        match known.0.get(name) {
            Some(Some(idx)) => Ok(Some(*idx)),
            Some(None) => bail!("{} names {name}, of which there are several; expected its path", self.path.display()),
            None if self.is_of_owner => Ok(None),
            None => bail!("{} names {name}, which is not among the pictures", self.path.display()),
        }
    }
}

impl<'a> Known<'a> {
    fn new(originals: &'a Originals) -> Self {
        let mut known: HashMap<&str, Option<usize>> = HashMap::new();
        for (idx, name) in originals.names().iter().enumerate() {
            let mut end = name.as_str();
            while let Some((_, shorter)) = end.split_once('/') {
                end = shorter;
                known.entry(end).and_modify(|found| *found = None).or_insert(Some(idx));
            }
        }
        known.extend(originals.names().iter().enumerate().map(|(idx, name)| (name.as_str(), Some(idx))));
        Self(known)
    }
}
