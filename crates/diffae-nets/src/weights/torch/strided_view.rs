//! Tensors as strided views of the numbers in a storage.

use std::borrow::Cow;

use super::excerpt::excerpt;
use super::torch_dtype::TorchDtype;
use super::torch_error::TorchError;

/// A strided view: element `[i_0, i_1, ..]` is number `offset + sum_k i_k * strides[k]` of the storage.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StridedView {
    /// Type of the numbers.
    pub dtype: TorchDtype,
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// Distance of neighbors in each dimension, in elements.
    pub strides: Vec<usize>,
    /// Index of the first element.
    pub offset: usize,
    /// Name of the storage within the checkpoint.
    pub storage_key: String,
    /// Number of elements of the storage.
    pub storage_numel: usize,
}

impl StridedView {
    /// Returns the number of elements.
    /// # Errors
    /// [`TorchError::LargerThanStorage`], [`TorchError::OutOfStorage`] if the elements are not all in the storage.
    fn checked_numel(&self, tensor: &str) -> Result<usize, TorchError> {
        if self.shape.contains(&0) {
            return Ok(0);
        }
        let numel = self.shape.iter().try_fold(1_usize, |numel, &len| numel.checked_mul(len));
        let Some(numel) = numel.filter(|&numel| numel <= self.storage_numel) else {
            return Err(TorchError::LargerThanStorage {
                tensor: excerpt(tensor),
                shape: self.shape.clone(),
                storage_numel: self.storage_numel,
            });
        };
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |last, (&len, &stride)| last.checked_add((len - 1).checked_mul(stride)?));
        match last {
            Some(last) if last < self.storage_numel => Ok(numel),
            _ => Err(self.out_of_storage(tensor)),
        }
    }

    /// Returns the elements in row-major order, as bytes: a part of `storage` if they lie there in this order.
    /// # Errors
    /// As [`Self::checked_numel`].
    pub(super) fn gather<'a>(&self, tensor: &str, storage: &'a [u8]) -> Result<Cow<'a, [u8]>, TorchError> {
        let numel = self.checked_numel(tensor)?;
        if numel == 0 {
            return Ok(Cow::Borrowed(&[]));
        }
        let mut axes = self.merged_axes();
        let run_len = axes.pop_if(|axis| axis.stride == 1).map_or(1, |axis| axis.len);
        if axes.is_empty() {
            return self.run(tensor, storage, self.offset, run_len).map(Cow::Borrowed);
        }
        let num_bytes = numel * self.dtype.num_bytes();
        let mut gathered = Vec::with_capacity(num_bytes);
        let mut index = vec![0; axes.len()];
        let mut start = self.offset;
        while gathered.len() < num_bytes {
            gathered.extend_from_slice(self.run(tensor, storage, start, run_len)?);
            start = advance(&axes, &mut index, start);
        }
        Ok(Cow::Owned(gathered))
    }

    /// Returns `len` neighboring elements of `storage`, as bytes.
    fn run<'a>(&self, tensor: &str, storage: &'a [u8], start: usize, len: usize) -> Result<&'a [u8], TorchError> {
        let element_len = self.dtype.num_bytes();
        let run = start.checked_mul(element_len).and_then(|start| storage.get(start..)?.get(..len * element_len));
        run.ok_or_else(|| self.out_of_storage(tensor))
    }

    /// Returns the dimensions that matter for the order of elements: without those of length one, and with neighbors
    /// that can be walked as one.
    fn merged_axes(&self) -> Vec<Axis> {
        let mut axes: Vec<Axis> = Vec::new();
        for (&len, &stride) in self.shape.iter().zip(&self.strides).filter(|&(&len, _)| len != 1) {
            match axes.last_mut() {
                Some(outer) if len.checked_mul(stride) == Some(outer.stride) => {
                    *outer = Axis { len: outer.len * len, stride };
                }
                _ => axes.push(Axis { len, stride }),
            }
        }
        axes
    }

    fn out_of_storage(&self, tensor: &str) -> TorchError {
        TorchError::OutOfStorage {
            tensor: excerpt(tensor),
            shape: self.shape.clone(),
            strides: self.strides.clone(),
            offset: self.offset,
            storage_numel: self.storage_numel,
        }
    }
}

/// A dimension of at least two elements.
#[derive(Debug, Clone, Copy)]
struct Axis {
    len: usize,
    stride: usize,
}

