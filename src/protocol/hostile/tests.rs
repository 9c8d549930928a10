use std::time::{SystemTime, UNIX_EPOCH};

use super::target::{OUT_ELEMENT, SLEEPING};
use super::*;
use crate::protocol::wire::{FLOW_MIN_BYTES, Order, PART_BYTES, Place};

/// A seed that is different each time, or the one that is asked for by `FORKRING_SEED`.
fn seed() -> u64 {
    match std::env::var("FORKRING_SEED") {
        Ok(seed) => seed.parse().expect("FORKRING_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64 | 1),
    }
}

/// Splitmix.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut word = *state;
    word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ word >> 31
}

/// Names the seed of a round that does not end well.
struct Round(u64);

impl Drop for Round {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to play this round first: FORKRING_SEED={}", self.0);
        }
    }
}

/// Calls `play` with random bytes, up to `max` of them.
fn rounds(count: usize, max: u64, mut play: impl FnMut(&[u8])) {
    let mut seed = seed();
    for _ in 0..count {
        let round = Round(seed);
        let len = next(&mut seed) % max;
        let bytes: Vec<u8> = (0..len).map(|_| (next(&mut seed) >> 32) as u8).collect();
        play(&bytes);
        drop(round);
    }
}

#[test]
fn the_master_survives_whatever_a_worker_writes() {
    rounds(1_000, 1_500, lane);
}

#[test]
fn any_bytes_are_records_or_not() {
    rounds(20_000, 300, records);
    // Mostly well-formed ones.
    let mut at = 0_u64;
    rounds(2_000, 300, |bytes| {
        at += 1;
        let mut stream = vec![0, 2];
        for chunk in bytes.chunks(20) {
            stream
                .extend_from_slice(&crate::protocol::records::sized_header(Status::SizedValue, chunk.len()));
            stream.extend_from_slice(chunk);
        }
        if let Some(&byte) = bytes.first() {
            let len = stream.len();
            stream[(usize::from(byte) * 7) % len] ^= 1 << (at % 8);
        }
        records(&stream);
    });
}

#[test]
fn any_bytes_are_values_or_errors() {
    rounds(50_000, 120, codec);
    // Offsets and lengths that are small lead into the archive.
    rounds(50_000, 120, |bytes| {
        let small: Vec<u8> = bytes
            .iter()
            .enumerate()
            .map(|(i, &byte)| if i % 4 == 1 { byte % 64 } else { byte % 2 * 255 })
            .collect();
        codec(&small);
    });
}

/// A lane that holds one request of so many bytes, which the worker has claimed.
fn claimed(bytes: usize) -> (Lane<u64>, Peer, Log) {
    let (region, fds) = Region::create().unwrap();
    let mut lane = Lane::new(region, 64 << 20);
    let sent = Sent { input: Vec::new(), batch: None, out: false, records: Vec::new(), in_records: false };
    let log =
        Log { sent: vec![sent], delivered: 0, max_payload: 64 << 20, hostile: true, calls: 0, call: None };
    let input = Encoded::Heap(AlignedBytes::from(&*vec![0; bytes]));
    lane.push(0, Parcel { code: code(0), batch: None, input }).unwrap();
    let peer = Peer::new(&fds);
    peer.target().store(CLAIM, 1);
    (lane, peer, log)
}

