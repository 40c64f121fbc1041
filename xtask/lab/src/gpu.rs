//! Checks and measures a card beside the CPU of the same machine, as `cargo xtask gpu`.
//!
//! A machine with a card may have no Rust: build `cargo xtask cuda-build --package xtask-lab`, carry the program, and run
//! `xtask-lab gpu --out DIR`. Each part runs in a process of its own, since an error of a card ends all later work of its
//! process, and lines appear as they are found. `--device composed` takes the operations that GPUs use on the CPU, to try the
//! checks themselves.

mod card;
mod groups;
mod operations;
mod precision;
mod rows;
mod speed;
mod training;
mod whole;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use diffae_infer::allow_tf32;
use diffae_kernels::{CUDA_KERNELS_VARIABLE, cudnn_plans, cudnn_problem};
use xtask::repository;

use self::card::Card;
use self::rows::{Row, Rows, table};
use crate::bench::work::Numbers;

/// A part of the checks: how it is called, the seconds that it may take, and what it does.
type Part = (&'static str, u64, fn(&Card, &Scale, &mut Rows) -> Result<()>);

/// Kernels for CUDA with which names of parts begin, as the environment names them; the other parts take Candle's.
const KERNELS: [&str; 3] = ["own", "cudnn", "graphs"];
/// Part of the names of parts that compute in TF32, as PyTorch does beside them; cards of NVIDIA alone have it.
const TF32: &str = "tf32";
/// Part of the names of parts that measure bf16.
const BF16: &str = "bf16";
/// All parts, the most important first.
const PARTS: [Part; 31] = [
    ("operations", 90, operations::check),
    ("networks", 90, whole::networks),
    ("cudnn-operations", 60, operations::check),
    ("cudnn-networks", 90, whole::networks),
    ("graphs-networks", 60, whole::networks),
    ("graphs-tf32-speed", 150, speed::measure),
    ("graphs-bf16-speed", 150, speed::measure),
    ("samples", 60, whole::samples),
    ("graphs-samples", 60, whole::samples),
    ("codes", 60, whole::codes),
    ("training", 120, training::steps),
    ("precision", 240, precision::measure),
    ("cudnn-precision", 180, precision::measure),
    ("cudnn-tf32-precision", 120, precision::measure),
    ("cudnn-training", 90, training::steps),
    ("resume", 120, training::resume),
    ("cudnn-resume", 120, training::resume),
    ("groups", 90, groups::sizes),
    ("cudnn-groups", 90, groups::sizes),
    ("nccl", 60, groups::nccl),
    ("speed", 180, speed::measure),
    ("cudnn-tf32-speed", 150, speed::measure),
    ("cudnn-bf16-speed", 150, speed::measure),
    ("graphs-speed", 120, speed::measure),
    ("cudnn-speed", 120, speed::measure),
    ("own-operations", 60, operations::check),
    ("own-networks", 60, whole::networks),
    ("own-training", 90, training::steps),
    ("own-tf32-speed", 150, speed::measure),
    ("own-speed", 120, speed::measure),
    ("own-resume", 120, training::resume),
];

/// Arguments of `cargo xtask gpu`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Device to check: cuda, cuda:N or metal; or `composed`, the operations of GPUs on the CPU
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Folder for report.md and report.json
    #[arg(long)]
    out: PathBuf,
    /// Run only the parts whose names contain this
    ///
    /// Parts whose names begin with `own` take the kernels of diffae for cards in place of Candle's, those with `cudnn` convolutions
    /// by cuDNN, too, and those with `graphs` start network calls as a whole.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Take small sizes, for a CPU
    #[arg(long)]
    quick: bool,
    /// Measure the PyTorch twin in xtask/peer beside ours
    #[arg(long)]
    peer: bool,
    /// Python of the twin
    #[arg(long, value_name = "PATH", default_value = "python3")]
    python: PathBuf,
    /// Folder of the twin's scripts [default: xtask/peer of the repository]
    #[arg(long, value_name = "DIR")]
    scripts: Option<PathBuf>,
    /// Run one part, in this process, and print its rows as JSON
    #[arg(long, hide = true, value_name = "NAME")]
    part: Option<String>,
}

