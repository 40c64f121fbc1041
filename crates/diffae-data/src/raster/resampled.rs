//! Numbers of pictures and volumes at another size.

use diffae_nets::ImageSize;

use super::Raster;
use crate::resample::{self, BoxedError};

/// Brings slices to height and width as pictures are, the shorter side resized with an antialiased bilinear filter and the longer one
/// cropped at the center, and the number of slices to the depth by the same filter, without cropping.
///
/// # Errors
/// If the sizes are too different.
pub(super) fn fit(raster: Raster, size: ImageSize) -> Result<Raster, BoxedError> {
    let (height, width, depth) = (size.height(), size.width(), size.depth());
    let [old_depth, old_height, old_width] = raster.sides;
    // The smaller of the two results in between.
    let between =
        [old_depth.saturating_mul(height).saturating_mul(width), depth.saturating_mul(old_height * old_width)];
    if between[0].min(between[1]).saturating_mul(raster.channels) > super::MAX_VALUES {
        return Err(format!("{old_depth} slices of {old_width}x{old_height} pixels are too different in size").into());
    }
    if between[0] <= between[1] {
        along_depth(within_slices(raster, height, width)?, depth)
    } else {
        within_slices(along_depth(raster, depth)?, height, width)
    }
}

/// Resizes and crops every slice.
fn within_slices(raster: Raster, height: usize, width: usize) -> Result<Raster, BoxedError> {
    let [depth, old_height, old_width] = raster.sides;
    if [old_height, old_width] == [height, width] {
        return Ok(raster);
    }
    // The side that needs the larger factor fits, and the other is rounded down, as for pictures.
    let scaled = |old: usize, to: usize, from: usize| old.saturating_mul(to).checked_div(from).unwrap_or(0);
    let (new_height, new_width) = if height.saturating_mul(old_width) >= width.saturating_mul(old_height) {
        (height, scaled(old_width, height, old_height))
    } else {
        (scaled(old_height, width, old_width), width)
    };
    if new_height.saturating_mul(new_width) > super::MAX_VALUES {
        return Err(format!("{old_width}x{old_height} pixels are too narrow to be resized to {width}x{height}").into());
    }
    let (top, left) = (half_to_even(new_height - height), half_to_even(new_width - width));
    let mut values = Vec::with_capacity(raster.channels * depth * height * width);
    for slice in raster.values.chunks(old_height * old_width) {
        let resized = resample::resize_f32(slice, [old_height, old_width], [new_height, new_width])?;
        for row in resized.chunks(new_width).skip(top).take(height) {
            values.extend_from_slice(&row[left..left + width]);
        }
    }
    let factors = [1., old_height as f64 / new_height as f64, old_width as f64 / new_width as f64];
    let geometry = raster.geometry.map(|geometry| geometry.scaled(factors).moved([0., top as f64, left as f64]));
    Ok(Raster { values, sides: [depth, height, width], geometry, ..raster })
}

/// Resizes along the depth.
fn along_depth(raster: Raster, depth: usize) -> Result<Raster, BoxedError> {
    let [old_depth, height, width] = raster.sides;
    if old_depth == depth {
        return Ok(raster);
    }
    let mut values = Vec::with_capacity(raster.channels * depth * height * width);
    for channel in raster.values.chunks(old_depth * height * width) {
        values.extend(resample::resize_f32(channel, [old_depth, height * width], [depth, height * width])?);
    }
    let geometry = raster.geometry.map(|geometry| geometry.scaled([old_depth as f64 / depth as f64, 1., 1.]));
    Ok(Raster { values, sides: [depth, height, width], geometry, ..raster })
}

/// Computes `round(n / 2)`, ties to even: the origin of the center crop of pictures.
fn half_to_even(n: usize) -> usize {
    let half = n >> 1;
    if n % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}
