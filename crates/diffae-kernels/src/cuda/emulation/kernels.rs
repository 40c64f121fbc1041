//! The kernels for cards against those of the CPU.

use candle_core::{Device, Tensor, Var};

use super::super::attention::{plan_modulate, plan_softmax, plan_softmax_gradient};
use super::super::elementwise::{DropoutMask, plan_bias, plan_dropout, plan_sums};
use super::super::group_norm::Sizes;
use super::super::optimizer::Blocks;
use super::super::plan::{Argument, Element, Launch};
use super::super::resample::{Resample, plan_resample};
use super::{Buffer, carry_out, floats, rounded};
use crate::cpu::optimizer::Factors;
use crate::cpu::planes::Activation;
use crate::cpu::softmax;
use crate::group_norm::NormOp;
use crate::operation::Operation;
use crate::{AdamConfig, AdamStep, Dropout, ParameterState, StatePart, adam_step, block_squares};

const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];

/// Returns numbers without a pattern, in `[-1, 1]`.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    let at = |i: usize| ((i * 7919 + seed * 104_729 + 13) % 10_007) as f32 / 5003. - 1.;
    (0..count).map(|i| at(i * (i % 97 + 1))).collect()
}

/// Returns the largest error relative to the largest number that a result may have in a number type.
fn tolerance(element: Element) -> f32 {
    match element {
        Element::F32 => 3e-6,
        Element::F16 => 6e-4,
        Element::Bf16 => 5e-3,
    }
}

