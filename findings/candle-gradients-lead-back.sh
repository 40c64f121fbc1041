#!/usr/bin/env bash
# Gradients of candle-core 0.11.1 may have a graph of their own, which leads back to the variables.
#
# Expected: what `backward` returns are constants, as `torch.autograd.grad` gives them without `create_graph`; candle-core
#           detaches gradients on their way through the graph, and keeps them attached only if CANDLE_GRAD_DO_NOT_DETACH is set.
# Seen:     the last factor stays attached. Of y = x w, the gradient w.r.t. x is g w with an operation that leads to w, and a
#           second backward pass through anything that contains it adds to the gradient of w. Chaining backward passes by hand
#           (the gradient of a later part times the output of an earlier one, as checkpointing does) then counts w once too
#           often: of w w x at w = 2, x = 1, the gradient w.r.t. w comes out as 6 in place of 4. With `detach()` it is 4.
# For us:   the tape differentiates a few of Candle's own operations in this way, and detaches gradients now.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "gradients"
version = "0.0.0"
edition = "2024"

[dependencies]
candle-core = "=0.11.1"

[workspace]
TOML
cat >"$folder/src/main.rs" <<'RUST'
use candle_core::{Device, Result, Tensor, Var};

/// The gradient of w (w x) w.r.t. w, in two backward passes: of the outer product, then of the inner one.
fn gradient(w: &Var, detach: bool) -> Result<f32> {
    let x = Tensor::new(1f32, &Device::Cpu)?;
    let inner = x.mul(w)?;
    let leaf = Var::from_tensor(&inner.detach())?;
    let mut outer = leaf.mul(w)?.backward()?;
    let of_leaf = outer.remove(&leaf).expect("the product has a gradient");
    println!("of the inner product: {of_leaf}, tracked: {}", of_leaf.track_op());
    let of_leaf = if detach { of_leaf.detach() } else { of_leaf };
    let first = outer.remove(w).expect("w has a gradient").to_scalar::<f32>()?;
    let rest = inner.mul(&of_leaf)?.backward()?.remove(w).expect("w has a gradient").to_scalar::<f32>()?;
    Ok(first + rest)
}

fn main() -> Result<()> {
    let w = Var::new(2f32, &Device::Cpu)?;
    println!("attached {}, detached {}", gradient(&w, false)?, gradient(&w, true)?);
    Ok(())
}
RUST
told=$(cd "$folder" && env -u CANDLE_GRAD_DO_NOT_DETACH CARGO_TARGET_DIR="$folder/target" cargo run --quiet)
echo "$told"
[ "$(tail -n 1 <<<"$told")" = "attached 6, detached 4" ] && echo "as described: candle-core 0.11.1"
