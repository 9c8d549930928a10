//! What a process uses of memory, and what it may use.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::memory::page_bytes;
use super::{Call, Result, SysError};

/// `/proc/self/statm` of the process that opened it, kept open: a look at it is one system call.
#[derive(Debug)]
pub(crate) struct Statm {
    file: File,
}

/// Memory of a process, as the kernel counts it: some pages behind, where it counts for each CPU apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Resident and backed by no file: heap, stacks, and private copies of what was inherited. Not shared memory.
    pub(crate) anonymous_bytes: u64,
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
    let _size = pages.next()?.ok()?;
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    let anonymous = resident.saturating_sub(shared);
    Some(Usage { anonymous_bytes: anonymous.saturating_mul(page_bytes() as u64) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_seen_and_mapped_files_are_not() {
        // Blocks of this size are mapped and unmapped one by one, whatever other tests allocate meanwhile.
        const BYTES: usize = 256 << 20;
        let statm = Statm::open().unwrap();
        let before = statm.read().unwrap().anonymous_bytes;
        let block = vec![1_u8; BYTES];
        let during = statm.read().unwrap().anonymous_bytes;
        assert!(during > before + BYTES as u64 / 2, "{before} {during}");
        drop(std::hint::black_box(block));
        let memfd = super::super::memory::Memfd::create(c"usage", BYTES).unwrap();
        let mapping = super::super::memory::Mapping::read_write(&memfd, BYTES).unwrap();
        let before = statm.read().unwrap().anonymous_bytes;
        mapping.populate_write(0..BYTES).unwrap();
        let after = statm.read().unwrap().anonymous_bytes;
        assert!(after < before + BYTES as u64 / 2, "{before} {after}");
    }

    #[test]
    fn statm_is_read_as_it_is_written() {
        let page = page_bytes() as u64;
        assert_eq!(parse_statm(b"900 50 20 1 0 30 0\n"), Some(Usage { anonymous_bytes: 30 * page }));
        assert_eq!(parse_statm(b"900 5 20"), Some(Usage { anonymous_bytes: 0 }));
        for garbage in [&b""[..], b"1 2", b"1 2 x", b"\xff 2 3"] {
            assert_eq!(parse_statm(garbage), None);
        }
    }
}
