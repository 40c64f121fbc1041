//! A page without a server of its own, as `cargo xtask page`: a folder of static files for any file host.
//!
//! The folder holds an export of the model, onnxruntime-web with its WebAssembly, and the page of `xtask/lab/page`, in the
//! style of the page of `diffae serve`. Nothing is fetched from elsewhere when it is used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use diffae_data::Overwrite;
use diffae_infer::{BUILT_IN_MODEL, ModelKind, ModelSource, built_in_pictures};
use diffae_nets::weights::ArchitectureHints;
use diffae_onnx::{Export, Precision};
use serde_json::json;
use sha2::{Digest, Sha256};
use xtask::repository;

/// The runtime, as npm names it.
const RUNTIME: &str = "onnxruntime-web@1.30.0";
/// SHA-256 of the package.
const RUNTIME_SHA256: &str = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71";
/// Files of the package that the page needs; the last one names its license.
const RUNTIME_FILES: [&str; 3] = ["dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm", "package.json"];
/// Files of the page itself.
const PAGE_FILES: [&str; 4] = ["index.html", "page.js", "worker.js", "chain.js"];

/// Arguments of `cargo xtask page`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Model folder, file of released weights, or `toonheads` (built in).
    #[arg(long, default_value = BUILT_IN_MODEL)]
    model: PathBuf,
    /// Folder to write the page into.
    #[arg(long, default_value = "target/page")]
    out: PathBuf,
    /// Weights in half precision: of the built-in model, 24 in place of 33 MB to load.
    #[arg(long)]
    half: bool,
    /// Replace the files of a page that is there.
    #[arg(long)]
    force: bool,
}

/// Writes the page.
pub(crate) fn run(args: &Args) -> Result<()> {
    let out = &args.out;
    if !args.force && fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty; use --force to replace the files of a page there", out.display())
    }
    let source = ModelSource::open(&args.model, &ArchitectureHints::default())?;
    check(&source, &args.model)?;
    let export = Export::new(&source, if args.half { Precision::F16 } else { Precision::F32 })?;
    fs::create_dir_all(out).with_context(|| format!("cannot write {}", out.display()))?;
    add_runtime(&out.join("ort"))?;
    export.write(&out.join("model"), Overwrite::Replace)?;
    add_page(out, &args.model)?;
    println!("wrote {}; try it with: python3 -m http.server --directory {}", out.display(), out.display());
    Ok(())
}

/// Fails if the page could not drive the model.
fn check(source: &ModelSource, path: &Path) -> Result<()> {
    let kind = source.config().kind();
    ensure!(
        matches!(kind, ModelKind::Autoencoder | ModelKind::AutoencoderWithLatentNet),
        "{} is no diffusion autoencoder, and the page has sliders for nothing else",
        path.display()
    );
    Ok(())
}

