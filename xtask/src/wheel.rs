//! `cargo xtask wheel`: the Python package of the module `diffae`, and its tests.
//!
//! maturin builds it: a program from the Python package index that starts cargo. The module needs no Python while it is built, since
//! it keeps to the stable interface. The tests take a fresh virtual environment, with the wheel and pinned packages.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use xtask::repository;

/// The version of maturin that builds wheels.
const MATURIN_VERSION: &str = "1.16.0";
/// The Python of the tests.
const PYTHON: &str = "python3";
/// The package, from the root of the repository.
const PACKAGE: &str = "crates/diffae-python";
/// Maximum size of a wheel.
const MAX_WHEEL_BYTES: u64 = 40_000_000;
/// Requirements of the tests, and of those with other libraries, in the package.
const REQUIREMENTS: &str = "tests/requirements.txt";
const PEER_REQUIREMENTS: &str = "tests/requirements-peers.txt";

/// Arguments of `cargo xtask wheel`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder of the wheel [default: target/wheels]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Build with the dev profile, as tests are: quick to build, slower to run
    #[arg(long)]
    dev: bool,
    /// Run the tests of the package with the wheel, in a fresh virtual environment
    #[arg(long)]
    test: bool,
    /// Run the tests with scikit-learn, Gradio, Ray and Dask as well: two gigabytes of packages
    #[arg(long, requires = "test")]
    peers: bool,
    /// The Python of the tests
    #[arg(long, value_name = "PROGRAM", default_value = PYTHON)]
    python: PathBuf,
}

/// The profile that everything is built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Profile {
    Dev,
    Release,
}

impl Args {
    /// The arguments of the gate, which has built nearly all of it before.
    pub(crate) fn of_gate() -> Self {
        Self { out: None, dev: true, test: true, peers: false, python: PathBuf::from(PYTHON) }
    }
}

/// Returns whether there is what builds the wheel, and a Python for its tests.
pub(crate) fn can_be_tested() -> bool {
    let has_venv = || Command::new(PYTHON).args(["-c", "import ensurepip, venv"]).output();
    maturin().is_ok() && has_venv().is_ok_and(|output| output.status.success())
}

/// Builds the wheel, and tests it if that is asked for.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = repository::root()?;
    let maturin = maturin()?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let out = args.out.clone().unwrap_or_else(|| target.join("wheels"));
    let profile = if args.dev { Profile::Dev } else { Profile::Release };
    let wheel = build(&root, &maturin, &out, profile)?;
    let num_bytes = fs::metadata(&wheel).with_context(|| format!("cannot read {}", wheel.display()))?.len();
    println!("{}: {:.1} MB", wheel.display(), num_bytes as f64 / 1e6);
    ensure!(
        profile == Profile::Dev || num_bytes <= MAX_WHEEL_BYTES,
        "the wheel has {num_bytes} bytes, more than {MAX_WHEEL_BYTES}"
    );
    if args.test { test(&root, &program(&root, &target, profile)?, &wheel, args) } else { Ok(()) }
}

/// Returns maturin, if it is there in the version that is pinned.
fn maturin() -> Result<PathBuf> {
    let program = env::var_os("MATURIN").map_or_else(|| PathBuf::from("maturin"), PathBuf::from);
    let way_out = format!(
        "`python3 -m pip install maturin=={MATURIN_VERSION}` installs it (and MATURIN may name it, if it is not in PATH)"
    );
    let Ok(output) = Command::new(&program).arg("--version").output() else {
        bail!("maturin {MATURIN_VERSION}, which builds wheels, is missing: {way_out}")
    };
    check_version(&String::from_utf8_lossy(&output.stdout), &way_out)?;
    Ok(program)
}

fn check_version(told: &str, way_out: &str) -> Result<()> {
    let version = told.trim().strip_prefix("maturin ").unwrap_or("an unknown one");
    ensure!(version == MATURIN_VERSION, "the version of maturin is {version}, expected {MATURIN_VERSION}: {way_out}");
    Ok(())
}

/// Builds the wheel into a fresh folder, and moves it to `out`.
fn build(root: &Path, maturin: &Path, out: &Path, profile: Profile) -> Result<PathBuf> {
    fs::create_dir_all(out).with_context(|| format!("cannot write {}", out.display()))?;
    let fresh = tempfile::tempdir_in(out).with_context(|| format!("cannot write {}", out.display()))?;
    let mut command = Command::new(maturin);
    command.current_dir(root).env("CARGO", repository::cargo_program());
    command.args(["build", "--locked", "--manifest-path", &format!("{PACKAGE}/Cargo.toml"), "--out"]).arg(fresh.path());
    command.args(["--profile", if profile == Profile::Dev { "dev" } else { "release" }]);
    // What is linked against is as old as this machine; the wheel says so in its name.
    command.args(["--auditwheel", "repair"]);
    let status = command.status().context("cannot start maturin")?;
    ensure!(status.success(), "maturin could not build the wheel ({status})");
    let mut wheels = fs::read_dir(fresh.path())?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let built = wheels.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let built = built.context("maturin has left no wheel")?;
    let wheel = out.join(built.file_name().context("the wheel has no name")?);
    fs::rename(&built, &wheel).with_context(|| format!("cannot write {}", wheel.display()))?;
    Ok(wheel)
}

