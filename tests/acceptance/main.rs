//! Acceptance cases: each is a scenario that runs in a process of its own, by re-executing this binary.
//!
//! `fork` and the threads of a test harness do not mix, and what a pool leaves behind can be seen only from outside of
//! its process. [`support::scenario`] does both: it isolates and it looks afterwards.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod lifecycle;
mod results;
mod shutdown;
mod submit;
mod types;

mod async_streams;
mod chaos;
mod closing;
mod combinations;
mod crashers;
mod crashes;
mod design;
mod events;
mod fork_safety;
mod granularity;
mod host;
mod hygiene;
mod in_process;
mod limits;
#[cfg(feature = "metrics")]
mod metrics;
mod output;
mod overload;
mod payloads;
mod recording;
mod recycling;
mod services;
mod signals;
mod start_worker;
mod stats;
mod stream_control;
mod streams;
mod timings;
#[cfg(feature = "tracing")]
mod tracing;
mod waits;
