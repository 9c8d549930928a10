//! forkring beside what one would use instead of it: thread pools, other process pools, message passing between
//! processes, and the physical floor. One table, each ratio next to its goal.
//!
//! Each row runs in a process of its own, so that whatever it forks, it forks without the threads of other rows, and a row
//! that dies costs itself only. Within a row, the contenders take turns in that one process. Every reply is checked.

mod measure;
mod plots;
mod raw;
mod report;
mod rivals;
mod rows;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

use crate::measure::{P50, Sampling, Scale};
use crate::raw::CacheLines;
use crate::report::{Report, Verdict};
use crate::rows::{ROWS, Row};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// forkring beside what one would use instead of it.
#[derive(Debug, Parser)]
struct Arguments {
    /// Small and short: to see that every row runs, not to measure.
    #[arg(long)]
    quick: bool,
    /// Only these rows.
    #[arg(long, value_name = "ROW", value_parser = row_names())]
    only: Vec<String>,
    /// Writes everything that was measured as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes plots as SVG: latency distributions, throughput over granularity and payload.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Measures this one row in this process and writes its report to stdout.
    #[arg(long, hide = true)]
    row: Option<String>,
}

fn row_names() -> Vec<&'static str> {
    ROWS.iter().map(|row| row.name).collect()
}

fn main() -> Result<ExitCode> {
    // In a process of procspawn's this does not return.
    procspawn::init();
    let arguments = Arguments::parse();
    let scale = Scale { quick: arguments.quick };
    if let Some(name) = &arguments.row {
        let row = ROWS.iter().find(|row| row.name == name).ok_or("there is no such row")?;
        serde_json::to_writer(std::io::stdout(), &(row.run)(scale))?;
        return Ok(ExitCode::SUCCESS);
    }

    let machine = Machine::look();
    println!("forkring beside others on {}{}", machine.describe(), if scale.quick { "; quick" } else { "" });
    let chosen = |row: &&Row| arguments.only.is_empty() || arguments.only.iter().any(|name| name == row.name);
    let mut reports = Vec::new();
    let mut lines = CacheLines::start();
    for row in ROWS.iter().filter(chosen) {
        let report = run_apart(row, scale, &mut lines);
        print!("{report}");
        reports.push(report);
    }
    summarize(&reports);

    if let Some(dir) = &arguments.plots {
        std::fs::create_dir_all(dir)?;
        for report in &reports {
            if let Some(plot) = &report.plot {
                plots::write(dir, &report.title, &machine.describe(), plot)?;
            }
        }
    }
    if let Some(file) = &arguments.json {
        let all = Everything { machine, quick: scale.quick, rows: &reports };
        serde_json::to_writer_pretty(std::fs::File::create(file)?, &all)?;
    }
    let failed = reports.iter().any(|report| report.failure.is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs a row in a process of its own.
fn run_apart(row: &Row, scale: Scale, lines: &mut CacheLines) -> Report {
    let line_before = line_ns(lines);
    let before = Ticks::now();
    let result = try_run_apart(row, scale);
    let others = Ticks::now().used_by_others_since(&before);
    let line_ns = [line_before, line_ns(lines)];
    let report =
        result.unwrap_or_else(|error| Report { failure: Some(error.to_string()), ..Report::default() });
    Report { name: row.name.to_owned(), title: row.title.to_owned(), others, line_ns, ..report }
}

/// What a line takes to the other core and back: the median of some runs.
fn line_ns(lines: &mut CacheLines) -> f64 {
    let sampling = Sampling::awake(51_000, Duration::from_secs(1));
    lines.awake(|exchange| sampling.runs(exchange))[P50] * 1000.0
}

fn try_run_apart(row: &Row, scale: Scale) -> Result<Report> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--row", row.name]).stdin(Stdio::null()).stderr(Stdio::inherit());
    if scale.quick {
        command.arg("--quick");
    }
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("its process ended with {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn summarize(reports: &[Report]) {
    let checks = || reports.iter().flat_map(|report| report.checks.iter().map(move |check| (report, check)));
    let with = |verdict| checks().filter(move |(_, check)| check.verdict() == Some(verdict));
    let [met, missed, unsure] =
        [Verdict::Met, Verdict::Missed, Verdict::Unsure].map(|verdict| with(verdict).count());
    let stretched = checks().filter(|(_, check)| check.is_stretched()).count();
    println!(
        "\n{met} goals met ({stretched} with what is beyond them), {missed} missed, {unsure} unsure (the lowest rounds disagree with the median)"
    );
    let disturbed: Vec<&str> =
        reports.iter().filter(|report| report.is_disturbed()).map(|report| report.name.as_str()).collect();
    if !disturbed.is_empty() {
        println!("  to be measured again, since others used the machine meanwhile: {}", disturbed.join(", "));
    }
    for (heading, verdict) in [("missed", Verdict::Missed), ("unsure", Verdict::Unsure)] {
        for (report, check) in with(verdict) {
            let figure = format!("{} {}", report::short(check.value), check.unit);
            println!("  {heading:<8}{:<16}{:<56}{figure:>10}, goal {}", report.name, check.what, check.goal);
        }
    }
}

#[derive(Serialize)]
struct Everything<'a> {
    machine: Machine,
    quick: bool,
    rows: &'a [Report],
}

#[derive(Serialize)]
struct Machine {
    cores: usize,
    processor: String,
    kernel: String,
}

impl Machine {
    fn look() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: processor.map_or("an unknown processor", |(_, name)| name).to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }

    fn describe(&self) -> String {
        format!("{} cores of {}, Linux {}", self.cores, self.processor, self.kernel)
    }
}

/// Processor time of the whole machine, and of the children of this process that have ended, in seconds.
struct Ticks {
    all: f64,
    busy: f64,
    ours: f64,
}

impl Ticks {
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = stat.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal, in hundredths of a second (proc_stat(5)).
        let times: Vec<f64> =
            first.split_whitespace().skip(1).take(8).filter_map(|time| time.parse::<f64>().ok()).collect();
        let all: f64 = times.iter().sum::<f64>() / 100.0;
        let idle = times.iter().skip(3).take(2).sum::<f64>() / 100.0;
        let ours = getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0.0, |usage| {
            [usage.user_time(), usage.system_time()]
                .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
                .iter()
                .sum()
        });
        Self { all, busy: all - idle, ours }
    }

    fn used_by_others_since(&self, before: &Self) -> f64 {
        let busy = (self.busy - before.busy) - (self.ours - before.ours);
        (busy / (self.all - before.all)).clamp(0.0, 1.0)
    }
}
