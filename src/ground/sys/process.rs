//! Forking, pidfds and how a process ended.

#![allow(
    unsafe_code,
    reason = "fork, wait4, waitid and the pidfd calls, which nix does not offer in this form"
)]

use std::ffi::CStr;
use std::fs;
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::poll::wait_readable;
use super::{Call, Result, SysError, retry_interrupted, signals};

/// A process's number, as libc spells it. Means nothing in another pid namespace, and is reused: for anything but
/// display and one's own unreaped children there is [`PidFd`].
pub(crate) type Pid = libc::pid_t;

/// Which of the two processes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fork {
    /// The one that forked, with the child's number.
    Parent(Pid),
    /// The new one. All signals are blocked here until [`signals::reset_in_child`].
    Child,
}

/// Forks with libc's `fork`, which runs the `pthread_atfork` handlers and keeps glibc's malloc usable.
///
/// Rust's and C's output buffers are flushed before, so that nothing is printed twice. Rust's stdout and
/// stderr are locked across the fork: the child inherits them free, whatever other threads were printing. So this
/// waits for a thread that is printing, and `fflush(NULL)` for one that is inside a C stream.
///
/// Order: stdio locks, then the `prepare` hooks. Nobody may print while holding a lock that a hook takes.
///
/// Signals are blocked across the fork, and stay so in the child: see [`signals::reset_in_child`] for why.
///
/// # Safety
///
/// If this process has other threads, the child has only a copy of what they were in the middle of: it must not take
/// a lock that one of them may have held, other than malloc's (glibc) and those of this function. Values whose drop
/// acts on something outside of the process must not be dropped in both.
pub(crate) unsafe fn fork() -> Result<Fork> {
    let mut stdout = io::stdout().lock();
    let mut stderr = io::stderr().lock();
    // An error is the program's to see at its next write. What stays in the buffer is printed twice only if the child
    // prints too.
    let _ = stdout.flush();
    let _ = stderr.flush();
    // SAFETY: null means all output streams (fflush(3)); it takes their locks and touches nothing of ours.
    let _ = unsafe { libc::fflush(ptr::null_mut()) };
    let mask = signals::block_all();
    // SAFETY: the caller answers for what the child does.
    let result = unsafe { libc::fork() };
    if result == 0 {
        mask.keep_blocked();
        // The locks are dropped here by a copy of the thread that took them, which is what their owner check sees.
        return Ok(Fork::Child);
    }
    let result = Errno::result(result).call("fork");
    mask.restore();
    result.map(Fork::Parent)
}

/// Writes what Rust's and C's stdout have in their buffers; the standard errors have none. For a process that may be killed:
/// what is in a buffer then is lost. Another thread that is printing is waited for.
pub(crate) fn flush_output() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
    }
    // An error is for whoever prints next.
    let _ = io::stdout().lock().flush();
    // SAFETY: C's runtime sets it before the program starts, and nobody has it changed while threads print (stdout(3)).
    let c_stdout = unsafe { stdout };
    // SAFETY: an open stream, or null, which would mean all of them; it is locked meanwhile (fflush(3)).
    let _ = unsafe { libc::fflush(c_stdout) };
}

/// Ends this process at once: no `atexit`, no destructors, no flushing (_exit(2)). Async-signal-safe.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: no conditions; does not return.
    unsafe { libc::_exit(code) }
}

/// From here on `exit(3)` in this process flushes C's output and ends it, without the `atexit` handlers that it
/// inherited, which belong to its ancestor. Handlers run in reverse order, so the one registered here comes first.
/// (on_exit(3); where the C library does not have it, `exit` runs them.)
pub(crate) fn leave_by_exit_now() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn on_exit(
                handler: extern "C" fn(libc::c_int, *mut libc::c_void),
                argument: *mut libc::c_void,
            ) -> libc::c_int;
        }
        extern "C" fn leave(status: libc::c_int, _: *mut libc::c_void) {
            // SAFETY: null means all output streams.
            let _ = unsafe { libc::fflush(ptr::null_mut()) };
            exit_now(status)
        }
        // SAFETY: the handler may be called at any exit. Failing leaves things as they are.
        let _ = unsafe { on_exit(leave, ptr::null_mut()) };
    }
}

