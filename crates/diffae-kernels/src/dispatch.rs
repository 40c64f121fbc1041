//! Selection of the CPU kernels: the best set that the machine has, unless a program or the environment names another.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use candle_core::{Result, bail};

/// Environment variable that selects a kernel set: `portable`, `avx2`, `avx512`, `neon` or `candle`.
pub const KERNELS_VARIABLE: &str = "DIFFAE_KERNELS";

/// Environment variable that selects what computes on CUDA, besides matrix products: `candle`, the composed backend, which is the
/// default; `own`, the kernels of this crate, with convolutions of Candle's; `cudnn`, the same with those of cuDNN, where it is
/// installed; or `graphs`, the same with network calls of a chain started as a whole. No card has run the latter three yet.
pub const CUDA_KERNELS_VARIABLE: &str = "DIFFAE_CUDA_KERNELS";

/// Origin of the kernels that compute on CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(crate) enum CudaKernels {
    /// Kernels of Candle, of which operations are composed.
    Candle,
    /// Kernels of diffae.
    Own,
    /// Kernels of diffae, with convolutions of cuDNN.
    Cudnn,
    /// Kernels of diffae and cuDNN, those of a network call started as one graph.
    Graphs,
}

impl CudaKernels {
    fn from_name(name: &str) -> Result<Self> {
        match name {
            "candle" | "" => Ok(Self::Candle),
            "own" => Ok(Self::Own),
            "cudnn" => Ok(Self::Cudnn),
            "graphs" => Ok(Self::Graphs),
            name => bail!("there are no CUDA kernels named {name:?}; the names are candle, own, cudnn, graphs"),
        }
    }

    fn from_environment() -> Result<Self> {
        Self::from_name(&std::env::var_os(CUDA_KERNELS_VARIABLE).unwrap_or_default().to_string_lossy())
    }
}

/// The kernels that compute on CUDA, from the first computation on.
static CUDA_KERNELS: OnceLock<CudaKernels> = OnceLock::new();

/// Returns the kernels that compute on CUDA. A wrong name in the environment selects Candle's.
pub(crate) fn cuda_kernels() -> CudaKernels {
    *CUDA_KERNELS.get_or_init(|| CudaKernels::from_environment().unwrap_or(CudaKernels::Candle))
}

/// Selects the kernels that compute on CUDA for the whole process, by their name in [`CUDA_KERNELS_VARIABLE`].
///
/// # Errors
/// If there are none of that name, or others have been selected or have computed before.
pub fn force_cuda_kernels(name: &str) -> Result<()> {
    let kernels = CudaKernels::from_name(name)?;
    if *CUDA_KERNELS.get_or_init(|| kernels) != kernels {
        bail!("{name} comes too late: other CUDA kernels are selected")
    }
    Ok(())
}

/// A set of CPU kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum KernelSet {
    /// The composed backend, Candle's operations as on a GPU, instead of this crate's kernels.
    Candle = 1,
    /// Plain Rust.
    Portable = 2,
    /// x86-64 with AVX2 and FMA.
    Avx2 = 3,
    /// x86-64 with AVX-512 (F).
    Avx512 = 4,
    /// aarch64.
    Neon = 5,
}

/// Code of the selected kernel set, which the machine has, or zero before the first selection.
static SELECTED: AtomicU8 = AtomicU8::new(0);
/// Value of [`is_exact`].
static EXACT: AtomicBool = AtomicBool::new(false);

impl KernelSet {
    /// All kernel sets, slowest first.
    pub const ALL: [Self; 5] = [Self::Candle, Self::Portable, Self::Neon, Self::Avx2, Self::Avx512];

