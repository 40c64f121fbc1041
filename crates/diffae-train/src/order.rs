//! The order in which a run sees pictures, and which of them are flipped: by seed and place alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use diffae_data::{Drawn, Loader, LoaderSettings, Pictures};

use crate::config::TrainConfig;
use crate::random::{Purpose, permutation, stream, unit};

/// Epochs whose order is kept: threads are at most an epoch apart, unless an epoch is shorter than what is read ahead.
const MAX_KEPT: usize = 8;

/// Starts to read the batches of the first stage from some batch on.
pub(crate) fn loader(pictures: Pictures, config: &TrainConfig, first_batch: usize) -> Loader {
    let settings = LoaderSettings {
        channels: config.model.image_channels,
        image_size: config.model.image_size,
        batch_size: config.autoencoder.batch_size,
        workers: config.data.workers,
        prefetch: config.data.prefetch,
        first_batch,
    };
    let (seed, flip, count) = (config.seed, config.data.flip, pictures.len());
    let orders: Mutex<BTreeMap<usize, Arc<Vec<usize>>>> = Mutex::default();
    Loader::new(pictures, settings, move |place| {
        let (epoch, at) = (place.checked_div(count).unwrap_or(0), place % count.max(1));
        let order = {
            let mut orders = orders.lock().unwrap_or_else(PoisonError::into_inner);
            while orders.len() > MAX_KEPT {
                orders.pop_first();
            }
            let make = || Arc::new(permutation(seed, epoch as u64, count));
            Arc::clone(orders.entry(epoch).or_insert_with(make))
        };
        let is_mirrored = unit(&mut stream(seed, Purpose::Flip, place as u64)) < flip;
        Drawn { idx: order[at], is_mirrored }
    })
}
