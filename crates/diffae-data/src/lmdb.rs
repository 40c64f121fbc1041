//! Pictures in an LMDB. In the layout of the released data sets the key is `{resolution}-{index}` or the index alone, the
//! value an encoded picture, and `length` the count. Of other databases, such as LSUN's, all values that are encoded
//! pictures are read in the order of their keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, WithoutTls};

use crate::error::{Error, Result, at};
use crate::file_kind::{LMDB_MAGIC_AT, is_meta_page, is_picture};
use crate::notices::{counted, warn_once};
use crate::source::{Item, Place, Values};

/// Name of the file in a folder that is an LMDB.
const DATA_FILE: &str = "data.mdb";
/// Divisor of the size of every database, whatever the page size of the system.
const PAGES_BYTES: usize = 1 << 16;
/// Key of the count, which is not a picture.
const LENGTH_KEY: &[u8] = b"length";

/// Offsets in a meta page, the first of a file, the size of pages, the number of the last page and
/// of the last transaction, on 64-bit machines.
const PAGE_SIZE_AT: usize = 40;
const LAST_PAGE_AT: usize = 136;
const TRANSACTION_AT: usize = 144;
const META_BYTES: usize = 152;
/// Maximum number of values that are inspected before all are taken for pictures.
const MAX_TRIED: usize = 64;

/// The resolution that the reference implementation writes for pictures stored in their own size.
const NO_RESOLUTION: &str = "None";

/// Open databases; one may not be opened twice in a process.
static OPENED: Mutex<BTreeMap<PathBuf, Weak<Lmdb>>> = Mutex::new(BTreeMap::new());

/// An open database, never written to.
#[derive(Debug)]
pub struct Lmdb {
    path: PathBuf,
    env: Env<WithoutTls>,
}

/// Returns whether a folder is a database.
pub(crate) fn is_database(folder: &Path) -> bool {
    folder.join(DATA_FILE).is_file()
}

/// Returns whether a file with this ending may be a database of one file.
pub(crate) fn is_database_name(ending: &str) -> bool {
    matches!(ending, "lmdb" | "mdb")
}

/// Lists the pictures of a database, a folder or a single file: those of the largest resolution if its keys are the
/// released data sets', otherwise all in the order of the keys.
///
/// # Errors
/// If it is damaged, cut off or locked, or holds no encoded pictures.
pub(crate) fn values(path: &Path) -> Result<Vec<Item>> {
    let database = Lmdb::open(path)?;
    let mut by_resolution: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for key in database.keys()? {
        if let Some(resolution) = resolution(&key) {
            by_resolution.entry(resolution).or_default().push(key);
        }
    }
    let names = by_resolution.pop_last().map_or_else(|| database.pictures(path), |(_, keys)| Ok(keys))?;
    let file: Arc<Path> = if path.is_dir() { path.join(DATA_FILE).into() } else { path.into() };
    let values: Arc<dyn Values> = database;
    let item = |name| Item { file: Arc::clone(&file), name, place: Place::Value(Arc::clone(&values)) };
    Ok(names.into_iter().map(item).collect())
}

/// Fails if the file is shorter than its own count of pages: a read beyond its end would kill the process.
fn check_whole(file: &Path) -> Result<()> {
    let failed = |problem: String| Error::Data { path: file.to_owned(), problem };
    let length = std::fs::metadata(file).map_err(at(file))?.len();
    if length == 0 {
        return Err(failed("the LMDB is an empty file; download or make it again".to_owned()));
    }
    let head = read_meta(file, 0).map_err(at(file))?;
    if !is_meta_page(&head) {
        return Err(failed("it is no LMDB; download or make it again".to_owned()));
    }
    let page = u64::from(number(&head, PAGE_SIZE_AT, 4).try_into().unwrap_or(0_u32));
    let is_known =
        number(&head, LMDB_MAGIC_AT + 4, 4) == 1 && page.is_power_of_two() && (256..=1 << 16).contains(&page);
    // The meta page of the last transaction counts.
    let second = read_meta(file, page).unwrap_or_default();
    let metas = [&head, &second].into_iter().filter(|meta| is_meta_page(meta));
    let newest = metas.max_by_key(|meta| number(meta, TRANSACTION_AT, 8));
    let pages = newest.map_or(0, |meta| number(meta, LAST_PAGE_AT, 8).saturating_add(1));
    let needed = pages.saturating_mul(page);
    if is_known && length < needed {
        return Err(failed(format!(
            "the LMDB is cut off: {length} of {} are there; download or copy it again",
            counted(needed, "byte")
        )));
    }
    Ok(())
}

