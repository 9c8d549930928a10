//! A worker whose memory is not to be trusted, against the master's end of its lane.
//!
//! [`lane`] plays a scenario that some bytes decide: a master that submits, polls, takes back, cancels, answers and seals,
//! and a worker that keeps the protocol for a while and then writes what it likes, where it likes. Whatever the bytes
//! are, the master neither panics nor loops, each token comes out exactly once, and no reply is larger than it may be;
//! and as long as the worker behaves, each reply is the right one. [`records`] and [`codec`] do the same for whatever else
//! is read from bytes of a worker's.
//!
//! The entries serve the tests below, which feed them random bytes, and the fuzz targets in `fuzz/`.

pub(crate) mod source;
pub(crate) mod target;
#[cfg(test)]
mod tests;

use self::source::Source;
use self::target::{
    ANSWER_RECEIVED, CALL_NUMBER, CALL_SENT, CALL_TOTAL, CLAIM, IN_RECEIVED, OUT_SENT, OUT_START, OUT_TAG,
    OUT_TOTAL, OUT_VALUES_END, Peer,
};
use crate::memory::arena::ArenaReader;
use crate::memory::codec::{self, AlignedBytes, Encoded, OwnedArchive, Payload};
use crate::memory::layout::{ARENA_BYTES, WINDOW_BYTES};
use crate::memory::region::Region;
use crate::protocol::code::CodeId;
use crate::protocol::lane::{Batch, Census, Form, Lane, Parcel, Refusal, Reply, Sink, Violation};
use crate::protocol::port::Request;
use crate::protocol::records::{Parsed, TEXT_BYTES_MAX, parse};
use crate::protocol::wire::{
    AnswerKind, REQUEST_INLINE_BYTES, RESPONSE_INLINE_BYTES, Status, Wake, WorkerState,
};
use crate::sync::Ordering;

/// A worker that writes nothing gives the master nothing to do after this many looks.
const LOOKS_MAX: usize = 600;
/// No answer of the service is larger.
const ANSWER_BYTES_MAX: usize = 200_000;
/// The misdeeds that a worker may choose from.
const VICES: usize = 14;

/// Reads any bytes as the records of a batch.
pub(crate) fn records(bytes: &[u8]) {
    let mut source = Source::new(bytes);
    let stride = source.choose(&[None, Some(0), Some(1), Some(8), Some(16)]);
    let value_max = source.choose(&[0, 10, 1 << 20, usize::MAX]);
    let mut rest = &bytes[bytes.len() - source.left()..];
    while let Parsed::Record { status, payload, bytes } = parse(rest, stride, value_max) {
        assert!(bytes > payload.len() && bytes <= rest.len(), "a record goes forward, within what is there");
        match status {
            Status::Value => assert_eq!(Some(payload.len()), stride),
            Status::SizedValue => assert!(payload.len() <= value_max),
            _ => {
                assert!(payload.len() <= TEXT_BYTES_MAX);
                let _ = crate::task::error_of(status, payload).to_string();
            }
        }
        // A part of a record is no record yet, nor nonsense.
        let part = &rest[..source.below(bytes)];
        assert_eq!(parse(part, stride, value_max), Parsed::Partial);
        rest = &rest[bytes..];
    }
}

/// Reads any bytes as the archives of several types.
pub(crate) fn codec(bytes: &[u8]) {
    fn read<R: Payload>(bytes: &[u8]) {
        if let Ok(value) = codec::decode::<R>(bytes) {
            drop(value);
        }
        if let Ok(archive) = OwnedArchive::<R>::new(AlignedBytes::from(bytes)) {
            drop(archive.deserialize());
        }
    }
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    let bytes = &*AlignedBytes::from(bytes);
    match kind % 12 {
        0 => read::<u64>(bytes),
        1 => read::<String>(bytes),
        2 => read::<Vec<u8>>(bytes),
        3 => read::<Vec<String>>(bytes),
        4 => read::<Option<(u8, bool, char)>>(bytes),
        5 => read::<std::collections::HashMap<String, Vec<u32>>>(bytes),
        6 => read::<std::collections::BTreeMap<u32, Option<String>>>(bytes),
        7 => read::<Result<Box<str>, (i128, f64)>>(bytes),
        8 => read::<(std::rc::Rc<str>, std::rc::Rc<str>)>(bytes),
        9 => read::<[std::num::NonZeroU32; 3]>(bytes),
        10 => read::<Vec<Vec<[u16; 3]>>>(bytes),
        _ => read::<std::collections::VecDeque<(String, std::time::Duration)>>(bytes),
    }
}

