//! Rules for the location, name and size of files.

use super::problem::Problem;
use super::tree::{File, Tree};

/// Names allowed next to the workspace's `Cargo.toml`, besides those that start with a dot.
const TOP_LEVEL: [&str; 10] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "crates",
    "docs",
    "findings",
    "rust-toolchain.toml",
    "xtask",
];
/// The folder of tests, at the top level and in a crate.
const TESTS: &str = "tests";
/// The folders below [`TESTS`] that hold what tests read.
const TEST_DATA: [&str; 2] = ["data", "fixtures"];
/// The folder of models that are part of the program.
const BUILT_IN_WEIGHTS: [&str; 2] = ["crates/diffae-nets/heads/", "crates/diffae-infer/models/"];
/// Module names that say nothing about their content.
const EMPTY_NAMES: [&str; 6] = ["common", "helper", "helpers", "misc", "util", "utils"];
/// Maximum size of a file; a golden checkpoint comes close.
const MAX_BYTES: u64 = 9_000_000;
/// Extensions of model weights, arrays and image databases.
const WEIGHTS: [&str; 14] =
    ["bin", "ckpt", "gguf", "h5", "lmdb", "mdb", "msgpack", "npy", "npz", "onnx", "pkl", "pt", "pth", "safetensors"];
/// Extensions of archives.
const ARCHIVES: [&str; 9] = ["7z", "bz2", "gz", "rar", "tar", "tgz", "xz", "zip", "zst"];
/// Folders of the machine this project was first written on; in two parts, so that this file does not name them.
const OUTSIDE_FOLDERS: [&str; 2] = [concat!("../", "shared"), concat!("/work/", "shared")];

/// Checks all rules of this file.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    tree.files()
        .flat_map(|file| [top_level(file), name(file), size(file), kind(file)].into_iter().flatten().chain(reach(file)))
        .collect()
}

fn top_level(file: &File) -> Option<Problem> {
    let entry = file.path.split('/').next().unwrap_or_default();
    let is_allowed = entry.starts_with('.') || entry == TESTS || TOP_LEVEL.contains(&entry);
    (!is_allowed).then(|| Problem::of_file(&file.path, format!("{entry} does not belong at the top level")))
}

fn name(file: &File) -> Option<Problem> {
    let path = file.path.strip_suffix(".rs")?;
    let empty_name = path.split('/').find(|part| EMPTY_NAMES.contains(part))?;
    Some(Problem::of_file(&file.path, format!("the name {empty_name} says nothing: name the concept")))
}

fn size(file: &File) -> Option<Problem> {
    let message = || format!("{} bytes, the limit is {MAX_BYTES}", file.num_bytes);
    (file.num_bytes > MAX_BYTES).then(|| Problem::of_file(&file.path, message()))
}

fn kind(file: &File) -> Option<Problem> {
    let extension = file.extension().to_ascii_lowercase();
    let kind = if WEIGHTS.contains(&extension.as_str()) {
        "weights"
    } else if ARCHIVES.contains(&extension.as_str()) {
        "archives"
    } else {
        return None;
    };
    let is_fixture = file.path.split('/').skip_while(|part| *part != TESTS).any(|part| TEST_DATA.contains(&part));
    let is_built_in = kind == "weights" && BUILT_IN_WEIGHTS.iter().any(|folder| file.path.starts_with(folder));
    (!is_fixture && !is_built_in)
        .then(|| Problem::of_file(&file.path, format!("{kind} belong only in a data or fixtures folder below tests")))
}

fn reach(file: &File) -> impl Iterator<Item = Problem> {
    let lines = file.text.iter().flat_map(|text| text.lines().enumerate());
    lines.filter_map(|(line_idx, line)| {
        let folder = OUTSIDE_FOLDERS.into_iter().find(|folder| line.contains(folder))?;
        Some(Problem::at(&file.path, line_idx + 1, format!("{folder} lies outside the repository")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::problem::printed;

    fn problems(files: &[(&str, &str)]) -> Vec<String> {
        printed(&check(&Tree::made_up(files)))
    }

    #[test]
    fn known_entries_and_dotfiles_stand_at_the_top() {
        let allowed = [".ci/run", ".gitignore", "Cargo.toml", "README.md", "crates/a/src/lib.rs", "tests/cli/main.rs"];
        assert_eq!(problems(&allowed.map(|path| (path, ""))), [""; 0]);
        assert_eq!(
            problems(&[("deny.toml", ""), ("src/lib.rs", "")]),
            [
                "deny.toml:1: deny.toml does not belong at the top level",
                "src/lib.rs:1: src does not belong at the top level",
            ]
        );
    }

    #[test]
    fn files_and_folders_of_sources_are_named_after_a_concept() {
        assert_eq!(
            problems(&[("crates/a/src/utils.rs", ""), ("crates/a/tests/common/mod.rs", ""), ("docs/misc/a.md", "")]),
            [
                "crates/a/src/utils.rs:1: the name utils says nothing: name the concept",
                "crates/a/tests/common/mod.rs:1: the name common says nothing: name the concept",
            ]
        );
    }

    #[test]
    fn a_large_file_is_refused() {
        let of_size = |num_bytes| File { path: "docs/picture.png".to_owned(), num_bytes, text: None };
        assert_eq!(printed(&check(&Tree::new([of_size(MAX_BYTES)]))), [""; 0]);
        assert_eq!(
            printed(&check(&Tree::new([of_size(MAX_BYTES + 1)]))),
            ["docs/picture.png:1: 9000001 bytes, the limit is 9000000"]
        );
    }

    #[test]
    fn weights_and_archives_are_fixtures_of_tests() {
        let fixtures = [
            "crates/a/tests/parity/data/a.safetensors",
            "crates/diffae-infer/models/a/model.safetensors",
            "tests/fixtures/b.zip",
        ];
        assert_eq!(problems(&fixtures.map(|path| (path, ""))), [""; 0]);
        assert_eq!(
            problems(&[("crates/a/data/tests/a.CKPT", ""), ("docs/b.tar.gz", "")]),
            [
                "crates/a/data/tests/a.CKPT:1: weights belong only in a data or fixtures folder below tests",
                "docs/b.tar.gz:1: archives belong only in a data or fixtures folder below tests",
            ]
        );
    }

    #[test]
    fn nothing_refers_to_a_folder_outside() {
        for folder in OUTSIDE_FOLDERS {
            let text = format!("first\nsee {folder}/golden\n");
            assert_eq!(
                problems(&[("docs/a.md", &text)]),
                [format!("docs/a.md:2: {folder} lies outside the repository")]
            );
        }
    }
}
