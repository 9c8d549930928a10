//! Large values: where copying is what it costs.

use std::hint::black_box;
use std::time::Duration;

use forkring::rkyv::rend::f32_le;
use forkring::{Pool, View, Worker};

use crate::measure::{Comparison, Id, Outcome, P50, Sampling, Scale};
use crate::raw::{Pipes, number};
use crate::report::Goal::{AtMost, None as NoGoal};
use crate::report::{Axis, Plot, Report, Series};
use crate::rivals::processes::IpcBytes;

const MIB: usize = 1 << 20;
const FLOATS: usize = MIB / size_of::<f32>();
const PAGE_FLOATS: usize = 4096 / size_of::<f32>();
/// How often the whole of a large reply is compared.
const EXCHANGES_PER_CHECK: u64 = 256;

fn sampling(scale: Scale) -> Sampling {
    Sampling::awake(scale.pick(2000, 20), Duration::from_secs(2))
}

/// Whole numbers of which every partial sum is exact. The first one is replaced by the number of the exchange.
fn floats() -> Vec<f32> {
    (0..FLOATS).map(|at| (at % 3) as f32).collect()
}

/// The sum of the first `FLOATS - 1` numbers after the first.
fn rest_of_sum() -> f32 {
    add_up(&floats()[1..], |x| x)
}

/// What is told from one exchange to the next.
fn mark(n: u64) -> f32 {
    (n % 1000) as f32
}

/// A sum that the compiler makes vectors of.
fn add_up<T: Copy>(values: &[T], value: impl Fn(T) -> f32) -> f32 {
    const LANES: usize = 32;
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for block in blocks {
        for (sum, &x) in sums.iter_mut().zip(block) {
            *sum += value(x);
        }
    }
    sums.into_iter().sum::<f32>() + rest.iter().map(|&x| value(x)).sum::<f32>()
}

pub(crate) fn sum(scale: Scale) -> Report {
    let pool = Pool::new(1).expect("a pool");
    let rest = rest_of_sum();
    let check = |n: u64, sum: f32| assert_eq!(sum, mark(n) + rest);
    let sampling = sampling(scale);
    let [mut a, mut b, mut c] = [(); 3].map(|()| floats());
    let mut copy = vec![0.0_f32; FLOATS];

    let mut all = Comparison::new();
    let floor = all.add("one memcpy and one pass", || {
        sampling.latencies(
            |n| {
                a[0] = mark(n);
                copy.copy_from_slice(black_box(&a));
                add_up(black_box(&copy), |x| x)
            },
            check,
        )
    });
    let in_place = |_: &Worker, values: &View<[f32]>| add_up(values, f32_le::to_native);
    let view = all.add("forkring submit_with, &View<[f32]>", || {
        sampling.latencies(
            |n| {
                b[0] = mark(n);
                pool.submit_with(in_place, black_box(&b[..])).wait().expect("a sum")
            },
            check,
        )
    });
    let owned = all.add("forkring submit, Vec<f32>", || {
        sampling.latencies(
            |n| {
                c[0] = mark(n);
                pool.submit(|values: Vec<f32>| add_up(&values, |x| x), black_box(&c)).wait().expect("a sum")
            },
            check,
        )
    });
    let outcome = all.run(scale);
    let mut report = outcome.latency_report();
    report.checks = vec![
        outcome.ratio("p50 of &View<[f32]> / memcpy and pass", view, floor, P50, AtMost(2.0)).stretch(1.5),
        outcome.ratio("p50 of Vec<f32> / memcpy and pass", owned, floor, P50, NoGoal),
    ];
    report
}

pub(crate) fn echo(scale: Scale) -> Report {
    let pool = Pool::new(1).expect("a pool");
    let sampling = sampling(scale);
    let mut source = floats();
    let mut values = floats();
    let mut copies = [(); 4].map(|()| vec![0.0_f32; FLOATS]);
    let expected = floats();
    // A look at a number in each page, and at the whole now and then: more would drive out of the caches what the next
    // exchange is to find there, as it does when nobody looks.
    let is_whole = |reply: &[f32]| reply.len() == FLOATS && reply[1..] == expected[1..];
    let check = |n: u64, reply: Vec<f32>| {
        let mut places = (PAGE_FLOATS..FLOATS).step_by(PAGE_FLOATS);
        assert!(reply[0] == mark(n) && places.all(|at| reply[at] == expected[at]));
        assert!(!n.is_multiple_of(EXCHANGES_PER_CHECK) || is_whole(&reply));
    };

    let mut all = Comparison::new();
    let floor = all.add("four memcpy", || {
        let figures = sampling.latencies(
            |n| {
                source[0] = mark(n);
                copy_along(&source, &mut copies, FLOATS);
                copies[3][0]
            },
            |n, first| assert_eq!(first, mark(n)),
        );
        assert!(is_whole(&copies[3]));
        figures
    });
    let forkring = all.add("forkring submit, Vec<f32>", || {
        sampling.latencies(
            |n| {
                values[0] = mark(n);
                pool.submit(|values: Vec<f32>| values, black_box(&values)).wait().expect("a reply")
            },
            check,
        )
    });
    let outcome = all.run(scale);
    let mut report = outcome.latency_report();
    report.checks = vec![outcome.ratio("p50 / four memcpy", forkring, floor, P50, AtMost(1.2)).stretch(1.0)];
    report
}

