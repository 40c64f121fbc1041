//! Softmax over rows, and the condition of a norm.

use candle_core::{DType, Result, Tensor};

use super::Card;
use super::plan::{Argument, Element, Launch, MAX_THREADS, Module, blocks, threads};

/// Plans `y = softmax(scale x)` over rows. Buffers: x, y.
pub(super) fn plan_softmax(element: Element, [rows, width]: [usize; 2], scale: f32) -> Result<Vec<Launch>> {
    of_rows("softmax", element, [rows, width], 2, scale)
}

/// Plans the gradient w.r.t. x of a softmax p of `scale x`, from that w.r.t. p. Buffers: p, its gradient, the result.
pub(super) fn plan_softmax_gradient(element: Element, [rows, width]: [usize; 2], scale: f32) -> Result<Vec<Launch>> {
    of_rows("softmax_gradient", element, [rows, width], 3, scale)
}

fn of_rows(
    kernel: &str,
    element: Element,
    [rows, width]: [usize; 2],
    buffers: usize,
    scale: f32,
) -> Result<Vec<Launch>> {
    let settings = [Argument::int(width)?, Argument::Float(scale)];
    Ok(vec![Launch {
        module: Module::Attention,
        kernel: format!("{kernel}_{}", element.name()),
        grid: [blocks(rows)?, 1],
        threads: threads(width),
        arguments: (0..buffers).map(Argument::Buffer).chain(settings).collect(),
    }])
}

/// Plans the affine map of a norm under conditions. Buffers: time, weight, bias, scale, shift; z has the number that is given, if
/// there is one. Rows say whether each image has its own, of time and of z.
pub(super) fn plan_modulate(
    element: Element,
    [images, channels]: [usize; 2],
    z: Option<usize>,
    [time_rows, z_rows]: [usize; 2],
) -> Result<Vec<Launch>> {
    let (count, num_threads) = (images * channels, threads(MAX_THREADS));
    Ok(vec![Launch {
        module: Module::Attention,
        kernel: format!("modulate_{}", element.name()),
        grid: [blocks(count.div_ceil(MAX_THREADS))?, 1],
        threads: num_threads,
        arguments: vec![
            Argument::Buffer(0),
            z.map_or(Argument::Null, Argument::Buffer),
            Argument::Buffer(1),
            Argument::Buffer(2),
            Argument::Buffer(3),
            Argument::Buffer(4),
            Argument::int(channels)?,
            Argument::int(count)?,
            Argument::int(if time_rows > 1 { 2 * channels } else { 0 })?,
            Argument::int(if z_rows > 1 { channels } else { 0 })?,
        ],
    }])
}

/// Computes the softmax of `scale x` over the last axis; `None` where these kernels do not.
///
/// # Errors
/// If the card fails.
pub(crate) fn softmax(x: &Tensor, scale: f32) -> Result<Option<Tensor>> {
    let Some((card, element)) = Card::of(x).zip(Element::of([x])) else { return Ok(None) };
    let (x, y) = (x.contiguous()?, card.empty(x.shape(), x.dtype())?);
    card.run(&plan_softmax(element, rows_of(&x), scale)?, &[&x, &y])?;
    Ok(Some(y))
}

/// Computes the gradient w.r.t. x of the softmax `p` of `scale x`, from that w.r.t. `p`; `None` where these kernels do not.
///
/// # Shapes
/// - `p`, `dp`, result: the same.
/// # Errors
/// If the card fails.
pub(crate) fn softmax_gradient(p: &Tensor, dp: &Tensor, scale: f32) -> Result<Option<Tensor>> {
    let Some((card, element)) = Card::of(p).zip(Element::of([p, dp])) else { return Ok(None) };
    let (p, dp, dx) = (p.contiguous()?, dp.contiguous()?, card.empty(p.shape(), p.dtype())?);
    card.run(&plan_softmax_gradient(element, rows_of(&p), scale)?, &[&p, &dp, &dx])?;
    Ok(Some(dx))
}

/// Returns the number of rows and their width.
fn rows_of(x: &Tensor) -> [usize; 2] {
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    [x.elem_count().div_euclid(width), width]
}

/// Computes the affine map of a norm under conditions, f32; `None` where these kernels do not.
///
/// # Shapes
/// As of [`conditional_affine`](crate::conditional_affine).
/// # Errors
/// If shapes do not fit, or the card fails.
pub(crate) fn modulate(time: &Tensor, z: Option<&Tensor>, affine: [&Tensor; 2]) -> Result<Option<[Tensor; 2]>> {
    let all = [time].into_iter().chain(z).chain(affine);
    let Some((card, element)) = Card::of(time).zip(Element::of(all)) else { return Ok(None) };
    let (time_rows, width) = time.dims2()?;
    let channels = affine[0].elem_count();
    let (z_rows, z_width) = z.map_or(Ok((1, channels)), Tensor::dims2)?;
    let images = time_rows.max(z_rows);
    let fits = |rows: usize| rows == 1 || rows == images;
    if width != 2 * channels || z_width != channels || !fits(time_rows) || !fits(z_rows) {
        candle_core::bail!("conditions {:?} and {:?} of {channels} channels", time.shape(), z.map(Tensor::shape))
    }
    let (time, z) = (time.contiguous()?, z.map(Tensor::contiguous).transpose()?);
    let [weight, bias] = [affine[0].contiguous()?, affine[1].contiguous()?];
    let [scale, shift] = [card.empty((images, channels), DType::F32)?, card.empty((images, channels), DType::F32)?];
    let buffers: Vec<&Tensor> = [&time, &weight, &bias, &scale, &shift].into_iter().chain(&z).collect();
    card.run(&plan_modulate(element, [images, channels], z.as_ref().map(|_| 5), [time_rows, z_rows])?, &buffers)?;
    Ok(Some([scale, shift]))
}
