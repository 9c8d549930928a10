//! Models of the ownership word, its inbox and its keepers, on the word itself.
//!
//! Nodes are named by numbers in place of addresses. What is owned is plain memory, for which loom reports any two accesses
//! that are not ordered.

#![allow(unsafe_code, reason = "what the word guards, whose races loom looks for")]

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::{Grip, NODE_ALIGN, Ownership, ThreadNumber};

struct Node {
    link: AtomicUsize,
    parcel: UnsafeCell<Option<usize>>,
}

struct Station<const NODES: usize> {
    ownership: Ownership,
    /// Numbered from 1; 0 is no node.
    nodes: [Node; NODES],
    /// The parcels that the station has taken.
    inner: UnsafeCell<Vec<usize>>,
}

impl<const NODES: usize> Station<NODES> {
    fn new() -> Self {
        Self {
            ownership: Ownership::new(),
            nodes: std::array::from_fn(|_| Node { link: AtomicUsize::new(0), parcel: UnsafeCell::new(None) }),
            inner: UnsafeCell::new(Vec::new()),
        }
    }

    fn submit(&self, me: ThreadNumber, node: usize, keep: bool) {
        // SAFETY: loom ends the model if another thread may be at it.
        self.nodes[node - 1].parcel.with_mut(|parcel| unsafe { *parcel = Some(node) });
        let link = |next| self.nodes[node - 1].link.store(next, Ordering::Relaxed);
        if let Some(grip) = self.ownership.own_or_leave(me, node * NODE_ALIGN, link) {
            self.accept(node);
            self.let_go(grip, me, keep);
        }
    }

    fn accept(&self, node: usize) {
        // SAFETY: as above.
        let parcel = self.nodes[node - 1].parcel.with_mut(|parcel| unsafe { (*parcel).take() });
        // SAFETY: as above.
        self.inner.with_mut(|taken| unsafe { (*taken).extend(parcel) });
    }

    fn let_go(&self, grip: Grip, me: ThreadNumber, keep: bool) {
        while !self.ownership.try_let_go(grip, me, keep) {
            let mut next = self.ownership.take_inbox() / NODE_ALIGN;
            while next != 0 {
                let node = next;
                next = self.nodes[node - 1].link.load(Ordering::Relaxed) / NODE_ALIGN;
                self.accept(node);
            }
        }
    }

    /// Owns it for a moment, and touches what it guards.
    fn visit(&self, me: ThreadNumber, keep: bool) {
        let grip = self.ownership.own(me);
        // SAFETY: as above.
        self.inner.with_mut(|taken| unsafe { (*taken).reserve(1) });
        self.let_go(grip, me, keep);
    }

    /// After all have ended: it can be owned, and every node was taken once.
    fn assert_settled(&self) {
        let grip = self.ownership.try_own(ThreadNumber::new(3));
        assert!(grip.is_some(), "it is not free");
        // SAFETY: as above.
        let mut taken = self.inner.with(|taken| unsafe { (*taken).clone() });
        taken.sort_unstable();
        assert_eq!(taken, (1..=NODES).collect::<Vec<_>>());
    }
}

type Actor<const NODES: usize> = fn(&Station<NODES>, ThreadNumber);

/// Runs `actors` at once, each on a thread of its own.
fn race<const NODES: usize>(preemptions: usize, actors: &'static [Actor<NODES>]) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    // Whoever waits, waits in a loop.
    builder.max_branches = 20_000;
    builder.check(move || {
        let station = Arc::new(Station::new());
        let threads: Vec<_> = actors
            .iter()
            .enumerate()
            .map(|(number, actor)| {
                let station = station.clone();
                thread::spawn(move || actor(&station, ThreadNumber::new(number)))
            })
            .collect();
        for thread in threads {
            thread.join().expect("the actor ends");
        }
        station.assert_settled();
    });
}

#[test]
fn no_node_is_left_behind_in_a_free_word() {
    race::<3>(
        3,
        &[
            |station, me| {
                station.submit(me, 1, false);
                station.submit(me, 2, false);
            },
            |station, me| station.submit(me, 3, false),
        ],
    );
}

#[test]
fn three_submitters_lose_nothing() {
    race::<3>(
        2,
        &[
            |station, me| station.submit(me, 1, false),
            |station, me| station.submit(me, 2, false),
            |station, me| station.submit(me, 3, false),
        ],
    );
}

#[test]
fn one_who_waits_gets_it_and_disturbs_no_submitter() {
    race::<2>(
        2,
        &[
            |station, me| station.submit(me, 1, false),
            |station, me| station.submit(me, 2, false),
            |station, me| station.visit(me, false),
        ],
    );
}

#[test]
fn a_keeper_and_who_revokes_it_are_never_both_inside() {
    race::<3>(
        3,
        &[
            |station, me| {
                station.submit(me, 1, true);
                station.submit(me, 2, true);
            },
            |station, me| station.submit(me, 3, false),
        ],
    );
}

#[test]
fn two_keepers_take_it_from_each_other() {
    race::<2>(
        3,
        &[
            |station, me| {
                station.submit(me, 1, true);
                station.visit(me, true);
            },
            |station, me| {
                station.submit(me, 2, true);
                station.visit(me, true);
            },
        ],
    );
}

#[test]
fn a_late_keeper_does_not_disturb_its_successor() {
    race::<1>(
        1,
        &[
            |station, me| {
                station.visit(me, true);
                station.visit(me, true);
            },
            |station, me| {
                station.visit(me, true);
                station.visit(me, true);
            },
            |station, me| station.submit(me, 1, false),
        ],
    );
}
