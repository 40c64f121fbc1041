//! The pictures of a command line, without those that cannot be read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow, bail};
use diffae_data::{
    AttributePairs, Crop, FindSettings, Input, PictureSet, Shard, broken_inputs, inputs_fingerprint, list_inputs_with,
    warn_once,
};
use diffae_infer::{Subjects, list_subjects_with};

use crate::args::{EvalDataArgs, ReadingArgs};
use crate::progress::Noun;

/// Hint that an error about unreadable pictures ends with.
const WAY_OUT: &str = "; --skip-broken leaves such pictures out";

/// Names of pictures left out because they cannot be read, and the number of all pictures.
static LEFT_OUT: Mutex<Option<LeftOut>> = Mutex::new(None);

struct LeftOut {
    names: BTreeSet<String>,
    total: usize,
}

/// The pictures of a command line.
pub(crate) struct Listed {
    /// Readable pictures; of a shard, its own.
    pub(crate) inputs: Vec<Input>,
    /// Checksum of all of them, also of those that cannot be read and those of other shards.
    pub(crate) fingerprint: String,
}

/// Lists the pictures of the command line and opens each of them: hours of work should not end at the last one.
///
/// Unreadable pictures are left out with `--skip-broken`, each with a warning, and are an error without it. Of a shard, only its
/// own pictures are opened.
pub(crate) fn list_readable(paths: &[PathBuf], reading: &ReadingArgs, shard: Option<Shard>) -> Result<Listed> {
    let mut inputs = list_inputs_with(paths, &reading.picture_key)?;
    let fingerprint = inputs_fingerprint(&inputs)?;
    if let Some(shard) = shard {
        let (range, total) = (shard.range(inputs.len()), inputs.len());
        inputs = inputs.drain(range).collect();
        if inputs.is_empty() {
            bail!("shard {shard} of {} is empty; make fewer shards", Noun::Pictures.counted(total))
        }
    }
    let mut kept = readable(&inputs, reading)?.into_iter();
    inputs.retain(|_| kept.next() == Some(true));
    Ok(Listed { inputs, fingerprint })
}

/// Lists pictures and codes, and opens the pictures as [`list_readable`] does.
pub(crate) fn list_readable_subjects(paths: &[PathBuf], reading: &ReadingArgs) -> Result<Subjects> {
    let mut subjects = list_subjects_with(paths, &reading.picture_key)?;
    let pictures = (0..subjects.len()).filter_map(|idx| Some((idx, subjects.picture(idx)?.clone())));
    let (places, inputs): (Vec<usize>, Vec<Input>) = pictures.unzip();
    let kept = readable(&inputs, reading)?;
    let unread: BTreeSet<usize> =
        places.into_iter().zip(kept).filter_map(|(place, is_kept)| (!is_kept).then_some(place)).collect();
    subjects.retain(|idx| !unread.contains(&idx));
    Ok(subjects)
}

/// Returns which of the inputs are kept.
fn readable(inputs: &[Input], reading: &ReadingArgs) -> Result<Vec<bool>> {
    if inputs.len() <= 1 {
        return Ok(vec![true; inputs.len()]); // what is wrong with a single one is said when it is read
    }
    let found = broken_inputs(inputs).into_iter();
    let found: Vec<_> = found.map(|broken| (broken.place, anyhow::Error::from(broken.error))).collect();
    let of = |place: usize| inputs.get(place).map_or_else(String::new, |input| input.name.clone());
    left_out(&found, inputs.len(), &of, reading)
}

/// Reports at the end of a command how many pictures were left out.
pub(crate) fn warn_of_left_out() {
    let left_out = LEFT_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(LeftOut { names, total }) = &*left_out {
        let were = if names.len() == 1 { "was" } else { "were" };
        let all = Noun::Pictures.counted(*total);
        tracing::warn!("{} of {all} could not be read and {were} left out", names.len());
    }
}

/// Returns which pictures are kept, and warns of the others.
fn left_out(
    broken: &[(usize, anyhow::Error)],
    total: usize,
    name: &dyn Fn(usize) -> String,
    args: &ReadingArgs,
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

/// Finds the pictures to evaluate on; with `--skip-broken` only the readable ones.
pub(crate) fn picture_set(args: &EvalDataArgs) -> Result<PictureSet> {
    set_of(&args.data, args.crop.into(), args.limit, &args.reading)
}

/// Finds the pictures below a folder or in an archive, or the first `limit` of them; with `--skip-broken` only the readable
/// ones.
pub(crate) fn set_of(root: &Path, crop: Crop, limit: Option<usize>, reading: &ReadingArgs) -> Result<PictureSet> {
    let settings = FindSettings { crop, picture_key: &reading.picture_key, ..FindSettings::default() };
    without_broken(PictureSet::find(root, &settings, limit)?, reading)
}

/// Finds pairs of pictures; with `--skip-broken` those of which both can be read.
pub(crate) fn pairs_of(root: &Path, limit: Option<usize>, reading: &ReadingArgs) -> Result<Vec<AttributePairs>> {
    let mut all = AttributePairs::find_with(root, limit, &reading.picture_key)?;
    for pairs in all.iter_mut().filter(|_| reading.skip_broken) {
        let mut kept = vec![true; pairs.with.len()];
        for side in [&pairs.without, &pairs.with] {
            for (kept, here) in kept.iter_mut().zip(kept_of(side, reading)?) {
                *kept &= here;
            }
        }
        pairs.retain(|idx| kept.get(idx) != Some(&false));
    }
    Ok(all)
}

/// Leaves unreadable pictures out with `--skip-broken`.
fn without_broken(mut pictures: PictureSet, args: &ReadingArgs) -> Result<PictureSet> {
    if args.skip_broken {
        let kept = kept_of(&pictures, args)?;
        pictures.retain(|idx| kept.get(idx) != Some(&false));
    }
    Ok(pictures)
}

/// Returns which pictures of a set can be read, and warns of the others.
pub(crate) fn kept_of(pictures: &PictureSet, args: &ReadingArgs) -> Result<Vec<bool>> {
    let broken = pictures.broken().into_iter();
    let broken: Vec<_> = broken.map(|broken| (broken.place, anyhow::Error::from(broken.error))).collect();
    left_out(&broken, pictures.len(), &|idx| pictures.name(idx), args)
}

/// Adds the way out to an error about a picture that cannot be read.
pub(crate) fn naming_way_out(error: anyhow::Error, args: &ReadingArgs) -> anyhow::Error {
    use diffae_data::Error as Data;
    use diffae_eval::Error as Eval;
    use diffae_infer::Error as Infer;
    let is_unread = |cause: &(dyn std::error::Error + 'static)| {
        let data = match cause.downcast_ref() {
            Some(Eval::Data(error) | Eval::Infer(Infer::Data(error))) => Some(error),
            _ => cause.downcast_ref::<Data>(),
        };
        matches!(
            data,
            Some(
                Data::Image { .. }
                    | Data::UnreadPicture { .. }
                    | Data::DamagedPicture { .. }
                    | Data::Resize { .. }
                    | Data::Io { .. }
            )
        )
    };
    if !args.skip_broken && error.chain().any(is_unread) { anyhow!("{error:#}{WAY_OUT}") } else { error }
}
