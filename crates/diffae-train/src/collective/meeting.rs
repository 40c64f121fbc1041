//! The meeting of the processes of a group: process 0 waits at an address, and in the end each is connected with each.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::launch::{DEFAULT_PORT, Place};
use crate::error::{Error, Result};

/// First bytes of a connection.
const MAGIC: &[u8; 16] = b"diffae group 2\r\n";
/// Bytes that a process introduces itself with: magic, key of the job, rank, size and port.
const HELLO_LEN: usize = 16 + 32 + 4 + 4 + 2;
/// Time that a process has to introduce itself.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(50);
/// Time after which a process says that it waits.
const SAY_AFTER: Duration = Duration::from_secs(15);
/// Maximum length of the table of addresses: 1 KiB for each of a million processes.
const MAX_TABLE_LEN: u64 = 1 << 30;

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

/// Connects a process with all others of its group, by rank; see [`Tcp::join`](super::Tcp::join).
pub(super) fn meet(place: &Place, key: &[u8], patience: Duration) -> Result<Peers> {
    let key = *blake3::hash(key).as_bytes();
    let joining = Joining { place, key, until: Instant::now() + patience, patience };
    if place.rank == 0 { joining.lead() } else { joining.follow() }
}

/// A group that is being made.
struct Joining<'a> {
    place: &'a Place,
    key: [u8; 32],
    until: Instant,
    patience: Duration,
}

pub(super) type Peers = Vec<Option<TcpStream>>;

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
        let mut first = self.connect(
            || address.to_socket_addrs().map(Iterator::collect),
            &format!("process 0 at {address}"),
            || Ok(()),
        )?;
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
        peers[0] = Some(first);
        for (lower, entry) in table.split('\n').enumerate().take(rank).skip(1) {
            let whom = format!("process {lower} at {entry}");
            // Process 0 notices if that one has ended, and ends.
            let is_in_vain = || self.look_for_gone(&mut peers);
            let mut stream = self.connect(|| entry.to_socket_addrs().map(Iterator::collect), &whom, is_in_vain)?;
            stream.write_all(&hello).map_err(|source| Error::Lost { rank: lower, size, source })?;
            peers[lower] = Some(stream);
        }
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
            self.look_for_gone(peers)?;
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

    /// Takes away the places of processes that have come and ended: process 0 lets them in once more, started again; for the
    /// others it is too late, since they have been told where all are.
    fn look_for_gone(&self, peers: &mut Peers) -> Result<()> {
        let &Place { rank: own, size, .. } = self.place;
        for (rank, peer) in peers.iter_mut().enumerate() {
            let Some(source) = peer.as_ref().and_then(gone) else { continue };
            if own != 0 {
                return Err(Error::Lost { rank, size, source });
            }
            tracing::warn!("process {rank} of {size} has come and ended; it can be started again");
            *peer = None;
        }
        Ok(())
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

    /// Connects, and tries again until the others have had time to start, or `check` fails.
    fn connect(
        &self,
        to: impl Fn() -> io::Result<Vec<SocketAddr>>,
        whom: &str,
        mut check: impl FnMut() -> Result<()>,
    ) -> Result<TcpStream> {
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
                    check()?;
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

/// Returns why the process at the other end of a connection is not there any more, if so.
fn gone(stream: &TcpStream) -> Option<io::Error> {
    let look = || {
        stream.set_nonblocking(true)?;
        let seen = stream.peek(&mut [0]);
        stream.set_nonblocking(false)?;
        seen
    };
    match look() {
        Ok(0) => Some(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Some(error),
        _ => None,
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

fn send(stream: &mut impl Write, message: &[u8]) -> io::Result<()> {
    stream.write_all(&(message.len() as u64).to_le_bytes())?;
    stream.write_all(message)
}

fn receive(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    stream.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_TABLE_LEN {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![];
    stream.take(len).read_to_end(&mut message)?;
    if message.len() as u64 == len { Ok(message) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn free_address() -> String {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
    }

    #[test]
    fn strangers_are_turned_away_and_the_group_is_made() {
        let address = free_address();
        let place = |rank| Place::new(rank, 2, &address).unwrap();
        thread::scope(|scope| {
            let first = scope.spawn(|| meet(&place(0), b"test", PATIENCE));
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
            assert!(meet(&place(1), b"another", PATIENCE).is_err());
            assert!(meet(&Place::new(1, 3, &address).unwrap(), b"test", PATIENCE).is_err());
            let second = meet(&place(1), b"test", PATIENCE).unwrap();
            let first = first.join().unwrap().unwrap();
            for (rank, peers) in [first, second].iter().enumerate() {
                assert_eq!(peers.iter().map(Option::is_some).collect::<Vec<_>>(), [rank == 1, rank == 0]);
            }
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
        let join = |rank| meet(&Place::new(rank, 3, &address).unwrap(), b"test", patience).unwrap_err().to_string();
        assert!(join(0).contains("of 3 processes, these have not come within 0 s: 1, 2"), "{}", join(0));
        assert!(join(1).contains("process 0 at 127.0.0.1") && join(1).contains("is not reached"), "{}", join(1));
    }

    #[test]
    fn a_process_that_ends_while_others_are_waited_for_can_be_started_again() {
        let address = free_address();
        let place = |rank| Place::new(rank, 3, &address).unwrap();
        let join = |rank: usize| meet(&place(rank), b"test", PATIENCE).unwrap();
        thread::scope(|scope| {
            let first = scope.spawn(move || join(0));
            // It introduces itself as process 1, and ends.
            let gone = Joining {
                place: &place(1),
                key: *blake3::hash(b"test").as_bytes(),
                until: Instant::now() + PATIENCE,
                patience: PATIENCE,
            };
            let mut stream =
                gone.connect(|| address.to_socket_addrs().map(Iterator::collect), "process 0", || Ok(())).unwrap();
            stream.write_all(&Hello { key: gone.key, rank: 1, size: 3, port: 1 }.bytes()).unwrap();
            thread::sleep(4 * RETRY);
            drop(stream);
            thread::sleep(4 * RETRY);
            let second = scope.spawn(move || join(1));
            // None leaves before all have met.
            let met = [join(2), first.join().unwrap(), second.join().unwrap()];
            assert!(met.iter().all(|peers| peers.iter().flatten().count() == 2));
        });
    }
}
