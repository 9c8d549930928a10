//! What goes through a lane, as the master sees it: requests, responses, and where these are delivered.

use std::num::NonZeroU32;

use crate::ground::ring::RESPONSE_WORDS;
use crate::ground::sys::SysError;
use crate::memory::arena::ArenaReader;
use crate::memory::codec::{AlignedBytes, Encoded};
use crate::protocol::code::CodeId;
use crate::protocol::wire::{RESPONSE_INLINE_BYTES, Status};

/// Items of a batch, and how many of them are done already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) items: u32,
    pub(crate) done: u32,
    /// Whether the worker is to say how long it took.
    pub(crate) timed: bool,
}

/// A request outside the ring.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) code: CodeId,
    pub(crate) batch: Option<Batch>,
    pub(crate) input: Encoded,
}

/// A response, copied to private memory.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: Status,
    pub(crate) body: Encoded,
}

/// A request of a number, as words. It is handed on by reference: see [`SmallReply`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct SmallRequest {
    pub(crate) code: CodeId,
    pub(crate) words: [u64; 2],
    pub(crate) len: usize,
}

impl From<&SmallRequest> for Parcel {
    fn from(small: &SmallRequest) -> Self {
        let mut bytes = [0; 16];
        for (to, word) in bytes.chunks_exact_mut(8).zip(small.words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Self { code: small.code, batch: None, input: Encoded::inline(&bytes[..small.len]) }
    }
}

/// A value that came in its slot, as words: what is written and read in pieces of another size waits in the store buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SmallReply {
    pub(crate) words: [u64; RESPONSE_WORDS],
    pub(crate) len: u8,
}

impl SmallReply {
    pub(crate) const PACKED_WORDS: usize = RESPONSE_WORDS + 1;

    /// As words of one size, for memory that is written and read as such.
    #[inline]
    pub(crate) fn pack(&self) -> [u64; Self::PACKED_WORDS] {
        let [a, b, c] = self.words;
        [a, b, c, self.len.into()]
    }

    #[inline]
    pub(crate) fn unpack([a, b, c, len]: [u64; Self::PACKED_WORDS]) -> Self {
        Self { words: [a, b, c], len: len as u8 }
    }

    /// Its payload is the first `len` of these bytes.
    #[inline]
    pub(crate) fn bytes(&self) -> [u8; RESPONSE_INLINE_BYTES] {
        let mut bytes = [0; RESPONSE_INLINE_BYTES];
        for (to, word) in bytes.chunks_exact_mut(8).zip(self.words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl From<SmallReply> for Reply {
    fn from(small: SmallReply) -> Self {
        let body = Encoded::inline(&small.bytes()[..usize::from(small.len)]);
        Self { status: Status::Value, body }
    }
}

/// What the bytes of a batch's results are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Results of a fixed size, one after the other.
    Values,
    /// See [`crate::protocol::records`].
    Records,
}

/// Why a request was not taken. It comes back whole.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The ring or the arena is full.
    Full,
    /// There is no memory to back the arena.
    Memory(SysError),
}

/// Where a lane delivers what it receives. Called by the lane's owner; must not run user code.
pub(crate) trait Sink<T> {
    /// The request of `token` is probably going to be answered soon.
    fn expect(&self, _token: &T) {}
    /// The request of `token` is answered.
    fn reply(&mut self, token: T, reply: Reply);
    /// Likewise, by a value in its slot.
    fn small_reply(&mut self, token: T, reply: SmallReply) {
        self.reply(token, reply.into());
    }
    /// The batch of `token` was cut after the records that have come: the request, for the rest of it.
    fn cut(&mut self, token: T, parcel: Parcel);
    /// More results of the batch of `token` have come: bare values, or records. No values come after a record.
    fn results(&mut self, token: &mut T, form: Form, from: ArenaReader<'_>, position: u64, len: usize);
    /// All results of the batch of `token` have come. How long it took, if that was wanted: see
    /// [`time_of_code`](crate::protocol::wire::time_of_code).
    fn batch_done(&mut self, token: T, time_code: u8) {
        self.reply(token, Reply { status: Status::BatchDone, body: Encoded::inline(&[time_code]) });
    }
    /// The last results of a batch, and its end.
    fn last_results(
        &mut self,
        mut token: T,
        form: Form,
        (from, position, len): (ArenaReader<'_>, u64, usize),
        time_code: u8,
    ) {
        self.results(&mut token, form, from, position, len);
        self.batch_done(token, time_code);
    }
    /// Whether [`timed`](Self::timed) is wanted, which the worker has to be told, too.
    const TIMED: bool = false;
    /// The request of `token` has run, and is about to be answered.
    fn timed(&mut self, _token: &T, _run: Run) {}
    /// The worker asks the service something.
    fn call(&mut self, number: u64, request: AlignedBytes);
}

/// What is known about a request that a worker has run, where workers are asked to stamp requests. The times are the worker's,
/// so they are figures to show, nothing more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) index: u64,
    pub(crate) code: CodeId,
    pub(crate) started_ns: u64,
    pub(crate) ended_ns: u64,
    pub(crate) status: Status,
    /// Items, if it is a batch.
    pub(crate) items: Option<NonZeroU32>,
}
