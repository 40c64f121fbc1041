//! Two image batches that may be compared: every requirement of a measure is checked here, once.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Two equally shaped, non-empty batches of images whose values are all in `[0, 1]`, on the host.
#[derive(Debug)]
pub(crate) struct ImagePairs {
    x: Vec<f32>,
    y: Vec<f32>,
    num_channels: usize,
    height: usize,
    width: usize,
}

impl ImagePairs {
    /// Reads and checks both batches.
    ///
    /// # Shapes
    /// - `x`, `y`: `[N, C, H, W]`, or volumes, `[N, C, D, H, W]`, whose slices are channels here; f32, in `[0, 1]`.
    ///
    /// # Errors
    /// Every variant of [`Error`]; of several faults, one of the shape is reported before one of the values, and
    /// one of `x` before one of `y`.
    pub(crate) fn new(x: &Tensor, y: &Tensor) -> Result<Self> {
        for (batch, tensor) in [("x", x), ("y", y)] {
            if !matches!(tensor.rank(), 4 | 5) {
                return Err(Error::Rank { batch, got: tensor.dims().to_vec() });
            }
            if tensor.dtype() != DType::F32 {
                return Err(Error::DType { batch, got: tensor.dtype() });
            }
        }
        if x.dims() != y.dims() {
            return Err(Error::ShapeMismatch { x: x.dims().to_vec(), y: y.dims().to_vec() });
        }
        if x.elem_count() == 0 {
            return Err(Error::Empty { shape: x.dims().to_vec() });
        }
        let &[_, ref channels @ .., height, width] = x.dims() else {
            return Err(Error::Rank { batch: "x", got: x.dims().to_vec() });
        };
        let num_channels: usize = channels.iter().product();
        let num_values = num_channels * height * width;
        Ok(Self { x: read("x", x, num_values)?, y: read("y", y, num_values)?, num_channels, height, width })
    }

    /// Applies `measure` to each pair of images, in parallel; results are in the order of the batch.
    pub(crate) fn map_images(&self, measure: impl Fn(&[f32], &[f32]) -> f64 + Sync) -> Vec<f64> {
        self.map_chunks(self.num_channels * self.height * self.width, measure)
    }

    /// Applies `measure` to each pair of channel planes, in parallel, and averages over the channels of an image.
    pub(crate) fn map_planes(&self, measure: impl Fn(&[f32], &[f32]) -> f64 + Sync) -> Vec<f64> {
        let of_planes = self.map_chunks(self.height * self.width, measure);
        let mean = |planes: &[f64]| planes.iter().sum::<f64>() / planes.len() as f64;
        of_planes.chunks_exact(self.num_channels).map(mean).collect()
    }

    /// Number of rows of an image.
    pub(crate) fn height(&self) -> usize {
        self.height
    }

    /// Length of an image row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    fn map_chunks(&self, num_values: usize, measure: impl Fn(&[f32], &[f32]) -> f64 + Sync) -> Vec<f64> {
        let pairs = self.x.par_chunks_exact(num_values).zip(self.y.par_chunks_exact(num_values));
        pairs.map(|(x, y)| measure(x, y)).collect()
    }
}

/// Checks that a batch is `[N, C, H, W]`, f32, not empty and in `[0, 1]`.
pub(crate) fn check_unit_range(batch: &'static str, x: &Tensor) -> Result<()> {
    if x.rank() != 4 {
        return Err(Error::Rank { batch, got: x.dims().to_vec() });
    }
    if x.dtype() != DType::F32 {
        return Err(Error::DType { batch, got: x.dtype() });
    }
    if x.elem_count() == 0 {
        return Err(Error::Empty { shape: x.dims().to_vec() });
    }
    let num_values: usize = x.dims().iter().skip(1).product();
    read(batch, x, num_values).map(|_| ())
}

