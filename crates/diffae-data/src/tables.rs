//! Pictures in Parquet files, as Hugging Face data sets store them: a column of structs with `bytes` and `path`, or a
//! column of bytes.

use std::path::Path;

use crate::error::{Error, Result};
use crate::source::Item;

/// Ending of the names of tables.
pub(crate) const EXTENSION: &str = "parquet";

/// Fails: this build has no Parquet support.
///
/// # Errors
/// Always.
#[cfg(not(feature = "parquet"))]
pub(crate) fn pictures(table: &Path, _: &str) -> Result<Vec<Item>> {
    let problem = "this program is built without Parquet; install it with `cargo install --path crates/diffae-cli \
                   --features parquet`";
    Err(Error::Data { path: table.to_owned(), problem: problem.to_owned() })
}

#[cfg(feature = "parquet")]
pub(crate) use unpack::pictures;

#[cfg(feature = "parquet")]
mod unpack {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::io::{BufWriter, Write};
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex, PoisonError, Weak};

    use parquet::basic::{ConvertedType, Type as Physical};
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::{Row, RowAccessor};
    use parquet::schema::types::Type;
    use tempfile::NamedTempFile;

    use super::{Error, Item, Path, Result};
    use crate::error::at;
    use crate::file_kind::{FileKind, Foreign, file_kind, is_picture};
    use crate::notices::{counted, inform_once, warn_once};
    use crate::samples::PICTURE_NAMES;
    use crate::source::Place;

    /// Maximum number of rows that are inspected to decide whether a column holds pictures.
    const MAX_TRIED: usize = 16;

    /// Pictures of tables that lie in temporary files; both splits share one file.
    static UNPACKED: Mutex<BTreeMap<(PathBuf, String), Known>> = Mutex::new(BTreeMap::new());

    type Known = (Weak<NamedTempFile>, Rows);
    /// Row number, offset and length of each picture.
    type Rows = Vec<(usize, u64, usize)>;

    /// Encoded pictures, one after the other.
    #[derive(Debug)]
    struct Unpacked {
        file: Arc<NamedTempFile>,
        rows: Rows,
    }

    /// Lists the pictures of a table: one per row, from the column that `setting` names, or from the one that is found
    /// to hold them. They are copied to a temporary file (in `TMPDIR`), since a row cannot be read without those around
    /// it.
    ///
    /// # Errors
    /// If it is no table, or has no column of pictures, or several and none of them is the obvious one, or no pictures in
    /// that column.
    pub(crate) fn pictures(table: &Path, setting: &str) -> Result<Vec<Item>> {
        let unpacked = unpacked(table, setting)?;
        let stem = table.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let file: Arc<Path> = table.into();
        let item = |&(row, offset, length): &(usize, u64, usize)| Item {
            file: Arc::clone(&file),
            name: format!("{stem}/{row:08}"),
            place: Place::Part { unpacked: Some(Arc::clone(&unpacked.file)), offset, length },
        };
        Ok(unpacked.rows.iter().map(item).collect())
    }

    fn unpacked(path: &Path, setting: &str) -> Result<Unpacked> {
        let key = (path.canonicalize().map_err(at(path))?, setting.to_owned());
        let mut all = UNPACKED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&key).and_then(|(file, rows)| Some((file.upgrade()?, rows.clone())));
        if let Some((file, rows)) = known {
            return Ok(Unpacked { file, rows });
        }
        let unpacked = Table::open(path)?.unpack(setting)?;
        all.insert(key, (Arc::downgrade(&unpacked.file), unpacked.rows.clone()));
        Ok(unpacked)
    }

    /// An open table.
    struct Table<'a> {
        path: &'a Path,
        reader: SerializedFileReader<File>,
        schema: Type,
    }

    impl<'a> Table<'a> {
        fn open(path: &'a Path) -> Result<Self> {
            let failed = |problem: String| Error::Data { path: path.to_owned(), problem };
            match file_kind(path)? {
                FileKind::Empty => return Err(failed("the file is empty; download or make it again".to_owned())),
                FileKind::Foreign(Foreign { kind, advice }) => {
                    return Err(failed(format!("it is {kind}, not a Parquet table; {advice}")));
                }
                _ => {}
            }
            let damaged = |error| {
                failed(format!("the table cannot be read: {error}. If it was cut off, download or make it again"))
            };
            let reader = SerializedFileReader::new(File::open(path).map_err(at(path))?).map_err(damaged)?;
            let schema = reader.metadata().file_metadata().schema().clone();
            Ok(Self { path, reader, schema })
        }

        fn failed(&self, problem: String) -> Error {
            Error::Data { path: self.path.to_owned(), problem }
        }

        fn damaged(&self, error: &parquet::errors::ParquetError) -> Error {
            self.failed(format!("the table cannot be read: {error}. If it was cut off, download or make it again"))
        }

        /// Passes the rows of one column to `each`, until it returns false.
        fn rows(&self, column: &Arc<Type>, mut each: impl FnMut(usize, &Row) -> Result<bool>) -> Result<()> {
            let projection = Type::group_type_builder(self.schema.name())
                .with_fields(vec![Arc::clone(column)])
                .build()
                .map_err(|error| self.damaged(&error))?;
            let rows = self.reader.get_row_iter(Some(projection)).map_err(|error| self.damaged(&error))?;
            for (number, row) in rows.enumerate() {
                if !each(number, &row.map_err(|error| self.damaged(&error))?)? {
                    break;
                }
            }
            Ok(())
        }

        fn unpack(&self, setting: &str) -> Result<Unpacked> {
            let column = self.column(setting)?;
            let file = NamedTempFile::new().map_err(at(std::env::temp_dir()))?;
            let mut writer = BufWriter::new(&file);
            let (mut rows, mut offset, mut without) = (vec![], 0, vec![]);
            self.rows(&column, |number, row| {
                match bytes(row).filter(|bytes| !bytes.is_empty()) {
                    Some(bytes) => {
                        writer.write_all(bytes).map_err(at(file.path()))?;
                        rows.push((number, offset, bytes.len()));
                        offset += bytes.len() as u64;
                    }
                    None => without.push(number),
                }
                Ok(true)
            })?;
            writer.flush().map_err(at(file.path()))?;
            drop(writer);
            if rows.is_empty() && !without.is_empty() {
                return Err(self.without_bytes(column.name()));
            }
            if let Some(first) = without.first() {
                warn_once(&format!(
                    "{}: {} of {} left out: column {} has no bytes there; the first is row {first}",
                    self.path.display(),
                    without.len(),
                    counted(rows.len() + without.len(), "row"),
                    column.name()
                ));
            }
            Ok(Unpacked { file: Arc::new(file), rows })
        }

        /// Creates the error of a column whose rows are all without bytes, with the first path that it has instead.
        fn without_bytes(&self, column: &str) -> Error {
            let path = self.path_column(column).and_then(|paths| {
                let mut first = None;
                let found = self.rows(&paths, |_, row| {
                    first = row.get_group(0).and_then(|group| group.get_string(0).cloned()).ok();
                    Ok(first.is_none())
                });
                found.ok().and(first)
            });
            self.failed(match path {
                Some(path) => format!(
                    "column {column} has paths, such as {path}, but no pictures: the table was saved without their bytes. \
                     Save it with them (in `datasets`: map(embed_table_storage) before to_parquet), or name the folder of the \
                     files instead"
                ),
                None => format!("column {column} has no pictures: every row of it is empty"),
            })
        }

        fn path_column(&self, column: &str) -> Option<Arc<Type>> {
            let field = self.schema.get_fields().iter().find(|field| field.name() == column)?;
            field.is_group().then(|| narrowed(field, "path")).flatten()
        }

        /// Returns the column of pictures, reduced to its bytes: the one that `setting` names, or the one that is
        /// found.
        fn column(&self, setting: &str) -> Result<Arc<Type>> {
            let fields = self.schema.get_fields();
            let columns: Vec<Arc<Type>> = fields.iter().filter_map(column_of_bytes).collect();
            if !setting.is_empty() {
                let missing = || {
                    let names = names(fields);
                    self.failed(format!(
                        "it has no column {setting} of bytes, which --picture-key names; it has {names}"
                    ))
                };
                return columns.into_iter().find(|column| column.name() == setting).ok_or_else(missing);
            }
            let mut found = vec![];
            for column in columns {
                if self.holds_pictures(&column)? {
                    found.push(column);
                }
            }
            self.obvious(found)
        }

        /// Returns the one of several columns that is named like a picture.
        fn obvious(&self, mut found: Vec<Arc<Type>>) -> Result<Arc<Type>> {
            let (table, listed) = (self.path.display(), names(&found));
            let place = |name: &&str| found.iter().position(|column| column.name() == *name);
            match (found.len(), PICTURE_NAMES.iter().find_map(place)) {
                (0, _) => Err(self.failed(format!(
                    "it has no column of pictures (a struct with bytes, or encoded pictures as bytes); it has {}",
                    names(self.schema.get_fields())
                ))),
                (1, _) => {
                    inform_once(&format!("{table}: pictures are in column {listed}"));
                    Ok(found.swap_remove(0))
                }
                (_, Some(place)) => {
                    let column = found.swap_remove(place);
                    warn_once(&format!(
                        "{table}: the columns {listed} hold pictures; {} is taken, one picture a row (--picture-key COLUMN \
                         takes another)",
                        column.name()
                    ));
                    Ok(column)
                }
                (_, None) => {
                    Err(self.failed(format!("the columns {listed} hold pictures; choose one by --picture-key COLUMN")))
                }
            }
        }

        /// Returns whether the first bytes of a column are pictures. A struct without any may have held some.
        fn holds_pictures(&self, column: &Arc<Type>) -> Result<bool> {
            let (mut found, mut pictures) = (0, 0);
            self.rows(column, |number, row| {
                if let Some(bytes) = bytes(row).filter(|bytes| !bytes.is_empty()) {
                    (found, pictures) = (found + 1, pictures + usize::from(is_picture(bytes)));
                }
                Ok(found < MAX_TRIED && (found > 0 || number < 1000))
            })?;
            let is_named_so = PICTURE_NAMES.contains(&column.name());
            Ok(pictures > 0 || (is_named_so && column.is_primitive()) || (found == 0 && column.is_group()))
        }
    }

    fn names(columns: &[Arc<Type>]) -> String {
        columns.iter().map(|column| column.name()).collect::<Vec<_>>().join(", ")
    }

    /// Returns the part of a column to read if it may hold encoded pictures: bytes that are no text, or a struct with
    /// such bytes.
    fn column_of_bytes(field: &Arc<Type>) -> Option<Arc<Type>> {
        let is_bytes = |field: &Type| {
            field.is_primitive()
                && field.get_physical_type() == Physical::BYTE_ARRAY
                && field.get_basic_info().converted_type() == ConvertedType::NONE
                && field.get_basic_info().logical_type_ref().is_none()
        };
        if field.is_group() {
            let has_bytes = field.get_fields().iter().any(|field| field.name() == "bytes" && is_bytes(field));
            return has_bytes.then(|| narrowed(field, "bytes")).flatten();
        }
        is_bytes(field).then(|| Arc::clone(field))
    }

    /// Reduces a struct to one of its fields.
    fn narrowed(field: &Type, name: &str) -> Option<Arc<Type>> {
        let one: Vec<_> = field.get_fields().iter().filter(|field| field.name() == name).cloned().collect();
        if one.is_empty() {
            return None;
        }
        let repetition = field.get_basic_info().repetition();
        let narrowed = Type::group_type_builder(field.name()).with_repetition(repetition).with_fields(one).build();
        Some(Arc::new(narrowed.ok()?))
    }

    /// Returns the bytes of a row of one column.
    fn bytes(row: &Row) -> Option<&[u8]> {
        let bytes = row.get_group(0).and_then(|group| group.get_bytes(0)).or_else(|_| row.get_bytes(0));
        Some(bytes.ok()?.data())
    }
}
#[cfg(test)]
#[cfg(feature = "parquet")]
mod tests {
    use std::fs::File;
    use std::io::Cursor;
    use std::path::Path;
    use std::sync::Arc;

