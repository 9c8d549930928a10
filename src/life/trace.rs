//! The file that [`Builder::record`](crate::Builder::record) writes: events in the JSON that Chrome's and Perfetto's trace
//! viewers read ("Trace Event Format", JSON object form).
//!
//! The end of the document is written each time and overwritten the next time, in one call, so what is in the file is a whole
//! document between two calls, whatever becomes of this process. A call that fails half-way is taken back.

use std::fmt::Write;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::core::Core;
use super::events;
use super::journal::{Entry, TaskEntry};
use super::messages::Who;
use super::registry;
use crate::ground::sys::{clock, process};

const END: &str = "\n]}\n";

/// See the module's documentation. `file` is in the registry for as long as this exists.
#[derive(Debug)]
pub(crate) struct Trace {
    file: File,
    /// Where [`END`] begins; 0 before anything is written.
    end: u64,
    start_ns: u64,
    pid: i32,
    /// For each worker, the generation of the process that is alive, if there is one.
    alive: Vec<Option<u64>>,
    failed: bool,
}

impl Trace {
    /// `file` has been added to the registry.
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            end: 0,
            start_ns: clock::now_ns(),
            pid: process::own_pid(),
            alive: Vec::new(),
            failed: false,
        }
    }

    /// Adds entries. An error is told once, and ends the recording.
    pub(crate) fn write(&mut self, core: &Core, entries: &[Entry]) {
        if self.failed || (entries.is_empty() && self.end > 0) {
            return;
        }
        let mut text = String::with_capacity(256 * entries.len() + 4096);
        if self.end == 0 {
            self.begin(core, &mut text);
        }
        for entry in entries {
            self.entry(core, entry, &mut text);
        }
        let end = self.end + text.len() as u64;
        text.push_str(END);
        match self.file.write_all_at(text.as_bytes(), self.end) {
            Ok(()) => self.end = end,
            Err(error) => {
                self.failed = true;
                self.restore_end();
                events::error(core, format_args!("the recording ends, since it cannot be written: {error}"));
            }
        }
    }

    /// A part of what was to be added may stand over the end that was there.
    fn restore_end(&self) {
        let end = match self.end {
            0 => "",
            _ => END,
        };
        // These bytes have been written before, so a full disk has room for them: they come before anything is freed. A second
        // error says nothing that the first one has not.
        let _ = self.file.write_all_at(end.as_bytes(), self.end);
        let _ = self.file.set_len(self.end + end.len() as u64);
    }

    pub(crate) fn close(self) {
        let mut registry = registry::lock();
        registry.remove(self.file.as_fd());
        drop(self);
    }

    /// Microseconds since the beginning, as the format has it.
    fn time(&self, at_ns: u64) -> Micros {
        Micros(at_ns.saturating_sub(self.start_ns))
    }

    fn begin(&mut self, core: &Core, text: &mut String) {
        let (pid, name) = (self.pid, Json(&core.name));
        self.alive = vec![None; core.stations.len()];
        text.push_str("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[");
        let meta = |text: &mut String, what, tid, args: std::fmt::Arguments<'_>| {
            let _ = write!(
                text,
                "\n{{\"ph\":\"M\",\"name\":\"{what}\",\"pid\":{pid},\"tid\":{tid},\"args\":{{{args}}}}}"
            );
        };
        meta(text, "process_name", 0, format_args!("\"name\":{name}"));
        for station in &core.stations {
            let (tid, id) = (track(station.id), station.id);
            text.push(',');
            meta(text, "thread_name", tid, format_args!("\"name\":\"worker {id}\""));
            text.push(',');
            meta(text, "thread_sort_index", tid, format_args!("\"sort_index\":{tid}"));
        }
    }

    fn entry(&mut self, core: &Core, entry: &Entry, text: &mut String) {
        let pid = self.pid;
        // Writing to a string cannot fail.
        let _ = match entry {
            Entry::Task(task) => self.task(core, task, text),
            Entry::Ready { who, pid: worker, asked_ns, at_ns } => {
                self.alive[who.station] = Some(who.generation);
                let Who { station, generation } = *who;
                let (tid, asked, at) = (track(station), self.time(*asked_ns), self.time(*at_ns));
                let took = Micros(at_ns.saturating_sub(*asked_ns));
                write!(
                    text,
                    ",\n{{\"ph\":\"X\",\"cat\":\"worker\",\"name\":\"start\",\"pid\":{pid},\"tid\":{tid},\"ts\":{asked},\"dur\":{took},\
                     \"args\":{{\"generation\":{generation}}}}}\
                     ,\n{{\"ph\":\"B\",\"cat\":\"worker\",\"name\":\"process {worker}\",\"pid\":{pid},\"tid\":{tid},\"ts\":{at},\
                     \"args\":{{\"generation\":{generation},\"pid\":{worker}}}}}"
                )
            }
            Entry::Ended { who, at_ns, how } => {
                let (tid, at, how) = (track(who.station), self.time(*at_ns), Json(how));
                if self.alive[who.station].take_if(|generation| *generation == who.generation).is_some() {
                    let _ = write!(
                        text,
                        ",\n{{\"ph\":\"E\",\"pid\":{pid},\"tid\":{tid},\"ts\":{at},\"args\":{{\"end\":{how}}}}}"
                    );
                }
                write!(
                    text,
                    ",\n{{\"ph\":\"i\",\"s\":\"t\",\"cat\":\"worker\",\"name\":\"end\",\"pid\":{pid},\"tid\":{tid},\"ts\":{at},\
                     \"args\":{{\"end\":{how},\"generation\":{}}}}}",
                    who.generation
                )
            }
            Entry::Depth { at_ns, queued, running } => write!(
                text,
                ",\n{{\"ph\":\"C\",\"name\":\"tasks\",\"pid\":{pid},\"tid\":0,\"ts\":{},\
                 \"args\":{{\"queued\":{queued},\"running\":{running}}}}}",
                self.time(*at_ns)
            ),
            Entry::Missing { at_ns, entries } => write!(
                text,
                ",\n{{\"ph\":\"i\",\"s\":\"p\",\"cat\":\"record\",\"name\":\"missing\",\"pid\":{pid},\"tid\":0,\"ts\":{},\
                 \"args\":{{\"entries\":{entries}}}}}",
                self.time(*at_ns)
            ),
        };
    }

    fn task(&self, core: &Core, task: &TaskEntry, text: &mut String) -> std::fmt::Result {
        let TaskEntry { who, id, run, submitted_ns, outcome } = task;
        let (pid, tid, name) = (self.pid, track(who.station), Json(run.code.name(&core.objects)));
        let (at, took) = (self.time(run.started_ns), Micros(run.ended_ns.saturating_sub(run.started_ns)));
        let waited = Micros(run.started_ns.saturating_sub(*submitted_ns));
        write!(
            text,
            ",\n{{\"ph\":\"X\",\"cat\":\"task\",\"name\":{name},\"pid\":{pid},\"tid\":{tid},\"ts\":{at},\"dur\":{took},\
             \"args\":{{\"id\":\"{id}\",\"outcome\":\"{outcome}\",\"waited_us\":{waited},\"generation\":{},\"number\":{}",
            who.generation, run.index
        )?;
        if let Some(items) = run.items {
            write!(text, ",\"items\":{items}")?;
        }
        text.write_str("}}")
    }
}

/// A worker's track. 0 is the pool's own.
fn track(station: usize) -> usize {
    station + 1
}

/// Nanoseconds, shown as microseconds.
struct Micros(u64);

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// A string of JSON, with its quotes.
struct Json<'a>(&'a str);

impl std::fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c < ' ' => write!(f, "\\u{:04x}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_json() {
        for text in ["", "plain", "a \"b\" \\ c", "line\nfeed\ttab\u{1}", "ümlaut 🦀"] {
            assert_eq!(serde_json::from_str::<String>(&Json(text).to_string()).unwrap(), text);
        }
    }

    #[test]
    fn times_are_microseconds() {
        assert_eq!(Micros(1_234_567).to_string(), "1234.567");
        assert_eq!(Micros(5).to_string(), "0.005");
    }
}
