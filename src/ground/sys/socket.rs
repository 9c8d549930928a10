//! A pair of message sockets (`SOCK_SEQPACKET`) that carry descriptors: the line between master and zygote.

#![allow(unsafe_code, reason = "recvmsg with control data; nix loses descriptors when that is truncated")]

use std::io::IoSlice;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

use super::{Call, Result, SysError, retry_interrupted};

/// The most descriptors in one message. The kernel's own limit is 253 (SCM_MAX_FD, unix(7)).
pub(crate) const MAX_FDS: usize = 32;

/// One end of a connection that keeps message boundaries. Close-on-exec.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

/// What [`Socket::try_recv`] found.
#[derive(Debug)]
pub(crate) enum TryRecv {
    /// A message: its length, and the descriptors that came with it.
    Message(usize, Vec<OwnedFd>),
    /// Nothing for the moment.
    Empty,
    /// The other end is closed everywhere, and everything it sent has been received.
    Closed,
}

/// Room for the control data of a message; aligned as `cmsghdr` wants it (cmsg(3)).
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

// SAFETY: arithmetic without side effects.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE((MAX_FDS * mem::size_of::<RawFd>()) as u32) } as usize;
const _: () = assert!(mem::align_of::<Control>() >= mem::align_of::<libc::cmsghdr>());

impl Socket {
    pub(crate) fn pair() -> Result<(Self, Self)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).call("socketpair")?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    /// Sends one message with copies of `fds`; blocks while the other end's buffer is full.
    ///
    /// `EPIPE` when the other end is closed (never SIGPIPE), `EMSGSIZE` when a message is larger than the buffer.
    /// An empty message is refused with `EINVAL`, since it would look like the end.
    pub(crate) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send_with(bytes, fds, MsgFlags::empty()).call("sendmsg")
    }

    /// Like [`Socket::send`], but `Ok(false)` where that would block: for a peer that may be stopped.
    pub(crate) fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<bool> {
        match self.send_with(bytes, fds, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => Ok(false),
            result => result.call("sendmsg").map(|()| true),
        }
    }

    fn send_with(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], flags: MsgFlags) -> nix::Result<()> {
        if bytes.is_empty() || fds.len() > MAX_FDS {
            return Err(Errno::EINVAL);
        }
        let mut raw = [-1; MAX_FDS];
        for (raw, fd) in raw.iter_mut().zip(fds) {
            *raw = fd.as_raw_fd();
        }
        let rights = [ControlMessage::ScmRights(&raw[..fds.len()])];
        let control: &[_] = if fds.is_empty() { &[] } else { &rights };
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        let parts = [IoSlice::new(bytes)];
        // A message goes whole or not at all (socket(2), SOCK_SEQPACKET).
        retry_interrupted(|| sendmsg::<()>(self.fd.as_raw_fd(), &parts, control, flags, None))?;
        Ok(())
    }

    /// Receives one message into `buffer`, waiting for it; `None` at the end, also when the other end died.
    ///
    /// The descriptors are close-on-exec. A message that does not fit, or whose descriptors did not fit (as when this
    /// process has no descriptor free, cmsg(3)), is an error, and closes what came with it.
    #[cfg(test)]
    pub(crate) fn recv(&self, buffer: &mut [u8]) -> Result<Option<(usize, Vec<OwnedFd>)>> {
        match self.recv_with(buffer, 0)? {
            TryRecv::Message(bytes, fds) => Ok(Some((bytes, fds))),
            TryRecv::Closed => Ok(None),
            // Only if somebody made the socket non-blocking.
            TryRecv::Empty => Err(SysError::new("recvmsg", Errno::EAGAIN)),
        }
    }

    /// Like [`Socket::recv`], without waiting.
    pub(crate) fn try_recv(&self, buffer: &mut [u8]) -> Result<TryRecv> {
        self.recv_with(buffer, libc::MSG_DONTWAIT)
    }

    fn recv_with(&self, buffer: &mut [u8], flags: libc::c_int) -> Result<TryRecv> {
        const CALL: &str = "recvmsg";
        let mut control = Control([0; CONTROL_BYTES]);
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all zeros is a valid `msghdr`: no name, no parts, no control data. (musl pads it, so that it
        // cannot be written out.)
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = CONTROL_BYTES as _;

        let flags = flags | libc::MSG_CMSG_CLOEXEC;
        let mut receive = || {
            // SAFETY: the header describes `buffer` and `control`, which outlive the call and are borrowed mutably.
            Errno::result(unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, flags) })
        };
        let bytes = loop {
            match receive() {
                Ok(bytes) => break bytes.unsigned_abs(),
                Err(Errno::EAGAIN) => return Ok(TryRecv::Empty),
                // The other end was closed with messages of ours unread. The kernel says so once, and before it
                // hands out what the other end had sent: so this is not the end yet.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                Err(error) => return Err(SysError::new(CALL, error)),
            }
        };
        // Before any early return: these descriptors are open here, and ours to close.
        // SAFETY: `header` was just filled in by the kernel and its control data has not been touched.
        let fds = unsafe { take_descriptors(&header) };
        if header.msg_flags & libc::MSG_CTRUNC != 0 {
            return Err(SysError::new(CALL, Errno::EMFILE));
        }
        if header.msg_flags & libc::MSG_TRUNC != 0 {
            return Err(SysError::new(CALL, Errno::EMSGSIZE));
        }
        // Nobody sends empty messages (see `send`).
        if bytes == 0 { Ok(TryRecv::Closed) } else { Ok(TryRecv::Message(bytes, fds)) }
    }
}

