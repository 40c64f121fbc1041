//! Processes that NCCL connects: graphics cards of NVIDIA, within a machine and among several.

mod library;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError};

use self::library::{Communicator, Library, problem};
use super::launch::Launcher;
use super::rendezvous::Transport;

/// Library of the driver.
const DRIVER: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

/// Messages by NCCL, through the memory of the card of this process: the one of its number on the machine, as launchers tell
/// it.
#[derive(Debug)]
pub struct Nccl {
    communicator: Communicator,
    stream: Arc<CudaStream>,
}

/// A failure, as a sentence.
struct Failure(String);

type Outcome<T> = std::result::Result<T, Failure>;

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self(format!("CUDA has failed: {error}"))
    }
}

impl From<String> for Failure {
    fn from(sentence: String) -> Self {
        Self(sentence)
    }
}

impl From<&str> for Failure {
    fn from(sentence: &str) -> Self {
        Self(sentence.to_owned())
    }
}

/// Fails if the driver, which is loaded now, is not on this machine: whatever calls it would panic.
fn check_driver() -> Outcome<()> {
    #[expect(unsafe_code, reason = "to load a library is to run its initializers")]
    // SAFETY: it is the driver of CUDA, which the user has asked for.
    let opened = unsafe { libloading::Library::new(DRIVER) };
    match opened {
        Ok(driver) => std::mem::forget(driver),
        Err(error) => return Err(format!("the driver of CUDA cannot be opened ({})", problem(&error)).into()),
    }
    Ok(())
}

impl Transport for Nccl {
    fn new_id() -> std::result::Result<Vec<u8>, String> {
        let id = || -> Outcome<Vec<u8>> {
            check_driver()?;
            Ok(Library::open()?.new_id()?)
        };
        id().map_err(|Failure(sentence)| sentence)
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
        check_driver()?;
        let library = Library::open()?;
        let count = usize::try_from(CudaContext::device_count()?).unwrap_or(0);
        let local_rank = Launcher::local_rank(&|name| std::env::var(name).ok()).unwrap_or(rank);
        let device = local_rank.checked_rem(count).ok_or("there is no graphics card for NCCL")?;
        let context = CudaContext::new(device)?;
        let stream = context.new_stream()?;
        Ok(Self { communicator: library.join(id, rank, size)?, stream })
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
        self.communicator.together(|communicator| {
            for (peer, message) in sent.iter().enumerate() {
                if let Some(message) = message {
                    let (address, _until_sent) = message.device_ptr(stream);
                    #[expect(unsafe_code, reason = "memory of the card")]
                    // SAFETY: the message stays until the stream has been waited for, below.
                    unsafe {
                        communicator.send((address, message.len()), peer, stream.cu_stream())?;
                    }
                }
            }
            for (peer, room) in arriving.iter_mut().enumerate() {
                if let Some(room) = room {
                    let len = room.len();
                    let (address, _until_there) = room.device_ptr_mut(stream);
                    #[expect(unsafe_code, reason = "memory of the card")]
                    // SAFETY: as above, and only this call writes there.
                    unsafe {
                        communicator.receive((address, len), peer, stream.cu_stream())?;
                    }
                }
            }
            Ok(())
        })?;
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
