//! Optimizer state divided among processes: each holds moments and averages of the pieces of parameters that it owns.
//!
//! Owners are those of the sums of gradients ([`crate::reduce`]). An owner updates its pieces, and sends their new values to
//! all. The norm of the gradient is added up block by block in the order of a single process, and an update is element by
//! element, so that no bit depends on the number of processes.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::TensorId;

use crate::collective::{Collective, bytes_of, count_of, floats_of, garbled};
use crate::error::Result;
use crate::reduce::Plan;

/// The pieces of all parameters, by the process that holds their optimizer state.
#[derive(Debug)]
pub(crate) struct Shards {
    rank: usize,
    plan: Plan,
    /// Pieces of this process.
    held: HashMap<TensorId, Range<usize>>,
}

/// The processes that gathered values go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// All processes that hold something.
    All,
    /// The first one.
    First,
}

/// Takes the values of a piece of a parameter, of the process of the given rank.
pub(crate) type Put<'a> = dyn FnMut(usize, TensorId, Range<usize>, &[f32]) -> Result<()> + 'a;

impl Shards {
    /// The shards of process `rank`, one of those that own the sums of a plan.
    pub(crate) fn new(rank: usize, plan: Plan) -> Self {
        let held = (0..plan.num_buckets()).flat_map(|bucket| plan.pieces(bucket, rank)).collect();
        Self { rank, plan, held }
    }

    /// Returns the elements of a parameter whose state this process holds; `None` if it is not divided, since it has no
    /// gradient.
    pub(crate) fn held(&self, id: TensorId) -> Option<Range<usize>> {
        self.plan.has(id).then(|| self.held.get(&id).cloned().unwrap_or_default())
    }

    /// Adds up squares of the gradients of parameters: `own` has those of the blocks that this process holds, where there is a
    /// gradient.
    ///
    /// # Errors
    /// As [`Collective::exchange`].
    pub(crate) fn squares(
        &self,
        collective: &mut dyn Collective,
        own: &HashMap<TensorId, Vec<f64>>,
    ) -> Result<HashMap<TensorId, f64>> {
        let pieces = |rank| (0..self.plan.num_buckets()).flat_map(move |bucket| self.plan.pieces(bucket, rank));
        let mut message = vec![];
        for (id, _) in pieces(self.rank) {
            let blocks = own.get(&id).map(Vec::as_slice).unwrap_or_default();
            message.extend((blocks.len() as u64).to_le_bytes());
            message.extend(blocks.iter().flat_map(|squares| squares.to_le_bytes()));
        }
        let mut blocks: HashMap<TensorId, Vec<f64>> = HashMap::new();
        for (rank, message) in collective.gather(self.plan.num_owners(), &message)?.iter().enumerate() {
            let mut rest = message.as_slice();
            for (id, _) in pieces(rank) {
                let (count, after) = rest.split_first_chunk().ok_or_else(garbled)?;
                let len = count_of(*count)?.checked_mul(size_of::<f64>());
                let (squares, after) = len.and_then(|len| after.split_at_checked(len)).ok_or_else(garbled)?;
                rest = after;
                if !squares.is_empty() {
                    // Owners follow each other in the order of their pieces.
                    let squares = squares.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes));
                    blocks.entry(id).or_default().extend(squares);
                }
            }
            if !rest.is_empty() {
                return Err(garbled());
            }
        }
        Ok(blocks.into_iter().map(|(id, blocks)| (id, blocks.iter().sum())).collect())
    }

    /// Gathers values of some parameters, which `own` gives piece by piece in the process that holds them, and hands them to
    /// `put`. All processes name the same parameters.
    ///
    /// # Errors
    /// As [`Collective::exchange`], `own` and `put`.
    pub(crate) fn gather(
        &self,
        (collective, destination): (&mut dyn Collective, Destination),
        is_meant: &dyn Fn(TensorId) -> bool,
        own: &mut dyn FnMut(TensorId, Range<usize>) -> Result<Vec<f32>>,
        put: &mut Put<'_>,
    ) -> Result<()> {
        let is_received = destination == Destination::All || self.rank == 0;
        for bucket in 0..self.plan.num_buckets() {
            let pieces = |rank| self.plan.pieces(bucket, rank).filter(|(id, _)| is_meant(*id));
            let mut message = vec![];
            for (id, range) in pieces(self.rank) {
                message.extend(bytes_of(&own(id, range)?));
            }
            let to = |rank: usize| if destination == Destination::All || rank == 0 { message.as_slice() } else { &[] };
            let received = collective.exchange(&(0..self.plan.num_owners()).map(to).collect::<Vec<_>>())?;
            for (rank, message) in received.iter().enumerate().filter(|_| is_received) {
                let mut rest = message.as_slice();
                for (id, range) in pieces(rank) {
                    let (values, after) = rest.split_at_checked(range.len() * size_of::<f32>()).ok_or_else(garbled)?;
                    rest = after;
                    put(rank, id, range, &floats_of(values)?)?;
                }
                if !rest.is_empty() {
                    return Err(garbled());
                }
            }
        }
        Ok(())
    }
}
