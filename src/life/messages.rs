//! What the master and the zygote say to each other: six words a message, descriptors beside them.

use crate::ground::sys::process::ExitStatus;

const WORDS: usize = 6;
pub(crate) const MESSAGE_BYTES: usize = 8 * WORDS;

/// Which process of which station is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) station: usize,
    pub(crate) generation: u64,
}

/// From the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Fork a worker. With it: both sides of its region, and what it rings a waiting thread with.
    Spawn(Who),
    /// Kill and reap all workers, and leave.
    Terminate,
}

/// From the zygote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// A worker was forked. With it: its pidfd.
    Spawned { who: Who, pid: u32 },
    /// A worker could not be forked: the error number.
    Refused { who: Who, errno: i32 },
    /// A worker ended and was reaped; the most memory it ever had resident, and whether its addresses were limited.
    Ended { who: Who, pid: u32, status: ExitStatus, max_rss_kib: u64, limited: bool },
}

fn pack(words: [u64; WORDS]) -> [u8; MESSAGE_BYTES] {
    let mut bytes = [0; MESSAGE_BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn unpack(bytes: &[u8]) -> Option<[u64; WORDS]> {
    let bytes: &[u8; MESSAGE_BYTES] = bytes.try_into().ok()?;
    let mut words = [0; WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(chunk.try_into().ok()?);
    }
    Some(words)
}

impl Order {
    pub(crate) fn to_bytes(self) -> [u8; MESSAGE_BYTES] {
        match self {
            Self::Spawn(who) => pack([1, who.station as u64, who.generation, 0, 0, 0]),
            Self::Terminate => pack([2, 0, 0, 0, 0, 0]),
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match unpack(bytes)? {
            [1, station, generation, ..] => Some(Self::Spawn(Who { station: station as usize, generation })),
            [2, ..] => Some(Self::Terminate),
            _ => None,
        }
    }
}

impl Report {
    pub(crate) fn to_bytes(self) -> [u8; MESSAGE_BYTES] {
        let (kind, who, rest) = match self {
            Self::Spawned { who, pid } => (1, who, [u64::from(pid), 0, 0]),
            Self::Refused { who, errno } => (2, who, [errno as u64, 0, 0]),
            Self::Ended { who, pid, status, max_rss_kib, limited } => {
                let (kind, number) = match status {
                    ExitStatus::Exited(code) => (3, code),
                    ExitStatus::Signaled(signal, core) => (4 + u64::from(core), signal),
                };
                let number = u64::from(number as u32) | u64::from(limited) << 32;
                (kind, who, [u64::from(pid), max_rss_kib, number])
            }
        };
        pack([kind, who.station as u64, who.generation, rest[0], rest[1], rest[2]])
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let [kind, station, generation, a, b, c] = unpack(bytes)?;
        let who = Who { station: usize::try_from(station).ok()?, generation };
        let limited = c >> 32 != 0;
        let ended = |status| Self::Ended { who, pid: a as u32, status, max_rss_kib: b, limited };
        Some(match kind {
            1 => Self::Spawned { who, pid: a as u32 },
            2 => Self::Refused { who, errno: a as i32 },
            3 => ended(ExitStatus::Exited(c as i32)),
            4 | 5 => ended(ExitStatus::Signaled(c as i32, kind == 5)),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive() {
        let who = Who { station: 3, generation: u64::MAX };
        for order in [Order::Spawn(who), Order::Terminate] {
            assert_eq!(Order::from_bytes(&order.to_bytes()), Some(order));
        }
        for report in [
            Report::Spawned { who, pid: 7 },
            Report::Refused { who, errno: 11 },
            Report::Ended {
                who,
                pid: 7,
                status: ExitStatus::Exited(99),
                max_rss_kib: 1 << 40,
                limited: true,
            },
            Report::Ended {
                who,
                pid: 7,
                status: ExitStatus::Signaled(11, true),
                max_rss_kib: 5,
                limited: false,
            },
            Report::Ended {
                who,
                pid: 7,
                status: ExitStatus::Signaled(9, false),
                max_rss_kib: 0,
                limited: true,
            },
        ] {
            assert_eq!(Report::from_bytes(&report.to_bytes()), Some(report));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(Order::from_bytes(&[0; MESSAGE_BYTES]), None);
        assert_eq!(Report::from_bytes(&[9; MESSAGE_BYTES]), None);
        assert_eq!(Report::from_bytes(&[1; 3]), None);
    }
}
