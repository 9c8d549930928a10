//! A doorbell says "look", nothing more: not how often, not why (traps 13).
//!
//! It is the slow half of a hand-shake. The sleeper's flag and the fences around it decide whether to ring; they
//! belong to whoever owns the memory, and are unknown here. Rings that come before the sleeper looks count as one,
//! and a ring that nobody waits for is kept.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{pipe2, read, write};
use parking_lot::{Condvar, Mutex};

use super::sys::poll::wait_readable;
use super::sys::{Call, Result, SysError, retry_interrupted};

/// Something that one process rings and another one sleeps on; or, if it is [local](Doorbell::local), one thread and another
/// one of the same process.
///
/// Both sides hold all its descriptors. For the pipe that means that a ringer holds the reading end too, so that
/// its write can never fail with EPIPE, nor raise SIGPIPE in a program that did not ignore it.
///
/// Every descriptor is non-blocking: a write to a full eventfd or pipe would otherwise hang the ringer (traps 21).
/// The flag belongs to the open file description (open(2)), so it travels over a socket with the descriptor.
#[derive(Debug)]
pub(crate) struct Doorbell {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Event(OwnedFd),
    Pipe { reader: OwnedFd, writer: OwnedFd },
    Local(Arc<Local>),
}

/// Between threads, without a descriptor.
#[derive(Debug, Default)]
struct Local {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Local {
    /// Waits until it is rung, `false` if the time is over first; `consume`: and takes the ring.
    fn wait(&self, timeout: Option<Duration>, consume: bool) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut rung = self.rung.lock();
        while !*rung {
            match deadline {
                None => self.changed.wait(&mut rung),
                Some(deadline) if self.changed.wait_until(&mut rung, deadline).timed_out() => break,
                Some(_) => {}
            }
        }
        if consume { std::mem::take(&mut *rung) } else { *rung }
    }
}

impl Doorbell {
    /// An eventfd, or a pipe where none can be had (an old sandbox, a seccomp filter).
    pub(crate) fn new() -> Result<Self> {
        Self::eventfd().or_else(|_| Self::pipe())
    }

