//! How long work will take: by what each kind of call costs in arithmetic, and by what it has taken so far.

use std::time::Duration;

/// Calls of one kind that a command makes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlannedCalls {
    /// Calls times pictures.
    pub(crate) count: usize,
    /// What a call for one picture costs against those of other kinds, in any unit.
    pub(crate) cost: f64,
}

/// Estimates the time that is left. Clocks are read by the caller: `now` is the time since the start.
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
    /// The first call packs weights and finds memory; it is taken for typical only while there is no other.
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
        [self.others, self.first].into_iter().find(|measured| measured.count > 0.)
    }
}

impl Estimator {
    /// Nothing is done yet.
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
            kind.others.add(count, secs)
        } else {
            kind.first.add(count, secs)
        }
        self.last_call = Some((kind_idx, count));
        let (done, all) = (self.secs_of(|kind| kind.done), self.secs_of(|kind| kind.planned.max(kind.done)));
        if let Some((done, all)) = done.zip(all) {
            self.fraction = self.fraction.max(done / all.max(f64::MIN_POSITIVE)).min(1.);
        }
    }

    /// How much is done, in `[0, 1]`; never falls.
    pub(crate) fn fraction(&self) -> f64 {
        self.fraction
    }

    /// The time that is left; nothing before the first call has ended.
    pub(crate) fn remaining(&self, now: Duration) -> Option<Duration> {
        let left = self.secs_of(|kind| (kind.planned - kind.done).max(0.))?;
        let (kind_idx, count) = self.last_call?;
        // A part of the call that is running is done.
        let call = self.secs_each(kind_idx)? * count;
        let running = now.saturating_sub(self.last).as_secs_f64().min(call);
        Duration::try_from_secs_f64((left - running).max(0.)).ok()
    }

    /// The time of `count` calls of each kind.
    fn secs_of(&self, count: impl Fn(&Kind) -> f64) -> Option<f64> {
        let of = |idx: usize| Some(count(&self.kinds[idx]) * self.secs_each(idx)?);
        (0..self.kinds.len()).map(of).sum()
    }

    /// The time of a call for one picture: as measured, or by its cost at the speed that was measured of others.
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