fn read(batch: &'static str, tensor: &Tensor, num_values_per_image: usize) -> Result<Vec<f32>> {
    let values = tensor
        .flatten_all()
        .and_then(|flat| flat.to_vec1::<f32>())
        .map_err(|source| Error::Tensor { batch, source })?;
    for (image_idx, image) in values.chunks_exact(num_values_per_image).enumerate() {
        // `contains` is false for NaN too.
        if let Some(&value) = image.iter().find(|value| !(0. ..=1.).contains(*value)) {
            return Err(if value.is_finite() {
                Error::ValueOutOfRange { batch, image_idx, value }
            } else {
                Error::NonFinite { batch, image_idx, value }
            });
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn images(shape: (usize, usize, usize, usize)) -> Tensor {
        Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
    }

    /// Two images of 1x1x2 pixels, all zero but for one value of the second.
    fn with_value(value: f32) -> Tensor {
        Tensor::from_vec(vec![0., 0., 0., value], (2, 1, 1, 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn planes_are_averaged_image_by_image() {
        let x = Tensor::from_vec(vec![0f32, 0.25, 0.5, 1.], (2, 2, 1, 1), &Device::Cpu).unwrap();
        let pairs = ImagePairs::new(&x, &x).unwrap();
        assert_eq!(pairs.map_planes(|x, _| f64::from(x[0])), [0.125, 0.75]);
        assert_eq!(pairs.map_images(|x, _| f64::from(x[1])), [0.25, 1.]);
    }

    #[test]
    fn strided_tensors_are_read_in_logical_order() {
        let x = Tensor::from_vec(vec![0f32, 0.25, 0.5, 1.], (1, 1, 2, 2), &Device::Cpu).unwrap();
        let pairs = ImagePairs::new(&x.transpose(2, 3).unwrap(), &x).unwrap();
        assert_eq!(pairs.x, [0., 0.5, 0.25, 1.]);
    }

    #[test]
    fn a_missing_axis_is_refused() {
        let error = ImagePairs::new(&images((1, 1, 2, 2)), &images((1, 1, 2, 2)).squeeze(0).unwrap()).unwrap_err();
        assert!(matches!(&error, Error::Rank { batch: "y", got } if *got == [1, 2, 2]), "{error:?}");
    }

    #[test]
    fn different_shapes_are_refused() {
        let error = ImagePairs::new(&images((1, 1, 2, 3)), &images((1, 1, 3, 2))).unwrap_err();
        assert_eq!(error.to_string(), "image batches differ in shape: x has [1, 1, 2, 3], y has [1, 1, 3, 2]");
    }

    #[test]
    fn an_empty_axis_is_refused() {
        for shape in [(0, 3, 4, 4), (1, 0, 4, 4), (1, 3, 0, 4), (1, 3, 4, 0)] {
            let error = ImagePairs::new(&images(shape), &images(shape)).unwrap_err();
            assert!(matches!(error, Error::Empty { .. }), "{error:?}");
        }
    }

    #[test]
    fn another_dtype_is_refused() {
        let error = ImagePairs::new(&images((1, 1, 1, 1)), &images((1, 1, 1, 1)).to_dtype(DType::F64).unwrap());
        assert!(matches!(error, Err(Error::DType { batch: "y", got: DType::F64 })), "{error:?}");
    }

    #[test]
    fn non_finite_values_are_refused_with_their_image() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = ImagePairs::new(&with_value(0.), &with_value(value)).unwrap_err();
            assert!(matches!(error, Error::NonFinite { batch: "y", image_idx: 1, .. }), "{error:?}");
        }
    }

    #[test]
    fn values_outside_the_unit_interval_are_refused() {
        for value in [-0.5, 1.000_001] {
            let error = ImagePairs::new(&with_value(value), &with_value(0.)).unwrap_err();
            assert_eq!(error.to_string(), format!("image 1 of batch x holds {value}, expected values in [0, 1]"));
        }
    }
}
