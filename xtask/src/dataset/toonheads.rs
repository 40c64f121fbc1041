//! Labelled cartoon faces, as many as wanted, drawn by the `DiceBear` styles.
//!
//! A face is the options that a seed draws. Forcing one option leaves the others as they were, which gives pairs of
//! pictures that differ in one attribute alone.

#[cfg(feature = "toonheads")]
mod face;
#[cfg(feature = "toonheads")]
mod labels;
#[cfg(feature = "toonheads")]
mod make;
#[cfg(feature = "toonheads")]
mod style;

use std::path::PathBuf;

use anyhow::Result;

/// Arguments of `cargo xtask dataset toonheads`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Where the pictures and labels go
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// How many pictures
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    count: u32,
    /// Height and width
    #[arg(long, value_name = "PIXELS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=2048))]
    size: u32,
    /// Text that decides which faces; others for a held-out set
    #[arg(long, value_name = "TEXT", default_value = "0")]
    seed: String,
    /// Whose drawing
    #[arg(long, value_enum, default_value_t = Drawing::ToonHead)]
    style: Drawing,
    /// Also pairs of pictures that differ in these attributes alone; `all` for each
    #[arg(long, value_name = "ATTRIBUTE", value_delimiter = ',')]
    pairs: Vec<String>,
    /// How many pairs for each attribute
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pair_count: u32,
    /// With each pair also the face as the seed draws it, where that lacks the attribute in another way
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
    /// Faces of 16 pixels by `DiceBear`, CC0
    PixelArt,
}

/// Writes pictures, labels, pairs and the licence.
#[cfg(feature = "toonheads")]
pub(super) fn run(args: &Args) -> Result<()> {
    make::run(args)
}

/// Starts this program again, built with the feature: the crates that draw are many, and no other command needs them.
#[cfg(not(feature = "toonheads"))]
pub(super) fn run(_: &Args) -> Result<()> {
    use anyhow::Context;

    use crate::repository;

    println!("building the renderer (once; minutes from nothing)");
    let mut command = std::process::Command::new(repository::cargo_program());
    command.args(["run", "--quiet", "--locked", "--package", "xtask", "--features", "toonheads", "--manifest-path"]);
    command.arg(repository::root()?.join("Cargo.toml")).arg("--").args(std::env::args_os().skip(1));
    let status = command.status().context("cannot start cargo")?;
    // It has said what is wrong.
    if status.success() { Ok(()) } else { std::process::exit(status.code().unwrap_or(1)) }
}
