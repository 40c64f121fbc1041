//! The third stage: a linear classifier of attributes on normalized `z_sem`.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::Init;
use diffae_data::Overwrite;
use diffae_kernels::{differentiable, linear, no_gradients};
use diffae_nets::EditDirection;
use diffae_nets::weights::{ClassifierCheckpoint, LatentMoments};

use crate::code_stage::{CodeObjective, CodeStage};
use crate::codes::{CODES_FILE, Codes, VALIDATION_CODES_FILE};
use crate::collective::Group;
use crate::config::EditDirections;
use crate::error::{Error, Result};
use crate::latent::opened;
use crate::objective::binary_cross_entropy_with_logits;
use crate::optimization::TrainState;
use crate::parameters::Parameters;
use crate::run::{RunFolder, Stage};
use crate::{Data, OnStep, Outcome};
use diffae_data::{Labels, Pictures};

/// Trains the stage from its newest checkpoint to its end, and adds the classifier to the model.
///
/// Pictures are encoded once, unmirrored; the paper encodes them anew each time.
pub(crate) fn run(
    (folder, device): (&RunFolder, &Device),
    (data, labels): (&Data, &Labels),
    (group, on_step): (&mut Group, &mut OnStep<'_>),
) -> Result<Outcome> {
    let config = folder.config();
    let (mut source, model) = group.agree(opened(folder, device))?;
    let mut encoded = |file, pictures, group: &mut Group| {
        Codes::of_run((folder, Stage::Classifier), file, (&model, pictures), (group, on_step))
    };
    let Some(codes) = encoded(CODES_FILE, &data.train, group)? else {
        return Ok(Outcome::Stopped);
    };
    if codes.indices.is_empty() {
        return Err(data.train.none_readable().into());
    }
    // The statistics of the latent net, if there is one: pictures may have been added since.
    let moments = source.latent_moments().cloned().map_or_else(|| codes.moments(), Ok)?;
    let train = Labeled::new(&codes, &moments, &data.train, labels)?;
    let validation = if data.validation.is_empty() {
        None
    } else {
        let Some(codes) = encoded(VALIDATION_CODES_FILE, &data.validation, group)? else {
            return Ok(Outcome::Stopped);
        };
        let labeled = || Labeled::new(&codes, &moments, &data.validation, labels);
        let labeled = (!codes.indices.is_empty()).then(labeled).transpose()?;
        labeled.filter(|labeled| !labeled.samples.is_empty())
    };
    let stage = CodeStage {
        folder: Some(folder),
        stage: Stage::Classifier,
        settings: &config.classifier,
        seed: config.seed,
        num_samples: train.samples.len(),
    };
    let examples = Examples { train, validation, num_attributes: labels.names.len() };
    let Some(fitted) = examples.fit(&stage, config.edit_directions, (group, on_step))? else {
        return Ok(Outcome::Stopped);
    };
    if !group.is_first() {
        return Ok(Outcome::Finished);
    }
    let Fitted { weight, bias, directions } = fitted;
    let checkpoint =
        ClassifierCheckpoint { directions: directions.clone(), weight, bias, latent_moments: Some(moments) };
    source.set_classifier(checkpoint, Some(labels.names.clone()))?;
    if config.edit_directions == EditDirections::ClassMeans {
        source.set_edit_directions(EditDirection::fixed_all(&directions)?.into_iter().enumerate().collect())?;
    }
    source.write(folder.path(), DType::F32, Overwrite::Replace)?;
    Ok(Outcome::Finished)
}

/// Labeled codes for training and for validation of a classifier.
pub(crate) struct Examples<'a> {
    pub(crate) train: Labeled<'a>,
    pub(crate) validation: Option<Labeled<'a>>,
    pub(crate) num_attributes: usize,
}

/// A fitted linear classifier of attributes.
#[derive(Debug)]
pub(crate) struct Fitted {
    /// Moving average of the weights, `[A, D]`, which logits come from.
    pub(crate) weight: Tensor,
    /// Moving average of the biases, `[A]`.
    pub(crate) bias: Tensor,
    /// Edit directions, `[A, D]`.
    pub(crate) directions: Tensor,
}

