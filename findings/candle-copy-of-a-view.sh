#!/usr/bin/env bash
# candle-core 0.11.1: on the CPU, the copy of a row is a copy of the whole tensor that the row belongs to.
#
# Expected: `x.get(i)?.copy()?`, documented to copy "the actual storage", holds one row, as on cards, where only what the view
#           shows is copied.
# Seen:     the copy of one row of a thousand has the storage of a thousand rows. A thousand such copies, each of another row,
#           are a million rows in memory. `force_contiguous` copies one row; `contiguous` copies nothing, and keeps all.
# For us:   a cache of results that were computed in batches of 16 took sixteen times the memory that it counted.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "copies"
version = "0.0.0"
edition = "2024"

[dependencies]
candle-core = "=0.11.1"

[workspace]
TOML
cat >"$folder/src/main.rs" <<'RUST'
use candle_core::{DType, Device, Result, Storage, Tensor};

/// Number of values that a tensor keeps in memory.
fn kept(tensor: &Tensor) -> Result<usize> {
    let (storage, _) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(storage.as_slice::<f32>()?.len()),
        _ => candle_core::bail!("not on the CPU"),
    }
}

fn main() -> Result<()> {
    let x = Tensor::zeros((1000, 50), DType::F32, &Device::Cpu)?;
    let row = x.get(7)?;
    println!("copy {}, force_contiguous {} of {} values", kept(&row.copy()?)?, kept(&row.force_contiguous()?)?, row.elem_count());
    Ok(())
}
RUST
cargo run --quiet --release --manifest-path "$folder/Cargo.toml" --target-dir "$folder/target" | tee "$folder/got"
grep -qx 'copy 50000, force_contiguous 50 of 50 values' "$folder/got" && echo "as described: candle-core 0.11.1"
