//! Rules for the documentation: links lead somewhere, and a reader of the README finds every page.

use std::collections::BTreeSet;

use super::markdown::{self, Link};
use super::problem::Problem;
use super::tree::Tree;

/// First page of a reader.
const README: &str = "README.md";
/// Folder whose pages must be reachable from the README.
const DOCS: &str = "docs/";
/// The folder of pages that record a choice.
const DECISIONS: &str = "docs/decisions/";

/// Checks all rules of this file.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems: Vec<_> =
        tree.texts_with_extension("md").flat_map(|(path, text)| links(tree, path, text)).collect();
    problems.extend(unreachable_pages(tree));
    let decisions = tree.texts_with_extension("md").filter(|(path, _)| path.starts_with(DECISIONS));
    let untitled = decisions.filter(|(_, text)| !text.starts_with("# "));
    problems.extend(untitled.map(|(path, _)| Problem::of_file(path, "a decision starts with its title, `# ...`")));
    problems
}

/// Target of a link.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// Another site, or a mail program.
    Elsewhere,
    /// A path of the repository, and possibly an anchor in that file.
    Inside { path: String, anchor: Option<String> },
    /// A path that leaves the repository, or one from the root of the site.
    Outside,
}

fn links(tree: &Tree, path: &str, text: &str) -> Vec<Problem> {
    let problem = |Link { line, target }: Link| {
        let message = match resolve(path, &target) {
            Target::Outside => format!("link {target} leaves the repository"),
            Target::Inside { path, .. } if !tree.contains(&path) => format!("link {target} is broken: no file {path}"),
            Target::Inside { path, anchor: Some(anchor) } if is_missing(tree, &path, &anchor) => {
                format!("link {target} is broken: {path} has no heading #{anchor}")
            }
            Target::Elsewhere | Target::Inside { .. } => return None,
        };
        Some(Problem::at(path, line, message))
    };
    markdown::links(text).into_iter().filter_map(problem).collect()
}

/// Returns whether a Markdown file lacks an anchor; in other files an anchor is a line, which cannot be checked.
fn is_missing(tree: &Tree, path: &str, anchor: &str) -> bool {
    page(tree, path).is_some_and(|text| !markdown::anchors(text).contains(anchor))
}

/// Returns the text of a Markdown file.
fn page<'a>(tree: &'a Tree, path: &str) -> Option<&'a str> {
    tree.file(path).filter(|file| file.extension() == "md")?.text.as_deref()
}

/// Reports the pages below docs/ that one cannot get to from the README by following links.
fn unreachable_pages(tree: &Tree) -> Vec<Problem> {
    if !tree.contains(README) {
        return vec![Problem::of_file(README, "the file is missing")];
    }
    let mut reached = BTreeSet::from([README.to_owned()]);
    let mut to_read = vec![README.to_owned()];
    while let Some(from) = to_read.pop() {
        for link in page(tree, &from).map(markdown::links).unwrap_or_default() {
            if let Target::Inside { path, .. } = resolve(&from, &link.target)
                && reached.insert(path.clone())
            {
                to_read.push(path);
            }
        }
    }
    let pages = tree.texts_with_extension("md").filter(|(path, _)| path.starts_with(DOCS));
    let unreached = pages.filter(|(path, _)| !reached.contains(*path));
    unreached.map(|(path, _)| Problem::of_file(path, format!("no chain of links leads here from {README}"))).collect()
}

/// Resolves the target of a link in the file `from`.
fn resolve(from: &str, target: &str) -> Target {
    let scheme = target.split(['/', '#', '?']).next().unwrap_or_default();
    if scheme.contains(':') || target.starts_with("//") {
        return Target::Elsewhere;
    }
    if target.starts_with('/') {
        return Target::Outside;
    }
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor.to_owned())),
        None => (target, None),
    };
    if path.is_empty() {
        return Target::Inside { path: from.to_owned(), anchor };
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    let path = path.replace("%20", " ");
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.pop().is_none() {
                    return Target::Outside;
                }
            }
            part => parts.push(part),
        }
    }
    Target::Inside { path: parts.join("/"), anchor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::problem::printed;

    fn problems(files: &[(&str, &str)]) -> Vec<String> {
        printed(&check(&Tree::made_up(files)))
    }

    #[test]
    fn links_resolve_against_their_file() {
        let inside = |path: &str, anchor: Option<&str>| Target::Inside {
            path: path.to_owned(),
            anchor: anchor.map(ToOwned::to_owned),
        };
        for (target, expected) in [
            ("b.md", inside("docs/b.md", None)),
            ("./d/../b.md#c", inside("docs/b.md", Some("c"))),
            ("../LICENSE-MIT", inside("LICENSE-MIT", None)),
            ("decisions/", inside("docs/decisions", None)),
            ("#c", inside("docs/a.md", Some("c"))),
            ("a%20b.md", inside("docs/a b.md", None)),
            ("../", inside("", None)),
            ("../../issues", Target::Outside),
            ("/docs/b.md", Target::Outside),
            ("https://example.com/#c", Target::Elsewhere),
            ("mailto:a@example.com", Target::Elsewhere),
            ("//example.com", Target::Elsewhere),
        ] {
            assert_eq!(resolve("docs/a.md", target), expected, "{target}");
        }
    }

    #[test]
    fn a_linked_set_of_pages_is_fine() {
        let readme = "[a](docs/a.md#two-words) [code](crates/x/src/lib.rs#L3) [folder](docs)";
        let files = [
            ("README.md", readme),
            ("docs/a.md", "# A\n## Two words\n[1](decisions/1.md) [back](../README.md)"),
            ("docs/decisions/1.md", "# One\n"),
            ("crates/x/src/lib.rs", ""),
        ];
        assert_eq!(problems(&files), [""; 0]);
    }

    #[test]
    fn a_broken_link_is_reported_at_its_line() {
        let readme = "# Title\n\n[a](docs/b.md)\n[a](docs/a.md#b)\n[a](#b)\n[a](../x.md)\n";
        assert_eq!(
            problems(&[("README.md", readme), ("docs/a.md", "# A\n")]),
            [
                "README.md:3: link docs/b.md is broken: no file docs/b.md",
                "README.md:4: link docs/a.md#b is broken: docs/a.md has no heading #b",
                "README.md:5: link #b is broken: README.md has no heading #b",
                "README.md:6: link ../x.md leaves the repository",
            ]
        );
    }

    #[test]
    fn pages_that_only_link_each_other_are_not_reachable() {
        let files = [("README.md", ""), ("docs/a.md", "[b](b.md)"), ("docs/b.md", "[a](a.md)")];
        assert_eq!(
            problems(&files),
            [
                "docs/a.md:1: no chain of links leads here from README.md",
                "docs/b.md:1: no chain of links leads here from README.md",
            ]
        );
    }

    #[test]
    fn the_readme_must_exist() {
        assert_eq!(problems(&[("docs/a.md", "# A\n")]), ["README.md:1: the file is missing"]);
    }

    #[test]
    fn a_decision_starts_with_its_title() {
        let files = [("README.md", "[1](docs/decisions/1.md)"), ("docs/decisions/1.md", "\n# One\n")];
        assert_eq!(problems(&files), ["docs/decisions/1.md:1: a decision starts with its title, `# ...`"]);
    }
}
