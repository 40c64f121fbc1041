//! Local edit directions, which depend on the code, fitted to pairs of codes.

use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, RangeInclusive};

use candle_core::{DType, Device, Tensor};
use candle_nn::Init;
use diffae_kernels::{differentiable, no_gradients};
use diffae_nets::weights::is_finite;
use diffae_nets::{EditDirection, LocalOffset};

use crate::collective::Group;
use crate::config::{OptimizerKind, StageSettings};
use crate::error::{Error, Result};
use crate::optimization::{Stepped, TrainState};
use crate::parameters::Parameters;
use crate::random::permutation;
use crate::run::Stage;
use crate::training_loop::{Learner, NoDetails, TrainingLoop, Validation};
use crate::{StepReport, Work};

/// Number of codes per step.
const BATCH_SIZE: usize = 64;
/// Learning rates, one after the other for as many steps each.
const LEARNING_RATES: [f64; 3] = [3e-3, 1e-3, 3e-4];
/// Number of epochs, before clamping to `NUM_STEPS`.
const NUM_EPOCHS: usize = 100;
const NUM_STEPS: RangeInclusive<usize> = 3000..=30_000;
/// One pair in five is held out for model selection.
const HELD_OUT_ONE_IN: u32 = 5;
/// Maximum held-out error relative to the mean direction; a little less than 1 is chance, or another mean.
const WORTHWHILE: f64 = 0.98;
/// Floor of the relative-error weighting: squared length relative to the mean one.
const SHORT: f64 = 0.05;

/// Number of validations of a fit, and of calls of `between` by [`fit_edit_direction`].
pub const NUM_VALIDATIONS: usize = 90;

/// Normalized codes of pairs of pictures that differ in one attribute.
#[derive(Debug, Clone, Copy)]
pub struct PairedCodes<'a> {
    /// Codes without the attribute, `[N, D]`.
    pub without: &'a Tensor,
    /// Codes of the same pictures with the attribute, `[N, D]`.
    pub with: &'a Tensor,
    /// Further pictures of some pairs, which lack the attribute in another way.
    pub others: Option<OtherCodes<'a>>,
}

/// Codes of pictures that lack an attribute in another way than the ones in pairs.
#[derive(Debug, Clone, Copy)]
pub struct OtherCodes<'a> {
    /// Codes, `[M, D]`.
    pub codes: &'a Tensor,
    /// Pair of each code, by number.
    pub pairs: &'a [u32],
}

/// Fits the direction from pictures without an attribute to the same pictures with it,
/// `z' - z = w + U^T (tanh(M tanh(V z + b) + d) - c)`.
///
/// Minimizes the mean of `|error|^2 / (|z' - z|^2 + s)`, s being a twentieth of the mean `|z' - z|^2`: where a beard can
/// hardly be seen little may change. Both codes of a pair are samples with the same target, so that an edit can be undone
/// and its direction changes little on the way.
///
/// `others` lack the attribute in other differences: if pairs take sad mouths to smiles, mouths that are open. The direction is
/// fitted to their codes as well, but not back to them: a smile that is taken away leaves a sad mouth.
///
/// Every fifth pair is held out for model selection; the rest are fitted with Adam. The moving average of the parameters
/// with the least held-out error is taken, or the mean difference if it does as well. c is the mean of the tanh over all
/// pairs, so that w is the mean of the predictions there. The same seed gives the same bits.
///
/// With 0 for `num_units`, h, the result is the mean difference, and `others` do not matter. `between` is called
/// [`NUM_VALIDATIONS`] times, to show progress or to stop with an error; not at all with 0 units.
///
/// # Errors
/// [`Error::Pairs`] with fewer than two pairs, shapes that differ, `others` of missing pairs, values that are not
/// finite, or codes that do not differ; [`Error::Diverged`] for values too large to square; as `between`.
pub fn fit_edit_direction<E: From<Error>>(
    pairs: PairedCodes<'_>,
    num_units: usize,
    seed: u64,
    between: &mut dyn FnMut() -> std::result::Result<(), E>,
) -> std::result::Result<EditDirection, E> {
    let pairs = Pairs::new(pairs)?;
    let fitted = if num_units == 0 { None } else { pairs.fit(num_units, seed, between)? };
    let found = match fitted {
        Some(fitted) => fitted,
        None => EditDirection::fixed(pairs.differences.mean(0).map_err(Error::from)?).map_err(Error::from)?,
    };
    let length = found.norm().map_err(Error::from)?;
    if !length.is_finite() {
        return Err(Error::Pairs { problem: "the codes are too large".to_owned() }.into());
    }
    if length == 0. {
        let problem = "on average the pictures with the attribute have the same codes as those without".to_owned();
        return Err(Error::Pairs { problem }.into());
    }
    Ok(found)
}