/// Downloads the runtime through npm, and adds what the page needs of it.
fn add_runtime(folder: &Path) -> Result<()> {
    let download = tempfile::tempdir().context("cannot make a temporary folder")?;
    let packed = Command::new("npm").args(["pack", "--silent", RUNTIME]).current_dir(download.path()).output();
    let packed = packed.context("cannot start npm, through which the page gets onnxruntime-web")?;
    ensure!(packed.status.success(), "npm cannot get {RUNTIME}: {}", String::from_utf8_lossy(&packed.stderr).trim());
    let archive = download.path().join(String::from_utf8_lossy(&packed.stdout).trim());
    let bytes = fs::read(&archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let got = format!("{:x}", Sha256::digest(&bytes));
    ensure!(got == RUNTIME_SHA256, "{RUNTIME} has SHA-256 {got}, expected {RUNTIME_SHA256}");
    let unpacked = Command::new("tar").arg("-xzf").arg(&archive).current_dir(download.path()).status();
    ensure!(unpacked.context("cannot start tar")?.success(), "{} cannot be unpacked", archive.display());
    fs::create_dir_all(folder).with_context(|| format!("cannot write {}", folder.display()))?;
    for path in RUNTIME_FILES.map(|file| download.path().join("package").join(file)) {
        let name = path.file_name().context("a file without a name")?;
        fs::copy(&path, folder.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    Ok(())
}

/// Adds the page, its style, and the pictures to try.
fn add_page(out: &Path, model: &Path) -> Result<()> {
    let root = repository::root()?;
    let write = |name: &str, bytes: &[u8]| {
        fs::write(out.join(name), bytes).with_context(|| format!("cannot write {}", out.join(name).display()))
    };
    let read = |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
    for name in PAGE_FILES {
        write(name, read(root.join("xtask/lab/page").join(name))?.as_bytes())?;
    }
    let served = read(root.join("crates/diffae-serve/page/index.html"))?;
    write("style.css", style(&served)?.as_bytes())?;
    let is_built_in = model == Path::new(BUILT_IN_MODEL);
    let pictures = if is_built_in { built_in_pictures()? } else { vec![] };
    for (name, picture) in &pictures {
        picture.save(out.join(format!("{name}.png"))).with_context(|| format!("cannot write {name}.png"))?;
    }
    let faces: Vec<String> = pictures.iter().map(|(name, _)| format!("{name}.png")).collect();
    let name = model.file_name().unwrap_or(model.as_os_str()).to_string_lossy();
    write("page.json", json!({ "model": name, "faces": faces }).to_string().as_bytes())
}

/// Returns the style of a page.
fn style(page: &str) -> Result<&str> {
    let style = page.split_once("<style>").and_then(|(_, rest)| rest.split_once("</style>"));
    style.map(|(style, _)| style.trim_start()).context("the page of the server has no style")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_the_style_of_the_server_and_all_that_it_asks_for() {
        let folder = tempfile::tempdir().unwrap();
        add_page(folder.path(), Path::new(BUILT_IN_MODEL)).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(read("style.css").starts_with(":root") && read("style.css").contains(".slider"));
        let page: serde_json::Value = serde_json::from_str(&read("page.json")).unwrap();
        let faces = page["faces"].as_array().unwrap();
        assert_eq!(faces.len(), 8);
        assert!(faces.iter().all(|face| folder.path().join(face.as_str().unwrap()).is_file()));
        // What the page and its scripts name is there: elements by their ids, files of the runtime.
        let (html, script) = (read("index.html"), read("page.js"));
        for id in script.split("$(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(html.contains(&format!("id=\"{id}\"")), "{id}");
        }
        for file in &RUNTIME_FILES[..2] {
            assert!(read("worker.js").contains(file.strip_prefix("dist/").unwrap()), "{file}");
        }
        assert!(![html, script, read("worker.js"), read("chain.js")].iter().any(|text| text.contains("http")));
    }

    /// Draws the noise of seeds 0 to 7 by the page's own script in Node.js.
    fn noise_of_seeds(count: usize) -> Option<Vec<Vec<f64>>> {
        let manifest = json!({ "x_terminal_shape": [count], "diffusion": { "chain": { "alpha_bars": [] } } });
        let chain = fs::read_to_string(repository::root().unwrap().join("xtask/lab/page/chain.js")).unwrap();
        let draw = format!(
            "const model = new Model(null, {manifest}, {{}});
            const noise = Array.from({{ length: 8 }}, (_, seed) => Array.from(model.noise(seed)));
            process.stdout.write(JSON.stringify(noise));"
        );
        let script = tempfile::Builder::new().suffix(".mjs").tempfile().unwrap();
        fs::write(script.path(), format!("{chain}\n{draw}")).unwrap();
        let drawn = match Command::new("node").arg(script.path()).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            drawn => drawn.unwrap(),
        };
        assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
        Some(serde_json::from_slice(&drawn.stdout).unwrap())
    }

    /// Runs where Node.js is, as tests of pages run where a browser is; npm, of which the page is made, comes with it.
    #[test]
    fn noise_of_seeds_is_standard_normal_and_independent() {
        const COUNT: usize = 12288;
        /// Bound of means of `COUNT` products: five standard deviations, of 1 / sqrt(`COUNT`) each.
        const BOUND: f64 = 0.045;
        let Some(noise) = noise_of_seeds(COUNT) else { return };
        let mean = |values: &mut dyn Iterator<Item = f64>| values.take(COUNT).sum::<f64>() / COUNT as f64;
        for (seed, a) in noise.iter().enumerate() {
            assert!(mean(&mut a.iter().copied()).abs() < BOUND, "mean of seed {seed}");
            // Squares have a standard deviation of sqrt(2).
            let variance = mean(&mut a.iter().map(|value| value * value));
            assert!((variance - 1.).abs() < 1.5 * BOUND, "variance {variance} of seed {seed}");
            for (other, b) in noise.iter().enumerate() {
                for shift in 0..5 {
                    let correlation = mean(&mut a[shift..].iter().zip(b).map(|(a, b)| a * b));
                    let is_itself = seed == other && shift == 0;
                    assert!(is_itself || correlation.abs() < BOUND, "{correlation} of {seed}, {other} at {shift}");
                }
            }
        }
    }

    #[test]
    fn a_model_without_z_sem_has_no_page() {
        let fixture = repository::root().unwrap().join("tests/fixtures/golden/ddpm16/last.ckpt");
        let source = ModelSource::open(&fixture, &ArchitectureHints::default()).unwrap();
        assert!(check(&source, &fixture).unwrap_err().to_string().contains("no diffusion autoencoder"));
    }
}
