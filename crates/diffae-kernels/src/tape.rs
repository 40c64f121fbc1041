//! A reverse-mode tape that frees activations as the backward pass consumes them.
//!
//! Candle's graph keeps every activation until the last gradient is there, and sums each gradient onto zeros. A
//! [`Tape`] records whole operations of this crate (a norm, its activation and the convolution that follows are one),
//! saves only what their gradients need, frees each as the backward pass consumes it, and moves first gradients instead
//! of adding them.
//!
//! A thread records ([`record`]), has gradients off ([`no_gradients`]), or neither, the default: operations of this crate then have
//! no gradients, and Candle's own go into its graph.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use candle_core::{Error, Result, Tensor, TensorId, Var, bail};

use crate::gradients::Gradients;
use crate::kept::{ActivationStorage, Kept};

/// Backward pass of one node: propagates the gradient w.r.t. its output to its inputs.
type Backward = Box<dyn FnOnce(Tensor, &mut Gradients) -> Result<()>>;

/// A recorded computation, ready for its backward pass; made by [`record`].
#[derive(Default)]
pub struct Tape {
    nodes: Vec<(TensorId, Backward)>,
    tracked: HashSet<TensorId>,
    storage: ActivationStorage,
    /// Activations that have been saved while recording, so that none is rounded twice.
    kept: HashMap<TensorId, Kept>,
    num_kept_bytes: usize,
    /// First node that reads each variable, by its place.
    first_reads: HashMap<TensorId, usize>,
    /// Variables with their first node, in the order of the nodes.
    variables: Vec<(TensorId, usize)>,
}

/// Mode of differentiation of a thread.
enum Mode {
    /// Operations of this crate are not differentiated; Candle's own go into its graph.
    Graph,
    /// Operations go onto a tape.
    Recording(Box<Tape>),
    /// Nothing is differentiated, and work stays on this thread.
    Neither,
    /// Nothing is differentiated, but the variables that are read are noted: the first run of a checkpoint.
    Noting(Vec<TensorId>),
}

