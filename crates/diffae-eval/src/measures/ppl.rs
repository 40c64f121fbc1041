//! Perceptual path length, the smoothness of interpolations.

use candle_core::Tensor;
use diffae_data::PictureSet;
use diffae_infer::{ChainSettings, Codes, PathFrame, PipelineSettings, Settings, StochasticCode};
use diffae_schedule::Sampler;

use super::{Measure, PerceptualNetwork};
use crate::bootstrap::quantile;
use crate::error::{Error, Result, check_at_least, unsuitable};
use crate::evaluated_model::{EvaluatedModel, to_unit};
use crate::evaluation::{Evaluation, Stage};
use crate::journal::{Journal, Values};
use crate::report::{Figure, Report};

const NAME: &str = "ppl";
/// Quantiles outside which the trimmed figure leaves values out, as `StyleGAN`'s code does.
const TRIMMED: [f64; 2] = [0.01, 0.99];

/// Perceptual path length: `LPIPS(x(t), x(t + epsilon)) / epsilon^2` for pairs of pictures and a random place t in
/// `[0, 1)` between them, where x(t) is decoded from `z_sem` on the straight line and `x_T` on the great circle between
/// those of the two pictures.
///
/// # Source
/// Karras et al. 2019 (arXiv:1812.04948), section 4.1; Preechakul et al. 2022 (arXiv:2111.15640), section 5.
#[derive(Debug)]
pub struct Ppl<'a> {
    /// The model; it must have `z_sem` and `x_T`.
    pub model: &'a EvaluatedModel,
    /// Two or more pictures.
    pub pictures: &'a PictureSet,
    /// The network of the distance; VGG-16 in the literature.
    pub lpips: &'a PerceptualNetwork,
    /// Options.
    pub options: PplOptions,
}

/// Options of [`Ppl`].
#[derive(Debug, Clone, PartialEq)]
pub struct PplOptions {
    /// Number of pairs of pictures. Default: half the number of pictures.
    pub pairs: Option<usize>,
    /// Length of a step along the interpolation, which has length 1; in (0, 1). Default: 1e-4.
    pub epsilon: f64,
    /// Decoding steps. Default: 20.
    pub steps: usize,
    /// Inversion steps. Default: 20.
    pub invert_steps: usize,
    /// Sampler. Default: DDIM.
    pub sampler: Sampler,
    /// Chain of inversion and decoding that takes the place of steps, inversion steps and sampler. Default: none.
    pub chain: Option<ChainSettings>,
}

impl Default for PplOptions {
    fn default() -> Self {
        Self { pairs: None, epsilon: 1e-4, steps: 20, invert_steps: 20, sampler: Sampler::DDIM, chain: None }
    }
}

impl Measure for Ppl<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, evaluation: &Evaluation<'_>) -> Result<Report> {
        let Self { model, pictures, lpips, options } = self;
        let &PplOptions { pairs, epsilon, steps, invert_steps, sampler, chain } = options;
        self.check()?;
        model.check_is_of_photographs("LPIPS")?;
        check_at_least("the number of pairs", pairs.unwrap_or(1), 1)?;
        let count = pairs.unwrap_or_else(|| pictures.len().div_euclid(2));
        let seed = evaluation.seed();
        let decoding = PipelineSettings {
            num_steps: steps,
            num_invert_steps: invert_steps,
            sampler,
            seed,
            ..PipelineSettings::REFERENCE
        };
        let decoding = match chain {
            Some(chain) => decoding.with_chain(chain),
            None => model.along_own_chain(decoding)?,
        };
        let settings = self.settings(&decoding, count)?;
        let mut journal = Journal::of(evaluation, NAME, &settings)?;
        let pipeline = model.pipeline();
        let calls_a_pair = 2 * (pipeline.num_inversion_calls(&decoding) + pipeline.num_decoding_calls(&decoding));
        let measured: Vec<usize> = evaluation.items(count).collect();
        let stage = evaluation.stage(NAME, measured.len(), calls_a_pair);
        for batch in measured.chunks(model.batch_size()) {
            if batch.iter().all(|pair| journal.get(&pair.to_string()).is_some()) {
                stage.check(batch.len() * calls_a_pair)?;
                continue;
            }
            let drawn: Vec<Drawn> = batch.iter().map(|&pair| Drawn::new(seed, pair, pictures.len())).collect();
            let [from, to] = [0, 1].map(|end| self.codes(drawn.iter().map(|drawn| drawn.ends[end]), &decoding, &stage));
            let ends = Codes::joined(&[from?, to?])?;
            let picture = |shift: f64| -> Result<Tensor> {
                let at = |(row, drawn): (usize, &Drawn)| PathFrame {
                    from: row,
                    to: batch.len() + row,
                    alpha: drawn.place + shift,
                };
                let between = ends.at_frames(&drawn.iter().enumerate().map(at).collect::<Vec<_>>())?;
                let x_terminal = between.x_terminal.ok_or_else(|| unsuitable("the codes hold no x_T"))?;
                let code = StochasticCode { x_terminal, chain: between.chain };
                to_unit(&model.decode_code((&code, between.z_sem.as_ref()), batch[0], &decoding, &stage)?)
            };
            let distances = lpips.network().distance(&picture(0.)?, &picture(epsilon)?)?;
            for (pair, distance) in batch.iter().zip(distances) {
                let values = Values::from([(NAME.to_owned(), distance / epsilon.powi(2))]);
                if journal.get(&pair.to_string()).is_none() {
                    journal.add(pair.to_string(), values)?;
                }
            }
        }
        stage.finish();
        if let Some(shard) = evaluation.shard() {
            return Ok(Report::of_shard(NAME, settings, shard));
        }
        let value = |pair: usize| journal.get(&pair.to_string())?.get(NAME).copied();
        let values: Vec<f64> = (0..count).filter_map(value).collect();
        let of = [("backbone", lpips.backbone().name())];
        let mean_of_trimmed = |items: &[usize]| {
            let kept = trimmed(&items.iter().filter_map(|&item| values.get(item).copied()).collect::<Vec<f64>>());
            Some(kept.iter().sum::<f64>() / kept.len() as f64)
        };
        // A single pair whose picture jumps decides the mean.
        let median = |items: &[usize]| {
            let mut all: Vec<f64> = items.iter().filter_map(|&item| values.get(item).copied()).collect();
            all.sort_by(f64::total_cmp);
            quantile(&all, 0.5)
        };
        let figures = [
            Figure::mean(NAME, &of, &values, seed),
            Figure::of_items("ppl_trimmed", &of, values.len(), seed, mean_of_trimmed),
            Figure::of_items("ppl_median", &of, values.len(), seed, median),
        ];
        Report::new(NAME, settings, figures.into_iter().flatten().collect()).written(evaluation)
    }
}

