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
// Cells.
const SEED: usize = 0;
const MEANWHILE: usize = 1;
/// How many workers have scribbled, and who.
const COUNT: usize = 2;
const VICTIMS: std::ops::Range<usize> = 3..64;
/// A worker whose own bookkeeping is ruined may sleep for ever, like one with an endless task. It is killed then.
const PATIENCE: Duration = Duration::from_secs(2);

fn misbehave() {
    let nth = cell(COUNT).fetch_add(1, SeqCst) as usize;
    cell(VICTIMS.start + nth).store(u64::from(std::process::id()), SeqCst);
    let how = if cell(MEANWHILE).load(SeqCst) == 1 { How::Meanwhile } else { How::Once };
    scribble(cell(SEED).load(SeqCst), how);
}

fn is_victim(pid: u32) -> bool {
    VICTIMS.into_iter().any(|at| cell(at).load(SeqCst) == u64::from(pid))
}

/// What other workers return is right. A result that was scribbled over may name anybody, but hardly one of them.
fn check(workers: &[u32], item: u64, outcome: Result<(u32, u64), TaskError>) {
    match outcome {
        Ok((pid, value)) if workers.contains(&pid) && !is_victim(pid) => {
            assert_eq!(value, item * 3, "item {item} of worker {pid}, which has not scribbled");
        }
        Ok(_) => {}
        Err(TaskError::WorkerLost(lost)) => assert!(is_victim(lost.pid()), "{lost} has not scribbled"),
        Err(_) => {}
    }
}

fn load(pool: &Pool<(), Service<u64, u64>>) {
    let workers = pool.worker_pids();
    let body = |w: &Here, n: &View<u64>| {
        let n = n.to_native();
        if n == 20 {
            misbehave();
        }
        (std::process::id(), if n.is_multiple_of(16) { w.call(&n).unwrap_or(0) } else { n * 3 })
    };
    let tasks: Vec<_> = (0..300_u64).map(|n| pool.submit_with(body, &n)).collect();
    for (n, task) in (0..).zip(tasks) {
        check(&workers, n, task.wait());
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
        check(&workers, n, item.map(|(pid, value, _)| (pid, value)));
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
    std::panic::set_hook(Box::new(|_| ()));
    cell(MEANWHILE).store(u64::from(how == How::Meanwhile), SeqCst);
    for seed in seeds {
        eprintln!("seed {seed}");
        cell(SEED).store(seed, SeqCst);
        std::iter::once(COUNT).chain(VICTIMS).for_each(|at| cell(at).store(0, SeqCst));
        let pool = Pool::builder().workers(WORKERS).service(|n: u64| n * 3).build().unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut known = Vec::new();
                while !over.load(SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                    let victims = VICTIMS.map(|at| cell(at).load(SeqCst)).filter(|&pid| pid != 0);
                    known.extend(
                        victims.skip(known.len()).map(|pid| (pid as i32, Instant::now())).collect::<Vec<_>>(),
                    );
                    for &(pid, since) in &known {
                        if since.elapsed() > PATIENCE {
                            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                        }
                    }
                }
            });
            load(&pool);
            at_full_strength(&pool);
            over.store(true, SeqCst);
        });
        pool.close().wait();
    }
}

#[test]
fn one_word_is_overwritten() {
    scenario(|| survive(How::Once, 0..12));
}

#[test]
fn everything_is_overwritten_all_the_time() {
    scenario(|| survive(How::Meanwhile, 100..112));
}
