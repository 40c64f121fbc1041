//! Products of strided matrices, through the crate gemm on all threads.

use gemm::Parallelism;

use crate::work::note_multiply_adds;

/// A view of a slice as a matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A slice of `rows` rows. What the slice lacks counts as fewer rows.
    pub(crate) fn rows(values: &'a [f32], rows: usize, columns: usize) -> Self {
        let rows = rows.min(values.len().checked_div(columns).unwrap_or(0));
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        let Self { values, rows, columns, row_stride, column_stride } = self;
        Self { values, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }
}

/// `to = a b`, rows of `to` one after the other, on all threads.
pub(crate) fn multiply(a: Matrix<'_>, b: Matrix<'_>, to: &mut [f32]) {
    let work = a.rows * b.columns * a.columns;
    multiply_with(a, b, to, if work < 1 << 16 { Parallelism::None } else { Parallelism::Rayon(0) });
}

/// The same on this thread.
pub(crate) fn multiply_alone(a: Matrix<'_>, b: Matrix<'_>, to: &mut [f32]) {
    multiply_with(a, b, to, Parallelism::None);
}

fn multiply_with(a: Matrix<'_>, b: Matrix<'_>, to: &mut [f32], parallelism: Parallelism) {
    let (m, n, k) = (a.rows, b.columns, a.columns.min(b.rows));
    if to.len() < m * n || m * n == 0 {
        return;
    }
    note_multiply_adds(m * n * k);
    // SAFETY: `rows` has seen to it that the views lie inside their slices, and `to` has m n elements. Strides come
    // from lengths of slices, which fit isize.
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
}
