//! What a process uses of memory, and what it may use.

#![allow(unsafe_code, reason = "prlimit, which nix does not offer")]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{clock_getcpuclockid, clock_gettime};

use super::memory::page_bytes;
use super::process::Pid;
use super::{Call, Result, SysError};

/// `/proc/self/statm` of the process that opened it, kept open: a look at it is one system call.
#[derive(Debug)]
pub(crate) struct Statm {
    file: File,
}

/// Memory of a process, as the kernel counts it: some pages behind, where it counts for each CPU apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Addresses in use, whether there is memory behind them or not.
    pub(crate) address_bytes: u64,
    /// Resident and backed by no file: heap, stacks, and private copies of what was inherited. Not shared memory.
    pub(crate) anonymous_bytes: u64,
    /// All that is resident.
    pub(crate) resident_bytes: u64,
}

impl Statm {
    const CALL: &str = "read(/proc/self/statm)";

    pub(crate) fn open() -> Result<Self> {
        Ok(Self { file: File::open("/proc/self/statm").call("open(/proc/self/statm)")? })
    }

    pub(crate) fn read(&self) -> Result<Usage> {
        // Seven numbers (proc_pid_statm(5)).
        let mut text = [0; 256];
        let len = self.file.read_at(&mut text, 0).call(Self::CALL)?;
        parse_statm(&text[..len]).ok_or_else(|| SysError::new(Self::CALL, io::ErrorKind::InvalidData))
    }
}

/// Size, resident and shared pages come first.
fn parse_statm(text: &[u8]) -> Option<Usage> {
    let mut pages = std::str::from_utf8(text).ok()?.split_ascii_whitespace().map(str::parse::<u64>);
    let mut next_bytes = || Some(pages.next()?.ok()?.saturating_mul(page_bytes() as u64));
    let (address_bytes, resident, shared) = (next_bytes()?, next_bytes()?, next_bytes()?);
    let anonymous_bytes = resident.saturating_sub(shared);
    Some(Usage { address_bytes, anonymous_bytes, resident_bytes: resident })
}

/// The memory of a process that is resident, shared pages included, as the kernel counts it: some pages behind.
pub(crate) fn resident_bytes(pid: Pid) -> Result<u64> {
    const CALL: &str = "read(/proc/<pid>/statm)";
    let text = fs::read(format!("/proc/{pid}/statm")).call(CALL)?;
    let usage = parse_statm(&text).ok_or_else(|| SysError::new(CALL, io::ErrorKind::InvalidData))?;
    Ok(usage.resident_bytes)
}

/// The time that the threads of a process have run on some CPU (clock_getcpuclockid(3)).
pub(crate) fn cpu_time(pid: Pid) -> Result<Duration> {
    let clock = clock_getcpuclockid(nix::unistd::Pid::from_raw(pid)).call("clock_getcpuclockid")?;
    clock_gettime(clock).map(Duration::from).call("clock_gettime")
}

/// Allows this process so many bytes of addresses, or what it is allowed already if that is less. It cannot undo
/// this without a privilege. What is in use stays; mapping more is refused from there on (RLIMIT_AS, setrlimit(2)).
pub(crate) fn limit_address_space(bytes: u64) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).call("getrlimit(RLIMIT_AS)")?;
    let limit = bytes.min(hard);
    setrlimit(Resource::RLIMIT_AS, limit, limit).call("setrlimit(RLIMIT_AS)")
}

/// Whether a process of this user is limited in its addresses. A child that nobody has reaped can be asked when it is
/// dead. `false` also where it cannot be told.
pub(crate) fn has_address_space_limit(pid: Pid) -> bool {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: nothing is set, and `limit` is ours to write (prlimit(2)).
    let asked = unsafe { libc::prlimit(pid, libc::RLIMIT_AS, ptr::null(), &raw mut limit) };
    Errno::result(asked).is_ok() && limit.rlim_cur != libc::RLIM_INFINITY
}

/// How often the kernel has killed a process of this machine because memory, or a cgroup's share of it, had run out
/// (Linux 4.13). It counts before it kills.
pub(crate) fn oom_kills() -> Result<u64> {
    const CALL: &str = "read(/proc/vmstat)";
    let text = fs::read_to_string("/proc/vmstat").call(CALL)?;
    parse_oom_kills(&text).ok_or_else(|| SysError::new(CALL, io::ErrorKind::InvalidData))
}

fn parse_oom_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::memory::{Mapping, Memfd};
    use super::super::process::{self, Fork};
    use super::super::testing::in_own_process;
    use super::*;

    #[test]
    fn growth_is_seen_and_mapped_files_are_not() {
        in_own_process(concat!(module_path!(), "::growth_is_seen_and_mapped_files_are_not"), || {
            const BYTES: usize = 64 << 20;
            let statm = Statm::open().unwrap();
            let anonymous = || statm.read().unwrap().anonymous_bytes;
            let before = anonymous();
            let block = vec![1_u8; BYTES];
            let during = anonymous();
            assert!(during > before + BYTES as u64 / 2, "{before} {during}");
            drop(std::hint::black_box(block));
            let before = anonymous();
            let memfd = Memfd::create(c"usage", BYTES).unwrap();
            Mapping::read_write(&memfd, BYTES).unwrap().populate_write(0..BYTES).unwrap();
            let after = anonymous();
            assert!(after < before + BYTES as u64 / 2, "{before} {after}");
        });
    }

    #[test]
    fn statm_is_read_as_it_is_written() {
        let page = page_bytes() as u64;
        assert_eq!(
            parse_statm(b"900 50 20 1 0 30 0\n"),
            Some(Usage { address_bytes: 900 * page, anonymous_bytes: 30 * page, resident_bytes: 50 * page })
        );
        assert_eq!(parse_statm(b"900 5 20").map(|usage| usage.anonymous_bytes), Some(0));
        for garbage in [&b""[..], b"1 2", b"1 2 x", b"\xff 2 3"] {
            assert_eq!(parse_statm(garbage), None);
        }
    }

    #[test]
    fn oom_kills_are_found_among_the_counters() {
        assert_eq!(parse_oom_kills("pgfault 3\nnot_oom_kill 4\noom_kill 17\nx 1\n"), Some(17));
        assert_eq!(parse_oom_kills("oom_kill_ancestor 5\n"), None);
        assert_eq!(parse_oom_kills("oom_kill x\n"), None);
    }

    #[test]
    fn a_limit_holds_and_shows_after_death() {
        in_own_process(concat!(module_path!(), "::a_limit_holds_and_shows_after_death"), || {
            for limited in [false, true] {
                // SAFETY: this process has one thread.
                let Fork::Parent(pid) = unsafe { process::fork() }.unwrap() else {
                    if limited {
                        let now = Statm::open().unwrap().read().unwrap().address_bytes;
                        limit_address_space(now + (64 << 20)).unwrap();
                    }
                    let got = Vec::<u8>::new().try_reserve(256 << 20).is_ok();
                    process::exit_now(i32::from(got))
                };
                let peek = || process::peek_any_nohang().unwrap();
                let (dead, status) = std::iter::from_fn(|| Some(peek())).flatten().next().unwrap();
                assert_eq!((dead, status), (pid, process::ExitStatus::Exited(i32::from(!limited))));
                assert_eq!(has_address_space_limit(pid), limited);
                process::wait_child(pid).unwrap();
                assert!(!has_address_space_limit(pid), "nobody to ask");
            }
        });
    }
}
