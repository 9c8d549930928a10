//! Models of the edges between lane and port.
//!
//! Words and barriers are the real ones ([`Slot`], [`ClaimWord`], [`OutWords`], [`barrier`], which fences on both
//! sides here). What `Lane` and `Port` do with them is repeated step by step, since a region is mapped memory and
//! loom's atomics are not.
//!
//! loom knows `fence(SeqCst)` but takes SeqCst accesses for AcqRel ones. So where the worker relies on its claim, a
//! compare-and-swap, to be a full barrier, a fence follows it here.
//!
//! A lost wake-up shows as a deadlock, which loom reports: nobody sleeps with a time limit.

#![allow(unsafe_code, reason = "bytes of an arena, whose races loom looks for")]

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::{Arc, Mutex, Notify};
use loom::thread;

use crate::ground::barrier;
use crate::ground::claim::{Claim, ClaimWord};
use crate::ground::ring::{Head, Slot};
use crate::memory::layout::OutWords;
use crate::protocol::wire::{CANCELLED, SHORTENED, Wake};
use crate::sync::{AtomicU64, Ordering, fence};

const HEAD: Head = Head::new(1, 0);

/// Runs a model with at most this many preemptions, which are the places where a thread could have gone on.
fn model_with_preemptions(bound: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(model);
}

/// A doorbell: it keeps a ring that nobody waits for, and its sleeper may wake up for nothing.
type Bell = Notify;

/// The words of a few messages.
fn slots<const N: usize>() -> [Slot<1>; N] {
    std::array::from_fn(|_| Slot::new())
}

fn mark(slot: &Slot<1>, index: u64) {
    mark_with(slot, index, CANCELLED);
}

fn mark_with(slot: &Slot<1>, index: u64, flag: u16) {
    if let Some(head) = slot.poll(index) {
        slot.publish(index, Head { extra: head.extra | flag, ..head });
    }
}

fn is_marked(slot: &Slot<1>, index: u64) -> bool {
    is_marked_with(slot, index, CANCELLED)
}

fn is_marked_with(slot: &Slot<1>, index: u64, flags: u16) -> bool {
    slot.poll(index).is_some_and(|head| head.extra & flags != 0)
}

/// Edge CANCEL: `Lane::cancel` and `Port::open`.
#[test]
fn a_cancelled_request_is_skipped_or_had_started() {
    loom::model(|| {
        let shared = Arc::new((ClaimWord::new(), Slot::<1>::new()));
        shared.1.publish(0, HEAD);
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                let (claims, slot) = &*shared;
                assert_eq!(claims.claim(0), Claim::Won);
                // The claim is the barrier.
                fence(Ordering::SeqCst);
                is_marked(slot, 0)
            }
        });
        let (claims, slot) = &*shared;
        mark(slot, 0);
        fence(Ordering::SeqCst);
        let had_started = claims.load().count > 0;
        let skipped = worker.join().expect("the worker ends");
        assert!(had_started || skipped, "the master gave up a task that ran");
    });
}

/// A request that is cancelled and taken back at once: `Lane::cancel`, then `Lane::take_back`.
#[test]
fn a_cancelled_request_that_is_taken_back_never_starts() {
    loom::model(|| {
        let shared = Arc::new((ClaimWord::new(), Slot::<1>::new()));
        shared.1.publish(0, HEAD);
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                let (claims, slot) = &*shared;
                let won = claims.claim(0) == Claim::Won;
                fence(Ordering::SeqCst);
                won && !is_marked(slot, 0)
            }
        });
        let (claims, slot) = &*shared;
        mark(slot, 0);
        fence(Ordering::SeqCst);
        let given_up = claims.load().count == 0;
        let taken = !claims.take_back(1, 1).is_empty();
        let started = worker.join().expect("the worker ends");
        assert!(!(started && (given_up || taken)));
    });
}

/// The worker's side of edge BELL: `Port::next_request` without its spinning.
fn serve(requests: &[Slot<1>], sleeping: &AtomicU64, bell: &Bell) {
    let mut naps = 0;
    for (index, slot) in (0..).zip(requests) {
        while slot.poll(index).is_none() {
            naps += 1;
            sleeping.store(2 * naps - 1, Ordering::Relaxed);
            barrier::heavy();
            if slot.poll(index).is_none() {
                bell.wait();
            }
            sleeping.store(2 * naps, Ordering::Relaxed);
        }
    }
}

