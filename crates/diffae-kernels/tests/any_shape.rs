//! Comparison of every kernel set with the portable one, on random shapes.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic; clippy knows only functions marked as tests")]

mod support;

use candle_core::Tensor;
use diffae_kernels::{
    Activation, ConvInput, ConvWeight, GroupNorm, KernelSet, attention, differentiable, force_kernel_set, linear,
};
use proptest::prelude::*;

use support::{Function, largest, turn, values, with_gradients_of_a_tape};

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
