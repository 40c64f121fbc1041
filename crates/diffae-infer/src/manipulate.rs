//! Moves `z_sem` along the direction of an attribute, and gives back what decoding loses.

use candle_core::Tensor;

use crate::error::{Error, Result, computing};
use crate::model::Model;

/// `clamp(edited + x_0 - decoded, -1, 1)`: gives an edited picture back what its codes lose of the original, so that what
/// the edit leaves alone stays as it was, whatever the number of steps.
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

/// Fails if a strength is NaN or infinite.
pub(crate) fn check_strength(strength: f64) -> Result<()> {
    if strength.is_finite() {
        return Ok(());
    }
    Err(Error::OutOfRange { what: "the strength of an edit", got: strength.to_string(), expected: "a finite number" })
}

impl Model {
    /// The position of an attribute among the model's, by name (in any case) or by number.
    ///
    /// # Errors
    /// [`Error::UnknownAttribute`] with the known names; [`Error::MissingPart`] if the model has no classifier.
    pub fn attribute_idx(&self, name: &str) -> Result<usize> {
        let known = &self.classifier()?.config().attributes;
        let by_name = known.iter().position(|attribute| attribute.eq_ignore_ascii_case(name));
        let by_number = || name.parse().ok().filter(|&idx: &usize| idx < known.len());
        let unknown = || Error::UnknownAttribute { name: name.to_owned(), known: known.join(", ") };
        by_name.or_else(by_number).ok_or_else(unknown)
    }

    /// `denormalize(z + strength * sqrt(D) * w_k / |w_k|)` with `z = normalize(z_sem)`, k being the attribute; with local
    /// directions `w_k + U_k^T (tanh(M_k tanh(V_k z + b_k) + d_k) - c_k)` is in place of the `w_k` above the line.
    ///
    /// Along a classifier's weights -0.5 to 0.5 is useful, 0.3 is typical; along differences of codes,
    /// [`whole_way`](diffae_nets::AttributeClassifier::whole_way) tells how far to go. Negative takes the attribute away.
    ///
    /// # Shapes
    /// - `z_sem`, result: `[N, D]`, f32.
    /// # Errors
    /// [`Error::MissingPart`] if the model has no classifier or no latent statistics; [`Error::OutOfRange`] if the
    /// strength is not finite.
    /// # Source
    /// Preechakul et al. 2022 (arXiv:2111.15640), section 5.3.
    pub fn edit(&self, z_sem: &Tensor, attribute_idx: usize, strength: f64) -> Result<Tensor> {
        check_strength(strength)?;
        let classifier = self.classifier()?;
        let length = strength * (classifier.config().z_channels as f64).sqrt();
        let z_sem_normalized = self.normalize(z_sem)?;
        let directions = classifier.directions_at(attribute_idx, &z_sem_normalized);
        let moved = directions.and_then(|directions| z_sem_normalized + (directions * length)?);
        self.denormalize(&computing("editing", moved)?)
    }
}
