//! The test command that the README documents.

use anyhow::{Context, Result, bail, ensure};

/// The line before the code block that holds the command.
const MARKER: &str = "<!-- ci:test -->";

/// Returns the content of the code block after the marker.
///
/// # Errors
/// If there is not exactly one marker, or no closed, non-empty code block right after it.
pub(super) fn test_command(readme: &str) -> Result<String> {
    let (_, after_marker) = readme.split_once(MARKER).with_context(|| {
        format!("README.md has no line `{MARKER}` before the code block that shows how to run the tests")
    })?;
    ensure!(!after_marker.contains(MARKER), "README.md has more than one line `{MARKER}`");

    let mut lines = after_marker.lines().map(str::trim).skip_while(|line| line.is_empty());
    ensure!(lines.next().is_some_and(|line| line.starts_with("```")), "README.md: no code block follows `{MARKER}`");
    let mut command = Vec::new();
    for line in lines {
        if line == "```" {
            let command = command.join("\n");
            ensure!(!command.trim().is_empty(), "README.md: the code block after `{MARKER}` is empty");
            return Ok(command);
        }
        command.push(line);
    }
    bail!("README.md: the code block after `{MARKER}` is not closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_after_the_marker_is_the_command() {
        let readme =
            "```sh\nother\n```\n\n<!-- ci:test -->\n\n```sh\ncargo test\ncargo bench\n```\n\n```sh\nlast\n```\n";
        assert_eq!(test_command(readme).unwrap(), "cargo test\ncargo bench");
    }

    #[test]
    fn anything_else_is_an_error() {
        for (readme, message) in [
            ("```\ncargo test\n```\n", "has no line"),
            ("<!-- ci:test -->\n<!-- ci:test -->\n```\ncargo test\n```\n", "more than one"),
            ("<!-- ci:test -->\nRun `cargo test`.\n```\ncargo test\n```\n", "no code block"),
            ("<!-- ci:test -->\n", "no code block"),
            ("<!-- ci:test -->\n```\n\n```\n", "is empty"),
            ("<!-- ci:test -->\n```\ncargo test\n", "not closed"),
        ] {
            let error = test_command(readme).unwrap_err().to_string();
            assert!(error.contains(message), "{readme:?} gives {error:?}");
        }
    }
}
