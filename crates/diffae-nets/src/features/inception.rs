//! Inception-v3 as the Frechet Inception distance uses it.

use candle_core::{Device, Result as CandleResult, Tensor};

use super::layers::{Conv, Filter, Loader, Window, average_pool_3x3, global_average, max_pool, resize};
use crate::error::Result;
use crate::weights::Weights;

/// Stabilizer of all batch norms.
const EPS: f64 = 1e-3;
/// Side of the network's input, in pixels.
const SIDE: usize = 299;

/// Preprocessing of pictures to the 299 pixels that Inception-v3 takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InceptionInput {
    /// pytorch-fid's, as in most papers: bilinear between the two nearest pixels, without antialiasing, in `[-1, 1]`.
    #[default]
    PytorchFid,
    /// clean-fid's: Pillow's antialiased bicubic in floating point, clipped to `[0, 255]`, then `(x - 128) / 128`.
    ///
    /// # Source
    /// Parmar et al. 2022 (arXiv:2104.11222), Section 3; `make_resizer("PIL", False, "bicubic", (299, 299))` of clean-fid.
    Clean,
}

/// Convolutions one after the other, each followed by a `ReLU`.
#[derive(Debug)]
struct Branch(Vec<Conv>);

/// A block of parallel branches, one of them pooled.
#[derive(Debug)]
struct Block {
    branches: Vec<Branch>,
    /// Pairs of convolutions that both take the output of the branch of that index, and replace it by their outputs.
    forks: Vec<(usize, [Branch; 2])>,
    pool: Pool,
}

/// The last branch of a block, which pools.
#[derive(Debug)]
enum Pool {
    /// 3x3 average pooling, then a convolution.
    Average(Branch),
    /// 3x3 max pooling, then a convolution.
    Max(Branch),
    /// 3x3 max pooling with stride 2.
    Halve,
}

/// Inception-v3 up to the last average pooling.
///
/// Two differences from torchvision's: averages leave the zeros of the border out, and the last block has a maximum
/// where others have an average. Parameters are named as in torchvision and in `pt_inception-2015-12-05-6726825d.pth`.
///
/// # Source
/// Szegedy et al. 2016 (arXiv:1512.00567); Heusel et al. 2017 (arXiv:1706.08500); pytorch-fid.
#[derive(Debug)]
pub struct Inception {
    stem: Branch,
    middle: Branch,
    blocks: Vec<Block>,
}

impl Inception {
    /// Width of the features: the last average pooling ("pool3").
    pub const WIDTH: usize = 2048;

    /// Reads the parameters.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape or is of no layer.
    pub fn load(weights: &Weights, device: &Device) -> Result<Self> {
        let from = Names(Loader { weights, device });
        let halving = Window::square(3).with_stride(2).with_padding(0);
        let stem = Branch(vec![
            from.conv("Conv2d_1a_3x3", 3, 32, halving)?,
            from.conv("Conv2d_2a_3x3", 32, 32, Window::square(3).with_padding(0))?,
            from.conv("Conv2d_2b_3x3", 32, 64, Window::square(3))?,
        ]);
        let middle = Branch(vec![
            from.conv("Conv2d_3b_1x1", 64, 80, Window::square(1))?,
            from.conv("Conv2d_4a_3x3", 80, 192, Window::square(3).with_padding(0))?,
        ]);
        let blocks = vec![
            from.block_a("Mixed_5b", 192, 32)?,
            from.block_a("Mixed_5c", 256, 64)?,
            from.block_a("Mixed_5d", 288, 64)?,
            from.block_b("Mixed_6a")?,
            from.block_c("Mixed_6b", 128)?,
            from.block_c("Mixed_6c", 160)?,
            from.block_c("Mixed_6d", 160)?,
            from.block_c("Mixed_6e", 192)?,
            from.block_d("Mixed_7a")?,
            from.block_e("Mixed_7b", 1280, Pool::Average)?,
            from.block_e("Mixed_7c", 2048, Pool::Max)?,
        ];
        // The classifier that the file also holds.
        for name in ["fc.weight", "fc.bias"] {
            weights.note_use(name);
        }
        weights.check_each_used_once()?;
        Ok(Self { stem, middle, blocks })
    }

