//! The code map of the architecture page names every source file of the library crates and of the program.

use std::collections::BTreeSet;

use super::problem::Problem;
use super::tree::Tree;

/// Page with the code map.
const PAGE: &str = "docs/architecture.md";

/// All rules of this file.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let Some(page) = tree.file(PAGE).and_then(|file| file.text.as_deref()) else { return vec![] };
    let sources = tree.texts_with_extension("rs").filter_map(|(path, _)| {
        let (krate, source) = path.strip_prefix("crates/")?.split_once("/src/")?;
        Some((path, krate, source))
    });
    let is_missing = |&(_, krate, source): &(&str, &str, &str)| {
        let is_tests = source.rsplit('/').next() == Some("tests.rs");
        !is_tests && !is_named(source, &names_of(page, krate))
    };
    let problem =
        |(path, ..): (&str, &str, &str)| Problem::of_file(path, format!("the code map of {PAGE} does not name it"));
    sources.filter(is_missing).map(problem).collect()
}

/// Returns the code spans of the section of a crate.
fn names_of<'a>(page: &'a str, krate: &str) -> BTreeSet<&'a str> {
    let heading = format!("### crates/{krate}:");
    let section = page.lines().skip_while(|line| !line.starts_with(&heading)).skip(1);
    let section = section.take_while(|line| !line.starts_with('#'));
    section.flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// Returns whether a file is named: with its path or without, by its folder, or by a pattern with one `*`.
fn is_named(source: &str, names: &BTreeSet<&str>) -> bool {
    let file = source.rsplit('/').next().unwrap_or(source);
    let folders = source.match_indices('/').map(|(at, _)| &source[..=at]);
    let mut candidates = folders.chain([source, file]);
    let matches = |pattern: &&str| {
        let Some((start, end)) = pattern.split_once('*') else { return false };
        source.starts_with(start) && source.ends_with(end)
    };
    candidates.any(|candidate| names.contains(candidate)) || names.iter().any(matches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::problem::printed;

    #[test]
    fn every_file_is_on_the_map() {
        let page = "### crates/a: one\n| `lib.rs`, `x/` | x |\n| `y/b.rs`, `c.rs`, `z/p*.rs` | `w.rs` |\n### crates/b: two\n| `d.rs` |\n";
        let of = |path: &str| printed(&check(&Tree::made_up(&[(PAGE, page), (path, "")]))).len();
        for named in ["lib.rs", "x/any.rs", "x/deep/any.rs", "y/b.rs", "y/c.rs", "z/pickle.rs", "w.rs", "v/tests.rs"] {
            assert_eq!(of(&format!("crates/a/src/{named}")), 0, "{named}");
        }
        for missing in ["d.rs", "y/d.rs", "z/q.rs"] {
            assert_eq!(of(&format!("crates/a/src/{missing}")), 1, "{missing}");
        }
        assert_eq!((of("crates/b/src/d.rs"), of("crates/b/src/lib.rs"), of("crates/b/tests/e.rs")), (0, 1, 0));
    }
}
