//! Every kernel set against the portable one, on shapes that proptest makes up, in memory that ends where it must.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Result, Tensor, Var};
use diffae_kernels::{
    Activation, ConvInput, ConvWeight, Gradients, GroupNorm, KernelSet, attention, differentiable, force_kernel_set,
    linear, record,
};
use proptest::prelude::*;

/// As in `kernel_sets.rs`.
const TOLERANCE: f32 = 2e-5;

/// The set in force is of the whole process, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

fn values(dims: &[usize], seed: f32) -> Tensor {
    let count = dims.iter().product::<usize>();
    let value = |i: usize| ((i as f32 * 12.9898 + seed * 78.233).sin() * 437.585_45).fract();
    Tensor::from_vec((0..count).map(value).collect::<Vec<_>>(), dims, &Device::Cpu).unwrap()
}

/// The result, and the gradients of all arguments.
fn computed(args: &[Tensor], f: &dyn Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Vec<f32>> {
    let vars: Vec<Var> = args.iter().map(|arg| Var::from_tensor(arg).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let mut result = None;
    let forward = || -> Result<Tensor> {
        let y = f(&tensors)?;
        result = Some(y.clone());
        differentiable([&y], |[y]| (y * values(y.dims(), 5.))?.sum_all())
    };
    let (loss, tape) = record(forward).unwrap();
    let mut gradients = Gradients::default();
    tape.backward(&loss, &mut gradients).unwrap();
    let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    result.iter().map(flat).chain(vars.iter().map(|var| flat(gradients.get(var).unwrap()))).collect()
}

fn compare(args: &[Tensor], f: &dyn Fn(&[Tensor]) -> Result<Tensor>) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    force_kernel_set(KernelSet::Portable).unwrap();
    let expected = computed(args, f);
    for set in KernelSet::available() {
        force_kernel_set(set).unwrap();
        let got = computed(args, f);
        assert_eq!(got, computed(args, f), "{} is not the same from run to run", set.name());
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let largest = expected.iter().fold(1e-2f32, |most, x| most.max(x.abs()));
            let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst / largest < TOLERANCE, "{}, output {i}: {worst} of {largest}", set.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn layers((n, c, lateral, o) in (1..5_usize, 1..40_usize, 0..20_usize, 1..70_usize),
              (h, w) in (1..20_usize, 1..20_usize), is_three in any::<bool>()) {
        let (kernel, channels) = (if is_three { 3 } else { 1 }, c + lateral);
        let mut args = vec![
            values(&[n, c, h, w], 1.), values(&[n, channels], 2.), values(&[channels], 3.),
            values(&[o, channels, kernel, kernel], 4.), values(&[o], 5.), values(&[n, o, h, w], 6.),
        ];
        if lateral > 0 {
            args.push(values(&[n, lateral, h, w], 7.));
        }
        compare(&args, &|args| {
            // One group holds all: a group of a single value has no gradient but rounding.
            let norm = GroupNorm { num_groups: 1, scale: &args[1], shift: &args[2], activation: Activation::Silu };
            let norm = (h * w * channels > 8).then_some(&norm);
            let input = ConvInput { x: &args[0], lateral: args.get(6), norm, residual: Some(&args[5]) };
            let y = ConvWeight::new(args[3].clone(), args[4].clone())?.apply(&input)?;
            if norm.is_some() { Ok(y) } else {
                // So that scale and shift have gradients, if zeros.
                let zeros = differentiable([&args[1], &args[2]], |[a, b]| (a.sum_all()? + b.sum_all()?)? * 0.)?;
                differentiable([&y, &zeros], |[y, zeros]| y.broadcast_add(zeros))
            }
        });
    }

    #[test]
    fn batches_of_one_to_seventeen(n in 1..18_usize) {
        let args = [values(&[n, 16, 9, 9], 1.), values(&[17, 16, 3, 3], 2.), values(&[17], 3.)];
        compare(&args, &|args| ConvWeight::new(args[1].clone(), args[2].clone())?.apply(&ConvInput::plain(&args[0])));
    }

    #[test]
    fn attention_and_linear((n, heads, width) in (1..4_usize, 1..4_usize, 1..9_usize), (h, w) in (1..7_usize, 1..7_usize)) {
        let channels = 3 * heads * width;
        compare(&[values(&[n, channels, h, w], 1.)], &|args| attention(&args[0], heads));
        let args = [values(&[n, channels], 1.), values(&[h, channels], 2.), values(&[h], 3.)];
        compare(&args, &|args| linear(&args[0], &args[1], &args[2]));
    }
}
