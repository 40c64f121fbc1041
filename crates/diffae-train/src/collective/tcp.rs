//! Processes that are connected by TCP, each with each.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use super::launch::{DEFAULT_PORT, Place};
use super::{Collective, check_count};
use crate::error::{Error, Result};

/// First bytes of a connection.
const MAGIC: &[u8; 16] = b"diffae group 1\r\n";
/// Bytes that a process introduces itself with: magic, key of the job, rank, size and port.
const HELLO_LEN: usize = 16 + 32 + 4 + 4 + 2;
/// Time that a process has to introduce itself.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(50);
/// Time after which a process says that it waits.
const SAY_AFTER: Duration = Duration::from_secs(15);
/// Time after which a silent connection is probed, time between probes, and their number: a machine that is gone is noticed
/// after 20 seconds. A process that has ended is noticed at once.
const PROBE_AFTER: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;
/// Maximum length of a message, 64 GiB: a larger one is none.
const MAX_LEN: u64 = 1 << 36;

/// A process of a group that is connected by TCP.
///
/// Numbers travel as they are, without encryption: the network is that of the job.
#[derive(Debug)]
pub struct Tcp {
    rank: usize,
    /// Connection to each process; none to itself.
    peers: Vec<Option<TcpStream>>,
}

/// The introduction of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hello {
    key: [u8; 32],
    rank: usize,
    size: usize,
    /// Port where the process waits for those of higher rank.
    port: u16,
}

impl Hello {
    fn bytes(&self) -> Vec<u8> {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
        [&MAGIC[..], &self.key, &number(self.rank), &number(self.size), &self.port.to_le_bytes()].concat()
    }

    fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut bytes = [0; HELLO_LEN];
        stream.read_exact(&mut bytes)?;
        let Some(rest) = bytes.strip_prefix(MAGIC) else { return Err(io::ErrorKind::InvalidData.into()) };
        let mut rest = rest;
        let key = take(&mut rest)?;
        let mut number = || Ok::<_, io::Error>(u32::from_le_bytes(take(&mut rest)?) as usize);
        let (rank, size) = (number()?, number()?);
        Ok(Self { key, rank, size, port: u16::from_le_bytes(take(&mut rest)?) })
    }
}

/// Takes the first bytes.
fn take<const N: usize>(rest: &mut &[u8]) -> io::Result<[u8; N]> {
    let (first, others) = rest.split_first_chunk::<N>().ok_or(io::ErrorKind::InvalidData)?;
    *rest = others;
    Ok(*first)
}

impl Tcp {
    /// Joins the group: process 0 waits at the address of `place`, and the others go there.
    ///
    /// Only processes with the same `key` and the same size of the group are let in.
    ///
    /// # Errors
    /// [`Error::Group`] if process 0 cannot wait at the address, or not all have come within `patience`.
    pub fn join(place: &Place, key: &[u8], patience: Duration) -> Result<Self> {
        let key = *blake3::hash(key).as_bytes();
        let joining = Joining { place, key, until: Instant::now() + patience, patience };
        let peers = if place.rank == 0 { joining.lead()? } else { joining.follow()? };
        for stream in peers.iter().flatten() {
            prepare(stream).map_err(|source| problem(&format!("a connection cannot be set up: {source}")))?;
        }
        Ok(Self { rank: place.rank, peers })
    }

    /// Returns the connection to each process; none to this one.
    pub(super) fn into_peers(self) -> Vec<Option<TcpStream>> {
        self.peers
    }

