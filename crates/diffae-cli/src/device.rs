//! Selection of the device by name.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use diffae_kernels::{KERNELS_VARIABLE, kernels_from_environment, set_exact, set_num_threads};

use crate::args::{GlobalArgs, NumberType};

/// Returns the device that `--device` names.
///
/// # Errors
/// If the name is unknown, the backend is not compiled in, or there is no such device.
pub(crate) fn device_from_name(name: &str) -> Result<Device> {
    let (kind, ordinal) = match name.split_once(':') {
        Some((kind, ordinal)) => {
            let ordinal = ordinal.parse::<usize>().with_context(|| format!("{name:?} is not a device: bad number"))?;
            (kind, Some(ordinal))
        }
        None => (name, None),
    };
    match (kind, ordinal) {
        ("auto", None) => Ok(automatic()),
        ("cpu", None) => Ok(Device::Cpu),
        ("cuda", ordinal) => cuda(ordinal.unwrap_or(0)),
        ("metal", ordinal) => metal(ordinal.unwrap_or(0)),
        _ => bail!("{name:?} is not a device; there are auto, cpu, cuda, cuda:N and metal"),
    }
}

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

fn automatic() -> Device {
    let gpu = if cfg!(feature = "cuda") { Device::new_cuda(0).ok() } else { None };
    let gpu = gpu.or_else(|| if cfg!(feature = "metal") { Device::new_metal(0).ok() } else { None });
    gpu.unwrap_or(Device::Cpu)
}

fn cuda(ordinal: usize) -> Result<Device> {
    if !cfg!(feature = "cuda") {
        bail!(
            "this diffae has no CUDA backend; on a machine with the CUDA toolkit, install one with \
             `cargo install --path crates/diffae-cli --features cuda`"
        )
    }
    Device::new_cuda(ordinal).with_context(|| format!("cannot use CUDA device {ordinal}"))
}

fn metal(ordinal: usize) -> Result<Device> {
    if !cfg!(feature = "metal") {
        bail!(
            "this diffae has no Metal backend; on macOS, install one with \
             `cargo install --path crates/diffae-cli --features metal`"
        )
    }
    Device::new_metal(ordinal).with_context(|| format!("cannot use Metal device {ordinal}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_or_explained() {
        assert!(device_from_name("cpu").unwrap().is_cpu());
        assert!(device_from_name("auto").is_ok());
        for name in ["gpu", "cpu:1", "cuda:x", ""] {
            assert!(device_from_name(name).unwrap_err().to_string().contains("not a device"), "{name}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_that_is_not_compiled_in_says_how_to_get_it() {
        assert!(device_from_name("cuda:1").unwrap_err().to_string().contains("--features cuda"));
    }
}
