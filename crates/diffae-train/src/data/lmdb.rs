//! Pictures in an LMDB, in the layout of the released data sets: the key is `{resolution}-{index}` or the index alone,
//! the value an encoded picture; `length` is the count.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, WithoutTls};

use super::folder::{Item, Place};
use crate::error::{Error, Result};

/// What makes a folder an LMDB.
const DATA_FILE: &str = "data.mdb";
/// The key that is no picture.
const LENGTH_KEY: &[u8] = b"length";

/// Lmdbs that are open; one may not be opened twice in a process.
static OPENED: Mutex<BTreeMap<PathBuf, Weak<Lmdb>>> = Mutex::new(BTreeMap::new());

/// An open database, never written to.
#[derive(Debug)]
pub(super) struct Lmdb {
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

/// That of `256-00012` is 256, that of `0000012` is 0; other keys have none.
fn resolution(key: &str) -> Option<u32> {
    let (resolution, index) = key.split_once('-').unwrap_or(("0", key));
    let is_index = !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit());
    resolution.parse().ok().filter(|_| is_index)
}

impl Lmdb {
    fn open(folder: &Path) -> Result<Arc<Self>> {
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

    fn keys(&self) -> Result<Vec<String>> {
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

    /// The value of a key.
    pub(super) fn read(&self, key: &str) -> Result<Vec<u8>> {
        let value = self.reading(|reading, all| Ok(all.get(reading, key.as_bytes())?.map(<[u8]>::to_vec)))?.flatten();
        value.ok_or_else(|| Error::Data { path: self.path.clone(), problem: format!("there is no key {key} any more") })
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

fn failed(path: &Path, error: &heed::Error) -> Error {
    Error::Data { path: path.to_owned(), problem: format!("the LMDB cannot be read: {error}") }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::data::{Pictures, Split};
    use image::{ImageFormat, Rgb, RgbImage};

    /// Writes a database as the Python tools do.
    fn write(folder: &Path, entries: &[(&str, Vec<u8>)]) {
        std::fs::create_dir_all(folder).unwrap();
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(1 << 20);
        #[expect(unsafe_code, reason = "opening a database maps its file")]
        // SAFETY: nobody else has the file.
        let env = unsafe { options.open(folder) }.unwrap();
        let all = env.create_databases_and_commit(env.write_txn().unwrap(), |opener, writing| {
            opener.create_database::<Bytes, Bytes>(writing, None).map(CommitOrAbort::<_, ()>::Commit)
        });
        let all = all.map_err(|error: heed::Error| error).unwrap().unwrap_commit();
        let mut writing = env.write_txn().unwrap();
        for (key, value) in entries {
            all.put(&mut writing, key.as_bytes(), value).unwrap();
        }
        writing.commit().unwrap();
        env.prepare_for_closing().wait();
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
        let (sized, plain) = (root.path().join("sized.lmdb"), root.path().join("plain.lmdb"));
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
        for (folder, names, shade) in
            [(&sized, ["256-00000", "256-00001"], 250.), (&plain, ["0000000", "0000001"], 10.)]
        {
            let [first, second] = [(); 2].map(|()| Pictures::find(folder, &settings, Split::Train).unwrap());
            assert_eq!((0..first.len()).map(|idx| first.name(idx)).collect::<Vec<_>>(), names);
            let values = second.read(0, 3, 4).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(values.iter().all(|value| (value - (shade / 127.5 - 1.)).abs() < 1e-6), "{values:?}");
            assert!(!folder.join("lock.mdb").exists() || std::fs::remove_file(folder.join("lock.mdb")).is_ok());
        }
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
