//! Shared memory: what lies where in a worker's region, who writes it, and how values become bytes.

pub(crate) mod arena;
pub(crate) mod codec;
pub(crate) mod copy;
pub(crate) mod layout;
pub(crate) mod region;
