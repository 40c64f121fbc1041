//! A file of labels, with the names of what was made in place of those of the originals.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use csv::StringRecord;
use diffae_train::Labels;

use super::Originals;

/// Labels in the form of `CelebA`'s attribute file, or as CSV with the file names first.
#[derive(Debug)]
pub(crate) struct LabelFile {
    path: PathBuf,
    text: String,
    form: Form,
    is_of_owner: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Celeba,
    Csv,
}

/// The originals by their paths, and by the ends of these, such as the file names, where they tell them apart.
struct Known<'a>(HashMap<&'a str, Option<usize>>);

impl LabelFile {
    /// What a file in either form is called beside the pictures.
    pub(super) const CELEBA: &'static str = "attributes.txt";
    pub(super) const CSV: &'static str = "attributes.csv";

    /// Labels that `path` holds.
    pub(crate) fn new(path: &Path, text: String) -> Result<Self> {
        Labels::from_text(&text, path)?;
        let form = if text.lines().next().is_some_and(|line| line.contains(',')) { Form::Csv } else { Form::Celeba };
        Ok(Self { path: path.to_owned(), text, form, is_of_owner: false })
    }

    /// The same of an owner's file, which labels the whole data set: of someone who has a part of the pictures, too.
    pub(crate) fn of_owner(path: &Path, text: String) -> Result<Self> {
        Ok(Self { is_of_owner: true, ..Self::new(path, text)? })
    }

    pub(super) fn file_name(&self) -> &'static str {
        match self.form {
            Form::Celeba => Self::CELEBA,
            Form::Csv => Self::CSV,
        }
    }

    /// Tells labels from others.
    pub(crate) fn blake3(&self) -> String {
        blake3::hash(self.text.as_bytes()).to_hex().chars().take(16).collect()
    }

    /// # Errors
    /// If they label none of the originals; if a picture that they name is not among them, unless the file is the owner's.
    pub(super) fn check(&self, originals: &Originals) -> Result<()> {
        let known = Known::new(originals);
        let rows = self.rows()?;
        let mut without_picture = 0;
        for name in rows.iter().filter_map(|row| row.get(0)) {
            without_picture += usize::from(self.find(&known, name)?.is_none());
        }
        ensure!(without_picture < rows.len(), "{} labels none of the pictures", self.path.display());
        if without_picture > 0 {
            eprintln!("warning: {} labels {without_picture} pictures that are not there", self.path.display());
        }
        Ok(())
    }

    /// The same labels of what was made: `made` holds its names by the place of the original. Rows of others go.
    pub(super) fn renamed(&self, originals: &Originals, made: &BTreeMap<usize, &str>) -> Result<String> {
        let known = Known::new(originals);
        let file_name = |name: &'_ str| name.rsplit('/').next().unwrap_or_default().to_owned();
        let file_names: BTreeSet<String> = made.values().map(|name| file_name(name)).collect();
        let are_distinct = file_names.len() == made.len();
        let mut rows = vec![];
        for row in self.rows()? {
            let mut fields = row.iter();
            let original = self.find(&known, fields.next().unwrap_or_default())?;
            if let Some(new) = original.and_then(|original| made.get(&original)) {
                let name = if are_distinct { file_name(new) } else { (*new).to_owned() };
                rows.push([name.as_str()].into_iter().chain(fields).collect::<StringRecord>());
            }
        }
        ensure!(!rows.is_empty(), "{} labels none of the pictures that were made", self.path.display());
        if rows.len() < made.len() {
            eprintln!("warning: {} pictures have no labels", made.len() - rows.len());
        }
        let header = self.header()?;
        if self.form == Form::Celeba {
            let mut text = format!("{}\n{}\n", rows.len(), header.join(" "));
            for row in &rows {
                text.extend(row.iter().flat_map(|field| [field, " "]));
                text.truncate(text.trim_end().len());
                text.push('\n');
            }
            return Ok(text);
        }
        let mut csv = csv::Writer::from_writer(vec![]);
        csv.write_record(&header)?;
        for row in &rows {
            csv.write_record(row)?;
        }
        String::from_utf8(csv.into_inner().context("cannot write CSV")?).context("cannot write CSV")
    }

    /// The name of each picture, and the rest of its line in one or several fields.
    fn rows(&self) -> Result<Vec<StringRecord>> {
        if self.form == Form::Celeba {
            let lines = self.text.lines().skip(2);
            let rows = lines.filter_map(|line| line.trim().split_once(char::is_whitespace));
            return Ok(rows.map(|(name, values)| StringRecord::from(vec![name, values.trim()])).collect());
        }
        Ok(self.csv().into_records().collect::<Result<_, csv::Error>>()?)
    }

    fn header(&self) -> Result<Vec<String>> {
        if self.form == Form::Celeba {
            let line = self.text.lines().nth(1).unwrap_or_default();
            return Ok(line.split_whitespace().map(str::to_owned).collect());
        }
        Ok(self.csv().headers()?.iter().map(str::to_owned).collect())
    }

    fn csv(&self) -> csv::Reader<&[u8]> {
        csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(self.text.as_bytes())
    }

    /// The place of an original; none of a picture of the owner that is not there.
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
