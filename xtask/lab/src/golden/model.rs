//! Checks of everything that a model computes without training.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Tensor;
use diffae_infer::{
    CodesBatch, DecodeOptions, LoadOptions, Model, ModelSource, Pipeline, PipelineSettings, lerp, no_observer, slerp,
};
use diffae_nets::weights::{ArchitectureHints, ClassifierCheckpoint, read_latent_moments};
use diffae_schedule::{Clip, Timestep, no_callback};

use super::fixture::Fixture;
use super::report::{Report, Tolerance};

/// Number of steps of all golden chains.
const NUM_STEPS: usize = 10;
const SETTINGS: PipelineSettings = PipelineSettings {
    num_steps: NUM_STEPS,
    num_invert_steps: NUM_STEPS,
    num_latent_steps: NUM_STEPS,
    ..PipelineSettings::REFERENCE
};
/// Attribute of the golden edit.
const ATTRIBUTE_IDX: usize = 2;
const STRENGTH: f64 = 0.3;

/// A model with its golden numbers.
struct Subject<'a> {
    pipeline: Pipeline,
    golden: Fixture,
    report: &'a mut Report,
}

/// Checks all quantities of a model folder that need no training.
pub(crate) fn check(folder: &Path, report: &mut Report) -> Result<()> {
    let model = load(folder)?;
    let golden = Fixture::open(&folder.join("golden.safetensors"))?;
    let mut subject = Subject { pipeline: Pipeline::new(model), golden, report };
    let x = subject.golden.tensor("x")?;
    let z_sem = subject.encoder(&x)?;
    subject.noise_prediction(&x, z_sem.as_ref())?;
    let x_terminal = subject.chains(&x, z_sem.as_ref())?;
    let Some(z_sem) = z_sem else { return Ok(()) };
    subject.interpolation(&z_sem, &x_terminal)?;
    subject.edit(&z_sem, &x_terminal)?;
    subject.sampling()
}

fn load(folder: &Path) -> Result<Model> {
    Ok(complete_source(folder)?.build(&LoadOptions::cpu())?)
}

/// Opens the model of a folder with its statistics and classifier, where they are.
pub(crate) fn complete_source(folder: &Path) -> Result<ModelSource> {
    let mut source = ModelSource::open(&folder.join("last.ckpt"), &ArchitectureHints::default())?;
    let latent = folder.join("latent.pkl");
    if latent.is_file() {
        source.set_latent_moments(read_latent_moments(&latent)?)?;
    }
    let classifier = folder.join("classifier.ckpt");
    if classifier.is_file() {
        source.set_classifier(ClassifierCheckpoint::open(&classifier)?, None)?;
    }
    Ok(source)
}

