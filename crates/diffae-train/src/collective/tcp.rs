//! Processes that are connected by TCP, each with each.

use std::sync::Arc;
use std::time::Duration;

use super::launch::Place;
use super::link::{self, Alarm, Farewell, Link, Pulse};
use super::meeting::meet;
use super::{Collective, OnLoss, check_count};
use crate::error::{Error, Result};

/// A process of a group that is connected by TCP.
///
/// What others send is read whatever this process does, and it sends a sign of life every three seconds: one that is slow
/// keeps its place, one that has ended is noticed at once, and a machine that is gone after 16 seconds.
///
/// Numbers travel as they are, without encryption: the network is that of the job.
#[derive(Debug)]
pub struct Tcp {
    rank: usize,
    /// Connections to all others, in the order of their ranks.
    links: Vec<Link>,
    size: usize,
    alarm: Arc<Alarm>,
}

impl Tcp {
    /// Joins the group: process 0 waits at the address of `place`, and the others go there.
    ///
    /// Only processes with the same `key` and the same size of the group are let in.
    ///
    /// # Errors
    /// [`Error::Group`] if process 0 cannot wait at the address, or not all have come within `patience`; [`Error::Lost`] if a
    /// process has come and gone.
    pub fn join(place: &Place, key: &[u8], patience: Duration) -> Result<Self> {
        Self::join_with(place, key, patience, Pulse::default())
    }

    fn join_with(place: &Place, key: &[u8], patience: Duration, pulse: Pulse) -> Result<Self> {
        let peers = meet(place, key, patience)?;
        let (rank, size) = (place.rank, place.size);
        // One that is dropped ends its connections.
        let mut joined = Self { rank, links: vec![], size, alarm: Alarm::new(rank, size) };
        for (peer, stream) in peers.into_iter().enumerate() {
            let Some(stream) = stream else { continue };
            let link = Link::new(peer, stream, &joined.alarm, pulse)
                .map_err(|source| Error::Group { problem: format!("a connection cannot be set up: {source}") })?;
            joined.links.push(link);
        }
        Ok(joined)
    }

    /// Fails if another process is lost, and time has passed since for the messages of others.
    pub(super) fn check_overdue(&self) -> Result<()> {
        self.alarm.overdue().map_or(Ok(()), Err)
    }

    /// Returns the connection to another process.
    fn link(&self, rank: usize) -> Result<&Link> {
        let idx = if rank < self.rank { Some(rank) } else { rank.checked_sub(1) };
        idx.and_then(|idx| self.links.get(idx)).ok_or_else(|| Error::Lost {
            rank,
            size: self.size,
            source: std::io::ErrorKind::NotConnected.into(),
        })
    }
}

impl Collective for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&mut self, outgoing: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let (rank, count) = (self.rank, outgoing.len());
        check_count(self, count)?;
        // Each sends to the one above it first, so that not all send to the same one at once. What several get is kept once.
        let mut last: Option<(&[u8], Arc<[u8]>)> = None;
        for message_to in (1..count).map(|step| (rank + step) % count) {
            let message = outgoing[message_to];
            let kept = match last.take() {
                Some((bytes, kept)) if std::ptr::eq(bytes, message) => kept,
                _ => Arc::from(message),
            };
            self.link(message_to)?.send(Arc::clone(&kept));
            last = Some((message, kept));
        }
        let receive = |from| if from == rank { Ok(outgoing[rank].to_vec()) } else { self.link(from)?.receive() };
        (0..count).map(receive).collect()
    }

    fn check(&self) -> Result<()> {
        self.alarm.loss().map_or(Ok(()), Err)
    }

    fn on_loss(&mut self, on_loss: OnLoss) {
        self.alarm.set_on_loss(on_loss);
    }

    fn leave(&mut self) {
        link::end(&mut self.links, Farewell::Told);
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        link::end(&mut self.links, Farewell::None);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// 1.2 seconds.
    const QUICK: Pulse =
        Pulse { beat: Duration::from_millis(100), wait: Duration::from_millis(300), num_waits: 4, num_first_waits: 60 };

    fn free_address() -> String {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
    }

    /// Runs `work` in each process of a group.
    fn group<R: Send>(size: usize, work: impl Fn(Tcp) -> R + Sync) -> Vec<R> {
        group_with(size, Pulse::default(), work)
    }

    fn group_with<R: Send>(size: usize, pulse: Pulse, work: impl Fn(Tcp) -> R + Sync) -> Vec<R> {
        let address = free_address();
        let one = |rank: usize| {
            let place = Place::new(rank, size, &address).unwrap();
            work(Tcp::join_with(&place, b"test", PATIENCE, pulse).unwrap())
        };
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
    fn a_process_that_is_busy_for_long_is_not_lost_and_gets_all_that_was_sent() {
        let message = vec![3; 8_000_000];
        let received = group_with(2, QUICK, |mut tcp| {
            if tcp.rank() == 1 {
                // Twice as long as a silent one would have.
                thread::sleep(Duration::from_millis(2400));
            }
            let received = tcp.exchange(&[&message, &message]).unwrap();
            tcp.check().unwrap();
            tcp.leave();
            received
        });
        assert!(received.iter().flatten().all(|got| *got == message));
    }

    #[test]
    fn a_process_that_falls_silent_is_lost() {
        let address = free_address();
        let place = |rank| Place::new(rank, 2, &address).unwrap();
        thread::scope(|scope| {
            // Its connection stays open, and nobody is at work there.
            let silent = scope.spawn(|| meet(&place(1), b"test", PATIENCE).unwrap());
            let mut tcp = Tcp::join_with(&place(0), b"test", PATIENCE, QUICK).unwrap();
            let silent = silent.join().unwrap();
            // Before its first byte it may still be meeting others.
            thread::sleep(Duration::from_millis(1500));
            tcp.check().unwrap();
            silent[0].as_ref().unwrap().write_all(b".").unwrap();
            let error = tcp.exchange(&[&[], &[0; 4]]).unwrap_err();
            assert!(matches!(error, Error::Lost { rank: 1, size: 2, .. }), "{error}");
            drop(silent);
        });
    }

    #[test]
    fn a_loss_is_told_to_those_who_compute_and_names_the_process_that_was_lost() {
        let told = group(4, |mut tcp| {
            tcp.barrier().unwrap();
            if tcp.rank() == 2 {
                return None;
            }
            let (tell, told) = channel();
            tcp.on_loss(Box::new(move |error| drop(tell.send(error.to_string()))));
            let sentence = told.recv_timeout(PATIENCE).unwrap();
            // Others end because of it, one after the other.
            thread::sleep(Duration::from_millis(20 * tcp.rank() as u64));
            Some([sentence, tcp.check().unwrap_err().to_string(), tcp.barrier().unwrap_err().to_string()])
        });
        for sentence in told.into_iter().flatten().flatten() {
            assert!(sentence.starts_with("process 2 of 4 has ended or cannot be reached"), "{sentence}");
        }
    }

    #[test]
    fn a_process_that_has_left_is_not_lost() {
        group(2, |mut tcp| {
            tcp.barrier().unwrap();
            if tcp.rank() == 1 {
                tcp.leave();
            } else {
                thread::sleep(Duration::from_millis(800));
                tcp.check().unwrap();
                assert!(tcp.barrier().is_err());
            }
        });
    }
}
