//! Subjects to edit, blend or vary: pictures, and codes of pictures.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use diffae_nets::weights::{SafetensorsFile, TensorSource};

use crate::codes::Codes;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::stochastic_code::{ChainSettings, CodeChain, same_chain};
use diffae_data::{Fingerprint, Input, file_names, list_inputs_with, stamp};

/// Maximum number of names that a message lists.
const MAX_LISTED: usize = 12;

/// A picture, or the codes of one.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Unique name among all subjects; fit for a file name.
    pub name: String,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Picture(Input),
    Codes { file: usize, idx: usize },
}

/// Pictures and codes in the order in which they were named.
#[derive(Debug, Clone)]
pub struct Subjects {
    all: Vec<Subject>,
    files: Vec<CodesFile>,
}

#[derive(Debug, Clone)]
struct CodesFile {
    path: PathBuf,
    codes: Codes,
    num_invert_steps: Option<usize>,
}

/// Codes of several subjects on the model's device.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Semantic codes, `[N, D]`; absent in a plain DDPM.
    pub z_sem: Option<Tensor>,
    /// Noise maps `x_T`, `[N, ..]`; absent if not requested.
    pub x_terminal: Option<Tensor>,
    /// The chain that made `x_T`, which decodes it, too, or by which samples were decoded; `None` for DDIM in reverse.
    pub chain: Option<CodeChain>,
    /// The pictures `[N, C, H, W]`, if all subjects are pictures.
    pub x_0: Option<Tensor>,
}

/// Lists the inputs of [`list_inputs`](diffae_data::list_inputs), and files of codes: `.safetensors` files that hold `z_sem` or `x_T` and no `x`.
/// `codes.safetensors:CHOICE` is a part of a file of codes; see [`pick_codes`].
///
/// # Errors
/// As [`list_inputs`](diffae_data::list_inputs), [`Codes::read`] and [`pick_codes`].
pub fn list_subjects(paths: &[PathBuf]) -> Result<Subjects> {
    list_subjects_with(paths, "")
}

/// Lists as [`list_subjects`] does, with a choice among the pictures of a sample of an archive or a table
/// ([`FindSettings::picture_key`](diffae_data::FindSettings::picture_key)).
///
/// # Errors
/// As [`list_subjects`].
pub fn list_subjects_with(paths: &[PathBuf], picture_key: &str) -> Result<Subjects> {
    let mut subjects = Subjects { all: vec![], files: vec![] };
    let mut rest = paths;
    while let Some(first) = rest.first() {
        let (path, choice) = split_choice(first);
        if choice.is_some() || is_codes(&path)? {
            let (codes, indices) = pick_codes(first)?;
            let file = subjects.files.len();
            let named = indices.into_iter().map(|idx| (codes.names[idx].clone(), idx));
            let subject = |(name, idx)| Subject { name, source: Source::Codes { file, idx } };
            subjects.all.extend(named.map(subject));
            let num_invert_steps = num_invert_steps_of(&path)?;
            subjects.files.push(CodesFile { path, codes, num_invert_steps });
            rest = &rest[1..];
            continue;
        }
        let mut count = 1;
        while let Some(next) = rest.get(count) {
            let (path, choice) = split_choice(next);
            if choice.is_some() || is_codes(&path)? {
                break;
            }
            count += 1;
        }
        let inputs = list_inputs_with(&rest[..count], picture_key)?;
        let subject = |input: Input| Subject { name: input.name.clone(), source: Source::Picture(input) };
        subjects.all.extend(inputs.into_iter().map(subject));
        rest = &rest[count..];
    }
    let names = file_names(subjects.all.iter().map(|subject| subject.name.clone()));
    for (subject, name) in subjects.all.iter_mut().zip(names) {
        subject.name = name;
    }
    Ok(subjects)
}

/// Returns whether a path is a file of codes: one that ends in `.safetensors` and holds `z_sem` or `x_T`, but no
/// pictures `x`.
///
/// # Errors
/// [`Error::Codes`] if it is damaged.
pub fn is_codes(path: &Path) -> Result<bool> {
    let is_safetensors = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors"));
    if !is_safetensors || !path.is_file() {
        return Ok(false);
    }
    let file = SafetensorsFile::open(path).map_err(|source| Error::Codes { source })?;
    let has = |name: &str| file.shape(name).is_some();
    Ok(!has("x") && (has("z_sem") || has("x_T")))
}

