//! What everything stands on: slots and counters that two sides share, doorbells, and the operating system.
//!
//! Nothing in here knows where its words live. The rings and the claim word run on the heap in unit tests and
//! under loom exactly as they run in shared memory.

pub(crate) mod barrier;
pub(crate) mod claim;
pub(crate) mod doorbell;
pub(crate) mod monitor;
pub(crate) mod ownership;
pub(crate) mod prefetch;
pub(crate) mod ring;
pub(crate) mod spin;
pub(crate) mod sys;
