//! Codes as a table, for data frames, statistics and databases: Parquet or CSV.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Error;
use crate::files::{Overwrite, write_atomically_with};

/// Rows of a table of codes.
#[derive(Debug, Clone)]
pub struct CodeRows {
    /// Names of the pictures.
    pub names: Vec<String>,
    /// `z_sem` of each picture, one after the other.
    pub z_sem: Vec<f32>,
}

/// Returns whether a file is one of those that [`write_code_table`] writes, by the ending of its name.
#[must_use]
pub fn is_code_table(path: &Path) -> bool {
    is_csv(path) || ends_in(path, "parquet")
}

fn is_csv(path: &Path) -> bool {
    ends_in(path, "csv")
}

fn ends_in(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(ending))
}

/// Writes a table of codes, by the ending of the name.
///
/// Parquet: columns `name` (string), `z_sem` (list of `width` f32, of fixed size where readers know that) and `fingerprint`
/// (string, of the model); `text` becomes key-value metadata; rows are written in groups of 65,536. CSV: columns `name` and `z_0` to
/// `z_(width - 1)`, with as many digits as tell f32 apart.
///
/// # Errors
/// [`Error::Data`] if rows do not fit the width, or this crate is built without Parquet; [`Error::Exists`] or [`Error::Io`] if
/// the file cannot be written; that of `rows`.
pub fn write_code_table<E: From<Error>>(
    to: (&Path, Overwrite),
    columns: (usize, &str),
    text: &BTreeMap<String, String>,
    rows: impl IntoIterator<Item = std::result::Result<CodeRows, E>>,
) -> std::result::Result<(), E> {
    if is_csv(to.0) { write_csv(to, columns.0, rows) } else { pack::write(to, columns, text, rows) }
}

/// Writes a CSV.
fn write_csv<E: From<Error>>(
    (path, overwrite): (&Path, Overwrite),
    width: usize,
    rows: impl IntoIterator<Item = std::result::Result<CodeRows, E>>,
) -> std::result::Result<(), E> {
    let problem = |error: &dyn std::error::Error| Error::Data { path: path.to_owned(), problem: error.to_string() };
    write_atomically_with(path, overwrite, |file| {
        let mut table = csv::Writer::from_writer(file);
        let header = std::iter::once("name".to_owned()).chain((0..width).map(|idx| format!("z_{idx}")));
        table.write_record(header).map_err(|error| problem(&error))?;
        for rows in rows {
            let CodeRows { names, z_sem } = rows?;
            if z_sem.len() != names.len() * width {
                let problem = format!("{} codes with {} values, expected {width} each", names.len(), z_sem.len());
                return Err(Error::Data { path: path.to_owned(), problem }.into());
            }
            for (name, code) in names.iter().zip(z_sem.chunks(width.max(1))) {
                let record = std::iter::once(name.clone()).chain(code.iter().map(ToString::to_string));
                table.write_record(record).map_err(|error| problem(&error))?;
            }
        }
        table.flush().map_err(|error| problem(&error))?;
        Ok(())
    })
}

#[cfg(not(feature = "parquet"))]
mod pack {
    use super::{BTreeMap, CodeRows, Error, Overwrite, Path};

    /// Fails: this build has no Parquet support.
    ///
    /// # Errors
    /// Always.
    pub(super) fn write<E: From<Error>>(
        (path, _): (&Path, Overwrite),
        _: (usize, &str),
        _: &BTreeMap<String, String>,
        _: impl IntoIterator<Item = std::result::Result<CodeRows, E>>,
    ) -> std::result::Result<(), E> {
        crate::tables::pictures(path, "").map(drop).map_err(E::from)
    }
}

#[cfg(feature = "parquet")]
mod pack {
    use std::fs::File;
    use std::sync::Arc;

    use arrow_array::{FixedSizeListArray, Float32Array, RecordBatch, StringArray};
    use arrow_schema::{ArrowError, DataType, Field, Schema};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::errors::ParquetError;
    use parquet::file::metadata::KeyValue;
    use parquet::file::properties::WriterProperties;
    use parquet::schema::types::ColumnPath;

    use super::{BTreeMap, CodeRows, Error, Overwrite, Path, write_atomically_with};

    /// Writes the table, see [`write_code_table`](super::write_code_table).
    ///
    /// # Errors
    /// If rows do not fit, or the file cannot be written; that of `rows`.
    pub(super) fn write<E: From<Error>>(
        (path, overwrite): (&Path, Overwrite),
        (width, fingerprint): (usize, &str),
        text: &BTreeMap<String, String>,
        rows: impl IntoIterator<Item = std::result::Result<CodeRows, E>>,
    ) -> std::result::Result<(), E> {
        let problem = |problem: String| Error::Data { path: path.to_owned(), problem };
        write_atomically_with(path, overwrite, |file| {
            let table = Table::new(width, fingerprint).map_err(problem)?;
            let mut writer = table.writer(file, text).map_err(|error| problem(error.to_string()))?;
            for rows in rows {
                let batch = table.batch(rows?).map_err(|error| problem(error.to_string()))?;
                writer.write(&batch).map_err(|error| problem(error.to_string()))?;
            }
            writer.close().map_err(|error| problem(error.to_string()))?;
            Ok(())
        })
    }

