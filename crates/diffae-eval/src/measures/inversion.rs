//! Round trips of pictures through their stochastic codes, and the quality of these codes.

mod conditions;

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use candle_core::{D, DType, Device, Tensor};
use diffae_data::PictureSet;
use diffae_infer::{
    CallEvent, ChainSettings, CodeChain, ExactSettings, FixedPointSettings, NoiseSource, Pipeline, PipelineSettings,
    StochasticCode,
};
use diffae_kernels::is_exact;
use diffae_schedule::{Denoiser, ExactChain, ExactWeights, Timestep};

use self::conditions::{Condition, Decoding, other_convolution};
use super::Measure;
use crate::error::{Error, Result, unsuitable};
use crate::evaluated_model::EvaluatedModel;
use crate::evaluation::{Evaluation, Stage};
use crate::journal::{Journal, Values};
use crate::plot::{Curve, Plot, Point};
use crate::report::{Figure, Report};

const NAME: &str = "inversion";
/// Values of a round trip, in the order of the report.
const VALUES: [&str; 17] = [
    "mse",
    "equal",
    "evaluations",
    "std_x_T",
    "lag_1_x_T",
    "std_residual",
    "equal_f16",
    "mse_other_batch",
    "equal_other_batch",
    "mse_other_threads",
    "equal_other_threads",
    "mse_other_convolution",
    "equal_other_convolution",
    "mse_perturbed",
    "equal_perturbed",
    "mse_x_T_alone",
    "equal_x_T_alone",
];

/// Round trips of pictures through their stochastic codes, by chain: `x_0 -> x_T (and residual) -> x_0`.
///
/// | value | meaning |
/// |---|---|
/// | `mse` | mean square error in [0, 1]; beside the mean its median, 95th percentile and maximum over pictures |
/// | `equal` | share of equal 8-bit values |
/// | `std_x_T`, `lag_1_x_T` | standard deviation of `x_T`, and autocorrelation of neighbors in a row: 1 and 0 for noise |
/// | `std_residual` | standard deviation of the residual of an exact chain |
/// | `evaluations` | network calls of the round trip, which fixed points may need more of for some pictures |
/// | `equal_f16` | `equal` if codes are stored as f16 |
/// | `mse_other_batch`, `equal_other_batch` | the same if each picture is decoded alone |
/// | `mse_other_threads`, `equal_other_threads` | the same if one thread decodes, or two where one made the codes; on a CPU |
/// | `mse_other_convolution`, `equal_other_convolution` | the same under `--exact`, or without it where it made them; on a CPU |
/// | `mse_perturbed`, `equal_perturbed` | the same if noise is added to eps while decoding, as by another device |
/// | `mse_x_T_alone`, `equal_x_T_alone` | the same if the residual of an exact chain is lost |
#[derive(Debug)]
pub struct Inversion<'a> {
    /// The model; it must have a diffusion over pictures.
    pub model: &'a EvaluatedModel,
    /// The pictures.
    pub pictures: &'a PictureSet,
    /// Options.
    pub options: InversionOptions,
}

/// Options of [`Inversion`].
#[derive(Debug, Clone, PartialEq)]
pub struct InversionOptions {
    /// Exact chains. Default: of [`Self::EXACT_STEPS`] steps, with the weights and the spacing of [`PipelineSettings::DEFAULT`].
    pub exact: Vec<ExactSettings>,
    /// Chains of inversion by fixed points. Default: none.
    pub fixed_point: Vec<FixedPointSettings>,
    /// DDIM chains. Default: of 10 + 10, 20 + 20 and 250 + 20 steps.
    pub ddim: Vec<DdimSteps>,
    /// Standard deviation of the perturbation, relative to that of eps. Default: 0.001, as of half-precision arithmetic.
    pub perturbation: f64,
}

/// Steps of a DDIM chain in either direction, written `250:20`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DdimSteps {
    /// Number of steps of the inversion.
    pub invert: usize,
    /// Number of steps of decoding.
    pub decode: usize,
}

