//! Pictures in, pictures out: everything a model can do, with defaults.

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use candle_core::Tensor;
use diffae_schedule::no_noise;
use image::RgbImage;

use crate::codes::Codes;
use crate::decode::DecodeOptions;
use crate::error::{Error, Result, computing};
use crate::image_io::{rgb_from_tensor, tensor_from_rgb};
use crate::interpolate::{PathEnd, path_frames};
use crate::manipulate::{AttributeEdit, check_strength, keep_residual};
use crate::model::{LoadOptions, Model};
use crate::noise::{NoisePurpose, NoiseSource};
use crate::work::NetworkCall;

/// Called after each call of a network, with the number of pictures in it; `Break` stops the work.
type CallCallback = Box<dyn Fn(NetworkCall, usize) -> ControlFlow<()> + Send + Sync>;

/// A model and how it is used.
///
/// ```
/// use std::path::Path;
/// use diffae_infer::Pipeline;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let fixtures = Path::new("../../tests/fixtures");
/// let pipeline = Pipeline::from_dir(&fixtures.join("golden/autoenc16_latent/last.ckpt"))?
///     .with_steps(4)
///     .with_invert_steps(4)
///     .with_seed(7);
/// let photograph = image::open(fixtures.join("photographs/cat.jpg"))?.to_rgb8();
/// let codes = pipeline.encode(&[photograph])?; // z_sem and x_T
/// let [reconstruction] = &pipeline.decode(&codes)?[..] else { panic!("one picture in, one out") };
/// assert_eq!(reconstruction.dimensions(), (16, 16));
/// assert_eq!(pipeline.variations(&codes, 3)?.len(), 3); // the same z_sem, new x_T
/// # Ok(())
/// # }
/// ```
pub struct Pipeline {
    model: Model,
    num_steps: usize,
    num_invert_steps: usize,
    num_latent_steps: usize,
    batch_size: usize,
    seed: u64,
    on_call: Option<CallCallback>,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline")
            .field("model", &self.model.fingerprint())
            .field("num_steps", &self.num_steps)
            .field("num_invert_steps", &self.num_invert_steps)
            .field("num_latent_steps", &self.num_latent_steps)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Loads a model directory or a released checkpoint, f32 on the CPU.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_dir(path: &Path) -> Result<Self> {
        Ok(Self::new(Model::load(path, &LoadOptions::cpu())?))
    }

    /// The built-in model of cartoon faces, f32 on the CPU.
    ///
    /// # Errors
    /// None that can be brought about.
    #[cfg(feature = "built-in")]
    pub fn from_built_in() -> Result<Self> {
        Ok(Self::new(crate::ModelSource::built_in()?.build(&LoadOptions::cpu())?))
    }

    /// With a model that is loaded already, on any device.
    #[must_use]
    pub fn new(model: Model) -> Self {
        Self {
            model,
            num_steps: 20,
            num_invert_steps: 50,
            num_latent_steps: 100,
            batch_size: 8,
            seed: 0,
            on_call: None,
        }
    }

    /// Decoding steps; more are slower and nearer to the picture. At first 20.
    #[must_use]
    pub fn with_steps(self, num_steps: usize) -> Self {
        Self { num_steps, ..self }
    }

    /// Steps of the inversion that finds `x_T`. At first 50.
    #[must_use]
    pub fn with_invert_steps(self, num_invert_steps: usize) -> Self {
        Self { num_invert_steps, ..self }
    }

    /// Steps of the diffusion that invents `z_sem`. At first 100.
    #[must_use]
    pub fn with_latent_steps(self, num_latent_steps: usize) -> Self {
        Self { num_latent_steps, ..self }
    }

    /// Pictures that are worked on at once; memory grows with them. At first 8.
    #[must_use]
    pub fn with_batch_size(self, batch_size: usize) -> Self {
        Self { batch_size: batch_size.max(1), ..self }
    }

