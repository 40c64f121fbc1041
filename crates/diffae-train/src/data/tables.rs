//! Pictures in Parquet files, as Hugging Face data sets store them: a column of structs with `bytes` and `path`, or a
//! column of bytes.

use std::path::PathBuf;

use super::folder::Item;
use crate::error::{Error, Result};

/// How names of tables end.
pub(super) const EXTENSION: &str = "parquet";

/// Pictures of tables, laid out so that each can be read alone.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    pub(super) items: Vec<Item>,
    /// Rows that were seen, wanted or not.
    pub(super) num_rows: usize,
    /// What the items point into.
    #[cfg(feature = "parquet")]
    pub(super) files: Vec<std::sync::Arc<tempfile::NamedTempFile>>,
}

#[cfg(not(feature = "parquet"))]
impl Unpacked {
    /// Says what is missing if there are tables.
    pub(super) fn new(tables: &[PathBuf], _: &impl Fn(&str) -> bool) -> Result<Self> {
        let problem = || "this program is built without Parquet; build it with --features parquet".to_owned();
        tables
            .first()
            .map_or_else(|| Ok(Self::default()), |path| Err(Error::Data { path: path.clone(), problem: problem() }))
    }
}

#[cfg(feature = "parquet")]
mod unpack {
    use std::fs::File;
    use std::io::{BufWriter, Write};
    use std::path::Path;
    use std::sync::Arc;

    use parquet::basic::Type as Physical;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Row;
    use parquet::record::RowAccessor;
    use parquet::schema::types::Type;

    use super::{Error, Item, PathBuf, Result, Unpacked};
    use crate::data::folder::Place;
    use crate::error::at;

    /// Names of columns that hold pictures as plain bytes.
    const PLAIN_COLUMNS: [&str; 3] = ["image", "img", "jpg"];

    impl Unpacked {
        /// Copies the pictures of the wanted names into temporary files (in `TMPDIR`), as they are encoded: a row of a
        /// table cannot be read without those around it.
        pub(in crate::data) fn new(tables: &[PathBuf], wanted: &impl Fn(&str) -> bool) -> Result<Self> {
            let mut unpacked = Self::default();
            for table in tables {
                unpacked.add(table, wanted)?;
            }
            Ok(unpacked)
        }

        fn add(&mut self, table: &Path, wanted: &impl Fn(&str) -> bool) -> Result<()> {
            let failed = |problem: String| Error::Data { path: table.to_owned(), problem };
            let damaged = |error: parquet::errors::ParquetError| failed(format!("it cannot be read: {error}"));
            let reader = SerializedFileReader::new(File::open(table).map_err(at(table))?).map_err(damaged)?;
            let schema = reader.metadata().file_metadata().schema().clone();
            let column = picture_column(&schema)
                .ok_or_else(|| failed("it has no column of pictures (a struct with bytes, or image)".to_owned()))?;
            let projection = Type::group_type_builder(schema.name())
                .with_fields(vec![Arc::clone(&column)])
                .build()
                .map_err(damaged)?;
            let stem = table.file_stem().unwrap_or_default().to_string_lossy().into_owned();

            let file = tempfile::NamedTempFile::new().map_err(at(&std::env::temp_dir()))?;
            let mut writer = BufWriter::new(&file);
            let mut offset = 0;
            for (number, row) in reader.get_row_iter(Some(projection)).map_err(damaged)?.enumerate() {
                let row = row.map_err(damaged)?;
                self.num_rows += 1;
                let name = format!("{stem}/{number:08}");
                if !wanted(&name) {
                    continue;
                }
                // What is null becomes a picture that cannot be read, which training counts and leaves out.
                let bytes = encoded(&row).unwrap_or_default();
                writer.write_all(&bytes).map_err(at(file.path()))?;
                let place = Place::Part { offset, length: bytes.len() };
                self.items.push(Item { file: file.path().to_owned(), name, place });
                offset += bytes.len() as u64;
            }
            writer.flush().map_err(at(file.path()))?;
            drop(writer);
            self.files.push(Arc::new(file));
            Ok(())
        }
    }

