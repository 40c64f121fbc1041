//! `DINOv2`: a self-supervised vision transformer.
//!
//! Candle's own (`candle-transformers`) takes one picture at a time, wants a classifier that the released files do not
//! hold, approximates GELU, and repeats position embeddings where the original interpolates them: its features are not
//! `DINOv2`'s.

use candle_core::{D, Device, IndexOp, Result as CandleResult, Tensor};

use super::layers::{Filter, Loader, resize};
use crate::error::{Error, Result};
use crate::weights::Weights;

/// Side of the network's input, in pixels.
const SIDE: usize = 224;
/// Side of a patch.
const PATCH: usize = 14;
/// Width of an attention head.
const HEAD: usize = 64;
/// Maximum number of blocks that are looked for.
const MAX_DEPTH: usize = 64;
/// Stabilizer of all layer norms.
const EPS: f64 = 1e-6;
/// Added to the number of patches per side to scale the position embeddings, as in the reference.
const OFFSET: f64 = 0.1;
/// Mean and standard deviation of `ImageNet`'s channels.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

#[derive(Debug)]
struct Norm {
    gamma: Tensor,
    beta: Tensor,
}

#[derive(Debug)]
struct Block {
    norms: [Norm; 2],
    scales: [Tensor; 2],
    qkv: Linear,
    project: Linear,
    mlp: [Linear; 2],
}

/// `DINOv2`; its size follows from the weights (small, base, large). Parameters are named as in
/// `dinov2_vits14_pretrain.pth`.
///
/// # Source
/// Oquab et al. 2023 (arXiv:2304.07193); Dosovitskiy et al. 2020 (arXiv:2010.11929).
#[derive(Debug)]
pub struct Dino {
    patches: Linear,
    /// Class token with its position embedding, `[1, 1, D]`.
    class_token: Tensor,
    /// Position embeddings of the patches, `[1, P, D]`.
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
}

impl Dino {
    /// Reads the parameters.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape or is of no layer.
    pub fn load(weights: &Weights, device: &Device) -> Result<Self> {
        let from = Loader { weights, device };
        let missing = || Error::TensorMissing { name: "cls_token".to_owned() };
        let width = weights.source().shape("cls_token").and_then(|shape| shape.last().copied()).ok_or_else(missing)?;
        let num_positions = weights.source().shape("pos_embed").and_then(|shape| shape.get(1).copied()).unwrap_or(0);
        let is_block = |idx: &usize| weights.source().shape(&format!("blocks.{idx}.norm1.weight")).is_some();
        let depth = (0..MAX_DEPTH).take_while(is_block).count();
        let kernel = from.tensor("patch_embed.proj.weight", &[width, 3, PATCH, PATCH])?;
        let patches = Linear { weight: kernel.flatten_from(1)?, bias: from.tensor("patch_embed.proj.bias", &[width])? };
        let embedded = from.tensor("pos_embed", &[1, num_positions, width])?;
        let class_token = (from.tensor("cls_token", &[1, 1, width])? + embedded.i((.., ..1))?)?;
        let positions = interpolated(&embedded.i((.., 1..))?)?;
        let blocks = (0..depth).map(|idx| Block::load(&from, idx, width)).collect::<Result<_>>()?;
        let norm = Norm::load(&from, "norm", width)?;
        // Stands for patches that are hidden in training.
        weights.note_use("mask_token");
        weights.check_each_used_once()?;
        Ok(Self { patches, class_token, positions, blocks, norm })
    }

    /// Returns D, the width of the features.
    #[must_use]
    pub fn width(&self) -> usize {
        self.norm.gamma.elem_count()
    }

    /// Computes the class tokens of pictures.
    ///
    /// # Shapes
    /// - `x`: `[N, 3, H, W]`, f32 in `[0, 1]`, of any size; result: `[N, D]`.
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let x = resize(x, SIDE, Filter::Antialiased, None)?;
        let of_channels = |values: &[f32; 3]| Tensor::new(values, x.device())?.reshape((1, 3, 1, 1));
        let x = x.broadcast_sub(&of_channels(&MEAN)?)?.broadcast_div(&of_channels(&STD)?)?;
        let (n, side) = (x.dim(0)?, SIDE.checked_div(PATCH).unwrap_or(1));
        let patches = x.reshape(&[n, 3, side, PATCH, side, PATCH][..])?.permute(vec![0, 2, 4, 1, 3, 5])?;
        let patches = self.patches.forward(&patches.reshape((n, side * side, 3 * PATCH * PATCH))?)?;
        let tokens = patches.broadcast_add(&self.positions)?;
        let mut x = Tensor::cat(&[&self.class_token.repeat((n, 1, 1))?, &tokens], 1)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        self.norm.forward(&x.i((.., 0))?)
    }
}

