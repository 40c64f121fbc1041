//! Edits of attributes in `z_sem`, and the residual that keeps other details.

use std::collections::BTreeSet;

use candle_core::Tensor;
use diffae_nets::AttributeClassifier;

use crate::error::{Error, Result, computing};
use crate::model::Model;

/// Adds the reconstruction residual of the original to an edited picture: `clamp(edited + x_0 - decoded, -1, 1)`.
/// Details that the edit does not touch stay as they were, whatever the number of steps.
///
/// # Shapes
/// - `edited`: decoded from edited codes; `x_0`: the picture; `decoded`: decoded from its codes as they are, in as many steps.
///   All `[N, C, H, W]`, in `[-1, 1]`.
/// # Errors
/// If the shapes differ.
/// # Source
/// The difference of an edit is taken between two decodings, as in Ju et al. 2023 (arXiv:2310.01506), who do it at each step.
pub fn keep_residual(edited: &Tensor, x_0: &Tensor, decoded: &Tensor) -> Result<Tensor> {
    let kept = (edited - decoded).and_then(|change| (x_0 + change)?.clamp(-1f32, 1f32));
    computing("keeping the residual", kept)
}

/// Strength of edits whose calibrated full-edit strength is not known.
pub const USUAL_EDIT_STRENGTH: f64 = 0.3;

/// Returns the calibrated full-edit strength of an attribute to two significant digits, as users see and give it, if the
/// classifier has one; see [`Pipeline::full_edit_strength`](crate::Pipeline::full_edit_strength).
///
/// # Errors
/// [`Error::Tensor`] if there is no attribute of that index.
pub fn rounded_full_strength(classifier: &AttributeClassifier, attribute_idx: usize) -> Result<Option<f64>> {
    let strength = computing("measuring a direction", classifier.full_strength(attribute_idx))?;
    Ok(strength.map(|strength| format!("{strength:.1e}").parse().unwrap_or(strength)))
}

/// Fails if a strength is NaN or infinite.
pub(crate) fn check_strength(strength: f64) -> Result<()> {
    if strength.is_finite() {
        return Ok(());
    }
    Err(Error::OutOfRange { what: "the strength of an edit", got: strength.to_string(), expected: "a finite number" })
}

/// An attribute to edit, with the strength of the edit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttributeEdit {
    /// The position of the attribute among the model's; see [`Model::attribute_idx`].
    pub attribute_idx: usize,
    /// Strength of the edit; negative removes the attribute.
    pub strength: f64,
}

impl Model {
    /// Finds the position of an attribute among the model's, by name or by number. Names are compared without regard to
    /// case, and spaces, underscores and hyphens are the same: `Blond Hair` is `blond_hair`. An exact match takes
    /// precedence.
    ///
    /// # Errors
    /// [`Error::UnknownAttribute`] with the known names; [`Error::AmbiguousAttribute`] if several names differ in nothing else;
    /// [`Error::MissingPart`] if the model has no classifier.
    pub fn attribute_idx(&self, name: &str) -> Result<usize> {
        attribute_position(&self.classifier()?.config().attributes, name)
    }

    /// Edits one attribute; see [`Model::edit_many`].
    ///
    /// # Shapes
    /// - `z_sem`, result: `[N, D]`, f32.
    /// # Errors
    /// As [`Model::edit_many`].
    pub fn edit(&self, z_sem: &Tensor, attribute_idx: usize, strength: f64) -> Result<Tensor> {
        self.edit_many(z_sem, &[AttributeEdit { attribute_idx, strength }])
    }

    /// Moves codes along the directions of several attributes:
    /// `denormalize(z + sqrt(D) * sum_k strength_k * d_k(z) / |w_k|)` with `z = normalize(z_sem)`, k running over the
    /// edited attributes, `d_k` being their [`EditDirection`](diffae_nets::EditDirection) and `w_k` its mean. All directions are taken at the unedited code, so the order of the edits does not matter, and
    /// a row of the result depends on that row alone.
    ///
    /// Along a classifier's weights -0.5 to 0.5 is useful, 0.3 is typical; along differences of codes,
    /// [`full_strength`](diffae_nets::AttributeClassifier::full_strength) is the calibrated full-edit strength. Negative
    /// strengths remove the attribute.
    ///
    /// # Shapes
    /// - `z_sem`, result: `[N, D]`, f32.
    /// # Errors
    /// [`Error::MissingPart`] if the model has no classifier or no latent statistics; [`Error::OutOfRange`] if a
    /// strength is not finite; [`Error::AttributeTwice`] if an attribute is edited twice.
    /// # Source
    /// Preechakul et al. 2022 (arXiv:2111.15640), section 5.3.
    pub fn edit_many(&self, z_sem: &Tensor, edits: &[AttributeEdit]) -> Result<Tensor> {
        self.check_edits(edits)?;
        let classifier = self.classifier()?;
        let mut edits = edits.to_vec();
        edits.sort_by_key(|edit| edit.attribute_idx);
        let unit = (classifier.config().z_channels as f64).sqrt();
        let z_sem_normalized = self.normalize(z_sem)?;
        let moved = || {
            edits.iter().try_fold(z_sem_normalized.clone(), |moved, edit| {
                let direction = classifier.directions_at(edit.attribute_idx, &z_sem_normalized)?;
                moved + (direction * (edit.strength * unit))?
            })
        };
        self.denormalize(&computing("editing", moved())?)
    }
}

