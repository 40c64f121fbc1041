//! Resampling by a factor of two.

use candle_core::{Result, Tensor};

use super::Card;
use super::elementwise::blocks_of;
use super::plan::{Argument, Element, Launch, MAX_THREADS, Module, threads};

/// A direction of resampling, with the factor that its result gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Resample {
    /// `y[.., 2i + a, 2j + b] = factor x[.., i, j]`.
    Up(f32),
    /// `y[.., i, j] = factor (sum of x[.., 2i..2i+2, 2j..2j+2])`.
    Down(f32),
}

/// Plans resampling to planes whose rows have `width` elements, of `count` in all. Buffers: x, y.
pub(super) fn plan_resample(element: Element, how: Resample, width: usize, count: usize) -> Result<Vec<Launch>> {
    let (name, factor) = match how {
        Resample::Up(factor) => ("upsample", factor),
        Resample::Down(factor) => ("pool", factor),
    };
    Ok(vec![Launch {
        module: Module::Resample,
        kernel: format!("{name}_{}", element.name()),
        grid: [blocks_of(count)?, 1],
        threads: threads(MAX_THREADS),
        arguments: vec![
            Argument::Buffer(0),
            Argument::Buffer(1),
            Argument::int(width)?,
            Argument::long(count),
            Argument::Float(factor),
        ],
    }])
}

/// Resamples; `None` where these kernels do not.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`, with even sides to go down; result: `[N, C, 2H, 2W]` or `[N, C, H/2, W/2]`.
/// # Errors
/// If the card fails.
pub(crate) fn resample(x: &Tensor, how: Resample) -> Result<Option<Tensor>> {
    let Some((card, element)) = Card::of(x).zip(Element::of([x])) else { return Ok(None) };
    let (n, c, h, w) = x.dims4()?;
    let [h, w] = match how {
        Resample::Up(_) => [2 * h, 2 * w],
        Resample::Down(_) => [h >> 1, w >> 1],
    };
    let (x, y) = (x.contiguous()?, card.empty((n, c, h, w), x.dtype())?);
    card.run(&plan_resample(element, how, w, y.elem_count())?, &[&x, &y])?;
    Ok(Some(y))
}
