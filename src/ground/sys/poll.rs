//! Waiting for descriptors: a handful at once with `ppoll`, many with `epoll`.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
pub(crate) use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::{self, EpollCreateFlags, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;

use super::{Call, Result, SysError};

/// The most descriptors that [`wait_readable`] takes: one bit each.
pub(crate) const MAX_FDS: usize = 64;

/// Waits until one of `fds` can be read without blocking, at most `timeout` (`None`: for ever).
///
/// Bit i of the answer stands for `fds[i]`; 0 means that the time is over. End-of-file and errors count as
/// readable, so that whoever reads learns of them. Signal handlers do not cut the wait short. Allocates nothing.
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<u64> {
    if fds.is_empty() || fds.len() > MAX_FDS {
        return Err(SysError::new("ppoll", Errno::EINVAL));
    }
    if let [fd] = *fds {
        // Who sleeps on one doorbell is in a hurry.
        return wait_for(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout);
    }
    let mut polled: [PollFd<'_>; MAX_FDS] =
        std::array::from_fn(|i| PollFd::new(fds[i.min(fds.len() - 1)], PollFlags::POLLIN));
    wait_for(&mut polled[..fds.len()], timeout)
}

fn wait_for(polled: &mut [PollFd<'_>], timeout: Option<Duration>) -> Result<u64> {
    // A deadline beyond the clock's range is none at all.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut remaining = deadline.and(timeout);
    loop {
        match ppoll(polled, remaining.map(TimeSpec::from_duration), None) {
            Ok(_) => break,
            Err(Errno::EINTR) => {
                remaining = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            }
            Err(error) => return Err(SysError::new("ppoll", error)),
        }
    }
    let mut ready = 0;
    for (i, fd) in polled.iter().enumerate() {
        // `None`: a flag that nix does not know, which is still an event.
        let events = fd.revents().unwrap_or(PollFlags::POLLIN);
        if events.contains(PollFlags::POLLNVAL) {
            // Somebody closed a descriptor that we borrow. As "readable" it would make the caller spin.
            return Err(SysError::new("ppoll", Errno::EBADF));
        }
        if !events.is_empty() {
            ready |= 1 << i;
        }
    }
    Ok(ready)
}

/// An epoll instance whose entries are known by a token; level-triggered.
///
/// A descriptor leaves the set when all copies of it are closed, **in every process** (epoll(7), question 6):
/// remove what a child may have inherited before closing it.
#[derive(Debug)]
pub(crate) struct Epoll {
    inner: epoll::Epoll,
}

impl Epoll {
    pub(crate) fn new() -> Result<Self> {
        let inner = epoll::Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).call("epoll_create1")?;
        Ok(Self { inner })
    }

    /// Reports `token` for as long as `fd` is readable, at its end or broken.
    pub(crate) fn add(&self, fd: &impl AsFd, token: u64) -> Result<()> {
        self.inner.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token)).call("epoll_ctl(EPOLL_CTL_ADD)")
    }

    #[cfg(test)]
    pub(crate) fn remove(&self, fd: &impl AsFd) -> Result<()> {
        self.inner.delete(fd).call("epoll_ctl(EPOLL_CTL_DEL)")
    }

    /// Waits for events, at most `timeout` (`None`: for ever), and gives the tokens of those that came; none when
    /// the time is over or a signal handler ran. What does not fit `buffer` comes with the next call.
    ///
    /// The time is rounded up to milliseconds, so that a caller with a deadline does not wake early and spin.
    pub(crate) fn wait<'a>(
        &self,
        buffer: &'a mut [EpollEvent],
        timeout: Option<Duration>,
    ) -> Result<impl Iterator<Item = u64> + use<'a>> {
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            Some(timeout) => {
                EpollTimeout::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(EpollTimeout::MAX)
            }
        };
        let count = match self.inner.wait(buffer, timeout) {
            Err(Errno::EINTR) => 0,
            result => result.call("epoll_wait")?,
        };
        Ok(buffer[..count].iter().map(EpollEvent::data))
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn readable_ends_and_time_outs() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (quiet, _keep) = std::io::pipe().unwrap();
        let fds = [quiet.as_fd(), reader.as_fd()];
        assert_eq!(wait_readable(&fds, Some(Duration::ZERO)).unwrap(), 0);
        let start = Instant::now();
        assert_eq!(wait_readable(&fds, Some(Duration::from_millis(3))).unwrap(), 0);
        assert!(start.elapsed() >= Duration::from_millis(3));
        writer.write_all(b"x").unwrap();
        assert_eq!(wait_readable(&fds, None).unwrap(), 0b10);
        assert_eq!(wait_readable(&fds, Some(Duration::MAX)).unwrap(), 0b10);
        drop(writer);
        assert_eq!(wait_readable(&fds, None).unwrap(), 0b10, "the end counts as readable");
        assert!(wait_readable(&[], None).is_err());
        assert!(wait_readable(&[reader.as_fd(); MAX_FDS + 1], None).is_err());
        assert_eq!(wait_readable(&[reader.as_fd(); MAX_FDS], None).unwrap(), u64::MAX);
    }

    #[test]
    fn epoll_gives_tokens() {
        let epoll = Epoll::new().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        epoll.add(&reader, u64::MAX - 3).unwrap();
        let mut buffer = [EpollEvent::empty(); 4];
        assert_eq!(epoll.wait(&mut buffer, Some(Duration::ZERO)).unwrap().count(), 0);
        let start = Instant::now();
        assert_eq!(epoll.wait(&mut buffer, Some(Duration::from_micros(1500))).unwrap().count(), 0);
        assert!(start.elapsed() >= Duration::from_micros(1500));
        writer.write_all(b"x").unwrap();
        assert!(epoll.wait(&mut buffer, None).unwrap().eq([u64::MAX - 3]));
        assert!(epoll.wait(&mut buffer, Some(Duration::MAX)).unwrap().eq([u64::MAX - 3]));
        epoll.remove(&reader).unwrap();
        assert_eq!(epoll.wait(&mut buffer, Some(Duration::ZERO)).unwrap().count(), 0);
    }
}
