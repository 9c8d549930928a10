//! Values of 64 B to 1 MiB on one worker: echoes of `Vec<u8>` and `Vec<f32>`, and sums of floats that the worker reads
//! where they lie (`&View<[f32]>`) or as a `Vec` of its own. Beside them the copies that no pool can do without, by
//! memcpy: four of them for an echo (into shared memory and out of it, there and back), one and a pass over it for a sum.
//! All in one process run, taking turns; every result is checked.
//!
//! Copies come twice: in one piece, and in pieces of 1 KiB. From 2 KiB on, glibc's memcpy is a `rep movsb` on many
//! processors, and some (AMD's Zen 3) take ten times as long for it when source and destination begin at unlucky places
//! of their pages, as two blocks from malloc do. Of what is shorter, it makes a loop of vectors. The faster one is the floor.

mod common;

use std::hint::black_box;
use std::time::Duration;

use common::{Contender, Mode, alternate, percentiles, timed};
use criterion::{BenchmarkId, Criterion, Throughput};
use forkring::rkyv::rend::f32_le;
use forkring::{Pool, View, Worker};

const SIZES: [usize; 8] = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
/// What memcpy copies by vectors everywhere.
const PIECE: usize = 1 << 10;

fn main() {
    let mode = Mode::from_args();
    let pool = Pool::new(1).expect("a pool");
    let mut sizes = SIZES.map(Size::new);
    let mut criterion = common::criterion();
    for size in &mut sizes {
        size.check(&pool);
        if mode != Mode::List {
            size.compare(mode, &pool);
        }
        size.bench(&mut criterion, &pool);
    }
    criterion.final_summary();
}

/// The values of one size.
struct Size {
    size: usize,
    bytes: Vec<u8>,
    floats: Vec<f32>,
    /// Whole numbers of which every partial sum is exact.
    sum: f32,
    copies: [Vec<u8>; 4],
    copy: Vec<f32>,
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

/// Copies in pieces of so many elements.
fn copy<T: Copy>(from: &[T], to: &mut [T], piece: usize) {
    for (to, from) in to.chunks_mut(piece).zip(from.chunks(piece)) {
        to.copy_from_slice(black_box(from));
    }
}

impl Size {
    fn new(size: usize) -> Self {
        let floats: Vec<f32> = (0..size / size_of::<f32>()).map(|at| (at % 3) as f32).collect();
        Self {
            size,
            bytes: (0..size).map(|at| at as u8).collect(),
            sum: floats.iter().sum(),
            copies: [(); 4].map(|()| vec![0; size]),
            copy: vec![0.0; floats.len()],
            floats,
        }
    }

    fn echo_bytes(&self, pool: &Pool) -> Vec<u8> {
        pool.submit(|bytes: Vec<u8>| bytes, black_box(&self.bytes)).wait().expect("a reply")
    }

    fn echo_floats(&self, pool: &Pool) -> Vec<f32> {
        pool.submit(|floats: Vec<f32>| floats, black_box(&self.floats)).wait().expect("a reply")
    }

    fn sum_in_place(&self, pool: &Pool) -> f32 {
        let sum = |_: &Worker, floats: &View<[f32]>| add_up(floats, f32_le::to_native);
        pool.submit_with(sum, black_box(&self.floats[..])).wait().expect("a sum")
    }

    fn sum_of_own(&self, pool: &Pool) -> f32 {
        let sum = |floats: Vec<f32>| add_up(&floats, |x| x);
        pool.submit(sum, black_box(&self.floats)).wait().expect("a sum")
    }

    /// Along four buffers.
    fn four_copies(&mut self, piece: usize) {
        let [a, b, c, d] = &mut self.copies;
        copy(&self.bytes, a, piece);
        copy(a, b, piece);
        copy(b, c, piece);
        copy(c, d, piece);
        black_box(d);
    }

    fn copy_and_sum(&mut self, piece: usize) -> f32 {
        copy(&self.floats, &mut self.copy, piece);
        add_up(black_box(&self.copy), |x| x)
    }