/// Sizes of the work, and the twin to measure beside it.
pub(crate) struct Scale {
    quick: bool,
    /// Python and the folder of scripts.
    peer: Option<(PathBuf, PathBuf)>,
    /// Number type of what is measured.
    numbers: Numbers,
}

/// Checks and measures a device, and writes the report.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(name) = &args.part {
        return run_part(args, name);
    }
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let (start, mut all) = (Instant::now(), BTreeMap::new());
    let of_cards = |name: &str| {
        [TF32, BF16].iter().any(|it| name.contains(it))
            || ["own", "cudnn", "nccl"].iter().any(|it| name.starts_with(it))
    };
    let is_possible = |name: &str| args.device.starts_with("cuda") || !of_cards(name);
    let is_wanted = |name: &str| is_possible(name) && args.only.as_ref().is_none_or(|only| name.contains(only));
    for (place, (name, limit, _)) in PARTS.iter().enumerate().filter(|(_, (name, ..))| is_wanted(name)) {
        println!("[{:.0} s] {name}", start.elapsed().as_secs_f64());
        all.insert((place, *name), supervised(args, name, Duration::from_secs(*limit))?);
        write_report(args, &all)?;
    }
    ensure!(!all.is_empty(), "no part has such a name; there are {}", PARTS.map(|(name, ..)| name).join(", "));
    let failed = all.values().flatten().filter(|row| !row.passed).count();
    println!("[{:.0} s] {}", start.elapsed().as_secs_f64(), args.out.join("report.md").display());
    if failed > 0 {
        bail!("{failed} of {} rows failed", all.values().map(Vec::len).sum::<usize>())
    }
    Ok(())
}

/// Runs one part here.
fn run_part(args: &Args, name: &str) -> Result<()> {
    let part = PARTS.iter().find(|(it, ..)| *it == name);
    let (_, _, check) = part.with_context(|| format!("there is no part {name:?}"))?;
    let scripts = || match &args.scripts {
        Some(scripts) => Ok::<_, anyhow::Error>(scripts.clone()),
        None => Ok(repository::root()?.join("xtask").join("peer")),
    };
    let peer = if args.peer { Some((args.python.clone(), scripts()?)) } else { None };
    let card = Card::open(&args.device)?;
    if name.contains(TF32) {
        card.run(|device| Ok(allow_tf32(device)?))?;
    }
    let mut rows = Rows::printing();
    // Without cuDNN, convolutions are Candle's: a check of those would say nothing of cuDNN.
    let problem = card.run(|device| Ok(cudnn_problem(device)))?;
    ensure!(problem.is_none(), "cuDNN cannot be checked: {}", problem.unwrap_or_default());
    let numbers = match name {
        name if name.contains(TF32) => Numbers::Tf32,
        name if name.contains(BF16) => Numbers::Bf16,
        _ => Numbers::F32,
    };
    let outcome = check(&card, &Scale { quick: args.quick, peer, numbers }, &mut rows);
    if args.device.starts_with("cuda") && ["cudnn", "graphs"].iter().any(|kernels| name.starts_with(kernels)) {
        let (num_plans, problems) = card.run(|device| Ok(cudnn_plans(device)))?;
        rows.measure("kinds of convolutions by cuDNN", num_plans as f64);
        rows.measure("kinds of convolutions that cuDNN has not computed", problems.len() as f64);
        // They are in the log of the part.
        for problem in problems {
            eprintln!("{problem}");
        }
        ensure!(num_plans > 0, "cuDNN has computed nothing");
    }
    outcome
}