impl fmt::Display for DdimSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.invert, self.decode)
    }
}

impl FromStr for DdimSteps {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |part: &str| part.parse().ok().filter(|&number: &usize| number > 0);
        let steps = text.split_once(':').and_then(|(invert, decode)| Some((number(invert)?, number(decode)?)));
        let (invert, decode) = steps.ok_or_else(|| {
            unsuitable(format!("{text:?} is no pair of steps, expected two positive numbers with a colon between them"))
        })?;
        Ok(Self { invert, decode })
    }
}

impl Default for InversionOptions {
    fn default() -> Self {
        let of = |(invert, decode)| DdimSteps { invert, decode };
        Self {
            exact: Self::exact_of(&Self::EXACT_STEPS),
            fixed_point: vec![],
            ddim: [(10, 10), (20, 20), (250, 20)].map(of).to_vec(),
            perturbation: 1e-3,
        }
    }
}

impl InversionOptions {
    /// Numbers of steps of the default exact chains.
    pub const EXACT_STEPS: [usize; 3] = [5, 10, 20];

    /// Returns exact chains of the default settings by their numbers of steps.
    #[must_use]
    pub fn exact_of(steps: &[usize]) -> Vec<ExactSettings> {
        let (spacing, weights) = (PipelineSettings::DEFAULT.spacing, ExactWeights::default());
        steps.iter().map(|&steps| ExactSettings { steps, spacing, weights }).collect()
    }
}

/// A chain of both directions.
#[derive(Debug, Clone, Copy)]
enum Chain {
    /// Inverted along the chain that decodes.
    Same(ChainSettings),
    Ddim(DdimSteps),
}

impl Chain {
    fn name(self) -> String {
        match self {
            Self::Same(chain) => chain.to_string(),
            Self::Ddim(DdimSteps { invert, decode }) => format!("DDIM {invert} + {decode} steps"),
        }
    }

    /// Returns the number of evaluations of all decodings and the inversion, by fixed points about that many.
    fn num_calls(self, model: &EvaluatedModel) -> usize {
        let settings = self.settings();
        let pipeline = model.pipeline();
        // Codes of a chain are also decoded from f16 and under other conditions, exact ones perturbed and without residual.
        let num_conditions = Condition::of(model.model().device()).len();
        let num_decodings = match self {
            Self::Same(ChainSettings::Exact(_)) => 4 + num_conditions,
            Self::Same(_) => 2 + num_conditions,
            Self::Ddim(_) => 1,
        };
        pipeline.num_inversion_calls(&settings) + num_decodings * pipeline.num_decoding_calls(&settings)
    }

    fn settings(self) -> PipelineSettings {
        match self {
            Self::Same(chain) => PipelineSettings::DEFAULT.with_chain(chain),
            Self::Ddim(DdimSteps { invert, decode }) => {
                PipelineSettings { num_invert_steps: invert, num_steps: decode, ..PipelineSettings::REFERENCE }
            }
        }
    }
}

