//! `StartWorker`: what the stack above `build` owned is dropped in the workers, and no second `main` ever runs (M-05).
//!
//! The variant with `panic = "abort"` needs a program that is built so; it is not in here, because this binary unwinds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use forkring::{Builder, Error, Pool, StartWorker, View, Worker};
use nix::sys::signal::Signal;

use crate::crashes::at_full_strength;
use crate::support::{
    cell, children, counter, eventually, fds_of, gate, gone, private_kib, rss_kib, scenario, signal,
};

/// Drops are counted here, in workers and in the master.
const IN_WORKERS: usize = 0;
const IN_MASTER: usize = 1;
/// Passed by whoever goes on after the building: the master, once.
const MAIN_GOES_ON: usize = 2;
/// The master's pid.
const MASTER: usize = 0;

fn mark_master() {
    cell(MASTER).store(u64::from(std::process::id()), SeqCst);
}

fn in_master() -> bool {
    cell(MASTER).load(SeqCst) == u64::from(std::process::id())
}

/// Counts its drops.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        counter(if in_master() { IN_MASTER } else { IN_WORKERS }).bump();
    }
}

fn drops() -> (u32, u32) {
    (counter(IN_WORKERS).get(), counter(IN_MASTER).get())
}

fn unwinding(workers: usize) -> Builder {
    Pool::builder().workers(workers).init(|info| info.start_worker()).init_timeout(Duration::from_secs(20))
}

#[track_caller]
fn computes(pool: &Pool) {
    assert!(pool.map(0..100_u64, |n: u64| n * n).map(Result::unwrap).eq((0..100).map(|n| n * n)));
    let text = "x".repeat(5 << 20);
    assert!(pool.submit(|s: String| s, &text).wait().unwrap() == text);
    at_full_strength(pool);
}

/// The building has failed and says why, nothing of it is left, and nobody but the master came this far.
#[track_caller]
fn refused(result: Result<Pool, Error>, words: &[&str]) {
    counter(MAIN_GOES_ON).bump();
    let error = result.map(|_| ()).unwrap_err().to_string();
    assert!(words.iter().any(|word| error.contains(word)), "{error}");
    eventually("nothing is left", || children().is_empty());
    assert!(in_master());
    assert_eq!(counter(MAIN_GOES_ON).get(), 1, "a second copy of main is running");
}

#[test]
fn workers_drop_what_the_stack_owned_and_the_master_keeps_it() {
    scenario(|| {
        mark_master();
        let outer = Counted;
        let pool = StartWorker::catch(|| {
            let counted = Counted;
            let boxed = Box::new(vec![Counted, Counted]);
            let pool = unwinding(3).build().unwrap();
            assert_eq!(drops(), (9, 0), "each worker dropped its three, once");
            computes(&pool);
            assert_eq!(drops(), (9, 0));
            // Replacements do the same.
            let victim = pool.worker_pids()[1];
            signal(victim, Signal::SIGKILL);
            gone(victim);
            computes(&pool);
            assert_eq!(drops(), (12, 0));
            drop((counted, boxed));
            assert_eq!(drops(), (12, 3));
            pool
        });
        counter(MAIN_GOES_ON).bump();
        // What the master has left behind is still there for the replacements to leave behind.
        let victim = pool.worker_pids()[0];
        signal(victim, Signal::SIGKILL);
        gone(victim);
        computes(&pool);
        assert_eq!(drops(), (15, 3));
        pool.close().wait();
        drop(outer);
        assert_eq!(drops(), (15, 4));
        assert_eq!(counter(MAIN_GOES_ON).get(), 1);
    });
}

/// The kinds of a process's descriptors, such as `pipe`.
fn kinds(pid: u32) -> Vec<String> {
    let kind = |target: String| target.split(":[").next().unwrap_or_default().to_owned();
    let mut kinds: Vec<String> = fds_of(pid).into_values().map(kind).collect();
    kinds.sort();
    kinds
}

#[test]
fn workers_keep_their_descriptors_when_the_stack_is_unwound() {
    scenario(|| {
        let plain = Pool::new(2).unwrap();
        let expected = kinds(plain.worker_pids()[1]);
        drop(plain);
        let pool = StartWorker::catch(|| unwinding(2).build().unwrap());
        for pid in pool.worker_pids() {
            assert_eq!(kinds(pid), expected);
        }
        // The driver's doorbell is among them: nobody else sees to a task that is awaited.
        let task = pool.submit(|n: u32| n, &7);
        assert_eq!(futures::executor::block_on(task).unwrap(), 7);
    });
}

