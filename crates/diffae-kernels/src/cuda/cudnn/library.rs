//! The functions of cuDNN's backend interface, from the library that is installed where the program runs.

use std::error::Error;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::ptr::{self, NonNull};

use candle_core::{Result, bail};

/// Address of an object of cuDNN.
pub(super) type Object = NonNull<c_void>;

type CreateDescriptor = unsafe extern "C" fn(c_int, *mut *mut c_void) -> c_int;
type DestroyDescriptor = unsafe extern "C" fn(*mut c_void) -> c_int;
type SetAttribute = unsafe extern "C" fn(*mut c_void, c_int, c_int, i64, *const c_void) -> c_int;
type GetAttribute = unsafe extern "C" fn(*mut c_void, c_int, c_int, i64, *mut i64, *mut c_void) -> c_int;
type Finalize = unsafe extern "C" fn(*mut c_void) -> c_int;
type Execute = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void) -> c_int;
type Create = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
type Destroy = unsafe extern "C" fn(*mut c_void) -> c_int;
type SetStream = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
type GetVersion = unsafe extern "C" fn() -> usize;
type GetErrorString = unsafe extern "C" fn(c_int) -> *const c_char;

/// Files that are tried, in this order.
const FILES: &[&str] = if cfg!(windows) { &["cudnn64_9.dll"] } else { &["libcudnn.so.9", "libcudnn.so"] };
/// The version whose numbers this module has, and the one after it.
const VERSIONS: [usize; 2] = [90_000, 100_000];

/// cuDNN, opened.
#[derive(Debug)]
pub(in crate::cuda) struct Library {
    create_descriptor: CreateDescriptor,
    destroy_descriptor: DestroyDescriptor,
    set_attribute: SetAttribute,
    get_attribute: GetAttribute,
    finalize: Finalize,
    execute: Execute,
    create: Create,
    destroy: Destroy,
    set_stream: SetStream,
    get_error_string: GetErrorString,
    /// Keeps the functions where they are.
    file: libloading::Library,
}

#[expect(unsafe_code, reason = "calls of a C library")]
impl Library {
    /// Opens cuDNN where the loader finds it.
    ///
    /// # Errors
    /// If it is not installed, or is none of version 9.
    pub(in crate::cuda) fn open() -> Result<Self> {
        let mut problem = String::new();
        for file in FILES {
            match Self::open_file(file) {
                Ok(library) => {
                    library.open_cublas()?;
                    return Ok(library);
                }
                Err(error) => problem = error.to_string(),
            }
        }
        bail!("cuDNN 9 cannot be opened ({problem})")
    }