    /// Computes the features of pictures.
    ///
    /// # Shapes
    /// - `x`: `[N, 3, H, W]`, f32 in `[0, 1]`, of any size; result: `[N, 2048]`.
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Tensor, input: InceptionInput) -> CandleResult<Tensor> {
        let x = match input {
            InceptionInput::PytorchFid => resize(x, SIDE, Filter::Bilinear, None)?.affine(2., -1.)?,
            InceptionInput::Clean => clean_resize(x, SIDE)?.affine(1. / 128., -1.)?,
        };
        let x = max_pool(&self.stem.forward(&x)?, 3, 2, 0)?;
        let mut x = max_pool(&self.middle.forward(&x)?, 3, 2, 0)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        global_average(&x)
    }
}

/// Resizes `[N, C, H, W]` in `[0, 1]` to `[N, C, side, side]` in `[0, 255]`, without rounding to bytes.
fn clean_resize(x: &Tensor, side: usize) -> CandleResult<Tensor> {
    resize(&x.affine(255., 0.)?, side, Filter::AntialiasedBicubic, None)?.clamp(0f32, 255f32)
}

impl Branch {
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        self.0.iter().try_fold(x.clone(), |x, conv| conv.forward(&x)?.relu())
    }
}

impl Block {
    fn forward(&self, x: &Tensor) -> CandleResult<Tensor> {
        let mut parts = vec![];
        for (number, branch) in self.branches.iter().enumerate() {
            let made = branch.forward(x)?;
            match self.forks.iter().find(|(of, _)| *of == number) {
                Some((_, [first, second])) => parts.extend([first.forward(&made)?, second.forward(&made)?]),
                None => parts.push(made),
            }
        }
        parts.push(match &self.pool {
            Pool::Average(branch) => branch.forward(&average_pool_3x3(x)?)?,
            Pool::Max(branch) => branch.forward(&max_pool(x, 3, 1, 1)?)?,
            Pool::Halve => max_pool(x, 3, 2, 0)?,
        });
        Tensor::cat(&parts, 1)
    }
}

/// Reads layers by torchvision's names.
struct Names<'a>(Loader<'a>);