impl Measure for Inversion<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn run(&self, evaluation: &Evaluation<'_>) -> Result<Report> {
        let Self { model, pictures, options } = self;
        if model.pipeline().is_one_shot() {
            return Err(unsuitable("a one-shot autoencoder has no chain to invert"));
        }
        if !(options.perturbation >= 0.0 && options.perturbation.is_finite()) {
            return Err(unsuitable(format!("the perturbation is {}, expected 0 or more", options.perturbation)));
        }
        let exact = options.exact.iter().map(|&exact| Chain::Same(ChainSettings::Exact(exact)));
        let fixed = options.fixed_point.iter().map(|&fixed| Chain::Same(ChainSettings::FixedPoint(fixed)));
        let ddim = options.ddim.iter().map(|&ddim| Chain::Ddim(ddim));
        let chains: Vec<Chain> = exact.chain(fixed).chain(ddim).collect();
        for chain in &chains {
            let settings = chain.settings();
            model.pipeline().check_steps(settings.spacing, settings.num_steps)?;
            if let Chain::Ddim(steps) = chain {
                model.pipeline().check_steps(settings.spacing, steps.invert)?;
            }
        }
        let seed = evaluation.seed();
        let mut settings = model.settings();
        settings.extend([
            ("data".to_owned(), pictures.fingerprint()?.into()),
            ("count".to_owned(), pictures.len().into()),
            ("chains".to_owned(), chains.iter().map(|chain| chain.name()).collect::<Vec<_>>().into()),
            ("perturbation".to_owned(), options.perturbation.into()),
            ("batch_size".to_owned(), model.batch_size().into()),
            ("seed".to_owned(), seed.into()),
            // They decide what another number of threads and other algorithms are.
            ("threads".to_owned(), rayon::current_num_threads().into()),
            ("exact".to_owned(), is_exact().into()),
        ]);
        let mut journal = Journal::of(evaluation, NAME, &settings)?;
        let num_calls: usize = chains.iter().map(|chain| chain.num_calls(model)).sum();
        let stage = evaluation.stage(NAME, evaluation.items(pictures.len()).len(), num_calls);
        let mut twin = None;
        for batch in evaluation.batches(pictures.len(), model.batch_size()) {
            let item = |chain: Chain, idx: usize| format!("{}/{}", pictures.name(idx), chain.name());
            let is_known = |chain: Chain| batch.clone().all(|idx| journal.get(&item(chain, idx)).is_some());
            let left: Vec<Chain> = chains.iter().copied().filter(|&chain| !is_known(chain)).collect();
            let known: usize = chains.iter().map(|chain| chain.num_calls(model)).sum::<usize>()
                - left.iter().map(|chain| chain.num_calls(model)).sum::<usize>();
            stage.check(batch.len() * known)?;
            if left.is_empty() {
                continue;
            }
            let x_0 = model.read(pictures, batch.clone())?;
            let z_sem = if model.has_z_sem() { Some(model.model().encode_semantic(&x_0)?) } else { None };
            let is_wanted = Condition::of(model.model().device()).contains(&Condition::Convolution);
            if twin.is_none() && is_wanted && left.iter().any(|chain| matches!(chain, Chain::Same(_))) {
                twin = Some(model.built_with(other_convolution())?);
            }
            let twin = twin.as_ref().unwrap_or(model.pipeline());
            let trip = RoundTrip { model, twin, x_0: &x_0, z_sem: z_sem.as_ref(), first: batch.start, stage: &stage };
            for chain in left {
                let values = trip.values(chain, options.perturbation, seed)?;
                for (idx, values) in batch.clone().zip(values) {
                    journal.add(item(chain, idx), values)?;
                }
            }
        }
        stage.finish();
        if let Some(shard) = evaluation.shard() {
            return Ok(Report::of_shard(NAME, settings, shard));
        }
        let figures = figures(&chains, pictures, &journal, seed);
        write_plot(evaluation, &chains, &figures, model)?;
        Report::new(NAME, settings, figures).written(evaluation)
    }
}

/// The round trip of a batch.
struct RoundTrip<'a, 'o> {
    model: &'a EvaluatedModel,
    /// Networks of the same weights with other convolution algorithms, for the condition that has them.
    twin: &'a Pipeline,
    x_0: &'a Tensor,
    z_sem: Option<&'a Tensor>,
    first: usize,
    stage: &'a Stage<'o>,
}