    /// Seed of all noise: the same seed, the same pictures. At first 0.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Calls `on_step` after each step of a chain, with the number of pictures in it: for a progress bar, or to stop by
    /// `Break`, which makes the call fail with [`Error::Interrupted`].
    #[must_use]
    pub fn with_callback(self, on_step: impl Fn(usize) -> ControlFlow<()> + Send + Sync + 'static) -> Self {
        // One call of the encoder is no step.
        self.with_call_callback(move |call, count| match call {
            NetworkCall::Encoder => ControlFlow::Continue(()),
            NetworkCall::Decoder | NetworkCall::LatentNet => on_step(count),
        })
    }

    /// Calls `on_call` after each call of a network, with its kind and the number of pictures in it: for a progress bar that
    /// weighs calls by what they cost ([`Model::multiply_adds`]), or to stop by `Break`, which makes the call fail with
    /// [`Error::Interrupted`].
    #[must_use]
    pub fn with_call_callback(
        self,
        on_call: impl Fn(NetworkCall, usize) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        Self { on_call: Some(Box::new(on_call)), ..self }
    }

    /// The model, for what a pipeline does not offer.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Names of the attributes that [`Pipeline::edit`] knows; none without a classifier.
    #[must_use]
    pub fn attributes(&self) -> &[String] {
        self.model.classifier().map_or(&[], |classifier| &classifier.config().attributes)
    }

    /// The codes of pictures of any size: resized to the model's, cropped to the center.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] without pictures; [`Error::Interrupted`].
    pub fn encode(&self, pictures: &[RgbImage]) -> Result<Codes> {
        self.encode_tensor(&self.tensor_of(pictures)?)
    }

    /// The codes of pictures as the model sees them.
    ///
    /// # Shapes
    /// - `x_0`: `[N, C, H, W]`, f32 in `[-1, 1]`.
    /// # Errors
    /// If the shape is not that of the model; [`Error::Interrupted`].
    pub fn encode_tensor(&self, x_0: &Tensor) -> Result<Codes> {
        let count = computing("reading pictures", x_0.dim(0))?;
        check_count("pictures", count)?;
        let (mut z_sems, mut x_terminals) = (vec![], vec![]);
        for batch in self.batches(count) {
            let moved = x_0.narrow(0, batch.start, batch.len()).and_then(|x_0| x_0.to_device(self.model.device()));
            let x_0 = computing("moving pictures", moved)?;
            let z_sem = self.model.has_z_sem().then(|| self.model.encode_semantic(&x_0)).transpose()?;
            if z_sem.is_some() && self.called(NetworkCall::Encoder, batch.len()).is_break() {
                return Err(Error::Interrupted);
            }
            x_terminals.push(if self.model.config().compact.is_some() {
                self.model.zero_x_terminal(batch.len())?
            } else {
                let on_step = &mut |_: &diffae_schedule::Step<'_>| self.called(NetworkCall::Decoder, batch.len());
                self.model.invert(&x_0, z_sem.as_ref(), self.num_invert_steps, on_step)?
            });
            z_sems.extend(z_sem);
        }
        let z_sem = if z_sems.is_empty() { None } else { Some(computing("joining codes", Tensor::cat(&z_sems, 0))?) };
        let x_terminal = computing("joining codes", Tensor::cat(&x_terminals, 0))?;
        Ok(self.codes(z_sem, x_terminal, count))
    }

    /// The pictures of codes.
    ///
    /// # Errors
    /// If the codes do not fit the model; [`Error::Interrupted`].
    pub fn decode(&self, codes: &Codes) -> Result<Vec<RgbImage>> {
        pictures_of(&self.decode_tensor(codes)?)
    }

    /// The pictures of codes, `[N, C, H, W]`, f32 in `[-1, 1]`. Without `x_T` fresh noise is taken.
    ///
    /// # Errors
    /// As [`Pipeline::decode`].
    pub fn decode_tensor(&self, codes: &Codes) -> Result<Tensor> {
        let count = count_of(codes)?;
        let options = DecodeOptions::ddim(self.num_steps);
        let mut pictures = vec![];
        for batch in self.batches(count) {
            let part = |tensor: &Tensor| {
                let part = tensor.narrow(0, batch.start, batch.len());
                computing("moving codes", part.and_then(|part| part.to_device(self.model.device())))
            };
            let z_sem = codes.z_sem.as_ref().map(part).transpose()?;
            let x_terminal = match &codes.x_terminal {
                Some(x_terminal) => part(x_terminal)?,
                None => self.random_x_terminal(batch.start as u64..batch.end as u64)?,
            };
            let on_step = &mut |_: &diffae_schedule::Step<'_>| self.called(NetworkCall::Decoder, batch.len());
            pictures.push(self.model.decode(&x_terminal, z_sem.as_ref(), &options, &mut no_noise, on_step)?);
        }
        computing("joining pictures", Tensor::cat(&pictures, 0))
    }

