//! A worker: from the fork, or the start of its thread, to its last request.
//!
//! # How a process gets to its loop
//!
//! The zygote forks; [`run`] maps the region and runs `init` and `state`. If `init` returns, the loop runs on top of
//! the inherited stack. If `init` calls `start_worker`, a *foreign exception* (not a Rust panic) unwinds the inherited
//! stack, running its destructors, until it meets the guard that `StartWorker::catch` left there, whose destructor
//! runs the loop and ends the process. Nothing catches the exception: a `catch_unwind` on its way, be it the user's
//! or that of `thread::scope` or of a runtime's task, makes std abort the worker ("Rust cannot catch foreign
//! exceptions"), which `build()` reports. So the program's own `main` never goes on in a worker.
//!
//! For that reason `init` runs under no `catch_unwind` of ours either: a guard's destructor tells a panic from the
//! exception.
//!
//! # How a thread does
//!
//! [`run_on_thread`] has the region and runs the same steps under a `catch_unwind`. It inherits no stack, so `start_worker`
//! unwinds nothing but `init` itself. What ends a process in the middle of something ends a thread with a panic that has a
//! payload of our own ([`Quit`]), which no hook sees.
//!
//! * WORKER-1: of a worker that is a thread, core and region live until its loop has ended and nothing of the user's runs on the
//!   thread any more; nothing that gets a reference to the core, or to what is in the region, keeps it for longer: a task
//!   sees a `&Worker`, which it cannot copy, and what that gives out borrows from it.

#![allow(unsafe_code, reason = "raising an exception; a pointer to the process's only worker")]

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;

use super::messages::Who;
use super::recycling::Allowance;
use super::seed::Seed;
use crate::context::{Call, WorkerInfo};
use crate::faults::{Point, point};
use crate::ground::barrier;
use crate::ground::sys::process;
use crate::memory::codec::AlignedBytes;
use crate::memory::region::WorkerRegion;
use crate::panics::{self, Caught};
use crate::protocol::code::{CodeId, Shim};
use crate::protocol::port::{Bells, Input, Port, Request};
use crate::protocol::wire::{Status, WorkerState};

/// Exit code of a worker that could not start. The master reads the reason from the region.
const EXIT_NOT_STARTED: i32 = 70;

/// What a thread unwinds with that ends as a worker in the middle of something.
struct Quit;

/// What `start_worker` unwinds `init` with, on a thread.
struct Started;

/// Half of the scale above the default of 0.
const OOM_SCORE_ADJ: i32 = 500;

/// What a worker knows. In a process of its own it is leaked, since that ends without returning.
pub(crate) struct WorkerCore {
    pub(crate) seed: &'static Seed,
    pub(crate) info: WorkerInfo,
    pub(crate) port: RefCell<Port>,
    pub(crate) state: RefCell<Option<Box<dyn Any>>>,
    /// Whether the running task has asked for the state.
    pub(crate) state_used: Cell<bool>,
    /// Why there is no state any more.
    stateless: Cell<Option<String>>,
    /// The request that is running.
    pub(crate) request: Cell<Option<u64>>,
    /// How many items of the batch before were cut off.
    pub(crate) left_out: Cell<u64>,
    /// Where results of variable size are encoded, empty between items. Whoever uses it takes it out and puts it back.
    pub(crate) result: Cell<AlignedBytes>,
    /// The function that was looked up last.
    known: Cell<Option<(CodeId, Shim)>>,
    /// Likewise, see [`look_up`](Self::look_up).
    known_to_timed: Cell<Option<(CodeId, Shim)>>,
    /// Whether it is a thread of the master's process.
    is_thread: bool,
}

impl std::fmt::Debug for WorkerCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerCore").field("info", &self.info).finish_non_exhaustive()
    }
}

thread_local! {
    /// The worker that this thread is: of a process, its main thread.
    static WORKER: Cell<Option<&'static WorkerCore>> = const { Cell::new(None) };
    /// How many `StartWorker::catch` are active on this thread.
    static CATCHING: Cell<usize> = const { Cell::new(0) };
    /// Whether the exception of `start_worker` is on its way.
    static UNWINDING: Cell<bool> = const { Cell::new(false) };
}