#[test]
fn the_memory_of_one_large_vec_is_really_gone_from_the_workers() {
    scenario(|| {
        const KIB: u64 = 200 << 10;
        StartWorker::catch(|| {
            let large = vec![0x5a_u8; (KIB as usize) << 10];
            let keeping = Pool::new(1).unwrap();
            let pool = unwinding(2).env(5_u64).build().unwrap();
            assert!(rss_kib(keeping.worker_pids()[0]) > KIB, "to compare with");
            let look = || {
                for pid in pool.worker_pids() {
                    assert!(rss_kib(pid) < KIB / 4, "{} KiB are left", rss_kib(pid));
                    assert!(private_kib(pid) < KIB / 4);
                }
            };
            look();
            let f = |w: &Worker<u64>, n: &View<u64>| n.to_native() + w.env();
            assert!(pool.map_with(0..1000_u64, f).map(Result::unwrap).eq(5..1005));
            let victim = pool.worker_pids()[0];
            signal(victim, Signal::SIGKILL);
            gone(victim);
            at_full_strength(&pool);
            look();
            assert!(large.iter().all(|&b| b == 0x5a), "the master has its own");
        });
    });
}

#[inline(never)]
fn deeper(depth: u32, build: &dyn Fn() -> Pool) -> Pool {
    /// Notes the order of the drops in the worker.
    struct Ordered(u32);
    impl Drop for Ordered {
        fn drop(&mut self) {
            if !in_master() {
                let at = counter(IN_WORKERS).bump();
                cell(100 + at as usize).store(u64::from(self.0), SeqCst);
            }
        }
    }
    let _ordered = Ordered(depth);
    let _rest = (vec![depth; 1000], std::rc::Rc::new(String::from("x")), std::sync::Mutex::new(depth));
    if depth == 30 { build() } else { std::hint::black_box(deeper(depth + 1, build)) }
}

#[test]
fn every_frame_between_catch_and_build_is_unwound_innermost_first() {
    scenario(|| {
        mark_master();
        let pool = StartWorker::catch(|| deeper(0, &|| unwinding(1).build().unwrap()));
        counter(MAIN_GOES_ON).bump();
        assert_eq!(counter(IN_WORKERS).get(), 31);
        assert!((0..31).map(|at| cell(100 + at).load(SeqCst)).eq((0..31).rev()));
        computes(&pool);
        drop(pool);
        assert_eq!(counter(MAIN_GOES_ON).get(), 1);
    });
}

#[test]
fn the_innermost_catch_catches() {
    scenario(|| {
        mark_master();
        StartWorker::catch(|| {
            let outer = Counted;
            let pool = StartWorker::catch(|| {
                let _inner = Counted;
                unwinding(2).build().unwrap()
            });
            counter(MAIN_GOES_ON).bump();
            assert_eq!(drops(), (2, 1));
            computes(&pool);
            // And a second pool beside it.
            let other = unwinding(1).build().unwrap();
            assert_eq!(drops(), (3, 1), "up to the outer catch");
            computes_beside(&other);
            drop(outer);
        });
        assert_eq!(counter(MAIN_GOES_ON).get(), 1);
        assert_eq!(drops(), (3, 2));
    });
}

fn computes_beside(pool: &Pool) {
    assert!(pool.map(0..100_u64, |n: u64| n + 1).map(Result::unwrap).eq(1..101));
}

#[test]
fn another_pools_handle_on_the_stack_is_dropped_without_harm() {
    scenario(|| {
        mark_master();
        StartWorker::catch(|| {
            let first = Pool::new(2).unwrap();
            let task = first.submit(
                |(): ()| {
                    gate(0).wait();
                    7
                },
                &(),
            );
            let stream = first.map(0..10_u64, |n: u64| n);
            let pool = unwinding(2).build().unwrap();
            counter(MAIN_GOES_ON).bump();
            computes_beside(&pool);
            assert!(!task.is_finished());
            gate(0).open();
            assert_eq!(task.wait().unwrap(), 7);
            assert!(stream.map(Result::unwrap).eq(0..10));
            computes_beside(&first);
        });
        assert_eq!(counter(MAIN_GOES_ON).get(), 1);
    });
}

#[test]
fn state_service_and_on_exit_work_after_the_unwinding() {
    scenario(|| {
        mark_master();
        type W = Worker<u64, forkring::Service<u64, u64>, u64>;
        StartWorker::catch(|| {
            let large = vec![1_u64; 1 << 20];
            let pool = Pool::builder()
                .workers(2)
                .env(10_u64)
                .service(|n: u64| n + 1)
                .state(|_, env| Ok(*env * 2))
                .init(|info| info.start_worker())
                .on_exit(|_| {
                    counter(5).bump();
                })
                .build()
                .unwrap();
            drop(large);
            let f = |w: &W, n: &View<u64>| w.call(&n.to_native()).unwrap() + *w.state() + w.env();
            assert_eq!(pool.submit_with(f, &1_u64).wait().unwrap(), 32);
            pool.close().wait();
            assert_eq!(counter(5).get(), 2);
        });
    });
}

