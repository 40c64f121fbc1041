//! Checks of the lengths of slices against the shapes that kernels read them with.
//!
//! Every type of this module tree that holds slices is checked here once, when it is made; the unsafe code below it
//! relies on nothing else.

/// Maximum number of values of a tensor that kernels accept: 4 TiB of f32.
///
/// Scratch buffers are a few thousand times as large as the tensors that they are for, at most, so that no product of
/// sizes overflows 64 bits. Axes of length 0 count as 1.
const MAX_VALUES: u64 = 1 << 40;

/// A slice whose length does not fit the shape that it is read with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LengthError {
    /// Name of the slice.
    buffer: &'static str,
    /// Shape that was asked for.
    shape: Vec<usize>,
    /// Length of the slice.
    got: usize,
}

/// Result of an operation that fails where a length does not fit.
pub(crate) type LengthResult<T> = Result<T, LengthError>;

impl std::fmt::Display for LengthError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { buffer, shape, got } = self;
        write!(f, "{buffer} has {got} values, expected those of shape {shape:?}")
    }
}

impl std::error::Error for LengthError {}

/// Fails unless `got` is the number of values of `shape`, and kernels accept that many.
pub(crate) fn check_length(buffer: &'static str, got: usize, shape: &[usize]) -> LengthResult<()> {
    let bounded = shape.iter().try_fold(1u64, |product, &axis| product.checked_mul(axis.max(1) as u64));
    let fits = bounded.is_some_and(|bounded| bounded <= MAX_VALUES) && shape.iter().product::<usize>() == got;
    if fits { Ok(()) } else { Err(LengthError { buffer, shape: shape.to_vec(), got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_compared_with_shapes() {
        assert_eq!(check_length("x", 24, &[2, 3, 4]), Ok(()));
        assert_eq!(check_length("x", 0, &[2, 0, 4]), Ok(()));
        assert_eq!(check_length("x", 1, &[]), Ok(()));
        let error = check_length("x", 23, &[2, 3, 4]).unwrap_err();
        assert_eq!(error.to_string(), "x has 23 values, expected those of shape [2, 3, 4]");
    }

    #[test]
    fn shapes_whose_sizes_could_overflow_are_refused() {
        for shape in [&[usize::MAX, 2][..], &[1 << 32, 1 << 32], &[0, 1 << 41], &[usize::MAX, 0, usize::MAX]] {
            assert!(check_length("x", 0, shape).is_err(), "{shape:?}");
        }
    }
}
