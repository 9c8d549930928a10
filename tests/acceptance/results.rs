//! Acceptance cases, group C: what comes back from a task, and what comes back in its place.

use std::fmt;
use std::panic::panic_any;
use std::process::Command;
use std::sync::atomic::Ordering;

use forkring::rkyv::rancor::{Fallible, Source};
use forkring::rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use forkring::rkyv::{self, Archive, Place};
use forkring::{CodecError, Payload, Pool, Service, Task, TaskError, View, Worker, hooks};

use crate::support::{
    both, both_output, builder, cell, counter, gate, in_process, new_pool, outcome, quietly, rss_kib,
    scenario, scenario_output,
};

/// The panic that a task ended with.
#[track_caller]
fn panicked<R: Payload + fmt::Debug>(task: Task<R>) -> forkring::Panicked {
    match outcome(task) {
        Err(TaskError::Panicked(panic)) => panic,
        other => panic!("not a panic: {other:?}"),
    }
}

/// A number that travels as itself, unless it is one of the bad ones: some fail while they are encoded, some while
/// they are validated or decoded; some panic, some end the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Payload)]
struct Fragile(#[rkyv(with = Breaks)] u32);

/// Its `serialize` fails.
const NO_ENCODE: u32 = 1;
/// Its `serialize` panics.
const ENCODE_PANICS: u32 = 2;
/// Its `deserialize` fails.
const NO_DECODE: u32 = 3;
/// Its `deserialize` panics.
const DECODE_PANICS: u32 = 4;
/// Its `deserialize` ends the process.
const DECODE_ABORTS: u32 = 5;

#[derive(Debug)]
struct Refused(&'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Refused {}

/// The codec of the number in a [`Fragile`].
struct Breaks;

impl ArchiveWith<u32> for Breaks {
    type Archived = rkyv::Archived<u32>;
    type Resolver = ();

    fn resolve_with(number: &u32, (): (), out: Place<Self::Archived>) {
        number.resolve((), out);
    }
}

impl<S: Fallible<Error: Source> + ?Sized> SerializeWith<u32, S> for Breaks {
    fn serialize_with(number: &u32, _: &mut S) -> Result<(), S::Error> {
        match *number {
            NO_ENCODE => rkyv::rancor::fail!(Refused("this one does not travel")),
            ENCODE_PANICS => panic!("serialize panics"),
            _ => Ok(()),
        }
    }
}

impl<D: Fallible<Error: Source> + ?Sized> DeserializeWith<rkyv::Archived<u32>, u32, D> for Breaks {
    fn deserialize_with(number: &rkyv::Archived<u32>, _: &mut D) -> Result<u32, D::Error> {
        match number.to_native() {
            NO_DECODE => rkyv::rancor::fail!(Refused("this one does not come back")),
            DECODE_PANICS => panic!("deserialize panics"),
            DECODE_ABORTS => std::process::abort(),
            n => Ok(n),
        }
    }
}

#[test]
fn c_01_a_failure_reaches_its_own_task_only() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let gated = pool.submit(
            |_: ()| {
                counter(0).bump();
                gate(0).wait();
                7
            },
            &(),
        );
        counter(0).wait_for(1);
        for n in 0..100_u32 {
            let panic = panicked(pool.submit(|n: u32| if n < 1000 { panic!("{n}") } else { n }, &n));
            assert_eq!(panic.message(), n.to_string());
            let error = pool.submit(|n: u32| Err::<u32, String>(format!("error {n}")), &n);
            assert_eq!(outcome(error).unwrap(), Err(format!("error {n}")));
            assert!(!gated.is_finished());
        }
        gate(0).open();
        assert_eq!(outcome(gated).unwrap(), 7);
    });
}

