//! The main job: `examples/enrich`, whole runs of its program on processes and on threads.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::measure::{Comparison, Scale};
use crate::report::Goal::AtLeast;
use crate::report::Report;

const WORKERS: &str = "2";

/// The program, built with `cargo build --release --example enrich`, and the folder of its four tables: the repository's small
/// sample, unless FORKRING_FLIGHTS names one with all flights.
struct Job {
    program: PathBuf,
    data: PathBuf,
}

impl Job {
    fn find() -> Result<Self, String> {
        let repository = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let program = repository.join("target/release/examples/enrich");
        if !program.exists() {
            return Err(format!("{} is not built", program.display()));
        }
        let data = std::env::var_os("FORKRING_FLIGHTS").map(PathBuf::from);
        Ok(Self { program, data: data.unwrap_or_else(|| repository.join("examples/data")) })
    }

    /// Wall time and processor time in ms; the latter of all processes, since each is waited for by its parent.
    fn run(&self, options: &[&str]) -> Vec<f64> {
        let compressed = self.data.join("flights.csv.gz");
        let flights = if compressed.exists() { compressed } else { self.data.join("flights.csv") };
        let mut command = Command::new(&self.program);
        command
            .arg("--input")
            .arg(flights)
            .args(["--output", "/dev/null", "--workers", WORKERS])
            .args(options);
        for table in ["planes", "airports", "airlines"] {
            command.arg(format!("--{table}")).arg(self.data.join(format!("{table}.csv")));
        }
        let (before, start) = (cpu_of_children(), Instant::now());
        let status =
            command.stdin(Stdio::null()).stderr(Stdio::null()).status().expect("a program that runs");
        let wall = start.elapsed();
        assert!(status.success(), "{status}");
        vec![wall.as_secs_f64() * 1e3, (cpu_of_children() - before).num_microseconds() as f64 / 1e3]
    }
}

fn cpu_of_children() -> TimeVal {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("it cannot fail");
    usage.user_time() + usage.system_time()
}

pub(crate) fn enrich(scale: Scale) -> Report {
    let job = match Job::find() {
        Ok(job) => job,
        Err(why) => {
            let mut report = Report::default();
            report.skip("enrich", why);
            return report;
        }
    };
    let mut all = Comparison::new();
    let processes = all.add(format!("forkring, {WORKERS} workers"), || job.run(&[]));
    let threads = all.add(format!("rayon, {WORKERS} threads"), || job.run(&["--threads"]));
    let outcome = all.run(scale);
    let mut report = outcome.report("ms", &["wall", "processor"], &[0, 1]);
    report.checks = vec![
        outcome.ratio("records a second / rayon's", threads, processes, 0, AtLeast(0.95)),
        outcome.ratio("records a second of processor time / rayon's", threads, processes, 1, AtLeast(0.95)),
    ];
    report
}