    pub(crate) fn eventfd() -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let fd = EventFd::from_flags(flags).call("eventfd")?;
        Ok(Self { kind: Kind::Event(fd.into()) })
    }

    pub(crate) fn pipe() -> Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).call("pipe2")?;
        Ok(Self { kind: Kind::Pipe { reader, writer } })
    }

    /// For threads of this process. It has no descriptor.
    pub(crate) fn local() -> Self {
        Self { kind: Kind::Local(Arc::default()) }
    }

    /// Another handle of the same doorbell.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        if let Kind::Local(local) = &self.kind {
            return Ok(Self { kind: Kind::Local(local.clone()) });
        }
        let fds = self.fds().map(|fd| fd.try_clone_to_owned()).collect::<std::result::Result<Vec<_>, _>>();
        Self::from_fds(fds.call("dup")?)
    }

    /// From the descriptors of [`Doorbell::fds`], in that order, as they arrived from another process.
    pub(crate) fn from_fds(fds: Vec<OwnedFd>) -> Result<Self> {
        let mut fds = fds.into_iter();
        let kind = match (fds.next(), fds.next(), fds.next()) {
            (Some(fd), None, None) => Kind::Event(fd),
            (Some(reader), Some(writer), None) => Kind::Pipe { reader, writer },
            _ => return Err(SysError::new("recvmsg(doorbell)", Errno::EBADMSG)),
        };
        Ok(Self { kind })
    }

    /// What to send to the other side: one descriptor, or two. A local one has none.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let (first, second) = match &self.kind {
            Kind::Event(fd) => (Some(fd), None),
            Kind::Pipe { reader, writer } => (Some(reader), Some(writer)),
            Kind::Local(_) => (None, None),
        };
        first.into_iter().chain(second).map(OwnedFd::as_fd)
    }

    /// Readable while rung: for waiting on several doorbells, or on one and a peer's death. Whoever was woken so
    /// must [`Doorbell::clear`] it. `None`: it is local, and there is none.
    #[inline]
    pub(crate) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Event(fd) | Kind::Pipe { reader: fd, .. } => Some(fd.as_fd()),
            Kind::Local(_) => None,
        }
    }

    /// Rings: one system call, which never blocks.
    pub(crate) fn ring(&self) {
        let (fd, message): (_, &[u8]) = match &self.kind {
            // An eventfd takes exactly an integer of eight bytes (eventfd(2)).
            Kind::Event(fd) => (fd, &1u64.to_ne_bytes()),
            Kind::Pipe { writer, .. } => (writer, &[1]),
            Kind::Local(local) => {
                *local.rung.lock() = true;
                local.changed.notify_one();
                return;
            }
        };
        // EAGAIN: full, hence already rung. No other error can come from a non-blocking descriptor that we hold open
        // together with its reading end, and if a seccomp filter invents one, the caller could do nothing about it:
        // the sleeper also wakes up for time limits and deaths.
        let _ = retry_interrupted(|| write(fd, message));
    }

    /// Sleeps until somebody rings, at most `timeout` (`None`: for ever); `true` when rung, and then the ring is
    /// consumed. A ring from before the call counts. A `false` may come early when the kernel is out of memory.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        let Some(fd) = self.wait_fd() else { return self.wait_locally(timeout, true) };
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut remaining = deadline.and(timeout);
        loop {
            match wait_readable(&[fd], remaining) {
                Ok(0) | Err(_) => return false,
                // Another waiter can have been faster: then it is not our ring.
                Ok(_) if self.drain() => return true,
                Ok(_) => {}
            }
            remaining = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        }
    }

    /// As [`Doorbell::wait`], but leaves it rung: it has to be [cleared](Doorbell::clear) before the next wait, at leisure.
    pub(crate) fn await_ring(&self, timeout: Option<Duration>) -> bool {
        match self.wait_fd() {
            Some(fd) => wait_readable(&[fd], timeout).is_ok_and(|ready| ready != 0),
            None => self.wait_locally(timeout, false),
        }
    }

    fn wait_locally(&self, timeout: Option<Duration>, consume: bool) -> bool {
        matches!(&self.kind, Kind::Local(local) if local.wait(timeout, consume))
    }

    /// Forgets rings so far, without blocking. To be called **before** looking at what the ring was about.
    pub(crate) fn clear(&self) {
        self.drain();
    }

    /// Consumes; was there anything?
    fn drain(&self) -> bool {
        let Some(fd) = self.wait_fd() else { return self.wait_locally(Some(Duration::ZERO), true) };
        if matches!(self.kind, Kind::Event(_)) {
            // One read resets it (eventfd(2)).
            return retry_interrupted(|| read(fd, &mut [0; 8])).is_ok_and(|bytes| bytes > 0);
        }
        let mut buffer = [0; 512];
        let mut rung = false;
        loop {
            match retry_interrupted(|| read(fd, &mut buffer)) {
                Ok(bytes) if bytes > 0 => rung = true,
                // EAGAIN, or an end that cannot come while we hold the writer.
                Ok(_) | Err(_) => return rung,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));
    const NOW: Option<Duration> = Some(Duration::ZERO);

    /// All kinds. That no descriptor blocks is checked first, since otherwise these tests would hang.
    fn all() -> [Doorbell; 3] {
        let bells = [Doorbell::eventfd().unwrap(), Doorbell::pipe().unwrap(), Doorbell::local()];
        for fd in bells.iter().flat_map(Doorbell::fds) {
            assert!(
                OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
            );
            assert_eq!(fcntl(fd, FcntlArg::F_GETFD), Ok(FdFlag::FD_CLOEXEC.bits()));
        }
        bells
    }

    #[test]
    fn a_ring_is_kept_and_many_are_one() {
        for bell in all().into_iter().chain([Doorbell::new().unwrap()]) {
            assert!(!bell.wait(NOW));
            for _ in 0..3 {
                bell.ring();
            }
            assert!(bell.wait(PATIENCE));
            assert!(!bell.wait(NOW));
            bell.ring();
            bell.clear();
            bell.clear();
            assert!(!bell.wait(Some(Duration::from_millis(1))));
        }
    }

    #[test]
    fn a_full_doorbell_does_not_block_its_ringer() {
        for bell in all() {
            match &bell.kind {
                // One below the most that a counter takes, at which a blocking write would hang (eventfd(2)).
                Kind::Event(fd) => assert_eq!(write(fd, &(u64::MAX - 1).to_ne_bytes()), Ok(8)),
                Kind::Pipe { writer, .. } => while write(writer, &[0; 4096]).is_ok() {},
                Kind::Local(_) => bell.ring(),
            }
            bell.ring();
            assert!(bell.wait(NOW));
            assert!(!bell.wait(NOW));
        }
    }

    #[test]
    fn wakes_another_thread() {
        for bell in all() {
            std::thread::scope(|scope| {
                let sleeper = scope.spawn(|| bell.wait(PATIENCE));
                bell.ring();
                assert!(sleeper.join().unwrap());
            });
        }
    }

    #[test]
    fn rings_through_duplicated_descriptors() {
        for bell in all() {
            let peer = bell.duplicate().unwrap();
            peer.ring();
            assert!(bell.wait_fd().is_none_or(|fd| wait_readable(&[fd], NOW).unwrap() == 1));
            assert!(bell.await_ring(NOW) && bell.await_ring(NOW), "it stays rung");
            drop(peer);
            assert!(bell.wait(NOW));
        }
        assert!(Doorbell::from_fds(Vec::new()).is_err());
    }
}
