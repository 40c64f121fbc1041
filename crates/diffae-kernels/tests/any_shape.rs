//! Comparison of every kernel set, and of the composed backend, with the portable kernels, on random shapes; and of the
//! composed gradients with central differences in f64.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

mod support;

use candle_core::{DType, Tensor, Var};
use diffae_kernels::{
    Activation, ActivationStorage, AdamConfig, AdamStep, ConvInput, ConvWeight, Dropout, Gradients, GroupNorm,
    KernelSet, ParameterState, ParameterUpdate, StatePart, Winograd, adam_step, adam_steps, add, attention,
    average_pool_2x, concat_channels, conv3d, differentiable, dropout, force_kernel_set, group_norm, linear,
    max_pool_2x, no_gradients, record_with, sums_of_squares, upsample_nearest_2x,
};
use proptest::prelude::*;

use support::{Function, largest, turn, values, variables, with_gradients_of_a_tape};

/// Maximum difference, relative to the largest value, as in `kernel_sets.rs`.
const TOLERANCE: f32 = 2e-5;

/// Computes the result of `f`, and the gradients w.r.t. all arguments.
fn computed(args: &[Tensor], f: Function<'_>) -> Vec<Vec<f32>> {
    let all = with_gradients_of_a_tape(args, f);
    all.iter().map(|x| x.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

fn compare(args: &[Tensor], f: Function<'_>) {
    let _turn = turn();
    force_kernel_set(KernelSet::Portable).unwrap();
    let expected = computed(args, f);
    for set in KernelSet::available() {
        force_kernel_set(set).unwrap();
        let got = computed(args, f);
        assert_eq!(got, computed(args, f), "{} is not the same from run to run", set.name());
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let magnitude = largest(expected.iter().copied()).max(1e-2);
            let worst = largest(got.iter().zip(expected).map(|(a, b)| a - b));
            assert!(worst / magnitude < TOLERANCE, "{}, output {i}: {worst} of {magnitude}", set.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn layers((n, c, skip, o) in (1..5_usize, 1..40_usize, 0..20_usize, 1..70_usize),
              (h, w) in (1..20_usize, 1..20_usize), is_three in any::<bool>()) {
        let (kernel, channels) = (if is_three { 3 } else { 1 }, c + skip);
        let mut args = vec![
            values(&[n, c, h, w], 1.), values(&[n, channels], 2.), values(&[channels], 3.),
            values(&[o, channels, kernel, kernel], 4.), values(&[o], 5.), values(&[n, o, h, w], 6.),
        ];
        if skip > 0 {
            args.push(values(&[n, skip, h, w], 7.));
        }
        compare(&args, &|args| {
            // One group holds all: a group of a single value has no gradient but rounding.
            let norm = GroupNorm { num_groups: 1, scale: &args[1], shift: &args[2], activation: Activation::Silu };
            let norm = (h * w * channels > 8).then_some(&norm);
            let input = ConvInput { x: &args[0], skip: args.get(6), norm, residual: Some(&args[5]) };
            let y = ConvWeight::new(args[3].clone(), args[4].clone())?.apply(&input)?;
            if norm.is_some() { Ok(y) } else {
                // So that scale and shift have gradients, if zeros. (Candle drops the gradient of `* 0.`.)
                let zeros = differentiable([&args[1], &args[2]], |[a, b]| {
                    let sum = (a.sum_all()? + b.sum_all()?)?;
                    &sum * sum.zeros_like()?
                })?;
                differentiable([&y, &zeros], |[y, zeros]| y.broadcast_add(zeros))
            }
        });
    }

    #[test]
    fn layers_of_volumes((n, c, skip, o) in (1..3_usize, 1..40_usize, 0..20_usize, 1..40_usize),
                         (d, h, w) in (1..12_usize, 1..14_usize, 1..14_usize), is_three in any::<bool>()) {
        let (kernel, channels) = (if is_three { 3 } else { 1 }, c + skip);
        let mut args = vec![
            values(&[n, c, d, h, w], 1.), values(&[n, channels], 2.), values(&[channels], 3.),
            values(&[o, channels, kernel, kernel, kernel], 4.), values(&[o], 5.), values(&[n, o, d, h, w], 6.),
        ];
        if skip > 0 {
            args.push(values(&[n, skip, d, h, w], 7.));
        }
        compare(&args, &|args| {
            // Without normalization, volumes of few voxels have gradients, too.
            let norm = GroupNorm { num_groups: 0, scale: &args[1], shift: &args[2], activation: Activation::Silu };
            let input = ConvInput { x: &args[0], skip: args.get(6), norm: Some(&norm), residual: Some(&args[5]) };
            ConvWeight::new(args[3].clone(), args[4].clone())?.apply(&input)
        });
        let args = [values(&[n, 4 * c, d, h, w + 1], 1.), values(&[n, 4 * c], 2.), values(&[4 * c], 3.)];
        compare(&args, &|args| {
            let norm = GroupNorm { num_groups: c, scale: &args[1], shift: &args[2], activation: Activation::Silu };
            group_norm(&args[0], &norm)
        });
    }

    #[test]
    fn other_operations_on_volumes((n, a, b) in (1..3_usize, 1..6_usize, 1..6_usize),
                                   (d, h, w) in (1..4_usize, 1..5_usize, 1..5_usize)) {
        let (first, second) = (values(&[n, a, 2 * d, 2 * h, 2 * w], 1.), values(&[n, b, 2 * d, 2 * h, 2 * w], 2.));
        compare(&[first.clone(), second], &|args| concat_channels(&args[0], &args[1]));
        compare(std::slice::from_ref(&first), &|args| upsample_nearest_2x(&args[0]));
        compare(std::slice::from_ref(&first), &|args| average_pool_2x(&args[0]));
        compare(&[values(&[n, 3 * a, d, h, w], 1.)], &|args| attention(&args[0], 1));
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

    #[test]
    fn norms((n, groups, width) in (1..4_usize, 1..6_usize, 1..8_usize), (h, w) in (2..9_usize, 2..9_usize),
             of_each in any::<bool>(), has_silu in any::<bool>(), normalizes in any::<bool>()) {
        let (channels, rows) = (groups * width, if of_each { n } else { 1 });
        let activation = if has_silu { Activation::Silu } else { Activation::Identity };
        let args = [values(&[n, channels, h, w], 1.), values(&[rows, channels], 2.), values(&[channels], 3.)];
        compare(&args, &|args| {
            let num_groups = if normalizes { groups } else { 0 };
            group_norm(&args[0], &GroupNorm { num_groups, scale: &args[1], shift: &args[2], activation })
        });
    }

    #[test]
    fn sums_concatenation_resampling_and_dropout((n, a, b) in (1..4_usize, 1..9_usize, 1..9_usize),
                                                 (h, w) in (1..9_usize, 1..9_usize), seed in any::<u64>()) {
        let (first, second) = (values(&[n, a, 2 * h, 2 * w], 1.), values(&[n, b, 2 * h, 2 * w], 2.));
        compare(&[first.clone(), second], &|args| concat_channels(&args[0], &args[1]));
        compare(&[first.clone(), values(first.dims(), 3.)], &|args| add(&args[0], &args[1]));
        compare(std::slice::from_ref(&first), &|args| upsample_nearest_2x(&args[0]));
        compare(std::slice::from_ref(&first), &|args| average_pool_2x(&args[0]));
        let odd = values(&[n, a, 2 * h + 1, w + 1], 4.);
        compare(&[odd], &|args| max_pool_2x(&args[0]));
        compare(&[first], &|args| dropout(&args[0], Dropout { probability: 0.3, seed }));
    }
}

#[test]
fn layers_of_large_slices() {
    for [depth, height, width] in [[5, 34, 33], [20, 24, 24], [1, 40, 36]] {
        let args = [
            values(&[2, 16, depth, height, width], 1.),
            values(&[2, 20], 2.),
            values(&[20], 3.),
            values(&[17, 20, 3, 3, 3], 4.),
            values(&[17], 5.),
            values(&[2, 4, depth, height, width], 7.),
        ];
        compare(&args, &|args| {
            let norm = GroupNorm { num_groups: 0, scale: &args[1], shift: &args[2], activation: Activation::Silu };
            let input = ConvInput { x: &args[0], skip: args.get(5), norm: Some(&norm), residual: None };
            ConvWeight::new(args[3].clone(), args[4].clone())?.apply(&input)
        });
    }
}

/// Computes a convolution of volumes by its definition, sum by sum.
fn defined_conv3d(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Vec<f64> {
    let ((n, channels, d, h, w), (outputs, .., kernel)) = (x.dims5().unwrap(), weight.dims5().unwrap());
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (x, weight, bias) = (flat(x), flat(weight), flat(bias));
    // Elements by their index along five axes.
    let at = |values: &[f32], idx: [usize; 5], sides: [usize; 5]| {
        let place = idx.into_iter().zip(sides).fold(0, |place, (idx, side)| place * side + idx);
        f64::from(values[place])
    };
    let mut y = vec![];
    for (item, o) in (0..n).flat_map(|item| (0..outputs).map(move |o| (item, o))) {
        for (z, (row, column)) in (0..d).flat_map(|z| (0..h).flat_map(move |i| (0..w).map(move |j| (z, (i, j))))) {
            let mut sum = f64::from(bias[o]);
            for tap in 0..kernel.pow(3) * channels {
                let (c, tap) = (tap.div_euclid(kernel.pow(3)), tap % kernel.pow(3));
                let offsets = [tap.div_euclid(kernel * kernel), tap.div_euclid(kernel) % kernel, tap % kernel];
                let from = [z, row, column].into_iter().zip(offsets).zip([d, h, w]);
                let from: Option<Vec<usize>> = from
                    .map(|((at, offset), side)| (at + offset).checked_sub(kernel >> 1).filter(|&at| at < side))
                    .collect();
                if let Some(from) = from {
                    let value = at(&x, [item, c, from[0], from[1], from[2]], [n, channels, d, h, w]);
                    let [i, j, k] = offsets;
                    sum += value * at(&weight, [o, c, i, j, k], [outputs, channels, kernel, kernel, kernel]);
                }
            }
            y.push(sum);
        }
    }
    y
}

#[test]
fn a_convolution_of_volumes_is_its_definition() {
    let _turn = turn();
    let small = [([2, 3, 4, 9, 10], 5, 3), ([1, 17, 1, 4, 3], 2, 3), ([1, 2, 3, 3, 3], 2, 5)];
    // Slices that Winograd's algorithm takes one by one, and several at once.
    let large = [([1, 17, 7, 12, 9], 18, 3), ([1, 16, 9, 5, 4], 65, 3), ([1, 16, 3, 33, 34], 16, 3)];
    for (dims, outputs, kernel) in small.into_iter().chain(large) {
        let x = values(&dims, 1.);
        let (weight, bias) = (values(&[outputs, dims[1], kernel, kernel, kernel], 2.), values(&[outputs], 3.));
        let expected = defined_conv3d(&x, &weight, &bias);
        for set in KernelSet::available() {
            force_kernel_set(set).unwrap();
            let mut layer = ConvWeight::new(weight.clone(), bias.clone()).unwrap();
            let trainable = layer.apply(&ConvInput::plain(&x)).unwrap();
            layer.freeze(Winograd::Process);
            let frozen = layer.apply(&ConvInput::plain(&x)).unwrap();
            for y in [conv3d(&x, &weight, &bias).unwrap(), trainable, frozen] {
                assert_eq!(y.dims(), [dims[0], outputs, dims[2], dims[3], dims[4]]);
                let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let worst = y.iter().zip(&expected).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0f64, f64::max);
                assert!(worst < 1e-4, "{}, kernel {kernel}: {worst}", set.name());
            }
        }
    }
    let (image, volume) = (values(&[1, 2, 4, 4], 1.), values(&[1, 2, 4, 4, 4], 1.));
    let bias = values(&[3], 3.);
    let layer = |dims: &[usize], x: &Tensor| {
        ConvWeight::new(values(dims, 2.), bias.clone()).unwrap().apply(&ConvInput::plain(x)).unwrap_err().to_string()
    };
    assert!(layer(&[3, 2, 3, 3], &volume).contains("along 2 axes"), "{}", layer(&[3, 2, 3, 3], &volume));
    assert!(layer(&[3, 2, 3, 3, 3], &image).contains("along 3 axes"));
    assert!(conv3d(&image, &values(&[3, 2, 1], 2.), &bias).is_err());
}

/// Makes three steps of Adam on some elements of a parameter; returns it with its state.
fn after_three_steps(set: KernelSet, first: usize, count: usize) -> Vec<Vec<f32>> {
    force_kernel_set(set).unwrap();
    let parameter = Var::from_tensor(&values(&[7, 5], 1.)).unwrap();
    let mut state = ParameterState::new(&parameter).unwrap();
    state.narrow(&(first..first + count), 35).unwrap();
    let config = AdamConfig { lr: 1e-2, beta_1: 0.9, beta_2: 0.99, eps: 1e-8, weight_decay: 0.1, ema_decay: 0.9 };
    for step_idx in 0..3 {
        let gradient = values(&[count], 2. + step_idx as f32);
        let step = AdamStep { config, step_idx, gradient_scale: 0.5 };
        if count == 35 {
            adam_step(&parameter, &gradient.reshape((7, 5)).unwrap(), &mut state, &step).unwrap();
        } else {
            let update = ParameterUpdate { parameter: &parameter, first, gradient: &gradient, state: &mut state };
            adam_steps(&mut [update], &step).unwrap();
        }
    }
    let of_state = StatePart::ALL.map(|part| state.values(part).unwrap().into_owned());
    [parameter.flatten_all().unwrap().to_vec1().unwrap()].into_iter().chain(of_state).collect()
}

/// The composed backend keeps its state in tensors, as it would beside parameters on a GPU.
#[test]
fn adam_in_tensors_is_adam_in_vectors() {
    let _turn = turn();
    for (first, count) in [(0, 35), (4, 9), (30, 5)] {
        let expected = after_three_steps(KernelSet::Portable, first, count);
        let got = after_three_steps(KernelSet::Candle, first, count);
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!(got.len(), expected.len());
            assert!(largest(got.iter().zip(expected).map(|(a, b)| a - b)) < 1e-6, "{got:?} {expected:?}");
        }
        let untouched = values(&[35], 1.).to_vec1::<f32>().unwrap();
        assert_eq!(got[0][..first], untouched[..first]);
        assert_eq!(got[0][first + count..], untouched[first + count..]);
    }
    let tensors = [values(&[40_000], 1.), values(&[3], 2.)];
    let sums = sums_of_squares(&tensors.each_ref()).unwrap();
    let expected = tensors.map(|x| x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap());
    for (sum, expected) in sums.iter().zip(expected) {
        assert!((sum / expected.to_scalar::<f64>().unwrap() - 1.).abs() < 1e-6);
    }
}

/// Holds the gradients of the composed backend against central differences, in f64.
fn check_differences(args: &[Tensor], f: Function<'_>) {
    const STEP: f64 = 1e-5;
    let args: Vec<Tensor> = args.iter().map(|arg| arg.to_dtype(DType::F64).unwrap()).collect();
    let scalar = |y: &Tensor| (y * values(y.dims(), 5.).to_dtype(DType::F64)?)?.sum_all();
    let (vars, tensors) = variables(&args);
    let forward = || differentiable([&f(&tensors)?], |[y]| scalar(y));
    let (loss, tape) = record_with::<_, candle_core::Error>(ActivationStorage::F32, forward).unwrap();
    let mut gradients = Gradients::default();
    tape.backward(&loss, &mut gradients).unwrap();
    for (which, var) in vars.iter().enumerate() {
        let gradient = gradients.get(var).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let magnitude = gradient.iter().fold(1e-3, |most: f64, value| most.max(value.abs()));
        for idx in (0..gradient.len()).step_by(1 + gradient.len().div_euclid(23)) {
            let at = |offset: f64| {
                let mut moved = args.clone();
                let mut numbers = moved[which].flatten_all().unwrap().to_vec1::<f64>().unwrap();
                numbers[idx] += offset;
                moved[which] = Tensor::from_vec(numbers, args[which].shape(), args[which].device()).unwrap();
                scalar(&no_gradients(|| f(&moved)).unwrap()).unwrap().to_scalar::<f64>().unwrap()
            };
            let difference = (at(STEP) - at(-STEP)) / (2. * STEP);
            let error = (gradient[idx] - difference).abs() / magnitude;
            assert!(error < 1e-6, "argument {which}, element {idx}: {} against {difference}", gradient[idx]);
        }
    }
}

#[test]
fn composed_gradients_are_those_of_differences() {
    for (kernel, activation) in [(3, Activation::Silu), (1, Activation::Identity), (5, Activation::Silu)] {
        let args = [
            values(&[2, 4, 5, 6], 1.),
            values(&[2, 2, 5, 6], 2.),
            values(&[2, 6], 3.),
            values(&[6], 4.),
            values(&[3, 6, kernel, kernel], 5.),
            values(&[3], 6.),
            values(&[2, 3, 5, 6], 7.),
        ];
        check_differences(&args, &|args| {
            let norm = GroupNorm { num_groups: 3, scale: &args[2], shift: &args[3], activation };
            let input = ConvInput { x: &args[0], skip: Some(&args[1]), norm: Some(&norm), residual: Some(&args[6]) };
            ConvWeight::new(args[4].clone(), args[5].clone())?.apply(&input)
        });
        check_differences(&args[..4], &|args| {
            let norm = GroupNorm { num_groups: 2, scale: &args[2], shift: &args[3], activation };
            group_norm(&concat_channels(&args[0], &args[1])?, &norm)
        });
    }
    for kernel in [1, 3, 5] {
        let args = [
            values(&[2, 2, 3, 4, 2], 1.),
            values(&[2, 2, 3, 4, 2], 2.),
            values(&[2, 4], 3.),
            values(&[4], 4.),
            values(&[3, 4, kernel, kernel, kernel], 5.),
            values(&[3], 6.),
            values(&[2, 3, 3, 4, 2], 7.),
        ];
        check_differences(&args, &|args| {
            let activation = Activation::Silu;
            let norm = GroupNorm { num_groups: 2, scale: &args[2], shift: &args[3], activation };
            let input = ConvInput { x: &args[0], skip: Some(&args[1]), norm: Some(&norm), residual: Some(&args[6]) };
            ConvWeight::new(args[4].clone(), args[5].clone())?.apply(&input)
        });
    }
    let volume = values(&[2, 3, 2, 4, 2], 1.);
    check_differences(std::slice::from_ref(&volume), &|args| average_pool_2x(&args[0]));
    check_differences(std::slice::from_ref(&volume), &|args| upsample_nearest_2x(&args[0]));
    check_differences(&[volume], &|args| attention(&args[0], 1));
    check_differences(&[values(&[2, 12, 3, 2], 1.)], &|args| attention(&args[0], 2));
    check_differences(&[values(&[3, 4], 1.), values(&[2, 4], 2.), values(&[2], 3.)], &|args| {
        linear(&args[0], &args[1], &args[2])
    });
    let x = values(&[2, 3, 4, 6], 1.);
    check_differences(std::slice::from_ref(&x), &|args| average_pool_2x(&args[0]));
    check_differences(std::slice::from_ref(&x), &|args| upsample_nearest_2x(&args[0]));
    check_differences(std::slice::from_ref(&x), &|args| max_pool_2x(&args[0]));
    check_differences(&[x], &|args| dropout(&args[0], Dropout { probability: 0.3, seed: 5 }));
}