#[test]
fn builds_with_start_worker_on_several_threads_at_once() {
    scenario(|| {
        mark_master();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let pool = StartWorker::catch(|| {
                            let _counted = Counted;
                            unwinding(2).build().unwrap()
                        });
                        counter(MAIN_GOES_ON).bump();
                        computes_beside(&pool);
                    }
                });
            }
        });
        assert_eq!(counter(MAIN_GOES_ON).get(), 15);
        assert_eq!(drops(), (30, 15));
    });
}

// ---- M-05: bad company

#[test]
fn m_05_a_catch_unwind_that_swallows_it() {
    scenario(|| {
        mark_master();
        let built = StartWorker::catch(|| match catch_unwind(|| unwinding(2).build()) {
            Ok(built) => built,
            Err(_) => {
                counter(10).bump();
                unwinding(1).build()
            }
        });
        assert_eq!(counter(10).get(), 0, "somebody swallowed it");
        refused(built, &["catch"]);
    });
}

#[test]
fn m_05_a_catch_unwind_inside_init() {
    scenario(|| {
        mark_master();
        let built = StartWorker::catch(|| {
            let init = |info: &forkring::WorkerInfo| {
                let _ = catch_unwind(AssertUnwindSafe(|| info.start_worker()));
                counter(10).bump();
                Ok(())
            };
            Pool::builder().workers(1).init(init).init_timeout(Duration::from_secs(20)).build()
        });
        assert_eq!(counter(10).get(), 0);
        refused(built, &["catch"]);
    });
}

#[test]
fn m_05_a_thread_scope_with_a_live_thread() {
    scenario(|| {
        mark_master();
        let built = StartWorker::catch(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| gate(0).wait());
                let built = unwinding(1).build();
                gate(0).open();
                built
            })
        });
        refused(built, &["catch"]);
    });
}

#[test]
fn m_05_catch_inside_a_thread_scope_works() {
    scenario(|| {
        mark_master();
        std::thread::scope(|scope| {
            scope.spawn(|| gate(0).wait());
            let pool = StartWorker::catch(|| unwinding(1).build().unwrap());
            counter(MAIN_GOES_ON).bump();
            gate(0).open();
            computes(&pool);
        });
        assert_eq!(counter(MAIN_GOES_ON).get(), 1);
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Either it works, or it is refused with reasons; never a hang, never a second main.
fn works_or_is_refused(built: Result<Pool, Error>) {
    match built {
        Ok(pool) => {
            counter(MAIN_GOES_ON).bump();
            computes(&pool);
            pool.close().wait();
            assert_eq!(counter(MAIN_GOES_ON).get(), 1);
        }
        refusal => refused(refusal, &["catch", "unwind", "init_timeout"]),
    }
}

#[test]
fn m_05_tokio_main_between_catch_and_build() {
    scenario(|| {
        mark_master();
        // As `#[tokio::main]` does it: the runtime lives on the frame that is unwound.
        let built = StartWorker::catch(|| {
            let build = async { unwinding(1).init_timeout(Duration::from_secs(3)).build() };
            runtime().block_on(build)
        });
        works_or_is_refused(built);
    });
}

#[test]
fn m_05_a_current_thread_runtime_between_catch_and_build() {
    scenario(|| {
        mark_master();
        let built = StartWorker::catch(|| {
            let build = async { unwinding(1).init_timeout(Duration::from_secs(3)).build() };
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(build)
        });
        works_or_is_refused(built);
    });
}

#[test]
fn m_05_catch_inside_tokio_main_works() {
    scenario(|| {
        mark_master();
        runtime().block_on(async {
            let pool = StartWorker::catch(|| {
                let _counted = Counted;
                unwinding(2).build().unwrap()
            });
            counter(MAIN_GOES_ON).bump();
            assert_eq!(drops(), (2, 1));
            assert_eq!(pool.submit(|n: u32| n, &4).await.unwrap(), 4);
            pool.close().await;
        });
        assert_eq!(counter(MAIN_GOES_ON).get(), 1);
    });
}

#[test]
fn m_05_inside_tokio_spawn() {
    scenario(|| {
        mark_master();
        let runtime = runtime();
        // No catch on that thread.
        let built = runtime.block_on(async { tokio::spawn(async { unwinding(1).build() }).await.unwrap() });
        refused(built, &["catch"]);
        // A catch inside works.
        let built = runtime.block_on(async {
            tokio::spawn(async { StartWorker::catch(|| unwinding(1).build()) }).await.unwrap()
        });
        let pool = built.unwrap();
        computes(&pool);
        assert_eq!(counter(MAIN_GOES_ON).get(), 1);
    });
}

#[test]
fn m_05_a_task_of_a_local_runtime_between_catch_and_build() {
    scenario(|| {
        mark_master();
        // The runtime runs the task on this very thread, and catches its panics.
        let built = StartWorker::catch(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async { tokio::spawn(async { unwinding(1).build() }).await.unwrap() })
        });
        refused(built, &["catch"]);
    });
}

#[test]
fn m_05_no_catch_on_this_thread() {
    scenario(|| {
        mark_master();
        // One on another thread is of no use.
        let built = StartWorker::catch(|| std::thread::spawn(|| unwinding(2).build()).join().unwrap());
        refused(built, &["StartWorker::catch"]);
        let built = unwinding(1).build();
        assert!(built.is_err_and(|error| error.to_string().contains("StartWorker::catch")));
        // One that is over is of no use.
        StartWorker::catch(|| ());
        assert!(unwinding(1).build().is_err());
        assert_eq!(counter(MAIN_GOES_ON).get(), 1);
    });
}

#[test]
fn m_05_under_iter_stream_and_bind() {
    scenario(|| {
        mark_master();
        StartWorker::catch(|| {
            let offset = Counted;
            let borrowing = |n: u32| {
                let _offset = &offset;
                n
            };
            let error = unwinding(1).iter_stream(0..3_u32, borrowing, |_| panic!("ran")).unwrap_err();
            assert!(error.to_string().contains("iter_stream"), "{error}");
            let f = |_: &Worker, n: &View<u32>| n.to_native();
            let error = unwinding(1).iter_stream_with(0..3_u32, f, |_| panic!("ran")).unwrap_err();
            assert!(error.to_string().contains("iter_stream"), "{error}");
            let error = unwinding(1).bind(|n: u32| n).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("bind"), "{error}");
            counter(MAIN_GOES_ON).bump();
            assert_eq!(drops(), (0, 0));
        });
        assert_eq!(counter(MAIN_GOES_ON).get(), 1);
        assert!(children().is_empty());
    });
}

