//! Mean and covariance of features, and the files that other programs keep them in.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use faer::Mat;

use crate::error::{Error, Result};

/// Names of the arrays in a file.
const MEAN: &str = "mu";
const COVARIANCE: &str = "sigma";
/// An array of ours, which pytorch-fid passes over.
const COUNT: &str = "count";

/// Mean and covariance of a set of features.
#[derive(Debug, Clone)]
pub struct Moments {
    /// How many features they are of, if that is known.
    pub count: Option<usize>,
    /// `[D]`
    pub mean: Vec<f64>,
    /// `[D, D]`, divided by n - 1.
    pub covariance: Mat<f64>,
}

impl Moments {
    /// Reads a `.npz` file with the arrays `mu` and `sigma`, as pytorch-fid writes them.
    ///
    /// # Errors
    /// [`Error::StatisticsFile`] if it cannot be read or holds something else, [`Error::NotFinite`].
    pub fn read_npz(path: &Path) -> Result<Self> {
        let failed = |problem: String| Error::StatisticsFile { path: PathBuf::from(path), problem };
        let read = |name: &str| {
            let arrays = Tensor::read_npz_by_name(path, &[name]).map_err(|error| failed(error.to_string()))?;
            let array = arrays.into_iter().next().ok_or_else(|| failed(format!("there is no array {name}")))?;
            array.to_dtype(DType::F64).map_err(|error| failed(error.to_string()))
        };
        let (mean, covariance) = (read(MEAN)?, read(COVARIANCE)?);
        let width = mean.elem_count();
        if mean.dims() != [width] || covariance.dims() != [width, width] {
            let (mean, covariance) = (mean.dims(), covariance.dims());
            return Err(failed(format!("mu has shape {mean:?} and sigma {covariance:?}, expected [D] and [D, D]")));
        }
        let mean = mean.to_vec1::<f64>()?;
        let rows = covariance.to_vec2::<f64>()?;
        if !mean.iter().chain(rows.iter().flatten()).all(|value| value.is_finite()) {
            return Err(Error::NotFinite { batch: "statistics" });
        }
        let count = read(COUNT).ok().and_then(|count| count.flatten_all().ok()?.to_vec1::<f64>().ok());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count is small and not negative"
        )]
        let count = count.and_then(|count| count.first().map(|&count| count as usize));
        Ok(Self { count, mean, covariance: Mat::from_fn(width, width, |i, j| rows[i][j]) })
    }

    /// Writes such a file.
    ///
    /// # Errors
    /// [`Error::StatisticsFile`] if it cannot be written.
    pub fn write_npz(&self, path: &Path) -> Result<()> {
        let width = self.mean.len();
        let values: Vec<f64> =
            (0..width).flat_map(|i| (0..width).map(move |j| (i, j))).map(|at| self.covariance[at]).collect();
        let mean = Tensor::from_slice(&self.mean, width, &Device::Cpu)?;
        let covariance = Tensor::from_vec(values, (width, width), &Device::Cpu)?;
        let mut arrays = vec![(MEAN, mean), (COVARIANCE, covariance)];
        if let Some(count) = self.count {
            arrays.push((COUNT, Tensor::new(&[count as f64], &Device::Cpu)?));
        }
        let written = Tensor::write_npz(&arrays, path);
        written.map_err(|error| Error::StatisticsFile { path: PathBuf::from(path), problem: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_numpy_and_our_own_are_read() {
        // np.savez_compressed(path, mu=[1.5, -2], sigma=[[2, 0.5], [0.5, 3]])
        let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "statistics.npz"].iter().collect();
        let moments = Moments::read_npz(&path).unwrap();
        assert_eq!((moments.count, &moments.mean[..]), (None, &[1.5, -2.][..]));
        assert_eq!(moments.covariance, Mat::from_fn(2, 2, |i, j| [[2., 0.5], [0.5, 3.]][i][j]));
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.npz");
        let moments = Moments { count: Some(7), ..moments };
        moments.write_npz(&copy).unwrap();
        let read = Moments::read_npz(&copy).unwrap();
        assert_eq!((read.count, &read.mean), (Some(7), &moments.mean));
        assert_eq!(read.covariance, moments.covariance);
    }

    #[test]
    fn other_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.npz");
        assert!(Moments::read_npz(&path).unwrap_err().to_string().contains("other.npz"));
        std::fs::write(&path, "text").unwrap();
        assert!(matches!(Moments::read_npz(&path), Err(Error::StatisticsFile { .. })));
        let flat = Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap();
        Tensor::write_npz(&[("mu", flat.clone()), ("sigma", flat)], &path).unwrap();
        assert!(Moments::read_npz(&path).unwrap_err().to_string().contains("expected [D] and [D, D]"));
    }
}
