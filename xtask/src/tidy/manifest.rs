//! Rules for the text of crate manifests: versions and lints come from the workspace.
//!
//! Cargo reports manifests with inheritance already resolved, so these rules read the text. The reader knows the
//! part of TOML that manifests use: tables, keys, and values that span lines inside brackets.

use std::collections::BTreeMap;

use super::problem::Problem;
use super::tree::Tree;

/// The tables whose keys are dependencies.
const DEPENDENCY_TABLES: [&str; 3] = ["build-dependencies", "dependencies", "dev-dependencies"];

/// Checks all rules of this file.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in tree.texts_with_extension("toml").filter(|(path, _)| path.ends_with("/Cargo.toml")) {
        let entries = entries(text);
        if !entries.iter().any(|entry| entry.key == ["lints", "workspace"] && entry.value == "true") {
            problems.push(Problem::of_file(path, "the lints are not the workspace's: add `[lints] workspace = true`"));
        }
        for (name, line) in dependencies_with_own_version(&entries) {
            let message = format!("dependency {name} has its own version: write `{name}.workspace = true`");
            problems.push(Problem::at(path, line, message));
        }
    }
    problems
}

/// Returns the line of the first entry of `name` in a table of dependencies.
pub(super) fn line_of_dependency(text: &str, name: &str) -> Option<usize> {
    entries(text)
        .iter()
        .find(|entry| entry.dependency().is_some_and(|found| found.name == name))
        .map(|entry| entry.line)
}

/// An entry `key = value`.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// Line of the key, from 1.
    line: usize,
    /// Names of the table and the key, split at their dots.
    key: Vec<String>,
    /// Value, on one line and without comments.
    value: String,
}

/// An [`Entry`] in a table of dependencies, its key taken apart.
struct Dependency<'a> {
    table: &'a [String],
    name: &'a str,
    field: Option<&'a str>,
}

impl Entry {
    fn dependency(&self) -> Option<Dependency<'_>> {
        let name_idx = 1 + self.key.iter().position(|part| DEPENDENCY_TABLES.contains(&part.as_str()))?;
        let field = self.key.get(name_idx + 1).map(String::as_str);
        Some(Dependency { table: &self.key[..name_idx], name: self.key.get(name_idx)?, field })
    }

    /// Returns whether the value is `true`, or an inline table with `workspace = true`, as `field` asks.
    fn inherits(&self, field: Option<&str>) -> bool {
        let is_inheriting = |field: &str| field.replace(' ', "") == "workspace=true";
        match field {
            None => self.value.trim_matches(['{', '}']).split(',').any(is_inheriting),
            Some(field) => field == "workspace" && self.value == "true",
        }
    }
}

/// Returns name and first line of the dependencies that are not taken from the workspace.
fn dependencies_with_own_version(entries: &[Entry]) -> Vec<(&str, usize)> {
    let mut dependencies = BTreeMap::new();
    for entry in entries {
        if let Some(Dependency { table, name, field }) = entry.dependency() {
            let (_, is_inherited) = dependencies.entry((table, name)).or_insert((entry.line, false));
            *is_inherited |= entry.inherits(field);
        }
    }
    let own = dependencies.into_iter().filter(|(_, (_, is_inherited))| !is_inherited);
    own.map(|((_, name), (line, _))| (name, line)).collect()
}

fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut table = Vec::new();
    let mut num_open_brackets = 0isize;
    for (line_idx, line) in text.lines().enumerate() {
        let line = without_comment(line).trim();
        if num_open_brackets > 0 {
            if let Some(entry) = entries.last_mut() {
                entry.value.push(' ');
                entry.value.push_str(line);
            }
            num_open_brackets += bracket_balance(line);
        } else if line.starts_with('[') {
            table = split_outside_quotes(line.trim_matches(['[', ']']), '.');
        } else if let Some((key, value)) = line.split_once('=') {
            let key = [table.clone(), split_outside_quotes(key, '.')].concat();
            entries.push(Entry { line: line_idx + 1, key, value: value.trim().to_owned() });
            num_open_brackets = bracket_balance(value);
        }
    }
    entries
}

