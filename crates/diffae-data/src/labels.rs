//! Attributes of pictures: `CelebA` attribute files, CSV, or one folder per class.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::attribute_names::same_attributes;
use crate::error::{Error, Result, at};
use crate::fingerprint::Fingerprint;
use crate::notices::{counted, inform_once, verb, warn_once};
use crate::{LabelTable, Pictures};

/// The path that stands for labels by folder, in place of a label file.
pub const FOLDER_LABELS: &str = "folders";

/// Attributes of pictures: for each picture, the presence of every attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Names of the attributes.
    pub names: Vec<String>,
    /// Labels by path below the folder, or by the name in the file.
    rows: HashMap<String, Vec<bool>>,
}

/// Policy for label rows whose pictures are not in the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strangers {
    /// Fails: the file is of other data, or a name is wrong.
    Refuse,
    /// Ignores the rows: the file is of more data than these.
    PassOver,
}

impl Labels {
    /// Reads the labels of a run's pictures: from a file, or from folders if the path is
    /// [`FOLDER_LABELS`](FOLDER_LABELS). Attributes that are the same for all pictures are left out with a warning.
    ///
    /// # Errors
    /// As [`Labels::matched`], refusing strangers, and [`Labels::from_folders`]; [`Error::Data`] if no attribute is left.
    pub fn of_pictures(path: &Path, pictures: &[&Pictures]) -> Result<Self> {
        let is_folders = path == Path::new(FOLDER_LABELS);
        let labels =
            if is_folders { Self::from_folders(pictures)? } else { Self::matched(path, pictures, Strangers::Refuse)? };
        labels.without_constants(path, pictures)
    }

    /// Reads the labels of a file, and matches them to pictures.
    ///
    /// A row names its picture by the path below the folder, by an absolute path, by one that begins with the last
    /// folders of the data, by the file name alone, or without the ending, where that is clear.
    ///
    /// # Errors
    /// As [`Labels::from_file`]; [`Error::Data`] with the line if a name fits several pictures, if two rows of one picture
    /// contradict each other, or if a row is a stranger and these are refused.
    pub fn matched(path: &Path, pictures: &[&Pictures], strangers: Strangers) -> Result<Self> {
        let table = LabelTable::from_bytes(&std::fs::read(path).map_err(at(path))?, path)?;
        let known = Known::new(pictures);
        if table.may_lack_header() && !matches!(known.find(&table.name_header), Ok(None)) {
            return Err(table.lacks_header(path));
        }
        let values = table.labels(path)?;
        let failed = |problem| Error::Data { path: path.to_owned(), problem };
        let (mut rows, mut missing) = (Rows::of(&table.attributes), vec![]);
        for (row, values) in table.rows.iter().zip(values) {
            match known.find(&row.name).map_err(|problem| failed(format!("line {}: {problem}", row.line)))? {
                Some(name) => rows.add(row.line, name, values).map_err(failed)?,
                None => missing.push(row),
            }
        }
        if let Some(first) = missing.first().filter(|_| strangers == Strangers::Refuse) {
            let count = counted(missing.len(), "labeled picture");
            let (are, name, line) = (verb(missing.len(), "is", "are"), &first.name, first.line);
            let all = missing.len() == table.rows.len();
            let hint = if all { "; the first column must name the pictures" } else { "" };
            return Err(failed(format!("{count} {are} not among the data, such as {name} (line {line}){hint}")));
        }
        rows.say_repeats(path);
        let labels = Self { names: table.attributes.clone(), rows: rows.without_lines() };
        labels.say_coverage(path, pictures);
        Ok(labels)
    }