    /// Codes with an attribute moved: [`Pipeline::whole_way`] tells how far to go, negative takes it away. See [`Model::edit`].
    ///
    /// # Errors
    /// [`Error::UnknownAttribute`] with the known names; [`Error::MissingPart`] if the model has no classifier, or the codes
    /// no `z_sem`.
    pub fn edit(&self, codes: &Codes, attribute: &str, strength: f64) -> Result<Codes> {
        self.edit_many(codes, &[(attribute, strength)])
    }

    /// Codes with several attributes moved at once, each by name and strength: all directions are taken at the codes as they
    /// were, so the order does not matter. See [`Model::edit_many`].
    ///
    /// # Errors
    /// As [`Pipeline::edit`]; [`Error::AttributeTwice`].
    pub fn edit_many(&self, codes: &Codes, edits: &[(&str, f64)]) -> Result<Codes> {
        let edit = |&(attribute, strength): &(&str, f64)| {
            Ok(AttributeEdit { attribute_idx: self.model.attribute_idx(attribute)?, strength })
        };
        let edits = edits.iter().map(edit).collect::<Result<Vec<_>>>()?;
        let z_sem = computing("moving codes", z_sem_of(codes)?.to_device(self.model.device()))?;
        Ok(Codes { z_sem: Some(self.model.edit_many(&z_sem, &edits)?), ..codes.clone() })
    }

    /// The strength of [`Pipeline::edit`] at which pictures come to have an attribute, `|w| / sqrt(D)`, where the model knows
    /// it: its direction is a difference of codes, as those of the built-in model and those that `diffae fit-edits` finds.
    /// Along a classifier's weights, as in released checkpoints, 0.3 is a good try.
    ///
    /// # Errors
    /// [`Error::UnknownAttribute`]; without a classifier [`Error::MissingPart`].
    pub fn whole_way(&self, attribute: &str) -> Result<Option<f64>> {
        let attribute_idx = self.model.attribute_idx(attribute)?;
        computing("measuring a direction", self.model.classifier()?.whole_way(attribute_idx))
    }

    /// Pictures of any size with an attribute moved: encoded, edited, decoded, and given back what their codes lose, so that
    /// what the edit leaves alone stays as it was. See [`Pipeline::edit`] for the strength, [`keep_residual`] for the rest.
    ///
    /// # Errors
    /// As [`Pipeline::encode`], [`Pipeline::edit`] and [`Pipeline::decode`].
    pub fn edit_pictures(&self, pictures: &[RgbImage], attribute: &str, strength: f64) -> Result<Vec<RgbImage>> {
        // Before the long way back to x_T.
        self.model.attribute_idx(attribute)?;
        check_strength(strength)?;
        let x_0 = self.tensor_of(pictures)?;
        let codes = self.encode_tensor(&x_0)?;
        let edited = self.edit(&codes, attribute, strength)?;
        let x_0 = computing("moving pictures", x_0.to_device(self.model.device()))?;
        pictures_of(&keep_residual(&self.decode_tensor(&edited)?, &x_0, &self.decode_tensor(&codes)?)?)
    }

    /// Codes on the way from one picture to another, both ends included: `z_sem` on a straight line, `x_T` on an arc.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless both hold one picture and there are two frames or more; as [`Codes::joined`].
    pub fn interpolate(&self, from: &Codes, to: &Codes, num_frames: usize) -> Result<Codes> {
        if [count_of(from)?, count_of(to)?] != [1, 1] || num_frames < 2 {
            let got = format!("{} and {} pictures, {num_frames} frames", count_of(from)?, count_of(to)?);
            return Err(Error::OutOfRange { what: "an interpolation", got, expected: "one and one, two or more" });
        }
        let both = Codes::joined(&[from.clone(), to.clone()])?;
        both.at_frames(&path_frames(2, num_frames, PathEnd::Last)?)
    }

