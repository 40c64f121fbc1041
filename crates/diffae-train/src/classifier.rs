//! The third stage: a linear classifier of attributes on normalized `z_sem`.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::Init;
use diffae_infer::{LoadOptions, ModelSource, Overwrite};
use diffae_kernels::{differentiable, linear};
use diffae_nets::weights::{ArchitectureHints, ClassifierCheckpoint};

use crate::data::{Labels, Pictures};
use crate::error::{Error, Result};
use crate::parameters::Parameters;
use crate::rows::{Codes, RowStage};
use crate::run::{RunFolder, Stage};
use crate::{OnStep, Outcome};

/// Trains the stage from where it is to its end, and adds the classifier to the model.
///
/// Pictures are encoded once, unmirrored; the paper encodes them anew each time.
pub(crate) fn run(
    folder: &RunFolder,
    pictures: &Pictures,
    labels: &Labels,
    on_step: &mut OnStep<'_>,
) -> Result<Outcome> {
    let config = folder.config();
    let mut source = ModelSource::open(folder.path(), &ArchitectureHints::default())?;
    let codes = Codes::of(folder.path(), &source.build(&LoadOptions::cpu())?, pictures)?;
    let moments = codes.moments()?;
    let z = codes.normalized(&moments)?;
    let labelled = labelled_rows(&codes, pictures, labels);
    if labelled.is_empty() {
        let problem = "no picture that is trained on has labels".to_owned();
        return Err(Error::Data { path: pictures.root().to_owned(), problem });
    }
    let (width, count) = (config.model.z_channels, labels.names.len());
    let bound = (width as f64).sqrt().recip();
    let init = Init::Uniform { lo: -bound, up: bound };
    let ((weight, bias), mut parameters) = Parameters::build(config.seed, HashMap::new(), |vb| {
        let vb = vb.pp("classifier");
        Ok((vb.get_with_hints((count, width), "weight", init)?, vb.get_with_hints(count, "bias", init)?))
    })?;
    let stage = RowStage { folder, stage: Stage::Classifier, settings: &config.classifier, num_rows: labelled.len() };
    let loss = |_: usize, rows: &[usize]| {
        let (mut indices, mut targets) = (vec![], vec![]);
        for &(row, present) in rows.iter().map(|&row| &labelled[row]) {
            indices.push(row);
            targets.extend(present.iter().map(|&present| f32::from(u8::from(present))));
        }
        let z = z.index_select(&Tensor::new(indices.as_slice(), &Device::Cpu)?, 0)?;
        let targets = Tensor::from_vec(targets, (rows.len(), count), &Device::Cpu)?;
        let logits = linear(&z, &weight, &bias)?;
        Ok(differentiable([&logits], |[logits]| cross_entropy(logits, &targets))?)
    };
    if stage.run(&mut parameters, on_step, &loss)? == Outcome::Stopped {
        return Ok(Outcome::Stopped);
    }
    let (mut averages, mut current) = (parameters.averages()?, parameters.current()?);
    let mut take = |from: Which, name: &str| {
        let from = if from == Which::Average { &mut averages } else { &mut current };
        let missing = || Error::Tensor(candle_core::Error::Msg(format!("{name} is missing")));
        from.remove(&format!("classifier.{name}")).ok_or_else(missing)
    };
    // As released checkpoints do: edits go along the weights themselves, logits come from their averages.
    let checkpoint = ClassifierCheckpoint {
        directions: take(Which::Current, "weight")?,
        weight: take(Which::Average, "weight")?,
        bias: take(Which::Average, "bias")?,
        latent_moments: Some(moments),
    };
    source.set_classifier(checkpoint, Some(labels.names.clone()))?;
    source.write(folder.path(), DType::F32, Overwrite::Replace)?;
    Ok(Outcome::Finished)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Average,
    Current,
}

/// Rows of the codes whose pictures have labels, with these.
fn labelled_rows<'a>(codes: &Codes, pictures: &Pictures, labels: &'a Labels) -> Vec<(u32, &'a [bool])> {
    let row = |(row, &picture): (usize, &u32)| {
        let name = pictures.name(usize::try_from(picture).ok()?);
        Some((u32::try_from(row).ok()?, labels.of(&name)?))
    };
    codes.indices.iter().enumerate().filter_map(row).collect()
}

/// `mean of max(l, 0) - l y + ln(1 + exp(-|l|))`: binary cross-entropy of logits l for targets y.
fn cross_entropy(logits: &Tensor, targets: &Tensor) -> candle_core::Result<Tensor> {
    let tail = (logits.abs()?.neg()?.exp()? + 1.)?.log()?;
    ((logits.relu()? - (logits * targets)?)? + tail)?.mean_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_entropy_is_that_of_the_sigmoid_and_stays_finite() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let value = |l: f32, y: f32| cross_entropy(&tensor(&[l]), &tensor(&[y])).unwrap().to_scalar::<f32>().unwrap();
        assert!((value(0.7, 1.) - (1. + (-0.7f32).exp()).ln()).abs() < 1e-6);
        assert!((value(0.7, 0.) - (1. + 0.7f32.exp()).ln()).abs() < 1e-6);
        assert!((value(500., 0.) - 500.).abs() < 1e-3);
        assert!(value(500., 1.).abs() < 1e-6);
    }
}
