//! For tests of this layer: `fork` and a threaded test harness do not mix, so such a test runs again in a process
//! of its own.

#![allow(unsafe_code, reason = "forks")]

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use super::poll::wait_readable;
use super::process::{
    ExitStatus, Fork, PidFd, exit_now, fork, set_parent_death_signal, thread_count, wait_child,
};

/// No wait in a test is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `body` in a fresh, single-threaded process and fails where it panics.
///
/// That process is a fork of this test binary, started again with only the test `name` (its full path, as
/// `module_path!` gives it): there one thread waits for the other, and neither holds a lock. Its signals are
/// unblocked, its handlers those that std installs.
pub(crate) fn in_own_process(name: &str, body: impl FnOnce()) {
    const MARK: &str = "FORKRING_TEST_PROCESS";
    if std::env::var_os(MARK).is_some_and(|mark| mark == name) {
        let ended = status_of_child(|| {
            SigSet::empty().thread_set_mask().unwrap();
            assert_eq!(thread_count().unwrap(), 1);
            body();
            0
        });
        assert_eq!(ended, ExitStatus::Exited(0));
        return;
    }
    let name_in_binary = name.split_once("::").expect("a path").1;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name_in_binary, "--exact", "--nocapture"])
        .env(MARK, name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let pidfd = PidFd::open(i32::try_from(child.id()).unwrap()).unwrap();
    let ended = wait_readable(&[pidfd.as_fd()], Some(PATIENCE)).unwrap() == 1;
    if !ended {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let output = io::read_to_string(child.stdout.take().unwrap()).unwrap();
    assert!(ended, "{name} hangs in its own process:\n{output}");
    assert!(status.success(), "{name} failed in its own process ({status}):\n{output}");
    assert!(output.contains("1 passed"), "{name} was not found:\n{output}");
}

/// Forks, runs `body` in the child and returns the code that it exits with. Only for single-threaded processes.
pub(crate) fn exit_code_of_child(body: impl FnOnce() -> i32) -> i32 {
    assert_eq!(thread_count().unwrap(), 1, "fork in a threaded test");
    match status_of_child(body) {
        ExitStatus::Exited(code) => code,
        other @ ExitStatus::Signaled(..) => panic!("the child ended with {other:?}"),
    }
}

fn status_of_child(body: impl FnOnce() -> i32) -> ExitStatus {
    // SAFETY: this process has one thread, or another one that is asleep in libtest.
    match unsafe { fork() }.unwrap() {
        Fork::Child => {
            // Nothing survives a test that is given up.
            set_parent_death_signal(Signal::SIGKILL).unwrap();
            exit_now(catch_unwind(AssertUnwindSafe(body)).unwrap_or(101))
        }
        Fork::Parent(pid) => wait_child(pid).unwrap().expect("nobody else reaps"),
    }
}