thread_local! {
    static MODE: RefCell<Mode> = const { RefCell::new(Mode::Graph) };
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tape").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

/// Runs `forward` and records, on this thread, the operations of this crate that depend on variables ([`Var`]).
///
/// Candle's own operations must be wrapped in [`differentiable`].
///
/// ```
/// use candle_core::{DType, Device, Tensor, Var};
/// use diffae_kernels::{Gradients, differentiable, linear, record};
///
/// let weight = Var::ones((1, 2), DType::F32, &Device::Cpu)?;
/// let bias = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
/// let x = Tensor::new(&[[3f32, 4.]], &Device::Cpu)?;
/// let (loss, tape) = record(|| differentiable([&linear(&x, &weight, &bias)?], |[y]| y.sqr()?.sum_all()))?;
/// let mut gradients = Gradients::default();
/// tape.backward(&loss, &mut gradients)?;
/// assert_eq!(gradients.get(&weight).unwrap().to_vec2::<f32>()?, [[42., 56.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// That of `forward`.
pub fn record<R, E: From<Error>>(
    forward: impl FnOnce() -> std::result::Result<R, E>,
) -> std::result::Result<(R, Tape), E> {
    record_with(ActivationStorage::F32, forward)
}

/// Records like [`record`], and saves activations in the number type that `storage` names.
///
/// # Errors
/// That of `forward`.
pub fn record_with<R, E: From<Error>>(
    storage: ActivationStorage,
    forward: impl FnOnce() -> std::result::Result<R, E>,
) -> std::result::Result<(R, Tape), E> {
    record_onto(Tape { storage, ..Tape::default() }, forward)
}

/// Runs `f` without recording anything on a tape.
pub fn no_gradients<R>(f: impl FnOnce() -> R) -> R {
    in_mode(Mode::Neither, f).0
}

/// Runs a few of Candle's own operations and, if a tape is being recorded, records them on it as one, with their graph.
///
/// # Shapes
/// - `inputs`: any; gradients flow to them, everything else that `f` uses is a constant.
/// # Errors
/// That of `f`.
pub fn differentiable<const N: usize>(
    inputs: [&Tensor; N],
    f: impl FnOnce([&Tensor; N]) -> Result<Tensor>,
) -> Result<Tensor> {
    if in_graph() {
        return f(inputs);
    }
    let wanted = inputs.map(is_tracked);
    let mut leaves = Vec::with_capacity(N);
    for (input, wanted) in inputs.iter().zip(wanted) {
        let leaf = if wanted { Var::from_tensor(input)?.into_inner() } else { input.detach() };
        leaves.push(leaf);
    }
    let mut refs = inputs;
    for (to, leaf) in refs.iter_mut().zip(&leaves) {
        *to = leaf;
    }
    let y = in_mode(Mode::Graph, || f(refs)).0?;
    let output = y.detach();
    push(&inputs, &output, move |gradient, wanted| {
        // Candle's gradients have a graph of their own, which may lead to the same variables.
        let mut store = (&y * gradient.detach())?.sum_all()?.backward()?;
        Ok(leaves.iter().zip(wanted).map(|(leaf, wanted)| if *wanted { store.remove(leaf) } else { None }).collect())
    })?;
    Ok(output)
}

/// Runs `f` and saves only its inputs: the backward pass recomputes its activations (activation checkpointing).
///
/// `f` must do the same each time. If no tape is being recorded, it just runs.
///
/// # Errors
/// That of `f`.
/// # Source
/// Chen et al. 2016 (arXiv:1604.06174).
pub fn checkpoint<const N: usize>(
    inputs: [&Tensor; N],
    f: impl Fn([&Tensor; N]) -> Result<Tensor> + 'static,
) -> Result<Tensor> {
    if !is_recording() {
        return f(inputs);
    }
    let (output, mode) = in_mode(Mode::Noting(vec![]), || f(inputs));
    let (output, read) = (output?, if let Mode::Noting(read) = mode { read } else { vec![] });
    let wanted = inputs.map(is_tracked);
    let storage =
        MODE.with_borrow(|mode| if let Mode::Recording(tape) = mode { tape.storage } else { ActivationStorage::F32 });
    let ids = inputs.map(Tensor::id);
    let mut kept = Vec::with_capacity(N);
    for input in inputs {
        kept.push(keep(input)?);
    }
    let backward = move |gradient: Tensor, gradients: &mut Gradients| {
        let mut again = Vec::with_capacity(N);
        for kept in kept {
            again.push(kept.get()?);
        }
        let refs: [&Tensor; N] = std::array::from_fn(|i| &again[i]);
        let tracked = again.iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(t, _)| t.id()).collect();
        let tape = Tape { tracked, storage, ..Tape::default() };
        let (y, tape) = record_onto::<_, Error>(tape, || f(refs))?;
        tape.run((y.id(), gradient), gradients, &mut |_| {})?;
        // Gradients of the copies belong to the originals.
        for (id, again) in ids.into_iter().zip(&again) {
            if id != again.id()
                && let Some(gradient) = gradients.remove(again)
            {
                gradients.add(id, gradient)?;
            }
        }
        Ok(())
    };
    note_reads(read);
    push_node(&output, Box::new(backward));
    Ok(output)
}

impl Tape {
    /// Runs the backward pass: adds the gradients of `loss`, a scalar, w.r.t. all variables to `gradients`.
    ///
    /// Gradients w.r.t. other tensors are dropped on the way.
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward(self, loss: &Tensor, gradients: &mut Gradients) -> Result<()> {
        if loss.elem_count() != 1 {
            bail!("gradients are those of a scalar, not of a tensor of shape {:?}", loss.dims())
        }
        self.run((loss.id(), loss.ones_like()?), gradients, &mut |gradients| gradients.complete.clear())
    }

