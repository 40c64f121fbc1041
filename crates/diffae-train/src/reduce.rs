//! Sums of the gradients of micro-batches that several processes have computed.
//!
//! Micro-batch m of a step belongs to process m mod n. A round is one micro-batch of each process. In a round each process
//! sends every other one the pieces of the gradients that the other owns, and the owner adds what it gets in the order of
//! the micro-batches: so a sum has the same bits as if one process had computed all. After the last round owners send their
//! sums to all. Gradients travel in buckets, in the order in which a backward pass completes them, while it is still at work.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use candle_core::{Device, Tensor, TensorId};
use diffae_kernels::Gradients;

use crate::collective::{Collective, Reduction, add_bytes, bytes_of, floats_of, garbled};
use crate::error::Result;

/// Least number of values in a bucket, unless all parameters have fewer: 8 MiB.
const MIN_BUCKET_LEN: usize = 1 << 21;
/// Least number of blocks in a bucket for each process, so that all own about as much of it.
const MIN_OWNED_BLOCKS: usize = 2;
/// Number of values in a block, which is not divided among owners: a sum of squares adds blocks of as many.
const BLOCK_LEN: usize = diffae_kernels::SQUARES_BLOCK;

/// Time between two looks at whether another process is lost, while a gradient is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The micro-batches of a step that a process computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) rank: usize,
    /// Number of processes that compute.
    pub(crate) count: usize,
    /// Number of micro-batches of a step.
    pub(crate) num_parts: usize,
}

impl Share {
    /// The share of a process of a group; those that there is no micro-batch for are not counted.
    pub(crate) fn new((rank, size): (usize, usize), num_parts: usize) -> Self {
        Self { rank, count: size.min(num_parts), num_parts }
    }

    /// Returns the micro-batches of this process.
    pub(crate) fn parts(self) -> impl Iterator<Item = usize> + Clone {
        // One that there is no micro-batch for has a rank that is not below their number.
        (self.rank..self.num_parts).step_by(self.count.max(1))
    }

    /// Returns the number of micro-batches of this process in each step.
    pub(crate) fn len(self) -> usize {
        self.parts().count()
    }

    /// Returns the step and the micro-batch of the n-th of all micro-batches that this process ever computes.
    pub(crate) fn nth(self, n: usize) -> (usize, usize) {
        let len = self.len().max(1);
        (n.checked_div(len).unwrap_or(0), self.rank + n % len * self.count)
    }
}

/// A parameter whose gradients are summed up.
#[derive(Debug, Clone)]
pub(crate) struct Summand {
    pub(crate) id: TensorId,
    pub(crate) shape: Vec<usize>,
}

impl Summand {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A part of a parameter, which one process owns.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    /// Place of the parameter in the bucket.
    param: usize,
    range: Range<usize>,
}

/// Parameters whose gradients travel together.
#[derive(Debug)]
struct Bucket {
    params: Vec<Summand>,
    /// Pieces of each owner.
    owned: Vec<Vec<Piece>>,
}

/// The way in which gradients travel.
#[derive(Debug)]
pub(crate) struct Plan {
    buckets: Vec<Bucket>,
    ids: HashSet<TensorId>,
    num_owners: usize,
}

/// Processes that get the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Every process gets all, in the shapes of the parameters.
    All,
    /// Every process gets the pieces that it owns, one for each parameter, `[n]`.
    Owners,
}

impl Plan {
    /// Plans sums of the gradients of some parameters, in the order in which they are likely completed.
    pub(crate) fn new(params: impl IntoIterator<Item = Summand>, count: usize) -> Self {
        let mut buckets: Vec<Vec<Summand>> = vec![];
        let mut ids = HashSet::new();
        let bucket_len = bucket_len(count);
        let mut filled = bucket_len;
        for param in params {
            ids.insert(param.id);
            if filled >= bucket_len {
                filled = 0;
                buckets.push(vec![]);
            }
            filled += param.len();
            if let Some(last) = buckets.last_mut() {
                last.push(param);
            }
        }
        let buckets = buckets.into_iter().map(|params| Bucket::new(params, count)).collect();
        Self { buckets, ids, num_owners: count }
    }

    /// Returns whether gradients of a parameter are summed up.
    pub(crate) fn has(&self, id: TensorId) -> bool {
        self.ids.contains(&id)
    }

