//! Attributes of pictures: `CelebA` attribute files, CSV, or one folder a class.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use super::Pictures;
use crate::error::{Error, Result, at};

/// What is known of pictures: for each attribute, whether it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Names of the attributes.
    pub names: Vec<String>,
    /// By path below the folder, or by file name.
    rows: HashMap<String, Vec<bool>>,
}

impl Labels {
    /// Labels of pictures, which they fit: of a file, or of folders if the path is [`FOLDER_LABELS`](crate::FOLDER_LABELS).
    ///
    /// # Errors
    /// As [`Labels::from_file`], [`Labels::from_folders`] and [`Labels::check`].
    pub fn of_pictures(path: &Path, pictures: &[&Pictures]) -> Result<Self> {
        let is_folders = path == Path::new(crate::FOLDER_LABELS);
        let labels = if is_folders { Self::from_folders(pictures)? } else { Self::from_file(path)? };
        labels.check(path, pictures)?;
        Ok(labels)
    }

    /// Tells labels from others.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let rows: BTreeMap<&String, &Vec<bool>> = self.rows.iter().collect();
        let hash = blake3::hash(format!("{:?} {rows:?}", self.names).as_bytes());
        hash.to_hex().chars().take(16).collect()
    }

    /// Reads a `CelebA` or `CelebAMask-HQ` attribute file, or a CSV file: a header with a column of file names first and
    /// one attribute a further column, values 1 and 0 or -1.
    ///
    /// # Errors
    /// If the file cannot be read, or a line does not fit.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_text(&fs::read_to_string(path).map_err(at(path))?, path)
    }

    /// The same of what such a file holds; `path` is its name in messages.
    ///
    /// # Errors
    /// If a line does not fit.
    pub fn from_text(text: &str, path: &Path) -> Result<Self> {
        let is_csv = text.lines().next().is_some_and(|line| line.contains(','));
        let labels = if is_csv { from_csv(text) } else { from_celeba(text) };
        labels.map_err(|problem| Error::Data { path: path.to_owned(), problem })
    }

    /// One attribute for each folder right below the root.
    ///
    /// # Errors
    /// If there are fewer than two such folders.
    pub fn from_folders(pictures: &[&Pictures]) -> Result<Self> {
        let class_of = |name: &str| name.split_once('/').map(|(class, _)| class.to_owned());
        let names_of = |pictures: &&Pictures| (0..pictures.len()).map(|idx| pictures.name(idx)).collect::<Vec<_>>();
        let all: Vec<String> = pictures.iter().flat_map(names_of).collect();
        let classes: BTreeSet<String> = all.iter().filter_map(|name| class_of(name)).collect();
        if classes.len() < 2 {
            let problem = "it has no two folders of pictures, one a class".to_owned();
            let root = pictures.first().map(|pictures| pictures.root().to_owned());
            return Err(Error::Data { path: root.unwrap_or_default(), problem });
        }
        let names: Vec<String> = classes.into_iter().collect();
        let rows = all.into_iter().map(|name| {
            let class = class_of(&name);
            let row = names.iter().map(|name| Some(name) == class.as_ref()).collect();
            (name, row)
        });
        Ok(Self { rows: rows.collect(), names })
    }

    /// What is known of a picture.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&[bool]> {
        let file_name = name.rsplit('/').next().unwrap_or(name);
        self.rows.get(name).or_else(|| self.rows.get(file_name)).map(Vec::as_slice)
    }

    /// Fails if labels name a picture that is not there, or an attribute is the same for all pictures.
    ///
    /// # Errors
    /// Which.
    pub fn check(&self, file: &Path, pictures: &[&Pictures]) -> Result<()> {
        let problem = |problem| Err(Error::Data { path: file.to_owned(), problem });
        let mut known = BTreeSet::new();
        let mut seen = vec![[0usize; 2]; self.names.len()];
        for pictures in pictures {
            for idx in 0..pictures.len() {
                let name = pictures.name(idx);
                for (seen, &present) in seen.iter_mut().zip(self.of(&name).unwrap_or_default()) {
                    seen[usize::from(present)] += 1;
                }
                known.extend(name.rsplit('/').next().map(str::to_owned));
                known.insert(name);
            }
        }
        let mut missing: Vec<&String> = self.rows.keys().filter(|name| !known.contains(*name)).collect();
        missing.sort_unstable();
        if let Some(first) = missing.first() {
            return problem(format!("{} labelled pictures are not among the data, such as {first}", missing.len()));
        }
        match self.names.iter().zip(&seen).find(|(_, seen)| seen.contains(&0)) {
            Some((name, _)) => problem(format!("attribute {name} is the same for all pictures")),
            None => Ok(()),
        }
    }
}

type Parsed = std::result::Result<Labels, String>;

fn from_csv(text: &str) -> Parsed {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    let names: Vec<String> = header.iter().skip(1).map(str::to_owned).collect();
    let mut rows = HashMap::new();
    for record in reader.records() {
        let record = record.map_err(|error| error.to_string())?;
        let mut fields = record.iter();
        let name = fields.next().unwrap_or_default().to_owned();
        rows.insert(name.clone(), fields.map(|field| value(field, &name)).collect::<std::result::Result<_, _>>()?);
    }
    finished(names, rows)
}

fn from_celeba(text: &str) -> Parsed {
    let mut lines = text.lines();
    let count: Option<usize> = lines.next().and_then(|line| line.trim().parse().ok());
    let count = count.ok_or("the first line is neither a count, as CelebA's, nor a CSV header")?;
    let names: Vec<String> = lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let mut rows = HashMap::new();
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let mut fields = line.split_whitespace();
        let name = fields.next().unwrap_or_default().to_owned();
        let row: Vec<bool> = fields.map(|field| value(field, &name)).collect::<std::result::Result<_, _>>()?;
        if row.len() != names.len() {
            return Err(format!("{name} has {} values for {} attributes", row.len(), names.len()));
        }
        rows.insert(name, row);
    }
    if rows.len() != count {
        return Err(format!("the first line promises {count} pictures, there are {}", rows.len()));
    }
    finished(names, rows)
}

fn finished(names: Vec<String>, rows: HashMap<String, Vec<bool>>) -> Parsed {
    if names.is_empty() || rows.is_empty() {
        return Err("it labels nothing".to_owned());
    }
    Ok(Labels { names, rows })
}

fn value(field: &str, name: &str) -> std::result::Result<bool, String> {
    match field {
        "1" | "true" => Ok(true),
        "0" | "-1" | "false" => Ok(false),
        other => Err(format!("{name} has the value {other:?}, expected 1, 0 or -1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let celeba = from_celeba("2\nSmiling Male\na.png 1 -1\nb.png -1 1\n").unwrap();
        let csv = from_csv("file,Smiling,Male\na.png,1,0\nb.png,0,1\n").unwrap();
        assert_eq!(celeba, csv);
        assert_eq!(celeba.of("x/y/a.png"), Some(&[true, false][..]));
        assert_eq!(celeba.of("c.png"), None);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert!(from_celeba("3\nSmiling\na 1\n").unwrap_err().contains("promises 3"));
        assert!(from_celeba("1\nSmiling\na 1 1\n").unwrap_err().contains("2 values"));
        assert!(from_csv("file,Smiling\na,yes\n").unwrap_err().contains("\"yes\""));
    }
}
