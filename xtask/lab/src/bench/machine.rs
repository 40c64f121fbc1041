//! Speed of the machine, and memory of a process.

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};

/// Returns the best rate of a large matrix product, in GFLOP/s.
pub(crate) fn peak_gflops() -> Result<f64> {
    const SIDE: usize = 1536;
    let a = Tensor::randn(0f32, 1., (SIDE, SIDE), &Device::Cpu)?;
    let b = Tensor::randn(0f32, 1., (SIDE, SIDE), &Device::Cpu)?;
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let start = Instant::now();
        a.matmul(&b)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(2. * (SIDE as f64).powi(3) / best * 1e-9)
}

/// Returns the processor's name, as the system reports it.
pub(crate) fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.trim().to_owned())
}

/// Returns the memory of this process now.
pub(crate) fn resident_bytes() -> Result<u64> {
    status_field("VmRSS:")
}

/// Returns the peak memory of this process.
pub(crate) fn peak_resident_bytes() -> Result<u64> {
    status_field("VmHWM:")
}

fn status_field(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("memory is measured on Linux only")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kilobytes = line.trim().trim_end_matches("kB").trim();
    Ok(1024 * kilobytes.parse::<u64>().with_context(|| format!("{field} is {kilobytes:?}"))?)
}
