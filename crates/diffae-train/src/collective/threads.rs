//! Processes that are threads of this one: for tests, and for several devices in one process.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::{Collective, check_count};
use crate::error::{Error, Result};

/// One thread of a group of threads.
#[derive(Debug)]
pub struct Threads {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

impl Threads {
    /// Makes a group; each of its members goes to a thread.
    ///
    /// A member that waits for others blocks its thread: give each a thread pool of its own, which it trains in.
    #[must_use]
    pub fn group(size: usize) -> Vec<Self> {
        let mut senders: Vec<Vec<_>> = (0..size).map(|_| vec![]).collect();
        let mut receivers: Vec<Vec<_>> = (0..size).map(|_| vec![]).collect();
        for from in &mut senders {
            for to in &mut receivers {
                let (sender, receiver) = channel();
                from.push(sender);
                to.push(receiver);
            }
        }
        let ends = senders.into_iter().zip(receivers).enumerate();
        ends.map(|(rank, (to, from))| Self { rank, to, from }).collect()
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn exchange(&mut self, outgoing: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        check_count(self, outgoing.len())?;
        let size = self.size();
        let lost = |rank| Error::Lost { rank, size, source: std::io::ErrorKind::BrokenPipe.into() };
        for (rank, (to, message)) in self.to.iter().zip(outgoing).enumerate() {
            to.send(message.to_vec()).ok().ok_or_else(|| lost(rank))?;
        }
        let received = self.from.iter().take(outgoing.len()).enumerate();
        received.map(|(rank, from)| from.recv().ok().ok_or_else(|| lost(rank))).collect()
    }
}