impl RoundTrip<'_, '_> {
    /// Measures the values of each picture along a chain.
    fn values(&self, chain: Chain, perturbation: f64, seed: u64) -> Result<Vec<Values>> {
        let settings = chain.settings();
        let pipeline = self.model.pipeline();
        let mut num_evaluations = pipeline.num_decoding_calls(&settings);
        let code = {
            let mut observer = self.stage.observer();
            let mut counting = |event: &CallEvent<'_>| {
                num_evaluations += 1;
                observer(event)
            };
            pipeline.invert_batch(self.x_0, self.z_sem, &settings, &mut counting)?
        };
        let decoded = self.decode(&code, &settings)?;
        let count = self.x_0.dim(0)?;
        let mut columns = vec![
            ("evaluations", vec![num_evaluations as f64; count]),
            ("mse", mean_squares(&decoded, self.x_0)?),
            ("equal", equal_shares(&decoded, self.x_0)?),
            ("std_x_T", standard_deviations(&code.x_terminal)?),
            ("lag_1_x_T", lag_1(&code.x_terminal)?),
        ];
        let half = |tensor: &Tensor| tensor.to_dtype(DType::F16)?.to_dtype(DType::F32);
        if let Some(made_by) = &code.chain {
            let stored = StochasticCode { x_terminal: half(&code.x_terminal)?, chain: Some(made_by.map(half)?) };
            columns.push(("equal_f16", equal_shares(&self.decode(&stored, &settings)?, self.x_0)?));
            let decoding = Decoding { code: &code, z_sem: self.z_sem, first: self.first, settings: &settings };
            for &condition in Condition::of(self.model.model().device()) {
                let decoded = decoding.run_under(condition, (pipeline, self.twin), self.stage)?;
                let [mse, equal] = condition.values();
                columns.extend([(mse, mean_squares(&decoded, self.x_0)?), (equal, equal_shares(&decoded, self.x_0)?)]);
            }
        }
        if let Some(CodeChain { settings: ChainSettings::Exact(exact), residual: Some(residual) }) = &code.chain {
            let perturbed = self.perturbed(&code, residual, *exact, (perturbation, seed))?;
            let alone = CodeChain { settings: (*exact).into(), residual: None };
            let alone = StochasticCode { x_terminal: code.x_terminal.clone(), chain: Some(alone) };
            let alone = self.decode(&alone, &settings)?;
            columns.extend([
                ("std_residual", standard_deviations(residual)?),
                ("mse_x_T_alone", mean_squares(&alone, self.x_0)?),
                ("equal_x_T_alone", equal_shares(&alone, self.x_0)?),
                ("mse_perturbed", mean_squares(&perturbed, self.x_0)?),
                ("equal_perturbed", equal_shares(&perturbed, self.x_0)?),
            ]);
        }
        let row = |idx: usize| columns.iter().map(|(name, values)| ((*name).to_owned(), values[idx])).collect();
        Ok((0..count).map(row).collect())
    }

    fn decode(&self, code: &StochasticCode, settings: &PipelineSettings) -> Result<Tensor> {
        self.model.decode_code((code, self.z_sem), self.first, settings, self.stage)
    }

    /// Decodes along an exact chain with a network that differs from that of the inversion by noise.
    fn perturbed(
        &self,
        StochasticCode { x_terminal, .. }: &StochasticCode,
        residual: &Tensor,
        exact: ExactSettings,
        (perturbation, seed): (f64, u64),
    ) -> Result<Tensor> {
        let model = self.model.model();
        let chain = model.step_chain(exact.spacing, exact.steps)?;
        let denoiser = model.denoiser(self.z_sem, &chain, x_terminal)?;
        let count = x_terminal.dim(0)?;
        let numbers = (self.first as u64..).take(count);
        let noise = RefCell::new(NoiseSource::new(seed).steps(numbers));
        let noisy = |x_t: &Tensor, timesteps: &[Timestep]| {
            let eps = denoiser.eps(x_t, timesteps)?;
            // Of each picture by itself, whatever batch it is in.
            let scale = (eps.flatten_from(1)?.sqr()?.mean_keepdim(1)?.sqrt()? * perturbation)?; // [N, 1]
            let noise = (noise.borrow_mut())(x_t)?;
            eps + noise.flatten_from(1)?.broadcast_mul(&scale)?.reshape(x_t.shape())?
        };
        let mut on_step = |_: &diffae_schedule::Step<'_>| match self.stage.check(count) {
            Ok(()) => std::ops::ControlFlow::Continue(()),
            Err(_) => std::ops::ControlFlow::Break(()),
        };
        let chain = ExactChain::new(chain, exact.weights);
        let decoded = chain.decode(&noisy, x_terminal, Some(residual), &mut on_step);
        Ok(model.pictures(&decoded.map_err(diffae_infer::Error::from)?)?.clamp(-1f32, 1f32)?)
    }
}

