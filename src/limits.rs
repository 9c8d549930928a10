//! All limits in one place.

use std::time::Duration;

use crate::error::Error;
use crate::launch::Plan;
use crate::life::recycling::Recycling;
use crate::stream::Granularity;

/// Workers of one pool.
pub(crate) const WORKERS_MAX: usize = 4096;
/// Bytes of one payload.
pub(crate) const MAX_PAYLOAD_DEFAULT: usize = 4 << 30;
/// The most that `max_payload` may be: sizes and positions stay far from overflow.
pub(crate) const MAX_PAYLOAD_MAX: usize = 1 << 46;
/// Until a worker must be ready.
pub(crate) const INIT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// Items in one message.
pub(crate) const GRANULARITY_MAX: usize = 1 << 24;

pub(crate) fn check_workers(workers: usize) -> Result<(), Error> {
    match workers {
        0 => Err(Error::new("a pool needs at least one worker; leave Builder::workers out for one a core")),
        n if n > WORKERS_MAX => Err(Error::new(format!(
            "{n} workers are too many; the limit is {WORKERS_MAX}, and more than cores seldom help"
        ))),
        _ => Ok(()),
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    if name.contains('\0') {
        return Err(Error::new(format!(
            "the name {name:?} has a zero byte, which no thread's name may have"
        )));
    }
    Ok(())
}

pub(crate) fn check_max_payload(bytes: usize) -> Result<(), Error> {
    if bytes > MAX_PAYLOAD_MAX {
        return Err(Error::new(format!("max_payload is {bytes} bytes; the limit is {MAX_PAYLOAD_MAX}")));
    }
    Ok(())
}

pub(crate) fn check_init_timeout(limit: Duration) -> Result<(), Error> {
    if limit.is_zero() {
        return Err(Error::new(
            "an init_timeout of 0 leaves a worker no time to start; Duration::MAX is no limit",
        ));
    }
    Ok(())
}

pub(crate) fn check_recycling(recycling: &Recycling) -> Result<(), Error> {
    if recycling.max_tasks == Some(0) {
        return Err(Error::new("max_tasks_per_worker of 0 leaves no worker to run anything; use 1 or more"));
    }
    if recycling.max_growth_bytes == Some(0) {
        return Err(Error::new(
            "max_worker_memory of 0 bytes would replace a worker after every task; max_tasks_per_worker(1) does just that",
        ));
    }
    Ok(())
}

/// What cannot be had from threads, and would be missed.
pub(crate) fn check_in_process(plan: &Plan) -> Result<(), Error> {
    let refused = [
        (
            !plan.setup.env.is_empty(),
            "worker_env",
            "set the variable for the whole program before it starts threads",
        ),
        (
            plan.setup.address_space_bytes.is_some(),
            "max_address_space",
            "limit the program instead, with ulimit -v",
        ),
        (plan.recycling.max_growth_bytes.is_some(), "max_worker_memory", "use max_tasks_per_worker"),
    ];
    match refused.into_iter().find(|(is_set, ..)| *is_set) {
        Some((_, option, way_out)) => Err(Error::new(format!(
            "Builder::{option} needs workers that are processes, and Builder::in_process makes them threads; leave it \
             out there, or {way_out}"
        ))),
        None => Ok(()),
    }
}

pub(crate) fn check_granularity(granularity: Granularity) -> Result<(), Error> {
    match granularity {
        Granularity::Fixed(0) => {
            Err(Error::new("a granularity of 0 would send empty messages for ever; use 1 or more"))
        }
        Granularity::Fixed(n) if n > GRANULARITY_MAX => {
            Err(Error::new(format!("a granularity of {n} is too large; the limit is {GRANULARITY_MAX}")))
        }
        Granularity::Fixed(_) | Granularity::Auto => Ok(()),
    }
}