    /// The column of pictures.
    fn picture_column(schema: &Type) -> Option<Arc<Type>> {
        let is_bytes = |field: &Type| field.is_primitive() && field.get_physical_type() == Physical::BYTE_ARRAY;
        let is_picture =
            |field: &Type| field.is_group() && field.get_fields().iter().any(|f| f.name() == "bytes" && is_bytes(f));
        let fields = schema.get_fields();
        let of_structs = fields.iter().find(|field| is_picture(field)).and_then(|field| {
            let bytes: Vec<_> = field.get_fields().iter().filter(|f| f.name() == "bytes").cloned().collect();
            let repetition = field.get_basic_info().repetition();
            let narrowed =
                Type::group_type_builder(field.name()).with_repetition(repetition).with_fields(bytes).build();
            Some(Arc::new(narrowed.ok()?))
        });
        let plain = || fields.iter().find(|field| PLAIN_COLUMNS.contains(&field.name()) && is_bytes(field));
        of_structs.or_else(|| plain().map(Arc::clone))
    }

    fn encoded(row: &Row) -> Option<Vec<u8>> {
        let bytes = row.get_group(0).and_then(|group| group.get_bytes(0)).or_else(|_| row.get_bytes(0));
        Some(bytes.ok()?.data().to_vec())
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

    use crate::data::{Pictures, Split};

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
        let settings = crate::presets::config("smoke", &["data.validation_share=0".to_owned()]).unwrap().data;
        let hugging_face = "message schema { optional group picture { optional binary bytes; optional binary path; } }";
        for (schema, ending) in [(hugging_face, "struct"), ("message schema { optional binary image; }", "plain")] {
            let folder = tempfile::tempdir().unwrap();
            let table = folder.path().join(format!("{ending}.parquet"));
            write(&table, schema, &[Some(10), None, Some(250)]);
            for root in [folder.path(), &table] {
                let pictures = Pictures::find(root, &settings, Split::Train).unwrap();
                assert_eq!((pictures.len(), pictures.name(2)), (3, format!("{ending}/00000002")));
                let largest = |idx| pictures.read(idx, 1, 4).unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!((largest(0) - (10. / 127.5 - 1.)).abs() < 1e-6, "{ending}");
                assert!((largest(2) - (250. / 127.5 - 1.)).abs() < 1e-6, "{ending}");
                assert!(pictures.read(1, 1, 4).is_err(), "a null is no picture");
                let unpacked = pictures.file(0).to_owned();
                assert!(unpacked.exists());
                drop(pictures);
                assert!(!unpacked.exists(), "what was unpacked goes with the last reader");
            }
        }
    }

    #[test]
    fn what_is_no_table_of_pictures_is_named() {
        let settings = crate::presets::config("smoke", &[]).unwrap().data;
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("a.parquet");
        let message = || Pictures::find(folder.path(), &settings, Split::Train).unwrap_err().to_string();
        std::fs::write(&table, b"no table").unwrap();
        assert!(message().contains("cannot be read"), "{}", message());
        write(&table, "message schema { optional binary text; }", &[Some(1)]);
        assert!(message().contains("no column of pictures"), "{}", message());
    }
}

#[cfg(test)]
#[cfg(not(feature = "parquet"))]
mod tests {
    use crate::data::{Pictures, Split};

    #[test]
    fn without_the_feature_a_table_is_not_overlooked() {
        let settings = crate::presets::config("smoke", &[]).unwrap().data;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.parquet"), b"").unwrap();
        let error = Pictures::find(folder.path(), &settings, Split::Train).unwrap_err().to_string();
        assert!(error.contains("--features parquet"), "{error}");
        assert!(Pictures::find(&folder.path().join("a.parquet"), &settings, Split::Train).is_err());
    }
}
