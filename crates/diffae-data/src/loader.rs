//! Batches that are read ahead by threads, in an order that the caller decides.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use crate::error::{Error, Result, computing};
use crate::format::PictureFormat;
use crate::pictures::Pictures;

/// One batch of pictures.
#[derive(Debug)]
pub struct Batch {
    /// The pictures, `[N, C, H, W]`, or volumes, `[N, C, D, H, W]`, f32 in `[-1, 1]`, on the CPU.
    pub x_0: Tensor,
    /// Indices of the pictures.
    pub indices: Vec<usize>,
}

/// The picture at a place in the sequence that a [`Loader`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// Index of the picture.
    pub idx: usize,
    /// True if the picture is flipped horizontally.
    pub is_mirrored: bool,
}

/// Settings of a [`Loader`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoaderSettings {
    /// The form of pictures.
    pub format: PictureFormat,
    /// Pictures per batch.
    pub batch_size: usize,
    /// Number of reading threads.
    pub workers: usize,
    /// Number of batches to read ahead.
    pub prefetch: usize,
    /// Number of the first batch; batch `n` holds places `n * batch_size` to `(n + 1) * batch_size` of the sequence.
    pub first_batch: usize,
}

type Draw = dyn Fn(usize) -> Drawn + Send + Sync;

/// Reads one batch after another. Batches depend on the draws alone, not on the number of threads.
pub struct Loader {
    received: Receiver<(usize, Result<Batch>)>,
    early: BTreeMap<usize, Result<Batch>>,
    next: usize,
    waited: Duration,
    reader: Arc<Reader>,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("settings", &self.reader.settings)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

struct Reader {
    pictures: Pictures,
    settings: LoaderSettings,
    draw: Box<Draw>,
    next: AtomicUsize,
}

impl Loader {
    /// Starts the threads, which end when the loader is dropped. `draw` decides the picture at each place of the
    /// sequence.
    pub fn new(
        pictures: Pictures,
        settings: LoaderSettings,
        draw: impl Fn(usize) -> Drawn + Send + Sync + 'static,
    ) -> Self {
        let next = AtomicUsize::new(settings.first_batch);
        let reader = Arc::new(Reader { pictures, settings, draw: Box::new(draw), next });
        let (sender, received) = sync_channel(settings.prefetch);
        for _ in 0..settings.workers {
            let (reader, sender) = (Arc::clone(&reader), sender.clone());
            thread::spawn(move || {
                loop {
                    let number = reader.next.fetch_add(1, Ordering::Relaxed);
                    // A batch that never comes would be waited for.
                    let batch = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reader.batch(number)));
                    let fault = || {
                        let problem = "the program has a fault in reading one of its pictures".to_owned();
                        Error::Data { path: reader.pictures.root().to_owned(), problem }
                    };
                    if sender.send((number, batch.unwrap_or_else(|_panic| Err(fault())))).is_err() {
                        return; // nobody waits any more
                    }
                }
            });
        }
        Self { received, early: BTreeMap::new(), next: settings.first_batch, waited: Duration::ZERO, reader }
    }

    /// Waits for the next batch. An unreadable picture is replaced by the next readable one.
    ///
    /// # Errors
    /// [`Error::TooManyBroken`]; [`Error::Data`] if none can be read.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let start = Instant::now();
        let wanted = self.next;
        self.next += 1;
        let batch = loop {
            if let Some(batch) = self.early.remove(&wanted) {
                break batch;
            }
            let Ok((number, batch)) = self.received.recv() else {
                let problem = "the threads that read pictures have died".to_owned();
                break Err(Error::Data { path: self.reader.pictures.root().to_owned(), problem });
            };
            self.early.insert(number, batch);
        };
        self.waited += start.elapsed();
        batch
    }

    /// Returns how long [`next_batch`](Self::next_batch) has waited since the last call of this method.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Returns the pictures of this loader.
    #[must_use]
    pub fn pictures(&self) -> &Pictures {
        &self.reader.pictures
    }
}

