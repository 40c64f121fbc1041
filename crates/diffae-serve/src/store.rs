//! Codes by their ids, of limited number and lifetime.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diffae_infer::Codes;
use image::RgbImage;

use crate::error::{Error, Result};

/// Maximum number of entries; the one that was not used for the longest makes room.
const MAX_ENTRIES: usize = 64;
/// Time after its last use at which an entry is dropped.
const LIFETIME: Duration = Duration::from_hours(1);

/// A picture with its codes.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Name without folder and ending.
    pub(crate) name: String,
    /// The codes of one picture.
    pub(crate) codes: Codes,
    /// The picture at the size of the model; `None` for a sample.
    pub(crate) original: Option<RgbImage>,
    /// Seed and number of a sample, which give the noise of samplers that add some.
    pub(crate) drawn: Option<(u64, u64)>,
    /// The decoded codes.
    pub(crate) reconstruction: RgbImage,
    /// PSNR of the reconstruction in dB; `None` if there is no original, or nothing differs.
    pub(crate) psnr: Option<f64>,
    /// Warning that the model was not made for such pictures.
    pub(crate) warning: Option<String>,
}

#[derive(Debug)]
struct Kept {
    entry: Arc<Entry>,
    used: Instant,
}

/// Entries by their ids.
#[derive(Debug, Default)]
pub(crate) struct Store(Mutex<HashMap<String, Kept>>);

impl Store {
    /// Adds an entry, in place of one of the same id.
    pub(crate) fn add(&self, id: String, entry: Arc<Entry>) {
        self.add_at(id, entry, Instant::now());
    }

    fn add_at(&self, id: String, entry: Arc<Entry>, now: Instant) {
        let mut kept = self.kept();
        kept.retain(|_, kept| now.duration_since(kept.used) < LIFETIME);
        if kept.len() >= MAX_ENTRIES && !kept.contains_key(&id) {
            let oldest = kept.iter().min_by_key(|(id, kept)| (kept.used, id.as_str())).map(|(id, _)| id.clone());
            oldest.map(|oldest| kept.remove(&oldest));
        }
        kept.insert(id, Kept { entry, used: now });
    }

    /// Returns an entry.
    ///
    /// # Errors
    /// [`Error::UnknownCodes`].
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Entry>> {
        self.get_at(id, Instant::now())
    }

    fn get_at(&self, id: &str, now: Instant) -> Result<Arc<Entry>> {
        let mut kept = self.kept();
        let found = kept.get_mut(id).filter(|kept| now.duration_since(kept.used) < LIFETIME);
        let Some(found) = found else { return Err(Error::UnknownCodes { id: id.to_owned() }) };
        found.used = now;
        Ok(Arc::clone(&found.entry))
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Arc<Entry> {
        let codes = Codes { z_sem: None, x_terminal: None, chain: None, names: vec![], fingerprint: String::new() };
        let reconstruction = RgbImage::new(1, 1);
        Arc::new(Entry {
            name: "a".to_owned(),
            codes,
            original: None,
            drawn: None,
            reconstruction,
            psnr: None,
            warning: None,
        })
    }

    #[test]
    fn entries_are_limited_in_number_and_in_time() {
        let (store, start) = (Store::default(), Instant::now());
        for number in 0..MAX_ENTRIES as u64 {
            store.add_at(number.to_string(), entry(), start + Duration::from_secs(number));
        }
        let later = start + Duration::from_secs(100);
        store.get_at("0", later).unwrap();
        store.add_at("new".to_owned(), entry(), later);
        assert!(store.get_at("0", later).is_ok(), "it was used");
        assert!(matches!(store.get_at("1", later), Err(Error::UnknownCodes { .. })), "it was not");
        assert!(store.get_at("2", later).is_ok());
        assert!(store.get_at("new", later + LIFETIME).is_err());
    }
}
