//! The context of an evaluation: output folder, seed and observer.

use std::fmt;
use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use diffae_data::{Overwrite, Shard, png_bytes, write_atomically};
use diffae_infer::{CallEvent, Model};
use image::RgbImage;

use crate::error::{Result, cannot};

/// A step of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvaluationEvent {
    /// A stage begins. Its work is `num_items * calls_per_item` calls, all of about the same cost.
    Begin {
        /// Name of the stage: the measure, or a part of it.
        stage: &'static str,
        /// Number of items: pictures, pairs, probes.
        num_items: usize,
        /// Number of network calls for each of them.
        calls_per_item: usize,
    },
    /// Calls were made, or their results are known from an interrupted evaluation.
    Calls {
        /// Number of calls, times the items of each.
        count: usize,
    },
    /// The stage is complete, or has failed.
    End,
}

/// An observer of an evaluation: [`ControlFlow::Break`], at any event, ends it with
/// [`Error::Cancelled`](diffae_infer::Error::Cancelled), and what was measured is kept.
pub type EvaluationObserver<'a> = dyn FnMut(&EvaluationEvent) -> ControlFlow<()> + Send + 'a;

/// The observer, and whether it has asked to stop.
struct Watch<'a> {
    observer: Mutex<Box<EvaluationObserver<'a>>>,
    is_stopped: AtomicBool,
}

impl Watch<'_> {
    fn send(&self, event: EvaluationEvent) -> ControlFlow<()> {
        let answer = (self.observer.lock().unwrap_or_else(PoisonError::into_inner))(&event);
        if answer.is_break() {
            self.is_stopped.store(true, Ordering::Relaxed);
        }
        if self.is_stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// The context of an evaluation, shared by all measures.
#[derive(Clone)]
pub struct Evaluation<'a> {
    out: PathBuf,
    codes: PathBuf,
    overwrite: Overwrite,
    shard: Option<Shard>,
    seed: u64,
    provenance: Vec<(String, String)>,
    watch: Arc<Watch<'a>>,
}

impl fmt::Debug for Evaluation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Evaluation").field("out", &self.out).field("seed", &self.seed).finish_non_exhaustive()
    }
}

impl<'a> Evaluation<'a> {
    /// Begins an evaluation that writes into a folder, or resumes an interrupted one of equal settings there.
    /// The seed is 0.
    pub fn new(out: &Path, observer: impl FnMut(&EvaluationEvent) -> ControlFlow<()> + Send + 'a) -> Self {
        Self {
            out: out.to_owned(),
            codes: out.join("z_sem"),
            overwrite: Overwrite::Refuse,
            shard: None,
            seed: 0,
            provenance: vec![],
            watch: Arc::new(Watch { observer: Mutex::new(Box::new(observer)), is_stopped: AtomicBool::new(false) }),
        }
    }

    /// Sets the seed of all random choices.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Decides about results of other settings in the folder: an error, or replaced. Replacing starts over.
    #[must_use]
    pub fn with_overwrite(self, overwrite: Overwrite) -> Self {
        Self { overwrite, ..self }
    }

    /// Measures one shard of the items alone, for processes that share the work.
    ///
    /// Its values are kept in the folder, in files of its own; the report has no figures and is not written. An evaluation of
    /// the whole in the same folder finds the values of all shards, measures what is missing, and reports.
    #[must_use]
    pub fn with_shard(self, shard: Option<Shard>) -> Self {
        Self { shard, ..self }
    }

    /// Sets text entries for the metadata of pictures that are written.
    #[must_use]
    pub fn with_provenance(self, entries: &[(String, String)]) -> Self {
        Self { provenance: entries.to_owned(), ..self }
    }

    /// Returns the context of one of several measures: it writes into a folder of its own, and shares the cache of
    /// semantic codes.
    #[must_use]
    pub fn within(&self, name: &str) -> Self {
        Self { out: self.out.join(name), ..self.clone() }
    }

    /// Returns the folder of the results.
    #[must_use]
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Returns the seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns what happens to results of other settings.
    #[must_use]
    pub fn overwrite(&self) -> Overwrite {
        self.overwrite
    }

    /// Returns the shard that is measured; `None` for the whole.
    #[must_use]
    pub fn shard(&self) -> Option<Shard> {
        self.shard
    }

    /// Returns the items that are measured, of `count`.
    pub(crate) fn items(&self, count: usize) -> Range<usize> {
        self.shard.map_or(0..count, |shard| shard.range(count))
    }

    /// Divides the items that are measured, of `count`, into batches.
    pub(crate) fn batches(&self, count: usize, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        batches(self.items(count), size)
    }

