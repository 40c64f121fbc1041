//! Semantic codes of many items, cached in a file as they are computed.

use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use diffae_data::{Overwrite, write_atomically};
use diffae_nets::weights::{SafetensorsFile, TensorSource, safetensors_bytes};

use crate::error::{Error, Result, computing};

/// Metadata keys of a file of codes: what the codes are of, and the number of items that were attempted.
const KEY: &str = "diffae:codes";
const ATTEMPTED: &str = "diffae:tried";

/// A file of semantic codes that are computed once, batch by batch; an interrupted process resumes where it stopped.
#[derive(Debug, Clone)]
pub struct CodeCache<'a> {
    /// The file; its folder is created if it is missing.
    pub path: &'a Path,
    /// All that decides the codes, such as fingerprints of model and pictures. A file of another key is replaced.
    pub key: String,
    /// Time between two writes.
    pub save_every: Duration,
}

/// Computation of the codes of a range of items, which it adds with [`CachedCodes::push`].
pub type Compute<'a, E> = dyn FnMut(Range<usize>, &mut CachedCodes) -> std::result::Result<(), E> + 'a;

/// Semantic codes of the first items of a sequence, but for those that have none, such as unreadable pictures.
#[derive(Debug, Clone, Default)]
pub struct CachedCodes {
    /// `z_sem` of each batch, `[n, D]`, f32 on the CPU.
    batches: Vec<Tensor>,
    /// Number of each code's item.
    pub indices: Vec<u32>,
    /// Number of items that were attempted.
    pub num_attempted: usize,
}

impl CachedCodes {
    /// Adds the codes of the next `num_attempted` items; `z_sem` is `None` if none of them has a code.
    pub fn push(&mut self, z_sem: Option<Tensor>, indices: Vec<u32>, num_attempted: usize) {
        self.batches.extend(z_sem);
        self.indices.extend(indices);
        self.num_attempted += num_attempted;
    }

    /// Returns the codes.
    ///
    /// # Shapes
    /// - result: `[N, D]`, f32 on the CPU, one row for each of [`indices`](Self::indices); `[0, 1]` if there are none.
    /// # Errors
    /// [`Error::Tensor`] if the batches have different widths.
    pub fn z_sem(&self) -> Result<Tensor> {
        let joined = match self.batches.as_slice() {
            [] => Tensor::zeros((0, 1), DType::F32, &Device::Cpu),
            batches => Tensor::cat(batches, 0),
        };
        computing("joining codes", joined)
    }
}

