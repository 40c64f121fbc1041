//! Tables of labels: `CelebA`'s attribute files, and CSV in the dialects of pandas, R, polars and spreadsheets.

use std::borrow::Cow;
use std::path::Path;

use crate::attribute_names::same_attributes;
use crate::error::{Error, Result};
use crate::is_picture_name;
use crate::notices::{counted, warn_once};

/// Separators of CSV.
const SEPARATORS: [char; 3] = [',', ';', '\t'];
/// Values that stand for a missing label in pandas, R and polars, in lower case.
const MISSING: [&str; 8] = ["", "nan", "na", "n/a", "null", "none", "<na>", "nat"];
/// Supported values of labels, for messages.
const EXPECTED: &str = "1, 0, -1, True, False, yes or no";

/// The form of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelForm {
    /// `CelebA`'s form: a count, a line of attributes, then a line per picture.
    Celeba,
    /// The CSV form: a header, then a line per picture.
    Csv,
}

/// A table of labels, whose values have not been interpreted yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelTable {
    /// The form of the file.
    pub form: LabelForm,
    /// Header of the column of pictures; empty in `CelebA`'s form.
    pub name_header: String,
    /// Names of the attributes.
    pub attributes: Vec<String>,
    /// Rows, one per picture.
    pub rows: Vec<LabelRow>,
}

/// The labels of one picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRow {
    /// Line number in the file, from 1.
    pub line: u64,
    /// Path of the picture, with `/` between the parts and without `./` in front.
    pub name: String,
    /// Values, one per attribute.
    pub values: Vec<String>,
}

type Parsed<T> = std::result::Result<T, String>;

impl LabelTable {
    /// Reads a table; `path` is the name in messages.
    ///
    /// A CSV may be separated by commas, semicolons or tabs, and be UTF-8 or UTF-16 with or without a byte order mark. An
    /// index that pandas has written (a column of numbers without a name) is left out.
    ///
    /// # Errors
    /// [`Error::Data`] with the line if the text has another form, a row has another number of fields than the header, a
    /// CSV has no header, or two attributes have one name, or names that differ only in case or separators of words.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let parse = || -> Parsed<Self> {
            let text = decoded(bytes)?;
            let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            let is_celeba = first.trim().parse::<usize>().is_ok();
            let table = if is_celeba { from_celeba(&text)? } else { from_csv(&text, first)? };
            if table.may_lack_header() && is_picture_name(Path::new(&table.name_header)) {
                return Err(table.row_for_header());
            }
            table.check_attributes()?;
            if table.rows.is_empty() {
                return Err("it labels nothing: there are no rows below the header".to_owned());
            }
            Ok(table)
        };
        parse().map_err(|problem| Error::Data { path: path.to_owned(), problem })
    }

    /// Parses the labels of each row, in order.
    ///
    /// # Errors
    /// [`Error::Data`] with line and column if a value is no label, or is missing.
    pub(crate) fn labels(&self, path: &Path) -> Result<Vec<Vec<bool>>> {
        let mut seen = vec![[false; 3]; self.attributes.len()];
        let mut all = vec![];
        for row in &self.rows {
            let mut labels = vec![];
            for ((value, attribute), seen) in row.values.iter().zip(&self.attributes).zip(&mut seen) {
                let label = label(value).map_err(|problem| Error::Data {
                    path: path.to_owned(),
                    problem: format!("line {}, column {attribute}: {problem}", row.line),
                })?;
                seen[label as usize] = true;
                labels.push(label == Label::Yes);
            }
            all.push(labels);
        }
        for (attribute, seen) in self.attributes.iter().zip(&seen) {
            if *seen == [true; 3] {
                let file = path.display();
                warn_once(&format!("{file}: column {attribute} has 1, 0 and -1; 0 and -1 both count as no"));
            }
        }
        Ok(all)
    }

    /// Returns whether the header may be the row of a picture: the other fields are labels.
    pub(crate) fn may_lack_header(&self) -> bool {
        let is_row = !self.attributes.is_empty() && self.attributes.iter().all(|name| label(name).is_ok());
        self.form == LabelForm::Csv && is_row
    }

    /// Returns the error of a table whose first line is the row of a picture.
    pub(crate) fn lacks_header(&self, path: &Path) -> Error {
        Error::Data { path: path.to_owned(), problem: self.row_for_header() }
    }

    fn row_for_header(&self) -> String {
        let (name, labels) = (&self.name_header, self.attributes.join(", "));
        let columns = if self.attributes.len() == 1 { "file,NAME" } else { "file,NAME,NAME" };
        format!(
            "the first line is a row of labels ({name}: {labels}), not a header; put a line above it that names the \
             attributes: {columns}{}",
            if self.attributes.len() > 2 { ",.." } else { "" }
        )
    }

    fn check_attributes(&self) -> Parsed<()> {
        if self.attributes.is_empty() {
            return Err("it labels nothing: there is no column beside that of the pictures".to_owned());
        }
        for (idx, name) in self.attributes.iter().enumerate() {
            // The column of pictures, which CelebA's header does not name, is the first.
            let column = idx + 2;
            if name.is_empty() {
                return Err(format!("column {column} has values but no name in the header; name it or take it out"));
            }
        }
        if let Some([before, idx]) = same_attributes(&self.attributes) {
            let (one, other) = (&self.attributes[before], &self.attributes[idx]);
            let twice = if one == other {
                format!("attribute {one} occurs twice in the header")
            } else {
                format!(
                    "{one} and {other} in the header are one attribute (case, spaces, underscores and hyphens make no \
                     difference)"
                )
            };
            return Err(format!("{twice}, in columns {} and {}; rename one or take it out", before + 2, idx + 2));
        }
        Ok(())
    }
}

