//! From a plan to a running pool: the fork of the zygote and what surrounds it.

#![allow(unsafe_code, reason = "fork, and a seed that threads share")]

use std::any::Any;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, TaskError};
use crate::faults;
use crate::ground::barrier;
use crate::ground::doorbell::Doorbell;
use crate::ground::spin::{SpinBudget, WaitPolicy};
use crate::ground::sys::objects::Objects;
use crate::ground::sys::process::{self, Fork, PidFd};
use crate::ground::sys::socket::Socket;
use crate::ground::sys::{SysError, cores};
use crate::life::core::{Core, Phase};
use crate::life::crashers::Saver;
use crate::life::crew::{Crew, Muster};
use crate::life::driver::{Driver, Nursery};
use crate::life::journal::{self, Journal, Writers};
#[cfg(feature = "metrics")]
use crate::life::publish::Metrics;
use crate::life::recycling::Recycling;
use crate::life::registry::{self, Registry};
use crate::life::seed::{BoundFn, Init, MakeState, OnExit, Seed, SharedSeed};
use crate::life::service::{Handler, Host};
use crate::life::setup::Setup;
use crate::life::station::Station;
use crate::life::terms::{OnWorkerLoss, Policy, Terms};
use crate::life::threads;
use crate::life::trace::Trace;
use crate::life::worker;
use crate::life::zygote::{self, Launch};
use crate::limits;
use crate::panics;
use crate::pool::Handle;

/// What a builder has collected, apart from what has a type parameter.
pub(crate) struct Plan {
    pub(crate) workers: Option<usize>,
    pub(crate) init: Option<Init>,
    pub(crate) state: Option<MakeState>,
    pub(crate) on_exit: Option<OnExit>,
    pub(crate) handler: Option<Handler>,
    pub(crate) queue_limit: Option<usize>,
    pub(crate) wait_policy: WaitPolicy,
    pub(crate) policy: Policy,
    pub(crate) init_timeout: Duration,
    pub(crate) close_inherited_fds: bool,
    pub(crate) recycling: Recycling,
    pub(crate) setup: Setup,
    pub(crate) crashers: Option<PathBuf>,
    pub(crate) name: String,
    /// Workers are threads of this process, and what the plan has from the user may be shared between them (SEED-1).
    pub(crate) in_process: bool,
    /// Whether tasks are timed, and where what happens is written down.
    pub(crate) timings: bool,
    pub(crate) record: Option<PathBuf>,
    #[cfg(feature = "metrics")]
    pub(crate) metrics: bool,
}

impl Plan {
    fn publishes_metrics(&self) -> bool {
        #[cfg(feature = "metrics")]
        let metrics = self.metrics;
        #[cfg(not(feature = "metrics"))]
        let metrics = false;
        metrics
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("name", &self.name)
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            workers: None,
            init: None,
            state: None,
            on_exit: None,
            handler: None,
            queue_limit: None,
            wait_policy: WaitPolicy::default(),
            policy: Policy {
                max_payload: limits::MAX_PAYLOAD_DEFAULT,
                terms: Terms::default(),
                kill_signal: None,
                on_worker_loss: OnWorkerLoss::default(),
            },
            init_timeout: limits::INIT_TIMEOUT_DEFAULT,
            close_inherited_fds: false,
            recycling: Recycling::default(),
            setup: Setup::default(),
            crashers: None,
            name: "forkring".to_owned(),
            in_process: false,
            timings: false,
            record: None,
            #[cfg(feature = "metrics")]
            metrics: false,
        }
    }
}

/// The master's ends of what it shares with its workers and the zygote.
struct Ends {
    nursery: Nursery,
    /// The master's copy of what the zygote has.
    seed: Option<Seed>,
    driver_bell: Arc<Doorbell>,
    stations: Box<[Station]>,
    handler: Option<Handler>,
    /// In the registry.
    record: Option<File>,
}

/// All that exists at the moment of the fork. Leaked while both processes have it: no value of ours that owns a
/// descriptor or something of the user's stands on the stack that a worker may unwind.
struct AtFork {
    launch: Launch,
    socket: Socket,
    driver_bell: Doorbell,
    stations: Box<[Station]>,
    handler: Option<Handler>,
    record: Option<File>,
}

/// The closure that a pool is made around, if it is.
pub(crate) struct Around {
    pub(crate) place: BoundFn,
    /// `None`: it is the caller's, and so is waiting until the muster is empty.
    pub(crate) owner: Option<Box<dyn Any>>,
}

