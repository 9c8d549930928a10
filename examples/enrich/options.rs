//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Parser;

macro_rules! sample {
    ($file:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/", $file)
    };
}

/// Lines in one message to a worker. Memory grows with it, by about a kilobyte a line for each message under way.
const GRANULARITY_MAX: usize = 65_536;

/// Adds aircraft, airline and airport data to flights, one JSON object a line.
#[derive(Debug, Parser)]
#[command(name = "enrich", version)]
pub(crate) struct Options {
    /// Flights as CSV with a header line, plain or compressed with gzip; `-` is standard input
    #[arg(long, value_name = "FILE", default_value = sample!("flights.csv"))]
    pub(crate) input: PathBuf,

    /// Table of aircraft by tail number
    #[arg(long, value_name = "FILE", default_value = sample!("planes.csv"))]
    pub(crate) planes: PathBuf,

    /// Table of airports by FAA code
    #[arg(long, value_name = "FILE", default_value = sample!("airports.csv"))]
    pub(crate) airports: PathBuf,

    /// Table of airlines by carrier code
    #[arg(long, value_name = "FILE", default_value = sample!("airlines.csv"))]
    pub(crate) airlines: PathBuf,

    /// Where the records go; `-` is standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) output: PathBuf,

    /// Where the lines that do not parse are listed: line number, tab, reason
    #[arg(long, value_name = "FILE")]
    pub(crate) rejects: Option<PathBuf>,

    /// Worker processes, or threads with --threads [default: the usable cores]
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,

    /// Lines in one message to a worker, a fixed number
    #[arg(long, value_name = "N", default_value = "256", value_parser = granularity)]
    pub(crate) granularity: usize,

    /// Run on the threads of a rayon pool instead of on processes
    #[arg(long)]
    pub(crate) threads: bool,

    /// Run on one thread
    #[arg(long, conflicts_with_all = ["threads", "workers"])]
    pub(crate) sequential: bool,
}

impl Options {
    pub(crate) fn workers(&self) -> usize {
        let usable = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.workers.unwrap_or_else(usable).get()
    }

    /// How the job runs, for the report.
    pub(crate) fn mode(&self) -> String {
        if self.sequential {
            return "sequential".to_owned();
        }
        let kind = if self.threads { "threads" } else { "processes" };
        format!("{} {kind}, {} lines a message", self.workers(), self.granularity)
    }
}

fn granularity(text: &str) -> Result<usize, String> {
    if text == "auto" {
        return Err("`auto` is not available, only fixed numbers are".to_owned());
    }
    match text.parse() {
        Ok(lines) if (1..=GRANULARITY_MAX).contains(&lines) => Ok(lines),
        _ => Err(format!("a number from 1 to {GRANULARITY_MAX} is expected")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn auto_granularity_is_refused_with_the_reason() {
        let error = Options::try_parse_from(["enrich", "--granularity", "auto"]).unwrap_err();
        assert!(error.to_string().contains("only fixed numbers are"), "{error}");
    }

    #[test]
    fn granularity_and_workers_start_at_one() {
        assert!(Options::try_parse_from(["enrich", "--granularity", "0"]).is_err());
        assert!(Options::try_parse_from(["enrich", "--workers", "0"]).is_err());
        let options = Options::try_parse_from(["enrich", "--granularity", "1", "--workers", "3"]).unwrap();
        assert_eq!((options.granularity, options.workers()), (1, 3));
    }
}
