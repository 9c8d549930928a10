//! Where a panic happened: known only to the panic hook, wanted by whoever catches the panic. And what is printed about
//! panics in workers.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

thread_local! {
    /// Whether the hook has noted a panic since [`forget`].
    static NOTED: Cell<bool> = const { Cell::new(false) };
    /// The location of the last panic on this thread.
    static LOCATION: RefCell<String> = const { RefCell::new(String::new()) };
    /// Its message, for whoever unwinds without seeing the payload.
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
    /// Whether messages are wanted.
    static WANT_MESSAGE: Cell<bool> = const { Cell::new(false) };
}

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Sync + Send>;

/// Whether a hook of ours is in place, or kept by the program.
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Owned by the hook. The program may set another one.
struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        INSTALLED.store(false, Ordering::Release);
    }
}

/// Held while a hook of ours is set, and while a zygote is forked: it would inherit the lock that std sets a hook under, held. No other
/// lock will do. A hook of the program's, which runs under std's lock, may fork, or wait for a pool.
static SETTING: Mutex<()> = Mutex::new(());

/// Keeps other threads from setting a hook of ours. Not where this thread panics: whoever sets one may be waiting for its hook to return.
pub(crate) fn keep_hook() -> Option<MutexGuard<'static, ()>> {
    let is_free = !std::thread::panicking();
    is_free.then(|| SETTING.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Puts a hook in front of the program's that notes the location of each panic, unless there is one: it is inherited by
/// workers, and changes nothing for the program. It is set in the master, before the fork, because the hook's lock
/// may be held by another thread at the moment of a fork.
///
/// In workers and in handlers of services it stands for std's: see [`tell`]. A hook that the program has set is called there
/// as everywhere. `handler` says whose handler the thread runs that calls it, if any.
pub(crate) fn install(handler: fn() -> Option<String>) {
    // A thread that panics cannot set a hook.
    let Some(_setting) = keep_hook() else { return };
    if INSTALLED.swap(true, Ordering::AcqRel) {
        return;
    }
    let installed = Installed;
    let program = take_hook();
    // Taking the program's hook has put std's in its place.
    let is_std = is_same(&program, &take_hook());
    set_hook(Box::new(move |info| {
        let _ = &installed;
        let _ = NOTED.try_with(|noted| noted.set(true));
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

/// Before code that may panic: what is noted is about an earlier panic, which somebody has caught, here or in the process that this one
/// was forked from. A panic that is raised again without the hook (`resume_unwind`) is not to be taken for it.
#[inline]
fn forget() {
    // While this thread unwinds, whoever catches that panic wants its location.
    if NOTED.try_with(Cell::get) == Ok(true) && !std::thread::panicking() {
        NOTED.set(false);
        take_location();
        take_message();
    }
}

/// Makes this thread note the messages of its panics.
pub(crate) fn want_messages(on: bool) {
    if on {
        forget();
    }
    WANT_MESSAGE.set(on);
}

/// The message of the last panic on this thread, which is taken.
pub(crate) fn take_message() -> String {
    MESSAGE.try_with(RefCell::take).unwrap_or_default()
}

/// A caught panic as text and location, which is empty where it is not known.
#[derive(Debug)]
pub(crate) struct Caught {
    pub(crate) message: String,
    pub(crate) location: String,
}

impl fmt::Display for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.location.is_empty() {
            write!(f, " (at {})", self.location)?;
        }
        Ok(())
    }
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
#[inline]
pub(crate) fn guard<T>(f: impl FnOnce() -> T) -> Result<T, Caught> {
    forget();
    catch_unwind(AssertUnwindSafe(f)).map_err(Caught::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guards something itself while it is dropped.
    struct Guards;

    impl Drop for Guards {
        fn drop(&mut self) {
            assert!(guard(|| ()).is_ok());
        }
    }

    #[test]
    fn a_place_is_known_behind_a_guard_on_the_way_and_forgotten_before_the_next_one() {
        install(|| None);
        let caught = guard(|| {
            let _guards = Guards;
            panic!("on its way")
        });
        let caught: Caught = caught.unwrap_err();
        assert_eq!(caught.message, "on its way");
        assert!(caught.location.contains("panics.rs:"), "{caught}");
        let _ = catch_unwind(|| panic!("that somebody catches"));
        let again = guard(|| std::panic::resume_unwind(Box::new("again")));
        let again: Caught = again.unwrap_err();
        assert_eq!((&*again.message, &*again.location), ("again", ""));
    }
}
