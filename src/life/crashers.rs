//! Inputs that cost a worker, kept as files.
//!
//! Whoever finds out that an input is to be kept (the owner of a dead worker's station, or the consumer of a stream) has it
//! at hand anyway, and leaves it with the pool's [`Saver`], which takes a lock and moves some words. A thread that lives for as
//! long as there is something to write does what may take its time: a disk holds nobody up.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::end::{End, describe};
use super::registry;
use super::threads;
use crate::error::{Error, TaskError, signal_name};
use crate::ground::monitor::{Condvar, Mutex};
use crate::ground::sys::process::ExitStatus;
use crate::hooks;
use crate::memory::codec::Encoded;
use crate::protocol::code::{About, Shape};

/// How many of them a directory gets, and how many bytes in all.
const FILES_MAX: usize = 100;
const BYTES_MAX: u64 = 1 << 30;
/// Bytes of one input.
const INPUT_BYTES_MAX: usize = 64 << 20;
/// Inputs that wait to be written, and their bytes.
const WAITING_MAX: usize = 64;
const WAITING_BYTES_MAX: usize = 128 << 20;
/// How long the end of a pool waits for the disk.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) const EXTENSION: &str = "crasher";
/// The first line of a file.
pub(crate) const FIRST_LINE: &str = "forkring crasher 1";
/// A part of a file's name has at most so many bytes.
const PART_BYTES_MAX: usize = 60;
/// Names that differ by a number only.
const SAME_NAMES_MAX: u32 = 1000;

/// Where and how a task ended with its worker.
#[derive(Debug)]
pub(crate) struct Scene {
    worker: usize,
    generation: u64,
    pid: u32,
    at: SystemTime,
    /// In words, and in one word.
    cause: String,
    tag: String,
    /// Whether the worker was lost, so that the task may be started again.
    pub(crate) is_loss: bool,
}

impl Scene {
    pub(super) fn of(end: &End, error: &TaskError) -> Self {
        let tag = match (error, end.violation, end.status) {
            (TaskError::TimedOut { .. }, ..) => "timeout".to_owned(),
            (_, Some(_), _) => "violation".to_owned(),
            (_, _, ExitStatus::Exited(code)) => format!("exit{code}"),
            (_, _, ExitStatus::Signaled(signal, _)) => {
                signal_name(signal).split(' ').next().unwrap_or("signal").to_owned()
            }
        };
        let cause = match error {
            TaskError::WorkerLost(_) => error.to_string(),
            _ => format!("{error}; worker {} {}", end.who.station, describe(end.status)),
        };
        Self {
            worker: end.who.station,
            generation: end.who.generation,
            pid: end.pid,
            at: SystemTime::now(),
            cause,
            tag,
            is_loss: error.is_worker_lost(),
        }
    }
}

/// An input and where it came from.
#[derive(Debug)]
struct Found {
    scene: Scene,
    about: About,
    input: Encoded,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Saver {
    dir: PathBuf,
    pool: String,
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Found>,
    bytes: usize,
    /// Whether there is a thread.
    runs: bool,
    /// How many there was no room for.
    dropped: usize,
}

impl Saver {
    /// Makes the directory, so that a wrong path is known before anything crashes.
    pub(crate) fn new(dir: &Path, pool: &str) -> Result<Arc<Self>, Error> {
        let failed = |error| {
            let what = format!("Builder::save_crashers: the directory {} cannot be had", dir.display());
            Error::caused(what, error)
        };
        // The program may go elsewhere.
        let dir = std::path::absolute(dir).map_err(failed)?;
        fs::create_dir_all(&dir).map_err(failed)?;
        Ok(Arc::new(Self { dir, pool: pool.to_owned(), state: Mutex::default(), idle: Condvar::new() }))
    }

    /// Keeps an input for [`start`](Self::start). Quick, and calls nothing.
    pub(crate) fn keep(&self, scene: Scene, about: Option<About>, input: Encoded) {
        let Some(about) = about else { return };
        let len = input.as_bytes().len();
        let mut state = self.state.lock();
        if state.waiting.len() == WAITING_MAX
            || state.bytes + len > WAITING_BYTES_MAX
            || len > INPUT_BYTES_MAX
        {
            state.dropped += 1;
            return;
        }
        state.bytes += len;
        state.waiting.push_back(Found { scene, about, input });
    }

