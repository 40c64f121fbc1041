//! A connection between two processes of a group, and what both know of each other's end.
//!
//! At each end one thread reads and another one writes, whatever the process computes. So a message leaves and arrives while
//! its process is busy, a process that has ended is noticed at once, and a machine that has gone silent after a while: each end
//! sends a sign of life now and then. A process that is slow, or stopped for a time together with all others, is not lost.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::OnLoss;
use crate::error::Error;

/// First bytes of what travels: a message with its length, a sign of life, the loss of a process with its rank, and a farewell.
const MESSAGE: u8 = b'm';
const ALIVE: u8 = b'.';
const LOSS: u8 = b'x';
const BYE: u8 = b'q';
/// Maximum length of a message, 64 GiB: a larger one is none.
const MAX_LEN: u64 = 1 << 36;
/// Bytes that room is made for at once: a length alone takes no memory.
const CHUNK_LEN: usize = 1 << 24;
/// Bytes of the stack of a thread, which does nothing but read or write.
const STACK_LEN: usize = 1 << 17;
/// Time between two looks at whether a process is lost.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Time that messages of others may still take when a process is lost: what all have agreed on goes before its end.
const GRACE: Duration = Duration::from_secs(3);
/// Time for what is still to be sent when a process ends after a failure.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Times after which a process that can be heard no more is taken for lost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pulse {
    /// Time after which a process that has nothing to say gives a sign of life.
    pub(super) beat: Duration,
    /// Time that a process listens at once.
    pub(super) wait: Duration,
    /// Number of waits without a byte after which the other process is lost. Waits are counted, since a process that was
    /// stopped for a time has not listened.
    pub(super) num_waits: u32,
    /// Number of waits for the first byte: the other process may still be meeting others.
    pub(super) num_first_waits: u32,
}

impl Default for Pulse {
    /// 16 seconds, and 20 minutes for the first byte.
    fn default() -> Self {
        Self { beat: Duration::from_secs(3), wait: Duration::from_secs(4), num_waits: 4, num_first_waits: 300 }
    }
}

/// The first process of a group that was lost, as far as this process knows.
#[derive(Debug)]
struct Loss {
    rank: usize,
    cause: String,
    since: Instant,
}

/// Knowledge of a process about the end of others, shared by the threads of its connections.
#[derive(Debug)]
pub(super) struct Alarm {
    rank: usize,
    size: usize,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    loss: Option<Loss>,
    /// Whether this process has left, or is about to end: what others do is of no interest.
    is_over: bool,
    on_loss: Option<OnLoss>,
    /// Threads that write to the others, who are told.
    writers: Vec<Sender<Outgoing>>,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Known")
            .field("loss", &self.loss)
            .field("is_over", &self.is_over)
            .finish_non_exhaustive()
    }
}

