//! Everything at once, from a printed seed: tasks that panic, abort, run out of time, are cancelled and killed, in single
//! submissions and in batches, while another process kills and stops workers. And a long run with flat resources.
//!
//! The long ones (`README.md` and `DESIGN.md` have the commands) take the number of tasks from the environment:
//! `FORKRING_CHAOS_TASKS`, `FORKRING_SOAK_TASKS`, and the time that a scenario may take from `FORKRING_BOUND_SECS`.

#![allow(unsafe_code, reason = "a mapping that is shared with workers")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use forkring::{Granularity, Pool, Signal, Submitter, TaskError};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use crate::crashes::{Crash, at_full_strength, die};
use crate::support::{
    BOUND, cell, children, count_fds, eventually, exit_code_of, fork_and, gate, process, return_freed_memory,
    rss_kib, scenario, zygote,
};

const WORKERS: usize = 4;
const LIMIT: Duration = Duration::from_millis(400);
const GRANULARITY: usize = 50;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Splitmix64: https://prng.di.unimi.it/splitmix64.c
fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How often each task's body has begun, in memory that all processes share.
static BEGUN: OnceLock<&'static [AtomicU8]> = OnceLock::new();

fn begun(n: u64) -> &'static AtomicU8 {
    &BEGUN.get().unwrap()[n as usize]
}

fn share_counts(tasks: u64) {
    let size = NonZeroUsize::new(tasks as usize).unwrap();
    let (prot, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let address = unsafe { mmap_anonymous(None, size, prot, flags) }.unwrap();
    // SAFETY: that many zeroed bytes, which are valid atomics; never unmapped.
    let counts = unsafe { std::slice::from_raw_parts(address.cast::<AtomicU8>().as_ptr(), size.get()) };
    assert!(BEGUN.set(counts).is_ok());
}

/// What a task does, and what is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Panic,
    Abort,
    Hang,
    Cancel,
    Kill,
    Work,
}

fn fate(seed: u64, n: u64) -> Fate {
    match mix(seed, n) % 1000 {
        0..10 => Fate::Panic,
        10..12 => Fate::Abort,
        12 => Fate::Hang,
        13..33 => Fate::Cancel,
        33..36 => Fate::Kill,
        _ => Fate::Work,
    }
}

/// The seed, and the number of the task.
fn run((seed, n): (u64, u64)) -> u64 {
    begun(n).fetch_add(1, SeqCst);
    match fate(seed, n) {
        Fate::Panic => panic!("task {n}"),
        Fate::Abort => die(Crash::Abort),
        Fate::Hang => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        Fate::Cancel | Fate::Kill | Fate::Work => {
            if mix(!seed, n).is_multiple_of(64) {
                std::thread::sleep(Duration::from_micros(200));
            }
            n * 3
        }
    }
}

/// Kills and stops the pool's workers, whose pids the master keeps in cells, until the gate opens.
fn torment(seed: u64, zygote: u32) -> i32 {
    let mut round = 0;
    let send = |pid: u32, signal| {
        // Not somebody who has come by that number since.
        if process(pid).is_some_and(|p| p.parent == zygote) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
        }
    };
    let master = nix::unistd::getppid();
    while !gate(0).is_open() && nix::unistd::getppid() == master {
        round += 1;
        let random = mix(seed ^ 0xdead, round);
        let pid = cell(random as usize % WORKERS).load(SeqCst) as u32;
        std::thread::sleep(Duration::from_micros(500 + random % 8192));
        // Seldom enough that tasks live to see their time-outs.
        if (random >> 32).is_multiple_of(32) {
            send(pid, Signal::SIGKILL);
        } else {
            send(pid, Signal::SIGSTOP);
            std::thread::sleep(Duration::from_millis(random >> 40 & 3));
            send(pid, Signal::SIGCONT);
        }
    }
    // Whoever is stopped still goes on.
    for worker in 0..WORKERS {
        send(cell(worker).load(SeqCst) as u32, Signal::SIGCONT);
    }
    0
}

