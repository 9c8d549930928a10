//! What it costs to bring a value into its archive, to validate that, and to bring it back: for `u64`, `String`, a
//! struct of 128 bytes and a `Vec<f32>` of 1 MiB, beside a memcpy of as many bytes. Then what that is worth in a round
//! trip through a pool, beside one that carries nothing. All in one process run, taking turns; every value is checked.
//!
//! The crate's own encoding is not public. What is measured is rkyv's, which anybody has through `forkring::rkyv`, into
//! a buffer that is used again; the crate is faster for plain numbers and their vectors, which it copies, and is seen in
//! the round trips. `OwnedArchive` is the crate's own way back.

mod common;

use std::fmt::Debug;
use std::hint::black_box;
use std::time::Duration;

use common::{Contender, Mode, alternate, ns_each, percentiles, timed};
use criterion::{BenchmarkId, Criterion};
use forkring::rkyv::api::high::to_bytes_in;
use forkring::rkyv::rancor::Error;
use forkring::rkyv::util::AlignedVec;
use forkring::rkyv::{Archive, Archived, Deserialize, Serialize, access, deserialize};
use forkring::{OwnedArchive, Payload, Pool};

#[derive(Archive, Serialize, Deserialize, Clone, PartialEq, Debug)]
#[rkyv(crate = forkring::rkyv)]
struct Record {
    key: u64,
    prices: [f64; 8],
    amounts: [u32; 8],
    from: i64,
    until: i64,
    flags: [u8; 8],
}

const _: () = assert!(size_of::<Record>() == 128);

const FLOATS: usize = (1 << 20) / size_of::<f32>();

/// A value, and what is done with it.
struct Case<T: Payload> {
    name: &'static str,
    value: T,
    archive: AlignedVec,
    owned: OwnedArchive<T>,
    /// How often the steps of one turn are done.
    turns: u64,
    serialize: fn(&T, AlignedVec) -> AlignedVec,
    validate: fn(&[u8]),
    deserialize: fn(&[u8]) -> T,
    send: fn(&Pool, &T),
    echo: fn(&Pool, &T) -> T,
}

/// The steps for a type, which a generic function could name only with all of rkyv's bounds.
macro_rules! case {
    ($pool:expr, $name:literal, $turns:expr, $type:ty, $value:expr) => {{
        let value: $type = $value;
        let serialize = |value: &$type, to: AlignedVec| {
            to_bytes_in::<_, Error>(black_box(value), to).expect("an archive")
        };
        Case::<$type> {
            name: $name,
            archive: serialize(&value, AlignedVec::new()),
            owned: $pool.submit(|value: $type| value, &value).archived().wait().expect("a reply"),
            value,
            turns: $turns,
            serialize,
            validate: |bytes| {
                black_box(access::<Archived<$type>, Error>(black_box(bytes)).expect("a valid archive"));
            },
            deserialize: |bytes| {
                let archived = access::<Archived<$type>, Error>(black_box(bytes)).expect("a valid archive");
                deserialize::<$type, Error>(archived).expect("a value")
            },
            send: |pool, value| {
                pool.submit(take::<$type>, black_box(value)).wait().expect("a reply");
            },
            echo: |pool, value| pool.submit(|value: $type| value, black_box(value)).wait().expect("a reply"),
        }
    }};
}

/// In the worker: has the value, and lets it go.
fn take<T>(value: T) {
    black_box(&value);
}

fn main() {
    let mode = Mode::from_args();
    let pool = Pool::new(1).expect("a pool");
    let mut criterion = common::criterion();
    let (many, few) = (mode.pick(1_000_000, 100), mode.pick(200, 3));
    let text = "The quick brown fox jumps over the lazy dog, and so on.";
    let record = Record {
        key: 7,
        prices: [1.5; 8],
        amounts: [3; 8],
        from: -1,
        until: 1,
        flags: [1, 0, 1, 0, 1, 0, 1, 0],
    };
    case!(pool, "u64", many, u64, 7).run(mode, &pool, &mut criterion);
    case!(pool, "String of 55 bytes", many, String, text.to_owned()).run(mode, &pool, &mut criterion);
    case!(pool, "struct of 128 bytes", many, Record, record).run(mode, &pool, &mut criterion);
    let floats = (0..FLOATS).map(|at| at as f32).collect();
    case!(pool, "Vec<f32> of 1 MiB", few, Vec<f32>, floats).run(mode, &pool, &mut criterion);
    criterion.final_summary();
}

