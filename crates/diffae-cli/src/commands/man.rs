//! `diffae man --out DIR`

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{Cli, ManArgs};

/// Writes `diffae.1` and a page for each command.
pub(crate) fn run(args: &ManArgs) -> Result<()> {
    let cannot_write = || format!("cannot write {}", args.out.display());
    std::fs::create_dir_all(&args.out).with_context(cannot_write)?;
    clap_mangen::generate_to(Cli::command(), &args.out).with_context(cannot_write)
}
