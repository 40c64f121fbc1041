//! Tests against a stand-in for cuDNN, which computes on the CPU, and against the real library without a card.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor, Var};
use half::{bf16, f16};
use tempfile::TempDir;

use super::descriptor::Handle;
use super::library::Library;
use super::plan::{Plan, Target};
use crate::cuda::convolution::{Convolution, Direction};
use crate::cuda::plan::Element;

/// Environment variable of the C++ compiler.
const COMPILER_VARIABLE: &str = "CXX";
/// Environment variable of the file of the real cuDNN.
const CUDNN_VARIABLE: &str = "DIFFAE_CUDNN";
/// Properties of an H200, by NVIDIA's tables, as cuDNN writes them.
const H200: &str = include_str!("h200.json");

const DIRECTIONS: [Direction; 3] = [Direction::Forward, Direction::Input, Direction::Weight];

/// The stand-in counts its objects for the whole process, so that one test at a time may have it.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The stand-in for cuDNN, compiled and opened.
struct StandIn {
    library: Arc<Library>,
    live: libloading::Library,
    _folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl StandIn {
    fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/emulation/cudnn.cpp");
        let file = folder.path().join("standin.so");
        let compiler = std::env::var_os(COMPILER_VARIABLE).unwrap_or_else(|| "c++".into());
        let mut command = Command::new(compiler);
        command.args([
            "-std=c++20",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            "-o",
        ]);
        let output = command.arg(&file).arg(source).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let library = Arc::new(Library::open_file(&file).unwrap());
        #[expect(unsafe_code, reason = "the stand-in is ours")]
        // SAFETY: it does nothing when it is loaded.
        let live = unsafe { libloading::Library::new(&file).unwrap() };
        Self { library, live, _folder: folder, _turn: turn }
    }

    fn handle(&self) -> Handle {
        let handle = Handle::new(Arc::clone(&self.library)).unwrap();
        #[expect(unsafe_code, reason = "the stand-in only compares it with null")]
        // SAFETY: it is never followed.
        unsafe {
            handle.set_stream(std::ptr::dangling_mut()).unwrap();
        }
        handle
    }

    /// Returns the number of objects that are not freed.
    #[expect(unsafe_code, reason = "the stand-in is ours")]
    fn live(&self) -> i32 {
        // SAFETY: the function is of this type.
        unsafe { self.live.get::<extern "C" fn() -> i32>(b"standin_live\0").unwrap()() }
    }
}

fn convolution(direction: Direction, element: Element) -> Convolution {
    let size = [5, 7];
    Convolution { direction, element, tf32: false, images: 2, inputs: 3, outputs: 4, size, kernel: 3 }
}

/// Memory as a card has it: aligned, and of any number type.
struct Memory(Vec<u128>);

impl Memory {
    fn of(element: Element, values: &[f32]) -> Self {
        let bytes: Vec<u8> = match element {
            Element::F32 => values.iter().flat_map(|it| it.to_ne_bytes()).collect(),
            Element::F16 => values.iter().flat_map(|it| f16::from_f32(*it).to_ne_bytes()).collect(),
            Element::Bf16 => values.iter().flat_map(|it| bf16::from_f32(*it).to_ne_bytes()).collect(),
        };
        let mut padded = bytes.clone();
        padded.resize(bytes.len().next_multiple_of(16), 0);
        Self(padded.as_chunks::<16>().0.iter().map(|it| u128::from_ne_bytes(*it)).collect())
    }

    fn address(&mut self) -> u64 {
        self.0.as_mut_ptr().expose_provenance() as u64
    }

    fn values(&self, element: Element, count: usize) -> Vec<f32> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|it| it.to_ne_bytes()).collect();
        let pairs = bytes.as_chunks::<2>().0.iter();
        let all: Vec<f32> = match element {
            Element::F32 => bytes.as_chunks::<4>().0.iter().map(|it| f32::from_ne_bytes(*it)).collect(),
            Element::F16 => pairs.map(|it| f16::from_ne_bytes(*it).to_f32()).collect(),
            Element::Bf16 => pairs.map(|it| bf16::from_ne_bytes(*it).to_f32()).collect(),
        };
        all[..count].to_vec()
    }
}

/// Computes input, weight and output, in which the gradients are in the places that the directions name, by Candle.
fn reference(of: &Convolution, [x, weight, dy]: &[Tensor; 3]) -> Tensor {
    let (x, weight) = (Var::from_tensor(x).unwrap(), Var::from_tensor(weight).unwrap());
    let y = x.conv2d(&weight, of.kernel >> 1, 1, 1, 1).unwrap();
    let gradients = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    match of.direction {
        Direction::Forward => y.detach(),
        Direction::Input => gradients.get(&x).unwrap().clone(),
        Direction::Weight => gradients.get(&weight).unwrap().clone(),
    }
}

#[test]
fn a_convolution_and_its_gradients_are_those_of_candle() {
    let standin = StandIn::new();
    {
        let handle = standin.handle();
        for direction in DIRECTIONS {
            for (element, tolerance) in [(Element::F32, 1e-5), (Element::F16, 2e-3), (Element::Bf16, 2e-2)] {
                for (kernel, inputs) in [(3, 3), (1, 3), (5, 2), (3, 1)] {
                    let of = Convolution { inputs, kernel, ..convolution(direction, element) };
                    check(&handle, &of, tolerance);
                }
            }
        }
        assert!(standin.live() > 0, "the handle is alive");
    }
    assert_eq!(standin.live(), 0, "everything is freed");
}

