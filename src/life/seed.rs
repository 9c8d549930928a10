//! What a worker is made from: the user's closures and environment, moved out of reach before the fork.
//!
//! The seed is leaked before the zygote is forked, so that no value of ours whose `Drop` acts outside the process
//! stands on `build()`'s stack, which a worker may unwind. The master takes its copy back afterwards and drops it.
//!
//! Workers that are threads share one seed with each other: see [`SharedSeed`].

#![allow(unsafe_code, reason = "a seed whose parts may be shared, by their builder's bounds")]

use std::any::Any;

use super::recycling::Recycling;
use super::setup::Checked;
use crate::context::WorkerInfo;
use crate::error::BoxError;
use crate::ground::spin::SpinBudget;
use crate::ground::sys::objects::Objects;

pub(crate) type Init = Box<dyn Fn(&WorkerInfo) -> Result<(), BoxError>>;
pub(crate) type OnExit = Box<dyn Fn(&WorkerInfo)>;
pub(crate) type MakeState = Box<dyn Fn(&WorkerInfo, &dyn Any) -> Result<Box<dyn Any>, BoxError>>;

/// The function that a pool was made around, where it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BoundFn(pub(crate) *const ());

/// See the module's documentation.
pub(crate) struct Seed {
    pub(crate) name: String,
    pub(crate) env: Box<dyn Any>,
    pub(crate) init: Option<Init>,
    pub(crate) state: Option<MakeState>,
    pub(crate) on_exit: Option<OnExit>,
    /// Keeps what `bound` points to, where the pool owns it.
    pub(crate) _bound_owner: Option<Box<dyn Any>>,
    pub(crate) bound: Option<BoundFn>,
    /// Whether `start_worker` may unwind the stack: not where closures may borrow from it.
    pub(crate) may_unwind: bool,
    /// Whether a `StartWorker::catch` was active where the pool was built.
    pub(crate) is_caught: bool,
    pub(crate) objects: Objects,
    pub(crate) max_payload: usize,
    pub(crate) spin: SpinBudget,
    pub(crate) close_inherited_fds: bool,
    pub(crate) recycling: Recycling,
    pub(crate) setup: Checked,
    /// Whether workers stamp requests.
    pub(crate) is_timed: bool,
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seed").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A seed for workers that are threads of this process.
///
/// * SEED-1: `env`, `init`, `state`, `on_exit` and what `bound` points to are `Send` and `Sync`, except that what is bound
///   without an owner needs to be `Sync` only, since it is not dropped here.
#[derive(Debug)]
pub(crate) struct SharedSeed(Seed);

// SAFETY: SEED-1; the other parts are plain data.
unsafe impl Send for SharedSeed {}
// SAFETY: as above.
unsafe impl Sync for SharedSeed {}

impl SharedSeed {
    /// # Safety
    ///
    /// SEED-1.
    pub(crate) unsafe fn new(seed: Seed) -> Self {
        Self(seed)
    }

    pub(crate) fn get(&self) -> &Seed {
        &self.0
    }
}