/// Decodes text in UTF-8 or, with a byte order mark, UTF-16.
fn decoded(bytes: &[u8]) -> Parsed<Cow<'_, str>> {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
        let text: std::result::Result<String, _> = char::decode_utf16(units).collect();
        text.map(Cow::Owned).map_err(|error| format!("it is damaged UTF-16 ({error}); save it as UTF-8"))
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest),
        _ => utf8(bytes),
    }
}

fn utf8(bytes: &[u8]) -> Parsed<Cow<'_, str>> {
    std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = String::from_utf8_lossy(before).matches('\n').count() + 1;
        format!("line {line} is not UTF-8; save the file as UTF-8")
    })
}

fn from_celeba(text: &str) -> Parsed<LabelTable> {
    let mut lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let count: usize = lines.next().and_then(|(line, _)| line.trim().parse().ok()).unwrap_or_default();
    let header = lines.next().map_or("", |(line, _)| line);
    let attributes: Vec<String> = header.split_whitespace().map(str::to_owned).collect();
    let mut rows = vec![];
    for (text, line) in lines {
        let mut fields = text.split_whitespace().map(str::to_owned);
        let name = picture_name(&fields.next().unwrap_or_default());
        let values: Vec<String> = fields.collect();
        if values.len() != attributes.len() {
            let (values, attributes) = (counted(values.len(), "value"), counted(attributes.len(), "attribute"));
            return Err(format!("line {line}: {name} has {values} for {attributes}"));
        }
        rows.push(LabelRow { line, name, values });
    }
    if rows.len() != count {
        let rows = counted(rows.len(), "row");
        return Err(format!("the first line promises {}, the file has {rows}", counted(count, "picture")));
    }
    Ok(LabelTable { form: LabelForm::Celeba, name_header: String::new(), attributes, rows })
}

fn from_csv(text: &str, first: &str) -> Parsed<LabelTable> {
    let separator = separator(first).ok_or(
        "the first line is neither a count, as CelebA's, nor the header of a CSV: names separated by commas, semicolons or \
         tabs",
    )?;
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator as u8)
        .trim(csv::Trim::All)
        .flexible(true)
        .has_headers(false)
        .from_reader(text.as_bytes());
    let mut records = reader.records();
    let header = records.next().transpose().map_err(|error| error.to_string())?.unwrap_or_default();
    let mut header: Vec<String> = header.iter().map(str::to_owned).collect();
    let mut rows = vec![];
    for record in records {
        let record = record.map_err(|error| error.to_string())?;
        let line = record.position().map_or(0, |position| line_of(text, position));
        let fields: Vec<String> = record.iter().map(str::to_owned).collect();
        if fields.iter().all(String::is_empty) {
            continue;
        }
        if fields.len() != header.len() {
            return Err(format!("line {line} has {}, the header {}", counted(fields.len(), "field"), header.len()));
        }
        rows.push((line, fields));
    }
    while let Some(column) = superfluous_column(&header, &rows) {
        header.remove(column);
        for (_, fields) in &mut rows {
            fields.remove(column);
        }
    }
    let mut header = header.into_iter();
    let name_header = header.next().unwrap_or_default();
    let row = |(line, fields): (u64, Vec<String>)| {
        let mut fields = fields.into_iter();
        let name = picture_name(&fields.next().unwrap_or_default());
        if name.is_empty() {
            return Err(format!("line {line}, column {name_header}: there is no picture"));
        }
        Ok(LabelRow { line, name, values: fields.collect() })
    };
    let rows = rows.into_iter().map(row).collect::<Parsed<_>>()?;
    Ok(LabelTable { form: LabelForm::Csv, name_header, attributes: header.collect(), rows })
}