impl Model {
    /// Fails where [`Model::edit_many`] would, so that edits can be checked before pictures are encoded.
    ///
    /// # Errors
    /// As [`Model::edit_many`].
    pub fn check_edits(&self, edits: &[AttributeEdit]) -> Result<()> {
        let known = &self.classifier()?.config().attributes;
        self.latent_moments()?;
        let mut seen = BTreeSet::new();
        for &AttributeEdit { attribute_idx, strength } in edits {
            check_strength(strength)?;
            if !seen.insert(attribute_idx) {
                return Err(Error::AttributeTwice { name: known.get(attribute_idx).cloned().unwrap_or_default() });
            }
        }
        Ok(())
    }
}

impl Model {
    /// Fails if the model has no levels of `z_sem`, or lacks one of these.
    ///
    /// # Errors
    /// [`Error::NoLevels`], [`Error::UnknownLevel`].
    pub fn check_levels(&self, levels: &[usize]) -> Result<()> {
        let known = self.config().z_levels();
        if known.is_empty() {
            return Err(Error::NoLevels);
        }
        match levels.iter().find(|&&level| level >= known.len()) {
            Some(&got) => Err(Error::UnknownLevel { got, num_levels: known.len() }),
            None => Ok(()),
        }
    }

    /// Takes the parts of a hierarchical `z_sem` at some levels from other codes, such as edited ones.
    ///
    /// # Shapes
    /// - `z_sem`, `others`, result: `[N, D]`.
    /// # Errors
    /// As [`Model::check_levels`]; [`Error::Tensor`] if the shapes differ.
    pub fn with_levels_of(&self, z_sem: &Tensor, others: &Tensor, levels: &[usize]) -> Result<Tensor> {
        self.check_levels(levels)?;
        computing("joining levels of z_sem", self.config().z_levels().replaced(z_sem, others, levels))
    }
}

fn attribute_position(known: &[String], name: &str) -> Result<usize> {
    if let Some(exact) = known.iter().position(|attribute| attribute == name) {
        return Ok(exact);
    }
    let plain = plain_name(name);
    let alike: Vec<usize> = (0..known.len()).filter(|&idx| plain_name(&known[idx]) == plain).collect();
    match alike[..] {
        [only] => Ok(only),
        [first, second, ..] => {
            let (name, first, second) = (name.to_owned(), known[first].clone(), known[second].clone());
            Err(Error::AmbiguousAttribute { name, first, second })
        }
        [] => {
            let by_number = name.parse().ok().filter(|&idx: &usize| idx < known.len());
            by_number.ok_or_else(|| Error::UnknownAttribute { name: name.to_owned(), known: known.join(", ") })
        }
    }
}

/// Normalizes a name for comparison: lower case, words joined by underscores.
fn plain_name(name: &str) -> String {
    let words = name.split([' ', '_', '-']).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_attributes_are_compared_as_people_write_them() {
        let known = ["Blond_Hair", "5_o_Clock_Shadow", "No-Beard", "blond hair"].map(str::to_owned);
        let of = |name: &str| attribute_position(&known[..3], name);
        for name in ["Blond_Hair", "blond hair", "BLOND-HAIR", " Blond  Hair "] {
            assert_eq!(of(name).unwrap(), 0, "{name}");
        }
        assert_eq!((of("no_beard").unwrap(), of("1").unwrap()), (2, 1));
        assert!(matches!(of("Blond"), Err(Error::UnknownAttribute { .. })));
        assert!(matches!(of("3"), Err(Error::UnknownAttribute { .. })));
        assert_eq!(attribute_position(&known, "blond hair").unwrap(), 3);
        assert!(matches!(attribute_position(&known, "Blond-Hair"), Err(Error::AmbiguousAttribute { .. })));
    }
}