/// Takes possession of the descriptors in a received header.
///
/// # Safety
///
/// `header` comes from a successful `recvmsg`, its control buffer is still alive, and this is called once for it.
unsafe fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the header and its control buffer are valid (caller).
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: null, or a header inside the control buffer, aligned for it by `Control`.
    while let Some(part) = unsafe { message.as_ref() } {
        if part.cmsg_level == libc::SOL_SOCKET && part.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: arithmetic without side effects.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            #[allow(clippy::unnecessary_cast, reason = "32 bits in musl")]
            let length = part.cmsg_len as usize;
            let count = length.saturating_sub(head) / mem::size_of::<RawFd>();
            // SAFETY: `message` is a valid header.
            let data = unsafe { libc::CMSG_DATA(message) }.cast::<RawFd>();
            for i in 0..count {
                // SAFETY: the kernel wrote `count` descriptors behind the header, inside the buffer.
                let place = unsafe { data.add(i) };
                // SAFETY: as above; CMSG_DATA promises no alignment (cmsg(3)).
                let fd = unsafe { ptr::read_unaligned(place) };
                // SAFETY: the kernel opened it for this message, and nobody else knows its number.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: the header is valid and `message` points into its control buffer.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    fds
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// For an end that was inherited by number; it must be one of [`Socket::pair`].
impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::in_own_process;
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use std::io::{Read, Write};

    #[test]
    fn messages_keep_boundaries_and_carry_descriptors() {
        let (a, b) = Socket::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        a.send(b"one", &[]).unwrap();
        a.send(b"three", &[writer.as_fd(), writer.as_fd()]).unwrap();
        drop(writer);
        let mut buffer = [0; 16];
        let (bytes, fds) = b.recv(&mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..bytes], fds.len()), (&b"one"[..], 0));
        let (bytes, mut fds) = b.recv(&mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..bytes], fds.len()), (&b"three"[..], 2));
        let flags = FdFlag::from_bits_retain(fcntl(&fds[0], FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        std::fs::File::from(fds.pop().unwrap()).write_all(b"hello").unwrap();
        drop(fds);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn the_end_is_none_and_emptiness_is_not_the_end() {
        let (a, b) = Socket::pair().unwrap();
        let mut buffer = [0; 4];
        assert!(matches!(b.try_recv(&mut buffer).unwrap(), TryRecv::Empty));
        assert_eq!(a.send(b"", &[]).unwrap_err().errno(), libc::EINVAL);
        a.send(b"last", &[]).unwrap();
        b.send(b"unread", &[]).unwrap();
        drop(a);
        // The kernel reports the reset for "unread" first, and it must not hide the message.
        assert_eq!(b.recv(&mut buffer).unwrap().unwrap().0, 4);
        assert!(b.recv(&mut buffer).unwrap().is_none());
        assert!(matches!(b.try_recv(&mut buffer).unwrap(), TryRecv::Closed));
        assert_eq!(b.send(b"x", &[]).unwrap_err().errno(), libc::EPIPE);
    }

    #[test]
    fn full_and_oversized() {
        let (a, b) = Socket::pair().unwrap();
        while a.try_send(&[0; 1024], &[]).unwrap() {}
        let error = b.recv(&mut [0; 1000]).unwrap_err();
        assert_eq!(error.errno(), libc::EMSGSIZE);
        assert!(b.recv(&mut [0; 1024]).unwrap().is_some());
        let fds = [a.as_fd(); MAX_FDS + 1];
        assert!(a.send(b"x", &fds).is_err());
    }

    #[test]
    fn descriptors_that_do_not_fit_are_an_error_and_none_leaks() {
        in_own_process(
            concat!(module_path!(), "::descriptors_that_do_not_fit_are_an_error_and_none_leaks"),
            || {
                let (a, b) = Socket::pair().unwrap();
                a.send(b"x", &[a.as_fd(); MAX_FDS]).unwrap();
                let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
                let limit = u64::from(next.unsigned_abs()) + 3;
                setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
                assert_eq!(b.recv(&mut [0; 4]).unwrap_err().errno(), libc::EMFILE);
                setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
                let after = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
                assert_eq!(after, next, "the three descriptors that did fit are closed again");
            },
        );
    }
}
