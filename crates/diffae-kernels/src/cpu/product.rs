//! Matrix products of a few rows with a panel of at most 64 columns: the innermost loop of all convolutions.
//!
//! `c[i][j] (+)= sum over k of a[i][k] b[k][j]`. The element `a[i][k]` is broadcast, so `a` may have any strides; `b`
//! and `c` have rows of whole vectors. A register tile is MR rows by NV vectors of accumulators.

use super::simd::{LANES, Simd, Task};

/// Maximum number of columns of a panel of packed weights.
pub(crate) const PANEL: usize = 64;

/// Number of rows of `b` that stay in the first-level cache while the rows of `a` pass by.
const K_BLOCK: usize = 128;

/// One product of strided matrices, `c (+)= a b`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) a: *const f32,
    /// Distance of `a[i + 1][k]` from `a[i][k]`.
    pub(crate) a_row: usize,
    /// Distance of `a[i][k + 1]` from `a[i][k]`.
    pub(crate) a_col: usize,
    pub(crate) b: *const f32,
    pub(crate) b_row: usize,
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    pub(crate) rows: usize,
    /// Number of columns in vectors: 1 to 4.
    pub(crate) vectors: usize,
    pub(crate) depth: usize,
    /// Choice between adding to `c` and overwriting it.
    pub(crate) accumulate: Accumulate,
}

/// Use of a product: added to the result, or in place of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accumulate {
    Add,
    Overwrite,
}

impl Product {
    /// Computes the product.
    ///
    /// # Safety
    /// `a[i * a_row + k * a_col]`, `b[k * b_row + j]` and `c[i * c_row + j]` are valid for all `i < rows`, `k < depth`,
    /// `j < vectors * LANES`; `c` overlaps neither `a` nor `b`, and nobody else reads or writes it. The instruction set is
    /// available.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd>(self) {
        let mut start = 0;
        // SAFETY: each block is a part of the whole, for which the caller vouches.
        unsafe {
            loop {
                let depth = K_BLOCK.min(self.depth - start);
                let accumulate = if start == 0 { self.accumulate } else { Accumulate::Add };
                let block = Self {
                    a: self.a.add(start * self.a_col),
                    b: self.b.add(start * self.b_row),
                    depth,
                    accumulate,
                    ..self
                };
                block.run_columns::<S>();
                start += depth;
                if start >= self.depth {
                    break;
                }
            }
        }
    }

    /// Runs over columns, a vector at a time where the registers cannot hold a full panel.
    ///
    /// # Safety
    /// That of [`Self::run`].
    #[inline(always)]
    unsafe fn run_columns<S: Simd>(self) {
        // SAFETY: columns of the whole.
        unsafe {
            if S::ACCUMULATORS >= 24 {
                match self.vectors {
                    4 => self.run_rows::<S, 4>(),
                    3 => self.run_rows::<S, 3>(),
                    2 => self.run_rows::<S, 2>(),
                    _ => self.run_rows::<S, 1>(),
                }
            } else {
                for v in 0..self.vectors {
                    Self { b: self.b.add(v * LANES), c: self.c.add(v * LANES), ..self }.run_rows::<S, 1>();
                }
            }
        }
    }

    /// Runs over rows, as many at a time as the registers hold.
    ///
    /// # Safety
    /// That of [`Self::run`], with `vectors` of at least `NV`.
    #[inline(always)]
    unsafe fn run_rows<S: Simd, const NV: usize>(mut self) {
        // SAFETY: rows of the whole.
        unsafe {
            if NV <= 2 && 12 * NV <= S::ACCUMULATORS {
                while self.rows >= 12 {
                    self.tile::<S, 12, NV>();
                    self.skip(12);
                }
            }
            let max = if S::ACCUMULATORS >= 6 * NV { 6 } else { 4 };
            while self.rows > 0 {
                // Equal pieces: a last one of few rows would leave the multipliers idle.
                let pieces = self.rows.div_ceil(max);
                let rows = self.rows.div_ceil(pieces);
                match rows {
                    1 => self.tile::<S, 1, NV>(),
                    2 => self.tile::<S, 2, NV>(),
                    3 => self.tile::<S, 3, NV>(),
                    4 => self.tile::<S, 4, NV>(),
                    5 => self.tile::<S, 5, NV>(),
                    _ => self.tile::<S, 6, NV>(),
                }
                self.skip(rows);
            }
        }
    }

    /// Drops the first rows.
    #[inline(always)]
    fn skip(&mut self, rows: usize) {
        self.a = self.a.wrapping_add(rows * self.a_row);
        self.c = self.c.wrapping_add(rows * self.c_row);
        self.rows -= rows;
    }

    /// Computes the first MR rows and NV vectors of the result.
    ///
    /// # Safety
    /// That of [`Self::run`], with `rows` of at least `MR` and `vectors` of at least `NV`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(&self) {
        let Self { a, a_row, a_col, b_row, c, c_row, depth, .. } = *self;
        // SAFETY: the first MR rows and NV vectors of the whole.
        unsafe {
            let mut sums = [[S::splat(0.); NV]; MR];
            if self.accumulate == Accumulate::Add {
                for i in 0..MR {
                    for j in 0..NV {
                        sums[i][j] = S::load(c.add(i * c_row + j * LANES));
                    }
                }
            }
            let mut rows = [a; MR];
            for i in 0..MR {
                rows[i] = a.wrapping_add(i * a_row);
            }
            let (mut at, mut b) = (0, self.b);
            for _ in 0..depth {
                let mut columns = [S::splat(0.); NV];
                for j in 0..NV {
                    columns[j] = S::load(b.add(j * LANES));
                    if NV == 4 {
                        // The same row of the next block: weights that nobody has touched yet come from memory.
                        S::prefetch(b.wrapping_add(K_BLOCK * b_row + j * LANES));
                    }
                }
                for i in 0..MR {
                    let factor = S::splat(*rows[i].add(at));
                    for j in 0..NV {
                        sums[i][j] = S::fma(factor, columns[j], sums[i][j]);
                    }
                }
                at += a_col;
                b = b.wrapping_add(b_row);
            }
            for i in 0..MR {
                for j in 0..NV {
                    S::store(c.add(i * c_row + j * LANES), sums[i][j]);
                }
            }
        }
    }
}

/// A product as a task of its own.
pub(crate) struct ProductTask(pub(crate) Product);

impl Task for ProductTask {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise is that of `Product::run`.
        unsafe { self.0.run::<S>() };
    }
}