    fn check(&mut self, pool: &Pool) {
        for _ in 0..2 {
            assert_eq!(self.echo_bytes(pool), self.bytes);
            assert_eq!(self.echo_floats(pool), self.floats);
            assert_eq!([self.sum_in_place(pool), self.sum_of_own(pool)], [self.sum; 2]);
        }
        for piece in [PIECE, self.size] {
            self.copies.iter_mut().for_each(|copy| copy.fill(0));
            self.four_copies(piece);
            assert_eq!(self.copies[3], self.bytes);
            assert_eq!(self.copy_and_sum(piece), self.sum);
        }
    }

    fn compare(&mut self, mode: Mode, pool: &Pool) {
        let samples = mode.pick(2_000, 20);
        let limit = mode.pick(Duration::from_millis(300), Duration::from_millis(20));
        let micros = |figures: [f64; 3]| figures.map(|ns| ns / 1000.0);
        // Each contender of a comparison has what it touches to itself.
        let [mut whole, mut pieces, mut ours] = [(); 3].map(|()| Self::new(self.size));
        let (size, sum) = (self.size, self.sum);
        let length = |n: usize| assert_eq!(n, size);
        let check = |result: f32| assert_eq!(result, sum);
        let (bytes, floats) = (&*self, &mut ours);
        let echoes = alternate(
            mode.rounds(),
            vec![
                Contender::new("four memcpy", || {
                    micros(percentiles(samples, limit, |_| whole.four_copies(size)))
                }),
                Contender::new("four memcpy in pieces of 1 KiB", || {
                    micros(percentiles(samples, limit, |_| pieces.four_copies(PIECE)))
                }),
                Contender::new("forkring submit, Vec<u8>", || {
                    micros(percentiles(samples, limit, |_| length(bytes.echo_bytes(pool).len())))
                }),
                Contender::new("forkring submit, Vec<f32>", || {
                    micros(percentiles(samples, limit, |_| length(floats.echo_floats(pool).len() * 4)))
                }),
            ],
        );
        echoes.print(&format!("{} in and out, µs", name(size)), ["p50", "p99", "p99.9"]);
        let sums = alternate(
            mode.rounds(),
            vec![
                Contender::new("one memcpy and one pass", || {
                    micros(percentiles(samples, limit, |_| check(whole.copy_and_sum(size))))
                }),
                Contender::new("the same in pieces of 1 KiB", || {
                    micros(percentiles(samples, limit, |_| {
                        check(pieces.copy_and_sum(PIECE / size_of::<f32>()))
                    }))
                }),
                Contender::new("forkring submit_with, &View<[f32]>", || {
                    micros(percentiles(samples, limit, |_| check(bytes.sum_in_place(pool))))
                }),
                Contender::new("forkring submit, Vec<f32>", || {
                    micros(percentiles(samples, limit, |_| check(floats.sum_of_own(pool))))
                }),
            ],
        );
        sums.print(&format!("{} in, the sum of its floats out, µs", name(size)), ["p50", "p99", "p99.9"]);
    }

    fn bench(&mut self, criterion: &mut Criterion, pool: &Pool) {
        let mut group = criterion.benchmark_group("payload");
        group.throughput(Throughput::Bytes(self.size as u64));
        let mut add = |name: &str, size: usize, run: &mut dyn FnMut()| {
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter_custom(|n| timed(|| (0..n).for_each(|_| run())));
            });
        };
        let size = self.size;
        add("echo/bytes", size, &mut || drop(black_box(self.echo_bytes(pool))));
        add("echo/floats", size, &mut || drop(black_box(self.echo_floats(pool))));
        add("echo/memcpy", size, &mut || self.four_copies(size));
        add("sum/view", size, &mut || _ = black_box(self.sum_in_place(pool)));
        add("sum/owned", size, &mut || _ = black_box(self.sum_of_own(pool)));
        add("sum/memcpy", size, &mut || _ = black_box(self.copy_and_sum(size)));
        group.finish();
    }
}

fn name(size: usize) -> String {
    match size {
        0..1024 => format!("{size} B"),
        _ => format!("{} KiB", size >> 10),
    }
}
