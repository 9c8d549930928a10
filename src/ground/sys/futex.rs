//! Words of shared memory that threads of several processes sleep on (futex(2)).

#![allow(unsafe_code, reason = "neither std nor nix has the call")]

use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use nix::libc;

/// Sleeps for as long as `word` has this value, at most `timeout` (`None`: for ever), and until somebody [wakes](wake_all) it. May
/// return early for no reason.
pub(crate) fn wait(word: &AtomicU32, value: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the kernel reads the word, which is mapped and aligned, and the time, which is null or outlives the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, timeout) };
}

/// Wakes whoever sleeps on `word`. Never blocks.
pub(crate) fn wake_all(word: &AtomicU32) {
    // SAFETY: the kernel takes the address for a key; it does not write there.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