/// Starts a worker in a process that the zygote has just forked.
pub(crate) fn run(seed: &'static Seed, who: Who, a: OwnedFd, b: OwnedFd, bells: Bells) -> ! {
    super::zygote::name_process(&format!("w{}", who.station));
    point(Point::WorkerUnmapped);
    let Ok(region) = WorkerRegion::map(&a, &b) else { process::exit_now(EXIT_NOT_STARTED) };
    point(Point::WorkerMapped);
    drop((a, b));
    #[cfg(forkring_faults)]
    crate::faults::scribble::note(region.side_b());
    barrier::join();
    process::leave_by_exit_now();
    // When memory runs out, the kernel is to choose a worker and not the master. Best effort.
    let _ = process::set_oom_score_adj(OOM_SCORE_ADJ);
    let port = Port::new(Box::leak(Box::new(region)), bells, seed.spin, process::flush_output);
    let core: &'static WorkerCore = Box::leak(Box::new(WorkerCore::new(seed, who, port, false)));
    WORKER.set(Some(core));
    crate::here::note_worker(&seed.name, who.station, who.generation, &core.request);
    if let Err(text) = core.set_up() {
        core.fail(&text);
    }
    core.initialise();
    core.serve()
}

/// Is a worker on this thread until it is told to leave; its exit code, as if it were a process.
pub(crate) fn run_on_thread(
    seed: &Seed,
    name: &'static str,
    who: Who,
    region: WorkerRegion,
    bells: Bells,
) -> i32 {
    // SAFETY: WORKER-1: the caller's reference outlives this function, and the core does not.
    let seed: &'static Seed = unsafe { &*std::ptr::from_ref(seed) };
    let region = Box::into_raw(Box::new(region));
    // SAFETY: WORKER-1: freed below, after the port that has it.
    let port = Port::new(unsafe { &mut *region }, bells, seed.spin, || ());
    let core = Box::into_raw(Box::new(WorkerCore::new(seed, who, port, true)));
    // SAFETY: WORKER-1: freed below.
    let shared: &'static WorkerCore = unsafe { &*core };
    WORKER.set(Some(shared));
    crate::here::note_thread(Some((name, who.station, who.generation)), Some(&shared.request));
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let outcome =
            shared.set_up().and_then(|()| shared.initialise_on_thread()).and_then(|()| shared.work());
        let Err(text) = outcome else { return 0 };
        shared.announce_failure(&text);
        EXIT_NOT_STARTED
    }));
    let code = ended.unwrap_or_else(|payload| match payload.is::<Quit>() {
        true => EXIT_NOT_STARTED,
        // A panic of the pool's own code, which the hook has reported.
        false => std::process::abort(),
    });
    // If the loop has not come to that: user code, once more.
    let _ = panics::guard(|| drop(shared.state.take()));
    WORKER.set(None);
    crate::here::note_thread(None, None);
    // SAFETY: WORKER-1: made above, and nothing has it any more.
    drop(unsafe { Box::from_raw(core) });
    // SAFETY: as above: the port went with the core.
    drop(unsafe { Box::from_raw(region) });
    code
}

/// Whether a `StartWorker::catch` is active on this thread.
pub(crate) fn is_catching() -> bool {
    CATCHING.get() > 0
}

impl WorkerCore {
    fn new(seed: &'static Seed, who: Who, port: Port, is_thread: bool) -> Self {
        Self {
            seed,
            info: WorkerInfo::new(who.station, who.generation),
            port: RefCell::new(port),
            state: RefCell::new(None),
            state_used: Cell::new(false),
            stateless: Cell::new(None),
            request: Cell::new(None),
            left_out: Cell::new(0),
            result: Cell::default(),
            known: Cell::new(None),
            known_to_timed: Cell::new(None),
            is_thread,
        }
    }

    fn set_up(&self) -> Result<(), String> {
        let begun = self.seed.setup.begin(self.info.id());
        begun.map_err(|error| format!("a worker could not be set up: {error}"))
    }

