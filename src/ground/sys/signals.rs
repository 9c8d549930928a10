//! Masks, dispositions, and SIGCHLD as a descriptor.

#![allow(unsafe_code, reason = "sigaction on numbers that nix's enum does not cover")]

use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::{Call, Result, retry_interrupted};

/// Gives a freshly forked child signals of its own. Async-signal-safe, allocates nothing.
///
/// To be called with signals blocked, as [`fork`](super::process::fork) leaves them: otherwise a handler of the
/// program could still run in the child and, say, write into a pipe that the parent reads.
///
/// * Handlers of the program go back to the default, and so do ignored signals, SIGCHLD among them.
/// * Kept: handlers for SIGSEGV and SIGBUS, [for faults only](faults_only) (std reports stack overflows with them);
///   SIGPIPE ignored (std's I/O relies on the error); and terminal signals that somebody ignored, since that is how
///   `nohup` and a shell's `&` protect whole jobs.
/// * SIGINT gets a handler that does nothing: Ctrl-C is the master's business. Ignoring it instead would outlive
///   `execve` in the task's own children (execve(2)).
/// * In the end no signal is blocked.
pub(crate) fn reset_in_child() {
    for signal in 1..=libc::SIGRTMAX() {
        // SIGKILL and SIGSTOP, and the numbers that libc keeps for itself, answer EINVAL: nothing to do there.
        let Some(action) = action(signal) else { continue };
        let handler = action.sa_sigaction;
        let keep = match signal {
            libc::SIGSEGV | libc::SIGBUS => handler != libc::SIG_IGN,
            libc::SIGPIPE | libc::SIGHUP | libc::SIGQUIT | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => {
                handler == libc::SIG_IGN
            }
            _ => false,
        };
        if signal == libc::SIGINT {
            let nothing: extern "C" fn(libc::c_int) = ignore;
            set_disposition(signal, nothing as libc::sighandler_t);
        } else if handler != libc::SIG_DFL && !keep {
            set_disposition(signal, libc::SIG_DFL);
        }
        if matches!(signal, libc::SIGSEGV | libc::SIGBUS) && handler != libc::SIG_DFL && keep {
            restrict_to_faults(signal, action);
        }
    }
    // Cannot fail: "how" is valid (pthread_sigmask(3)).
    let _ = SigSet::empty().thread_set_mask();
}

extern "C" fn ignore(_: libc::c_int) {}

/// What the handlers of SIGSEGV and SIGBUS were before [`faults_only`] took their places; 0: it has not.
static HANDLERS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

fn former_handler(signal: libc::c_int) -> &'static AtomicUsize {
    &HANDLERS[usize::from(signal == libc::SIGBUS)]
}

/// Has the handler called for faults only. Std's returns when the address is not that of a guard page, for the
/// instruction to fault once more: whoever *sent* the signal would have to do so twice.
///
/// Once in a line of processes: a handler that was installed on top of [`faults_only`] may well call it, and must not
/// be what it calls. A handler that is not told where its signal comes from stays what it is.
fn restrict_to_faults(signal: libc::c_int, mut action: libc::sigaction) {
    let former = former_handler(signal);
    if action.sa_flags & libc::SA_SIGINFO == 0 || former.load(Ordering::Relaxed) != 0 {
        return;
    }
    // Relaxed: the process has one thread, which is also the one that a signal would interrupt.
    former.store(action.sa_sigaction, Ordering::Relaxed);
    let handler: SigactionHandler = faults_only;
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: all but the handler is as the kernel gave it, the flags that it relies on included, and what `faults_only`
    // does by itself is async-signal-safe.
    let _ = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
}

type SigactionHandler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// A signal that was sent does what it does by default; a fault is left to the handler that was there before.
extern "C" fn faults_only(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo to a handler with SA_SIGINFO, and so does who calls it in a chain.
    let code = unsafe { (*info).si_code };
    let former = former_handler(signal).load(Ordering::Relaxed);
    // Above zero, the kernel generated it (sigaction(2)).
    if code <= 0 {
        set_disposition(signal, libc::SIG_DFL);
        // It comes when the handler returns, if it is blocked until then.
        // SAFETY: `raise` takes any number, and is async-signal-safe.
        let _ = unsafe { libc::raise(signal) };
        return;
    }
    let former = ptr::with_exposed_provenance::<()>(former);
    // SAFETY: `restrict_to_faults` stored what the kernel gave as a handler, neither SIG_DFL nor SIG_IGN, that takes
    // these arguments, before it put this one in its place.
    let former = unsafe { mem::transmute::<*const (), SigactionHandler>(former) };
    former(signal, info, context);
}

