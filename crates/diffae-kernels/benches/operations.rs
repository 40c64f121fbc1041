//! Benchmarks of single operations: `cargo bench --package diffae-kernels`. `cargo xtask bench` measures whole networks.
#![expect(clippy::unwrap_used, reason = "a benchmark that fails says so by a panic")]

use candle_core::{Device, Tensor, Var};
use diffae_kernels::{
    Activation, ConvInput, ConvWeight, Gradients, GroupNorm, Winograd, attention, differentiable, group_norm, linear,
    record, run_in_pool,
};
use divan::Bencher;
use divan::counter::ItemsCount;

fn main() {
    divan::main();
}

fn random(dims: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1., dims, &Device::Cpu).unwrap()
}

/// Sizes `[N, C, side, O]` of layers that dominate the run time of networks.
const LAYERS: [[usize; 4]; 7] = [
    [1, 128, 128, 128],
    [1, 128, 64, 128],
    [1, 256, 32, 256],
    [1, 512, 16, 512],
    [4, 512, 8, 512],
    [8, 64, 64, 64],
    [16, 32, 32, 32],
];

fn multiply_adds([n, c, side, o]: [usize; 4]) -> ItemsCount {
    ItemsCount::new(n * c * side * side * o * 9)
}

#[divan::bench(args = LAYERS)]
fn conv_3x3_frozen(bencher: Bencher<'_, '_>, layer: [usize; 4]) {
    let [n, c, side, o] = layer;
    let mut conv = ConvWeight::new(random(&[o, c, 3, 3]), random(&[o])).unwrap();
    conv.freeze(Winograd::default());
    let x = random(&[n, c, side, side]);
    bencher
        .counter(multiply_adds(layer))
        .bench_local(|| run_in_pool(&Device::Cpu, || conv.apply(&ConvInput::plain(&x)).unwrap()));
}

/// Forward pass, and gradients w.r.t. input, weight and bias.
#[divan::bench(args = LAYERS)]
fn conv_3x3_training(bencher: Bencher<'_, '_>, layer: [usize; 4]) {
    let [n, c, side, o] = layer;
    let var = |dims: &[usize]| Var::from_tensor(&random(dims)).unwrap();
    let (x, weight, bias) = (var(&[n, c, side, side]), var(&[o, c, 3, 3]), var(&[o]));
    let conv = ConvWeight::new(weight.as_tensor().clone(), bias.as_tensor().clone()).unwrap();
    let step = || {
        let (loss, tape) = record(|| {
            let y = conv.apply(&ConvInput::plain(&x))?;
            differentiable([&y], |[y]| y.sum_all())
        })
        .map_err(|error: candle_core::Error| error)
        .unwrap();
        let mut gradients = Gradients::default();
        tape.backward(&loss, &mut gradients).unwrap();
        gradients
    };
    let count = ItemsCount::new(3 * n * c * side * side * o * 9);
    bencher.counter(count).bench_local(|| run_in_pool(&Device::Cpu, step));
}

#[divan::bench(args = [[1, 64, 64], [8, 64, 64], [8, 128, 32]])]
fn group_norm_silu(bencher: Bencher<'_, '_>, [n, c, side]: [usize; 3]) {
    let (x, scale, shift) = (random(&[n, c, side, side]), random(&[n, c]), random(&[n, c]));
    let norm = GroupNorm { num_groups: 32, scale: &scale, shift: &shift, activation: Activation::Silu };
    let count = ItemsCount::new(n * c * side * side);
    bencher.counter(count).bench_local(|| run_in_pool(&Device::Cpu, || group_norm(&x, &norm).unwrap()));
}

#[divan::bench(args = [[1, 256], [4, 256], [32, 64]])]
fn attention_16x16(bencher: Bencher<'_, '_>, [n, width]: [usize; 2]) {
    let qkv = random(&[n, 3 * width, 16, 16]);
    bencher.bench_local(|| run_in_pool(&Device::Cpu, || attention(&qkv, 1).unwrap()));
}

#[divan::bench(args = [[1, 512, 2048], [256, 2048, 2048]])]
fn fully_connected(bencher: Bencher<'_, '_>, [rows, inputs, outputs]: [usize; 3]) {
    let (x, weight, bias) = (random(&[rows, inputs]), random(&[outputs, inputs]), random(&[outputs]));
    let count = ItemsCount::new(rows * inputs * outputs);
    bencher.counter(count).bench_local(|| run_in_pool(&Device::Cpu, || linear(&x, &weight, &bias).unwrap()));
}
