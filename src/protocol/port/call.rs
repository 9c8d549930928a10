//! Service calls: a request to the master's service, and its answer.

use super::Port;
use crate::faults::{Point, point};
use crate::memory::codec::AlignedBytes;
use crate::memory::layout::WINDOW_BYTES;
use crate::protocol::wire::AnswerKind;
use crate::sync::Ordering;

impl Port {
    /// Sends a service request and waits for the answer.
    pub(crate) fn call(&mut self, request: &[u8]) -> (AnswerKind, AlignedBytes) {
        self.calls += 1;
        let words = &self.region.b().call.0;
        words.total_bytes.store(request.len() as u64, Ordering::Relaxed);
        point(Point::CallUnnumbered);
        // Edge CALL-OPEN.
        words.number.store(self.calls, Ordering::Release);
        point(Point::CallNumbered);
        let mut rest = request;
        loop {
            let received = self.region.a().call_received.0.load(Ordering::Acquire);
            let room = (received + WINDOW_BYTES as u64).saturating_sub(self.call_sent) as usize;
            let (now, later) = rest.split_at(rest.len().min(room));
            self.region.call_window().copy_in(self.call_sent, now);
            self.call_sent += now.len() as u64;
            point(Point::CallCopied);
            self.region.b().call.0.sent.store(self.call_sent, Ordering::Release);
            point(Point::CallSent);
            self.notify();
            rest = later;
            if rest.is_empty() {
                break;
            }
            let waited = self.wait_for(|port| {
                let received = port.region.a().call_received.0.load(Ordering::Acquire);
                (received + WINDOW_BYTES as u64 > port.call_sent).then_some(())
            });
            if waited.is_none() {
                return refused();
            }
        }
        self.receive_answer().unwrap_or_else(refused)
    }

    /// `None`: this worker was given up.
    fn receive_answer(&mut self) -> Option<(AnswerKind, AlignedBytes)> {
        let total = self.wait_for(|port| {
            let words = &port.region.a().answer.0;
            (words.number.load(Ordering::Acquire) == port.calls)
                .then(|| words.total_bytes.load(Ordering::Relaxed) as usize)
        })?;
        point(Point::AnswerSeen);
        let kind = self.region.a().answer.0.kind.load(Ordering::Relaxed);
        let mut bytes = AlignedBytes::with_capacity(total);
        while bytes.len() < total {
            let sent = self.wait_for(|port| {
                let sent = port.region.a().answer.0.sent.load(Ordering::Acquire);
                (sent > port.answer_received).then_some(sent)
            })?;
            let len = ((sent - self.answer_received) as usize).min(total - bytes.len());
            self.region.answer_window().append_to(self.answer_received, len, &mut bytes);
            point(Point::AnswerCopied);
            self.answer_received += len as u64;
            self.region.b().answer_received.0.store(self.answer_received, Ordering::Release);
            self.notify();
        }
        point(Point::AnswerReceived);
        Some((AnswerKind::from_wire(kind).unwrap_or(AnswerKind::Refused), bytes))
    }
}

#[cold]
fn refused() -> (AnswerKind, AlignedBytes) {
    (AnswerKind::Refused, AlignedBytes::from(&b"the task has been ended meanwhile"[..]))
}