impl Ppl<'_> {
    /// Returns the settings that decide the figures.
    fn settings(&self, decoding: &PipelineSettings, count: usize) -> Result<Settings> {
        let Self { model, pictures, lpips, options } = self;
        let &PplOptions { epsilon, steps, invert_steps, chain, .. } = options;
        let chain = chain.or_else(|| decoding.chain());
        let mut settings = model.settings();
        settings.extend([
            ("data".to_owned(), pictures.fingerprint()?.into()),
            ("pairs".to_owned(), count.into()),
            ("epsilon".to_owned(), epsilon.into()),
            ("steps".to_owned(), steps.into()),
            ("invert_steps".to_owned(), invert_steps.into()),
            ("seed".to_owned(), decoding.seed.into()),
        ]);
        settings.extend(lpips.settings());
        match chain {
            Some(chain) => settings.extend([("chain".to_owned(), chain.to_string().into())]),
            None => settings.extend(decoding.sampler_settings()),
        }
        Ok(settings)
    }

    /// Returns the codes of some pictures. The encoder is no step of the progress.
    fn codes(
        &self,
        indices: impl Iterator<Item = usize> + Clone,
        settings: &PipelineSettings,
        stage: &Stage<'_>,
    ) -> Result<Codes> {
        let Self { model, pictures, .. } = self;
        let x_0 = model.read(pictures, indices.clone())?;
        let z_sem = model.model().encode_semantic(&x_0)?;
        let code = model.pipeline().invert_batch(&x_0, Some(&z_sem), settings, &mut stage.observer())?;
        Ok(Codes {
            z_sem: Some(z_sem),
            x_terminal: Some(code.x_terminal),
            chain: code.chain,
            names: indices.map(|idx| pictures.name(idx)).collect(),
            fingerprint: model.model().fingerprint().to_owned(),
        })
    }

    /// Fails if model, pictures or options do not allow the measure.
    fn check(&self) -> Result<()> {
        let (model, epsilon) = (self.model, self.options.epsilon);
        if !(epsilon > 0. && epsilon < 1.) {
            return Err(Error::OutOfRange {
                what: "epsilon",
                got: epsilon.to_string(),
                expected: "a number in (0, 1)",
            });
        }
        if !model.has_z_sem() || model.pipeline().is_one_shot() {
            return Err(unsuitable("perceptual path length needs a model with z_sem and x_T"));
        }
        if self.pictures.len() < 2 {
            return Err(unsuitable("there are fewer than two images"));
        }
        Ok(())
    }
}

/// Two pictures and a place between them, drawn at random.
struct Drawn {
    ends: [usize; 2],
    place: f64,
}

impl Drawn {
    /// Draws by the seed and the index of the pair: the result is the same at every call.
    fn new(seed: u64, pair: usize, count: usize) -> Self {
        let hash = blake3::hash(format!("ppl {seed} {pair}").as_bytes());
        let mut numbers =
            hash.as_bytes().chunks(8).map(|bytes| bytes.iter().fold(0, |sum, &byte| (sum << 8) | u64::from(byte)));
        let mut below = |limit: usize| {
            let number = numbers.next().unwrap_or_default().checked_rem(limit as u64).unwrap_or(0);
            usize::try_from(number).unwrap_or(0)
        };
        let first = below(count);
        // Any of the others.
        let other = (first + 1 + below(count.saturating_sub(1))).checked_rem(count).unwrap_or(0);
        let steps = 1 << 30;
        Self { ends: [first, other], place: below(steps) as f64 / steps as f64 }
    }
}

/// Returns the values without the smallest and the largest hundredth.
fn trimmed(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "places in the list")]
    let [low, high] = [(TRIMMED[0] * last).floor() as usize, (TRIMMED[1] * last).ceil() as usize];
    sorted.get(low..=high).map(<[f64]>::to_vec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_have_two_pictures_and_a_place_between() {
        let mut places = vec![];
        for pair in 0..200 {
            let Drawn { ends: [first, other], place } = Drawn::new(3, pair, 5);
            assert!(first != other && first < 5 && other < 5 && (0. ..1.).contains(&place));
            places.push(place);
        }
        let mean = places.iter().sum::<f64>() / 200.;
        assert!((mean - 0.5).abs() < 0.1, "{mean}");
        assert_eq!(Drawn::new(3, 7, 2).ends.iter().sum::<usize>(), 1);
    }

    #[test]
    fn outliers_are_trimmed() {
        let values: Vec<f64> = (0..201).map(f64::from).rev().collect();
        let kept = trimmed(&values);
        assert_eq!((kept.first(), kept.last()), (Some(&2.), Some(&198.)));
        assert_eq!(trimmed(&[3.]), [3.]);
    }
}
