//! The PyTorch twin, as a process that does one piece of work per request.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::work::Work;
use xtask::repository;

/// The twin's script.
const SCRIPT: &str = "bench.py";
/// Environment variables that make glibc keep its memory.
pub(crate) const KEEP_MEMORY: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "4294967296"), ("MALLOC_TRIM_THRESHOLD_", "8589934592")];

/// Builds the command that runs a script of the twin.
pub(crate) fn python_command(python: &Path, script: &Path) -> Command {
    let mut command = Command::new(python);
    // What some machines set for old builds of numpy slows a current one.
    command.env_remove("OPENBLAS_CORETYPE").env_remove("OPENBLAS_L2_SIZE").arg(script);
    command
}

/// A running twin.
pub(crate) struct Peer {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts two twins: one with glibc's defaults, and one that keeps its memory.
    pub(crate) fn start_both(python: &Path, threads: usize) -> Result<Vec<Self>> {
        Ok(vec![Self::start(python, threads, &[])?, Self::start(python, threads, &KEEP_MEMORY)?])
    }

    fn start(python: &Path, threads: usize, environment: &[(&str, &str)]) -> Result<Self> {
        let mut command = python_command(python, &repository::root()?.join("xtask/peer").join(SCRIPT));
        command.arg(threads.to_string()).envs(environment.iter().copied());
        Self::begin(python, command)
    }

    /// Starts a twin on a device of PyTorch's, from a folder of scripts.
    pub(crate) fn start_on(python: &Path, scripts: &Path, device: &str) -> Result<Self> {
        let mut command = python_command(python, &scripts.join(SCRIPT));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        command.args([&threads.to_string(), device]);
        Self::begin(python, command)
    }

    fn begin(python: &Path, mut command: Command) -> Result<Self> {
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.with_context(|| format!("cannot start {}", python.display()))?;
        let requests = child.stdin.take().context("the peer has no input")?;
        let answers = BufReader::new(child.stdout.take().context("the peer has no output")?);
        let mut peer = Self { child, requests, answers };
        peer.read_line()
            .context("the peer did not start; does its Python have torch (xtask/peer/requirements.txt)?")?;
        Ok(peer)
    }

    /// Builds the model of a piece of work.
    pub(crate) fn prepare(&mut self, work: &Work) -> Result<()> {
        let request = serde_json::to_string(work).context("cannot describe the work")?;
        self.ask(&request).map(drop)
    }

    /// Runs the work several times; returns the milliseconds of one run.
    pub(crate) fn run_ms(&mut self, repeats: usize) -> Result<f64> {
        let answer = self.ask(&format!("run {repeats}"))?;
        answer.parse().with_context(|| format!("the peer answered {answer:?}"))
    }

    /// Runs the work several times as a CUDA graph; returns the milliseconds of one run.
    pub(crate) fn graph_ms(&mut self, repeats: usize) -> Result<f64> {
        let answer = self.ask(&format!("graph {repeats}"))?;
        answer.parse().with_context(|| format!("the peer answered {answer:?}"))
    }

    /// Returns the most bytes that the work has held: on a card, of its memory.
    pub(crate) fn memory(&mut self) -> Result<f64> {
        let answer = self.ask("memory")?;
        answer.parse().with_context(|| format!("the peer answered {answer:?}"))
    }

    /// Returns the peak memory of three rounds above the idle process, in a process of its own.
    pub(crate) fn peak_bytes(python: &Path, threads: usize, work: &Work) -> Result<u64> {
        let mut peer = Self::start(python, threads, &[])?;
        peer.prepare(work)?;
        for _ in 0..3 {
            peer.run_ms(1)?;
        }
        let answer = peer.ask("memory")?;
        answer.parse().with_context(|| format!("the peer answered {answer:?}"))
    }

    fn ask(&mut self, request: &str) -> Result<String> {
        writeln!(self.requests, "{request}").context("the peer has gone")?;
        self.read_line()
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line).context("the peer has gone")? == 0 {
            bail!("the peer has ended")
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends by itself when its input does; this is for one that hangs.
        let ended = self.child.kill().and_then(|()| self.child.wait());
        drop(ended);
    }
}
