//! Whole networks, samples and codes.

use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use diffae_infer::{BUILT_IN_MODEL, LoadOptions, Model, Pipeline, PipelineSettings, built_in_pictures, no_observer};
use diffae_nets::{Unet, UnetReplays};

use super::Scale;
use super::card::{Card, relative_error, values};
use super::rows::Rows;
use crate::bench::ours;
use crate::bench::work::Preset;

/// Largest relative difference of a network call.
const NETWORK: f64 = 1e-4;
/// Largest relative difference of codes and samples, after chains of network calls.
const CHAIN: f64 = 1e-2;
/// Largest difference of bytes of pictures, and largest share of bytes that differ at all.
const BYTES: (f64, f64) = (3., 0.02);

/// Compares encoder and `UNet` at the sizes of the paper.
pub(super) fn networks(card: &Card, scale: &Scale, rows: &mut Rows) -> Result<()> {
    let all = if scale.quick {
        vec![("small", Preset::small(), 2)]
    } else {
        vec![("64 pixels", Preset::of_64(), 1), ("64 pixels", Preset::of_64(), 16), ("128 pixels", Preset::of_128(), 4)]
    };
    for (label, preset, batch) in all {
        let source = ours::random_source(&preset, None)?;
        // Initial values are zero in places, behind which nothing would be seen.
        let moved = |(seed, (name, tensor)): (usize, (String, Tensor))| -> Result<(String, Tensor)> {
            Ok((name, (&tensor + (values(tensor.dims(), seed)? * 0.03)?)?))
        };
        let networks = source.networks(DType::F32)?.into_iter().enumerate().map(moved).collect::<Result<_>>()?;
        let source = source.with_networks(source.config().clone(), networks);
        let size = preset.image_size;
        let (x, z) = (values(&[batch, 3, size, size], 1)?, values(&[batch, preset.embed_channels], 2)?);
        let [got, expected] = card.run_both(|device| {
            let model = source.build(&LoadOptions::on(device))?;
            let (x, z) = (x.to_device(device)?, z.to_device(device)?);
            let unet = model.unet()?;
            let all = [model.encode_semantic(&x)?, unet.forward(&x, &[500.], Some(&z))?];
            Ok((all, replayed(unet, &x, &z)?))
        })?;
        for (what, (got, expected)) in ["encoder", "UNet"].into_iter().zip(got.0.iter().zip(&expected.0)) {
            rows.compare(&format!("{what} of {label}, {batch}"), relative_error(got, expected)?, NETWORK);
        }
        if let Some(replayed) = &got.1 {
            let error = relative_error(replayed, &expected.0[1])?;
            rows.compare(&format!("UNet of {label}, {batch}, recorded"), error, NETWORK);
        }
    }
    Ok(())
}

/// Predicts as [`Unet::forward`] does, by a recording that is started the second time; `None` where nothing is recorded.
fn replayed(unet: &Unet, x: &Tensor, z: &Tensor) -> Result<Option<Tensor>> {
    let (time, z) = (unet.project_time(&[20., 500.], x)?, unet.project_z_sem(z)?);
    let Some(conditions) = unet.chain_conditions(&time, Some(&z))? else { return Ok(None) };
    let replays = UnetReplays::default();
    let first = unet.forward_replayed(&replays, &(x * 0.5)?, &conditions, 0)?;
    let second = unet.forward_replayed(&replays, x, &conditions, 1)?;
    ensure!(first.is_some() && second.is_some(), "the network cannot be recorded");
    Ok(second)
}

fn built_in(device: &Device) -> Result<(Pipeline, PipelineSettings)> {
    let model = Model::load(Path::new(BUILT_IN_MODEL), &LoadOptions::on(device))?;
    let settings = PipelineSettings::of_model(model.config());
    Ok((Pipeline::new(model), settings))
}

/// Compares sampled faces: large batches gave wrong ones once.
pub(super) fn samples(card: &Card, scale: &Scale, rows: &mut Rows) -> Result<()> {
    let count: u64 = if scale.quick { 4 } else { 64 };
    let [got, expected] = card.run_both(|device| {
        let (pipeline, settings) = built_in(device)?;
        let settings = PipelineSettings { batch_size: Some(64), ..settings };
        let codes = pipeline.sample_codes(&(0..count).collect::<Vec<_>>(), &settings, &mut no_observer)?;
        bytes(&pipeline.decode_tensor(&codes, &settings, &mut no_observer)?)
    })?;
    compare_bytes(rows, &format!("{count} samples"), &got, &expected);
    Ok(())
}

/// Compares exact codes, and whether they decode to every byte.
pub(super) fn codes(card: &Card, scale: &Scale, rows: &mut Rows) -> Result<()> {
    let count = if scale.quick { 2 } else { 8 };
    let pictures: Vec<_> = built_in_pictures()?.into_iter().take(count).map(|(_, picture)| picture).collect();
    let [got, expected] = card.run_both(|device| {
        let (pipeline, settings) = built_in(device)?;
        let x_0 = pipeline.tensor_of(&pictures)?;
        let codes = pipeline.encode_tensor(&x_0, &settings, &mut no_observer)?;
        let decoded = bytes(&pipeline.decode_tensor(&codes, &settings, &mut no_observer)?)?;
        let wrong = decoded.iter().zip(bytes(&x_0)?).filter(|(a, b)| **a != *b).count();
        Ok((codes, wrong))
    })?;
    rows.compare(&format!("bytes of {count} faces that exact codes lose"), got.1 as f64, 0.);
    for (name, of) in [("z_sem", 0), ("x_T", 1)] {
        let part = |codes: &diffae_infer::Codes| [codes.z_sem.clone(), codes.x_terminal.clone()][of].clone();
        if let (Some(got), Some(expected)) = (part(&got.0), part(&expected.0)) {
            rows.compare(name, relative_error(&got, &expected)?, if of == 0 { NETWORK } else { CHAIN });
        }
    }
    Ok(())
}

/// Rounds pictures in `[-1, 1]` to bytes.
fn bytes(x: &Tensor) -> Result<Vec<u8>> {
    let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(((x.clamp(-1f32, 1f32)? + 1.)? * 127.5)?.round()?.to_dtype(DType::U8)?.flatten_all()?.to_vec1()?)
}

fn compare_bytes(rows: &mut Rows, what: &str, got: &[u8], expected: &[u8]) {
    let differences: Vec<u8> = got.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).collect();
    let most =
        if got.len() == expected.len() { differences.iter().copied().max().map_or(0., f64::from) } else { f64::NAN };
    let share = differences.iter().filter(|it| **it != 0).count() as f64 / differences.len().max(1) as f64;
    rows.compare(&format!("{what}: largest difference of bytes"), most, BYTES.0);
    rows.compare(&format!("{what}: share of bytes that differ"), share, BYTES.1);
}
