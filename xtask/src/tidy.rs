//! `cargo xtask tidy`: the rules of docs/style.md that no compiler checks.
//!
//! A rule is a function from a [`Tree`] to [`Problem`]s; each group of rules is a file below `tidy/`. Rules look at
//! what git tracks and at new files it does not ignore, so a problem shows before the commit.

mod code_map;
mod dependency_direction;
mod docs;
mod layout;
mod manifest;
mod markdown;
mod problem;
mod rust_files;
mod rust_source;
mod summaries;
mod tree;
mod unsafe_code;
mod words;

use std::path::Path;

use anyhow::{Result, ensure};

use self::dependency_direction::Metadata;
use self::problem::Problem;
use self::tree::Tree;
use xtask::repository;

/// Checks this repository and prints what it finds.
pub(crate) fn run() -> Result<()> {
    check(&repository::root()?)
}

/// Checks the repository at `root`: one line `path:line: message` for each problem, sorted; warnings first.
///
/// # Errors
/// If there is a problem, or the repository cannot be read.
pub(crate) fn check(root: &Path) -> Result<()> {
    let tree = Tree::read(root)?;
    let metadata = Metadata::of_workspace(root)?;
    for warning in rust_files::warnings(&tree) {
        println!("warning: {warning}");
    }
    let problems = problems(&tree, &metadata);
    for problem in &problems {
        println!("{problem}");
    }
    let num_files = tree.files().len();
    ensure!(problems.is_empty(), "tidy: {num_files} files, {} problems", problems.len());
    println!("tidy: {num_files} files, no problems");
    Ok(())
}

fn problems(tree: &Tree, metadata: &Metadata) -> Vec<Problem> {
    let mut problems = [
        layout::check(tree),
        rust_files::check(tree),
        unsafe_code::check(tree),
        manifest::check(tree),
        dependency_direction::check(tree, metadata),
        code_map::check(tree),
        docs::check(tree),
        summaries::check(tree),
        words::check(tree),
    ]
    .concat();
    problems.sort();
    problems
}
