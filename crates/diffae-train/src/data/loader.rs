//! Batches that are read ahead by threads, in an order that depends on the seed alone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use super::Pictures;
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::random::{Purpose, permutation, stream, unit};

/// One step's pictures.
#[derive(Debug)]
pub(crate) struct Batch {
    /// `[N, C, H, W]`, f32 in `[-1, 1]`.
    pub(crate) x_0: Tensor,
    /// Which pictures they are.
    pub(crate) indices: Vec<usize>,
}

/// Reads the batches of a run from some step on.
pub(crate) struct Loader {
    received: Receiver<(usize, Result<Batch>)>,
    early: BTreeMap<usize, Result<Batch>>,
    next: usize,
    /// How long training has waited for pictures.
    pub(crate) waited: Duration,
    source: Arc<Source>,
}

struct Source {
    pictures: Pictures,
    seed: u64,
    channels: usize,
    image_size: usize,
    flip: f64,
    batch_size: usize,
    next: AtomicUsize,
    orders: Mutex<BTreeMap<usize, Arc<Vec<usize>>>>,
}

impl Loader {
    /// Starts the threads. They end when the loader is dropped.
    pub(crate) fn new(pictures: Pictures, config: &TrainConfig, first_batch: usize) -> Self {
        let source = Arc::new(Source {
            pictures,
            seed: config.seed,
            channels: config.model.image_channels,
            image_size: config.model.image_size,
            flip: config.data.flip,
            batch_size: config.autoencoder.batch_size,
            next: AtomicUsize::new(first_batch),
            orders: Mutex::default(),
        });
        let (sender, received) = sync_channel(config.data.prefetch);
        for _ in 0..config.data.workers {
            let (source, sender) = (Arc::clone(&source), sender.clone());
            thread::spawn(move || {
                loop {
                    let number = source.next.fetch_add(1, Ordering::Relaxed);
                    if sender.send((number, source.batch(number))).is_err() {
                        return; // nobody waits any more
                    }
                }
            });
        }
        Self { received, early: BTreeMap::new(), next: first_batch, waited: Duration::ZERO, source }
    }

    /// The next batch.
    ///
    /// # Errors
    /// [`Error::TooManyBroken`].
    pub(crate) fn next(&mut self) -> Result<Batch> {
        let start = Instant::now();
        let wanted = self.next;
        self.next += 1;
        let batch = loop {
            if let Some(batch) = self.early.remove(&wanted) {
                break batch;
            }
            let Ok((number, batch)) = self.received.recv() else {
                let problem = "the threads that read pictures have died".to_owned();
                break Err(Error::Data { path: self.source.pictures.root().to_owned(), problem });
            };
            self.early.insert(number, batch);
        };
        self.waited += start.elapsed();
        batch
    }

    /// Names of pictures.
    pub(crate) fn names(&self, indices: &[usize]) -> String {
        indices.iter().map(|&idx| self.source.pictures.name(idx)).collect::<Vec<_>>().join(", ")
    }

    /// How many pictures of the data could not be read so far.
    pub(crate) fn num_broken(&self) -> usize {
        self.source.pictures.unreadable().len()
    }
}

impl Source {
    fn batch(&self, number: usize) -> Result<Batch> {
        let first = number * self.batch_size;
        let (mut values, mut indices) = (vec![], vec![]);
        for place in first..first + self.batch_size {
            let (idx, picture) = self.picture(place)?;
            values.extend(picture);
            indices.push(idx);
        }
        let shape = (self.batch_size, self.channels, self.image_size, self.image_size);
        Ok(Batch { x_0: Tensor::from_vec(values, shape, &Device::Cpu)?, indices })
    }

    /// The picture at a place in the sequence. Where it cannot be read, the one after it in the folder.
    fn picture(&self, place: usize) -> Result<(usize, Vec<f32>)> {
        let count = self.pictures.len();
        let (epoch, at) = (place.checked_div(count).unwrap_or(0), place % count.max(1));
        let start = self.order(epoch)[at];
        for ahead in 0..count {
            let idx = (start + ahead) % count;
            let Some(picture) = self.pictures.read_or_leave_out(idx, self.channels, self.image_size)? else { continue };
            let mut values = picture.flatten_all()?.to_vec1::<f32>()?;
            if unit(&mut stream(self.seed, Purpose::Flip, place as u64)) < self.flip {
                values.chunks_mut(self.image_size).for_each(<[f32]>::reverse);
            }
            return Ok((idx, values));
        }
        Err(self.pictures.none_readable())
    }

    fn order(&self, epoch: usize) -> Arc<Vec<usize>> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        // Threads are at most an epoch apart, unless an epoch is shorter than what is read ahead.
        while orders.len() > 8 {
            orders.pop_first();
        }
        let make = || Arc::new(permutation(self.seed, epoch as u64, self.pictures.len()));
        Arc::clone(orders.entry(epoch).or_insert_with(make))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Split;
    use image::{Rgb, RgbImage};

    fn config(assignments: &[&str]) -> TrainConfig {
        let assignments: Vec<String> = assignments.iter().map(|&text| text.to_owned()).collect();
        crate::presets::config("smoke", &assignments).unwrap()
    }

    fn folder(count: u8) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..count {
            RgbImage::from_pixel(16, 16, Rgb([i, 2 * i, 0])).save(folder.path().join(format!("{i:03}.png"))).unwrap();
        }
        folder
    }

    fn pictures(folder: &tempfile::TempDir, config: &TrainConfig) -> Pictures {
        Pictures::find(folder.path(), &config.data, Split::Train).unwrap()
    }

    #[test]
    fn batches_do_not_depend_on_threads_or_on_where_a_run_begins() {
        let folder = folder(30);
        let run = |workers: &str, first: usize| {
            let config = config(&["data.validation_share=0", workers]);
            let mut loader = Loader::new(pictures(&folder, &config), &config, first);
            (first..12).map(|_| loader.next().unwrap().indices).collect::<Vec<_>>()
        };
        let all = run("data.workers=1", 0);
        assert_eq!(all, run("data.workers=3", 0));
        assert_eq!(all[7..], run("data.workers=2", 7));
    }

    #[test]
    fn broken_files_are_left_out_until_there_are_too_many() {
        let folder = folder(20);
        std::fs::write(folder.path().join("003.png"), "no picture").unwrap();
        let lenient = config(&["data.validation_share=0", "data.max_broken_share=0.1"]);
        let mut loader = Loader::new(pictures(&folder, &lenient), &lenient, 0);
        (0..6).for_each(|_| assert!(loader.next().unwrap().indices.iter().all(|&idx| idx != 3)));
        assert_eq!(loader.num_broken(), 1);
        for i in [5, 6, 7] {
            std::fs::write(folder.path().join(format!("{i:03}.png")), "no picture").unwrap();
        }
        let mut loader = Loader::new(pictures(&folder, &lenient), &lenient, 0);
        let error = (0..10).find_map(|_| loader.next().err()).unwrap();
        assert!(matches!(error, Error::TooManyBroken { .. }), "{error}");
    }
}
