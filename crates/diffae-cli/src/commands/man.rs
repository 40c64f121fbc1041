//! `diffae man --out DIR`

use anyhow::{Context, Result};
use serde_json::json;

use super::say_either;
use crate::args::{ManArgs, command};

/// Writes `diffae.1` and a page for each command.
pub(crate) fn run(args: &ManArgs) -> Result<()> {
    let cannot_write = || format!("cannot write {}", args.out.display());
    std::fs::create_dir_all(&args.out).with_context(cannot_write)?;
    clap_mangen::generate_to(command(), &args.out).with_context(cannot_write)?;
    let first = args.out.join("diffae.1");
    let sentence = format!("wrote the man pages to {}; read them with `man {}`", args.out.display(), first.display());
    say_either(&args.json, &json!({ "command": "man", "out": args.out, "first": first }), &sentence)
}
