//! Compiles the CUDA kernels to PTX, for builds with the feature `cuda`.

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}

#[cfg(feature = "cuda")]
fn main() -> cudaforge::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/cuda/kernels");
    // Cargo sets it.
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    cudaforge::KernelBuilder::new()
        .source_dir("src/cuda/kernels")
        .watch(["src/cuda/kernels/common.cuh"])
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()?
        .write(out.join("ptx.rs"))
}