    /// Opens cuDNN from a file.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub(super) fn open_file(file: impl AsRef<OsStr>) -> Result<Self> {
        // SAFETY: what cuDNN does when it is loaded, and the types of its functions, are those of its headers; a version other than
        // 9 is refused before anything else is called.
        unsafe {
            let library = libloading::Library::new(file.as_ref()).map_err(problem)?;
            macro_rules! function {
                ($name:literal) => {
                    *library.get($name).map_err(problem)?
                };
            }
            let get_version: GetVersion = function!(c"cudnnGetVersion");
            let version = get_version();
            if !(VERSIONS[0]..VERSIONS[1]).contains(&version) {
                bail!("{} is version {version}, not 9", file.as_ref().display())
            }
            Ok(Self {
                create_descriptor: function!(c"cudnnBackendCreateDescriptor"),
                destroy_descriptor: function!(c"cudnnBackendDestroyDescriptor"),
                set_attribute: function!(c"cudnnBackendSetAttribute"),
                get_attribute: function!(c"cudnnBackendGetAttribute"),
                finalize: function!(c"cudnnBackendFinalize"),
                execute: function!(c"cudnnBackendExecute"),
                create: function!(c"cudnnCreate"),
                destroy: function!(c"cudnnDestroy"),
                set_stream: function!(c"cudnnSetStream"),
                get_error_string: function!(c"cudnnGetErrorString"),
                file: library,
            })
        }
    }

    /// Opens the cuBLASLt that cuDNN looks for, for the rest of the process: cuDNN ends the process where it finds none.
    fn open_cublas(&self) -> Result<()> {
        // SAFETY: both functions are of the types of NVIDIA's headers, and what cuBLASLt does when it is loaded is all right.
        let opened = unsafe {
            let cuda_version = self.file.get::<GetVersion>(c"cudnnGetCudartVersion").map_err(problem)?;
            let major = cuda_version().div_euclid(1000);
            let file =
                if cfg!(windows) { format!("cublasLt64_{major}.dll") } else { format!("libcublasLt.so.{major}") };
            libloading::Library::new(file)
        };
        match opened {
            Ok(library) => std::mem::forget(library),
            Err(error) => bail!("cuDNN needs cuBLASLt, which cannot be opened ({})", problem(error)),
        }
        Ok(())
    }

    /// Makes a descriptor of a kind.
    pub(super) fn create_descriptor(&self, kind: c_int) -> Result<Object> {
        let mut object = ptr::null_mut();
        // SAFETY: the address is that of a pointer.
        self.check("a descriptor", unsafe { (self.create_descriptor)(kind, &raw mut object) })?;
        Self::made(object)
    }

    /// Frees a descriptor.
    ///
    /// # Safety
    /// It comes from [`create_descriptor`](Self::create_descriptor), and is not used again.
    pub(super) unsafe fn destroy_descriptor(&self, object: Object) {
        // SAFETY: as the caller promises. There is nothing to be done about a failure.
        let _status = unsafe { (self.destroy_descriptor)(object.as_ptr()) };
    }

    /// Sets an attribute of a descriptor.
    ///
    /// # Safety
    /// The object is a descriptor, and the values are of the C type that `kind` stands for.
    pub(super) unsafe fn set_attribute<T>(&self, object: Object, name: c_int, kind: c_int, values: &[T]) -> Result<()> {
        let count = i64::try_from(values.len()).unwrap_or(i64::MAX);
        // SAFETY: as the caller promises; cuDNN copies the values.
        let status = unsafe { (self.set_attribute)(object.as_ptr(), name, kind, count, values.as_ptr().cast()) };
        self.check("an attribute", status)
    }

    /// Reads an attribute of a descriptor into `values`, or its count alone if that is empty; returns how many there are.
    ///
    /// # Safety
    /// Those of [`set_attribute`](Self::set_attribute).
    pub(super) unsafe fn get_attribute<T>(
        &self,
        object: Object,
        name: c_int,
        kind: c_int,
        values: &mut [T],
    ) -> Result<usize> {
        let (capacity, mut count) = (i64::try_from(values.len()).unwrap_or(i64::MAX), 0i64);
        let target = if values.is_empty() { ptr::null_mut() } else { values.as_mut_ptr().cast() };
        // SAFETY: as the caller promises; cuDNN writes at most as many values as it is told to.
        let status = unsafe { (self.get_attribute)(object.as_ptr(), name, kind, capacity, &raw mut count, target) };
        self.check("an attribute", status)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Finalizes a descriptor, after which its attributes are fixed.
    ///
    /// # Safety
    /// The object is a descriptor.
    pub(super) unsafe fn finalize(&self, object: Object) -> Result<()> {
        // SAFETY: as the caller promises.
        self.check("a descriptor", unsafe { (self.finalize)(object.as_ptr()) })
    }

    /// Starts a plan.
    ///
    /// # Safety
    /// The objects are a handle, a finalized plan, and a finalized pack of the addresses of all of its tensors, in memory of their
    /// sizes that lives until the work on the handle's stream has come to its end.
    pub(super) unsafe fn execute(&self, handle: Object, plan: Object, variables: Object) -> Result<()> {
        // SAFETY: as the caller promises.
        self.check("a plan", unsafe { (self.execute)(handle.as_ptr(), plan.as_ptr(), variables.as_ptr()) })
    }

    /// Makes a handle in the current context of CUDA.
    pub(super) fn create(&self) -> Result<Object> {
        let mut object = ptr::null_mut();
        // SAFETY: the address is that of a pointer.
        self.check("a handle", unsafe { (self.create)(&raw mut object) })?;
        Self::made(object)
    }

    /// Frees a handle.
    ///
    /// # Safety
    /// It comes from [`create`](Self::create), and is not used again.
    pub(super) unsafe fn destroy(&self, handle: Object) {
        // SAFETY: as the caller promises.
        let _status = unsafe { (self.destroy)(handle.as_ptr()) };
    }

    /// Sets the stream of a handle.
    ///
    /// # Safety
    /// The handle comes from [`create`](Self::create), and the stream lives as long as it is the handle's.
    pub(super) unsafe fn set_stream(&self, handle: Object, stream: *mut c_void) -> Result<()> {
        // SAFETY: as the caller promises.
        self.check("a stream", unsafe { (self.set_stream)(handle.as_ptr(), stream) })
    }

    fn made(object: *mut c_void) -> Result<Object> {
        match Object::new(object) {
            Some(object) => Ok(object),
            None => bail!("cuDNN made nothing"),
        }
    }

    fn check(&self, what: &str, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: cuDNN returns a text that is never freed.
        let name = unsafe {
            let text = (self.get_error_string)(status);
            if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        bail!("cuDNN refuses {what}: {name}")
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn problem(error: libloading::Error) -> candle_core::Error {
    // What failed is named by the cause alone.
    candle_core::Error::Msg(error.source().map_or_else(|| error.to_string(), ToString::to_string))
}
