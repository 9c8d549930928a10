//! The service calls of a station's worker.

use super::Owned;
use crate::life::service::{Answer, Request};
use crate::protocol::lane::Lane;

impl Owned<'_> {
    /// Whether the worker waits for an answer.
    pub(crate) fn owes_answer(&self) -> bool {
        self.lane.as_ref().is_some_and(Lane::owes_answer)
    }

    /// Sends an answer to the worker, if it still waits for it.
    pub(crate) fn answer(&mut self, call: &Request, (kind, bytes): Answer) {
        if self.generation != call.generation {
            return;
        }
        let Some(lane) = &mut self.lane else { return };
        if let Err(violation) = lane.answer(call.number, kind, bytes) {
            self.break_off(violation);
        }
        // The rest of a long answer flows as the worker makes room, and the worker says so to whoever is armed.
        self.disarm();
    }

    /// The next call of a worker that makes one after the other, if it comes within 2 µs: to be rung for it costs a hop over
    /// whoever is armed, and back to this thread.
    pub(crate) fn await_call(&mut self) -> Option<Request> {
        if self.spins_in_vain() {
            self.note_spin(false);
            return None;
        }
        self.core.spin.brief().spin(|| {
            self.poll_news();
            (self.owes() || self.contended()).then_some(())
        });
        let call = self.calls.pop();
        self.note_spin(call.is_some());
        call
    }
}
