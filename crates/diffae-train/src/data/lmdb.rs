//! Pictures in an LMDB, in the layout of the released data sets: the key is `{resolution}-{index}` or the index alone,
//! the value an encoded picture; `length` is the count. Others are read by their keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, WithoutTls};

use super::folder::{Item, Place};
use crate::error::{Error, Result};

/// What makes a folder an LMDB.
const DATA_FILE: &str = "data.mdb";
/// The size of a database is a multiple of this, whatever the pages of the system are.
const PAGES_BYTES: usize = 1 << 16;
/// The key that is no picture.
const LENGTH_KEY: &[u8] = b"length";

/// What the reference implementation writes for the resolution of pictures that it stores in their own size.
const NO_RESOLUTION: &str = "None";

/// Lmdbs that are open; one may not be opened twice in a process.
static OPENED: Mutex<BTreeMap<PathBuf, Weak<Lmdb>>> = Mutex::new(BTreeMap::new());

/// An open database, never written to.
#[derive(Debug)]
pub struct Lmdb {
    path: PathBuf,
    env: Env<WithoutTls>,
}

/// Whether a folder is a database.
pub(super) fn is_database(folder: &Path) -> bool {
    folder.join(DATA_FILE).is_file()
}

/// The pictures of a database, of the largest resolution if it holds several.
pub(super) fn values(folder: &Path) -> Result<Vec<Item>> {
    let database = Lmdb::open(folder)?;
    let mut by_resolution: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for key in database.keys()? {
        if let Some(resolution) = resolution(&key) {
            by_resolution.entry(resolution).or_default().push(key);
        }
    }
    let largest = by_resolution.pop_last().map_or_else(Vec::new, |(_, keys)| keys);
    let file = folder.join(DATA_FILE);
    let item = |name| Item { file: file.clone(), name, place: Place::Value(Arc::clone(&database)) };
    Ok(largest.into_iter().map(item).collect())
}

/// That of `256-00012` is 256, that of `0000012` and `None-0000012` is 0; other keys have none.
fn resolution(key: &str) -> Option<u32> {
    let (resolution, index) = key.split_once('-').unwrap_or((NO_RESOLUTION, key));
    let is_index = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    let resolution = if resolution == NO_RESOLUTION { Some(0) } else { resolution.parse().ok() };
    resolution.filter(|_| is_index)
}

impl Lmdb {
    /// Whether a folder is a database.
    #[must_use]
    pub fn is_database(folder: &Path) -> bool {
        is_database(folder)
    }

    /// Opens a database. It must not change while it is open.
    ///
    /// # Errors
    /// If it is none.
    pub fn open(folder: &Path) -> Result<Arc<Self>> {
        let path = folder.canonicalize().map_err(crate::error::at(folder))?;
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = opened.get(&path).and_then(Weak::upgrade) {
            return Ok(database);
        }
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        #[expect(unsafe_code, reason = "heed's flags are unsafe, since some of them are")]
        // SAFETY: these only take rights away: nothing is written, and no lock file is made, which a read-only disk
        // could not hold.
        unsafe {
            options.flags(EnvFlags::READ_ONLY | EnvFlags::NO_LOCK)
        };
        #[expect(unsafe_code, reason = "opening a database maps its file")]
        // SAFETY: the file is mapped. Like any data set it must not change while a run reads it (docs/training.md);
        // values are copied out of the map before they are decoded.
        let env = unsafe { options.open(&path) }.map_err(|error| failed(&path, &error))?;
        let database = Arc::new(Self { path: path.clone(), env });
        opened.insert(path, Arc::downgrade(&database));
        Ok(database)
    }

    /// The keys that are text, in order, without `length`.
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

    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// If the database is damaged.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.reading(|reading, all| Ok(all.get(reading, key.as_bytes())?.map(<[u8]>::to_vec)))?.flatten())
    }

    /// The value of a key.
    ///
    /// # Errors
    /// If it has none, or the database is damaged.
    pub fn read(&self, key: &str) -> Result<Vec<u8>> {
        self.get(key)?
            .ok_or_else(|| Error::Data { path: self.path.clone(), problem: format!("there is no key {key} any more") })
    }

    /// Hands the values to `f`, if there are any.
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

/// A database that is being made; nobody else has it open.
#[derive(Debug)]
pub struct LmdbWriter {
    database: Lmdb,
}

impl LmdbWriter {
    /// Begins a database, or goes on with one, that will take `most_bytes` at most; the file is only as large as its
    /// contents.
    ///
    /// # Errors
    /// If the folder cannot be made, or holds something else, or somebody has the database open.
    pub fn open(folder: &Path, most_bytes: usize) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(crate::error::at(folder))?;
        let path = folder.canonicalize().map_err(crate::error::at(folder))?;
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(most_bytes.next_multiple_of(PAGES_BYTES));
        #[expect(unsafe_code, reason = "opening a database maps its file")]
        // SAFETY: the file is mapped. It is locked against other writers, and values are copied out of the map.
        let env = unsafe { options.open(&path) }.map_err(|error| failed(&path, &error))?;
        Ok(Self { database: Lmdb { path, env } })
    }

    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// If the database is damaged.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        self.database.get(key)
    }

    /// Writes values under their keys and deletes keys: all of it is done when this returns, or nothing.
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

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::data::{Pictures, Split};
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

    #[test]
    fn the_released_layouts_are_read() {
        let settings = crate::presets::config("smoke", &["data.validation_share=0".to_owned()]).unwrap().data;
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
            let values = second.read(0, 3, 4).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(values.iter().all(|value| (value - (shade / 127.5 - 1.)).abs() < 1e-6), "{values:?}");
            assert!(!folder.join("lock.mdb").exists() || std::fs::remove_file(folder.join("lock.mdb")).is_ok());
        }
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
        let settings = crate::presets::config("smoke", &[]).unwrap().data;
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join(DATA_FILE), vec![7; 5000]).unwrap();
        let error = Pictures::find(root.path(), &settings, Split::Train).unwrap_err().to_string();
        assert!(error.contains("LMDB"), "{error}");
        assert_eq!((resolution("256-00012"), resolution("0000012"), resolution("length")), (Some(256), Some(0), None));
    }
}
