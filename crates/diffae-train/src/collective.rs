//! Communication among the processes that train one model together.

mod launch;
mod link;
mod meeting;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod rendezvous;
mod tcp;
mod threads;

use std::fmt::Debug;

pub use launch::{DEFAULT_PORT, Launcher, Place};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use rendezvous::{Rendezvous, Transport};
pub use tcp::Tcp;
pub use threads::Threads;

use crate::error::{Error, Result};

/// Callback for the end of another process, which is given an [`Error::Lost`].
pub type OnLoss = Box<dyn FnOnce(&Error) + Send>;

/// Communication of one process with the others of its group.
///
/// All processes of a group call the same methods in the same order. Processes are numbered from 0: their rank. A method
/// takes `count`, the number of processes that take part, which are the first ones.
pub trait Collective: Debug + Send {
    /// Returns the rank of this process.
    fn rank(&self) -> usize;

    /// Returns the number of processes.
    fn size(&self) -> usize;

    /// Sends a message to each of the first processes, this one among them, and receives one from each: `outgoing[r]` goes
    /// to process r. Returns the messages by rank.
    ///
    /// # Errors
    /// [`Error::Lost`] if another process has ended, or cannot be reached any more; [`Error::Group`] if this process is none
    /// of the first, or what arrives is no message.
    fn exchange(&mut self, outgoing: &[&[u8]]) -> Result<Vec<Vec<u8>>>;

    /// Sends one message to each of the first `count` processes, and receives theirs, by rank.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    fn gather(&mut self, count: usize, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.exchange(&vec![message; count])
    }

    /// Sends a message of process 0 to all, and returns it; the others' `message` does not matter.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    fn broadcast(&mut self, message: &[u8]) -> Result<Vec<u8>> {
        let outgoing = if self.rank() == 0 { message } else { &[] };
        let mut received = self.gather(self.size(), outgoing)?;
        Ok(received.swap_remove(0))
    }

    /// Returns for each of some flags whether it is set in any process.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    fn any(&mut self, own: &[bool]) -> Result<Vec<bool>> {
        let own: Vec<u8> = own.iter().map(|&flag| u8::from(flag)).collect();
        let all = self.gather(self.size(), &own)?;
        let is_set = |flag: usize| all.iter().any(|flags| flags.get(flag) != Some(&0));
        Ok((0..own.len()).map(is_set).collect())
    }

    /// Waits until all processes have come here.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    fn barrier(&mut self) -> Result<()> {
        self.gather(self.size(), &[]).map(drop)
    }

    /// Fails if another process is known to have ended: its messages will not come, and what is computed for it is in vain.
    /// One that cannot tell finds nothing.
    ///
    /// # Errors
    /// [`Error::Lost`].
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Calls back, in a thread of its own, as soon as another process is known to have ended, whatever this process computes.
    /// One that cannot tell never does.
    fn on_loss(&mut self, on_loss: OnLoss) {
        drop(on_loss);
    }

    /// Leaves the group after the last exchange, which all processes have taken part in.
    fn leave(&mut self) {}

    /// Adds up the values of the first `count` processes, element by element, and gives the sums to each.
    ///
    /// Here in order of their ranks, each process a part of the values; an implementation may choose another order.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange); [`Error::Group`] if another process has another number of values.
    fn sum(&mut self, count: usize, values: &mut [f32]) -> Result<()> {
        let len = values.len().div_ceil(count.max(1)).max(1);
        let parts: Vec<Vec<u8>> = values.chunks(len).map(bytes_of).collect();
        let part = |rank: usize| parts.get(rank).map_or(&[][..], Vec::as_slice);
        let received = self.exchange(&(0..count).map(part).collect::<Vec<_>>())?;
        let mut received = received.iter();
        let mut total = received.next().map(|first| floats_of(first)).transpose()?.unwrap_or_default();
        for part in received {
            add_bytes(&mut total, part)?;
        }
        let sums = self.gather(count, &bytes_of(&total))?;
        let mut at = values.chunks_mut(len);
        for sums in &sums {
            let sums = floats_of(sums)?;
            match at.next() {
                Some(to) if to.len() == sums.len() => to.copy_from_slice(&sums),
                None if sums.is_empty() => {}
                _ => return Err(garbled()),
            }
        }
        Ok(())
    }
}

