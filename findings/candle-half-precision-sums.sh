#!/usr/bin/env bash
# The mean of ones is not one in half precision: candle-core 0.11.1 adds up f16 in f16 and bf16 in bf16 on a CPU.
#
# Expected: sums of half precision are accumulated in f32, as PyTorch's are, and as candle's own products and convolutions do.
# Seen:     the sum of 4,096 ones is 2,048 in f16 and 256 in bf16, where adding one rounds away; the mean of 70,000 ones is 0.029
#           and 0.0037, and an average pooling of 64 x 64 ones in f16 gives 0.5. A product of the same 4,096 ones is 4,096.
# For us:   gradients of biases and the mean over pixels at the end of the encoder convert to f32 first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "sums"
version = "0.0.0"
edition = "2024"

[dependencies]
candle-core = "=0.11.1"

[workspace]
TOML
cat >"$folder/src/main.rs" <<'RUST'
use candle_core::{DType, Device, Result, Tensor};

fn main() -> Result<()> {
    for dtype in [DType::F16, DType::BF16] {
        let ones = |count: usize| Tensor::ones(count, dtype, &Device::Cpu);
        let value = |x: Tensor| x.to_dtype(DType::F32)?.to_scalar::<f32>();
        println!("{dtype:?} {} {:.4}", value(ones(4096)?.sum_all()?)?, value(ones(70_000)?.mean_all()?)?);
    }
    let ones = Tensor::ones((1, 1, 64, 64), DType::F16, &Device::Cpu)?;
    let row = ones.reshape((1, 4096))?;
    let numbers = |x: Tensor| x.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
    println!("pooled {:?}, product {:?}", numbers(ones.avg_pool2d(64)?)?, numbers(row.matmul(&row.t()?)?)?);
    Ok(())
}
RUST
told=$(cd "$folder" && CARGO_TARGET_DIR="$folder/target" cargo run --quiet)
echo "$told"
expected="F16 2048 0.0293
BF16 256 0.0037
pooled [0.5], product [4096.0]"
[ "$told" = "$expected" ] && echo "as described: candle-core 0.11.1"