/// Edge TOLD: the worker's flag was not to be seen when the request was published, and is when the response before it is taken.
#[test]
fn a_worker_that_fell_asleep_with_a_response_is_rung_for_what_it_has_not_seen() {
    let (mut lane, peer, mut log) = claimed(8);
    let rings = || peer.master().bell.0.rings();
    let mut seen = rings();
    let respond = |index| {
        peer.target().store(SLEEPING, 2 * index + 1);
        peer.target().answer(index, Status::Value);
    };
    let push = |lane: &mut Lane<u64>, log: &mut Log, token| {
        log.sent.push(Sent {
            input: Vec::new(),
            batch: None,
            out: false,
            records: Vec::new(),
            in_records: false,
        });
        let input = Encoded::Heap(AlignedBytes::from(&*vec![0; 8]));
        lane.push(token, Parcel { code: code(0), batch: None, input }).unwrap();
    };
    push(&mut lane, &mut log, 1);
    assert_eq!(rings(), seen);
    respond(0);
    assert_eq!(lane.poll(&mut log, true).unwrap(), 1);
    seen += 1;
    assert_eq!(rings(), seen, "for the second request");
    assert_eq!(lane.poll(&mut log, true).unwrap(), 0);
    assert_eq!(rings(), seen, "once for each nap");
    peer.target().store(CLAIM, 2);
    respond(1);
    assert_eq!(lane.poll(&mut log, true).unwrap(), 1);
    assert_eq!(rings(), seen, "there is nothing more");
    // The flag cannot be missed any more.
    push(&mut lane, &mut log, 2);
    lane.ring_if_asleep();
    seen += 1;
    assert_eq!(rings(), seen);
    peer.target().store(SLEEPING, 4);
    lane.order(Order::Exit);
    assert_eq!(rings(), seen);
    peer.target().store(CLAIM, 3);
    respond(2);
    assert_eq!(lane.poll(&mut log, true).unwrap(), 1);
    assert_eq!(rings(), seen + 1, "to see the order");
}

#[test]
fn a_request_that_flows_backwards_is_a_violation() {
    let (mut lane, peer, mut log) = claimed(3 * ARENA_BYTES);
    lane.poll(&mut log, true).unwrap();
    peer.target().store(IN_RECEIVED, peer.master().in_sent.0.load(Ordering::Acquire));
    lane.poll(&mut log, true).unwrap();
    // Two arenas are sent; this says that nothing of it has been read after all.
    peer.target().store(IN_RECEIVED, 0);
    assert!(lane.poll(&mut log, true).is_err());
    assert_eq!(lane.remains().started.len(), 1);
}

#[test]
fn the_claim_word_never_goes_back_nor_beyond_what_was_sent() {
    for nonsense in [0, 2, 1 << 63, u64::MAX] {
        let (mut lane, peer, mut log) = claimed(10);
        lane.poll(&mut log, true).unwrap();
        peer.target().store(CLAIM, nonsense);
        assert!(lane.fence_and_ready(), "there is something to look at");
        assert!(lane.poll(&mut log, true).is_err() && lane.unclaimed().is_err());
        assert!(!lane.remains().valid);
    }
}

#[test]
fn a_worker_that_scribbles_meanwhile_is_survived() {
    let over = std::sync::atomic::AtomicBool::new(false);
    rounds(150, 1_500, |bytes| {
        over.store(false, Ordering::Relaxed);
        let mut scenario = Scenario::new(bytes);
        scenario.log.hostile = true;
        let target = scenario.peer.target();
        // Mapped for as long as somebody scribbles.
        let peer = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let mut source = Source::new(bytes);
                    while !source.is_empty() && !over.load(Ordering::Relaxed) {
                        target.scribble(source.below(300) as u64, &mut source);
                        target.forge_response(source.below(300) as u64, &mut source);
                    }
                }
            });
            let _stop = Stop(&over);
            while !scenario.source.is_empty() && scenario.violation.is_none() {
                scenario.push();
                scenario
                    .take_back()
                    .and_then(|()| scenario.lane.poll(&mut scenario.log, true))
                    .unwrap_or_else(|violation| {
                        scenario.violation = Some(violation);
                        0
                    });
                scenario.cancel();
            }
            scenario.finish()
        });
        drop(peer);
    });
}

/// Ends the scribbling, also where the master panics.
struct Stop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn cutting_marks_the_batch_that_runs_though_an_earlier_answer_is_unread() {
    let mut scenario = Scenario::new(&[]);
    scenario.push_parcel(vec![1], None);
    scenario.push_parcel(vec![9; 90], Some(Batch { items: 10, done: 0, timed: false }));
    let first = scenario.peer.port().unwrap().try_next_request().unwrap();
    scenario.peer.port().unwrap().answer(first.index, Status::Value, &result_of(&[1]));
    let second = scenario.peer.port().unwrap().try_next_request().unwrap();
    assert!(second.batch.is_some());
    assert!(scenario.lane.stop().unwrap().is_empty());
    assert!(!scenario.peer.port().unwrap().cancelled(second.index), "it may finish its batch");
    scenario.lane.cut();
    scenario.lane.poll(&mut scenario.log, true).unwrap();
    assert_eq!(scenario.lane.running().unwrap().index, second.index);
    assert!(scenario.peer.port().unwrap().cancelled(second.index));
}