#[test]
fn c_02_a_panic_brings_its_message_and_its_place() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let before = line!();
        let task = pool.submit(
            |n: u32| {
                if n > 0 {
                    panic!("{n}")
                }
            },
            &123,
        );
        let after = line!();
        let panic = panicked(task);
        assert_eq!(panic.message(), "123");
        let place = panic.location().to_owned();
        let mut parts = place.rsplitn(3, ':');
        let (_column, line, file) = (parts.next(), parts.next().unwrap(), parts.next().unwrap());
        assert!(file.ends_with("tests/acceptance/results.rs"), "{place}");
        assert!((before..after).contains(&line.parse().unwrap()), "{place}");
        let shown = panic.to_string();
        assert!(shown.contains("123") && shown.contains(&place), "{shown}");

        // Inside std, on behalf of the task: the place of its caller.
        let panic = panicked(pool.submit(|v: Vec<u32>| v[7], &vec![1]));
        assert!(panic.message().contains("index out of bounds"), "{}", panic.message());
        assert!(panic.location().contains("results.rs"), "{}", panic.location());

        let panic = panicked(pool.submit(
            |n: usize| {
                if n > 0 {
                    panic!("{}", "ä".repeat(n))
                }
            },
            &100_000,
        ));
        assert_eq!(panic.message().chars().count(), 100_000, "a long message, whole");
        let panic = panicked(pool.submit(
            |n: u32| {
                if n > 0 {
                    panic!("")
                }
            },
            &1,
        ));
        assert_eq!(panic.message(), "");
    });
}

#[test]
fn c_02_a_worker_prints_its_panics_as_any_program() {
    both_output(
        || {
            let pool = new_pool(1).unwrap();
            panicked(pool.submit(
                |n: u32| {
                    if n > 0 {
                        panic!("seen on stderr")
                    }
                },
                &1,
            ));
        },
        |finished| {
            assert!(finished.status.success(), "{finished:?}");
            assert_eq!(finished.stderr.matches("seen on stderr").count(), 1, "{finished:?}");
        },
    );
}

#[derive(Clone, Debug, PartialEq, Eq, Payload)]
enum MyError {
    NotFound { key: String },
    Refused(u8),
}

#[test]
fn c_03_an_error_that_is_returned_is_a_value() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let error = pool.submit(|key: String| MyError::NotFound { key }, &"k".to_owned());
        assert_eq!(outcome(error).unwrap(), MyError::NotFound { key: "k".to_owned() });
    });
}

#[test]
fn c_17_the_users_errors_keep_their_class_beside_the_pools() {
    both(|| {
        hooks::set_log_error(|_| ());
        let pool = builder().workers(1).max_payload(1 << 20).build().unwrap();
        let body = |n: u32| match n {
            0 => Ok(n),
            1 => Err(MyError::NotFound { key: "one".to_owned() }),
            2 => Err(MyError::Refused(2)),
            3 => panic!("three"),
            _ => std::process::abort(),
        };
        let of = |n| outcome(pool.submit(body, &n));
        assert_eq!(of(0).unwrap(), Ok(0));
        assert_eq!(of(1).unwrap(), Err(MyError::NotFound { key: "one".to_owned() }));
        assert_eq!(of(2).unwrap(), Err(MyError::Refused(2)));
        assert!(of(3).unwrap_err().is_panicked());
        if !in_process() {
            assert!(of(4).unwrap_err().is_worker_lost());
        }
        let big = outcome(pool.submit(|v: Vec<u8>| v.len(), &vec![0; 2 << 20])).unwrap_err();
        assert!(big.is_too_large());
        let big = outcome(pool.submit(|n: usize| vec![0_u8; n], &(2 << 20))).unwrap_err();
        match big {
            TaskError::TooLarge { size, limit } => assert!(size >= 2 << 20 && limit == 1 << 20),
            other => panic!("{other:?}"),
        }
        assert!(outcome(pool.submit(|f: Fragile| f.0, &Fragile(NO_ENCODE))).unwrap_err().is_encode());
        assert!(outcome(pool.submit(|f: Fragile| f.0, &Fragile(NO_DECODE))).unwrap_err().is_decode());
        pool.close().wait();
        assert!(of(0).unwrap_err().is_closed());
        // Errors travel through other layers as any error does.
        let boxed: Box<dyn std::error::Error + Send + Sync> = Box::new(of(0).unwrap_err());
        assert!(boxed.downcast_ref::<TaskError>().unwrap().is_closed());
    });
}

