//! The master's service: where the requests of workers are answered.
//!
//! A request comes out of a lane whole and is queued here by whoever delivered it. Sync handlers run on service
//! threads, grown on demand: about one for each worker, since a worker has one call outstanding; so a handler that
//! blocks keeps nobody waiting but its caller. Async handlers run where `service_on` puts them, or on an executor of
//! one thread.
//!
//! # Deadlocks
//!
//! A handler may use the pool that it serves. If every worker is inside a call and every one of those handlers waits
//! for a task of this pool, nobody is left to run it; nor is there for a task that is pinned to a worker whose handler
//! waits for it. A handler that is about to wait notes what for; the one that completes a circle gets an error instead.
//!
//! Nobody sees whether a handler that has polled something waits for it or does something else. It counts as waiting
//! for as long as that is pending, even while it runs.
//!
//! # The handler's end
//!
//! * SERVICE-1: a call has the handler from when it starts until before it is answered. So when all tasks have ended, nobody has
//!   it but the pool, which drops it before it says that it has ended. A call that runs even then keeps it until it is over; one that
//!   has not started is refused.

mod queue;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use self::queue::{Queue, Turn, Work};
use super::core::{Core, Phase};
use super::job::Job;
use super::wait::Awaited;
use crate::error::{PoolFailure, TaskError};
use crate::ground::monitor::Mutex;
use crate::memory::codec::AlignedBytes;
use crate::panics::{self, Caught};
use crate::protocol::wire::AnswerKind;

/// A boxed future, as [`Builder::service_on`](crate::Builder::service_on) hands it out.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A service call, whole.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) station: usize,
    pub(crate) generation: u64,
    pub(crate) number: u64,
    pub(crate) bytes: AlignedBytes,
}

const ENDING: &str = "the pool is ending";

/// An answer's bytes, or what went wrong.
pub(crate) type Answer = (AnswerKind, AlignedBytes);
/// Takes the request's bytes, and the most that the answer may have.
pub(crate) type SyncHandler = Arc<dyn Fn(&[u8], usize) -> Answer + Send + Sync>;
pub(crate) type AsyncHandler = Arc<dyn Fn(AlignedBytes, usize) -> BoxFuture<'static, Answer> + Send + Sync>;
pub(crate) type Spawn = Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>;

pub(crate) enum Handler {
    Sync(SyncHandler),
    Async(AsyncHandler, Option<Spawn>),
}

/// Where calls are answered.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Each on a thread.
    Threads,
    /// All on one.
    Executor,
    /// Where the program's `spawn` puts them.
    Elsewhere,
}