impl Alarm {
    pub(super) fn new(rank: usize, size: usize) -> Arc<Self> {
        Arc::new(Self { rank, size, known: Mutex::default() })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the error of a lost process, if one is known.
    pub(super) fn loss(&self) -> Option<Error> {
        self.known().loss.as_ref().map(|loss| self.error(loss))
    }

    fn error(&self, loss: &Loss) -> Error {
        let &Self { rank, size, .. } = self;
        if loss.rank == rank {
            let problem = format!(
                "the others have not heard of process {rank} of {size}, this one, for too long, and have ended; the last \
                 checkpoint is kept, and --resume goes on from it"
            );
            return Error::Group { problem };
        }
        Error::Lost { rank: loss.rank, size: self.size, source: io::Error::other(loss.cause.clone()) }
    }

    /// Keeps the loss of a process, tells all others of it, and calls back. Only the first one counts: others end because of
    /// it.
    fn raise(&self, rank: usize, cause: &io::Error) {
        let mut known = self.known();
        if known.is_over || known.loss.is_some() {
            return;
        }
        let loss = Loss { rank, cause: cause.to_string(), since: Instant::now() };
        let error = self.error(&loss);
        known.loss = Some(loss);
        for writer in known.writers.drain(..) {
            // One that has ended has no reader either.
            let _ = writer.send(Outgoing::Loss(rank));
        }
        if let Some(on_loss) = known.on_loss.take() {
            call_back(on_loss, error);
        }
    }

    /// Calls back once a process is lost.
    pub(super) fn set_on_loss(&self, on_loss: OnLoss) {
        let mut known = self.known();
        match known.loss.as_ref().map(|loss| self.error(loss)) {
            Some(error) => call_back(on_loss, error),
            None => known.on_loss = Some(on_loss),
        }
    }

    /// Is called before this process ends its connections.
    fn end(&self) {
        let mut known = self.known();
        known.is_over = true;
        known.on_loss = None;
        known.writers.clear();
    }

    /// Returns the error of a lost process once there was time for the messages of others.
    pub(super) fn overdue(&self) -> Option<Error> {
        let known = self.known();
        known.loss.as_ref().filter(|loss| loss.since.elapsed() > GRACE).map(|loss| self.error(loss))
    }
}

/// Calls back in a thread of its own, since readers have to read.
fn call_back(on_loss: OnLoss, error: Error) {
    // Without one more thread the loss is noticed by the next exchange.
    let _ = thread::Builder::new().name("on-loss".to_owned()).spawn(move || on_loss(&error));
}

/// A task of a writer.
enum Outgoing {
    Message(Arc<[u8]>),
    Loss(usize),
    Bye,
}

/// A connection to another process.
#[derive(Debug)]
pub(super) struct Link {
    rank: usize,
    alarm: Arc<Alarm>,
    stream: TcpStream,
    /// `None` once this process has nothing more to say.
    outgoing: Option<Sender<Outgoing>>,
    incoming: Receiver<Vec<u8>>,
    writer: JoinHandle<()>,
}

impl Link {
    /// Starts the threads of a connection to process `rank`.
    pub(super) fn new(rank: usize, stream: TcpStream, alarm: &Arc<Alarm>, pulse: Pulse) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(pulse.wait))?;
        let (outgoing, to_send) = channel();
        let (arrived, incoming) = channel();
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.to_owned()).stack_size(STACK_LEN).spawn(work)
        };
        let (writing, reading) = (stream.try_clone()?, stream.try_clone()?);
        let writer = spawn("writer", Box::new(move || write_all(writing, &to_send, pulse.beat)))?;
        let mut listener = Listener { stream: reading, pulse, has_heard: false };
        let reader_alarm = Arc::clone(alarm);
        spawn(
            "reader",
            Box::new(move || {
                if let Err(error) = listener.read_all(&arrived, &reader_alarm) {
                    reader_alarm.raise(rank, &error);
                    // What blocks at sending ends, too.
                    let _ = listener.stream.shutdown(Shutdown::Both);
                }
            }),
        )?;
        alarm.known().writers.push(outgoing.clone());
        Ok(Self { rank, alarm: Arc::clone(alarm), stream, outgoing: Some(outgoing), incoming, writer })
    }

    /// Sends a message, some time. One that cannot be sent is noticed where messages arrive.
    pub(super) fn send(&self, message: Arc<[u8]>) {
        let _ = self.outgoing.as_ref().map(|outgoing| outgoing.send(Outgoing::Message(message)));
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// [`Error::Lost`] if this process has ended without one, or another one and time has passed since.
    pub(super) fn receive(&self) -> Result<Vec<u8>, Error> {
        loop {
            match self.incoming.recv_timeout(LOOK_EVERY) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Timeout) => self.alarm.overdue().map_or(Ok(()), Err)?,
                Err(RecvTimeoutError::Disconnected) => {
                    let has_left = || Error::Lost {
                        rank: self.rank,
                        size: self.alarm.size,
                        source: io::ErrorKind::UnexpectedEof.into(),
                    };
                    return Err(self.alarm.loss().unwrap_or_else(has_left));
                }
            }
        }
    }
}

