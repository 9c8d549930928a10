//! The pool's own threads: named, counted, and out of the way of the program's signal handlers.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ground::sys::signals;

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// How many threads of this process are pools' own: they hold nothing across a fork that a child could miss. Those of
/// [`spawn_for_program`] are not among them.
pub(crate) fn count() -> usize {
    THREADS.load(Ordering::Relaxed)
}

/// Starts a detached thread that receives none of the program's signals.
pub(crate) fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            THREADS.fetch_sub(1, Ordering::Relaxed);
        }
    }
    THREADS.fetch_add(1, Ordering::Relaxed);
    let counted = Counted;
    spawn_for_program(name, move || {
        let _counted = counted;
        run();
    })
}

/// As [`spawn`], for a thread that runs the program's code as a matter of course and may hold its locks across a fork.
pub(crate) fn spawn_for_program(name: String, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let mask = signals::block_all();
    let spawned = std::thread::Builder::new().name(name).spawn(run);
    mask.restore();
    spawned.map(drop)
}
