//! Estimates of the remaining time, from the arithmetic of each kind of call and the time taken so far.

use std::time::Duration;

/// Time of the first call of a network relative to that of later calls.
const SLOWNESS_OF_FIRST: f64 = 1.35;

/// Calls of one kind that a command makes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlannedCalls {
    /// Calls times pictures.
    pub(crate) count: usize,
    /// Cost of a call for one picture relative to other kinds, in any unit.
    pub(crate) cost: f64,
}

/// Estimates the remaining time. Clocks are read by the caller: `now` is the time since the start.
#[derive(Debug, Clone)]
pub(crate) struct Estimator {
    kinds: Vec<Kind>,
    last: Duration,
    last_call: Option<(usize, f64)>,
    fraction: f64,
}

#[derive(Debug, Clone)]
struct Kind {
    planned: f64,
    cost: f64,
    done: f64,
    /// The first call, which packs weights and allocates memory; it counts only while there is no other.
    first: Measured,
    others: Measured,
}

#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    count: f64,
    secs: f64,
}

impl Measured {
    fn add(&mut self, count: f64, secs: f64) {
        self.count += count;
        self.secs += secs;
    }
}

impl Kind {
    fn measured(&self) -> Option<Measured> {
        let first = Measured { secs: self.first.secs / SLOWNESS_OF_FIRST, ..self.first };
        [self.others, first].into_iter().find(|measured| measured.count > 0.)
    }
}

impl Estimator {
    /// Starts with no call done.
    pub(crate) fn new(planned: &[PlannedCalls]) -> Self {
        let kind = |planned: &PlannedCalls| Kind {
            planned: planned.count as f64,
            cost: planned.cost,
            done: 0.,
            first: Measured::default(),
            others: Measured::default(),
        };
        Self { kinds: planned.iter().map(kind).collect(), last: Duration::ZERO, last_call: None, fraction: 0. }
    }

    /// Notes that a call of a kind for `count` pictures has ended.
    pub(crate) fn note(&mut self, kind_idx: usize, count: usize, now: Duration) {
        let secs = now.saturating_sub(self.last).as_secs_f64();
        self.last = now;
        let Some(kind) = self.kinds.get_mut(kind_idx) else { return };
        let count = count as f64;
        kind.done += count;
        if kind.first.count > 0. {
            kind.others.add(count, secs);
        } else {
            kind.first.add(count, secs);
        }
        self.last_call = Some((kind_idx, count));
        let (done, all) = (self.secs_of(|kind| kind.done), self.secs_of(|kind| kind.planned.max(kind.done)));
        if let Some((done, all)) = done.zip(all) {
            self.fraction = self.fraction.max(done / all.max(f64::MIN_POSITIVE)).min(1.);
        }
    }

    /// Returns the share of the work that is done, in `[0, 1]`; never falls.
    pub(crate) fn fraction(&self) -> f64 {
        self.fraction
    }

    /// Returns the remaining time; `None` before the first call has ended.
    pub(crate) fn remaining(&self, now: Duration) -> Option<Duration> {
        let left = self.secs_of(|kind| (kind.planned - kind.done).max(0.))?;
        let (kind_idx, count) = self.last_call?;
        // A part of the call that is running is done.
        let call = self.secs_each(kind_idx)? * count;
        let running = now.saturating_sub(self.last).as_secs_f64().min(call);
        Duration::try_from_secs_f64((left - running).max(0.)).ok()
    }

    /// Returns the time of `count` calls of each kind.
    fn secs_of(&self, count: impl Fn(&Kind) -> f64) -> Option<f64> {
        let of = |idx: usize| Some(count(&self.kinds[idx]) * self.secs_each(idx)?);
        (0..self.kinds.len()).map(of).sum()
    }

