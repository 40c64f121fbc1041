//! Mean and covariance of features, and the `.npz` files that store them.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use diffae_data::NpzFile;
use faer::Mat;

use crate::error::{Error, Result};

/// Name of the mean's array in a `.npz` file, as in pytorch-fid's files.
const MEAN: &str = "mu";
const COVARIANCE: &str = "sigma";
/// Name of the array that holds the number of features; pytorch-fid ignores it.
const COUNT: &str = "count";

/// Mean and covariance of a set of features.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Number of features, if it is known.
    pub count: Option<usize>,
    /// `[D]`
    pub mean: Vec<f64>,
    /// `[D, D]`, divided by n - 1.
    pub covariance: Mat<f64>,
}

impl Moments {
    /// Reads a `.npz` file with the arrays `mu` `[D]` and `sigma` `[D, D]`, as pytorch-fid writes them: f64, f32 or f16, any
    /// byte order, C or Fortran order, compressed or not.
    ///
    /// # Errors
    /// [`Error::StatisticsFile`] if it cannot be read, or lacks an array, or holds other shapes or values that are not finite.
    pub fn read_npz(path: &Path) -> Result<Self> {
        let failed = |problem: String| Error::StatisticsFile { path: PathBuf::from(path), problem };
        let unread = |error: diffae_data::Error| match error {
            diffae_data::Error::Array { problem, .. } => failed(problem),
            other => other.into(),
        };
        let mut file = NpzFile::open(path).map_err(unread)?;
        let names = file.names();
        let mut read = |name: &str| {
            let lacks = || {
                let there = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
                failed(format!("there is no array {name}; expected {MEAN} [D] and {COVARIANCE} [D, D], got {there}"))
            };
            file.read(name).map_err(unread)?.ok_or_else(lacks)
        };
        let (mean, covariance) = (read(MEAN)?, read(COVARIANCE)?);
        let count = read(COUNT).ok().and_then(|count| count.values.first().copied());
        let width = mean.values.len();
        if mean.shape != [width] || covariance.shape != [width, width] {
            let [mean, covariance] = [mean, covariance].map(|array| match array.shape[..] {
                [] => "is a scalar".to_owned(),
                _ => format!("has shape {:?}", array.shape),
            });
            return Err(failed(format!("mu {mean} and sigma {covariance}, expected [D] and [D, D]")));
        }
        if width == 0 {
            return Err(failed("mu and sigma are empty".to_owned()));
        }
        if !mean.values.iter().chain(&covariance.values).all(|value| value.is_finite()) {
            return Err(failed("mu or sigma holds NaN or infinity".to_owned()));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count is small and not negative"
        )]
        let count = count.map(|count| count as usize);
        let covariance = Mat::from_fn(width, width, |i, j| covariance.values[i * width + j]);
        Ok(Self { count, mean: mean.values, covariance })
    }

    /// Writes a `.npz` file that [`Moments::read_npz`] reads.
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
    use candle_core::DType;

    use super::*;

    #[test]
    fn files_of_numpy_and_our_own_are_read() {
        // np.savez_compressed(path, mu=[1.5, -2], sigma=[[2, 0.5], [0.5, 3]])
        let moments = Moments::read_npz(&fixture("statistics.npz")).unwrap();
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

    fn fixture(name: &str) -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", name].iter().collect()
    }

    #[test]
    fn memory_order_and_byte_order_do_not_matter() {
        // np.savez(path, mu=np.zeros(4), sigma=np.asfortranarray(np.arange(16.).reshape(4, 4)))
        let fortran = Moments::read_npz(&fixture("fortran_order.npz")).unwrap();
        assert_eq!(fortran.covariance, Mat::from_fn(4, 4, |i, j| (4 * i + j) as f64));
        // np.savez(path, mu=np.zeros(4, ">f8"), sigma=np.eye(4, dtype=">f8"))
        let big_endian = Moments::read_npz(&fixture("big_endian.npz")).unwrap();
        assert_eq!((big_endian.mean, big_endian.covariance), (vec![0.; 4], Mat::identity(4, 4)));
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
        let scalar = Tensor::new(1_f64, &Device::Cpu).unwrap();
        Tensor::write_npz(&[("mu", scalar.clone()), ("sigma", scalar)], &path).unwrap();
        assert!(Moments::read_npz(&path).unwrap_err().to_string().contains("mu is a scalar"));
        let nan = Tensor::full(f64::NAN, 1, &Device::Cpu).unwrap();
        Tensor::write_npz(&[("mu", nan.clone()), ("sigma", nan.reshape((1, 1)).unwrap())], &path).unwrap();
        assert!(Moments::read_npz(&path).unwrap_err().to_string().contains("holds NaN"));
        Tensor::write_npz(&[("features", nan)], &path).unwrap();
        assert!(Moments::read_npz(&path).unwrap_err().to_string().contains("no array mu; expected mu [D]"));
    }
}
