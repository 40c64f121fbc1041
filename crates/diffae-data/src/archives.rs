//! Pictures in tar archives, plain or compressed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::names::is_picture_name;
use tempfile::NamedTempFile;

use crate::error::{Error, Result, at};
use crate::file_kind::{FileKind, Foreign, file_kind};
use crate::found::Found;
use crate::left_out::LeftOut;
use crate::notices::counted;
use crate::source::{Item, Place};
use crate::tar_members::{Member, is_hidden, list};

/// Size of a chunk of decompressed data, in bytes.
const CHUNK: usize = 1 << 20;

/// Archives that are unpacked to temporary files; both splits share one file.
static UNPACKED: Mutex<BTreeMap<PathBuf, Weak<NamedTempFile>>> = Mutex::new(BTreeMap::new());

/// Lists the pictures of an archive, compressed or not. Only the headers of a plain archive are read; a compressed one
/// is unpacked to a plain copy (in `TMPDIR`), since its members cannot be read one by one.
///
/// # Errors
/// If it is no tar archive, is compressed in a way that is not read, or is damaged or cut off.
pub(crate) fn pictures(archive: &Path) -> Result<Found> {
    let failed = |problem: String| Error::Data { path: archive.to_owned(), problem };
    let open = |path: &Path| File::open(path).map_err(at(archive));
    let (members, unpacked) = match file_kind(archive)? {
        FileKind::Tar | FileKind::Empty => (list(open(archive)?, archive)?, None),
        kind @ (FileKind::Gzip | FileKind::Zstd) => {
            let unpacked = unpacked(archive, kind)?;
            (list(open(unpacked.path())?, archive)?, Some(unpacked))
        }
        FileKind::Foreign(Foreign { kind, advice }) => {
            return Err(failed(format!("it is {kind}, not a tar archive; {advice}")));
        }
        // An archive of nothing may be nothing but zeros.
        FileKind::Unknown if is_zeros(archive)? => (list(open(archive)?, archive)?, None),
        _ => {
            let bytes = std::fs::metadata(archive).map_err(at(archive))?.len();
            let part = if bytes < 512 { " or only the beginning of one" } else { "" };
            return Err(failed(format!(
                "it is no tar archive{part}; download or make it again, or take it out of the data"
            )));
        }
    };
    let members = members.into_iter().filter(|member| !is_hidden(&member.name));
    let (pictures, others): (Vec<Member>, Vec<Member>) =
        members.partition(|member| is_picture_name(Path::new(&member.name)));
    let mut left_out = LeftOut::default();
    for member in &others {
        left_out.add_member(&archive.join(&member.name));
    }
    let file: Arc<Path> = archive.into();
    let item = |Member { name, offset, length }| {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Item { file: Arc::clone(&file), name, place: Place::Part { unpacked: unpacked.clone(), offset, length } }
    };
    Ok(Found { items: pictures.into_iter().map(item).collect(), left_out })
}

fn is_zeros(archive: &Path) -> Result<bool> {
    let mut head = vec![];
    File::open(archive).map_err(at(archive))?.take(512).read_to_end(&mut head).map_err(at(archive))?;
    Ok(head.len() == 512 && head.iter().all(|&byte| byte == 0))
}

/// Returns the plain archive, in a temporary file that is deleted with its last reader.
fn unpacked(archive: &Path, kind: FileKind) -> Result<Arc<NamedTempFile>> {
    let path = archive.canonicalize().map_err(at(archive))?;
    let mut all = UNPACKED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = all.get(&path).and_then(Weak::upgrade) {
        return Ok(known);
    }
    let temporary = NamedTempFile::new().map_err(at(std::env::temp_dir()))?;
    let source = BufReader::new(File::open(&path).map_err(at(archive))?);
    if kind == FileKind::Zstd {
        copy_zstd(source, &temporary, archive)?;
    } else {
        copy(flate2::bufread::MultiGzDecoder::new(source), &temporary, archive)?;
    }
    let unpacked = Arc::new(temporary);
    all.insert(path, Arc::downgrade(&unpacked));
    Ok(unpacked)
}

fn copy(mut from: impl Read, to: &NamedTempFile, archive: &Path) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut unpacked = 0;
    loop {
        let count = match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => return Err(broken_off(archive, unpacked, &error)),
        };
        unpacked += count;
        to.as_file().write_all(chunk.get(..count).unwrap_or_default()).map_err(at(to.path()))?;
    }
}