    /// Runs `init` where nothing lies under it that could be unwound.
    fn initialise_on_thread(&'static self) -> Result<(), String> {
        let Some(init) = &self.seed.init else { return Ok(()) };
        match catch_unwind(AssertUnwindSafe(|| init(&self.info))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("init failed: {error}")),
            Err(payload) if payload.is::<Started>() => Ok(()),
            Err(payload) if payload.is::<Quit>() => resume_unwind(payload),
            Err(payload) => Err(describe_init_panic(&Caught::new(payload))),
        }
    }

    /// Runs `init`. If it unwinds, the guard tells why.
    fn initialise(&'static self) {
        let Some(init) = &self.seed.init else { return };
        panics::want_messages(true);
        let guard = InitGuard(self);
        let result = init(&self.info);
        std::mem::forget(guard);
        panics::want_messages(false);
        if let Err(error) = result {
            self.fail(&format!("init failed: {error}"));
        }
    }

    /// Reports that this worker cannot start, or go on, and leaves.
    fn fail(&self, text: &str) -> ! {
        self.announce_failure(text);
        if !self.is_thread {
            process::exit_now(EXIT_NOT_STARTED)
        }
        if cfg!(panic = "abort") {
            // Nothing can be unwound: the thread is left where it is, in `init`, which was to be ended.
            loop {
                std::thread::park();
            }
        }
        resume_unwind(Box::new(Quit))
    }

    fn announce_failure(&self, text: &str) {
        if let Ok(mut port) = self.port.try_borrow_mut() {
            port.set_state(WorkerState::Failed, text);
        }
    }

    /// Serves until told to leave, and leaves.
    fn serve(&'static self) -> ! {
        let guard = LoopGuard;
        point(Point::Initialised);
        if let Err(text) = self.work() {
            self.fail(&text);
        }
        std::mem::forget(guard);
        point(Point::Left);
        // What tasks printed without a line's end.
        process::flush_output();
        self.seed.setup.end();
        process::exit_now(0)
    }

    /// Makes the state and serves until told to leave.
    fn work(&'static self) -> Result<(), String> {
        if self.port.borrow().is_given_up() {
            // `init` took too long.
            return Ok(());
        }
        self.make_state()?;
        self.seed.setup.ready().map_err(|error| format!("max_address_space cannot be set: {error}"))?;
        let allowance = Allowance::start(&self.seed.recycling);
        let mut allowance =
            allowance.map_err(|error| format!("max_worker_memory cannot be watched: {error}"))?;
        if self.seed.is_timed {
            self.port.borrow_mut().stamp_requests();
        }
        point(Point::Unready);
        self.port.borrow_mut().set_state(WorkerState::Ready, "");
        point(Point::Ready);
        let mut request = Request::default();
        while self.port.borrow_mut().next_request(&mut request) {
            self.execute(&request);
            if let Some(allowance) = &mut allowance
                && let Some(why) = allowance.spend(request.tasks().saturating_sub(self.left_out.take()))
            {
                self.port.borrow_mut().leave(why);
                break;
            }
        }
        point(Point::Leaving);
        let given_up = self.port.borrow().is_given_up();
        // The state goes first: it may refer to what `on_exit` tears down.
        let leaving = panics::guard(|| {
            drop(self.state.take());
            if let Some(on_exit) = self.seed.on_exit.as_ref().filter(|_| !given_up) {
                on_exit(&self.info);
            }
        });
        if let Err(Caught { message, .. }) = leaving {
            let (pool, id) = (&self.seed.name, self.info.id());
            crate::hooks::error(format_args!("{pool}: worker {id}: on_exit panicked: {message}"));
        }
        Ok(())
    }

    fn make_state(&self) -> Result<(), String> {
        let Some(make) = &self.seed.state else { return Ok(()) };
        let made = panics::guard(|| make(&self.info, &*self.seed.env));
        match made {
            Ok(Ok(state)) => {
                *self.state.borrow_mut() = Some(state);
                Ok(())
            }
            Ok(Err(error)) => Err(format!("state failed: {error}")),
            Err(caught) => Err(format!("state panicked: {caught}")),
        }
    }

    #[inline]
    fn execute(&'static self, request: &Request) {
        let shim = match self.known.get() {
            Some((code, shim)) if code == request.code => Some(shim),
            _ => self.look_up(request),
        };
        let Some(shim) = shim else {
            self.port.borrow_mut().answer(request.index, Status::UnknownTask, b"");
            return;
        };
        point(Point::Resolved);
        // What flows is received by the shim, which knows what it is.
        let input = match request.flows() {
            true => Ok(Input::InPlace(&[])),
            false => self.port.borrow_mut().input(request),
        };
        let input = match input {
            Ok(input) => input,
            Err(error) => {
                let text = error.to_string();
                return self.port.borrow_mut().answer(request.index, Status::Decode, text.as_bytes());
            }
        };
        self.request.set(Some(request.index));
        #[cfg(feature = "tracing")]
        let _span = {
            let caller = self.port.borrow().caller(request);
            crate::here::current_task().map(|task| crate::caller::enter(&task, caller))
        };
        let mut call = Call::new(self, request, &input);
        // SAFETY: CODE-1: the shim was resolved from a `TaskCode`, all of which take a `Call`.
        unsafe { shim(NonNull::from(&mut call).cast()) };
        self.request.set(None);
    }

    /// Looks a function up, and remembers it. Where tasks are timed, nothing is remembered for [`execute`](Self::execute), so
    /// that each task comes by here; a worker that takes no stamps does not even look whether it should.
    #[inline(never)]
    fn look_up(&self, request: &Request) -> Option<Shim> {
        let known = if self.seed.is_timed {
            self.port.borrow().stamp_start(request.index);
            &self.known_to_timed
        } else {
            &self.known
        };
        match known.get() {
            Some((code, shim)) if code == request.code => Some(shim),
            _ => {
                let found = request.code.resolve(&self.seed.objects);
                known.set(found.map(|shim| (request.code, shim)));
                found
            }
        }
    }

    /// After a panic: a state that the task had in its hands is made anew. Before the task is answered: until then its worker is busy, and
    /// the task's time limit holds.
    pub(crate) fn after_panic(&self) {
        if !self.state_used.get() {
            return;
        }
        // A task that leaked its borrow leaves a state that cannot be replaced: the worker starts afresh.
        let failure = match self.state.try_borrow_mut() {
            Err(_) => Err("the state cannot be made anew: its borrow was leaked".to_owned()),
            Ok(mut state) => {
                let old = state.take();
                drop(state);
                let _ = panics::guard(|| drop(old));
                self.make_state()
            }
        };
        if let Err(text) = failure {
            self.stateless.set(Some(format!("after a panic, {text}")));
        }
    }

    /// The task that panicked is answered: its caller has the panic, and the worker leaves if there is no state for others.
    pub(crate) fn leave_if_stateless(&self) {
        if let Some(text) = self.stateless.take() {
            self.fail(&text);
        }
    }
}

