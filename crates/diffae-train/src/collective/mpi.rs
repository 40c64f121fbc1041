//! Processes that MPI connects.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use mpi::Threading;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, Destination, Source};

use super::{Collective, check_count};
use crate::error::{Error, Result};

/// Maximum length of a part of a message: MPI counts in 32 bits. A part that is shorter is the last of its message.
const PART_LEN: usize = 1 << 30;

/// A process of a group that MPI connects: `mpirun` has started all of them.
///
/// MPI ends all processes when one of them ends without [`leave`](Collective::leave).
#[derive(Debug)]
pub struct Mpi {
    rank: usize,
    size: usize,
    /// Messages to exchange; a thread of its own calls MPI, which belongs to the thread that has initialized it.
    requests: Option<Sender<Vec<Vec<u8>>>>,
    replies: Receiver<Vec<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Mpi {
    /// Joins the group of all processes that were started together (`MPI_COMM_WORLD`).
    ///
    /// # Errors
    /// [`Error::Group`] if MPI cannot be initialized, or has been in this process.
    pub fn join() -> Result<Self> {
        let (requests, incoming) = channel::<Vec<Vec<u8>>>();
        let (outgoing, replies) = channel();
        let (tell, told) = channel();
        let failed = || Error::Group { problem: "MPI cannot be initialized".to_owned() };
        let work = move || {
            let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else { return };
            let world = universe.world();
            let number = |value: i32| usize::try_from(value).unwrap_or(0);
            let mut is_wanted = tell.send((number(world.rank()), number(world.size()))).is_ok();
            while let (true, Ok(messages)) = (is_wanted, incoming.recv()) {
                is_wanted = outgoing.send(exchange(&world, &messages)).is_ok();
            }
            // The end of the universe waits for that of the others.
        };
        let thread = thread::Builder::new().name("mpi".to_owned()).spawn(work).ok();
        let (rank, size) = told.recv().ok().ok_or_else(failed)?;
        Ok(Self { rank, size, requests: Some(requests), replies, thread })
    }
}

/// Sends a message to each of the first processes, and receives one from each.
fn exchange(world: &SimpleCommunicator, messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let ranks = || (0..).zip(messages);
    let parts = |message: &Vec<u8>| message.len().checked_div(PART_LEN).unwrap_or(0) + 1;
    mpi::request::multiple_scope(messages.iter().map(parts).sum(), |scope, sent| {
        for (rank, message) in ranks() {
            for part in 0..parts(message) {
                let range = part * PART_LEN..message.len().min((part + 1) * PART_LEN);
                sent.add(world.process_at_rank(rank).immediate_send(scope, &message[range]));
            }
        }
        let receive = |(rank, _)| {
            let (mut message, _) = world.process_at_rank(rank).receive_vec::<u8>();
            let mut is_whole = message.len() < PART_LEN;
            while !is_whole {
                let (part, _) = world.process_at_rank(rank).receive_vec::<u8>();
                is_whole = part.len() < PART_LEN;
                message.extend(part);
            }
            message
        };
        let received = ranks().map(receive).collect();
        sent.wait_all(&mut vec![]);
        received
    })
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&mut self, outgoing: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        check_count(self, outgoing.len())?;
        let ended = || Error::Group { problem: "MPI has ended".to_owned() };
        let messages = outgoing.iter().map(|message| message.to_vec()).collect();
        let requests = self.requests.as_ref().ok_or_else(ended)?;
        requests.send(messages).ok().ok_or_else(ended)?;
        self.replies.recv().ok().ok_or_else(ended)
    }

    fn leave(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
