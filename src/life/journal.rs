//! What happens in a pool, told by a thread of its own, where [`Builder::record`](crate::Builder::record) or `Builder::metrics`
//! asked for it.
//!
//! Whoever owns a station leaves an entry in a list and goes on; the thread swaps the list for an empty one a few dozen times
//! a second, and sees to the rest: names, text, the disk. While nothing happens it sleeps, without a wake-up.
//!
//! The list is bounded: what comes when the disk has not kept up with the last [`ENTRIES_MAX`] entries is counted, not kept.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::libc;

use super::core::Core;
use super::messages::Who;
use super::threads;
use super::trace::Trace;
use crate::ground::monitor::{Condvar, Mutex, MutexGuard};
use crate::ground::sys::{SysError, clock};
use crate::panics;
use crate::protocol::lane::Run;
use crate::task::TaskId;

/// How often the list is emptied while something happens.
const TICK: Duration = Duration::from_millis(20);
/// About a second of very small tasks, and 100 MiB.
const ENTRIES_MAX: usize = 1 << 20;
/// How long the end of a pool waits for the disk, and for the program's recorder.
const PATIENCE: Duration = Duration::from_secs(5);

/// Something that has happened, with times of [`clock::now_ns`].
#[derive(Debug)]
pub(crate) enum Entry {
    Task(TaskEntry),
    /// A worker has become ready.
    Ready {
        who: Who,
        pid: u32,
        asked_ns: u64,
        at_ns: u64,
    },
    /// A worker has ended, or a process that was to be one.
    Ended {
        who: Who,
        at_ns: u64,
        how: String,
    },
    /// How many tasks wait and run.
    Depth {
        at_ns: u64,
        queued: u64,
        running: u64,
    },
    /// So many entries were not kept.
    Missing {
        at_ns: u64,
        entries: u64,
    },
}

/// A task was run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskEntry {
    pub(crate) who: Who,
    pub(crate) id: TaskId,
    pub(crate) run: Run,
    pub(crate) submitted_ns: u64,
    pub(crate) outcome: &'static str,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Journal {
    list: Mutex<List>,
    changed: Condvar,
    /// Whether the thread sleeps until something happens. A hint: it is looked at again under the lock.
    is_asleep: AtomicBool,
    /// Tasks that were submitted, to see whether anything has happened.
    submitted: AtomicU64,
}

#[derive(Debug)]
struct List {
    entries: Vec<Entry>,
    dropped: u64,
    /// The pool is at its end: what is there is written, and nothing more comes.
    closing: bool,
    /// `None` while the thread is at it, and when it is closed.
    writers: Option<Writers>,
    has_thread: bool,
}

/// Who is told.
#[derive(Debug, Default)]
pub(crate) struct Writers {
    pub(crate) trace: Option<Trace>,
    #[cfg(feature = "metrics")]
    pub(crate) metrics: Option<super::publish::Metrics>,
}

impl Writers {
    /// `last`: before nothing more happens for a while.
    fn write(&mut self, core: &Core, entries: &[Entry], last: bool) {
        if let Some(trace) = &mut self.trace {
            trace.write(core, entries);
        }
        #[cfg(feature = "metrics")]
        if let Some(metrics) = &mut self.metrics {
            // A recorder is the program's code.
            let _ = panics::guard(|| metrics.publish(entries, last, || core.stats()));
        }
        #[cfg(not(feature = "metrics"))]
        let _ = last;
    }

    /// Whether their thread may hold locks of the program's.
    fn run_programs_code(&self) -> bool {
        #[cfg(feature = "metrics")]
        let has_recorder = self.metrics.is_some();
        #[cfg(not(feature = "metrics"))]
        let has_recorder = false;
        has_recorder
    }

    fn close(self) {
        self.trace.into_iter().for_each(Trace::close);
    }
}

impl Journal {
    pub(crate) fn new(writers: Writers) -> Self {
        Self {
            list: Mutex::new(List {
                entries: Vec::new(),
                dropped: 0,
                closing: false,
                writers: Some(writers),
                has_thread: false,
            }),
            changed: Condvar::new(),
            is_asleep: AtomicBool::new(false),
            submitted: AtomicU64::new(0),
        }
    }

    /// Starts the thread.
    pub(crate) fn start(self: &Arc<Self>, core: &Arc<Core>) -> std::io::Result<()> {
        let (journal, core_of_thread) = (self.clone(), Arc::downgrade(core));
        let runs_programs_code;
        {
            let mut list = self.list.lock();
            list.has_thread = true;
            runs_programs_code = list.writers.as_ref().is_some_and(Writers::run_programs_code);
            // So that there is a document when `build` returns.
            if let Some(trace) = list.writers.as_mut().and_then(|writers| writers.trace.as_mut()) {
                trace.write(core, &[]);
            }
        }
        let name = format!("{}-record", core.name);
        let run = move || journal.run(&core_of_thread);
        let started = match runs_programs_code {
            true => threads::spawn_for_program(name, run),
            false => threads::spawn(name, run),
        };
        if started.is_err() {
            self.list.lock().has_thread = false;
        }
        started
    }

