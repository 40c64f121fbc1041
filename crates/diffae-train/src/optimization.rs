//! Optimizer steps: forward and backward passes of micro-batches, here and in other processes, and the update that ends them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use candle_core::{Device, Tensor, TensorId};
use diffae_kernels::{ActivationStorage, Gradients, StatePart, differentiable, record_with, run_in_pool};
use diffae_nets::BatchMoments;

use crate::checkpoint::{Checkpoints, Progress};
use crate::collective::{Collective, Group, Reduction, garbled};
use crate::config::StageSettings;
use crate::error::{Error, Result};
use crate::loss_scale::LossScale;
use crate::parameters::{GRADIENT_NORM, Measured, Norms, Parameters, Part, require_finite};
use crate::part_report::PartReport;
use crate::reduce::{Delivery, Event, Share, sum_up};
use crate::sharding::{Destination, Shards};

/// Maximum number of gradients of parameters that wait for the exchange; a computation that is ahead of it waits, too.
const MAX_WAITING: usize = 64;

/// Parameters with their optimizer state, and the number of steps made: all that a checkpoint holds.
#[derive(Debug)]
pub(crate) struct TrainState {
    pub(crate) parameters: Parameters,
    /// Number of optimizer steps made.
    pub(crate) step: usize,
    /// Scale of the loss; `None` for number types that need none.
    loss_scale: Option<LossScale>,
    /// Whether a gradient of this step has overflowed, so that some parameters were not updated.
    has_overflowed: bool,
    /// The division of the optimizer state, if other processes hold some of it.
    shards: Option<Shards>,
}

/// The backward passes of a micro-batch.
pub(crate) struct Backpropagation<'a> {
    step: usize,
    /// Factor of the gradients.
    loss_scale: f64,
    to: To<'a>,
    /// Bytes of activations saved for the last backward pass.
    pub(crate) activation_bytes: usize,
}

/// Destination of the gradients of a micro-batch.
enum To<'a> {
    /// Kept, and added up.
    Here(Gradients),
    /// Sent away one by one, each as soon as it is complete.
    Away(&'a mut (dyn FnMut(TensorId, Tensor) + Send)),
}

/// Gradients and reports of all micro-batches of a step.
#[derive(Default)]
pub(crate) struct Accumulated {
    pub(crate) gradients: Gradients,
    /// Reports, by micro-batch.
    pub(crate) reports: Vec<PartReport>,
}

/// The outcome of one optimizer step, as the training loop logs it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stepped {
    /// Loss before the step.
    pub(crate) loss: f64,
    /// Norm of the gradient before clipping; not finite if the step was skipped.
    pub(crate) grad_norm: f64,
    /// Number of samples in the batch.
    pub(crate) num_samples: usize,
    /// Scale of the loss in the backward pass; `None` if it has none.
    pub(crate) loss_scale: Option<LossScale>,
}

impl TrainState {
    /// Starts at step 0.
    pub(crate) fn new(parameters: Parameters) -> Self {
        let loss_scale = LossScale::first(parameters.dtype());
        Self { parameters, step: 0, loss_scale, has_overflowed: false, shards: None }
    }

