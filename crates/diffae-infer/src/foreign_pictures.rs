//! Detection of pictures outside the domain of a model.

use candle_core::Tensor;

use crate::decode::DecodeOptions;
use crate::error::{Result, computing};
use crate::model::Model;
use crate::noise::NoiseSource;

/// Number of steps in which `z_sem` alone is decoded. Two separate the kinds of pictures as well as many: see the card
/// of the built-in model.
const NUM_STEPS: usize = 2;

impl Model {
    /// Computes the PSNR between each picture and the decoding of its `z_sem` from random `x_T`: high for pictures like
    /// those of the training data.
    ///
    /// `10 log10(4 / mean((x_0 - x'_0)^2))`, where `x'_0` is decoded in two DDIM steps from the noise map 0 of seed 0.
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]` in `[-1, 1]`, f32; `z_sem`: `[N, D]`; result: N values in dB, infinite where nothing differs.
    /// # Errors
    /// If the shapes do not fit the model, or its schedule has fewer than two timesteps.
    pub fn psnr_of_z_sem(&self, x_0: &Tensor, z_sem: &Tensor) -> Result<Vec<f64>> {
        let count = computing("comparing pictures", x_0.dim(0))?;
        // One noise map for all: a picture has the same value in any batch.
        let x_terminal = vec![self.random_x_terminal(NoiseSource::new(0), 0..1)?; count];
        let x_terminal = computing("drawing noise", Tensor::cat(&x_terminal, 0))?;
        let options = DecodeOptions::ddim(NUM_STEPS);
        let (mut no_noise, mut no_callback) = (diffae_schedule::no_noise, diffae_schedule::no_callback);
        let decoded = self.decode(&x_terminal, Some(z_sem), &options, &mut no_noise, &mut no_callback)?;
        let errors =
            (x_0 - decoded).and_then(|difference| difference.sqr()?.flatten_from(1)?.mean(1)?.to_vec1::<f32>());
        let errors = computing("comparing pictures", errors)?;
        Ok(errors.into_iter().map(|error| 10. * (4. / f64::from(error)).log10()).collect())
    }

    /// Returns the indices of the pictures outside the model's domain; none where its config names no domain.
    ///
    /// # Shapes
    /// As [`psnr_of_z_sem`](Self::psnr_of_z_sem).
    /// # Errors
    /// As [`psnr_of_z_sem`](Self::psnr_of_z_sem).
    pub fn foreign_pictures(&self, x_0: &Tensor, z_sem: &Tensor) -> Result<Vec<usize>> {
        let Some(domain) = self.config().domain() else { return Ok(vec![]) };
        let psnr = self.psnr_of_z_sem(x_0, z_sem)?;
        Ok(psnr.iter().enumerate().filter(|&(_, &psnr)| psnr < domain.min_psnr).map(|(idx, _)| idx).collect())
    }

    /// Returns a warning that names the first of the pictures outside the model's domain; `None` if there are none.
    ///
    /// # Shapes
    /// As [`psnr_of_z_sem`](Self::psnr_of_z_sem), and one name for each picture.
    /// # Errors
    /// As [`psnr_of_z_sem`](Self::psnr_of_z_sem).
    pub fn domain_warning<S: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = S>,
        x_0: &Tensor,
        z_sem: &Tensor,
    ) -> Result<Option<String>> {
        let Some(domain) = self.config().domain() else { return Ok(None) };
        let foreign = self.foreign_pictures(x_0, z_sem)?;
        let first = foreign.first().and_then(|&idx| names.into_iter().nth(idx));
        let others = if foreign.len() > 1 { format!(" (and {} more)", foreign.len() - 1) } else { String::new() };
        Ok(first.map(|name| domain.warning(&format!("{}{others}", name.as_ref()))))
    }
}

#[cfg(all(test, feature = "built-in"))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{BUILT_IN_MODEL, LoadOptions, built_in_pictures};
    use diffae_data::{read_image, tensor_from_rgb};

    #[test]
    fn the_built_in_model_tells_cartoon_faces_from_photographs() {
        let model = Model::load(Path::new(BUILT_IN_MODEL), &LoadOptions::cpu()).unwrap();
        let faces = built_in_pictures().unwrap();
        let faces = faces.iter().map(|(_, face)| tensor_from_rgb(face, model.picture_format()).unwrap());
        let photographs = ["astronaut", "cat"].map(|name| {
            let path = Path::new("../../tests/fixtures/photographs").join(name).with_extension("jpg");
            read_image(&path, model.picture_format()).unwrap()
        });
        let x_0 = Tensor::stack(&faces.chain(photographs).collect::<Vec<_>>(), 0).unwrap();
        let z_sem = model.encode_semantic(&x_0).unwrap();
        assert_eq!(model.foreign_pictures(&x_0, &z_sem).unwrap(), [8, 9]);
        // Neither is near the limit, and the batch changes nothing.
        let psnr = model.psnr_of_z_sem(&x_0, &z_sem).unwrap();
        assert!(psnr[..8].iter().all(|&psnr| psnr > 28.) && psnr[8..].iter().all(|&psnr| psnr < 15.), "{psnr:?}");
        let alone = |x: &Tensor| x.narrow(0, 9, 1).unwrap();
        let alone = model.psnr_of_z_sem(&alone(&x_0), &alone(&z_sem)).unwrap();
        assert!((alone[0] - psnr[9]).abs() < 1e-3, "{alone:?} {psnr:?}");
    }
}