#[test]
fn c_04_ten_thousand_panics_are_one_workers_day() {
    scenario(|| {
        let pool = Pool::new(1).unwrap();
        let pid = pool.worker_pids()[0];
        // Printing each would be most of the work.
        outcome(pool.submit(|_: ()| std::panic::set_hook(Box::new(|_| ())), &())).unwrap();
        let storm = |n: u32| {
            let body = |n: u32| if n < u32::MAX { panic!("{}", "x".repeat(1000)) } else { n };
            let tasks: Vec<_> = (0..n).map(|n| pool.submit(body, &n)).collect();
            tasks.into_iter().for_each(|task| assert!(outcome(task).unwrap_err().is_panicked()));
        };
        // Until both have touched the whole arena that the messages come through.
        (0..6).for_each(|_| storm(1000));
        let (master, worker) = (rss_kib(std::process::id()), rss_kib(pid));
        (0..9).for_each(|_| storm(1000));
        assert_eq!(pool.worker_pids(), [pid]);
        assert_eq!(outcome(pool.submit(|_: ()| std::process::id(), &())).unwrap(), pid);
        let grown = (rss_kib(std::process::id()).saturating_sub(master), rss_kib(pid).saturating_sub(worker));
        assert!(grown.0 < 4096 && grown.1 < 4096, "{grown:?} KiB more");
    });
}

/// Panics when dropped.
struct Twice;

impl Drop for Twice {
    fn drop(&mut self) {
        panic!("a second time");
    }
}

#[inline(never)]
fn deeper(n: u64) -> u64 {
    let frame = std::hint::black_box([n; 128]);
    if n == 0 { 0 } else { deeper(n - 1) + std::hint::black_box(frame)[7] }
}

#[test]
fn c_05_double_panics_and_stack_overflows_lose_the_worker_and_no_more() {
    let finished = scenario_output(|| {
        hooks::set_log_error(|_| ());
        let pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            let twice = |n: u32| {
                let _guard = Twice;
                if n > 0 {
                    panic!("once")
                }
            };
            match outcome(pool.submit(twice, &1)) {
                Err(TaskError::WorkerLost(lost)) => assert_eq!(lost.signal(), Some(6), "{lost}"),
                other => panic!("{other:?}"),
            }
            match outcome(pool.submit(|n: u64| deeper(n), &u64::MAX)) {
                Err(TaskError::WorkerLost(lost)) => {
                    assert!(lost.signal() == Some(6) && lost.exit_code().is_none(), "{lost}");
                    assert!(lost.to_string().contains("overflow of the stack: standard error"), "{lost}");
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(outcome(pool.submit(|n: u64| deeper(n), &100)).unwrap(), 5050);
        }
    });
    if let Some(finished) = finished {
        assert!(finished.status.success(), "{finished:?}");
        // M-10: the program's own diagnosis of the overflow.
        assert!(finished.stderr.contains("has overflowed its stack"), "{finished:?}");
    }
}

#[test]
fn c_06_odd_panic_payloads_have_a_text_too() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let panic = panicked(pool.submit(
            |n: u8| {
                if n > 0 {
                    panic_any(n)
                }
            },
            &42,
        ));
        assert!(!panic.message().is_empty());
        assert!(panic.location().contains("results.rs"));
        let panic = panicked(pool.submit(
            |n: u8| {
                if n > 0 {
                    panic_any(Twice)
                }
            },
            &1,
        ));
        assert!(!panic.message().is_empty());
        let panic = panicked(pool.submit(
            |n: u8| {
                if n > 0 {
                    panic_any(format!("owned {n}"))
                }
            },
            &1,
        ));
        assert_eq!(panic.message(), "owned 1");
        let panic = panicked(pool.submit(
            |n: u8| {
                if n > 0 {
                    std::panic::resume_unwind(Box::new("quiet"))
                }
            },
            &1,
        ));
        assert_eq!(panic.message(), "quiet");
        assert_eq!(panic.location(), "", "no stale place: resume_unwind has none");
        assert_eq!(outcome(pool.submit(|n: u8| n, &1)).unwrap(), 1);
        assert_eq!(pool.worker_pids().len(), 1);
    });
}

