//! Descriptors of cuDNN's backend interface: objects with attributes, which are finalized and used.

use std::ffi::c_int;
use std::sync::Arc;

use candle_core::{Result, bail};

use super::library::{Library, Object};

/// Kinds of descriptors, by the numbers of cuDNN 9.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Kind {
    Convolution = 1,
    Engine = 2,
    EngineConfig = 3,
    EngineHeuristics = 4,
    ExecutionPlan = 5,
    Forward = 10,
    WeightGradient = 11,
    InputGradient = 12,
    OperationGraph = 15,
    VariantPack = 16,
    Tensor = 17,
    #[cfg(test)]
    DeviceProperties = 38,
}

/// A value that attributes have, as cuDNN lays it out.
pub(super) trait Value: Copy {
    /// Number of its type.
    const TYPE: c_int;
}

macro_rules! value {
    ($(#[$comment:meta])* $name:ident, $number:literal) => {
        $(#[$comment])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[repr(transparent)]
        pub(super) struct $name(pub(super) c_int);

        impl Value for $name {
            const TYPE: c_int = $number;
        }
    };
}

value!(
    /// Number type of elements.
    DataType,
    1
);
value!(
    /// Whether a convolution turns its kernel.
    ConvolutionMode,
    7
);
value!(
    /// Origin of the configurations that the heuristics list.
    HeuristicsMode,
    8
);
value!(
    /// A property of an engine's numbers.
    NumericalNote,
    11
);

impl Value for i64 {
    const TYPE: c_int = 3;
}

impl Value for f32 {
    const TYPE: c_int = 4;
}

/// An address, of memory or of a handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Address(pub(super) u64);

impl Value for Address {
    const TYPE: c_int = 6;
}

/// Number of the type of a handle.
const HANDLE: c_int = 0;
/// Number of the type of a descriptor.
const DESCRIPTOR: c_int = 15;
/// Number of the type of a character.
#[cfg(test)]
const CHARACTER: c_int = 24;

/// A descriptor. It is freed when it is dropped.
#[derive(Debug)]
pub(super) struct Descriptor {
    library: Arc<Library>,
    object: Object,
}

// SAFETY: a descriptor is a value on the heap of cuDNN, bound to no thread; only one thread at a time has it.
#[expect(unsafe_code, reason = "addresses are not sent between threads by themselves")]
unsafe impl Send for Descriptor {}

#[expect(unsafe_code, reason = "calls of a C library")]
impl Descriptor {
    /// Makes a descriptor without attributes.
    pub(super) fn new(library: &Arc<Library>, kind: Kind) -> Result<Self> {
        let object = library.create_descriptor(kind as c_int)?;
        Ok(Self { library: Arc::clone(library), object })
    }

    /// Returns the descriptor with an attribute.
    pub(super) fn with<T: Value>(self, name: c_int, values: &[T]) -> Result<Self> {
        // SAFETY: the type of the values goes with them.
        unsafe { self.library.set_attribute(self.object, name, T::TYPE, values)? };
        Ok(self)
    }

    /// Returns the descriptor with other ones as an attribute. They must live as long as it does.
    pub(super) fn with_descriptors(self, name: c_int, others: &[&Self]) -> Result<Self> {
        let objects: Vec<Object> = others.iter().map(|other| other.object).collect();
        // SAFETY: addresses of descriptors are what the type says.
        unsafe { self.library.set_attribute(self.object, name, DESCRIPTOR, &objects)? };
        Ok(self)
    }

    /// Returns the descriptor with a handle as an attribute.
    pub(super) fn with_handle(self, name: c_int, handle: &Handle) -> Result<Self> {
        // SAFETY: the address of a handle is what the type says.
        unsafe { self.library.set_attribute(self.object, name, HANDLE, &[handle.object])? };
        Ok(self)
    }

    /// Returns the descriptor with a text as an attribute.
    #[cfg(test)]
    pub(super) fn with_text(self, name: c_int, text: &str) -> Result<Self> {
        // SAFETY: bytes are characters of C.
        unsafe { self.library.set_attribute(self.object, name, CHARACTER, text.as_bytes())? };
        Ok(self)
    }

    /// Fixes the attributes.
    pub(super) fn finalized(self) -> Result<Self> {
        // SAFETY: it is a descriptor.
        unsafe { self.library.finalize(self.object)? };
        Ok(self)
    }

    /// Reads an attribute of at most `capacity` values.
    pub(super) fn get<T: Value + Default>(&self, name: c_int, capacity: usize) -> Result<Vec<T>> {
        let mut values = vec![T::default(); capacity];
        // SAFETY: the type of the values goes with them.
        let count = unsafe { self.library.get_attribute(self.object, name, T::TYPE, &mut values)? };
        values.truncate(count);
        Ok(values)
    }

    /// Reads an attribute of one value.
    pub(super) fn get_one<T: Value + Default>(&self, name: c_int) -> Result<T> {
        match self.get(name, 1)?.first() {
            Some(value) => Ok(*value),
            None => bail!("cuDNN left attribute {name} empty"),
        }
    }

    /// Reads an attribute of one descriptor of a kind.
    pub(super) fn get_descriptor(&self, name: c_int, kind: Kind) -> Result<Self> {
        let other = Self::new(&self.library, kind)?;
        // SAFETY: cuDNN fills the descriptor whose address it is given.
        let count = unsafe { self.library.get_attribute(self.object, name, DESCRIPTOR, &mut [other.object])? };
        if count == 0 {
            bail!("cuDNN left attribute {name} empty")
        }
        Ok(other)
    }

    /// Reads an attribute of descriptors of a kind, all of them.
    pub(super) fn get_descriptors(&self, name: c_int, kind: Kind) -> Result<Vec<Self>> {
        // SAFETY: nothing is written.
        let count = unsafe { self.library.get_attribute::<Object>(self.object, name, DESCRIPTOR, &mut [])? };
        let mut descriptors = (0..count).map(|_| Self::new(&self.library, kind)).collect::<Result<Vec<_>>>()?;
        let mut objects: Vec<Object> = descriptors.iter().map(|descriptor| descriptor.object).collect();
        if objects.is_empty() {
            return Ok(descriptors);
        }
        // SAFETY: cuDNN fills the descriptors whose addresses it is given.
        let count = unsafe { self.library.get_attribute(self.object, name, DESCRIPTOR, &mut objects)? };
        descriptors.truncate(count);
        Ok(descriptors)
    }

    /// Starts this plan on the handle's stream.
    ///
    /// # Safety
    /// `variables` names memory of the sizes of the plan's tensors that lives until the work on the stream has come to its end.
    pub(super) unsafe fn execute(&self, handle: &Handle, variables: &Self) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.library.execute(handle.object, self.object, variables.object) }
    }
}