/// Reads `codes.safetensors`, or a selection written as `codes.safetensors:CHOICE`: all codes of the file, and the
/// chosen numbers. CHOICE is a name, a number from 0, a range such as `3..7` (7 is not part of it), or several of these
/// with commas.
///
/// # Errors
/// As [`Codes::read`]; [`Error::Tensors`] if there are no such codes.
pub fn pick_codes(path: &Path) -> Result<(Codes, Vec<usize>)> {
    let (path, choice) = split_choice(path);
    let codes = Codes::read(&path)?;
    let Some(choice) = choice else {
        let all = (0..codes.len()).collect();
        return Ok((codes, all));
    };
    if let Some(idx) = codes.names.iter().position(|name| *name == choice) {
        return Ok((codes, vec![idx]));
    }
    let mut chosen = Vec::new();
    for part in choice.split(',').map(str::trim) {
        chosen.extend(numbers_of(&codes.names, part).ok_or_else(|| {
            let mut names = codes.names.iter().take(MAX_LISTED).cloned().collect::<Vec<_>>().join(", ");
            if codes.len() > MAX_LISTED {
                names = format!("{names}, .. ({} in all)", codes.len());
            }
            Error::Tensors { path: path.clone(), problem: format!("it holds no codes {part:?}; it has {names}") }
        })?);
    }
    Ok((codes, chosen))
}

/// Returns the numbers of a name, a number or a range.
fn numbers_of(names: &[String], part: &str) -> Option<Vec<usize>> {
    if let Some(idx) = names.iter().position(|name| name == part) {
        return Some(vec![idx]);
    }
    let numbers = match part.split_once("..") {
        Some((start, end)) => {
            let start = if start.is_empty() { 0 } else { start.parse().ok()? };
            start..if end.is_empty() { names.len() } else { end.parse().ok()? }
        }
        None => part.parse().ok().map(|idx: usize| idx..idx.saturating_add(1))?,
    };
    (numbers.start < numbers.end && numbers.end <= names.len()).then(|| numbers.collect())
}

/// Splits a path from the choice after its colon; the name of an existing file is never split.
fn split_choice(path: &Path) -> (PathBuf, Option<String>) {
    let whole = (path.to_owned(), None);
    let Some(text) = path.to_str().filter(|_| !path.exists()) else { return whole };
    let Some(end) = text.to_ascii_lowercase().find(".safetensors:").map(|at| at + ".safetensors".len()) else {
        return whole;
    };
    (PathBuf::from(&text[..end]), Some(text[end + 1..].to_owned()))
}

/// Reads the number of inversion steps that `diffae encode` notes in its files.
fn num_invert_steps_of(path: &Path) -> Result<Option<usize>> {
    let file = SafetensorsFile::open(path).map_err(|source| Error::Codes { source })?;
    Ok(file.text().get("diffae:steps").and_then(|steps| steps.parse().ok()))
}

impl Subjects {
    /// Returns the number of subjects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns whether there are no subjects.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns all subjects.
    #[must_use]
    pub fn all(&self) -> &[Subject] {
        &self.all
    }

