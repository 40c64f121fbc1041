//! Output folder of a data set: files that are written once, and a manifest when all are there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

/// Name of the file that describes a data set.
pub(crate) const MANIFEST: &str = "manifest.json";

/// Description of a data set.
#[derive(Debug, Serialize)]
pub(crate) struct Manifest {
    /// Name of the data set.
    pub(crate) name: &'static str,
    /// Origin of the images.
    pub(crate) source: &'static str,
    /// Version of the source.
    pub(crate) version: String,
    /// Licence of the images.
    pub(crate) licence: &'static str,
    /// Recipe, in words.
    pub(crate) made: String,
    /// Height and width of the pictures.
    pub(crate) image_size: u32,
    /// Original files, if they are the user's own copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) originals: Option<Fingerprint>,
}

/// Fingerprint of a set of original files.
#[derive(Debug, Serialize)]
pub(crate) struct Fingerprint {
    /// Number of files.
    pub(crate) count: usize,
    /// BLAKE3 of the names, or of something else that identifies the files without reading all of them.
    pub(crate) listing_blake3: String,
}

#[derive(Debug, Serialize)]
struct Complete<'a> {
    #[serde(flatten)]
    manifest: &'a Manifest,
    /// Number of pictures in each folder below the root.
    counts: BTreeMap<String, usize>,
    /// Bytes of all files together.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Originals that are damaged or are not pictures.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    broken: &'a [String],
    /// BLAKE3 of the listing: for each file in order, its path and the BLAKE3 of its contents.
    listing_blake3: String,
}

/// The files of a data set in order.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    hasher: blake3::Hasher,
}

impl Listing {
    /// Adds a file with the BLAKE3 of its contents.
    pub(crate) fn add(&mut self, name: &str, hash: blake3::Hash) {
        self.hasher.update(format!("{name} {}\n", hash.to_hex()).as_bytes());
    }

    /// Returns BLAKE3 of the listing so far.
    #[must_use]
    pub(crate) fn blake3(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

/// Contents of the folder when the data set is complete.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Number of pictures in each folder below the root.
    pub(crate) counts: BTreeMap<String, usize>,
    /// Bytes of all files together.
    pub(crate) bytes: u64,
    /// [`Listing::blake3`] of all files.
    pub(crate) listing_blake3: String,
}

/// Output folder of a data set.
#[derive(Debug)]
pub(crate) struct Output {
    root: PathBuf,
    /// Listing of the files beside the pictures.
    listing: Listing,
    /// Listing of the manifest that was there before; `None` if the data set was not complete.
    promised: Option<String>,
}

/// A data set that was made.
#[derive(Debug)]
pub(crate) struct Made {
    /// Folder of the data set.
    pub(crate) out: PathBuf,
    /// Number of pictures; `None` if it was complete before.
    pub(crate) num_pictures: Option<usize>,
    /// Number of pictures that were left out, since they are broken.
    pub(crate) num_left_out: usize,
}

impl Made {
    /// A data set that was complete before.
    pub(crate) fn whole(out: &Path) -> Self {
        Self { out: out.to_owned(), num_pictures: None, num_left_out: 0 }
    }
}

impl Output {
    /// Starts or resumes a data set. The manifest is there from the start, without counts until the data set is
    /// complete.
    ///
    /// # Errors
    /// If the folder holds another data set, whose pictures would mix with these.
    pub(crate) fn new(root: &Path, manifest: &Manifest) -> Result<Self> {
        let path = root.join(MANIFEST);
        refuse_other_files(root, &path)?;
        fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
        let mut promised = None;
        if path.exists() {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let there: Value = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
            let wanted = serde_json::to_value(manifest).context("cannot write JSON")?;
            let same = wanted
                .as_object()
                .is_some_and(|wanted| wanted.iter().all(|(key, value)| there.get(key) == Some(value)));
            ensure!(
                same,
                "{} holds another data set ({}); choose an empty folder",
                root.display(),
                there.get("made").and_then(Value::as_str).unwrap_or("unknown")
            );
            promised = there.get("listing_blake3").and_then(Value::as_str).map(str::to_owned);
        } else {
            write_json(&path, manifest)?;
        }
        Ok(Self { root: root.to_owned(), listing: Listing::default(), promised })
    }

    /// Writes a file beside the pictures, such as labels or a licence.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.listing.add(name, blake3::hash(bytes));
        let path = self.root.join(name);
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        write_atomically(&path, bytes)
    }

    /// Returns the checksum of the listing when the data set was complete, if it ever was.
    #[must_use]
    pub(crate) fn promised(&self) -> Option<&str> {
        self.promised.as_deref()
    }