    use image::{ImageFormat, Rgb, RgbImage};
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use crate::{FindSettings, Pictures, Split};

    /// Writes a table whose rows are gray pictures of these shades; `None` is null.
    fn write(path: &Path, schema: &str, shades: &[Option<u8>]) {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let defined = if schema.get_fields()[0].is_group() { 2 } else { 1 };
        let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let values: Vec<ByteArray> = shades.iter().flatten().map(|shade| png(*shade).into()).collect();
        let levels: Vec<i16> = shades.iter().map(|shade| if shade.is_some() { defined } else { 0 }).collect();
        while let Some(mut column) = group.next_column().unwrap() {
            column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
    }

    fn png(shade: u8) -> Vec<u8> {
        let mut bytes = Cursor::new(vec![]);
        RgbImage::from_pixel(4, 4, Rgb([shade; 3])).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn pictures_of_both_forms_are_read() {
        let settings = FindSettings::default();
        let hugging_face = "message schema { optional group picture { optional binary bytes; optional binary path; } }";
        for (schema, ending) in [(hugging_face, "struct"), ("message schema { optional binary image; }", "plain")] {
            let folder = tempfile::tempdir().unwrap();
            let table = folder.path().join(format!("{ending}.parquet"));
            write(&table, schema, &[Some(10), None, Some(250)]);
            for root in [folder.path(), &table] {
                let pictures = Pictures::find(root, &settings, Split::Train).unwrap();
                // A null is no picture.
                assert_eq!((pictures.len(), pictures.name(1)), (2, format!("{ending}/00000002")));
                let largest = |idx| {
                    pictures
                        .read(idx, crate::PictureFormat::new(1, 4))
                        .unwrap()
                        .max_all()
                        .unwrap()
                        .to_scalar::<f32>()
                        .unwrap()
                };
                assert!((largest(0) - (10. / 127.5 - 1.)).abs() < 1e-6, "{ending}");
                assert!((largest(1) - (250. / 127.5 - 1.)).abs() < 1e-6, "{ending}");
                assert_eq!(pictures.file(0), table);
            }
        }
    }

    #[test]
    fn what_is_no_table_of_pictures_is_named() {
        let settings = FindSettings::default();
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("a.parquet");
        let message = || Pictures::find(folder.path(), &settings, Split::Train).unwrap_err().to_string();
        std::fs::write(&table, b"no table").unwrap();
        assert!(message().contains("cannot be read"), "{}", message());
        write(&table, "message schema { optional binary text (UTF8); }", &[Some(1)]);
        assert!(message().contains("no column of pictures") && message().contains("it has text"), "{}", message());
        std::fs::write(&table, b"").unwrap();
        assert!(message().contains("the file is empty"), "{}", message());
    }

    fn of_fixture(name: &str, key: &str) -> Result<Vec<String>, String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/datasets").join(name);
        let settings = FindSettings { picture_key: key, ..FindSettings::default() };
        let pictures = Pictures::find(&path, &settings, Split::Train).map_err(|error| error.to_string())?;
        (0..pictures.len())
            .for_each(|idx| assert!(pictures.read(idx, crate::PictureFormat::new(3, 16)).is_ok(), "{name} {idx}"));
        Ok((0..pictures.len()).map(|idx| pictures.name(idx)).collect())
    }

    /// Checks tables of `datasets`, polars and pyarrow.
    #[test]
    fn the_column_of_pictures_is_found_or_named() {
        assert_eq!(of_fixture("masks.parquet", "").unwrap().len(), 12);
        assert_eq!(of_fixture("masks.parquet", "mask").unwrap().len(), 12);
        assert_eq!(of_fixture("polars.parquet", "").unwrap().len(), 3);
        assert_eq!(of_fixture("nulls.parquet", "").unwrap().len(), 6);
        assert_eq!(of_fixture("two_views.parquet", "left").unwrap().len(), 2);
        for (name, key, found) in [
            ("two_views.parquet", "", "the columns left, right hold pictures"),
            ("two_views.parquet", "", "--picture-key COLUMN"),
            ("masks.parquet", "depth", "no column depth of bytes"),
            ("paths.parquet", "", "column image has paths, such as /tmp/filetest/pics/p0.png, but no pictures"),
        ] {
            let error = of_fixture(name, key).unwrap_err();
            assert!(error.contains(found), "{error}");
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "parquet"))]
mod tests {
    use crate::{FindSettings, Pictures, Split};

    #[test]
    fn without_the_feature_a_table_is_not_overlooked() {
        let settings = FindSettings::default();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.parquet"), b"").unwrap();
        let error = Pictures::find(folder.path(), &settings, Split::Train).unwrap_err().to_string();
        assert!(error.contains("--features parquet"), "{error}");
        assert!(Pictures::find(&folder.path().join("a.parquet"), &settings, Split::Train).is_err());
    }
}
