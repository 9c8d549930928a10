//! Acceptance cases, group M, that are about what a task is. M-16 is among the crashes.
//!
//! M-14 (a library that is loaded after the fork) needs a second crate that shares this one's pools; it is not in here.

use forkring::{Granularity, Payload, Pool, View, Worker};

use crate::support::{both, builder, new_pool};

#[test]
fn m_15_closures_of_one_shape_each_run_themselves() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let plus = |n: u64| n + 2;
        let times = |n: u64| n * 2;
        let power = |n: u64| n.pow(2);
        for n in 0..300 {
            let (a, b, c) = (pool.submit(plus, &n), pool.submit(times, &n), pool.submit(power, &n));
            assert_eq!([a, b, c].map(|task| task.wait().unwrap()), [n + 2, n * 2, n * n]);
        }
        let with = [
            pool.submit_with(|w: &Worker, n: &View<u64>| n.to_native() + w.generation(), &5_u64),
            pool.submit_with(|w: &Worker, n: &View<u64>| n.to_native() * 7 + w.generation(), &5_u64),
        ];
        assert_eq!(with.map(|task| task.wait().unwrap()), [5, 35]);
        let mut sums = pool.map(0..50_u64, plus).granularity(Granularity::Fixed(3));
        let mut products = pool.map(0..50_u64, times).granularity(Granularity::Fixed(3));
        for n in 0..50 {
            assert_eq!((sums.next().unwrap().unwrap(), products.next().unwrap().unwrap()), (n + 2, n * 2));
        }
    });
}

fn name_of<T: Payload>(pool: &Pool) -> String {
    // One closure in the source, one type a `T`.
    pool.submit(|(): ()| std::any::type_name::<T>().to_owned(), &()).wait().unwrap()
}

#[test]
fn m_15_one_closure_of_a_generic_function_is_another_for_each_type() {
    both(|| {
        let pool = new_pool(1).unwrap();
        for _ in 0..3 {
            assert_eq!(name_of::<u8>(&pool), "u8");
            assert_eq!(name_of::<u16>(&pool), "u16");
            assert_eq!(name_of::<Vec<u8>>(&pool), "alloc::vec::Vec<u8>");
        }
    });
}

fn same_body_one(n: u64) -> u64 {
    n + 1
}

fn same_body_two(n: u64) -> u64 {
    n + 1
}

#[test]
fn m_15_functions_that_a_linker_may_fold_still_work() {
    both(|| {
        let pool = new_pool(1).unwrap();
        assert_eq!(pool.submit(same_body_one, &1).wait().unwrap(), 2);
        assert_eq!(pool.submit(same_body_two, &1).wait().unwrap(), 2);
        assert_eq!(pool.submit(u64::count_ones, &7).wait().unwrap(), 3);
        assert_eq!(pool.submit(u64::trailing_zeros, &8).wait().unwrap(), 3);
    });
}

#[test]
fn m_15_bound_pools_around_one_closure_type_keep_their_own_captures() {
    both(|| {
        let pools: Vec<_> =
            (1..5_u64).map(|factor| builder().workers(1).bind(move |n: u64| n * factor).unwrap()).collect();
        for n in 0..20 {
            for (factor, pool) in (1..).zip(&pools) {
                assert_eq!(pool.submit(&n).wait().unwrap(), n * factor);
            }
        }
    });
}
