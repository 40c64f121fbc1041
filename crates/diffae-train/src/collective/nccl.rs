//! Processes that NCCL connects: graphics cards of NVIDIA, within a machine and among several.

use std::panic::{AssertUnwindSafe, catch_unwind};
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
    rank: usize,
}

type Sentence<T> = std::result::Result<T, String>;

fn by_nccl(error: NcclError) -> String {
    format!("NCCL has failed: {:?}", error.0)
}

fn by_cuda(error: DriverError) -> String {
    format!("CUDA has failed: {error}")
}

/// Runs what panics if the library of CUDA or NCCL is not there.
fn with_libraries<T>(work: impl FnOnce() -> Sentence<T>) -> Sentence<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("the driver of CUDA or the library of NCCL (libnccl.so) cannot be loaded".to_owned()))
}

/// Returns the number of this process on its machine.
fn local_rank(rank: usize) -> usize {
    let number = |name: &&str| std::env::var(name).ok()?.parse().ok();
    LOCAL_RANKS.iter().find_map(number).unwrap_or(rank)
}

impl Transport for Nccl {
    fn new_id() -> Sentence<Vec<u8>> {
        let id = with_libraries(|| Id::new().map_err(by_nccl))?;
        Ok(id.internal().iter().map(|&byte| byte.cast_unsigned()).collect())
    }

    fn connect(id: &[u8], rank: usize, size: usize) -> Sentence<Self> {
        let id: Vec<i8> = id.iter().map(|&byte| byte.cast_signed()).collect();
        let id = id.try_into().ok().ok_or("the id of the group is none of NCCL")?;
        with_libraries(|| {
            let count = usize::try_from(CudaContext::device_count().map_err(by_cuda)?).unwrap_or(0);
            let device = local_rank(rank).checked_rem(count).ok_or("there is no graphics card for NCCL")?;
            let context = CudaContext::new(device).map_err(by_cuda)?;
            let stream = context.new_stream().map_err(by_cuda)?;
            let comm = Comm::from_rank(Arc::clone(&stream), rank, size, Id::uninit(id)).map_err(by_nccl)?;
            Ok(Self { comm, stream, rank })
        })
    }

    fn exchange(&mut self, outgoing: &[Vec<u8>]) -> Sentence<Vec<Vec<u8>>> {
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
}

impl Nccl {
    /// Exchanges messages whose lengths are known.
    fn pass(&self, outgoing: &[Vec<u8>], lengths: &[usize]) -> Sentence<Vec<Vec<u8>>> {
        let stream = &self.stream;
        let upload = |message: &Vec<u8>| -> Sentence<Option<CudaSlice<u8>>> {
            Ok(if message.is_empty() { None } else { Some(stream.clone_htod(message).map_err(by_cuda)?) })
        };
        let room = |&length: &usize| -> Sentence<Option<CudaSlice<u8>>> {
            Ok(if length == 0 { None } else { Some(stream.alloc_zeros(length).map_err(by_cuda)?) })
        };
        let sent = outgoing.iter().map(upload).collect::<Sentence<Vec<_>>>()?;
        let mut arriving = lengths.iter().map(room).collect::<Sentence<Vec<_>>>()?;
        // Within a group no message waits for another one, in whatever order they are named.
        group_start().map_err(by_nccl)?;
        for (peer, message) in (0..).zip(&sent) {
            if let Some(message) = message {
                self.comm.send(message, peer).map_err(by_nccl)?;
            }
        }
        for (peer, room) in (0..).zip(&mut arriving) {
            if let Some(room) = room {
                self.comm.recv(room, peer).map_err(by_nccl)?;
            }
        }
        group_end().map_err(by_nccl)?;
        let download = |room: &Option<CudaSlice<u8>>| match room {
            Some(room) => stream.clone_dtoh(room).map_err(by_cuda),
            None => Ok(vec![]),
        };
        let received = arriving.iter().map(download).collect::<Sentence<Vec<_>>>()?;
        stream.synchronize().map_err(by_cuda)?;
        tracing::trace!("process {} has exchanged {} messages", self.rank, received.len());
        Ok(received)
    }
}
