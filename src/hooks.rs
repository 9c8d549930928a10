//! Where the crate's messages go, and how a panic becomes a text.
//!
//! By default errors and notices go through the [`log`] crate's facade. Where the program has installed no logger,
//! errors go to standard error, so that the death of a worker does not pass unseen, and notices go nowhere. With the feature
//! `tracing`, a subscriber that is interested in the target `forkring` gets them as events instead.
//!
//! # What workers print
//!
//! A panic in a worker is printed by the worker, on standard error, once and in one piece, with the names of
//! pool, worker and task:
//!
//! ```text
//! till: worker 0 (generation 0, pid 4711), task 17 panicked at src/main.rs:12:34:
//! index out of bounds: the len is 3 but the index is 7
//! ```
//!
//! With `RUST_BACKTRACE` there is a backtrace. To find its names takes a tenth of a second for a worker's first panic, which
//! counts as the task's time: under a shorter [`task_timeout`](crate::Builder::task_timeout) it ends as `TimedOut`.
//!
//! If the program has set a panic hook before it built its first pool, that is called
//! instead, in the worker; [`current_task`](crate::current_task) tells it the same. Whoever waits for the task gets the message, too,
//! as [`Panicked`](crate::Panicked). The panic of a detached task goes to the error hook or the logger, if there is one,
//! and is not printed a second time if there is none. A panic in a [service](crate::Builder::service)'s handler happens in the
//! program itself, and is printed likewise: `till: the service, called by worker 0 (generation 0), panicked at …`.
//!
//! Tasks print where the program does. Of `println!` and C's `printf` each process has a buffer: they are
//! flushed before the fork, so nothing is printed twice; in a worker before it sleeps, when it has to wait for its next task (every few
//! milliseconds at most), and when it leaves in good order.
//! A task that is itself killed, runs out of time or aborts loses what it has printed behind the end of its last line (in C,
//! without a terminal, behind its last `fflush`): it is in the worker's memory, and SIGKILL leaves nobody to write it. So end
//! lines that matter by a newline, flush ([`Write::flush`](std::io::Write::flush)) before what may hang, or use `eprint!`,
//! which has no buffer. Or give workers a thread that flushes when the pool is about to kill: [`Builder::kill_signal`](crate::Builder::kill_signal)
//! shows it. `eprintln!` writes each piece of a line by itself, so that lines of several workers can mix;
//! [`write_all`](std::io::Write::write_all) of a whole line does not.
//!
//! Under `cargo test` a worker inherits what libtest captures output with, and writes into a copy that nobody reads: what its tasks
//! print and the texts of its panics are seen with `--nocapture`, or where workers are threads
//! ([`Builder::in_process`](crate::Builder::in_process)).
//!
//! Hooks are per process and may be changed at any time; workers use those that were set when their pool was built.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

type Log = Arc<dyn Fn(&str) + Send + Sync>;
type PanicFormat = Arc<dyn Fn(&(dyn Any + Send)) -> String + Send + Sync>;

static LOG_ERROR: RwLock<Option<Log>> = RwLock::new(None);
static LOG_INFO: RwLock<Option<Log>> = RwLock::new(None);
static PANIC_FORMAT: RwLock<Option<PanicFormat>> = RwLock::new(None);

/// Sends the crate's error messages to `f` instead of the default. It is called on the pool's own threads and must
/// not block, since time limits and deaths wait for it; what it panics with is dropped.
///
/// ```
/// forkring::hooks::set_log_error(|message| eprintln!("pool trouble: {message}"));
/// ```
pub fn set_log_error(f: impl Fn(&str) + Send + Sync + 'static) {
    set(&LOG_ERROR, Arc::new(f));
}

/// Sends the crate's notices (a worker has started, ended, was replaced) to `f` instead of the default.
///
/// ```
/// forkring::hooks::set_log_info(|message| println!("pool: {message}"));
/// ```
pub fn set_log_info(f: impl Fn(&str) + Send + Sync + 'static) {
    set(&LOG_INFO, Arc::new(f));
}