impl CodeCache<'_> {
    /// Reads the codes of an earlier process; none if there is no file, or one of another key.
    #[must_use]
    pub fn load(&self) -> CachedCodes {
        self.read().unwrap_or_default()
    }

    fn read(&self) -> Option<CachedCodes> {
        let file = SafetensorsFile::open(self.path).ok()?;
        let text = file.text();
        if text.get(KEY).is_none_or(|noted| *noted != self.key) {
            return None;
        }
        let num_attempted = text.get(ATTEMPTED)?.parse().ok()?;
        let z_sem = file.read("z_sem").ok()?.to_tensor(DType::F32, &Device::Cpu).ok()?;
        let stored = file.read("indices").ok()?;
        let indices = Tensor::from_raw_buffer(&stored.bytes, stored.dtype, &stored.shape, &Device::Cpu);
        let indices: Vec<u32> = indices.and_then(|indices| indices.to_vec1()).ok()?;
        let is_whole = z_sem.dims().first() == Some(&indices.len());
        is_whole.then_some(CachedCodes { batches: vec![z_sem], indices, num_attempted })
    }

    fn write(&self, codes: &CachedCodes) -> Result<()> {
        if codes.indices.is_empty() {
            return Ok(());
        }
        let indices = computing("storing codes", Tensor::new(codes.indices.as_slice(), &Device::Cpu))?;
        let tensors = [("z_sem".to_owned(), codes.z_sem()?), ("indices".to_owned(), indices)].into();
        let attempted = (ATTEMPTED.to_owned(), codes.num_attempted.to_string());
        let text = [(KEY.to_owned(), self.key.clone()), attempted].into();
        let bytes = safetensors_bytes(&tensors, &text)
            .map_err(|source| Error::Weights { path: self.path.to_owned(), source })?;
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
        }
        Ok(write_atomically(self.path, &bytes, Overwrite::Replace)?)
    }

    /// Computes the codes of the items up to `count` that `codes` lacks, in batches of at most `batch_size`.
    ///
    /// `after` is called after each batch, with its number of items; `None` is returned if it breaks. Whatever stops the
    /// work, the codes so far are in the file.
    ///
    /// # Errors
    /// As `compute` and `after`; if the file cannot be written.
    pub fn fill<E: From<Error>>(
        &self,
        mut codes: CachedCodes,
        (count, batch_size): (usize, usize),
        compute: &mut Compute<'_, E>,
        after: &mut dyn FnMut(usize) -> std::result::Result<ControlFlow<()>, E>,
    ) -> std::result::Result<Option<CachedCodes>, E> {
        let mut last_write = Instant::now();
        while codes.num_attempted < count {
            let first = codes.num_attempted;
            let batch = first..(first + batch_size.max(1)).min(count);
            let len = batch.len();
            let flow = compute(batch, &mut codes).and_then(|()| after(len));
            let goes_on = matches!(flow, Ok(ControlFlow::Continue(())));
            if !goes_on || codes.num_attempted >= count || last_write.elapsed() >= self.save_every {
                self.write(&codes)?;
                last_write = Instant::now();
            }
            if flow?.is_break() {
                return Ok(None);
            }
        }
        Ok(Some(codes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Item `i` has the code `[i, -i]`, but every fourth has none.
    fn compute(items: Range<usize>, codes: &mut CachedCodes) {
        let len = items.len();
        let present: Vec<u32> = items.map(|item| u32::try_from(item).unwrap()).filter(|item| item % 4 != 3).collect();
        let rows: Vec<f32> = present.iter().flat_map(|&item| [item as f32, -(item as f32)]).collect();
        let shape = (present.len(), 2);
        let z_sem = (!rows.is_empty()).then(|| Tensor::from_vec(rows, shape, &Device::Cpu).unwrap());
        codes.push(z_sem, present, len);
    }

    #[test]
    fn interrupted_work_goes_on_and_ends_with_the_same_codes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below").join("codes.safetensors");
        let cache = CodeCache { path: &path, key: "model pictures".to_owned(), save_every: Duration::MAX };
        let mut computed = vec![];
        let mut run = |limit: usize| {
            let mut num_batches = 0;
            let mut noting = |items: Range<usize>, codes: &mut CachedCodes| {
                computed.push(items.clone());
                compute(items, codes);
                Ok::<_, Error>(())
            };
            let mut after = |_| {
                num_batches += 1;
                Ok(if num_batches < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            };
            cache.fill(cache.load(), (10, 3), &mut noting, &mut after).unwrap()
        };
        assert!(run(2).is_none());
        let all = run(9).unwrap();
        assert_eq!(computed, [0..3, 3..6, 6..9, 9..10]);
        assert_eq!((all.indices.as_slice(), all.num_attempted), (&[0, 1, 2, 4, 5, 6, 8, 9][..], 10));
        assert_eq!(
            cache.load().z_sem().unwrap().to_vec2::<f32>().unwrap(),
            all.z_sem().unwrap().to_vec2::<f32>().unwrap()
        );
        let other = CodeCache { key: "another model".to_owned(), ..cache };
        assert_eq!(other.load().num_attempted, 0);
    }

    #[test]
    fn codes_before_an_error_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("codes.safetensors");
        let cache = CodeCache { path: &path, key: String::new(), save_every: Duration::MAX };
        let mut failing = |items: Range<usize>, codes: &mut CachedCodes| {
            if items.start == 4 {
                return Err(Error::Cancelled);
            }
            compute(items, codes);
            Ok(())
        };
        let mut go_on = |_| Ok(ControlFlow::Continue(()));
        assert!(cache.fill(cache.load(), (10, 2), &mut failing, &mut go_on).is_err());
        assert_eq!(cache.load().num_attempted, 4);
    }
}
