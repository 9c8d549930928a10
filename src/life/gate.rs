//! Overload control: a gate in front of the stations, with a place for each task that is accepted and has not ended.
//!
//! A pool of `w` workers with a queue limit of `n` has `n + w` places. Workers run one task each and work moves to
//! whoever is idle, so once all places are taken, `n` of those tasks have not started. A task takes its place before a
//! station gets it, and gives it back in [`JobRef::finish`](super::job::JobRef::finish), just before its outcome can be
//! seen: whoever has seen an outcome finds a place. Streams and broadcasts pass beside the gate.
//!
//! Who finds no place stands in line, as a thread that sleeps or as a future, and is admitted in the order of arrival.
//!
//! * GATE-1: while somebody stands in line, no place is free. A place that is given back is handed to the first in line
//!   under the line's lock, so nobody overtakes, and nobody is woken in vain.
//! * GATE-2: WAITING and SHUT change under the line's lock only, and WAITING says whether the line has anybody in it.
//!
//! | word | meaning |
//! |---|---|
//! | free places × 4 | that many can be taken |
//! | … + WAITING | somebody stands in line |
//! | … + SHUT | the pool is over: nobody waits any more, and its stations say why |
//!
//! Wakers are user code: they are cloned, called and dropped outside of the lock.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::Instant;

use parking_lot::Mutex;

use super::core::{Core, Phase};
use super::driver;
use super::line::{Line, Standing};
use super::service::{self, NestedWait};
use super::timers::Timer;
use super::wait::Parker;
use crate::error::{TaskError, TrySubmitError};
use crate::ground::spin::LOOKS_PER_READING;
use crate::panics;

const WAITING: usize = 1;
const SHUT: usize = 2;
const PLACE: usize = 4;
/// More than there can be tasks.
const PLACES_MAX: usize = usize::MAX / PLACE / 2;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicUsize,
    line: Mutex<Line<Arc<Verdict>>>,
}

/// What became of somebody in line. Changes once, under the line's lock.
#[derive(Debug, Default)]
struct Verdict(AtomicU8);

const NONE_YET: u8 = 0;
const ADMITTED: u8 = 1;
const TURNED_AWAY: u8 = 2;

/// A position in line. To be given to [`Gate::leave`] in the end.
#[derive(Debug)]
#[must_use = "a place may be handed to whoever has it"]
struct Ticket {
    number: u64,
    verdict: Arc<Verdict>,
}

impl Ticket {
    /// Whether there is a verdict. Once true, it stays true.
    fn is_decided(&self) -> bool {
        self.verdict.0.load(Ordering::Acquire) != NONE_YET
    }
}

/// Names somebody in line whose patience is limited. It keeps neither him nor his waker.
#[derive(Debug)]
pub(crate) struct Alarm {
    number: u64,
    verdict: Weak<Verdict>,
}

impl Alarm {
    fn new(ticket: &Ticket) -> Self {
        Self { number: ticket.number, verdict: Arc::downgrade(&ticket.verdict) }
    }

    /// Whether he has left.
    pub(super) fn is_over(&self) -> bool {
        self.verdict.strong_count() == 0
    }
}

/// What a task is accepted with: a place, or nothing where none is needed. To be given to a job
/// ([`JobRef::admit`](super::job::JobRef::admit)) or back ([`Core::give_back_place`]).
#[derive(Debug)]
#[must_use = "a place that is forgotten is lost"]
pub(crate) struct Pass {
    place: bool,
}

impl Pass {
    /// For a pool without a limit, and for one that is over, whose stations refuse by themselves.
    #[inline]
    pub(crate) fn free() -> Self {
        Self { place: false }
    }

    #[inline]
    pub(super) fn into_place(self) -> bool {
        self.place
    }
}

impl Gate {
    /// For so many workers, and so many tasks that have not started.
    pub(crate) fn new(workers: usize, queue_limit: usize) -> Self {
        let places = queue_limit.saturating_add(workers).min(PLACES_MAX);
        Self { word: AtomicUsize::new(places * PLACE), line: Mutex::default() }
    }

