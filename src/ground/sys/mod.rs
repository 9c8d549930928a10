//! The kernel's services under Rust types: the place for calls that need `unsafe` or care.
//!
//! * [`clock`] – a coarse one
//! * [`memory`] – sealed memfds and shared mappings
//! * [`socket`] – a message socket that carries descriptors
//! * [`process`] – fork, pidfds, exit statuses
//! * [`signals`] – masks, dispositions, SIGCHLD as a descriptor
//! * [`futex`] – words that processes share and sleep on
//! * [`descriptors`] – closing what a child must not hold
//! * [`objects`] – where the read-only data of the loaded ELF objects lies
//! * [`cores`] – how many cores this process may really use
//! * [`poll`] – waiting for descriptors
//! * [`usage`] – what a process uses of memory, and what it may use
//! * [`fork_generation`] – which process a handle was made in
//!
//! Nothing in here knows what a pool is. Functions are thin: one call, its error named after it, and the
//! behaviour that is easy to get wrong written beside it with the man page that says so. What a forked child
//! calls before it is settled is marked *async-signal-safe* and then neither allocates nor takes a lock.

use std::fmt;
use std::io;

use nix::errno::Errno;

pub(crate) mod clock;
pub(crate) mod cores;
pub(crate) mod descriptors;
pub(crate) mod fork_generation;
pub(crate) mod futex;
pub(crate) mod memory;
pub(crate) mod objects;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod signals;
pub(crate) mod socket;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod usage;

/// A system call that failed: which one, and why.
///
/// Displays as `memfd_create: Too many open files (os error 24)`.
#[derive(Debug)]
pub(crate) struct SysError {
    pub(crate) call: &'static str,
    pub(crate) source: io::Error,
}

/// What this layer returns.
pub(crate) type Result<T> = std::result::Result<T, SysError>;

impl SysError {
    pub(crate) fn new(call: &'static str, source: impl Into<io::Error>) -> Self {
        Self { call, source: source.into() }
    }

    /// The error number, or 0 for an error that did not come from the kernel.
    pub(crate) fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    /// What a user can do about it: the end of a sentence, or nothing.
    pub(crate) fn advice(&self) -> &'static str {
        advice(self.errno())
    }
}

/// What a user can do about an error of the calls that start processes: the end of a sentence, or nothing.
pub(crate) fn advice(errno: i32) -> &'static str {
    match Errno::from_raw(errno) {
        Errno::EMFILE => "; raise the limit of open files (ulimit -n): a worker takes a handful",
        Errno::ENFILE => "; the system has no open files left (sysctl fs.file-max)",
        Errno::EAGAIN => {
            "; raise the limit of processes (ulimit -u, or pids.max of the cgroup), or use fewer workers"
        }
        Errno::ENOMEM => {
            "; use fewer workers, or let the program have more memory (cgroup, sysctl vm.overcommit_memory)"
        }
        Errno::ENOSYS | Errno::EPERM => {
            "; the kernel is older than Linux 5.14, or a filter (seccomp, of a container) refuses the call"
        }
        _ => "",
    }
}

// `source()` stays `None`: the text already contains the cause, and a chain printer would say it twice.
impl std::error::Error for SysError {}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.source)
    }
}

/// Keeps the kind, and adds the call to the text.
impl From<SysError> for io::Error {
    fn from(error: SysError) -> Self {
        io::Error::new(error.source.kind(), error)
    }
}

/// `result.call("mmap")?`: names the call of an error from `nix` or `std`.
pub(crate) trait Call<T> {
    fn call(self, name: &'static str) -> Result<T>;
}

impl<T, E: Into<io::Error>> Call<T> for std::result::Result<T, E> {
    fn call(self, name: &'static str) -> Result<T> {
        self.map_err(|error| SysError::new(name, error))
    }
}

/// Repeats a call for as long as a signal handler interrupts it.
pub(crate) fn retry_interrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_text_names_the_call() {
        let error = SysError::new("memfd_create", Errno::EMFILE);
        // The words are libc's: "Too many open files" in glibc, "No file descriptors available" in musl.
        let text = error.to_string();
        assert!(text.starts_with("memfd_create: ") && text.ends_with(" (os error 24)"), "{text}");
        assert_eq!(error.errno(), 24);
        assert!(error.advice().contains("ulimit -n"));
        assert_eq!(SysError::new("mmap", Errno::EINVAL).advice(), "");
    }
}
