//! `diffae eval z-usage`: shares of a picture that `z_sem` decides, and that `x_T` decides.

use anyhow::{Result, bail};
use candle_core::Tensor;
use diffae_infer::PipelineSettings;

use super::journal::{Journal, Values};
use super::report::{Figure, Report};
use crate::args::{GlobalArgs, ZUsageArgs};
use crate::picture_output::sampler_settings;
use crate::pictures::PictureSet;
use crate::progress::Progress;
use crate::session::{Session, to_unit};

const NAME: &str = "z-usage";
const BY_Z_SEM: &str = "rmse_other_z_sem";
const BY_X_TERMINAL: &str = "rmse_other_x_T";
const SHARE: &str = "z_sem_share";

/// Decodes each picture's `z_sem` from a random `x_T`, then with the `z_sem` of the next picture, then with its `x_T`,
/// and compares the results.
pub(super) fn run(global: &GlobalArgs, args: &ZUsageArgs) -> Result<Report> {
    let pictures = PictureSet::find(&args.data)?;
    let session = Session::open(global, &args.model, &args.run.batch)?;
    if !session.has_z_sem() {
        bail!("a plain DDPM has no z_sem")
    }
    if pictures.len() < 2 {
        bail!("--data has one image, expected at least two")
    }
    let seed = args.run.random.seed;
    let (num_steps, sampler) = (args.steps, args.sampler.get()?);
    let decoding = PipelineSettings { num_steps, sampler, seed, ..PipelineSettings::DEFAULT };
    let mut settings = session.settings();
    settings.extend([
        ("data".to_owned(), pictures.fingerprint()?.into()),
        ("count".to_owned(), pictures.len().into()),
        ("steps".to_owned(), args.steps.into()),
        ("seed".to_owned(), seed.into()),
    ]);
    settings.extend(sampler_settings(sampler));
    let mut journal = Journal::open(&args.run.out, NAME, &settings, args.run.force.overwrite())?;
    let progress = Progress::start(NAME, pictures.len(), 3 * args.steps);
    for batch in pictures.batches(session.batch_size()) {
        if batch.clone().all(|idx| journal.get(&pictures.name(idx)).is_some()) {
            progress.check(batch.len() * 3 * args.steps)?;
            continue;
        }
        let next = |idx: usize| (idx + 1) % pictures.len();
        let z_sem = session.model().encode_semantic(&pictures.read(&session, batch.clone())?)?;
        let z_other = session.model().encode_semantic(&pictures.read(&session, batch.clone().map(next))?)?;
        let random = |first: usize| {
            let numbers: Vec<u64> = (first as u64..).take(batch.len()).collect();
            session.pipeline.random_x_terminal_batch(&numbers, &decoding)
        };
        let x_terminal = random(batch.start)?;
        let x_other = random(batch.start + pictures.len())?; // numbers that no picture has
        let decode =
            |x: &Tensor, z: &Tensor| to_unit(&session.decode((x, Some(z)), batch.start, &decoding, &progress)?);
        let picture = decode(&x_terminal, &z_sem)?;
        let by_z_sem = diffae_eval::mse(&picture, &decode(&x_terminal, &z_other)?)?;
        let by_x_terminal = diffae_eval::mse(&picture, &decode(&x_other, &z_sem)?)?;
        for ((idx, by_z_sem), by_x_terminal) in batch.zip(by_z_sem).zip(by_x_terminal) {
            let pairs = [(BY_Z_SEM, by_z_sem.sqrt()), (BY_X_TERMINAL, by_x_terminal.sqrt())];
            let values: Values = pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            journal.add(pictures.name(idx), values)?;
        }
    }
    progress.finish();
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
    Report::new(NAME, settings, figures.into_iter().flatten().collect()).written(&args.run.out)
}
