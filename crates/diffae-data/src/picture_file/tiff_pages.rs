//! Pages of a TIFF, and the choice of the one that is the picture.

use std::collections::BTreeSet;

use serde::Deserialize;
use tiff::decoder::ifd::Value;
use tiff::tags::{IfdPointer, Tag};

use super::Problem;
use super::tiff_file::{TiffDecoder, in_words};

/// Tag of the number of slices of a volume that is stored as one page.
const IMAGE_DEPTH: Tag = Tag::Unknown(32_997);
/// Tag that only Adobe's raw files have.
const DNG_VERSION: Tag = Tag::Unknown(50_706);
/// Bits of `NewSubfileType`: a reduced copy, a mask, a map of depths.
const ASIDE: u32 = 0b1101;
/// `SubfileType` of a reduced copy, in old files.
const REDUCED: u32 = 2;
/// `PhotometricInterpretation` of colors from a palette, and of a mask.
const PALETTE: u32 = 3;
const MASK: u32 = 4;

/// A page of a TIFF.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) number: usize,
    /// Offset of the page's directory.
    pub(super) offset: u64,
    /// Reds, greens and blues, if the samples are indices into a palette.
    pub(super) palette: Option<Vec<u16>>,
    /// Kinds of the samples beside the colors: 0 unspecified, 1 and 2 alpha.
    pub(super) extra_samples: Vec<u16>,
    is_aside: bool,
    /// Slices of a volume behind one directory.
    depth: usize,
    /// Number of pictures in the file, according to its description.
    described: usize,
}

/// Finds the only page that is neither a mask nor a reduced copy of another.
pub(super) fn find_picture(mut decoder: TiffDecoder<'_>) -> Result<Page, Problem> {
    let mut next = decoder.ifd_pointer();
    let mut seen = BTreeSet::new();
    let mut pages = vec![];
    let mut num_asides = 0;
    while let Some(pointer) = next {
        if !seen.insert(pointer.0) {
            return Err(Problem::Damaged("its list of pages is a circle".to_owned()));
        }
        let (page, after) = read_page(&mut decoder, pointer, seen.len() - 1)?;
        if page.is_aside {
            num_asides += 1;
        } else {
            pages.push(page);
        }
        next = after;
    }
    let (slices, described) =
        pages.iter().fold((0, 0), |(slices, most), page: &Page| (slices + page.depth, most.max(page.described)));
    match (pages.pop(), slices.max(described)) {
        (Some(page), 1) => Ok(page),
        (Some(_), count) => Err(Problem::Unread(format!(
            "it holds {count} pages, and a picture is one; save each page as a file of its own, or color channels as one \
             RGB page"
        ))),
        (None, _) => Err(Problem::Unread(format!(
            "its {num_asides} pages are all marked as reduced copies or masks, as in raw files of cameras; save it as a \
             TIFF of one page"
        ))),
    }
}

fn read_page(
    decoder: &mut TiffDecoder<'_>,
    pointer: IfdPointer,
    number: usize,
) -> Result<(Page, Option<IfdPointer>), Problem> {
    let directory = decoder.read_directory(pointer).map_err(in_words)?;
    let mut tags = decoder.read_directory_tags(&directory);
    if tags.find_tag(DNG_VERSION).map_err(in_words)?.is_some() {
        return Err(Problem::Unread(
            "it is a camera's raw file (DNG), which is not read; develop it to JPEG, PNG or TIFF".to_owned(),
        ));
    }
    let mut value = |tag| tags.find_tag_unsigned::<u32>(tag).map_err(in_words).map(Option::unwrap_or_default);
    let photometric = value(Tag::PhotometricInterpretation)?;
    let is_aside =
        value(Tag::NewSubfileType)? & ASIDE > 0 || value(Tag::SubfileType)? == REDUCED || photometric == MASK;
    let depth = value(IMAGE_DEPTH)?.max(1) as usize;
    let samples = value(Tag::SamplesPerPixel)?.max(1);
    let page_samples = [value(Tag::ImageWidth)?, value(Tag::ImageLength)?, samples].map(u64::from).iter().product();
    let description = tags.find_tag(Tag::ImageDescription).ok().flatten().and_then(|text| text.into_string().ok());
    let palette =
        (photometric == PALETTE).then(|| tags.find_tag(Tag::ColorMap)).transpose().map_err(in_words)?.flatten();
    let page = Page {
        number,
        offset: pointer.0,
        palette: palette.map(Value::into_u16_vec).transpose().map_err(in_words)?,
        extra_samples: tags.find_tag_unsigned_vec(Tag::ExtraSamples).map_err(in_words)?.unwrap_or_default(),
        is_aside,
        depth,
        described: description.map_or(1, |text| described_pictures(&text, page_samples)),
    };
    Ok((page, directory.next()))
}