impl Drop for Descriptor {
    #[expect(unsafe_code, reason = "a call of a C library")]
    fn drop(&mut self) {
        // SAFETY: this is its owner.
        unsafe { self.library.destroy_descriptor(self.object) };
    }
}

/// A handle: cuDNN on a card, with a stream. It is freed when it is dropped.
#[derive(Debug)]
pub(in crate::cuda) struct Handle {
    library: Arc<Library>,
    object: Object,
}

// SAFETY: a handle is bound to a context of CUDA, not to a thread; only one thread at a time has it.
#[expect(unsafe_code, reason = "addresses are not sent between threads by themselves")]
unsafe impl Send for Handle {}

impl Handle {
    /// Makes a handle in the current context of CUDA.
    ///
    /// # Errors
    /// If cuDNN does not work with the card or its driver.
    pub(in crate::cuda) fn new(library: Arc<Library>) -> Result<Self> {
        let object = library.create()?;
        Ok(Self { library, object })
    }

    /// Returns cuDNN.
    pub(super) fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// Sets the stream on which plans are started from now on.
    ///
    /// # Safety
    /// It is a stream of the context in which the handle was made, and lives as long as it is the handle's.
    /// # Errors
    /// If cuDNN does not take it.
    #[expect(unsafe_code, reason = "a call of a C library")]
    pub(in crate::cuda) unsafe fn set_stream(&self, stream: *mut std::ffi::c_void) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.library.set_stream(self.object, stream) }
    }
}

impl Drop for Handle {
    #[expect(unsafe_code, reason = "a call of a C library")]
    fn drop(&mut self) {
        // SAFETY: this is its owner.
        unsafe { self.library.destroy(self.object) };
    }
}