/// Codes of pairs and the differences between them, f32 on the CPU.
struct Pairs {
    without: Tensor,
    with: Tensor,
    differences: Tensor,
    others: Option<Others>,
}

/// Other codes without the attribute, the differences to the attribute, and the pair of each.
struct Others {
    codes: Tensor,
    differences: Tensor,
    pairs: Vec<u32>,
}

impl Pairs {
    fn new(PairedCodes { without, with, others }: PairedCodes<'_>) -> Result<Self> {
        if without.dims() != with.dims() {
            let problem = format!("codes with the attribute are {:?}, those without {:?}", with.dims(), without.dims());
            return Err(Error::Pairs { problem });
        }
        let (without, with) = (checked(without)?, checked(with)?);
        let (count, _) = without.dims2()?;
        if count < 2 {
            return Err(Error::Pairs { problem: format!("the number of pairs is {count}, expected at least 2") });
        }
        let others = others.map(|others| Others::new(others, &with)).transpose()?;
        Ok(Self { differences: (&with - &without)?, without, with, others })
    }

    /// Selects the samples of some pairs, by their numbers.
    fn samples(&self, is_wanted: fn(u32) -> bool) -> Result<Samples> {
        let squares = |differences: &Tensor| differences.sqr()?.sum(1); // [N]
        let mean = f64::from(squares(&self.differences)?.mean_all()?.to_scalar::<f32>()?);
        let rows = |codes: &Tensor, differences: &Tensor, pairs: &[u32]| -> Result<Samples> {
            let squares = squares(differences)?;
            // If no code changes at all, all errors weigh the same.
            let weights = if mean > 0. { ((squares / mean)? + SHORT)?.recip()? } else { squares.ones_like()? };
            let wanted: Vec<usize> = (0..pairs.len()).filter(|&row| is_wanted(pairs[row])).collect();
            Samples { codes: codes.clone(), differences: differences.clone(), weights }.some(&wanted)
        };
        let numbers: Vec<u32> = (0u32..).take(self.differences.dim(0)?).collect();
        let mut parts =
            vec![rows(&self.without, &self.differences, &numbers)?, rows(&self.with, &self.differences, &numbers)?];
        if let Some(Others { codes, differences, pairs }) = &self.others {
            parts.push(rows(codes, differences, pairs)?);
        }
        let joined = |of: fn(&Samples) -> &Tensor| Tensor::cat(&parts.iter().map(of).collect::<Vec<_>>(), 0);
        Ok(Samples {
            codes: joined(|it| &it.codes)?,
            differences: joined(|it| &it.differences)?,
            weights: joined(|it| &it.weights)?,
        })
    }

