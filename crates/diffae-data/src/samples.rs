//! Selection of one picture per sample: in a `WebDataset`, members that are named alike up to the first dot belong
//! together, and the rest of the name is the key of each.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::error::{Error, Result};
use crate::names::is_array_name;
use crate::notices::{counted, inform_once, warn_once};
use crate::source::Item;

/// Names by which data sets call the picture itself, in the order of preference.
pub(crate) const PICTURE_NAMES: [&str; 9] = ["image", "img", "picture", "photo", "pic", "jpg", "jpeg", "png", "webp"];
/// The setting that takes every picture.
pub(crate) const EVERY: &str = "*";
/// Maximum number of numeric keys; more are numbered pictures.
const MAX_NUMBERED_KEYS: usize = 16;

/// Keeps one picture per sample of archives: the one with the key in `setting` (`;` between alternatives), or, if it is
/// empty, the one whose key is the ending of a picture alone: `jpg` of `jpg` and `seg.png`.
///
/// # Errors
/// [`Error::Data`] if no sample has the key of the setting, or it is unclear which picture of a sample is meant.
pub(crate) fn one_a_sample(items: Vec<Item>, setting: &str, root: &Path) -> Result<Vec<Item>> {
    if items.is_empty() || setting == EVERY {
        return Ok(items);
    }
    let items = if setting.is_empty() { without_arrays_beside(items) } else { items };
    let samples = Samples::new(&items);
    let chosen = if setting.is_empty() { samples.choose(root)? } else { samples.with_key(setting, root)? };
    let is_chosen = |(idx, _): &(usize, Item)| chosen.contains(idx);
    Ok(items.into_iter().enumerate().filter(is_chosen).map(|(_, item)| item).collect())
}

/// Leaves out the arrays of samples that have a picture for the eye.
fn without_arrays_beside(items: Vec<Item>) -> Vec<Item> {
    let sample = |item: &Item| (item.file.clone(), split(&item.name).0.to_owned());
    let is_array = |item: &Item| is_array_name(Path::new(&item.name));
    if !items.iter().any(is_array) {
        return items;
    }
    let with_picture: BTreeSet<_> = items.iter().filter(|item| !is_array(item)).map(sample).collect();
    items.into_iter().filter(|item| !is_array(item) || !with_picture.contains(&sample(item))).collect()
}

/// A picture of an archive, by its sample and key.
struct Picture<'a> {
    archive: &'a Path,
    sample: &'a str,
    key: Cow<'a, str>,
    /// Place among the items.
    idx: usize,
}

/// Pictures by sample.
struct Samples<'a> {
    /// All pictures, those of a sample side by side.
    pictures: Vec<Picture<'a>>,
    /// Number of pictures for each key.
    keys: BTreeMap<Cow<'a, str>, usize>,
}

impl<'a> Samples<'a> {
    fn new(items: &'a [Item]) -> Self {
        let (mut pictures, mut keys) = (Vec::with_capacity(items.len()), BTreeMap::new());
        for (idx, item) in items.iter().enumerate() {
            let (sample, key) = split(&item.name);
            *keys.entry(key.clone()).or_default() += 1;
            pictures.push(Picture { archive: &item.file, sample, key, idx });
        }
        pictures.sort_by_key(|picture| (picture.archive, picture.sample));
        Self { pictures, keys }
    }

    /// Iterates over the pictures of each sample.
    fn samples(&self) -> impl Iterator<Item = &[Picture<'a>]> {
        self.pictures.chunk_by(|a, b| (a.archive, a.sample) == (b.archive, b.sample))
    }

