//! Where the crate's messages go, and how a panic becomes a text.
//!
//! By default errors and notices go through the [`log`] crate's facade. Where the program has installed no logger,
//! errors go to standard error, so that the death of a worker does not pass unseen, and notices go nowhere.
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
    *hook.write().unwrap_or_else(PoisonError::into_inner) = Some(f);
}

fn get<T: ?Sized>(hook: &RwLock<Option<Arc<T>>>) -> Option<Arc<T>> {
    hook.read().unwrap_or_else(PoisonError::into_inner).clone()
}

pub(crate) fn error(message: fmt::Arguments<'_>) {
    let hook = get(&LOG_ERROR);
    match hook {
        Some(hook) => call(&hook, message),
        // No logger has been installed, or everything is switched off, which is the same to this question.
        None if log::max_level() == log::LevelFilter::Off => eprintln!("forkring: {message}"),
        None => log::error!(target: "forkring", "{message}"),
    }
}

pub(crate) fn info(message: fmt::Arguments<'_>) {
    let hook = get(&LOG_INFO);
    match hook {
        Some(hook) => call(&hook, message),
        None => log::info!(target: "forkring", "{message}"),
    }
}

fn call(hook: &Log, message: fmt::Arguments<'_>) {
    let text = message.to_string();
    // A hook that panics must not take a thread of the pool with it.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hook(&text)));
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
