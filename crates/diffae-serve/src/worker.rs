//! The thread that computes. Requests wait in a queue, and the newest of a client replaces its older ones, which are
//! answered when the thread comes to them; the number of the others is bounded.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use diffae_infer::{CallEvent, Observer, Pipeline};
use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::events::{Events, Progress};

/// Maximum number of requests that wait and have not been replaced.
const QUEUE: usize = 16;

/// Requests that replace each other: those of one purpose, such as a slider, of one client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Lane {
    /// Name that the client gave itself.
    pub(crate) client: String,
    /// Purpose of the request.
    pub(crate) purpose: String,
}

/// Mark by which a request is ended between two steps.
#[derive(Debug, Clone, Default)]
struct Cancel(Arc<AtomicBool>);

impl Cancel {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns whether both are the mark of one request.
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Ends the request when its client leaves.
struct OnDrop(Cancel);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.set();
    }
}

type Job = Box<dyn FnOnce(&Pipeline) + Send>;

/// The thread that computes, from outside.
#[derive(Clone)]
pub(crate) struct Worker {
    queue: Sender<Job>,
    /// Requests in the queue; those that are ended no longer count.
    waiting: Arc<Mutex<Vec<Cancel>>>,
    newest: Arc<Mutex<HashMap<Lane, Cancel>>>,
    events: Events,
    stopping: Cancel,
}

impl Worker {
    /// Starts the thread; it ends with the last clone of the worker.
    pub(crate) fn start(pipeline: Pipeline, events: Events) -> Self {
        let (queue, jobs): (_, Receiver<Job>) = channel();
        std::thread::spawn(move || {
            for job in jobs {
                job(&pipeline);
            }
        });
        Self { queue, waiting: Arc::default(), newest: Arc::default(), events, stopping: Cancel::default() }
    }

    /// Ends what is computed, and refuses what is asked from now on.
    pub(crate) fn stop(&self) {
        self.stopping.set();
    }

