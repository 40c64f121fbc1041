//! Measures speed and memory of whole networks, as `cargo xtask bench`.
//!
//! With `--peer`, each round runs our work, then the same work in PyTorch (`xtask/peer/bench.py`), once with glibc's
//! defaults and once with glibc set to keep its memory; the ratio is against the faster of the two.

mod end_to_end;
mod machine;
pub(crate) mod ours;
pub(crate) mod peer;
mod report;
mod scaling;
pub(crate) mod work;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use diffae_kernels::num_multiply_adds;

use peer::Peer;
pub(crate) use peer::python_command;
use report::{Measurement, Report};
use work::{Kind, Work};

use xtask::repository;

/// Environment variable that names the peer's Python.
const PYTHON_VARIABLE: &str = "DIFFAE_PEER_PYTHON";

/// Pause between two measurements.
const PAUSE: Duration = Duration::from_millis(60);

/// Milliseconds below which work is repeated within a round.
const SHORT_MS: f64 = 200.;

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(crate) struct Args {
    /// Run only the work whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Run fewer rounds, and no work that takes long.
    #[arg(long)]
    quick: bool,
    /// Alternate with the PyTorch twin in xtask/peer.
    #[arg(long)]
    peer: bool,
    /// Python of the peer [default: `DIFFAE_PEER_PYTHON`, or python3].
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Threads of this program and of the peer.
    #[arg(long, default_value_t = 2, value_name = "N")]
    threads: usize,
    /// Rounds per piece of work [default: 9, or 3 with --quick].
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Write the rows as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Save the rows for a later --against; the same as --json.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    save: Option<PathBuf>,
    /// Compare with rows that --save or --json has saved.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Disable Winograd convolutions.
    #[arg(long)]
    exact: bool,
    /// Measure how time grows with batch and image size, and two threads against one; draw it to FILE.svg.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["peer", "against", "only"])]
    scaling: Option<PathBuf>,
    /// List the work and exit.
    #[arg(long)]
    list: bool,
    /// Load a model in a process of its own and print the memory it holds.
    #[arg(long, hide = true, value_name = "MODEL")]
    loaded_memory: Option<PathBuf>,
    /// Take a few training steps in a process of its own and print the memory it took.
    #[arg(long, hide = true, value_name = "NAME")]
    memory_of: Option<String>,
}

/// Returns the option that makes another process round as this one does.
fn exact_flag() -> Option<&'static str> {
    diffae_kernels::is_exact().then_some("--exact")
}

/// Measures all work and reports it.
pub(crate) fn run(args: &Args) -> Result<()> {
    if cfg!(debug_assertions) {
        return run_optimized();
    }
    diffae_kernels::set_num_threads(args.threads)?;
    diffae_kernels::set_exact(args.exact);
    if let Some(name) = &args.memory_of {
        let work = Work::all().into_iter().find(|work| &work.name == name);
        println!("{}", ours::peak_bytes(&work.with_context(|| format!("there is no work named {name:?}"))?)?);
        return Ok(());
    }
    if let Some(model) = &args.loaded_memory {
        println!("{}", ours::held_bytes(model)?);
        return Ok(());
    }
    if let Some(path) = &args.scaling {
        return scaling::run(path, args.threads, args.rounds.unwrap_or(7));
    }
    let chosen =
        |work: &Work| args.only.as_ref().is_none_or(|only| work.name.contains(only)) && !(args.quick && work.is_long());
    let works: Vec<Work> = Work::all().into_iter().filter(chosen).collect();
    if works.is_empty() {
        bail!("no work has such a name; --list shows the names")
    }
    if args.list {
        for work in &works {
            println!("{}", work.name);
        }
        return Ok(());
    }
    let rounds = args.rounds.unwrap_or(if args.quick { 3 } else { 9 });
    let mut report = Report::new(args.threads, args.against.as_deref())?;
    let mut peers = if args.peer { Peer::start_both(&python(args), args.threads)? } else { vec![] };
    for work in &works {
        let few_rounds = if args.quick { 1 } else { rounds };
        let measurement = match work.kind {
            Kind::Reconstruct => {
                end_to_end::measure(work, args.peer.then(|| python(args)).as_deref(), args.threads, few_rounds)?
            }
            Kind::BuiltInReconstruct | Kind::BuiltInSample => {
                end_to_end::measure_built_in(work, args.threads, few_rounds)?
            }
            _ => measure(work, &mut peers, (rounds, args))?,
        };
        report.add(work, &measurement);
    }
    if args.only.is_none() && !args.quick {
        println!("{}", ours::memory_of_a_loaded_model()?);
    }
    report.conclude(args.json.as_deref().or(args.save.as_deref()))
}

/// Reruns this program in a release build: `cargo xtask` builds for quick starts, but speed is measured with
/// optimizations.
fn run_optimized() -> Result<()> {
    let mut command = repository::cargo(&repository::root()?);
    command.args(["run", "--quiet", "--release", "--package", "xtask", "--"]).args(std::env::args_os().skip(1));
    let status = command.status().context("cannot start cargo")?;
    if status.success() { Ok(()) } else { bail!("the release build of xtask failed") }
}

fn python(args: &Args) -> PathBuf {
    let from_environment = || std::env::var_os(PYTHON_VARIABLE).map(PathBuf::from);
    args.python.clone().or_else(from_environment).unwrap_or_else(|| "python3".into())
}

/// Runs rounds of ours and of each peer in turn; the first of each is warm-up.
fn measure(work: &Work, peers: &mut [Peer], (rounds, args): (usize, &Args)) -> Result<Measurement> {
    let mut measurement =
        Measurement { ours_ms: vec![], peers_ms: vec![vec![]; peers.len()], memory: None, gflop: None };
    let mut ours = ours::Prepared::new(work)?;
    for peer in peers.iter_mut() {
        peer.prepare(work)?;
    }
    let before = num_multiply_adds();
    let first_ms = ours.run_ms(1)?;
    measurement.gflop = Some(2e-9 * (num_multiply_adds() - before) as f64);
    // Short work is done several times in a row: the first after a rest pays for processors that have to wake up.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number from 1 to 20")]
    let repeats = if first_ms < SHORT_MS { (SHORT_MS / first_ms).ceil().min(20.) as usize } else { 1 };
    for round in 0..=rounds {
        // Idle threads of one side spin for a while before they sleep; the other must not pay for it.
        std::thread::sleep(PAUSE);
        let ms = ours.run_ms(repeats)?;
        let mut peers_ms = Vec::with_capacity(peers.len());
        for peer in peers.iter_mut() {
            std::thread::sleep(PAUSE);
            peers_ms.push(peer.run_ms(repeats)?);
        }
        if round > 0 {
            measurement.ours_ms.push(ms);
            for (all, ms) in measurement.peers_ms.iter_mut().zip(peers_ms) {
                all.push(ms);
            }
        }
    }
    if work.is_training() {
        let ours = ours::peak_bytes_in_child(work, args.threads)?;
        let peer = if args.peer { Some(Peer::peak_bytes(&python(args), args.threads, work)?) } else { None };
        measurement.memory = Some((ours, peer));
    }
    Ok(measurement)
}
