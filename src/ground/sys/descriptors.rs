//! Closing what a child must not hold.

#![allow(unsafe_code, reason = "closes descriptors by number")]

use std::fs;
use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};

/// Closes every descriptor of this process but 0, 1, 2 and those in `keep` (in any order, also repeated).
///
/// Allocates nothing where the kernel has close_range(2) (Linux 5.9).
///
/// # Safety
///
/// Values that own or borrow a closed descriptor must never be used again, nor dropped: by then the number can belong
/// to somebody else. So this is for a forked child that leaks all it inherited.
pub(crate) unsafe fn close_all_except(keep: &[RawFd]) {
    let kept = || keep.iter().copied().filter(|&fd| fd > 2);
    let mut first = 3;
    // A few dozen at most: looking for the next one each time is quick and needs no memory.
    while let Some(next) = kept().filter(|&fd| fd >= first).min() {
        // SAFETY: the caller gives up everything that is not in `keep`.
        unsafe { close_range(first, next - 1, keep) };
        let Some(after) = next.checked_add(1) else { return };
        first = after;
    }
    // SAFETY: as above.
    unsafe { close_range(first, RawFd::MAX, keep) };
}

/// # Safety
///
/// As for [`close_all_except`], about the descriptors from `first` to `last`, both included.
unsafe fn close_range(first: RawFd, last: RawFd, keep: &[RawFd]) {
    if first > last {
        return;
    }
    let (from, to) = (libc::c_long::from(first), libc::c_long::from(last));
    // SAFETY: takes three integers (close_range(2)); the caller answers for the consequences.
    let result = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0 as libc::c_long) };
    if Errno::result(result).is_err() {
        // ENOSYS, or a sandbox that does not know the call.
        // SAFETY: the caller gives up this range.
        unsafe { close_one_by_one(first, last, keep) };
    }
}

/// # Safety
///
/// As for [`close_range`].
unsafe fn close_one_by_one(first: RawFd, last: RawFd, keep: &[RawFd]) {
    let close = |fd: RawFd| {
        if (first..=last).contains(&fd) && !keep.contains(&fd) {
            // SAFETY: the caller gives up this range. EBADF for a gap, or for the directory read below, is harmless.
            let _ = unsafe { libc::close(fd) };
        }
    };
    // Collected first: closing while reading would close the directory itself.
    match open_descriptors() {
        Some(open) => open.into_iter().for_each(close),
        None => {
            let limit =
                getrlimit(Resource::RLIMIT_NOFILE).ok().and_then(|(soft, _)| RawFd::try_from(soft).ok());
            (first..=last.min(limit.unwrap_or(1 << 16))).for_each(close);
        }
    }
}

/// The open descriptors, and one that is closed again: that of the directory. `None` without /proc.
fn open_descriptors() -> Option<Vec<RawFd>> {
    let names = fs::read_dir("/proc/self/fd").ok()?;
    Some(names.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// How many descriptors this process has open; for tests.
#[cfg(test)]
pub(crate) fn count_open() -> usize {
    open_descriptors().unwrap().len() - 1
}

#[cfg(test)]
mod tests {
    use super::super::testing::{exit_code_of_child, in_own_process};
    use super::*;
    use std::mem::forget;
    use std::os::fd::AsRawFd;

    type Close = unsafe fn(&[RawFd]);

    fn is_open(fd: RawFd) -> bool {
        // SAFETY: only asks.
        unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
    }

    unsafe fn slowly(keep: &[RawFd]) {
        // SAFETY: passed on.
        unsafe { close_one_by_one(3, RawFd::MAX, keep) }
    }

    #[test]
    fn keeps_what_it_is_told() {
        in_own_process(concat!(module_path!(), "::keeps_what_it_is_told"), || {
            for close in [close_all_except as Close, slowly] {
                let code = exit_code_of_child(|| {
                    let pipes: Vec<_> = (0..10).map(|_| std::io::pipe().unwrap()).collect();
                    let keep: Vec<RawFd> = [7, 2, 2, 9]
                        .into_iter()
                        .map(|i: usize| pipes[i].0.as_raw_fd())
                        .chain([1, RawFd::MAX, -1])
                        .collect();
                    forget(pipes);
                    // SAFETY: the pipes are leaked, and this child leaves by `_exit`.
                    unsafe { close(&keep) };
                    let left: Vec<RawFd> = (0..200).filter(|&fd| is_open(fd)).collect();
                    let mut expected: Vec<RawFd> = [0, 2].into_iter().chain(keep).collect();
                    expected.retain(|fd| (0..200).contains(fd));
                    expected.sort_unstable();
                    expected.dedup();
                    if left == expected && count_open() == 6 { 5 } else { 1 }
                });
                assert_eq!(code, 5);
            }
        });
    }
}