    /// Returns the number of processes that own sums.
    pub(crate) fn num_owners(&self) -> usize {
        self.num_owners
    }

    pub(crate) fn num_buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Returns the pieces of an owner in a bucket. An owner has one piece of a parameter at most; the pieces of all owners,
    /// one after the other, are the parameter.
    pub(crate) fn pieces(&self, bucket: usize, owner: usize) -> impl Iterator<Item = (TensorId, Range<usize>)> {
        let Bucket { params, owned } = &self.buckets[bucket];
        owned[owner].iter().map(|Piece { param, range }| (params[*param].id, range.clone()))
    }
}

/// Returns the number of values in a bucket that so many processes own.
fn bucket_len(num_owners: usize) -> usize {
    MIN_BUCKET_LEN.max(num_owners * MIN_OWNED_BLOCKS * BLOCK_LEN)
}

impl Bucket {
    /// Divides the blocks of all parameters evenly among the owners: each block goes to the one whose share its middle lies in.
    fn new(params: Vec<Summand>, count: usize) -> Self {
        let num_values: usize = params.iter().map(Summand::len).sum();
        let mut owned: Vec<Vec<Piece>> = vec![vec![]; count];
        let mut num_before = 0;
        for (param, summand) in params.iter().enumerate() {
            for start in (0..summand.len()).step_by(BLOCK_LEN) {
                let range = start..summand.len().min(start + BLOCK_LEN);
                let middle = num_before + range.len().div_ceil(2);
                let owner = &mut owned[(middle * count).checked_div(num_values + 1).unwrap_or(0)];
                num_before += range.len();
                match owner.last_mut() {
                    Some(last) if last.param == param => last.range.end = range.end,
                    _ => owner.push(Piece { param, range }),
                }
            }
        }
        Self { params, owned }
    }

    /// Writes the pieces of an owner: a byte for each parameter, whether it has a gradient, and the values of those that have.
    fn message(&self, owner: usize, gradients: &[Option<Vec<f32>>]) -> Vec<u8> {
        let mut message: Vec<u8> = gradients.iter().map(|gradient| u8::from(gradient.is_some())).collect();
        for Piece { param, range } in &self.owned[owner] {
            if let Some(gradient) = &gradients[*param] {
                message.extend(bytes_of(&gradient[range.clone()]));
            }
        }
        message
    }

    /// Reads a message of [`message`](Self::message): the bytes of each piece that has a gradient.
    fn pieces<'a>(&self, owner: usize, message: &'a [u8]) -> Result<Vec<Option<&'a [u8]>>> {
        let (present, mut rest) = message.split_at_checked(self.params.len()).ok_or_else(garbled)?;
        let pieces = self.owned[owner].iter().map(|piece| {
            if present[piece.param] == 0 {
                return Ok(None);
            }
            let (values, after) = rest.split_at_checked(piece.range.len() * size_of::<f32>()).ok_or_else(garbled)?;
            rest = after;
            Ok(Some(values))
        });
        let pieces = pieces.collect::<Result<Vec<_>>>()?;
        if rest.is_empty() { Ok(pieces) } else { Err(garbled()) }
    }
}

/// A message of the computation to the exchange.
pub(crate) enum Event {
    /// The gradient of a parameter is complete.
    Gradient(TensorId, Tensor),
    /// A micro-batch has no more gradients.
    End,
}

/// The gradients of a micro-batch that arrive from its computation.
struct Arriving {
    events: Receiver<Event>,
    /// Gradients that have come and are not taken yet.
    here: HashMap<TensorId, Tensor>,
    /// No more come in this micro-batch.
    has_ended: bool,
}

impl Arriving {
    /// Takes the gradients of some parameters, as soon as all have come or no more come; fails when another process is lost.
    fn take(&mut self, collective: &dyn Collective, params: &[Summand]) -> Result<Vec<Option<Vec<f32>>>> {
        while !self.has_ended && !params.iter().all(|param| self.here.contains_key(&param.id)) {
            match self.events.recv_timeout(LOOK_EVERY) {
                Ok(Event::Gradient(id, gradient)) => drop(self.here.insert(id, gradient)),
                Err(RecvTimeoutError::Timeout) => collective.check()?,
                // Without a sender the computation has failed: nothing comes any more.
                Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => self.has_ended = true,
            }
        }
        let mut values = |param: &Summand| -> Result<Option<Vec<f32>>> {
            let gradient = self.here.remove(&param.id);
            Ok(gradient.map(|gradient| gradient.flatten_all()?.to_vec1()).transpose()?)
        };
        params.iter().map(&mut values).collect()
    }