    /// Runs the backward pass of `loss`, a scalar, and hands out the gradient of each variable as soon as it is complete,
    /// while the rest of the pass is still to come.
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward_with(self, loss: &Tensor, on_gradient: &mut dyn FnMut(TensorId, Tensor)) -> Result<()> {
        if loss.elem_count() != 1 {
            bail!("gradients are those of a scalar, not of a tensor of shape {:?}", loss.dims())
        }
        self.run((loss.id(), loss.ones_like()?), &mut Gradients::default(), &mut |gradients| {
            for id in std::mem::take(&mut gradients.complete) {
                if let Some(gradient) = gradients.by_id.remove(&id) {
                    gradients.handed_out.insert(id);
                    on_gradient(id, gradient);
                }
            }
        })
    }

    /// Returns the memory that saved activations take, in bytes.
    ///
    /// Parameters, and activations in the graphs of [`differentiable`], are not counted.
    #[must_use]
    pub fn num_kept_bytes(&self) -> usize {
        self.num_kept_bytes
    }

    fn run(
        mut self,
        (output, gradient): (TensorId, Tensor),
        gradients: &mut Gradients,
        after_node: &mut dyn FnMut(&mut Gradients),
    ) -> Result<()> {
        gradients.add(output, gradient)?;
        while let Some((output, backward)) = self.nodes.pop() {
            if let Some(gradient) = gradients.by_id.remove(&output) {
                backward(gradient, gradients)?;
            }
            let node = self.nodes.len();
            // What an inner tape has completed may be read by a node before this one.
            gradients.complete.retain(|id| self.first_reads.get(id).is_none_or(|&first| first >= node));
            while let Some((id, _)) = self.variables.pop_if(|(_, first)| *first == node) {
                gradients.complete.push(id);
            }
            after_node(gradients);
        }
        Ok(())
    }
}

/// Chooses how an operation saves its inputs for the backward pass.
///
/// It is [`keep`] if one of them needs a gradient; otherwise there is no backward pass, and the tensors are only held as
/// long as the operation runs.
pub(crate) fn keeper(inputs: &[&Tensor]) -> fn(&Tensor) -> Result<Kept> {
    if inputs.iter().any(|tensor| is_tracked(tensor)) { keep } else { |tensor| Ok(Kept::whole(tensor)) }
}

/// Saves a tensor for the backward pass, in the number type of the tape that is being recorded.
fn keep(tensor: &Tensor) -> Result<Kept> {
    let (known, storage) = MODE.with_borrow(|mode| match mode {
        Mode::Recording(tape) if !tensor.is_variable() => (tape.kept.get(&tensor.id()).cloned(), Some(tape.storage)),
        _ => (None, None),
    });
    if let Some(known) = known {
        return Ok(known);
    }
    // Outside of the borrow: rounding waits for other threads, and may do their work on this one.
    let kept = match storage {
        Some(ActivationStorage::F32) => Kept::whole(tensor),
        Some(ActivationStorage::Bf16) => Kept::rounded(tensor)?,
        None => return Ok(Kept::whole(tensor)),
    };
    MODE.with_borrow_mut(|mode| {
        if let Mode::Recording(tape) = mode {
            tape.num_kept_bytes += kept.num_bytes();
            tape.kept.insert(tensor.id(), kept.clone());
        }
    });
    Ok(kept)
}

/// Returns whether this thread is in the default mode.
pub(crate) fn in_graph() -> bool {
    MODE.with_borrow(|mode| matches!(mode, Mode::Graph))
}

/// Returns whether nothing is differentiated on this thread, and nothing is noted either.
pub(crate) fn is_off() -> bool {
    MODE.with_borrow(|mode| matches!(mode, Mode::Neither))
}

/// Returns whether a tape is being recorded on this thread.
pub(crate) fn is_recording() -> bool {
    MODE.with_borrow(|mode| matches!(mode, Mode::Recording(_)))
}