/// Decompresses Zstandard frames that follow each other; some hold nothing to unpack.
fn copy_zstd(mut from: impl Read, to: &NamedTempFile, archive: &Path) -> Result<()> {
    use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
    loop {
        let mut first = [0];
        if from.read(&mut first).map_err(at(archive))? == 0 {
            return Ok(());
        }
        let mut frame = first.as_slice().chain(&mut from);
        match ruzstd::decoding::StreamingDecoder::new(&mut frame) {
            Ok(decoder) => copy(decoder, to, archive)?,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                std::io::copy(&mut frame.take(u64::from(length)), &mut std::io::sink()).map_err(at(archive))?;
            }
            Err(error) => return Err(broken_off(archive, 0, &error)),
        }
    }
}

/// Creates the error of an archive that ends too early or is damaged; what the decompressor says is for developers.
fn broken_off(archive: &Path, unpacked: usize, error: &dyn std::fmt::Display) -> Error {
    tracing::debug!("{}: {error}", archive.display());
    let part = match unpacked {
        0 => "nothing of it".to_owned(),
        count => format!("only {} of it", counted(count, "byte")),
    };
    let problem = format!(
        "the compressed archive is cut off or damaged, {part} can be unpacked; download or make it again, or take it out \
         of the data"
    );
    Error::Data { path: archive.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FindSettings, Pictures, Split};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/datasets").join(name)
    }

    fn names(archive: &Path) -> std::result::Result<Vec<String>, String> {
        let found = pictures(archive).map_err(|error| error.to_string())?;
        Ok(found.items.into_iter().map(|item| item.name).collect())
    }

    /// Builds an archive of members of these names and lengths.
    fn archive(members: &[(&str, usize)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(vec![]);
        for (name, length) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(*length as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, vec![7; *length].as_slice()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn listed(folder: &tempfile::TempDir, bytes: &[u8]) -> std::result::Result<Vec<String>, String> {
        let path = folder.path().join("0.tar");
        std::fs::write(&path, bytes).unwrap();
        names(&path)
    }

    #[test]
    fn archives_of_other_programs_are_read() {
        let long = format!("a/{}/{}/long.png", "long".repeat(30), "name".repeat(30));
        for (file, expected) in [
            (
                "dot.tar",
                &[
                    "cat/0.png",
                    "cat/1.png",
                    "cat/2.png",
                    "cat/3.png",
                    "dog/0.png",
                    "dog/1.png",
                    "dog/2.png",
                    "dog/3.png",
                ][..],
            ),
            ("mac.tar", &["0.png", "1.png", "2.png", "3.png"]),
            ("gzip_named.tar", &["0.png"]),
            (
                "frames.tar.zst",
                &["x/0.png", "x/2.png", "x/4.png", "x/6.png", "y/1.png", "y/3.png", "y/5.png", "y/7.png"],
            ),
            ("links.tar", &["a/0.png", long.as_str(), "a/hard.png", "a/soft.png", "a/twice.png"]),
            ("pax.tar", &[long.as_str(), "a/0.png", "a/hard.png"]),
            ("sparse_gnu.tar", &["s/1.png"]),
            ("sparse_posix.tar", &["s/1.png"]),
        ] {
            assert_eq!(names(&fixture(file)).unwrap(), expected, "{file}");
            let settings = FindSettings::default();
            let pictures = Pictures::find(&fixture(file), &settings, Split::Train).unwrap();
            (0..pictures.len())
                .for_each(|idx| assert!(pictures.read(idx, crate::PictureFormat::new(3, 16)).is_ok(), "{file} {idx}"));
        }
        let error = names(&fixture("pictures.tar.xz")).unwrap_err();
        assert!(error.contains("an xz file") && error.contains("xz --decompress"), "{error}");
    }

    #[test]
    fn members_of_formats_that_are_not_read_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.tar");
        let found = |members: &[(&str, usize)]| {
            std::fs::write(&path, archive(members)).unwrap();
            pictures(&path).unwrap()
        };
        let mixed = found(&[("a.png", 1), ("b.heic", 1), ("c.AVIF", 1), ("._d.heic", 1), ("a.json", 1)]);
        assert_eq!(mixed.items.len(), 1);
        let said = mixed.left_out.no_pictures(&path).to_string();
        assert!(said.contains("1 AVIF picture and 1 HEIC picture (c.AVIF, b.heic)"), "{said}");
        assert!(found(&[("a.png", 1), ("a.json", 1), ("a.npy", 1)]).left_out.is_empty());
        found(&[("b.heic", 1)]);
        let error = Pictures::find(&path, &FindSettings::default(), Split::Train).unwrap_err();
        assert!(matches!(error, Error::OnlyUnreadPictures { .. }), "{error}");
        let error = crate::list_inputs(std::slice::from_ref(&path)).unwrap_err();
        assert!(matches!(error, Error::OnlyUnreadPictures { .. }), "{error}");
    }

    #[test]
    fn both_splits_share_what_is_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.tar");
        std::fs::copy(fixture("gzip_named.tar"), &path).unwrap();
        let open = || unpacked(&path, FileKind::Gzip).unwrap();
        let (first, second) = (open(), open());
        assert_eq!(first.path(), second.path());
        let temporary = first.path().to_owned();
        drop((first, second));
        assert!(!temporary.exists(), "what is unpacked goes with the last reader");
    }

    /// Checks that a cut is an error at any place but between two members.
    #[test]
    fn an_archive_that_is_cut_off_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let whole = archive(&[("a.png", 700), ("b.png", 512), ("c.png", 30)]);
        // Each header takes 512 bytes, each member is filled up to such blocks.
        let boundaries = [(1536, 1), (2560, 2), (3584, 3)];
        for end in (1..whole.len()).step_by(128).chain(boundaries.map(|(end, _)| end)) {
            let found = listed(&folder, &whole[..end]);
            let at_boundary = boundaries.iter().find(|(boundary, _)| *boundary == end);
            match (at_boundary, end) {
                (Some((_, count)), _) => assert_eq!(found.unwrap().len(), *count, "{end}"),
                (None, 0..=3584) => {
                    let error = found.unwrap_err();
                    let says = error.contains("cut off") || error.contains("only the beginning of one");
                    assert!(error.contains("0.tar") && says, "{end}: {error}");
                }
                (None, 3585..=4095) => assert!(found.unwrap_err().contains("inside its end mark"), "{end}"),
                _ => assert_eq!(found.unwrap().len(), 3, "{end}"),
            }
        }
        let error = listed(&folder, &whole[..2000]).unwrap_err();
        assert!(
            error.contains("after 2000 bytes, inside the header") && error.contains("1 member before is whole"),
            "{error}"
        );
        let error = listed(&folder, &whole[..900]).unwrap_err();
        assert!(error.contains("inside a.png, of which 388 of 700 bytes are there"), "{error}");
        assert!(
            names(&fixture("cut.tar")).unwrap_err().contains("inside 0002.png"),
            "{:?}",
            names(&fixture("cut.tar"))
        );
    }

    #[test]
    fn a_compressed_archive_that_is_cut_off_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["gzip_named.tar", "frames.tar.zst"] {
            let whole = std::fs::read(fixture(file)).unwrap();
            for share in [3, 2] {
                let path = folder.path().join(format!("{share}-{file}"));
                std::fs::write(&path, &whole[..whole.len() - whole.len().div_ceil(share + 1)]).unwrap();
                let error = names(&path).unwrap_err();
                assert!(error.contains(file) && error.contains("cut off"), "{error}");
                assert!(!error.contains('{') && !error.contains("Error"), "{error}");
            }
        }
    }

    #[test]
    fn damage_is_an_error_and_appended_archives_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let whole = archive(&[("a.png", 700), ("b.png", 512)]);
        let mut damaged = whole.clone();
        damaged[1536..2048].fill(b'x');
        let error = listed(&folder, &damaged).unwrap_err();
        assert!(error.contains("no header at byte 1536, after a.png"), "{error}");
        assert!(listed(&folder, &[]).unwrap_err().contains("the file is empty"));
        assert!(listed(&folder, &[b'x'; 2000]).unwrap_err().contains("no tar archive"));
        assert!(listed(&folder, b"<!DOCTYPE html><p>Not found").unwrap_err().contains("a web page"));
        assert_eq!(listed(&folder, &[0; 1024]).unwrap().len(), 0);
        let more = archive(&[("c.png", 1)]);
        assert_eq!(listed(&folder, &[&whole[..], &more].concat()).unwrap(), ["a.png", "b.png", "c.png"]);
        assert_eq!(listed(&folder, &[&whole[..], &[9; 700]].concat()).unwrap().len(), 2);
        // What was added under the same name replaces the first when it is unpacked.
        let twice = archive(&[("a.png", 5), ("b.png", 6), ("./a.png", 7)]);
        assert_eq!(listed(&folder, &twice).unwrap(), ["b.png", "a.png"]);
    }
}
