//! `diffae dataset SOURCE --out DIR`: folders and LMDBs that training reads, from original sources.

#![expect(clippy::doc_markdown, reason = "doc comments are help texts, shown as they stand")]

mod align;
mod celeba;
mod celebahq;
mod fashion_mnist;
mod ffhq;
mod folder;
mod lsun;
mod output;
mod pictures;
#[cfg(feature = "toonheads")]
mod toonheads;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use crate::output::{say, say_json};
use crate::progress::Noun;
use output::Made;

/// Arguments of `diffae dataset`.
#[derive(Debug, clap::Args)]
pub(crate) struct DatasetArgs {
    #[command(subcommand)]
    source: Source,
    /// Print what was made as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Source {
    /// Photographs of faces, cropped as FFHQ crops them
    Align(align::Args),
    /// Fashion-MNIST, padded to 32 pixels, one folder per class; from the Debian package dataset-fashion-mnist
    FashionMnist {
        /// Folder of the four .gz files
        #[arg(long, value_name = "DIR", default_value = "/usr/share/datasets/fashion-mnist")]
        from: PathBuf,
        /// Folder to write the classes into
        #[arg(long, short, value_name = "DIR")]
        out: PathBuf,
    },
    /// Labeled cartoon faces, any number, drawn in a DiceBear style
    #[cfg(feature = "toonheads")]
    Toonheads(toonheads::Args),
    /// Labeled cartoon faces: this program was built without them (--features toonheads)
    #[cfg(not(feature = "toonheads"))]
    #[command(disable_help_flag = true)]
    Toonheads(NoToonheads),
    /// Flickr-Faces-HQ, from its folder or zip of 1024 pixels, or of thumbnails
    Ffhq(pictures::Common),
    /// Aligned CelebA with the paper's crop and its attributes, from its folder or zip
    Celeba(celeba::Args),
    /// CelebA-HQ with its attributes, from the folder or zip of CelebAMask-HQ
    Celebahq(pictures::Common),
    /// A category of LSUN, from its LMDB or a zip of it
    Lsun(lsun::Args),
    /// Any folder or zip of images; subfolders are kept and can serve as classes
    Folder(folder::Args),
}

/// Options of the renderer that is not there.
#[cfg(not(feature = "toonheads"))]
#[derive(Debug, clap::Args)]
struct NoToonheads {
    /// Options of the renderer
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _options: Vec<std::ffi::OsString>,
}

/// Creates a data set.
pub(crate) fn run(args: &DatasetArgs) -> Result<()> {
    let start = Instant::now();
    let Made { out, num_pictures, num_left_out } = made(&args.source)?;
    if args.json {
        let (pictures, left_out) = (num_pictures, num_left_out);
        return say_json(&json!({ "command": "dataset", "out": out, "pictures": pictures, "left_out": left_out }));
    }
    let Some(num_pictures) = num_pictures else {
        return say(&format!("{} is there already, and whole", out.display()));
    };
    let left_out = if num_left_out == 0 { String::new() } else { format!(", {num_left_out} left out") };
    let (count, secs) = (Noun::Pictures.counted(num_pictures), start.elapsed().as_secs_f64());
    say(&format!("{count} in {}{left_out} ({secs:.0} s)", out.display()))
}

fn made(source: &Source) -> Result<Made> {
    match source {
        Source::Align(args) => align::run(args),
        Source::FashionMnist { from, out } => fashion_mnist::run(from, out),
        #[cfg(feature = "toonheads")]
        Source::Toonheads(args) => toonheads::run(args),
        #[cfg(not(feature = "toonheads"))]
        Source::Toonheads(_) => anyhow::bail!(
            "this program cannot draw faces: build it with `--features toonheads`, or use `cargo xtask dataset toonheads` in \
             the repository"
        ),
        Source::Ffhq(args) => ffhq::run(args),
        Source::Celeba(args) => celeba::run(args),
        Source::Celebahq(args) => celebahq::run(args),
        Source::Lsun(args) => lsun::run(args),
        Source::Folder(args) => folder::run(args),
    }
}