    /// A place, if one is free. A gate that is shut lets everybody through.
    #[inline]
    fn try_take(&self) -> Option<Pass> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & SHUT != 0 {
                return Some(Pass::free());
            }
            if word < PLACE {
                return None;
            }
            // Acquire, with the Release of giving back: what held the place before is over.
            match self.word.compare_exchange_weak(word, word - PLACE, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(Pass { place: true }),
                Err(seen) => word = seen,
            }
        }
    }

    /// As [`try_take`](Self::try_take), or a position at the end of the line.
    fn join(&self, waker: &Waker) -> Result<Pass, Ticket> {
        let waker = waker.clone();
        let mut line = self.line.lock();
        loop {
            if let Some(pass) = self.try_take() {
                return Ok(pass);
            }
            let word = self.word.load(Ordering::Relaxed);
            if word & WAITING != 0 {
                break;
            }
            // GATE-1: only from a word without free places. Whoever gives one back looks into the line from here on.
            let full = word & !(PLACE - 1) == 0 && word & SHUT == 0;
            let relaxed = Ordering::Relaxed;
            if full && self.word.compare_exchange(word, word | WAITING, relaxed, relaxed).is_ok() {
                break;
            }
        }
        let verdict = Arc::<Verdict>::default();
        Err(Ticket { number: line.join(verdict.clone(), waker), verdict })
    }

    /// Whether there is a verdict; if not, `waker` is called when there is one.
    fn ask(&self, ticket: &Ticket, waker: &Waker) -> bool {
        if ticket.is_decided() {
            return true;
        }
        let mut waker = waker.clone();
        let mut line = self.line.lock();
        if let Some(former) = line.waker_mut(ticket.number) {
            std::mem::swap(former, &mut waker);
        }
        drop(line);
        ticket.is_decided()
    }

    /// The waker of whoever still stands in line with this number. The next one is that which he asks with.
    fn alarm(&self, number: u64) -> Option<Waker> {
        let none = Waker::noop().clone();
        let mut line = self.line.lock();
        line.waker_mut(number).map(|waker| std::mem::replace(waker, none))
    }

    /// Leaves the line. The pass that a verdict has brought already is the caller's, to use or to give back.
    fn leave(&self, ticket: Ticket) -> Option<Pass> {
        let mut left = None;
        if !ticket.is_decided() {
            let mut line = self.line.lock();
            left = line.leave(ticket.number);
            if left.is_some() && line.is_empty() {
                self.word.fetch_and(!WAITING, Ordering::Relaxed);
            }
        }
        // Its waker is dropped outside of the lock.
        drop(left);
        match ticket.verdict.0.load(Ordering::Acquire) {
            NONE_YET => None,
            verdict => Some(Pass { place: verdict == ADMITTED }),
        }
    }

    /// Gives a place back. The waker, if any, is that of whoever has it now.
    pub(super) fn give_back(&self) -> Option<Waker> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & WAITING != 0 {
                let mut line = self.line.lock();
                if let Some(first) = line.pop_first() {
                    if line.is_empty() {
                        self.word.fetch_and(!WAITING, Ordering::Relaxed);
                    }
                    first.about.0.store(ADMITTED, Ordering::Release);
                    return Some(first.waker);
                }
                drop(line);
                word = self.word.load(Ordering::Relaxed);
                continue;
            }
            match self.word.compare_exchange_weak(word, word + PLACE, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return None,
                Err(seen) => word = seen,
            }
        }
    }

    /// Lets everybody through from here on. The wakers are those of all who stood in line.
    pub(super) fn shut(&self) -> Vec<Waker> {
        let mut line = self.line.lock();
        self.word.fetch_or(SHUT, Ordering::Relaxed);
        self.word.fetch_and(!WAITING, Ordering::Relaxed);
        let turn_away = |standing: Standing<Arc<Verdict>>| {
            standing.about.0.store(TURNED_AWAY, Ordering::Release);
            standing.waker
        };
        line.take_all().map(turn_away).collect()
    }
}

impl Core {
    /// What a task of a thread's needs to be accepted: blocks while the pool's queue limit is reached.
    #[inline]
    pub(crate) fn take_place(self: &Arc<Self>, due: Option<Instant>) -> Result<Pass, TaskError> {
        match &self.gate {
            None => Ok(Pass::free()),
            Some(gate) => gate.try_take().map_or_else(|| Admission::new(self.clone()).wait(due), Ok),
        }
    }

    /// As [`take_place`](Self::take_place), if it need not wait.
    pub(crate) fn take_place_now(&self) -> Option<Pass> {
        self.gate.as_ref().map_or_else(|| Some(Pass::free()), Gate::try_take)
    }

    /// As [`take_place_now`](Self::take_place_now), in a pool that takes tasks.
    pub(crate) fn try_take_place(&self) -> Result<Pass, TrySubmitError> {
        if self.phase() >= Phase::Closing {
            return Err(TrySubmitError::Closed);
        }
        self.take_place_now().ok_or(TrySubmitError::Full)
    }