    /// Maximum number of rows in memory: 128 MiB of codes of 512 values.
    const MAX_GROUP_ROWS: usize = 1 << 16;

    /// The columns of a table.
    struct Table<'a> {
        item: Arc<Field>,
        width: i32,
        fingerprint: &'a str,
        schema: Arc<Schema>,
    }

    impl<'a> Table<'a> {
        fn new(width: usize, fingerprint: &'a str) -> std::result::Result<Self, String> {
            let width = i32::try_from(width).map_err(|_overflow| format!("z_sem has {width} values"))?;
            let item = Arc::new(Field::new("item", DataType::Float32, false));
            let schema = Arc::new(Schema::new(vec![
                Field::new("name", DataType::Utf8, false),
                Field::new("z_sem", DataType::FixedSizeList(Arc::clone(&item), width), false),
                Field::new("fingerprint", DataType::Utf8, false),
            ]));
            Ok(Self { item, width, fingerprint, schema })
        }

        fn writer<'b>(
            &self,
            file: &'b mut File,
            text: &BTreeMap<String, String>,
        ) -> std::result::Result<ArrowWriter<&'b mut File>, ParquetError> {
            let text = text.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
            let z_sem = ColumnPath::from(vec!["z_sem".to_owned(), "list".to_owned(), "item".to_owned()]);
            let properties = WriterProperties::builder()
                // A row group is in memory until it is whole.
                .set_max_row_group_row_count(Some(MAX_GROUP_ROWS))
                .set_compression(Compression::ZSTD(ZstdLevel::default()))
                // No value of a code comes twice.
                .set_column_dictionary_enabled(z_sem, false)
                .set_key_value_metadata(Some(text.collect()));
            ArrowWriter::try_new(file, Arc::clone(&self.schema), Some(properties.build()))
        }

        fn batch(&self, CodeRows { names, z_sem }: CodeRows) -> std::result::Result<RecordBatch, ArrowError> {
            let count = names.len();
            let values = Arc::new(Float32Array::from(z_sem));
            let z_sem = FixedSizeListArray::try_new(Arc::clone(&self.item), self.width, values, None)?;
            let names = StringArray::from(names);
            let fingerprints = StringArray::from(vec![self.fingerprint; count]);
            RecordBatch::try_new(
                Arc::clone(&self.schema),
                vec![Arc::new(names), Arc::new(z_sem), Arc::new(fingerprints)],
            )
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::code_table::write_code_table;
        use crate::error::Result;
        use parquet::file::reader::{FileReader, SerializedFileReader};
        use parquet::record::{ListAccessor, RowAccessor};

        #[test]
        fn rows_are_read_back_by_a_reader_of_rows() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("codes.parquet");
            let rows = |first: usize, count: usize| {
                let names = (first..first + count).map(|idx| format!("{idx}.png")).collect();
                let z_sem = (first * 3..(first + count) * 3).map(|value| value as f32 / 7.).collect();
                Ok::<_, Error>(CodeRows { names, z_sem })
            };
            let text = BTreeMap::from([("diffae:steps".to_owned(), "10".to_owned())]);
            let write =
                |rows: Vec<Result<CodeRows>>, overwrite| write_code_table((&path, overwrite), (3, "abc"), &text, rows);
            write(vec![rows(0, 4), rows(4, 2)], Overwrite::Refuse).unwrap();
            let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
            let all: Vec<_> = reader.get_row_iter(None).unwrap().map(|row| row.unwrap()).collect();
            assert_eq!(all.len(), 6);
            for (idx, row) in all.iter().enumerate() {
                assert_eq!(
                    (row.get_string(0).unwrap(), row.get_string(2).unwrap()),
                    (&format!("{idx}.png"), &"abc".to_owned())
                );
                let z_sem = row.get_list(1).unwrap();
                let values: Vec<f32> = (0..3).map(|at| z_sem.get_float(at).unwrap()).collect();
                assert_eq!(values, (idx * 3..idx * 3 + 3).map(|value| value as f32 / 7.).collect::<Vec<_>>());
            }
            let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap();
            assert!(metadata.iter().any(|entry| entry.key == "diffae:steps" && entry.value.as_deref() == Some("10")));
            assert!(matches!(write(vec![], Overwrite::Refuse), Err(Error::Exists { .. })));
            let short = CodeRows { names: vec!["a".to_owned()], z_sem: vec![1.; 2] };
            assert!(matches!(write(vec![Ok(short)], Overwrite::Replace), Err(Error::Data { .. })));
            // What was there is still there.
            assert_eq!(
                SerializedFileReader::new(File::open(&path).unwrap()).unwrap().metadata().file_metadata().num_rows(),
                6
            );
        }
    }
}