/// Runs a part in a process of its own, which is ended after some time; returns its rows, with one for a failure.
fn supervised(args: &Args, name: &str, limit: Duration) -> Result<Vec<Row>> {
    let program = std::env::current_exe().context("this program has no path")?;
    let mut command = Command::new(program);
    command.args(["gpu", "--device", &args.device, "--part", name, "--out"]).arg(&args.out);
    command.args(args.quick.then_some("--quick")).args(args.peer.then_some("--peer"));
    let kernels = KERNELS.into_iter().find(|kernels| name.starts_with(kernels));
    command.env(CUDA_KERNELS_VARIABLE, kernels.unwrap_or("candle"));
    command.arg("--python").arg(&args.python);
    if let Some(scripts) = &args.scripts {
        command.arg("--scripts").arg(scripts);
    }
    let log = args.out.join(format!("{name}.log"));
    let errors = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn();
    let mut child = child.context("cannot start this program once more")?;
    let lines = BufReader::new(child.stdout.take().context("a process without output")?).lines();
    let reader = thread::spawn(move || {
        let mut rows = vec![];
        for row in lines.map_while(Result::ok).filter_map(|line| serde_json::from_str::<Row>(&line).ok()) {
            println!("  {row}");
            rows.push(row);
        }
        rows
    });
    let ended = ended_within(&mut child, limit)?;
    let mut rows = reader.join().unwrap_or_default();
    let problem = match ended {
        Some(true) => return Ok(rows),
        Some(false) => {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.lines().find(|line| line.starts_with("error")).unwrap_or("it ended by itself").to_owned()
        }
        None => format!("it took more than {} s", limit.as_secs()),
    };
    let row = Row::failure(&problem);
    println!("  {row}");
    rows.push(row);
    Ok(rows)
}

/// Waits for a process; returns whether it succeeded, or ends it after some time.
fn ended_within(child: &mut Child, limit: Duration) -> Result<Option<bool>> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait().context("a process cannot be waited for")? {
            return Ok(Some(status.success()));
        }
        thread::sleep(Duration::from_millis(50));
    }
    // It may have ended meanwhile.
    let killed = child.kill().and_then(|()| child.wait());
    drop(killed);
    Ok(None)
}

fn write_report(args: &Args, all: &BTreeMap<(usize, &str), Vec<Row>>) -> Result<()> {
    let by_name: BTreeMap<&str, &Vec<Row>> = all.iter().map(|((_, name), rows)| (*name, rows)).collect();
    let json = serde_json::to_string_pretty(&by_name).context("cannot describe the rows")?;
    let mut text = format!("# {}, {}\n", args.device, card::description());
    for ((_, name), rows) in all {
        let _ = write!(text, "\n## {name}\n\n{}", table(rows));
    }
    for (name, contents) in [("report.json", &json), ("report.md", &text)] {
        let path = args.out.join(name);
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a process of its own, since the device selects the kernels of the whole process.
    #[test]
    fn operations_pass_on_the_composed_backend() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", "gpu::tests::composed_operations", "--ignored"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "selects the kernels of its process; operations_pass_on_the_composed_backend starts it"]
    fn composed_operations() {
        let scale = Scale { quick: true, peer: None, numbers: Numbers::F32 };
        let card = Card::open("composed").unwrap();
        let mut rows = Rows::silent();
        operations::check(&card, &scale, &mut rows).unwrap();
        let failed: Vec<String> = rows.all().iter().filter(|row| !row.passed).map(ToString::to_string).collect();
        assert!(failed.is_empty() && rows.all().len() > 10, "{failed:?}");
    }

    #[test]
    fn a_wrong_number_fails_its_row() {
        let mut rows = Rows::silent();
        rows.compare("right", 1e-6, 1e-5);
        rows.compare("wrong", 1e-4, 1e-5);
        rows.compare("no number", f64::NAN, 1e-5);
        assert_eq!(rows.all().iter().map(|row| row.passed).collect::<Vec<_>>(), [true, false, false]);
        assert!(table(rows.all()).contains("| wrong | 1.0e-4 | 1e-5 | **FAIL** |"), "{}", table(rows.all()));
    }
}
