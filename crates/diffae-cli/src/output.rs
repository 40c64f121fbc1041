//! Atomic output: results that appear whole or not at all, with a note of their provenance.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use diffae_data::{Overwrite, png_bytes, write_atomically};
use diffae_infer::{PartialFolder, Settings};
use image::RgbImage;
use serde_json::Value;

/// Provenance of a result: entries that are written into its files.
#[derive(Debug, Clone)]
pub(crate) struct Provenance(Vec<(String, String)>);

impl Provenance {
    /// Notes this program, its command line, and the model.
    pub(crate) fn new(fingerprint: &str) -> Self {
        Self::without_model().with("model", fingerprint)
    }

    /// Notes this program and its command line.
    pub(crate) fn without_model() -> Self {
        let command = std::env::args_os().map(|arg| quoted(&arg.to_string_lossy())).collect::<Vec<_>>().join(" ");
        let software = concat!("diffae ", env!("CARGO_PKG_VERSION"));
        Self(vec![("Software".to_owned(), software.to_owned()), ("diffae:command".to_owned(), command)])
    }

    /// Adds an entry such as seed or steps.
    #[must_use]
    pub(crate) fn with<T: ToString + ?Sized>(mut self, key: &str, value: &T) -> Self {
        self.0.push((format!("diffae:{key}"), value.to_string()));
        self
    }

    /// Adds entries of settings.
    #[must_use]
    pub(crate) fn with_all(self, settings: &Settings) -> Self {
        settings.iter().fold(self, |provenance, (name, value)| match value {
            Value::String(text) => provenance.with(name, text),
            value => provenance.with(name, value),
        })
    }

    pub(crate) fn entries(&self) -> &[(String, String)] {
        &self.0
    }
}

/// Returns the command line with one more option.
pub(crate) fn command_with(option: &str) -> String {
    let mut args: Vec<String> = std::env::args_os().map(|arg| quoted(&arg.to_string_lossy())).collect();
    if !args.iter().any(|arg| arg == option) {
        let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
        args.insert(end, option.to_owned());
    }
    args.join(" ")
}

/// Quotes an argument so that a shell reads it back.
fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) { arg.to_owned() } else { format!("'{}'", arg.replace('\'', r"'\''")) }
}

/// Fails early if a result is there already and must not be replaced.
pub(crate) fn refuse_existing(path: &Path, overwrite: Overwrite) -> Result<()> {
    if overwrite == Overwrite::Refuse && path.exists() {
        bail!("{} exists already; use --force to replace it", path.display())
    }
    Ok(())
}

/// Writes one file, and the folders above it.
pub(crate) fn write_file(path: &Path, bytes: &[u8], overwrite: Overwrite) -> Result<()> {
    make_parents(path)?;
    Ok(write_atomically(path, bytes, overwrite)?)
}

/// Creates the folders above a path.
pub(crate) fn make_parents(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all).with_context(|| format!("cannot write {}", path.display()))
}

/// A folder of results. Files are written aside and moved in place together by [`OutputDir::commit`]; without it they
/// vanish.
#[derive(Debug)]
pub(crate) struct OutputDir {
    target: PathBuf,
    partial: PartialFolder,
    overwrite: Overwrite,
}

impl OutputDir {
    /// Checks that none of `names` exists and that no other run is writing them, and creates the folder that they are
    /// written to first: inside `target` if that exists, else in the nearest folder above, so that nothing else has to
    /// be created before there are results.
    pub(crate) fn new(target: &Path, names: &[String], overwrite: Overwrite) -> Result<Self> {
        let names_hash = blake3::hash(names.join("\n").as_bytes()).to_hex();
        Self::for_purpose(target, names, &format!("files {names_hash}"), overwrite)
    }

    fn for_purpose(target: &Path, names: &[String], purpose: &str, overwrite: Overwrite) -> Result<Self> {
        if target.is_file() {
            bail!("{} is a file, expected a folder", target.display())
        }
        for name in names {
            refuse_existing(&target.join(name), overwrite)?;
        }
        let partial = PartialFolder::open(target, purpose)?;
        Ok(Self { target: target.to_owned(), partial, overwrite })
    }

    /// Adds a file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        Ok(self.partial.write(name, bytes)?)
    }

    /// Adds a PNG.
    pub(crate) fn write_png(&self, name: &str, picture: &RgbImage, provenance: &Provenance) -> Result<()> {
        self.write(name, &png_bytes(picture, provenance.entries(), &self.target.join(name))?)
    }

    /// Moves all files to their final places.
    pub(crate) fn commit(self) -> Result<()> {
        Ok(self.partial.commit(self.overwrite)?)
    }
}

/// Maximum number of pictures, or rows of them, that a sheet shows.
pub(crate) const MAX_ON_SHEET: usize = 100;

/// Returns whether a path names a safetensors file.
pub(crate) fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors"))
}

/// Prints one line on standard output.
pub(crate) fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// Prints JSON on standard output.
pub(crate) fn say_json(value: &impl serde::Serialize) -> Result<()> {
    say(&serde_json::to_string_pretty(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("a/b.png"), "a/b.png");
        assert_eq!(quoted("it's a"), r"'it'\''s a'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn a_folder_that_is_not_committed_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let output = OutputDir::new(&target, &["a".to_owned()], Overwrite::Refuse).unwrap();
        output.write("a", b"1").unwrap();
        drop(output);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn other_files_of_a_folder_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("mine"), "").unwrap();
        let output = OutputDir::new(&target, &["a".to_owned()], Overwrite::Refuse).unwrap();
        output.write("a", b"1").unwrap();
        // What is there may be a disk of its own: nothing is moved into it from outside.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        output.commit().unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 2);
        assert!(OutputDir::new(&target, &["a".to_owned()], Overwrite::Refuse).is_err());
        assert!(OutputDir::new(&target, &["a".to_owned()], Overwrite::Replace).is_ok());
    }
}