/// Moves `index`, and with it the place `at` of its element, on by one in row-major order.
fn advance(axes: &[Axis], index: &mut [usize], mut at: usize) -> usize {
    for (axis, index) in axes.iter().zip(index).rev() {
        if *index + 1 < axis.len {
            *index += 1;
            return at + axis.stride;
        }
        at -= axis.stride * *index;
        *index = 0;
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn view(shape: &[usize], strides: &[usize], offset: usize, storage_numel: usize) -> StridedView {
        StridedView {
            dtype: TorchDtype::I16,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            offset,
            storage_key: "0".to_owned(),
            storage_numel,
        }
    }

    /// Returns a storage whose element `i` is the number `i`.
    fn counting_storage(numel: usize) -> Vec<u8> {
        (0..numel).flat_map(|number| u16::try_from(number).unwrap().to_le_bytes()).collect()
    }

    fn numbers(bytes: &[u8]) -> Vec<usize> {
        bytes.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]).into()).collect()
    }

    #[test]
    fn contiguous_views_are_borrowed_and_others_gathered() {
        let storage = counting_storage(24);
        for (shape, strides, offset, is_borrowed, expected) in [
            (&[][..], &[][..], 5, true, vec![5]),
            (&[3], &[1], 2, true, vec![2, 3, 4]),
            (&[2, 3], &[3, 1], 0, true, (0..6).collect()),
            (&[2, 1, 3], &[3, 99, 1], 1, true, (1..7).collect()),
            (&[1, 1], &[7, 0], 9, true, vec![9]),
            (&[0, 3], &[3, 1], 99, true, vec![]),
            (&[3, 2], &[1, 3], 0, false, vec![0, 3, 1, 4, 2, 5]),
            (&[2, 2], &[6, 1], 1, false, vec![1, 2, 7, 8]),
            (&[3], &[2], 1, false, vec![1, 3, 5]),
            (&[2, 2, 3], &[0, 3, 1], 0, false, vec![0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]),
            (&[2, 2, 3, 2], &[12, 1, 4, 2], 0, false, {
                let rows = [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11];
                rows.iter().copied().chain(rows.iter().map(|row| row + 12)).collect()
            }),
        ] {
            let gathered = view(shape, strides, offset, 24).gather("t", &storage).unwrap();
            assert_eq!(numbers(&gathered), expected, "{shape:?} {strides:?}");
            assert_eq!(matches!(gathered, Cow::Borrowed(_)), is_borrowed, "{shape:?} {strides:?}");
        }
    }

    #[test]
    fn views_beyond_their_storage_are_rejected() {
        for view in [
            view(&[5], &[0], 0, 4),
            view(&[usize::MAX, 2], &[0, 0], 0, 4),
            view(&[1 << 40], &[0], 0, 4),
            view(&[3, 2], &[1, 1], 0, 4),
        ] {
            let error = view.gather("t", &counting_storage(4)).unwrap_err();
            assert!(matches!(error, TorchError::LargerThanStorage { storage_numel: 4, .. }), "{error:?}");
        }
        for view in [
            view(&[4], &[1], 1, 4),
            view(&[], &[], 4, 4),
            view(&[2], &[4], 0, 4),
            view(&[2], &[usize::MAX], 0, 4),
            view(&[2, 2], &[usize::MAX, usize::MAX], usize::MAX, 4),
            view(&[3], &[usize::MAX], 0, 4),
        ] {
            let error = view.gather("t", &counting_storage(4)).unwrap_err();
            assert!(matches!(error, TorchError::OutOfStorage { storage_numel: 4, .. }), "{error:?}");
        }
    }

    #[test]
    fn a_storage_shorter_than_declared_is_rejected_when_read() {
        let error = view(&[4], &[1], 0, 1 << 40).gather("t", &counting_storage(3)).unwrap_err();
        assert!(matches!(error, TorchError::OutOfStorage { .. }), "{error:?}");
    }

    proptest! {
        #[test]
        fn gathers_what_the_formula_says(
            axes in prop::collection::vec((0_usize..5, 0_usize..12), 0..5),
            offset in 0_usize..20,
            storage_numel in 0_usize..200,
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = axes.iter().copied().unzip();
            let mut expected = vec![offset];
            for (len, stride) in axes {
                expected = expected.iter().flat_map(|at| (0..len).map(move |index| at + index * stride)).collect();
            }
            let fits = expected.len() <= storage_numel && expected.iter().all(|&at| at < storage_numel);
            match view(&shape, &strides, offset, storage_numel).gather("t", &counting_storage(storage_numel)) {
                Ok(gathered) => {
                    prop_assert!(fits);
                    prop_assert_eq!(numbers(&gathered), expected);
                }
                Err(_) => prop_assert!(!fits),
            }
        }
    }
}
