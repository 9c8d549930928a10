//! Where a panic happened: known only to the panic hook, wanted by whoever catches the panic.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    /// The location of the last panic on this thread.
    static LOCATION: RefCell<String> = const { RefCell::new(String::new()) };
    /// Its message, for whoever unwinds without seeing the payload.
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
    /// Whether messages are wanted.
    static WANT_MESSAGE: Cell<bool> = const { Cell::new(false) };
}

/// Puts a hook in front of the program's that notes the location of each panic. Once a process: it is inherited by
/// workers, and changes nothing for the program. It is set in the master, before the fork, because the hook's lock
/// may be held by another thread at the moment of a fork.
pub(crate) fn install() {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if INSTALLED.swap(true, Ordering::AcqRel) || std::thread::panicking() {
        return;
    }
    let program = take_hook();
    set_hook(Box::new(move |info| {
        if let Some(location) = info.location() {
            // Fails only in a thread that is being destroyed.
            let _ = LOCATION.try_with(|last| *last.borrow_mut() = location.to_string());
        }
        if WANT_MESSAGE.try_with(Cell::get) == Ok(true) {
            let message = info.payload_as_str().unwrap_or("a panic whose payload is not a string");
            let _ = MESSAGE.try_with(|last| *last.borrow_mut() = message.to_owned());
        }
        program(info);
    }));
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