/// Edge BELL: `Lane::push`, `Lane::ring_if_asleep` and `Port::sleep_until`.
#[test]
fn a_worker_that_falls_asleep_is_rung_for_every_request() {
    model_with_preemptions(4, || {
        let shared = Arc::new((slots::<2>(), AtomicU64::new(0), Bell::new()));
        let worker = thread::spawn({
            let shared = shared.clone();
            move || serve(&shared.0, &shared.1, &shared.2)
        });
        let (requests, sleeping, bell) = &*shared;
        let mut rung_nap = 0;
        for (index, slot) in (0..).zip(requests) {
            slot.publish(index, HEAD);
            barrier::light();
            let nap = sleeping.load(Ordering::Relaxed);
            if nap % 2 == 1 && nap != rung_nap {
                rung_nap = nap;
                bell.notify();
            }
        }
        worker.join().expect("the worker ends");
    });
}

/// Edge TOLD: `Port::foretell_nap`, `Port::ring` and `Port::sleep_until`; `Lane::ring_if_asleep` behind a request, and in `Lane::poll`
/// behind a response. The second request comes at any time, from before the nap to after the first response. The worker has no fence
/// behind the flag; a second nap is as any other.
#[test]
fn a_worker_that_tells_of_its_nap_is_rung_for_what_is_in_flight() {
    model_with_preemptions(4, || {
        let words = [AtomicU64::new(0), AtomicU64::new(0)];
        let shared = Arc::new((slots::<2>(), slots::<2>(), words, [Bell::new(), Bell::new()]));
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                let (requests, responses, [sleeping, wake], [bell, master]) = &*shared;
                while requests[0].poll(0).is_none() {
                    thread::yield_now();
                }
                let tells = wake.load(Ordering::Relaxed) != 0 && requests[1].poll(1).is_none();
                if tells {
                    sleeping.store(1, Ordering::Relaxed);
                }
                responses[0].publish(0, HEAD);
                // It was armed before the request, so there is no need of a fence (see below).
                let mut rung = wake.load(Ordering::Relaxed);
                master.notify();
                if tells && requests[1].poll(1).is_none() {
                    bell.wait();
                }
                sleeping.store(2, Ordering::Relaxed);
                // It may have been rung for the first request once more.
                for nap in 2.. {
                    if requests[1].poll(1).is_some() {
                        break;
                    }
                    sleeping.store(2 * nap - 1, Ordering::Relaxed);
                    barrier::heavy();
                    if requests[1].poll(1).is_none() {
                        bell.wait();
                    }
                    sleeping.store(2 * nap, Ordering::Relaxed);
                }
                responses[1].publish(1, HEAD);
                notify(wake, &mut rung, master);
            }
        });
        let (requests, responses, [sleeping, wake], [bell, master]) = &*shared;
        let mut rung_nap = 0;
        let mut ring_if_asleep = || {
            barrier::light();
            let nap = sleeping.load(Ordering::Relaxed);
            if nap % 2 == 1 && std::mem::replace(&mut rung_nap, nap) != nap {
                bell.notify();
            }
        };
        wake.store(Wake::Waiter.word(1, 0), Ordering::Release);
        requests[0].publish(0, HEAD);
        ring_if_asleep();
        requests[1].publish(1, HEAD);
        ring_if_asleep();
        while responses[0].poll(0).is_none() {
            master.wait();
        }
        ring_if_asleep();
        for epoch in 2.. {
            wake.store(Wake::Waiter.word(epoch, 0), Ordering::Release);
            barrier::heavy();
            if responses[1].poll(1).is_some() {
                break;
            }
            master.wait();
        }
        worker.join().expect("the worker ends");
    });
}

/// The worker's side of edge SLEEP: `Port::notify`.
fn notify(wake: &AtomicU64, rung: &mut u64, bell: &Bell) {
    barrier::light();
    let word = wake.load(Ordering::Relaxed);
    if word != *rung {
        *rung = word;
        if Wake::of(word) == Wake::Waiter {
            bell.notify();
        }
    }
}

