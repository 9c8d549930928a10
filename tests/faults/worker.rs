//! Workers that die at a kill point.

use forkring::faults::{self, Point, arm, deaths, victim};
use forkring::{Granularity, TaskError, View};

use crate::load::{
    Blame, EXITS, Here, Holdings, Tested, at_full_strength, build, gated_echo, idle, judge, numbered, run,
};
use crate::support::{counter, eventually, gate, scenario};

/// Each point kills in three passages: the first, the next, one in the thick of it.
const PASSAGES: [u32; 3] = [1, 2, 7];

/// The load is run until somebody has died; so many times at most.
const LOADS_MAX: usize = 200;

/// A worker dies at `point` under the load.
fn under_load(point: Point, blame: Blame) {
    let before = Holdings::now();
    let pool = build().unwrap();
    judge(&run(&pool), Blame::Nobody, 0);
    at_full_strength(&pool);
    let usual = Holdings::now();
    for passage in PASSAGES {
        dies_once(&pool, point, passage, blame);
        at_full_strength(&pool);
        usual.again();
    }
    judge(&run(&pool), Blame::Nobody, 0);
    closes(&pool, &before);
    assert_eq!(counter(EXITS).get(), 2, "who is left leaves in order");
}

#[track_caller]
fn dies_once(pool: &Tested, point: Point, passage: u32, blame: Blame) {
    let so_far = deaths();
    let dead = || deaths() > so_far;
    arm(point, passage);
    for _ in 0..LOADS_MAX {
        // A load that has nothing to do with a death is not touched by it.
        let outcomes = run(pool);
        let in_time = dead();
        if in_time {
            judge(&outcomes, blame, victim());
        } else {
            judge(&outcomes, Blame::Nobody, 0);
        }
        // Points on the way to sleep are passed after the load.
        idle(pool, dead);
        if dead() {
            assert_eq!(deaths(), so_far + 1);
            return;
        }
    }
    faults::disarm();
    panic!("nobody came by at {point:?} for the time {passage}");
}

#[track_caller]
fn closes(pool: &Tested, before: &Holdings) {
    pool.close().wait();
    before.again();
}

/// A worker dies at `point` before it is ready: the first ones, and a replacement.
fn at_start(point: Point) {
    let before = Holdings::now();
    for passage in [1, 2] {
        arm(point, passage);
        let error = build().unwrap_err().to_string();
        assert!(error.contains("before it was ready") && error.contains("SIGKILL"), "{error}");
        before.again();
    }
    assert_eq!(deaths(), 2);
    replaced_again(point, &before);
}

/// A worker dies at `point`, from where on the master may know that it is ready.
fn when_ready(point: Point) {
    let before = Holdings::now();
    for passage in [1, 2] {
        arm(point, passage);
        match build() {
            Ok(pool) => {
                eventually("a death", || deaths() == u64::from(passage));
                at_full_strength(&pool);
                closes(&pool, &before);
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("before it was ready") && error.contains("SIGKILL"), "{error}");
                before.again();
            }
        }
    }
    assert_eq!(deaths(), 2);
    replaced_again(point, &before);
}

/// A worker crashes, its replacement dies at `point`, and the next one serves.
fn replaced_again(point: Point, before: &Holdings) {
    let pool = build().unwrap();
    judge(&run(&pool), Blame::Nobody, 0);
    at_full_strength(&pool);
    let usual = Holdings::now();
    for _ in 0..3 {
        let so_far = deaths();
        arm(point, 1);
        let crash = pool.submit_with(|_: &Here, _: &View<()>| -> () { std::process::abort() }, &());
        let outcomes = run(&pool);
        assert!(crash.wait().unwrap_err().is_worker_lost());
        judge(&outcomes, Blame::Nobody, 0);
        eventually("a death", || deaths() > so_far);
        at_full_strength(&pool);
        usual.again();
    }
    closes(&pool, before);
}

/// A worker dies at `point` when the pool closes.
fn at_leave(point: Point, exits: u32) {
    let before = Holdings::now();
    for passage in [1, 2] {
        let pool = build().unwrap();
        judge(&run(&pool), Blame::Nobody, 0);
        let (so_far, left) = (deaths(), counter(EXITS).get());
        arm(point, passage);
        closes(&pool, &before);
        assert_eq!(deaths(), so_far + 1);
        assert_eq!(counter(EXITS).get(), left + exits);
    }
}

/// Waits on this thread, and lets another one arm `point` and open gate `n` when this one has gone to sleep. So nobody
/// but the driver can find what the dying worker has left.
fn asleep_while<R>(point: Point, n: usize, wait: impl FnOnce() -> R) -> R {
    let waiter = nix::unistd::gettid();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let stat = format!("/proc/self/task/{waiter}/stat");
            eventually("the waiter's sleep", || {
                let stat = std::fs::read_to_string(&stat).unwrap();
                stat.rsplit_once(')').unwrap().1.starts_with(" S")
            });
            arm(point, 1);
            gate(n).open();
        });
        wait()
    })
}

