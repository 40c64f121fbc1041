//! Operations of a pipeline from pictures to pictures.

use candle_core::Tensor;
use image::RgbImage;

use super::{Pipeline, check_count};
use crate::codes::Codes;
use crate::error::{Error, Result, computing};
use crate::interpolate::{PathEnd, PathFrame, path_frames};
use crate::manipulate::{AttributeEdit, check_strength, keep_residual};
use crate::observer::Observer;
use crate::settings::PipelineSettings;
use diffae_data::{PictureSet, rgb_from_tensor, tensor_from_rgb};

impl Pipeline {
    /// Reads pictures of a set at the model's size, to its device.
    ///
    /// # Shapes
    /// - result: `[N, C, H, W]`, or volumes, `[N, C, D, H, W]`, f32 in `[-1, 1]`.
    /// # Errors
    /// As [`PictureSet::read`].
    pub fn read_batch(&self, pictures: &PictureSet, indices: impl Iterator<Item = usize>) -> Result<Tensor> {
        let x_0 = pictures.read(indices, self.model().picture_format())?;
        computing("moving pictures", x_0.to_device(self.model().device()))
    }

    /// Encodes pictures of any size: resized to the model's, cropped to the center.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] without pictures; [`Error::Cancelled`].
    pub fn encode(
        &self,
        pictures: &[RgbImage],
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Codes> {
        self.encode_tensor(&self.tensor_of(pictures)?, settings, observer)
    }

    /// Decodes codes to pictures. Without `x_T`, noise is drawn.
    ///
    /// # Errors
    /// As [`Pipeline::decode_tensor`].
    pub fn decode(
        &self,
        codes: &Codes,
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<RgbImage>> {
        pictures_of(&self.decode_tensor(codes, settings, observer)?)
    }

    /// Decodes codes to pictures, with noise drawn by `numbers`, one for each: see [`Pipeline::decode_batches`].
    ///
    /// # Errors
    /// As [`Pipeline::decode_tensor`]; [`Error::OutOfRange`] unless there are as many numbers.
    pub fn decode_at(
        &self,
        codes: &Codes,
        numbers: &[u64],
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<RgbImage>> {
        pictures_of(&self.decode_numbered(codes, numbers, settings, observer)?)
    }

    /// Edits an attribute of codes. [`Pipeline::full_edit_strength`] is the strength of a full edit, and negative
    /// strengths remove the attribute. See [`Model::edit`](crate::Model::edit).
    ///
    /// # Errors
    /// [`Error::UnknownAttribute`] with the known names; [`Error::MissingPart`] if the model has no classifier, or the codes
    /// no `z_sem`.
    pub fn edit(&self, codes: &Codes, attribute: &str, strength: f64) -> Result<Codes> {
        self.edit_many(codes, &[(attribute, strength)])
    }

    /// Edits several attributes of codes at once, each by name and strength: all directions are taken at the unedited
    /// codes, so the order does not matter. See [`Model::edit_many`](crate::Model::edit_many).
    ///
    /// # Errors
    /// As [`Pipeline::edit`]; [`Error::AttributeTwice`].
    pub fn edit_many(&self, codes: &Codes, edits: &[(&str, f64)]) -> Result<Codes> {
        let edit = |&(attribute, strength): &(&str, f64)| {
            Ok(AttributeEdit { attribute_idx: self.model().attribute_idx(attribute)?, strength })
        };
        let edits = edits.iter().map(edit).collect::<Result<Vec<_>>>()?;
        let z_sem = computing("moving codes", z_sem_of(codes)?.to_device(self.model().device()))?;
        Ok(Codes { z_sem: Some(self.model().edit_many(&z_sem, &edits)?), ..codes.clone() })
    }

    /// Takes the parts of a hierarchical `z_sem` at some levels from other codes, and all else, `x_T` included, from `codes`: with
    /// edited codes, an edit of these levels alone; with those of other pictures, coarse features of one and fine ones of another.
    /// Level 0 is that of the finest resolution.
    ///
    /// # Errors
    /// [`Error::NoLevels`], [`Error::UnknownLevel`]; [`Error::MissingPart`] if codes have no `z_sem`; [`Error::Tensor`] unless both
    /// are of as many pictures.
    pub fn with_levels_of(&self, codes: &Codes, others: &Codes, levels: &[usize]) -> Result<Codes> {
        let here = |codes| computing("moving codes", z_sem_of(codes)?.to_device(self.model().device()));
        let z_sem = self.model().with_levels_of(&here(codes)?, &here(others)?, levels)?;
        Ok(Codes { z_sem: Some(z_sem), ..codes.clone() })
    }

    /// Returns the calibrated full-edit strength of an attribute for [`Pipeline::edit`], `|w| / sqrt(D)`, if its
    /// direction is a difference of codes, as in the built-in model and after `diffae fit-edits`. Along a classifier's
    /// weights, as in released checkpoints, 0.3 is a good first try.
    ///
    /// # Errors
    /// [`Error::UnknownAttribute`]; without a classifier [`Error::MissingPart`].
    pub fn full_edit_strength(&self, attribute: &str) -> Result<Option<f64>> {
        let attribute_idx = self.model().attribute_idx(attribute)?;
        computing("measuring a direction", self.model().classifier()?.full_strength(attribute_idx))
    }

    /// Edits attributes of pictures of any size: encodes, edits and decodes, so that other details stay as they were. What
    /// DDIM or a spatial autoencoder loses of a picture is added to the result ([`keep_residual`]), unless nothing is lost
    /// ([`Pipeline::is_lossless`]). See [`Pipeline::edit`] for the strength.
    ///
    /// # Errors
    /// As [`Pipeline::encode`], [`Pipeline::edit`] and [`Pipeline::decode`].
    pub fn edit_pictures(
        &self,
        pictures: &[RgbImage],
        edits: &[(&str, f64)],
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<RgbImage>> {
        // Before the long inversion.
        for &(attribute, strength) in edits {
            self.model().attribute_idx(attribute)?;
            check_strength(strength)?;
        }
        let x_0 = self.tensor_of(pictures)?;
        let codes = self.encode_tensor(&x_0, settings, observer)?;
        let edited = self.decode_tensor(&self.edit_many(&codes, edits)?, settings, observer)?;
        if self.is_lossless(settings) {
            return pictures_of(&edited);
        }
        let x_0 = computing("moving pictures", x_0.to_device(self.model().device()))?;
        pictures_of(&keep_residual(&edited, &x_0, &self.decode_tensor(&codes, settings, observer)?)?)
    }

    /// Interpolates between two pictures, both ends included: `z_sem` and residuals on a straight line, `x_T` on an arc. If
    /// the codes of only one are exact, the residual of the other is 0, as that of random `x_T`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless both hold one picture and there are two frames or more; as [`Codes::joined`].
    pub fn interpolate(&self, from: &Codes, to: &Codes, num_frames: usize) -> Result<Codes> {
        if [from.len(), to.len()] != [1, 1] || num_frames < 2 {
            let got = format!("{} and {} pictures, {num_frames} frames", from.len(), to.len());
            return Err(Error::OutOfRange { what: "an interpolation", got, expected: "one and one, two or more" });
        }
        both(from, to)?.at_frames(&path_frames(2, num_frames, PathEnd::Last)?)
    }

    /// Returns the codes at `alpha` between those of two pictures, 0 to 1; see [`interpolate`](Self::interpolate).
    ///
    /// # Errors
    /// As [`Pipeline::interpolate`].
    pub fn blend(&self, from: &Codes, to: &Codes, alpha: f64) -> Result<Codes> {
        if [from.len(), to.len()] != [1, 1] || !(0.0..=1.0).contains(&alpha) {
            let got = format!("{} and {} pictures, alpha {alpha}", from.len(), to.len());
            return Err(Error::OutOfRange { what: "a blend", got, expected: "one and one, 0 to 1" });
        }
        both(from, to)?.at_frames(&[PathFrame { from: 0, to: 1, alpha }])
    }

    /// Interpolates through all pictures in their order, `frames_per_leg` from each to the next with both ends; see
    /// [`path_frames`].
    ///
    /// # Errors
    /// As [`path_frames`].
    pub fn interpolate_through(&self, codes: &Codes, frames_per_leg: usize, end: PathEnd) -> Result<Codes> {
        codes.at_frames(&path_frames(codes.len(), frames_per_leg, end)?)
    }

    /// Decodes the `z_sem` of the first of the codes with `count` random `x_T`: pictures with the same semantics.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if the codes have no `z_sem`; as [`Pipeline::decode`].
    pub fn variations(
        &self,
        codes: &Codes,
        count: usize,
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<RgbImage>> {
        check_count("variations", count)?;
        let z_sem = z_sem_of(codes)?;
        let repeated = z_sem.narrow(0, 0, 1).and_then(|z_sem| z_sem.repeat((count, 1)));
        let repeated = computing("repeating z_sem", repeated)?;
        self.decode(&self.codes(Some(repeated), None, 0..count), settings, observer)
    }

    /// Samples pictures 0, 1, ... of the seed.
    ///
    /// # Errors
    /// As [`Pipeline::sample_codes`] and [`Pipeline::decode`].
    pub fn sample(
        &self,
        count: usize,
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<RgbImage>> {
        self.sample_at(&(0..count as u64).collect::<Vec<_>>(), settings, observer)
    }

    /// Samples pictures by their index in the sequence of the seed, independently of the batch.
    ///
    /// # Errors
    /// As [`Pipeline::sample`].
    pub fn sample_at(
        &self,
        numbers: &[u64],
        settings: &PipelineSettings,
        observer: &mut Observer<'_>,
    ) -> Result<Vec<RgbImage>> {
        self.decode_at(&self.sample_codes(numbers, settings, observer)?, numbers, settings, observer)
    }

    /// Converts pictures of any size to a tensor at the model's size, on the CPU, for [`Pipeline::encode_tensor`].
    ///
    /// # Shapes
    /// - result: `[N, C, H, W]`, f32 in `[-1, 1]`.
    /// # Errors
    /// [`Error::OutOfRange`] without pictures.
    pub fn tensor_of(&self, pictures: &[RgbImage]) -> Result<Tensor> {
        let format = self.model().picture_format();
        let read = |picture: &RgbImage| Ok(tensor_from_rgb(picture, format)?);
        let pictures = pictures.iter().map(read).collect::<Result<Vec<_>>>()?;
        check_count("pictures", pictures.len())?;
        computing("stacking pictures", Tensor::stack(&pictures, 0))
    }
}

fn pictures_of(x_0: &Tensor) -> Result<Vec<RgbImage>> {
    let count = computing("reading pictures", x_0.dim(0))?;
    (0..count).map(|idx| Ok(rgb_from_tensor(&computing("reading a picture", x_0.get(idx))?)?)).collect()
}

fn z_sem_of(codes: &Codes) -> Result<&Tensor> {
    codes.z_sem.as_ref().ok_or(Error::MissingPart { part: "z_sem", hint: "the codes are of a plain DDPM" })
}

/// Joins the codes of two pictures; a sample goes along the chain of the other.
fn both(from: &Codes, to: &Codes) -> Result<Codes> {
    let both = match (from.is_sampled(), to.is_sampled()) {
        (_, true) => [from.clone(), to.along(from.chain.as_ref())?],
        (true, false) => [from.along(to.chain.as_ref())?, to.clone()],
        (false, false) => [from.clone(), to.clone()],
    };
    Codes::joined(&both)
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::path::Path;

    use diffae_schedule::Sampler;

    use diffae_data::Overwrite;

    use super::*;
    use crate::observer::{CallEvent, NetworkCall, no_observer};
    use crate::pipeline::CodesBatch;
    use crate::stochastic_code::CodeChain;

    const SETTINGS: PipelineSettings = PipelineSettings {
        num_steps: 2,
        num_invert_steps: 2,
        num_latent_steps: 2,
        batch_size: Some(2),
        ..PipelineSettings::REFERENCE
    };

    fn pipeline() -> Pipeline {
        Pipeline::from_dir(Path::new("../../tests/fixtures/golden/autoenc16_latent/last.ckpt")).unwrap()
    }

    fn pictures() -> Vec<RgbImage> {
        let picture = |number: u8| {
            RgbImage::from_fn(20, 16, |x, y| {
                let [x, y] = [x, y].map(|place| u8::try_from(place * 9).unwrap());
                image::Rgb([number * 60, x, y])
            })
        };
        (0..3).map(picture).collect()
    }

    fn encode(pictures: &[RgbImage]) -> Codes {
        pipeline().encode(pictures, &SETTINGS, &mut no_observer).unwrap()
    }

    fn decode(codes: &Codes) -> Vec<RgbImage> {
        pipeline().decode(codes, &SETTINGS, &mut no_observer).unwrap()
    }

    fn sample(numbers: &[u64], settings: &PipelineSettings) -> Vec<RgbImage> {
        pipeline().sample_at(numbers, settings, &mut no_observer).unwrap()
    }

    #[test]
    fn batches_do_not_matter() {
        let pictures = pictures();
        let (together, alone) = (encode(&pictures), encode(&pictures[2..]));
        let codes = |codes: &Codes| codes.z_sem.as_ref().unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(codes(&together)[2], codes(&alone)[0]);
        assert_eq!(together.names, ["0000", "0001", "0002"]);
        assert_eq!(decode(&together)[2], decode(&alone)[0]);
    }

    #[test]
    fn an_interpolation_ends_at_both_pictures() {
        let (pipeline, pictures) = (pipeline(), pictures());
        let (from, to) = (encode(&pictures[..1]), encode(&pictures[1..2]));
        let frames = decode(&pipeline.interpolate(&from, &to, 3).unwrap());
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[0], decode(&from)[0]);
        assert_eq!(frames[2], decode(&to)[0]);
        assert!(matches!(pipeline.interpolate(&from, &to, 1), Err(Error::OutOfRange { .. })));
    }

    #[test]
    fn samples_depend_on_the_seed_and_their_number_alone() {
        for sampler in Sampler::names().map(|name| name.parse().unwrap()) {
            let seed_1 = PipelineSettings { seed: 1, sampler, ..SETTINGS };
            let first = sample(&[0, 1, 2], &seed_1);
            assert_eq!(first, pipeline().sample(3, &seed_1, &mut no_observer).unwrap());
            assert_eq!(first[..2], sample(&[0, 1], &seed_1)[..]);
            assert_ne!(first, sample(&[0, 1, 2], &PipelineSettings { seed: 2, ..seed_1 }));
            assert_eq!(sample(&[2, 0], &seed_1), [first[2].clone(), first[0].clone()]);
        }
    }

    #[test]
    fn the_observer_is_told_of_every_call() {
        let mut told = vec![];
        let mut observer = |event: &CallEvent<'_>| {
            told.push((event.call, event.num_pictures, event.step.map(|step| step.number)));
            ControlFlow::Continue(())
        };
        let (pipeline, pictures) = (pipeline(), pictures());
        let codes = pipeline.encode(&pictures, &SETTINGS, &mut observer).unwrap();
        pipeline.sample_codes(&[0], &SETTINGS, &mut observer).unwrap();
        pipeline.decode(&codes.select(&[0]).unwrap(), &SETTINGS, &mut observer).unwrap();
        let (encoder, decoder, latent_net) = (NetworkCall::Encoder, NetworkCall::Decoder, NetworkCall::LatentNet);
        let encoding = |count| [(encoder, count, None), (decoder, count, Some(1)), (decoder, count, Some(2))];
        let rest = [(latent_net, 1, Some(1)), (latent_net, 1, Some(2)), (decoder, 1, Some(1)), (decoder, 1, Some(2))];
        assert_eq!(told, [&encoding(2)[..], &encoding(1), &rest].concat());
    }

    #[test]
    fn exact_codes_come_back_in_few_steps_and_in_any_batch() {
        let (pipeline, pictures) = (pipeline(), pictures());
        let settings = PipelineSettings { num_steps: 3, batch_size: Some(2), ..PipelineSettings::DEFAULT };
        let x_0 = pipeline.tensor_of(&pictures).unwrap();
        let codes = pipeline.encode_tensor(&x_0, &settings, &mut no_observer).unwrap();
        let mut num_calls = 0;
        let mut counting = |event: &CallEvent<'_>| {
            num_calls += usize::from(event.call == NetworkCall::Decoder);
            ControlFlow::Continue(())
        };
        // The chain of the codes counts, not that of the settings.
        let other = PipelineSettings { num_steps: 7, sampler: Sampler::DDIM, batch_size: Some(1), ..settings };
        let decoded = pipeline.decode_tensor(&codes, &other, &mut counting).unwrap();
        assert_eq!(num_calls, 3 * 3);
        let difference = (decoded - &x_0).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-3, "{difference}");
        let alone = pipeline.decode(&codes.select(&[2]).unwrap(), &settings, &mut no_observer).unwrap();
        assert_eq!(alone[0], pipeline.decode(&codes, &settings, &mut no_observer).unwrap()[2]);
        // Halfway between a picture and itself is the picture.
        let same = pipeline.interpolate(&codes.select(&[1]).unwrap(), &codes.select(&[1]).unwrap(), 3).unwrap();
        assert_eq!(pipeline.decode(&same, &settings, &mut no_observer).unwrap()[1], rgb_of(&x_0, 1));
        let random = pipeline.sample_codes(&[0], &settings, &mut no_observer).unwrap();
        let towards = pipeline.interpolate(&codes.select(&[1]).unwrap(), &random, 3).unwrap();
        assert_eq!(pipeline.decode(&towards, &settings, &mut no_observer).unwrap()[0], rgb_of(&x_0, 1));
        assert_eq!(towards.chain.unwrap().settings, codes.chain.as_ref().unwrap().settings);
        // Codes that have lost their residual are joined with others all the same: it is 0.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("codes.safetensors");
        let chain = codes.chain.as_ref().map(|chain| CodeChain { residual: None, ..chain.clone() });
        Codes { chain, ..codes.clone() }.write(&path, &[], Overwrite::Refuse).unwrap();
        let joined = Codes::joined(&[Codes::read(&path).unwrap(), codes.clone()]).unwrap();
        let residual = joined.chain.unwrap().residual.unwrap();
        assert_eq!(residual.dims()[0], 2 * codes.len());
        let lost = residual.narrow(0, 0, codes.len()).unwrap();
        assert!(lost.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() <= 0.);
        // Codes of DDIM in reverse go with samples, but not with exact ones.
        let reference = pipeline.encode_tensor(&x_0, &SETTINGS, &mut no_observer).unwrap().select(&[1]).unwrap();
        let mixed = pipeline.blend(&codes.select(&[1]).unwrap(), &reference, 0.5);
        assert!(matches!(mixed, Err(Error::MixedChains { .. })), "{mixed:?}");
        let sampled = pipeline.blend(&random, &reference, 1.0).unwrap();
        assert!(sampled.chain.is_none());
        let [back, expected] = [sampled, reference.clone()].map(|codes| decode(&codes));
        assert_eq!(back, expected);
        assert!(matches!(Codes::joined(&[codes, reference]), Err(Error::MixedChains { .. })));
        // Samples of two chains are blended along the first.
        let other = PipelineSettings { num_steps: 4, sampler: Sampler::DpmSolverPp2M, ..settings };
        let others = pipeline.sample_codes(&[1], &other, &mut no_observer).unwrap();
        let blended = pipeline.blend(&random, &others, 0.0).unwrap();
        assert_eq!(blended.chain.as_ref().unwrap().settings, settings.sampled().into());
        let own = SETTINGS.along(&blended);
        let alone = pipeline.sample(1, &settings, &mut no_observer).unwrap();
        assert_eq!(pipeline.decode(&blended, &own, &mut no_observer).unwrap(), alone);
    }

    fn rgb_of(x_0: &Tensor, idx: usize) -> RgbImage {
        rgb_from_tensor(&x_0.get(idx).unwrap()).unwrap()
    }

    #[test]
    fn clones_share_the_model_between_threads() {
        let pipeline = pipeline();
        let here = pipeline.sample(1, &SETTINGS, &mut no_observer).unwrap();
        let other = pipeline.clone();
        let there = std::thread::spawn(move || other.sample(1, &SETTINGS, &mut no_observer).unwrap()).join().unwrap();
        assert_eq!(here, there);
    }

    #[test]
    fn what_cannot_be_done_is_an_error() {
        let pipeline = pipeline();
        assert!(matches!(pipeline.encode(&[], &SETTINGS, &mut no_observer), Err(Error::OutOfRange { .. })));
        let codes = encode(&pictures());
        assert!(matches!(pipeline.edit(&codes, "Smiling", 0.3), Err(Error::MissingPart { .. })));
        let stop = &mut |_: &CallEvent<'_>| ControlFlow::Break(());
        assert!(matches!(pipeline.decode(&codes, &SETTINGS, stop), Err(Error::Cancelled)));
        assert!(matches!(pipeline.encode(&pictures(), &SETTINGS, stop), Err(Error::Cancelled)));
        for numbers in [&[0, 1][..], &[0, 1, 2, 3]] {
            let first = pipeline.decode_batches(&codes, numbers, &SETTINGS, &mut no_observer).next().unwrap();
            assert!(matches!(first, Err(Error::OutOfRange { .. })), "{numbers:?}");
        }
        let noisy = PipelineSettings { sampler: Sampler::Ddim { eta: 1. }, ..SETTINGS };
        let x_terminal = codes.x_terminal.as_ref().unwrap();
        let batch = CodesBatch { x_terminal, z_sem: codes.z_sem.as_ref(), numbers: &[0], chain: codes.chain.as_ref() };
        assert!(matches!(pipeline.decode_batch(batch, &noisy, &mut no_observer), Err(Error::OutOfRange { .. })));
    }
}
