//! Where the read-only data of the loaded ELF objects lies, so that a constant can be named by (object, offset) and
//! checked before anybody believes it.

#![allow(unsafe_code, reason = "dl_iterate_phdr and the program headers that it shows")]

use std::ffi::c_void;
use std::slice;

use nix::libc;

use super::memory::page_bytes;

/// Addresses from `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: usize,
    end: usize,
}

impl Span {
    #[inline]
    fn contains(self, addr: usize, len: usize) -> bool {
        addr >= self.start && addr <= self.end && len <= self.end - addr
    }
}

#[derive(Clone, Debug)]
struct Object {
    base: usize,
    read_only: Box<[Span]>,
}

/// The objects that were loaded at one moment, in the loader's order: the main executable is number 0.
///
/// A snapshot, valid in this process and in those forked from it. It proves where constants lay then: after a
/// `dlclose` their addresses can hold something else, which is the caller's contract.
///
/// * OBJ-1: every span of an object lies within segments of it that the compiler or linker declared read-only
///   (or, without RELRO, within its initialised data).
/// * OBJ-2: `fast` is the first span of object 0, and `fast_base` its base; empty if there is none.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    fast: Span,
    fast_base: usize,
    objects: Box<[Object]>,
}

impl Objects {
    /// Takes the snapshot. Not for a child of a threaded process: it takes the loader's lock.
    pub(crate) fn load() -> Self {
        let mut objects: Vec<Object> = Vec::new();
        if cfg!(miri) {
            // Which has no loader, and no memory but what is the program's.
            let all = Span { start: 1, end: usize::MAX };
            let objects = Box::new([Object { base: 0, read_only: Box::new([all]) }]);
            return Self { fast: all, fast_base: 0, objects };
        }
        // SAFETY: `collect` is called with this very pointer, before the call returns and on this thread
        // (dl_iterate_phdr(3)), and does not unwind into C: an `extern "C"` function aborts instead.
        unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut objects).cast()) };
        let first = objects.first().and_then(|object| Some((*object.read_only.first()?, object.base)));
        let (fast, fast_base) = first.unwrap_or((Span { start: 0, end: 0 }, 0));
        Self { fast, fast_base, objects: objects.into() }
    }

    /// The name of the bytes `addr..addr + len`, when they lie wholly within one read-only range of one object:
    /// that object's number, of 16 bits, and the distance from its base.
    #[inline]
    pub(crate) fn locate(&self, addr: usize, len: usize) -> Option<(u64, u64)> {
        // OBJ-2. An empty span at 0 contains no constant, since none lies at address 0.
        if self.fast.contains(addr, len) && addr != 0 {
            return Some((0, addr.wrapping_sub(self.fast_base) as u64));
        }
        self.locate_slowly(addr, len)
    }

    #[cold]
    fn locate_slowly(&self, addr: usize, len: usize) -> Option<(u64, u64)> {
        let holds = |object: &Object| object.read_only.iter().any(|span| span.contains(addr, len));
        let number = self.objects.iter().position(holds)?;
        Some((u64::from(u16::try_from(number).ok()?), addr.wrapping_sub(self.objects[number].base) as u64))
    }

    /// The address that [`Objects::locate`] named, if the name can be right: aligned to `align` (a power of two) and
    /// wholly within one read-only range of that object. For names that somebody else wrote.
    #[inline]
    pub(crate) fn resolve(&self, object: u64, offset: u64, len: usize, align: usize) -> Option<usize> {
        let object = self.objects.get(usize::try_from(object).ok()?)?;
        let addr = object.base.checked_add(usize::try_from(offset).ok()?)?;
        let aligned = align.is_power_of_two() && addr & (align - 1) == 0;
        let inside = object.read_only.iter().any(|span| span.contains(addr, len));
        (aligned && inside && addr != 0).then_some(addr)
    }

    /// How many objects the snapshot has.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }
}

unsafe extern "C" fn collect(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    data: *mut c_void,
) -> libc::c_int {
    // SAFETY: the loader passes a valid record (dl_iterate_phdr(3)). Its fields used here are the original ones, which
    // every version has, whatever `_size` says.
    let info = unsafe { &*info };
    // SAFETY: `data` is what `load` passed: its vector, which nobody else uses during the call.
    let objects = unsafe { &mut *data.cast::<Vec<Object>>() };
    if objects.len() > usize::from(u16::MAX) {
        return 1;
    }
    let headers: &[libc::Elf64_Phdr] = if info.dlpi_phdr.is_null() {
        &[]
    } else {
        // SAFETY: the loader keeps `dlpi_phnum` headers there while it holds its lock, that is, during this call.
        unsafe { slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) }
    };
    let base = info.dlpi_addr as usize;
    objects.push(Object { base, read_only: read_only_spans(base, headers, page_bytes()) });
    0
}

