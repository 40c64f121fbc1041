//! The functions of NCCL, from the library that is installed where the program runs.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Range;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::CUstream;

/// Bytes of the id of a group.
pub(super) const ID_LEN: usize = 128;
/// Files that are tried, in this order: NCCL's packages have the first, those for developers also the second.
const FILES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Numbers of the versions that have these functions: 2.7 and 2.8, and from 2.9 on, when their form changed.
const VERSIONS: [Range<c_int>; 2] = [2_700..2_900, 20_900..30_000];
/// Number of the type of bytes.
const UINT8: c_int = 1;
/// Status of a call that has succeeded.
const SUCCESS: c_int = 0;

/// The id of a group, as NCCL passes it: by value.
#[derive(Clone, Copy)]
#[repr(C)]
struct UniqueId([u8; ID_LEN]);

type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> c_int;
type CommInitRank = unsafe extern "C" fn(*mut *mut c_void, c_int, UniqueId, c_int) -> c_int;
type CommAbort = unsafe extern "C" fn(*mut c_void) -> c_int;
type Send = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, *mut c_void, CUstream) -> c_int;
type Receive = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, *mut c_void, CUstream) -> c_int;
type Group = unsafe extern "C" fn() -> c_int;
type GetErrorString = unsafe extern "C" fn(c_int) -> *const c_char;

/// NCCL, once it is open.
static OPENED: Mutex<Option<Library>> = Mutex::new(None);

/// NCCL, opened for the rest of the process: it has threads of its own as soon as it has made an id.
#[derive(Debug, Clone, Copy)]
pub(super) struct Library {
    get_unique_id: GetUniqueId,
    comm_init_rank: CommInitRank,
    comm_abort: CommAbort,
    send: Send,
    receive: Receive,
    group_start: Group,
    group_end: Group,
    get_error_string: GetErrorString,
}

/// A communicator of this process with its group.
#[derive(Debug)]
pub(super) struct Communicator {
    library: Library,
    address: *mut c_void,
}

// SAFETY: NCCL allows a communicator to be used by any thread, one at a time; it is not shared.
#[expect(unsafe_code, reason = "a pointer of a C library, which does not belong to a thread")]
unsafe impl std::marker::Send for Communicator {}

type Outcome<T> = std::result::Result<T, String>;

#[expect(unsafe_code, reason = "calls of a C library")]
impl Library {
    /// Opens NCCL where the loader finds it.
    pub(super) fn open() -> Outcome<Self> {
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = *opened {
            return Ok(library);
        }
        let mut problem = String::new();
        for file in FILES {
            match Self::open_file(file) {
                Ok(library) => return Ok(*opened.insert(library)),
                Err(error) => problem = error,
            }
        }
        Err(format!("NCCL 2 cannot be opened ({problem})"))
    }

    fn open_file(file: &str) -> Outcome<Self> {
        // SAFETY: what NCCL does when it is loaded, and the types of its functions, are those of its header; versions that lack
        // some are refused before anything else is called.
        unsafe {
            let library = libloading::Library::new(file).map_err(|error| problem(&error))?;
            macro_rules! function {
                ($name:literal) => {
                    *library.get($name).map_err(|error| problem(&error))?
                };
            }
            let get_version: GetVersion = function!(c"ncclGetVersion");
            let mut version = 0;
            if get_version(&raw mut version) != SUCCESS || !VERSIONS.iter().any(|versions| versions.contains(&version))
            {
                return Err(format!("{file} is version {version}, expected 2.7 or a later 2"));
            }
            let opened = Self {
                get_unique_id: function!(c"ncclGetUniqueId"),
                comm_init_rank: function!(c"ncclCommInitRank"),
                comm_abort: function!(c"ncclCommAbort"),
                send: function!(c"ncclSend"),
                receive: function!(c"ncclRecv"),
                group_start: function!(c"ncclGroupStart"),
                group_end: function!(c"ncclGroupEnd"),
                get_error_string: function!(c"ncclGetErrorString"),
            };
            // The functions stay where they are, and so do the threads that run them.
            std::mem::forget(library);
            Ok(opened)
        }
    }

