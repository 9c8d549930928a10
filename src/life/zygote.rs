//! The zygote: the single-threaded process that forks all workers of a pool, the first ones and every replacement.
//!
//! It is forked inside `build()` and never changes afterwards, so a replacement sees the same environment as its
//! siblings, and no fork ever happens in a process with threads but that one. It reaps the workers and reports how
//! they ended. It leaves when the master says so, closes its socket, or dies, and takes all workers with it: they are
//! killed here, and PR_SET_PDEATHSIG kills them if this process itself is killed.

#![allow(unsafe_code, reason = "fork, and closing inherited descriptors")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::signal::Signal;

use super::messages::{MESSAGE_BYTES, Order, Report, Who};
use super::seed::Seed;
use super::worker;
use crate::faults::{Point, point};
use crate::ground::doorbell::Ringer;
use crate::ground::sys::process::{self, Exit, Fork, Pid, PidFd};
use crate::ground::sys::signals::{self, SigchldFd};
use crate::ground::sys::socket::{Socket, TryRecv};
use crate::ground::sys::{SysError, descriptors, poll, usage};
use crate::protocol::port::Bells;

/// What the zygote is given by the process that forks it. Leaked there before the fork: see [`Seed`].
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) seed: Seed,
    /// The zygote's end.
    pub(crate) socket: Socket,
    /// What workers ring the driver with.
    pub(crate) driver_ringer: OwnedFd,
    /// The master, by a descriptor that it opened itself: it cannot be mistaken.
    pub(crate) master: PidFd,
    /// Descriptors of the master's pools, this one's ends included.
    pub(crate) foreign: Vec<RawFd>,
}

/// The zygote's own state.
#[derive(Debug)]
struct Zygote {
    launch: &'static Launch,
    children: Vec<(Pid, Who)>,
    deaths: SigchldFd,
    pid: Pid,
}

/// Runs the zygote in the forked child. Returns only by the end of the process.
pub(crate) fn run(launch: &'static Launch) -> ! {
    signals::reset_in_child();
    let own = |fd: BorrowedFd<'_>| fd.as_raw_fd();
    let mut keep = vec![own(launch.socket.as_fd()), own(launch.master.as_fd())];
    keep.push(own(launch.driver_ringer.as_fd()));
    if launch.seed.close_inherited_fds {
        // SAFETY: everything inherited is leaked in this process: what owns a closed descriptor is on frames that
        // are never returned to, except for what the user's own stack drops in `start_worker`, which is documented.
        unsafe { descriptors::close_all_except(&keep) };
    } else {
        for &fd in launch.foreign.iter().filter(|fd| !keep.contains(fd)) {
            let _ = nix::unistd::close(fd);
        }
    }
    name_process("zygote");
    let Ok(deaths) = signals::sigchld_fd() else { process::exit_now(71) };
    // Leaked, so that no descriptor has an owner on a stack that a worker may unwind.
    let zygote = Zygote { launch, children: Vec::new(), deaths, pid: process::own_pid() };
    let zygote: &'static mut Zygote = Box::leak(Box::new(zygote));
    zygote.serve();
    zygote.end()
}

/// Names this process for `ps` and `top`.
pub(crate) fn name_process(role: &str) {
    let name = std::ffi::CString::new(format!("forkring-{role}")).unwrap_or_default();
    // At most 15 bytes are kept (PR_SET_NAME(2const)). Best effort.
    let _ = nix::sys::prctl::set_name(&name);
}

impl Zygote {
    fn serve(&mut self) {
        point(Point::ZygoteServing);
        loop {
            let fds = [self.launch.socket.as_fd(), self.deaths.as_fd(), self.launch.master.as_fd()];
            let Ok(ready) = poll::wait_readable(&fds, None) else { return };
            if ready & 0b100 != 0 {
                return;
            }
            if ready & 0b010 != 0 {
                point(Point::DeathSeen);
            }
            if ready & 0b010 != 0 && self.reap().is_err() {
                return;
            }
            if ready & 0b001 != 0 && !self.obey() {
                return;
            }
        }
    }

    /// Reads one order. `false`: it is time to go.
    fn obey(&mut self) -> bool {
        let mut bytes = [0; MESSAGE_BYTES];
        let (len, fds) = match self.launch.socket.try_recv(&mut bytes) {
            Ok(TryRecv::Message(len, fds)) => (len, fds),
            Ok(TryRecv::Empty) => return true,
            Ok(TryRecv::Closed) | Err(_) => return false,
        };
        match Order::from_bytes(&bytes[..len]) {
            Some(Order::Spawn(who)) => {
                point(Point::SpawnOrdered);
                self.spawn(who, fds)
            }
            Some(Order::Terminate) | None => {
                point(Point::EndOrdered);
                false
            }
        }
    }

