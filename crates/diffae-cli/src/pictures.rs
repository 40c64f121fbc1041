//! Picture sets to evaluate or train on, batch by batch, and pairs of them.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::Tensor;
use diffae_data::{Crop, Fingerprint, Pictures};
use diffae_data::{Input, broken_inputs, list_inputs, warn_once};
use diffae_infer::{Subjects, list_subjects};
use rayon::prelude::*;

use crate::args::{BrokenArgs, EvalDataArgs};
use crate::session::Session;

/// Hint that an error about unreadable pictures ends with.
const WAY_OUT: &str = "; --skip-broken leaves such pictures out";
/// Side that pictures are resized to when they are opened only to check that they can be read.
const CHECKED_SIZE: usize = 64;

/// Names of pictures left out because they cannot be read, and the number of all pictures.
static LEFT_OUT: Mutex<Option<LeftOut>> = Mutex::new(None);

struct LeftOut {
    names: BTreeSet<String>,
    total: usize,
}

/// Lists the pictures of the command line and opens each of them: hours of work should not end at the last one.
///
/// Unreadable pictures are left out with `--skip-broken`, each with a warning, and are an error without it.
pub(crate) fn list_readable(paths: &[PathBuf], broken: &BrokenArgs) -> Result<Vec<Input>> {
    let inputs = list_inputs(paths)?;
    let kept = readable(&inputs, broken)?;
    Ok(inputs.into_iter().zip(kept).filter_map(|(input, is_kept)| is_kept.then_some(input)).collect())
}

/// Lists pictures and codes, and opens the pictures as [`list_readable`] does.
pub(crate) fn list_readable_subjects(paths: &[PathBuf], broken: &BrokenArgs) -> Result<Subjects> {
    let mut subjects = list_subjects(paths)?;
    let pictures = (0..subjects.len()).filter_map(|idx| Some((idx, subjects.picture(idx)?.clone())));
    let (places, inputs): (Vec<usize>, Vec<Input>) = pictures.unzip();
    let kept = readable(&inputs, broken)?;
    let unread: BTreeSet<usize> =
        places.into_iter().zip(kept).filter_map(|(place, is_kept)| (!is_kept).then_some(place)).collect();
    subjects.retain(|idx| !unread.contains(&idx));
    Ok(subjects)
}

/// Returns which of the inputs are kept.
fn readable(inputs: &[Input], broken: &BrokenArgs) -> Result<Vec<bool>> {
    if inputs.len() <= 1 {
        return Ok(vec![true; inputs.len()]); // what is wrong with a single one is said when it is read
    }
    let found = broken_inputs(inputs).into_iter();
    let found: Vec<_> = found.map(|broken| (broken.place, anyhow::Error::from(broken.error))).collect();
    let of = |place: usize| inputs.get(place).map_or_else(String::new, |input| input.name.clone());
    left_out(&found, inputs.len(), &of, broken)
}

/// Reports at the end of a command how many pictures were left out.
pub(crate) fn warn_of_left_out() {
    let left_out = LEFT_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(LeftOut { names, total }) = &*left_out {
        let were = if names.len() == 1 { "was" } else { "were" };
        tracing::warn!("{} of {total} pictures could not be read and {were} left out", names.len());
    }
}

/// Returns which pictures are kept, and warns of the others.
fn left_out(
    broken: &[(usize, anyhow::Error)],
    total: usize,
    name: &dyn Fn(usize) -> String,
    args: &BrokenArgs,
) -> Result<Vec<bool>> {
    let Some((_, first)) = broken.first() else { return Ok(vec![true; total]) };
    if !args.skip_broken {
        broken.iter().skip(1).for_each(|(_, error)| tracing::warn!("{error:#}"));
        match broken.len() {
            1 => bail!("{first:#}{WAY_OUT}"),
            count => bail!("{count} of {total} pictures cannot be read, the first because of this: {first:#}{WAY_OUT}"),
        }
    }
    for (_, error) in broken {
        warn_once(&format!("left out: {error:#}"));
    }
    if broken.len() == total {
        bail!("none of the {total} pictures can be read")
    }
    let mut left_out = LEFT_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    let so_far = left_out.get_or_insert_with(|| LeftOut { names: BTreeSet::new(), total });
    so_far.names.extend(broken.iter().map(|&(place, _)| name(place)));
    let mut kept = vec![true; total];
    for &(place, _) in broken {
        kept[place] = false;
    }
    Ok(kept)
}

/// The pictures of a folder, or the first of them.
pub(crate) struct PictureSet {
    pictures: Pictures,
    crop: Crop,
    count: usize,
    fingerprint: OnceCell<String>,
    /// Hint for errors about a picture that cannot be read.
    way_out: &'static str,
}

impl PictureSet {
    /// Finds the pictures; with `--skip-broken` only the readable ones.
    pub(crate) fn find(args: &EvalDataArgs) -> Result<Self> {
        Self::first(&args.data, args.crop.into(), args.limit)?.handling_broken(&args.broken)
    }

    /// Leaves unreadable pictures out with `--skip-broken`; without it, errors about them will name the option.
    pub(crate) fn handling_broken(mut self, args: &BrokenArgs) -> Result<Self> {
        if !args.skip_broken {
            self.way_out = WAY_OUT;
            return Ok(self);
        }
        let check = |idx| self.pictures.read(idx, 3, CHECKED_SIZE).err().map(|error| (idx, anyhow::Error::from(error)));
        let broken: Vec<_> = (0..self.count).into_par_iter().filter_map(check).collect();
        let kept = left_out(&broken, self.count, &|idx| self.pictures.name(idx), args)?;
        self.count -= broken.len();
        self.pictures.retain(|idx| kept.get(idx) != Some(&false));
        Ok(self)
    }