impl Subject<'_> {
    fn model(&self) -> &Model {
        self.pipeline.model()
    }

    fn encoder(&mut self, x: &Tensor) -> Result<Option<Tensor>> {
        if self.model().config().encoder().is_none() {
            return Ok(None);
        }
        let z_sem = self.model().encode_semantic(x)?;
        self.compare("z_sem", &z_sem, Tolerance::Network)?;
        let style_space = self.model().unet()?.project_z_sem(&z_sem)?.style_space()?;
        self.compare("stylespace", &style_space, Tolerance::Network)?;
        Ok(Some(z_sem))
    }

    fn noise_prediction(&mut self, x: &Tensor, z_sem: Option<&Tensor>) -> Result<()> {
        let t_mid = self.golden.counts("t_mid")?;
        let positions: Vec<Timestep> = t_mid.iter().map(|&t| Timestep::new(t)).collect();
        let x_t = self.model().schedule()?.q_sample(x, &self.golden.tensor("noise")?, &positions)?;
        self.compare("x_t", &x_t, Tolerance::Formula)?;
        for (quantity, timesteps) in [("eps", t_mid), ("eps_ends", self.golden.counts("t")?)] {
            let timesteps: Vec<f32> = timesteps.into_iter().map(|t| t as f32).collect();
            let eps = self.model().unet()?.forward(&x_t, &timesteps, z_sem)?;
            self.compare(quantity, &eps, Tolerance::Network)?;
        }
        Ok(())
    }

    /// Checks inversion and the three decodes; returns the inverted `x_T`.
    fn chains(&mut self, x: &Tensor, z_sem: Option<&Tensor>) -> Result<Tensor> {
        let inverted = self.pipeline.invert_batch(x, z_sem, &SETTINGS, &mut no_observer)?.x_terminal;
        self.compare("x_T_inverted", &inverted, Tolerance::Chain)?;
        let random = self.golden.tensor("x_T")?;
        for (quantity, x_terminal, clip) in [
            ("recon_inverted", &inverted, Clip::UnitRange),
            ("recon_random", &random, Clip::UnitRange),
            ("recon_noclip", &random, Clip::None),
        ] {
            let decoded = self.decode(x_terminal, z_sem, &PipelineSettings { clip, ..SETTINGS })?;
            self.compare(quantity, &decoded, Tolerance::Chain)?;
        }
        Ok(inverted)
    }

    fn interpolation(&mut self, z_sem: &Tensor, x_terminal: &Tensor) -> Result<()> {
        let Some(alphas) = self.golden.get("interp_alpha")? else { return Ok(()) };
        let alphas = super::report::numbers(&alphas)?;
        let each = |codes: &Tensor, between: fn(&Tensor, &Tensor, f64) -> candle_core::Result<Tensor>| {
            let (from, to) = (codes.get(0)?, codes.get(1)?);
            let frames: candle_core::Result<Vec<_>> = alphas.iter().map(|&alpha| between(&from, &to, alpha)).collect();
            Tensor::stack(&frames?, 0)
        };
        let z_sems = each(z_sem, lerp)?;
        let x_terminals = each(x_terminal, slerp)?;
        self.compare("interp_z", &z_sems, Tolerance::Network)?;
        self.compare("interp_x_T", &x_terminals, Tolerance::Chain)?;
        let decoded = self.decode(&x_terminals, Some(&z_sems), &SETTINGS)?;
        self.compare("interp_img", &decoded, Tolerance::Chain)
    }

    fn edit(&mut self, z_sem: &Tensor, x_terminal: &Tensor) -> Result<()> {
        for (quantity, got) in self.moments()? {
            self.compare(quantity, &got, Tolerance::Formula)?;
        }
        let Ok(classifier) = self.model().classifier() else { return Ok(()) };
        let logits = classifier.forward(&self.model().normalize(z_sem)?)?;
        let edited = self.model().edit(z_sem, ATTRIBUTE_IDX, STRENGTH)?;
        self.compare("manip_logits", &logits, Tolerance::Network)?;
        self.compare("manip_z", &edited, Tolerance::Network)?;
        let decoded = self.decode(x_terminal, Some(&edited), &SETTINGS)?;
        self.compare("manip_img", &decoded, Tolerance::Chain)
    }

    fn moments(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let Ok(moments) = self.model().latent_moments() else { return Ok(Vec::new()) };
        Ok(vec![("conds_mean", moments.mean.flatten_all()?), ("conds_std", moments.std.flatten_all()?)])
    }

    fn sampling(&mut self) -> Result<()> {
        let Ok(latent_net) = self.model().latent_net() else { return Ok(()) };
        let z_terminal = self.golden.tensor("z_T")?;
        let timesteps: Vec<f32> = self.golden.counts("t_mid")?.into_iter().map(|t| t as f32).collect();
        let latent_eps = latent_net.forward(&z_terminal, &timesteps)?;
        let z_0_normalized = self.model().sample_z_sem_normalized(
            &z_terminal,
            &DecodeOptions::ddim(NUM_STEPS).latent(NUM_STEPS),
            &mut no_callback,
        )?;
        let z_0 = self.pipeline.denoise_z_sem_batch(&z_terminal, &SETTINGS, &mut no_observer)?;
        let pictures = self.decode(&self.golden.tensor("x_T")?, Some(&z_0), &SETTINGS)?;
        self.compare("latent_eps", &latent_eps, Tolerance::Network)?;
        self.compare("z_0_normalized", &z_0_normalized, Tolerance::Chain)?;
        self.compare("z_0", &z_0, Tolerance::Chain)?;
        self.compare("sample_img", &pictures, Tolerance::Chain)
    }

    fn decode(&self, x_terminal: &Tensor, z_sem: Option<&Tensor>, settings: &PipelineSettings) -> Result<Tensor> {
        let codes = CodesBatch { x_terminal, chain: None, z_sem, numbers: &[] };
        Ok(self.pipeline.decode_batch(codes, settings, &mut no_observer)?)
    }

    /// Compares a quantity, if the fixture has it.
    fn compare(&mut self, quantity: &str, got: &Tensor, tolerance: Tolerance) -> Result<()> {
        match self.golden.get(quantity)? {
            Some(expected) => self.report.tensors(quantity, got, &expected, tolerance).context(quantity.to_owned()),
            None => Ok(()),
        }
    }
}
