//! Learned perceptual image patch similarity (LPIPS).

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use diffae_kernels::{concat_channels, differentiable, max_pool_2x};

use super::layers::{Conv, Loader, Window, max_pool, max_pool_ceil};
use crate::error::Result;
use crate::weights::{SafetensorsFile, TensorMap, TensorSource, Weights};

/// Shift and scale of the channels of a picture in `[-1, 1]`.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];
/// Stabilizer added to the norm of activations.
const EPS: f64 = 1e-10;
/// Added to the square of that norm, which otherwise has no gradient where all activations of a pixel are 0.
const TINY: f64 = 1e-20;

/// The network whose activations are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LpipsBackbone {
    /// `AlexNet`, which papers report.
    Alex,
    /// VGG-16, the network of the perceptual path length.
    Vgg,
    /// `SqueezeNet` 1.1.
    Squeeze,
}

/// LPIPS: `sum over layers l of mean over pixels of sum over channels of w_l (f_l(x) - f_l(y))^2`, `f_l` the activations
/// of layer l, of length 1 at each pixel.
///
/// The weights w (version 0.1 of the authors) are built in. Those of the backbone are `torchvision`'s: `alexnet-*.pth`,
/// `vgg16-*.pth`, `squeezenet1_1-*.pth`. On a tape, distances have gradients w.r.t. the pictures for the backbone VGG-16,
/// which is the one that generators are trained with; the overlapping windows of the others' pooling have none.
///
/// # Source
/// Zhang et al. 2018 (arXiv:1801.03924), Eq. 1.
#[derive(Debug, Clone)]
pub struct LpipsNetwork {
    layers: Vec<Layer>,
    /// Weights w of each layer, `[1, C, 1, 1]`.
    heads: Vec<Tensor>,
    device: Device,
}

/// A part of a backbone.
#[derive(Debug, Clone)]
enum Layer {
    /// A convolution followed by a `ReLU`.
    Conv(Conv),
    MaxPool {
        kernel: usize,
        ceil: bool,
    },
    /// A fire module: 1x1 to fewer channels, then 1x1 and 3x3 side by side, with a `ReLU` after each.
    Fire {
        squeeze: Conv,
        expand: [Conv; 2],
    },
    /// Marks the activations that are compared.
    Tap,
}

impl LpipsBackbone {
    /// All backbones.
    pub const ALL: [Self; 3] = [Self::Alex, Self::Vgg, Self::Squeeze];

    /// Returns the name of the backbone: `alex`, `vgg`, `squeeze`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alex => "alex",
            Self::Vgg => "vgg",
            Self::Squeeze => "squeeze",
        }
    }

    /// Returns the file of the weights w.
    fn heads(self) -> &'static [u8] {
        match self {
            Self::Alex => include_bytes!("../../heads/lpips-alex.safetensors"),
            Self::Vgg => include_bytes!("../../heads/lpips-vgg.safetensors"),
            Self::Squeeze => include_bytes!("../../heads/lpips-squeeze.safetensors"),
        }
    }
}

impl LpipsNetwork {
    /// Height and width of the smallest pictures of which every layer leaves something.
    pub const MIN_SIDE: usize = 32;

    /// Builds the network from weights that were read. Weights of the unused classifier may be among them.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape or is of no layer.
    pub fn new(backbone: LpipsBackbone, tensors: &TensorMap, device: &Device) -> Result<Self> {
        let is_of_features = |name: &&String| name.starts_with("features.");
        let of_features = tensors.0.iter().filter(|(name, _)| is_of_features(name));
        let of_features = of_features.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        let weights = Weights::new(Arc::new(TensorMap(of_features)));
        let layers = layers(backbone, &Loader { weights: &weights, device })?;
        weights.check_each_used_once()?;
        let heads = SafetensorsFile::from_static(Path::new("heads"), backbone.heads())?;
        let read = |name: &String| heads.read(name)?.to_tensor(DType::F32, device);
        let heads = heads.names().iter().map(read).collect::<Result<_>>()?;
        Ok(Self { layers, heads, device: device.clone() })
    }

    /// Computes the distance of each pair.
    ///
    /// # Shapes
    /// - `x`, `y`: `[N, 3, H, W]`, f32 in `[-1, 1]`, sides of at least [`MIN_SIDE`](Self::MIN_SIDE) pixels; result: `[N]`.
    /// # Errors
    /// If shapes do not fit.
    pub fn distance(&self, x: &Tensor, y: &Tensor) -> CandleResult<Tensor> {
        self.distance_from(&self.activations(x)?, y)
    }

    /// Computes the distance of pictures from others whose [activations](Self::activations) are known.
    ///
    /// # Shapes
    /// - `activations`: of N pictures; `y`: `[N, 3, H, W]`, f32 in `[-1, 1]`; result: `[N]`.
    /// # Errors
    /// If shapes do not fit.
    pub fn distance_from(&self, activations: &[Tensor], y: &Tensor) -> CandleResult<Tensor> {
        let mut sum = Tensor::zeros(y.dim(0)?, DType::F32, &self.device)?;
        for ((of_x, of_y), head) in activations.iter().zip(&self.activations(y)?).zip(&self.heads) {
            sum = differentiable([&sum, of_x, of_y], |[sum, of_x, of_y]| {
                let squares = (of_x - of_y)?.sqr()?.broadcast_mul(head)?.sum(1)?;
                sum + squares.flatten_from(1)?.mean(1)?
            })?;
        }
        Ok(sum)
    }