fn read_meta(file: &Path, offset: u64) -> std::io::Result<Vec<u8>> {
    super::tar_members::read_part(file, offset, META_BYTES)
}

/// Reads a little-endian number.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let digits = bytes.get(at..at + width).unwrap_or_default();
    digits.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

/// Parses the resolution of a key: 256 for `256-00012`, 0 for `0000012` and `None-0000012`; other keys have none.
fn resolution(key: &str) -> Option<u32> {
    let (resolution, index) = key.split_once('-').unwrap_or((NO_RESOLUTION, key));
    let is_index = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    let resolution = if resolution == NO_RESOLUTION { Some(0) } else { resolution.parse().ok() };
    resolution.filter(|_| is_index)
}

impl Lmdb {
    /// Returns whether a folder is a database.
    #[must_use]
    pub fn is_database(folder: &Path) -> bool {
        is_database(folder)
    }

    /// Opens a database, a folder or a single file. It must not change while it is open.
    ///
    /// # Errors
    /// If it is none, or its file is cut off.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let given = path;
        let path = given.canonicalize().map_err(at(given))?;
        let is_file = path.is_file();
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = opened.get(&path).and_then(Weak::upgrade) {
            return Ok(database);
        }
        check_whole(&if is_file { given.to_owned() } else { given.join(DATA_FILE) })?;
        let single = if is_file { EnvFlags::NO_SUB_DIR } else { EnvFlags::empty() };
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        #[expect(unsafe_code, reason = "heed's flags are unsafe, since some of them are")]
        // SAFETY: these only take rights away: nothing is written, and no lock file is made, which a read-only disk
        // could not hold.
        unsafe {
            options.flags(EnvFlags::READ_ONLY | EnvFlags::NO_LOCK | single)
        };
        #[expect(unsafe_code, reason = "opening a database maps its file")]
        // SAFETY: the file is mapped. Like any data set it must not change while a run reads it (docs/training.md);
        // values are copied out of the map before they are decoded.
        let env = unsafe { options.open(&path) }.map_err(|error| failed(&path, &error))?;
        let database = Arc::new(Self { path: path.clone(), env });
        opened.insert(path, Arc::downgrade(&database));
        Ok(database)
    }

    /// Lists the keys that are text, in order, without `length`.
    ///
    /// # Errors
    /// If the database is damaged.
    pub fn keys(&self) -> Result<Vec<String>> {
        self.reading(|reading, all| {
            let mut keys = vec![];
            for entry in all.iter(reading)? {
                let (key, _) = entry?;
                let text = std::str::from_utf8(key).ok().filter(|_| key != LENGTH_KEY);
                keys.extend(text.map(str::to_owned));
            }
            Ok(keys)
        })
        .map(Option::unwrap_or_default)
    }

    /// Lists the keys of encoded pictures, in order. If the first values are pictures, all are taken for pictures:
    /// inspecting each would read most of the file.
    fn pictures(&self, given: &Path) -> Result<Vec<String>> {
        let failed = |problem: &str| Error::Data { path: given.to_owned(), problem: problem.to_owned() };
        let (mut keys, mut others, mut no_text) = (vec![], 0, 0);
        self.reading(|reading, all| {
            for (idx, entry) in all.iter(reading)?.enumerate() {
                let (key, value) = entry?;
                let is_tried = idx < MAX_TRIED || others > 0;
                match std::str::from_utf8(key) {
                    _ if is_tried && !is_picture(value) => others += 1,
                    Ok(key) if key.as_bytes() != LENGTH_KEY => keys.push(key.to_owned()),
                    Ok(_) => {}
                    Err(_) => no_text += 1,
                }
            }
            Ok(())
        })?;
        if keys.is_empty() {
            let advice = match (no_text, others) {
                (0, 0) => "the LMDB is empty",
                (0, _) => "the values of the LMDB are no encoded pictures; write it with PNG, JPEG or WebP values",
                _ => "the keys of the LMDB are no text; write it with keys that are",
            };
            return Err(failed(advice));
        }
        for (count, text) in [(others, "no encoded picture"), (no_text, "under a key that is no text")] {
            if count > 0 {
                warn_once(&format!("{}: {} left out: {text}", given.display(), counted(count, "value")));
            }
        }
        Ok(keys)
    }

    /// Returns the value of a key, if present.
    ///
    /// # Errors
    /// If the database is damaged.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.reading(|reading, all| Ok(all.get(reading, key.as_bytes())?.map(<[u8]>::to_vec)))?.flatten())
    }

    /// Returns the value of a key.
    ///
    /// # Errors
    /// If it has none, or the database is damaged.
    pub fn read(&self, key: &str) -> Result<Vec<u8>> {
        self.get(key)?
            .ok_or_else(|| Error::Data { path: self.path.clone(), problem: format!("there is no key {key} any more") })
    }

    /// Passes the values to `f`, if there are any.
    fn reading<R>(
        &self,
        f: impl FnOnce(&RoTxn<'_, WithoutTls>, &Database<'_, Bytes, Bytes>) -> heed::Result<R>,
    ) -> Result<Option<R>> {
        let found = || -> heed::Result<Option<R>> {
            let ended = self.env.open_databases_and_commit(self.env.read_txn()?, |opener, reading| {
                let all = opener.open_database::<Bytes, Bytes>(reading, None)?;
                let result = all.map(|all| f(reading, &all)).transpose()?;
                heed::Result::Ok(CommitOrAbort::<(), _>::Abort(result))
            })?;
            Ok(match ended {
                CommitOrAbort::Abort(result) => result,
                CommitOrAbort::Commit(()) => None,
            })
        };
        found().map_err(|error| failed(&self.path, &error))
    }
}