    /// Computes a checksum of the labels.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let rows: BTreeMap<&String, &Vec<bool>> = self.rows.iter().collect();
        Fingerprint::of(format!("{:?} {rows:?}", self.names).as_bytes())
    }

    /// Reads a `CelebA` or `CelebAMask-HQ` attribute file, or a CSV file: a header with a column of file names first and
    /// one attribute a further column. Values are 1 and 0 or -1, also as `1.0`, True and False, yes and no.
    ///
    /// # Errors
    /// If the file cannot be read; as [`LabelTable::from_bytes`]; if a value is no label, or two rows of one name
    /// contradict each other.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_bytes(&std::fs::read(path).map_err(at(path))?, path)
    }

    /// Parses the contents of a label file, as [`Labels::from_file`]; `path` is the name in messages.
    ///
    /// # Errors
    /// As [`Labels::from_file`].
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let table = LabelTable::from_bytes(bytes, path)?;
        let mut rows = Rows::of(&table.attributes);
        for (row, values) in table.rows.iter().zip(table.labels(path)?) {
            let added = rows.add(row.line, &row.name, values);
            added.map_err(|problem| Error::Data { path: path.to_owned(), problem })?;
        }
        Ok(Self { names: table.attributes.clone(), rows: rows.without_lines() })
    }

    /// Derives one attribute from each folder right below the root. Pictures in no folder have no labels.
    ///
    /// # Errors
    /// If there are fewer than two such folders, or two whose names differ only in case or separators of words.
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
        if let Some([one, other]) = same_attributes(&names) {
            let root = pictures.first().map(|pictures| pictures.root().to_owned()).unwrap_or_default();
            let (one, other) = (&names[one], &names[other]);
            let problem = format!(
                "the folders {one} and {other} would be one attribute: case, spaces, underscores and hyphens make no \
                 difference; rename one"
            );
            return Err(Error::Data { path: root, problem });
        }
        let rows = all.into_iter().filter_map(|name| {
            let class = class_of(&name)?;
            Some((name, names.iter().map(|name| *name == class).collect()))
        });
        let labels = Self { rows: rows.collect(), names };
        labels.say_coverage(Path::new(FOLDER_LABELS), pictures);
        Ok(labels)
    }

    /// Returns the labels of a picture, by its path or, if the file has no more, its file name.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&[bool]> {
        let file_name = name.rsplit('/').next().unwrap_or(name);
        self.rows.get(name).or_else(|| self.rows.get(file_name)).map(Vec::as_slice)
    }

    /// Logs the number of pictures that have labels.
    fn say_coverage(&self, path: &Path, pictures: &[&Pictures]) {
        let all: usize = pictures.iter().map(|pictures| pictures.len()).sum();
        let has = |pictures: &Pictures, idx: &usize| self.rows.contains_key(&pictures.name(*idx));
        let labeled: usize =
            pictures.iter().map(|pictures| (0..pictures.len()).filter(|idx| has(pictures, idx)).count()).sum();
        let are = verb(if all == 1 { 1 } else { labeled }, "is", "are");
        let text = format!("{}: {labeled} of {} {are} labeled", path.display(), counted(all, "picture"));
        if labeled < all { warn_once(&text) } else { inform_once(&text) }
    }

    fn without_constants(self, file: &Path, pictures: &[&Pictures]) -> Result<Self> {
        let mut seen = vec![[false; 2]; self.names.len()];
        for pictures in pictures {
            for idx in 0..pictures.len() {
                for (seen, &present) in seen.iter_mut().zip(self.of(&pictures.name(idx)).unwrap_or_default()) {
                    seen[usize::from(present)] = true;
                }
            }
        }
        let varies: Vec<bool> = seen.iter().map(|seen| *seen == [true; 2]).collect();
        if !varies.contains(&true) {
            let problem = match self.names.as_slice() {
                [only] => format!("attribute {only} is the same for all pictures"),
                _ => "every attribute is the same for all pictures".to_owned(),
            };
            return Err(Error::Data { path: file.to_owned(), problem });
        }
        for (name, _) in self.names.iter().zip(&varies).filter(|(_, varies)| !**varies) {
            warn_once(&format!("{}: attribute {name} is the same for all pictures and is left out", file.display()));
        }
        let kept = |values: Vec<bool>| {
            values.into_iter().zip(&varies).filter(|(_, varies)| **varies).map(|(v, _)| v).collect()
        };
        let names = self.names.into_iter().zip(&varies).filter(|(_, varies)| **varies).map(|(name, _)| name).collect();
        Ok(Self { names, rows: self.rows.into_iter().map(|(name, values)| (name, kept(values))).collect() })
    }
}

/// Rows by picture, with their lines.
struct Rows<'a> {
    attributes: &'a [String],
    by_name: HashMap<String, (u64, Vec<bool>)>,
    /// Lines that repeat a row exactly.
    repeats: Vec<(u64, String)>,
}

impl<'a> Rows<'a> {
    fn of(attributes: &'a [String]) -> Self {
        Self { attributes, by_name: HashMap::new(), repeats: vec![] }
    }

    /// Fails if another row of the picture has different labels.
    fn add(&mut self, line: u64, name: &str, values: Vec<bool>) -> std::result::Result<(), String> {
        let Some((before, known)) = self.by_name.get(name) else {
            self.by_name.insert(name.to_owned(), (line, values));
            return Ok(());
        };
        let differs = known.iter().zip(&values).position(|(known, value)| known != value);
        if let Some(attribute) = differs.and_then(|idx| self.attributes.get(idx)) {
            return Err(format!("lines {before} and {line} contradict each other on {attribute} of {name}"));
        }
        self.repeats.push((line, name.to_owned()));
        Ok(())
    }

