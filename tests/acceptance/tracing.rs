//! Feature `tracing`: what a worker logs is in a span that names its task, and the span that it was submitted in.

use std::io::Write;
use std::sync::Mutex;

use forkring::{Granularity, Pool, Worker};
use tracing::{Level, info, info_span};

use crate::support::{Finished, both_output, builder, outcome, scenario_output};

/// One call for each line, from whatever process: what a program does that wants whole lines.
struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::stdout().lock().write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()
    }
}

fn subscribe(level: Level) {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .without_time()
        .with_max_level(level)
        .with_writer(Mutex::new(Stdout))
        .init();
}

/// The one line that contains this.
#[track_caller]
fn line<'a>(finished: &'a Finished, text: &str) -> &'a str {
    assert!(finished.status.success(), "{finished:?}");
    let mut lines = finished.stdout.lines().filter(|line| line.contains(text));
    let line = lines.next().unwrap_or_else(|| panic!("{text:?} is nowhere: {finished:?}"));
    assert_eq!(lines.next(), None, "{text:?} is there twice");
    line
}

#[test]
fn what_a_task_logs_is_in_its_span_which_names_the_callers() {
    both_output(
        || {
            subscribe(Level::INFO);
            // What the pool is built in is no task's business.
            let startup = info_span!("startup").entered();
            let pool = builder().workers(1).name("till").build().unwrap();
            drop(startup);
            let greet = |n: u32| info!(n, "hello from a task");
            let ids: Vec<u64> = (1..=2)
                .map(|n| {
                    let request = info_span!("request", user = "ada").entered();
                    outcome(pool.submit(greet, &n)).unwrap();
                    request.id().unwrap().into_u64()
                })
                .collect();
            outcome(pool.submit(greet, &3)).unwrap();
            println!("ids: {ids:?}");
            pool.close().wait();
        },
        |finished| {
            let ids = line(finished, "ids: ").strip_prefix("ids: [").unwrap().strip_suffix(']').unwrap();
            for (number, id) in ids.split(", ").enumerate() {
                let line = line(finished, &format!("n={}", number + 1));
                let span = format!(
                    "task{{pool=\"till\" worker=0 generation=0 number={number} caller.id={id} caller.name=\"request\"}}"
                );
                assert!(line.contains(&span) && line.contains("hello from a task"), "{line}");
                assert!(!line.contains("startup") && !line.contains("ada"), "{line}");
            }
            let outside = line(finished, "n=3");
            assert!(outside.contains("task{pool=\"till\" worker=0 generation=0 number=2}"), "{outside}");
        },
    );
}

#[test]
fn panics_and_every_form_of_task_have_spans() {
    both_output(
        || {
            subscribe(Level::INFO);
            let pool = builder().workers(2).name("till").build().unwrap();
            let request = info_span!("a request whose name is quite long indeed, longer than fits").entered();
            let long = "x".repeat(1000);
            outcome(pool.submit(|s: String| info!("form: heap {}", s.len()), &long)).unwrap();
            outcome(pool.submit(|v: Vec<u64>| info!("form: row {}", v.len()), &vec![1; 1000])).unwrap();
            let map = pool.map(0..4_u64, |n: u64| info!("form: item {n}")).granularity(Granularity::Fixed(4));
            assert_eq!(map.filter(Result::is_ok).count(), 4);
            pool.broadcast(|w: &Worker| info!("form: broadcast {}", w.id()));
            // One that waits in a queue, behind others.
            let many: Vec<_> = (0..5000_u64)
                .map(|n| {
                    pool.submit(
                        |n: u64| {
                            if n == 4999 {
                                info!("form: queued")
                            }
                        },
                        &n,
                    )
                })
                .collect();
            many.into_iter().for_each(|task| outcome(task).unwrap());
            assert!(outcome::<()>(pool.submit(|()| panic!("form: panic"), &())).is_err());
            drop(request);
            pool.spawn(|()| -> () { panic!("form: detached") }, &());
            pool.close().wait();
        },
        |finished| {
            let caller = "caller.name=\"a request whose name is quite long indeed, longe\"}";
            for form in ["heap 1000", "row 1000", "item 0", "item 3", "broadcast 0", "broadcast 1", "queued"]
            {
                let line = line(finished, &format!("form: {form}"));
                assert!(line.contains("task{pool=\"till\" worker=") && line.contains(caller), "{line}");
            }
            // The text of a panic is in lines of its own behind that one.
            let panics: Vec<_> =
                finished.stdout.lines().filter(|line| line.contains("panicked at")).collect();
            assert_eq!(panics.len(), 2, "{finished:?}");
            assert!(panics[0].contains("ERROR") && panics[0].contains(caller), "{panics:?}");
            assert!(panics[1].contains("ERROR") && !panics[1].contains("caller"), "{panics:?}");
            for text in ["form: panic", "form: detached"] {
                assert_eq!(finished.stdout.matches(text).count(), 1, "{finished:?}");
            }
            assert!(!finished.stderr.contains("panicked"), "{finished:?}");
            // The pool's own events, too.
            assert!(finished.stdout.contains("till: worker 0 is ready"), "{finished:?}");
        },
    );
}

#[test]
fn a_panic_that_is_filtered_out_is_printed() {
    both_output(
        || {
            // No spans and no events at all.
            tracing_subscriber::fmt()
                .with_max_level(tracing::level_filters::LevelFilter::OFF)
                .with_writer(Mutex::new(Stdout))
                .init();
            let pool = builder().workers(1).name("till").build().unwrap();
            let _request = info_span!("request").entered();
            assert!(outcome::<()>(pool.submit(|()| panic!("filtered"), &())).is_err());
            pool.close().wait();
        },
        |finished| {
            assert!(finished.status.success(), "{finished:?}");
            assert_eq!(finished.stderr.matches("filtered").count(), 1, "{finished:?}");
            assert!(finished.stderr.contains("till: worker 0 (generation 0, pid "), "{finished:?}");
        },
    );
}

#[test]
fn a_task_that_is_started_again_names_its_caller_again() {
    let finished = scenario_output(|| {
        subscribe(Level::INFO);
        let pool = Pool::builder().workers(1).name("till").retries(1).build().unwrap();
        let _request = info_span!("request").entered();
        let twice = |()| {
            info!("start {}", crate::support::counter(0).bump());
            if crate::support::counter(0).get() == 1 {
                std::process::abort();
            }
        };
        outcome(pool.submit(twice, &())).unwrap();
        pool.close().wait();
    });
    let Some(finished) = finished else { return };
    for start in ["start 0", "start 1"] {
        assert!(line(&finished, start).contains("caller.name=\"request\""), "{finished:?}");
    }
}