    /// Returns the scale of the loss of the next step; `None` if it has none.
    pub(crate) fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }

    /// Counts a step whose parts have been updated.
    pub(crate) fn count_step(&mut self) {
        self.step += 1;
        let has_overflowed = std::mem::take(&mut self.has_overflowed);
        let next = if has_overflowed { LossScale::after_overflow } else { LossScale::after_step };
        self.loss_scale = self.loss_scale.map(next);
    }

    /// Returns the device of the parameters.
    pub(crate) fn device(&self) -> &Device {
        self.parameters.device()
    }

    /// Makes one optimizer step on a loss of `num_samples` samples, which is the mean of the losses of `num_parts`
    /// micro-batches; `forward` is recorded, for each of them.
    ///
    /// # Errors
    /// [`Error::Diverged`] if the loss or the gradient is not finite; as `forward`.
    pub(crate) fn minimize(
        &mut self,
        (settings, group): (&StageSettings, &mut Group),
        (num_samples, num_parts): (usize, usize),
        forward: impl Fn(usize) -> Result<Tensor> + Send + Sync,
    ) -> Result<Stepped> {
        let loss_scale = self.loss_scale;
        let mut part = |part: usize, to: &mut Backpropagation<'_>| {
            let (loss, ()) = to.add(ActivationStorage::F32, || Ok((share_of(&forward(part)?, num_parts)?, ())))?;
            Ok(PartReport { loss, ..PartReport::default() })
        };
        let accumulated = self.accumulate(group, num_parts, &mut part)?;
        let (mut loss, mut grad_norm) = (0., 0.);
        if let Some(Accumulated { gradients, reports }) = accumulated {
            loss = reports.iter().map(|report| report.loss).sum();
            let device = self.device().clone();
            grad_norm = run_in_pool(&device, || self.update(group, &[Part::Model], &gradients, settings))?.whole;
        }
        self.count_step();
        Ok(Stepped { loss, grad_norm, num_samples, loss_scale })
    }

    /// Computes the micro-batches of this process, and sums up the gradients of all in the order of the micro-batches; `None`
    /// if there are none for this process. Where the optimizer state is divided, gradients are those of what is held here.
    ///
    /// # Errors
    /// That of `compute`; [`Error::Elsewhere`] if it has failed in another process; as
    /// [`Collective::exchange`](crate::Collective::exchange).
    pub(crate) fn accumulate(
        &self,
        group: &mut Group,
        num_parts: usize,
        compute: &mut Compute<'_>,
    ) -> Result<Option<Accumulated>> {
        let share = Share::new((group.rank(), group.size()), num_parts);
        if share.len() == 0 {
            return Ok(None);
        }
        let at = (self.progress(), self.device());
        if share.count == 1 {
            let (reports, gradients) = all_here(at, (share, &AtomicBool::new(true)), compute)?;
            return Ok(Some(Accumulated { gradients, reports }));
        }
        let (collective, reduction, device) = (&mut *group.collective, group.reduction, self.device());
        let plan = self.parameters.plan(share.count);
        let delivery = if self.shards.is_some() { Delivery::Owners } else { Delivery::All };
        let (events, incoming) = sync_channel(MAX_WAITING);
        let is_wanted = AtomicBool::new(true);
        let (outcome, sums) = thread::scope(|scope| {
            let exchange = scope.spawn(|| {
                let sums = sum_up(&mut *collective, (&plan, share), (reduction, delivery, device), incoming);
                // When another process is lost, no further micro-batch is begun.
                is_wanted.store(sums.is_ok(), Ordering::Relaxed);
                sums
            });
            let outcome = compute_all(at, (share, reduction), (&events, &is_wanted), compute);
            // Without it the exchange does not wait for gradients that a failure has prevented.
            drop(events);
            (outcome, exchange.join())
        });
        let gradients = sums.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let reports = PartReport::gather(collective, share, outcome)?;
        Ok(Some(Accumulated { gradients, reports }))
    }

    /// Clips the gradients and updates parts of the parameters; returns the norms of the first part. The step is not counted yet.
    /// Where the loss is scaled and a gradient is not finite, all stays as it is, and so is the norm that is returned not finite.
    ///
    /// # Errors
    /// [`Error::Diverged`] if a gradient is not finite and the loss is not scaled, or cannot be scaled less; as
    /// [`Collective::exchange`](crate::Collective::exchange).
    pub(crate) fn update(
        &mut self,
        group: &mut Group,
        parts: &[Part],
        gradients: &Gradients,
        settings: &StageSettings,
    ) -> Result<Norms> {
        let (step, collective) = (self.step, &mut *group.collective);
        let scaled = (gradients, self.loss_scale.map_or(1., LossScale::factor));
        let measure = |&part: &Part| match &self.shards {
            None => self.parameters.measured(part, scaled),
            Some(shards) => self.parameters.measured_in_shards((shards, &mut *collective), part, scaled),
        };
        let measured = parts.iter().map(measure).collect::<Result<Vec<Measured>>>()?;
        // All processes have the same norms, and skip the same steps.
        let overflowed = measured.iter().map(|of_part| of_part.norms).find(|norms| !norms.whole.is_finite());
        if let Some(norms) = overflowed {
            if !self.loss_scale.is_some_and(LossScale::can_fall) {
                require_finite(GRADIENT_NORM, norms.whole, step)?;
            }
            self.has_overflowed = true;
            return Ok(norms);
        }
        let step_idx = step - self.loss_scale.map_or(0, LossScale::skipped).min(step);
        for of_part in &measured {
            self.parameters.apply(of_part, scaled, settings, (step, step_idx))?;
            if let Some(shards) = &self.shards {
                self.parameters.share_updated((shards, &mut *group.collective), of_part)?;
            }
        }
        measured.first().map(|first| first.norms).ok_or_else(garbled)
    }

    /// Moves running statistics by those of a batch.
    pub(crate) fn move_statistics(&mut self, moments: &[BatchMoments]) -> Result<()> {
        moments.iter().try_for_each(|moments| self.parameters.move_statistics(moments))
    }

    /// Gives the state of the first process of a group to all, or to each the part that it is to hold; steps will have so many
    /// micro-batches.
    pub(crate) fn share(&mut self, group: &mut Group, num_parts: usize) -> Result<()> {
        if group.size() == 1 {
            return Ok(());
        }
        // Gradients of scaled losses and of others would be added up.
        group.check_same("a number type", self.parameters.dtype().as_str())?;
        let share = Share::new((group.rank(), group.size()), num_parts);
        let is_divided = group.shards_state && share.count > 1 && share.len() > 0;
        self.shards = is_divided.then(|| Shards::new(share.rank, self.parameters.plan(share.count)));
        let progress = serde_json::to_vec(&self.progress()).ok().ok_or_else(garbled)?;
        let progress = group.collective.broadcast(&progress)?;
        self.go_on_from(serde_json::from_slice(&progress).ok().ok_or_else(garbled)?);
        if !group.is_first() {
            self.keep_held()?;
        }
        self.parameters.share(&mut *group.collective)?;
        self.keep_held()
    }

    /// Makes some of the state complete in the first process, where other processes hold parts of it.
    pub(crate) fn gather_in_first(&mut self, group: &mut Group, parts: &[StatePart]) -> Result<()> {
        self.gather(group, (Destination::First, parts))
    }

    /// Makes the averages complete in all processes, at the end of a stage.
    pub(crate) fn gather_averages(&mut self, group: &mut Group) -> Result<()> {
        self.gather(group, (Destination::All, &[StatePart::Average]))
    }

    fn gather(&mut self, group: &mut Group, what: (Destination, &[StatePart])) -> Result<()> {
        let Some(shards) = &self.shards else { return Ok(()) };
        let collective: &mut dyn Collective = &mut *group.collective;
        self.parameters.gather((shards, collective), what)
    }

    /// Drops the state that other processes hold.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn keep_held(&mut self) -> Result<()> {
        self.shards.as_ref().map_or(Ok(()), |shards| self.parameters.keep_held(shards))
    }

    /// Loads the newest whole checkpoint.
    pub(crate) fn load_newest(&mut self, checkpoints: &Checkpoints) -> Result<()> {
        let progress = checkpoints.load_newest(&mut self.parameters)?;
        self.go_on_from(progress);
        Ok(())
    }

    /// Saves a checkpoint.
    pub(crate) fn save(&self, checkpoints: &Checkpoints) -> Result<()> {
        checkpoints.save(&self.parameters, self.progress())
    }

    fn progress(&self) -> Progress {
        Progress { step: self.step, loss_scale: self.loss_scale }
    }

    /// Goes on from a checkpoint, perhaps of another number type.
    fn go_on_from(&mut self, Progress { step, loss_scale }: Progress) {
        self.step = step;
        self.loss_scale = self.loss_scale.map(|first| loss_scale.unwrap_or(first));
    }
}