/// Interpolates the position embeddings of a square of patches, `[1, P, D]`, to the patches of the network's input.
fn interpolated(positions: &Tensor) -> CandleResult<Tensor> {
    let (_, count, width) = positions.dims3()?;
    let (old, new) = (count.isqrt(), SIDE.checked_div(PATCH).unwrap_or(1));
    if old * old != count {
        candle_core::bail!("{count} positions are no square")
    }
    if old == new {
        return Ok(positions.clone());
    }
    let grid = positions.reshape((1, old, old, width))?.permute((0, 3, 1, 2))?;
    let grid = resize(&grid, new, Filter::Bicubic, Some((new as f64 + OFFSET) / old as f64))?;
    grid.permute((0, 2, 3, 1))?.reshape((1, new * new, width))
}

impl Linear {
    fn load(from: &Loader<'_>, name: &str, (inputs, outputs): (usize, usize)) -> Result<Self> {
        let weight = from.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        Ok(Self { weight, bias: from.tensor(&format!("{name}.bias"), &[outputs])? })
    }

    /// Maps `[.., I]` to `[.., O]`.
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let (n, tokens, inputs) = x.dims3()?;
        let y = x.reshape((n * tokens, inputs))?.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?;
        y.reshape((n, tokens, ()))
    }
}

impl Norm {
    fn load(from: &Loader<'_>, name: &str, width: usize) -> Result<Self> {
        let gamma = from.tensor(&format!("{name}.weight"), &[width])?;
        Ok(Self { gamma, beta: from.tensor(&format!("{name}.bias"), &[width])? })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let var = centered.sqr()?.mean_keepdim(D::Minus1)?;
        centered.broadcast_div(&(var + EPS)?.sqrt()?)?.broadcast_mul(&self.gamma)?.broadcast_add(&self.beta)
    }
}

impl Block {
    fn load(from: &Loader<'_>, idx: usize, width: usize) -> Result<Self> {
        let name = |part: &str| format!("blocks.{idx}.{part}");
        let scale = |part: &str| from.tensor(&name(&format!("{part}.gamma")), &[width]);
        Ok(Self {
            norms: [Norm::load(from, &name("norm1"), width)?, Norm::load(from, &name("norm2"), width)?],
            scales: [scale("ls1")?, scale("ls2")?],
            qkv: Linear::load(from, &name("attn.qkv"), (width, 3 * width))?,
            project: Linear::load(from, &name("attn.proj"), (width, width))?,
            mlp: [
                Linear::load(from, &name("mlp.fc1"), (width, 4 * width))?,
                Linear::load(from, &name("mlp.fc2"), (4 * width, width))?,
            ],
        })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let attended = self.attention(&self.norms[0].forward(x)?)?.broadcast_mul(&self.scales[0])?;
        let x = (x + attended)?;
        let hidden = self.mlp[0].forward(&self.norms[1].forward(&x)?)?.gelu_erf()?;
        &x + self.mlp[1].forward(&hidden)?.broadcast_mul(&self.scales[1])?
    }

    fn attention(&self, x: &Tensor) -> CandleResult<Tensor> {
        let (n, tokens, width) = x.dims3()?;
        let heads = width.checked_div(HEAD).unwrap_or(1);
        let qkv = self.qkv.forward(x)?.reshape((n, tokens, 3, heads, HEAD))?.permute((2, 0, 3, 1, 4))?;
        let part = |idx: usize| qkv.i(idx)?.contiguous();
        let scores = part(0)?.matmul(&part(1)?.transpose(2, 3)?)?.affine((HEAD as f64).sqrt().recip(), 0.)?;
        let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let shares = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
        let y = shares.matmul(&part(2)?)?.transpose(1, 2)?.reshape((n, tokens, width))?;
        self.project.forward(&y)
    }
}
