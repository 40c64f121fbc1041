//! The device under test, and the CPU beside it.

use std::process::Command;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use diffae_infer::device_from_name;
use diffae_kernels::{KernelSet, force_kernel_set, kernel_set};

/// Name of the device that is the composed backend on the CPU.
const COMPOSED: &str = "composed";

/// A device under test.
pub(super) struct Card {
    device: Device,
    /// Kernel sets while work is on the device, and while it is on the CPU.
    sets: [KernelSet; 2],
}

impl Card {
    /// Opens the device of a name; [`COMPOSED`] is the CPU.
    pub(super) fn open(name: &str) -> Result<Self> {
        let usual = kernel_set();
        if name == COMPOSED {
            return Ok(Self { device: Device::Cpu, sets: [KernelSet::Candle, usual] });
        }
        Ok(Self { device: device_from_name(name)?, sets: [usual; 2] })
    }

    /// Runs work on the device.
    pub(super) fn run<R>(&self, work: impl FnOnce(&Device) -> Result<R>) -> Result<R> {
        let [on_device, usual] = self.sets;
        force_kernel_set(on_device)?;
        let result = work(&self.device).and_then(|result| {
            self.device.synchronize()?;
            Ok(result)
        });
        force_kernel_set(usual)?;
        result
    }

    /// Runs work on the device and on the CPU.
    pub(super) fn run_both<R>(&self, work: impl Fn(&Device) -> Result<R>) -> Result<[R; 2]> {
        Ok([self.run(&work)?, work(&Device::Cpu)?])
    }
}

/// Returns the largest difference over the largest expected magnitude; NaN if there is one.
pub(super) fn relative_error(got: &Tensor, expected: &Tensor) -> Result<f64> {
    let numbers = |x: &Tensor| -> Result<Vec<f32>> {
        Ok(x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    };
    let (got, expected) = (numbers(got)?, numbers(expected)?);
    anyhow::ensure!(got.len() == expected.len(), "{} values in place of {}", got.len(), expected.len());
    let most = |values: &mut dyn Iterator<Item = f32>| {
        values.map(f32::abs).fold(0f32, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) })
    };
    let difference = most(&mut got.iter().zip(&expected).map(|(a, b)| a - b));
    Ok(f64::from(difference / most(&mut expected.iter().copied()).max(1e-6)))
}

/// Makes a tensor on the CPU of numbers of both signs that look random.
pub(super) fn values(dims: &[usize], seed: usize) -> Result<Tensor> {
    let count = dims.iter().product::<usize>();
    let value = |i: usize| ((i as f64 * 12.9898 + seed as f64 * 78.233).sin() * 437.585_45).fract();
    Ok(Tensor::from_vec((0..count).map(value).collect::<Vec<f64>>(), dims, &Device::Cpu)?.to_dtype(DType::F32)?)
}

/// Names the card and its driver, as far as `nvidia-smi` tells.
pub(super) fn description() -> String {
    let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
    let output = Command::new("nvidia-smi").args(query).output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|| "no NVIDIA driver".to_owned())
}

/// Returns the memory of the card that this process holds, in MiB, as far as `nvidia-smi` tells.
pub(super) fn memory_mib() -> Option<f64> {
    let query = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"];
    let output = Command::new("nvidia-smi").args(query).output().context("no driver").ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let own = std::process::id().to_string();
    let of_line = |line: &str| {
        let (pid, memory) = line.split_once(',')?;
        (pid.trim() == own).then(|| memory.trim().parse().ok())?
    };
    text.lines().find_map(of_line)
}
