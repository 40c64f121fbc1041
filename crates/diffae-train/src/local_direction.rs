//! Directions of edits that depend on the code, fitted to pairs of codes.

use candle_core::{DType, Device, Tensor};
use diffae_infer::LocalDirection;
use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use crate::error::{Error, Result};

/// Choices of the ridge, falling, relative to the number of rows; for normalized codes 1 is about as much as the data.
const RIDGES: [f64; 8] = [10., 1., 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6];
/// One pair in so many chooses the ridge, and is fitted to afterwards only.
const JUDGES_ONE_IN: usize = 5;

/// Fits the way from pictures without an attribute to the same pictures with it, `z' - z = w + U^T V z`, by least squares.
///
/// Both codes of a pair are rows of the fit, with the same way: it can be gone in both directions, and bends little on the
/// way. A ridge on the matrix `U^T V` is chosen by the error on a fifth of the pairs, with no matrix at all, `U = V = 0`,
/// among the choices. Then the matrix is fitted to all pairs and cut to the rank that keeps most of what it predicts.
///
/// # Shapes
/// - `without`, `with`: `[N, D]`, normalized `z_sem`; row i of one belongs to row i of the other.
/// # Errors
/// [`Error::Pairs`] with fewer than two pairs, shapes that differ, values that are not finite, or codes that do not differ.
/// # Source
/// Reduced-rank regression: Izenman 1975, Journal of Multivariate Analysis 5, 248.
pub fn fit_local_direction(without: &Tensor, with: &Tensor, rank: usize) -> Result<LocalDirection> {
    if without.dims() != with.dims() {
        let problem = format!("codes with the attribute are {:?}, those without {:?}", with.dims(), without.dims());
        return Err(Error::Pairs { problem });
    }
    let (without, with) = (matrix(without)?, matrix(with)?);
    let all: Vec<usize> = (0..without.nrows()).collect();
    if all.len() < 2 {
        return Err(Error::Pairs { problem: format!("the number of pairs is {}, expected at least 2", all.len()) });
    }
    let whole = Rows::of(&without, &with, &all);
    let ridge = if rank == 0 { None } else { choose_ridge(&without, &with, rank)? };
    let Some(ridge) = ridge else {
        let none = Mat::zeros(0, without.ncols());
        return tensors(&whole.way, &none, &none);
    };
    let (matrix, basis) = whole.fit(ridge, rank)?;
    // (z - mean) A + way = z A + (way - mean A), and A = (A B) B^T for the basis B of its rows.
    let bend = &whole.mean_code * &matrix;
    let direction = Mat::from_fn(1, whole.way.ncols(), |_, j| whole.way[(0, j)] - bend[(0, j)]);
    tensors(&direction, &(&matrix * &basis).transpose().to_owned(), &basis.transpose().to_owned())
}

/// The ridge by which four fifths of the pairs predict the last fifth best; none if their mean way does.
fn choose_ridge(without: &Mat<f64>, with: &Mat<f64>, rank: usize) -> Result<Option<f64>> {
    let (judges, fitted): (Vec<usize>, Vec<usize>) = (0..without.nrows()).partition(|idx| idx % JUDGES_ONE_IN == 0);
    let (part, judges) = (Rows::of(without, with, &fitted), Rows::of(without, with, &judges));
    let constant = Mat::zeros(without.ncols(), without.ncols());
    let mut best = (part.error_on(&judges, &constant), None);
    for ridge in RIDGES {
        let error = part.error_on(&judges, &part.fit(ridge, rank)?.0);
        if error < best.0 {
            best = (error, Some(ridge));
        }
    }
    Ok(best.1)
}

/// Codes, ways from them, and what fits are made of.
struct Rows {
    /// Both codes of each pair, `[2 N, D]`, and the way of the pair for both.
    codes: Mat<f64>,
    ways: Mat<f64>,
    /// Their means, `[1, D]`.
    mean_code: Mat<f64>,
    way: Mat<f64>,
    /// `X^T X` and `X^T Y` of centered codes X and ways Y.
    scatter: Mat<f64>,
    product: Mat<f64>,
}

