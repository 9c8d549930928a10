//! Kill anywhere: a process of the pool's dies at each kill point of `src/faults.rs`, and what DESIGN.md promises about
//! deaths is checked: D-11, for every step of the protocol.
//!
//! `RUSTFLAGS="--cfg forkring_faults" cargo test --test faults`

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[cfg(not(forkring_faults))]
#[test]
#[ignore = "the kill points are there with RUSTFLAGS=\"--cfg forkring_faults\" only"]
fn kill_points() {}

#[cfg(forkring_faults)]
#[path = "../acceptance/support.rs"]
#[allow(dead_code, reason = "the harness serves another target too")]
mod support;

#[cfg(forkring_faults)]
mod load;
#[cfg(forkring_faults)]
mod scribble;
#[cfg(forkring_faults)]
mod worker;
#[cfg(forkring_faults)]
mod zygote;

/// One test a point, named after it, and their list.
#[cfg(forkring_faults)]
macro_rules! kill_points {
    ($($(#[$attribute:meta])* $name:ident => $run:ident($point:ident $(, $argument:expr)*);)+) => {
        pub(crate) const TESTED: &[Point] = &[$(Point::$point),+];
        $(
            $(#[$attribute])*
            #[test]
            fn $name() {
                scenario(|| $run(Point::$point $(, $argument)*));
            }
        )+
    };
}
#[cfg(forkring_faults)]
use kill_points;

#[cfg(forkring_faults)]
#[test]
fn every_point_has_its_test() {
    for point in forkring::faults::POINTS {
        let tests = worker::TESTED.iter().chain(zygote::TESTED).filter(|tested| *tested == point).count();
        assert!(tests > 0, "nothing dies at {point:?}");
    }
}
