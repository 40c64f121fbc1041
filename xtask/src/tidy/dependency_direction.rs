//! Rules for what cargo knows of the crates: allowed dependencies, and metadata of published crates.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::manifest;
use super::problem::Problem;
use super::tree::Tree;
use xtask::repository;

/// Layers: each crate with the crates right below it. It may depend on these and on everything below them.
const LAYERS: [(&str, &[&str]); 11] = [
    (COMMAND_LINE, &["diffae-eval", "diffae-onnx", "diffae-serve", "diffae-train"]),
    ("diffae-onnx", &["diffae-infer"]),
    (PYTHON_MODULE, &["diffae-eval", "diffae-train"]),
    ("diffae-serve", &["diffae-infer"]),
    ("diffae-train", &["diffae-infer"]),
    ("diffae-eval", &["diffae-infer"]),
    ("diffae-infer", &["diffae-data", "diffae-schedule"]),
    ("diffae-data", &["diffae-nets"]),
    ("diffae-nets", &["diffae-kernels"]),
    ("diffae-schedule", &[]),
    ("diffae-kernels", &[]),
];
/// Tops of the layers: nothing depends on them.
const COMMAND_LINE: &str = "diffae-cli";
const PYTHON_MODULE: &str = "diffae-python";
/// Chores of the repository stand beside the layers and may look at any of them but the tops.
const CHORES: [&str; 2] = ["xtask", "xtask-lab"];
/// Errors without a type are for programs; a library says what can go wrong.
const UNTYPED_ERRORS: &str = "anyhow";

/// Output of `cargo metadata`, as far as the rules need it.
#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    packages: Vec<Package>,
    workspace_root: String,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    description: Option<String>,
    license: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
}

impl Metadata {
    /// Reads the packages of the workspace at `root`.
    pub(super) fn of_workspace(root: &Path) -> Result<Self> {
        let output = repository::cargo(root)
            .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
            .output()
            .context("cannot start cargo")?;
        ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata reports")
    }
}

/// Checks all rules of this file.
pub(super) fn check(tree: &Tree, metadata: &Metadata) -> Vec<Problem> {
    let members: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let mut problems = Vec::new();
    for package in &metadata.packages {
        let path = package.manifest_path.strip_prefix(&metadata.workspace_root).unwrap_or(&package.manifest_path);
        let path = path.replace('\\', "/");
        let path = path.trim_start_matches('/');
        let says = |field: &Option<String>| field.as_ref().is_some_and(|text| !text.trim().is_empty());
        for (field, is_given) in [("description", says(&package.description)), ("license", says(&package.license))] {
            if !is_given {
                problems.push(Problem::of_file(path, format!("the package has no {field}")));
            }
        }
        if !is_chore(&package.name) && !LAYERS.iter().any(|(name, _)| *name == package.name) {
            let message = format!("{} has no layer: add it to xtask/src/tidy/dependency_direction.rs", package.name);
            problems.push(Problem::of_file(path, message));
            continue;
        }
        // A crate may be named twice, as a normal and a development dependency.
        let names: BTreeSet<&str> = package.dependencies.iter().map(|dependency| dependency.name.as_str()).collect();
        for name in names {
            let message = if members.contains(name) && !may_depend(&package.name, name) {
                format!("{} must not depend on {name}: dependencies point down the layers", package.name)
            } else if name == UNTYPED_ERRORS && package.name != COMMAND_LINE && !is_chore(&package.name) {
                format!("{} is a library: its errors are an enum, not {UNTYPED_ERRORS}", package.name)
            } else {
                continue;
            };
            let text = tree.file(path).and_then(|file| file.text.as_deref()).unwrap_or_default();
            let line = manifest::line_of_dependency(text, name).unwrap_or(1);
            problems.push(Problem::at(path, line, message));
        }
    }
    problems
}

fn is_chore(name: &str) -> bool {
    CHORES.contains(&name)
}