/// The ranges of an object that hold constants.
///
/// RELRO comes first: in position-independent code that is where constants with relocations lie, such as those that
/// hold function pointers, which is what gets looked up. Its end is rounded down to a page, because the loader
/// protects whole pages only (glibc, `_dl_protect_relro`). An object without RELRO was linked with `-z norelro`:
/// there such constants lie in the writable segment, whose initialised part has to count.
fn read_only_spans(base: usize, headers: &[libc::Elf64_Phdr], page: usize) -> Box<[Span]> {
    let span = |header: &libc::Elf64_Phdr, bytes: u64| {
        // Modular, as the ABI defines it: the base is a difference and may be "negative".
        let start = base.wrapping_add(header.p_vaddr as usize);
        Some(Span { start, end: start.checked_add(bytes as usize)? })
    };
    let relro = headers.iter().filter(|header| header.p_type == libc::PT_GNU_RELRO);
    let has_relro = relro.clone().next().is_some();
    let relro = relro.filter_map(|header| {
        let whole = span(header, header.p_memsz)?;
        Some(Span { end: whole.end / page * page, ..whole })
    });
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD).filter_map(|header| {
        let writable = header.p_flags & libc::PF_W != 0;
        let readable = header.p_flags & libc::PF_R != 0;
        (readable && !(writable && has_relro)).then(|| span(header, header.p_filesz.min(header.p_memsz)))?
    });
    relro.chain(loaded).filter(|span| span.start < span.end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    struct Shim {
        call: fn(u32) -> u32,
        magic: u64,
    }

    fn double(x: u32) -> u32 {
        x * 2
    }

    const SHIM: &Shim = &Shim { call: double, magic: 7 };

    #[test]
    fn a_constant_with_a_function_pointer_has_a_name() {
        let objects = Objects::load().clone();
        assert!(objects.len() > 0);
        let shim = black_box(SHIM);
        let (addr, len) = (std::ptr::from_ref(shim) as usize, size_of::<Shim>());
        let (object, offset) = objects.locate(addr, len).expect("a constant");
        assert_eq!(objects.locate_slowly(addr, len), Some((object, offset)));
        assert_eq!(objects.resolve(object, offset, len, align_of::<Shim>()), Some(addr));
        assert_eq!((shim.call)(21) + shim.magic as u32, 49);

        let text = "text";
        assert!(objects.locate(text.as_ptr() as usize, text.len()).is_some());
        assert!(objects.locate(double as fn(u32) -> u32 as usize, 1).is_some());
    }

    #[test]
    fn variables_have_none() {
        static COUNTER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let objects = Objects::load();
        let on_stack = black_box([1u64; 8]);
        let on_heap = black_box(Box::new([1u64; 8]));
        for addr in [
            on_stack.as_ptr() as usize,
            on_heap.as_ptr() as usize,
            std::ptr::from_ref(&COUNTER) as usize,
            0,
            8,
            usize::MAX,
        ] {
            assert_eq!(objects.locate(addr, 8), None, "{addr:#x}");
        }
        assert_eq!(objects.locate(0, 0), None);
    }

    #[test]
    fn wrong_names_are_refused() {
        let objects = Objects::load();
        let (addr, len) = (std::ptr::from_ref(SHIM) as usize, size_of::<Shim>());
        let (object, offset) = objects.locate(addr, len).unwrap();
        assert_eq!(objects.resolve(object, offset + 1, len, 8), None);
        assert_eq!(objects.resolve(object, offset, len, 3), None);
        assert_eq!(objects.resolve(object, offset, len, 0), None);
        assert_eq!(objects.resolve(object, offset, usize::MAX, 8), None);
        assert_eq!(objects.resolve(object, u64::MAX, len, 1), None);
        assert_eq!(objects.resolve(object, u64::MAX - 7, len, 8), None);
        assert_eq!(objects.resolve(u64::from(u16::MAX), offset, len, 8), None);
        assert_eq!(objects.locate(addr, usize::MAX), None);
    }

    fn header(p_type: u32, p_flags: u32, p_vaddr: u64, p_filesz: u64, p_memsz: u64) -> libc::Elf64_Phdr {
        libc::Elf64_Phdr { p_type, p_flags, p_offset: 0, p_vaddr, p_paddr: 0, p_filesz, p_memsz, p_align: 1 }
    }

    #[test]
    fn relro_decides_about_writable_segments() {
        let (r, rw) = (libc::PF_R, libc::PF_R | libc::PF_W);
        let headers = [
            header(libc::PT_LOAD, r, 0, 0x1800, 0x1800),
            header(libc::PT_LOAD, rw, 0x3c00, 0x1000, 0x9000),
            header(libc::PT_GNU_RELRO, r, 0x3c00, 0x600, 0x600),
        ];
        let spans = |count| read_only_spans(0x1_0000, &headers[..count], 0x1000).to_vec();
        let constants = Span { start: 0x1_0000, end: 0x1_1800 };
        assert_eq!(spans(3), [Span { start: 0x1_3c00, end: 0x1_4000 }, constants]);
        assert_eq!(spans(2), [constants, Span { start: 0x1_3c00, end: 0x1_4c00 }]);
    }
}
