#!/usr/bin/env bash
# cudarc 0.19.10, which loads NCCL when the program runs, does not find the file that NCCL's own packages install; NCCL itself makes
# ids of groups without a card or a driver.
#
# Expected: `dynamic-loading` finds the NCCL that PyTorch brings and uses, for the loader finds it; an id, which NCCL derives from its
#           network, needs a driver as everything else of NCCL does.
# Seen:     the packages of NCCL 2 have libnccl.so.2 and no other name. cudarc tries libnccl.so and the endings .1 and .9 to .12, those
#           of CUDA, but never .2: `is_culib_present` is false, and any call would panic. With a link libnccl.so it is true. Two ids of
#           128 bytes, different from each other, come from a machine without an NVIDIA driver.
# For us:   `--connect nccl` opens libnccl.so.2 by itself, and a test of ours makes ids by the real library without a card.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install --no-deps nvidia-nccl-cu12==2.32.3
library=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/nccl/lib
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "nccl-file-name"
version = "0.0.0"
edition = "2021"

[dependencies.cudarc]
version = "=0.19.10"
default-features = false
features = ["std", "driver", "nccl-02024", "cuda-12080", "dynamic-loading"]
TOML
cat >"$folder/src/main.rs" <<'RUST'
fn main() {
    let is_there = unsafe { cudarc::nccl::sys::is_culib_present() };
    println!("found: {is_there}");
    if is_there {
        let id = || cudarc::nccl::Id::new().expect("an id").internal().to_vec();
        let (first, second) = (id(), id());
        println!("ids: {} bytes, different: {}", first.len(), first != second);
    }
}
RUST
cargo build --quiet --manifest-path "$folder/Cargo.toml"
program=$folder/target/debug/nccl-file-name
expect() {
    echo "$1: $2"
    [ "$2" = "$3" ] || { echo "changed: expected $3" >&2; exit 1; }
}
expect "files of the package" "$(cd "$library" && ls libnccl.so* | paste -sd ' ')" "libnccl.so.2"
expect "the loader, by that name" \
    "$(LD_LIBRARY_PATH=$library python3 -c 'import ctypes; ctypes.CDLL("libnccl.so.2"); print("opens it")')" "opens it"
expect "cudarc" "$(LD_LIBRARY_PATH=$library "$program")" "found: false"
mkdir "$folder/links"
ln -s "$library/libnccl.so.2" "$folder/links/libnccl.so"
expect "cudarc with a link libnccl.so" "$(LD_LIBRARY_PATH=$folder/links "$program" | paste -sd ' ')" \
    "found: true ids: 128 bytes, different: true"