    /// Returns the time of a call for one picture: as measured, or from its cost at the speed measured of other kinds.
    fn secs_each(&self, kind_idx: usize) -> Option<f64> {
        let kind = self.kinds.get(kind_idx)?;
        if let Some(Measured { count, secs }) = kind.measured() {
            return Some(secs / count);
        }
        let (mut secs, mut cost) = (0., 0.);
        for kind in &self.kinds {
            if let Some(measured) = kind.measured() {
                secs += measured.secs;
                cost += measured.count * kind.cost;
            }
        }
        (cost > 0.).then(|| kind.cost * secs / cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENCODER: usize = 0;
    const DECODER: usize = 1;
    const LATENT_NET: usize = 2;
    /// Costs of the built-in model, in millions of multiply-adds; those of the latent net times their slowness.
    const COSTS: [f64; 3] = [92.8, 902.6, 0.413 * 6.5];

    /// Calls of one kind in a row: the first, and the others.
    struct Calls {
        kind_idx: usize,
        /// Pictures in each.
        count: usize,
        repeats: usize,
        first_secs: f64,
        other_secs: f64,
    }

    /// Replays calls by a simulated clock, and checks the remaining time at the end of each call and in its middle,
    /// once a tenth of the work is done.
    fn check(costs: [f64; 3], all: &[Calls]) {
        let mut planned = costs.map(|cost| PlannedCalls { count: 0, cost });
        let mut durations = vec![];
        for calls in all {
            planned[calls.kind_idx].count += calls.count * calls.repeats;
            let secs = |call: usize| if call == 0 { calls.first_secs } else { calls.other_secs * jitter(call) };
            durations.extend((0..calls.repeats).map(|call| (calls.kind_idx, calls.count, secs(call))));
        }
        let total: f64 = durations.iter().map(|(_, _, secs)| secs).sum();
        let (mut estimator, mut now, mut fraction) = (Estimator::new(&planned), 0., 0.);
        for (kind_idx, count, secs) in durations {
            if now > 0.1 * total {
                near(&estimator, now + 0.5 * secs, total);
            }
            now += secs;
            estimator.note(kind_idx, count, Duration::from_secs_f64(now));
            assert!(estimator.fraction() >= fraction, "{} after {fraction}", estimator.fraction());
            fraction = estimator.fraction();
            if now > 0.1 * total {
                near(&estimator, now, total);
                assert!((fraction - now / total).abs() < 0.1, "{fraction} at {}", now / total);
            }
        }
        assert!(fraction > 0.999, "{fraction}");
    }

    fn near(estimator: &Estimator, now: f64, total: f64) {
        let (got, truth) = (estimator.remaining(Duration::from_secs_f64(now)).unwrap().as_secs_f64(), total - now);
        assert!((got - truth).abs() <= 0.3 * truth + 0.02 * total, "{got} s left after {now} s, in truth {truth} s");
    }

    #[test]
    fn the_rest_is_known_to_a_third_from_a_tenth_of_the_way_on() {
        // `sample --model toonheads -n 2`, on a busy machine.
        let latent = Calls { kind_idx: LATENT_NET, count: 2, repeats: 200, first_secs: 0.0012, other_secs: 0.0009 };
        let decode = Calls { kind_idx: DECODER, count: 2, repeats: 20, first_secs: 0.341, other_secs: 0.251 };
        check(COSTS, &[latent, decode]);
        // `interpolate --model toonheads --frames 6 --invert-steps 50`.
        let encode = Calls { kind_idx: ENCODER, count: 2, repeats: 1, first_secs: 0.0996, other_secs: 0. };
        let invert = Calls { kind_idx: DECODER, count: 2, repeats: 50, first_secs: 0.342, other_secs: 0.258 };
        let decode = Calls { kind_idx: DECODER, count: 6, repeats: 20, first_secs: 0.765, other_secs: 0.738 };
        check(COSTS, &[encode, invert, decode]);
        // Costs that are wrong by three do no harm once calls were timed.
        let latent = Calls { kind_idx: LATENT_NET, count: 8, repeats: 200, first_secs: 0.003, other_secs: 0.008 };
        let decode = Calls { kind_idx: DECODER, count: 8, repeats: 250, first_secs: 4.4, other_secs: 3.27 };
        check([COSTS[0], 3. * COSTS[1], COSTS[2]], &[latent, decode]);
    }

    /// Returns a small deterministic variation of the time of a call.
    fn jitter(call: usize) -> f64 {
        1. + 0.15 * ((call * 7919 % 13) as f64 / 6. - 1.)
    }
}
