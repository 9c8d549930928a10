//! One task's round trip, both sides awake: `pool.submit(f, &i).wait()` on one worker, beside the physical floor, two
//! processes that hand one cache line to and fro, and beside what a thread pool takes, rayon's `spawn` with a oneshot
//! channel. All in one process run, taking turns; every reply is checked.

#![allow(unsafe_code, reason = "the raw ping-pong forks and shares a mapping")]

mod common;

use std::hint::black_box;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Contender, Mode, alternate, clock_ns, percentiles, rayon_pool, receive, timed};
use forkring::Pool;
use futures::channel::oneshot;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

fn main() {
    let mode = Mode::from_args();
    // In this order: what forks comes before what starts threads.
    let mut raw = PingPong::start();
    let pool = Pool::new(1).expect("a pool");
    let rayon = rayon_pool(1);

    let forkring = |n: u64| {
        let reply = pool.submit(|n: u64| n + 1, black_box(&n)).wait().expect("a reply");
        assert_eq!(reply, n + 1);
    };
    let rayon = |n: u64| {
        let (sender, receiver) = oneshot::channel();
        rayon.spawn(move || sender.send(n + 1).expect("a listener"));
        assert_eq!(receive(receiver), n + 1);
    };
    for n in 0..100 {
        forkring(n);
        rayon(n);
    }
    raw.awake(|exchange| (0..100).for_each(exchange));

    if mode != Mode::List {
        let samples = mode.pick(200_000, 2_000);
        let limit = mode.pick(Duration::from_secs(5), Duration::from_millis(100));
        let results = alternate(
            mode.rounds(),
            vec![
                Contender::new("raw cache-line ping-pong", || {
                    raw.awake(|exchange| percentiles(samples, limit, exchange)).map(|ns| ns / 1000.0)
                }),
                Contender::new("forkring submit(..).wait()", || {
                    percentiles(samples, limit, forkring).map(|ns| ns / 1000.0)
                }),
                Contender::new("rayon spawn + oneshot", || {
                    percentiles(samples / 4, limit, rayon).map(|ns| ns / 1000.0)
                }),
            ],
        );
        results.print("round trip of one u64, µs", ["p50", "p99", "p99.9"]);
        println!(
            "forkring: {:.2} × the raw ping-pong at p50 (lowest rounds: {:.2}), {:.2} × at p99; {:.1} × faster than rayon \
             (lowest rounds: {:.1}). {:.0} ns are taken off for reading the clock.",
            results.ratio(1, 0, 0),
            results.best_ratio(1, 0, 0),
            results.ratio(1, 0, 1),
            results.ratio(2, 1, 0),
            results.best_ratio(2, 1, 0),
            clock_ns(),
        );
    }

    let mut criterion = common::criterion();
    let mut group = criterion.benchmark_group("roundtrip");
    group.bench_function("raw", |b| {
        b.iter_custom(|n| raw.awake(|exchange| timed(|| (0..n).for_each(exchange))));
    });
    group.bench_function("forkring", |b| b.iter_custom(|n| timed(|| (0..n).for_each(forkring))));
    group.bench_function("rayon", |b| b.iter_custom(|n| timed(|| (0..n).for_each(rayon))));
    group.finish();
    criterion.final_summary();
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

    /// Spins until `number` has come. Whoever has looked in vain for long gives its core away, in case that the peer has
    /// none: on a busy machine each exchange would take a turn of the scheduler otherwise. The floor does not notice.
    fn take(&self, number: u64) -> u64 {
        let mut looks = 0_u32;
        while self.number.load(Ordering::Acquire) != number {
            looks += 1;
            if looks.is_multiple_of(LOOKS_PER_YIELD) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        self.value.load(Ordering::Relaxed)
    }
}

/// The mapping that both processes see.
#[repr(C)]
struct Shared {
    requests: [Page; PAIRS],
    replies: [Page; PAIRS],
}

/// A value that means: sleep until woken.
const PAUSE: u64 = u64::MAX;

/// The raw exchange: a child of this process that answers `n + 1`, over a pair of cache lines.
///
/// PING-1: `shared` points to a `Shared` in a `MAP_SHARED` mapping of this value's, which holds atomics alone, for
/// which zeroes are valid, and is unmapped by `drop` only.
struct PingPong {
    shared: NonNull<Shared>,
    child: Pid,
    /// One byte wakes the child.
    waker: PipeWriter,
    sent: u64,
}

impl PingPong {
    fn start() -> Self {
        let bytes = const { NonZeroUsize::new(size_of::<Shared>()).expect("a mapping has a size") };
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let mapping =
            unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
        let shared: NonNull<Shared> = mapping.expect("a shared mapping").cast();
        let parent = nix::unistd::getpid();
        let (sleeper, waker) = pipe().expect("a pipe");
        // SAFETY: `main` has started no thread yet.
        match unsafe { fork() }.expect("a child") {
            ForkResult::Child => {
                // A child that spins must not outlive its parent, however that ends.
                let armed = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_ok();
                if !armed || nix::unistd::getppid() != parent {
                    std::process::abort();
                }
                // SAFETY: PING-1; a child inherits the mapping.
                answer_forever(unsafe { shared.as_ref() }, sleeper)
            }
            ForkResult::Parent { child } => Self { shared, child, waker, sent: 0 },
        }
    }

    fn shared(&self) -> &Shared {
        // SAFETY: PING-1.
        unsafe { self.shared.as_ref() }
    }

    /// Wakes the child and lets `f` exchange values with it; then it sleeps again and leaves its core to the others.
    fn awake<T>(&mut self, f: impl FnOnce(&mut dyn FnMut(u64)) -> T) -> T {
        self.waker.write_all(&[1]).expect("a child that listens");
        // The first one finds the child asleep and is not `f`'s.
        self.exchange(0);
        let result = f(&mut |n| self.exchange(n));
        assert_eq!(self.send(PAUSE), PAUSE);
        result
    }

    fn exchange(&mut self, n: u64) {
        assert_eq!(self.send(n), n + 1);
    }

    fn send(&mut self, n: u64) -> u64 {
        self.sent += 1;
        let (request, reply) = pair(self.shared(), self.sent);
        request.put(self.sent, n);
        reply.take(self.sent)
    }
}

/// The lines of exchange `number`.
fn pair(shared: &Shared, number: u64) -> (&Page, &Page) {
    let at = (number / EXCHANGES_PER_PAIR) as usize % PAIRS;
    (&shared.requests[at], &shared.replies[at])
}

/// The child: sleeps, answers until told to pause, sleeps.
fn answer_forever(shared: &Shared, mut sleeper: PipeReader) -> ! {
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
    std::process::abort()
}

impl Drop for PingPong {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = kill(self.child, Signal::SIGKILL);
        let _ = waitpid(self.child, None);
        // SAFETY: PING-1; nothing refers to the mapping any more.
        let _ = unsafe { munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}
