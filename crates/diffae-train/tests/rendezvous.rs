//! Two processes, as NCCL would connect them: they meet by TCP, one gives the other an id, and both exchange by what the id
//! leads to. Here that is a folder, where NCCL has its own network: no card is needed.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use diffae_train::{Collective, Error, Place, Rendezvous, Tcp, Transport};

const RANK: &str = "DIFFAE_TEST_RANK";
const ADDRESS: &str = "DIFFAE_TEST_ADDRESS";
const WHAT: &str = "DIFFAE_TEST_WHAT";
const PATIENCE: Duration = Duration::from_mins(1);

/// Messages as files in the folder that the id names.
#[derive(Debug)]
struct Files {
    folder: PathBuf,
    rank: usize,
    round: usize,
}

impl Transport for Files {
    fn new_id() -> Result<Vec<u8>, String> {
        Ok(tempfile::tempdir().unwrap().keep().to_str().unwrap().as_bytes().to_vec())
    }

    fn connect(id: &[u8], rank: usize, size: usize) -> Result<Self, String> {
        assert_eq!(size, 2);
        let folder = PathBuf::from(std::str::from_utf8(id).unwrap());
        if folder.is_dir() { Ok(Self { folder, rank, round: 0 }) } else { Err("there is no such folder".to_owned()) }
    }

    fn exchange(&mut self, outgoing: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
        self.round += 1;
        let path = |from: usize, to: usize| self.folder.join(format!("{}-{from}-{to}", self.round));
        for (to, message) in outgoing.iter().enumerate() {
            let partial = self.folder.join(format!("partial-{}", self.rank));
            fs::write(&partial, message).unwrap();
            fs::rename(partial, path(self.rank, to)).unwrap();
        }
        let receive = |from: usize| loop {
            // As long as it takes: that the other one has ended, it is told by other means.
            if let Ok(message) = fs::read(path(from, self.rank)) {
                break message;
            }
            thread::sleep(Duration::from_millis(2));
        };
        Ok((0..outgoing.len()).map(receive).collect())
    }
}

/// Exchanges messages, then leaves or is lost.
fn work(what: &str, rank: usize, address: &str) {
    let tcp = Tcp::join(&Place::new(rank, 2, address).unwrap(), b"test", PATIENCE).unwrap();
    let mut group = Rendezvous::<Files>::join(tcp).unwrap();
    assert_eq!((group.rank(), group.size()), (rank, 2));
    assert_eq!(group.gather(2, &[u8::try_from(rank).unwrap(); 3]).unwrap(), [[0; 3], [1; 3]]);
    assert_eq!(group.any(&[rank == 1, false]).unwrap(), [true, false]);
    let mut values: Vec<f32> = (0..1001).map(|i| (i * (rank + 1)) as f32).collect();
    group.sum(2, &mut values).unwrap();
    assert_eq!(values, (0..1001).map(|i| (3 * i) as f32).collect::<Vec<_>>());
    match (what, rank) {
        ("leave", 0) => {
            // The other one has left long since, which is no failure.
            group.barrier().unwrap();
            thread::sleep(Duration::from_millis(200));
            group.leave();
        }
        ("leave", _) => {
            group.barrier().unwrap();
            group.leave();
        }
        // As if it were killed.
        (_, 1) => std::process::abort(),
        _ => {
            let start = Instant::now();
            let error = group.barrier().unwrap_err();
            assert!(matches!(error, Error::Lost { rank: 1, size: 2, .. }), "{error}");
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }
}

/// The second process of a test, which runs this very test.
fn second(test: &str, (what, address): (&str, &str)) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(RANK, "1").env(ADDRESS, address).env(WHAT, what);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Runs the work in this process and in another one; whether that one has succeeded.
fn in_two(test: &str, what: &str) -> bool {
    if let Ok(rank) = std::env::var(RANK) {
        work(what, rank.parse().unwrap(), &std::env::var(ADDRESS).unwrap());
        return true;
    }
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut second = second(test, (what, &address));
    work(what, 0, &address);
    second.wait().unwrap().success()
}

#[test]
fn two_processes_exchange_by_an_id_and_leave_one_after_the_other() {
    assert!(in_two("two_processes_exchange_by_an_id_and_leave_one_after_the_other", "leave"));
}

#[test]
fn the_end_of_a_process_ends_an_exchange_that_knows_nothing_of_it() {
    assert!(!in_two("the_end_of_a_process_ends_an_exchange_that_knows_nothing_of_it", "abort"));
}

/// A transport that lacks what it needs, in all processes or in the second one.
#[derive(Debug)]
struct Lacking<const EVERYWHERE: bool>;

impl<const EVERYWHERE: bool> Transport for Lacking<EVERYWHERE> {
    fn new_id() -> Result<Vec<u8>, String> {
        if EVERYWHERE { Err("there is no library".to_owned()) } else { Ok(vec![7]) }
    }

    fn connect(id: &[u8], rank: usize, _: usize) -> Result<Self, String> {
        assert_eq!(id, [7]);
        if rank == 1 {
            return Err("there is no card".to_owned());
        }
        // It waits for the other one, and nobody tells it otherwise.
        thread::sleep(Duration::from_hours(1));
        Ok(Self)
    }

    fn exchange(&mut self, _: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
        Err("there is nothing to exchange by".to_owned())
    }
}

#[test]
fn a_transport_that_cannot_connect_ends_all_processes_with_a_sentence() {
    fn told<const EVERYWHERE: bool>() -> Vec<String> {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let join = |rank: usize| {
            let tcp = Tcp::join(&Place::new(rank, 2, &address).unwrap(), b"test", PATIENCE).unwrap();
            Rendezvous::<Lacking<EVERYWHERE>>::join(tcp).unwrap_err().to_string()
        };
        thread::scope(|scope| {
            let second = scope.spawn(|| join(1));
            vec![join(0), second.join().unwrap()]
        })
    }
    let everywhere = told::<true>();
    assert!(everywhere[0].contains("there is no library"), "{everywhere:?}");
    assert!(everywhere[1].contains("process 0 of 2 has failed"), "{everywhere:?}");
    let second = told::<false>();
    assert!(second[0].contains("process 1 of 2 has ended or cannot be reached"), "{second:?}");
    assert!(second[1].contains("there is no card"), "{second:?}");
}