    fn say_repeats(&self, path: &Path) {
        if let Some((line, name)) = self.repeats.first() {
            let path = path.display();
            warn_once(&match self.repeats.len() {
                1 => format!("{path}: line {line} repeats another one of {name}"),
                count => {
                    format!("{path}: {count} lines repeat others of the same pictures, such as line {line} of {name}")
                }
            });
        }
    }

    fn without_lines(self) -> HashMap<String, Vec<bool>> {
        self.by_name.into_iter().map(|(name, (_, values))| (name, values)).collect()
    }
}

/// Pictures by the names that a label file may use.
struct Known {
    /// Path of each picture, with its file or archive.
    pictures: Vec<(String, PathBuf)>,
    by_path: HashMap<String, Fit>,
    /// Matches by file name, by path without ending and by file name without ending.
    by_shorter: HashMap<String, Fit>,
    /// The folder of the data, as written and in canonical form.
    roots: Vec<String>,
}

/// Indices of the picture that a name fits, and of another one if the name is ambiguous.
struct Fit {
    one: usize,
    other: Option<usize>,
}

impl Known {
    fn new(pictures: &[&Pictures]) -> Self {
        let mut known = Self { pictures: vec![], by_path: HashMap::new(), by_shorter: HashMap::new(), roots: vec![] };
        for pictures in pictures {
            for idx in 0..pictures.len() {
                known.add(pictures.name(idx), pictures.file(idx).to_owned());
            }
            let root = pictures.root();
            let roots = [std::path::absolute(root).ok(), root.canonicalize().ok()].into_iter().flatten();
            known.roots.extend(roots.map(|root| root.to_string_lossy().replace('\\', "/")));
        }
        known
    }

    fn add(&mut self, path: String, file: PathBuf) {
        let place = self.pictures.len();
        let fit = || Fit { one: place, other: None };
        for name in shorter_names(&path) {
            self.by_shorter.entry(name.to_owned()).or_insert_with(fit).also(place);
        }
        self.by_path.entry(path.clone()).or_insert_with(fit).also(place);
        self.pictures.push((path, file));
    }

    /// Returns the path of the picture that a row names, if it exists; the problem if several fit.
    fn find(&self, written: &str) -> std::result::Result<Option<&str>, String> {
        let fit = |name: &&str| self.by_path.get(*name).or_else(|| self.by_shorter.get(*name));
        let Some(Fit { one, other }) = self.readings(written).iter().find_map(fit) else { return Ok(None) };
        let (path, file) = &self.pictures[*one];
        match other.and_then(|other| self.pictures.get(other)) {
            None => Ok(Some(path)),
            Some((same, other)) if same == path => {
                let (file, other) = (file.display(), other.display());
                Err(format!("{written} is in {file} and in {other}; give every picture a name of its own"))
            }
            Some((other, _)) => {
                Err(format!("{written} may be {path} or {other}; write the path below the folder of the data"))
            }
        }
    }

    /// Lists the readings of a written name: unchanged; without the folder of the data, if it is absolute; without that
    /// folder's last parts, if it begins with them.
    fn readings<'a>(&self, written: &'a str) -> Vec<&'a str> {
        let mut readings = vec![written];
        for root in &self.roots {
            let mut end = root.as_str();
            loop {
                let below = written.strip_prefix(end).and_then(|rest| rest.strip_prefix('/'));
                readings.extend(below.filter(|_| !end.is_empty()));
                let Some((_, shorter)) = end.split_once('/') else { break };
                end = shorter;
            }
        }
        readings
    }
}

impl Fit {
    fn also(&mut self, place: usize) {
        if place != self.one {
            self.other = Some(place);
        }
    }
}

