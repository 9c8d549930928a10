//! A worker scribbles over its side of the shared memory while a load runs on a pool of three.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use forkring::faults::scribble::{How, scribble};
use forkring::{Pool, Service, TaskError, View, Worker};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{cell, scenario};

type Here = Worker<(), Service<u64, u64>>;

const WORKERS: usize = 3;
/// Cells: who has scribbled, with which seed, how.
const VICTIM: usize = 0;
const SEED: usize = 1;
const MEANWHILE: usize = 2;
/// A worker whose own bookkeeping is ruined may sleep for ever, like one with an endless task. It is killed then.
const PATIENCE: Duration = Duration::from_secs(2);

fn misbehave() {
    cell(VICTIM).store(u64::from(std::process::id()), SeqCst);
    let how = if cell(MEANWHILE).load(SeqCst) == 1 { How::Meanwhile } else { How::Once };
    scribble(cell(SEED).load(SeqCst), how);
}

/// Values of other workers are the right ones.
fn check(item: u64, outcome: Result<(u32, u64), TaskError>) {
    if let Ok((pid, value)) = outcome
        && u64::from(pid) != cell(VICTIM).load(SeqCst)
        && value != item * 3
    {
        // A result that was scribbled over names anybody. It came from the one who scribbled, or it is none.
        assert_ne!(cell(VICTIM).load(SeqCst), 0, "item {item} is {value} before anybody scribbled");
    }
}

fn load(pool: &Pool<(), Service<u64, u64>>) {
    let body = |w: &Here, n: &View<u64>| {
        let n = n.to_native();
        if n == 20 {
            misbehave();
        }
        (std::process::id(), if n.is_multiple_of(16) { w.call(&n).unwrap_or(0) } else { n * 3 })
    };
    let tasks: Vec<_> = (0..300_u64).map(|n| pool.submit_with(body, &n)).collect();
    for (n, task) in (0..).zip(tasks) {
        check(n, task.wait());
    }
    // 10 MB in batches, with one who scribbles among them.
    let items: Vec<_> = pool
        .map(0..1000_u64, |n: u64| {
            if n == 500 {
                misbehave();
            }
            (std::process::id(), n * 3, vec![n as u8; 10_000])
        })
        .collect();
    assert_eq!(items.len(), 1000, "every item has one outcome");
    for (n, item) in (0..).zip(items) {
        check(n, item.map(|(pid, value, _)| (pid, value)));
    }
}

fn at_full_strength(pool: &Pool<(), Service<u64, u64>>) {
    let deadline = Instant::now() + crate::support::BOUND;
    loop {
        let pids = pool.broadcast(|_: &Here| std::process::id());
        let mut pids: Vec<u32> = pids.into_iter().flatten().collect();
        pids.sort_unstable();
        pids.dedup();
        let mut known = pool.worker_pids();
        known.sort_unstable();
        if pids.len() == WORKERS && pids == known {
            return;
        }
        assert!(Instant::now() < deadline, "{pids:?} of {known:?}");
    }
}

fn survive(how: How, seeds: std::ops::Range<u64>) {
    scenario(|| {
        std::panic::set_hook(Box::new(|_| ()));
        cell(MEANWHILE).store(u64::from(how == How::Meanwhile), SeqCst);
        for seed in seeds.clone() {
            eprintln!("seed {seed}");
            cell(SEED).store(seed, SeqCst);
            cell(VICTIM).store(0, SeqCst);
            let pool = Pool::builder().workers(WORKERS).service(|n: u64| n * 3).build().unwrap();
            let over = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut since = (0, Instant::now());
                    while !over.load(SeqCst) {
                        std::thread::sleep(Duration::from_millis(10));
                        let victim = cell(VICTIM).load(SeqCst);
                        if victim != since.0 {
                            since = (victim, Instant::now());
                        } else if victim != 0 && since.1.elapsed() > PATIENCE {
                            let _ = kill(Pid::from_raw(victim as i32), Signal::SIGKILL);
                        }
                    }
                });
                load(&pool);
                at_full_strength(&pool);
                over.store(true, SeqCst);
            });
            pool.close().wait();
        }
    });
}

#[test]
fn one_word_is_overwritten() {
    survive(How::Once, 0..12);
}

#[test]
fn everything_is_overwritten_all_the_time() {
    survive(How::Meanwhile, 100..112);
}
