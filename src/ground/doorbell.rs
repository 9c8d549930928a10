//! A doorbell says "look", nothing more: not how often, not why.
//!
//! It is the slow half of a hand-shake. The sleeper's flag and the fences around it decide whether to ring; they
//! belong to whoever owns the memory, and are unknown here. Rings that come before the sleeper looks count as one,
//! and a ring that nobody waits for is kept.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{pipe2, read, write};

use super::monitor::{Condvar, Mutex};
use super::sys::futex;
use super::sys::poll::wait_readable;
use super::sys::{Call, Result, retry_interrupted};

/// Something that one process sleeps on and others ring; or, if it is [local](Doorbell::local), threads of the same process.
///
/// A pipe. Every descriptor is non-blocking: a write to a full pipe would otherwise hang the ringer. That flag belongs to
/// the open file description (open(2)), which whoever inherits or is sent a descriptor shares and may change. So the
/// sleeper has one of its own, every peer is given a [`Ringer`] of its own, and no peer has the reading end. The sleeper holds both ends:
/// a ringer's write can never fail with EPIPE, nor raise SIGPIPE in a program that did not ignore it.
#[derive(Debug)]
pub(crate) struct Doorbell {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Pipe { reader: OwnedFd, ringer: Ringer },
    Local(Arc<Local>),
}

/// The writing end of a doorbell's pipe, or a local doorbell.
#[derive(Debug)]
pub(crate) enum Ringer {
    Pipe(OwnedFd),
    Local(Arc<Local>),
}

impl Ringer {
    /// Rings: one system call, which never blocks. `false`: it cannot, since somebody has closed the descriptor.
    pub(crate) fn ring(&self) -> bool {
        match self {
            Self::Pipe(writer) => match retry_interrupted(|| write(writer, &[1])) {
                // Full, hence already rung.
                Ok(_) | Err(Errno::EAGAIN) => true,
                Err(_) => false,
            },
            Self::Local(local) => {
                local.ring();
                true
            }
        }
    }

    /// The same pipe with an open file description of its own, or, without a /proc, with the same one.
    pub(crate) fn reopen(fd: BorrowedFd<'_>) -> Result<Self> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match open(path.as_str(), flags, Mode::empty()) {
            Ok(writer) => Ok(Self::Pipe(writer)),
            Err(_) => fd.try_clone_to_owned().call("dup").map(Self::Pipe),
        }
    }
}

/// So many reads of 512 rings at a time.
const READS_MAX: u32 = 256;

/// Between threads, without a descriptor.
#[derive(Debug, Default)]
pub(crate) struct Local {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Local {
    fn ring(&self) {
        *self.rung.lock() = true;
        self.changed.notify_one();
    }

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
    /// A doorbell, and the descriptor that a peer is sent to make a [`Ringer`] of.
    pub(crate) fn new() -> Result<(Self, OwnedFd)> {
        let (reader, theirs) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).call("pipe2")?;
        let ringer = Ringer::reopen(theirs.as_fd())?;
        Ok((Self { kind: Kind::Pipe { reader, ringer } }, theirs))
    }

    /// For threads of this process. It has no descriptor.
    pub(crate) fn local() -> Self {
        Self { kind: Kind::Local(Arc::default()) }
    }

    /// For another thread of this process, if the doorbell is local.
    pub(crate) fn ringer(&self) -> Option<Ringer> {
        match &self.kind {
            Kind::Pipe { .. } => None,
            Kind::Local(local) => Some(Ringer::Local(local.clone())),
        }
    }

    /// Its descriptors. A local one has none.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let fds = match &self.kind {
            Kind::Pipe { reader, ringer: Ringer::Pipe(writer) } => [Some(reader), Some(writer)],
            Kind::Pipe { .. } | Kind::Local(_) => [None, None],
        };
        fds.into_iter().flatten().map(OwnedFd::as_fd)
    }

    /// Readable while rung: for waiting on several doorbells, or on one and a peer's death. Whoever was woken so
    /// must [`Doorbell::clear`] it. `None`: it is local, and there is none.
    #[inline]
    pub(crate) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Pipe { reader, .. } => Some(reader.as_fd()),
            Kind::Local(_) => None,
        }
    }

    /// Rings: one system call, which never blocks.
    pub(crate) fn ring(&self) {
        match &self.kind {
            Kind::Pipe { ringer, .. } => drop(ringer.ring()),
            Kind::Local(local) => local.ring(),
        }
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
        let mut buffer = [0; 512];
        let mut rung = false;
        // Not for as long as somebody rings.
        for _ in 0..READS_MAX {
            match retry_interrupted(|| read(fd, &mut buffer)) {
                Ok(bytes) if bytes == buffer.len() => rung = true,
                // It is empty.
                Ok(bytes) => return rung || bytes > 0,
                // EAGAIN, or an end that cannot come while we hold the writer.
                Err(_) => return rung,
            }
        }
        rung
    }
}