/// Runs the tests in a virtual environment that vanishes with them.
fn test(root: &Path, program: &Path, wheel: &Path, args: &Args) -> Result<()> {
    let package = root.join(PACKAGE);
    let folder = tempfile::tempdir().context("cannot make a folder for the tests")?;
    println!("making a virtual environment with the packages of {PACKAGE}/{REQUIREMENTS}");
    let mut venv = Command::new(&args.python);
    venv.args(["-m", "venv"]).arg(folder.path());
    let why = "needs Python 3.10 or later with its module venv; --python names another";
    succeed(&mut venv)
        .with_context(|| format!("{} cannot make a virtual environment: it {why}", args.python.display()))?;
    let python = folder.path().join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).arg(wheel);
    pip.arg("--requirement").arg(package.join(REQUIREMENTS));
    if args.peers {
        pip.arg("--requirement").arg(package.join(PEER_REQUIREMENTS));
    }
    succeed(&mut pip).context("pip could not install the wheel and what the tests need")?;
    let mut pytest = Command::new(&python);
    pytest.args(["-m", "pytest", "--quiet", "-p", "no:cacheprovider"]).current_dir(&package);
    if args.peers {
        pytest.args(["-m", "peers or not peers"]);
    }
    pytest.env("DIFFAE_PROGRAM", program).env("PYTHONDONTWRITEBYTECODE", "1");
    succeed(&mut pytest).context("tests of the Python package have failed")
}

/// Builds the program that results are compared with, with the features that the gate builds it with.
fn program(root: &Path, target: &Path, profile: Profile) -> Result<PathBuf> {
    let mut cargo = repository::cargo(root);
    cargo.args([
        "build",
        "--quiet",
        "--locked",
        "--workspace",
        "--bin",
        "diffae",
        "--features",
        "parquet,toonheads,dicom",
    ]);
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            cargo.arg("--release");
            "release"
        }
    };
    succeed(&mut cargo).context("the program could not be built")?;
    Ok(target.join(folder).join("diffae").with_extension(env::consts::EXE_EXTENSION))
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(status.success(), "{} ended with {status}", command.get_program().display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_maturin_is_named_with_the_way_to_the_right_one() {
        assert!(check_version("maturin 1.16.0\n", "").is_ok());
        for (told, got) in [("maturin 1.2.3\n", "1.2.3"), ("", "an unknown one")] {
            let error = check_version(told, "pip installs it").unwrap_err().to_string();
            assert_eq!(error, format!("the version of maturin is {got}, expected 1.16.0: pip installs it"));
        }
    }

    /// The wheel is then built in seconds after the tests, and the program after the wheel.
    #[test]
    fn the_module_is_made_of_what_the_program_is_made_of() {
        let tree = |packages: &[&str], edges: &str| {
            let mut cargo = Command::new(repository::cargo_program());
            cargo.current_dir(repository::root().unwrap()).args(["tree", "--locked"]).args(packages);
            cargo.args(["--edges", edges, "--format", "{p} {f}", "--prefix", "none", "--no-dedupe"]);
            let output = cargo.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
        };
        let module = tree(&["--package", "diffae-python", "--features", "parquet,dicom"], "normal,no-proc-macro");
        // What tests need decides features, too.
        let all = tree(&["--workspace", "--features", "parquet,toonheads,dicom"], "normal,dev,no-proc-macro");
        let own = module.difference(&all).collect::<Vec<_>>();
        assert!(module.len() > 100 && own.is_empty(), "{own:?}");
    }

    /// Whoever builds the wheel by pip gets the same.
    #[test]
    fn the_build_system_of_the_package_is_this_maturin() {
        let package = repository::root().unwrap().join(PACKAGE);
        let text = fs::read_to_string(package.join("pyproject.toml")).unwrap();
        assert!(text.contains(&format!("requires = [\"maturin=={MATURIN_VERSION}\"]")), "{text}");
        let gate = fs::read_to_string(repository::root().unwrap().join(".ci/run")).unwrap();
        assert!(gate.contains(&format!("pip install maturin=={MATURIN_VERSION}")), "{gate}");
        assert!([REQUIREMENTS, PEER_REQUIREMENTS].iter().all(|file| package.join(file).is_file()));
    }
}