    /// Begins with the next micro-batch.
    fn next_part(&mut self) {
        while !self.has_ended {
            self.has_ended = !matches!(self.events.recv(), Ok(Event::Gradient(..)));
        }
        self.here.clear();
        self.has_ended = false;
    }
}

/// Sums up the gradients of all micro-batches of a step as they are computed, and returns the sums in each process, on its
/// device.
///
/// # Errors
/// As [`Collective::exchange`].
pub(crate) fn sum_up(
    collective: &mut dyn Collective,
    (plan, share): (&Plan, Share),
    (reduction, delivery, device): (Reduction, Delivery, &Device),
    events: Receiver<Event>,
) -> Result<Gradients> {
    let mut arriving = Arriving { events, here: HashMap::new(), has_ended: false };
    let mut sums = Gradients::default();
    if reduction == Reduction::Fast {
        for bucket in &plan.buckets {
            let own = arriving.take(collective, &bucket.params)?;
            let whole = bucket.sum(collective, share.count, own)?;
            match delivery {
                Delivery::All => bucket.insert(whole, device, &mut sums)?,
                Delivery::Owners => {
                    bucket.insert_owned(share.rank, bucket.cut(share.rank, &whole), device, &mut sums)?;
                }
            }
        }
        return Ok(sums);
    }
    let own_pieces = |bucket: &Bucket| vec![None; bucket.owned[share.rank].len()];
    let mut owned: Vec<Vec<Option<Vec<f32>>>> = plan.buckets.iter().map(own_pieces).collect();
    let num_rounds = share.num_parts.div_ceil(share.count);
    for round in 0..num_rounds {
        let in_round = share.count.min(share.num_parts - round * share.count);
        for (bucket, owned) in plan.buckets.iter().zip(&mut owned) {
            let gradients = if share.rank < in_round {
                arriving.take(collective, &bucket.params)?
            } else {
                vec![None; bucket.params.len()]
            };
            bucket.add(collective, share, (in_round, &gradients), owned)?;
            if round + 1 == num_rounds {
                let owned = std::mem::take(owned);
                match delivery {
                    Delivery::All => bucket.insert(bucket.hand_out(collective, share, owned)?, device, &mut sums)?,
                    Delivery::Owners => bucket.insert_owned(share.rank, owned, device, &mut sums)?,
                }
            }
        }
        arriving.next_part();
    }
    Ok(sums)
}