/// Edge SLEEP: `Port::notify`, `Lane::arm` and `Lane::fence_and_ready`.
#[test]
fn a_master_that_falls_asleep_is_rung_for_every_arming() {
    model_with_preemptions(4, || {
        let shared = Arc::new((slots::<2>(), AtomicU64::new(0), Bell::new()));
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                let (responses, wake, bell) = &*shared;
                let mut rung = 0;
                for (index, slot) in (0..).zip(responses) {
                    slot.publish(index, HEAD);
                    notify(wake, &mut rung, bell);
                }
            }
        });
        let (responses, wake, bell) = &*shared;
        let mut epoch = 0;
        let mut arm = |whom: Wake| {
            epoch += 1;
            wake.store(whom.word(epoch, 0), Ordering::Release);
        };
        for (index, slot) in (0..).zip(responses) {
            while slot.poll(index).is_none() {
                arm(Wake::Waiter);
                barrier::heavy();
                if slot.poll(index).is_none() {
                    bell.wait();
                }
                arm(Wake::Nobody);
            }
        }
        worker.join().expect("the worker ends");
    });
}

/// `Lane::arm` before the first request: the response cannot come before it, so there is neither a fence nor a second
/// look.
#[test]
fn a_lane_that_is_armed_before_it_is_used_needs_no_second_look() {
    loom::model(|| {
        let shared = Arc::new((slots::<2>(), AtomicU64::new(0), Bell::new()));
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                let ([request, response], wake, bell) = &*shared;
                while request.poll(0).is_none() {
                    thread::yield_now();
                }
                response.publish(0, HEAD);
                notify(wake, &mut 0, bell);
            }
        });
        let ([request, response], wake, bell) = &*shared;
        wake.store(Wake::Waiter.word(1, 0), Ordering::Release);
        request.publish(0, HEAD);
        loop {
            bell.wait();
            if response.poll(0).is_some() {
                break;
            }
        }
        worker.join().expect("the worker ends");
    });
}

/// `Owned::arm_seat`: whoever sits down takes over what was armed for the driver, without a fence. A response that does not
/// see him rings the driver, who owns the station afterwards and calls him (STATION-3, STATION-4).
#[test]
fn a_seat_that_takes_over_from_the_driver_needs_no_second_look() {
    model_with_preemptions(2, || {
        // Responses, the wake word, the bells of driver and seat, and what a station's owner may touch.
        let shared = Arc::new((
            slots::<2>(),
            AtomicU64::new(Wake::Driver.word(1, 0)),
            [Bell::new(), Bell::new()],
            Mutex::new(Armed { whom: Wake::Driver, epoch: 1, seat: false, over: false }),
        ));
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                let (responses, wake, [driver, seat], _) = &*shared;
                let mut rung = 0;
                for (index, slot) in (0..).zip(responses) {
                    slot.publish(index, HEAD);
                    barrier::light();
                    let word = wake.load(Ordering::Relaxed);
                    if std::mem::replace(&mut rung, word) != word {
                        match Wake::of(word) {
                            Wake::Driver => driver.notify(),
                            Wake::Waiter => seat.notify(),
                            Wake::Nobody => {}
                        }
                    }
                }
            }
        });
        let pool = thread::spawn({
            let shared = shared.clone();
            move || {
                let (responses, wake, [driver, seat], station) = &*shared;
                loop {
                    driver.wait();
                    let mut owned = station.lock().expect("the station");
                    if owned.over {
                        break;
                    }
                    // `Owned::attend`, then `settle`: armed anew, with a fence and another look.
                    owned.arm(wake, Wake::Nobody);
                    if responses[1].poll(1).is_none() {
                        let whom = if owned.seat { Wake::Waiter } else { Wake::Driver };
                        owned.arm(wake, whom);
                        barrier::heavy();
                    }
                    if owned.seat && responses[1].poll(1).is_some() {
                        seat.notify();
                    }
                }
            }
        });
        let (responses, wake, [driver, seat], station) = &*shared;
        let mut has_slept = false;
        loop {
            let mut owned = station.lock().expect("the station");
            owned.seat = false;
            if has_slept {
                // It may have been rung for an earlier response.
                owned.arm(wake, Wake::Nobody);
            }
            if responses[1].poll(1).is_some() {
                break;
            }
            let takes_over = owned.whom == Wake::Driver;
            assert!(takes_over || has_slept, "where nobody is armed the driver has seen the last response");
            owned.arm(wake, Wake::Waiter);
            if !takes_over {
                barrier::heavy();
                if responses[1].poll(1).is_some() {
                    break;
                }
            }
            owned.seat = true;
            drop(owned);
            seat.wait();
            has_slept = true;
        }
        worker.join().expect("the worker ends");
        station.lock().expect("the station").over = true;
        driver.notify();
        pool.join().expect("the driver ends");
    });
}