/// A process on its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&mut self, outgoing: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        check_count(self, outgoing.len())?;
        Ok(outgoing.iter().map(|message| message.to_vec()).collect())
    }
}

/// The order in which the gradients of several processes are added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reduction {
    /// Micro-batch by micro-batch, whichever process has computed it: the number of processes does not change a bit.
    #[default]
    Ordered,
    /// Each process adds up its own micro-batches first: less to send where a process has several, and bits that depend on
    /// the number of processes.
    Fast,
}

/// The processes that train one model together, as one of them sees them.
#[derive(Debug)]
pub struct Group {
    pub(crate) collective: Box<dyn Collective>,
    pub(crate) reduction: Reduction,
    /// Whether processes divide the optimizer state among them.
    pub(crate) shards_state: bool,
}

impl Group {
    /// A single process.
    #[must_use]
    pub fn alone() -> Self {
        Self::new(Box::new(Alone), Reduction::default())
    }

    /// The processes that `collective` connects.
    #[must_use]
    pub fn new(collective: Box<dyn Collective>, reduction: Reduction) -> Self {
        Self { collective, reduction, shards_state: false }
    }

    /// Divides the optimizer state, moments and moving averages, among the processes: each holds that of the parameters that it
    /// owns, in place of all. The model has the same bits.
    #[must_use]
    pub fn with_sharded_state(self) -> Self {
        Self { shards_state: true, ..self }
    }

    /// Returns the rank of this process.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// Returns the number of processes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.collective.size()
    }

    /// Returns whether this is the process that writes files and reports.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Returns which of some flags are set in any process.
    pub(crate) fn any<const N: usize>(&mut self, own: [bool; N]) -> Result<[bool; N]> {
        let all = self.collective.any(&own)?;
        Ok(std::array::from_fn(|flag| all.get(flag) == Some(&true)))
    }

    /// Calls back as soon as another process is known to have ended; see [`Collective::on_loss`]. Training ends by itself once
    /// its micro-batch is computed, or its validation; a program that cannot wait as long ends here.
    pub fn on_loss(&mut self, on_loss: OnLoss) {
        self.collective.on_loss(on_loss);
    }

    /// Leaves the group after successful work, as all processes do. Without it the others take the end of this process for a
    /// failure.
    pub fn leave(mut self) {
        self.collective.leave();
    }

    /// Checks that something is the same in all processes, such as a fingerprint of what they read.
    ///
    /// # Errors
    /// [`Error::Group`] if it differs, in all processes; as [`Collective::exchange`].
    pub fn check_same(&mut self, what: &str, value: &str) -> Result<()> {
        let all = self.collective.gather(self.size(), value.as_bytes())?;
        match all.iter().position(|other| *other != all[0]) {
            Some(rank) => Err(Error::Group { problem: format!("process {rank} has {what} other than process 0") }),
            None => Ok(()),
        }
    }

    /// Makes the outcome of some work the same in all processes: if it has failed in one of them, it has failed in all.
    ///
    /// An error of another process that is known by its sentence is not agreed upon once more.
    ///
    /// # Errors
    /// That of `outcome`; [`Error::Elsewhere`] if it has failed in another process; as [`Collective::exchange`].
    pub fn agree<T>(&mut self, outcome: Result<T>) -> Result<T> {
        let is_known = |error: &Error| match error {
            Error::Elsewhere { problem, .. } => !problem.is_empty(),
            Error::Lost { .. } | Error::Group { .. } => true,
            _ => false,
        };
        let own = match &outcome {
            Err(error) if is_known(error) => return outcome,
            Err(Error::Elsewhere { .. }) | Ok(_) => None,
            Err(error) => Some([&[FAILED], diffae_infer::one_sentence(error).as_bytes()].concat()),
        };
        let size = self.size();
        if size == 1 {
            return outcome;
        }
        let all = self.collective.gather(size, own.as_deref().unwrap_or_default());
        match (outcome, all) {
            // The own error says more than that the others have left already.
            (Err(error), _) if own.is_some() => Err(error),
            (_, Err(lost)) => Err(lost),
            (outcome, Ok(all)) => match all.iter().enumerate().find(|(_, message)| message.first() == Some(&FAILED)) {
                Some((rank, message)) => {
                    let problem = String::from_utf8_lossy(&message[1..]).into_owned();
                    Err(Error::Elsewhere { rank, size, problem })
                }
                None => outcome,
            },
        }
    }
}

