//! Features of a set of pictures, computed as far as they are not known.

use std::ops::Range;

use candle_core::Tensor;
use diffae_infer::Settings;

use super::FeatureExtractor;
use crate::error::Result;
use crate::evaluation::{Evaluation, Stage};
use crate::feature_file::FeatureFile;
use crate::features::FeatureNetwork;

/// Features of shards that are taken over at once.
const KNOWN_AT_ONCE: usize = 512;

/// Features of a set of pictures, in the making.
pub(super) struct Features<'a> {
    pub(super) file: FeatureFile,
    /// Features that shards have left, with their places.
    of_shards: Vec<(Range<usize>, FeatureFile)>,
    network: &'a FeatureNetwork,
    label: &'static str,
    /// The pictures that are measured.
    items: Range<usize>,
    /// Network calls of each of them.
    calls: usize,
}

impl<'a> Features<'a> {
    /// Opens the features of `count` pictures, or of a shard of them, as far as they are known.
    pub(super) fn open(
        evaluation: &Evaluation<'_>,
        (label, count, calls): (&'static str, usize, usize),
        (settings, features): (&Settings, &'a FeatureExtractor),
    ) -> Result<Self> {
        let (network, width) = (&features.network, features.network.width());
        let items = evaluation.items(count);
        let mut file = FeatureFile::of(evaluation, label, settings, width)?;
        file.take_first(items.len());
        let of_shards = FeatureFile::of_shards(evaluation, label, (settings, width, count))?;
        Ok(Self { file, of_shards, network, label, items, calls: calls + 1 })
    }

    /// Computes the features that are not known.
    pub(super) fn fill(
        &mut self,
        evaluation: &Evaluation<'_>,
        batch: usize,
        mut pictures: impl FnMut(Range<usize>, &Stage<'_>) -> Result<Vec<Tensor>>,
    ) -> Result<()> {
        let Range { start, end } = self.items;
        let stage = evaluation.stage(self.label, self.items.len(), self.calls);
        stage.check(self.file.count() * self.calls)?;
        while start + self.file.count() < end {
            let first = start + self.file.count();
            if let Some(known) = self.known(first)? {
                self.file.append(&known)?;
                stage.check(known.dim(0)? * self.calls)?;
                continue;
            }
            let range = first..(first + batch).min(end);
            let made = range.len();
            for x in pictures(range, &stage)? {
                self.file.append(&self.network.features(&x)?)?;
            }
            stage.check(made)?;
        }
        stage.finish();
        Ok(())
    }

    /// Returns features of a shard from a picture on, if it has them.
    fn known(&mut self, first: usize) -> Result<Option<Tensor>> {
        for (range, file) in &mut self.of_shards {
            let end = range.start + file.count().min(range.len());
            if (range.start..end).contains(&first) {
                let rows: Vec<usize> = (first..end.min(first + KNOWN_AT_ONCE)).map(|idx| idx - range.start).collect();
                return Ok(Some(file.rows(&rows)?));
            }
        }
        Ok(None)
    }
}