const TEN: Batch = Batch { items: 10, done: 0, timed: false };

/// A scenario with one batch of ten items, by way of `push_batch`, which the worker has begun: so many have their results.
fn begun(done: u32) -> (Scenario<'static>, u64) {
    begun_of(TEN, done)
}

fn begun_of(batch: Batch, done: u32) -> (Scenario<'static>, u64) {
    let mut scenario = Scenario::new(&[]);
    let input = vec![5; 100];
    assert_eq!(scenario.lane.push_batch(0, code(0), batch, &input), Ok(0));
    scenario.indices.push(0);
    let sent = Sent { input, batch: Some(batch), out: false, records: Vec::new(), in_records: false };
    scenario.log.sent.push(sent);
    let port = scenario.peer.port().unwrap();
    let request = port.try_next_request().unwrap();
    assert_eq!((request.batch, &*port.input(&request).unwrap()), (Some((10, 0)), &[5; 100][..]));
    let start = port.open_stream(0, 0, false);
    for item in 0..done {
        port.append_sized(Status::SizedValue, &record_of(item));
        port.commit();
    }
    scenario.lane.poll(&mut scenario.log, true).unwrap();
    (scenario, start)
}

/// The results of the first items of the batch of ten.
fn first_records(items: u32) -> Vec<u8> {
    records_of(Batch { items, ..TEN })
}

/// Whoever is about to sleep is rung at the end of a quiet batch, and looks earlier only if the worker may have to wait for him.
#[test]
fn items_of_a_quiet_batch_are_no_news_unless_they_are_many() {
    for quiet in [false, true] {
        let (mut scenario, start) = begun_of(Batch { timed: quiet, ..TEN }, 3);
        let port = scenario.peer.port().unwrap();
        for item in 3..10 {
            port.append_sized(Status::SizedValue, &record_of(item));
            port.commit();
        }
        assert_eq!(scenario.lane.fence_and_ready(), !quiet);
        port.close_stream(0, start, Status::BatchDone, 0);
        assert!(scenario.lane.fence_and_ready());
        scenario.lane.poll(&mut scenario.log, true).unwrap();
        assert_eq!(scenario.log.sent[0].records, first_records(10));
        drop(scenario.finish());
    }
    let (mut scenario, _) = begun_of(Batch { timed: true, ..TEN }, 3);
    let port = scenario.peer.port().unwrap();
    port.append(&[0; 100 << 10]);
    port.commit();
    assert!(scenario.lane.fence_and_ready());
}

#[test]
fn a_shortened_batch_ends_and_comes_back_whole() {
    let (mut scenario, start) = begun(3);
    let parcel = scenario.lane.shorten(0).expect("it runs");
    assert_eq!((parcel.input.as_bytes(), parcel.batch), (&[5; 100][..], Some(TEN)));
    scenario.lane.poll(&mut scenario.log, true).unwrap();
    let port = scenario.peer.port().unwrap();
    assert!(port.ends_early(0) && !port.cancelled(0), "the item that runs does not notice");
    // The one that was running ends.
    port.append_sized(Status::SizedValue, &record_of(3));
    port.commit();
    port.close_stream(0, start, Status::BatchCut, 0);
    scenario.lane.poll(&mut scenario.log, true).unwrap();
    let sent = &scenario.log.sent[0];
    assert!(sent.out && scenario.log.delivered == 1);
    assert_eq!(sent.records, first_records(4));
    drop(scenario.finish());
}

/// It had come to its last item when the mark was set.
#[test]
fn a_batch_that_is_shortened_too_late_is_done() {
    let (mut scenario, start) = begun(9);
    assert!(scenario.lane.shorten(0).is_some());
    let port = scenario.peer.port().unwrap();
    port.append_sized(Status::SizedValue, &record_of(9));
    port.commit();
    port.close_stream(0, start, Status::BatchDone, 0);
    scenario.lane.poll(&mut scenario.log, true).unwrap();
    assert!(scenario.log.sent[0].out);
    assert_eq!(scenario.log.sent[0].records, first_records(10));
    assert!(scenario.lane.shorten(0).is_none(), "it is over");
    drop(scenario.finish());
}