/// Returns the file name of a path, the path without its ending or without all of its endings, and both.
fn shorter_names(path: &str) -> BTreeSet<&str> {
    let base = path.rfind('/').map_or(0, |slash| slash + 1);
    let ends =
        [path.rfind('.'), path.get(base..).and_then(|name| name.find('.')).map(|dot| base + dot), Some(path.len())];
    let ends = ends.into_iter().flatten().filter(|&end| end > base);
    let names = ends.flat_map(|end| [path.get(..end), path.get(base..end)]).flatten();
    names.filter(|name| *name != path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Crop;
    use image::RgbImage;

    fn data(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join("images").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            RgbImage::new(2, 2).save(path).unwrap();
        }
        folder
    }

    fn matched(folder: &tempfile::TempDir, text: &str, strangers: Strangers) -> std::result::Result<Labels, String> {
        let path = folder.path().join("labels.csv");
        std::fs::write(&path, text).unwrap();
        let pictures = Pictures::all(&folder.path().join("images"), Crop::Center).unwrap();
        Labels::matched(&path, &[&pictures], strangers).map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_are_read() {
        let read = |text: &str| Labels::from_bytes(text.as_bytes(), Path::new("labels")).unwrap();
        let celeba = read("2\nSmiling Male\na.png 1 -1\nb.png -1 1\n");
        assert_eq!(celeba, read("file,Smiling,Male\na.png,1,0\nb.png,0,1\n"));
        assert_eq!(celeba.of("x/y/a.png"), Some(&[true, false][..]));
        assert_eq!(celeba.of("c.png"), None);
    }

    #[test]
    fn pictures_are_found_by_any_clear_name() {
        let folder = data(&["a/0.png", "a/1.x.png", "b/0.png"]);
        let root = folder.path().join("images");
        let of = |name: &str| {
            let labels = matched(&folder, &format!("file,A\n{name},1\n"), Strangers::Refuse)?;
            let of = |path: &&str| labels.of(path).is_some();
            Ok(["a/0.png", "a/1.x.png", "b/0.png"].into_iter().filter(of).collect::<Vec<_>>().join(" "))
        };
        let absolute = root.join("b/0.png").display().to_string();
        for name in ["b/0.png", "./b/0.png", ".\\b\\0.png", "b/0", "images/b/0.png", absolute.as_str()] {
            assert_eq!(of(name), Ok::<_, String>("b/0.png".to_owned()), "{name}");
        }
        for name in ["a/1.x.png", "1.x.png", "1.x", "1", "a/1"] {
            assert_eq!(of(name).as_deref(), Ok("a/1.x.png"), "{name}");
        }
        for name in ["0.png", "0"] {
            let error = of(name).unwrap_err();
            assert!(error.contains("line 2") && error.contains("a/0.png or b/0.png"), "{error}");
        }
        for name in ["c.png", "/elsewhere/b/0.png", "other/b/0.png"] {
            assert!(of(name).unwrap_err().contains("not among the data"), "{name}");
        }
        assert!(matched(&folder, "file,A\nc.png,1\n", Strangers::PassOver).is_ok());
    }

    #[test]
    fn rows_of_one_picture_must_agree() {
        let folder = data(&["a/0.png", "b.png"]);
        let agreeing = matched(&folder, "file,A\na/0.png,1\n0.png,True\nb.png,0\n", Strangers::Refuse).unwrap();
        assert_eq!(agreeing.of("a/0.png"), Some(&[true][..]));
        let error =
            matched(&folder, "file,A,B\na/0.png,1,1\nb.png,0,1\n./a/0.png,1,0\n", Strangers::Refuse).unwrap_err();
        assert!(error.contains("lines 2 and 4 contradict each other on B of a/0.png"), "{error}");
        let error = Labels::from_bytes(b"file,A\n0.png,1\n0.png,0\n", Path::new("labels")).unwrap_err().to_string();
        assert!(error.contains("lines 2 and 3"), "{error}");
    }

    #[test]
    fn a_file_without_header_is_refused() {
        let folder = data(&["0.png", "1.png"]);
        for text in ["0,1\n1,0\n", "0.png,1\n1.png,0\n", "images/0.png;True\nimages/1.png;False\n"] {
            let error = matched(&folder, text, Strangers::PassOver).unwrap_err();
            assert!(error.contains("the first line is a row of labels"), "{error}");
        }
        assert!(matched(&folder, "file,1\n0,1\n1,0\n", Strangers::Refuse).is_ok());
    }

    #[test]
    fn folders_of_one_attribute_are_refused() {
        let folder = data(&["Red/0.png", "red/1.png"]);
        let pictures = Pictures::all(&folder.path().join("images"), Crop::Center).unwrap();
        let error = Labels::from_folders(&[&pictures]).unwrap_err().to_string();
        assert!(error.contains("the folders Red and red would be one attribute"), "{error}");
    }

    #[test]
    fn constant_attributes_are_left_out_unless_all_are() {
        let folder = data(&["0.png", "1.png", "2.png"]);
        let path = folder.path().join("labels.csv");
        let pictures = Pictures::all(&folder.path().join("images"), Crop::Center).unwrap();
        let of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Labels::of_pictures(&path, &[&pictures]).map_err(|error| error.to_string())
        };
        let labels = of("file,Same,Varies,Never\n0.png,1,1,0\n1.png,1,0,0\n").unwrap();
        assert_eq!((labels.names.as_slice(), labels.of("1.png")), (&["Varies".to_owned()][..], Some(&[false][..])));
        assert!(of("file,Same\n0.png,1\n1.png,1\n").unwrap_err().contains("attribute Same is the same for all"));
    }
}
