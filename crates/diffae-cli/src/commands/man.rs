//! `diffae man --out DIR`

use anyhow::{Context, Result};

use crate::args::{ManArgs, command};
use crate::output::say;

/// Writes `diffae.1` and a page for each command.
pub(crate) fn run(args: &ManArgs) -> Result<()> {
    let cannot_write = || format!("cannot write {}", args.out.display());
    std::fs::create_dir_all(&args.out).with_context(cannot_write)?;
    clap_mangen::generate_to(command(), &args.out).with_context(cannot_write)?;
    say(&format!(
        "wrote the man pages to {}; read them with `man {}`",
        args.out.display(),
        args.out.join("diffae.1").display()
    ))
}
