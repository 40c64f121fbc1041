//! Files that the rules check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::rust_source::{self, Line};

/// Names that are not searched where git cannot list the files.
const SKIPPED_WITHOUT_GIT: [&str; 3] = [".git", ".venv", "target"];

/// A file of the repository.
#[derive(Debug)]
pub(super) struct File {
    /// Path relative to the repository, with forward slashes.
    pub(super) path: String,
    /// Size in bytes.
    pub(super) num_bytes: u64,
    /// Content, if that is UTF-8 without NUL; symbolic links have none.
    pub(super) text: Option<String>,
}

/// A file of Rust source.
#[derive(Debug, Clone, Copy)]
pub(super) struct RustFile<'a> {
    pub(super) path: &'a str,
    pub(super) text: &'a str,
    pub(super) lines: &'a [Line],
}

impl File {
    /// Returns the last part of the path.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Returns the part of the name after its last dot.
    pub(super) fn extension(&self) -> &str {
        self.name().rsplit_once('.').map_or("", |(_, extension)| extension)
    }
}

/// All files of the repository, sorted by path.
#[derive(Debug)]
pub(super) struct Tree {
    files: BTreeMap<String, File>,
    folders: BTreeSet<String>,
    /// Lines of the Rust files by their paths, split once for all rules.
    rust_lines: BTreeMap<String, Vec<Line>>,
}

impl Tree {
    /// Reads the files below `root` that git tracks, and those that it neither tracks nor ignores.
    ///
    /// Without git, all files are read but the version store and build results.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let paths = match list_with_git(root) {
            Ok(paths) => paths,
            Err(error) => {
                println!("note: git cannot list the files ({error:#}); looking at all of them");
                list_folder(root)?
            }
        };
        let files = paths.into_iter().map(|path| read_file(root, path)).collect::<Result<Vec<_>>>()?;
        Ok(Self::new(files.into_iter().flatten()))
    }

    /// Builds a tree of these paths and texts, for the tests of rules.
    #[cfg(test)]
    pub(super) fn made_up(files: &[(&str, &str)]) -> Self {
        Self::new(files.iter().map(|&(path, text)| File {
            path: path.to_owned(),
            num_bytes: text.len() as u64,
            text: Some(text.to_owned()),
        }))
    }

    /// Builds a tree of these files.
    pub(super) fn new(files: impl IntoIterator<Item = File>) -> Self {
        let files: BTreeMap<String, File> = files.into_iter().map(|file| (file.path.clone(), file)).collect();
        let mut folders = BTreeSet::from([String::new()]);
        for path in files.keys() {
            folders.extend(path.match_indices('/').map(|(end, _)| path[..end].to_owned()));
        }
        let rust = files.values().filter(|file| file.extension() == "rs");
        let rust_lines = rust.filter_map(|file| Some((file.path.clone(), rust_source::lines(file.text.as_deref()?))));
        let rust_lines = rust_lines.collect();
        Self { files, folders, rust_lines }
    }

    /// Returns every file.
    pub(super) fn files(&self) -> impl ExactSizeIterator<Item = &File> {
        self.files.values()
    }

    /// Returns every text file with this extension, as path and text.
    pub(super) fn texts_with_extension(&self, extension: &str) -> impl Iterator<Item = (&str, &str)> {
        let files = self.files().filter(move |file| file.extension() == extension);
        files.filter_map(|file| Some((file.path.as_str(), file.text.as_deref()?)))
    }

    /// Returns every file of Rust source.
    pub(super) fn rust_files(&self) -> impl Iterator<Item = RustFile<'_>> {
        self.texts_with_extension("rs").filter_map(|(path, text)| {
            let lines = self.rust_lines.get(path)?;
            Some(RustFile { path, text, lines })
        })
    }

    /// Returns the file at this path.
    pub(super) fn file(&self, path: &str) -> Option<&File> {
        self.files.get(path)
    }

    /// Returns whether a file or a folder with files has this path; the repository itself is the empty path.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.files.contains_key(path) || self.folders.contains(path)
    }
}

