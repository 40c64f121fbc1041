//! `DINOv2`: a self-supervised vision transformer.
//!
//! Candle's own (`candle-transformers`) takes one picture at a time, wants a classifier that the released files do not
//! hold, approximates GELU, and repeats position embeddings where the original interpolates them: its features are not
//! `DINOv2`'s.

use candle_core::{D, DType, Device, IndexOp, Result as CandleResult, Tensor};
use candle_nn::VarBuilder;

use super::layers::{Filter, Loader, resize, resize_weights};
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

/// Reads a parameter of a name and a shape.
type Read<'a, E> = &'a dyn Fn(&str, &[usize]) -> std::result::Result<Tensor, E>;

#[derive(Debug, Clone)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

#[derive(Debug, Clone)]
struct Norm {
    gamma: Tensor,
    beta: Tensor,
}

#[derive(Debug, Clone)]
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
#[derive(Debug, Clone)]
pub struct Dino {
    patches: Linear,
    /// Class token with its position embedding, `[1, 1, D]`.
    class_token: Tensor,
    /// Position embeddings of the patches, `[1, P, D]`.
    positions: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
}

/// Sizes of a [`Dino`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DinoSizes {
    /// Width of tokens and features, D.
    pub(crate) width: usize,
    /// Number of blocks.
    pub(crate) depth: usize,
    /// Number of position embeddings, that of the class token included.
    pub(crate) num_positions: usize,
}

/// A vision transformer, for those who compute it elsewhere; its parameters are named as in `dinov2_vits14_pretrain.pth`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VisionTransformer {
    /// Height and width of its input, to which pictures are resized, in pixels.
    pub side: usize,
    /// Height and width of a patch, in pixels.
    pub patch: usize,
    /// Width of tokens and features, D.
    pub width: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Width of an attention head.
    pub head_width: usize,
    /// Epsilon of layer norms.
    pub norm_epsilon: f64,
    /// Mean of each channel that is subtracted from pictures in `[0, 1]`.
    pub mean: [f32; 3],
    /// Standard deviation by which they are divided.
    pub std: [f32; 3],
}

impl VisionTransformer {
    /// Returns the number of patches, P.
    #[must_use]
    pub fn num_patches(&self) -> usize {
        self.side.checked_div(self.patch).unwrap_or(1).pow(2)
    }

    /// Returns the number of attention heads.
    #[must_use]
    pub fn num_heads(&self) -> usize {
        self.width.checked_div(self.head_width).unwrap_or(1)
    }

    /// Returns the matrix that resizes rows or columns of pictures of a size, `[side, size]`, row by row: antialiased, bilinear.
    #[must_use]
    pub fn resize_matrix(&self, size: usize) -> Vec<f32> {
        resize_weights(size, self.side, Filter::Antialiased, self.side as f64 / size.max(1) as f64)
    }
}

impl DinoSizes {
    /// Position embeddings of the patches of the network's input, and of the class token.
    pub(crate) const NUM_POSITIONS: usize = SIDE.div_euclid(PATCH).pow(2) + 1;

    /// Infers the sizes from weights.
    pub(crate) fn of(weights: &Weights) -> Result<Self> {
        let missing = || Error::TensorMissing { name: "cls_token".to_owned() };
        let width = weights.source().shape("cls_token").and_then(|shape| shape.last().copied()).ok_or_else(missing)?;
        let num_positions =
            weights.source().shape(Dino::POSITIONS).and_then(|shape| shape.get(1).copied()).unwrap_or(0);
        let is_block = |idx: &usize| weights.source().shape(&format!("blocks.{idx}.norm1.weight")).is_some();
        Ok(Self { width, depth: (0..MAX_DEPTH).take_while(is_block).count(), num_positions })
    }

    /// Describes the network.
    pub(crate) fn described(self) -> VisionTransformer {
        VisionTransformer {
            side: SIDE,
            patch: PATCH,
            width: self.width,
            depth: self.depth,
            head_width: HEAD,
            norm_epsilon: EPS,
            mean: MEAN,
            std: STD,
        }
    }

    /// Returns the multiply-adds of one call for one picture, counted as plain sums of products.
    pub(crate) fn num_multiply_adds(self) -> u64 {
        let patches = (SIDE.div_euclid(PATCH)).pow(2);
        let (tokens, width) = (patches + 1, self.width);
        // q, k, v, the projection and both layers of the perceptron; scores and their sums.
        let block = tokens * (12 * width * width + 2 * tokens * width);
        (patches * 3 * PATCH * PATCH * width + self.depth * block) as u64
    }
}