    /// Whether [`try_take_place`](Self::try_take_place) is worth preparing for. Says nothing about the next moment.
    pub(crate) fn expects_place(&self) -> Result<(), TrySubmitError> {
        if self.phase() >= Phase::Closing {
            return Err(TrySubmitError::Closed);
        }
        let is_full = |gate: &Gate| gate.word.load(Ordering::Relaxed) & !WAITING == 0;
        if self.gate.as_ref().is_some_and(is_full) { Err(TrySubmitError::Full) } else { Ok(()) }
    }

    /// Gives back what no task was accepted with. Calls a waker, so not while anything is held.
    pub(crate) fn give_back_place(&self, pass: Pass) {
        if pass.into_place() {
            call(self.gate.as_ref().and_then(Gate::give_back));
        }
    }

    /// The time of somebody in line is over: he is woken and sees it. Calls a waker, likewise.
    pub(super) fn call_in_line(&self, alarm: &Alarm) {
        call(self.gate.as_ref().and_then(|gate| gate.alarm(alarm.number)));
    }
}

fn call(waker: Option<Waker>) {
    if let Some(waker) = waker {
        // A panic in somebody's waker is that runtime's affair.
        drop(panics::guard(|| waker.wake()));
    }
}

/// Somebody's way through the gate. Dropped on the way, it gives up its position in line, or the place that it was
/// handed there.
#[derive(Debug)]
pub(crate) struct Admission {
    core: Arc<Core>,
    ticket: Option<Ticket>,
    /// Whether it is counted among the pool's sleepers.
    sleeps: bool,
    /// Whether an alarm is set for it.
    has_alarm: bool,
    /// Of a future that was pending.
    nested: NestedWait,
}