    /// Codes on a path through all pictures in their order, `frames_per_leg` a leg with both of its ends; see [`path_frames`].
    ///
    /// # Errors
    /// As [`path_frames`].
    pub fn interpolate_through(&self, codes: &Codes, frames_per_leg: usize, end: PathEnd) -> Result<Codes> {
        codes.at_frames(&path_frames(count_of(codes)?, frames_per_leg, end)?)
    }

    /// Pictures that mean the same as the first of the codes: its `z_sem`, `count` fresh `x_T`.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if the codes have no `z_sem`; as [`Pipeline::decode`].
    pub fn variations(&self, codes: &Codes, count: usize) -> Result<Vec<RgbImage>> {
        check_count("variations", count)?;
        let z_sem = z_sem_of(codes)?;
        let repeated = z_sem.narrow(0, 0, 1).and_then(|z_sem| z_sem.repeat((count, 1)));
        let x_terminal = self.random_x_terminal(0..count as u64)?;
        self.decode(&self.codes(Some(computing("repeating z_sem", repeated)?), x_terminal, count))
    }

    /// Samples pictures 0, 1, ... of the seed.
    ///
    /// # Errors
    /// [`Error::MissingPart`] if the model has a `z_sem` but no latent net; [`Error::Interrupted`].
    pub fn sample(&self, count: usize) -> Result<Vec<RgbImage>> {
        self.decode(&self.sample_codes(count)?)
    }

    /// Samples pictures of the seed by their numbers: each is the same whatever it is sampled with.
    ///
    /// # Errors
    /// As [`Pipeline::sample`].
    pub fn sample_at(&self, indices: &[u64]) -> Result<Vec<RgbImage>> {
        self.decode(&self.sample_codes_at(indices)?)
    }

    /// Samples codes.
    ///
    /// # Errors
    /// As [`Pipeline::sample`].
    pub fn sample_codes(&self, count: usize) -> Result<Codes> {
        self.sample_codes_at(&(0..count as u64).collect::<Vec<_>>())
    }

    /// Samples codes of the seed by their numbers.
    ///
    /// # Errors
    /// As [`Pipeline::sample`].
    pub fn sample_codes_at(&self, indices: &[u64]) -> Result<Codes> {
        let count = indices.len();
        check_count("samples", count)?;
        let noise = NoiseSource::new(self.seed);
        let x_terminal = self.model.random_x_terminal(noise, indices.iter().copied())?;
        if !self.model.has_z_sem() {
            return Ok(self.codes(None, x_terminal, count));
        }
        let width = self.model.latent_net()?.config().z_channels;
        let drawn = noise.batch(NoisePurpose::ZTerminal, indices.iter().copied(), &[width], self.model.device());
        let z_terminal = computing("drawing noise", drawn)?;
        let on_step = &mut |_: &diffae_schedule::Step<'_>| self.called(NetworkCall::LatentNet, count);
        let z_sem = self.model.sample_z_sem(&z_terminal, self.num_latent_steps, on_step)?;
        Ok(self.codes(Some(z_sem), x_terminal, count))
    }

    /// Pictures as the model sees them, on the CPU.
    fn tensor_of(&self, pictures: &[RgbImage]) -> Result<Tensor> {
        let [channels, size, _] = self.model.image_shape();
        let read = |picture: &RgbImage| tensor_from_rgb(picture, channels, size);
        let pictures = pictures.iter().map(read).collect::<Result<Vec<_>>>()?;
        check_count("pictures", pictures.len())?;
        computing("stacking pictures", Tensor::stack(&pictures, 0))
    }

    fn batches(&self, count: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let size = self.batch_size;
        (0..count).step_by(size).map(move |start| start..(start + size).min(count))
    }

    fn random_x_terminal(&self, indices: Range<u64>) -> Result<Tensor> {
        self.model.random_x_terminal(NoiseSource::new(self.seed), indices)
    }