    /// Computes the activations that are compared.
    ///
    /// # Shapes
    /// - `x`: `[N, 3, H, W]`, f32 in `[-1, 1]`; result: `[N, C, H', W']` of each layer, of length 1 at each pixel.
    /// # Errors
    /// If shapes do not fit.
    pub fn activations(&self, x: &Tensor) -> CandleResult<Vec<Tensor>> {
        let of_channels = |values: &[f32; 3]| Tensor::new(values, &self.device)?.reshape((1, 3, 1, 1));
        let (shift, scale) = (of_channels(&SHIFT)?, of_channels(&SCALE)?);
        let mut x = differentiable([x], |[x]| x.broadcast_sub(&shift)?.broadcast_div(&scale))?;
        let relu = |x: &Tensor| differentiable([x], |[x]| x.relu());
        let mut taps = vec![];
        for layer in &self.layers {
            match layer {
                Layer::Conv(conv) => x = relu(&conv.forward(&x)?)?,
                Layer::MaxPool { kernel: 2, ceil: false } => x = max_pool_2x(&x)?,
                Layer::MaxPool { kernel, ceil: false } => x = differentiable([&x], |[x]| max_pool(x, *kernel, 2, 0))?,
                Layer::MaxPool { kernel, ceil: true } => x = differentiable([&x], |[x]| max_pool_ceil(x, *kernel, 2))?,
                Layer::Fire { squeeze, expand: [one, three] } => {
                    let narrow = relu(&squeeze.forward(&x)?)?;
                    let (one, three) = (relu(&one.forward(&narrow)?)?, relu(&three.forward(&narrow)?)?);
                    x = concat_channels(&one, &three)?;
                }
                Layer::Tap => taps.push(differentiable([&x], |[x]| {
                    let length = ((x.sqr()?.sum_keepdim(1)? + TINY)?.sqrt()? + EPS)?;
                    x.broadcast_div(&length)
                })?),
            }
        }
        Ok(taps)
    }
}

fn layers(backbone: LpipsBackbone, from: &Loader<'_>) -> Result<Vec<Layer>> {
    let conv = |idx: usize, sizes, window| from.conv(&format!("features.{idx}"), sizes, window).map(Layer::Conv);
    let pool = |kernel| Layer::MaxPool { kernel, ceil: false };
    let three = Window::square(3);
    let mut layers = vec![];
    match backbone {
        LpipsBackbone::Alex => {
            let first = Window::square(11).with_stride(4).with_padding(2);
            layers.extend([conv(0, (3, 64), first)?, Layer::Tap, pool(3)]);
            layers.extend([conv(3, (64, 192), Window::square(5))?, Layer::Tap, pool(3)]);
            for (idx, sizes) in [(6, (192, 384)), (8, (384, 256)), (10, (256, 256))] {
                layers.extend([conv(idx, sizes, three)?, Layer::Tap]);
            }
        }
        LpipsBackbone::Vgg => {
            let (mut idx, mut inputs) = (0, 3);
            for (stage, (count, outputs)) in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)].into_iter().enumerate() {
                if stage > 0 {
                    layers.push(pool(2));
                    idx += 1;
                }
                for _ in 0..count {
                    layers.push(conv(idx, (inputs, outputs), three)?);
                    // The `ReLU` has a number of its own.
                    idx += 2;
                    inputs = outputs;
                }
                layers.push(Layer::Tap);
            }
        }
        LpipsBackbone::Squeeze => {
            let pool = || Layer::MaxPool { kernel: 3, ceil: true };
            layers.extend([conv(0, (3, 64), three.with_stride(2).with_padding(0))?, Layer::Tap, pool()]);
            layers.extend([fire(from, 3, 64, (16, 64))?, fire(from, 4, 128, (16, 64))?, Layer::Tap, pool()]);
            layers.extend([fire(from, 6, 128, (32, 128))?, fire(from, 7, 256, (32, 128))?, Layer::Tap, pool()]);
            for (idx, inputs, narrow, wide) in
                [(9, 256, 48, 192), (10, 384, 48, 192), (11, 384, 64, 256), (12, 512, 64, 256)]
            {
                layers.extend([fire(from, idx, inputs, (narrow, wide))?, Layer::Tap]);
            }
        }
    }
    Ok(layers)
}

fn fire(from: &Loader<'_>, idx: usize, inputs: usize, (narrow, wide): (usize, usize)) -> Result<Layer> {
    let part = |name: &str, sizes, kernel| from.conv(&format!("features.{idx}.{name}"), sizes, Window::square(kernel));
    Ok(Layer::Fire {
        squeeze: part("squeeze", (inputs, narrow), 1)?,
        expand: [part("expand1x1", (narrow, wide), 1)?, part("expand3x3", (narrow, wide), 3)?],
    })
}