/// Builds a pool and waits until its workers are ready. `muster`: where those are present who may touch what the pool is
/// given, if that is threads of this process.
pub(crate) fn launch(
    plan: Plan,
    env: Box<dyn Any>,
    around: Option<Around>,
    muster: &Arc<Muster>,
) -> Result<Handle, Error> {
    let cores = cores::usable_cores();
    let workers = plan.workers.unwrap_or(cores);
    limits::check_workers(workers)?;
    limits::check_name(&plan.name)?;
    limits::check_max_payload(plan.policy.max_payload)?;
    limits::check_init_timeout(plan.init_timeout)?;
    limits::check_recycling(&plan.recycling)?;
    if plan.in_process {
        limits::check_in_process(&plan)?;
    }
    let publishes = plan.publishes_metrics();
    let setup = plan.setup.check()?;
    let saver = plan.crashers.as_deref().map(|dir| Saver::new(dir, &plan.name)).transpose()?;
    faults::prepare();
    install().map_err(|error| Error::caused("a pool could not be built", error))?;
    if !plan.in_process {
        warn_of_threads(&plan.name);
    }
    let spin = SpinBudget::new(plan.wait_policy, workers, setup.cores(workers, cores));
    let queue_limit = plan.queue_limit;
    let objects = Objects::load();
    let is_timed = plan.timings || plan.record.is_some() || publishes;
    let Plan { init, state, on_exit, handler, policy, init_timeout, close_inherited_fds, name, .. } = plan;
    let may_unwind = around.is_none();
    let (bound, bound_owner) = around.map(|around| (around.place, around.owner)).unzip();
    let seed = Seed {
        name: name.clone(),
        env,
        init,
        state,
        on_exit,
        _bound_owner: bound_owner.flatten(),
        bound,
        may_unwind,
        is_caught: worker::is_catching(),
        objects: objects.clone(),
        max_payload: policy.max_payload,
        spin,
        close_inherited_fds,
        recycling: plan.recycling,
        setup,
        is_timed,
    };
    let failed = |error: SysError| {
        let text = format!("{error}{}", error.advice());
        Error::caused(format!("the pool {name:?} could not be built"), text)
    };
    let ends = match plan.in_process {
        false => fork_zygote(seed, handler, workers, plan.record),
        true => {
            // SAFETY: SEED-1: `in_process` says so.
            let seed = unsafe { SharedSeed::new(seed) };
            assemble_crew(seed, handler, workers, muster, plan.record)
        }
    };
    let Ends { nursery, seed, driver_bell, stations, handler, record } = ends.map_err(failed)?;
    let host = handler.map(Host::new);
    let core = Core::new(name.clone(), objects, spin, policy, stations, host, driver_bell.clone());
    let mut core = core.with_queue_limit(queue_limit).with_crashers(saver);
    if is_timed {
        let writers = Writers {
            trace: record.map(Trace::new),
            #[cfg(feature = "metrics")]
            metrics: publishes.then(|| Metrics::new(&name)),
        };
        let journal = (writers.trace.is_some() || publishes).then(|| Arc::new(Journal::new(writers)));
        core = core.with_meters(plan.timings, journal);
    }
    let core = Arc::new(core);
    let _ = core.me.set(Arc::downgrade(&core));
    let driver = Driver::new(core.clone(), driver_bell, nursery, init_timeout).map_err(failed)?;
    let recorder = core.journal.as_ref().map_or(Ok(()), |journal| journal.start(&core));
    let driver = Arc::new(Mutex::new(Some(driver)));
    let for_thread = driver.clone();
    let started = threads::spawn(format!("{name}-driver"), move || {
        let driver = for_thread.lock().take();
        driver.into_iter().for_each(Driver::run);
    });
    if let Err(error) = recorder.and(started) {
        // Without a thread of its own the pool is taken down on this one.
        driver.lock().take().into_iter().for_each(Driver::finish);
        return Err(Error::caused(format!("the pool {name:?} could not start its thread"), error));
    }
    let handle = Handle::first(core.clone());
    // User code, on this thread, with nothing held. If it panics, the handle takes the pool down.
    drop(seed);
    core.wait_for(Phase::Open, None);
    if core.phase() == Phase::Open {
        return Ok(handle);
    }
    core.end(TaskError::Terminated);
    core.wait_for(Phase::Ended, None);
    let cause = core.failure().map_or_else(|| "it ended".to_owned(), |failure| failure.to_string());
    Err(Error::new(format!("the pool {name:?} could not be built: {cause}")))
}

/// What this process needs once. No other pool's zygote inherits half of it: see [`fork_zygote`].
fn install() -> Result<(), SysError> {
    {
        let _registry = registry::lock();
        registry::install()?;
        barrier::install();
    }
    panics::install(crate::life::service::describe_handler);
    Ok(())
}