/// A panic of the pool's own code in a worker ends that worker.
struct LoopGuard;

impl Drop for LoopGuard {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// On the stack while `init` runs.
struct InitGuard(&'static WorkerCore);

impl Drop for InitGuard {
    fn drop(&mut self) {
        if UNWINDING.get() {
            return;
        }
        // A destructor cannot see the payload, so the message comes from the hook's notes.
        let (mut message, location) = (panics::take_message(), panics::take_location());
        if message.is_empty() {
            message
                .push_str("what it said went to a panic hook that the program has set since its first pool");
        }
        self.0.fail(&describe_init_panic(&Caught { message, location }));
    }
}

fn describe_init_panic(caught: &Caught) -> String {
    format!("init panicked: {caught}")
}

/// What `StartWorker::catch` leaves on the stack.
#[derive(Debug)]
pub(crate) struct CatchGuard(());

impl CatchGuard {
    pub(crate) fn new() -> Self {
        CATCHING.set(CATCHING.get() + 1);
        Self(())
    }
}

impl Drop for CatchGuard {
    fn drop(&mut self) {
        CATCHING.set(CATCHING.get() - 1);
        if UNWINDING.get()
            && let Some(core) = WORKER.get()
        {
            UNWINDING.set(false);
            core.serve();
        }
    }
}

/// `WorkerInfo::start_worker`.
pub(crate) fn unwind_to_catch() -> ! {
    let Some(core) = WORKER.get() else {
        panic!("start_worker() is for init, in a worker");
    };
    if cfg!(panic = "abort") {
        core.fail("start_worker() needs unwinding, and this program is built with panic = \"abort\"");
    }
    if !core.seed.may_unwind {
        core.fail(
            "start_worker() cannot be used under iter_stream or bind, whose closures may borrow from the stack that \
             it unwinds; use build()",
        );
    }
    if !if core.is_thread { core.seed.is_caught } else { is_catching() } {
        core.fail("start_worker() found no StartWorker::catch on the thread that built the pool");
    }
    if core.is_thread {
        resume_unwind(Box::new(Started));
    }
    if let Ok(mut port) = core.port.try_borrow_mut() {
        port.set_state(WorkerState::Unwinding, "");
    }
    UNWINDING.set(true);
    exception::raise();
    // Raising returns only if no handler exists up the stack.
    UNWINDING.set(false);
    core.fail("start_worker() could not unwind the stack: it does not end in Rust code")
}

/// Just enough of the Itanium C++ ABI's unwinder, which std links and uses itself.
mod exception {
    use std::mem::MaybeUninit;

    /// `_Unwind_Exception`. The private part is larger on some targets; what is too large is not touched.
    #[repr(C, align(16))]
    struct Exception {
        class: u64,
        cleanup: Option<extern "C" fn(i32, *mut Exception)>,
        private: [MaybeUninit<u64>; 20],
    }

    unsafe extern "C-unwind" {
        fn _Unwind_RaiseException(exception: *mut Exception) -> i32;
    }

    /// Unwinds the stack with an exception that is not a Rust panic. Returns if nothing up the stack handles any.
    pub(super) fn raise() {
        let exception = Box::new(Exception {
            class: u64::from_be_bytes(*b"FORKRING"),
            cleanup: None,
            private: [MaybeUninit::zeroed(); 20],
        });
        // SAFETY: a well-formed exception that outlives the unwinding, since it is leaked. Foreign exceptions may
        // unwind Rust frames and run their destructors ("C-unwind", RFC 2945).
        unsafe { _Unwind_RaiseException(Box::leak(exception)) };
    }
}