/// Returns the line on which a record begins: `position` is before the empty lines in front of it.
fn line_of(text: &str, position: &csv::Position) -> u64 {
    let start = usize::try_from(position.byte()).unwrap_or(usize::MAX);
    let rest = text.as_bytes().get(start..).unwrap_or_default();
    let empty = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
    position.line() + empty.filter(|&&byte| byte == b'\n').count() as u64
}

/// Returns the most frequent separator of a header, outside quotes.
fn separator(header: &str) -> Option<char> {
    let mut is_quoted = false;
    let outside: String = header
        .chars()
        .filter(|&c| {
            is_quoted ^= c == '"';
            !is_quoted
        })
        .collect();
    let counts = SEPARATORS.map(|separator| (outside.matches(separator).count(), separator));
    counts.into_iter().filter(|(count, _)| *count > 0).max_by_key(|(count, _)| *count).map(|(_, separator)| separator)
}

/// Returns a column that holds nothing, or pandas' index of the rows: one without a name (or `Unnamed: 0`, once it has
/// been read and written again) and with only numbers, before the column of pictures.
fn superfluous_column(header: &[String], rows: &[(u64, Vec<String>)]) -> Option<usize> {
    let values = |column: usize| rows.iter().filter_map(move |(_, fields)| fields.get(column));
    let is_nothing = |column: &usize| header[*column].is_empty() && values(*column).all(String::is_empty);
    if let Some(column) = (0..header.len()).find(is_nothing) {
        return Some(column);
    }
    let first = header.first().filter(|name| name.is_empty() || name.starts_with("Unnamed:"))?;
    let are_numbers = values(0).all(|value| value.parse::<u64>().is_ok());
    let names_follow = values(1).any(|value| label(value).is_err());
    (header.len() > 2 && are_numbers && names_follow && first.len() < 16).then_some(0)
}

/// Normalizes a path to the form of this program.
fn picture_name(written: &str) -> String {
    let mut name = written.replace('\\', "/");
    while let Some(rest) = name.strip_prefix("./") {
        name = rest.trim_start_matches('/').to_owned();
    }
    name
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Yes,
    No,
    MinusOne,
}

