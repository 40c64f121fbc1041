//! Kernels and number types of the command line.

use anyhow::{Context, Result};
use candle_core::DType;
use diffae_kernels::{KERNELS_VARIABLE, kernels_from_environment, set_exact, set_num_threads};

use crate::args::{GlobalArgs, NumberType};

/// Selects the CPU kernels and the number of threads. Must be called once, before anything is computed.
///
/// # Errors
/// If `DIFFAE_KERNELS` names kernels that do not exist.
pub(crate) fn set_up_kernels(global: &GlobalArgs) -> Result<()> {
    kernels_from_environment().with_context(|| format!("{KERNELS_VARIABLE} cannot be followed"))?;
    set_exact(global.exact);
    // The kernels and all matrix products run in rayon's pool, which is set here; Candle's own, for a few element-wise
    // operations, reads the environment alone.
    global.threads.map_or(Ok(()), set_num_threads).context("--threads cannot be followed")
}

/// Returns the Candle number type.
pub(crate) fn dtype(number_type: NumberType) -> DType {
    match number_type {
        NumberType::F32 => DType::F32,
        NumberType::Bf16 => DType::BF16,
        NumberType::F16 => DType::F16,
    }
}