/// What became of the tasks of each fate.
type Tally = BTreeMap<(Fate, &'static str), u64>;

fn judge(seed: u64, n: u64, cancelled: bool, result: &Result<u64, TaskError>, tally: &mut Tally) {
    let (fate, times) = (fate(seed, n), begun(n).load(SeqCst));
    assert!(times <= 1, "task {n} began {times} times");
    let what = match result {
        Ok(value) => {
            assert_eq!((*value, times, cancelled), (n * 3, 1, false));
            assert!(matches!(fate, Fate::Cancel | Fate::Kill | Fate::Work), "{n}: {fate:?}");
            "ok"
        }
        Err(error) => {
            // Whatever runs may lose its worker; nothing else may be confused.
            let (fits, what) = match error {
                TaskError::Panicked(_) => (fate == Fate::Panic, "panicked"),
                TaskError::TimedOut { .. } => (fate == Fate::Hang, "timed out"),
                TaskError::Cancelled if cancelled => (times == 0, "cancelled"),
                TaskError::Cancelled if fate == Fate::Kill => (true, "killed"),
                // Its worker had just taken it, and saw the mark in time.
                TaskError::Cancelled => (fate == Fate::Cancel && times == 0, "left"),
                // A worker may die between its claim and the task's first step.
                TaskError::WorkerLost(_) => (true, "lost"),
                _ => (false, "?"),
            };
            assert!(fits, "{n}: {fate:?} began {times} times and ended with {error}");
            what
        }
    };
    *tally.entry((fate, what)).or_default() += 1;
}

fn submit_singly(pool: &Submitter, seed: u64, tasks: std::ops::Range<u64>) -> Tally {
    const AHEAD: usize = 400;
    let mut tally = Tally::new();
    let mut waiting = std::collections::VecDeque::new();
    for n in tasks {
        let task = pool.submit(run, &(seed, n));
        let cancelled = fate(seed, n) == Fate::Cancel && task.cancel();
        if fate(seed, n) == Fate::Kill {
            task.kill();
        }
        waiting.push_back((n, cancelled, task));
        while waiting.len() > AHEAD {
            let (n, cancelled, mut task) = waiting.pop_front().unwrap();
            let result = task.wait_timeout(BOUND).expect("hang");
            judge(seed, n, cancelled, &result, &mut tally);
        }
    }
    for (n, cancelled, mut task) in waiting {
        let result = task.wait_timeout(BOUND).expect("hang");
        judge(seed, n, cancelled, &result, &mut tally);
    }
    tally
}

fn stream(pool: &Submitter, seed: u64, tasks: std::ops::Range<u64>) -> Tally {
    let mut tally = Tally::new();
    let first = tasks.start;
    let map = pool.map(tasks.clone().map(|n| (seed, n)), run).granularity(Granularity::Fixed(GRANULARITY));
    let mut seen = 0;
    for (index, result) in map.unordered().indexed() {
        judge(seed, first + index, false, &result, &mut tally);
        seen += 1;
    }
    assert_eq!(seen, tasks.end - tasks.start);
    tally
}

#[test]
fn f_30_chaos_every_task_has_exactly_one_outcome() {
    scenario(|| {
        let tasks = number("FORKRING_CHAOS_TASKS", 20_000);
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = number("FORKRING_SEED", clock);
        println!("FORKRING_SEED={seed} FORKRING_CHAOS_TASKS={tasks}");
        // Thousands of workers are lost on purpose.
        forkring::hooks::set_log_error(|_| {});
        let me = std::process::id();
        std::panic::set_hook(Box::new(move |info| {
            // And hundreds of tasks panic.
            if std::process::id() == me {
                eprintln!("{info}");
            }
        }));
        share_counts(tasks);
        let pool = Pool::new(WORKERS).unwrap();
        let fds = count_fds();
        let tormentor = {
            let zygote = zygote();
            fork_and(move || torment(seed, zygote))
        };
        let limited = pool.with_timeout(LIMIT);
        let (singles, middle) = (tasks / 4, tasks / 2);
        let watcher = pool.clone();
        let tallies = std::thread::scope(|scope| {
            let works = [
                scope.spawn(|| submit_singly(&limited, seed, 0..singles)),
                scope.spawn(|| submit_singly(&limited, seed, singles..middle)),
                scope.spawn(|| stream(&limited, seed, middle..tasks)),
            ];
            while works.iter().any(|work| !work.is_finished()) {
                for (worker, pid) in watcher.worker_pids().into_iter().enumerate().take(WORKERS) {
                    cell(worker).store(pid.into(), SeqCst);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            works.map(|work| work.join().unwrap())
        });
        gate(0).open();
        assert_eq!(exit_code_of(tormentor), 0);
        let mut total = Tally::new();
        for ((fate, what), count) in tallies.into_iter().flatten() {
            *total.entry((fate, what)).or_default() += count;
        }
        println!("{total:#?}");
        assert_eq!(total.values().sum::<u64>(), tasks);
        for what in ["lost", "timed out", "cancelled", "killed", "panicked"] {
            assert!(total.keys().any(|&(_, kind)| kind == what), "nothing was {what}");
        }
        at_full_strength(&pool);
        eventually("as many descriptors as before", || count_fds() <= fds + 2);
        drop((limited, watcher));
        pool.close().wait();
        eventually("no process is left", || children().is_empty());
    });
}

#[test]
fn i_08_soak_memory_descriptors_and_processes_stay_flat() {
    scenario(|| {
        return_freed_memory();
        forkring::hooks::set_log_error(|_| {});
        let tasks = number("FORKRING_SOAK_TASKS", 100_000);
        // One death for ten thousand tasks.
        let (rounds, per_round) = (tasks / 10_000, 10_000_u64);
        let pool = Pool::new(2).unwrap();
        let me = std::process::id();
        let start = Instant::now();
        let mut base = None;
        for round in 0..rounds {
            let pending: Vec<_> = (0..per_round).map(|n| pool.submit(|n: u64| n + 1, &n)).collect();
            for (n, task) in (0..).zip(pending) {
                assert_eq!(task.wait().unwrap(), n + 1);
            }
            assert!(
                pool.submit(|_: ()| -> () { die(Crash::Segv) }, &()).wait().unwrap_err().is_worker_lost()
            );
            at_full_strength(&pool);
            let (rss, fds, processes) = (rss_kib(me), count_fds(), children().len());
            // The first rounds fill caches and slabs.
            let (rss_0, fds_0, processes_0) = *base.get_or_insert((rss, fds, processes));
            if round < 3.min(rounds / 2) {
                base = Some((rss, fds, processes));
                continue;
            }
            assert!(rss <= rss_0 + rss_0 / 4 + 4096, "round {round}: {rss_0} KiB became {rss} KiB");
            assert!(fds <= fds_0 + 2, "round {round}: {fds_0} descriptors became {fds}");
            assert_eq!(processes, processes_0, "round {round}");
        }
        println!("{tasks} tasks, {rounds} deaths in {:?}; {:?} → {} KiB", start.elapsed(), base, rss_kib(me));
    });
}