/// This process. Never cached: wrong in a child.
pub(crate) fn own_pid() -> Pid {
    nix::unistd::getpid().as_raw()
}

/// The parent, or 0 when it lives outside of this pid namespace (getppid(2)).
pub(crate) fn parent_pid() -> Pid {
    nix::unistd::getppid().as_raw()
}

/// A process that cannot be mistaken for another one, not even when its number is used again.
#[derive(Debug)]
pub(crate) struct PidFd {
    fd: OwnedFd,
}

impl PidFd {
    /// Opens a process by number. Safe from reuse only for oneself, for one's parent if that is checked again
    /// afterwards, and for a child that nobody has reaped. Close-on-exec always; Linux 5.3 (pidfd_open(2)).
    pub(crate) fn open(pid: Pid) -> Result<Self> {
        // SAFETY: takes two integers and returns one.
        let result =
            unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0 as libc::c_long) };
        let number = Errno::result(result).call("pidfd_open")? as RawFd;
        // SAFETY: just opened, and nobody else knows it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(number) } })
    }

    /// Sends a signal; `false` when the process is gone and reaped. A dead one that nobody has reaped yet still
    /// takes it, without effect.
    pub(crate) fn kill(&self, signal: i32) -> Result<bool> {
        let no_info = ptr::null::<libc::siginfo_t>();
        let (fd, signal) = (libc::c_long::from(self.fd.as_raw_fd()), libc::c_long::from(signal));
        let call = libc::SYS_pidfd_send_signal;
        // SAFETY: a null `info` stands for what kill(2) would send (pidfd_send_signal(2)); the rest are integers.
        match Errno::result(unsafe { libc::syscall(call, fd, signal, no_info, 0 as libc::c_long) }) {
            Ok(_) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(error) => Err(SysError::new("pidfd_send_signal", error)),
        }
    }

    /// Whether the process has ended, reaped or not. `false` may be out of date at once, `true` stays true.
    ///
    /// The kernel says so only once all threads are gone and the memory is freed, a few milliseconds after a SIGKILL
    /// for a process of 100 MB.
    pub(crate) fn has_exited(&self) -> bool {
        // An error (no memory for poll) means "unknown", and whoever asks has to cope with a late answer anyway.
        wait_readable(&[self.fd.as_fd()], Some(Duration::ZERO)).is_ok_and(|ready| ready != 0)
    }

    /// Waits for a child through its descriptor, immune to reuse of its number: prefer it to [`wait_child`].
    /// `None` when somebody else reaped it, or it was never ours. Linux 5.4 (waitid(2), P_PIDFD).
    pub(crate) fn wait_child(&self) -> Result<Option<ExitStatus>> {
        // SAFETY: all zeros is a valid `siginfo_t`.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        let fd = self.fd.as_raw_fd().unsigned_abs();
        let waited = retry_interrupted(|| {
            // SAFETY: `info` is ours to write.
            Errno::result(unsafe { libc::waitid(libc::P_PIDFD, fd, &raw mut info, libc::WEXITED) })
        });
        match waited {
            Err(Errno::ECHILD) => return Ok(None),
            result => result.call("waitid")?,
        };
        Ok(Some(ExitStatus::from_info(&info)))
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// For one that arrived over a socket.
impl From<OwnedFd> for PidFd {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal; `true` when it left a core dump.
    Signaled(i32, bool),
}

impl ExitStatus {
    /// The signal that ended it.
    pub(crate) fn signal(self) -> Option<i32> {
        match self {
            Self::Exited(_) => None,
            Self::Signaled(signal, _) => Some(signal),
        }
    }

    /// From what `waitid` with WEXITED stored about a child.
    fn from_info(info: &libc::siginfo_t) -> Self {
        // SAFETY: an integer among integers, all of which were zeros before `waitid` wrote some.
        let status = unsafe { info.si_status() };
        match info.si_code {
            libc::CLD_EXITED => Self::Exited(status),
            code => Self::Signaled(status, code == libc::CLD_DUMPED),
        }
    }

    /// From what `wait` stored; `None` when the process only stopped or went on.
    fn from_wait(status: libc::c_int) -> Option<Self> {
        if libc::WIFEXITED(status) {
            Some(Self::Exited(libc::WEXITSTATUS(status)))
        } else if libc::WIFSIGNALED(status) {
            Some(Self::Signaled(libc::WTERMSIG(status), libc::WCOREDUMP(status)))
        } else {
            None
        }
    }
}

/// A child that was reaped, and what it had used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    pub(crate) status: ExitStatus,
    /// The most memory it ever had resident. A forked child starts with its parent's figure of that moment.
    pub(crate) max_rss_kib: u64,
}