/// See the module's documentation.
pub(crate) struct Host {
    place: Place,
    /// `None` when the pool has ended. What is in there runs, and is dropped, outside of the lock.
    handler: Mutex<Option<Handler>>,
    queue: Arc<Queue>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Host {
    pub(crate) fn new(handler: Handler) -> Self {
        let (place, threads_max) = match &handler {
            // A worker has one call outstanding, so there are about as many threads as workers; a handler whose worker
            // has died goes on on a thread that its successor must not wait for.
            Handler::Sync(_) => (Place::Threads, usize::MAX),
            Handler::Async(_, None) => (Place::Executor, 1),
            Handler::Async(_, Some(_)) => (Place::Elsewhere, 1),
        };
        Self { place, handler: Mutex::new(Some(handler)), queue: Queue::new(threads_max) }
    }

    /// Has a call answered. Called by whoever delivered it, without a station in hand.
    pub(crate) fn serve(&self, core: &Core, call: Request) {
        if core.phase() >= Phase::Ending {
            return core.refuse_call(&call, ENDING);
        }
        let Some(core) = core.shared() else { return };
        match self.place {
            Place::Threads => self.queue.push(&core.clone(), Work::Answer(core, call)),
            Place::Executor => Turn::start(self.queue.clone(), Handling::new(core, call)),
            // `spawn` is user code and may block or panic, so it does not run on the caller's thread.
            Place::Elsewhere => self.queue.push(&core.clone(), Work::Spawn(Handling::new(core, call))),
        }
    }

    fn sync_handler(&self) -> Option<SyncHandler> {
        match &*self.handler.lock() {
            Some(Handler::Sync(handler)) => Some(handler.clone()),
            _ => None,
        }
    }

    fn async_handler(&self) -> Option<AsyncHandler> {
        match &*self.handler.lock() {
            Some(Handler::Async(handler, _)) => Some(handler.clone()),
            _ => None,
        }
    }

    fn spawner(&self) -> Option<Spawn> {
        match &*self.handler.lock() {
            Some(Handler::Async(_, spawn)) => spawn.clone(),
            _ => None,
        }
    }

    /// Lets the threads go once they have nothing to do, and drops the handler, unless a call that runs has it: those are not
    /// waited for (SERVICE-1).
    pub(crate) fn end(&self) {
        self.queue.stop();
        let handler = self.handler.lock().take();
        let_go(handler);
    }
}

/// Drops what is the user's.
fn let_go<T>(users: T) {
    let _ = panics::guard(|| drop(users));
}

fn refusal(why: &str) -> Answer {
    (AnswerKind::Refused, AlignedBytes::from(why.as_bytes()))
}

/// A panic in a handler becomes an error in the task.
fn guarded(handler: impl FnOnce() -> Answer) -> Answer {
    panics::guard(handler).unwrap_or_else(panicked)
}

fn panicked(caught: Caught) -> Answer {
    (AnswerKind::Panicked, AlignedBytes::from(caught.to_string().as_bytes()))
}

/// An async handler at work on one call, or about to be.
struct Handling {
    core: Arc<Core>,
    mark: Arc<Mark>,
    call: Option<Request>,
    state: HandlingState,
}

enum HandlingState {
    Unstarted,
    Running(BoxFuture<'static, Answer>),
    Over,
}

impl Handling {
    fn new(core: Arc<Core>, call: Request) -> Pin<Box<Self>> {
        let mark = Mark::new(&core, &call);
        Box::pin(Self { core, mark, call: Some(call), state: HandlingState::Unstarted })
    }

    fn step(&mut self, context: &mut Context<'_>) -> Poll<Answer> {
        if let HandlingState::Unstarted = &self.state {
            let Some(handler) = self.core.service().and_then(Host::async_handler) else {
                return Poll::Ready(refusal(ENDING));
            };
            let bytes = self.call.as_mut().map(|call| std::mem::take(&mut call.bytes)).unwrap_or_default();
            let future = panics::guard(|| handler(bytes, self.core.policy.max_payload));
            let_go(handler);
            match future {
                Ok(future) => self.state = HandlingState::Running(future),
                Err(caught) => return Poll::Ready(panicked(caught)),
            }
        }
        match &mut self.state {
            HandlingState::Running(future) => future.as_mut().poll(context),
            _ => Poll::Pending,
        }
    }

    /// It goes no further.
    fn refuse(&mut self, why: &str) {
        if let Some(call) = self.call.take()
            && self.core.is_here()
        {
            self.mark.clear();
            self.core.refuse_call(&call, why);
        }
    }
}

impl Future for Handling {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mark = this.mark.clone();
        let step = mark.within(|| panics::guard(|| this.step(context)));
        let answer = match step {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(answer)) => answer,
            Err(caught) => panicked(caught),
        };
        this.state = HandlingState::Over;
        mark.clear();
        if let Some(call) = this.call.take() {
            this.core.answer_call(&call, answer);
        }
        Poll::Ready(())
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        // The runtime that it was spawned on has gone, or dropped it: the worker must not wait for ever.
        self.refuse("the handler's future was dropped");
    }
}

impl Core {
    /// The pool's own reference to itself.
    fn shared(&self) -> Option<Arc<Core>> {
        self.me.get().and_then(Weak::upgrade)
    }

    /// Sends an answer to the worker, if it still waits for it.
    fn answer_call(&self, call: &Request, answer: Answer) {
        self.stations[call.station].own(self).answer(call, answer);
    }

    /// Likewise. The worker's next call, if it comes at once and is to be answered.
    fn answer_and_await(&self, call: &Request, answer: Answer) -> Option<Request> {
        let next = {
            let mut station = self.stations[call.station].own(self);
            station.answer(call, answer);
            station.await_call()
        }?;
        if self.phase() >= Phase::Ending {
            self.refuse_call(&next, ENDING);
            return None;
        }
        Some(next)
    }

