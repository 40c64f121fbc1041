//! Processes that meet by TCP, and exchange messages by other means.

use std::marker::PhantomData;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Collective, OnLoss, Tcp, check_count};
use crate::error::{Error, Result};

/// Time between two looks at whether a process is lost.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A way to exchange messages among processes that know an id of their group, such as NCCL.
///
/// A thread of its own creates and uses it; what blocks there does not keep the process from ending.
pub trait Transport: Sized + 'static {
    /// Creates the id of a group, in its first process.
    ///
    /// # Errors
    /// A sentence, if it cannot.
    fn new_id() -> std::result::Result<Vec<u8>, String>;

    /// Joins the group of an id, as process `rank` of `size`, as all others do.
    ///
    /// # Errors
    /// A sentence, if it cannot.
    fn connect(id: &[u8], rank: usize, size: usize) -> std::result::Result<Self, String>;

    /// Sends a message to each of the first processes, this one among them, and receives one from each; see
    /// [`Collective::exchange`].
    ///
    /// # Errors
    /// A sentence, if it cannot.
    fn exchange(&mut self, outgoing: &[Vec<u8>]) -> std::result::Result<Vec<Vec<u8>>, String>;
}

/// A process of a group that has met by TCP, which tells the end of any process, and exchanges messages by `T`.
#[derive(Debug)]
pub struct Rendezvous<T> {
    rank: usize,
    size: usize,
    tcp: Tcp,
    requests: Option<Sender<Vec<Vec<u8>>>>,
    replies: Receiver<std::result::Result<Vec<Vec<u8>>, String>>,
    thread: Option<JoinHandle<()>>,
    transport: PhantomData<fn() -> T>,
}

impl<T: Transport> Rendezvous<T> {
    /// Gives the id of the first process to all those of `tcp`, and connects them by `T`.
    ///
    /// # Errors
    /// [`Error::Group`] if they cannot be connected; [`Error::Elsewhere`] if the first process has no id; [`Error::Lost`] if
    /// another process has ended.
    pub fn join(mut tcp: Tcp) -> Result<Self> {
        let (rank, size) = (tcp.rank(), tcp.size());
        let problem = |problem: String| Error::Group { problem };
        let own = if rank == 0 { T::new_id() } else { Ok(vec![]) };
        let id = tcp.broadcast(own.as_deref().unwrap_or_default())?;
        own.map_err(problem)?;
        if id.is_empty() {
            return Err(Error::Elsewhere { rank: 0, size, problem: "there is no id of the group".to_owned() });
        }
        let (requests, incoming) = channel::<Vec<Vec<u8>>>();
        let (outgoing, replies) = channel();
        let work = move || {
            let mut transport = match T::connect(&id, rank, size) {
                Ok(transport) => transport,
                Err(sentence) => return drop(outgoing.send(Err(sentence))),
            };
            let mut is_wanted = outgoing.send(Ok(vec![])).is_ok();
            while let (true, Ok(messages)) = (is_wanted, incoming.recv()) {
                is_wanted = outgoing.send(transport.exchange(&messages)).is_ok();
            }
        };
        let thread = thread::Builder::new().name("transport".to_owned()).spawn(work);
        let thread = Some(thread.map_err(|error| problem(format!("a thread cannot be started: {error}")))?);
        let (requests, transport) = (Some(requests), PhantomData);
        let mut joined = Self { rank, size, tcp, requests, replies, thread, transport };
        joined.reply()?;
        Ok(joined)
    }

    /// Waits for the transport, unless a process is lost.
    fn reply(&mut self) -> Result<Vec<Vec<u8>>> {
        loop {
            match self.replies.recv_timeout(LOOK_EVERY) {
                Ok(Ok(messages)) => return Ok(messages),
                // Where a process has ended, that is the reason.
                Ok(Err(problem)) => return Err(self.tcp.check().err().unwrap_or(Error::Group { problem })),
                Err(RecvTimeoutError::Timeout) => self.tcp.check_overdue()?,
                Err(RecvTimeoutError::Disconnected) => {
                    let problem = "the connection of the processes has ended".to_owned();
                    return Err(self.tcp.check().err().unwrap_or(Error::Group { problem }));
                }
            }
        }
    }
}

impl<T: Transport + std::fmt::Debug> Collective for Rendezvous<T> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&mut self, outgoing: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        check_count(self, outgoing.len())?;
        let messages = outgoing.iter().map(|message| message.to_vec()).collect();
        // One that cannot be sent finds no reply either.
        let _ = self.requests.as_ref().map(|requests| requests.send(messages));
        self.reply()
    }

    fn check(&self) -> Result<()> {
        self.tcp.check()
    }

    fn on_loss(&mut self, on_loss: OnLoss) {
        self.tcp.on_loss(on_loss);
    }

    fn leave(&mut self) {
        // The end of a transport may take back what others have not received yet.
        let _ = self.tcp.barrier();
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.tcp.leave();
    }
}