/// A child that has ended and has not been reaped, if there is one: its number still names it, so that it can be asked
/// and its group killed. Only for a process that owns all its children, such as the zygote.
pub(crate) fn peek_any_nohang() -> Result<Option<(Pid, ExitStatus)>> {
    // SAFETY: all zeros is a valid `siginfo_t`, and what `waitid` leaves where nobody has ended (waitid(2)).
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
    let waited = retry_interrupted(|| {
        // SAFETY: `info` is ours to write.
        Errno::result(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) })
    });
    match waited {
        Err(Errno::ECHILD) => return Ok(None),
        result => result.call("waitid")?,
    };
    // SAFETY: as in `from_info`.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then(|| (pid, ExitStatus::from_info(&info))))
}

/// Reaps this child if it has ended, or any one for -1. Only for a process that owns all its children, such as the
/// zygote: the master's may belong to the host.
pub(crate) fn wait4_nohang(pid: Pid) -> Result<Option<Exit>> {
    loop {
        let mut status = 0;
        // SAFETY: all zeros is a valid `rusage`.
        let mut usage: libc::rusage = unsafe { mem::zeroed() };
        let waited = retry_interrupted(|| {
            // SAFETY: both are ours to write.
            Errno::result(unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, &raw mut usage) })
        });
        match waited {
            Ok(0) | Err(Errno::ECHILD) => return Ok(None),
            result => result.call("wait4")?,
        };
        // Others are stops, which only a tracer is told of.
        let Some(status) = ExitStatus::from_wait(status) else { continue };
        return Ok(Some(Exit { status, max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0) }));
    }
}

/// Waits until a child has ended. `None` when it is not ours to reap (any more): the host has a `waitpid(-1)`, or
/// ignores SIGCHLD, in which case this still waits for the end (wait(2), notes).
///
/// If the host can reap, the number may name another child of the host by now: prefer [`PidFd::wait_child`].
pub(crate) fn wait_child(pid: Pid) -> Result<Option<ExitStatus>> {
    if pid <= 0 {
        // Those mean "any child".
        return Err(SysError::new("waitpid", Errno::EINVAL));
    }
    loop {
        let mut status = 0;
        let waited = retry_interrupted(|| {
            // SAFETY: `status` is ours to write.
            Errno::result(unsafe { libc::waitpid(pid, &raw mut status, 0) })
        });
        match waited {
            Err(Errno::ECHILD) => return Ok(None),
            result => result.call("waitpid")?,
        };
        if let Some(status) = ExitStatus::from_wait(status) {
            return Ok(Some(status));
        }
    }
}

/// Has this process killed when the **thread** that forked it exits (prctl(2), PR_SET_PDEATHSIG): only for
/// children of a main thread that lives as long as its process. Check [`parent_pid`] afterwards, since a parent
/// that died before is not noticed. Async-signal-safe.
pub(crate) fn set_parent_death_signal(signal: Signal) -> Result<()> {
    prctl::set_pdeathsig(signal).call("prctl(PR_SET_PDEATHSIG)")
}

/// Makes this process lead a process group of its own (setpgid(2)). Async-signal-safe.
pub(crate) fn lead_group() -> Result<()> {
    let this = nix::unistd::Pid::from_raw(0);
    nix::unistd::setpgid(this, this).call("setpgid")
}

