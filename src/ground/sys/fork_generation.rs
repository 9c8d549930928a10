//! Which process am I? A number that every fork changes in the child.
//!
//! A handle remembers the generation it was made in; where that is not the current one, the handle was inherited
//! and must be inert. A pid would not do: it costs a system call, and a grandchild can be given the number of a
//! dead ancestor. Only `fork(3)` runs these handlers: `vfork` and a raw `clone` do not (pthread_atfork(3)).

#![allow(unsafe_code, reason = "pthread_atfork, and a pointer to a static that its handlers read")]

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use nix::errno::Errno;
use nix::libc;

use super::{Result, SysError};

static GENERATION: AtomicU32 = AtomicU32::new(0);
static INSTALLED: AtomicBool = AtomicBool::new(false);
static HOOKS: AtomicPtr<Hooks> = AtomicPtr::new(ptr::null_mut());

/// What to do around every fork of this process, for locks that a child must not inherit locked.
///
/// `prepare` runs before the fork, then `parent` or `child`, all three in the thread that forks. `child` must be
/// async-signal-safe, because the parent may have had other threads. None of them may unwind: that aborts.
#[derive(Debug)]
pub(crate) struct Hooks {
    pub(crate) prepare: fn(),
    pub(crate) parent: fn(),
    pub(crate) child: fn(),
}

/// The generation of this process: equal in two places exactly if no fork lies between them.
#[inline]
pub(crate) fn current() -> u32 {
    // Relaxed: written only in a child that has one thread, before `fork` returns there.
    GENERATION.load(Ordering::Relaxed)
}

/// Starts counting forks; to be called before the first handle is made. Idempotent, takes no lock of ours.
pub(crate) fn install() -> Result<()> {
    if INSTALLED.load(Ordering::Acquire) {
        return Ok(());
    }
    // Two threads may both get here; the child then adds two, which serves as well. A `Once` instead could be
    // inherited half-run by a child, which would wait for it for ever.
    register(None, None, Some(bump))?;
    INSTALLED.store(true, Ordering::Release);
    Ok(())
}

/// Registers the process's hooks, besides [`install`]. The first call wins, later ones do nothing; they cannot be
/// taken back (pthread_atfork(3) has no inverse).
pub(crate) fn install_hooks(hooks: &'static Hooks) -> Result<()> {
    install()?;
    let first = HOOKS.compare_exchange(
        ptr::null_mut(),
        ptr::from_ref(hooks).cast_mut(),
        Ordering::AcqRel,
        Ordering::Acquire,
    );
    if first.is_err() {
        return Ok(());
    }
    let registered = register(Some(prepare), Some(parent), Some(child));
    if registered.is_err() {
        HOOKS.store(ptr::null_mut(), Ordering::Release);
    }
    registered
}

type Handler = Option<unsafe extern "C" fn()>;

fn register(prepare: Handler, parent: Handler, child: Handler) -> Result<()> {
    if cfg!(miri) {
        // Which forks no processes.
        return Ok(());
    }
    // SAFETY: the handlers are functions of this object, take no arguments and do not unwind. If it is unloaded,
    // libc drops them with it (they are registered under its __dso_handle).
    match unsafe { libc::pthread_atfork(prepare, parent, child) } {
        0 => Ok(()),
        // Returns the error number; errno is not set (pthread_atfork(3)).
        error => Err(SysError::new("pthread_atfork", Errno::from_raw(error))),
    }
}

extern "C" fn bump() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

fn hooks() -> Option<&'static Hooks> {
    let hooks = HOOKS.load(Ordering::Acquire);
    // SAFETY: null, or made from a `&'static Hooks` in `install_hooks`, which nobody ever writes.
    unsafe { hooks.as_ref() }
}

extern "C" fn prepare() {
    if let Some(hooks) = hooks() {
        (hooks.prepare)();
    }
}

extern "C" fn parent() {
    if let Some(hooks) = hooks() {
        (hooks.parent)();
    }
}

extern "C" fn child() {
    if let Some(hooks) = hooks() {
        (hooks.child)();
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{exit_code_of_child, in_own_process};
    use super::*;

    static CALLS: AtomicU32 = AtomicU32::new(0);

    fn add(calls: u32) {
        CALLS.fetch_add(calls, Ordering::Relaxed);
    }

    #[test]
    fn children_differ_and_hooks_run_once_on_each_side() {
        in_own_process(concat!(module_path!(), "::children_differ_and_hooks_run_once_on_each_side"), || {
            static HOOKS: Hooks = Hooks { prepare: || add(1), parent: || add(10), child: || add(100) };
            install_hooks(&HOOKS).unwrap();
            install_hooks(&HOOKS).unwrap();
            let before = current();
            let child = exit_code_of_child(|| {
                let settled = current() == before + 1 && CALLS.load(Ordering::Relaxed) == 101;
                let grandchild = exit_code_of_child(|| if current() == before + 2 { 6 } else { 1 });
                if settled && grandchild == 6 { 5 } else { 1 }
            });
            assert_eq!(child, 5);
            assert_eq!(current(), before);
            assert_eq!(CALLS.load(Ordering::Relaxed), 11);
        });
    }
}