/// What became of one request.
#[derive(Debug)]
struct Sent {
    input: Vec<u8>,
    batch: Option<Batch>,
    /// Whether its token has come out.
    out: bool,
    records: Vec<u8>,
    /// Whether records have come, after which no bare values do.
    in_records: bool,
}

/// Takes what a lane delivers, and checks what must hold whatever the worker does.
#[derive(Debug)]
struct Log {
    /// By token.
    sent: Vec<Sent>,
    /// Tokens that came out with responses.
    delivered: u64,
    max_payload: usize,
    hostile: bool,
    calls: u64,
    /// The call that has not been answered.
    call: Option<u64>,
}

impl Log {
    /// A token has come out.
    fn out(&mut self, token: u64) {
        let sent = &mut self.sent[token as usize];
        assert!(!sent.out, "token {token} came out twice");
        sent.out = true;
    }

    /// A request has come back whole.
    fn back(&mut self, token: u64, parcel: &Parcel) {
        self.out(token);
        let sent = &self.sent[token as usize];
        assert_eq!(parcel.input.as_bytes(), sent.input, "the request of token {token}");
        assert_eq!((parcel.batch, parcel.code), (sent.batch, code(token)));
    }
}

impl Sink<u64> for Log {
    fn reply(&mut self, token: u64, reply: Reply) {
        self.out(token);
        self.delivered += 1;
        let limit = match reply.status {
            Status::Value => self.max_payload.max(RESPONSE_INLINE_BYTES),
            _ => TEXT_BYTES_MAX,
        };
        assert!(
            reply.body.as_bytes().len() <= limit,
            "{:?} of {} bytes",
            reply.status,
            reply.body.as_bytes().len()
        );
        let sent = &self.sent[token as usize];
        if reply.status == Status::BatchDone {
            assert!(sent.batch.is_some(), "a single task is no batch");
        }
        if !self.hostile {
            match sent.batch {
                None => assert_eq!(
                    (reply.status, reply.body.as_bytes()),
                    (Status::Value, &*result_of(&sent.input))
                ),
                Some(batch) => assert_eq!(sent.records, records_of(batch)),
            }
        }
    }

    fn cut(&mut self, token: u64, parcel: Parcel) {
        self.back(token, &parcel);
        self.delivered += 1;
        let Sent { batch, records, .. } = &self.sent[token as usize];
        let Some(batch) = *batch else { panic!("a single task is not cut") };
        if !self.hostile {
            assert!(records_of(batch).starts_with(records), "results up to where it was cut");
        }
    }

    fn results(&mut self, token: &mut u64, form: Form, from: ArenaReader<'_>, position: u64, len: usize) {
        let sent = &mut self.sent[*token as usize];
        assert!(!sent.out && sent.batch.is_some());
        assert!(form == Form::Records || !sent.in_records, "values came after a record");
        sent.in_records |= form == Form::Records;
        if self.hostile {
            // Nobody looks at them.
            sent.records.clear();
        }
        from.append_to(position, len, &mut sent.records);
    }

    fn call(&mut self, number: u64, request: AlignedBytes) {
        assert_eq!(number, self.calls + 1);
        assert!(self.call.is_none(), "one call at a time");
        assert!(request.len() <= self.max_payload);
        (self.calls, self.call) = (number, Some(number));
    }
}

