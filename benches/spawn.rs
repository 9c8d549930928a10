//! How soon the pool notices that a worker was killed, how soon the replacement serves, and what building a pool takes, for
//! masters of several sizes: a killed worker's memory is freed before its death can be noticed, and a fork copies the
//! master's page tables.

mod common;

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::Mode;
use forkring::Pool;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn main() {
    let mode = Mode::from_args();
    // Killed workers are what this is about.
    forkring::hooks::set_log_error(|_| {});
    if mode != Mode::List {
        println!(
            "\na worker is killed: milliseconds until its task has failed, and until its successor has answered"
        );
        println!(
            "{:<24}{:>10}{:>10}{:>14}{:>10}{:>12}",
            "master", "failed", "p99", "replaced", "p99", "build()"
        );
        for mib in mode.pick(vec![0, 64, 256], vec![64]) {
            measure(mib, mode.pick(200, 5));
        }
    }
    let mut criterion = common::criterion();
    let mut group = criterion.benchmark_group("spawn");
    group.bench_function("build and close", |b| {
        b.iter(|| {
            let pool = Pool::new(1).expect("a pool");
            assert_eq!(pool.submit(|n: u32| n + 1, &1).wait().expect("a reply"), 2);
            pool.close().wait();
        });
    });
    group.finish();
    criterion.final_summary();
}

/// The victim's sign of life; an eventfd, which workers inherit.
static STARTED: OnceLock<EventFd> = OnceLock::new();

fn measure(mib: usize, rounds: usize) {
    STARTED.get_or_init(|| EventFd::new().expect("an eventfd"));
    let ballast = vec![1_u8; mib << 20];
    let start = Instant::now();
    let pool = Pool::new(1).expect("a pool");
    let built = start.elapsed();
    let (mut failed, mut replaced) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let pid = pool.submit(|_: ()| std::process::id(), &()).wait().expect("a reply");
        let victim: forkring::Task<()> = pool.submit(
            |_: ()| {
                // A task that had not started would run in the successor.
                STARTED
                    .get()
                    .expect("set before the pool was built")
                    .write(1)
                    .expect("an eventfd takes a number");
                loop {
                    std::thread::park();
                }
            },
            &(),
        );
        STARTED.get().expect("set above").read().expect("an eventfd gives a number");
        let start = Instant::now();
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("the worker lives");
        assert!(victim.wait().expect_err("its worker was killed").is_worker_lost());
        failed.push(start.elapsed());
        let next = pool.submit(|_: ()| std::process::id(), &()).wait().expect("a reply");
        replaced.push(start.elapsed());
        assert_ne!(next, pid);
    }
    black_box(&ballast);
    let name = format!("{mib} MiB beside its own");
    let ms = |times: &mut Vec<Duration>, share: f64| {
        times.sort_unstable();
        times[(times.len() as f64 * share) as usize].as_secs_f64() * 1000.0
    };
    println!(
        "{name:<24}{:>10.2}{:>10.2}{:>14.2}{:>10.2}{:>12.2}",
        ms(&mut failed, 0.5),
        ms(&mut failed, 0.99),
        ms(&mut replaced, 0.5),
        ms(&mut replaced, 0.99),
        built.as_secs_f64() * 1000.0,
    );
}