    /// Returns the name of the set in `DIFFAE_KERNELS`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Candle => "candle",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    /// Returns whether this machine can run the set.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Candle | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Self::Avx2.is_available() && is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            _ => false,
        }
    }

    /// Returns the sets that this machine can run, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|set| set.is_available()).collect()
    }

    fn best() -> Self {
        Self::ALL.into_iter().rev().find(|set| set.is_available()).unwrap_or(Self::Portable)
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|set| *set as u8 == code)
    }

    /// Parses the name of a set, as in `DIFFAE_KERNELS`.
    ///
    /// # Errors
    /// If there is no set of that name, or this machine cannot run it.
    pub fn from_name(name: &str) -> Result<Self> {
        let Some(set) = Self::ALL.into_iter().find(|set| set.name() == name) else {
            let names = Self::ALL.map(Self::name).join(", ");
            bail!("there are no kernels named {name:?}; the names are {names}")
        };
        if !set.is_available() {
            bail!("this machine cannot run the {name} kernels")
        }
        Ok(set)
    }
}

/// Returns the selected kernel set.
///
/// The first call reads `DIFFAE_KERNELS`; if the name there is wrong, it selects the best set and leaves the report to
/// [`kernels_from_environment`].
#[must_use]
pub fn kernel_set() -> KernelSet {
    if let Some(set) = KernelSet::from_code(SELECTED.load(Ordering::Relaxed)) {
        return set;
    }
    let set = kernels_from_environment().ok().flatten().unwrap_or_else(KernelSet::best);
    // Another thread may have selected one meanwhile, which stays.
    match SELECTED.compare_exchange(0, set as u8, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => set,
        Err(other) => KernelSet::from_code(other).unwrap_or(set),
    }
}

/// Selects a kernel set for the whole process, from the next operation on.
///
/// # Errors
/// If this machine cannot run it.
pub fn force_kernel_set(set: KernelSet) -> Result<()> {
    if !set.is_available() {
        bail!("this machine cannot run the {} kernels", set.name())
    }
    SELECTED.store(set as u8, Ordering::Relaxed);
    Ok(())
}

/// Checks the name in [`CUDA_KERNELS_VARIABLE`]. Programs call it once, to report a wrong one.
///
/// # Errors
/// If there are no CUDA kernels of that name.
pub fn check_cuda_kernels() -> Result<()> {
    CudaKernels::from_environment().map(drop)
}

/// Reads the kernel set that `DIFFAE_KERNELS` names, if it is set. Programs call it once, to report a wrong name.
///
/// # Errors
/// If there is no set of that name, or this machine cannot run it.
pub fn kernels_from_environment() -> Result<Option<KernelSet>> {
    let name = std::env::var_os(KERNELS_VARIABLE).filter(|name| !name.is_empty());
    name.map(|name| KernelSet::from_name(&name.to_string_lossy())).transpose()
}

/// Choice of the convolution algorithms of a frozen layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Winograd {
    /// The choice of the whole process, see [`set_exact`].
    #[default]
    Process,
    /// Winograd's algorithm where it is the fastest.
    Allowed,
    /// Plain sums of products alone.
    Never,
}

impl Winograd {
    /// Returns whether Winograd's algorithm may be taken now.
    pub(crate) fn is_allowed(self) -> bool {
        match self {
            Self::Process => !is_exact(),
            Self::Allowed => true,
            Self::Never => false,
        }
    }
}

/// Disables the algorithms that round differently from a plain sum of products (Winograd), for the whole process.
///
/// Must be called before the first operation: a frozen layer that has run once stays with the algorithm that its weights
/// were packed for; [`Winograd`] chooses for single layers. Tests hold Winograd within 1e-5 of the largest output of a layer; see `docs/parity.md`.
#[expect(clippy::fn_params_excessive_bools, reason = "a switch; its name says what `true` means")]
pub fn set_exact(exact: bool) {
    EXACT.store(exact, Ordering::Relaxed);
}

/// Returns whether [`set_exact`] has disabled Winograd's algorithm.
#[must_use]
pub fn is_exact() -> bool {
    EXACT.load(Ordering::Relaxed)
}
