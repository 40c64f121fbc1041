//! `cargo xtask browser`: the page of `diffae serve` in a real browser, tested or measured.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use xtask::repository;

/// Names under which Chromium is installed.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
/// The packages and features of all steps of the gate, so that nothing is compiled twice.
const SAME_BUILD: [&str; 4] = ["--workspace", "--features", "parquet,toonheads,dicom", "--locked"];

/// Arguments of the command.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Run only tests whose names contain this
    filter: Option<String>,
    /// Leave pictures of the page in this folder
    #[arg(long, value_name = "FOLDER", conflicts_with = "bench")]
    screenshots: Option<PathBuf>,
    /// Measure the time from the event of a slider to the pixels, in place of the tests
    #[arg(long, conflicts_with = "filter")]
    bench: bool,
    /// Measure this program, in place of a release build
    #[arg(long, value_name = "PATH", requires = "bench")]
    program: Option<PathBuf>,
}

/// Runs the tests of the page, or measures it.
///
/// # Errors
/// If there is no browser; if a test fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(is_there(), "Chromium and chromedriver are needed; Debian: apt-get install chromium chromium-driver");
    let mut cargo = repository::cargo(&repository::root()?);
    if args.bench {
        measure(&mut cargo, args.program.as_deref())?;
    } else {
        // One after the other: pictures of several servers at once would take each other's time.
        cargo.arg("test").args(SAME_BUILD).args(["--test", "browser", "--", "--test-threads=1"]).args(&args.filter);
        if let Some(folder) = &args.screenshots {
            cargo.env("DIFFAE_SCREENSHOTS", std::path::absolute(folder).context("cannot find the current folder")?);
        }
    }
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo ended with {status}");
    Ok(())
}

/// Returns whether chromedriver and a browser can be started; chromedriver finds the browser itself.
pub(crate) fn is_there() -> bool {
    let starts = |program: &str| {
        let mut program = Command::new(program);
        program.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        program.status().is_ok_and(|status| status.success())
    };
    starts("chromedriver") && BROWSERS.iter().any(|browser| starts(browser))
}

fn measure(cargo: &mut Command, program: Option<&Path>) -> Result<()> {
    match program {
        Some(program) => {
            let program = program.canonicalize().with_context(|| format!("cannot find {}", program.display()))?;
            // What measures need not be fast, and the build of the tests is there.
            cargo.args(["bench", "--profile", "dev"]).args(SAME_BUILD);
            cargo.args(["--bench", "latency", "--", "--program"]).arg(program);
        }
        None => {
            cargo.args([
                "bench",
                "--package",
                "diffae-cli",
                "--features",
                "toonheads",
                "--locked",
                "--bench",
                "latency",
            ]);
        }
    }
    Ok(())
}
