//! Forward passes of a `UNet` that a card starts as a whole.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Tensor, bail};
use diffae_kernels::{Computation, Replay};

use crate::unet::{TimeProjections, Unet, ZSemProjections};

/// Maximum number of recordings of a network: those of more shapes are not made.
const MAX_RECORDINGS: usize = 8;

/// Conditions of a chain, each kind in one tensor, for [`Unet::forward_replayed`].
#[derive(Debug)]
pub struct ChainConditions {
    /// Projections of the timesteps of all blocks side by side, `[M, sum of the blocks' channels]`.
    time: Tensor,
    /// Projections of `z_sem` of all blocks, one after the other.
    z_sem: Option<Tensor>,
    /// Channels of each block.
    channels: Vec<usize>,
}

/// Shapes and number type of a recording.
type Key = (Vec<usize>, DType, usize);

/// Recordings of a network's forward passes, by shape; `None` where one could not be made.
#[derive(Default)]
pub struct UnetReplays(Mutex<HashMap<Key, Option<Replay>>>);

impl fmt::Debug for UnetReplays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        write!(f, "UnetReplays({count})")
    }
}

impl Unet {
    /// Returns the conditions of a chain in the form of [`Unet::forward_replayed`]; `None` where forward passes are not recorded.
    ///
    /// # Errors
    /// If the device fails.
    pub fn chain_conditions(
        &self,
        time: &TimeProjections,
        z_sem: Option<&ZSemProjections>,
    ) -> Result<Option<ChainConditions>> {
        if !time.blocks().first().is_some_and(|block| Replay::is_wanted(block.device(), block.dtype())) {
            return Ok(None);
        }
        let flat = |z_sem: &ZSemProjections| {
            let parts = z_sem.blocks().iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
            Tensor::cat(&parts, 0)
        };
        let channels = time.blocks().iter().map(|block| Ok(block.dim(1)? >> 1)).collect::<Result<_>>()?;
        Ok(Some(ChainConditions {
            time: Tensor::cat(time.blocks(), 1)?,
            z_sem: z_sem.map(flat).transpose()?,
            channels,
        }))
    }

    /// Predicts the noise in `x_t` as [`Unet::forward_projected`] does, by a recording that is made when a shape is first seen.
    ///
    /// `None` if there is none, and is to be none: the caller predicts otherwise.
    ///
    /// # Shapes
    /// - `x_t`, result: as for [`Unet::forward`]; `step`: the row of the conditions, which are of as many images.
    /// # Errors
    /// If shapes do not fit, or the device fails.
    pub fn forward_replayed(
        &self,
        replays: &UnetReplays,
        x_t: &Tensor,
        conditions: &ChainConditions,
        step: usize,
    ) -> Result<Option<Tensor>> {
        let ChainConditions { time, z_sem, channels } = conditions;
        let time = time.narrow(0, step, 1)?.flatten_all()?;
        let inputs: Vec<&Tensor> = [x_t, &time].into_iter().chain(z_sem).collect();
        let key = (x_t.dims().to_vec(), x_t.dtype(), z_sem.as_ref().map_or(0, Tensor::elem_count));
        let mut replays = replays.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !replays.contains_key(&key) {
            if replays.len() >= MAX_RECORDINGS {
                return Ok(None);
            }
            let (unet, channels) = (self.clone(), channels.clone());
            let computation: Computation = Box::new(move |inputs| unet.forward_flat(inputs, &channels));
            // What cannot be recorded can be computed.
            let recorded = Replay::record(&inputs, computation);
            if let Err(error) = &recorded {
                let shape = x_t.shape();
                tracing::warn!(
                    "network calls on {shape:?} are started one by one, for they cannot be recorded: {error}"
                );
            }
            replays.insert(key.clone(), recorded.ok());
        }
        replays.get_mut(&key).and_then(Option::as_mut).map(|replay| replay.run(&inputs)).transpose()
    }

    /// Predicts the noise from `x_t` and the conditions of one step, each a row of all blocks.
    fn forward_flat(&self, inputs: &[Tensor], channels: &[usize]) -> Result<Tensor> {
        let [x_t, time, rest @ ..] = inputs else { bail!("a forward pass of {} inputs", inputs.len()) };
        let images = x_t.dim(0)?;
        let cut = |all: &Tensor, rows: usize, factor: usize| {
            let mut start = 0;
            let part = |channels: &usize| {
                let len = factor * channels;
                start += rows * len;
                all.narrow(0, start - rows * len, rows * len)?.reshape((rows, len))
            };
            channels.iter().map(part).collect::<Result<Vec<_>>>()
        };
        let time = TimeProjections::of_blocks(cut(time, 1, 2)?);
        let z_sem = rest.first().map(|z_sem| cut(z_sem, images, 1).map(ZSemProjections::of_blocks)).transpose()?;
        self.forward_projected(x_t, &time, z_sem.as_ref())
    }
}