/// What a station's owner knows of the wake word, and whether the seat is taken.
struct Armed {
    whom: Wake,
    epoch: u64,
    seat: bool,
    over: bool,
}

impl Armed {
    fn arm(&mut self, wake: &AtomicU64, whom: Wake) {
        self.whom = whom;
        self.epoch += 1;
        wake.store(whom.word(self.epoch, 0), Ordering::Release);
    }
}

/// A batch that is cancelled while it runs. The worker commits an item, fences lightly, and looks for the mark before
/// it starts the next one; the master marks, fences heavily, and reads how far the batch is.
#[test]
fn a_cancelled_batch_starts_nothing_behind_the_item_that_was_running() {
    const ITEMS: u64 = 3;
    model_with_preemptions(4, || {
        let shared = Arc::new((Slot::<1>::new(), out_words()));
        shared.0.publish(0, HEAD);
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                let (slot, out) = &*shared;
                let mut started = 0;
                for item in 0..ITEMS {
                    started += 1;
                    out.sent.store(item + 1, Ordering::Release);
                    barrier::light();
                    if is_marked(slot, 0) {
                        break;
                    }
                }
                started
            }
        });
        let (slot, out) = &*shared;
        mark(slot, 0);
        barrier::heavy();
        let done = out.sent.load(Ordering::Acquire);
        let started = worker.join().expect("the worker ends");
        assert!(started <= done + 1, "{started} items were started, {done} were done when it was cancelled");
    });
}

/// `Lane::shorten`: what is behind the item that may have started is sent elsewhere at once, and when the batch comes back cut, so
/// is what the worker had not begun. It looks for the mark before the first item, too. Each item runs once.
#[test]
fn a_shortened_batch_has_each_item_run_once() {
    const ITEMS: u64 = 3;
    model_with_preemptions(4, || {
        // The request, the words of its results, and its response: whose `extra` is whether it was cut.
        let shared = Arc::new((Slot::<1>::new(), out_words(), Slot::<1>::new()));
        shared.0.publish(0, HEAD);
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                let (request, out, response) = &*shared;
                let mut started = 0;
                while started < ITEMS && !is_marked_with(request, 0, CANCELLED | SHORTENED) {
                    started += 1;
                    out.sent.store(started, Ordering::Release);
                    barrier::light();
                }
                response.publish(0, Head { extra: u16::from(started < ITEMS), ..HEAD });
                started
            }
        });
        let (request, out, response) = &*shared;
        mark_with(request, 0, SHORTENED);
        assert!(!is_marked(request, 0), "the item that runs is not to notice");
        barrier::heavy();
        let done = out.sent.load(Ordering::Acquire);
        let elsewhere = (done + 1).min(ITEMS)..ITEMS;
        let started = worker.join().expect("the worker ends");
        let cut = response.poll(0).is_some_and(|head| head.extra != 0);
        assert_eq!(out.sent.load(Ordering::Acquire), started, "all that it started has its result");
        // What the stream still has of the message when that has come back: nothing, or the one item in doubt.
        let again = if cut { started..elsewhere.start } else { 0..0 };
        let runs = |item: u64| {
            u64::from(item < started)
                + u64::from(again.contains(&item))
                + u64::from(elsewhere.contains(&item))
        };
        for item in 0..ITEMS {
            assert_eq!(runs(item), 1, "item {item}: {started} started, {done} done");
        }
    });
}

