//! Work of a call: on a pool of threads of its own, without the interpreter's lock, with reports to it and Ctrl-C from it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// Time between two looks at whether Ctrl-C was pressed.
const INTERVAL: Duration = Duration::from_millis(50);

/// A callback of Python for reports of a kind; its answer goes back to the work.
pub(crate) type Listener<'a, R> = dyn FnMut(Python<'_>, R) -> PyResult<ControlFlow<()>> + Send + 'a;

/// A report with the channel for its answer.
type Asked<R> = (R, SyncSender<ControlFlow<()>>);

/// The link from work to the call that waits for it.
pub(crate) struct Link<'a, R> {
    is_stopped: &'a AtomicBool,
    is_heard: bool,
    reports: Sender<Asked<R>>,
}

impl<R> Link<'_, R> {
    /// Hands a report to the callback, if there is one, and returns its answer; breaks after Ctrl-C.
    pub(crate) fn report(&self, make: impl FnOnce() -> R) -> ControlFlow<()> {
        let answer = if self.is_heard { self.ask(make()) } else { ControlFlow::Continue(()) };
        if self.is_stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { answer }
    }

    fn ask(&self, report: R) -> ControlFlow<()> {
        let (answer, answered) = mpsc::sync_channel(1);
        // Whoever does not answer has gone, and the work is in vain.
        match self.reports.send((report, answer)) {
            Ok(()) => answered.recv().unwrap_or(ControlFlow::Break(())),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

/// Runs a job on a pool of so many threads of its own, `None` for one per core, and waits for it without the interpreter's
/// lock.
///
/// # Errors
/// As the job; first of all the exception of the callback, or `KeyboardInterrupt`.
pub(crate) fn compute<T: Send, R: Send>(
    py: Python<'_>,
    num_threads: Option<usize>,
    listener: Option<&mut Listener<'_, R>>,
    job: impl FnOnce(&Link<'_, R>) -> Result<T> + Send,
) -> Result<T> {
    let is_stopped = AtomicBool::new(false);
    let work = |pool: &ThreadPool| {
        let (mut result, mut raised) = (None, None);
        let (reports, incoming) = mpsc::channel();
        let link = Link { is_stopped: &is_stopped, is_heard: listener.is_some(), reports };
        pool.in_place_scope(|scope| {
            // The link, and with it the channel, ends with the job.
            scope.spawn(|_| {
                let link = link;
                result = Some(job(&link));
            });
            raised = attend(&incoming, &is_stopped, listener);
        });
        (result, raised)
    };
    let (result, raised) = py.detach(|| on_own_pool(num_threads, work))?;
    match (raised, result) {
        (Some(raised), _) => Err(raised.into()),
        (None, Some(result)) => result,
        (None, None) => Err(diffae_infer::Error::Cancelled.into()),
    }
}

/// Answers reports and looks for Ctrl-C until the job has ended; returns the first exception.
fn attend<R>(
    incoming: &Receiver<Asked<R>>,
    is_stopped: &AtomicBool,
    mut listener: Option<&mut Listener<'_, R>>,
) -> Option<PyErr> {
    let mut first = None;
    loop {
        let (answer, raised) = match incoming.recv_timeout(INTERVAL) {
            Err(RecvTimeoutError::Disconnected) => return first,
            Err(RecvTimeoutError::Timeout) => (None, Python::attach(interrupted).err()),
            Ok((report, answer)) => {
                let heard = Python::attach(|py| {
                    interrupted(py)?;
                    let heard = listener.as_mut().map(|listener| listener(py, report));
                    heard.unwrap_or(Ok(ControlFlow::Continue(())))
                });
                let (flow, raised) = match heard {
                    Ok(flow) => (flow, None),
                    Err(raised) => (ControlFlow::Break(()), Some(raised)),
                };
                (Some((answer, flow)), raised)
            }
        };
        if let Some(raised) = raised {
            is_stopped.store(true, Ordering::Relaxed);
            first.get_or_insert(raised);
        }
        if let Some((answer, flow)) = answer {
            // A job that panicked waits no more.
            let _ = answer.send(flow);
        }
    }
}

/// Fails with `KeyboardInterrupt`, or what else a signal raises.
fn interrupted(py: Python<'_>) -> PyResult<()> {
    py.check_signals()
}

/// Pools of threads that no call uses, by their size; 0 is one thread per core.
struct Pools {
    process: u32,
    free: BTreeMap<usize, Vec<ThreadPool>>,
}

/// Returns the pools of this process.
///
/// A forked process has none of its parent's threads: it begins with pools of its own.
fn pools() -> MutexGuard<'static, Pools> {
    static POOLS: Mutex<Pools> = Mutex::new(Pools { process: 0, free: BTreeMap::new() });
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if pools.process != process::id() {
        // To end the parent's pools would be to wait for threads that are not here.
        std::mem::forget(std::mem::take(&mut pools.free));
        pools.process = process::id();
    }
    pools
}

/// Lends a pool of so many threads to some work, and keeps it for later calls.
///
/// On a shared pool, calls of several threads would wait for each other, and a thread that waits within one call might begin
/// with another.
fn on_own_pool<T>(num_threads: Option<usize>, work: impl FnOnce(&ThreadPool) -> T) -> Result<T> {
    let (process, size) = (process::id(), num_threads.unwrap_or(0));
    let free = pools().free.get_mut(&size).and_then(Vec::pop);
    let start = || {
        let built = ThreadPoolBuilder::new().num_threads(size).build();
        built.map_err(|source| Error::Threads { num_threads: size, source })
    };
    let pool = free.map_or_else(start, Ok)?;
    let done = work(&pool);
    if process == process::id() {
        pools().free.entry(size).or_default().push(pool);
    } else {
        // A callback has forked, and this is the child: the threads are its parent's.
        std::mem::forget(pool);
    }
    Ok(done)
}