    fn connection(&self, rank: usize) -> io::Result<&TcpStream> {
        self.peers.get(rank).and_then(Option::as_ref).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// A group that is being made.
struct Joining<'a> {
    place: &'a Place,
    key: [u8; 32],
    until: Instant,
    patience: Duration,
}

type Peers = Vec<Option<TcpStream>>;

impl Joining<'_> {
    /// Lets all others in, and tells them where they are.
    fn lead(&self) -> Result<Peers> {
        let Place { size, address, .. } = self.place;
        let listener = listen(address, port_of(address))
            .map_err(|source| problem(&format!("process 0 cannot wait at {address} for the others: {source}")))?;
        let mut peers: Peers = (0..*size).map(|_| None).collect();
        let mut table = vec![String::new(); *size];
        self.accept(&listener, &mut peers, 1, &mut |hello, from| {
            if let Some(entry) = table.get_mut(hello.rank) {
                // A process on this machine may come by its loopback device, where those of other machines cannot go.
                let from = from.to_canonical();
                *entry = match host_of(address) {
                    host if from.is_loopback() && !is_loopback(address) => format!("{host}:{}", hello.port),
                    _ => SocketAddr::new(from, hello.port).to_string(),
                };
            }
        })?;
        let table = table.join("\n");
        for (rank, peer) in peers.iter_mut().enumerate() {
            if let Some(stream) = peer {
                send(stream, table.as_bytes()).map_err(|source| Error::Lost { rank, size: *size, source })?;
            }
        }
        Ok(peers)
    }

    /// Goes to process 0, and then to all of lower rank; those of higher rank come.
    fn follow(&self) -> Result<Peers> {
        let &Place { rank, size, ref address } = self.place;
        let mut first =
            self.connect(|| address.to_socket_addrs().map(Iterator::collect), &format!("process 0 at {address}"))?;
        let failed = |source: io::Error| {
            problem(&format!(
                "process 0 at {address} does not let this one in; it has ended, or is of another job, version or options: {source}"
            ))
        };
        let listener = listen(address, 0).map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let hello = Hello { key: self.key, rank, size, port }.bytes();
        first.write_all(&hello).map_err(failed)?;
        first.set_read_timeout(Some(self.patience)).map_err(failed)?;
        let table = receive(&mut first).map_err(failed)?;
        let table = String::from_utf8_lossy(&table).into_owned();
        let mut peers: Peers = (0..size).map(|_| None).collect();
        for (lower, entry) in table.split('\n').enumerate().take(rank).skip(1) {
            let mut stream = self
                .connect(|| entry.to_socket_addrs().map(Iterator::collect), &format!("process {lower} at {entry}"))?;
            stream.write_all(&hello).map_err(|source| Error::Lost { rank: lower, size, source })?;
            peers[lower] = Some(stream);
        }
        peers[0] = Some(first);
        self.accept(&listener, &mut peers, rank + 1, &mut |_, _| {})?;
        Ok(peers)
    }

