//! Streams: a function applied to many items, in batches, with a bounded window.
//!
//! [`Map`] is the iterator that users see; [`engine`] keeps the window of batches, [`records`] collects their results.

mod engine;
mod map;
mod records;

use std::time::Duration;

pub use map::{Indexed, Map};

/// How many items of a stream share one message.
///
/// Whatever it is, every item has its own outcome: a panic fails one item, and the death of a worker fails the item
/// that was running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Granularity {
    /// This many. 0 is an error.
    Fixed(usize),
}

/// What a stream that ran to its end has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamSummary {
    /// Items taken from the source.
    pub items: u64,
    /// Items that gave a result.
    pub ok: u64,
    /// Items that ended with an error.
    pub failed: u64,
    /// Messages sent to workers.
    pub batches: u64,
    /// From the first pull to the last result.
    pub elapsed: Duration,
    /// Whether the stream was stopped before its source ended.
    pub stopped: bool,
}
