//! Convolution algorithms, and the heuristic that picks one.

use crate::dispatch::Winograd;

/// A convolution algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// 1x1: a matrix product.
    Direct1,
    /// 3x3, padding 1: nine matrix products.
    Direct3,
    /// 3x3, padding 1: Winograd F(2x2, 3x3).
    Winograd2,
    /// 3x3, padding 1: Winograd F(4x4, 3x3).
    Winograd4,
}

/// Minimum number of channels, in and out, for which the transforms of Winograd's algorithm pay.
const MIN_WINOGRAD_CHANNELS: usize = 16;

/// Minimum number of tiles of a volume for which transformed weights pay.
const MIN_VOLUME_TILES: usize = 32;

impl Algorithm {
    /// Picks the fastest algorithm for a K x K kernel on images of one size, if there is one for that K.
    ///
    /// Winograd's transformed weights are 16/9 (F2) or 4 (F4) times as large. On small images reading them is the
    /// cost, so F2 is taken below 32 pixels, and none below 8.
    pub(crate) fn pick(
        kernel: usize,
        [outputs, inputs]: [usize; 2],
        [height, width]: [usize; 2],
        winograd: Winograd,
    ) -> Option<Self> {
        let side = height.min(width);
        match kernel {
            1 => Some(Self::Direct1),
            3 if !winograd.is_allowed() || inputs.min(outputs) < MIN_WINOGRAD_CHANNELS || side < 8 => {
                Some(Self::Direct3)
            }
            3 if side < 32 => Some(Self::Winograd2),
            3 => Some(Self::Winograd4),
            _ => None,
        }
    }

    /// Picks the fastest algorithm for a kernel of K x K x K on volumes, as [`pick`](Self::pick) does for images. Weights that are
    /// read for all slices pay where those for one small image do not.
    pub(crate) fn pick_for_volumes(
        kernel: usize,
        channels: [usize; 2],
        [depth, height, width]: [usize; 3],
        winograd: Winograd,
    ) -> Option<Self> {
        let tiles = |side: usize| height.div_ceil(side) * width.div_ceil(side);
        let is_small = channels.into_iter().min() < Some(MIN_WINOGRAD_CHANNELS) || depth * tiles(2) < MIN_VOLUME_TILES;
        // Products of a pair of channels and a slice.
        let [products_2, products_4] = [tiles(2) * 16, tiles(4) * 36];
        match kernel {
            3 if !winograd.is_allowed() || is_small || height.min(width) < 4 => Some(Self::Direct3),
            3 if depth * tiles(4) < MIN_VOLUME_TILES || products_4 * 4 > products_2 * 3 => Some(Self::Winograd2),
            3 => Some(Self::Winograd4),
            _ => Self::pick(kernel, channels, [height, width], winograd),
        }
    }

    /// Returns whether a kernel of this crate supports K x K.
    pub(crate) fn supports(kernel: usize) -> bool {
        matches!(kernel, 1 | 3)
    }

    /// Number of elements of the K x K kernel.
    pub(crate) fn taps(self) -> usize {
        if self == Self::Direct1 { 1 } else { 9 }
    }

    /// Number of packed weights for one pair of input and output channel.
    pub(crate) fn positions(self) -> usize {
        match self {
            Self::Direct1 => 1,
            Self::Direct3 => 9,
            Self::Winograd2 => 16,
            Self::Winograd4 => 36,
        }
    }
}
