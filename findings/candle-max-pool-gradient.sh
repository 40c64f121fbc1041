#!/usr/bin/env bash
# The gradient of max_pool2d in candle-core 0.11.1 is a fourth of what it is.
#
# Expected: the maximum of a window gets the gradient of the result, as in PyTorch; where several are equal, they share it.
# Seen:     of 2x2 windows a single maximum gets 1/4 of it, two equal ones get 1/2 each and four get 1 each: the gradient is
#           multiplied by the share of the window that is maximal, where it should be divided by its number. For 3x3 windows it
#           is 1/9. Behind n poolings, as in VGG-16, it is smaller by 4^n, so a perceptual loss trains on its first layers alone.
# For us:   max_pool_2x of diffae-kernels has a gradient of its own, which LPIPS of VGG-16 uses.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "pooling"
version = "0.0.0"
edition = "2024"

[dependencies]
candle-core = "=0.11.1"

[workspace]
TOML
cat >"$folder/src/main.rs" <<'RUST'
use candle_core::{Device, Result, Tensor, Var};

/// The gradient of the sum of maxima w.r.t. one window, which is the whole of x.
fn gradient(window: &[f32], side: usize) -> Result<Vec<f32>> {
    let x = Var::from_tensor(&Tensor::from_slice(window, (1, 1, side, side), &Device::Cpu)?)?;
    let mut gradients = x.max_pool2d(side)?.sum_all()?.backward()?;
    gradients.remove(&x).expect("the maximum has a gradient").flatten_all()?.to_vec1()
}

fn main() -> Result<()> {
    let three = gradient(&[0., 1., 2., 3., 4., 5., 6., 7., 8.], 3)?;
    println!("of nine {:.3}", three[8]);
    println!("{:?} {:?} {:?}", gradient(&[1., 5., 3., 4.], 2)?, gradient(&[5., 5., 3., 4.], 2)?, gradient(&[5.; 4], 2)?);
    Ok(())
}
RUST
told=$(cd "$folder" && CARGO_TARGET_DIR="$folder/target" cargo run --quiet)
echo "$told"
expected="of nine 0.111
[0.0, 0.25, 0.0, 0.0] [0.5, 0.5, 0.0, 0.0] [1.0, 1.0, 1.0, 1.0]"
[ "$told" = "$expected" ] && echo "as described: candle-core 0.11.1"
