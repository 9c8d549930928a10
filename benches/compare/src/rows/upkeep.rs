//! What a pool costs that is not working, and what it takes to replace a worker.

use std::fs;
use std::hint::black_box;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forkring::{Pool, Task, View, Worker};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, gettid};

use crate::measure::{Comparison, Scale};
use crate::report::Goal::{AtMost, Below, None as NoGoal};
use crate::report::Report;

const WORKERS: usize = 2;

/// A pool that has done some of everything: single tasks, many at once, a stream.
fn pool_after_work() -> Pool {
    let pool = Pool::new(WORKERS).expect("a pool");
    assert_eq!(pool.submit(|n: u64| n + 1, &1).wait().expect("a reply"), 2);
    let sent: Vec<_> = (0..10_000).map(|n| pool.submit(|n: u64| n + 1, &n)).collect();
    for (n, task) in (0..).zip(sent) {
        assert_eq!(task.wait().expect("a reply"), n + 1);
    }
    let sum: u64 = pool.map(0..10_000, |n: u64| n).map(|result| result.expect("a reply")).sum();
    assert_eq!(sum, 10_000 * 9_999 / 2);
    pool
}

pub(crate) fn idle(scale: Scale) -> Report {
    let pause = scale.pick(Duration::from_secs(10), Duration::from_millis(200));
    let pool = pool_after_work();
    // The driver comes by every millisecond until it finds that nobody else does.
    std::thread::sleep(Duration::from_millis(100));
    let mut all = Comparison::new();
    let pool_line = all.add(format!("forkring, {WORKERS} workers, driver and zygote"), || {
        let before = activity();
        std::thread::sleep(pause);
        activity().into_iter().zip(before).map(|(after, before)| after - before).collect()
    });
    let outcome = all.run(scale);
    drop(pool);
    let columns = ["voluntary", "involuntary", "CPU in µs"];
    let mut report = outcome.report(&format!("context switches in {pause:?}"), &columns, &[0, 1, 2]);
    report.checks = vec![
        outcome.value("voluntary context switches", pool_line, 0, "", AtMost(0.0)),
        outcome.value("involuntary context switches", pool_line, 1, "", AtMost(0.0)),
        outcome.value("processor time", pool_line, 2, "µs", AtMost(0.0)),
    ];
    report
}

/// Voluntary and involuntary context switches and the processor time in µs of all threads of this process and its
/// descendants, but this thread, since they exist.
fn activity() -> [f64; 3] {
    let this = gettid().to_string();
    let own = tasks_of(getpid()).into_iter().filter(|path| !path.ends_with(&this));
    let tasks: Vec<PathBuf> = own.chain(descendants(getpid()).into_iter().flat_map(tasks_of)).collect();
    assert!(tasks.len() >= WORKERS + 2, "a driver, a zygote and workers: {tasks:?}");
    tasks.iter().fold([0.0; 3], |[voluntary, involuntary, cpu], task| {
        let status = fs::read_to_string(task.join("status")).expect("a thread that lives");
        // Nanoseconds on a processor come first (proc-schedstat).
        let schedstat = fs::read_to_string(task.join("schedstat")).expect("a thread that lives");
        let ns: f64 = schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number");
        [
            voluntary + field(&status, "voluntary_ctxt_switches:"),
            involuntary + field(&status, "nonvoluntary_ctxt_switches:"),
            cpu + ns / 1000.0,
        ]
    })
}

fn tasks_of(pid: Pid) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).expect("a process that lives");
    entries.map(|entry| entry.expect("a directory").path()).collect()
}

