//! Anonymous shared files (memfds), the seals that keep them in shape, and their mappings.
//!
//! The order that matters: create, **map writable, then seal**. `F_SEAL_FUTURE_WRITE` leaves writable mappings
//! that exist alone and refuses new ones (fcntl(2)), so whoever maps first is the only writer.

#![allow(unsafe_code, reason = "asks for the page size, ends a ManuallyDrop, and fills memory of its own")]

use std::alloc::Layout;
use std::ffi::CStr;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::{Call, Result, SysError, fork_generation, retry_interrupted};

/// The size of a page of memory: 4096, or up to 65536 on aarch64.
pub(crate) fn page_bytes() -> usize {
    // SAFETY: takes and returns an integer.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // It cannot fail for this name (sysconf(3)).
    usize::try_from(bytes).unwrap_or(4096)
}

/// An anonymous file of fixed size, without a name anywhere that could be left behind.
#[derive(Debug)]
pub(crate) struct Memfd {
    fd: OwnedFd,
}

impl Memfd {
    /// Creates a file of `size` zero bytes. `name` only shows in `/proc/<pid>/maps`.
    ///
    /// Pages are not reserved yet: see [`Mapping::populate_write`].
    pub(crate) fn create(name: &CStr, size: usize) -> Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        // Not executable where the kernel knows the flag (6.3): with vm.memfd_noexec=2 nothing else is allowed,
        // and without the flag it logs a warning (memfd_create(2)). Older kernels answer EINVAL.
        let not_executable = flags | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
        let fd = match memfd_create(name, not_executable) {
            Err(Errno::EINVAL) => memfd_create(name, flags),
            result => result,
        }
        .call("memfd_create")?;
        let length = libc::off_t::try_from(size).map_err(|_| SysError::new("ftruncate", Errno::EFBIG))?;
        retry_interrupted(|| ftruncate(&fd, length)).call("ftruncate")?;
        Ok(Self { fd })
    }

    /// Fixes the size for good, and the seals themselves: nobody can make an access here raise SIGBUS by
    /// shrinking the file.
    ///
    /// One `fcntl`, because a peer that gets in between could seal the file against us.
    pub(crate) fn seal_shared(&self) -> Result<()> {
        self.seal(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL)
    }

    /// Like [`Memfd::seal_shared`], and whoever maps or writes from now on is refused; mappings that are writable
    /// already stay so. Linux 5.1.
    pub(crate) fn seal_read_only_for_others(&self) -> Result<()> {
        self.seal(
            SealFlag::F_SEAL_GROW
                | SealFlag::F_SEAL_SHRINK
                | SealFlag::F_SEAL_FUTURE_WRITE
                | SealFlag::F_SEAL_SEAL,
        )
    }

    fn seal(&self, seals: SealFlag) -> Result<()> {
        fcntl(&self.fd, FcntlArg::F_ADD_SEALS(seals)).call("fcntl(F_ADD_SEALS)")?;
        Ok(())
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Memfd> for OwnedFd {
    fn from(memfd: Memfd) -> Self {
        memfd.fd
    }
}

/// A shared mapping of a memfd. Hands out a raw pointer only: other processes write the same bytes.
///
/// Dropped in a forked child it unmaps nothing. With [`Mapping::dont_fork`] the child's copy is gone and its
/// addresses may hold something else by now, which `munmap` would tear out; without it the copy leaks until the
/// child ends.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: ManuallyDrop<MmapRaw>,
    writable: bool,
    generation: u32,
}

impl Mapping {
    /// Maps `size` bytes from the beginning, to be written. `size` must not exceed the file's size, otherwise
    /// access past its end raises SIGBUS.
    pub(crate) fn read_write(fd: &impl AsFd, size: usize) -> Result<Self> {
        Self::new(fd.as_fd(), size, true)
    }

    /// Maps `size` bytes from the beginning; writing through the pointer raises SIGSEGV.
    pub(crate) fn read_only(fd: &impl AsFd, size: usize) -> Result<Self> {
        Self::new(fd.as_fd(), size, false)
    }