impl Rows {
    fn of(without: &Mat<f64>, with: &Mat<f64>, pairs: &[usize]) -> Self {
        let (count, width) = (pairs.len(), without.ncols());
        let codes = Mat::from_fn(2 * count, width, |i, j| match pairs.get(i) {
            Some(&pair) => without[(pair, j)],
            None => with[(pairs[i - count], j)],
        });
        let way = |pair: usize, j: usize| with[(pair, j)] - without[(pair, j)];
        let ways = Mat::from_fn(2 * count, width, |i, j| way(pairs[i % count], j));
        let (mean_code, way) = (column_means(&codes), column_means(&ways));
        let (x, y) = (centered(&codes, &mean_code), centered(&ways, &way));
        let (scatter, product) = (x.transpose() * &x, x.transpose() * &y);
        Self { codes, ways, mean_code, way, scatter, product }
    }

    /// The matrix of `way + (z - mean_code) A`, of the rank or less, and a basis of its rows, `[D, r]`.
    fn fit(&self, ridge: f64, rank: usize) -> Result<(Mat<f64>, Mat<f64>)> {
        let (count, width) = (self.codes.nrows() as f64, self.codes.ncols());
        let added = |i: usize, j: usize| if i == j { ridge * count } else { 0. };
        let ridged = Mat::from_fn(width, width, |i, j| self.scatter[(i, j)] + added(i, j));
        let failed = |problem: String| Error::Pairs { problem };
        let solver = ridged.llt(Side::Lower).map_err(|error| failed(format!("the fit failed: {error:?}")))?;
        let full = solver.solve(&self.product);
        // A^T (X^T X + ridge) A: what each way of bending takes off the error.
        let gain = full.transpose() * &self.product;
        let symmetric = Mat::from_fn(width, width, |i, j| f64::midpoint(gain[(i, j)], gain[(j, i)]));
        let eigen = symmetric.self_adjoint_eigen(Side::Lower);
        let eigen = eigen.map_err(|error| failed(format!("the fit failed: {error:?}")))?;
        // Eigenvalues rise: the last vectors keep most.
        let rank = rank.min(width);
        let basis = Mat::from_fn(width, rank, |i, j| eigen.U()[(i, width - rank + j)]);
        Ok((&full * &basis * basis.transpose(), basis))
    }

    /// The sum of squared errors of a fit to these rows on others.
    fn error_on(&self, others: &Self, matrix: &Mat<f64>) -> f64 {
        let error = centered(&others.ways, &self.way) - centered(&others.codes, &self.mean_code) * matrix;
        error.squared_norm_l2()
    }
}

fn centered(rows: &Mat<f64>, mean: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(rows.nrows(), rows.ncols(), |i, j| rows[(i, j)] - mean[(0, j)])
}

fn column_means(matrix: &Mat<f64>) -> Mat<f64> {
    let count = matrix.nrows() as f64;
    Mat::from_fn(1, matrix.ncols(), |_, j| matrix.col(j).iter().sum::<f64>() / count)
}

fn matrix(codes: &Tensor) -> Result<Mat<f64>> {
    let codes = codes.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let (count, width) = codes.dims2()?;
    let values = codes.flatten_all()?.to_vec1::<f64>()?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::Pairs { problem: "a code holds values that are not finite".to_owned() });
    }
    Ok(Mat::from_fn(count, width, |i, j| values[i * width + j]))
}