/// Computes the mean over all but the first axis, f64 on the CPU.
fn means(x: &Tensor) -> Result<Vec<f64>> {
    let means = x.flatten_from(1)?.mean(1)?.to_device(&Device::Cpu)?.to_vec1::<f32>()?;
    Ok(means.into_iter().map(f64::from).collect())
}

/// Computes the mean square error of each picture, both in `[-1, 1]`, on the scale [0, 1].
fn mean_squares(x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
    means(&((x - y)? * 0.5)?.sqr()?)
}

/// Computes the share of equal 8-bit values of each picture, both in `[-1, 1]`.
fn equal_shares(x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
    let bytes = |x: &Tensor| x.clamp(-1f32, 1f32)?.affine(127.5, 127.5)?.round();
    means(&bytes(x)?.eq(&bytes(y)?)?.to_dtype(DType::F32)?)
}

fn centered(x: &Tensor) -> Result<Tensor> {
    let flat = x.flatten_from(1)?;
    Ok(flat.broadcast_sub(&flat.mean_keepdim(1)?)?.reshape(x.shape())?)
}

fn standard_deviations(x: &Tensor) -> Result<Vec<f64>> {
    Ok(means(&centered(x)?.sqr()?)?.into_iter().map(f64::sqrt).collect())
}

/// Computes the autocorrelation of neighbors in a row: mean product of neighbors over the variance.
fn lag_1(x: &Tensor) -> Result<Vec<f64>> {
    let x = centered(x)?;
    let (axis, width) = (x.rank() - 1, x.dim(D::Minus1)?);
    if width < 2 {
        return Err(unsuitable("pictures of one column have no neighbors in a row"));
    }
    let products = (x.narrow(axis, 0, width - 1)? * x.narrow(axis, 1, width - 1)?)?;
    let variances = means(&x.sqr()?)?;
    // A constant map is correlated with anything, or nothing.
    let ratio = |(product, variance): (f64, f64)| if variance > 0. { product / variance } else { 0. };
    Ok(means(&products)?.into_iter().zip(variances).map(ratio).collect())
}

fn figures(chains: &[Chain], pictures: &PictureSet, journal: &Journal, seed: u64) -> Vec<Figure> {
    let mut figures = vec![];
    for chain in chains {
        let name = chain.name();
        let of = [("chain", name.as_str())];
        for value in VALUES {
            let item = |idx| journal.get(&format!("{}/{name}", pictures.name(idx)))?.get(value).copied();
            let values: Vec<f64> = (0..pictures.len()).filter_map(item).collect();
            figures.extend(Figure::mean(value, &of, &values, seed));
            if value.starts_with("mse") {
                for (quantile, part) in [("median", 0.5), ("p95", 0.95), ("max", 1.0)] {
                    let of_items = |items: &[usize]| quantile_of(items.iter().map(|&idx| values[idx]).collect(), part);
                    figures.extend(Figure::of_items(&format!("{value}_{quantile}"), &of, values.len(), seed, of_items));
                }
            }
            if value.starts_with("equal") && !values.is_empty() {
                let least = values.iter().copied().fold(f64::INFINITY, f64::min);
                figures.push(Figure::single(&format!("{value}_min"), &of, least, values.len()));
            }
        }
    }
    figures
}