impl<T: Payload + PartialEq + Debug> Case<T> {
    fn run(&self, mode: Mode, pool: &Pool, criterion: &mut Criterion) {
        self.check(pool);
        if mode != Mode::List {
            self.compare_steps(mode);
            self.compare_trips(mode, pool);
        }
        self.bench(criterion, pool);
    }

    fn check(&self, pool: &Pool) {
        let mut again = self.archive.clone();
        again.clear();
        assert_eq!((self.serialize)(&self.value, again).as_slice(), self.archive.as_slice());
        (self.validate)(&self.archive);
        assert_eq!((self.deserialize)(&self.archive), self.value);
        assert_eq!(self.owned.deserialize().expect("a value"), self.value);
        (self.send)(pool, &self.value);
        assert_eq!((self.echo)(pool, &self.value), self.value);
    }

    fn serialize_into(&self, buffer: &mut AlignedVec) {
        let mut to = std::mem::take(buffer);
        to.clear();
        *buffer = (self.serialize)(&self.value, to);
        black_box(buffer.as_slice());
    }

    fn compare_steps(&self, mode: Mode) {
        let turns = self.turns;
        let each = |work: &mut dyn FnMut()| [ns_each(turns, || (0..turns).for_each(|_| work()))];
        let mut copy = vec![0_u8; self.archive.len()];
        let mut buffer = self.archive.clone();
        let results = alternate(
            mode.rounds(),
            vec![
                Contender::new("memcpy of the archive", || {
                    each(&mut || {
                        copy.copy_from_slice(black_box(&self.archive));
                        black_box(&copy);
                    })
                }),
                Contender::new("rkyv: serialize", || each(&mut || self.serialize_into(&mut buffer))),
                Contender::new("rkyv: validate", || each(&mut || (self.validate)(&self.archive))),
                Contender::new("rkyv: validate and deserialize", || {
                    each(&mut || drop(black_box((self.deserialize)(&self.archive))))
                }),
                Contender::new("OwnedArchive::deserialize", || {
                    each(&mut || drop(black_box(black_box(&self.owned).deserialize().expect("a value"))))
                }),
            ],
        );
        let title = format!("{}, an archive of {} bytes: ns a value", self.name, self.archive.len());
        results.print(&title, ["ns"]);
    }

    fn compare_trips(&self, mode: Mode, pool: &Pool) {
        let limit = mode.pick(Duration::from_millis(500), Duration::from_millis(20));
        let samples = mode.pick(50_000, 100);
        let micros = |figures: [f64; 3]| figures.map(|ns| ns / 1000.0);
        let results = alternate(
            mode.rounds(),
            vec![
                Contender::new("() in and out", || {
                    micros(percentiles(samples, limit, |_| {
                        pool.submit(|nothing: ()| nothing, black_box(&())).wait().expect("a reply");
                    }))
                }),
                Contender::new("the value in, () out", || {
                    micros(percentiles(samples, limit, |_| (self.send)(pool, &self.value)))
                }),
                Contender::new("the value in and out", || {
                    micros(percentiles(samples, limit, |_| drop(black_box((self.echo)(pool, &self.value)))))
                }),
            ],
        );
        results.print(&format!("{}: a round trip, µs", self.name), ["p50", "p99", "p99.9"]);
        println!(
            "{:.3} µs more for the value there, {:.3} µs more for the value back",
            results.figure(1, 0) - results.figure(0, 0),
            results.figure(2, 0) - results.figure(1, 0)
        );
    }

    fn bench(&self, criterion: &mut Criterion, pool: &Pool) {
        let mut buffer = self.archive.clone();
        let mut group = criterion.benchmark_group("codec");
        let mut add = |step: &str, run: &mut dyn FnMut()| {
            group.bench_function(BenchmarkId::new(step, self.name), |b| {
                b.iter_custom(|n| timed(|| (0..n).for_each(|_| run())));
            });
        };
        add("serialize", &mut || self.serialize_into(&mut buffer));
        add("validate", &mut || (self.validate)(&self.archive));
        add("deserialize", &mut || drop(black_box((self.deserialize)(&self.archive))));
        add("echo", &mut || drop(black_box((self.echo)(pool, &self.value))));
        group.finish();
    }
}