    /// Returns whether [`stop`](Self::stop) was called.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.is_set()
    }

    /// Runs work on the thread. In a lane it ends older work of the same lane, at its next step.
    ///
    /// # Errors
    /// [`Error::Busy`] if as many requests wait as may, not counting those of the same lane; [`Error::Superseded`] and [`Error::Stopping`]; those of the work.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        lane: Option<Lane>,
        work: impl FnOnce(&Pipeline, &mut Observer<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        let cancel = Cancel::default();
        let (sender, receiver) = oneshot::channel();
        self.enter(lane.as_ref(), &cancel)?;
        let job = {
            let (this, cancel) = (self.clone(), cancel.clone());
            move |pipeline: &Pipeline| {
                this.waiting().retain(|waiting| !waiting.is(&cancel));
                let result = this.compute(pipeline, lane.as_ref(), &cancel, work);
                if let Some(lane) = &lane {
                    this.leave(lane, &cancel);
                }
                // The client may have left.
                let _ = sender.send(result);
            }
        };
        let _on_drop = OnDrop(cancel);
        self.queue.send(Box::new(job)).map_err(|_closed| Error::Stopping)?;
        receiver.await.unwrap_or(Err(Error::Stopping))
    }

    /// Takes a place in the queue, and in the lane that of an older request: however fast a slider moves, its requests take
    /// one place.
    fn enter(&self, lane: Option<&Lane>, cancel: &Cancel) -> Result<()> {
        let (mut newest, mut waiting) = (self.lanes(), self.waiting());
        let older = lane.and_then(|lane| newest.get(lane)).cloned();
        waiting.retain(|waiting| !waiting.is_set() && !older.as_ref().is_some_and(|older| older.is(waiting)));
        if waiting.len() >= QUEUE {
            return Err(Error::Busy);
        }
        waiting.push(cancel.clone());
        if let Some(lane) = lane {
            newest.insert(lane.clone(), cancel.clone());
        }
        older.iter().for_each(Cancel::set);
        Ok(())
    }

    fn compute<T>(
        &self,
        pipeline: &Pipeline,
        lane: Option<&Lane>,
        cancel: &Cancel,
        work: impl FnOnce(&Pipeline, &mut Observer<'_>) -> Result<T>,
    ) -> Result<T> {
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        if cancel.is_set() {
            return Err(Error::Superseded);
        }
        let mut progress = lane.map(|lane| Progress::new(self.events.clone(), lane.clone()));
        let mut observer = |event: &CallEvent<'_>| {
            if let Some(progress) = &mut progress {
                progress.note(event, pipeline.model());
            }
            if cancel.is_set() || self.is_stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let result = catch_unwind(AssertUnwindSafe(|| work(pipeline, &mut observer)));
        let result = result.unwrap_or(Err(Error::Fault));
        if let Some(progress) = progress {
            progress.finish();
        }
        result
    }

    /// Forgets a request that has ended, unless a newer one has its place.
    fn leave(&self, lane: &Lane, cancel: &Cancel) {
        let mut newest = self.lanes();
        if newest.get(lane).is_some_and(|known| known.is(cancel)) {
            newest.remove(lane);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Cancel>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<Lane, Cancel>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use diffae_infer::Pipeline;

    use super::*;

    fn worker() -> Worker {
        Worker::start(Pipeline::from_built_in().unwrap(), Events::new())
    }

    fn lane() -> Lane {
        Lane { client: "a".to_owned(), purpose: "picture".to_owned() }
    }

    /// Number of calls after which work ends that nobody has ended: ten seconds.
    const CALLS: usize = 2000;

    /// Calls the observer until it breaks, or so many times; returns how many times.
    fn counted(observer: &mut Observer<'_>) -> usize {
        for number in 0..CALLS {
            let event = CallEvent { call: diffae_infer::NetworkCall::Decoder, num_pictures: 1, step: None };
            if observer(&event).is_break() {
                return number;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        CALLS
    }

    #[tokio::test]
    async fn the_newest_of_a_lane_ends_the_others() {
        let worker = worker();
        let older = tokio::spawn({
            let worker = worker.clone();
            async move { worker.run(Some(lane()), |_, observer| Ok(counted(observer))).await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(40)).await;
        let newer = worker.run(Some(lane()), |_, _| Ok(7)).await.unwrap();
        assert_eq!(newer, 7);
        assert!(older.await.unwrap().unwrap() < CALLS, "it ran to its end");
        assert!(worker.lanes().is_empty());
    }

    /// As while a step of a large model takes as long as a whole drag.
    #[tokio::test]
    async fn a_drag_takes_one_place_of_the_queue() {
        let worker = worker();
        let waiting = |lane: Option<Lane>| {
            let worker = worker.clone();
            tokio::spawn(async move { worker.run(lane, |_, observer| Ok(counted(observer))).await })
        };
        let others: Vec<_> = (0..QUEUE).map(|_| waiting(None)).collect();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let moves: Vec<_> = (0..3 * QUEUE).map(|_| waiting(Some(lane()))).collect();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(matches!(worker.run(None, |_, _| Ok(())).await, Err(Error::Busy)));
        let newest = tokio::spawn({
            let worker = worker.clone();
            async move { worker.run(Some(lane()), |_, _| Ok(7)).await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        others.iter().for_each(tokio::task::JoinHandle::abort);
        assert_eq!(newest.await.unwrap().unwrap(), 7);
        for older in moves {
            assert!(matches!(older.await.unwrap(), Err(Error::Superseded)));
        }
        assert!(worker.waiting().is_empty() && worker.lanes().is_empty());
    }

    #[tokio::test]
    async fn a_full_queue_a_client_that_left_and_a_panic_are_no_harm() {
        let worker = worker();
        let waiting = |started: Option<oneshot::Sender<()>>| {
            let worker = worker.clone();
            tokio::spawn(async move {
                let work = move |_: &Pipeline, observer: &mut Observer<'_>| {
                    started.map(|started| started.send(()));
                    Ok(counted(observer))
                };
                worker.run(None, work).await
            })
        };
        // One that runs leaves the queue to those that wait.
        let (started, has_started) = oneshot::channel();
        let mut running = vec![waiting(Some(started))];
        has_started.await.unwrap();
        running.extend((0..QUEUE).map(|_| waiting(None)));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let refused = worker.run(None, |_, _| Ok(())).await;
        assert!(matches!(refused, Err(Error::Busy)), "{refused:?}");
        // What nobody waits for ends at its next step.
        running.iter().for_each(tokio::task::JoinHandle::abort);
        for task in running {
            let _ = task.await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let failed = worker.run(None, |_, _| -> Result<()> { std::panic::panic_any("a fault") }).await;
        assert!(matches!(failed, Err(Error::Fault)));
        assert_eq!(worker.run(None, |_, _| Ok(1)).await.unwrap(), 1, "the thread goes on");
        worker.stop();
        assert!(matches!(worker.run(None, |_, _| Ok(1)).await, Err(Error::Stopping)));
    }
}
