//! The pictures of an evaluation, batch by batch.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use candle_core::Tensor;
use diffae_train::{Crop, Pictures};

use crate::args::EvalDataArgs;
use crate::session::Session;

/// The pictures of a folder, or the first of them.
pub(super) struct EvalPictures {
    pictures: Pictures,
    crop: Crop,
    count: usize,
    fingerprint: OnceCell<String>,
}

impl EvalPictures {
    /// Finds them.
    pub(super) fn find(args: &EvalDataArgs) -> Result<Self> {
        Self::first(&args.data, args.crop.into(), args.limit)
    }

    /// The first ones below a folder.
    pub(super) fn first(root: &Path, crop: Crop, limit: Option<usize>) -> Result<Self> {
        let pictures = Pictures::all(root, crop)?;
        let count = limit.unwrap_or(usize::MAX).min(pictures.len());
        // Values are kept by name.
        let mut names = BTreeSet::new();
        if let Some(twice) = (0..count).map(|idx| pictures.name(idx)).find(|name| !names.insert(name.clone())) {
            bail!("two pictures of {} are named {twice}; give every picture a name of its own", root.display())
        }
        Ok(Self { pictures, crop, count, fingerprint: OnceCell::new() })
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn name(&self, idx: usize) -> String {
        self.pictures.name(idx)
    }

    pub(super) fn all(&self) -> &Pictures {
        &self.pictures
    }

    /// A checksum of names, pictures and crop, so that values are not mistaken for those of other pictures.
    pub(super) fn fingerprint(&self) -> Result<String> {
        if let Some(known) = self.fingerprint.get() {
            return Ok(known.clone());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?}", self.crop).as_bytes());
        for idx in 0..self.count {
            let bytes = self.pictures.bytes(idx)?;
            hasher.update(format!("\n{} {}\n", self.name(idx), bytes.len()).as_bytes()).update(&bytes);
        }
        let found: String = hasher.finalize().to_hex().chars().take(16).collect();
        Ok(self.fingerprint.get_or_init(|| found).clone())
    }

    /// Pictures that follow each other, at most `size` at once.
    pub(super) fn batches(&self, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let count = self.count;
        (0..count).step_by(size.max(1)).map(move |start| start..(start + size).min(count))
    }

    /// Reads some, `[N, C, H, W]` in `[-1, 1]`, to the model's device.
    pub(super) fn read(&self, session: &Session, indices: impl Iterator<Item = usize>) -> Result<Tensor> {
        let [channels, height, width] = session.model.image_shape();
        ensure!(height == width, "the model's pictures are {height} by {width} pixels, expected squares");
        let read = |idx| self.pictures.read(idx, channels, height);
        let pictures = indices.map(read).collect::<diffae_train::Result<Vec<_>>>()?;
        Ok(Tensor::stack(&pictures, 0)?.to_device(session.model.device())?)
    }
}
