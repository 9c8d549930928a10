//! `Granularity::Auto` beside fixed sizes: items of 10 ns to 10 ms, and a mix. All take turns in one process, with two
//! workers unless `--workers=N` says otherwise; every result is checked. `--iterator` takes results one by one instead of by
//! `run`, `--ordered` in the order of the items; other arguments name rows.
//!
//! A turn is a whole stream, so that its beginning, in which automatic messages grow, is part of what is measured; how long it
//! takes is said beside each row. By one half of the rounds the best of the fixed sizes is chosen, by their medians; in the other half
//! the automatic granularity is compared with that one. What is chosen and compared in the same rounds has its luck counted
//! for it. The halves take turns, two rounds each, since a machine has phases. The ratio is the median of the ratios of the second half's rounds;
//! behind it stand the ratio of that half's medians, and what comes out if the halves change places.

mod common;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use common::{Contender, Mode, Results, alternate, ns_each};
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

/// How the stream is taken.
#[derive(Clone, Copy)]
struct Form {
    iterator: bool,
    ordered: bool,
}

const MIX: u64 = 1000;

fn main() {
    let mode = Mode::from_args();
    if mode == Mode::List {
        return;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let workers = args
        .iter()
        .find_map(|arg| arg.strip_prefix("--workers="))
        .map_or(2, |n| n.parse().expect("a number"));
    let form = Form { iterator: has("--iterator"), ordered: has("--ordered") };
    let pool = Pool::new(workers).expect("a pool");
    let round_ns = ns_each(1 << 22, || {
        black_box(rounds(1 << 22));
    });
    let of_ns = |ns: f64| Work::Rounds((ns / round_ns).max(1.0) as u64);
    let ms = Duration::from_millis;
    let mix = mode.pick(Work::Mix, Work::Sleep(ms(1)));
    let rows: [(&str, Work, u64, usize, &[usize]); _] = [
        ("items of 10 ns", of_ns(10.0), 2_000_000, 24, &[64, 256, 1024, 4096]),
        ("items of 100 ns", of_ns(100.0), 200_000, 24, &[1, 32, 128, 512, 4096]),
        ("items of 1 µs", of_ns(1e3), 30_000, 24, &[1, 8, 64, 512, 2048]),
        ("items of 10 µs", of_ns(1e4), 8000, 16, &[1, 4, 16, 64, 256]),
        ("items of 100 µs", of_ns(1e5), 800, 16, &[1, 2, 8, 32]),
        ("items of 10 ms (asleep)", Work::Sleep(ms(10)), 60, 6, &[1, 2, 8]),
        ("999 of 1 ms and one of 1 s (asleep)", mix, MIX, 6, &[1, 4, 16]),
    ];
    let only: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    for (name, work, items, turns, sizes) in rows {
        if !only.is_empty() && !only.iter().any(|only| name.contains(only.as_str())) {
            continue;
        }
        let (items, turns) = (mode.pick(items, 20), mode.pick(turns, 4));
        let contender = |name: &'static str, granularity| {
            let pool = &pool;
            Contender::new(name, move || [ns_each(items, || stream(pool, form, granularity, work, items))])
        };
        let mut contenders = vec![contender("automatic", Granularity::Auto)];
        contenders.extend(sizes.iter().map(|&size| {
            contender(String::leak(format!("{size} items a message")), Granularity::Fixed(size))
        }));
        let results = alternate(turns, contenders);
        results.print(&format!("{name}, streams of {items}"), ["ns an item"]);
        judge(&results, sizes);
    }
}

/// Chooses the best size by one half of the rounds, and compares in the other.
fn judge(results: &Results<1>, sizes: &[usize]) {
    let halves = [0, 1].map(|half| results.half(half));
    let best = halves.each_ref().map(|half| {
        let best = (1..=sizes.len()).min_by(|&a, &b| half.figure(a, 0).total_cmp(&half.figure(b, 0)));
        best.expect("there are sizes")
    });
    let [ratio, back] = [(best[0], &halves[1]), (best[1], &halves[0])].map(|(at, half)| half.ratio(0, at, 0));
    let medians = halves[1].figure(0, 0) / halves[1].figure(best[0], 0);
    let size = sizes[best[0] - 1];
    println!(
        "automatic / {size} items a message: {ratio:.2} (medians {medians:.2}, the other half {back:.2})"
    );
}

fn stream(pool: &Pool, form: Form, granularity: Granularity, work: Work, items: u64) {
    let (mut count, mut sum) = (0, 0);
    let mut take = |result: Result<u64, _>| {
        count += 1;
        sum += result.expect("a result");
    };
    let items = 0..black_box(items);
    let expected: u64 = items.clone().sum();
    let packed = |low: u64| items.clone().map(move |i| i << 32 | low);
    macro_rules! run {
        ($map:expr) => {{
            let map = $map.granularity(granularity);
            let map = if form.ordered { map } else { map.unordered() };
            if form.iterator {
                map.for_each(&mut take);
            } else {
                map.run(&mut take).expect("a valid granularity");
            }
        }};
    }
    match work {
        Work::Rounds(n) => run!(pool.map(packed(n), |item: u64| {
            chained_rounds(item & u64::from(u32::MAX));
            item >> 32
        })),
        Work::Sleep(time) => run!(pool.map(packed(time.as_micros() as u64), |item: u64| {
            sleep(Duration::from_micros(item & u64::from(u32::MAX)));
            item >> 32
        })),
        Work::Mix => run!(pool.map(items.clone(), |item: u64| {
            sleep(Duration::from_millis(if item == MIX / 10 { 1000 } else { 1 }));
            item
        })),
    }
    assert_eq!(count, items.end);
    assert_eq!(sum, expected);
}

/// Arithmetic that no compiler shortens: each round waits for the one before.
fn rounds(n: u64) -> u64 {
    rounds_from(n | 1, n)
}

fn rounds_from(seed: u64, n: u64) -> u64 {
    (0..n).fold(seed, |x, _| x.wrapping_mul(6_364_136_223_846_793_005).rotate_left(23))
}

/// Likewise, and the first one waits for the last one of the item before: a processor does not run two items at once.
fn chained_rounds(n: u64) {
    static LAST: AtomicU64 = AtomicU64::new(1);
    LAST.store(rounds_from(LAST.load(Ordering::Relaxed), n), Ordering::Relaxed);
}