/// Goes back to the parent's process group, so that the death of this process says nothing about its own. Fails for
/// who has become the leader of a session meanwhile.
pub(crate) fn rejoin_parents_group() -> Result<()> {
    let group = nix::unistd::getpgid(Some(nix::unistd::getppid())).call("getpgid")?;
    nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), group).call("setpgid")
}

/// Kills a child and, with `group`, the whole process group if it leads one. Only for a child that nobody has reaped: until then
/// neither number can name anything else.
pub(crate) fn kill_child(pid: Pid, group: bool) {
    let pid = nix::unistd::Pid::from_raw(pid);
    if group && leads_group(pid) {
        // Fails where all members are somebody else's by now.
        let _ = nix::sys::signal::killpg(pid, Signal::SIGKILL);
    }
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
}

/// Holds for a dead process as well, until it is reaped.
fn leads_group(pid: nix::unistd::Pid) -> bool {
    nix::unistd::getpgid(Some(pid)) == Ok(pid)
}

/// Adds to the niceness of this thread (nice(2)). Less than nothing takes a privilege.
pub(crate) fn add_nice(steps: i32) -> Result<()> {
    Errno::clear();
    // SAFETY: takes and returns an integer.
    let now = unsafe { libc::nice(steps) };
    // -1 is a niceness, too.
    if now == -1 && Errno::last_raw() != 0 { Err(Errno::last()).call("nice") } else { Ok(()) }
}

/// Sets an environment variable of this process.
///
/// # Safety
///
/// This process has one thread. (Not std's function: that takes std's lock, which may have been held by another thread
/// of an ancestor when this process was forked from it.)
pub(crate) unsafe fn set_env(key: &CStr, value: &CStr) -> Result<()> {
    // SAFETY: both are terminated, and copied; nobody reads the environment meanwhile.
    Errno::result(unsafe { libc::setenv(key.as_ptr(), value.as_ptr(), 1) }).call("setenv").map(drop)
}

/// How many threads this process has at the moment.
pub(crate) fn thread_count() -> Result<usize> {
    const CALL: &str = "read(/proc/self/status)";
    let status = fs::read_to_string("/proc/self/status").call(CALL)?;
    parse_thread_count(&status).ok_or_else(|| SysError::new(CALL, io::ErrorKind::InvalidData))
}

fn parse_thread_count(status: &str) -> Option<usize> {
    status.lines().find_map(|line| line.strip_prefix("Threads:")).and_then(|count| count.trim().parse().ok())
}