/// Returns the number of consecutive pictures, according to the description that `ImageJ` and `tifffile` write for
/// stacks with one directory.
fn described_pictures(description: &str, page_samples: u64) -> usize {
    /// The JSON description that tifffile writes.
    #[derive(Deserialize)]
    struct Shaped {
        shape: Vec<u64>,
        #[serde(default)]
        truncated: bool,
    }
    if let Ok(Shaped { shape, truncated: true }) = serde_json::from_str(description) {
        let all: u64 = shape.iter().product();
        return usize::try_from(all.checked_div(page_samples).unwrap_or(1)).unwrap_or(1).max(1);
    }
    if !description.starts_with("ImageJ=") {
        return 1;
    }
    let images = description.lines().find_map(|line| line.strip_prefix("images=")?.trim().parse().ok());
    images.unwrap_or(1).max(1)
}

/// Fails if the first page has several slices, which the decoder does not report.
pub(super) fn refuse_volumes(bytes: &[u8]) -> Result<(), Problem> {
    let file = Directories::of(bytes);
    let depth = file.as_ref().and_then(|file| {
        let entry = file.entry(file.number(file.first_place, file.offset_bytes)?, IMAGE_DEPTH)?;
        file.number(entry + 2, 2).and_then(|kind| file.number(entry + file.value_place, if kind == 3 { 2 } else { 4 }))
    });
    match depth {
        None | Some(0 | 1) => Ok(()),
        Some(depth) => Err(Problem::Unread(format!(
            "it holds a volume of {depth} slices, and a picture is one; save each slice as a file of its own"
        ))),
    }
}

/// Copies the file with the page's samples declared gray instead of palette indices; `None` if it has no such entry.
pub(super) fn with_gray_indices(bytes: &[u8], directory: u64) -> Option<Vec<u8>> {
    let file = Directories::of(bytes)?;
    let entry = file.entry(directory, Tag::PhotometricInterpretation)?;
    let mut patched = bytes.to_vec();
    let value: u16 = 1;
    let field = patched.get_mut(entry + file.value_place..entry + file.value_place + 2)?;
    field.copy_from_slice(&if file.is_little { value.to_le_bytes() } else { value.to_be_bytes() });
    Some(patched)
}

/// Directories of a TIFF as bytes.
struct Directories<'a> {
    bytes: &'a [u8],
    is_little: bool,
    /// Position of the offset of the first directory, and the length of offsets.
    first_place: usize,
    offset_bytes: usize,
    /// Sizes of the count of entries and of an entry, and the position of the value in it.
    count_bytes: usize,
    entry_bytes: usize,
    value_place: usize,
}

impl<'a> Directories<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let is_little = bytes.first()? == &b'I';
        let classic =
            Self { bytes, is_little, first_place: 4, offset_bytes: 4, count_bytes: 2, entry_bytes: 12, value_place: 8 };
        let is_big = classic.number(2, 2)? == 43;
        let big = |classic| Self {
            first_place: 8,
            offset_bytes: 8,
            count_bytes: 8,
            entry_bytes: 20,
            value_place: 12,
            ..classic
        };
        Some(if is_big { big(classic) } else { classic })
    }

    fn number(&self, at: usize, length: usize) -> Option<u64> {
        let field = self.bytes.get(at..at.checked_add(length)?)?;
        let add = |all: u64, &byte: &u8| all << 8 | u64::from(byte);
        Some(if self.is_little { field.iter().rev().fold(0, add) } else { field.iter().fold(0, add) })
    }

    /// Returns the position of a directory's entry.
    fn entry(&self, directory: u64, tag: Tag) -> Option<usize> {
        let start = usize::try_from(directory).ok()?.checked_add(self.count_bytes)?;
        let count = self.number(start - self.count_bytes, self.count_bytes)?.min(u64::from(u16::MAX));
        let places = (0..usize::try_from(count).ok()?).map(|idx| start.saturating_add(idx * self.entry_bytes));
        places.into_iter().find(|&place| self.number(place, 2) == Some(u64::from(tag.to_u16())))
    }
}