    /// Answers a worker's calls for as long as they come one after the other.
    fn answer_calls(self: &Arc<Core>, call: Request) {
        let mut next = Some(call);
        while let Some(call) = next {
            let Some(handler) = self.service().and_then(Host::sync_handler) else {
                return self.refuse_call(&call, ENDING);
            };
            let mark = Mark::new(self, &call);
            let answer = mark.within(|| guarded(|| handler(&call.bytes, self.policy.max_payload)));
            // Before the answer: the worker's next call has a mark of its own, and its next step may be the pool's end.
            mark.clear();
            let_go(handler);
            next = self.answer_and_await(&call, answer);
        }
    }

    pub(crate) fn refuse_call(&self, call: &Request, why: &str) {
        self.answer_call(call, refusal(why));
    }
}

/// A handler at work, for noticing that it waits for its own pool.
#[derive(Debug)]
pub(crate) struct Mark {
    core: Weak<Core>,
    station: usize,
    call: CallId,
    /// Whether it has noted anything in [`Waiting`].
    noted: AtomicBool,
}

/// A worker's generation, and the number of its call. Later calls of a station are greater.
type CallId = (u64, u64);

/// What the handler of a worker's call waits for.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    call: Option<CallId>,
    /// How often it waits for something that any worker can bring.
    anywhere: usize,
    /// Likewise, that only the worker of this station can.
    only_at: Option<usize>,
    /// Tasks that it has polled and that were pending then, by the addresses and generations of their jobs.
    polled: BTreeMap<(usize, u64), &'static Job>,
}

/// Which workers could help a handler that waits.
#[derive(Clone, Copy)]
enum Helper {
    Any,
    Only(usize),
}

impl Waiting {
    /// Who could help, if it waits.
    fn helper(&mut self) -> Option<Helper> {
        while let Some(first) = self.polled.first_entry() {
            if !first.get().is_over(first.key().1) {
                return Some(Helper::Any);
            }
            first.remove();
        }
        if self.anywhere > 0 { Some(Helper::Any) } else { self.only_at.map(Helper::Only) }
    }
}

thread_local! {
    static HANDLER: RefCell<Option<Arc<Mark>>> = const { RefCell::new(None) };
}

impl Mark {
    fn new(core: &Arc<Core>, call: &Request) -> Arc<Self> {
        let call_id = (call.generation, call.number);
        let core = Arc::downgrade(core);
        Arc::new(Self { core, station: call.station, call: call_id, noted: AtomicBool::new(false) })
    }

    /// Runs part of the handler on this thread.
    fn within<T>(self: &Arc<Self>, f: impl FnOnce() -> T) -> T {
        let before = HANDLER.replace(Some(self.clone()));
        let result = f();
        HANDLER.set(before);
        result
    }

    /// Changes what is noted about this handler; not about that of a later call.
    fn note(&self, core: &Core, f: impl FnOnce(&mut Waiting)) {
        let mut waiting = core.waiting[self.station].lock();
        if waiting.call > Some(self.call) {
            return;
        }
        if waiting.call < Some(self.call) {
            self.noted.store(true, Ordering::Relaxed);
            *waiting = Waiting { call: Some(self.call), ..Waiting::default() };
        }
        f(&mut waiting);
    }