    /// Creates the id of a group.
    pub(super) fn new_id(&self) -> Outcome<Vec<u8>> {
        let mut id = UniqueId([0; ID_LEN]);
        // SAFETY: the address is that of an id.
        self.check(unsafe { (self.get_unique_id)(&raw mut id) })?;
        Ok(id.0.to_vec())
    }

    /// Joins the group of an id, with the card that is current in this thread; waits for all others.
    pub(super) fn join(self, id: &[u8], rank: usize, size: usize) -> Outcome<Communicator> {
        let id = id.try_into().map_err(|_too_long| "the id of the group is none of NCCL".to_owned())?;
        let mut address = ptr::null_mut();
        // SAFETY: the address is that of a pointer.
        self.check(unsafe { (self.comm_init_rank)(&raw mut address, number(size)?, UniqueId(id), number(rank)?) })?;
        Ok(Communicator { library: self, address })
    }

    fn check(&self, status: c_int) -> Outcome<()> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: NCCL returns a text that stays where it is.
        let text = unsafe { CStr::from_ptr((self.get_error_string)(status)) };
        Err(format!("NCCL has failed: {}", text.to_string_lossy()))
    }
}

/// Returns what the loader says, which names the file.
pub(super) fn problem(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn number(value: usize) -> Outcome<c_int> {
    c_int::try_from(value).map_err(|_too_large| format!("{value} is more than NCCL counts"))
}

#[expect(unsafe_code, reason = "calls of a C library")]
impl Communicator {
    /// Makes sends and receives that do not wait for each other, in whatever order they are named.
    pub(super) fn together(&self, calls: impl FnOnce(&Self) -> Outcome<()>) -> Outcome<()> {
        // SAFETY: each start is followed by an end.
        self.library.check(unsafe { (self.library.group_start)() })?;
        let outcome = calls(self);
        // SAFETY: as above.
        let ended = self.library.check(unsafe { (self.library.group_end)() });
        outcome.and(ended)
    }

    /// Sends bytes of the card's memory to a process.
    ///
    /// # Safety
    /// At `address` are as many bytes, on the card of this communicator, which stay until the stream has come past this call.
    pub(super) unsafe fn send(&self, (address, len): (u64, usize), to: usize, stream: CUstream) -> Outcome<()> {
        let (send, to) = (self.library.send, number(to)?);
        // SAFETY: the caller vouches for the bytes.
        self.library.check(unsafe { send(pointer(address), len, UINT8, to, self.address, stream) })
    }

    /// Receives bytes from a process into the card's memory.
    ///
    /// # Safety
    /// As for [`send`](Self::send); nothing else uses the bytes until then.
    pub(super) unsafe fn receive(&self, (address, len): (u64, usize), from: usize, stream: CUstream) -> Outcome<()> {
        let (receive, from) = (self.library.receive, number(from)?);
        // SAFETY: the caller vouches for the bytes.
        self.library.check(unsafe { receive(pointer(address), len, UINT8, from, self.address, stream) })
    }
}

/// An address of the card, as NCCL takes it.
fn pointer(address: u64) -> *mut c_void {
    ptr::without_provenance_mut(usize::try_from(address).unwrap_or(0))
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: it is used no more. Others may have ended already, whom an orderly end would wait for.
        #[expect(unsafe_code, reason = "calls of a C library")]
        let _status = unsafe { (self.library.comm_abort)(self.address) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_with_the_name_that_was_tried() {
        let told = Library::open_file("libnccl-that-is-not-there.so.2").unwrap_err();
        assert!(told.contains("libnccl-that-is-not-there.so.2"), "{told}");
        if let Err(told) = Library::open() {
            assert!(told.starts_with("NCCL 2 cannot be opened (libnccl.so"), "{told}");
        }
    }

    /// With NVIDIA's package on the path of libraries: `LD_LIBRARY_PATH=.. cargo test -p diffae-train --features nccl -- --ignored nccl`
    #[test]
    #[ignore = "needs NCCL"]
    fn the_real_library_makes_ids() {
        let [first, second] = [(); 2].map(|()| Library::open().unwrap().new_id().unwrap());
        assert!(first.len() == ID_LEN && first != second);
        // Its threads go on.
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
}