#[test]
fn what_is_published_outlives_its_worker() {
    scenario(|| {
        let pool = build().unwrap();
        let cases = [
            (Point::InlinePublished, 8),
            (Point::SpanPublished, 1000),
            (Point::StreamPublished, 5 << 20),
            (Point::RingingWaiter, 8),
            (Point::RingingWaiter, 1000),
            (Point::Answered, 8),
        ];
        for (n, (point, bytes)) in (0..).zip(cases) {
            let input = numbered(n, bytes);
            let task = pool.submit_with(gated_echo, &input);
            let result = asleep_while(point, n, || task.wait());
            assert!(result.unwrap() == input, "{point:?}, {bytes} bytes");
            eventually("a death", || deaths() == n as u64 + 1);
            at_full_strength(&pool);
        }
    });
}

#[test]
fn a_committed_record_outlives_its_worker() {
    scenario(|| {
        let pool = build().unwrap();
        // Two items in one message, the first one gated; whether the second one is lost.
        let cases = [
            (Point::Committed, true),
            (Point::RecordDone, true),
            (Point::BatchUnpublished, false),
            (Point::BatchPublished, false),
        ];
        for (n, (point, lost)) in (0..).zip(cases) {
            // The second item passes its gate because it is the same one.
            let items = vec![numbered(n, 40); 2];
            let stream = pool.map_with(items, gated_echo).granularity(Granularity::Fixed(2));
            let results: Vec<_> = asleep_while(point, n, || stream.collect());
            assert!(results[0].as_ref().is_ok_and(|first| *first == numbered(n, 40)), "{point:?}");
            assert_eq!(results[1].as_ref().is_err_and(TaskError::is_worker_lost), lost, "{point:?}");
            at_full_strength(&pool);
        }
    });
}

crate::kill_points! {
    worker_forked => at_start(WorkerForked);
    worker_unmapped => at_start(WorkerUnmapped);
    worker_mapped => at_start(WorkerMapped);
    initialised => at_start(Initialised);
    unready => at_start(Unready);
    state_unannounced => when_ready(StateUnannounced);
    ready => when_ready(Ready);

    sleep_stored => under_load(SleepStored, Blame::Whoever);
    drowsy => under_load(Drowsy, Blame::Whoever);
    woken => under_load(Woken, Blame::Whoever);
    request_seen => under_load(RequestSeen, Blame::Nobody);
    claimed => under_load(Claimed, Blame::Claimed);

    resolved => under_load(Resolved, Blame::Claimed);
    receive_opened => under_load(ReceiveOpened, Blame::Claimed);
    chunk_seen => under_load(ChunkSeen, Blame::Claimed);
    chunk_copied => under_load(ChunkCopied, Blame::Claimed);
    chunk_received => under_load(ChunkReceived, Blame::Claimed);
    part_seen => under_load(PartSeen, Blame::Claimed);
    before_function => under_load(BeforeFunction, Blame::Claimed);
    after_function => under_load(AfterFunction, Blame::Started);
    panic_caught => under_load(PanicCaught, Blame::Started);
    encoded => under_load(Encoded, Blame::Started);

    inline_written => under_load(InlineWritten, Blame::Started);
    inline_published => under_load(InlinePublished, Blame::Nobody);
    span_reserved => under_load(SpanReserved, Blame::Started);
    span_copied => under_load(SpanCopied, Blame::Started);
    span_published => under_load(SpanPublished, Blame::Nobody);
    stream_untagged => under_load(StreamUntagged, Blame::Running);
    stream_opened => under_load(StreamOpened, Blame::Running);
    part_copied => under_load(PartCopied, Blame::Started);
    committed => under_load(Committed, Blame::Whoever);
    part_committed => under_load(PartCommitted, Blame::Started);
    stream_unpublished => under_load(StreamUnpublished, Blame::Started);
    stream_published => under_load(StreamPublished, Blame::Nobody);
    answered => under_load(Answered, Blame::Nobody);

    ringing_driver => under_load(RingingDriver, Blame::Whoever);
    ringing_waiter => under_load(RingingWaiter, Blame::Whoever);

    record_torn => under_load(RecordTorn, Blame::Started);
    record_uncommitted => under_load(RecordUncommitted, Blame::Started);
    values_ended => under_load(ValuesEnded, Blame::Started);
    record_done => under_load(RecordDone, Blame::Whoever);
    batch_unpublished => under_load(BatchUnpublished, Blame::Nobody);
    batch_published => under_load(BatchPublished, Blame::Nobody);

    call_unnumbered => under_load(CallUnnumbered, Blame::Started);
    call_numbered => under_load(CallNumbered, Blame::Started);
    call_copied => under_load(CallCopied, Blame::Started);
    call_sent => under_load(CallSent, Blame::Started);
    answer_seen => under_load(AnswerSeen, Blame::Started);
    answer_copied => under_load(AnswerCopied, Blame::Started);
    answer_received => under_load(AnswerReceived, Blame::Started);

    leaving => at_leave(Leaving, 1);
    left => at_leave(Left, 2);
}
