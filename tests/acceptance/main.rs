//! Acceptance cases: each is a scenario that runs in a process of its own, by re-executing this binary.
//!
//! `fork` and the threads of a test harness do not mix, and what a pool leaves behind can be seen only from outside of
//! its process. [`support::scenario`] does both: it isolates and it looks afterwards.
//!
//! [`support::both`] runs a scenario twice, with workers that are processes and with workers that are threads. What
//! stays with processes is about one of these, and threads have nothing like it:
//!
//! | what | where |
//! |---|---|
//! | a worker's death: a signal, an exit code, an abort, an overflow of the stack; a loss, its retries, its replacement | `crashes`, `chaos`, `signals`, and single scenarios of nearly every module |
//! | `fork`: what is inherited, and what handles are in a fork; the zygote | `fork_safety`, `host`, `start_worker`, `shutdown` (M-06), M-02 |
//! | a process as such: its number, SIGSTOP, descriptors, zombies, limits, group, memory of its own, private or counted | `hygiene`, `lifecycle`, `recycling` (A-11, A-14, I-03, I-09, M-11), `limits` (D-14, E-21), `payloads` (K-04, K-08, K-09), `closing` (G-13) |
//! | the end of the program, which takes its threads along | `shutdown` (a master that is killed) |
//! | what only a copy may be: an environment or a closure that is not `Sync`, statics that differ | `lifecycle` (A-05, the environment's), `streams` (F-05), `payloads` (M-12) |
//! | buffers of output that two processes have | `output` |
//! | M-09, K-03: 14 GiB, once | `payloads` |
//!
//! Scenarios on both leave out the steps in which a worker dies where there are threads. `in_process` is about what threads do instead.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod lifecycle;
mod results;
mod shutdown;
mod submit;
mod types;

mod async_streams;
mod bound;
mod chaos;
mod closing;
mod combinations;
mod crashers;
mod crashes;
mod design;
mod events;
mod fences;
mod fork_safety;
mod granularity;
mod host;
mod hygiene;
mod in_process;
mod limits;
#[cfg(feature = "metrics")]
mod metrics;
mod misuse;
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
mod wakers;