/// A database under construction; nobody else has it open.
#[derive(Debug)]
pub struct LmdbWriter {
    database: Lmdb,
}

impl LmdbWriter {
    /// Creates or continues a database of at most `max_bytes`; the file is only as large as its contents.
    ///
    /// # Errors
    /// If the folder cannot be made, or holds something else, or somebody has the database open.
    pub fn open(folder: &Path, max_bytes: usize) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(at(folder))?;
        let path = folder.canonicalize().map_err(at(folder))?;
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(max_bytes.next_multiple_of(PAGES_BYTES));
        #[expect(unsafe_code, reason = "opening a database maps its file")]
        // SAFETY: the file is mapped. It is locked against other writers, and values are copied out of the map.
        let env = unsafe { options.open(&path) }.map_err(|error| failed(&path, &error))?;
        Ok(Self { database: Lmdb { path, env } })
    }

    /// Returns the value of a key, if present.
    ///
    /// # Errors
    /// If the database is damaged.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.database.get(key)
    }

    /// Writes values under their keys and deletes keys, in one transaction.
    ///
    /// # Errors
    /// If the disk or the database is full.
    pub fn write(&self, entries: &[(String, Vec<u8>)], deleted: &[&str]) -> Result<()> {
        let env = &self.database.env;
        let write = || -> heed::Result<()> {
            env.create_databases_and_commit(env.write_txn()?, |opener, writing| {
                let all = opener.create_database::<Bytes, Bytes>(writing, None)?;
                for (key, value) in entries {
                    all.put(writing, key.as_bytes(), value)?;
                }
                for key in deleted {
                    all.delete(writing, key.as_bytes())?;
                }
                heed::Result::Ok(CommitOrAbort::<(), ()>::Commit(()))
            })
            .map(|_| ())
        };
        write().map_err(|error| {
            let problem = format!("the LMDB cannot be written: {error}");
            Error::Data { path: self.database.path.clone(), problem }
        })
    }
}

fn failed(path: &Path, error: &heed::Error) -> Error {
    Error::Data { path: path.to_owned(), problem: format!("the LMDB cannot be read: {error}") }
}

impl Values for Lmdb {
    fn value(&self, name: &str) -> Result<Vec<u8>> {
        self.read(name)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::{FindSettings, Pictures, Split};
    use image::{ImageFormat, Rgb, RgbImage};

    fn write(folder: &Path, entries: &[(&str, Vec<u8>)]) {
        let entries: Vec<_> = entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        LmdbWriter::open(folder, 1 << 20).unwrap().write(&entries, &[]).unwrap();
    }

    fn picture(shade: u8, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(vec![]);
        RgbImage::from_pixel(4, 4, Rgb([shade; 3])).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// Checks that every pixel of the first picture has a shade of gray, of 255.
    fn assert_first_shade(pictures: &Pictures, shade: f32) {
        let picture = pictures.read(0, crate::PictureFormat::new(3, 4)).unwrap();
        let values = picture.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|value| (value - (shade / 127.5 - 1.)).abs() < 1e-6), "{values:?}");
    }