    /// Finds the pictures below a folder, or the first `limit` of them.
    pub(crate) fn first(root: &Path, crop: Crop, limit: Option<usize>) -> Result<Self> {
        let pictures = Pictures::all(root, crop)?;
        let count = limit.unwrap_or(usize::MAX).min(pictures.len());
        // Values are kept by name.
        let mut names = BTreeSet::new();
        if let Some(twice) = (0..count).map(|idx| pictures.name(idx)).find(|name| !names.insert(name.clone())) {
            bail!("two pictures of {} are named {twice}; give every picture a name of its own", root.display())
        }
        Ok(Self { pictures, crop, count, fingerprint: OnceCell::new(), way_out: "" })
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn name(&self, idx: usize) -> String {
        self.pictures.name(idx)
    }

    pub(crate) fn all(&self) -> &Pictures {
        &self.pictures
    }

    /// Returns a checksum of names, pictures and crop, so that values are not mistaken for those of other pictures.
    pub(crate) fn fingerprint(&self) -> Result<String> {
        if let Some(known) = self.fingerprint.get() {
            return Ok(known.clone());
        }
        let mut fingerprint = Fingerprint::new();
        fingerprint.update(format!("{:?}", self.crop).as_bytes());
        for idx in 0..self.count {
            let bytes = self.pictures.bytes(idx)?;
            fingerprint.update(format!("\n{} {}\n", self.name(idx), bytes.len()).as_bytes()).update(&bytes);
        }
        let found = fingerprint.digits();
        Ok(self.fingerprint.get_or_init(|| found).clone())
    }

    /// Returns ranges of consecutive pictures, at most `size` in each.
    pub(crate) fn batches(&self, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let count = self.count;
        (0..count).step_by(size.max(1)).map(move |start| start..(start + size).min(count))
    }

    /// Reads the pictures of these indices, `[N, C, H, W]` in `[-1, 1]`, to the model's device.
    pub(crate) fn read(&self, session: &Session, indices: impl Iterator<Item = usize>) -> Result<Tensor> {
        let [channels, height, width] = session.model().image_shape();
        ensure!(height == width, "the model's pictures are {height} by {width} pixels, expected squares");
        let read = |idx| self.pictures.read(idx, channels, height);
        let pictures = indices.map(read).collect::<diffae_data::Result<Vec<_>>>();
        let pictures = pictures.map_err(|error| anyhow!("{:#}{}", anyhow::Error::from(error), self.way_out))?;
        Ok(Tensor::stack(&pictures, 0)?.to_device(session.model().device())?)
    }

    /// Encodes the pictures of these indices, `[N, D]` on the model's device.
    pub(crate) fn encode(&self, session: &Session, indices: Range<usize>) -> Result<Tensor> {
        let mut codes = vec![];
        for start in indices.clone().step_by(session.batch_size()) {
            let batch = start..(start + session.batch_size()).min(indices.end);
            codes.push(session.model().encode_semantic(&self.read(session, batch)?)?);
        }
        Ok(Tensor::cat(&codes, 0)?)
    }
}

/// Pictures that differ in one attribute alone, by the same names.
pub(crate) struct Pairs {
    pub(crate) attribute: String,
    pub(crate) without: PictureSet,
    pub(crate) with: PictureSet,
    folder: PathBuf,
}

/// Pictures that lack the attribute in other ways than `without`.
pub(crate) struct OtherPictures {
    pub(crate) pictures: PictureSet,
    /// Indices of those pictures whose pair exists.
    pub(crate) places: Vec<usize>,
    /// Index of the pair of each of them.
    pub(crate) pairs: Vec<u32>,
}

impl Pairs {
    /// Finds the pairs below a folder, by attribute: `ATTRIBUTE/without` and `ATTRIBUTE/with`.
    pub(crate) fn find(root: &Path, limit: Option<usize>) -> Result<Vec<Self>> {
        let entries = fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))?;
        let mut folders = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        folders.retain(|folder| folder.join("without").is_dir() && folder.join("with").is_dir());
        folders.sort();
        ensure!(!folders.is_empty(), "{} has no folder ATTRIBUTE with folders `without` and `with`", root.display());
        let mut all = vec![];
        for folder in folders {
            let attribute = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let side = |name| PictureSet::first(&folder.join(name), Crop::Center, limit);
            let (without, with) = (side("without")?, side("with")?);
            let same = without.len() == with.len() && (0..with.len()).all(|idx| without.name(idx) == with.name(idx));
            if !same {
                bail!("{} has pictures in `without` and `with` whose names differ", folder.display())
            }
            all.push(Self { attribute, without, with, folder });
        }
        Ok(all)
    }

    /// Finds the pictures in `ATTRIBUTE/others`, which bear names of pictures in `with`; `None` without that folder.
    pub(crate) fn others(&self) -> Result<Option<OtherPictures>> {
        let folder = self.folder.join("others");
        if !folder.is_dir() {
            return Ok(None);
        }
        let pictures = PictureSet::first(&folder, Crop::Center, None)?;
        let all = self.with.all();
        let known: BTreeMap<String, usize> = (0..all.len()).map(|place| (all.name(place), place)).collect();
        let (mut places, mut pairs) = (vec![], vec![]);
        for here in 0..pictures.len() {
            let name = pictures.name(here);
            let there = known.get(&name);
            let there = *there.with_context(|| format!("{name} of {} is missing in `with`", folder.display()))?;
            if there < self.with.len() {
                places.push(here);
                pairs.push(u32::try_from(there)?);
            }
        }
        Ok((!places.is_empty()).then_some(OtherPictures { pictures, places, pairs }))
    }
}
