//! The surroundings of a convolution, and dropout.

use candle_core::{DType, Result, Tensor};

use super::Card;
use super::plan::{Argument, Element, Launch, MAX_THREADS, Module, blocks, threads, width};
use crate::storage::image_dims;

/// Maximum number of blocks that share the elements of a tensor: enough for any card.
const MAX_BLOCKS: usize = 4096;

/// Returns the number of blocks for so many packs of elements.
pub(super) fn blocks_of(packs: usize) -> Result<u32> {
    blocks(packs.div_ceil(MAX_THREADS).clamp(1, MAX_BLOCKS))
}

/// Plans `y = x + bias + residual`. Buffers: x, bias, y; the residual has the number that is given, if there is one. x is
/// `[images, channels, pixels]`.
pub(super) fn plan_bias(
    element: Element,
    [images, channels, pixels]: [usize; 3],
    residual: Option<usize>,
) -> Result<Vec<Launch>> {
    let count = images * channels * pixels;
    Ok(vec![Launch {
        module: Module::Elementwise,
        kernel: format!("add_bias_{}_x{}", element.name(), width(pixels)),
        grid: [blocks_of(count.div_euclid(width(pixels)))?, 1],
        threads: threads(MAX_THREADS),
        arguments: vec![
            Argument::Buffer(0),
            Argument::Buffer(1),
            residual.map_or(Argument::Null, Argument::Buffer),
            Argument::Buffer(2),
            Argument::int(channels)?,
            Argument::int(pixels)?,
            Argument::long(count),
        ],
    }])
}

/// Plans the sums over images and pixels. Buffers: x, `[images, channels, pixels]`, sums of single images, and the result.
pub(super) fn plan_sums(element: Element, [images, channels, pixels]: [usize; 3]) -> Result<Vec<Launch>> {
    let launch = |kernel: String, grid: usize, count: usize, arguments: Vec<Argument>| {
        let (grid, threads) = ([blocks(grid)?, 1], threads(count));
        Ok::<_, candle_core::Error>(Launch { module: Module::Elementwise, kernel, grid, threads, arguments })
    };
    let [num_images, num_channels, num_pixels] = [images, channels, pixels].map(Argument::int);
    let of_pixels = vec![Argument::Buffer(0), Argument::Buffer(1), num_channels?, num_images?, num_pixels?];
    let of_images = vec![Argument::Buffer(1), Argument::Buffer(2), Argument::int(images)?];
    let (name, width) = (element.name(), width(pixels));
    Ok(vec![
        launch(format!("sum_pixels_{name}_x{width}"), images * channels, pixels.div_euclid(width), of_pixels)?,
        launch(format!("sum_images_{name}"), channels, images, of_images)?,
    ])
}

/// A mask of dropout, as its kernel takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DropoutMask {
    pub(crate) seed: u64,
    /// Elements whose sixteen random bits are below this are dropped.
    pub(crate) threshold: u16,
    /// Factor of the others.
    pub(crate) factor: f32,
    /// Number of elements of a block, whose random bits depend on its number.
    pub(crate) block: usize,
}

/// Plans dropout. Buffers: x, y.
pub(super) fn plan_dropout(element: Element, count: usize, mask: &DropoutMask) -> Result<Vec<Launch>> {
    Ok(vec![Launch {
        module: Module::Elementwise,
        kernel: format!("dropout_{}", element.name()),
        grid: [blocks_of(count.div_ceil(4))?, 1],
        threads: threads(MAX_THREADS),
        arguments: vec![
            Argument::Buffer(0),
            Argument::Buffer(1),
            Argument::long(count),
            Argument::int(mask.block)?,
            Argument::Unsigned(mask.seed),
            Argument::Int(i32::from(mask.threshold)),
            Argument::Float(mask.factor),
        ],
    }])
}

/// Returns images, channels and pixels of `[N, C, H, W]`.
fn sizes_of(x: &Tensor) -> Result<[usize; 3]> {
    let (images, channels, height, width) = image_dims(x.dims())?;
    Ok([images, channels, height * width])
}

/// Computes `x + bias + residual`; `None` where these kernels do not.
///
/// # Shapes
/// - `x`, `residual`, result: `[N, C, H, W]`; `bias`: `[C]`.
/// # Errors
/// If shapes do not fit, or the card fails.
pub(crate) fn add_bias(x: &Tensor, bias: &Tensor, residual: Option<&Tensor>) -> Result<Option<Tensor>> {
    let tensors = [x, bias].into_iter().chain(residual);
    let Some((card, element)) = Card::of(x).zip(Element::of(tensors)) else { return Ok(None) };
    let (x, bias) = (x.contiguous()?, bias.contiguous()?);
    let residual = residual.map(Tensor::contiguous).transpose()?;
    let y = card.empty(x.shape(), x.dtype())?;
    let buffers: Vec<&Tensor> = [&x, &bias, &y].into_iter().chain(residual.as_ref()).collect();
    card.run(&plan_bias(element, sizes_of(&x)?, residual.as_ref().map(|_| 3))?, &buffers)?;
    Ok(Some(y))
}

/// Sums over images and pixels; `None` where these kernels do not.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`; result: `[C]`, of its dtype.
/// # Errors
/// If the card fails.
pub(crate) fn sum_channels(x: &Tensor) -> Result<Option<Tensor>> {
    let Some((card, element)) = Card::of(x).zip(Element::of([x])) else { return Ok(None) };
    let (x, sizes) = (x.contiguous()?, sizes_of(x)?);
    let sums = card.empty(sizes[0] * sizes[1], DType::F32)?;
    let result = card.empty(sizes[1], x.dtype())?;
    card.run(&plan_sums(element, sizes)?, &[&x, &sums, &result])?;
    Ok(Some(result))
}

/// Applies a mask of dropout; `None` where these kernels do not.
///
/// # Errors
/// If the card fails.
pub(crate) fn dropout(x: &Tensor, mask: &DropoutMask) -> Result<Option<Tensor>> {
    let Some((card, element)) = Card::of(x).zip(Element::of([x])) else { return Ok(None) };
    let x = x.contiguous()?;
    let y = card.empty(x.shape(), x.dtype())?;
    card.run(&plan_dropout(element, x.elem_count(), mask)?, &[&x, &y])?;
    Ok(Some(y))
}