    fn called(&self, call: NetworkCall, count: usize) -> ControlFlow<()> {
        self.on_call.as_ref().map_or(ControlFlow::Continue(()), |on_call| on_call(call, count))
    }

    fn codes(&self, z_sem: Option<Tensor>, x_terminal: Tensor, count: usize) -> Codes {
        let fingerprint = self.model.fingerprint().to_owned();
        Codes { z_sem, x_terminal: Some(x_terminal), names: numbered(count), fingerprint }
    }
}

fn pictures_of(x_0: &Tensor) -> Result<Vec<RgbImage>> {
    let count = computing("reading pictures", x_0.dim(0))?;
    (0..count).map(|idx| rgb_from_tensor(&computing("reading a picture", x_0.get(idx))?)).collect()
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|idx| format!("{idx:04}")).collect()
}

fn check_count(what: &'static str, count: usize) -> Result<()> {
    if count == 0 {
        return Err(Error::OutOfRange { what, got: "none".to_owned(), expected: "one or more" });
    }
    Ok(())
}

fn z_sem_of(codes: &Codes) -> Result<&Tensor> {
    codes.z_sem.as_ref().ok_or(Error::MissingPart { part: "z_sem", hint: "the codes are of a plain DDPM" })
}

fn count_of(codes: &Codes) -> Result<usize> {
    let tensor = codes.z_sem.as_ref().or(codes.x_terminal.as_ref());
    let count = tensor.map_or(Ok(0), |tensor| tensor.dim(0));
    let count = computing("counting codes", count)?;
    check_count("codes", count)?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline() -> Pipeline {
        let path = Path::new("../../tests/fixtures/golden/autoenc16_latent/last.ckpt");
        Pipeline::from_dir(path).unwrap().with_steps(2).with_invert_steps(2).with_latent_steps(2).with_batch_size(2)
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

    #[test]
    fn batches_do_not_matter() {
        let (pipeline, pictures) = (pipeline(), pictures());
        let together = pipeline.encode(&pictures).unwrap();
        let alone = pipeline.encode(&pictures[2..]).unwrap();
        let codes = |codes: &Codes| codes.z_sem.as_ref().unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(codes(&together)[2], codes(&alone)[0]);
        assert_eq!(together.names, ["0000", "0001", "0002"]);
    }

    #[test]
    fn an_interpolation_ends_at_both_pictures() {
        let (pipeline, pictures) = (pipeline(), pictures());
        let (from, to) = (pipeline.encode(&pictures[..1]).unwrap(), pipeline.encode(&pictures[1..2]).unwrap());
        let frames = pipeline.decode(&pipeline.interpolate(&from, &to, 3).unwrap()).unwrap();
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[0], pipeline.decode(&from).unwrap()[0]);
        assert_eq!(frames[2], pipeline.decode(&to).unwrap()[0]);
        assert!(matches!(pipeline.interpolate(&from, &to, 1), Err(Error::OutOfRange { .. })));
    }

    #[test]
    fn samples_depend_on_the_seed_and_their_number_alone() {
        let first = pipeline().with_seed(1).sample(3).unwrap();
        assert_eq!(pipeline().with_seed(1).sample_at(&[2, 0]).unwrap(), [first[2].clone(), first[0].clone()]);
        assert_eq!(first, pipeline().with_seed(1).sample(3).unwrap());
        assert_eq!(first[..2], pipeline().with_seed(1).sample(2).unwrap()[..]);
        assert_ne!(first, pipeline().with_seed(2).sample(3).unwrap());
    }

    #[test]
    fn what_cannot_be_done_is_an_error() {
        let pipeline = pipeline();
        assert!(matches!(pipeline.encode(&[]), Err(Error::OutOfRange { .. })));
        let codes = pipeline.encode(&pictures()).unwrap();
        assert!(matches!(pipeline.edit(&codes, "Smiling", 0.3), Err(Error::MissingPart { .. })));
        let stopped = pipeline.with_callback(|_| ControlFlow::Break(()));
        assert!(matches!(stopped.decode(&codes), Err(Error::Interrupted)));
    }
}