/// Returns whether the tape that is being recorded needs the gradient w.r.t. `tensor`.
pub(crate) fn is_tracked(tensor: &Tensor) -> bool {
    MODE.with_borrow(|mode| match mode {
        Mode::Recording(tape) => tensor.is_variable() || tape.tracked.contains(&tensor.id()),
        Mode::Graph | Mode::Neither | Mode::Noting(_) => false,
    })
}

/// Records that `output` was computed from `inputs`, if one of them needs a gradient.
///
/// `backward` computes from the gradient w.r.t. the output those w.r.t. the inputs; its flags say which are needed.
///
/// # Errors
/// If an input was computed from variables off the tape.
pub(crate) fn push(
    inputs: &[&Tensor],
    output: &Tensor,
    backward: impl FnOnce(&Tensor, &[bool]) -> Result<Vec<Option<Tensor>>> + 'static,
) -> Result<()> {
    if !is_recording() {
        note_reads(variables_of(inputs));
        return Ok(());
    }
    if let Some(stray) = inputs.iter().find(|tensor| tensor.track_op() && !tensor.is_variable()) {
        bail!("a tensor of shape {:?} was computed from variables off the tape", stray.dims())
    }
    let wanted: Vec<bool> = inputs.iter().map(|tensor| is_tracked(tensor)).collect();
    if wanted.contains(&true) {
        note_reads(variables_of(inputs));
        let ids: Vec<TensorId> = inputs.iter().map(|tensor| tensor.id()).collect();
        let backward = move |gradient: Tensor, gradients: &mut Gradients| {
            let of_inputs = backward(&gradient, &wanted)?;
            drop(gradient);
            for (id, gradient) in ids.into_iter().zip(of_inputs) {
                gradient.map(|gradient| gradients.add(id, gradient)).transpose()?;
            }
            Ok(())
        };
        push_node(output, Box::new(backward));
    }
    Ok(())
}

/// Returns the variables among some inputs.
fn variables_of(inputs: &[&Tensor]) -> impl IntoIterator<Item = TensorId> {
    inputs.iter().filter(|tensor| tensor.is_variable()).map(|tensor| tensor.id())
}

/// Notes that the next node, or the checkpoint that is being run, reads these variables.
fn note_reads(variables: impl IntoIterator<Item = TensorId>) {
    MODE.with_borrow_mut(|mode| match mode {
        Mode::Recording(tape) => {
            let next = tape.nodes.len();
            for variable in variables {
                if let Entry::Vacant(entry) = tape.first_reads.entry(variable) {
                    entry.insert(next);
                    tape.variables.push((variable, next));
                }
            }
        }
        Mode::Noting(noted) => noted.extend(variables),
        Mode::Graph | Mode::Neither => {}
    });
}

/// Adds a node to the tape that is being recorded.
fn push_node(output: &Tensor, backward: Backward) {
    MODE.with_borrow_mut(|mode| {
        if let Mode::Recording(tape) = mode {
            tape.tracked.insert(output.id());
            tape.nodes.push((output.id(), backward));
        }
    });
}

/// Runs `forward` with a tape that may hold something already.
fn record_onto<R, E: From<Error>>(
    tape: Tape,
    forward: impl FnOnce() -> std::result::Result<R, E>,
) -> std::result::Result<(R, Tape), E> {
    match in_mode(Mode::Recording(Box::new(tape)), forward) {
        (result, Mode::Recording(tape)) => Ok((result?, Tape { kept: HashMap::new(), ..*tape })),
        _ => Err(Error::Msg("the tape that was being recorded is gone".to_owned()).into()),
    }
}

/// Runs `f` in the default mode.
pub(crate) fn in_graph_mode<R>(f: impl FnOnce() -> R) -> R {
    in_mode(Mode::Graph, f).0
}