fn check(handle: &Handle, of: &Convolution, tolerance: f32) {
    let tensors = of.dims().map(|dims| Tensor::randn(0f32, 1.0, &dims, &Device::Cpu).unwrap());
    // What the number type rounds away is rounded for both.
    let dtype = match of.element {
        Element::F32 => DType::F32,
        Element::F16 => DType::F16,
        Element::Bf16 => DType::BF16,
    };
    let tensors = tensors.map(|it| it.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap());
    let mut memory =
        tensors.each_ref().map(|it| Memory::of(of.element, &it.flatten_all().unwrap().to_vec1::<f32>().unwrap()));
    let result = match of.direction {
        Direction::Forward => 2,
        Direction::Input => 0,
        Direction::Weight => 1,
    };
    memory[result].0.fill(u128::MAX); // not a number, in any type
    let plan = Plan::new(handle, of).unwrap().unwrap();
    let mut workspace = Memory(vec![0; plan.workspace().div_ceil(16)]);
    let [x, weight, y] = &mut memory;
    let addresses = [x.address(), weight.address(), y.address()];
    #[expect(unsafe_code, reason = "addresses of memory of this process, for the stand-in")]
    // SAFETY: the memory has the sizes of the convolution, and the stand-in has written it when it returns.
    unsafe {
        plan.execute(handle, addresses, workspace.address()).unwrap();
    }
    let expected = reference(of, &tensors).flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let values = memory[result].values(of.element, expected.len());
    let scale = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
    let error = expected.iter().zip(&values).fold(0f32, |a, (b, c)| a.max((b - c).abs()));
    assert!(error <= tolerance * scale, "{of:?}: {error} of {scale}");
}

#[test]
fn engines_round_as_the_number_type_says_and_to_the_same_bits() {
    let standin = StandIn::new();
    let handle = standin.handle();
    for direction in DIRECTIONS {
        let engine = |of: Convolution| Plan::new(&handle, &of).unwrap().unwrap().engine();
        let of = |element| convolution(direction, element);
        assert_eq!(engine(of(Element::F32)), 3, "sums of products in f32");
        assert_eq!(engine(Convolution { tf32: true, ..of(Element::F32) }), 5, "tensor cores within a gigabyte");
        assert_eq!(engine(of(Element::F16)), 5);
        assert_eq!(engine(of(Element::Bf16)), 5);
        assert_eq!(engine(Convolution { inputs: 1, ..of(Element::F32) }), 2, "that of the fallback");
    }
}

#[test]
fn what_is_no_cudnn_is_refused_in_a_sentence() {
    let problem = |file: &str| Library::open_file(file).unwrap_err().to_string();
    assert!(problem("/no/such/libcudnn.so.9").contains("libcudnn.so.9"), "{}", problem("/no/such/libcudnn.so.9"));
    if let Err(error) = Library::open() {
        assert!(error.to_string().starts_with("cuDNN 9 cannot be opened (libcudnn"), "{error}");
    }
    let mut of = convolution(Direction::Forward, Element::F32);
    of.kernel = 2;
    let standin = StandIn::new();
    let refused = Plan::new(&standin.handle(), &of).unwrap_err().to_string();
    assert!(refused.contains("cuDNN refuses a descriptor: CUDNN_STATUS_NOT_SUPPORTED"), "{refused}");
}

/// Convolutions of the presets of 64 and 128 pixels: channels in and out, size and kernel.
const LAYERS: [(usize, usize, usize, usize); 14] = [
    (3, 64, 64, 3),
    (64, 64, 64, 3),
    (64, 3, 64, 3),
    (128, 128, 32, 3),
    (256, 256, 16, 3),
    (256, 768, 16, 1),
    (512, 512, 8, 3),
    (1024, 512, 8, 3),
    (3, 128, 128, 3),
    (128, 128, 128, 3),
    (256, 128, 128, 3),
    (256, 256, 64, 3),
    (512, 512, 16, 3),
    (1024, 512, 4, 3),
];

/// Plans of the real library, made for an H200 that is not there. `cargo xtask cudnn-plans` brings the library.
#[test]
#[expect(clippy::print_stdout, reason = "a table for whoever asked for it")]
#[ignore = "needs cuDNN, which `cargo xtask cudnn-plans` brings"]
fn the_real_library_has_plans_for_all_layers() {
    let Some(file) = std::env::var_os(CUDNN_VARIABLE) else { panic!("{CUDNN_VARIABLE} names no file") };
    let library = Arc::new(Library::open_file(file).unwrap());
    let properties = Target::properties(&library, H200.trim()).unwrap();
    let target = Target::Properties(&properties);
    let arithmetics = [
        ("f32", Element::F32, false),
        ("tf32", Element::F32, true),
        ("f16", Element::F16, true),
        ("bf16", Element::Bf16, true),
    ];
    for (inputs, outputs, size, kernel) in LAYERS {
        for direction in DIRECTIONS {
            for (name, element, tf32) in arithmetics {
                let of = Convolution { direction, element, tf32, images: 16, inputs, outputs, size: [size; 2], kernel };
                let plan = Plan::on(&library, &target, &of).unwrap();
                let plan = plan.unwrap_or_else(|| panic!("no plan for {of:?}"));
                let workspace = plan.workspace() as f64 / 1024.0 / 1024.0;
                let engine = plan.engine();
                println!(
                    "| {inputs} -> {outputs} | {size} | {kernel} | {direction:?} | {name} | {engine} | {workspace:.1} |"
                );
            }
        }
    }
}