#[test]
fn only_a_batch_that_runs_is_shortened() {
    let (mut scenario, _) = begun(1);
    assert!(scenario.lane.shorten(1).is_none(), "there is no such request");
    scenario.push_parcel(vec![9; 90], Some(TEN));
    assert!(scenario.lane.shorten(1).is_none(), "it waits");
    scenario.lane.ask_to_stop();
    scenario.lane.cut();
    assert!(scenario.lane.shorten(0).is_none(), "it is stopped anyway");
    // A single task; and one whose input flows, so that it cannot be read again.
    for (bytes, batch) in [(10, None), (3 * ARENA_BYTES, Some(TEN))] {
        let mut scenario = Scenario::new(&[]);
        scenario.log.max_payload = 64 << 20;
        let (region, fds) = Region::create().unwrap();
        scenario.peer = Peer::new(&fds);
        scenario.lane = Lane::new(region, 64 << 20);
        scenario.push_parcel(vec![9; bytes], batch);
        assert!(scenario.lane.shorten(0).is_none());
        scenario.peer.target().store(CLAIM, 1);
        scenario.lane.poll(&mut scenario.log, true).unwrap();
        assert!(scenario.lane.running().is_some() && scenario.lane.shorten(0).is_none(), "{bytes}");
    }
}

#[test]
fn a_batch_that_was_cut_and_not_marked_is_a_violation() {
    for shortened in [false, true] {
        let (mut scenario, start) = begun(2);
        assert!(!shortened || scenario.lane.shorten(0).is_some());
        scenario.log.hostile = true;
        scenario.peer.port().unwrap().close_stream(0, start, Status::BatchCut, 0);
        let polled = scenario.lane.poll(&mut scenario.log, true);
        assert_eq!((polled.is_ok(), scenario.log.sent[0].out), (shortened, shortened));
    }
}

/// A worker that is told to end a batch may still do as it likes: what it then publishes is read as ever.
#[test]
fn a_shortened_worker_that_goes_on_is_read_as_any() {
    rounds(300, 200, |bytes| {
        let (mut scenario, _) = begun(3);
        scenario.log.hostile = true;
        assert!(scenario.lane.shorten(0).is_some());
        let (target, mut source) = (scenario.peer.target(), Source::new(bytes));
        while !source.is_empty() && scenario.violation.is_none() {
            match source.below(3) {
                0 => target.scribble(0, &mut source),
                1 => target.forge_response(0, &mut source),
                _ => target.store(OUT_SENT, target.load(OUT_SENT) + source.below(60) as u64),
            }
            if let Err(violation) = scenario.lane.poll(&mut scenario.log, true) {
                scenario.violation = Some(violation);
            }
        }
        drop(scenario.finish());
    });
}

/// A batch that does not fit at once is its caller's again, token and all, and nothing of it is there.
#[test]
fn a_batch_without_room_is_given_back() {
    let mut scenario = Scenario::new(&[]);
    let half = vec![7; ARENA_BYTES / 2];
    let push = |scenario: &mut Scenario<'_>, token| scenario.lane.push_batch(token, code(token), TEN, &half);
    assert_eq!((push(&mut scenario, 0), push(&mut scenario, 1)), (Ok(0), Ok(1)));
    assert_eq!(push(&mut scenario, 2), Err(2), "the arena is full");
    assert_eq!(scenario.lane.push_batch(3, code(3), TEN, &vec![7; ARENA_BYTES + 1]), Err(3), "it never fits");
    assert_eq!(scenario.lane.in_flight(), 2);
    let back = scenario.lane.take_back(2).unwrap();
    let whole = |(token, parcel): (u64, Parcel)| (token, parcel.input.as_bytes() == half);
    assert_eq!(back.into_iter().map(whole).collect::<Vec<_>>(), [(0, true), (1, true)]);
    // While a request flows, nothing goes past it.
    let mut scenario = Scenario::new(&[]);
    scenario.lane = Lane::new(Region::create().unwrap().0, 64 << 20);
    let large = Encoded::Heap(AlignedBytes::from(&*vec![0; 2 * ARENA_BYTES]));
    scenario.lane.push(0, Parcel { code: code(0), batch: None, input: large }).unwrap();
    assert_eq!(scenario.lane.push_batch(1, code(1), TEN, &[1; 100]), Err(1));
}

