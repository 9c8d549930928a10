//! `Granularity::Auto` beside fixed sizes, two workers: items of 10 ns to 10 ms, and a mix. A plain table: what counts is how
//! the automatic one compares with whichever fixed one is the best for those items, in the same rounds. All take turns in
//! one process; every result is checked.

mod common;

use std::hint::black_box;
use std::thread::sleep;
use std::time::Duration;

use common::{Contender, Mode, alternate, ns_each};
use forkring::{Granularity, Pool};

/// What an item does, so long.
#[derive(Clone, Copy)]
enum Work {
    /// So many rounds of arithmetic.
    Rounds(u64),
    Sleep(Duration),
    /// 1 ms; one item among the first 1 s.
    Mix,
}

const MIX: u64 = 1000;

fn main() {
    let mode = Mode::from_args();
    if mode == Mode::List {
        return;
    }
    let pool = Pool::new(2).expect("a pool");
    let round_ns = ns_each(1 << 22, || {
        black_box(rounds(1 << 22));
    });
    let of_ns = |ns: f64| Work::Rounds((ns / round_ns).max(1.0) as u64);
    let ms = Duration::from_millis;
    let mix = mode.pick(Work::Mix, Work::Sleep(ms(1)));
    let rows = [
        ("items of 10 ns", of_ns(10.0), 2_000_000, 7, vec![1, 64, 256, 1024, 4096]),
        ("items of 1 µs", of_ns(1e3), 200_000, 7, vec![1, 8, 32, 128, 512]),
        ("items of 100 µs", of_ns(1e5), 2000, 7, vec![1, 2, 8, 32]),
        ("items of 10 ms (asleep)", Work::Sleep(ms(10)), 60, 3, vec![1, 2, 8]),
        ("999 of 1 ms and one of 1 s (asleep)", mix, MIX, 3, vec![1, 4, 16]),
    ];
    let only: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for (name, work, items, turns, sizes) in rows {
        if !only.is_empty() && !only.iter().any(|only| name.contains(only.as_str())) {
            continue;
        }
        let (items, turns) = (mode.pick(items, 20), mode.pick(turns, 1));
        let contender = |name: &'static str, granularity| {
            let pool = &pool;
            Contender::new(name, move || [ns_each(items, || stream(pool, granularity, work, items))])
        };
        let mut contenders = vec![contender("automatic", Granularity::Auto)];
        contenders.extend(sizes.iter().map(|&size| {
            contender(String::leak(format!("{size} items a message")), Granularity::Fixed(size))
        }));
        let results = alternate(turns, contenders);
        results.print(name, ["ns an item"]);
        let best = (1..=sizes.len()).min_by(|&a, &b| results.figure(a, 0).total_cmp(&results.figure(b, 0)));
        let best = best.expect("there are sizes");
        println!("automatic / the best fixed size: {:.2}", results.ratio(0, best, 0));
    }
}

fn stream(pool: &Pool, granularity: Granularity, work: Work, items: u64) {
    let (mut count, mut sum) = (0, 0);
    let mut take = |result: Result<u64, _>| {
        count += 1;
        sum += result.expect("a result");
    };
    let items = 0..black_box(items);
    let expected: u64 = items.clone().sum();
    let ran = match work {
        Work::Rounds(n) => {
            let items = items.map(|i| (i, n));
            let packed = items.map(|(i, n)| i << 32 | n);
            pool.map(packed, |item: u64| {
                black_box(rounds(item & u64::from(u32::MAX)));
                item >> 32
            })
            .granularity(granularity)
            .unordered()
            .run(&mut take)
        }
        Work::Sleep(time) => {
            let packed = items.map(|i| i << 32 | time.as_micros() as u64);
            pool.map(packed, |item: u64| {
                sleep(Duration::from_micros(item & u64::from(u32::MAX)));
                item >> 32
            })
            .granularity(granularity)
            .unordered()
            .run(&mut take)
        }
        Work::Mix => pool
            .map(items, |item: u64| {
                sleep(Duration::from_millis(if item == MIX / 10 { 1000 } else { 1 }));
                item
            })
            .granularity(granularity)
            .unordered()
            .run(&mut take),
    };
    assert_eq!(ran.expect("a valid granularity").ok, count);
    assert_eq!(sum, expected);
}

/// Arithmetic that no compiler shortens: each round waits for the one before.
fn rounds(n: u64) -> u64 {
    (0..n).fold(n | 1, |x, _| x.wrapping_mul(6_364_136_223_846_793_005).rotate_left(23))
}
