//! Comparison of every kernel set that this machine has with the composed backend: results and gradients on many shapes.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

mod support;

use candle_core::{Tensor, Var};
use diffae_kernels::{
    Activation, ConvInput, ConvWeight, GroupNorm, KernelSet, Winograd, add, attention, average_pool_2x,
    concat_channels, conv2d, force_kernel_set, group_norm, linear, max_pool_2x, set_exact, upsample_nearest_2x,
};

use support::{Function, largest, turn, values, with_gradients_of_a_tape};

/// Maximum difference, relative to the largest value: sums of up to a few thousand products in f32, and what
/// Winograd's transforms add.
const TOLERANCE: f32 = 1e-5;

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Computes the largest difference, relative to the largest value.
fn difference(got: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(got.dims(), expected.dims());
    let (got, expected) = (numbers(got), numbers(expected));
    let magnitude = largest(expected.iter().copied()).max(1e-3);
    largest(got.iter().zip(&expected).map(|(a, b)| a - b)) / magnitude
}

/// Compares `f` and its gradients under every set with the composed backend.
fn compare(what: &str, args: &[Tensor], f: Function<'_>) {
    let _turn = turn();
    force_kernel_set(KernelSet::Candle).unwrap();
    let expected = with_gradients_of_a_tape(args, f);
    for set in KernelSet::available() {
        for exact in [false, true] {
            force_kernel_set(set).unwrap();
            set_exact(exact);
            for (i, (got, expected)) in with_gradients_of_a_tape(args, f).iter().zip(&expected).enumerate() {
                let difference = difference(got, expected);
                assert!(difference < TOLERANCE, "{what}, {}, exact {exact}, output {i}: {difference}", set.name());
            }
        }
    }
    set_exact(false);
}

#[test]
fn convolutions_of_many_shapes() {
    // [N, C, H, W] -> O, kernel: direct, F(2x2) and F(4x4), sizes that no tile divides, few and odd channels.
    let shapes = [
        ([1, 3, 8, 8], 20, 3),
        ([2, 16, 8, 8], 16, 3),
        ([2, 20, 9, 11], 17, 3),
        ([1, 17, 33, 35], 70, 3),
        ([2, 32, 32, 32], 32, 3),
        ([1, 64, 64, 64], 64, 3),
        ([3, 16, 4, 4], 33, 3),
        ([2, 5, 1, 7], 3, 3),
        ([2, 48, 8, 8], 80, 1),
        ([1, 3, 5, 5], 7, 1),
        ([1, 150, 16, 16], 130, 3),
        ([2, 6, 8, 8], 4, 5),
    ];
    for ([n, c, h, w], o, k) in shapes {
        let args = [values(&[n, c, h, w], 1.), values(&[o, c, k, k], 2.), values(&[o], 3.)];
        compare(&format!("conv {n}x{c}x{h}x{w} -> {o}, {k}x{k}"), &args, &|args| conv2d(&args[0], &args[1], &args[2]));
    }
}

#[test]
fn norms_of_many_shapes() {
    for (dims, num_groups, rows, activation) in [
        ([2, 8, 4, 4], 4, 1, Activation::Silu),
        ([2, 32, 5, 3], 32, 2, Activation::Identity),
        ([1, 64, 16, 16], 32, 1, Activation::Silu),
        ([3, 6, 9, 9], 3, 3, Activation::Silu),
        ([2, 5, 7, 9], 0, 2, Activation::Silu),
    ] {
        let x = (values(&dims, 1.) + 3.).unwrap();
        let args = [x, values(&[rows, dims[1]], 2.), values(&[rows, dims[1]], 3.)];
        compare(&format!("norm of {dims:?}"), &args, &|args| {
            group_norm(&args[0], &GroupNorm { num_groups, scale: &args[1], shift: &args[2], activation })
        });
    }
}

#[test]
fn attention_of_many_shapes() {
    for ([n, c, h, w], heads) in [([2, 24, 4, 4], 2), ([1, 48, 8, 8], 1), ([2, 9, 3, 5], 3)] {
        compare("attention", &[values(&[n, c, h, w], 1.)], &|args| attention(&args[0], heads));
    }
}

#[test]
fn linear_layers_of_many_shapes() {
    for (rows, inputs, outputs) in [(1, 64, 100), (3, 37, 5), (20, 70, 33), (1, 1, 1)] {
        let args = [values(&[rows, inputs], 1.), values(&[outputs, inputs], 2.), values(&[outputs], 3.)];
        compare("linear", &args, &|args| linear(&args[0], &args[1], &args[2]));
    }
}

#[test]
fn sums_concatenation_and_resampling() {
    let (a, b) = (values(&[2, 5, 6, 4], 1.), values(&[2, 5, 6, 4], 2.));
    compare("add", &[a.clone(), b.clone()], &|args| add(&args[0], &args[1]));
    compare("concat", &[a.clone(), b], &|args| concat_channels(&args[0], &args[1]));
    compare("up", std::slice::from_ref(&a), &|args| upsample_nearest_2x(&args[0]));
    compare("max", std::slice::from_ref(&a), &|args| max_pool_2x(&args[0]));
    compare("down", &[a], &|args| average_pool_2x(&args[0]));
}

