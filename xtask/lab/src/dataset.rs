//! Converts original sources into the folders that training reads, as `cargo xtask dataset`.

mod align;
mod celeba;
mod celebahq;
mod fashion_mnist;
mod ffhq;
mod folder;
mod lsun;
mod pictures;

use std::path::PathBuf;

use anyhow::Result;
use xtask::toonheads;

/// Arguments of `cargo xtask dataset`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    source: Source,
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
    /// Labelled cartoon faces, as many as wanted, drawn by a `DiceBear` style
    Toonheads(toonheads::Args),
    /// Flickr-Faces-HQ, from its folder or zip of 1024 pixels, or of thumbnails
    Ffhq(pictures::Common),
    /// Aligned `CelebA` with the paper's crop and its attributes, from its folder or zip
    Celeba(celeba::Args),
    /// CelebA-HQ with its attributes, from the folder or zip of `CelebAMask-HQ`
    Celebahq(pictures::Common),
    /// A category of LSUN, from its LMDB or the zip of it
    Lsun(lsun::Args),
    /// Any folder or zip of pictures; folders in it stay, so that they can be classes
    Folder(folder::Args),
}

/// Creates a data set.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.source {
        Source::Align(args) => align::run(args),
        Source::FashionMnist { from, out } => fashion_mnist::run(from, out),
        Source::Toonheads(args) => toonheads::run(args),
        Source::Ffhq(args) => ffhq::run(args),
        Source::Celeba(args) => celeba::run(args),
        Source::Celebahq(args) => celebahq::run(args),
        Source::Lsun(args) => lsun::run(args),
        Source::Folder(args) => folder::run(args),
    }
}