#[test]
fn c_07_inputs_that_cannot_be_encoded_fail_at_once_between_good_ones() {
    both(|| {
        let pool = new_pool(2).unwrap();
        for _ in 0..10 {
            let tasks: Vec<_> = (0..200)
                .map(|n| {
                    let input = Fragile(if n % 2 == 0 { NO_ENCODE } else { 100 + n });
                    let task = pool.submit(|f: Fragile| f.0, &input);
                    assert!(n % 2 == 1 || task.is_finished(), "at once");
                    (n, task)
                })
                .collect();
            for (n, task) in tasks {
                match outcome(task) {
                    Ok(value) => assert!(n % 2 == 1 && value == 100 + n),
                    Err(TaskError::Encode(error)) => {
                        assert!(n % 2 == 0 && error.message().contains("does not travel"), "{error}");
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
        for _ in 0..100 {
            let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                drop(pool.submit(|f: Fragile| f.0, &Fragile(ENCODE_PANICS)));
            }));
            assert!(unwound.is_err(), "documented: the panic goes on in the caller");
            assert_eq!(outcome(pool.submit(|f: Fragile| f.0, &Fragile(77))).unwrap(), 77);
        }
    });
}

#[test]
fn c_08_results_that_cannot_be_encoded_lose_no_worker() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let pids = pool.worker_pids();
        for _ in 0..20 {
            let error = outcome(pool.submit(Fragile, &NO_ENCODE)).unwrap_err();
            assert!(error.is_encode() && error.to_string().contains("does not travel"), "{error}");
            let panic = panicked(pool.submit(Fragile, &ENCODE_PANICS));
            assert_eq!(panic.message(), "serialize panics");
            assert_eq!(outcome(pool.submit(Fragile, &50)).unwrap(), Fragile(50));
        }
        assert_eq!(pool.worker_pids(), pids);
    });
}

#[test]
fn c_10_inputs_that_the_worker_cannot_decode_are_the_tasks_errors() {
    both(|| {
        hooks::set_log_error(|_| ());
        let pool = new_pool(2).unwrap();
        let pids = pool.worker_pids();
        let body = |f: Fragile| {
            counter(0).bump();
            f.0
        };
        for _ in 0..20 {
            let error = outcome(pool.submit(body, &Fragile(NO_DECODE))).unwrap_err();
            assert!(error.is_decode() && error.to_string().contains("does not come back"), "{error}");
            let panic = panicked(pool.submit(body, &Fragile(DECODE_PANICS)));
            assert_eq!(panic.message(), "deserialize panics");
        }
        assert_eq!(pool.worker_pids(), pids);
        if !in_process() {
            assert!(outcome(pool.submit(body, &Fragile(DECODE_ABORTS))).unwrap_err().is_worker_lost());
        }
        assert_eq!(counter(0).get(), 0, "no body has run");
        assert_eq!(outcome(pool.submit(body, &Fragile(60))).unwrap(), 60);
        // In place, and asked for by the task.
        let with = |w: &Worker, f: &View<Fragile>| w.decode::<Fragile>(f).map(|f| f.0).map_err(text_of);
        assert_eq!(outcome(pool.submit_with(with, &Fragile(61))).unwrap(), Ok(61));
        let refused = outcome(pool.submit_with(with, &Fragile(NO_DECODE))).unwrap().unwrap_err();
        assert!(refused.contains("does not come back"), "{refused}");
    });
}

fn text_of(error: CodecError) -> String {
    error.to_string()
}

#[test]
fn c_11_results_that_the_master_cannot_decode_fail_their_own_task() {
    both(|| {
        let pool = new_pool(1).unwrap();
        for _ in 0..100 {
            let bad = [NO_DECODE, DECODE_PANICS].map(|n| pool.submit(Fragile, &n));
            let good = pool.submit(Fragile, &70);
            for (task, word) in bad.into_iter().zip(["does not come back", "deserialize panics"]) {
                let error = outcome(task).unwrap_err();
                assert!(error.is_decode() && error.to_string().contains(word), "{error}");
            }
            assert_eq!(outcome(good).unwrap(), Fragile(70));
        }
        let awaited = futures::executor::block_on(pool.submit(Fragile, &DECODE_PANICS));
        assert!(awaited.unwrap_err().is_decode());
        // What nobody reads is not decoded.
        drop(pool.submit(Fragile, &DECODE_ABORTS));
        pool.submit(Fragile, &DECODE_ABORTS).detach();
        assert_eq!(outcome(pool.submit(Fragile, &71)).unwrap(), Fragile(71));
    });
}

/// How many exist, in cell 0 for the master and in cell 1 for workers.
#[derive(Payload)]
struct Counted {
    #[rkyv(with = rkyv::with::Skip)]
    token: Token,
    number: u32,
}

struct Token(usize);

