//! Sizes of pictures and of volumes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Height and width of square pictures, or depth, height and width of volumes: `64` or `[32, 64, 64]` in a config.
///
/// Networks of volumes convolve along all three axes, and halve and double all three from level to level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged, expecting = "a whole number, or [depth, height, width] of volumes")]
pub enum ImageSize {
    /// Height and width of pictures.
    Square(usize),
    /// Depth D, height H and width W of volumes.
    Volume([usize; 3]),
}

impl ImageSize {
    /// Returns the number of axes that convolutions move along: 2, or 3 for volumes.
    #[must_use]
    pub fn axes(self) -> usize {
        match self {
            Self::Square(_) => 2,
            Self::Volume(_) => 3,
        }
    }

    /// Returns whether these are volumes.
    #[must_use]
    pub fn is_volume(self) -> bool {
        self.axes() == 3
    }

    /// Returns the sides: height and width, or depth, height and width.
    #[must_use]
    pub fn sides(self) -> Vec<usize> {
        match self {
            Self::Square(side) => vec![side; 2],
            Self::Volume(sides) => sides.to_vec(),
        }
    }

    /// Returns the width, by which resolutions are named.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            Self::Square(side) => side,
            Self::Volume([.., width]) => width,
        }
    }

    /// Returns the height.
    #[must_use]
    pub fn height(self) -> usize {
        match self {
            Self::Square(side) => side,
            Self::Volume([_, height, _]) => height,
        }
    }

    /// Returns the number of slices, D; 1 for pictures.
    #[must_use]
    pub fn depth(self) -> usize {
        match self {
            Self::Square(_) => 1,
            Self::Volume([depth, ..]) => depth,
        }
    }

    /// Returns the shortest side.
    #[must_use]
    pub fn shortest(self) -> usize {
        self.sides().into_iter().min().unwrap_or(0)
    }

    /// Returns the longest side.
    #[must_use]
    pub fn longest(self) -> usize {
        self.sides().into_iter().max().unwrap_or(0)
    }

    /// Returns the number of pixels or voxels; the largest number if it has none.
    #[must_use]
    pub fn num_pixels(self) -> usize {
        self.sides().into_iter().fold(1, usize::saturating_mul)
    }

    /// Returns the side of square pictures; volumes have none.
    #[must_use]
    pub fn square(self) -> Option<usize> {
        match self {
            Self::Square(side) => Some(side),
            Self::Volume(_) => None,
        }
    }

    /// Returns whether every side is a multiple of `factor`.
    #[must_use]
    pub fn is_multiple_of(self, factor: usize) -> bool {
        self.sides().into_iter().all(|side| side.is_multiple_of(factor))
    }

    /// Returns the shape of a picture or volume of some channels: `[C, H, W]` or `[C, D, H, W]`.
    #[must_use]
    pub fn with_channels(self, channels: usize) -> ImageShape {
        ImageShape { channels, size: self }
    }
}

impl From<usize> for ImageSize {
    fn from(side: usize) -> Self {
        Self::Square(side)
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Square(side) => side.fmt(f),
            Self::Volume(sides) => write!(f, "{sides:?}"),
        }
    }
}

/// Shape of a picture, `[C, H, W]`, or of a volume, `[C, D, H, W]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageShape {
    /// Number of channels, C.
    pub channels: usize,
    /// Sides.
    pub size: ImageSize,
}

impl ImageShape {
    /// Returns the dimensions, channels first.
    #[must_use]
    pub fn dims(self) -> Vec<usize> {
        std::iter::once(self.channels).chain(self.size.sides()).collect()
    }

    /// Returns the dimensions of a batch, `[N, C, ..]`.
    #[must_use]
    pub fn of_batch(self, count: usize) -> Vec<usize> {
        std::iter::once(count).chain(self.dims()).collect()
    }

    /// Returns the number of values.
    #[must_use]
    pub fn num_values(self) -> usize {
        self.size.num_pixels().saturating_mul(self.channels)
    }

    /// Returns whether a picture of this shape can be shown as it is: it is gray or in color, and no volume.
    #[must_use]
    pub fn is_visible(self) -> bool {
        matches!(self.channels, 1 | 3) && !self.size.is_volume()
    }
}

impl fmt::Display for ImageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_a_number_or_three() {
        let read = |text: &str| serde_json::from_str::<ImageSize>(text);
        assert_eq!(read("64").unwrap(), ImageSize::Square(64));
        assert_eq!(read("[16, 32, 64]").unwrap(), ImageSize::Volume([16, 32, 64]));
        assert!(read("[32, 64]").is_err() && read("-1").is_err() && read("\"64\"").is_err());
        let volume = ImageSize::Volume([16, 32, 64]);
        assert_eq!(serde_json::to_string(&volume).unwrap(), "[16,32,64]");
        assert_eq!((volume.depth(), volume.height(), volume.width(), volume.shortest()), (16, 32, 64, 16));
        assert_eq!(volume.with_channels(2).of_batch(5), [5, 2, 16, 32, 64]);
        assert!(volume.is_multiple_of(8) && !volume.is_multiple_of(32));
        assert_eq!(ImageSize::Volume([usize::MAX; 3]).num_pixels(), usize::MAX);
    }
}