    #[test]
    fn the_released_layouts_are_read() {
        let settings = FindSettings::default();
        let root = tempfile::tempdir().unwrap();
        let [sized, plain, own] = ["sized", "plain", "own"].map(|name| root.path().join(name));
        let dark = || picture(10, ImageFormat::Png);
        write(
            &sized,
            &[
                ("128-00000", dark()),
                ("256-00000", picture(250, ImageFormat::WebP)),
                ("256-00001", dark()),
                ("length", b"2".to_vec()),
            ],
        );
        write(&plain, &[("0000000", dark()), ("0000001", dark()), ("length", b"2".to_vec())]);
        write(&own, &[("None-0000000", dark()), ("None-0000001", dark()), ("length", b"2".to_vec())]);
        for (folder, names, shade) in [
            (&sized, ["256-00000", "256-00001"], 250.),
            (&plain, ["0000000", "0000001"], 10.),
            (&own, ["None-0000000", "None-0000001"], 10.),
        ] {
            let [first, second] = [(); 2].map(|()| Pictures::find(folder, &settings, Split::Train).unwrap());
            assert_eq!((0..first.len()).map(|idx| first.name(idx)).collect::<Vec<_>>(), names);
            assert_first_shade(&second, shade);
            assert!(!folder.join("lock.mdb").exists() || std::fs::remove_file(folder.join("lock.mdb")).is_ok());
        }
    }

    #[test]
    fn other_databases_are_read_in_the_order_of_their_keys() {
        let settings = FindSettings::default();
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("lsun");
        let entries =
            [("ff0a", 250), ("00c1", 10), ("7b", 90)].map(|(key, shade)| (key, picture(shade, ImageFormat::WebP)));
        write(&folder, &[&entries[..], &[("info", b"text".to_vec())]].concat());
        let names = |path: &Path| {
            let pictures = Pictures::find(path, &settings, Split::Train).unwrap();
            assert_first_shade(&pictures, 10.);
            (0..pictures.len()).map(|idx| pictures.name(idx)).collect::<Vec<_>>()
        };
        assert_eq!(names(&folder), ["00c1", "7b", "ff0a"]);
        // One file without a folder of its own, named or in the folder of the data.
        let data = root.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::copy(folder.join(DATA_FILE), data.join("single.lmdb")).unwrap();
        assert_eq!(names(&data.join("single.lmdb")), ["00c1", "7b", "ff0a"]);
        assert_eq!(names(&data), ["00c1", "7b", "ff0a"]);
        // Cut off: the map of the file would end before its pages do.
        let bytes = std::fs::read(data.join("single.lmdb")).unwrap();
        let cut = root.path().join("cut.lmdb");
        std::fs::write(&cut, &bytes[..bytes.len() - 4096]).unwrap();
        let error = Pictures::find(&cut, &settings, Split::Train).unwrap_err().to_string();
        assert!(error.contains("cut.lmdb") && error.contains("cut off"), "{error}");
        write(&root.path().join("numbers"), &[("a", b"1".to_vec())]);
        let error = Pictures::find(&root.path().join("numbers"), &settings, Split::Train).unwrap_err().to_string();
        assert!(error.contains("no encoded pictures"), "{error}");
    }

    #[test]
    fn a_database_is_continued_and_its_keys_may_go() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("made");
        write(&folder, &[("b", vec![1]), ("state", vec![2])]);
        let writer = LmdbWriter::open(&folder, 1 << 20).unwrap();
        assert_eq!(writer.get("state").unwrap(), Some(vec![2]));
        writer.write(&[("a".to_owned(), vec![3]), ("length".to_owned(), b"2".to_vec())], &["state"]).unwrap();
        assert!(writer.write(&[("c".to_owned(), vec![0; 2 << 20])], &["a"]).is_err(), "it is full");
        drop(writer);
        let database = Lmdb::open(&folder).unwrap();
        assert_eq!(database.keys().unwrap(), ["a", "b"]);
        assert_eq!((database.read("a").unwrap(), database.get("state").unwrap()), (vec![3], None));
        assert!(database.read("state").unwrap_err().to_string().contains("state"));
    }

    #[test]
    fn what_is_no_database_is_named() {
        let settings = FindSettings::default();
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(DATA_FILE), vec![7; 5000]).unwrap();
        let error = Pictures::find(root.path(), &settings, Split::Train).unwrap_err().to_string();
        assert!(error.contains("LMDB"), "{error}");
        assert_eq!((resolution("256-00012"), resolution("0000012"), resolution("length")), (Some(256), Some(0), None));
    }
}