impl Names<'_> {
    fn conv(&self, name: &str, inputs: usize, outputs: usize, window: Window) -> Result<Conv> {
        let (conv, norm) = (format!("{name}.conv"), format!("{name}.bn"));
        self.0.conv_norm((&conv, &norm), (inputs, outputs), window, EPS)
    }

    /// Reads the convolutions `BLOCK.PART` that follow each other: name, outputs, window.
    fn branch(&self, block: &str, mut inputs: usize, parts: &[(&str, usize, Window)]) -> Result<Branch> {
        let mut convs = vec![];
        for &(part, outputs, window) in parts {
            convs.push(self.conv(&format!("{block}.{part}"), inputs, outputs, window)?);
            inputs = outputs;
        }
        Ok(Branch(convs))
    }

    fn block_a(&self, name: &str, inputs: usize, pooled: usize) -> Result<Block> {
        let (one, three) = (Window::square(1), Window::square(3));
        let branches = vec![
            self.branch(name, inputs, &[("branch1x1", 64, one)])?,
            self.branch(name, inputs, &[("branch5x5_1", 48, one), ("branch5x5_2", 64, Window::square(5))])?,
            self.branch(
                name,
                inputs,
                &[("branch3x3dbl_1", 64, one), ("branch3x3dbl_2", 96, three), ("branch3x3dbl_3", 96, three)],
            )?,
        ];
        let pool = Pool::Average(self.branch(name, inputs, &[("branch_pool", pooled, one)])?);
        Ok(Block { branches, forks: vec![], pool })
    }

    fn block_b(&self, name: &str) -> Result<Block> {
        let (one, three) = (Window::square(1), Window::square(3));
        let halving = three.with_stride(2).with_padding(0);
        let branches = vec![
            self.branch(name, 288, &[("branch3x3", 384, halving)])?,
            self.branch(
                name,
                288,
                &[("branch3x3dbl_1", 64, one), ("branch3x3dbl_2", 96, three), ("branch3x3dbl_3", 96, halving)],
            )?,
        ];
        Ok(Block { branches, forks: vec![], pool: Pool::Halve })
    }

    fn block_c(&self, name: &str, width: usize) -> Result<Block> {
        let (one, flat, tall) = (Window::square(1), Window::rectangle([1, 7]), Window::rectangle([7, 1]));
        let branches = vec![
            self.branch(name, 768, &[("branch1x1", 192, one)])?,
            self.branch(
                name,
                768,
                &[("branch7x7_1", width, one), ("branch7x7_2", width, flat), ("branch7x7_3", 192, tall)],
            )?,
            self.branch(
                name,
                768,
                &[
                    ("branch7x7dbl_1", width, one),
                    ("branch7x7dbl_2", width, tall),
                    ("branch7x7dbl_3", width, flat),
                    ("branch7x7dbl_4", width, tall),
                    ("branch7x7dbl_5", 192, flat),
                ],
            )?,
        ];
        let pool = Pool::Average(self.branch(name, 768, &[("branch_pool", 192, one)])?);
        Ok(Block { branches, forks: vec![], pool })
    }

    fn block_d(&self, name: &str) -> Result<Block> {
        let (one, flat, tall) = (Window::square(1), Window::rectangle([1, 7]), Window::rectangle([7, 1]));
        let halving = Window::square(3).with_stride(2).with_padding(0);
        let branches = vec![
            self.branch(name, 768, &[("branch3x3_1", 192, one), ("branch3x3_2", 320, halving)])?,
            self.branch(
                name,
                768,
                &[
                    ("branch7x7x3_1", 192, one),
                    ("branch7x7x3_2", 192, flat),
                    ("branch7x7x3_3", 192, tall),
                    ("branch7x7x3_4", 192, halving),
                ],
            )?,
        ];
        Ok(Block { branches, forks: vec![], pool: Pool::Halve })
    }

    fn block_e(&self, name: &str, inputs: usize, pool: fn(Branch) -> Pool) -> Result<Block> {
        let (one, flat, tall) = (Window::square(1), Window::rectangle([1, 3]), Window::rectangle([3, 1]));
        let branches = vec![
            self.branch(name, inputs, &[("branch1x1", 320, one)])?,
            self.branch(name, inputs, &[("branch3x3_1", 384, one)])?,
            self.branch(name, inputs, &[("branch3x3dbl_1", 448, one), ("branch3x3dbl_2", 384, Window::square(3))])?,
        ];
        let fork = |first: &str, second: &str| -> Result<[Branch; 2]> {
            Ok([self.branch(name, 384, &[(first, 384, flat)])?, self.branch(name, 384, &[(second, 384, tall)])?])
        };
        let forks = vec![(1, fork("branch3x3_2a", "branch3x3_2b")?), (2, fork("branch3x3dbl_3a", "branch3x3dbl_3b")?)];
        let pool = pool(self.branch(name, inputs, &[("branch_pool", 192, one)])?);
        Ok(Block { branches, forks, pool })
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// The file that `xtask/peer/clean_fid_fixtures.py` writes.
    #[derive(Deserialize)]
    struct Fixture {
        resized: Vec<Resized>,
    }

    #[derive(Deserialize)]
    struct Resized {
        height: usize,
        width: usize,
        side: usize,
        /// Row, column, channel, value.
        pixels: Vec<(usize, usize, usize, f32)>,
    }

    /// On the scale of 255; clean-fid sums in double precision.
    const TOLERANCE: f32 = 1e-3;

    #[test]
    fn pixels_are_resized_as_clean_fid_does() {
        let fixture: Fixture = serde_json::from_str(include_str!("../../tests/fixtures/clean_fid.json")).unwrap();
        assert_eq!(fixture.resized.len(), 6);
        for Resized { height, width, side, pixels } in fixture.resized {
            let byte = |c: usize, y: usize, x: usize| ((7 * y * y + 91 * x + 53 * c * (y + 1) + x * y) % 256) as f32;
            let values = (0..3).flat_map(|c| (0..height).flat_map(move |y| (0..width).map(move |x| byte(c, y, x))));
            let x = Tensor::from_iter(values, &Device::Cpu).unwrap().reshape((1, 3, height, width)).unwrap();
            let resized = clean_resize(&(x / 255.).unwrap(), side).unwrap().get(0).unwrap().to_vec3::<f32>().unwrap();
            let is_clipped = |value: f32| pixels.iter().any(|pixel| (pixel.3 - value).abs() < TOLERANCE);
            assert_eq!(is_clipped(0.) && is_clipped(255.), side > 17, "only enlarging overshoots here");
            for (row, column, channel, expected) in pixels {
                let got = resized[channel][row][column];
                assert!((got - expected).abs() < TOLERANCE, "{height}x{width} to {side}: {got}, expected {expected}");
            }
        }
    }
}