impl Bucket {
    /// Adds the pieces that this process owns, of the first `in_round` processes in their order.
    fn add(
        &self,
        collective: &mut dyn Collective,
        share: Share,
        (in_round, gradients): (usize, &[Option<Vec<f32>>]),
        owned: &mut [Option<Vec<f32>>],
    ) -> Result<()> {
        let outgoing: Vec<Vec<u8>> = (0..share.count).map(|owner| self.message(owner, gradients)).collect();
        let received = collective.exchange(&outgoing.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        for message in received.iter().take(in_round) {
            for (sum, piece) in owned.iter_mut().zip(self.pieces(share.rank, message)?) {
                match (sum, piece) {
                    (_, None) => {}
                    (Some(sum), Some(values)) => add_bytes(sum, values)?,
                    (sum, Some(values)) => *sum = Some(floats_of(values)?),
                }
            }
        }
        Ok(())
    }

    /// Gives the sums of each owner to all.
    fn hand_out(
        &self,
        collective: &mut dyn Collective,
        share: Share,
        owned: Vec<Option<Vec<f32>>>,
    ) -> Result<Vec<Option<Vec<f32>>>> {
        let mut message = vec![];
        for sum in owned {
            message.push(u8::from(sum.is_some()));
            message.extend(sum.map(|sum| bytes_of(&sum)).unwrap_or_default());
        }
        let received = collective.gather(share.count, &message)?;
        let mut whole: Vec<Option<Vec<f32>>> = vec![None; self.params.len()];
        for (pieces, mut rest) in self.owned.iter().zip(received.iter().map(Vec::as_slice)) {
            for Piece { param, range } in pieces {
                let (is_there, after) = rest.split_first().ok_or_else(garbled)?;
                rest = after;
                if *is_there == 1 {
                    let (values, after) = rest.split_at_checked(range.len() * size_of::<f32>()).ok_or_else(garbled)?;
                    rest = after;
                    let to = whole[*param].get_or_insert_with(|| vec![0.; self.params[*param].len()]);
                    to[range.clone()].copy_from_slice(&floats_of(values)?);
                }
            }
        }
        Ok(whole)
    }

    /// Adds up the gradients of all processes, each of which has added up its own.
    fn sum(
        &self,
        collective: &mut dyn Collective,
        count: usize,
        gradients: Vec<Option<Vec<f32>>>,
    ) -> Result<Vec<Option<Vec<f32>>>> {
        let present: Vec<u8> = gradients.iter().map(|gradient| u8::from(gradient.is_some())).collect();
        let present = collective.gather(count, &present)?;
        let is_present = |param: usize| present.iter().any(|process| process.get(param) == Some(&1));
        let mut values = vec![];
        for (param, gradient) in gradients.into_iter().enumerate().filter(|&(param, _)| is_present(param)) {
            values.extend(gradient.unwrap_or_else(|| vec![0.; self.params[param].len()]));
        }
        collective.sum(count, &mut values)?;
        let mut values = values.as_slice();
        let mut whole = |param: usize| {
            let (gradient, after) = values.split_at_checked(self.params[param].len())?;
            values = after;
            Some(gradient.to_vec())
        };
        Ok((0..self.params.len()).map(|param| if is_present(param) { whole(param) } else { None }).collect())
    }

    /// Cuts the pieces of an owner out of whole sums.
    fn cut(&self, owner: usize, whole: &[Option<Vec<f32>>]) -> Vec<Option<Vec<f32>>> {
        let piece = |Piece { param, range }: &Piece| Some(whole[*param].as_ref()?[range.clone()].to_vec());
        self.owned[owner].iter().map(piece).collect()
    }

    fn insert_owned(
        &self,
        owner: usize,
        owned: Vec<Option<Vec<f32>>>,
        device: &Device,
        sums: &mut Gradients,
    ) -> Result<()> {
        for (Piece { param, range }, sum) in self.owned[owner].iter().zip(owned) {
            if let Some(sum) = sum {
                sums.insert(self.params[*param].id, Tensor::from_vec(sum, range.len(), device)?);
            }
        }
        Ok(())
    }

    fn insert(&self, whole: Vec<Option<Vec<f32>>>, device: &Device, sums: &mut Gradients) -> Result<()> {
        for (param, gradient) in self.params.iter().zip(whole) {
            if let Some(gradient) = gradient {
                sums.insert(param.id, Tensor::from_vec(gradient, param.shape.as_slice(), device)?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};
    use std::thread;

    use candle_core::Var;

    use crate::collective::Threads;
    use crate::error::Error;

    /// Gradient of a parameter in a micro-batch; some have none.
    fn gradient(part: usize, param: usize, len: usize) -> Option<Vec<f32>> {
        let value = |i: usize| ((part * 31 + param * 7 + i) as f32 * 0.618).sin() * 10f32.powf(part as f32 - 2.);
        (!(part + param).is_multiple_of(3)).then(|| (0..len).map(value).collect())
    }

    /// Lengths of the parameters: less than a block, several, and several buckets.
    const LENS: [usize; 6] = [5, 3 * BLOCK_LEN + 1, MIN_BUCKET_LEN - 7, 3, 2 * BLOCK_LEN, 1];

    fn bits(gradients: &Gradients, vars: &[Var]) -> Vec<Option<Vec<u32>>> {
        let of = |var| gradients.get(var).map(|gradient: &Tensor| gradient.to_vec1::<f32>().unwrap());
        vars.iter().map(|var: &Var| of(var).map(|values| values.into_iter().map(f32::to_bits).collect())).collect()
    }

    /// Sums of `num_parts` micro-batches by `size` processes, as each of them gets them.
    fn sums(size: usize, num_parts: usize, reduction: Reduction) -> Vec<Vec<Option<Vec<u32>>>> {
        let vars: Vec<Var> =
            LENS.iter().map(|&len| Var::zeros(len, candle_core::DType::F32, &Device::Cpu).unwrap()).collect();
        let one = |mut collective: Threads| {
            let share = Share::new((collective.rank(), size), num_parts);
            let summands = vars.iter().map(|var| Summand { id: var.id(), shape: var.dims().to_vec() });
            let plan = Plan::new(summands, share.count);
            assert_eq!(plan.buckets.len(), 2);
            let (sender, events) = channel();
            let mut own: Vec<Gradients> = vec![];
            for part in share.parts() {
                let mut gradients = Gradients::default();
                for (param, var) in vars.iter().enumerate() {
                    if let Some(values) = gradient(part, param, LENS[param]) {
                        gradients.insert(var.id(), Tensor::from_vec(values, LENS[param], &Device::Cpu).unwrap());
                    }
                }
                own.push(gradients);
            }
            if reduction == Reduction::Fast {
                let mut all = Gradients::default();
                own.drain(..).for_each(|gradients| all.absorb(gradients).unwrap());
                own.push(all);
            }
            for mut gradients in own {
                for var in vars.iter().rev() {
                    if let Some(gradient) = gradients.remove(var) {
                        sender.send(Event::Gradient(var.id(), gradient)).unwrap();
                    }
                }
                sender.send(Event::End).unwrap();
            }
            drop(sender);
            bits(
                &sum_up(&mut collective, (&plan, share), (reduction, Delivery::All, &Device::Cpu), events).unwrap(),
                &vars,
            )
        };
        thread::scope(|scope| {
            let handles: Vec<_> =
                Threads::group(size).into_iter().take(num_parts).map(|member| scope.spawn(|| one(member))).collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        })
    }

    /// Sums in the order of the micro-batches, the first moved.
    fn expected(num_parts: usize) -> Vec<Option<Vec<u32>>> {
        let sum = |(param, &len): (usize, &usize)| {
            let mut all = (0..num_parts).filter_map(|part| gradient(part, param, len));
            let first = all.next()?;
            let sum = all.fold(first, |sum, next| sum.iter().zip(next).map(|(a, b)| a + b).collect());
            Some(sum.into_iter().map(f32::to_bits).collect())
        };
        LENS.iter().enumerate().map(sum).collect()
    }

    #[test]
    fn sums_have_the_same_bits_in_any_number_of_processes() {
        for num_parts in [1, 2, 4, 5] {
            let expected = expected(num_parts);
            for size in [1, 2, 3, 4, 7] {
                let sums = sums(size, num_parts, Reduction::Ordered);
                assert_eq!(sums.len(), size.min(num_parts));
                assert!(sums.iter().all(|sum| *sum == expected), "{num_parts} micro-batches, {size} processes");
            }
        }
    }

    #[test]
    fn fast_sums_are_nearly_the_same_and_those_of_all_processes_alike() {
        let (expected, sums) = (expected(4), sums(2, 4, Reduction::Fast));
        assert_eq!(sums[0], sums[1]);
        for (sum, expected) in sums[0].iter().flatten().flatten().zip(expected.iter().flatten().flatten()) {
            let [sum, expected] = [*sum, *expected].map(f32::from_bits);
            assert!((sum - expected).abs() <= 1e-5, "{sum} {expected}");
        }
    }

    /// Tells of each exchange, and of a lost process if there is to be one.
    #[derive(Debug)]
    struct Watched {
        threads: Threads,
        exchanged: Sender<()>,
        is_lost: bool,
    }

    impl Collective for Watched {
        fn rank(&self) -> usize {
            self.threads.rank()
        }

        fn size(&self) -> usize {
            self.threads.size()
        }

        fn exchange(&mut self, outgoing: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
            let received = self.threads.exchange(outgoing)?;
            self.exchanged.send(()).unwrap();
            Ok(received)
        }

        fn check(&self) -> Result<()> {
            let lost = || Error::Lost { rank: 1, size: 2, source: std::io::ErrorKind::BrokenPipe.into() };
            if self.is_lost { Err(lost()) } else { Ok(()) }
        }
    }

    /// Parameters that fill a bucket each.
    fn two_buckets() -> Vec<Var> {
        let var = |_| Var::zeros(MIN_BUCKET_LEN, candle_core::DType::F32, &Device::Cpu).unwrap();
        (0..2).map(var).collect()
    }

    fn plan_of(vars: &[Var]) -> Plan {
        Plan::new(vars.iter().map(|var| Summand { id: var.id(), shape: var.dims().to_vec() }), 2)
    }

    const HOW: (Reduction, Delivery, &Device) = (Reduction::Ordered, Delivery::All, &Device::Cpu);

    #[test]
    fn a_bucket_travels_while_the_backward_pass_is_at_work() {
        const PATIENCE: Duration = Duration::from_secs(20);
        let vars = two_buckets();
        let plan = plan_of(&vars);
        let one = |threads: Threads| {
            let share = Share::new((threads.rank(), 2), 2);
            let ((exchanged, told), (events, incoming)) = (channel(), channel());
            thread::scope(|scope| {
                let mut collective = Watched { threads, exchanged, is_lost: false };
                let plan = &plan;
                let work = scope.spawn(move || sum_up(&mut collective, (plan, share), HOW, incoming));
                assert_eq!(plan.buckets.len(), 2);
                // The second gradient is not computed before the first one has arrived elsewhere.
                for var in &vars {
                    events.send(Event::Gradient(var.id(), var.ones_like().unwrap())).unwrap();
                    told.recv_timeout(PATIENCE).unwrap();
                }
                events.send(Event::End).unwrap();
                work.join().unwrap().unwrap();
            });
        };
        let [first, second] = Threads::group(2).try_into().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| one(first));
            one(second);
        });
    }

    #[test]
    fn a_lost_process_ends_the_wait_for_gradients() {
        let vars = two_buckets();
        let (_computing, incoming) = channel();
        let [threads, _other] = Threads::group(2).try_into().unwrap();
        let mut collective = Watched { threads, exchanged: channel().0, is_lost: true };
        let outcome = sum_up(&mut collective, (&plan_of(&vars), Share::new((0, 2), 2)), HOW, incoming);
        assert!(matches!(outcome.unwrap_err(), Error::Lost { rank: 1, .. }));
    }

    #[test]
    fn processes_own_about_as_much_of_each_bucket_however_many_there_are() {
        // Layers as networks have them: a kernel, a bias and two parameters of a norm each.
        let lens = (0..60).flat_map(|layer| [3 * 3 * 256 * (64 + 8 * layer), 256, 256, 256]);
        let summands: Vec<Summand> = lens
            .map(|len| {
                let var = Var::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap();
                Summand { id: var.id(), shape: vec![len] }
            })
            .collect();
        let total: usize = summands.iter().map(Summand::len).sum();
        for count in [1, 2, 3, 8, 64, 300] {
            let plan = Plan::new(summands.clone(), count);
            let (mut sum, mut all) = (vec![0; count], 0);
            for bucket in 0..plan.num_buckets() {
                let len: usize = plan.buckets[bucket].params.iter().map(Summand::len).sum();
                for (owner, sum) in sum.iter_mut().enumerate() {
                    let owned: usize = plan.pieces(bucket, owner).map(|(_, range)| range.len()).sum();
                    assert!(owned.abs_diff(len.div_ceil(count)) <= BLOCK_LEN, "{owned} of {len}, {count} processes");
                    *sum += owned;
                    all += owned;
                }
            }
            assert_eq!(all, total);
            let most = sum.iter().copied().max().unwrap() as f64 / (total as f64 / count as f64);
            assert!(most < 1.5, "{most} times the share, {count} processes");
        }
    }

    #[test]
    fn a_share_is_every_nth_micro_batch() {
        let share = |rank| Share::new((rank, 3), 5);
        assert_eq!(
            (0..3).map(|rank| share(rank).parts().collect::<Vec<_>>()).collect::<Vec<_>>(),
            [vec![0, 3], vec![1, 4], vec![2]]
        );
        assert_eq!((0..4).map(|n| share(1).nth(n)).collect::<Vec<_>>(), [(0, 1), (0, 4), (1, 1), (1, 4)]);
        assert_eq!((0..2).map(|n| share(2).nth(n)).collect::<Vec<_>>(), [(0, 2), (1, 2)]);
        assert_eq!(Share::new((1, 2), 1).len(), 0);
    }
}
