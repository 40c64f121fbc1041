//! An emulation of a card on the CPU, and tests of the kernels in it.
//!
//! A C++ compiler builds the `.cu` files together with `main.cpp`, which carries out the launches that it reads. Every case runs with
//! the threads of a block in one order and in the other, to the same bits.

mod kernels;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use half::{bf16, f16};
use tempfile::TempDir;

use super::plan::{Argument, Element, Launch};

/// Environment variable of the C++ compiler.
const COMPILER_VARIABLE: &str = "CXX";

/// The compiled emulation.
struct Emulation {
    folder: TempDir,
}

/// Compiled once a process.
static EMULATION: LazyLock<Emulation> = LazyLock::new(Emulation::build);

impl Emulation {
    fn build() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source: PathBuf = [env!("CARGO_MANIFEST_DIR"), "src", "cuda", "emulation", "main.cpp"].iter().collect();
        let compiler = std::env::var_os(COMPILER_VARIABLE).unwrap_or_else(|| "c++".into());
        let mut command = Command::new(&compiler);
        command.args(["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-o"]);
        let output = command.arg(folder.path().join("emulation")).arg(source).output();
        let output = output.unwrap_or_else(|error| panic!("the C++ compiler {compiler:?} does not start: {error}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { folder }
    }

    /// Carries out a script; returns what it writes.
    fn carry_out(&self, script: &[u8]) -> Vec<u8> {
        let mut command = Command::new(self.folder.path().join("emulation"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It reads all before it writes. If it has stopped early, its own message says why.
        let written = child.stdin.take().unwrap().write_all(script);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        written.unwrap();
        output.stdout
    }
}

/// A buffer of the emulated card.
#[derive(Debug, Clone)]
enum Buffer {
    Bytes(Vec<u8>),
    /// Addresses of the starts of other buffers; `None` is the null pointer.
    Table(Vec<Option<usize>>),
}

impl Buffer {
    /// Returns a buffer of floats in a number type.
    fn of(element: Element, values: &[f32]) -> Self {
        Self::Bytes(match element {
            Element::F32 => values.iter().flat_map(|it| it.to_le_bytes()).collect(),
            Element::F16 => values.iter().flat_map(|it| f16::from_f32(*it).to_le_bytes()).collect(),
            Element::Bf16 => values.iter().flat_map(|it| bf16::from_f32(*it).to_le_bytes()).collect(),
        })
    }

    /// Returns a buffer of f32 that nobody has written yet.
    fn empty(element: Element, count: usize) -> Self {
        Self::of(element, &vec![f32::NAN; count])
    }

    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Table(addresses) => addresses.len() * size_of::<u64>(),
        }
    }
}

/// Returns values as a number type rounds them.
fn rounded(element: Element, values: &[f32]) -> Vec<f32> {
    let Buffer::Bytes(bytes) = Buffer::of(element, values) else { return vec![] };
    floats(element, &bytes)
}

fn floats(element: Element, bytes: &[u8]) -> Vec<f32> {
    let pairs = bytes.as_chunks::<2>().0.iter();
    match element {
        Element::F32 => bytes.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it)).collect(),
        Element::F16 => pairs.map(|it| f16::from_le_bytes(*it).to_f32()).collect(),
        Element::Bf16 => pairs.map(|it| bf16::from_le_bytes(*it).to_f32()).collect(),
    }
}

/// Carries out the launches of a plan; returns the bytes of all buffers after it.
fn carry_out(launches: &[Launch], buffers: &[Buffer]) -> Vec<Vec<u8>> {
    let mut script = vec![];
    for buffer in buffers {
        match buffer {
            Buffer::Bytes(bytes) => {
                writeln!(script, "buffer {}", bytes.len()).unwrap();
                script.extend(bytes);
            }
            Buffer::Table(addresses) => {
                let words = addresses.iter().map(|it| it.map_or_else(|| " n".to_owned(), |at| format!(" b {at} 0")));
                writeln!(script, " table {}{}", addresses.len(), words.collect::<String>()).unwrap();
            }
        }
        script.push(b' ');
    }
    for Launch { kernel, grid: [x, y], threads, arguments, .. } in launches {
        write!(script, "launch {kernel} {x} {y} {threads} {}", arguments.len()).unwrap();
        for argument in arguments {
            match argument {
                Argument::Buffer(number) => write!(script, " b {number} 0"),
                Argument::Null => write!(script, " n"),
                Argument::Int(value) => write!(script, " i {value}"),
                Argument::Long(value) => write!(script, " l {value}"),
                Argument::Unsigned(value) => write!(script, " u {value}"),
                Argument::Float(value) => write!(script, " f {}", value.to_bits()),
            }
            .unwrap();
        }
        script.push(b'\n');
    }
    script.extend(b"end\n");
    let after = split(&EMULATION.carry_out(&script), buffers);
    let backwards = split(&EMULATION.carry_out(&[b"backwards 1 ".as_slice(), &script].concat()), buffers);
    for (buffer, (forwards, backwards)) in buffers.iter().zip(after.iter().zip(&backwards)) {
        // Addresses differ from process to process.
        let is_same = forwards == backwards || matches!(buffer, Buffer::Table(_));
        assert!(is_same, "the order of the threads matters");
    }
    after
}

/// Cuts bytes into those of each buffer.
fn split(mut bytes: &[u8], buffers: &[Buffer]) -> Vec<Vec<u8>> {
    let mut parts = vec![];
    for buffer in buffers {
        let (part, rest) = bytes.split_at(buffer.len());
        parts.push(part.to_vec());
        bytes = rest;
    }
    assert!(bytes.is_empty());
    parts
}
