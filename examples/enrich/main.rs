//! Converts a stream of lines: parses each, looks its references up in tables held in memory, writes a new record.
//!
//! The lines are the flights that left New York's airports in 2013; the records are JSON objects, one a line, in
//! input order, with what the tables know about the aircraft, the airline and both airports. The tables are the
//! pool's `env`: the workers inherit them by fork, nothing of them is copied or serialized.
//!
//! ```text
//! cargo run --release --example enrich                    # forked workers, on the sample
//! cargo run --release --example enrich -- --threads       # the same job on rayon
//! cargo run --release --example enrich -- --sequential    # and on one thread
//! ```
//!
//! All three write the same bytes: they share [`enrich::enrich_line`] and differ in who calls it.

mod enrich;
mod failure;
mod flight;
mod geo;
mod input;
mod json;
mod options;
mod output;
mod run;
mod split;
mod tables;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::Failure;
use crate::input::Lines;
use crate::options::Options;
use crate::output::Sink;
use crate::tables::Tables;

fn main() -> ExitCode {
    let options = Options::parse();
    match convert(&options) {
        // Whoever reads the output has seen enough (`| head`): that is no failure, and nobody waits for a report.
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Message(message)) => {
            let _ = writeln!(std::io::stderr(), "enrich: {message}");
            ExitCode::FAILURE
        }
    }
}

fn convert(options: &Options) -> Result<(), Failure> {
    let progress = progress_bar(options);
    let tables = Tables::load(&options.planes, &options.airports, &options.airlines)?;
    let mut lines = Lines::open(&options.input, &progress)?;
    // Last, so that no file is overwritten on behalf of a job that cannot start.
    let mut sink = Sink::create(&options.output, options.rejects.as_deref())?;

    let start = Instant::now();
    let outcome = run::run(options, tables, &mut lines, &mut sink);
    progress.finish_and_clear();
    outcome?;
    lines.finish()?;
    let tally = sink.finish()?;
    let seconds = start.elapsed().as_secs_f64();
    // A report that cannot be written must not turn a finished job into a failed one.
    let _ = tally.report(&mut std::io::stderr(), &options.mode(), seconds);
    Ok(())
}

/// A bar over the input's bytes, since the number of lines is known only at the end.
///
/// Hidden when nobody could see it, or when it would be drawn across the records. It has no ticker thread: the pool
/// forks, and a process that forks does best with one thread.
fn progress_bar(options: &Options) -> ProgressBar {
    let drawn_over = options.output.as_os_str() == "-" && std::io::stdout().is_terminal();
    if !std::io::stderr().is_terminal() || drawn_over {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {eta} left")
        .expect("the template is a valid constant");
    ProgressBar::no_length().with_style(style)
}