    /// Lists the keys with their counts: `jpg (40), seg.png (40)`.
    fn listed(&self) -> String {
        let mut keys: Vec<(&Cow<'_, str>, &usize)> = self.keys.iter().collect();
        keys.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let shown = keys.iter().take(MAX_NUMBERED_KEYS).map(|(key, count)| format!("{key} ({count})"));
        let more = if keys.len() > MAX_NUMBERED_KEYS { ", .." } else { "" };
        shown.collect::<Vec<_>>().join(", ") + more
    }

    /// Returns, for each sample, the picture of the first of the wanted keys that it has.
    fn with_key(&self, setting: &str, root: &Path) -> Result<BTreeSet<usize>> {
        let wanted: Vec<String> =
            setting.split(';').map(|key| key.trim().trim_start_matches('.').to_ascii_lowercase()).collect();
        let of_sample = |pictures: &[Picture<'_>]| {
            let with =
                |wanted: &String| pictures.iter().find(|picture| picture.key == *wanted).map(|picture| picture.idx);
            wanted.iter().find_map(with)
        };
        let chosen: BTreeSet<usize> = self.samples().filter_map(of_sample).collect();
        let without = self.samples().count() - chosen.len();
        if chosen.is_empty() {
            let problem = format!("no sample has a picture under --picture-key {setting}; there are {}", self.listed());
            return Err(Error::Data { path: root.to_owned(), problem });
        }
        let name = root.display();
        if without > 0 {
            warn_once(&format!("{name}: {} without {setting} left out", counted(without, "sample")));
        }
        inform_once(&format!("{name}: pictures under the keys {}; {setting} is taken", self.listed()));
        Ok(chosen)
    }

    fn choose(&self, root: &Path) -> Result<BTreeSet<usize>> {
        let (mut chosen, mut taken, mut passed_over) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let are_numbered = self.are_numbered();
        for pictures in self.samples().filter(|pictures| pictures.len() > 1) {
            let keys: Vec<&str> = pictures.iter().map(|picture| &*picture.key).collect();
            match preferred(&keys).map_err(|keys| unclear(root, pictures[0].sample, &keys))? {
                Some(place) => {
                    chosen.insert(pictures[place].idx);
                    taken.insert(keys[place]);
                    passed_over.extend(keys.iter().copied().filter(|other| *other != keys[place]));
                }
                // Names with dots in them, such as `cat.001.png`, are no samples.
                None if are_numbered || keys.iter().all(|key| self.keys.get(*key) == Some(&1)) => {
                    chosen.extend(pictures.iter().map(|picture| picture.idx));
                }
                None => return Err(unclear(root, pictures[0].sample, &keys)),
            }
        }
        let mut alone = 0;
        for Picture { key, idx, .. } in self.samples().filter(|pictures| pictures.len() == 1).flatten() {
            if key.contains('.') && passed_over.contains(&**key) {
                alone += 1;
            } else {
                chosen.insert(*idx);
            }
        }
        let (name, found) = (root.display(), self.listed());
        if let Some(other) = passed_over.iter().find(|key| !taken.contains(*key)) {
            let taken = taken.into_iter().collect::<Vec<_>>().join(" or ");
            warn_once(&format!(
                "{name}: samples hold several pictures, under the keys {found}; {taken} is taken, one picture a sample \
                 (--picture-key {other} takes another, --picture-key \"*\" all)"
            ));
        } else {
            inform_once(&format!("{name}: pictures under the keys {found}; each is taken"));
        }
        if alone > 0 {
            warn_once(&format!("{name}: {} without a picture under that key left out", counted(alone, "sample")));
        }
        Ok(chosen)
    }

    /// Returns whether so many keys with dots are numbers that they count pictures, as in `2026.01.31.jpg`.
    fn are_numbered(&self) -> bool {
        let is_number = |key: &str| key.rsplit_once('.').is_some_and(|(middle, _)| is_numeric(middle));
        self.keys.keys().filter(|key| is_number(key)).count() > MAX_NUMBERED_KEYS
    }
}

fn is_numeric(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_'))
}

/// Returns the place of the one key that is an ending alone, else of the one that is called a picture; fails with the keys
/// if they are ambiguous, and returns `None` if no key decides.
fn preferred<'a>(keys: &[&'a str]) -> std::result::Result<Option<usize>, Vec<&'a str>> {
    let plain: Vec<usize> = (0..keys.len()).filter(|place| !keys[*place].contains('.')).collect();
    match plain.as_slice() {
        [one] => Ok(Some(*one)),
        [] => {
            let called = |name: &&str| {
                let is_called = |key: &str| key.rsplit_once('.').is_some_and(|(middle, _)| middle == *name);
                let mut with = (0..keys.len()).filter(|place| is_called(keys[*place]));
                with.next().filter(|_| with.next().is_none())
            };
            Ok(PICTURE_NAMES.iter().find_map(called))
        }
        several => Err(several.iter().map(|place| keys[*place]).collect()),
    }
}

