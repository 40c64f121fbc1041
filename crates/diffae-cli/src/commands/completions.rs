//! `diffae completions SHELL`

use std::io::Write;

use anyhow::Result;

use crate::args::{CompletionsArgs, command};

/// Prints a completion script.
pub(crate) fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    // The generator panics where it cannot write, as into a pipe that is closed.
    clap_complete::generate(args.shell, &mut command(), "diffae", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