    fn new(fd: BorrowedFd<'_>, size: usize, writable: bool) -> Result<Self> {
        if size == 0 {
            return Err(SysError::new("mmap", Errno::EINVAL));
        }
        fork_generation::install()?;
        let mut options = MmapOptions::new();
        options.len(size);
        let map =
            if writable { options.map_raw(&fd) } else { options.map_raw_read_only(&fd) }.call("mmap")?;
        Ok(Self { map: ManuallyDrop::new(map), writable, generation: fork_generation::current() })
    }

    /// The first byte; page-aligned. Valid for [`Mapping::len`] bytes while `self` lives, in the process that
    /// made it. For a read-only mapping it must not be written through.
    #[inline]
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Children forked from now on do not get this mapping (madvise(2), MADV_DONTFORK).
    ///
    /// It protects nothing by itself: a child's first `mmap` can land on exactly these addresses. Handles check
    /// their fork generation.
    pub(crate) fn dont_fork(&self) -> Result<()> {
        self.map.advise(Advice::DontFork).call("madvise(MADV_DONTFORK)")
    }

    /// Allocates the pages of a byte range and makes them writable without faults, so that a shortage is an error
    /// here rather than SIGBUS later: `EFAULT` "where an actual memory access would have raised SIGBUS", `ENOMEM`
    /// (madvise(2), MADV_POPULATE_WRITE). The contents stay as they are.
    ///
    /// `Ok(false)`: the kernel (before 5.14) does not know the advice, and nothing was reserved.
    pub(crate) fn populate_write(&self, range: Range<usize>) -> Result<bool> {
        const CALL: &str = "madvise(MADV_POPULATE_WRITE)";
        // memmap2 does not check the end of the range. Without the right to write the kernel answers EINVAL,
        // which would read as "unknown".
        let inside = range.start <= range.end && range.end <= self.len();
        if !inside || !self.writable {
            return Err(SysError::new(CALL, io::ErrorKind::InvalidInput));
        }
        if range.is_empty() {
            return Ok(true);
        }
        loop {
            let error = match self.map.advise_range(Advice::PopulateWrite, range.start, range.len()) {
                Ok(()) => return Ok(true),
                Err(error) => error,
            };
            match error.raw_os_error() {
                // What has been populated stays, so repeating makes progress.
                Some(libc::EINTR) => {}
                Some(libc::EINVAL) => return Ok(false),
                _ => return Err(SysError::new(CALL, error)),
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.generation == fork_generation::current() {
            // SAFETY: `map` is not used after this, since `self` is being dropped. The addresses are still ours:
            // no fork lies between the mmap and now.
            unsafe { ManuallyDrop::drop(&mut self.map) }
        }
    }
}

/// The size of x86-64's and AArch64's large pages.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// So many values in one block, for ever. One that is as large as a huge page becomes such a page if there is one to be had: on
/// a virtual machine the first touch of 512 small ones takes a millisecond or two.
pub(crate) fn leak<T: 'static>(count: usize, make: impl Fn() -> T) -> &'static [T] {
    let bytes = count * size_of::<T>();
    let align = if bytes.is_multiple_of(HUGE_PAGE_BYTES) { HUGE_PAGE_BYTES } else { align_of::<T>() };
    let layout = Layout::array::<T>(count).and_then(|layout| layout.align_to(align));
    let layout = layout.expect("a block of a sensible size");
    assert!(layout.size() > 0);
    // SAFETY: the size is not zero.
    let block = unsafe { std::alloc::alloc(layout) };
    let Some(block) = NonNull::new(block) else { std::alloc::handle_alloc_error(layout) };
    if align == HUGE_PAGE_BYTES {
        // SAFETY: the advice does not change what is in the block, which is this function's. That it may be ignored is no error.
        let _ = unsafe { libc::madvise(block.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
    }
    let values = block.cast::<T>();
    for i in 0..count {
        // SAFETY: the block has room for `count` values, and is aligned for them.
        let place = unsafe { values.add(i) };
        // SAFETY: as above.
        unsafe { place.write(make()) };
    }
    // SAFETY: all of them have been written, and the block is never freed.
    unsafe { std::slice::from_raw_parts(values.as_ptr(), count) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{exit_code_of_child, in_own_process};
    use super::*;

    const SIZE: usize = 1 << 16;

    fn write(map: &Mapping, offset: usize, byte: u8) {
        assert!(map.writable && offset < map.len());
        // SAFETY: inside the mapping.
        let place = unsafe { map.ptr().add(offset) };
        // SAFETY: writable, and not accessed concurrently.
        unsafe { place.write_volatile(byte) }
    }

    fn read(map: &Mapping, offset: usize) -> u8 {
        assert!(offset < map.len());
        // SAFETY: inside the mapping.
        let place = unsafe { map.ptr().add(offset) };
        // SAFETY: mapped, and not written concurrently.
        unsafe { place.read_volatile() }
    }

    #[test]
    fn writer_keeps_its_mapping_and_others_get_none() {
        let memfd = Memfd::create(c"test", SIZE).unwrap();
        let writer = Mapping::read_write(&memfd, SIZE).unwrap();
        memfd.seal_read_only_for_others().unwrap();

        assert_eq!(Mapping::read_write(&memfd, SIZE).unwrap_err().errno(), libc::EPERM);
        assert_eq!(nix::unistd::write(&memfd.fd, b"x").unwrap_err(), Errno::EPERM);
        let reader = Mapping::read_only(&memfd, SIZE).unwrap();
        write(&writer, 4097, 7);
        assert_eq!(read(&reader, 4097), 7);
    }

    #[test]
    fn sealed_files_keep_their_size_and_their_seals() {
        let memfd = Memfd::create(c"test", SIZE).unwrap();
        memfd.seal_shared().unwrap();
        assert_eq!(ftruncate(&memfd.fd, 0).unwrap_err(), Errno::EPERM);
        assert_eq!(ftruncate(&memfd.fd, 1 << 20).unwrap_err(), Errno::EPERM);
        assert_eq!(memfd.seal_read_only_for_others().unwrap_err().errno(), libc::EPERM);
        let map = Mapping::read_write(&memfd, SIZE).unwrap();
        write(&map, SIZE - 1, 1);
    }

    #[test]
    fn populating_keeps_contents() {
        let memfd = Memfd::create(c"test", SIZE).unwrap();
        let map = Mapping::read_write(&memfd, SIZE).unwrap();
        memfd.seal_read_only_for_others().unwrap();
        map.dont_fork().unwrap();
        write(&map, 10, 42);
        let known = map.populate_write(10..SIZE).unwrap();
        assert!(map.populate_write(SIZE..SIZE).unwrap() || !known);
        assert_eq!(read(&map, 10), 42);
        assert!(map.populate_write(1..SIZE + 1).is_err());
        assert!(Mapping::read_only(&memfd, SIZE).unwrap().populate_write(0..SIZE).is_err());
    }

    #[test]
    fn populate_past_the_end_of_the_file_is_an_error_and_no_sigbus() {
        let memfd = Memfd::create(c"test", 4096).unwrap();
        let map = Mapping::read_write(&memfd, SIZE).unwrap();
        match map.populate_write(0..SIZE) {
            Ok(known) => assert!(!known),
            Err(error) => assert_eq!(error.errno(), libc::EFAULT),
        }
    }

    #[test]
    fn an_empty_mapping_is_refused() {
        let memfd = Memfd::create(c"test", SIZE).unwrap();
        assert_eq!(Mapping::read_only(&memfd, 0).unwrap_err().errno(), libc::EINVAL);
    }

    #[test]
    fn dropped_in_a_child_it_unmaps_nothing() {
        in_own_process(concat!(module_path!(), "::dropped_in_a_child_it_unmaps_nothing"), || {
            let memfd = Memfd::create(c"test", SIZE).unwrap();
            let map = Mapping::read_write(&memfd, SIZE).unwrap();
            write(&map, 0, 23);
            let map = std::cell::Cell::new(Some(map));
            let code = exit_code_of_child(|| {
                let map = map.take().unwrap();
                let first = map.ptr();
                drop(map);
                // SAFETY: still mapped, or this child dies of SIGSEGV and the test fails.
                i32::from(unsafe { first.read_volatile() })
            });
            assert_eq!(code, 23);
            let map = map.take().unwrap();
            assert_eq!(read(&map, 0), 23);
        });
    }
}