    /// Fits a direction that depends on the code; `None` if the mean one predicts the held-out pairs as well.
    fn fit<E: From<Error>>(
        &self,
        num_units: usize,
        seed: u64,
        between: &mut dyn FnMut() -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<EditDirection>, E> {
        let mut fit = Fit::new(self, num_units, seed)?;
        let settings = settings(LEARNING_RATES[0], fit.steps_each * NUM_VALIDATIONS);
        let (steps_each, mut stopped) = (fit.steps_each, None);
        let on_step = &mut |report: &StepReport| {
            if report.work == Work::Training && report.step.is_multiple_of(steps_each) {
                stopped = between().err();
            }
            if stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        TrainingLoop::unrecorded(Stage::Classifier, &settings, &mut Group::alone()).run(&mut fit, on_step)?;
        if let Some(error) = stopped {
            return Err(error);
        }
        let codes = Tensor::cat(&[&self.without, &self.with], 0).map_err(Error::from)?;
        Ok(fit.best.map(|best| centered(&best, &codes)).transpose()?)
    }
}

/// A direction under training.
struct Fit {
    direction: EditDirection,
    state: TrainState,
    /// Samples that are trained on.
    fitted: Samples,
    /// Samples of the held-out pairs.
    held_out: Samples,
    seed: u64,
    /// The rest of the epoch, in reverse order.
    order: Vec<usize>,
    epoch: u64,
    /// Number of steps between validations.
    steps_each: usize,
    /// Error of `best` on the held-out pairs, or the one to fall below.
    least: f64,
    best: Option<EditDirection>,
}

impl Fit {
    fn new(pairs: &Pairs, num_units: usize, seed: u64) -> Result<Self> {
        let held_out = pairs.samples(|pair| pair % HELD_OUT_ONE_IN == 0)?;
        let fitted = pairs.samples(|pair| pair % HELD_OUT_ONE_IN != 0)?;
        let (direction, parameters) = trainable(pairs.differences.mean(0)?, num_units, seed)?;
        let least = WORTHWHILE * held_out.error(&direction)?;
        let num_steps = NUM_EPOCHS * fitted.weights.elem_count().div_ceil(BATCH_SIZE);
        let steps_each = num_steps.clamp(*NUM_STEPS.start(), *NUM_STEPS.end()).div_ceil(NUM_VALIDATIONS);
        let (state, order) = (TrainState::new(parameters), vec![]);
        Ok(Self { direction, state, fitted, held_out, seed, order, epoch: 0, steps_each, least, best: None })
    }
}

impl Learner for Fit {
    type Details = NoDetails;

    fn state(&self) -> &TrainState {
        &self.state
    }

    fn state_mut(&mut self) -> &mut TrainState {
        &mut self.state
    }

    fn step(&mut self, group: &mut Group) -> Result<Stepped> {
        if self.order.is_empty() {
            self.order = permutation(self.seed, self.epoch, self.fitted.weights.elem_count());
            self.epoch += 1;
        }
        let rest = self.order.len().saturating_sub(BATCH_SIZE);
        let batch = self.fitted.some(&self.order.split_off(rest))?;
        let part = (self.state.step * LEARNING_RATES.len()).checked_div(self.steps_each * NUM_VALIDATIONS);
        let settings = settings(LEARNING_RATES[part.unwrap_or(0)], 1);
        let direction = &self.direction;
        self.state.minimize((&settings, group), (batch.weights.elem_count(), 1), |_| batch.loss(direction))
    }

    fn batch(&self) -> String {
        "codes of pairs".to_owned()
    }

    fn details(&mut self) -> NoDetails {
        NoDetails {}
    }

    fn is_validated_after(&self, step: usize) -> bool {
        step.is_multiple_of(self.steps_each)
    }

    /// Keeps the moving average of the parameters if it is the best so far.
    fn validate(&mut self) -> Result<Option<Validation>> {
        let average = averaged(&self.state.parameters.averages()?)?;
        let error = self.held_out.error(&average)?;
        if error < self.least {
            (self.least, self.best) = (error, Some(average));
        }
        Ok(Some(Validation { loss: error, z_usage: None }))
    }
}

impl Others {
    fn new(OtherCodes { codes, pairs }: OtherCodes<'_>, with: &Tensor) -> Result<Self> {
        let codes = checked(codes)?;
        let (count, width) = with.dims2()?;
        if codes.dims() != [pairs.len(), width] {
            let problem = format!("other codes are {:?}, expected [{}, {width}]", codes.dims(), pairs.len());
            return Err(Error::Pairs { problem });
        }
        if let Some(pair) = pairs.iter().find(|&&pair| usize::try_from(pair).is_ok_and(|pair| pair >= count)) {
            return Err(Error::Pairs {
                problem: format!("a code of others belongs to pair {pair}, expected below {count}"),
            });
        }
        let differences = (with.index_select(&Tensor::new(pairs, &Device::Cpu)?, 0)? - &codes)?;
        Ok(Self { codes, differences, pairs: pairs.to_vec() })
    }
}

/// Checks that codes are finite, and moves them to the CPU in f32.
fn checked(codes: &Tensor) -> Result<Tensor> {
    let codes = codes.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let problem = || "a code holds values that are not finite".to_owned();
    if is_finite(&codes)? { Ok(codes) } else { Err(Error::Pairs { problem: problem() }) }
}

/// Builds a direction under training, without a center; it starts with the mean difference at every code.
fn trainable(mean: Tensor, num_units: usize, seed: u64) -> Result<(EditDirection, Parameters)> {
    let width = mean.elem_count();
    let given = HashMap::from([("direction".to_owned(), mean)]);
    let random = |num_inputs: usize| {
        let bound = (num_inputs as f64).sqrt().recip();
        Init::Uniform { lo: -bound, up: bound }
    };
    Parameters::build((seed, &Device::Cpu), given, |vb| {
        let mean = vb.get(width, "direction")?;
        let offset = LocalOffset {
            inputs: vb.get_with_hints((num_units, width), "inputs", random(width))?,
            bias: vb.get_with_hints(num_units, "bias", random(width))?,
            hidden: vb.get_with_hints((num_units, num_units), "hidden", random(num_units))?,
            hidden_bias: vb.get_with_hints(num_units, "hidden_bias", random(num_units))?,
            center: Tensor::zeros(num_units, DType::F32, &Device::Cpu)?,
            outputs: vb.get_with_hints((num_units, width), "outputs", Init::Const(0.))?,
        };
        Ok(EditDirection::local(mean, offset)?)
    })
}

/// Builds a direction of the moving averages of parameters.
fn averaged(averages: &BTreeMap<String, Tensor>) -> Result<EditDirection> {
    let average = |name: &str| {
        let missing = || candle_core::Error::Msg(format!("there is no parameter {name}"));
        averages.get(name).cloned().ok_or_else(missing)
    };
    let bias = average("bias")?;
    let offset = LocalOffset {
        inputs: average("inputs")?,
        hidden: average("hidden")?,
        hidden_bias: average("hidden_bias")?,
        center: bias.zeros_like()?,
        outputs: average("outputs")?,
        bias,
    };
    Ok(EditDirection::local(average("direction")?, offset)?)
}

/// Moves the mean of the second layer into the constant, so that the mean direction is that of the predictions at these
/// codes.
fn centered(direction: &EditDirection, codes: &Tensor) -> Result<EditDirection> {
    let Some(offset) = direction.offset() else { return Ok(direction.clone()) };
    let center = offset.features(codes)?.mean(0)?;
    let mean = (center.unsqueeze(0)?.matmul(&offset.outputs)?.squeeze(0)? + direction.mean())?;
    Ok(EditDirection::local(mean, LocalOffset { center, ..offset.clone() })?)
}

/// Adam with a moving average, for a number of steps.
fn settings(lr: f64, num_steps: usize) -> StageSettings {
    StageSettings {
        images: num_steps * BATCH_SIZE,
        batch_size: BATCH_SIZE,
        accumulate: 1,
        optimizer: OptimizerKind::Adam,
        lr,
        beta_1: 0.9,
        weight_decay: 0.,
        warmup_images: 0,
        clip_norm: 0.,
        ema_decay: 0.99,
        ema_warmup: true,
    }
}

/// Codes and target differences, `[N, D]` each, with the weights of their errors, `[N]`.
struct Samples {
    codes: Tensor,
    differences: Tensor,
    weights: Tensor,
}

impl Samples {
    fn some(&self, rows: &[usize]) -> Result<Self> {
        let rows: Vec<u32> = rows.iter().map(|&row| u32::try_from(row).unwrap_or(u32::MAX)).collect();
        let rows = Tensor::new(rows, &Device::Cpu)?;
        let [codes, differences, weights] =
            [&self.codes, &self.differences, &self.weights].map(|all| all.index_select(&rows, 0));
        Ok(Self { codes: codes?, differences: differences?, weights: weights? })
    }

    /// Computes the weighted mean squared error of a direction, a scalar.
    fn loss(&self, direction: &EditDirection) -> Result<Tensor> {
        let Self { codes, differences, weights } = self;
        let predicted = direction.forward(codes)?;
        Ok(differentiable([&predicted], |[predicted]| {
            (((differences - predicted)?.sqr()?.mean(1)?) * weights)?.mean_all()
        })?)
    }

    fn error(&self, direction: &EditDirection) -> Result<f64> {
        Ok(f64::from(no_gradients(|| self.loss(direction))?.to_scalar::<f32>()?))
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    const WIDTH: usize = 6;

    fn codes(count: usize, seed: u64) -> Tensor {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let value = |_| f64::from(random.next_u32()) / f64::from(u32::MAX) * 3.4 - 1.7;
        Tensor::from_vec((0..count * WIDTH).map(value).collect::<Vec<f64>>(), (count, WIDTH), &Device::Cpu).unwrap()
    }

    fn fit(without: &Tensor, with: &Tensor, num_units: usize) -> Result<EditDirection> {
        fit_edit_direction(PairedCodes { without, with, others: None }, num_units, 0, &mut || Ok(()))
    }

    /// Computes the differences that a fit predicts at codes.
    fn predicted(fit: &EditDirection, z: &Tensor) -> Tensor {
        fit.forward(&z.to_dtype(DType::F32).unwrap()).unwrap()
    }

    fn mean_distance(x: &Tensor, y: &Tensor) -> f32 {
        let x = (x.to_dtype(DType::F32).unwrap() - y.to_dtype(DType::F32).unwrap()).unwrap();
        x.abs().unwrap().mean_all().unwrap().to_scalar().unwrap()
    }

    /// A beard (column 0) of the color of the hair (column 1): its color shows in column 2, but not on dark skin (column 3).
    fn bearded(z: &Tensor) -> Tensor {
        map(z, |row| {
            let color = if row[3] < 0. { 0.5 * row[1] - 0.3 } else { 0. };
            [row[0] + 2., row[1], row[2] + 2. * color, row[3], row[4], row[5]]
        })
    }

    fn map(z: &Tensor, row: impl Fn(&[f64]) -> [f64; WIDTH]) -> Tensor {
        let rows: Vec<f64> = z.to_vec2::<f64>().unwrap().iter().flat_map(|values| row(values)).collect();
        Tensor::from_vec(rows, z.dims(), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_way_that_depends_on_the_code_is_found_from_either_end() {
        let (z, new) = (codes(400, 1), codes(50, 2));
        let found = fit(&z, &bearded(&z), 8).unwrap();
        let offset = found.offset().unwrap();
        assert_eq!((offset.inputs.dims(), offset.outputs.dims()), (&[8, WIDTH][..], &[8, WIDTH][..]));
        let truth = (bearded(&new) - &new).unwrap();
        let constant = found.mean().broadcast_as(truth.dims()).unwrap();
        let fixed = mean_distance(&constant, &truth);
        let from_either_end = [&new, &bearded(&new)].map(|z| mean_distance(&predicted(&found, z), &truth));
        assert!(from_either_end.iter().all(|local| *local < 0.25 * fixed), "{from_either_end:?}, {fixed}");
        // The constant is the mean difference of the pairs.
        let mean = predicted(&found, &Tensor::cat(&[&z, &bearded(&z)], 0).unwrap()).mean(0).unwrap();
        assert!(mean_distance(&mean, found.mean()) < 1e-5);
        let again = fit(&z, &bearded(&z), 8).unwrap();
        assert!(mean_distance(&again.offset().unwrap().outputs, &offset.outputs) == 0.);
    }

    #[test]
    fn short_ways_count_as_much_as_long_ones() {
        // The difference is long in one half of the codes; a tenth of that, and opposite, in the other.
        let with = |z: &Tensor| {
            let difference = |row: &[f64]| if row[5] > 0. { 4. } else { -0.4 };
            let rows = z.to_vec2::<f64>().unwrap();
            let moved = rows.iter().flat_map(|row| [&[row[0] + difference(row)], &row[1..]].concat());
            Tensor::from_vec(moved.collect::<Vec<f64>>(), z.dims(), &Device::Cpu).unwrap()
        };
        let (z, new) = (codes(400, 3), codes(100, 4));
        let found = fit(&z, &with(&z), 8).unwrap();
        let predictions = predicted(&found, &new).to_vec2::<f32>().unwrap();
        let short = new.to_vec2::<f64>().unwrap().into_iter().zip(predictions).filter(|(z, _)| z[5] < -0.2);
        let near = short.map(|(_, predicted)| predicted[0] + 0.4).filter(|error| error.abs() < 0.2).count();
        assert!(near > 30, "{near}");
    }

    #[test]
    fn others_find_the_way_and_nothing_leads_back_to_them() {
        // Shaven faces, and stubble, which a beard replaces: column 0 is the length, column 4 tells stubble.
        let shaven = |seed| map(&codes(400, seed), |row| [-1., row[1], row[2], row[3], -1., row[5]]);
        let stubbly = |z: &Tensor| map(z, |row| [0., row[1], row[2], row[3], 1., row[5]]);
        let bearded = |z: &Tensor| map(z, |row| [2., row[1], row[2], row[3], -1., row[5]]);
        let (z, new) = (shaven(1), shaven(2));
        let with = bearded(&z);
        let numbers: Vec<u32> = (0..400).step_by(2).collect();
        let stubble = stubbly(&z.index_select(&Tensor::new(&numbers[..], &Device::Cpu).unwrap(), 0).unwrap());
        let fit = |codes: &Tensor, pairs: &[u32]| {
            let others = Some(OtherCodes { codes, pairs });
            let pairs = PairedCodes { without: &z, with: &with, others };
            fit_edit_direction(pairs, 8, 0, &mut || Ok::<_, Error>(()))
        };
        let found = fit(&stubble, &numbers).unwrap();
        for start in [new.clone(), stubbly(&new)] {
            let end = (start.to_dtype(DType::F32).unwrap() + predicted(&found, &start)).unwrap();
            assert!(mean_distance(&end, &bearded(&new)) < 0.03);
        }
        let new_with = bearded(&new);
        let back = (new_with.to_dtype(DType::F32).unwrap() - predicted(&found, &new_with)).unwrap();
        assert!(mean_distance(&back, &new) < 0.03);
        // The unit of strengths stays that of the pairs.
        assert!(mean_distance(found.mean(), &(&new_with - &new).unwrap().mean(0).unwrap()) < 0.03);
        let refused = |codes: &Tensor, pairs: &[u32]| fit(codes, pairs).unwrap_err().to_string();
        assert!(refused(&stubble, &numbers[1..]).contains("[200, 6], expected [199, 6]"));
        assert!(refused(&codes(1, 1), &[400]).contains("pair 400, expected below 400"));
    }

    #[test]
    fn samples_of_a_held_out_pair_are_not_fitted_to() {
        let (without, with, others) = (codes(10, 1), codes(10, 2), codes(2, 3));
        let others = Some(OtherCodes { codes: &others, pairs: &[5, 6] });
        let pairs = Pairs::new(PairedCodes { without: &without, with: &with, others }).unwrap();
        let [held_out, fitted] = [pairs.samples(|pair| pair == 5), pairs.samples(|pair| pair != 5)].map(Result::unwrap);
        assert_eq!((held_out.codes.dims(), fitted.codes.dims()), (&[3, WIDTH][..], &[19, WIDTH][..]));
        // From each code its difference leads to the picture with the attribute, or ends there.
        let ends = (&held_out.codes + &held_out.differences).unwrap();
        let with = with.get(5).unwrap();
        assert!([0, 2].iter().all(|&row| mean_distance(&ends.get(row).unwrap(), &with) < 1e-6));
        assert!(mean_distance(&held_out.codes.get(1).unwrap(), &with) < 1e-6);
    }

    #[test]
    fn chance_bends_nothing() {
        let (z, noise) = (codes(40, 1), codes(40, 2));
        let with = ((&z + 1.).unwrap() + (noise * 0.1).unwrap()).unwrap();
        let found = fit(&z, &with, 4).unwrap();
        let bend = (predicted(&found, &z) - found.mean().broadcast_as(z.dims()).unwrap()).unwrap();
        assert!(bend.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 0.1);
        let fixed = fit(&z, &with, 0).unwrap();
        assert_eq!(fixed.num_units(), 0);
        let mean = (&with - &z).unwrap().mean(0).unwrap();
        assert!(mean_distance(fixed.mean(), &mean) < 1e-6);
    }

    #[test]
    fn a_fit_can_be_stopped() {
        let z = codes(10, 1);
        let mut calls = 0;
        let pairs = PairedCodes { without: &z, with: &bearded(&z), others: None };
        let stopped = fit_edit_direction(pairs, 2, 0, &mut || {
            calls += 1;
            if calls < 3 { Ok(()) } else { Err(Error::Pairs { problem: "enough".to_owned() }) }
        });
        assert!(stopped.unwrap_err().to_string().contains("enough") && calls == 3);
    }

    #[test]
    fn what_are_no_pairs_is_refused() {
        let z = codes(4, 1);
        let message = |without: &Tensor, with: &Tensor| fit(without, with, 2).unwrap_err().to_string();
        assert!(message(&z, &codes(3, 1)).contains("[3, 6], those without [4, 6]"));
        assert!(message(&z, &z).contains("the same codes"));
        assert!(message(&codes(1, 1), &codes(1, 2)).contains("at least 2"));
        assert!(message(&z, &(&z / 0.).unwrap()).contains("finite"));
    }
}