fn assert_near(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3f32, |most, it| most.max(it.abs()));
    for (idx, (got, expected)) in got.iter().zip(expected).enumerate() {
        // A NaN is never near.
        let is_near = (got - expected).abs() <= tolerance * largest;
        assert!(is_near, "{what}, element {idx}: {got} for {expected}, of at most {largest}");
    }
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A norm with its inputs, rounded to the number type.
struct Case {
    sizes: Sizes,
    shape: [usize; 4],
    x: Vec<f32>,
    dy: Vec<f32>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Case {
    /// `rows` is the number of scales and shifts: that of the images, or one.
    fn new(element: Element, shape: [usize; 4], groups: usize, rows: usize, activation: Activation) -> Self {
        let [images, channels, height, width] = shape;
        let by_image = rows > 1;
        let sizes = Sizes { element, images, channels, groups, pixels: height * width, by_image, activation };
        let count = images * channels * height * width;
        let affine = |seed| numbers(rows * channels, seed);
        let x: Vec<f32> = numbers(count, 1).iter().map(|it| it * 2. + 0.7).collect();
        let scale = affine(3).iter().map(|it| 1. + it / 2.).collect();
        Self {
            sizes,
            shape,
            x: rounded(element, &x),
            dy: rounded(element, &numbers(count, 2)),
            scale,
            shift: affine(4),
        }
    }

    fn forward(&self) -> Vec<f32> {
        let Self { sizes, x, scale, shift, .. } = self;
        let buffers = [
            Buffer::of(sizes.element, x),
            Buffer::empty(sizes.element, x.len()),
            Buffer::of(Element::F32, scale),
            Buffer::of(Element::F32, shift),
            Buffer::empty(Element::F32, sizes.num_partial()),
        ];
        floats(sizes.element, &carry_out(&sizes.forward().unwrap(), &buffers)[1])
    }

    /// Returns the gradients w.r.t. x, and w.r.t. scale and shift by image and channel.
    fn backward(&self) -> [Vec<f32>; 2] {
        let Self { sizes, x, dy, scale, shift, .. } = self;
        let num_sums = 2 * sizes.images * sizes.channels;
        let buffers = [
            Buffer::of(sizes.element, x),
            Buffer::of(sizes.element, dy),
            Buffer::of(Element::F32, scale),
            Buffer::of(Element::F32, shift),
            Buffer::empty(Element::F32, sizes.num_partial()),
            Buffer::empty(Element::F32, num_sums),
            Buffer::empty(sizes.element, x.len()),
        ];
        let after = carry_out(&sizes.backward(Some(6)).unwrap(), &buffers);
        [floats(sizes.element, &after[6]), floats(Element::F32, &after[5])]
    }

    /// Holds both passes against the kernels of the CPU.
    fn check(&self) {
        let Self { sizes, shape, x, dy, scale, shift } = self;
        let what = format!("{sizes:?}");
        let op = NormOp { num_groups: sizes.groups, activation: sizes.activation };
        let rows = if sizes.by_image { sizes.images } else { 1 };
        let affine = [rows, sizes.channels];
        let (y, _) = op.forward([(x, shape), (scale, &affine), (shift, &affine)]).unwrap();
        assert_near(&self.forward(), &y, tolerance(sizes.element), &what);
        // One scale for all images has the sum of their gradients; those of each are looked at.
        let by_image = |values: &[f32]| {
            let rows = tensor(values, &affine).broadcast_as((sizes.images, sizes.channels)).unwrap();
            rows.contiguous().unwrap()
        };
        let inputs = [tensor(x, shape), by_image(scale), by_image(shift)];
        let [d_x, d_scale, d_shift] = op.gradients(inputs.each_ref(), [true; 3], &tensor(dy, shape)).unwrap();
        let [got, sums] = self.backward();
        assert_near(&got, &values(&d_x.unwrap()), tolerance(sizes.element), &what);
        let (of_scale, of_shift) = sums.split_at(sizes.images * sizes.channels);
        assert_near(of_scale, &values(&d_scale.unwrap()), 1e-5, &what);
        assert_near(of_shift, &values(&d_shift.unwrap()), 1e-5, &what);
    }
}

#[test]
fn norms_are_those_of_the_cpu() {
    let shapes = [
        ([2, 6, 5, 7], 3),   // odd planes
        ([3, 4, 4, 4], 2),   // packs of four
        ([1, 8, 1, 1], 1),   // single pixels
        ([2, 4, 52, 50], 2), // groups in parts, the last of which is shorter
        ([1, 64, 8, 8], 4),
        ([1, 3, 41, 43], 1), // parts of odd planes
    ];
    for element in ELEMENTS {
        for (shape, groups) in shapes {
            Case::new(element, shape, groups, shape[0], Activation::Silu).check();
        }
        Case::new(element, [2, 4, 6, 6], 2, 1, Activation::Silu).check();
        Case::new(element, [2, 4, 5, 5], 2, 2, Activation::Identity).check();
        // No normalization.
        Case::new(element, [2, 6, 5, 7], 0, 2, Activation::Silu).check();
        Case::new(element, [3, 4, 52, 50], 0, 1, Activation::Silu).check();
    }
}

#[test]
fn a_norm_does_not_lose_the_variance_of_numbers_far_from_zero() {
    let mut case = Case::new(Element::F32, [1, 4, 40, 40], 2, 1, Activation::Silu);
    let near = case.forward();
    // Exact in f32, so that only the mean has changed.
    for x in &mut case.x {
        *x = (*x * 64.).round() / 64.;
    }
    let expected = case.forward();
    assert_ne!(near, expected);
    case.x.iter_mut().for_each(|x| *x += 4096.);
    assert_near(&case.forward(), &expected, 2e-4, "numbers around 4096");
}

#[test]
fn a_picture_has_the_same_bits_in_any_batch() {
    let batch = Case::new(Element::F32, [3, 4, 52, 50], 2, 3, Activation::Silu);
    let (of_batch, [d_x, sums]) = (batch.forward(), batch.backward());
    let mut alone = Case::new(Element::F32, [1, 4, 52, 50], 2, 1, Activation::Silu);
    let count = alone.x.len();
    for image in 0..3 {
        let (pixels, rows) = (image * count..(image + 1) * count, image * 4..image * 4 + 4);
        (alone.x, alone.dy) = (batch.x[pixels.clone()].to_vec(), batch.dy[pixels.clone()].to_vec());
        (alone.scale, alone.shift) = (batch.scale[rows.clone()].to_vec(), batch.shift[rows.clone()].to_vec());
        assert_eq!(alone.forward(), of_batch[pixels.clone()]);
        let [d_x_alone, sums_alone] = alone.backward();
        assert_eq!(d_x_alone, d_x[pixels]);
        assert_eq!(sums_alone[..4], sums[rows]);
    }
}

#[test]
fn bias_and_residual_are_added_and_summed() {
    for element in ELEMENTS {
        for sizes in [[2, 3, 12], [1, 5, 7], [3, 2, 600]] {
            let [images, channels, pixels] = sizes;
            let count = images * channels * pixels;
            let channel = |i: usize| i.div_euclid(pixels) % channels;
            let [x, bias, residual] =
                [numbers(count, 1), numbers(channels, 2), numbers(count, 3)].map(|it| rounded(element, &it));
            let expected = |buffer: Option<usize>| -> Vec<f32> {
                let residual = |i: usize| if buffer.is_some() { residual[i] } else { 0. };
                (0..count).map(|i| x[i] + bias[channel(i)] + residual(i)).collect()
            };
            for buffer in [None, Some(3)] {
                let plan = plan_bias(element, sizes, buffer).unwrap();
                let buffers = [
                    Buffer::of(element, &x),
                    Buffer::of(element, &bias),
                    Buffer::empty(element, count),
                    Buffer::of(element, &residual),
                ];
                let got = floats(element, &carry_out(&plan, &buffers)[2]);
                assert_eq!(got, rounded(element, &expected(buffer)));
            }
            let buffers = [
                Buffer::of(element, &x),
                Buffer::empty(Element::F32, images * channels),
                Buffer::empty(element, channels),
            ];
            let got = floats(element, &carry_out(&plan_sums(element, sizes).unwrap(), &buffers)[2]);
            let mut sums = vec![0.; channels];
            (0..count).for_each(|i| sums[channel(i)] += x[i]);
            assert_near(&got, &sums, tolerance(element).max(1e-5), "sums");
        }
    }
}

#[test]
fn masks_of_dropout_are_those_of_the_cpu() {
    let settings = Dropout { probability: 0.3, seed: 0x1234_5678_9abc_def0 };
    for count in [3, 1000, (1 << 14) + 5, 40_000] {
        let x = numbers(count, 1);
        let expected = values(&crate::dropout(&tensor(&x, &[count]), settings).unwrap());
        let mask: DropoutMask = crate::dropout::mask_on_cards(settings);
        for element in ELEMENTS {
            let buffers = [Buffer::of(element, &x), Buffer::empty(element, count)];
            let got = floats(element, &carry_out(&plan_dropout(element, count, &mask).unwrap(), &buffers)[1]);
            let dropped = |values: &[f32]| values.iter().map(|it| *it == 0.).collect::<Vec<_>>();
            assert_eq!(dropped(&got), dropped(&expected));
            assert_near(&got, &expected, tolerance(element) * 2., "dropout");
            if element == Element::F32 {
                assert_eq!(got, expected);
            }
        }
    }
}

/// Returns the buffers that say where the blocks of tensors are.
fn tables(addresses: Vec<Option<usize>>, Blocks { lengths, tensors, starts }: &Blocks) -> [Buffer; 4] {
    let bytes = |values: &[i64]| Buffer::Bytes(values.iter().flat_map(|it| it.to_le_bytes()).collect());
    let tensors = tensors.iter().flat_map(|it| it.to_le_bytes()).collect();
    [Buffer::Table(addresses), bytes(lengths), Buffer::Bytes(tensors), bytes(starts)]
}

/// Renumbers the buffers of a plan, which come after `count` others.
fn after_buffers(mut plan: Vec<Launch>, count: usize) -> Vec<Launch> {
    for argument in plan.iter_mut().flat_map(|launch| &mut launch.arguments) {
        if let Argument::Buffer(number) = argument {
            *number += count;
        }
    }
    plan
}

#[test]
fn adam_is_that_of_the_cpu() {
    let lengths = [1000, 1, 40_000, 16_384];
    let config = AdamConfig { lr: 1e-2, beta_1: 0.9, beta_2: 0.99, eps: 1e-8, weight_decay: 0.1, ema_decay: 0.9 };
    let step = AdamStep { config, step_idx: 4, gradient_scale: 0.5 };
    let factors: Factors = crate::optimizer::factors_of(&step);
    let blocks = Blocks::new(lengths);
    // The tables come after all else.
    let (mut buffers, mut table, mut expected) = (vec![], vec![], vec![]);
    for (which, count) in lengths.into_iter().enumerate() {
        // The last has no moving average.
        let has_average = which < 3;
        let [p, g, m] = [0, 1, 2].map(|kind| numbers(count, 10 * which + kind));
        let [v, average] = [3, 4]
            .map(|kind| numbers(count, 10 * which + kind))
            .map(|it| it.iter().map(|x| x * x).collect::<Vec<f32>>());
        let parameter = Var::from_tensor(&tensor(&p, &[count])).unwrap();
        let state = if has_average { ParameterState::new } else { ParameterState::without_average };
        let mut state = state(&parameter).unwrap();
        state.set(StatePart::FirstMoment, m.clone()).unwrap();
        state.set(StatePart::SecondMoment, v.clone()).unwrap();
        state.set(StatePart::Average, average.clone()).unwrap();
        adam_step(&parameter, &tensor(&g, &[count]), &mut state, &step).unwrap();
        let of_state = |part| state.values(part).unwrap().into_owned();
        let [first, second, after] = StatePart::ALL.map(of_state);
        expected.push([values(&parameter), first, second, after]);
        for values in [&p, &g, &m, &v, &average] {
            table.push(Some(buffers.len()));
            buffers.push(Buffer::of(Element::F32, values));
        }
        if !has_average {
            table[5 * which + 4] = None;
        }
    }
    let first = buffers.len();
    buffers.extend(tables(table, &blocks));
    let after = carry_out(&after_buffers(blocks.adam(&factors).unwrap(), first), &buffers);
    for (which, [p, m, v, average]) in expected.iter().enumerate() {
        let got = |kind: usize| floats(Element::F32, &after[5 * which + kind]);
        for (kind, expected) in [(0, p), (2, m), (3, v)] {
            assert_near(&got(kind), expected, 1e-6, &format!("buffer {kind} of tensor {which}"));
        }
        if !average.is_empty() {
            assert_near(&got(4), average, 1e-6, &format!("the average of tensor {which}"));
        }
    }
}

#[test]
fn sums_of_squares_are_those_of_the_cpu() {
    let lengths = [40_000, 3, 16_384];
    let tensors: Vec<Vec<f32>> = (0..).zip(lengths).map(|(seed, count)| numbers(count, seed)).collect();
    let blocks = Blocks::new(lengths);
    let mut buffers: Vec<Buffer> = tensors.iter().map(|it| Buffer::of(Element::F32, it)).collect();
    let first = buffers.len();
    buffers.extend(tables((0..first).map(Some).collect(), &blocks));
    buffers.push(Buffer::empty(Element::F32, blocks.tensors.len()));
    let plan = after_buffers(blocks.squares().unwrap(), first);
    let got = floats(Element::F32, &carry_out(&plan, &buffers)[first + 4]);
    let expected = tensors.iter().flat_map(|it| block_squares(&tensor(it, &[it.len()])).unwrap());
    for (got, expected) in got.iter().zip(expected) {
        assert!((f64::from(*got) / expected - 1.).abs() < 1e-6, "{got} for {expected}");
    }
}

#[test]
fn softmax_and_its_gradient_are_those_of_the_cpu() {
    for element in ELEMENTS {
        for [rows, width] in [[3, 16], [2, 300], [5, 1], [1, 1031]] {
            let [x, dp] = [1, 2].map(|seed| rounded(element, &numbers(rows * width, seed)));
            // Differences as large as exp bears, so that the largest must be taken off.
            let x: Vec<f32> = rounded(element, &x.iter().map(|it| it * 40. + 300.).collect::<Vec<_>>());
            let buffers = [Buffer::of(element, &x), Buffer::empty(element, x.len())];
            let after = carry_out(&plan_softmax(element, [rows, width], 0.25).unwrap(), &buffers);
            let mut expected = x.clone();
            softmax::forward(&mut expected, width, 0.25).unwrap();
            assert_near(&floats(element, &after[1]), &expected, tolerance(element), "softmax");
            let p = rounded(element, &expected);
            let buffers = [Buffer::of(element, &p), Buffer::of(element, &dp), Buffer::empty(element, x.len())];
            let after = carry_out(&plan_softmax_gradient(element, [rows, width], 0.25).unwrap(), &buffers);
            let mut expected = dp.clone();
            softmax::backward(&p, &mut expected, width, 0.25).unwrap();
            assert_near(&floats(element, &after[2]), &expected, tolerance(element).max(1e-5), "its gradient");
        }
    }
}

#[test]
fn conditions_of_norms_are_their_formula() {
    for element in ELEMENTS {
        for ([images, channels], z_rows, time_rows) in [
            ([3, 5], Some(3), 1),
            ([3, 300], Some(1), 3),
            ([2, 7], None, 2),
            ([1, 4], Some(1), 1),
            ([4, 6], Some(4), 4),
        ] {
            let of = |count: usize, seed: usize| rounded(element, &numbers(count, seed));
            let time = of(time_rows * 2 * channels, 1);
            let z = of(z_rows.unwrap_or(1) * channels, 2);
            let [weight, bias] = [of(channels, 3), of(channels, 4)];
            let mut expected = [vec![], vec![]];
            for (image, channel) in (0..images).flat_map(|image| (0..channels).map(move |channel| (image, channel))) {
                let t = if time_rows > 1 { image * 2 * channels } else { 0 } + channel;
                let gain_z = match z_rows {
                    Some(rows) => 1. + z[if rows > 1 { image * channels } else { 0 } + channel],
                    None => 1.,
                };
                expected[0].push(gain_z * (1. + time[t]) * weight[channel]);
                expected[1].push(gain_z * ((1. + time[t]) * bias[channel] + time[t + channels]));
            }
            let rows = [time_rows, z_rows.unwrap_or(1)];
            let plan = plan_modulate(element, [images, channels], z_rows.map(|_| 5), rows).unwrap();
            let result = || Buffer::empty(Element::F32, images * channels);
            let buffers = [&time, &weight, &bias].map(|it| Buffer::of(element, it));
            let buffers: Vec<Buffer> =
                buffers.into_iter().chain([result(), result(), Buffer::of(element, &z)]).collect();
            let after = carry_out(&plan, &buffers);
            for (part, expected) in expected.iter().enumerate() {
                assert_near(&floats(Element::F32, &after[3 + part]), expected, 1e-6, "conditions");
            }
        }
    }
}

#[test]
fn resampling_is_that_of_the_cpu() {
    for element in ELEMENTS {
        for [planes, height, width] in [[6, 4, 6], [3, 2, 2], [4, 34, 50]] {
            let shape = [1, planes, height, width];
            let x = rounded(element, &numbers(planes * height * width, 1));
            let input = tensor(&x, &shape);
            let up = values(&crate::upsample_nearest_2x(&input).unwrap());
            let down = values(&crate::average_pool_2x(&input).unwrap());
            for (how, row, expected) in [
                (Resample::Up(0.25), 2 * width, up.iter().map(|it| it * 0.25).collect::<Vec<_>>()),
                (Resample::Up(1.), 2 * width, up),
                (Resample::Down(1.), width >> 1, down.iter().map(|it| it * 4.).collect()),
                (Resample::Down(0.25), width >> 1, down),
            ] {
                let plan = plan_resample(element, how, row, expected.len()).unwrap();
                let buffers = [Buffer::of(element, &x), Buffer::empty(element, expected.len())];
                let got = floats(element, &carry_out(&plan, &buffers)[1]);
                assert_near(&got, &expected, tolerance(element), &format!("{how:?}"));
            }
        }
    }
}