    fn spawn(&mut self, who: Who, fds: Vec<OwnedFd>) -> bool {
        // Descriptors move to the child and are closed here; leaked while both exist, so that nothing on this stack
        // closes them in the child.
        let fds = Box::leak(Box::new(fds));
        // SAFETY: this process has one thread.
        let report = match unsafe { process::fork() } {
            Ok(Fork::Child) => {
                // The child never returns to this frame, but its destructors may run there: nothing is owned by it.
                self.become_worker(who, std::mem::take(fds))
            }
            Ok(Fork::Parent(pid)) => {
                point(Point::SpawnForked);
                self.adopt(who, pid)
            }
            Err(error) => Err((who, error)),
        };
        // SAFETY: made by `Box::leak` above; the child has its own copy of it.
        drop(unsafe { Box::from_raw(fds) });
        point(Point::SpawnUnreported);
        let sent = match report {
            Ok((report, pidfd)) => self.launch.socket.send(&report.to_bytes(), &[pidfd.as_fd()]),
            Err((who, error)) => {
                self.launch.socket.send(&Report::Refused { who, errno: error.errno() }.to_bytes(), &[])
            }
        };
        point(Point::SpawnReported);
        sent.is_ok()
    }

    fn adopt(&mut self, who: Who, pid: Pid) -> Result<(Report, PidFd), (Who, SysError)> {
        match PidFd::open(pid) {
            Ok(pidfd) => {
                self.children.push((pid, who));
                Ok((Report::Spawned { who, pid: pid as u32 }, pidfd))
            }
            Err(error) => {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
                let _ = process::wait_child(pid);
                Err((who, error))
            }
        }
    }

    /// The first steps of a worker: it must not outlive the zygote, nor hold what belongs to others.
    fn become_worker(&self, who: Who, fds: Vec<OwnedFd>) -> ! {
        point(Point::WorkerForked);
        let armed = process::set_parent_death_signal(Signal::SIGKILL);
        // The zygote may have died before the signal was armed.
        if armed.is_err() || process::parent_pid() != self.pid {
            process::exit_now(71);
        }
        signals::reset_in_child();
        let launch = self.launch;
        if launch.seed.setup.process_group && process::lead_group().is_err() {
            process::exit_now(71);
        }
        for fd in [launch.socket.as_fd(), launch.master.as_fd(), self.deaths.as_fd()] {
            let _ = nix::unistd::close(fd.as_raw_fd());
        }
        let mut fds = fds.into_iter();
        let (Some(a), Some(b), Some(response)) = (fds.next(), fds.next(), fds.next()) else {
            process::exit_now(71)
        };
        let response = Ringer::Pipe(response);
        // Not the one that all workers have: what one does to it, none of the others feels.
        let Ok(driver) = Ringer::reopen(launch.driver_ringer.as_fd()) else { process::exit_now(71) };
        let _ = nix::unistd::close(launch.driver_ringer.as_raw_fd());
        worker::run(&launch.seed, who, a, b, Bells { response, driver })
    }

    /// Reaps what has ended, and reports it.
    fn reap(&mut self) -> Result<(), SysError> {
        self.deaths.drain()?;
        while let Some((pid, status)) = process::peek_any_nohang()? {
            // Not reaped yet: it can be asked, and its number, as that of its group, cannot have been used again.
            let aborted = status.signal() == Some(Signal::SIGABRT as i32);
            let limited = aborted && usage::has_address_space_limit(pid);
            if self.launch.seed.setup.process_group {
                // One that has left in good order does not lead its group any more.
                process::kill_child(pid, true);
            }
            let Some(Exit { status, max_rss_kib, .. }) = process::wait4_nohang(pid)? else { break };
            let Some(at) = self.children.iter().position(|&(child, _)| child == pid) else { continue };
            let (_, who) = self.children.swap_remove(at);
            let report = Report::Ended { who, pid: pid as u32, status, max_rss_kib, limited };
            point(Point::DeathUnreported);
            self.launch.socket.send(&report.to_bytes(), &[])?;
            point(Point::DeathReported);
        }
        Ok(())
    }

    /// Kills and reaps the workers, and leaves.
    fn end(&mut self) -> ! {
        for &(pid, _) in &self.children {
            // Unreaped children of this process: their numbers cannot have been used again.
            process::kill_child(pid, self.launch.seed.setup.process_group);
        }
        point(Point::EndKilled);
        for &(pid, who) in &self.children {
            if let Ok(Some(status)) = process::wait_child(pid) {
                let report = Report::Ended { who, pid: pid as u32, status, max_rss_kib: 0, limited: false };
                // Nobody may be there to hear it.
                let _ = self.launch.socket.try_send(&report.to_bytes(), &[]);
            }
        }
        point(Point::EndReaped);
        process::exit_now(0)
    }
}