impl Reader {
    fn batch(&self, number: usize) -> Result<Batch> {
        let LoaderSettings { format, batch_size, .. } = self.settings;
        let first = number * batch_size;
        let (mut values, mut indices) = (vec![], vec![]);
        for place in first..first + batch_size {
            let (idx, picture) = self.picture(place)?;
            values.extend(picture);
            indices.push(idx);
        }
        let shape = format.shape.of_batch(batch_size);
        Ok(Batch { x_0: computing("making a batch", Tensor::from_vec(values, shape, &Device::Cpu))?, indices })
    }

    /// Reads the picture at a place in the sequence; if it is unreadable, the next readable one in the data.
    fn picture(&self, place: usize) -> Result<(usize, Vec<f32>)> {
        let format = self.settings.format;
        let count = self.pictures.len();
        let Drawn { idx: start, is_mirrored } = (self.draw)(place);
        for ahead in 0..count {
            let idx = (start + ahead) % count;
            let Some(picture) = self.pictures.read_or_leave_out(idx, format)? else { continue };
            let values = picture.flatten_all().and_then(|values| values.to_vec1::<f32>());
            let mut values = computing("reading a picture", values)?;
            if is_mirrored {
                values.chunks_mut(format.shape.size.width()).for_each(<[f32]>::reverse);
            }
            return Ok((idx, values));
        }
        Err(self.pictures.none_readable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FindSettings, Split};
    use image::{Rgb, RgbImage};

    fn folder(count: u8) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..count {
            RgbImage::from_pixel(16, 16, Rgb([i, 2 * i, 0])).save(folder.path().join(format!("{i:03}.png"))).unwrap();
        }
        folder
    }

    fn loader(folder: &tempfile::TempDir, workers: usize, first_batch: usize) -> Loader {
        let settings = FindSettings { max_broken_share: 0.1, ..FindSettings::default() };
        let pictures = Pictures::find(folder.path(), &settings, Split::Train).unwrap();
        let count = pictures.len();
        let settings =
            LoaderSettings { format: PictureFormat::new(3, 16), batch_size: 4, workers, prefetch: 2, first_batch };
        Loader::new(pictures, settings, move |place| Drawn { idx: place * 7 % count, is_mirrored: place % 2 == 1 })
    }

    #[test]
    fn batches_do_not_depend_on_threads_or_on_where_a_run_begins() {
        let folder = folder(30);
        let run = |workers: usize, first: usize| {
            let mut loader = loader(&folder, workers, first);
            (first..12).map(|_| loader.next_batch().unwrap().indices).collect::<Vec<_>>()
        };
        let all = run(1, 0);
        assert_eq!(all[..2], [vec![0, 7, 14, 21], vec![28, 5, 12, 19]]);
        assert_eq!(all, run(3, 0));
        assert_eq!(all[7..], run(2, 7));
    }

    #[test]
    fn every_other_picture_is_mirrored() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..2 {
            let picture = RgbImage::from_fn(16, 16, |x, _| Rgb([u8::try_from(x).unwrap(); 3]));
            picture.save(folder.path().join(format!("{i}.png"))).unwrap();
        }
        let batch = loader(&folder, 1, 0).next_batch().unwrap();
        let row = |item: usize| {
            let row = batch.x_0.get(item).and_then(|x| x.get(0)?.get(0)?.to_vec1::<f32>());
            row.unwrap().iter().map(|value| ((value + 1.) * 127.5).round()).collect::<Vec<f32>>()
        };
        assert!(row(0).is_sorted() && row(0)[15] > 14.);
        assert_eq!(row(1), row(0).into_iter().rev().collect::<Vec<_>>());
    }

    #[test]
    fn broken_files_are_left_out_until_there_are_too_many() {
        let folder = folder(20);
        std::fs::write(folder.path().join("003.png"), "no picture").unwrap();
        let mut lenient = loader(&folder, 2, 0);
        (0..6).for_each(|_| assert!(lenient.next_batch().unwrap().indices.iter().all(|&idx| idx != 3)));
        assert_eq!(lenient.pictures().unreadable().len(), 1);
        for i in [5, 6, 7] {
            std::fs::write(folder.path().join(format!("{i:03}.png")), "no picture").unwrap();
        }
        let mut lenient = loader(&folder, 2, 0);
        let error = (0..10).find_map(|_| lenient.next_batch().err()).unwrap();
        assert!(matches!(error, Error::TooManyBroken { .. }), "{error}");
    }
}