/// As f32; no way at all is an error, since nothing could be moved along it.
fn tensors(direction: &Mat<f64>, inputs: &Mat<f64>, outputs: &Mat<f64>) -> Result<LocalDirection> {
    let tensor = |matrix: &Mat<f64>| -> Result<Tensor> {
        let (count, width) = (matrix.nrows(), matrix.ncols());
        let values: Vec<f64> = (0..count).flat_map(|i| (0..width).map(move |j| (i, j))).map(|at| matrix[at]).collect();
        Ok(Tensor::from_vec(values, (count, width), &Device::Cpu)?.to_dtype(DType::F32)?)
    };
    let direction = tensor(direction)?.squeeze(0)?;
    let length = direction.sqr()?.sum_all()?.to_scalar::<f32>()?;
    if length == 0. || !length.is_finite() {
        let problem = "the pictures with the attribute have the same codes as those without".to_owned();
        return Err(Error::Pairs { problem });
    }
    Ok(LocalDirection { direction, inputs: tensor(inputs)?, outputs: tensor(outputs)? })
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    const WIDTH: usize = 6;

    fn codes(count: usize, seed: u64) -> Tensor {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let value = |_| f64::from(random.next_u32()) / f64::from(u32::MAX) * 3.4 - 1.7;
        Tensor::from_vec((0..count * WIDTH).map(value).collect::<Vec<f64>>(), (count, WIDTH), &Device::Cpu).unwrap()
    }

    /// The way that a fit predicts at codes.
    fn ways(fit: &LocalDirection, z: &Tensor) -> Tensor {
        let z = z.to_dtype(DType::F32).unwrap();
        let bend = z.matmul(&fit.inputs.t().unwrap()).unwrap().matmul(&fit.outputs).unwrap();
        bend.broadcast_add(&fit.direction).unwrap()
    }

    fn distance(x: &Tensor, y: &Tensor) -> f32 {
        let x = (x.to_dtype(DType::F32).unwrap() - y.to_dtype(DType::F32).unwrap()).unwrap();
        x.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    /// A beard (column 0) of the color of the hair (column 1): its color shows in column 2.
    fn bearded(z: &Tensor) -> Tensor {
        let columns = |row: &[f64]| [row[0] + 2., row[1], row[2] + 0.5 * row[1] - 0.3, row[3], row[4], row[5]];
        let rows: Vec<f64> = z.to_vec2::<f64>().unwrap().iter().flat_map(|row| columns(row)).collect();
        Tensor::from_vec(rows, z.dims(), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_way_that_depends_on_the_code_is_found_from_either_end() {
        let (z, new) = (codes(200, 1), codes(20, 2));
        let fit = fit_local_direction(&z, &bearded(&z), 1).unwrap();
        assert_eq!((fit.inputs.dims(), fit.outputs.dims()), (&[1, WIDTH][..], &[1, WIDTH][..]));
        let truth = (bearded(&new) - &new).unwrap();
        assert!(distance(&ways(&fit, &new), &truth) < 1e-3);
        assert!(distance(&ways(&fit, &bearded(&new)), &truth) < 1e-3);
        // One direction for all cannot know the color.
        let fixed = (bearded(&z) - &z).unwrap().mean(0).unwrap();
        assert!(distance(&fixed.broadcast_as(truth.dims()).unwrap(), &truth) > 0.5);
    }

    #[test]
    fn chance_bends_nothing() {
        let (z, noise) = (codes(40, 1), codes(40, 2));
        let with = ((&z + 1.).unwrap() + (noise * 0.1).unwrap()).unwrap();
        let fit = fit_local_direction(&z, &with, 4).unwrap();
        assert_eq!(fit.inputs.dims(), &[0, WIDTH]);
        let mean = (&with - &z).unwrap().mean(0).unwrap();
        assert!(distance(&fit.direction, &mean) < 1e-6);
    }

    #[test]
    fn what_are_no_pairs_is_refused() {
        let z = codes(4, 1);
        let message = |without: &Tensor, with: &Tensor| fit_local_direction(without, with, 2).unwrap_err().to_string();
        assert!(message(&z, &codes(3, 1)).contains("[3, 6], those without [4, 6]"));
        assert!(message(&z, &z).contains("the same codes"));
        assert!(message(&codes(1, 1), &codes(1, 2)).contains("at least 2"));
        assert!(message(&z, &(&z / 0.).unwrap()).contains("finite"));
    }
}
