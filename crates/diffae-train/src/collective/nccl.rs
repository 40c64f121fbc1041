//! Processes that NCCL connects: graphics cards of NVIDIA, within a machine and among several.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use cudarc::nccl::result::NcclError;
use cudarc::nccl::safe::{Comm, Id, group_end, group_start};

use super::rendezvous::Transport;

/// Variables in which launchers tell the number of a process on its machine.
const LOCAL_RANKS: [&str; 4] = ["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];

/// Messages by NCCL, through the memory of the card of this process: the one of its number on the machine, as launchers tell
/// it.
#[derive(Debug)]
pub struct Nccl {
    comm: Comm,
    stream: Arc<CudaStream>,
}

/// A failure, as a sentence.
struct Failure(String);

type Outcome<T> = std::result::Result<T, Failure>;

impl From<NcclError> for Failure {
    fn from(error: NcclError) -> Self {
        Self(format!("NCCL has failed: {:?}", error.0))
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self(format!("CUDA has failed: {error}"))
    }
}

impl From<&str> for Failure {
    fn from(sentence: &str) -> Self {
        Self(sentence.to_owned())
    }
}

/// Fails if the libraries of NVIDIA, which are loaded now, are not on this machine: whatever calls them would panic.
fn check_libraries() -> Outcome<()> {
    #[expect(unsafe_code, reason = "to load a library is to run its initializers")]
    // SAFETY: they are the libraries of CUDA and NCCL, which the user has asked for.
    let are_there = unsafe { cudarc::driver::sys::is_culib_present() && cudarc::nccl::sys::is_culib_present() };
    if are_there { Ok(()) } else { Err("the driver of CUDA or the library of NCCL (libnccl.so) is not there".into()) }
}

/// Returns the number of this process on its machine.
fn local_rank(rank: usize) -> usize {
    let number = |name: &&str| std::env::var(name).ok()?.parse().ok();
    LOCAL_RANKS.iter().find_map(number).unwrap_or(rank)
}

impl Transport for Nccl {
    fn new_id() -> std::result::Result<Vec<u8>, String> {
        let id = || -> Outcome<Id> {
            check_libraries()?;
            Ok(Id::new()?)
        };
        let id = id().map_err(|Failure(sentence)| sentence)?;
        Ok(id.internal().iter().map(|&byte| byte.cast_unsigned()).collect())
    }

    fn connect(id: &[u8], rank: usize, size: usize) -> std::result::Result<Self, String> {
        Self::connected(id, rank, size).map_err(|Failure(sentence)| sentence)
    }

    fn exchange(&mut self, outgoing: &[Vec<u8>]) -> std::result::Result<Vec<Vec<u8>>, String> {
        self.exchanged(outgoing).map_err(|Failure(sentence)| sentence)
    }
}

impl Nccl {
    fn connected(id: &[u8], rank: usize, size: usize) -> Outcome<Self> {
        check_libraries()?;
        let id: Vec<i8> = id.iter().map(|&byte| byte.cast_signed()).collect();
        let id = id.try_into().ok().ok_or("the id of the group is none of NCCL")?;
        let count = usize::try_from(CudaContext::device_count()?).unwrap_or(0);
        let device = local_rank(rank).checked_rem(count).ok_or("there is no graphics card for NCCL")?;
        let context = CudaContext::new(device)?;
        let stream = context.new_stream()?;
        let comm = Comm::from_rank(Arc::clone(&stream), rank, size, Id::uninit(id))?;
        Ok(Self { comm, stream })
    }

    /// Exchanges the lengths of messages, then the messages.
    fn exchanged(&self, outgoing: &[Vec<u8>]) -> Outcome<Vec<Vec<u8>>> {
        let lengths: Vec<Vec<u8>> =
            outgoing.iter().map(|message| (message.len() as u64).to_le_bytes().to_vec()).collect();
        let received = self.pass(&lengths, &vec![size_of::<u64>(); outgoing.len()])?;
        let length = |bytes: &Vec<u8>| {
            let bytes = bytes.as_slice().try_into().ok()?;
            usize::try_from(u64::from_le_bytes(bytes)).ok()
        };
        let lengths: Option<Vec<usize>> = received.iter().map(length).collect();
        self.pass(outgoing, &lengths.ok_or("a message has no length")?)
    }

    /// Exchanges messages whose lengths are known.
    fn pass(&self, outgoing: &[Vec<u8>], lengths: &[usize]) -> Outcome<Vec<Vec<u8>>> {
        let stream = &self.stream;
        let upload = |message: &Vec<u8>| -> Outcome<Option<CudaSlice<u8>>> {
            Ok(if message.is_empty() { None } else { Some(stream.clone_htod(message)?) })
        };
        let room = |&length: &usize| -> Outcome<Option<CudaSlice<u8>>> {
            Ok(if length == 0 { None } else { Some(stream.alloc_zeros(length)?) })
        };
        let sent = outgoing.iter().map(upload).collect::<Outcome<Vec<_>>>()?;
        let mut arriving = lengths.iter().map(room).collect::<Outcome<Vec<_>>>()?;
        // Within a group no message waits for another one, in whatever order they are named.
        group_start()?;
        for (peer, message) in (0..).zip(&sent) {
            if let Some(message) = message {
                self.comm.send(message, peer)?;
            }
        }
        for (peer, room) in (0..).zip(&mut arriving) {
            if let Some(room) = room {
                self.comm.recv(room, peer)?;
            }
        }
        group_end()?;
        let download = |room: &Option<CudaSlice<u8>>| -> Outcome<Vec<u8>> {
            match room {
                Some(room) => Ok(stream.clone_dtoh(room)?),
                None => Ok(vec![]),
            }
        };
        let received = arriving.iter().map(download).collect::<Outcome<Vec<_>>>()?;
        stream.synchronize()?;
        Ok(received)
    }
}
