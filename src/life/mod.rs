//! The lives of tasks, workers and pools: who waits for what, and what happens when something ends.
//!
//! In the master: [`job`] (a task's cell), [`station`] (one worker's place in the pool), [`core`] (what all handles of
//! a pool share), [`line`] (who waits with a waker), [`gate`] (room for tasks), [`dispatch`], [`wait`], [`driver`], [`verdict`] (ending workers on purpose),
//! [`end`], [`crashers`] (inputs that are kept), [`oom`], [`service`], [`tally`] (what there was), [`meter`] (how long it took), [`journal`] and
//! [`trace`] (which say so). In other processes: [`zygote`], [`worker`]. In both: [`recycling`], [`setup`].
//! Where workers are threads of the master: [`crew`] in the place of the zygote.

pub(crate) mod core;
pub(crate) mod crashers;
pub(crate) mod crew;
pub(crate) mod dispatch;
pub(crate) mod driver;
pub(crate) mod end;
pub(crate) mod events;
pub(crate) mod gate;
pub(crate) mod job;
pub(crate) mod journal;
mod line;
pub(crate) mod messages;
pub(crate) mod meter;
pub(crate) mod oom;
#[cfg(feature = "metrics")]
pub(crate) mod publish;
pub(crate) mod recycling;
pub(crate) mod registry;
pub(crate) mod seed;
pub(crate) mod service;
pub(crate) mod setup;
pub(crate) mod slab;
pub(crate) mod station;
pub(crate) mod tally;
pub(crate) mod terms;
pub(crate) mod threads;
pub(crate) mod timers;
pub(crate) mod trace;
pub(crate) mod verdict;
pub(crate) mod wait;
pub(crate) mod worker;
pub(crate) mod zygote;