/// What a signal does, or `None` for a number that has none.
fn action(signal: libc::c_int) -> Option<libc::sigaction> {
    // SAFETY: all zeros is a valid `sigaction`: default, no flags, empty mask.
    let mut old: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: a null "new" only asks; `old` is ours to write.
    let result = unsafe { libc::sigaction(signal, ptr::null(), &raw mut old) };
    (result == 0).then_some(old)
}

/// Sets SIG_DFL, or a function that is async-signal-safe. Private, so that no other handler can be set.
fn set_disposition(signal: libc::c_int, handler: libc::sighandler_t) {
    // SAFETY: all zeros is a valid `sigaction`: default, no flags, empty mask.
    let mut new: libc::sigaction = unsafe { mem::zeroed() };
    new.sa_sigaction = handler;
    // A task's own system calls should not see EINTR because of us.
    new.sa_flags = libc::SA_RESTART;
    // SAFETY: `new` is initialised, and its handler is SIG_DFL or `ignore`, which does nothing.
    let _ = unsafe { libc::sigaction(signal, &raw const new, ptr::null_mut()) };
}

/// Every signal that can be meant for somebody else. The synchronous ones stay out: they belong to the thread
/// that caused them, and while they are blocked the kernel kills without std's stack overflow report.
fn asynchronous() -> SigSet {
    let mut set = SigSet::all();
    for signal in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGFPE,
        Signal::SIGILL,
        Signal::SIGTRAP,
        Signal::SIGSYS,
        Signal::SIGABRT,
    ] {
        set.remove(signal);
    }
    set
}

/// A thread's mask from before [`block_all`]; dropping it puts that back. Stays on its thread.
#[derive(Debug)]
#[must_use = "dropping it unblocks the signals again"]
pub(crate) struct SavedMask {
    /// `None`: nothing was blocked, so nothing is to be undone.
    mask: Option<SigSet>,
    on_this_thread: PhantomData<*const ()>,
}

/// Blocks signals in this thread, except those that a thread causes itself. Async-signal-safe.
///
/// A thread inherits the mask of the one that starts it (pthread_create(3)), so around `spawn` this makes threads
/// on which no handler of the program ever runs.
pub(crate) fn block_all() -> SavedMask {
    // Fails only for an invalid "how" (pthread_sigmask(3)). Miri has no signals.
    let mask = (!cfg!(miri)).then(|| asynchronous().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok()).flatten();
    SavedMask { mask, on_this_thread: PhantomData }
}

impl SavedMask {
    /// Puts the mask back, like dropping, but legible.
    pub(crate) fn restore(self) {}

    /// Leaves the signals blocked for good.
    pub(crate) fn keep_blocked(self) {
        let _ = ManuallyDrop::new(self);
    }
}

impl Drop for SavedMask {
    fn drop(&mut self) {
        if let Some(mask) = self.mask {
            // Cannot fail, as above.
            let _ = mask.thread_set_mask();
        }
    }
}

/// Which signals a thread blocks. Under Miri there are none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask(Option<SigSet>);

impl Mask {
    /// This thread's.
    pub(crate) fn current() -> Result<Self> {
        let mask = (!cfg!(miri)).then(SigSet::thread_get_mask).transpose();
        mask.call("pthread_sigmask").map(Self)
    }

    /// Makes it this thread's.
    pub(crate) fn set(self) {
        // Cannot fail, as above.
        let _ = self.0.map(|mask| mask.thread_set_mask());
    }
}

/// SIGCHLD as a descriptor: readable when a child may have changed state. Several deaths can be one signal
/// (signal(7)), so it says "look", like a doorbell.
#[derive(Debug)]
pub(crate) struct SigchldFd {
    inner: SignalFd,
}

