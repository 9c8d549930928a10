//! Where a panic happened: known only to the panic hook, wanted by whoever catches the panic. And what is printed about
//! panics in workers.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    /// The location of the last panic on this thread.
    static LOCATION: RefCell<String> = const { RefCell::new(String::new()) };
    /// Its message, for whoever unwinds without seeing the payload.
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
    /// Whether messages are wanted.
    static WANT_MESSAGE: Cell<bool> = const { Cell::new(false) };
}

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Sync + Send>;

/// Puts a hook in front of the program's that notes the location of each panic. Once a process: it is inherited by
/// workers, and changes nothing for the program. It is set in the master, before the fork, because the hook's lock
/// may be held by another thread at the moment of a fork.
///
/// In workers and in handlers of services it stands for std's: see [`tell`]. A hook that the program has set is called there
/// as everywhere. `handler` says whose handler the thread runs that calls it, if any.
pub(crate) fn install(handler: fn() -> Option<String>) {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if INSTALLED.swap(true, Ordering::AcqRel) || std::thread::panicking() {
        return;
    }
    let program = take_hook();
    // Taking the program's hook has put std's in its place.
    let is_std = is_same(&program, &take_hook());
    set_hook(Box::new(move |info| {
        if let Some(location) = info.location() {
            // Fails only in a thread that is being destroyed.
            let _ = LOCATION.try_with(|last| *last.borrow_mut() = location.to_string());
        }
        if WANT_MESSAGE.try_with(Cell::get) == Ok(true) {
            let message = info.payload_as_str().unwrap_or("a panic whose payload is not a string");
            let _ = MESSAGE.try_with(|last| *last.borrow_mut() = message.to_owned());
        }
        let place = || crate::here::current_task().map(|task| task.to_string()).or_else(handler);
        match is_std.then(place).flatten() {
            Some(place) => tell(&place, info),
            None => program(info),
        }
    }));
}

/// Whether two hooks are the same function that captures nothing. A `false` may be wrong, where the compiler has made two
/// of one; then std's hook prints what it always prints.
fn is_same(one: &Hook, other: &Hook) -> bool {
    // What captures nothing takes no memory, so its address says nothing, and its vtable all.
    let same = std::ptr::eq(&raw const **one, &raw const **other);
    same && size_of_val(&**one) == 0
}

/// Says what std's hook says, and which task or call it is about, in one piece: several workers may write at a time, and each
/// may be killed at any time.
fn tell(place: &str, info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("a panic whose payload is not a string");
    let mut text = format!("{place} panicked");
    if let Some(location) = info.location() {
        let _ = write!(text, " at {location}");
    }
    let _ = write!(text, ":\n{message}");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        let _ = write!(text, "\nstack backtrace:\n{backtrace}");
    }
    crate::hooks::print_panic(&text);
}

/// The location of the last panic on this thread, which is taken.
pub(crate) fn take_location() -> String {
    LOCATION.try_with(RefCell::take).unwrap_or_default()
}

/// Makes this thread note the messages of its panics.
pub(crate) fn want_messages(on: bool) {
    WANT_MESSAGE.set(on);
}

/// The message of the last panic on this thread, which is taken.
pub(crate) fn take_message() -> String {
    MESSAGE.try_with(RefCell::take).unwrap_or_default()
}

/// A caught panic as text and location.
#[derive(Debug)]
pub(crate) struct Caught {
    pub(crate) message: String,
    pub(crate) location: String,
}

impl Caught {
    /// Describes a payload and drops it. Payloads may panic when they are dropped or formatted.
    pub(crate) fn new(payload: Box<dyn Any + Send>) -> Self {
        let location = take_location();
        let message = catch_unwind(AssertUnwindSafe(|| crate::hooks::format_panic(&*payload)));
        let message = message.unwrap_or_else(|second| {
            std::mem::forget(second);
            "a panic whose payload could not be described".to_owned()
        });
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(second);
        }
        Self { message, location }
    }
}

/// Runs `f`; a panic becomes a value.
pub(crate) fn guard<T>(f: impl FnOnce() -> T) -> Result<T, Caught> {
    catch_unwind(AssertUnwindSafe(f)).map_err(Caught::new)
}