/// A layer is one operation from norm to sum.
#[test]
fn layers_on_a_tape_have_the_gradients_of_their_parts() {
    for ([n, c_x, h, w], c_skip, o, k, rows) in [
        ([2, 32, 8, 8], 32, 32, 3, 2),
        ([1, 40, 32, 32], 24, 48, 3, 1),
        ([2, 24, 5, 6], 8, 20, 3, 2),
        ([2, 32, 16, 16], 32, 64, 1, 1),
    ] {
        let c = c_x + c_skip;
        let args = [
            values(&[n, c_x, h, w], 1.),
            values(&[n, c_skip, h, w], 2.),
            values(&[rows, c], 3.),
            values(&[c], 4.),
            values(&[o, c, k, k], 5.),
            values(&[o], 6.),
            values(&[n, o, h, w], 7.),
        ];
        compare(&format!("layer {n}x{c}x{h}x{w} -> {o}"), &args, &|args| {
            let norm = GroupNorm { num_groups: 32, scale: &args[2], shift: &args[3], activation: Activation::Silu };
            let input = ConvInput { x: &args[0], skip: Some(&args[1]), norm: Some(&norm), residual: Some(&args[6]) };
            ConvWeight::new(args[4].clone(), args[5].clone())?.apply(&input)
        });
    }
}

/// A frozen layer computes norm, concatenation, convolution and sum in one pass.
#[test]
fn frozen_weights_compute_the_same() {
    let _turn = turn();
    for ([n, c_x, h, w], c_skip, o, k) in [
        ([2, 32, 8, 8], 32, 32, 3),
        ([1, 40, 32, 32], 24, 48, 3),
        ([2, 24, 5, 6], 8, 20, 3),
        ([1, 32, 16, 16], 32, 64, 1),
    ] {
        let c = c_x + c_skip;
        let (x, skip) = (values(&[n, c_x, h, w], 1.), values(&[n, c_skip, h, w], 2.));
        let (scale, shift) = (values(&[n, c], 3.), values(&[1, c], 4.));
        let (weight, bias, residual) = (values(&[o, c, k, k], 5.), values(&[o], 6.), values(&[n, o, h, w], 7.));
        let norm = GroupNorm { num_groups: 32, scale: &scale, shift: &shift, activation: Activation::Silu };
        let input = ConvInput { x: &x, skip: Some(&skip), norm: Some(&norm), residual: Some(&residual) };
        let free = || ConvWeight::new(weight.clone(), bias.clone()).unwrap();
        force_kernel_set(KernelSet::Candle).unwrap();
        let expected = free().apply(&input).unwrap();
        for set in KernelSet::available() {
            force_kernel_set(set).unwrap();
            let mut frozen = free();
            frozen.freeze(Winograd::default());
            for got in [free().apply(&input), frozen.apply(&input), frozen.apply(&input)] {
                let difference = difference(&got.unwrap(), &expected);
                assert!(difference < TOLERANCE, "{} {n}x{c}x{h}x{w} -> {o}: {difference}", set.name());
            }
        }
    }
}

/// Clones that were made before a layer was frozen stay as they are; the first use may come from several threads at once.
#[test]
fn clones_and_threads_may_share_a_layer() {
    let _turn = turn();
    force_kernel_set(KernelSet::Portable).unwrap();
    let x = values(&[1, 64, 8, 8], 3.);
    let trainable = ConvWeight::new(values(&[64, 64, 3, 3], 1.), values(&[64], 2.)).unwrap();
    let (mut frozen, mut other) = (trainable.clone(), trainable.clone());
    frozen.freeze(Winograd::default());
    other.freeze(Winograd::default());
    let shared = frozen.clone();
    let apply = |layer: &ConvWeight| numbers(&layer.apply(&ConvInput::plain(&x)).unwrap());
    let expected = apply(&trainable);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| apply(&frozen))).collect();
        for thread in threads {
            let got = thread.join().unwrap();
            assert!(largest(got.iter().zip(&expected).map(|(a, b)| a - b)) < 1e-4);
        }
    });
    assert_eq!(apply(&shared), apply(&frozen));
    assert_eq!(apply(&other), apply(&frozen));
    assert_eq!(apply(&trainable), expected);
}

#[test]
fn attention_does_not_hide_what_is_no_number() {
    let _turn = turn();
    for set in KernelSet::available() {
        force_kernel_set(set).unwrap();
        for poison in [f32::NAN, f32::INFINITY] {
            let mut qkv = numbers(&values(&[1, 24, 4, 4], 1.));
            qkv[5] = poison;
            let qkv = Tensor::from_vec(qkv, (1, 24, 4, 4), &candle_core::Device::Cpu).unwrap();
            let y = numbers(&attention(&qkv, 1).unwrap());
            assert!(y.iter().any(|value| value.is_nan()), "{} {poison}", set.name());
        }
    }
}

#[test]
fn frozen_weights_refuse_gradients() {
    let _turn = turn();
    force_kernel_set(KernelSet::Portable).unwrap();
    let mut layer = ConvWeight::new(values(&[16, 16, 3, 3], 1.), values(&[16], 2.)).unwrap();
    layer.freeze(Winograd::default());
    let x = Var::from_tensor(&values(&[1, 16, 8, 8], 3.)).unwrap();
    let error = layer.apply(&ConvInput::plain(x.as_tensor())).unwrap_err().to_string();
    assert!(error.contains("frozen"), "{error}");
}

#[test]
fn a_set_that_the_machine_lacks_is_refused() {
    let lacking = KernelSet::ALL.into_iter().filter(|set| !set.is_available());
    for set in lacking {
        assert!(force_kernel_set(set).is_err());
    }
    assert!(KernelSet::from_name("sse9").unwrap_err().to_string().contains("portable"));
}