/// A doorbell in memory that its ringer writes and its sleeper may only read: how a worker is rung. Nothing that the sleeper does to
/// its memory or its descriptors can keep the ringer, or another sleeper's ring.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct WordBell {
    rings: AtomicU32,
}

impl WordBell {
    /// Rings: one system call, which never blocks. One thread at a time.
    pub(crate) fn ring(&self) {
        self.rings.store(self.rings().wrapping_add(1), Ordering::Release);
        futex::wake_all(&self.rings);
    }

    /// How often it was rung, in the numbers of the word.
    pub(crate) fn rings(&self) -> u32 {
        self.rings.load(Ordering::Acquire)
    }

    /// Sleeps until it has been rung since there were `seen` rings, at most `timeout` (`None`: for ever).
    pub(crate) fn wait(&self, seen: u32, timeout: Option<Duration>) {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut remaining = deadline.and(timeout);
        while self.rings() == seen && remaining != Some(Duration::ZERO) {
            futex::wait(&self.rings, seen, remaining);
            remaining = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));
    const NOW: Option<Duration> = Some(Duration::ZERO);

    fn pipe() -> (Doorbell, Ringer) {
        let (bell, theirs) = Doorbell::new().unwrap();
        (bell, Ringer::Pipe(theirs))
    }

    /// Both kinds. That no descriptor blocks is checked first, since otherwise these tests would hang.
    fn all() -> [(Doorbell, Ringer); 2] {
        let local = Doorbell::local();
        let ringer = local.ringer().unwrap();
        let bells = [pipe(), (local, ringer)];
        for fd in bells.iter().flat_map(|(bell, _)| bell.fds()) {
            assert!(
                OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
            );
            assert_eq!(fcntl(fd, FcntlArg::F_GETFD), Ok(FdFlag::FD_CLOEXEC.bits()));
        }
        bells
    }

    #[test]
    fn a_ring_is_kept_and_many_are_one() {
        for (bell, ringer) in all() {
            assert!(!bell.wait(NOW));
            for _ in 0..3 {
                bell.ring();
                assert!(ringer.ring());
            }
            assert!(bell.wait(PATIENCE));
            assert!(!bell.wait(NOW));
            assert!(ringer.ring());
            assert!(bell.await_ring(NOW) && bell.await_ring(NOW), "it stays rung");
            bell.clear();
            bell.clear();
            assert!(!bell.wait(Some(Duration::from_millis(1))));
        }
    }

    #[test]
    fn a_full_doorbell_does_not_block_its_ringers() {
        let (bell, ringer) = pipe();
        let Ringer::Pipe(theirs) = &ringer else { unreachable!() };
        while write(theirs, &[0; 4096]).is_ok() {}
        bell.ring();
        assert!(ringer.ring());
        assert!(bell.wait(NOW));
        assert!(!bell.wait(NOW));
    }

    #[test]
    fn a_peer_that_makes_its_end_block_hangs_nobody_else() {
        let (bell, ringer) = pipe();
        let Ringer::Pipe(theirs) = &ringer else { unreachable!() };
        while write(theirs, &[0; 4096]).is_ok() {}
        assert_eq!(fcntl(theirs, FcntlArg::F_SETFL(OFlag::empty())), Ok(0));
        bell.ring();
        assert!(bell.wait(NOW));
        assert!(!bell.wait(NOW), "nor is there a read that blocks");
    }

    #[test]
    fn a_ringer_whose_descriptor_was_closed_says_so() {
        let (bell, _ringer) = pipe();
        // What somebody else has closed and opened again: a reading end.
        let (reader, _writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        assert!(!Ringer::Pipe(reader).ring());
        assert!(!bell.wait(NOW));
    }

    #[test]
    fn wakes_another_thread() {
        for (bell, ringer) in all() {
            std::thread::scope(|scope| {
                let sleeper = scope.spawn(|| bell.wait(PATIENCE));
                assert!(ringer.ring());
                assert!(sleeper.join().unwrap());
            });
        }
    }

    #[test]
    fn a_word_keeps_its_rings_and_wakes_another_thread() {
        let bell = WordBell::default();
        let seen = bell.rings();
        bell.wait(seen, NOW);
        bell.wait(seen, Some(Duration::from_millis(1)));
        assert_eq!(bell.rings(), seen);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| bell.wait(seen, PATIENCE));
            bell.ring();
            sleeper.join().unwrap();
        });
        assert_eq!(bell.rings(), seen + 1);
        bell.wait(seen, None);
    }
}