/// Each byte along four buffers, in pieces of so many.
fn copy_along<T: Copy>(source: &[T], copies: &mut [Vec<T>; 4], piece: usize) {
    let mut from = source;
    for copy in copies.iter_mut() {
        for (to, from) in copy.chunks_mut(piece).zip(from.chunks(piece)) {
            to.copy_from_slice(black_box(from));
        }
        from = copy;
    }
    black_box(&copies);
}

const SIZES: [usize; 8] = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, MIB];

pub(crate) fn sizes(scale: Scale) -> Report {
    let awake = Sampling::awake(scale.pick(5000, 20), Duration::from_millis(50));
    let asleep = Sampling::asleep(scale.pick(50, 3), Duration::from_millis(200));
    // In this order: what forks comes before what starts threads.
    let mut pipes = SIZES.map(Pipes::start);
    let ipc_bytes = IpcBytes::start();
    let pool = Pool::new(1).expect("a pool");
    let (pool, ipc) = (&pool, ipc_bytes.as_ref());

    let mut all = Comparison::new();
    let mut series: Vec<(&str, Vec<Id>)> = Vec::new();
    for (name, sampling) in [("forkring, awake", awake), ("forkring, asleep", asleep)] {
        let add = |size| {
            let mut message = vec![0_u8; size];
            all.add(line(name, size), move || {
                sampling.latencies(
                    |n| {
                        message[..8].copy_from_slice(&n.to_le_bytes());
                        pool.submit(increment, &message).wait().expect("a reply")
                    },
                    move |n, reply| assert!(number(&reply) == n + 1 && reply.len() == size),
                )
            })
        };
        series.push((name, SIZES.map(add).into()));
    }
    if let Ok(ipc) = ipc {
        let add = |size| {
            let mut message = vec![0_u8; size];
            all.add(line("ipc-channel bytes", size), move || {
                awake.latencies(
                    |n| {
                        message[..8].copy_from_slice(&n.to_le_bytes());
                        ipc.exchange(&message)
                    },
                    |n, reply| assert!(number(&reply) == n + 1 && reply.len() == size),
                )
            })
        };
        series.push(("ipc-channel bytes", SIZES.map(add).into()));
    }
    let mut ids = Vec::new();
    for (size, pipes) in SIZES.into_iter().zip(&mut pipes) {
        let mut message = vec![0_u8; size];
        ids.push(all.add(line("raw pipe", size), move || {
            awake.latencies(
                |n| {
                    message[..8].copy_from_slice(&n.to_le_bytes());
                    pipes.exchange(&mut message);
                    number(&message)
                },
                |n, reply| assert_eq!(reply, n + 1),
            )
        }));
    }
    series.push(("raw pipe", ids));
    // From 2 KiB on, glibc's memcpy is a `rep movsb` on many processors, and some take ten times as long for it when both
    // sides begin at unlucky places of their pages. What is shorter is copied by vectors.
    for (name, piece) in [("four memcpy", MIB), ("four memcpy in pieces of 1 KiB", 1 << 10)] {
        let add = |size| {
            let mut source = vec![0_u8; size];
            let mut copies = [(); 4].map(|()| vec![0_u8; size]);
            all.add(line(name, size), move || {
                awake.latencies(
                    |n| {
                        source[..8].copy_from_slice(&n.to_le_bytes());
                        copy_along(&source, &mut copies, piece);
                        number(&copies[3])
                    },
                    |n, reply| assert_eq!(reply, n),
                )
            })
        };
        series.push((name, SIZES.map(add).into()));
    }

    let outcome = all.run(scale);
    let mut report = outcome.latency_report();
    if let Err(error) = &ipc_bytes {
        report.skip("ipc-channel bytes", error.to_string());
    }
    report.plot = Some(plot(&outcome, series));
    report
}

fn increment(mut message: Vec<u8>) -> Vec<u8> {
    let n = number(&message) + 1;
    message[..8].copy_from_slice(&n.to_le_bytes());
    message
}

fn line(name: &str, size: usize) -> String {
    match size {
        0..1024 => format!("{name}, {size} B"),
        _ => format!("{name}, {} KiB", size >> 10),
    }
}

fn plot(outcome: &Outcome, series: Vec<(&str, Vec<Id>)>) -> Plot {
    // In and out, in MB/s: bytes per microsecond.
    let speed = |(size, &id): (usize, &Id)| (size as f64, 2.0 * size as f64 / outcome.figure(id, P50));
    Plot {
        file: "payload.svg".to_owned(),
        x: Axis::Bytes,
        x_label: "bytes in, and as many out".to_owned(),
        y_label: "MB/s in and out, one at a time".to_owned(),
        series: series
            .into_iter()
            .map(|(name, ids)| Series {
                name: name.to_owned(),
                points: SIZES.into_iter().zip(&ids).map(speed).collect(),
            })
            .collect(),
    }
}