impl Dino {
    /// Name of a released parameter that no picture meets: it stands for patches that are hidden in training.
    pub(crate) const UNUSED: &'static str = "mask_token";

    /// Name of the position embeddings.
    pub(crate) const POSITIONS: &'static str = "pos_embed";

    /// Reads the parameters.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape or is of no layer.
    pub fn load(weights: &Weights, device: &Device) -> Result<Self> {
        let from = Loader { weights, device };
        let network = Self::read(DinoSizes::of(weights)?, &|name, shape| from.tensor(name, shape))?;
        weights.note_use(Self::UNUSED);
        weights.check_each_used_once()?;
        Ok(network)
    }

    /// Converts released position embeddings, `[1, P, D]`, to those of the patches of the network's input, with which it computes
    /// the same.
    pub(crate) fn positions_of_input(embedded: &Tensor) -> CandleResult<Tensor> {
        Tensor::cat(&[embedded.i((.., ..1))?, interpolated(&embedded.i((.., 1..))?)?], 1)
    }

    /// Reads the parameters below `vb`, all but [`UNUSED`](Self::UNUSED), as f32.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub(crate) fn new(sizes: DinoSizes, vb: &VarBuilder<'_>) -> CandleResult<Self> {
        Self::read(sizes, &|name, shape| vb.get(shape, name)?.to_dtype(DType::F32))
    }

    fn read<E: From<candle_core::Error>>(sizes: DinoSizes, read: Read<'_, E>) -> std::result::Result<Self, E> {
        let DinoSizes { width, depth, num_positions } = sizes;
        let kernel = read("patch_embed.proj.weight", &[width, 3, PATCH, PATCH])?;
        let patches = Linear { weight: kernel.flatten_from(1)?, bias: read("patch_embed.proj.bias", &[width])? };
        let embedded = read(Self::POSITIONS, &[1, num_positions, width])?;
        let class_token = (read("cls_token", &[1, 1, width])? + embedded.i((.., ..1))?)?;
        let positions = interpolated(&embedded.i((.., 1..))?)?;
        let blocks = (0..depth).map(|idx| Block::read(read, idx, width)).collect::<std::result::Result<_, _>>()?;
        Ok(Self { patches, class_token, positions, blocks, norm: Norm::read(read, "norm", width)? })
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
        // The sums of a norm may be taken in another order where rows do not follow each other, which depends on N.
        self.norm.forward(&x.i((.., 0))?.contiguous()?)
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
    fn read<E>(read: Read<'_, E>, name: &str, (inputs, outputs): (usize, usize)) -> std::result::Result<Self, E> {
        let weight = read(&format!("{name}.weight"), &[outputs, inputs])?;
        Ok(Self { weight, bias: read(&format!("{name}.bias"), &[outputs])? })
    }

    /// Maps `[.., I]` to `[.., O]`.
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let (n, tokens, inputs) = x.dims3()?;
        let y = x.reshape((n * tokens, inputs))?.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?;
        y.reshape((n, tokens, ()))
    }
}

impl Norm {
    fn read<E>(read: Read<'_, E>, name: &str, width: usize) -> std::result::Result<Self, E> {
        let gamma = read(&format!("{name}.weight"), &[width])?;
        Ok(Self { gamma, beta: read(&format!("{name}.bias"), &[width])? })
    }

    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let var = centered.sqr()?.mean_keepdim(D::Minus1)?;
        centered.broadcast_div(&(var + EPS)?.sqrt()?)?.broadcast_mul(&self.gamma)?.broadcast_add(&self.beta)
    }
}

impl Block {
    fn read<E>(read: Read<'_, E>, idx: usize, width: usize) -> std::result::Result<Self, E> {
        let name = |part: &str| format!("blocks.{idx}.{part}");
        let scale = |part: &str| read(&name(&format!("{part}.gamma")), &[width]);
        Ok(Self {
            norms: [Norm::read(read, &name("norm1"), width)?, Norm::read(read, &name("norm2"), width)?],
            scales: [scale("ls1")?, scale("ls2")?],
            qkv: Linear::read(read, &name("attn.qkv"), (width, 3 * width))?,
            project: Linear::read(read, &name("attn.proj"), (width, width))?,
            mlp: [
                Linear::read(read, &name("mlp.fc1"), (width, 4 * width))?,
                Linear::read(read, &name("mlp.fc2"), (4 * width, width))?,
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