    /// Keeps the subjects whose numbers `keep` accepts; their names stay.
    pub fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let mut idx = 0;
        self.all.retain(|_| {
            idx += 1;
            keep(idx - 1)
        });
    }

    /// Returns the picture of a subject, unless only its codes are known.
    #[must_use]
    pub fn picture(&self, idx: usize) -> Option<&Input> {
        match &self.all.get(idx)?.source {
            Source::Picture(input) => Some(input),
            Source::Codes { .. } => None,
        }
    }

    /// Returns the number of subjects that must be encoded.
    #[must_use]
    pub fn num_pictures(&self) -> usize {
        (0..self.len()).filter(|&idx| self.picture(idx).is_some()).count()
    }

    /// Returns the first file of codes, if there is one.
    #[must_use]
    pub fn codes_path(&self) -> Option<&Path> {
        self.files.first().map(|file| file.path.as_path())
    }

    /// Returns the number of inversion steps behind a subject's `x_T`: the number in its file, if known, or `asked` for
    /// a picture.
    #[must_use]
    pub fn num_invert_steps(&self, idx: usize, asked: usize) -> Option<usize> {
        match self.all.get(idx)?.source {
            Source::Picture(_) => Some(asked),
            Source::Codes { file, .. } => self.files.get(file)?.num_invert_steps,
        }
    }

    /// Returns the chain that made the files of codes, with the name of one of them; `None` where there are no codes.
    ///
    /// Samples go along with the pictures and codes that are beside them.
    ///
    /// # Errors
    /// [`Error::MixedChains`] if codes of pictures, or samples alone, are of several chains.
    pub fn chain(&self) -> Result<Option<(Option<ChainSettings>, &Path)>> {
        let chain_of = |file: &CodesFile| file.codes.chain.as_ref().map(|chain| chain.settings);
        let (samples, inverted): (Vec<&CodesFile>, Vec<&CodesFile>) =
            self.files.iter().partition(|file| file.codes.is_sampled());
        if self.are_all_samples() {
            let chain = same_chain(samples.iter().map(|file| chain_of(file)))?;
            return Ok(samples.first().map(|file| (chain, &*file.path)));
        }
        let with_noise = inverted.iter().filter(|file| file.codes.x_terminal.is_some());
        let chain = same_chain(with_noise.map(|file| chain_of(file)))?;
        Ok(inverted.first().map(|file| (chain, &*file.path)))
    }

    /// Returns whether all subjects are samples by their codes.
    pub(crate) fn are_all_samples(&self) -> bool {
        self.num_pictures() == 0 && self.files.iter().all(|file| file.codes.is_sampled())
    }

    /// Computes a checksum of names, of sizes and times of files, and of tensors, which differs between sets of
    /// subjects.
    ///
    /// # Errors
    /// [`Error::Io`] if a file is gone.
    pub fn fingerprint(&self) -> Result<String> {
        let mut fingerprint = Fingerprint::new();
        for Subject { name, source } in &self.all {
            let stamp = match source {
                Source::Picture(input) => input.stamp()?,
                Source::Codes { file, idx } => format!("{idx} of {}", stamp(&self.files[*file].path)?),
            };
            fingerprint.update(format!("{name}\n{stamp}\n").as_bytes());
        }
        Ok(fingerprint.digits())
    }

    /// Fails if codes are of another model, do not have this model's sizes, or hold no `x_T` although `need` asks for
    /// it.
    ///
    /// # Errors
    /// [`Error::ForeignCodes`], [`Error::Mismatch`], [`Error::Tensors`].
    pub fn check(&self, model: &Model, need: CodesNeed) -> Result<()> {
        for CodesFile { path, codes, .. } in &self.files {
            codes.check_made_by(model, path)?;
            codes.check_sizes(model, path)?;
            let can_do_without = need == CodesNeed::ZSem || model.config().one_shot().is_some();
            if codes.x_terminal.is_none() && !can_do_without {
                let problem = "it holds no x_T; encode the pictures without --semantic-only".to_owned();
                return Err(Error::Tensors { path: path.clone(), problem });
            }
        }
        Ok(())
    }

    /// Returns a warning about each file of codes of another program whose `x_T` are not close to noise.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the codes cannot be read.
    pub fn noise_warnings(&self) -> Result<Vec<String>> {
        let warnings = self.files.iter().map(|file| file.codes.foreign_noise_warning(&file.path.display().to_string()));
        Ok(warnings.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Returns the codes of a subject, and its index among them; `None` for a picture.
    pub(crate) fn codes(&self, idx: usize) -> Option<(&Codes, usize)> {
        match self.all.get(idx)?.source {
            Source::Picture(_) => None,
            Source::Codes { file, idx } => Some((&self.files.get(file)?.codes, idx)),
        }
    }
}

/// The codes that pictures are encoded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodesNeed {
    /// Semantic codes `z_sem` alone.
    ZSem,
    /// Semantic codes `z_sem` and noise maps `x_T`.
    Both,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_chosen_by_name_number_and_range() {
        let names = ["a", "b,c", "7", "0001"].map(str::to_owned);
        assert_eq!(numbers_of(&names, "b,c"), Some(vec![1]));
        assert_eq!(numbers_of(&names, "7"), Some(vec![2]), "a name goes before a number");
        assert_eq!(numbers_of(&names, "3"), Some(vec![3]));
        assert_eq!(numbers_of(&names, "1..3"), Some(vec![1, 2]));
        assert_eq!(numbers_of(&names, "2.."), Some(vec![2, 3]));
        assert_eq!(numbers_of(&names, ".."), Some(vec![0, 1, 2, 3]));
        for none in ["4", "3..3", "1..5", "x", "", "-1"] {
            assert_eq!(numbers_of(&names, none), None, "{none}");
        }
    }

    #[test]
    fn a_choice_stands_after_the_ending() {
        let split = |path: &str| split_choice(Path::new(path));
        assert_eq!(split("a/c.safetensors:me"), (PathBuf::from("a/c.safetensors"), Some("me".to_owned())));
        assert_eq!(split("a/c.safetensors"), (PathBuf::from("a/c.safetensors"), None));
        assert_eq!(split("c:me.png"), (PathBuf::from("c:me.png"), None));
    }
}