    /// Has what was kept written.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.runs || state.waiting.is_empty() && state.dropped == 0 {
            return;
        }
        state.runs = true;
        drop(state);
        let me = self.clone();
        if let Err(error) = threads::spawn(format!("{}-crashers", self.pool), move || me.run()) {
            let mut state = self.state.lock();
            state.runs = false;
            (state.bytes, state.dropped) = (0, 0);
            let lost = std::mem::take(&mut state.waiting).len();
            drop(state);
            self.idle.notify_all();
            self.complain(format_args!("{lost} inputs that cost a worker are not saved: no thread: {error}"));
        }
    }

    /// Waits until all is written, but not for ever.
    pub(crate) fn finish(&self) {
        let until = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        while state.runs {
            if self.idle.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    fn run(&self) {
        loop {
            let mut state = self.state.lock();
            let dropped = std::mem::take(&mut state.dropped);
            let found = state.waiting.pop_front();
            match &found {
                Some(found) => state.bytes -= found.input.as_bytes().len(),
                None if dropped == 0 => {
                    state.runs = false;
                    drop(state);
                    self.idle.notify_all();
                    return;
                }
                None => {}
            }
            drop(state);
            if dropped > 0 {
                self.complain(format_args!(
                    "{dropped} inputs that cost a worker are not saved: they are larger than {INPUT_BYTES_MAX} bytes, or \
                     came faster than the disk takes them"
                ));
            }
            let Some(found) = found else { continue };
            let worker = found.scene.worker;
            match self.save(&found) {
                Ok(path) => hooks::info(format_args!(
                    "{}: the input of worker {worker}'s task was saved: {}",
                    self.pool,
                    path.display()
                )),
                Err(error) => self.complain(format_args!(
                    "the input of worker {worker}'s task is not saved in {}: {error}",
                    self.dir.display()
                )),
            }
        }
    }

    fn complain(&self, text: std::fmt::Arguments<'_>) {
        hooks::error(format_args!("{}: {text}", self.pool));
    }

    fn save(&self, found: &Found) -> io::Result<PathBuf> {
        fs::create_dir_all(&self.dir)?;
        let bytes = found.file(&self.pool);
        self.check_room(bytes.len() as u64)?;
        let (mut file, path) = {
            // Another pool that is built meanwhile closes it in its processes.
            let mut registry = registry::lock();
            let (file, path) = self.create(&found.name(&self.pool))?;
            registry.add(file.as_fd());
            (file, path)
        };
        let written = file.write_all(&bytes);
        let mut registry = registry::lock();
        registry.remove(file.as_fd());
        drop(file);
        drop(registry);
        match written {
            Ok(()) => Ok(path),
            Err(error) => {
                // A part of a file is of use to nobody.
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// The directory is bounded, whoever filled it.
    fn check_room(&self, bytes: u64) -> io::Result<()> {
        let (mut files, mut total) = (0, bytes);
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if Path::new(&entry.file_name()).extension().is_some_and(|extension| extension == EXTENSION) {
                files += 1;
                total += entry.metadata().map_or(0, |metadata| metadata.len());
            }
        }
        if files >= FILES_MAX || total > BYTES_MAX {
            return Err(io::Error::other(format!(
                "it has {files} of these files; with {FILES_MAX}, or {BYTES_MAX} bytes, it is full: remove some"
            )));
        }
        Ok(())
    }

    /// A file that was not there before.
    fn create(&self, name: &str) -> io::Result<(File, PathBuf)> {
        for number in 1..=SAME_NAMES_MAX {
            let suffix = if number == 1 { String::new() } else { format!("-{number}") };
            let path = self.dir.join(format!("{name}{suffix}.{EXTENSION}"));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                opened => return opened.map(|file| (file, path)),
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }
}

impl Found {
    /// The file's name, without what tells equal ones apart.
    fn name(&self, pool: &str) -> String {
        let time: String = timestamp(self.scene.at).chars().filter(|c| !"-:".contains(*c)).collect();
        // The end of a path says more than its beginning.
        let (pool, function) = (part(pool), part(self.about.function));
        format!("{time}-{pool}-w{}-{}-{function}", self.scene.worker, self.scene.tag)
    }

    fn file(&self, pool: &str) -> Vec<u8> {
        let Scene { worker, generation, pid, at, cause, .. } = &self.scene;
        let About { function, input, result, shape } = self.about;
        let bytes = self.input.as_bytes();
        let program = std::env::current_exe().unwrap_or_default();
        let mut head = format!("{FIRST_LINE}\n");
        let fields: [(&str, &dyn std::fmt::Display); 12] = [
            ("pool", &pool),
            ("worker", worker),
            ("generation", generation),
            ("pid", pid),
            ("function", &function),
            ("input", &input),
            ("result", &result),
            ("cause", cause),
            ("time", &timestamp(*at)),
            ("program", &program.display()),
            ("shape", &shape),
            ("bytes", &bytes.len()),
        ];
        for (key, value) in fields {
            let value = value.to_string().replace(char::is_control, " ");
            // Writing to a string does not fail.
            let _ = writeln!(head, "{key}: {value}");
        }
        let sum = checksum([head.as_bytes(), bytes]);
        let _ = write!(head, "checksum: {sum:016x}\n\n");
        [head.as_bytes(), bytes].concat()
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { size, align, plain } = self;
        write!(f, "{} of {size} bytes, aligned to {align}", if *plain { "number" } else { "archive" })
    }
}

/// What a name may have in it, of its end.
fn part(text: &str) -> String {
    let harmless = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let text: String = text.chars().map(harmless).collect();
    text[text.len().saturating_sub(PART_BYTES_MAX)..].trim_matches('_').to_owned()
}

/// FNV-1a, of several pieces: finds damage, and is no defence against malice.
pub(crate) fn checksum<const N: usize>(pieces: [&[u8]; N]) -> u64 {
    let bytes = pieces.into_iter().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// As `2026-11-26T17:54:02.031Z`.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86400, since.as_secs() % 86400);
    let (year, month, day) = civil(days as i64);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// The date that is so many days after 1970-01-01, which are counted in eras of 400 years from a 1 March.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn found(at: SystemTime, function: &'static str) -> Found {
        let scene = Scene {
            worker: 3,
            generation: 1,
            pid: 7,
            at,
            cause: "a\ncause".to_owned(),
            tag: "SIGSEGV".to_owned(),
            is_loss: true,
        };
        let shape = Shape { size: 1, align: 1, plain: true };
        let about = About { function, input: "u8", result: "()", shape };
        Found { scene, about, input: Encoded::inline(&[9]) }
    }

    #[test]
    fn times_are_dates() {
        let text = |secs, millis: u32| timestamp(UNIX_EPOCH + Duration::new(secs, millis * 1_000_000));
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(951_782_399, 999), "2000-02-28T23:59:59.999Z");
        assert_eq!(text(951_868_800, 1), "2000-03-01T00:00:00.001Z");
        assert_eq!(text(1_709_164_800, 0), "2024-02-29T00:00:00.000Z");
        assert_eq!(text(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn a_name_tells_what_happened_and_fits_everywhere() {
        let at = UNIX_EPOCH + Duration::from_millis(86_400_031);
        assert_eq!(
            found(at, "app::parse").name("my/pool"),
            "19700102T000000.031Z-my_pool-w3-SIGSEGV-app__parse"
        );
        let long =
            found(at, "a::very_long_name::of_a_module::with_many_parts::and_a_function::at_the_end::parse");
        assert!(long.name(&"p".repeat(300)).len() < 200);
        assert!(long.name("p").ends_with("at_the_end__parse"));
    }

    #[test]
    fn what_is_there_already_is_not_overwritten() {
        let dir = std::env::temp_dir().join(format!("forkring-crashers-{}", std::process::id()));
        let saver = Saver::new(&dir, "p").unwrap();
        let found = found(UNIX_EPOCH, "f");
        let paths: Vec<_> = (0..3).map(|_| saver.save(&found).unwrap()).collect();
        assert!(paths[0] != paths[1] && paths[1] != paths[2] && paths[0] != paths[2]);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
        fs::remove_dir_all(&dir).unwrap();
    }
}