/// `Lane::push_batch`: a payload is there with its head, and its span is written again only when it was answered. The arena has
/// room for one.
#[test]
fn a_batch_is_read_whole_and_not_written_over() {
    model_with_preemptions(4, || {
        let shared = Arc::new((slots::<2>(), slots::<2>(), UnsafeCell::new([0_u8; 2])));
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                let (requests, responses, arena) = &*shared;
                for (index, slot) in (0..).zip(requests) {
                    while slot.poll(index).is_none() {
                        thread::yield_now();
                    }
                    // SAFETY: loom ends the model if the master may be writing it.
                    let payload = arena.with(|bytes| unsafe { *bytes });
                    assert_eq!(payload, [index as u8 + 1; 2]);
                    responses[index as usize].publish(index, HEAD);
                }
            }
        });
        let (requests, responses, arena) = &*shared;
        for (index, slot) in (0_u64..).zip(requests) {
            // `place` finds room when the one before has been answered.
            while index > 0 && responses[index as usize - 1].poll(index - 1).is_none() {
                thread::yield_now();
            }
            // SAFETY: as above, for the worker's reading.
            arena.with_mut(|bytes| unsafe { *bytes = [index as u8 + 1; 2] });
            slot.publish(index, HEAD);
        }
        worker.join().expect("the worker ends");
    });
}

fn out_words() -> OutWords {
    OutWords {
        tag: AtomicU64::new(0),
        start: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        total_bytes: AtomicU64::new(0),
        element_bytes: AtomicU64::new(0),
        values_end: AtomicU64::new(0),
    }
}

/// Where the stream of response `index` starts and what else is written about it; no two streams share a number.
const fn start_of(index: u64) -> u64 {
    100 * (index + 1)
}
const fn total_of(index: u64) -> u64 {
    start_of(index) + 50
}

/// `Port::open_stream`.
fn open_stream(out: &OutWords, index: u64) {
    out.tag.store(0, Ordering::Relaxed);
    fence(Ordering::Release);
    out.start.store(start_of(index), Ordering::Relaxed);
    out.sent.store(start_of(index), Ordering::Relaxed);
    out.total_bytes.store(total_of(index), Ordering::Relaxed);
    out.tag.store(index + 1, Ordering::Release);
}

/// `Lane::receive_open_stream`: start, sent and total of response `index` if it flows.
fn look_at_stream(out: &OutWords, index: u64) -> Option<(u64, u64, u64)> {
    if out.tag.load(Ordering::Acquire) != index + 1 {
        return None;
    }
    let (start, sent) = (out.start.load(Ordering::Relaxed), out.sent.load(Ordering::Acquire));
    let total = out.total_bytes.load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    (out.tag.load(Ordering::Relaxed) == index + 1).then_some((start, sent, total))
}

/// Edges OUT-OPEN and OUT-SENT: the worker opens the stream of the next response while the master still looks at the
/// words of the last one.
#[test]
fn the_words_of_a_stream_belong_to_its_tag_and_its_bytes_are_there() {
    model_with_preemptions(4, || {
        let shared = Arc::new((out_words(), UnsafeCell::new(0_u8)));
        let worker = thread::spawn({
            let shared = shared.clone();
            move || {
                let (out, byte) = &*shared;
                open_stream(out, 0);
                // SAFETY: loom ends the model if the master may be reading it.
                byte.with_mut(|byte| unsafe { *byte = 7 });
                out.sent.store(start_of(0) + 1, Ordering::Release);
                open_stream(out, 1);
            }
        });
        let (out, byte) = &*shared;
        for index in 0..2 {
            if let Some((start, sent, total)) = look_at_stream(out, index) {
                assert_eq!((start, total), (start_of(index), total_of(index)));
                assert!((0..=1).contains(&(sent - start)), "{sent} is none of this stream's positions");
                if sent == start_of(0) + 1 {
                    // SAFETY: as above, for the worker's writing.
                    assert_eq!(byte.with(|byte| unsafe { *byte }), 7);
                }
            }
        }
        worker.join().expect("the worker ends");
    });
}