/// Makes what is shared, and forks the zygote.
fn fork_zygote(
    seed: Seed,
    handler: Option<Handler>,
    workers: usize,
    record: Option<PathBuf>,
) -> Result<Ends, SysError> {
    let mut hook = panics::keep_hook();
    let mut registry = registry::lock();
    let Shared { socket, theirs, driver_bell, driver_ringer, master, stations, record } =
        prepare(&mut registry, workers, record.as_deref())?;
    let launch = Launch { seed, socket: theirs, driver_ringer, master, foreign: registry.all() };
    let at_fork = Box::into_raw(Box::new(AtFork { launch, socket, driver_bell, stations, handler, record }));
    let forked = fork_and_run(&mut registry, &mut hook, at_fork);
    drop(hook);
    // SAFETY: made by `Box::into_raw` above; the zygote has its own copy.
    let AtFork { launch, socket, driver_bell, stations, handler, record } =
        *unsafe { Box::from_raw(at_fork) };
    let opened = forked.and_then(|pid| {
        PidFd::open(pid).inspect_err(|_| {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            let _ = process::wait_child(pid);
        })
    });
    if let Ok(zygote) = &opened {
        registry.add(zygote.as_fd());
    } else {
        registry.remove(socket.as_fd());
        driver_bell.fds().for_each(|fd| registry.remove(fd));
        record.iter().for_each(|file| registry.remove(file.as_fd()));
    }
    // The zygote's ends close here; they were never registered, and the lock is still held.
    let Launch { seed, socket: theirs, driver_ringer, master, foreign: _ } = launch;
    drop((theirs, driver_ringer, master));
    drop(registry);
    let nursery = Nursery::Zygote { socket, process: opened? };
    Ok(Ends { nursery, seed: Some(seed), driver_bell: Arc::new(driver_bell), stations, handler, record })
}

/// What takes the zygote's place where workers are threads. Nothing in it has a descriptor but the recording.
fn assemble_crew(
    seed: SharedSeed,
    handler: Option<Handler>,
    workers: usize,
    muster: &Arc<Muster>,
    record: Option<PathBuf>,
) -> Result<Ends, SysError> {
    let record = {
        let mut registry = registry::lock();
        let record = record.as_deref().map(journal::create).transpose();
        record.iter().flatten().for_each(|file| registry.add(file.as_fd()));
        record?
    };
    let driver_bell = Arc::new(Doorbell::local());
    let crew = match Crew::new(seed, &driver_bell, muster) {
        Ok(crew) => crew,
        Err(error) => {
            let mut registry = registry::lock();
            record.iter().for_each(|file| registry.remove(file.as_fd()));
            drop(record);
            return Err(error);
        }
    };
    let stations = (0..workers).map(Station::new).collect();
    Ok(Ends { nursery: Nursery::Crew(crew), seed: None, driver_bell, stations, handler, record })
}

/// What the master and the zygote are to share.
struct Shared {
    socket: Socket,
    theirs: Socket,
    driver_bell: Doorbell,
    driver_ringer: OwnedFd,
    master: PidFd,
    stations: Box<[Station]>,
    record: Option<File>,
}

/// Makes and registers descriptors. Owns nothing of the user's, which would be dropped under the lock on an error.
fn prepare(registry: &mut Registry, workers: usize, record: Option<&Path>) -> Result<Shared, SysError> {
    let record = record.map(journal::create).transpose()?;
    let (socket, theirs) = Socket::pair()?;
    let (driver_bell, driver_ringer) = Doorbell::new()?;
    let master = PidFd::open(process::own_pid())?;
    let stations = (0..workers).map(Station::new).collect();
    registry.add(socket.as_fd());
    driver_bell.fds().for_each(|fd| registry.add(fd));
    record.iter().for_each(|file| registry.add(file.as_fd()));
    Ok(Shared { socket, theirs, driver_bell, driver_ringer, master, stations, record })
}

/// Forks. Apart from the frames of callers there is nothing here for a worker to unwind but plain words.
fn fork_and_run(
    registry: &mut Registry,
    hook: &mut Option<MutexGuard<'static, ()>>,
    at_fork: *mut AtFork,
) -> Result<process::Pid, SysError> {
    let fork = registry.around_fork(|| {
        // SAFETY: the child runs `zygote::run`, which takes no lock of this process but malloc's.
        unsafe { process::fork() }
    })?;
    match fork {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => {
            registry.abandon();
            drop(hook.take());
            // SAFETY: in the child nobody else has the box, and nobody frees it.
            let at_fork: &'static AtFork = unsafe { &*at_fork };
            zygote::run(&at_fork.launch)
        }
    }
}

/// Says once a process what forking with threads puts at risk.
fn warn_of_threads(name: &str) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    let others = process::thread_count().unwrap_or(1).saturating_sub(1 + threads::count());
    if others > 0 && !WARNED.swap(true, Ordering::Relaxed) {
        crate::hooks::info(format_args!(
            "{name}: the pool is built while the program has {others} other threads; a lock that one of them holds \
             at this moment, other than malloc's, stays held in the workers. Build pools before starting threads."
        ));
    }
}
