//! The service calls of a worker, and their answers.

use super::{Answer, Lane, Sink, Violation};
use crate::memory::codec::AlignedBytes;
use crate::memory::layout::{ARENA_BYTES, WINDOW_BYTES};
use crate::protocol::wire::AnswerKind;
use crate::sync::Ordering;

impl<T> Lane<T> {
    /// Whether the worker waits for an answer that has not been started. Everything that it published before the call can be seen,
    /// and it publishes nothing before the answer.
    pub(crate) fn owes_answer(&self) -> bool {
        self.calls.received != self.calls.answered
    }

    pub(super) fn receive_call(&mut self, sink: &mut impl Sink<T>) -> Result<(), Violation> {
        let words = &self.region.b().call.0;
        let number = words.number.load(Ordering::Acquire);
        if number == self.calls.received {
            return Ok(());
        }
        let answered = self.calls.answered == self.calls.received && self.calls.outgoing.is_none();
        if number != self.calls.received + 1 || !answered {
            return Err(Violation("a service call is out of turn"));
        }
        let total = words.total_bytes.load(Ordering::Relaxed);
        if total > self.max_payload as u64 {
            return Err(Violation("a service request exceeds max_payload"));
        }
        let sent = words.sent.load(Ordering::Acquire);
        let total = total as usize;
        let mut bytes =
            self.calls.incoming.take().unwrap_or_else(|| AlignedBytes::with_capacity(total.min(ARENA_BYTES)));
        let len = match sent.checked_sub(self.calls.in_bytes) {
            Some(len) if len <= WINDOW_BYTES as u64 && len as usize <= total.saturating_sub(bytes.len()) => {
                len
            }
            _ => return Err(Violation("a service call's position is out of range")),
        };
        self.region.call_window().append_to(self.calls.in_bytes, len as usize, &mut bytes);
        self.calls.in_bytes += len;
        self.region.a().call_received.0.store(self.calls.in_bytes, Ordering::Release);
        self.ring_if_asleep();
        if bytes.len() < total {
            self.calls.incoming = Some(bytes);
        } else {
            self.calls.received = number;
            sink.call(number, bytes);
        }
        Ok(())
    }

    /// Starts to answer service call `number`.
    pub(crate) fn answer(
        &mut self,
        number: u64,
        kind: AnswerKind,
        bytes: AlignedBytes,
    ) -> Result<(), Violation> {
        if number != self.calls.received || number == self.calls.answered {
            return Ok(());
        }
        self.calls.answered = number;
        let words = &self.region.a().answer.0;
        words.kind.store(kind as u64, Ordering::Relaxed);
        words.total_bytes.store(bytes.len() as u64, Ordering::Relaxed);
        // Edge CALL-OPEN, the way back.
        words.number.store(number, Ordering::Release);
        self.calls.outgoing = Some(Answer { bytes, at: 0 });
        self.ring_if_asleep();
        self.send_answer()
    }

    pub(super) fn send_answer(&mut self) -> Result<(), Violation> {
        let Some(answer) = &mut self.calls.outgoing else { return Ok(()) };
        let received = self.region.b().answer_received.0.load(Ordering::Acquire);
        let in_window = match self.calls.out_bytes.checked_sub(received) {
            Some(n) if n <= WINDOW_BYTES as u64 => n as usize,
            _ => return Err(Violation("an answer's position is out of range")),
        };
        let rest = &answer.bytes[answer.at..];
        let part = &rest[..rest.len().min(WINDOW_BYTES - in_window)];
        self.region.answer_window().copy_in(self.calls.out_bytes, part);
        answer.at += part.len();
        self.calls.out_bytes += part.len() as u64;
        self.region.a().answer.0.sent.store(self.calls.out_bytes, Ordering::Release);
        if answer.at == answer.bytes.len() {
            self.calls.outgoing = None;
        }
        self.ring_if_asleep();
        Ok(())
    }
}