/// First byte of a message about a failure; one about a success is empty.
pub(crate) const FAILED: u8 = 1;

/// Fails if a process cannot exchange messages with that many.
pub(crate) fn check_count(collective: &dyn Collective, count: usize) -> Result<()> {
    let (rank, size) = (collective.rank(), collective.size());
    if rank < count && count <= size {
        return Ok(());
    }
    Err(Error::Group { problem: format!("process {rank} of {size} cannot exchange messages with {count}") })
}

/// An error of messages that do not belong together.
pub(crate) fn garbled() -> Error {
    let problem = "the processes do not do the same; start them with the same arguments and the same program";
    Error::Group { problem: problem.to_owned() }
}

/// Returns a count of eight little-endian bytes.
pub(crate) fn count_of(bytes: [u8; 8]) -> Result<usize> {
    usize::try_from(u64::from_le_bytes(bytes)).ok().ok_or_else(garbled)
}

/// Returns values as little-endian bytes.
pub(crate) fn bytes_of(values: &[f32]) -> Vec<u8> {
    diffae_nets::weights::float_bytes(values).into_owned()
}

/// Returns the values of little-endian bytes.
pub(crate) fn floats_of(bytes: &[u8]) -> Result<Vec<f32>> {
    let (values, []) = bytes.as_chunks::<4>() else { return Err(garbled()) };
    Ok(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

/// Adds values of little-endian bytes to others.
pub(crate) fn add_bytes(to: &mut [f32], bytes: &[u8]) -> Result<()> {
    let (values, []) = bytes.as_chunks::<4>() else { return Err(garbled()) };
    if values.len() != to.len() {
        return Err(garbled());
    }
    for (to, &bytes) in to.iter_mut().zip(values) {
        *to += f32::from_le_bytes(bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn in_all<R: Send>(size: usize, work: impl Fn(&mut Group) -> R + Sync) -> Vec<R> {
        let one = |member| work(&mut Group::new(Box::new(member), Reduction::Ordered));
        thread::scope(|scope| {
            let handles: Vec<_> = Threads::group(size).into_iter().map(|member| scope.spawn(|| one(member))).collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        })
    }

    fn failure(rank: usize) -> Error {
        Error::Setting { key: "seed", got: rank.to_string(), expected: "a better one" }
    }

    #[test]
    fn a_failure_in_one_process_is_one_in_all_with_its_sentence() {
        let errors = in_all(3, |group| {
            let rank = group.rank();
            let error = group.agree(if rank == 1 { Err(failure(1)) } else { Ok(()) }).unwrap_err();
            // Callers further up agree again, and nobody waits for those that have left.
            group.agree(Err::<(), _>(error)).unwrap_err()
        });
        assert!(matches!(errors[1], Error::Setting { .. }), "{errors:?}");
        for error in [&errors[0], &errors[2]] {
            assert_eq!(error.to_string(), "process 1 of 3 has failed: seed is 1, expected a better one");
        }
        assert!(in_all(2, |group| group.agree(Ok(7))).into_iter().all(|outcome| outcome.is_ok_and(|value| value == 7)));
    }

    #[test]
    fn what_differs_is_named_in_all_processes() {
        for told in in_all(3, |group| {
            group.check_same("a name", "same").unwrap();
            let own = if group.rank() == 2 { "other" } else { "same" };
            group.check_same("pictures", own).unwrap_err().to_string()
        }) {
            assert!(told.contains("process 2 has pictures other than process 0"), "{told}");
        }
    }
}