fn without_comment(line: &str) -> &str {
    let end = outside_quotes(line).find(|&(_, c)| c == '#').map_or(line.len(), |(position, _)| position);
    &line[..end]
}

fn bracket_balance(text: &str) -> isize {
    let of_char = |(_, c)| match c {
        '[' | '{' => 1,
        ']' | '}' => -1,
        _ => 0,
    };
    outside_quotes(text).map(of_char).sum()
}

/// Splits a dotted key into its parts, without white space and quotes around them.
fn split_outside_quotes(text: &str, separator: char) -> Vec<String> {
    let mut parts = Vec::new();
    let mut start = 0;
    let ends = outside_quotes(text).filter(|&(_, c)| c == separator).map(|(position, _)| position);
    for end in ends.chain([text.len()]) {
        parts.push(text[start..end].trim().trim_matches(['"', '\'']).to_owned());
        start = end + separator.len_utf8();
    }
    parts
}

/// Returns the characters that do not stand between quotes, with their byte positions.
fn outside_quotes(text: &str) -> impl Iterator<Item = (usize, char)> {
    let mut quote = None;
    text.char_indices().filter(move |&(_, c)| match quote {
        None if c == '"' || c == '\'' => {
            quote = Some(c);
            false
        }
        None => true,
        Some(open) => {
            if c == open {
                quote = None;
            }
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::problem::printed;

    fn problems(text: &str) -> Vec<String> {
        printed(&check(&Tree::made_up(&[("crates/a/Cargo.toml", text)])))
    }

    #[test]
    fn every_way_to_inherit_a_dependency_is_understood() {
        let text = "lints.workspace = true\n[dependencies]\na.workspace = true\nb = { workspace = true }\n\
            c = { features = [\n  \"x\", # why\n], workspace = true }\n[dev-dependencies.d]\nworkspace = true\n\
            features = [\"y\"]\n[target.'cfg(target_os = \"linux\")'.build-dependencies]\n\"e\".workspace = true\n\
            e.features = []\n";
        assert_eq!(problems(text), [""; 0]);
    }

    #[test]
    fn a_dependency_with_its_own_version_is_refused() {
        let text = "[lints]\nworkspace = true\n[dependencies]\na = \"1\" # workspace = true\nb = { path = \"../b\" }\n\
            c.workspace = true\n[dev-dependencies]\nc.version = \"2\"\nc.features = [\"workspace = true\"]\n\
            [target.'cfg(unix)'.dependencies.d]\nworkspace = false\n";
        let expected = [("a", 4), ("b", 5), ("c", 8), ("d", 11)].map(|(name, line)| {
            format!(
                "crates/a/Cargo.toml:{line}: dependency {name} has its own version: write `{name}.workspace = true`"
            )
        });
        assert_eq!(problems(text), expected);
    }

    #[test]
    fn lints_come_from_the_workspace() {
        let message = "crates/a/Cargo.toml:1: the lints are not the workspace's: add `[lints] workspace = true`";
        for text in ["", "[lints.clippy]\npedantic = \"warn\"\n", "[package]\nlints.workspace = true\n"] {
            assert_eq!(problems(text), [message], "{text}");
        }
    }

    #[test]
    fn the_workspace_itself_may_name_versions() {
        let root = ("Cargo.toml", "[workspace.dependencies]\na = \"1\"\n");
        assert_eq!(check(&Tree::made_up(&[root])), []);
    }

    #[test]
    fn keys_that_only_look_like_dependencies_are_left_alone() {
        let text = "[lints]\nworkspace = true\n[features]\ndefault = [\"dependencies\"]\n[package]\nname = \"#1\"\n";
        assert_eq!(problems(text), [""; 0]);
        assert_eq!(entries(text)[2].value, "\"#1\"");
    }

    #[test]
    fn a_dependency_is_found_by_name() {
        let text = "[package]\nname = \"a\"\n[dependencies]\nb.workspace = true\n";
        assert_eq!((line_of_dependency(text, "b"), line_of_dependency(text, "name")), (Some(4), None));
    }
}