/// Turns the payload of a task's panic into the message of [`Panicked`](crate::Panicked). By default that is the
/// string that the task panicked with, or a stand-in for other payloads. Set it before the pool is built.
///
/// ```
/// forkring::hooks::set_panic_format(|payload| match payload.downcast_ref::<i32>() {
///     Some(code) => format!("code {code}"),
///     None => "panic".to_owned(),
/// });
/// let pool = forkring::Pool::new(1)?;
/// let error = pool.submit(|_: ()| -> () { std::panic::panic_any(7_i32) }, &()).wait().unwrap_err();
/// assert!(error.to_string().contains("code 7"));
/// # Ok::<(), forkring::Error>(())
/// ```
pub fn set_panic_format(f: impl Fn(&(dyn Any + Send)) -> String + Send + Sync + 'static) {
    set(&PANIC_FORMAT, Arc::new(f));
}

fn set<T: ?Sized>(hook: &RwLock<Option<Arc<T>>>, f: Arc<T>) {
    // The former one is the program's, and is dropped without the lock.
    let former = hook.write().unwrap_or_else(PoisonError::into_inner).replace(f);
    drop(former);
}

fn get<T: ?Sized>(hook: &RwLock<Option<Arc<T>>>) -> Option<Arc<T>> {
    hook.read().unwrap_or_else(PoisonError::into_inner).clone()
}

pub(crate) fn error(message: fmt::Arguments<'_>) {
    let hook = get(&LOG_ERROR);
    // A hook, logger or subscriber that panics must not take a thread of the pool with it.
    let _ = crate::panics::guard(|| match hook {
        Some(hook) => hook(&message.to_string()),
        #[cfg(feature = "tracing")]
        None if tracing::enabled!(target: "forkring", tracing::Level::ERROR) => {
            tracing::error!(target: "forkring", "{message}")
        }
        None if is_bare() => print_line(&with_our_name(message)),
        None => log::error!(target: "forkring", "{message}"),
    });
}

pub(crate) fn info(message: fmt::Arguments<'_>) {
    let hook = get(&LOG_INFO);
    let _ = crate::panics::guard(|| match hook {
        Some(hook) => hook(&message.to_string()),
        #[cfg(feature = "tracing")]
        None if tracing::enabled!(target: "forkring", tracing::Level::INFO) => {
            tracing::info!(target: "forkring", "{message}")
        }
        None => log::info!(target: "forkring", "{message}"),
    });
}

/// Whether errors go where panics in workers go: nobody has said anything else.
pub(crate) fn errors_join_panics() -> bool {
    #[cfg(feature = "tracing")]
    if tracing::enabled!(target: "forkring", tracing::Level::ERROR) {
        // Panics go the same way as errors.
        return get(&LOG_ERROR).is_none();
    }
    get(&LOG_ERROR).is_none() && is_bare()
}

/// Whether no logger has been installed, or everything is switched off, which is the same to this question.
fn is_bare() -> bool {
    log::max_level() == log::LevelFilter::Off
}

/// A message, marked as this crate's. That of a pool without a name of its own begins with the mark.
fn with_our_name(message: fmt::Arguments<'_>) -> String {
    const MARK: &str = "forkring: ";
    let message = message.to_string();
    if message.starts_with(MARK) { message } else { format!("{MARK}{message}") }
}

/// What is told about a panic in a worker.
pub(crate) fn print_panic(text: &str) {
    #[cfg(feature = "tracing")]
    if tracing::enabled!(target: "forkring", tracing::Level::ERROR) {
        return tracing::error!(target: "forkring", "{text}");
    }
    print_line(text);
}

/// A line on standard error, in one call, so that it is neither torn nor mixed with another process's.
fn print_line(text: &str) {
    use std::io::Write;
    // There is nobody to tell about an error.
    let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// The message of a panic.
pub(crate) fn format_panic(payload: &(dyn Any + Send)) -> String {
    if let Some(format) = get(&PANIC_FORMAT) {
        return format(payload);
    }
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic whose payload is not a string".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_mark_once() {
        assert_eq!(with_our_name(format_args!("forkring: worker 0 left")), "forkring: worker 0 left");
        assert_eq!(with_our_name(format_args!("till: worker 0 left")), "forkring: till: worker 0 left");
    }
}