fn list_with_git(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot start git")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("git failed"));
    }
    let paths = String::from_utf8(output.stdout).context("a path is not UTF-8")?;
    Ok(paths.split_terminator('\0').map(ToOwned::to_owned).collect())
}

fn list_folder(root: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let absolute = root.join(&folder);
        let entries = fs::read_dir(&absolute).with_context(|| format!("cannot list {}", absolute.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", absolute.display()))?;
            let name = entry.file_name();
            let name = name.to_str().with_context(|| format!("{} is not UTF-8", entry.path().display()))?;
            let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
            let kind = entry.file_type().with_context(|| format!("cannot read {}", entry.path().display()))?;
            if !kind.is_dir() {
                paths.push(path);
            } else if !SKIPPED_WITHOUT_GIT.contains(&name) {
                folders.push(path);
            }
        }
    }
    Ok(paths)
}

/// Reads the file at `path`; `None` if it was deleted, but git still lists it.
fn read_file(root: &Path, path: String) -> Result<Option<File>> {
    let absolute = root.join(&path);
    let Ok(metadata) = fs::symlink_metadata(&absolute) else {
        return Ok(None);
    };
    let text = if metadata.is_file() {
        let bytes = fs::read(&absolute).with_context(|| format!("cannot read {}", absolute.display()))?;
        String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
    } else {
        None
    };
    Ok(Some(File { path, num_bytes: metadata.len(), text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, content: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.files().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn new_files_count_and_ignored_or_deleted_ones_do_not() {
        let root = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| {
            let status = Command::new("git").args(arguments).current_dir(root.path()).status().unwrap();
            assert!(status.success());
        };
        git(&["init", "--quiet"]);
        write(root.path(), ".gitignore", b"/target\n");
        write(root.path(), "src/tracked.rs", b"//! Tracked.\n");
        write(root.path(), "src/deleted.rs", b"//! Deleted.\n");
        git(&["add", "."]);
        fs::remove_file(root.path().join("src/deleted.rs")).unwrap();
        write(root.path(), "src/new.rs", b"//! New.\n");
        write(root.path(), "target/built.rs", b"\n");

        let tree = Tree::read(root.path()).unwrap();
        assert_eq!(paths(&tree), [".gitignore", "src/new.rs", "src/tracked.rs"]);
        assert_eq!(tree.file("src/new.rs").unwrap().text.as_deref(), Some("//! New.\n"));
    }

    #[test]
    fn a_folder_without_git_is_listed_but_for_build_results() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "src/lib.rs", b"//! Library.\n");
        write(root.path(), "target/debug/built", b"\n");
        assert_eq!(list_folder(root.path()).unwrap(), ["src/lib.rs"]);
    }

    #[test]
    fn binary_files_have_a_size_and_no_text() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "nul", b"a\0b");
        write(root.path(), "latin", b"\xe9\xe9");
        for (name, num_bytes) in [("nul", 3), ("latin", 2)] {
            let file = read_file(root.path(), name.to_owned()).unwrap().unwrap();
            assert_eq!((file.num_bytes, file.text), (num_bytes, None));
        }
    }

    #[test]
    fn folders_are_part_of_the_tree() {
        let tree = Tree::made_up(&[("docs/decisions/a.md", "")]);
        assert!(["", "docs", "docs/decisions", "docs/decisions/a.md"].iter().all(|path| tree.contains(path)));
        assert!(!tree.contains("docs/dec"));
    }

    #[test]
    fn names_and_extensions_are_taken_from_the_last_part() {
        let file = |path: &str| File { path: path.to_owned(), num_bytes: 0, text: None };
        assert_eq!((file("a.b/c").name(), file("a.b/c").extension()), ("c", ""));
        assert_eq!((file("a/b.tar.gz").name(), file("a/b.tar.gz").extension()), ("b.tar.gz", "gz"));
    }
}
