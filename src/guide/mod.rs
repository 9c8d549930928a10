//! How to use forkring, by question. Everything here is compiled and run by the tests.
//!
//! | | |
//! |---|---|
//! | [choosing] | which of the many forms of `submit` and `map`; what a task function may be |
//! | [granularity] | how many items share a message, and what that costs and gains |
//! | [data] | what workers have: environment, state, service; when a worker starts and leaves |
//! | [failures] | panics, crashes, time-outs, retries; what to do about which error |
//! | [servers] | async code: deadlines, overload, streams, shutting down |
//! | [c_libraries] | calling code that crashes, leaks or is not thread-safe; keeping the inputs that killed it |
//! | [memory] | what a pool costs, and every limit that can be set |
//! | [forking] | what a fork does to threads, random numbers, connections and GPUs |
//! | [from_nproc], [from_python], [from_rayon] | the same program there and here |

#[doc = include_str!("choosing.md")]
pub mod choosing {}

#[doc = include_str!("granularity.md")]
pub mod granularity {}

#[doc = include_str!("data.md")]
pub mod data {}

#[doc = include_str!("failures.md")]
pub mod failures {}

#[doc = include_str!("servers.md")]
pub mod servers {}

#[doc = include_str!("c_libraries.md")]
pub mod c_libraries {}

#[doc = include_str!("memory.md")]
pub mod memory {}

#[doc = include_str!("forking.md")]
pub mod forking {}

#[doc = include_str!("from_nproc.md")]
pub mod from_nproc {}

#[doc = include_str!("from_python.md")]
pub mod from_python {}

#[doc = include_str!("from_rayon.md")]
pub mod from_rayon {}
