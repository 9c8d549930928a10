//! What the words of slots and headers mean.
//!
//! | request slot | |
//! |---|---|
//! | head | index, [`Place`] as kind, inline length, flags [`CANCELLED`], [`BATCH`], [`FLOWS`], [`SHORTENED`], [`TIMED`] and [`CALLER`] |
//! | word 0, 1 | the function: [`crate::protocol::code::CodeId`] |
//! | word 2 | batch: items (low half) and how many of them are already done (high half) |
//! | words 3–6 | up to 32 bytes inline, or position and length of a span or stream; of a span that [`FLOWS`] also how many bytes its elements have |
//!
//! | response slot | |
//! |---|---|
//! | head | index, [`Place`] as kind, [`Status`] as extra; inline its length, else 0 for an archive and for a row of numbers the size of one; of a batch that is [`TIMED`] how long it took ([`time_code`]) |
//! | words 0–2 | up to 24 bytes inline, or position and length of a span or stream |

/// First word of a request's inline payload; at byte 32 of the slot, so that it is aligned for any view.
pub(crate) const INLINE_WORD: usize = 3;
pub(crate) const REQUEST_INLINE_BYTES: usize = 32;
pub(crate) const RESPONSE_INLINE_BYTES: usize = 24;

/// Request flag: the task was cancelled. Unstarted, it never runs; running, it can see it.
pub(crate) const CANCELLED: u16 = 1;
/// Request flag: the payload is a batch of items.
pub(crate) const BATCH: u16 = 2;
/// Request flag: the span is a row of numbers that was still being copied in when the request was published. The word
/// `in_sent` says how far it has come.
pub(crate) const FLOWS: u16 = 4;

/// Request flag: of a batch that is running, no other item starts.
pub(crate) const SHORTENED: u16 = 8;
/// Request flag: of a batch, how long it takes is wanted.
pub(crate) const TIMED: u16 = 16;
/// Request flag: there are words about who submitted it.
pub(crate) const CALLER: u16 = 32;

/// A time in a byte, with an error of an eighth: the place of its highest bit and the two bits below that. 0 is no time.
pub(crate) fn time_code(ns: u64) -> u8 {
    let ns = ns.max(4);
    let highest = ns.ilog2();
    ((highest - 1) as u8) << 2 | (ns >> (highest - 2)) as u8 & 3
}

/// What [`time_code`] stands for, in nanoseconds: any byte is a time or none.
pub(crate) fn time_of_code(code: u8) -> Option<u64> {
    let (highest, below) = (u32::from(code >> 2), u64::from(code & 3));
    // In the middle of all that have this code.
    (highest > 0).then(|| (2 * (4 + below) + 1) << (highest - 1) >> 1)
}

/// Payloads that are copied on both sides at once are copied in parts of this size.
pub(crate) const PART_BYTES: usize = 32 << 10;
/// A row of numbers from this size on is.
pub(crate) const FLOW_MIN_BYTES: usize = 4 * PART_BYTES;

macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident: $repr:ty { $($(#[$doc:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr($repr)]
        pub(crate) enum $name { $($(#[$doc])* $variant = $value,)+ }

        impl $name {
            /// The variant, if the word is one: it may come from a peer.
            #[inline]
            pub(crate) fn from_wire(word: $repr) -> Option<Self> {
                match word {
                    $($value => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

wire_enum! {
    /// Where a payload is.
    #[derive(Default)]
    Place: u8 {
        /// In the slot.
        #[default]
        Inline = 1,
        /// Contiguous in the arena.
        Span = 2,
        /// Flowing through the arena.
        Stream = 3,
    }
}

wire_enum! {
    /// What a response is, or one item of a batch.
    Status: u8 {
        /// The archive of the result; in a batch of fixed-size results, without a length.
        Value = 0,
        /// In a batch: the archive of the result, after its length.
        SizedValue = 1,
        /// The task panicked: [`crate::protocol::records::Panic`].
        Panicked = 2,
        /// The result's serializer failed; the text.
        Encode = 3,
        /// The result exceeds `max_payload`: size and limit.
        TooLarge = 4,
        /// The input's archive is not valid; the text.
        Decode = 5,
        /// The worker does not have the function; the text.
        UnknownTask = 6,
        /// Cancelled before it started.
        Skipped = 7,
        /// All items of a batch have been sent.
        BatchDone = 8,
        /// The worker could not get memory for the result; the text.
        Memory = 9,
        /// A batch was cancelled between two items: those that were done have been sent, the others have not started.
        BatchCut = 10,
    }
}

impl Status {
    /// Whether a request that is no batch may end with it.
    #[inline]
    pub(crate) fn is_single(self) -> bool {
        !matches!(self, Self::BatchDone | Self::BatchCut | Self::SizedValue)
    }
}

wire_enum! {
    /// How far a worker has come.
    WorkerState: u64 {
        /// Mapping its region, running `init`.
        Starting = 0,
        /// In `start_worker`, unwinding the inherited stack.
        Unwinding = 1,
        /// Serving requests.
        Ready = 2,
        /// `init` failed; the text says why. The worker leaves.
        Failed = 3,
        /// It has reached a limit, has sealed its claim word, and leaves in good order.
        Leaving = 4,
    }
}

wire_enum! {
    /// Why a worker leaves by its own decision.
    Parting: u64 {
        /// It has run as many tasks as it may.
        Tasks = 1,
        /// Its memory has grown by as much as it may.
        Memory = 2,
    }
}

impl std::fmt::Display for Parting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tasks => "it has run max_tasks_per_worker",
            Self::Memory => "it has grown by more than max_worker_memory",
        })
    }
}

wire_enum! {
    /// The master's standing order.
    Order: u64 {
        /// Serve.
        Run = 0,
        /// Leave once there is nothing to start.
        Exit = 1,
        /// To a worker that cannot be killed: nobody reads what it writes any more. Leave as soon as user code lets go.
        GivenUp = 2,
    }
}

wire_enum! {
    /// How a service call ended.
    AnswerKind: u64 {
        /// The archive of the answer.
        Value = 0,
        /// The handler panicked; the text.
        Panicked = 1,
        /// The request was not valid, or the answer could not be encoded; the text.
        Codec = 2,
        /// The pool is closing or has no handler; the text.
        Refused = 3,
    }
}

/// Whom a worker rings after it has published something. The upper bits count the arming, so that the worker rings
/// once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Somebody on the master's side is looking anyway, or nothing is expected.
    Nobody,
    /// The pool's driver.
    Driver,
    /// A thread that sleeps on this lane's own doorbell.
    Waiter,
}

impl Wake {
    /// A waiter may leave it at that many responses to be rung for; the others are rung for the first one.
    pub(crate) const LEAVE_MAX: u8 = 63;

    pub(crate) const fn word(self, epoch: u64, leave: u8) -> u64 {
        match self {
            Self::Nobody => 0,
            Self::Driver => epoch << 8 | 1,
            Self::Waiter => epoch << 8 | (leave as u64) << 2 | 2,
        }
    }

    /// How many responses may come first.
    pub(crate) const fn leave_of(word: u64) -> u8 {
        (word >> 2) as u8 & Self::LEAVE_MAX
    }

    pub(crate) const fn of(word: u64) -> Self {
        match word & 3 {
            1 => Self::Driver,
            2 => Self::Waiter,
            _ => Self::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_survives_in_a_byte_but_for_an_eighth() {
        assert_eq!(time_of_code(0), None);
        for ns in (3..62).flat_map(|bits| (0..8).map(move |part| (1_u64 << bits) + (part << bits >> 3))) {
            let back = time_of_code(time_code(ns)).unwrap();
            assert!(back.abs_diff(ns) <= ns / 8 + 1, "{ns} came back as {back}");
        }
        assert!(time_of_code(time_code(0)).is_some_and(|ns| ns < 8));
        assert!((0..=255).all(|code| code < 4 || time_of_code(code).is_some()));
        time_code(u64::MAX);
    }
}