    /// Writes the whole manifest for files that were written by other means.
    ///
    /// # Errors
    /// If the data set was complete before, and the files are others now.
    pub(crate) fn complete(&self, manifest: &Manifest, survey: Survey, broken: &[String]) -> Result<()> {
        self.check(&survey.listing_blake3)?;
        let Survey { counts, bytes, listing_blake3 } = survey;
        let complete = Complete { manifest, counts, bytes: Some(bytes), broken, listing_blake3 };
        write_json(&self.root.join(MANIFEST), &complete)
    }

    /// Refuses files that differ from those in the manifest.
    fn check(&self, listing_blake3: &str) -> Result<()> {
        ensure!(
            self.promised.as_ref().is_none_or(|promised| promised == listing_blake3),
            "{} holds other files than its {MANIFEST} says: some were changed after it was made; delete it, make it again",
            self.root.display()
        );
        Ok(())
    }

    /// Writes the missing pictures, on all threads, then the whole manifest. `contents` returns the bytes of one.
    ///
    /// # Errors
    /// If one cannot be created or written; if the data set was complete before, and the files are others now.
    pub(crate) fn finish(
        mut self,
        names: &[String],
        manifest: &Manifest,
        contents: impl Fn(usize) -> Result<Vec<u8>> + Sync,
    ) -> Result<Made> {
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} pictures, ETA {eta}");
        let bar = ProgressBar::new(names.len() as u64).with_style(style.context("the progress bar is wrong")?);
        let hashes: Vec<blake3::Hash> = names
            .par_iter()
            .enumerate()
            .map(|(idx, name)| {
                let path = self.root.join(name);
                bar.inc(1);
                if let Ok(bytes) = fs::read(&path) {
                    return Ok(blake3::hash(&bytes));
                }
                let folder = path.parent().context("a name without a folder")?;
                fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
                let bytes = contents(idx)?;
                write_atomically(&path, &bytes)?;
                Ok(blake3::hash(&bytes))
            })
            .collect::<Result<_>>()?;
        bar.finish_and_clear();
        let mut counts = BTreeMap::new();
        for (name, hash) in names.iter().zip(&hashes) {
            self.listing.add(name, *hash);
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            *counts.entry(folder.to_owned()).or_default() += 1;
        }
        let listing_blake3 = self.listing.blake3();
        self.check(&listing_blake3)?;
        let complete = Complete { manifest, counts, bytes: None, broken: &[], listing_blake3 };
        write_json(&self.root.join(MANIFEST), &complete)?;
        Ok(Made { out: self.root, num_pictures: Some(names.len()), num_left_out: 0 })
    }
}

/// Refuses a folder that holds files, but no data set: they would become part of it.
fn refuse_other_files(root: &Path, manifest: &Path) -> Result<()> {
    if manifest.exists() {
        return Ok(());
    }
    let is_visible = |entry: &fs::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
    let other = fs::read_dir(root).into_iter().flatten().flatten().find(is_visible);
    let Some(other) = other else { return Ok(()) };
    let name = other.file_name();
    bail!("{} holds {} and no data set; choose a new folder", root.display(), name.to_string_lossy())
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")? + "\n";
    if fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    write_atomically(path, text.as_bytes())
}

/// Writes a file that appears whole or not at all.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // No other process writes under this name.
        let partial = path.with_file_name(format!(".partial-{}-{name}", std::process::id()));
        let mut file = fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(made: &str) -> Manifest {
        let made = made.to_owned();
        let version = "1".to_owned();
        Manifest { name: "dots", source: "", version, licence: "", made, image_size: 1, originals: None }
    }

    #[test]
    fn what_is_there_is_kept_and_another_data_set_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["a/0.png", "a/1.png", "b/0.png"].map(str::to_owned);
        let make = |made: &str, content: u8| -> Result<String> {
            let mut output = Output::new(folder.path(), &manifest(made))?;
            output.file("labels.txt", b"labels")?;
            output.finish(&names, &manifest(made), |idx| Ok(vec![content, u8::try_from(idx)?]))?;
            Ok(fs::read_to_string(folder.path().join(MANIFEST))?)
        };
        let first = make("once", 7).unwrap();
        assert_eq!(make("once", 9).unwrap(), first, "files that are there are not made again");
        assert_eq!(fs::read(folder.path().join("b/0.png")).unwrap(), [7, 2]);
        assert!(first.contains("\"a\": 2"), "{first}");
        fs::remove_file(folder.path().join("a/1.png")).unwrap();
        assert_eq!(make("once", 7).unwrap(), first, "a file that is missing is made again");
        fs::write(folder.path().join("a/1.png"), []).unwrap();
        assert!(make("once", 7).unwrap_err().to_string().contains("some were changed"));
        assert_eq!(fs::read_to_string(folder.path().join(MANIFEST)).unwrap(), first);
        fs::remove_file(folder.path().join("a/1.png")).unwrap();
        assert!(make("twice", 7).unwrap_err().to_string().contains("another data set (once)"));
    }
}