/// Blocks SIGCHLD in this thread and opens the descriptor; non-blocking and close-on-exec.
///
/// For a single-threaded process: any other thread that does not block SIGCHLD would take it away. The disposition
/// must not be "ignore", see [`reset_in_child`]. Look for dead children once after this, since a SIGCHLD from
/// before is lost.
pub(crate) fn sigchld_fd() -> Result<SigchldFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block().call("pthread_sigmask")?;
    let inner =
        SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).call("signalfd")?;
    Ok(SigchldFd { inner })
}

impl SigchldFd {
    /// Consumes what is pending; was there anything? To be called **before** reaping.
    pub(crate) fn drain(&self) -> Result<bool> {
        let mut any = false;
        while retry_interrupted(|| self.inner.read_signal()).call("read(signalfd)")?.is_some() {
            any = true;
        }
        Ok(any)
    }
}

impl AsFd for SigchldFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::poll::wait_readable;
    use super::super::process::{Fork, exit_now, fork, wait4_nohang};
    use super::super::testing::{PATIENCE, exit_code_of_child, in_own_process};
    use super::*;
    use nix::sys::signal::raise;

    extern "C" fn handler(_: libc::c_int) {
        exit_now(99);
    }

    fn handle(signal: libc::c_int) {
        let handler: extern "C" fn(libc::c_int) = handler;
        set_disposition(signal, handler as libc::sighandler_t);
    }

    #[test]
    fn a_child_starts_with_signals_of_its_own() {
        in_own_process(concat!(module_path!(), "::a_child_starts_with_signals_of_its_own"), || {
            for signal in [libc::SIGTERM, libc::SIGUSR1, libc::SIGCHLD, libc::SIGRTMIN() + 3, libc::SIGHUP] {
                handle(signal);
            }
            set_disposition(libc::SIGUSR2, libc::SIG_IGN);
            set_disposition(libc::SIGQUIT, libc::SIG_IGN);
            let disposition = |signal| action(signal).map(|action| action.sa_sigaction);
            let segv = disposition(libc::SIGSEGV).unwrap();
            assert_ne!(segv, libc::SIG_DFL, "std's own handler");
            let mask = block_all();
            let code = exit_code_of_child(|| {
                reset_in_child();
                let reset = (1..=libc::SIGRTMAX())
                    .filter(|s| ![libc::SIGPIPE, libc::SIGQUIT, libc::SIGINT].contains(s))
                    .filter(|s| ![libc::SIGSEGV, libc::SIGBUS].contains(s))
                    .all(|s| disposition(s).is_none_or(|handler| handler == libc::SIG_DFL));
                let ignored = disposition(libc::SIGPIPE) == Some(libc::SIG_IGN)
                    && disposition(libc::SIGQUIT) == Some(libc::SIG_IGN);
                let kept = former_handler(libc::SIGSEGV).load(Ordering::Relaxed) == segv;
                let unblocked = SigSet::thread_get_mask().unwrap() == SigSet::empty();
                raise(Signal::SIGINT).unwrap();
                [reset, ignored, kept, unblocked].iter().fold(1, |code, ok| code * 2 + i32::from(*ok))
            });
            assert_eq!(code, 0b1_1111);
            // The child's death is pending, and the handler for it would end this process.
            mask.keep_blocked();
        });
    }

    #[test]
    fn blocking_is_undone() {
        let before = SigSet::thread_get_mask().unwrap();
        let saved = block_all();
        let during = SigSet::thread_get_mask().unwrap();
        assert!(during.contains(Signal::SIGTERM) && !during.contains(Signal::SIGSEGV));
        saved.restore();
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }

    #[test]
    fn a_death_makes_the_descriptor_readable() {
        in_own_process(concat!(module_path!(), "::a_death_makes_the_descriptor_readable"), || {
            let fd = sigchld_fd().unwrap();
            assert!(!fd.drain().unwrap());
            // SAFETY: this process has one thread.
            let Fork::Parent(child) = unsafe { fork() }.unwrap() else { exit_now(3) };
            assert_eq!(wait_readable(&[fd.as_fd()], Some(PATIENCE)).unwrap(), 1);
            assert!(fd.drain().unwrap());
            assert!(!fd.drain().unwrap());
            assert!(wait4_nohang(child).unwrap().is_some());
            assert!(wait4_nohang(-1).unwrap().is_none());
        });
    }
}