/// Returns whether the crate `from` stands above the crate `to`.
fn may_depend(from: &str, to: &str) -> bool {
    if is_chore(from) {
        return ![COMMAND_LINE, PYTHON_MODULE, from].contains(&to);
    }
    let right_below = LAYERS.iter().filter(|(name, _)| *name == from).flat_map(|(_, below)| below.iter());
    right_below.into_iter().any(|below| *below == to || may_depend(below, to))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tidy::problem::printed;

    /// Builds a workspace of these packages and the names of their dependencies.
    fn workspace(packages: &[(&str, &[&str])]) -> Metadata {
        let packages: Vec<_> = packages.iter().map(|(name, dependencies)| json!({
            "name": name,
            "manifest_path": format!("/root/crates/{name}/Cargo.toml"),
            "description": "A crate",
            "license": "MIT",
            "dependencies": dependencies.iter().map(|name| json!({ "name": name, "kind": "dev" })).collect::<Vec<_>>(),
        })).collect();
        serde_json::from_value(json!({ "packages": packages, "workspace_root": "/root" })).unwrap()
    }

    fn problems(metadata: &Metadata) -> Vec<String> {
        printed(&check(&Tree::made_up(&[]), metadata))
    }

    #[test]
    fn a_crate_may_depend_on_everything_below_it() {
        for (from, to) in [
            ("diffae-cli", "diffae-train"),
            ("diffae-cli", "diffae-kernels"),
            ("diffae-python", "diffae-eval"),
            ("diffae-python", "diffae-nets"),
            ("diffae-train", "diffae-nets"),
            ("diffae-eval", "diffae-infer"),
            ("diffae-infer", "diffae-nets"),
            ("diffae-infer", "diffae-schedule"),
            ("diffae-nets", "diffae-kernels"),
            ("xtask", "diffae-train"),
            ("xtask-lab", "xtask"),
        ] {
            assert!(may_depend(from, to), "{from} on {to}");
        }
    }

    #[test]
    fn a_crate_may_not_depend_on_anything_beside_or_above_it() {
        for (from, to) in [
            ("diffae-nets", "diffae-schedule"),
            ("diffae-schedule", "diffae-nets"),
            ("diffae-schedule", "diffae-kernels"),
            ("diffae-kernels", "diffae-nets"),
            ("diffae-infer", "diffae-eval"),
            ("diffae-infer", "diffae-train"),
            ("diffae-train", "diffae-cli"),
            ("diffae-nets", "diffae-nets"),
            ("diffae-cli", "xtask"),
            ("xtask", "diffae-cli"),
            ("xtask-lab", "diffae-python"),
            ("diffae-cli", "diffae-python"),
            ("diffae-python", "diffae-serve"),
        ] {
            assert!(!may_depend(from, to), "{from} on {to}");
        }
    }

    #[test]
    fn a_dependency_against_the_direction_is_reported_at_its_line() {
        let metadata = workspace(&[("diffae-nets", &["serde", "diffae-infer"]), ("diffae-infer", &["diffae-nets"])]);
        let manifest = "[dependencies]\nserde.workspace = true\ndiffae-infer.workspace = true\n";
        let tree = Tree::made_up(&[("crates/diffae-nets/Cargo.toml", manifest)]);
        assert_eq!(
            printed(&check(&tree, &metadata)),
            ["crates/diffae-nets/Cargo.toml:3: diffae-nets must not depend on diffae-infer: \
              dependencies point down the layers"]
        );
    }

    #[test]
    fn a_new_crate_needs_a_layer() {
        assert_eq!(
            problems(&workspace(&[("diffae-web", &[])])),
            [
                "crates/diffae-web/Cargo.toml:1: diffae-web has no layer: add it to xtask/src/tidy/dependency_direction.rs"
            ]
        );
    }

    #[test]
    fn libraries_have_typed_errors() {
        let metadata = workspace(&[("diffae-cli", &["anyhow"]), ("xtask", &["anyhow"]), ("diffae-eval", &["anyhow"])]);
        assert_eq!(
            problems(&metadata),
            ["crates/diffae-eval/Cargo.toml:1: diffae-eval is a library: its errors are an enum, not anyhow"]
        );
    }

    #[test]
    fn a_package_says_what_it_is_and_how_it_is_licensed() {
        let mut metadata = workspace(&[("diffae-eval", &[])]);
        metadata.packages[0].description = Some(" ".to_owned());
        metadata.packages[0].license = None;
        assert_eq!(
            problems(&metadata),
            [
                "crates/diffae-eval/Cargo.toml:1: the package has no description",
                "crates/diffae-eval/Cargo.toml:1: the package has no license",
            ]
        );
    }
}