/// Panics, or waits for ever, when a worker drops it.
struct Trap {
    waits: bool,
}

impl Drop for Trap {
    fn drop(&mut self) {
        if in_master() {
            return;
        }
        if self.waits {
            loop {
                std::thread::park();
            }
        }
        panic!("a destructor panics");
    }
}

#[test]
fn m_05_a_destructor_that_panics_on_the_way() {
    scenario(|| {
        mark_master();
        let built = StartWorker::catch(|| {
            let _trap = Trap { waits: false };
            unwinding(1).build()
        });
        refused(built, &["unwind", "start_worker", "SIGABRT"]);
    });
}

#[test]
fn m_05_a_destructor_that_never_ends() {
    scenario(|| {
        mark_master();
        let built = StartWorker::catch(|| {
            let _trap = Trap { waits: true };
            unwinding(1).init_timeout(Duration::from_millis(500)).build()
        });
        refused(built, &["init_timeout", "500ms", "time"]);
    });
}

#[test]
fn m_05_start_worker_is_for_init_alone() {
    scenario(|| {
        mark_master();
        let built = StartWorker::catch(|| {
            let pool = Pool::builder().workers(1).init_timeout(Duration::from_secs(20));
            pool.state(|info, (): &()| -> Result<(), forkring::BoxError> { info.start_worker() }).build()
        });
        refused(built, &["start_worker", "state", "catch"]);
    });
}

#[test]
fn m_05_a_replacement_in_bad_company_ends_the_pool_not_the_program() {
    scenario(|| {
        mark_master();
        let pool = StartWorker::catch(|| {
            // The first generation returns from init; a replacement tries to unwind a `catch_unwind`.
            let init = |info: &forkring::WorkerInfo| {
                if info.generation() == 0 { Ok(()) } else { info.start_worker() }
            };
            catch_unwind(|| Pool::builder().workers(1).init(init).build().unwrap()).unwrap()
        });
        counter(MAIN_GOES_ON).bump();
        assert_eq!(pool.submit(|n: u32| n, &1).wait().unwrap(), 1);
        signal(pool.worker_pids()[0], Signal::SIGKILL);
        pool.closed().wait();
        let error = pool.submit(|n: u32| n, &1).wait().unwrap_err();
        assert!(error.is_pool_failed() || error.is_closed(), "{error}");
        assert_eq!(counter(MAIN_GOES_ON).get(), 1);
    });
}