fn code(token: u64) -> CodeId {
    CodeId { place: token << 3, types: !token }
}

/// What the worker answers as long as it behaves.
fn result_of(input: &[u8]) -> Vec<u8> {
    let len = input.first().map_or(0, |&byte| usize::from(byte) % 40);
    input.iter().copied().cycle().take(if len > 35 { len * 100 } else { len }).collect()
}

fn record_of(item: u32) -> Vec<u8> {
    vec![item as u8; item as usize % 50]
}

fn records_of(batch: Batch) -> Vec<u8> {
    (batch.done..batch.items)
        .flat_map(|item| {
            let payload = record_of(item);
            let header = crate::protocol::records::sized_header(Status::SizedValue, payload.len());
            header.into_iter().chain(payload)
        })
        .collect()
}

/// A request that the worker has claimed.
#[derive(Debug)]
struct Held {
    request: Request,
    token: u64,
    /// The position at which a batch's records begin, and the next item.
    stream: Option<(u64, u32)>,
}

struct Scenario<'a> {
    source: Source<'a>,
    lane: Lane<u64>,
    peer: Peer,
    log: Log,
    /// Tokens by index.
    indices: Vec<u64>,
    held: Option<Held>,
    violation: Option<Violation>,
    theme: Theme,
}

/// What a scenario is about. Most misdeeds are found out at once, and what one could do after them is never seen; so in
/// most scenarios the worker has one vice only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Theme {
    Anything,
    /// Requests that flow, and a worker that lies about how much it has read.
    Large,
    /// The misdeed of this number.
    Vice(usize),
}

/// Plays the scenario that these bytes decide.
pub(crate) fn lane(bytes: &[u8]) {
    let mut scenario = Scenario::new(bytes);
    while !scenario.source.is_empty() && scenario.violation.is_none() {
        if scenario.source.below(3) == 0 {
            scenario.worker();
        } else {
            scenario.master();
        }
    }
    drop(scenario.finish());
}