    /// Lets in the processes from a rank on; strangers are turned away.
    fn accept(
        &self,
        listener: &TcpListener,
        peers: &mut Peers,
        from_rank: usize,
        on_arrival: &mut dyn FnMut(&Hello, IpAddr),
    ) -> Result<()> {
        let failed = |source: io::Error| problem(&format!("nobody can be let in: {source}"));
        listener.set_nonblocking(true).map_err(failed)?;
        let size = peers.len();
        let mut say = self.saying();
        loop {
            let missing: Vec<String> =
                (from_rank..size).filter(|&rank| peers[rank].is_none()).map(|rank| rank.to_string()).collect();
            if missing.is_empty() {
                return Ok(());
            }
            match listener.accept() {
                Ok((stream, from)) => match self.hello(stream) {
                    Ok((hello, stream)) if (from_rank..size).contains(&hello.rank) && peers[hello.rank].is_none() => {
                        on_arrival(&hello, from.ip());
                        peers[hello.rank] = Some(stream);
                    }
                    Ok((hello, _)) => tracing::warn!("a second process {} of {size} is turned away", hello.rank),
                    Err(error) => tracing::warn!("a connection from {from} is turned away: {error}"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() > self.until {
                        let (secs, missing) = (self.patience.as_secs(), missing.join(", "));
                        return Err(problem(&format!(
                            "of {size} processes, these have not come within {secs} s: {missing}"
                        )));
                    }
                    say(&format!("{} of {size} processes: {}", missing.len(), missing.join(", ")));
                    thread::sleep(RETRY);
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Reads the introduction of a process, and checks that it is one of this job.
    fn hello(&self, mut stream: TcpStream) -> io::Result<(Hello, TcpStream)> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
        let hello = Hello::read(&mut stream)?;
        let size = self.place.size;
        if hello.size != size {
            return Err(io::Error::other(format!("it is one of {} processes, not of {size}", hello.size)));
        }
        if hello.key != self.key {
            return Err(io::Error::other("it is of another job, or of another version"));
        }
        Ok((hello, stream))
    }

    /// Connects, and tries again until the others have had time to start.
    fn connect(&self, to: impl Fn() -> io::Result<Vec<SocketAddr>>, whom: &str) -> Result<TcpStream> {
        let mut say = self.saying();
        loop {
            let connected = to().and_then(|to| TcpStream::connect(to.as_slice()));
            match connected {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > self.until => {
                    let secs = self.patience.as_secs();
                    return Err(problem(&format!("{whom} is not reached within {secs} s: {error}")));
                }
                Err(_) => {
                    say(whom);
                    thread::sleep(RETRY);
                }
            }
        }
    }

    /// Returns what says once, after a while, whom this process waits for.
    fn saying(&self) -> impl FnMut(&str) {
        let (start, mut is_said, secs) = (Instant::now(), false, self.patience.as_secs());
        move |whom| {
            if !is_said && start.elapsed() > SAY_AFTER {
                tracing::warn!("waiting for {whom} (at most {secs} s)");
                is_said = true;
            }
        }
    }
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(DEFAULT_PORT)
}

/// Returns whether an address is written as one of this machine alone.
fn is_loopback(address: &str) -> bool {
    let host = host_of(address).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Listens at a port: where the address is written as one of this machine alone, there, else on all its networks, since the
/// machine's own name may lead to its loopback device.
fn listen(address: &str, port: u16) -> io::Result<TcpListener> {
    if is_loopback(address) {
        return TcpListener::bind((host_of(address).trim_matches(['[', ']']), port));
    }
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_no_ipv6| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
}

fn problem(problem: &str) -> Error {
    Error::Group { problem: problem.to_owned() }
}

/// Makes a connection quick, and lets it notice a machine that is gone.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(None)?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_AFTER).with_retries(PROBES),
    )?;
    // What has been sent and is not acknowledged keeps the probes away.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(PROBE_AFTER * (PROBES + 1)))?;
    Ok(())
}

fn send(stream: &mut impl Write, message: &[u8]) -> io::Result<()> {
    stream.write_all(&(message.len() as u64).to_le_bytes())?;
    stream.write_all(message)
}

fn receive(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    stream.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_LEN {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![];
    stream.take(len).read_to_end(&mut message)?;
    if message.len() as u64 == len { Ok(message) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.peers.len()
    }

    fn exchange(&mut self, outgoing: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let (rank, count) = (self.rank, outgoing.len());
        check_count(self, count)?;
        // In step s each process sends to the one s places above it, and receives from the one s places below.
        let above = (1..count).map(|step| (rank + step) % count);
        let below = (1..count).map(|step| (rank + count - step) % count);
        let first_error: Mutex<Option<Error>> = Mutex::new(None);
        let fail = |rank: usize, source: io::Error| {
            let mut error = first_error.lock().unwrap_or_else(PoisonError::into_inner);
            error.get_or_insert_with(|| Error::Lost { rank, size: self.peers.len(), source });
            // The other half of the exchange ends, and so do the other processes.
            for stream in self.peers.iter().flatten() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        };
        let mut received = vec![vec![]; count];
        thread::scope(|scope| {
            scope.spawn(|| {
                for to in above {
                    if let Err(source) = self.connection(to).and_then(|mut stream| send(&mut stream, outgoing[to])) {
                        return fail(to, source);
                    }
                }
            });
            for from in below {
                match self.connection(from).and_then(|mut stream| receive(&mut stream)) {
                    Ok(message) => received[from] = message,
                    Err(source) => return fail(from, source),
                }
            }
        });
        received[rank] = outgoing[rank].to_vec();
        match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(received),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn free_address() -> String {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
    }

    /// Runs `work` in each process of a group.
    fn group<R: Send>(size: usize, work: impl Fn(Tcp) -> R + Sync) -> Vec<R> {
        let address = free_address();
        let one = |rank: usize| work(Tcp::join(&Place::new(rank, size, &address).unwrap(), b"test", PATIENCE).unwrap());
        thread::scope(|scope| {
            let one = &one;
            // The first one comes last.
            let handles: Vec<_> = (0..size).rev().map(|rank| scope.spawn(move || one(rank))).collect();
            handles.into_iter().rev().map(|handle| handle.join().unwrap()).collect()
        })
    }

    /// A message from one process to another, of a length that fills the buffers of a connection.
    fn message(from: usize, to: usize) -> Vec<u8> {
        vec![u8::try_from(10 * from + to).unwrap(); (from + to) * 3_000_000]
    }

    #[test]
    fn each_process_gets_the_messages_of_all() {
        for size in [2, 4] {
            group(size, |mut tcp| {
                let rank = tcp.rank();
                let outgoing: Vec<Vec<u8>> = (0..size).map(|to| message(rank, to)).collect();
                let received = tcp.exchange(&outgoing.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
                assert!(received.iter().enumerate().all(|(from, got)| *got == message(from, rank)));
                assert_eq!(tcp.broadcast(&[u8::try_from(rank).unwrap() + 7]).unwrap(), [7]);
                assert_eq!(tcp.any(&[rank == 1, false]).unwrap(), [true, false]);
                let mut values: Vec<f32> = (0..5).map(|i| (i + rank) as f32).collect();
                tcp.sum(size, &mut values).unwrap();
                let offset = (0..size).sum::<usize>();
                assert_eq!(values, (0..5).map(|i| (size * i + offset) as f32).collect::<Vec<_>>());
                // Some of them alone.
                if rank < 2 {
                    assert_eq!(tcp.gather(2, &[5]).unwrap(), [[5], [5]]);
                } else {
                    assert!(matches!(tcp.gather(2, &[5]), Err(Error::Group { .. })));
                }
                tcp.barrier().unwrap();
            });
        }
    }

    #[test]
    fn the_end_of_a_process_ends_the_exchange_of_all() {
        let start = Instant::now();
        let errors = group(3, |mut tcp| {
            tcp.barrier().unwrap();
            if tcp.rank() == 1 { None } else { Some(tcp.gather(3, &vec![0; 10_000_000]).unwrap_err()) }
        });
        for error in errors.into_iter().flatten() {
            assert!(matches!(error, Error::Lost { size: 3, .. }), "{error}");
        }
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn strangers_are_turned_away_and_the_group_is_made() {
        let address = free_address();
        let place = |rank| Place::new(rank, 2, &address).unwrap();
        thread::scope(|scope| {
            let first = scope.spawn(|| Tcp::join(&place(0), b"test", PATIENCE));
            let connect = || {
                let start = Instant::now();
                loop {
                    match TcpStream::connect(&address) {
                        Ok(stream) => break stream,
                        Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
                    }
                    thread::sleep(RETRY);
                }
            };
            connect().write_all(&[b'x'; HELLO_LEN]).unwrap();
            drop(connect());
            assert!(Tcp::join(&place(1), b"another", PATIENCE).is_err());
            assert!(Tcp::join(&Place::new(1, 3, &address).unwrap(), b"test", PATIENCE).is_err());
            let second = Tcp::join(&place(1), b"test", PATIENCE).unwrap();
            assert_eq!((second.rank(), second.size()), (1, 2));
            assert_eq!(first.join().unwrap().unwrap().size(), 2);
        });
    }

    #[test]
    fn only_addresses_of_this_machine_keep_others_out() {
        for address in ["127.0.0.1:5", "localhost:5", "[::1]:5", "127.0.1.1:5"] {
            assert!(is_loopback(address), "{address}");
            assert_eq!(port_of(address), 5);
        }
        for address in ["node01:5", "10.0.0.1:5", "[fe80::1]:5"] {
            assert!(!is_loopback(address), "{address}");
        }
        let own = listen("localhost:0", 0).unwrap().local_addr().unwrap();
        assert!(own.ip().is_loopback());
        assert!(listen("node01:0", 0).unwrap().local_addr().unwrap().ip().is_unspecified());
    }

    #[test]
    fn processes_that_do_not_come_are_named() {
        let address = free_address();
        let patience = Duration::from_millis(300);
        let join =
            |rank| Tcp::join(&Place::new(rank, 3, &address).unwrap(), b"test", patience).unwrap_err().to_string();
        assert!(join(0).contains("of 3 processes, these have not come within 0 s: 1, 2"), "{}", join(0));
        assert!(join(1).contains("process 0 at 127.0.0.1") && join(1).contains("is not reached"), "{}", join(1));
    }
}
