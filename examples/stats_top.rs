//! A terminal view of a pool that is at work: a bar for each worker, redrawn ten times a second, as `top` does. Without a
//! terminal only the last figures are printed.
//!
//!     cargo run --release --example stats_top
//!
//! What is shown comes from `Pool::stats`, which any thread may call while the pool runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forkring::{Pool, Stats, WorkerStats};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Tasks that take longer and longer, one of which takes its worker along.
fn work(n: u64) -> u64 {
    if n == 60 {
        std::process::abort();
    }
    std::thread::sleep(Duration::from_micros(200 * n));
    n
}

/// Bars for the workers, and a line for the pool.
struct View {
    workers: Vec<ProgressBar>,
    pool: ProgressBar,
}

impl View {
    fn new(workers: usize) -> Result<Self, Box<dyn std::error::Error>> {
        let all = MultiProgress::new();
        let bar = ProgressStyle::with_template("{prefix:>3} {bar:30} {pos:>3} % {msg}")?;
        let line = ProgressStyle::with_template("    {msg}")?;
        let worker =
            |id: usize| all.add(ProgressBar::new(100).with_prefix(id.to_string())).with_style(bar.clone());
        let workers = (0..workers).map(worker).collect();
        Ok(Self { workers, pool: all.add(ProgressBar::new_spinner().with_style(line)) })
    }

    fn show(&self, stats: &Stats) {
        for (bar, w) in self.workers.iter().zip(&stats.workers) {
            bar.set_position((100.0 * w.utilization().unwrap_or(0.0)) as u64);
            bar.set_message(figures(w));
        }
        let run = stats.timings.as_ref().map(|timings| timings.run.to_string());
        self.pool.set_message(format!("{} done, ran {}", stats.done, run.unwrap_or_default()));
    }
}

fn figures(w: &WorkerStats) -> String {
    let mib = w.resident_bytes.unwrap_or(0) >> 20;
    format!("{:<8} {:>3} done, {} lost, {} restarts, {mib} MiB", w.state, w.done, w.lost, w.restarts)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    forkring::hooks::set_log_error(|_| ()); // a line about the lost worker would tear the view
    let pool = Pool::builder().workers(3).timings(true).build()?;
    let view = View::new(pool.workers())?;
    let is_over = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let top = scope.spawn(|| {
            let mut seen = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                seen.push(pool.stats());
                view.show(&seen[seen.len() - 1]);
                std::thread::park_timeout(Duration::from_millis(100));
            }
            seen
        });
        let done = pool.map(0..100_u64, work).filter(Result::is_ok).count();
        is_over.store(true, Ordering::Relaxed);
        top.thread().unpark();
        assert_eq!(done, 99);
        top.join().unwrap_or_default()
    });

    let last = pool.stats();
    view.show(&last);
    println!("{last}");
    assert!(view.workers.iter().zip(&last.workers).all(|(bar, w)| bar.message() == figures(w)));
    assert!(seen.is_sorted_by_key(|stats| stats.done) && seen.iter().any(|stats| stats.running > 0));
    assert_eq!((last.submitted, last.done, last.lost), (100, 99, 1));
    assert_eq!(last.workers.iter().map(|w| w.restarts).sum::<u64>(), 1);
    assert!(last.timings.is_some_and(|timings| timings.run.count() == 100));
    Ok(())
}