/// Way in which a process ends its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    /// Others are told that it has done its work.
    Told,
    /// Others notice that it ends without.
    None,
}

/// Ends connections.
pub(super) fn end(links: &mut Vec<Link>, farewell: Farewell) {
    let is_done = farewell == Farewell::Told;
    let Some(first) = links.first() else { return };
    first.alarm.end();
    for link in links.iter_mut() {
        if let Some(outgoing) = link.outgoing.take().filter(|_| is_done) {
            let _ = outgoing.send(Outgoing::Bye);
        }
    }
    // Writers end when they have sent all, or when nobody is there any more; after a failure nobody waits for long.
    let until = Instant::now() + FLUSH_TIMEOUT;
    let has_time = || is_done || Instant::now() < until;
    while links.iter().any(|link| !link.writer.is_finished()) && has_time() {
        thread::sleep(Duration::from_millis(1));
    }
    for link in links.drain(..) {
        let _ = link.stream.shutdown(if link.writer.is_finished() { Shutdown::Write } else { Shutdown::Both });
    }
}

/// Sends what it is asked to, and signs of life in between, until nobody asks any more.
fn write_all(mut stream: TcpStream, to_send: &Receiver<Outgoing>, beat: Duration) {
    // The other end hears at once that this process has met all.
    if stream.write_all(&[ALIVE]).is_err() {
        return;
    }
    loop {
        let written = match to_send.recv_timeout(beat) {
            Ok(Outgoing::Message(message)) => stream
                .write_all(&[&[MESSAGE], &(message.len() as u64).to_le_bytes()[..]].concat())
                .and_then(|()| stream.write_all(&message)),
            Ok(Outgoing::Loss(rank)) => stream.write_all(&[&[LOSS], &(rank as u64).to_le_bytes()[..]].concat()),
            Ok(Outgoing::Bye) => stream.write_all(&[BYE]),
            Err(RecvTimeoutError::Timeout) => stream.write_all(&[ALIVE]),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if written.is_err() {
            // The reader knows why.
            return;
        }
    }
}

/// The reading end of a connection.
struct Listener {
    stream: TcpStream,
    pulse: Pulse,
    /// Whether any byte has come.
    has_heard: bool,
}

impl Listener {
    /// Reads until the other process says farewell.
    fn read_all(&mut self, arrived: &Sender<Vec<u8>>, alarm: &Alarm) -> io::Result<()> {
        loop {
            let [kind] = self.take()?;
            match kind {
                ALIVE => {}
                BYE => return Ok(()),
                LOSS => {
                    let rank = usize::try_from(u64::from_le_bytes(self.take()?)).ok().filter(|&rank| rank < alarm.size);
                    alarm.raise(
                        rank.ok_or(io::ErrorKind::InvalidData)?,
                        &io::Error::other("another process has noticed it"),
                    );
                }
                MESSAGE => {
                    let len = u64::from_le_bytes(self.take()?);
                    let len = usize::try_from(len).ok().filter(|_| len <= MAX_LEN).ok_or(io::ErrorKind::InvalidData)?;
                    let mut message = vec![];
                    while message.len() < len {
                        let at = message.len();
                        message.resize(len.min(at + CHUNK_LEN), 0);
                        self.fill(&mut message[at..])?;
                    }
                    // Nobody may wait for it any more.
                    let _ = arrived.send(message);
                }
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Fills bytes, however long that takes, as long as some come.
    fn fill(&mut self, mut bytes: &mut [u8]) -> io::Result<()> {
        let mut num_silent = 0;
        while !bytes.is_empty() {
            match self.stream.read(bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    bytes = &mut bytes[len..];
                    (num_silent, self.has_heard) = (0, true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    num_silent += 1;
                    let Pulse { num_waits, num_first_waits, .. } = self.pulse;
                    if num_silent >= if self.has_heard { num_waits } else { num_first_waits } {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, "it is silent"));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
