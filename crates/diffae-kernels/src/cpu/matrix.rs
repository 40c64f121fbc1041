//! Products of strided matrices, through the crate gemm on all threads.

use gemm::Parallelism;

use super::length::{LengthResult, check_length};
use crate::work::note_multiply_adds;

/// A slice viewed as a matrix.
///
/// Element (i, j) lies at `i * row_stride + j * column_stride`, inside the slice for all rows and columns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Views a slice as `rows` rows, one after the other.
    ///
    /// # Errors
    /// If the length of the slice is another.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> LengthResult<Self> {
        check_length("a matrix", values.len(), &[rows, columns])?;
        Ok(Self { values, rows, columns, row_stride: columns, column_stride: 1 })
    }

    /// Transposes the view.
    pub(crate) fn transposed(self) -> Self {
        let Self { values, rows, columns, row_stride, column_stride } = self;
        Self { values, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }
}

/// Computes `to = a b` on all threads, rows of `to` one after the other.
///
/// # Errors
/// If `a`, `b` and `to` do not fit each other.
pub(crate) fn multiply(a: Matrix<'_>, b: Matrix<'_>, to: &mut [f32]) -> LengthResult<()> {
    let work = a.rows * b.columns * a.columns;
    multiply_with(a, b, to, if work < 1 << 16 { Parallelism::None } else { Parallelism::Rayon(0) })
}

/// Computes `to = a b` on this thread, rows of `to` one after the other.
///
/// # Errors
/// If `a`, `b` and `to` do not fit each other.
pub(crate) fn multiply_alone(a: Matrix<'_>, b: Matrix<'_>, to: &mut [f32]) -> LengthResult<()> {
    multiply_with(a, b, to, Parallelism::None)
}

fn multiply_with(a: Matrix<'_>, b: Matrix<'_>, to: &mut [f32], parallelism: Parallelism) -> LengthResult<()> {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    check_length("the rows of the second factor", b.rows, &[k])?;
    check_length("the result of a matrix product", to.len(), &[m, n])?;
    if m * n == 0 {
        return Ok(());
    }
    note_multiply_adds(m * n * k);
    // SAFETY: `a` is m x k and `b` is k x n, inside their slices, and `to` has m n elements that nobody else borrows.
    // Strides are at most `MAX_VALUES`, which fits isize.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to.as_mut_ptr(),
            1,
            n.cast_signed(),
            false,
            a.values.as_ptr(),
            a.column_stride.cast_signed(),
            a.row_stride.cast_signed(),
            b.values.as_ptr(),
            b.column_stride.cast_signed(),
            b.row_stride.cast_signed(),
            0f32,
            1f32,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_and_results_of_other_sizes_are_refused() {
        let values = [1.; 12];
        let mut to = vec![0.; 16];
        assert!(Matrix::new(&values[1..], 3, 4).is_err());
        let (a, b) = (Matrix::new(&values, 4, 3).unwrap(), Matrix::new(&values, 3, 4).unwrap());
        multiply(a, b, &mut to).unwrap();
        assert_eq!(to, [3.; 16]);
        assert!(multiply(a, b.transposed(), &mut to).is_err());
        assert!(multiply_alone(a, b, &mut to[1..]).is_err());
    }
}
