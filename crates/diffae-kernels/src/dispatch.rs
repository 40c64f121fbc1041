//! Which kernels run: the best that the machine has, unless a program or the environment says otherwise.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use candle_core::{Result, bail};

#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::{avx2, avx512};

/// The environment variable that forces a set: `portable`, `avx2`, `avx512`, `neon` or `candle`.
pub const KERNELS_VARIABLE: &str = "DIFFAE_KERNELS";

/// A set of CPU kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum KernelSet {
    /// None of this crate's: Candle's own operations.
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

/// Zero until the set in force has been decided.
static IN_FORCE: AtomicU8 = AtomicU8::new(0);
static EXACT: AtomicBool = AtomicBool::new(false);

impl KernelSet {
    /// All sets, slowest first.
    pub const ALL: [Self; 5] = [Self::Candle, Self::Portable, Self::Neon, Self::Avx2, Self::Avx512];

    /// As it is written in `DIFFAE_KERNELS`.
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

    /// Whether this machine can run it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Candle | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::available(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            _ => false,
        }
    }

    /// The sets that this machine can run, slowest first.
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

    /// Reads a name.
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

/// The set in force.
///
/// The first call reads `DIFFAE_KERNELS`; a name that is wrong there is left to [`kernels_from_environment`] to
/// report, and the best set is taken.
#[must_use]
pub fn kernel_set() -> KernelSet {
    if let Some(set) = KernelSet::from_code(IN_FORCE.load(Ordering::Relaxed)) {
        return set;
    }
    let set = kernels_from_environment().ok().flatten().unwrap_or_else(KernelSet::best);
    // Another thread may have put one in force meanwhile, which stays.
    match IN_FORCE.compare_exchange(0, set as u8, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => set,
        Err(other) => KernelSet::from_code(other).unwrap_or(set),
    }
}

/// Puts a set in force, for the whole process, from the next operation on.
///
/// # Errors
/// If this machine cannot run it.
pub fn force_kernel_set(set: KernelSet) -> Result<()> {
    if !set.is_available() {
        bail!("this machine cannot run the {} kernels", set.name())
    }
    IN_FORCE.store(set as u8, Ordering::Relaxed);
    Ok(())
}

/// What `DIFFAE_KERNELS` asks for, if it is set. Programs call it once, to report a wrong name.
///
/// # Errors
/// As [`KernelSet::from_name`].
pub fn kernels_from_environment() -> Result<Option<KernelSet>> {
    let name = std::env::var_os(KERNELS_VARIABLE).filter(|name| !name.is_empty());
    name.map(|name| KernelSet::from_name(&name.to_string_lossy())).transpose()
}

/// Switches the algorithms off that round differently from a plain sum of products (Winograd), for the process. Call it
/// before any work: a frozen layer that has run once stays with the algorithm that its weights were packed for.
///
/// Tests hold them within 1e-5 of the largest output of a layer; see `docs/parity.md`.
#[expect(clippy::fn_params_excessive_bools, reason = "a switch; its name says what `true` means")]
pub fn set_exact(exact: bool) {
    EXACT.store(exact, Ordering::Relaxed);
}

/// Whether [`set_exact`] is on.
#[must_use]
pub fn is_exact() -> bool {
    EXACT.load(Ordering::Relaxed)
}
