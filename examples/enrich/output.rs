//! Records and rejects out, counted on the way.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use indicatif::HumanCount;

use crate::failure::Failure;

const BUFFER_BYTES: usize = 256 * 1024;

/// Where the results of all lines go, in input order.
pub(crate) struct Sink {
    records: Destination,
    rejects: Option<Destination>,
    tally: Tally,
}

impl Sink {
    pub(crate) fn create(output: &Path, rejects: Option<&Path>) -> Result<Sink, Failure> {
        Ok(Sink {
            records: Destination::create(output)?,
            rejects: rejects.map(Destination::create).transpose()?,
            tally: Tally::default(),
        })
    }

    /// Writes `count` records, `text`, made by `worker`.
    pub(crate) fn records(&mut self, text: &[u8], count: u64, worker: usize) -> Result<(), Failure> {
        self.tally.records += count;
        self.tally.credit(worker, count);
        self.records.write(text)
    }

    /// Notes that line number `line` has no record. `worker` is who found out, if anybody lived to tell.
    pub(crate) fn reject(&mut self, line: u64, reason: &str, worker: Option<usize>) -> Result<(), Failure> {
        self.tally.rejects += 1;
        if let Some(worker) = worker {
            self.tally.credit(worker, 1);
        }
        let Some(rejects) = &mut self.rejects else { return Ok(()) };
        // One line each, also when the reason is a panic's message, which may be anything.
        let reason = reason.replace(char::is_control, " ");
        rejects.write(format!("{line}\t{reason}\n").as_bytes())
    }

    /// Writes out what is buffered.
    pub(crate) fn finish(self) -> Result<Tally, Failure> {
        self.records.finish()?;
        self.rejects.map_or(Ok(()), Destination::finish)?;
        Ok(self.tally)
    }
}

struct Destination {
    writer: BufWriter<File>,
    path: PathBuf,
}

impl Destination {
    fn create(path: &Path) -> Result<Destination, Failure> {
        let file = if path.as_os_str() == "-" {
            // `io::Stdout` would look for line ends in every block that passes.
            io::stdout().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::create(path)
        };
        let file = file.map_err(|error| Failure::file("create", path, error))?;
        Ok(Destination { writer: BufWriter::with_capacity(BUFFER_BYTES, file), path: path.to_owned() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.writer.write_all(bytes).map_err(|error| Failure::write(&self.path, error))
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.writer.flush().map_err(|error| Failure::write(&self.path, error))
    }
}

/// What came of the lines, and who did the work.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    records: u64,
    rejects: u64,
    /// Lines handled, by worker.
    shares: Vec<u64>,
}

impl Tally {
    fn credit(&mut self, worker: usize, lines: u64) {
        if worker >= self.shares.len() {
            self.shares.resize(worker + 1, 0);
        }
        self.shares[worker] += lines;
    }

    pub(crate) fn report(&self, to: &mut impl Write, mode: &str, seconds: f64) -> io::Result<()> {
        let rate = (self.records as f64 / seconds).round() as u64;
        let (records, rejects) = (HumanCount(self.records), HumanCount(self.rejects));
        writeln!(
            to,
            "{records} records, {rejects} rejects, {seconds:.3} s, {} records/s ({mode})",
            HumanCount(rate)
        )?;
        let total: u64 = self.shares.iter().sum();
        for (worker, &lines) in self.shares.iter().enumerate() {
            let percent = lines as f64 * 100.0 / total as f64;
            writeln!(to, "  worker {worker}: {} lines, {percent:.1} %", HumanCount(lines))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_every_share() {
        let mut tally = Tally { records: 2000, rejects: 1, shares: Vec::new() };
        tally.credit(2, 1500);
        tally.credit(0, 500);
        let mut report = Vec::new();
        tally.report(&mut report, "test", 0.5).unwrap();
        assert_eq!(
            String::from_utf8(report).unwrap(),
            "2,000 records, 1 rejects, 0.500 s, 4,000 records/s (test)\n  worker 0: 500 lines, 25.0 %\n  \
             worker 1: 0 lines, 0.0 %\n  worker 2: 1,500 lines, 75.0 %\n"
        );
    }

    #[test]
    fn a_full_device_is_reported() {
        let mut sink = Sink::create(Path::new("/dev/full"), None).unwrap();
        sink.records(b"{}\n", 1, 0).unwrap();
        assert!(matches!(sink.finish(), Err(Failure::Message(message)) if message.contains("/dev/full")));
    }
}
