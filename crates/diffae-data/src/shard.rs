//! Shards: equal parts of a list of pictures, for processes that share the work.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};

/// The variables of a Slurm job array that tell which of its tasks a process is.
const SLURM: [&str; 4] =
    ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT"];

/// Shard i of n, written `i/n`, with i from 1 to n.
///
/// Of a list of L items, shard i holds the items `floor(L (i - 1) / n) .. floor(L i / n)`: consecutive ones, so that the shards
/// one after the other are the list, and sizes that differ by at most one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    number: usize,
    count: usize,
}

impl Shard {
    /// Creates shard `number` of `count`.
    ///
    /// # Errors
    /// [`Error::Shard`] unless `number` is from 1 to `count`.
    pub fn new(number: usize, count: usize) -> Result<Self> {
        if (1..=count).contains(&number) {
            return Ok(Self { number, count });
        }
        Err(Error::Shard { got: format!("{number}/{count}") })
    }

    /// Returns the shard of a task of a Slurm job array whose indices are `1-N` or `0-(N-1)`, by the variables of its
    /// environment.
    ///
    /// # Errors
    /// [`Error::NoSlurmArray`] if the variables are missing or the array has other indices, as it does where some of its tasks
    /// are submitted once more.
    pub fn of_slurm(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let value = |name: &str| variable(name).and_then(|text| text.parse::<usize>().ok());
        let [Some(id), Some(min), Some(max), Some(count)] = SLURM.map(value) else {
            return Err(Error::NoSlurmArray { got: "no job array".to_owned() });
        };
        if min > 1 || max < id || max + 1 != min + count || id < min {
            return Err(Error::NoSlurmArray { got: format!("task {id} of {count} from {min} to {max}") });
        }
        Self::new(id - min + 1, count)
    }

    /// Returns the number of the shard, from 1.
    #[must_use]
    pub const fn number(self) -> usize {
        self.number
    }

    /// Returns the number of shards.
    #[must_use]
    pub const fn count(self) -> usize {
        self.count
    }

    /// Returns the items of the shard in a list of `len`.
    #[must_use]
    pub fn range(self, len: usize) -> Range<usize> {
        // The product may be larger than a machine word.
        let place = |number: usize| {
            let place = (len as u128 * number as u128).div_euclid(self.count as u128);
            usize::try_from(place).unwrap_or(len)
        };
        place(self.number - 1)..place(self.number)
    }

    /// Returns the shard whose [`path`](Self::path) of `whole` has this file name.
    fn of_file_name(whole: &Path, name: &str) -> Option<Self> {
        let extension =
            whole.extension().map(|extension| format!(".{}", extension.to_string_lossy())).unwrap_or_default();
        let numbers = name.strip_prefix(&*whole.file_stem()?.to_string_lossy())?.strip_suffix(&extension)?;
        let (number, count) = numbers.strip_prefix('-')?.split_once("-of-")?;
        let shard = Self::new(number.parse().ok()?, count.parse().ok()?).ok()?;
        (shard.path(whole).file_name()? == name).then_some(shard)
    }

