//! The worker's end of a lane.
//!
//! Everything in here runs in a worker process, which is single-threaded until user code says otherwise, or on one thread
//! of the master's process. The worker claims requests in order, runs one at a time and answers each in its slot. It waits
//! for what the master never withholds: room in `B`, the rest of a request, the answer to a call; and asleep on its doorbell. A
//! thread that the master has [given up](Order::GivenUp) waits for nothing: what would not get through is dropped, since nobody
//! reads it.
//!
//! [`next`] finds a request, [`request`] is about its bytes. What the worker says goes out in [`answer`], [`stream`] and
//! [`window`], its service calls in [`call`]; [`wait`] is about doorbells.

mod answer;
mod call;
mod next;
mod request;
mod stream;
mod wait;
mod window;

pub(crate) use self::request::{Input, Request};
use crate::faults::{Point, point};
use crate::ground::doorbell::Ringer;
use crate::ground::ring::RequestSlot;
use crate::ground::spin::SpinBudget;
use crate::ground::sys::SysError;
use crate::memory::layout::WINDOW_BYTES;
use crate::memory::region::WorkerRegion;
use crate::protocol::records::OPEN_END;
use crate::protocol::wire::{CANCELLED, Order, Parting, SHORTENED, WorkerState};
use crate::sync::Ordering;

/// The doorbells that a worker rings.
#[derive(Debug)]
pub(crate) struct Bells {
    /// The one of a thread that waits for this lane.
    pub(crate) response: Ringer,
    /// The driver's.
    pub(crate) driver: Ringer,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Port {
    region: &'static mut WorkerRegion,
    bells: Bells,
    spin: SpinBudget,
    /// How long to look for the next request.
    patience: SpinBudget,
    /// The request to look at next.
    next: u64,
    /// How many requests in a row were there already when they were looked for.
    run: u32,
    /// End of the youngest bytes in the arena of `B`, and a lower bound of the oldest that are still in use.
    head: u64,
    tail: u64,
    /// How often it has gone to sleep.
    naps: u64,
    /// The bell's rings before the nap that was told with the last response.
    told_nap: Option<u32>,
    /// The wake word that was last obeyed.
    rung: u64,
    /// The word whose waiter leaves some responses, and how many are left to come.
    late: u64,
    leave: u8,
    /// Whether it has slept since it last rang.
    has_woken: bool,
    /// Whether its next response is the first one since it has slept.
    first_since_nap: bool,
    /// Whether the master was asked to look at the claim word since the last request.
    complained: bool,
    /// Bytes of the calls made so far, and of the answers received.
    calls: u64,
    call_sent: u64,
    answer_received: u64,
    in_received: u64,
    /// Position up to which an open stream has been published.
    stream: Option<u64>,
    /// Where the bare values of the open batch end, if they have.
    values_end: u64,
    /// Whether the master wants to know when requests were started and answered.
    stamps: bool,
    /// What to do when there is nothing to do, and the [stamp](Self::stamp) at which that was done last.
    when_idle: fn(),
    idle_at_ns: u64,
    /// Whether nobody is rung for a single item of the open batch: whoever wants them looks by himself in time.
    quiet: bool,
}

impl Port {
    /// `when_idle` is called before the worker sleeps, and when it has to wait, every few milliseconds at most.
    pub(crate) fn new(
        region: &'static mut WorkerRegion,
        bells: Bells,
        spin: SpinBudget,
        when_idle: fn(),
    ) -> Self {
        Self {
            region,
            bells,
            spin,
            patience: spin,
            next: 0,
            run: 0,
            head: 0,
            tail: 0,
            naps: 0,
            told_nap: None,
            rung: 0,
            late: 0,
            leave: 0,
            has_woken: false,
            first_since_nap: false,
            complained: false,
            calls: 0,
            call_sent: 0,
            answer_received: 0,
            in_received: 0,
            stream: None,
            values_end: OPEN_END,
            stamps: false,
            when_idle,
            idle_at_ns: 0,
            quiet: false,
        }
    }

    /// Tells the master how far this worker is, and if that is its end, why: 64 KiB of text at most.
    pub(crate) fn set_state(&mut self, state: WorkerState, text: &str) {
        let text = &text.as_bytes()[..text.len().min(WINDOW_BYTES)];
        // The arena may have results that the master has not read yet. The call window has nothing: a call that was answered was
        // read whole before, and whoever has a text to leave makes no other one.
        if !text.is_empty() && self.region.reserve_call_window(text.len()).is_ok() {
            self.region.call_window().copy_in(0, text);
            self.region.b().state.0.text_bytes.store(text.len() as u64, Ordering::Relaxed);
        }
        // Edge STATE: the text before the state that it explains.
        self.region.b().state.0.state.store(state as u64, Ordering::Release);
        point(Point::StateUnannounced);
        self.ring_driver();
    }

    /// Nothing more starts here: what is unstarted is the master's, and this worker leaves.
    pub(crate) fn leave(&mut self, why: Parting) {
        // Before the state, which makes the master take the unstarted requests away.
        self.region.b().claim.0.seal();
        self.region.b().state.0.parting.store(why as u64, Ordering::Relaxed);
        self.set_state(WorkerState::Leaving, "");
    }

    #[inline]
    fn ordered_to_leave(&self) -> bool {
        Order::from_wire(self.region.a().order.0.load(Ordering::Acquire)) != Some(Order::Run)
    }

    /// Whether the master has let go of this worker, without being able to end it.
    #[inline]
    pub(crate) fn is_given_up(&self) -> bool {
        self.region.a().order.0.load(Ordering::Acquire) == Order::GivenUp as u64
    }

    /// Whether the request that is running has been cancelled.
    pub(crate) fn cancelled(&self, index: u64) -> bool {
        is_cancelled(self.region.request(index), index)
    }

    /// Whether no other item of the batch that is running is to start.
    pub(crate) fn ends_early(&self, index: u64) -> bool {
        let marks = CANCELLED | SHORTENED;
        self.region.request(index).poll(index).is_some_and(|head| head.extra & marks != 0)
    }
}

#[cold]
fn given_up() -> SysError {
    SysError::new("wait", std::io::ErrorKind::ConnectionAborted)
}

#[inline]
fn is_cancelled(slot: &RequestSlot, index: u64) -> bool {
    slot.poll(index).is_some_and(|head| head.extra & CANCELLED != 0)
}