/// Parses a label, or describes the problem.
fn label(written: &str) -> Parsed<Label> {
    let lower = written.to_ascii_lowercase();
    match lower.as_str() {
        "true" | "yes" => return Ok(Label::Yes),
        "false" | "no" => return Ok(Label::No),
        missing if MISSING.contains(&missing) => {
            let is = if written.is_empty() { "is empty".to_owned() } else { format!("is {written}") };
            return Err(format!("the value {is}; fill it in, or take the row out"));
        }
        _ => {}
    }
    let number: Option<f64> = lower.parse().ok();
    let is = |value: f64| number.is_some_and(|number| (number - value).abs() < f64::EPSILON);
    let numbers = [(1., Label::Yes), (0., Label::No), (-1., Label::MinusOne)];
    let found = numbers.into_iter().find(|(value, _)| is(*value)).map(|(_, label)| label);
    found.ok_or_else(|| format!("{written:?} is no label, expected {EXPECTED}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(bytes: &[u8]) -> std::result::Result<LabelTable, String> {
        LabelTable::from_bytes(bytes, Path::new("labels.csv")).map_err(|error| error.to_string())
    }

    fn labels(text: &str) -> std::result::Result<Vec<Vec<bool>>, String> {
        table(text.as_bytes())?.labels(Path::new("labels.csv")).map_err(|error| error.to_string())
    }

    fn refused(text: &str) -> String {
        let error = labels(text).unwrap_err();
        assert!(error.starts_with("labels.csv: "), "{error}");
        error
    }

    #[test]
    fn labels_are_read_as_programs_write_them() {
        let expected = vec![vec![true, false], vec![false, true]];
        for text in [
            "file,A,B\n0.png,1,0\n1.png,-1,1\n",
            "file,A,B\n0.png,True,False\n1.png,FALSE,true\n",
            "file,A,B\n0.png,1.0,0.0\n1.png,-1.0,1.\n",
            "file,A,B\n0.png,yes,no\n1.png,No,YES\n",
            "file;A;B\r\n0.png;1;0\r\n1.png;0;1\r\n",
            "file\tA\tB\n0.png\t1\t0\n\n1.png\t0\t1\n\t\t\n",
            "\"the, file\",A,B\n\"0.png\",1,0\n\"1.png\",0,1\n",
            ",file,A,B\n0,0.png,1,0\n1,1.png,0,1\n",
            "Unnamed: 0,file,A,B,\n0,0.png,1,0,\n1,1.png,0,1,\n",
            ",A,B\n0.png,1,0\n1.png,0,1\n",
            "2\nA B\n0.png 1 -1\n./1.png -1 1\n",
        ] {
            assert_eq!(labels(text).unwrap(), expected, "{text}");
            let rows = table(text.as_bytes()).unwrap().rows;
            assert_eq!(rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["0.png", "1.png"], "{text}");
        }
    }

    #[test]
    fn paths_and_encodings_of_other_systems_are_read() {
        let text = "file,A\n.\\cat\\é.png,1\n";
        let wide = |mark: u16, bytes: fn(u16) -> [u8; 2]| {
            [mark].into_iter().chain(text.encode_utf16()).flat_map(bytes).collect::<Vec<u8>>()
        };
        let marked = ["\u{feff}", text].concat().into_bytes();
        for bytes in [text.into(), marked, wide(0xfeff, u16::to_le_bytes), wide(0xfeff, u16::to_be_bytes)] {
            let table = table(&bytes).unwrap();
            assert_eq!((table.rows[0].name.as_str(), table.attributes[0].as_str()), ("cat/é.png", "A"));
        }
        assert!(table(b"file,A\na.png,1\n\xe9.png,0\n").unwrap_err().contains("line 3 is not UTF-8"));
    }

    #[test]
    fn an_index_is_told_from_names_that_are_numbers() {
        let names =
            |text: &str| table(text.as_bytes()).unwrap().rows.into_iter().map(|row| row.name).collect::<Vec<_>>();
        assert_eq!(names(",A\n0,1\n1,0\n"), ["0", "1"]);
        assert_eq!(names("key,file,A\n7,1,1\n8,0,0\n"), ["7", "8"]);
    }

    #[test]
    fn what_is_no_label_is_named_with_line_and_column() {
        for (text, found) in [
            ("file,A\n0.png,0.7\n", "line 2, column A: \"0.7\""),
            ("file,A\n0.png,1\n1.png,\n", "line 3, column A: the value is empty"),
            ("file,A\n0.png,1\n\n1.png,NaN\n", "line 4, column A: the value is NaN"),
            ("file,A\n0.png,1,0\n", "line 2 has 3 fields, the header 2"),
            ("file,A,A\n0.png,1,0\n", "attribute A occurs twice in the header, in columns 2 and 3"),
            ("1\nA B A\n0.png 1 1 1\n", "attribute A occurs twice"),
            ("file,Red,red\n0.png,1,0\n", "Red and red in the header are one attribute"),
            ("file,A,Blond Hair,Blond_Hair\n0.png,1,0,0\n", "make no difference), in columns 3 and 4"),
            ("1\nA-b A_B\n0.png 1 1\n", "A-b and A_B in the header are one attribute"),
            ("0.png,1\n1.png,0\n", "the first line is a row of labels (0.png: 1), not a header"),
            ("a/0.jpeg;True;no\n1.png;1;0\n", "names the attributes: file,NAME,NAME"),
            ("file,A,\n0.png,1,0\n", "column 3 has values but no name"),
            ("file,A\n,1\n", "line 2, column file: there is no picture"),
            ("3\nA\n0.png 1\n", "promises 3 pictures, the file has 1 row"),
            ("1\nA\n0.png 1\n1.png 0\n", "promises 1 picture, the file has 2 rows"),
            ("1\nA\n0.png 1 1\n", "line 3: 0.png has 2 values for 1 attribute"),
            ("1\nA B\n0.png 1\n", "line 3: 0.png has 1 value for 2 attributes"),
            ("file,A\n", "no rows"),
            ("file\n0.png\n", "neither a count"),
            ("", "neither a count"),
        ] {
            assert!(refused(text).contains(found), "{}", refused(text));
        }
    }
}