/// A row of numbers of a few parts, to the worker and back.
#[test]
fn rows_of_numbers_travel_both_ways() {
    let mut scenario = Scenario::new(&[]);
    scenario.log.max_payload = 8 << 20;
    scenario.lane = {
        let (region, fds) = Region::create().unwrap();
        scenario.peer = Peer::new(&fds);
        Lane::new(region, 8 << 20)
    };
    for count in [30, 1000, FLOW_MIN_BYTES / 2 - 1, FLOW_MIN_BYTES / 2, 5 * PART_BYTES + 7] {
        let row: Vec<u16> = (0..count).map(|i| (i * 7) as u16).collect();
        let elements = codec::elements(&row).unwrap();
        let index = scenario.lane.push_elements(scenario.log.sent.len() as u64, code(0), &elements).unwrap();
        scenario.log.sent.push(Sent {
            input: Vec::new(),
            batch: None,
            out: false,
            records: Vec::new(),
            in_records: false,
        });
        let port = scenario.peer.port().unwrap();
        let request = port.try_next_request().unwrap();
        assert_eq!(request.flows(), elements.bytes().len() >= FLOW_MIN_BYTES);
        if request.flows() {
            let received = port.receive_elements(&request, elements.size()).unwrap();
            assert_eq!(received.into_value::<Vec<u16>>().unwrap(), row);
        }
        let whole = port.input(&request).unwrap();
        assert_eq!(codec::decode::<Vec<u16>>(&whole).unwrap(), row);
        port.answer_elements(index, &elements);
        let mut last = Last(None);
        scenario.lane.poll(&mut last, true).unwrap();
        let Some(Encoded::Elements(body)) = last.0 else { panic!("{:?} instead of elements", last.0) };
        assert_eq!(body.into_value::<Vec<u16>>().unwrap(), row);
    }
}

/// What a worker says about the elements is checked: their size, that the last one is whole, that what flowed is what its head
/// says in the end.
#[test]
fn rows_of_numbers_are_checked() {
    for (open_as, element, bytes, fine) in [
        (0, 4_u8, 100_u64, true),
        (0, 3, 100, false),
        (0, 8, 100, false),
        (0, 32, 128, false),
        (4, 4, 100, true),
        (4, 2, 100, false),
        (4, 0, 100, false),
        (3, 3, 99, false),
        (1 << 32, 4, 100, false),
    ] {
        let (mut lane, peer, _) = claimed(10);
        let target = peer.target();
        let place = if open_as == 0 { Place::Span } else { Place::Stream };
        let mut last = Last(None);
        if place == Place::Stream {
            for (at, value) in
                [(OUT_START, 0), (OUT_SENT, bytes), (OUT_TOTAL, bytes), (OUT_ELEMENT, open_as), (OUT_TAG, 1)]
            {
                target.store(at, value);
            }
            if lane.poll(&mut last, true).is_err() {
                assert!(!fine, "{open_as} {element} {bytes}");
                continue;
            }
        }
        target.store_response(0, [0, bytes], place, element);
        assert_eq!(lane.poll(&mut last, true).is_ok(), fine, "{open_as} {element} {bytes}");
        assert_eq!(last.0.is_some(), fine);
    }
}

/// Keeps the body of the last reply.
struct Last(Option<Encoded>);

impl Sink<u64> for Last {
    fn reply(&mut self, _: u64, reply: Reply) {
        assert_eq!(reply.status, Status::Value);
        self.0 = Some(reply.body);
    }

    fn cut(&mut self, _: u64, _: Parcel) {}
    fn results(&mut self, _: &mut u64, _: Form, _: ArenaReader<'_>, _: u64, _: usize) {}
    fn call(&mut self, _: u64, _: AlignedBytes) {}
}