fn unclear(root: &Path, sample: &str, keys: &[&str]) -> Error {
    let problem = format!(
        "sample {sample} holds several pictures, under the keys {}; choose one by --picture-key KEY, or every picture by \
         --picture-key \"*\"",
        keys.join(", ")
    );
    Error::Data { path: root.to_owned(), problem }
}

/// Splits the name of a member into sample and key: `a/b` and `seg.png` of `a/b.seg.png`.
fn split(name: &str) -> (&str, Cow<'_, str>) {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name.get(base..).and_then(|base| base.find('.')).map_or(name.len(), |dot| base + dot);
    let key = name.get(dot + 1..).unwrap_or_default();
    let has_capitals = key.bytes().any(|byte| byte.is_ascii_uppercase());
    let key = if has_capitals { Cow::Owned(key.to_ascii_lowercase()) } else { Cow::Borrowed(key) };
    (name.get(..dot).unwrap_or(name), key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Place;

    fn chosen(names: &[&str], setting: &str) -> std::result::Result<Vec<String>, String> {
        let place = || Place::Part { unpacked: None, offset: 0, length: 0 };
        let item = |name: &&str| Item { file: Path::new("0.tar").into(), name: (*name).to_owned(), place: place() };
        let kept = one_a_sample(names.iter().map(item).collect(), setting, Path::new("shards"));
        kept.map(|items| items.into_iter().map(|item| item.name).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_plain_ending_is_the_picture() {
        let masks = ["0.jpg", "0.seg.png", "1.jpg", "1.seg.png", "2.seg.png", "3.jpg"];
        assert_eq!(chosen(&masks, "").unwrap(), ["0.jpg", "1.jpg", "3.jpg"]);
        let mixed = ["a/0.png", "a/0.depth.png", "a/1.webp", "a/1.depth.png"];
        assert_eq!(chosen(&mixed, "").unwrap(), ["a/0.png", "a/1.webp"]);
        assert_eq!(chosen(&["0.image.png", "0.mask.png", "1.image.png", "1.mask.png"], "").unwrap().len(), 2);
    }

    #[test]
    fn a_setting_chooses() {
        let masks = ["0.jpg", "0.seg.png", "1.jpg", "1.seg.png", "2.jpg"];
        assert_eq!(chosen(&masks, "seg.png").unwrap(), ["0.seg.png", "1.seg.png"]);
        assert_eq!(chosen(&masks, ".SEG.png;jpg").unwrap(), ["0.seg.png", "1.seg.png", "2.jpg"]);
        assert_eq!(chosen(&masks, "*").unwrap().len(), 5);
        let error = chosen(&masks, "tif").unwrap_err();
        assert!(error.contains("jpg (3), seg.png (2)"), "{error}");
    }

    #[test]
    fn what_is_unclear_is_refused() {
        for names in [["0.jpg", "0.png", "1.jpg", "1.png"], ["0.a.png", "0.b.png", "1.a.png", "1.b.png"]] {
            let error = chosen(&names, "").unwrap_err();
            assert!(error.contains("sample 0") && error.contains("--picture-key KEY"), "{error}");
        }
    }

    #[test]
    fn names_with_dots_are_no_samples() {
        let names = ["cat.001.png", "cat.002.png", "Mr. Smith.jpg", "v1.2/a.png", "v1.2/b.png"];
        assert_eq!(chosen(&names, "").unwrap(), names);
        let days: Vec<String> = (0..40).map(|day| format!("{}.{:02}.jpg", 2020 + day % 2, day >> 1)).collect();
        let days: Vec<&str> = days.iter().map(String::as_str).collect();
        assert_eq!(chosen(&days, "").unwrap().len(), 40);
    }
}