/// Makes the kernel prefer (up to 1000) or spare (down to -1000, privileged) this process when memory runs out
/// (proc_pid_oom_score_adj(5)). Inherited by fork.
pub(crate) fn set_oom_score_adj(value: i32) -> Result<()> {
    fs::write("/proc/self/oom_score_adj", value.to_string()).call("write(/proc/self/oom_score_adj)")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{exit_code_of_child, in_own_process};
    use super::*;
    use nix::sys::signal::SigSet;

    #[test]
    fn statuses_and_pidfds() {
        in_own_process(concat!(module_path!(), "::statuses_and_pidfds"), || {
            let sleeper = || {
                // SAFETY: this process has one thread.
                match unsafe { fork() }.unwrap() {
                    Fork::Parent(pid) => pid,
                    Fork::Child => {
                        set_parent_death_signal(Signal::SIGKILL).unwrap();
                        loop {
                            nix::unistd::pause();
                        }
                    }
                }
            };
            let pid = sleeper();
            let pidfd = PidFd::open(pid).unwrap();
            assert!(!pidfd.has_exited());
            assert!(wait4_nohang(-1).unwrap().is_none() && peek_any_nohang().unwrap().is_none());
            assert!(pidfd.kill(libc::SIGKILL).unwrap());
            wait_readable(&[pidfd.as_fd()], Some(super::super::testing::PATIENCE)).unwrap();
            assert!(pidfd.has_exited());
            assert!(pidfd.kill(libc::SIGKILL).unwrap(), "a zombie takes signals");
            let killed = ExitStatus::Signaled(libc::SIGKILL, false);
            assert_eq!(peek_any_nohang().unwrap(), Some((pid, killed)));
            assert_eq!(peek_any_nohang().unwrap(), Some((pid, killed)), "a peek reaps nothing");
            let exit = wait4_nohang(-1).unwrap().unwrap();
            assert_eq!(exit.status, killed);
            assert!(exit.max_rss_kib > 0);
            assert!(pidfd.has_exited() && !pidfd.kill(libc::SIGKILL).unwrap());
            assert_eq!(pidfd.wait_child().unwrap(), None);
            assert_eq!(wait_child(pid).unwrap(), None);
            assert_eq!(peek_any_nohang().unwrap(), None);

            // A real-time signal, which nix's enum does not know. It is blocked in the child, which resets itself.
            let signal = libc::SIGRTMIN() + 1;
            // SAFETY: this process has one thread.
            let Fork::Parent(pid) = unsafe { fork() }.unwrap() else {
                signals::reset_in_child();
                // SAFETY: sends a signal to this child, which has no handler for it.
                unsafe { libc::raise(signal) };
                exit_now(0)
            };
            let pidfd = PidFd::open(pid).unwrap();
            assert_eq!(pidfd.wait_child().unwrap(), Some(ExitStatus::Signaled(signal, false)));
            let blocks_sigterm = || SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM);
            assert_eq!(exit_code_of_child(|| 200 + i32::from(blocks_sigterm())), 201);
            assert!(!blocks_sigterm());
        });
    }

    #[test]
    fn a_host_that_ignores_sigchld_is_no_error() {
        in_own_process(concat!(module_path!(), "::a_host_that_ignores_sigchld_is_no_error"), || {
            // SAFETY: sets no handler.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
            for by_pidfd in [false, true] {
                // SAFETY: this process has one thread.
                let Fork::Parent(pid) = unsafe { fork() }.unwrap() else { exit_now(0) };
                let status = match (by_pidfd, PidFd::open(pid)) {
                    (true, Ok(pidfd)) => pidfd.wait_child(),
                    _ => wait_child(pid),
                };
                assert_eq!(status.unwrap(), None);
            }
        });
    }

    #[test]
    fn a_child_inherits_neither_buffers_nor_locks() {
        in_own_process(concat!(module_path!(), "::a_child_inherits_neither_buffers_nor_locks"), || {
            use std::sync::atomic::{AtomicBool, Ordering};
            static STOP: AtomicBool = AtomicBool::new(false);
            let printer = std::thread::spawn(|| {
                while !STOP.load(Ordering::Relaxed) {
                    eprint!("");
                    print!("");
                }
            });
            for _ in 0..200 {
                print!("x");
                // SAFETY: the child uses the two locks that `fork` holds, and none else.
                match unsafe { fork() }.unwrap() {
                    Fork::Child => {
                        set_parent_death_signal(Signal::SIGKILL).unwrap();
                        let mut stdout = io::stdout().lock();
                        let code = stdout.write_all(b"").and_then(|()| stdout.flush()).is_err();
                        drop(io::stderr().lock());
                        exit_now(i32::from(code))
                    }
                    Fork::Parent(pid) => assert_eq!(wait_child(pid).unwrap(), Some(ExitStatus::Exited(0))),
                }
            }
            STOP.store(true, Ordering::Relaxed);
            printer.join().unwrap();
            println!();
        });
    }

    #[test]
    fn parses_thread_counts() {
        assert_eq!(parse_thread_count("Name:\tx\nThreads:\t12\nSigQ:\t0/1\n"), Some(12));
        assert_eq!(parse_thread_count("Name:\tThreads: 3\n"), None);
        assert!(thread_count().unwrap() >= 1);
    }

    #[test]
    fn wait_child_refuses_to_wait_for_any() {
        assert!(wait_child(-1).is_err() && wait_child(0).is_err());
    }
}
