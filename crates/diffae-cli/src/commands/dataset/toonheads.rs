//! Labeled cartoon faces, as many as wanted, drawn by the `DiceBear` styles.
//!
//! A face is the options that a seed draws. Forcing one option leaves the others as they were, which gives pairs of
//! pictures that differ in one attribute alone.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

mod face;
mod labels;
mod make;
mod style;

use std::path::PathBuf;

use crate::commands::dataset::output::Made;
use anyhow::Result;

/// Arguments of `diffae dataset toonheads`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Folder to write the images and labels into
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// Number of images
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    count: u32,
    /// Height and width of the images
    #[arg(long, value_name = "PIXELS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=2048))]
    size: u32,
    /// Random seed, any text; a different seed gives a held-out set
    #[arg(long, value_name = "TEXT", default_value = "0")]
    seed: String,
    /// Style of the drawings
    #[arg(long, value_enum, default_value_t = Drawing::ToonHead)]
    style: Drawing,
    /// Also draw pairs of images that differ in one of these attributes alone; `all` for every attribute
    #[arg(long, value_name = "ATTRIBUTE", value_delimiter = ',')]
    pairs: Vec<String>,
    /// Number of pairs per attribute
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pair_count: u32,
    /// Also draw the face as the seed has it, where it lacks the attribute in another way
    #[arg(long, requires = "pairs")]
    others: bool,
}

/// The styles whose attributes are known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Drawing {
    /// Faces in color by Johan Melin, CC BY 4.0
    ToonHead,
    /// Heads in ink by Pablo Stanley, CC0
    OpenPeeps,
    /// Faces of 16 pixels by DiceBear, CC0
    PixelArt,
}

/// Draws the faces.
pub(super) fn run(args: &Args) -> Result<Made> {
    make::run(args)
}
