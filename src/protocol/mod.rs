//! How the two sides of a lane talk: the messages, the order of the words, and what is checked.
//!
//! [`lane`] is the master's end, [`port`] the worker's; [`wire`] says what the words mean, [`code`] how a task's
//! function is named, [`records`] how the items of a batch come back.

pub(crate) mod code;
#[cfg(any(test, forkring_faults))]
pub(crate) mod hostile;
pub(crate) mod lane;
pub(crate) mod port;
pub(crate) mod records;
pub(crate) mod wire;

#[cfg(all(test, forkring_loom))]
mod loom;
