//! First sentences of documentation, which rustdoc, editors and `--help` show alone.

use super::problem::Problem;
use super::tree::{RustFile, Tree};

/// Beginnings of sentences that lean on what stands around them: relative clauses, and pronouns.
const INCOMPLETE: [&str; 24] = [
    "What ",
    "Where ",
    "How ",
    "Which ",
    "Who ",
    "Whose ",
    "When ",
    "Why ",
    "That ",
    "This ",
    "These ",
    "Those ",
    "It ",
    "They ",
    "Its ",
    "Their ",
    "The same",
    "The former",
    "The latter",
    "Likewise",
    "Ditto",
    "Here ",
    "As [",
    "As `",
];
/// Marks of documentation comments: of the item below, and of the item around.
const MARKS: [&str; 2] = ["///", "//!"];

/// All rules of this file.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for RustFile { path, lines, .. } in tree.rust_files() {
        let mut previous = None;
        for (line_idx, line) in lines.iter().enumerate() {
            let comment = line.comment.trim();
            let mark = MARKS.into_iter().find(|mark| comment.starts_with(mark) && line.is_comment());
            let summary = mark.filter(|_| mark != previous).and_then(|mark| comment.strip_prefix(mark));
            previous = mark;
            let Some(summary) = summary.map(str::trim_start) else { continue };
            if let Some(beginning) = INCOMPLETE.into_iter().find(|beginning| summary.starts_with(beginning)) {
                let message =
                    format!("a summary that begins with `{}`: say what the item is or does", beginning.trim_end());
                problems.push(Problem::at(path, line_idx + 1, message));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::problem::printed;

    fn problems(text: &str) -> Vec<String> {
        printed(&check(&Tree::made_up(&[("crates/a/src/lib.rs", text)])))
    }

    #[test]
    fn summaries_stand_alone() {
        assert_eq!(
            problems("//! Samplers.\n\n/// Returns the mean.\n///\n/// What is not a summary.\nfn f() {}\n"),
            [""; 0]
        );
        assert_eq!(problems("/// Whatever it takes.\nfn f() {}\n// What a comment.\nlet a = \"/// What\";\n"), [""; 0]);
        for summary in [
            "What it holds.",
            "How many.",
            "That of a tensor.",
            "Its shape.",
            "The same.",
            "As `scale`.",
            "When it ends.",
        ] {
            assert_eq!(problems(&format!("/// {summary}\nfn f() {{}}\n")).len(), 1, "{summary}");
            assert_eq!(problems(&format!("//! {summary}\n")).len(), 1, "{summary}");
            assert_eq!(problems(&format!("struct A {{\n    /// {summary}\n    a: u8,\n}}\n")).len(), 1, "{summary}");
        }
    }
}