/// Runs forward and backward passes of a micro-batch.
pub(crate) type Compute<'a> = dyn FnMut(usize, &mut Backpropagation<'_>) -> Result<PartReport> + Send + 'a;

/// Computes a micro-batch, and returns the gradients that stay here.
fn computed(
    (progress, device): (Progress, &Device),
    part: usize,
    to: To<'_>,
    compute: &mut Compute<'_>,
) -> Result<(PartReport, Gradients)> {
    // The tape belongs to the thread that records it, so a whole micro-batch runs on one of the pool.
    run_in_pool(device, || {
        let Progress { step, loss_scale } = progress;
        let loss_scale = loss_scale.map_or(1., LossScale::factor);
        let mut to = Backpropagation { step, loss_scale, to, activation_bytes: 0 };
        let report = compute(part, &mut to)?;
        Ok((report, if let To::Here(gradients) = to.to { gradients } else { Gradients::default() }))
    })
}

/// Computes the micro-batches of a process, as long as they are wanted, and adds up their gradients.
fn all_here(
    at: (Progress, &Device),
    (share, is_wanted): (Share, &AtomicBool),
    compute: &mut Compute<'_>,
) -> Result<(Vec<PartReport>, Gradients)> {
    let (mut reports, mut sum) = (vec![], Gradients::default());
    for part in share.parts().take_while(|_| is_wanted.load(Ordering::Relaxed)) {
        let (report, gradients) = computed(at, part, To::Here(Gradients::default()), compute)?;
        reports.push(report);
        run_in_pool(at.1, || sum.absorb(gradients))?;
    }
    Ok((reports, sum))
}

/// Computes the micro-batches of a process, whose gradients leave for the exchange, as long as it wants them.
fn compute_all(
    at: (Progress, &Device),
    (share, reduction): (Share, Reduction),
    (events, is_wanted): (&SyncSender<Event>, &AtomicBool),
    compute: &mut Compute<'_>,
) -> Result<Vec<PartReport>> {
    // An exchange that has failed receives nothing any more.
    let send = |event| drop(events.send(event));
    match reduction {
        Reduction::Fast => {
            let (reports, sum) = all_here(at, (share, is_wanted), compute)?;
            sum.into_iter().for_each(|(id, gradient)| send(Event::Gradient(id, gradient)));
            send(Event::End);
            Ok(reports)
        }
        Reduction::Ordered => {
            let part = |part| {
                let mut leave = |id, gradient| send(Event::Gradient(id, gradient));
                let (report, _) = computed(at, part, To::Away(&mut leave), compute)?;
                send(Event::End);
                Ok(report)
            };
            share.parts().take_while(|_| is_wanted.load(Ordering::Relaxed)).map(part).collect()
        }
    }
}