/// Runs `f` in a mode, then restores the previous one, even if `f` panics. Returns the mode as `f` left it.
fn in_mode<R>(mode: Mode, f: impl FnOnce() -> R) -> (R, Mode) {
    struct Return(Option<Mode>);
    impl Drop for Return {
        fn drop(&mut self) {
            if let Some(mode) = self.0.take() {
                MODE.set(mode);
            }
        }
    }
    let mut before = Return(Some(MODE.replace(mode)));
    let result = f();
    let mode = before.0.take().map_or(Mode::Graph, |before| MODE.replace(before));
    (result, mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn var(values: &[f32]) -> Var {
        Var::new(values, &Device::Cpu).unwrap()
    }

    fn numbers(gradients: &Gradients, var: &Var) -> Vec<f32> {
        gradients.get(var).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn what_is_used_twice_gets_the_sum() {
        let x = var(&[2., 3.]);
        let forward = || -> Result<Tensor> {
            let square = differentiable([&x], |[x]| x.sqr())?;
            let both = crate::add(&square, &square)?;
            differentiable([&both, &x], |[both, x]| (both + x)?.sum_all())
        };
        let (loss, tape) = record(forward).unwrap();
        let mut gradients = Gradients::default();
        tape.backward(&loss, &mut gradients).unwrap();
        assert_eq!(numbers(&gradients, &x), [9., 13.]);
        assert_eq!(gradients.by_id.len(), 1);
    }

    #[test]
    fn a_gradient_that_depends_on_a_variable_is_a_constant_of_the_next_operation() {
        let a = var(&[2., 3.]);
        let times_a = |x: &Tensor| differentiable([x, a.as_tensor()], |[x, a]| x * a);
        let forward = || -> Result<Tensor> {
            let cube = times_a(&times_a(&times_a(&Tensor::ones(2, DType::F32, &Device::Cpu)?)?)?)?;
            differentiable([&cube], |[y]| y.sum_all())
        };
        let (loss, tape) = record(forward).unwrap();
        let mut gradients = Gradients::default();
        tape.backward(&loss, &mut gradients).unwrap();
        assert_eq!(numbers(&gradients, &a), [12., 27.]);
    }

    #[test]
    fn a_checkpoint_has_the_gradients_of_what_it_runs_again() {
        let (x, w) = (var(&[2., 3.]), var(&[5., 7.]));
        let forward = || -> Result<Tensor> {
            let (double, inner) = (crate::add(&x, &x)?, w.as_tensor().clone());
            let y = checkpoint([&double], move |[x]| differentiable([x, &inner], |[x, w]| x.sqr()? * w))?;
            differentiable([&y], |[y]| y.sum_all())
        };
        for storage in [ActivationStorage::F32, ActivationStorage::Bf16] {
            let (loss, tape) = record_with(storage, forward).unwrap();
            let mut gradients = Gradients::default();
            tape.backward(&loss, &mut gradients).unwrap();
            assert_eq!(numbers(&gradients, &x), [80., 168.]);
            assert_eq!(numbers(&gradients, &w), [16., 36.]);
            assert_eq!(gradients.by_id.len(), 2);
        }
    }

    /// Hands out the gradients of a loss, by their variables and in order.
    fn handed_out(forward: impl FnOnce() -> Result<Tensor>) -> Result<Vec<(TensorId, Vec<f32>)>> {
        let (loss, tape) = record(forward)?;
        let mut all = vec![];
        tape.backward_with(&loss, &mut |id, gradient| all.push((id, gradient.to_vec1().unwrap())))?;
        Ok(all)
    }

    #[test]
    fn gradients_are_handed_out_when_nothing_adds_to_them_any_more() {
        let [a, b, c] = [var(&[2., 3.]), var(&[5., 7.]), var(&[1., -1.])];
        let product = |x: &Tensor, w: &Var| differentiable([x, w.as_tensor()], |[x, w]| x * w);
        let forward = || -> Result<Tensor> {
            let x = product(&product(&a, &b)?, &c)?;
            differentiable([&product(&x, &b)?], |[y]| y.sum_all()) // a b^2 c
        };
        let all = handed_out(forward).unwrap();
        // b is read again by the first product.
        let expected = [(c.id(), vec![50., 147.]), (a.id(), vec![25., -49.]), (b.id(), vec![20., -42.])];
        assert_eq!(all[0], expected[0]);
        assert!(all.len() == 3 && expected.iter().all(|gradient| all.contains(gradient)), "{all:?}");
    }

    #[test]
    fn gradients_within_checkpoints_are_handed_out_once_they_are_whole() {
        let [a, b] = [var(&[2., 3.]), var(&[5., 7.])];
        let times = |w: &Var| {
            let w = w.as_tensor().clone();
            move |[x]: [&Tensor; 1]| differentiable([x, &w], |[x, w]| x * w)
        };
        let before = |x: &Tensor| differentiable([x, a.as_tensor()], |[x, a]| x * a);
        let forward = || -> Result<Tensor> {
            let x = before(&Tensor::ones(2, DType::F32, &Device::Cpu)?)?;
            let y = checkpoint([&checkpoint([&x], times(&a))?], times(&b))?;
            differentiable([&y], |[y]| y.sum_all()) // a^2 b
        };
        let all = handed_out(forward).unwrap();
        assert_eq!(all, [(b.id(), vec![4., 9.]), (a.id(), vec![20., 42.])]);
        let shared = || -> Result<Tensor> {
            let y = checkpoint([&checkpoint([&before(&b)?], times(&b))?], times(&b))?;
            differentiable([&y], |[y]| y.sum_all())
        };
        // Read outside of checkpoints, too, or by several, it is known not to be whole.
        let whole = handed_out(shared).unwrap();
        assert!(whole.contains(&(b.id(), vec![150., 441.])), "{whole:?}");
        let hidden = || -> Result<Tensor> {
            let y = checkpoint([&checkpoint([&before(&a)?], times(&b))?], times(&b))?;
            differentiable([&y], |[y]| y.sum_all())
        };
        assert_eq!(handed_out(hidden).unwrap(), [(b.id(), vec![40., 126.]), (a.id(), vec![100., 294.])]);
    }

    #[test]
    fn activations_are_counted_once_and_halved_by_rounding() {
        let (w, bias) = (Var::ones((64, 64), DType::F32, &Device::Cpu).unwrap(), var(&[0.; 64]));
        let x = Tensor::ones((10, 64), DType::F32, &Device::Cpu).unwrap();
        let bytes = |storage| {
            let forward = || -> Result<Tensor> {
                let y = crate::linear(&x, &w, &bias)?;
                crate::add(&crate::linear(&y, &w, &bias)?, &crate::linear(&y, &w, &bias)?)
            };
            record_with(storage, forward).unwrap().1.num_kept_bytes()
        };
        // Without a variable there is no backward pass to save anything for.
        let constant = || crate::linear(&x, &w.as_detached_tensor(), &bias.as_detached_tensor());
        assert_eq!(record(constant).unwrap().1.num_kept_bytes(), 0);
        assert_eq!(bytes(ActivationStorage::F32), 2 * 10 * 64 * 4);
        assert_eq!(bytes(ActivationStorage::Bf16), 2 * 10 * 64 * 2);
    }

    #[test]
    fn strays_are_reported_instead_of_losing_gradients() {
        let x = var(&[1.]);
        let result: Result<_> = record(|| crate::add(&(x.as_tensor() * 2.)?, &x));
        assert!(result.unwrap_err().to_string().contains("off the tape"));
    }

    #[test]
    fn without_gradients_nothing_is_kept() {
        let x = var(&[1.]);
        let y = no_gradients(|| crate::add(&x, &x)).unwrap();
        assert!(!y.track_op());
        assert!(in_graph());
    }

    #[test]
    fn only_scalars_have_gradients() {
        let (y, tape) = record(|| Tensor::zeros(2, DType::F32, &Device::Cpu)).unwrap();
        assert!(tape.backward(&y, &mut Gradients::default()).is_err());
    }
}