/// All processes that come from this one and live.
fn descendants(of: Pid) -> Vec<Pid> {
    let processes: Vec<(Pid, Pid)> = fs::read_dir("/proc")
        .expect("procfs")
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let pid = path.file_name()?.to_str()?.parse().ok()?;
            Some((Pid::from_raw(pid), parent(&path)?))
        })
        .collect();
    let mut found = vec![of];
    let mut next = 0;
    while let Some(&this) = found.get(next) {
        found.extend(processes.iter().filter(|(_, parent)| *parent == this).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

fn parent(process: &Path) -> Option<Pid> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    Some(Pid::from_raw(status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?))
}

/// The number of the line that starts with `name`.
fn field(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a field that every kernel has");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

pub(crate) fn memory(scale: Scale) -> Report {
    let mut all = Comparison::new();
    let fresh = all.add("a worker that has done nothing", || {
        let pool = Pool::new(WORKERS).expect("a pool");
        most_of(&pool)
    });
    let used = all.add("a worker after work", || most_of(&pool_after_work()));
    let outcome = all.run(scale);
    let mut report = outcome.report("KiB", &["private", "shared rings"], &[0, 1]);
    report.checks = vec![
        outcome.value("private resident memory, idle from the start", fresh, 0, "KiB", Below(1024.0)),
        outcome.value("shared memory touched, idle from the start", fresh, 1, "KiB", Below(256.0)),
        outcome.value("private resident memory, after work", used, 0, "KiB", Below(1024.0)),
        outcome.value("shared memory touched, after work", used, 1, "KiB", NoGoal),
    ];
    report
}

/// Of the worker that has the most: KiB of resident memory that are its own, and of the memory files that the pool
/// shares with it.
fn most_of(pool: &Pool) -> Vec<f64> {
    let workers = pool.worker_pids();
    let each = workers.iter().map(|pid| {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("a worker that lives");
        let (mut private, mut shared, mut is_ring) = (0.0, 0.0, false);
        for line in smaps.lines() {
            // A mapping starts with its addresses, its fields with a name.
            match line.split_once(':').filter(|(name, _)| !name.contains(' ')) {
                None => is_ring = line.contains("/memfd:"),
                Some(("Private_Clean" | "Private_Dirty", _)) if !is_ring => private += kib(line),
                Some(("Rss", _)) if is_ring => shared += kib(line),
                Some(_) => {}
            }
        }
        [private, shared]
    });
    let most = each.fold([0.0_f64; 2], |most, worker| [most[0].max(worker[0]), most[1].max(worker[1])]);
    most.into()
}

fn kib(line: &str) -> f64 {
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// What the master has beside its own.
const BALLAST_BYTES: usize = 64 << 20;

pub(crate) fn killed(scale: Scale) -> Report {
    // Killed workers are what this is about.
    forkring::hooks::set_log_error(|_| {});
    let ballast = vec![1_u8; BALLAST_BYTES];
    let (mut started, starting) = pipe().expect("a pipe");
    let pool = Pool::builder().workers(1).env(starting).build().expect("a pool");
    let kills = scale.pick(100, 5);

    let mut all = Comparison::new();
    let line = all.add("forkring", || {
        let mut times = [const { Vec::new() }; 2];
        for _ in 0..kills {
            let (failed, replaced) = kill_one(&pool, &mut started);
            times[0].push(failed.as_secs_f64() * 1000.0);
            times[1].push(replaced.as_secs_f64() * 1000.0);
        }
        let at = |times: &mut Vec<f64>, share: f64| {
            times.sort_by(f64::total_cmp);
            times[(times.len() as f64 * share) as usize]
        };
        times.iter_mut().flat_map(|times| [0.5, 0.99].map(|share| at(times, share))).collect()
    });
    let outcome = all.run(scale);
    black_box(&ballast);
    let columns = ["failed p50", "failed p99", "replaced p50", "replaced p99"];
    let mut report = outcome.report("ms from the kill", &columns, &[0, 1, 2, 3]);
    report.checks = vec![
        outcome.value("p50 until the task has failed", line, 0, "ms", Below(2.0)),
        outcome.value("p99 until the task has failed", line, 1, "ms", NoGoal),
        outcome.value("p50 until the successor has answered", line, 2, "ms", Below(5.0)),
        outcome.value("p99 until the successor has answered", line, 3, "ms", NoGoal),
    ];
    report
}

/// From the kill until the task has failed, and until the worker's successor has answered.
fn kill_one(pool: &Pool<PipeWriter>, started: &mut PipeReader) -> (Duration, Duration) {
    let ask = || pool.submit(|_: ()| std::process::id(), &()).wait().expect("a reply");
    let pid = ask();
    let victim: Task<()> = pool.submit_with(
        |worker: &Worker<PipeWriter>, _: &View<()>| {
            let mut starting = worker.env();
            starting.write_all(&[1]).expect("a master that listens");
            loop {
                std::thread::park();
            }
        },
        &(),
    );
    // A task that has not started does not fail with its worker: it would run in the successor, and for ever.
    started.read_exact(&mut [0]).expect("a task that starts");
    let start = Instant::now();
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("the worker lives");
    assert!(victim.wait().expect_err("its worker was killed").is_worker_lost());
    let failed = start.elapsed();
    assert_ne!(ask(), pid);
    (failed, start.elapsed())
}