impl Default for Token {
    fn default() -> Self {
        let process = usize::from(cell(2).load(Ordering::SeqCst) != u64::from(std::process::id()));
        cell(process).fetch_add(1, Ordering::SeqCst);
        Self(process)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        cell(self.0).fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn c_13_arguments_and_results_are_released_in_both_processes() {
    both(|| {
        cell(2).store(std::process::id().into(), Ordering::SeqCst);
        let pool = new_pool(2).unwrap();
        let body = |c: Counted| match c.number % 3 {
            0 => panic!("with an argument in hand"),
            1 => vec![c, Counted { token: Token::default(), number: 9 }],
            _ => Vec::new(),
        };
        let tasks: Vec<_> = (0..300)
            .map(|number| {
                let input = Counted { token: Token::default(), number };
                pool.submit(body, &input)
            })
            .collect();
        for (n, task) in tasks.into_iter().enumerate() {
            match outcome(task) {
                Ok(values) => assert_eq!(values.len(), if n % 3 == 1 { 2 } else { 0 }),
                Err(error) => assert!(error.is_panicked() && n % 3 == 0),
            }
        }
        pool.close().wait();
        assert_eq!([0, 1].map(|n| cell(n).load(Ordering::SeqCst)), [0, 0]);
    });
}

#[test]
fn c_16_empty_results_are_results() {
    both(|| {
        let pool = new_pool(1).unwrap();
        outcome(pool.submit(|(): ()| (), &())).unwrap();
        assert_eq!(outcome(pool.submit(|(): ()| Vec::<u64>::new(), &())).unwrap(), Vec::<u64>::new());
        assert_eq!(outcome(pool.submit(|s: String| s, &String::new())).unwrap(), "");
        assert_eq!(outcome(pool.submit(|n: Option<u8>| n, &None)).unwrap(), None);
        assert_eq!(outcome(pool.submit(|a: [u32; 0]| a, &[])).unwrap(), [0_u32; 0]);
        assert_eq!(outcome(pool.submit(|v: Vec<()>| v.len(), &vec![(); 1000])).unwrap(), 1000);
        let empty = pool.submit_with(|_: &Worker, s: &View<str>| s.is_empty(), "");
        assert!(outcome(empty).unwrap());
        let empty = pool.submit_with(|_: &Worker, s: &View<[u64]>| s.len(), &[0_u64; 0][..]);
        assert_eq!(outcome(empty).unwrap(), 0);
        let results: Vec<()> = pool.map(0..1000, |_: u32| ()).map(Result::unwrap).collect();
        assert_eq!(results.len(), 1000);
    });
}

#[test]
fn c_18_each_task_has_an_error_of_its_own() {
    both(|| {
        hooks::set_log_error(|_| ());
        let pool = builder().workers(1).init(|info| match info.generation() {
            0 => Ok(()),
            _ => Err("one cause".into()),
        });
        let pool = pool.build().unwrap();
        let ends = pool.submit(
            |(): ()| {
                counter(0).bump();
                gate(0).wait();
            },
            &(),
        );
        counter(0).wait_for(1);
        let tasks: Vec<_> = (0..3).map(|n| pool.submit(|n: u32| n, &n)).collect();
        ends.kill();
        assert!(outcome(ends).unwrap_err().is_cancelled());
        let errors: Vec<TaskError> = tasks.into_iter().map(|task| outcome(task).unwrap_err()).collect();
        for error in &errors {
            assert!(error.is_pool_failed() && error.to_string().contains("one cause"), "{error}");
        }
        drop(errors);
        assert!(outcome(pool.submit(|n: u32| n, &1)).unwrap_err().to_string().contains("one cause"));
    });
}

/// M-10.
#[test]
fn a_task_that_writes_to_a_closed_pipe_gets_an_error() {
    both(|| {
        use std::io::Write;
        let pool = new_pool(1).unwrap();
        let body = |_: ()| {
            let (reader, mut writer) = std::io::pipe().unwrap();
            drop(reader);
            writer.write_all(b"to nobody").map_err(|error| format!("{:?}", error.kind()))
        };
        assert_eq!(outcome(pool.submit(body, &())).unwrap(), Err("BrokenPipe".to_owned()));
    });
}

#[test]
fn a_task_may_start_processes_and_threads_of_its_own() {
    both(|| {
        let pool = new_pool(2).unwrap();
        let shell = |n: u32| {
            let output = Command::new("sh").args(["-c", &format!("echo $(({n} * 2))")]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse::<u32>().unwrap()
        };
        assert_eq!(outcome(pool.submit(shell, &21)).unwrap(), 42);
        let threads = |n: u64| {
            let each: Vec<_> = (0..n).map(|n| std::thread::spawn(move || n * n)).collect();
            each.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
        };
        assert_eq!(outcome(pool.submit(threads, &10)).unwrap(), 285);
    });
}

/// M-15.
#[test]
fn closures_of_one_shape_in_one_function_each_run_themselves() {
    both(|| {
        let pool = new_pool(1).unwrap();
        let (plus, times) = (|n: u64| n + 10, |n: u64| n * 10);
        for n in 0..100 {
            let both = (pool.submit(plus, &n), pool.submit(times, &n));
            assert_eq!((outcome(both.0).unwrap(), outcome(both.1).unwrap()), (n + 10, n * 10));
        }
    });
}

/// Raised again without the hook, as rayon does with a panic in another thread.
fn raise_again(message: &str) -> u32 {
    std::panic::resume_unwind(Box::new(message.to_owned()))
}

#[test]
fn c_02_a_place_is_that_of_the_panic_and_not_of_one_that_somebody_has_caught() {
    both(|| {
        quietly();
        let _ = std::panic::catch_unwind(|| panic!("in the program, before the fork"));
        let pool = builder().workers(1).service(|n: u32| raise_again(&n.to_string())).build().unwrap();
        let place_of = |task| match outcome(task) {
            Err(TaskError::Panicked(panic)) => (panic.message().to_owned(), panic.location().to_owned()),
            other => panic!("{other:?}"),
        };
        let again = |n: u32| raise_again(&n.to_string());
        assert_eq!(place_of(pool.submit(again, &1)), ("1".to_owned(), String::new()));
        let catches = |n: u32| _ = std::panic::catch_unwind(|| panic!("caught {n}"));
        outcome(pool.submit(catches, &0)).unwrap();
        assert_eq!(place_of(pool.submit(again, &2)), ("2".to_owned(), String::new()));
        let (message, place) = place_of(pool.submit(|n: u32| -> u32 { panic!("its own {n}") }, &3));
        assert_eq!(message, "its own 3");
        assert!(place.contains("results.rs"), "{place}");
        // In a handler.
        let _ = std::panic::catch_unwind(|| panic!("in the program"));
        let ask = |w: &Worker<(), Service<u32, u32>>, n: &View<u32>| {
            w.call(&n.to_native()).unwrap_err().to_string()
        };
        let text = outcome(pool.submit_with(ask, &5_u32)).unwrap();
        assert!(text.contains('5') && !text.contains("results.rs"), "{text}");
    });
}

#[test]
fn a_06_a_panic_in_init_is_told_whatever_hook_the_program_has_set_since_its_first_pool() {
    scenario(|| {
        Pool::new(1).unwrap().close().wait();
        std::panic::set_hook(Box::new(|_| ()));
        let build =
            || Pool::builder().workers(1).init(|_| panic!("no licence")).build().unwrap_err().to_string();
        let error = build();
        assert!(error.contains("init panicked: no licence (at ") && error.contains("results.rs"), "{error}");
        // A hook that is taken away and comes back.
        let hook = std::panic::take_hook();
        let error = build();
        assert!(error.contains("init panicked: ") && !error.contains("(at )"), "{error}");
        std::panic::set_hook(hook);
        let error = build();
        assert!(error.contains("no licence"), "{error}");
    });
}

/// Builds a pool while its thread unwinds.
struct Builds;

impl Drop for Builds {
    fn drop(&mut self) {
        Pool::new(1).unwrap().close().wait();
    }
}

#[test]
fn a_pool_that_is_built_while_its_thread_unwinds_leaves_the_next_one_its_places() {
    scenario(|| {
        let _ = std::panic::catch_unwind(|| {
            let _builds = Builds;
            panic!("first");
        });
        let pool = Pool::new(1).unwrap();
        match outcome(pool.submit(|_: u32| -> u32 { panic!("boom") }, &1)) {
            Err(TaskError::Panicked(panic)) => assert!(panic.location().contains("results.rs")),
            other => panic!("{other:?}"),
        }
    });
}
