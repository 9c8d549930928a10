//! The physical floor: a forked child that answers over cache lines, eventfds or pipes, with nothing in between.

#![allow(unsafe_code, reason = "forks, and shares a mapping")]

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::eventfd::EventFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

/// A child of this process. It is killed when this is dropped.
pub(crate) struct Child {
    pid: Pid,
}

impl Child {
    /// Forks a child that serves until its end. To be called while this process has one thread: the child allocates.
    pub(crate) fn fork(serve: impl FnOnce()) -> Self {
        let parent = nix::unistd::getpid();
        // SAFETY: there are no other threads whose locks the child could find held; see above.
        match unsafe { fork() }.expect("a child") {
            ForkResult::Child => {
                // A child that spins must not outlive its parent, however that ends.
                let armed = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_ok();
                if armed && nix::unistd::getppid() == parent {
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(serve));
                }
                // No exit handlers: they are the parent's.
                let _ = kill(nix::unistd::getpid(), Signal::SIGKILL);
                std::process::abort()
            }
            ForkResult::Parent { child } => Self { pid: child },
        }
    }

    /// Waits until it has ended by itself.
    pub(crate) fn join(self) {
        let _ = waitpid(self.pid, None);
        std::mem::forget(self);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// Exchanges over one pair of lines before the next pair has its turn. A fixed pair takes anything between 0.19 and
/// 0.37 µs, depending on where in the machine its two addresses happen to live.
const EXCHANGES_PER_PAIR: u64 = 512;
const PAIRS: usize = 256;
const PAGE_BYTES: usize = 4096;
/// Some tens of microseconds.
const LOOKS_PER_YIELD: u32 = 1000;

/// What crosses: the number of the exchange, written last, and the value beside it in the same line, as a task's
/// sequence word and payload are.
#[repr(C, align(4096))]
struct Page {
    number: AtomicU64,
    value: AtomicU64,
}

const _: () = assert!(size_of::<Page>() == PAGE_BYTES);

impl Page {
    fn put(&self, number: u64, value: u64) {
        self.value.store(value, Ordering::Relaxed);
        self.number.store(number, Ordering::Release);
    }

    /// Spins until `number` has come.
    fn take(&self, number: u64) -> u64 {
        spin_until(|| (self.number.load(Ordering::Acquire) == number).then_some(()));
        self.value.load(Ordering::Relaxed)
    }
}

/// Spins until `look` finds something. Whoever has looked in vain for long gives its core away, in case that the peer has
/// none: on a busy machine each exchange would take a turn of the scheduler otherwise. The floor does not notice.
pub(crate) fn spin_until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let mut looks = 0_u32;
    loop {
        if let Some(found) = look() {
            return found;
        }
        looks += 1;
        if looks.is_multiple_of(LOOKS_PER_YIELD) {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// The mapping that both processes see.
#[repr(C)]
struct Shared {
    requests: [Page; PAIRS],
    replies: [Page; PAIRS],
}

/// A value that means: sleep until woken.
pub(crate) const PAUSE: u64 = u64::MAX;

/// A child that answers `n + 1`, over a pair of cache lines.
///
/// PING-1: `shared` points to a `Shared` in a `MAP_SHARED` mapping of this value's, which holds atomics alone, for
/// which zeroes are valid, and is unmapped by `drop` only.
pub(crate) struct CacheLines {
    shared: NonNull<Shared>,
    /// One byte wakes the child.
    waker: PipeWriter,
    sent: u64,
    _child: Child,
}

impl CacheLines {
    pub(crate) fn start() -> Self {
        let bytes = const { NonZeroUsize::new(size_of::<Shared>()).expect("a mapping has a size") };
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let mapping =
            unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
        let shared: NonNull<Shared> = mapping.expect("a shared mapping").cast();
        let (sleeper, waker) = pipe().expect("a pipe");
        let child = Child::fork(|| {
            // SAFETY: PING-1; a child inherits the mapping.
            answer_over_lines(unsafe { shared.as_ref() }, sleeper);
        });
        Self { shared, waker, sent: 0, _child: child }
    }

    /// Wakes the child and lets `f` exchange values with it; then it sleeps again and leaves its core to the others.
    pub(crate) fn awake<T>(&mut self, f: impl FnOnce(&mut dyn FnMut(u64) -> u64) -> T) -> T {
        self.waker.write_all(&[1]).expect("a child that listens");
        // The first one finds the child asleep and is not `f`'s.
        self.exchange(0);
        let result = f(&mut |n| self.exchange(n));
        assert_eq!(self.exchange(PAUSE), PAUSE);
        result
    }

    fn exchange(&mut self, n: u64) -> u64 {
        self.sent += 1;
        // SAFETY: PING-1.
        let (request, reply) = pair(unsafe { self.shared.as_ref() }, self.sent);
        request.put(self.sent, n);
        reply.take(self.sent)
    }
}

impl Drop for CacheLines {
    fn drop(&mut self) {
        // SAFETY: PING-1; nothing refers to the mapping any more. The child has its own.
        let _ = unsafe { munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}

/// The lines of exchange `number`.
fn pair(shared: &Shared, number: u64) -> (&Page, &Page) {
    let at = (number / EXCHANGES_PER_PAIR) as usize % PAIRS;
    (&shared.requests[at], &shared.replies[at])
}

/// The child: sleeps, answers until told to pause, sleeps.
fn answer_over_lines(shared: &Shared, mut sleeper: PipeReader) {
    let mut number = 0;
    while sleeper.read_exact(&mut [0]).is_ok() {
        loop {
            number += 1;
            let (request, reply) = pair(shared, number);
            match request.take(number) {
                PAUSE => {
                    reply.put(number, PAUSE);
                    break;
                }
                n => reply.put(number, n + 1),
            }
        }
    }
}

/// A child that blocks on an eventfd and answers over another one.
pub(crate) struct EventFds {
    requests: EventFd,
    replies: EventFd,
    _child: Child,
}

impl EventFds {
    pub(crate) fn start() -> Self {
        let [requests, replies] = [(); 2].map(|()| EventFd::new().expect("an eventfd"));
        let child = Child::fork(|| {
            // An eventfd carries a sum, so that a value of 0 would be no message.
            while let Ok(n) = requests.read() {
                if replies.write(n + 1).is_err() {
                    break;
                }
            }
        });
        Self { requests, replies, _child: child }
    }

    pub(crate) fn exchange(&self, n: u64) -> u64 {
        self.requests.write(n + 1).expect("an eventfd with room");
        self.replies.read().expect("a reply") - 1
    }
}

/// A child that sends back what comes through a pipe, with the number that it starts with increased by one.
pub(crate) struct Pipes {
    requests: PipeWriter,
    replies: PipeReader,
    _child: Child,
}

impl Pipes {
    /// For messages of so many bytes.
    pub(crate) fn start(bytes: usize) -> Self {
        let (mut receiver, requests) = pipe().expect("a pipe");
        let (replies, mut sender) = pipe().expect("a pipe");
        let child = Child::fork(|| {
            let mut message = vec![0; bytes];
            while receiver.read_exact(&mut message).is_ok() {
                let n = number(&message) + 1;
                message[..8].copy_from_slice(&n.to_le_bytes());
                if sender.write_all(&message).is_err() {
                    break;
                }
            }
        });
        Self { requests, replies, _child: child }
    }

    /// `message` starts with a number, which comes back increased.
    pub(crate) fn exchange(&mut self, message: &mut [u8]) {
        self.requests.write_all(message).expect("a child that listens");
        self.replies.read_exact(message).expect("a reply");
    }

    pub(crate) fn increment(&mut self, n: u64) -> u64 {
        let mut message = n.to_le_bytes();
        self.exchange(&mut message);
        u64::from_le_bytes(message)
    }
}

/// The number that a message starts with.
pub(crate) fn number(message: &[u8]) -> u64 {
    message.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
