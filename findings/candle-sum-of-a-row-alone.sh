#!/usr/bin/env bash
# candle-core 0.11.1 sums the same row in another order if it is the only one of a strided view.
#
# Expected: rows that are cut out of a larger tensor have the same sums whether one is cut out or two, as rows that follow
#           each other have.
# Seen:     `x[.., 0]` of an x of shape [N, 257, 384] is a view whose rows lie apart. With two rows or more, `sum_keepdim`
#           walks it by index, one addition after the other. A view of one row counts as contiguous, since an axis of length 1
#           has no stride to speak of, and is summed by vector instructions, in another order. The last bits differ. After
#           `contiguous()` they are the same for any N.
# For us:   the class token of a vision transformer is such a row, and the norm after it such a sum: the features of a picture
#           would depend on how many others were computed with it. It is made contiguous first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "rows"
version = "0.0.0"
edition = "2024"

[dependencies]
candle-core = "=0.11.1"

[workspace]
TOML
cat >"$folder/src/main.rs" <<'RUST'
use candle_core::{D, Device, IndexOp, Result, Tensor};

/// Sums of the first token of each of the first `count` pictures.
fn sums(x: &Tensor, count: usize, is_copied: bool) -> Result<Vec<f32>> {
    let rows = x.narrow(0, 0, count)?.i((.., 0))?;
    let rows = if is_copied { rows.contiguous()? } else { rows };
    rows.sum_keepdim(D::Minus1)?.flatten_all()?.to_vec1()
}

fn main() -> Result<()> {
    let values: Vec<f32> = (0..2 * 257 * 384).map(|idx| (idx as f32 * 0.37).sin() * 1.7).collect();
    let x = Tensor::from_vec(values, (2, 257, 384), &Device::Cpu)?;
    for (name, is_copied) in [("view", false), ("copy", true)] {
        let (alone, both) = (sums(&x, 1, is_copied)?[0], sums(&x, 2, is_copied)?[0]);
        let verdict = if alone.to_bits() == both.to_bits() { "same" } else { "other" };
        println!("{name}: {alone:e} alone, {both:e} beside another: {verdict} bits");
    }
    Ok(())
}
RUST
cargo run --quiet --release --manifest-path "$folder/Cargo.toml" --target-dir "$folder/target" >"$folder/got"
cat "$folder/got"
grep -q '^view: .* other bits$' "$folder/got" && grep -q '^copy: .* same bits$' "$folder/got" &&
    echo "as described: candle-core 0.11.1"
