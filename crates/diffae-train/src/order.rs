//! The order in which a run sees pictures, and which of them are flipped: by seed and place alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use diffae_data::{Drawn, Loader, LoaderSettings, Pictures};

use crate::config::TrainConfig;
use crate::random::{Purpose, permutation, stream, unit};
use crate::reduce::Share;

/// Epochs whose order is kept: threads are at most an epoch apart, unless an epoch is shorter than what is read ahead.
const MAX_KEPT: usize = 8;

/// Starts to read the micro-batches of a process in the first stage, from some step on.
pub(crate) fn loader(pictures: Pictures, config: &TrainConfig, (share, step): (Share, usize)) -> Loader {
    let part_size = config.autoencoder.part_size();
    let settings = LoaderSettings {
        format: config.picture_format(),
        batch_size: part_size,
        workers: config.data.workers,
        // As many pictures as in so many batches.
        prefetch: config.data.prefetch * share.len(),
        first_batch: step * share.len(),
    };
    let (seed, flip, count) = (config.seed, config.data.flip, pictures.len());
    let orders: Mutex<BTreeMap<usize, Arc<Vec<usize>>>> = Mutex::default();
    Loader::new(pictures, settings, move |own_place| {
        let (step, part) = share.nth(own_place.checked_div(part_size).unwrap_or(0));
        let place = (step * share.num_parts + part) * part_size + own_place % part_size;
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