/// Scales the loss of a micro-batch, so that the losses of all add up to a mean.
pub(crate) fn share_of(loss: &Tensor, num_parts: usize) -> Result<Tensor> {
    scaled_by(1. / num_parts as f64, loss)
}

/// Multiplies a loss.
#[expect(clippy::float_cmp, reason = "1 is exact")]
fn scaled_by(factor: f64, loss: &Tensor) -> Result<Tensor> {
    if factor == 1. {
        return Ok(loss.clone());
    }
    Ok(differentiable([loss], |[loss]| loss * factor)?)
}

impl Backpropagation<'_> {
    /// Records `forward`, whose first result is a scalar loss, and runs the backward pass of that loss, which it returns; gradients
    /// are those of the scaled loss.
    ///
    /// # Errors
    /// [`Error::Diverged`] if the loss is not finite; as `forward`.
    pub(crate) fn add<T>(
        &mut self,
        storage: ActivationStorage,
        forward: impl FnOnce() -> Result<(Tensor, T)>,
    ) -> Result<(f64, T)> {
        let ((loss, scaled, rest), tape) = record_with(storage, || {
            let (loss, rest) = forward()?;
            Ok::<_, Error>((loss.clone(), scaled_by(self.loss_scale, &loss)?, rest))
        })?;
        // A card computes the backward pass while the host waits for the loss.
        let is_read_first = loss.device().is_cpu();
        let read = |loss: &Tensor| {
            let value = f64::from(loss.to_scalar::<f32>()?);
            require_finite("loss", value, self.step).map(|()| value)
        };
        let early = if is_read_first { Some(read(&loss)?) } else { None };
        self.activation_bytes = tape.num_kept_bytes();
        match &mut self.to {
            To::Here(gradients) => tape.backward(&scaled, gradients)?,
            To::Away(leave) => tape.backward_with(&scaled, leave)?,
        }
        Ok((early.map_or_else(|| read(&loss), Ok)?, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    use candle_core::DType;
    use candle_nn::{Init, VarBuilder};

    use crate::compute::Compute;

    #[test]
    fn gradients_that_overflow_at_any_scale_end_the_training() {
        let build = |vb: &VarBuilder<'_>| Ok(vb.get_with_hints(2, "unet.weight", Init::Const(0.))?);
        let compute = Compute { device: Device::Cpu, dtype: DType::F16 };
        let (weight, parameters) = Parameters::build((1, compute), HashMap::new(), build).unwrap();
        let settings = crate::presets::config("smoke", &[]).unwrap().autoencoder;
        let mut state = TrainState::new(parameters);
        // The loss is finite, its gradient infinite.
        let mut step = || {
            let loss = |_| Ok(differentiable([&weight], |[weight]| weight.sqrt()?.sum_all())?);
            let stepped = state.minimize((&settings, &mut Group::alone()), (1, 1), loss);
            (stepped, state.step, state.loss_scale().map(LossScale::factor))
        };
        for number in 1..=16 {
            let (stepped, steps, scale) = step();
            assert!(!stepped.unwrap().grad_norm.is_finite());
            assert_eq!((steps, scale), (number, Some(2f64.powi(16 - i32::try_from(number).unwrap()))));
        }
        let error = step().0.unwrap_err().to_string();
        assert!(error.contains("norm of the gradient is inf at step 16"), "{error}");
        assert_eq!(state.parameters.current().unwrap()["unet.weight"].to_vec1::<f32>().unwrap(), [0., 0.]);
    }

    #[test]
    fn a_run_may_change_its_number_type() {
        let build = |vb: &VarBuilder<'_>| Ok(vb.get_with_hints(1, "unet.weight", Init::Const(0.))?);
        let fallen = LossScale::first(DType::F16).map(LossScale::after_overflow);
        let after = |dtype: DType, loss_scale: Option<LossScale>| {
            let compute = Compute { device: Device::Cpu, dtype };
            let mut state = TrainState::new(Parameters::build((1, compute), HashMap::new(), build).unwrap().1);
            state.go_on_from(Progress { step: 3, loss_scale });
            (state.step, state.loss_scale().map(LossScale::factor))
        };
        assert_eq!(after(DType::F16, fallen), (3, Some(32768.)));
        assert_eq!(after(DType::F16, None), (3, Some(65536.)));
        assert_eq!(after(DType::F32, fallen), (3, None));
    }
}