impl Admission {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, ticket: None, sleeps: false, has_alarm: false, nested: NestedWait::default() }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Blocks until there is a place, or the time has come.
    #[cold]
    fn wait(mut self, due: Option<Instant>) -> Result<Pass, TaskError> {
        if driver::is_this_thread() {
            // A waker or the log hook submits. What this thread does not do, nobody does, so it goes beyond the limit.
            return Ok(Pass::free());
        }
        let parker = Parker::current();
        if let Some(pass) = self.join(&Waker::from(parker.clone())) {
            return Ok(pass);
        }
        let core = self.core.clone();
        let error = Cell::new(None);
        let note = || service::nested_wait_or(&core, |deadlock| error.set(Some(deadlock)));
        // Who spins for ever does not come to where others sleep.
        let spinning = core.spin.is_endless().then(note);
        if let Some(deadlock) = error.take() {
            return self.leave().ok_or(deadlock);
        }
        // Looks for results itself, since each of them makes room.
        let mut stations = core.stations.iter().cycle();
        let mut looks = 0_u32;
        let is_late = || due.is_some_and(|due| due <= Instant::now());
        let looked = core.spin.spin(|| {
            if let Some(mut owned) = stations.next().and_then(|station| station.try_own(&core)) {
                owned.peek();
            }
            looks = looks.wrapping_add(1);
            (self.is_decided() || looks.is_multiple_of(LOOKS_PER_READING) && is_late()).then_some(())
        });
        if looked.is_some() {
            return self.leave().ok_or(TaskError::Terminated);
        }
        let _nested = spinning.unwrap_or_else(note);
        self.sleep();
        // Whatever was run for others meanwhile may have used up a wake-up of this thread's. But the verdict comes before
        // the wake-up, so none is missed.
        let deadlock = error.take();
        while deadlock.is_none() && !self.is_decided() {
            if !parker.park(due) {
                break;
            }
        }
        // `Terminated` when the time is over: see `no_place`.
        self.leave().ok_or(deadlock.unwrap_or(TaskError::Terminated))
    }

    /// As [`Core::take_place`], for a future. To be called in the pool's own process only.
    ///
    /// When the time has come, the waker that is in line then is called. So if this is pending the caller looks at the clock once
    /// more: it may have been the waker before this one.
    pub(crate) fn poll(&mut self, waker: &Waker, due: Option<Instant>) -> Poll<Result<Pass, TaskError>> {
        let decided = match (&self.ticket, &self.core.gate) {
            (Some(ticket), Some(gate)) => gate.ask(ticket, waker),
            _ => match self.join(waker) {
                Some(pass) => return Poll::Ready(Ok(pass)),
                None => false,
            },
        };
        let mut error = None;
        if !decided {
            self.sleep();
            self.nested = service::nested_wait_or(&self.core, |deadlock| error = Some(deadlock));
            if error.is_none() {
                self.set_alarm(due);
                return Poll::Pending;
            }
        }
        Poll::Ready(self.leave().ok_or(error.unwrap_or(TaskError::Terminated)))
    }

    /// A place, or a position in line.
    fn join(&mut self, waker: &Waker) -> Option<Pass> {
        let Some(gate) = &self.core.gate else { return Some(Pass::free()) };
        match gate.join(waker) {
            Ok(pass) => Some(pass),
            Err(ticket) => {
                self.ticket = Some(ticket);
                None
            }
        }
    }

    fn set_alarm(&mut self, due: Option<Instant>) {
        if let (Some(due), Some(ticket), false) = (due, &self.ticket, self.has_alarm) {
            self.has_alarm = true;
            self.core.set_timer(due, Timer::Alarm(Alarm::new(ticket)));
        }
    }

    fn is_decided(&self) -> bool {
        self.ticket.as_ref().is_none_or(Ticket::is_decided)
    }

    /// Nobody looks for results here any more, so they must not wait for the driver's next round.
    fn sleep(&mut self) {
        if !std::mem::replace(&mut self.sleeps, true) {
            self.core.add_sleeper();
            self.core.stop_watching();
        }
    }

    /// Leaves the line, with the pass that it was handed there, if any.
    fn leave(&mut self) -> Option<Pass> {
        if std::mem::take(&mut self.sleeps) {
            self.nested = NestedWait::default();
            self.core.remove_sleeper();
        }
        self.core.gate.as_ref()?.leave(self.ticket.take()?)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        // In another process the line's lock may be held by a thread that does not exist there.
        if self.ticket.is_some()
            && self.core.is_here()
            && let Some(pass) = self.leave()
        {
            self.core.give_back_place(pass);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::timers::Timers;
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    /// Counts its calls.
    #[derive(Debug, Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn waker() -> (Waker, Arc<Calls>) {
        let calls = Arc::<Calls>::default();
        (Waker::from(calls.clone()), calls)
    }

    fn place(pass: Option<Pass>) -> bool {
        pass.is_some_and(Pass::into_place)
    }

    fn free_places(gate: &Gate) -> usize {
        gate.word.load(Ordering::SeqCst) / PLACE
    }

    #[test]
    fn places_are_those_of_the_workers_and_of_the_queue() {
        for (workers, limit) in [(1, 0), (1, 1), (2, 3)] {
            let gate = Gate::new(workers, limit);
            for _ in 0..workers + limit {
                assert!(place(gate.try_take()));
            }
            assert!(gate.try_take().is_none());
            assert!(gate.give_back().is_none());
            assert!(place(gate.try_take()));
        }
        let boundless = Gate::new(4096, usize::MAX);
        assert!(place(boundless.try_take()));
        assert!(boundless.give_back().is_none());
    }

    #[test]
    fn the_line_is_served_in_order_and_nobody_overtakes() {
        let gate = Gate::new(1, 0);
        assert!(place(gate.try_take()));
        let line: Vec<_> = (0..3).map(|_| gate.join(&waker().0).unwrap_err()).collect();
        for (n, ticket) in line.into_iter().enumerate() {
            assert!(!ticket.is_decided(), "{n}");
            assert!(gate.give_back().is_some());
            assert!(gate.try_take().is_none(), "the place is {n}'s");
            assert!(place(gate.leave(ticket)));
        }
        assert!(gate.give_back().is_none());
        assert_eq!(gate.word.load(Ordering::SeqCst), PLACE);
    }

    #[test]
    fn who_leaves_the_line_is_passed_over() {
        let gate = Gate::new(1, 0);
        assert!(place(gate.try_take()));
        let [first, second, third] = std::array::from_fn(|_| gate.join(&waker().0).unwrap_err());
        assert!(gate.leave(second).is_none());
        assert!(gate.leave(first).is_none());
        assert!(gate.give_back().is_some());
        assert!(third.is_decided());
        // A place that was handed over and is not wanted comes back.
        assert!(place(gate.leave(third)));
        assert!(gate.give_back().is_none());
        assert!(place(gate.try_take()));
        // With the last one the line is gone too.
        let last = gate.join(&waker().0).unwrap_err();
        assert!(gate.leave(last).is_none());
        assert!(gate.give_back().is_none());
        assert_eq!(gate.word.load(Ordering::SeqCst), PLACE);
    }

    #[test]
    fn the_last_waker_is_called() {
        let gate = Gate::new(1, 0);
        assert!(place(gate.try_take()));
        let ((first, _), (second, calls)) = (waker(), waker());
        let ticket = gate.join(&first).unwrap_err();
        assert!(!gate.ask(&ticket, &second));
        gate.give_back().unwrap().wake();
        assert_eq!(calls.0.load(Ordering::SeqCst), 1);
        assert!(gate.ask(&ticket, &first));
        assert!(place(gate.leave(ticket)));
    }

    #[test]
    fn a_shut_gate_lets_everybody_through() {
        let gate = Gate::new(1, 0);
        assert!(place(gate.try_take()));
        let [first, second] = std::array::from_fn(|_| gate.join(&waker().0).unwrap_err());
        assert!(gate.give_back().is_some());
        assert_eq!(gate.shut().len(), 1);
        // The first was admitted before, and has its place to give back.
        assert!(place(gate.leave(first)));
        assert!(!gate.leave(second).unwrap().into_place());
        assert!(!gate.join(&waker().0).unwrap().into_place());
        assert!(!gate.try_take().unwrap().into_place());
        assert!(gate.give_back().is_none());
        assert!(gate.shut().is_empty());
        assert_eq!(free_places(&gate), 1);
    }

    #[test]
    fn an_alarm_calls_who_still_stands_in_line_with_the_last_waker() {
        let gate = Gate::new(1, 0);
        assert!(place(gate.try_take()));
        let ((first, _), (second, calls), (third, late)) = (waker(), waker(), waker());
        let ticket = gate.join(&first).unwrap_err();
        let alarm = Alarm::new(&ticket);
        assert!(!gate.ask(&ticket, &second));
        gate.alarm(alarm.number).unwrap().wake();
        assert_eq!(calls.0.load(Ordering::SeqCst), 1);
        // Who asks again is called again.
        assert!(!gate.ask(&ticket, &third));
        gate.give_back().unwrap().wake();
        assert_eq!((calls.0.load(Ordering::SeqCst), late.0.load(Ordering::SeqCst)), (1, 1));
        assert!(gate.alarm(alarm.number).is_none() && !alarm.is_over());
        assert!(place(gate.leave(ticket)));
        assert!(alarm.is_over());
    }

    #[test]
    fn alarms_of_who_has_left_do_not_pile_up() {
        let (gate, timers) = (Gate::new(1, 0), Timers::default());
        assert!(place(gate.try_take()));
        let due = Instant::now() + std::time::Duration::from_secs(3600);
        let mut most = 0;
        for _ in 0..10_000 {
            let ticket = gate.join(&waker().0).unwrap_err();
            timers.add(due, Timer::Alarm(Alarm::new(&ticket)));
            assert!(gate.leave(ticket).is_none());
            most = timers.len().max(most);
        }
        assert!(most <= 2000, "{most}");
        assert_eq!(timers.next(), None);
    }

    /// Threads take, stand, leave and give back; no place is lost, none is in two hands.
    #[test]
    fn places_are_conserved() {
        const PLACES: usize = 3;
        let gate = Gate::new(1, PLACES - 1);
        let (held, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let hold = |pass: Option<Pass>| {
            if place(pass) {
                assert!(held.fetch_add(1, Ordering::SeqCst) < PLACES);
                std::thread::yield_now();
                held.fetch_sub(1, Ordering::SeqCst);
                gate.give_back().into_iter().for_each(Waker::wake);
            }
        };
        std::thread::scope(|scope| {
            for n in 0..4 {
                let (gate, hold, over) = (&gate, &hold, &over);
                scope.spawn(move || {
                    let _over = OnDrop(over);
                    for round in 0..3000 {
                        if (round + n) % 3 == 0 {
                            hold(gate.try_take());
                            continue;
                        }
                        let parker = Parker::current();
                        match gate.join(&Waker::from(parker.clone())) {
                            Ok(pass) => hold(Some(pass)),
                            Err(ticket) => {
                                // Every other one loses patience.
                                while round % 2 == 0 && !ticket.is_decided() && !over.load(Ordering::SeqCst) {
                                    let limit = std::time::Duration::from_secs(30);
                                    assert!(
                                        parker.park(std::time::Instant::now().checked_add(limit)),
                                        "hang"
                                    );
                                }
                                hold(gate.leave(ticket));
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(gate.word.load(Ordering::SeqCst), PLACES * PLACE);
    }

    /// Says that a thread has failed, so that the others do not wait for it.
    struct OnDrop<'a>(&'a AtomicBool);

    impl Drop for OnDrop<'_> {
        fn drop(&mut self) {
            self.0.fetch_or(std::thread::panicking(), Ordering::SeqCst);
        }
    }
}
