//! Streams: a function applied to many items, in batches, with a bounded window.
//!
//! [`Map`] is the iterator that users see, [`MapStream`] its counterpart for async code, [`TryMap`] the one over a source that may
//! fail; [`engine`] keeps the window of batches, [`auto`] says how large they are, [`records`] collects their results, [`results`]
//! has those that wait to go out, [`stop`] ends a stream before its source does, [`progress`] tells how far it is.

mod auto;
#[cfg(feature = "indicatif")]
mod bar;
mod engine;
mod map;
mod map_stream;
mod progress;
mod records;
mod results;
mod stop;
mod try_map;

use std::time::Duration;

#[cfg(feature = "indicatif")]
pub use bar::progress_bar;
pub use map::{Indexed, Map};
pub use map_stream::{IndexedStream, MapStream};
pub use progress::{Metered, Progress, Watch};
pub use stop::{Flow, Stopper};
pub use try_map::{TryIndexed, TryMap};

/// How many items of a stream share one message.
///
/// Whatever it is, every item has its own outcome: a panic fails one item, and the death of a worker fails the item
/// that was running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Granularity {
    /// This many. 0 is an error.
    Fixed(usize),
    /// As many as pay: the stream finds out while it runs.
    ///
    /// Workers say how long their messages took, and a message is made to carry about twenty times the work that it
    /// costs itself: that of 10 µs to 1 ms. A stream begins with one item a message and at most doubles that with each
    /// answer. It goes down when items take longer: at once, or after two such messages if it is a matter of less than
    /// 10 ms. It divides the end of a source whose `size_hint` is exact among the workers. Items that take longer than
    /// a message should, or are large, travel alone. Nothing is carried over from one stream to the next.
    ///
    /// A message that a slow source does not fill is sent after about a millisecond, or after 64 more items where the source
    /// becomes slow in the middle of it, when its next item comes. Until then a source that blocks keeps back the items of that
    /// one message: where each has to leave at once, take `Fixed(1)`, or an asynchronous source.
    ///
    /// If an item of a message turns out to be slow while another worker has nothing to do, the items behind it are
    /// taken back, after 2 to 4 ms, and run there. The caller does that when it waits for results or polls; a caller
    /// that is busy elsewhere does so when it comes back.
    #[default]
    Auto,
}

/// What a stream has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamSummary {
    /// Items taken from the source.
    pub items: u64,
    /// Items that gave a result.
    pub ok: u64,
    /// Items that ended with an error. After a [`ControlFlow::Break`](std::ops::ControlFlow::Break) some of the items
    /// have no outcome.
    pub failed: u64,
    /// Messages sent to workers.
    pub batches: u64,
    /// From the first pull to the last result.
    pub elapsed: Duration,
    /// Whether the stream was stopped, or its source had more items when the pool closed, ended or failed, of which the first one
    /// counts as failed.
    pub stopped: bool,
}
