//! Every operation of `diffae-kernels`, with its gradients.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, Var};
use diffae_kernels::{
    Activation, ConvInput, ConvWeight, Dropout, Gradients, GroupNorm, add, attention, average_pool_2x, concat_channels,
    conv2d, differentiable, dropout, group_norm, linear, record, upsample_nearest_2x,
};

use super::Scale;
use super::card::{Card, relative_error, values};
use super::rows::Rows;

/// Largest relative difference of results and gradients: sums of thousands of products in f32, in another order.
const LIMIT: f64 = 5e-5;

type Function = fn(&[Tensor]) -> candle_core::Result<Tensor>;

/// Compares results and gradients of the device with those of the CPU.
pub(super) fn check(card: &Card, scale: &Scale, rows: &mut Rows) -> Result<()> {
    let sizes: &[[usize; 5]] = if scale.quick {
        &[[2, 16, 16, 8, 32], [1, 32, 32, 16, 16]]
    } else {
        // Images, channels, side, channels of the skip connection, outputs.
        &[
            [2, 64, 16, 64, 64],
            [16, 64, 64, 64, 64],
            [64, 128, 32, 64, 128],
            [8, 128, 128, 128, 128],
            [3, 512, 8, 64, 480],
        ]
    };
    for &[n, c, side, skip, o] in sizes {
        let (all, x) = (c + skip, [n, c, side, side]);
        let name = |what: &str| format!("{what} {n}x{c}x{side}x{side}");
        let layer = |kernel: usize| {
            let second = vec![n, skip, side, side];
            vec![
                x.to_vec(),
                second,
                vec![n, all],
                vec![all],
                vec![o, all, kernel, kernel],
                vec![o],
                vec![n, o, side, side],
            ]
        };
        compare(card, rows, &name("layer 3x3"), &layer(3), apply_layer)?;
        compare(card, rows, &name("layer 1x1"), &layer(1), apply_layer)?;
        compare(card, rows, &name("convolution"), &[x.to_vec(), vec![o, c, 3, 3], vec![o]], |it| {
            conv2d(&it[0], &it[1], &it[2])
        })?;
        compare(card, rows, &name("norm"), &[x.to_vec(), vec![n, c], vec![1, c]], |it| {
            group_norm(&it[0], &GroupNorm { num_groups: 8, scale: &it[1], shift: &it[2], activation: Activation::Silu })
        })?;
        compare(card, rows, &name("upsampling"), &[x.to_vec()], |it| upsample_nearest_2x(&it[0]))?;
        compare(card, rows, &name("mean of 2x2"), &[x.to_vec()], |it| average_pool_2x(&it[0]))?;
        compare(card, rows, &name("sum"), &[x.to_vec(), x.to_vec()], |it| add(&it[0], &it[1]))?;
        compare(card, rows, &name("concatenation"), &[x.to_vec(), x.to_vec()], |it| concat_channels(&it[0], &it[1]))?;
        compare(card, rows, &name("dropout"), &[x.to_vec()], |it| {
            dropout(&it[0], Dropout { probability: 0.1, seed: 7 })
        })?;
        if side <= 32 {
            compare(card, rows, &name("attention of"), &[vec![n, 3 * c, side, side]], |it| attention(&it[0], 4))?;
        }
        compare(card, rows, &format!("linear {n}x{all} to {c}"), &[vec![n, all], vec![c, all], vec![c]], |it| {
            linear(&it[0], &it[1], &it[2])
        })?;
    }
    Ok(())
}

fn apply_layer(it: &[Tensor]) -> candle_core::Result<Tensor> {
    let norm = GroupNorm { num_groups: 8, scale: &it[2], shift: &it[3], activation: Activation::Silu };
    let input = ConvInput { x: &it[0], skip: Some(&it[1]), norm: Some(&norm), residual: Some(&it[6]) };
    ConvWeight::new(it[4].clone(), it[5].clone())?.apply(&input)
}

/// Adds a row for the result and one for the worst of the gradients.
fn compare(card: &Card, rows: &mut Rows, what: &str, shapes: &[Vec<usize>], f: Function) -> Result<()> {
    let args = shapes.iter().enumerate().map(|(seed, dims)| values(dims, seed)).collect::<Result<Vec<_>>>()?;
    let [got, expected] = card.run_both(|device| with_gradients(&args, device, f))?;
    let errors = got.iter().zip(&expected).map(|(got, expected)| relative_error(got, expected));
    let errors = errors.collect::<Result<Vec<f64>>>()?;
    let (result, gradients) = errors.split_first().context("an operation has a result")?;
    let worst = gradients.iter().fold(0f64, |a, &b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) });
    rows.compare(what, *result, LIMIT);
    rows.compare(&format!("{what}, gradients"), worst, LIMIT);
    Ok(())
}

/// Computes a result, and the gradients of a weighted sum of it.
fn with_gradients(args: &[Tensor], device: &Device, f: Function) -> Result<Vec<Tensor>> {
    let vars = args.iter().map(|arg| Ok(Var::from_tensor(&arg.to_device(device)?)?)).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let ((y, loss), tape) = record(|| -> Result<(Tensor, Tensor)> {
        let y = f(&tensors)?;
        let weights = values(y.dims(), 99)?.to_device(device)?;
        let loss = differentiable([&y], |[y]| (y * &weights)?.sum_all())?;
        Ok((y, loss))
    })?;
    let mut gradients = Gradients::default();
    tape.backward(&loss, &mut gradients)?;
    let mut all = vec![y];
    for var in &vars {
        all.push(gradients.get(var).context("an argument without gradient")?.clone());
    }
    Ok(all)
}
