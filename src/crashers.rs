//! [`Crasher`] and [`replay`]: inputs that cost a worker, read back from the files that
//! [`Builder::save_crashers`](crate::Builder::save_crashers) keeps.

use std::any::type_name;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::life::crashers::{FIRST_LINE, checksum};
use crate::memory::codec::{self, AlignedBytes, Input, Payload, View};
use crate::protocol::code::Shape;

/// Runs `f` in this process on the input that was saved in the file at `path`. If the input is what it was, and `f` is what
/// it was, it does what it did: run it under a debugger, or with a sanitizer.
///
/// ```no_run
/// # mod app { pub fn parse(text: String) -> usize { text.len() } }
/// // As the task was submitted: `pool.submit(app::parse, &text)`.
/// forkring::replay("crashers/20261126T175402.031Z-forkring-w3-SIGSEGV-app__parse.crasher", app::parse)?;
/// # Ok::<(), forkring::Error>(())
/// ```
///
/// `f` may capture, and need not be the function that the file names: a repaired one will do.
///
/// # Errors
///
/// The file cannot be read or is damaged, or it holds an input of another type than `I`: then both are named. Types are
/// told apart by their names and by the size and alignment of their archived form; so a program that was built anew
/// can replay the files of an earlier build, unless the type has changed.
pub fn replay<I: Payload, R>(path: impl AsRef<Path>, f: impl FnOnce(I) -> R) -> Result<R, Error> {
    Ok(f(Crasher::read(path)?.input()?))
}

/// As [`replay`], for what was submitted with `submit_with` and its like: `f` reads the input in place. The worker is not
/// there, so what it has (environment, state, service) has to be brought along.
///
/// ```no_run
/// # mod app { pub fn count(words: &str, _: &[u32]) -> usize { words.len() } }
/// let table = vec![1, 2, 3]; // what the task had as its environment
/// forkring::replay_with::<str, _>("crashers/….crasher", |text| app::count(text, &table))?;
/// # Ok::<(), forkring::Error>(())
/// ```
///
/// # Errors
///
/// As [`replay`].
pub fn replay_with<I: Input + ?Sized, R>(
    path: impl AsRef<Path>,
    f: impl FnOnce(&View<I>) -> R,
) -> Result<R, Error> {
    Crasher::read(path)?.view::<I>().map(f)
}

/// A file that [`Builder::save_crashers`](crate::Builder::save_crashers) has left: the input of a task that cost its worker,
/// and what is known about it. As text it is a few lines.
pub struct Crasher {
    path: PathBuf,
    head: Vec<(String, String)>,
    bytes: AlignedBytes,
}

impl Crasher {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is not such a file, or is not as it was written: something is missing or has changed.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let name = path.display();
        let file = fs::read(path).map_err(|error| Error::caused(format!("{name} cannot be read"), error))?;
        let damaged =
            |what: &str| Error::new(format!("{name} is damaged: {what}; no part of it can be used"));
        if !file.starts_with(FIRST_LINE.as_bytes()) {
            return Err(Error::new(format!("{name} is no file of save_crashers: it begins otherwise")));
        }
        let end =
            file.windows(2).position(|pair| pair == b"\n\n").ok_or_else(|| damaged("it ends too soon"))?;
        let (text, bytes) = (&file[..=end], &file[end + 2..]);
        let text = str::from_utf8(text).map_err(|_| damaged("its head is no text"))?;
        let sum = text.rfind("checksum: ").ok_or_else(|| damaged("it has no checksum"))?;
        let expected = text[sum..].trim_start_matches("checksum: ").trim_end();
        if format!("{:016x}", checksum([&text.as_bytes()[..sum], bytes])) != expected {
            return Err(damaged("its checksum is another"));
        }
        let field = |line: &str| line.split_once(": ").map(|(key, value)| (key.to_owned(), value.to_owned()));
        let head = text[..sum].lines().skip(1).filter_map(field).collect();
        Ok(Self { path: path.to_owned(), head, bytes: AlignedBytes::from(bytes) })
    }

    fn field(&self, key: &str) -> &str {
        self.head.iter().find(|(known, _)| known == key).map_or("", |(_, value)| value)
    }

    /// The pool's name.
    pub fn pool(&self) -> &str {
        self.field("pool")
    }

    /// The worker's id.
    pub fn worker(&self) -> usize {
        self.field("worker").parse().unwrap_or(0)
    }

    /// The worker's process id.
    pub fn pid(&self) -> u32 {
        self.field("pid").parse().unwrap_or(0)
    }

    /// What the compiler calls the task function. Closures of one function have the same name.
    pub fn function(&self) -> &str {
        self.field("function")
    }

    /// What the compiler calls the input's type.
    pub fn input_type(&self) -> &str {
        self.field("input")
    }

    /// What ended the task, in words.
    pub fn cause(&self) -> &str {
        self.field("cause")
    }

    /// When that was, as `2026-11-26T17:54:02.031Z`.
    pub fn time(&self) -> &str {
        self.field("time")
    }

    /// The input as it was submitted.
    ///
    /// # Errors
    ///
    /// It is of another type than `I`; or it is, and its own validation or deserialization fails.
    pub fn input<I: Payload>(&self) -> Result<I, Error> {
        self.check_type::<I>()?;
        codec::decode(&self.bytes).map_err(|error| self.refused::<I>(error))
    }

    /// The input as `submit_with` shows it to a task.
    ///
    /// # Errors
    ///
    /// As [`input`](Self::input).
    pub fn view<I: Input + ?Sized>(&self) -> Result<&View<I>, Error> {
        self.check_type::<I>()?;
        codec::view::<I>(&self.bytes).map_err(|error| self.refused::<I>(error))
    }

    fn check_type<I: Input + ?Sized>(&self) -> Result<(), Error> {
        let (path, shape) = (self.path.display(), Shape::of::<I>().to_string());
        let (known, wanted) = (self.input_type(), type_name::<I>());
        if known != wanted {
            return Err(Error::new(format!(
                "{path} holds a `{known}` for the function {}, and a `{wanted}` was asked for; replay it with a function \
                 of that type",
                self.function()
            )));
        }
        if self.field("shape") != shape {
            return Err(Error::new(format!(
                "{path} holds a `{known}` that was stored as: {}; here it would be: {shape}. The type has changed since; \
                 replay it with the program that wrote it ({})",
                self.field("shape"),
                self.field("program")
            )));
        }
        Ok(())
    }

    fn refused<I: ?Sized>(&self, error: crate::CodecError) -> Error {
        let what = format!("{} holds no valid `{}`", self.path.display(), type_name::<I>());
        Error::caused(what, error)
    }
}

impl fmt::Debug for Crasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crasher").field("path", &self.path).field("head", &self.head).finish_non_exhaustive()
    }
}

impl fmt::Display for Crasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.head.iter().try_for_each(|(key, value)| write!(f, "\n{key:>12}: {value}"))
    }
}