/// Returns the smallest value that at least the share `part` of the values do not exceed.
fn quantile_of(mut values: Vec<f64>, part: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
    let place = (part * values.len() as f64).ceil() as usize;
    values.get(place.max(1) - 1).copied()
}

/// Draws the PSNR of the median round trip over the evaluations that it takes.
fn write_plot(evaluation: &Evaluation<'_>, chains: &[Chain], figures: &[Figure], model: &EvaluatedModel) -> Result<()> {
    let curve = |name: &str, value: &str, wanted: fn(&Chain) -> bool| {
        let mut points: Vec<Point> = chains
            .iter()
            .filter(|chain| wanted(chain))
            .filter_map(|chain| {
                let is_it = |figure: &&Figure| figure.name == value && figure.of.get("chain") == Some(&chain.name());
                let mse = figures.iter().find(is_it)?.value;
                let is_cost =
                    |figure: &&Figure| figure.name == "evaluations" && figure.of.get("chain") == Some(&chain.name());
                let num_evaluations = figures.iter().find(is_cost)?.value;
                Some(Point { x: num_evaluations, y: -10.0 * mse.max(1e-16).log10(), interval: None })
            })
            .collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        Curve { name: name.to_owned(), points }
    };
    let is_exact = |chain: &Chain| matches!(chain, Chain::Same(ChainSettings::Exact(_)));
    let curves = [
        curve("exact", "mse_median", is_exact),
        curve("exact, perturbed", "mse_perturbed_median", is_exact),
        curve("fixed points", "mse_median", |chain| matches!(chain, Chain::Same(ChainSettings::FixedPoint(_)))),
        curve("DDIM", "mse_median", |chain| matches!(chain, Chain::Ddim(_))),
    ];
    let curves: Vec<Curve> = curves.into_iter().filter(|curve| !curve.points.is_empty()).collect();
    let plot =
        Plot { title: "Round trips", x_label: "evaluations", y_label: "PSNR of the median (dB)", curves: &curves };
    evaluation.write_picture("inversion.psnr.png", &plot.draw(), Some(model.model()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(values: &[f32]) -> Tensor {
        Tensor::from_vec(values.to_vec(), (1, 1, 1, values.len()), &Device::Cpu).unwrap()
    }

    #[test]
    fn values_are_those_of_their_formulas() {
        let x = picture(&[0., 1., 0., 1.]);
        assert!((standard_deviations(&x).unwrap()[0] - 0.5).abs() < 1e-6);
        assert!((lag_1(&x).unwrap()[0] + 1.).abs() < 1e-6);
        assert!(lag_1(&picture(&[0.5, 0.5])).unwrap()[0].abs() < 1e-6);
        assert!((mean_squares(&x, &picture(&[0., 1., 0., 0.8])).unwrap()[0] - 0.0025).abs() < 1e-8);
        // A byte is 2/255 wide.
        assert!((equal_shares(&x, &picture(&[0.002, 1.5, 0.02, 0.])).unwrap()[0] - 0.5).abs() < 1e-6);
    }

    #[test]
    fn steps_of_both_directions_are_read_as_they_are_written() {
        let steps = DdimSteps { invert: 250, decode: 20 };
        assert_eq!(steps.to_string().parse::<DdimSteps>().unwrap(), steps);
        for wrong in ["", "250", "250:", "0:20", "250:0", "250:20:1", "a:b"] {
            let error = wrong.parse::<DdimSteps>().unwrap_err().to_string();
            assert!(error.contains("two positive numbers"), "{wrong}: {error}");
        }
    }

    #[test]
    fn quantiles_are_values_of_the_list() {
        let of = |part| quantile_of(vec![4., 1., 3., 2.], part).unwrap();
        assert_eq!([of(0.5), of(0.95), of(1.), of(0.)].map(|value| value.to_string()), ["2", "4", "4", "1"]);
        assert_eq!(quantile_of(vec![], 0.5), None);
    }
}
