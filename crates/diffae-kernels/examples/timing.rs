//! Times one convolution: `timing N C H W O K`.
#![allow(clippy::print_stdout, reason = "an example")]
use candle_core::{Device, Result, Tensor, Var};
use diffae_kernels::*;
use std::time::Instant;

fn median(mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = vec![];
    for _ in 0..15 {
        let start = Instant::now();
        f()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[7])
}

fn main() -> Result<()> {
    for (n, c, s, o, k) in if std::env::args().len() > 1 {
        vec![(8, 64, 64, 64, 3); 20]
    } else {
        vec![
            (1, 128, 128, 128, 3),
            (1, 128, 64, 128, 3),
            (1, 256, 32, 256, 3),
            (1, 512, 16, 512, 3),
            (4, 512, 8, 512, 3),
            (8, 64, 64, 64, 3),
            (8, 128, 32, 128, 3),
            (16, 32, 32, 32, 3),
            (1, 64, 64, 64, 3),
            (1, 512, 8, 512, 3),
            (1, 512, 4, 512, 3),
            (1, 128, 64, 64, 1),
            (1, 64, 64, 3, 3),
            (1, 3, 64, 64, 3),
        ]
    } {
        let x = Tensor::randn(0f32, 1., (n, c, s, s), &Device::Cpu)?;
        let w = Tensor::randn(0f32, 1., (o, c, k, k), &Device::Cpu)?;
        let b = Tensor::zeros(o, candle_core::DType::F32, &Device::Cpu)?;
        let mut layer = ConvWeight::new(w.clone(), b.clone())?;
        layer.freeze();
        let packed = median(|| layer.apply(&ConvInput::plain(&x)).map(|_| ()))?;
        if std::env::args().len() > 1 {
            println!("{packed}");
            continue;
        }
        let fwd = median(|| conv2d(&x, &w, &b).map(|_| ()))?;
        let (xv, wv) = (Var::from_tensor(&x)?, Var::from_tensor(&w)?);
        let y = conv2d(&xv, &w, &b)?;
        let dx = median(|| y.backward().map(|_| ()))?;
        let y = conv2d(&x, &wv, &b)?;
        let dw = median(|| y.backward().map(|_| ()))?;
        let gflop = 2. * (n * c * s * s * o * k * k) as f64 * 1e-9;
        println!(
            "{n}x{c}x{s} -> {o} k{k}: packed {packed:.2} ms ({:.0} GFLOP/s) fwd {fwd:.2} dx {dx:.2} dw {dw:.2}",
            gflop / packed * 1e3
        );
    }
    Ok(())
}
