//! Shares of a picture that `z_sem` decides, and that `x_T` decides.

use candle_core::Tensor;
use diffae_data::PictureSet;
use diffae_infer::PipelineSettings;
use diffae_schedule::Sampler;

use super::Measure;
use crate::error::{Result, unsuitable};
use crate::evaluated_model::{EvaluatedModel, to_unit};
use crate::evaluation::Evaluation;
use crate::journal::{Journal, Values};
use crate::pixel_error::mse;
use crate::report::{Figure, Report};

const NAME: &str = "z-usage";
const BY_Z_SEM: &str = "rmse_other_z_sem";
const BY_X_TERMINAL: &str = "rmse_other_x_T";
const SHARE: &str = "z_sem_share";

/// Share of a picture that `z_sem` decides: decodes each picture's `z_sem` from a random `x_T`, then with the `z_sem` of
/// the next picture, then with its `x_T`, and compares the results. With root mean square differences `d_z` and `d_x`,
/// the share of `z_sem` is `d_z / (d_z + d_x)`.
#[derive(Debug)]
pub struct ZUsage<'a> {
    /// The model; it must have a `z_sem`.
    pub model: &'a EvaluatedModel,
    /// Two or more pictures.
    pub pictures: &'a PictureSet,
    /// Options.
    pub options: ZUsageOptions,
}

/// Options of [`ZUsage`].
#[derive(Debug, Clone, PartialEq)]
pub struct ZUsageOptions {
    /// Decoding steps. Default: 20.
    pub steps: usize,
    /// Sampler. Default: DDIM.
    pub sampler: Sampler,
}

impl Default for ZUsageOptions {
    fn default() -> Self {
        Self { steps: 20, sampler: Sampler::DDIM }
    }
}

impl Measure for ZUsage<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, evaluation: &Evaluation<'_>) -> Result<Report> {
        let Self { model, pictures, options } = self;
        if !model.has_z_sem() {
            return Err(unsuitable("a plain DDPM has no z_sem"));
        }
        if pictures.len() < 2 {
            return Err(unsuitable("there are fewer than two images"));
        }
        let (seed, steps) = (evaluation.seed(), options.steps);
        let decoding =
            PipelineSettings { num_steps: steps, sampler: options.sampler, seed, ..PipelineSettings::REFERENCE };
        let decoding = model.along_own_chain(decoding)?;
        let mut settings = model.settings();
        settings.extend([
            ("data".to_owned(), pictures.fingerprint()?.into()),
            ("count".to_owned(), pictures.len().into()),
            ("steps".to_owned(), steps.into()),
            ("seed".to_owned(), seed.into()),
        ]);
        settings.extend(decoding.sampler_settings());
        let mut journal = Journal::of(evaluation, NAME, &settings)?;
        let stage = evaluation.stage(NAME, evaluation.items(pictures.len()).len(), 3 * steps);
        for batch in evaluation.batches(pictures.len(), model.batch_size()) {
            if batch.clone().all(|idx| journal.get(&pictures.name(idx)).is_some()) {
                stage.check(batch.len() * 3 * steps)?;
                continue;
            }
            let next = |idx: usize| (idx + 1) % pictures.len();
            let z_sem = model.model().encode_semantic(&model.read(pictures, batch.clone())?)?;
            let z_other = model.model().encode_semantic(&model.read(pictures, batch.clone().map(next))?)?;
            let random = |first: usize| model.random_x_terminal(first, batch.len(), &decoding);
            let x_terminal = random(batch.start)?;
            let x_other = random(batch.start + pictures.len())?; // numbers that no picture has
            let decode =
                |x: &Tensor, z: &Tensor| to_unit(&model.decode((x, Some(z)), batch.start, &decoding, &stage)?);
            let picture = decode(&x_terminal, &z_sem)?;
            let by_z_sem = mse(&picture, &decode(&x_terminal, &z_other)?)?;
            let by_x_terminal = mse(&picture, &decode(&x_other, &z_sem)?)?;
            for ((idx, by_z_sem), by_x_terminal) in batch.zip(by_z_sem).zip(by_x_terminal) {
                let pairs = [(BY_Z_SEM, by_z_sem.sqrt()), (BY_X_TERMINAL, by_x_terminal.sqrt())];
                let values: Values = pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                journal.add(pictures.name(idx), values)?;
            }
        }
        stage.finish();
        if let Some(shard) = evaluation.shard() {
            return Ok(Report::of_shard(NAME, settings, shard));
        }
        let values_of = |name: &str| -> Vec<f64> {
            let value = |idx| journal.get(&pictures.name(idx))?.get(name).copied();
            (0..pictures.len()).filter_map(value).collect()
        };
        let (by_z_sem, by_x_terminal) = (values_of(BY_Z_SEM), values_of(BY_X_TERMINAL));
        let share = |items: &[usize]| {
            let sum = |values: &[f64]| items.iter().filter_map(|&item| values.get(item)).sum::<f64>();
            Some(sum(&by_z_sem) / (sum(&by_z_sem) + sum(&by_x_terminal)))
        };
        let figures = [
            Figure::mean(BY_Z_SEM, &[], &by_z_sem, seed),
            Figure::mean(BY_X_TERMINAL, &[], &by_x_terminal, seed),
            Figure::of_items(SHARE, &[], by_z_sem.len(), seed, share),
        ];
        Report::new(NAME, settings, figures.into_iter().flatten().collect()).written(evaluation)
    }
}
