//! Features of many pictures in a file: interrupted work can be resumed, and memory does not grow with their number.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use diffae_data::{Fingerprint, Overwrite, Shard, write_atomically};
use diffae_infer::Settings;
use diffae_nets::weights::float_bytes;

use crate::error::{Error, Result, cannot};
use crate::evaluation::Evaluation;
use crate::frechet::FeatureStatistics;
use crate::journal::{of_another, with_software};

/// Number of rows that are read at once.
const CHUNK: usize = 512;
/// Bytes per number.
const NUM_BYTES: usize = size_of::<f32>();

/// Rows of f32 without a header; a JSON file beside it holds the settings that name them.
#[derive(Debug)]
pub(crate) struct FeatureFile {
    path: PathBuf,
    file: File,
    width: usize,
    count: usize,
}

impl FeatureFile {
    /// Opens the features `NAME` of an evaluation or of its shard; see [`FeatureFile::open`].
    pub(crate) fn of(evaluation: &Evaluation<'_>, name: &str, settings: &Settings, width: usize) -> Result<Self> {
        let path = evaluation.file(evaluation.out(), &format!("{name}.features"));
        Self::open(&path, settings, width, evaluation.overwrite())
    }

    /// Opens the features `NAME` that shards of an evaluation have left, each with the rows that it is to have of `count`.
    pub(crate) fn of_shards(
        evaluation: &Evaluation<'_>,
        name: &str,
        (settings, width, count): (&Settings, usize, usize),
    ) -> Result<Vec<(Range<usize>, Self)>> {
        let files = evaluation.files_of_shards(evaluation.out(), &format!("{name}.features"))?;
        let open = |(shard, path): (Shard, PathBuf)| Ok((shard.range(count), Self::read(&path, settings, width)?));
        files.into_iter().map(open).collect()
    }

    /// Opens a file of features; its folder is created if it is missing. An incomplete last row is dropped; features of other
    /// settings are an error. With [`Overwrite::Replace`] the file starts anew.
    fn open(path: &Path, settings: &Settings, width: usize, overwrite: Overwrite) -> Result<Self> {
        let path = path.to_owned();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(cannot("write", folder))?;
        }
        let about = about(&path);
        let known = settings_of(&path);
        let is_empty = fs::metadata(&path).map_or(true, |file| file.len() == 0);
        let settings = with_software(settings);
        if known.as_ref() != Some(&settings) || overwrite == Overwrite::Replace {
            if !is_empty && overwrite == Overwrite::Refuse {
                return Err(match known {
                    Some(known) => of_another(&path, &known, &settings),
                    None => Error::OtherEvaluation { path, difference: String::new() },
                });
            }
            fs::write(&path, []).map_err(cannot("write", &path))?;
            write_atomically(&about, &serde_json::to_vec_pretty(&settings)?, Overwrite::Replace)?;
        }
        let file =
            OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(cannot("write", &path))?;
        let count = count_of(&file, width).map_err(cannot("read", &path))?;
        file.set_len((count * width * NUM_BYTES) as u64).map_err(cannot("write", &path))?;
        Ok(Self { path, file, width, count })
    }

    /// Opens a file of features to read the rows that are complete; another process may still add to it.
    fn read(path: &Path, settings: &Settings, width: usize) -> Result<Self> {
        let known = settings_of(path);
        if known.as_ref() != Some(&with_software(settings)) {
            return Err(of_another(path, &known.unwrap_or_default(), &with_software(settings)));
        }
        let file = File::open(path).map_err(cannot("read", path))?;
        let count = count_of(&file, width).map_err(cannot("read", path))?;
        Ok(Self { path: path.to_owned(), file, width, count })
    }

    /// Returns the number of rows.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Truncates the view to the first `count` rows.
    pub(crate) fn take_first(&mut self, count: usize) {
        self.count = self.count.min(count);
    }

    /// Appends rows, `[N, D]`.
    pub(crate) fn append(&mut self, features: &Tensor) -> Result<()> {
        let values = features.flatten_all()?.to_vec1::<f32>()?;
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::NonFiniteValue {
                name: "a feature".to_owned(),
                item: format!("image {} or later", self.count),
                value: f64::from(*value),
                cause: "the weights of the network or the images are damaged",
            });
        }
        self.file.write_all(&float_bytes(&values)).map_err(cannot("write", &self.path))?;
        self.count += features.dim(0)?;
        Ok(())
    }

    /// Reads some rows, `[N, D]`, in rising order.
    pub(crate) fn rows(&mut self, rows: &[usize]) -> Result<Tensor> {
        let row_bytes = self.width * NUM_BYTES;
        let mut bytes = vec![0; rows.len() * row_bytes];
        for (row, into) in rows.iter().zip(bytes.chunks_mut(row_bytes.max(1))) {
            let read =
                self.file.seek(SeekFrom::Start((row * row_bytes) as u64)).and_then(|_| self.file.read_exact(into));
            read.map_err(cannot("read", &self.path))?;
        }
        let number = |bytes: &[u8]| bytes.first_chunk().map_or(0., |bytes| f32::from_le_bytes(*bytes));
        let values: Vec<f32> = bytes.chunks(NUM_BYTES).map(number).collect();
        Ok(Tensor::from_vec(values, (rows.len(), self.width), &Device::Cpu)?)
    }

    /// Computes mean and scatter of all rows.
    pub(crate) fn statistics(&mut self) -> Result<FeatureStatistics> {
        let all: Vec<usize> = (0..self.count).collect();
        self.statistics_of(&all)
    }

    /// Computes mean and scatter of some rows, which may repeat.
    pub(crate) fn statistics_of(&mut self, rows: &[usize]) -> Result<FeatureStatistics> {
        let mut statistics = FeatureStatistics::new(self.width);
        for rows in rows.chunks(CHUNK) {
            statistics.add(&self.rows(rows)?)?;
        }
        Ok(statistics)
    }
}

