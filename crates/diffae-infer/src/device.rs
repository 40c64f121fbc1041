//! Selection of the device by name.

use candle_core::{DType, Device, cuda};
use diffae_kernels::cuda_device;

use crate::error::{Error, Result};

/// Returns the device of a name: `auto`, `cpu`, `cuda`, `cuda:N` or `metal`. `auto` is a GPU whose backend is compiled in,
/// if there is one, else the CPU.
///
/// # Errors
/// [`Error::Device`] if the name is unknown or the backend is not compiled in; [`Error::Tensor`] if there is no such
/// device.
pub fn device_from_name(name: &str) -> Result<Device> {
    let unknown = |problem: &str| Err(Error::Device { problem: format!("{name:?} is not a device{problem}") });
    let (kind, ordinal) = match name.split_once(':') {
        Some((kind, ordinal)) => match ordinal.parse::<usize>() {
            Ok(ordinal) => (kind, Some(ordinal)),
            Err(_) => return unknown(": bad number"),
        },
        None => (name, None),
    };
    match (kind, ordinal) {
        ("auto", None) => Ok(automatic()),
        ("cpu", None) => Ok(Device::Cpu),
        ("cuda", ordinal) => cuda(ordinal.unwrap_or(0)),
        ("metal", ordinal) => metal(ordinal.unwrap_or(0)),
        _ => unknown("; there are auto, cpu, cuda, cuda:N and metal"),
    }
}

/// Lets matrix products of f32, and the convolutions that are made of them, round their factors to TF32 on CUDA cards: ten bits of
/// mantissa in place of 23, several times as fast. It holds for the whole process, from now on.
///
/// # Errors
/// [`Error::Device`] if the device is no CUDA card.
pub fn allow_tf32(device: &Device) -> Result<()> {
    if !device.is_cuda() {
        let problem = "tf32 is a number type of CUDA cards; take --device cuda, or f32".to_owned();
        return Err(Error::Device { problem });
    }
    cuda::set_gemm_reduced_precision_f32(true);
    Ok(())
}

/// Returns the name of a device's arithmetic on numbers of a type, for reports: that of the type, or `tf32` after
/// [`allow_tf32`].
#[must_use]
pub fn arithmetic_name(dtype: DType, device: &Device) -> &'static str {
    // The flag is CUDA's alone, and a Candle without CUDA reports it as set.
    let is_rounded = device.is_cuda() && dtype == DType::F32 && cuda::gemm_reduced_precision_f32();
    if is_rounded { "tf32" } else { dtype.as_str() }
}

/// Returns the free memory of a card, in bytes; `None` for a CPU, or where it is not known.
#[must_use]
pub fn free_memory(device: &Device) -> Option<usize> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(card) => card.cuda_stream().context().mem_get_info().ok().map(|(free, _)| free),
        _ => None,
    }
}

fn automatic() -> Device {
    let gpu = if cfg!(feature = "cuda") { cuda_device(0).ok() } else { None };
    let gpu = gpu.or_else(|| if cfg!(feature = "metal") { Device::new_metal(0).ok() } else { None });
    gpu.unwrap_or(Device::Cpu)
}

fn cuda(ordinal: usize) -> Result<Device> {
    if !cfg!(feature = "cuda") {
        let problem = "this diffae has no CUDA backend; on a machine with the CUDA toolkit, install one with \
                       `cargo install --path crates/diffae-cli --features cuda`";
        return Err(Error::Device { problem: problem.to_owned() });
    }
    cuda_device(ordinal).map_err(|source| {
        if source.to_string().contains("CUDA_ERROR_NO_DEVICE") {
            let problem = "there is no NVIDIA card here, or no driver for it; --device cpu works everywhere";
            return Error::Device { problem: problem.to_owned() };
        }
        Error::Tensor { part: "opening the CUDA device", source }
    })
}

fn metal(ordinal: usize) -> Result<Device> {
    if !cfg!(feature = "metal") {
        let problem = "this diffae has no Metal backend; on macOS, install one with \
                       `cargo install --path crates/diffae-cli --features metal`";
        return Err(Error::Device { problem: problem.to_owned() });
    }
    Device::new_metal(ordinal).map_err(|source| Error::Tensor { part: "opening the Metal device", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_or_explained() {
        assert!(device_from_name("cpu").unwrap().is_cpu());
        assert!(device_from_name("auto").is_ok());
        assert_eq!(free_memory(&Device::Cpu), None);
        assert!(allow_tf32(&Device::Cpu).unwrap_err().to_string().contains("CUDA"));
        for (dtype, name) in [(DType::F32, "f32"), (DType::F16, "f16"), (DType::BF16, "bf16")] {
            assert_eq!(arithmetic_name(dtype, &Device::Cpu), name);
        }
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