    /// Lists the files of shards of `whole` that are there, by their number of shards, then by number.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read; one that is missing holds none.
    pub fn files(whole: &Path) -> Result<Vec<(Self, PathBuf)>> {
        let folder = whole.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |source| Error::Io { path: folder.to_owned(), source };
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.map_err(failed)?,
        };
        let mut found = vec![];
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let shard = entry.file_name().to_str().and_then(|name| Self::of_file_name(whole, name));
            found.extend(shard.map(|shard| (shard, entry.path())));
        }
        found.sort_by_key(|(shard, _)| (shard.count, shard.number));
        Ok(found)
    }

    /// Returns the file of the shard: `codes-00003-of-00008.safetensors` for `codes.safetensors`.
    #[must_use]
    pub fn path(self, whole: &Path) -> PathBuf {
        let stem = whole.file_stem().unwrap_or_default().to_string_lossy();
        let extension = whole.extension().map(|extension| format!(".{}", extension.to_string_lossy()));
        let Self { number, count } = self;
        whole.with_file_name(format!("{stem}-{number:05}-of-{count:05}{}", extension.unwrap_or_default()))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers =
            text.split_once('/').and_then(|(number, count)| Some((number.parse().ok()?, count.parse().ok()?)));
        let (number, count) = numbers.ok_or_else(|| Error::Shard { got: text.to_owned() })?;
        Self::new(number, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_read_as_it_is_written() {
        let shard = Shard::new(3, 8).unwrap();
        assert_eq!(shard.to_string().parse::<Shard>().unwrap(), shard);
        for wrong in ["", "3", "0/8", "9/8", "1/0", "a/b", "1/2/3", "-1/2"] {
            let error = wrong.parse::<Shard>().unwrap_err();
            assert!(matches!(error, Error::Shard { .. }), "{wrong}: {error}");
        }
    }

    #[test]
    fn files_of_shards_sort_by_number() {
        let path = |number| Shard::new(number, 12).unwrap().path(Path::new("out/codes.safetensors"));
        assert_eq!(path(3), Path::new("out/codes-00003-of-00012.safetensors"));
        assert!(path(2) < path(10));
        assert_eq!(Shard::new(1, 2).unwrap().path(Path::new("codes")), Path::new("codes-00001-of-00002"));
    }

    #[test]
    fn files_of_shards_are_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let whole = folder.path().join("recon.items.jsonl");
        assert_eq!(Shard::files(&folder.path().join("none").join("x")).unwrap(), []);
        let shards = [(2, 2), (1, 2), (10, 12)].map(|(number, count)| Shard::new(number, count).unwrap());
        for shard in shards {
            fs::write(shard.path(&whole), "").unwrap();
        }
        for other in [
            "recon.items.jsonl",
            "recon.items-1-of-2.jsonl",
            "recon.items-00003-of-00002.jsonl",
            "recon.items-00001-of-00002",
        ] {
            fs::write(folder.path().join(other), "").unwrap();
        }
        let found: Vec<String> = Shard::files(&whole).unwrap().iter().map(|(shard, _)| shard.to_string()).collect();
        assert_eq!(found, ["1/2", "2/2", "10/12"]);
        assert_eq!(Shard::files(&whole).unwrap()[0].1, shards[1].path(&whole));
    }

    #[test]
    fn tasks_of_a_job_array_are_shards() {
        let of = |id: &str, min: &str, max: &str, count: &str| {
            let values = [id, min, max, count].map(str::to_owned);
            Shard::of_slurm(|name| SLURM.iter().position(|known| *known == name).map(|idx| values[idx].clone()))
        };
        assert_eq!(of("3", "1", "8", "8").unwrap(), Shard::new(3, 8).unwrap());
        assert_eq!(of("0", "0", "7", "8").unwrap(), Shard::new(1, 8).unwrap());
        // A task that is submitted once more, a gap, and no array at all.
        for error in [of("3", "3", "3", "1"), of("1", "1", "8", "4"), Shard::of_slurm(|_| None)] {
            assert!(matches!(error.unwrap_err(), Error::NoSlurmArray { .. }));
        }
    }

    #[test]
    fn shards_are_the_list_one_after_the_other() {
        for (len, count) in [(0, 1), (0, 7), (1, 3), (10, 3), (11, 4), (4999, 64), (200_000, 8)] {
            let mut next = 0;
            for number in 1..=count {
                let range = Shard::new(number, count).unwrap().range(len);
                assert_eq!(range.start, next);
                assert!(range.len() == len.div_euclid(count) || range.len() == len.div_ceil(count));
                next = range.end;
            }
            assert_eq!(next, len);
        }
        assert_eq!(Shard::new(2, 2).unwrap().range(usize::MAX).end, usize::MAX);
    }
}
