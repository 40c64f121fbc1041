//! How a convolution is computed, and when which way is the fastest.

use crate::dispatch::is_exact;

/// A way to compute a convolution.
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

/// Fewest channels, in and out, for which the transforms of Winograd's algorithm pay.
const LEAST_CHANNELS: usize = 16;

impl Algorithm {
    /// The fastest for 3x3 kernels on pictures of one size.
    ///
    /// Winograd's transformed weights are 16/9 (F2) or 4 (F4) times as large. On small pictures reading them is the
    /// cost, so F2 is taken below 32 pixels, and none below 8.
    pub(crate) fn for_3x3((out_channels, in_channels): (usize, usize), (height, width): (usize, usize)) -> Self {
        let side = height.min(width);
        if is_exact() || in_channels.min(out_channels) < LEAST_CHANNELS || side < 8 {
            Self::Direct3
        } else if side < 32 {
            Self::Winograd2
        } else {
            Self::Winograd4
        }
    }

    /// Some algorithm, if there is one for K x K kernels.
    pub(crate) fn for_kernel(kernel: usize) -> Option<Self> {
        match kernel {
            1 => Some(Self::Direct1),
            3 => Some(Self::Direct3),
            _ => None,
        }
    }

    /// Elements of the kernel.
    pub(crate) fn taps(self) -> usize {
        if self == Self::Direct1 { 1 } else { 9 }
    }

    /// Weights stored for a pair of channels.
    pub(crate) fn positions(self) -> usize {
        match self {
            Self::Direct1 => 1,
            Self::Direct3 => 9,
            Self::Winograd2 => 16,
            Self::Winograd4 => 36,
        }
    }
}
