//! The parts of a hierarchical `z_sem`, one for each resolution of the `UNet`.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result as NetsResult};
use crate::image_size::ImageSize;

/// Widths of the parts of a hierarchical `z_sem`, one for each level of a network, from the finest resolution to the coarsest;
/// none if `z_sem` is one code for all levels.
///
/// `z_sem = [z_0, z_1, ..]`, and the blocks of the `UNet` at level l see `z_l` alone.
///
/// # Source
/// Lu et al. 2023 (arXiv:2304.11829), hierarchical diffusion autoencoders: features of an encoder at several resolutions become
/// codes that condition the blocks of as many resolutions.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ZLevels(Vec<usize>);

impl ZLevels {
    /// One code for all levels.
    pub const NONE: Self = Self(vec![]);

    /// Returns whether there is one code for all levels.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of levels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the width of each part.
    #[must_use]
    pub fn widths(&self) -> &[usize] {
        &self.0
    }

    /// Returns the components of `z_sem` that belong to a level: all of `0..width` where there is one code for all levels, none
    /// beyond the last level.
    #[must_use]
    pub fn range(&self, level: usize, width: usize) -> Range<usize> {
        if self.is_empty() {
            return 0..width;
        }
        let start = self.0.iter().take(level).sum();
        start..start + self.0.get(level).copied().unwrap_or(0)
    }

    /// Takes the parts of some levels from `changed` and all others from `z_sem`.
    ///
    /// # Shapes
    /// - `z_sem`, `changed`, result: `[N, D]`.
    /// # Errors
    /// If the shapes differ, or there is no such level.
    pub fn replaced(&self, z_sem: &Tensor, changed: &Tensor, levels: &[usize]) -> Result<Tensor> {
        let (_, width) = z_sem.dims2()?;
        if let Some(level) = levels.iter().find(|&&level| level >= self.len()) {
            bail!("there is no level {level} in a z_sem of {}", self.len())
        }
        let part = |level: usize| {
            let Range { start, end } = self.range(level, width);
            let source = if levels.contains(&level) { changed } else { z_sem };
            source.narrow(1, start, end - start)
        };
        Tensor::cat(&(0..self.len()).map(part).collect::<Result<Vec<_>>>()?, 1)
    }

    /// Returns the level of an encoder of pictures that has the resolution of the first level of a `UNet`: 0, but where the `UNet`
    /// runs on latents.
    #[must_use]
    pub fn first_level(encoder: ImageSize, unet: ImageSize) -> usize {
        encoder.width().checked_div(unet.width()).unwrap_or(1).max(1).ilog2() as usize
    }

    /// Returns the widths at the levels of a network whose level `offset` has the resolution of level 0 here. The coarsest part
    /// goes to the last of `num_levels` levels, which sees all of a picture.
    ///
    /// # Errors
    /// [`Error::ZLevelWithoutResolution`] if the network has too few levels.
    pub fn at_levels_of(&self, offset: usize, num_levels: usize) -> NetsResult<Self> {
        let Some((coarsest, finer)) = self.0.split_last() else { return Ok(Self::NONE) };
        let needed = offset + self.len();
        if num_levels < needed {
            return Err(Error::ZLevelWithoutResolution { needed, got: num_levels });
        }
        let mut widths = vec![0; num_levels];
        widths[offset..][..finer.len()].copy_from_slice(finer);
        widths[num_levels - 1] = *coarsest;
        Ok(Self(widths))
    }

    /// Returns the levels that have a part, with its width.
    pub fn occupied(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.0.iter().copied().enumerate().filter(|&(_, width)| width > 0)
    }

    /// Checks the widths against the levels of a network and the width of `z_sem`.
    pub(crate) fn check(&self, network: &'static str, num_levels: usize, width: usize) -> NetsResult<()> {
        if self.is_empty() {
            return Ok(());
        }
        let sum = self.0.iter().fold(0usize, |sum, &width| sum.saturating_add(width));
        if self.len() != num_levels || sum != width {
            let got = self.0.clone();
            return Err(Error::ZLevelsDoNotFit { network, got, num_levels, width });
        }
        Ok(())
    }
}

impl From<Vec<usize>> for ZLevels {
    fn from(widths: Vec<usize>) -> Self {
        Self(widths)
    }
}

impl std::fmt::Display for ZLevels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let widths: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&widths.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn parts_lie_side_by_side_from_fine_to_coarse() {
        let levels = ZLevels::from(vec![2, 1, 3]);
        assert_eq!([0, 1, 2, 3].map(|level| levels.range(level, 6)), [0..2, 2..3, 3..6, 6..6]);
        assert_eq!(ZLevels::NONE.range(2, 6), 0..6);
    }

    #[test]
    fn a_part_is_replaced_without_the_others() {
        let levels = ZLevels::from(vec![2, 1]);
        let tensor = |values: [[f32; 3]; 2]| Tensor::new(&values, &Device::Cpu).unwrap();
        let (z, other) = (tensor([[1., 2., 3.], [4., 5., 6.]]), tensor([[-1., -2., -3.], [-4., -5., -6.]]));
        let of = |which: &[usize]| levels.replaced(&z, &other, which).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(of(&[1]), [[1., 2., -3.], [4., 5., -6.]]);
        assert_eq!(of(&[0]), [[-1., -2., 3.], [-4., -5., 6.]]);
        assert_eq!(of(&[]), z.to_vec2::<f32>().unwrap());
        assert!(levels.replaced(&z, &other, &[2]).unwrap_err().to_string().contains("no level 2 in a z_sem of 2"));
    }

    #[test]
    fn the_coarsest_part_is_of_the_last_level() {
        let levels = ZLevels::from(vec![4, 8, 16]);
        let of = |offset, num_levels| levels.at_levels_of(offset, num_levels).map(|levels| levels.0);
        assert_eq!(of(0, 3).unwrap(), [4, 8, 16]);
        assert_eq!(of(1, 6).unwrap(), [0, 4, 8, 0, 0, 16]);
        assert!(of(1, 3).unwrap_err().to_string().contains('4'));
        assert!(ZLevels::NONE.at_levels_of(2, 1).unwrap().is_empty());
    }
}
