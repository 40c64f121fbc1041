//! Device, kernels and number types of the command line.

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use diffae_infer::{allow_tf32, device_from_name};
use diffae_kernels::{
    CUDA_KERNELS_VARIABLE, KERNELS_VARIABLE, check_cuda_kernels, cudnn_problem, kernels_from_environment, set_exact,
    set_num_threads,
};

use crate::args::{GlobalArgs, NumberType};

/// Selects the CPU kernels and the number of threads. Must be called once, before anything is computed.
///
/// # Errors
/// If `DIFFAE_KERNELS` or `DIFFAE_CUDA_KERNELS` names kernels that do not exist.
pub(crate) fn set_up_kernels(global: &GlobalArgs) -> Result<()> {
    kernels_from_environment().with_context(|| format!("{KERNELS_VARIABLE} cannot be followed"))?;
    check_cuda_kernels().with_context(|| format!("{CUDA_KERNELS_VARIABLE} cannot be followed"))?;
    set_exact(global.exact);
    // The kernels and all matrix products run in rayon's pool, which is set here; Candle's own, for a few element-wise
    // operations, reads the environment alone.
    global.threads.map_or(Ok(()), set_num_threads).context("--threads cannot be followed")
}

/// Opens the device of the command line, and selects TF32 on it if that is asked for.
///
/// # Errors
/// If there is no such device, or it has no TF32.
pub(crate) fn device(global: &GlobalArgs) -> Result<Device> {
    let device = device_from_name(&global.device)?;
    if let Some(problem) = cudnn_problem(&device) {
        tracing::warn!("convolutions are Candle's: {problem}");
    }
    if global.dtype == NumberType::Tf32 {
        allow_tf32(&device).context("--dtype cannot be followed")?;
    }
    Ok(device)
}

/// Returns the Candle number type.
pub(crate) fn dtype(number_type: NumberType) -> DType {
    match number_type {
        NumberType::F32 | NumberType::Tf32 => DType::F32,
        NumberType::Bf16 => DType::BF16,
        NumberType::F16 => DType::F16,
    }
}
