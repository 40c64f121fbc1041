//! Max pooling over 2x2 windows.

use candle_core::{Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::operation::{Operation, View, apply};

/// Downsamples images by a factor of two with maxima over disjoint 2x2 windows; an odd row or column at the end is left out.
///
/// `y[.., i, j] = max of x[.., 2i..2i+2, 2j..2j+2]`. The gradient goes to the first maximum of a window, in the order of rows,
/// as in `PyTorch`.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`; result: `[N, C, H/2, W/2]`, rounded down.
/// # Errors
/// If `x` does not have four axes, or a side is below 2.
pub fn max_pool_2x(x: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if h < 2 || w < 2 {
        bail!("2x2 maximum needs sides of at least 2, got {h}x{w}")
    }
    apply([x], MaxPool)
}

/// The maximum of a 2x2 window.
struct MaxPool;

/// Returns the places of a window's elements in a plane of width `w`, in the order of rows.
fn window(row: usize, column: usize, w: usize) -> [usize; 4] {
    let first = 2 * row * w + 2 * column;
    [first, first + 1, first + w, first + w + 1]
}

/// Returns the place of the first maximum of a window. NaN counts as larger than all numbers, as in `PyTorch`.
fn first_max(x: &[f32], places: [usize; 4]) -> usize {
    let mut best = places[0];
    for place in places {
        if x[place] > x[best] || (x[place].is_nan() && !x[best].is_nan()) {
            best = place;
        }
    }
    best
}

/// Returns the four elements of each window as tensors of the size of the result, in the order of rows.
fn parts(x: &Tensor) -> Result<[Tensor; 4]> {
    let (n, c, h, w) = x.dims4()?;
    let (h, w) = (h >> 1, w >> 1);
    let windows = x.narrow(2, 0, 2 * h)?.narrow(3, 0, 2 * w)?.contiguous()?.reshape((n, c, h, 2, w, 2))?;
    let part = |row: usize, column: usize| {
        windows.narrow(3, row, 1)?.narrow(5, column, 1)?.contiguous()?.reshape((n, c, h, w))
    };
    Ok([part(0, 0)?, part(0, 1)?, part(1, 0)?, part(1, 1)?])
}

impl Operation<1> for MaxPool {
    fn forward(&self, [(x, dims)]: [View<'_>; 1]) -> Result<(Vec<f32>, Shape)> {
        let &[n, c, h, w] = dims else { bail!("2x2 maximum of a tensor of shape {dims:?}") };
        let (rows, columns) = (h >> 1, w >> 1);
        let mut y = vec![0f32; n * c * rows * columns];
        y.par_chunks_mut(rows * columns).zip(x.par_chunks(h * w)).for_each(|(y, x)| {
            for (row, y) in y.chunks_mut(columns).enumerate() {
                for (column, y) in y.iter_mut().enumerate() {
                    *y = x[first_max(x, window(row, column, w))];
                }
            }
        });
        Ok((y, Shape::from((n, c, rows, columns))))
    }

    fn gradients(&self, [x]: [&Tensor; 1], _: [bool; 1], dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (_, _, h, w) = x.dims4()?;
        let (rows, columns) = (h >> 1, w >> 1);
        let (values, of_result) = (x.flatten_all()?.to_vec1::<f32>()?, dy.flatten_all()?.to_vec1::<f32>()?);
        let mut dx = vec![0f32; values.len()];
        let planes = dx.par_chunks_mut(h * w).zip(values.par_chunks(h * w)).zip(of_result.par_chunks(rows * columns));
        planes.for_each(|((dx, x), dy)| {
            for (row, dy) in dy.chunks(columns).enumerate() {
                for (column, dy) in dy.iter().enumerate() {
                    dx[first_max(x, window(row, column, w))] = *dy;
                }
            }
        });
        Ok([Some(Tensor::from_vec(dx, x.shape(), x.device())?)])
    }

    fn composed(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        let [a, b, c, d] = parts(x)?;
        a.maximum(&b)?.maximum(&c)?.maximum(&d)
    }

    fn composed_gradients(&self, [x]: [&Tensor; 1], _: [bool; 1], dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (n, c, h, w) = x.dims4()?;
        let (rows, columns) = (h >> 1, w >> 1);
        let y = self.composed([x])?;
        let mut left = y.ones_like()?;
        let mut gradients = vec![];
        for part in parts(x)? {
            let is_first = (part.eq(&y)?.to_dtype(y.dtype())? * &left)?;
            left = (left - &is_first)?;
            gradients.push((is_first * dy)?);
        }
        // [N, C, H/2, W/2, 4] to [N, C, H, W]
        let dx = Tensor::stack(&gradients, 4)?.reshape((n, c, rows, columns, 2, 2))?.permute([0, 1, 2, 4, 3, 5])?;
        let dx = dx.contiguous()?.reshape((n, c, 2 * rows, 2 * columns))?;
        Ok([Some(dx.pad_with_zeros(2, 0, h - 2 * rows)?.pad_with_zeros(3, 0, w - 2 * columns)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    use crate::{Gradients, differentiable, record};

    #[test]
    fn the_first_maximum_of_a_window_gets_the_gradient() {
        let x =
            Var::new(&[[[[1f32, 5., 2., 2., 9.], [3., 4., 0., 2., 9.], [7., 7., 7., 7., 7.]]]], &Device::Cpu).unwrap();
        let weights = Tensor::new(&[[[[10f32, 20.]]]], &Device::Cpu).unwrap();
        let forward = || differentiable([&max_pool_2x(&x)?], |[y]| (y * &weights)?.sum_all());
        let (loss, tape) = record::<_, candle_core::Error>(forward).unwrap();
        assert_eq!(loss.reshape(1).unwrap().to_vec1::<f32>().unwrap(), [10. * 5. + 20. * 2.]);
        let mut gradients = Gradients::default();
        tape.backward(&loss, &mut gradients).unwrap();
        let got = gradients.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(got, [0., 10., 20., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0., 0.]);
    }

    /// Candle's fault for which this file is there. When this test fails, Candle has fixed it.
    #[test]
    fn candle_scales_the_gradient_of_max_pooling_down() {
        let x = Var::new(&[[[[1f32, 5.], [3., 4.]]]], &Device::Cpu).unwrap();
        let loss = x.max_pool2d(2).unwrap().sum_all().unwrap();
        let got = loss.backward().unwrap().get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(got, [0., 0.25, 0., 0.], "candle's gradient is another");
    }

    #[test]
    fn not_a_number_is_not_lost_and_small_maps_are_refused() {
        let x = Tensor::new(&[[[[1f32, f32::NAN], [3., 4.]]]], &Device::Cpu).unwrap();
        assert!(max_pool_2x(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0].is_nan());
        let error = max_pool_2x(&Tensor::zeros((1, 1, 1, 4), DType::F32, &Device::Cpu).unwrap()).unwrap_err();
        assert!(error.to_string().contains("got 1x4"), "{error}");
    }
}