    /// The handler has ended.
    fn clear(&self) {
        if self.noted.load(Ordering::Relaxed)
            && let Some(core) = self.core.upgrade().filter(|core| core.is_here())
        {
            self.note(&core, |waiting| *waiting = Waiting { call: waiting.call, ..Waiting::default() });
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whose handler this thread runs, for what is printed about a panic in it: `till: the service, called by worker 0
/// (generation 0),`.
pub(crate) fn describe_handler() -> Option<String> {
    // Who holds it at this moment panics while it comes or goes, and not in the handler.
    let mark = HANDLER.try_with(|handler| handler.try_borrow().ok()?.clone()).ok().flatten()?;
    let core = mark.core.upgrade()?;
    let Mark { station, call: (generation, _), .. } = *mark;
    Some(format!("{}: the service, called by worker {station} (generation {generation}),", core.name))
}

/// Whether this thread runs a handler of this pool.
pub(crate) fn is_handler_of(core: &Core) -> bool {
    current(core).is_some()
}

/// The handler of this pool that this thread runs.
fn current(core: &Core) -> Option<Arc<Mark>> {
    core.service()?;
    let mark = HANDLER.try_with(|handler| handler.borrow().clone()).ok().flatten()?;
    std::ptr::eq(mark.core.as_ptr(), core).then_some(mark)
}

/// While it lives, a handler counts as waiting.
#[derive(Debug, Default)]
pub(crate) struct NestedWait(Option<(Arc<Mark>, Option<usize>)>);

impl Drop for NestedWait {
    fn drop(&mut self) {
        let Some((mark, only_at)) = self.0.take() else { return };
        let Some(core) = mark.core.upgrade().filter(|core| core.is_here()) else { return };
        mark.note(&core, |waiting| match only_at {
            Some(_) => waiting.only_at = None,
            None => waiting.anywhere = waiting.anywhere.saturating_sub(1),
        });
    }
}

/// To be called before a thread sleeps for a result, or a future that is polled is pending. If this thread runs a handler
/// of the same pool, it counts as waiting, and if nobody is left to bring what it waits for, that ends with an error.
pub(crate) fn nested_wait(core: &Core, awaited: &impl Awaited) -> NestedWait {
    nested_wait_at(core, awaited.only_at(), |error| awaited.call_off(core, &error))
}

/// As [`nested_wait`], for what is called off by `call_off`.
pub(crate) fn nested_wait_or(core: &Core, call_off: impl FnOnce(TaskError)) -> NestedWait {
    nested_wait_at(core, None, call_off)
}

fn nested_wait_at(core: &Core, only_at: Option<usize>, call_off: impl FnOnce(TaskError)) -> NestedWait {
    let Some(mark) = current(core) else { return NestedWait(None) };
    mark.note(core, |waiting| match only_at {
        Some(_) => waiting.only_at = only_at,
        None => waiting.anywhere += 1,
    });
    core.check_circle(&mark, call_off);
    NestedWait(Some((mark, only_at)))
}

/// As [`nested_wait`], for a task that was polled, until it is over.
pub(crate) fn nested_poll(core: &Core, job: &'static Job) {
    if let Some(mark) = current(core) {
        let name = (std::ptr::from_ref(job).addr(), job.generation());
        mark.note(core, |waiting| waiting.polled.extend([(name, job)]));
        core.check_circle(&mark, |error| job.call_off(core, &error));
    }
}

impl Core {
    /// Calls off what this handler waits for, if every worker that could bring it waits in a call for a handler that waits
    /// itself.
    fn check_circle(&self, mark: &Mark, call_off: impl FnOnce(TaskError)) {
        // Whoever of several is the last to note that he waits sees all of them. A worker that has died has a successor.
        let mut stuck: Vec<_> = (0..self.stations.len()).map(|station| self.helper_of(station)).collect();
        let is_helped = |stuck: &[Option<Helper>], station: usize| match stuck[station] {
            Some(Helper::Any) => stuck.iter().any(Option::is_none),
            Some(Helper::Only(station)) => stuck.get(station).is_none_or(Option::is_none),
            None => false,
        };
        loop {
            if stuck[mark.station].is_none() || is_helped(&stuck, mark.station) {
                return;
            }
            let Some(helped) = (0..stuck.len()).find(|&station| is_helped(&stuck, station)) else { break };
            stuck[helped] = None;
        }
        let failure = PoolFailure::new(
            "deadlock: every worker that could run it waits in a service call for a handler that waits for a task of \
             this pool; use another pool in the handler",
        );
        call_off(TaskError::PoolFailed(failure));
    }

    fn helper_of(&self, station: usize) -> Option<Helper> {
        let mut waiting = self.waiting[station].lock();
        let (generation, _) = waiting.call?;
        (generation == self.generation_of(station)).then(|| waiting.helper())?
    }
}
