#!/usr/bin/env bash
# candle-core 0.11.1 reads /proc/cpuinfo again for every matrix product on the CPU.
#
# Expected: the number of cores is found once, when the thread pool is built.
# Seen:     each `matmul` opens and parses /proc/cpuinfo, by `num_cpus::get_physical`, to decide how many threads to use,
#           whatever the size of the matrices: a hundred products of 4 by 4 matrices are a hundred reads. With
#           RAYON_NUM_THREADS in the environment there are none. (Machines with two kinds of cores are told apart in
#           another way, and not concerned.)
# For us:   fitting edit directions, thousands of steps of small layers, spent 70% of its time there; it now uses the
#           fully connected layer of our kernels, as networks do.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat >"$folder/Cargo.toml" <<'TOML'
[package]
name = "products"
version = "0.0.0"
edition = "2024"

[dependencies]
candle-core = "=0.11.1"
num_cpus = "=1.17.0"

[workspace]
TOML
cat >"$folder/src/main.rs" <<'RUST'
use candle_core::{DType, Device, Result, Tensor};

fn main() -> Result<()> {
    let count: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let x = Tensor::ones((4, 4), DType::F32, &Device::Cpu)?;
    for _ in 0..count {
        x.matmul(&x)?;
    }
    Ok(())
}
RUST
# Counts how often a process opens the file.
cat >"$folder/count.c" <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int count;

static int opened(const char *path, int flags, va_list arguments) {
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, int) : 0;
    if (strcmp(path, "/proc/cpuinfo") == 0) __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

#define COUNTED(name) \
    int name(const char *path, int flags, ...) { \
        va_list arguments; \
        va_start(arguments, flags); \
        int file = opened(path, flags, arguments); \
        va_end(arguments); \
        return file; \
    }
COUNTED(open)
COUNTED(open64)

__attribute__((destructor)) static void report(void) { printf("%d\n", count); }
C
cc -shared -fPIC -O1 -o "$folder/count.so" "$folder/count.c"
cargo build --quiet --release --manifest-path "$folder/Cargo.toml" --target-dir "$folder/target"
reads() { LD_PRELOAD="$folder/count.so" "$@" "$folder/target/release/products" "$number"; }
for number in 10 110; do
    echo "$number products: $(reads env -u RAYON_NUM_THREADS) reads, with RAYON_NUM_THREADS $(reads env RAYON_NUM_THREADS=2)"
done >"$folder/got"
cat "$folder/got"
sed -E 's/[^0-9]+/ /g' "$folder/got" | awk '{ own[NR] = $2; set[NR] = $3 }
    END { exit !(own[2] - own[1] == 100 && set[2] == set[1]) }' && echo "as described: candle-core 0.11.1"
