//! Why the job as a whole ends early. A line that does not parse is no failure, it is a reject.

use std::io;
use std::path::Path;

#[derive(Debug)]
pub(crate) enum Failure {
    /// The reader of our output went away.
    OutputClosed,
    /// What the user is told.
    Message(String),
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Failure {
        Failure::Message(message.into())
    }

    /// A file that cannot be opened, read or created.
    pub(crate) fn file(action: &str, path: &Path, error: impl std::fmt::Display) -> Failure {
        Failure::Message(format!("cannot {action} {}: {error}", path.display()))
    }

    /// An error met while writing to `path`.
    pub(crate) fn write(path: &Path, error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::file("write to", path, error),
        }
    }
}
