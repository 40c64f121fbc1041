//! Results that appear whole or not at all, with a note of how they were made.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use diffae_infer::{Error, Overwrite, png_bytes, rgb_from_tensor, write_atomically};
use diffae_nets::weights::safetensors_bytes;
use image::RgbImage;

/// Entries that say how a result was made.
#[derive(Debug, Clone)]
pub(crate) struct Provenance(Vec<(String, String)>);

impl Provenance {
    /// This program, its command line, and the model.
    pub(crate) fn new(fingerprint: &str) -> Self {
        Self::without_model().with("model", fingerprint)
    }

    /// This program and its command line.
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

    pub(crate) fn entries(&self) -> &[(String, String)] {
        &self.0
    }
}

/// An argument as a shell would read it back.
fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) { arg.to_owned() } else { format!("'{}'", arg.replace('\'', r"'\''")) }
}

/// Fails early if a result is there already and must not be replaced.
pub(crate) fn refuse_existing(path: &Path, overwrite: Overwrite) -> Result<()> {
    if overwrite == Overwrite::Refuse && path.exists() {
        return Err(Error::Exists { path: path.to_owned() }).context("use --force to replace it");
    }
    Ok(())
}

/// A folder of results. Files are written aside and moved in place together by [`OutputDir::commit`]; without it they
/// vanish.
#[derive(Debug)]
pub(crate) struct OutputDir {
    target: PathBuf,
    staging: tempfile::TempDir,
    overwrite: Overwrite,
}

impl OutputDir {
    /// Checks that none of `names` is there already, and makes the staging folder: inside `target` if that is there, else in
    /// the folder above that is, so that nothing else has to be made before there are results.
    pub(crate) fn new(target: &Path, names: &[String], overwrite: Overwrite) -> Result<Self> {
        if target.is_file() {
            bail!("{} is a file, expected a folder", target.display())
        }
        for name in names {
            refuse_existing(&target.join(name), overwrite)?;
        }
        // A folder that is there may be a disk of its own, into which nothing can be moved from beside it.
        let is_there = |folder: &&Path| folder.as_os_str().is_empty() || folder.exists();
        let above = target.ancestors().find(is_there).filter(|folder| !folder.as_os_str().is_empty());
        let mut builder = tempfile::Builder::new();
        builder.prefix(".diffae-partial-");
        set_mode(&mut builder);
        let staging = builder.tempdir_in(above.unwrap_or(Path::new(".")));
        let staging = staging.with_context(|| format!("cannot write {}", target.display()))?;
        Ok(Self { target: target.to_owned(), staging, overwrite })
    }

    /// Adds a file.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.staging.path().join(name);
        let written = fs::File::create(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.with_context(|| format!("cannot write {}", self.target.join(name).display()))
    }

    /// Adds a PNG.
    pub(crate) fn write_png(&self, name: &str, picture: &RgbImage, provenance: &Provenance) -> Result<()> {
        self.write(name, &png_bytes(picture, provenance.entries(), &self.target.join(name))?)
    }

    /// Moves everything in place.
    pub(crate) fn commit(self) -> Result<()> {
        let cannot_write = || format!("cannot write {}", self.target.display());
        if !self.target.exists() {
            self.target.parent().map_or(Ok(()), fs::create_dir_all).with_context(cannot_write)?;
            fs::rename(self.staging.path(), &self.target).with_context(cannot_write)?;
            // The staging folder is gone under its old name; nothing is left to remove.
            let _ = self.staging.keep();
            return Ok(());
        }
        for entry in fs::read_dir(self.staging.path()).with_context(cannot_write)? {
            let entry = entry.with_context(cannot_write)?;
            let path = self.target.join(entry.file_name());
            refuse_existing(&path, self.overwrite)?;
            fs::rename(entry.path(), &path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Temporary folders are private by default; results have the permissions of any other folder.
#[cfg(unix)]
fn set_mode(builder: &mut tempfile::Builder<'_, '_>) {
    use std::os::unix::fs::PermissionsExt;
    builder.permissions(fs::Permissions::from_mode(0o777));
}

#[cfg(not(unix))]
fn set_mode(_: &mut tempfile::Builder<'_, '_>) {}

/// Decoded pictures: PNGs in a folder, or one `.safetensors` file of unquantized `x`.
#[derive(Debug)]
pub(crate) enum PictureOutput {
    Folder(OutputDir),
    Tensors { path: PathBuf, batches: Vec<Tensor>, overwrite: Overwrite },
}

impl PictureOutput {
    /// `--out` ends in `.safetensors`, or is a folder that will get a PNG for each name.
    pub(crate) fn new(out: &Path, names: &[String], overwrite: Overwrite) -> Result<Self> {
        if is_safetensors(out) {
            refuse_existing(out, overwrite)?;
            return Ok(Self::Tensors { path: out.to_owned(), batches: Vec::new(), overwrite });
        }
        let names: Vec<String> = names.iter().map(|name| format!("{name}.png")).collect();
        OutputDir::new(out, &names, overwrite).map(Self::Folder)
    }

    /// Adds a batch `[N, C, H, W]`, with a name a picture.
    pub(crate) fn write(&mut self, x_0: &Tensor, names: &[String], provenance: &Provenance) -> Result<()> {
        match self {
            Self::Tensors { batches, .. } => batches.push(x_0.to_device(&candle_core::Device::Cpu)?),
            Self::Folder(folder) => {
                for (idx, name) in names.iter().enumerate() {
                    folder.write_png(&format!("{name}.png"), &rgb_from_tensor(&x_0.get(idx)?)?, provenance)?;
                }
            }
        }
        Ok(())
    }

    /// Whether there is to be a sheet: where pictures are written.
    pub(crate) fn has_sheet(&self) -> bool {
        matches!(self, Self::Folder(_))
    }

    /// Adds a sheet of pictures, where pictures are written.
    pub(crate) fn write_sheet(&self, name: &str, sheet: &RgbImage, provenance: &Provenance) -> Result<()> {
        match self {
            Self::Tensors { .. } => Ok(()),
            Self::Folder(folder) => folder.write_png(name, sheet, provenance),
        }
    }

    /// Puts everything in place.
    pub(crate) fn commit(self, provenance: &Provenance) -> Result<()> {
        match self {
            Self::Folder(folder) => folder.commit(),
            Self::Tensors { path, batches, overwrite } => {
                let x = Tensor::cat(&batches, 0)?;
                let bytes =
                    safetensors_bytes(&[("x".to_owned(), x)].into(), &provenance.entries().iter().cloned().collect())?;
                Ok(write_atomically(&path, &bytes, overwrite)?)
            }
        }
    }
}

/// A sheet shows at most this many pictures, or rows of them.
pub(crate) const MOST_ON_SHEET: usize = 100;

/// Whether a path names a safetensors file.
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