impl Examples<'_> {
    /// Fits the classifier; `None` if `on_step` stops it.
    pub(crate) fn fit(
        &self,
        stage: &CodeStage<'_>,
        edit_directions: EditDirections,
        (group, on_step): (&mut Group, &mut OnStep<'_>),
    ) -> Result<Option<Fitted>> {
        let (train, count) = (&self.train, self.num_attributes);
        let width = train.z.dim(D::Minus1)?;
        let bound = (width as f64).sqrt().recip();
        let init = Init::Uniform { lo: -bound, up: bound };
        let ((weight, bias), parameters) = Parameters::build((stage.seed, train.z.device()), HashMap::new(), |vb| {
            let vb = vb.pp("classifier");
            Ok((vb.get_with_hints((count, width), "weight", init)?, vb.get_with_hints(count, "bias", init)?))
        })?;
        let mut state = TrainState::new(parameters);
        let loss_of = |labeled: &Labeled<'_>, samples: &[usize]| -> Result<Tensor> {
            let (z, targets) = labeled.batch(samples, count)?;
            let logits = linear(&z, &weight, &bias)?;
            Ok(differentiable([&logits], |[logits]| binary_cross_entropy_with_logits(logits, &targets))?)
        };
        let loss = |_: usize, samples: &[usize]| loss_of(train, samples);
        let validate = |_: &Parameters, _: usize| {
            let Some(validation) = &self.validation else { return Ok(None) };
            let all: Vec<usize> = (0..validation.samples.len()).collect();
            Ok(Some(f64::from(no_gradients(|| loss_of(validation, &all))?.to_scalar::<f32>()?)))
        };
        if stage.run(&mut state, CodeObjective { loss, validate }, (group, on_step))? == Outcome::Stopped {
            return Ok(None);
        }
        let (mut averages, mut current) = (state.parameters.averages()?, state.parameters.current()?);
        let missing = || Error::Tensor(candle_core::Error::Msg("the classifier's parameters are missing".to_owned()));
        let mut average = |name: &str| averages.remove(name).ok_or_else(missing);
        let [weight, bias] = ["classifier.weight", "classifier.bias"].map(&mut average);
        let directions = match edit_directions {
            // As released checkpoints do: edits go along the weights themselves, logits come from their averages.
            EditDirections::Weights => current.remove("classifier.weight").ok_or_else(missing)?,
            EditDirections::ClassMeans => train.differences_of_means(count)?,
        };
        Ok(Some(Fitted { weight: weight?, bias: bias?, directions }))
    }
}

/// Normalized codes with the labels of their pictures.
pub(crate) struct Labeled<'a> {
    /// Codes, also of pictures without labels, `[n, D]`.
    pub(crate) z: Tensor,
    /// Row in `z` and attributes of each labeled picture.
    pub(crate) samples: Vec<(u32, &'a [bool])>,
}

impl<'a> Labeled<'a> {
    pub(crate) fn new(codes: &Codes, moments: &LatentMoments, pictures: &Pictures, labels: &'a Labels) -> Result<Self> {
        let sample = |(row, &picture): (usize, &u32)| {
            let name = pictures.name(usize::try_from(picture).ok()?);
            Some((u32::try_from(row).ok()?, labels.of(&name)?))
        };
        Ok(Self {
            z: codes.normalized(moments)?,
            samples: codes.indices.iter().enumerate().filter_map(sample).collect(),
        })
    }

    /// Computes the difference of mean normalized codes with and without each attribute, `[count, D]`.
    ///
    /// Labels have been checked: both occur among all pictures. An attribute for which one is missing here gets a zero
    /// direction.
    fn differences_of_means(&self, count: usize) -> Result<Tensor> {
        let all: Vec<usize> = (0..self.samples.len()).collect();
        let (z, present) = self.batch(&all, count)?; // [N, D], [N, count]
        let mean_where = |chosen: &Tensor| -> candle_core::Result<Tensor> {
            let sizes = chosen.sum_keepdim(0)?.t()?.maximum(1.)?; // [count, 1]
            chosen.t()?.contiguous()?.matmul(&z)?.broadcast_div(&sizes)
        };
        let both = (mean_where(&present)? - mean_where(&present.affine(-1., 1.)?)?)?;
        let sizes = present.sum_keepdim(0)?.t()?;
        let known = (sizes.gt(0.)? * sizes.lt(all.len() as f64)?)?.to_dtype(DType::F32)?;
        Ok(both.broadcast_mul(&known)?)
    }

    /// Selects codes, `[N, D]`, and targets, `[N, count]`, of some samples.
    pub(crate) fn batch(&self, samples: &[usize], count: usize) -> Result<(Tensor, Tensor)> {
        let (mut indices, mut targets) = (vec![], vec![]);
        for &(row, present) in samples.iter().filter_map(|&sample| self.samples.get(sample)) {
            indices.push(row);
            targets.extend(present.iter().map(|&present| f32::from(u8::from(present))));
        }
        let z = self.z.index_select(&Tensor::new(indices.as_slice(), self.z.device())?, 0)?;
        let targets = Tensor::from_vec(targets, (indices.len(), count), z.device())?;
        Ok((z, targets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_means_lead_from_those_without_to_those_with() {
        let z = Tensor::new(&[[0f32, 1.], [2., 1.], [0., 3.], [2., 5.]], &Device::Cpu).unwrap();
        let (a, b) = ([false, true], [true, true]);
        let samples: Vec<(u32, &[bool])> = vec![(0, &a), (1, &b), (2, &a), (3, &b)];
        let labeled = Labeled { z, samples };
        let directions = labeled.differences_of_means(2).unwrap().to_vec2::<f32>().unwrap();
        // (2, 1) and (2, 5) against (0, 1) and (0, 3); the second attribute is there everywhere.
        assert_eq!(directions, [[2., 1.], [0., 0.]]);
    }
}