impl<'a> Scenario<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let mut source = Source::new(bytes);
        let theme = match source.below(48) {
            0 => Theme::Large,
            n @ 1..40 => Theme::Vice(n % VICES),
            _ => Theme::Anything,
        };
        let max_payload = source.choose(&[4000, 64 << 10, 6 << 20, 4 << 30]);
        let (region, fds) = Region::create().expect("memory for a region");
        let peer = Peer::new(&fds);
        let log = Log { sent: Vec::new(), delivered: 0, max_payload, hostile: false, calls: 0, call: None };
        let lane = Lane::new(region, max_payload);
        Self { source, lane, peer, log, indices: Vec::new(), held: None, violation: None, theme }
    }

    /// One step of the master's.
    fn master(&mut self) {
        let result = match self.source.below(18) {
            0..6 => {
                if self.source.one_in(10) {
                    (0..self.source.below(300)).for_each(|_| self.push_parcel(vec![9; 9], None));
                } else {
                    self.push();
                }
                Ok(())
            }
            6 | 7 => self.lane.poll(&mut self.log, true).map(drop),
            8 => self.lane.poll(&mut self.log, false).map(drop),
            9 | 10 => self.settle(),
            11 => self.take_back(),
            12 => {
                self.cancel();
                Ok(())
            }
            13 => self.answer_call(),
            14 => self.refill(),
            15 => self.shorten(),
            16 => {
                self.push_batch();
                Ok(())
            }
            _ => {
                self.lane.arm(self.source.choose(&[Wake::Driver, Wake::Waiter, Wake::Nobody]));
                self.lane
                    .worker_state()
                    .map(|(state, text)| assert!(state == WorkerState::Failed || text.is_empty()))
            }
        };
        if let Err(violation) = result {
            self.violated(violation);
        }
    }

    fn violated(&mut self, violation: Violation) {
        assert!(self.log.hostile, "a worker that keeps the protocol is accused: {violation:?}");
        self.violation = Some(violation);
    }

    fn push(&mut self) {
        let large = self.theme == Theme::Large;
        let len = match self.source.below(40) {
            _ if large && self.source.one_in(4) => ARENA_BYTES + 1 + self.source.below(9 << 20),
            0..30 => self.source.below(REQUEST_INLINE_BYTES + 1),
            30..37 => 33 + self.source.below(3000),
            37 => 100_000 + self.source.below(500_000),
            38 => ARENA_BYTES - self.source.below(100),
            _ => ARENA_BYTES + 1 + self.source.below(5 << 20),
        };
        // Little that is large: these bytes are copied several times.
        let len = if len > 50_000 && !large { len % 100 } else { len };
        let first = self.source.byte();
        let pattern: Vec<u8> = (0..251).map(|i: u8| first.wrapping_add(i.wrapping_mul(7))).collect();
        let mut input = pattern.repeat(len.div_ceil(pattern.len()));
        input.truncate(len);
        let batch = self.source.one_in(4).then(|| {
            let items = 1 + self.source.below(60) as u32;
            Batch { items, done: self.source.below(items as usize) as u32, timed: false }
        });
        self.push_parcel(input, batch);
    }

    fn push_elements(&mut self, token: u64, input: &[u8]) {
        let elements = codec::elements(input).expect("bytes are numbers");
        match self.lane.push_elements(token, code(token), &elements) {
            Ok(index) => {
                assert_eq!(index, self.indices.len() as u64);
                self.indices.push(token);
                let input = elements.to_archive().to_vec();
                self.log.sent.push(Sent {
                    input,
                    batch: None,
                    out: false,
                    records: Vec::new(),
                    in_records: false,
                });
                self.lane.ring_if_asleep();
            }
            Err(back) => assert_eq!(back, token),
        }
    }

    fn push_parcel(&mut self, input: Vec<u8>, batch: Option<Batch>) {
        let (token, len) = (self.log.sent.len() as u64, input.len());
        if len > REQUEST_INLINE_BYTES && batch.is_none() && self.source.one_in(3) {
            return self.push_elements(token, &input);
        }
        let encoded = if len <= REQUEST_INLINE_BYTES && batch.is_none() {
            let mut bytes = [0; codec::INLINE_MAX];
            bytes[..len].copy_from_slice(&input);
            Encoded::Inline { len: len as u8, bytes }
        } else {
            Encoded::Heap(AlignedBytes::from(&*input))
        };
        match self.lane.push(token, Parcel { code: code(token), batch, input: encoded }) {
            Ok(index) => {
                assert_eq!(index, self.indices.len() as u64);
                self.indices.push(token);
                self.log.sent.push(Sent { input, batch, out: false, records: Vec::new(), in_records: false });
                self.lane.ring_if_asleep();
            }
            Err((back, parcel, refusal)) => {
                assert!(matches!(refusal, Refusal::Full), "{refusal:?}");
                assert_eq!((back, parcel.input.as_bytes()), (token, &*input));
            }
        }
    }

    /// A batch that is copied from where it is, as streams send them.
    fn push_batch(&mut self) {
        let (token, first) = (self.log.sent.len() as u64, self.source.byte());
        let len = 1 + self.source.below(2000);
        let input: Vec<u8> = (0..len).map(|at| first.wrapping_add(at as u8)).collect();
        let items = 1 + self.source.below(60) as u32;
        let batch = Batch { items, done: 0, timed: self.source.one_in(2) };
        match self.lane.push_batch(token, code(token), batch, &input) {
            Ok(index) => {
                assert_eq!(index, self.indices.len() as u64);
                self.indices.push(token);
                let batch = Some(batch);
                self.log.sent.push(Sent { input, batch, out: false, records: Vec::new(), in_records: false });
                self.lane.ring_if_asleep();
            }
            Err(back) => assert_eq!(back, token),
        }
    }

    /// As a stream does whose message is at a slow item. Its request comes along and stays where it is.
    fn shorten(&mut self) -> Result<(), Violation> {
        let Some(running) = self.lane.running().map(|running| running.index) else { return Ok(()) };
        let index = if self.source.one_in(4) { running + self.source.below(3) as u64 } else { running };
        if let Some(parcel) = self.lane.shorten(index) {
            let token = self.indices[index as usize];
            let sent = &self.log.sent[token as usize];
            assert!(index == running && sent.batch.is_some() && !sent.out);
            assert_eq!((parcel.input.as_bytes(), parcel.batch), (&*sent.input, sent.batch));
        }
        self.lane.poll(&mut self.log, true).map(drop)
    }

    /// As an owner does that is about to let go.
    fn settle(&mut self) -> Result<(), Violation> {
        for _ in 0..LOOKS_MAX {
            self.lane.arm(Wake::Driver);
            if !self.lane.fence_and_ready() {
                return Ok(());
            }
            self.lane.poll(&mut self.log, true)?;
        }
        panic!("the master would look for ever: {:?}", self.lane);
    }

    /// As a submitter does who finds the ring full.
    fn refill(&mut self) -> Result<(), Violation> {
        let mut looks = 0;
        while !self.lane.has_room() && self.lane.half_is_ready() {
            self.lane.poll(&mut self.log, true)?;
            looks += 1;
            assert!(looks < LOOKS_MAX, "room never comes");
        }
        Ok(())
    }

    fn take_back(&mut self) -> Result<(), Violation> {
        let unclaimed = self.lane.unclaimed()?;
        assert!(unclaimed <= self.lane.in_flight() as u64);
        let max = if self.source.one_in(3) { u64::MAX } else { unclaimed.div_ceil(2) };
        for (token, parcel) in self.lane.take_back(max)? {
            self.log.back(token, &parcel);
        }
        Ok(())
    }

    fn cancel(&mut self) {
        let recent = self.source.below(300) as u64;
        let index = (self.indices.len() as u64 + 2).wrapping_sub(recent);
        if let Some(token) = self.lane.cancel(index) {
            assert_eq!(self.indices[index as usize], token);
            self.log.out(token);
        }
    }

    fn answer_call(&mut self) -> Result<(), Violation> {
        let Some(number) = self.log.call.take() else { return Ok(()) };
        let len = self.source.choose(&[0, 1, 1000, WINDOW_BYTES, WINDOW_BYTES + 1, ANSWER_BYTES_MAX]);
        self.lane.answer(number, AnswerKind::Value, AlignedBytes::from(&*vec![7; len]))
    }

    /// One step of the worker's.
    fn worker(&mut self) {
        if self.log.hostile || (self.source.one_in(12) && self.indices.len() > 3) {
            self.peer.turn_hostile();
            self.log.hostile = true;
            if self.source.one_in(3) {
                self.misbehave();
            } else {
                self.pretend();
            }
        } else if self.source.one_in(10) {
            self.call_or_listen();
        } else {
            self.work();
        }
    }

    /// Takes a request, or goes on with the one at hand.
    fn work(&mut self) {
        // Room for whatever comes now: nothing in here may wait for the master.
        if let Err(violation) = self.lane.poll(&mut self.log, true) {
            return self.violated(violation);
        }
        let target = self.peer.target();
        let Some(mut held) = self.held.take() else {
            let request = self.peer.port().and_then(|port| port.try_next_request());
            self.held = request.map(|request| {
                let token = self.indices[request.index as usize];
                assert_eq!(request.code, code(token));
                Held { request, token, stream: None }
            });
            return;
        };
        let (index, sent) = (held.request.index, &self.log.sent[held.token as usize]);
        if sent.input.len() > ARENA_BYTES {
            // What the port would do, in steps.
            let master = self.peer.master();
            let start = master.in_sent.0.load(Ordering::Acquire);
            for _ in 0..sent.input.len() / ARENA_BYTES + 2 {
                target.store(IN_RECEIVED, master.in_sent.0.load(Ordering::Acquire));
                if let Err(violation) = self.lane.poll(&mut self.log, true) {
                    return self.violated(violation);
                }
            }
            assert!(master.in_sent.0.load(Ordering::Acquire) >= start, "a request flows forward");
        }
        let sent = &self.log.sent[held.token as usize];
        let result = result_of(&sent.input);
        let Some(port) = self.peer.port() else { return };
        if sent.input.len() <= ARENA_BYTES {
            let input = port.input(&held.request).expect("a request can be read");
            assert_eq!(&*input, &*sent.input);
        }
        let Some(batch) = sent.batch else {
            return match codec::elements(&result) {
                Some(elements) if result.len() > RESPONSE_INLINE_BYTES && index % 2 == 1 => {
                    port.answer_elements(index, &elements);
                }
                _ => port.answer(index, Status::Value, &result),
            };
        };
        let (start, item) = held.stream.unwrap_or_else(|| (port.open_stream(index, 0, false), batch.done));
        if item == batch.items {
            return port.close_stream(index, start, Status::BatchDone, 0);
        }
        if port.ends_early(index) {
            return port.close_stream(index, start, Status::BatchCut, 0);
        }
        port.append_sized(Status::SizedValue, &record_of(item));
        port.commit();
        held.stream = Some((start, item + 1));
        self.held = Some(held);
    }

    /// Asks the service something, or reads its answer.
    fn call_or_listen(&mut self) {
        let (target, master) = (self.peer.target(), self.peer.master());
        for _ in 0..ANSWER_BYTES_MAX / WINDOW_BYTES + 2 {
            target.store(ANSWER_RECEIVED, master.answer.0.sent.load(Ordering::Acquire));
            if let Err(violation) = self.lane.poll(&mut self.log, true) {
                return self.violated(violation);
            }
        }
        let number = target.load(CALL_NUMBER);
        if master.answer.0.number.load(Ordering::Acquire) == number && self.log.call.is_none() {
            let len = self.source.below(2000) as u64;
            target.store(CALL_TOTAL, len);
            target.store(CALL_NUMBER, number + 1);
            target.store(CALL_SENT, target.load(CALL_SENT) + len);
        }
    }

    /// What a worker does that runs its tasks, written by hand.
    fn pretend(&mut self) {
        let target = self.peer.target();
        let next = self.indices.len() as u64;
        let answered = next - self.lane.in_flight() as u64;
        let claimed = target.load(CLAIM);
        if claimed > answered && claimed <= next {
            if self.theme == Theme::Large {
                target.store(IN_RECEIVED, self.peer.master().in_sent.0.load(Ordering::Acquire));
            }
            if self.source.one_in(2) {
                if !self.is_batch(answered) {
                    target.answer(answered, Status::Value);
                } else if target.load(OUT_TAG) == answered + 1 {
                    target.end_batch(answered);
                } else {
                    target.answer(answered, Status::UnknownTask);
                }
            }
        } else if claimed < next && claimed == answered {
            target.store(CLAIM, claimed + 1);
        }
    }

    fn is_batch(&self, index: u64) -> bool {
        self.log.sent[self.indices[index as usize] as usize].batch.is_some()
    }

    /// Something that no worker does, or one does at another time.
    fn misbehave(&mut self) {
        let target = self.peer.target();
        let next = self.indices.len() as u64;
        let answered = next - self.lane.in_flight() as u64;
        let source = &mut self.source;
        let some_index = answered + source.below(4) as u64;
        let arena_at = self.peer.master().out_received.0.load(Ordering::Acquire);
        let vice = match self.theme {
            Theme::Anything => source.below(VICES),
            Theme::Large => 11,
            Theme::Vice(vice) => vice,
        };
        match vice {
            0..4 => target.scribble(some_index, source),
            4 | 5 => {
                target.store(OUT_START, if source.one_in(3) { source.damaged(arena_at) } else { arena_at });
                target.forge_response(some_index, source);
            }
            6 => {
                // A run of responses, not from the beginning.
                let first = answered + source.below(130) as u64;
                let forge = source.one_in(4);
                for index in first..first + source.below(200) as u64 {
                    if forge {
                        target.forge_response(index, source)
                    } else {
                        target.answer(index, Status::Value)
                    }
                }
            }
            7 => {
                let start = if source.one_in(4) { source.damaged(arena_at) } else { arena_at };
                target.store(OUT_START, start);
                target.store(OUT_TOTAL, source.damaged(self.log.max_payload as u64));
                target.store(OUT_SENT, start.wrapping_add(source.below(100) as u64));
                target.store(OUT_VALUES_END, source.choose(&[start, start.wrapping_add(50), u64::MAX, 0]));
                target.store(OUT_TAG, some_index + 1);
            }
            8 => {
                // A stream flows on and on.
                let step = source.choose(&[1, 128, 5000, ARENA_BYTES as u64, ARENA_BYTES as u64 + 1]);
                target.store(OUT_SENT, target.load(OUT_SENT).wrapping_add(step));
            }
            9 => target.store(
                CLAIM,
                source.choose(&[answered, some_index, some_index + 1, next, next + 1, next - 1]),
            ),
            10 => {
                let len = source.choose(&[0, 5, 5000, WINDOW_BYTES as u64, WINDOW_BYTES as u64 + 1]);
                target.store(CALL_TOTAL, if source.one_in(4) { source.damaged(len) } else { len });
                target.store(CALL_NUMBER, target.load(CALL_NUMBER).wrapping_add(1));
                target.store(CALL_SENT, target.load(CALL_SENT).wrapping_add(len));
            }
            11 => {
                let sent = self.peer.master().in_sent.0.load(Ordering::Acquire);
                target.store(IN_RECEIVED, if source.one_in(2) { source.damaged(sent) } else { sent });
            }
            12 => {
                let sent = self.peer.master().answer.0.sent.load(Ordering::Acquire);
                target.store(ANSWER_RECEIVED, if source.one_in(3) { source.damaged(sent) } else { sent });
            }
            _ => target.store(CLAIM, source.damaged(target.load(CLAIM))),
        }
    }

    /// The worker dies, or is killed; what it leaves comes out. Its memory may still be written to, until it is dropped.
    fn finish(mut self) -> Peer {
        if self.violation.is_some() {
            // What may still be asked of a lane whose worker is about to be killed.
            (0..3).for_each(|_| self.cancel());
            let _ = self.answer_call();
            self.lane.arm(Wake::Nobody);
        }
        if self.source.one_in(2) {
            match self.lane.stop() {
                Ok(unstarted) => unstarted.iter().for_each(|(token, parcel)| self.log.back(*token, parcel)),
                Err(violation) => self.violated(violation),
            }
        }
        if self.violation.is_none() {
            let result = self.lane.poll(&mut self.log, true);
            if let Err(violation) = result {
                self.violated(violation);
            }
        }
        let _ = self.lane.worker_state();
        let Census { unclaimed, running, delivered, .. } = self.lane.census();
        let held = self.log.sent.iter().filter(|sent| !sent.out).count() as u64;
        assert_eq!((unclaimed + running, delivered), (held, self.log.delivered));
        let remains = self.lane.remains();
        assert!(self.log.hostile || (remains.valid && remains.started.len() <= 1));
        let started = remains.started.into_iter().map(|(_, token, parcel)| (token, parcel));
        for (token, parcel) in started.chain(remains.unstarted) {
            self.log.back(token, &parcel);
        }
        for (token, sent) in self.log.sent.iter().enumerate() {
            assert!(sent.out, "token {token} is lost");
        }
        self.peer
    }
}