/// The file with the settings of features.
fn about(path: &Path) -> PathBuf {
    path.with_added_extension("json")
}

fn settings_of(path: &Path) -> Option<Settings> {
    serde_json::from_slice(&fs::read(about(path)).ok()?).ok()
}

/// Counts the complete rows of a file.
fn count_of(file: &File, width: usize) -> io::Result<usize> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    Ok(length.checked_div(width * NUM_BYTES).unwrap_or(0))
}

/// Returns a checksum of a file.
pub(crate) fn fingerprint_of_file(path: &Path) -> Result<String> {
    let file = File::open(path).map_err(cannot("read", path))?;
    Ok(Fingerprint::new().update_reader(file).map_err(cannot("read", path))?.digits())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(seed: u64) -> Settings {
        Settings::from([("seed".to_owned(), seed.into())])
    }

    #[test]
    fn rows_are_there_again_but_for_a_torn_one() {
        let folder = tempfile::tempdir().unwrap();
        let open =
            |seed, overwrite| FeatureFile::open(&folder.path().join("real.features"), &settings(seed), 3, overwrite);
        let mut file = open(1, Overwrite::Refuse).unwrap();
        let features = Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.], [7., 8., 10.]], &Device::Cpu).unwrap();
        file.append(&features).unwrap();
        drop(file);
        let path = folder.path().join("real.features");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 2]).unwrap();
        let mut file = open(1, Overwrite::Refuse).unwrap();
        assert_eq!(file.count(), 2);
        file.append(&features.narrow(0, 2, 1).unwrap()).unwrap();
        assert_eq!(file.rows(&[0, 2]).unwrap().to_vec2::<f32>().unwrap(), [[1., 2., 3.], [7., 8., 10.]]);
        let moments = file.statistics().unwrap().moments().unwrap();
        assert!((moments.mean[2] - 19. / 3.).abs() < 1e-12);
        assert!(open(2, Overwrite::Refuse).unwrap_err().to_string().contains("of another evaluation"));
        assert_eq!(open(2, Overwrite::Replace).unwrap().count(), 0);
        let mut file = open(2, Overwrite::Refuse).unwrap();
        file.append(&features).unwrap();
        file.take_first(2);
        assert_eq!(file.statistics().unwrap().count(), 2);
        drop(file);
        assert_eq!(open(2, Overwrite::Refuse).unwrap().count(), 3);
        let nan = Tensor::new(&[[f32::NAN, 0., 0.]], &Device::Cpu).unwrap();
        assert!(open(2, Overwrite::Refuse).unwrap().append(&nan).is_err());
    }
}