    /// Returns the file in a folder for what is measured; a shard has one of its own.
    pub(crate) fn file(&self, folder: &Path, name: &str) -> PathBuf {
        let whole = folder.join(name);
        self.shard.map_or_else(|| whole.clone(), |shard| shard.path(&whole))
    }

    /// Returns the files that shards have left, from which an evaluation of the whole takes values; none for a shard. To
    /// replace what is there is to remove them.
    pub(crate) fn files_of_shards(&self, folder: &Path, name: &str) -> Result<Vec<(Shard, PathBuf)>> {
        if self.shard.is_some() {
            return Ok(vec![]);
        }
        let files = Shard::files(&folder.join(name))?;
        if self.overwrite == Overwrite::Replace {
            files.iter().try_for_each(|(_, path)| fs::remove_file(path).map_err(cannot("write", path)))?;
            return Ok(vec![]);
        }
        Ok(files)
    }

    /// Returns the folder of semantic codes, which measures share.
    pub(crate) fn codes(&self) -> &Path {
        &self.codes
    }

    /// Creates the folder of the results if it is missing.
    pub(crate) fn make_folder(&self) -> Result<()> {
        fs::create_dir_all(&self.out).map_err(cannot("write", &self.out))
    }

    /// Begins a stage.
    pub(crate) fn stage(&self, stage: &'static str, num_items: usize, calls_per_item: usize) -> Stage<'a> {
        // A break comes back with the first call.
        let _ = self.watch.send(EvaluationEvent::Begin { stage, num_items, calls_per_item });
        Stage { watch: Arc::clone(&self.watch) }
    }

    /// Writes a picture into the folder, with the provenance and the model in its metadata.
    pub(crate) fn write_picture(&self, name: &str, picture: &RgbImage, model: Option<&Model>) -> Result<()> {
        let path = self.out.join(name);
        self.make_folder()?;
        let model = model.map(|model| ("diffae:model".to_owned(), model.fingerprint().to_owned()));
        let entries: Vec<(String, String)> = self.provenance.iter().cloned().chain(model).collect();
        Ok(write_atomically(&path, &png_bytes(picture, &entries, &path)?, Overwrite::Replace)?)
    }
}

/// Divides items into batches of at most `size`.
pub(crate) fn batches(items: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let (size, end) = (size.max(1), items.end);
    items.step_by(size).map(move |start| start..(start + size).min(end))
}

/// A stage of an evaluation in progress. It ends when it is dropped.
pub(crate) struct Stage<'a> {
    watch: Arc<Watch<'a>>,
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        let _ = self.watch.send(EvaluationEvent::End);
    }
}

impl Stage<'_> {
    /// Notes `count` calls; fails if the observer asks to stop.
    pub(crate) fn check(&self, count: usize) -> Result<()> {
        match self.watch.send(EvaluationEvent::Calls { count }) {
            ControlFlow::Break(()) => Err(diffae_infer::Error::Cancelled.into()),
            ControlFlow::Continue(()) => Ok(()),
        }
    }

    /// Returns an observer of a pipeline that notes every network call.
    pub(crate) fn observer(&self) -> impl FnMut(&CallEvent<'_>) -> ControlFlow<()> + '_ {
        |event| self.watch.send(EvaluationEvent::Calls { count: event.num_pictures })
    }

    /// Ends the stage.
    pub(crate) fn finish(self) {
        drop(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_cover_the_items_once() {
        assert_eq!(batches(3..6, 2).collect::<Vec<_>>(), [3..5, 5..6]);
        assert_eq!(batches(0..3, 0).count(), 3, "a batch holds one item at least");
        assert_eq!(batches(4..4, 2).count(), 0);
    }

    #[test]
    fn a_stage_ends_once_and_a_break_at_its_begin_comes_back() {
        let mut events = vec![];
        let evaluation = Evaluation::new(Path::new("out"), |event: &EvaluationEvent| {
            events.push(*event);
            let is_begin = matches!(event, EvaluationEvent::Begin { stage: "second", .. });
            if is_begin { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let stage = evaluation.stage("first", 2, 1);
        stage.check(2).unwrap();
        stage.finish();
        let stage = evaluation.within("part").stage("second", 1, 1);
        assert!(stage.check(1).unwrap_err().to_string().contains("cancelled"));
        drop(stage);
        drop(evaluation);
        let ends = events.iter().filter(|event| **event == EvaluationEvent::End).count();
        assert_eq!((ends, events.len()), (2, 6), "{events:?}");
    }
}
