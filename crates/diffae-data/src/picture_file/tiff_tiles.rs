//! Tiled TIFFs with planar channels, for which the decoder panics: it takes the last tiles of all channels but the
//! first for whole ones.

use tiff::decoder::{ChunkType, DecodingResult, DecodingSampleType};
use tiff::tags::Tag;

use super::Problem;
use super::tiff_file::{TiffDecoder, in_words};

/// `PlanarConfiguration` of channels that follow each other.
const PLANAR: u16 = 2;

/// Returns whether a page is tiled with planar channels.
pub(super) fn is_planar_tiled(decoder: &mut TiffDecoder<'_>) -> Result<bool, Problem> {
    let planar = decoder.find_tag_unsigned::<u16>(Tag::PlanarConfiguration).map_err(in_words)?;
    Ok(planar == Some(PLANAR) && decoder.get_chunk_type() == ChunkType::Tile)
}

/// Reads all channels, one after the other.
pub(super) fn read_planar_tiles(decoder: &mut TiffDecoder<'_>, planes: usize) -> Result<DecodingResult, Problem> {
    let (width, height) = decoder.dimensions().map_err(in_words)?;
    let (tile_width, tile_height) = decoder.chunk_dimensions();
    let sample_type = decoder.image_buffer_layout().map_err(in_words)?.sample_type;
    let sample_bytes = usize::from(decoder.colortype().map_err(in_words)?.bit_depth() >> 3);
    let (across, down) = (width.div_ceil(tile_width), height.div_ceil(tile_height));
    let row_bytes = width as usize * sample_bytes;
    let mut bytes = vec![0; planes * height as usize * row_bytes];
    for (plane, pixels) in (0..).zip(bytes.chunks_exact_mut((height as usize * row_bytes).max(1))) {
        for tile in 0..across * down {
            let chunk = plane * across * down + tile;
            let tile_bytes = decoder.chunk_data_dimensions(chunk).0 as usize * sample_bytes;
            let mut result = decoder.read_chunk(chunk).map_err(in_words)?;
            let (left, top) = (tile % across * tile_width, tile.checked_div(across).unwrap_or(0) * tile_height);
            let first_row = top as usize * row_bytes;
            let rows = pixels.get_mut(first_row..).unwrap_or_default().chunks_exact_mut(row_bytes.max(1));
            for (row, source) in rows.zip(result.as_buffer(0).as_bytes().chunks_exact(tile_bytes.max(1))) {
                let place = left as usize * sample_bytes;
                if let Some(target) = row.get_mut(place..place + tile_bytes) {
                    target.copy_from_slice(source);
                }
            }
        }
    }
    of_bytes(sample_type, &bytes)
}

/// Converts bytes in native order to samples.
fn of_bytes(sample_type: Option<DecodingSampleType>, bytes: &[u8]) -> Result<DecodingResult, Problem> {
    fn samples<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|&bytes| read(bytes)).collect()
    }
    Ok(match sample_type {
        Some(DecodingSampleType::U8) => DecodingResult::U8(bytes.to_vec()),
        Some(DecodingSampleType::U16) => DecodingResult::U16(samples(bytes, u16::from_ne_bytes)),
        Some(DecodingSampleType::F16) => DecodingResult::F16(samples(bytes, half::f16::from_ne_bytes)),
        Some(DecodingSampleType::F32) => DecodingResult::F32(samples(bytes, f32::from_ne_bytes)),
        Some(DecodingSampleType::F64) => DecodingResult::F64(samples(bytes, f64::from_ne_bytes)),
        _ => return Err(Problem::Unread("its samples are not read; save it in 8 or 16 bits".to_owned())),
    })
}