    pub(crate) fn push(&self, entry: Entry) {
        let mut list = self.list.lock();
        if list.closing && list.writers.is_none() && !list.has_thread {
            return;
        }
        if list.entries.len() < ENTRIES_MAX {
            list.entries.push(entry);
        } else {
            list.dropped += 1;
        }
        self.wake(list);
    }

    /// A task has been submitted.
    pub(crate) fn note_submitted(&self) {
        self.submitted.fetch_add(1, Ordering::SeqCst);
        // The thread says that it sleeps, then looks at the count.
        if self.is_asleep.load(Ordering::SeqCst) {
            self.wake(self.list.lock());
        }
    }

    fn wake(&self, list: MutexGuard<'_, List>) {
        let is_asleep = self.is_asleep.swap(false, Ordering::SeqCst);
        drop(list);
        if is_asleep {
            self.changed.notify_all();
        }
    }

    /// Writes what there is, and ends the thread. Waits until that is done, but not for ever: the thread runs the program's recorder
    /// and log hook, and writes to its disk.
    pub(crate) fn close(&self, core: &Core) {
        let mut list = self.list.lock();
        list.closing = true;
        self.is_asleep.store(false, Ordering::SeqCst);
        self.changed.notify_all();
        let until = Instant::now() + PATIENCE;
        while list.has_thread {
            if self.changed.wait_until(&mut list, until).timed_out() {
                // It has the writers, and closes them if it ever comes back.
                return;
            }
        }
        // If there was no thread.
        let (entries, writers) = (std::mem::take(&mut list.entries), list.writers.take());
        drop(list);
        if let Some(mut writers) = writers {
            writers.write(core, &entries, true);
            writers.close();
        }
    }

    fn run(&self, core: &Weak<Core>) {
        /// However the thread ends, nobody is to wait for it.
        struct Leaving<'a>(&'a Journal);
        impl Drop for Leaving<'_> {
            fn drop(&mut self) {
                self.0.list.lock().has_thread = false;
                self.0.changed.notify_all();
            }
        }
        let _leaving = Leaving(self);
        let Some(mut writers) = self.list.lock().writers.take() else { return };
        let _ = panics::guard(|| self.write_until_closed(core, &mut writers));
        writers.close();
    }

    fn write_until_closed(&self, core: &Weak<Core>, writers: &mut Writers) {
        let mut submitted = 0;
        let mut is_over = false;
        while !is_over {
            let mut list = self.list.lock();
            if !list.closing {
                self.changed.wait_for(&mut list, TICK);
            }
            is_over = list.closing;
            let mut entries = std::mem::take(&mut list.entries);
            let dropped = std::mem::take(&mut list.dropped);
            drop(list);
            let Some(core) = core.upgrade() else { break };
            let depth = core.depth();
            let at_ns = clock::now_ns();
            if dropped > 0 {
                entries.push(Entry::Missing { at_ns, entries: dropped });
            }
            let submitted_now = self.submitted.load(Ordering::SeqCst);
            let is_quiet = entries.is_empty() && submitted == submitted_now && depth == (0, 0);
            submitted = submitted_now;
            if !is_quiet {
                entries.push(Entry::Depth { at_ns, queued: depth.0, running: depth.1 });
            }
            writers.write(&core, &entries, is_quiet || is_over);
            drop(core);
            if is_quiet && !is_over {
                self.sleep(submitted);
            }
        }
    }

    /// Until something happens.
    fn sleep(&self, submitted: u64) {
        let mut list = self.list.lock();
        self.is_asleep.store(true, Ordering::SeqCst);
        while self.is_asleep.load(Ordering::SeqCst)
            && list.entries.is_empty()
            && !list.closing
            && self.submitted.load(Ordering::SeqCst) == submitted
        {
            self.changed.wait(&mut list);
        }
        self.is_asleep.store(false, Ordering::SeqCst);
    }
}

/// Opens the file of a recording, so that a path that cannot be written to is an error of `build`.
pub(crate) fn create(path: &Path) -> Result<File, SysError> {
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        // A FIFO without a reader must not keep the caller waiting, who holds the registry.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .and_then(|mut file| file.stream_position().map(|_| file));
    opened.map_err(|error| {
        let error = match error.raw_os_error() {
            // What opening a FIFO or a socket ends with, and asking for a position in one.
            Some(libc::ENXIO | libc::ESPIPE) => std::io::Error::new(
                ErrorKind::InvalidInput,
                "a recording needs a file that can be written at any position, not a FIFO, a socket or a terminal",
            ),
            _ => error,
        };
        SysError::new("open for Builder::record", error)
    })
}
