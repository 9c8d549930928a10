//! L-09: what the log hooks tell about workers. Each start is one event and each end is one, with its reason and with
//! whether a replacement follows.

use std::sync::Mutex;
use std::time::Duration;

use forkring::{Pool, Signal, TaskError, View, Worker, WorkerState, hooks};

use crate::crashes::{Crash, die};
use crate::support::{both, builder, counter, eventually, in_process, outcome, scenario, signal};

static EVENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Collects what both hooks are told about workers of the pool `p`, in one list.
fn listen() {
    let note = |severity: &str, text: &str| {
        if let Some(event) = text.strip_prefix("p: worker ") {
            EVENTS.lock().unwrap().push(format!("{severity}: {event}"));
        }
    };
    hooks::set_log_error(move |text| note("error", text));
    hooks::set_log_info(move |text| note("info", text));
}

/// The generation and the pid that an event names.
fn life(event: &str) -> (&str, &str) {
    let (_, rest) = event.split_once("(generation ").unwrap();
    rest.split_once(')').unwrap().0.split_once(", pid ").unwrap()
}

/// Serves one task, so the worker is there. Its pid.
#[track_caller]
fn serves(pool: &Pool, generation: u64) -> u32 {
    let task = pool.submit_with(|w: &Worker, _: &View<()>| (w.generation(), std::process::id()), &());
    let (seen, pid) = outcome(task).unwrap();
    assert_eq!(seen, generation);
    pid
}

fn hang(n: usize) {
    counter(n).bump();
    loop {
        std::thread::park();
    }
}

/// Appends what is told of a worker that lived and ended so.
fn lived(expected: &mut Vec<String>, pid: u32, severity: &str, end: &str) {
    let generation = expected.len() / 2;
    let who = format!("(generation {generation}, pid {pid})");
    expected.push(format!("info: 0 is ready {who}"));
    expected.push(format!("{severity}: 0 {who} {end}"));
}

#[test]
fn l_09_each_death_of_a_worker_is_one_event_with_its_reason() {
    scenario(|| {
        listen();
        let pool = Pool::builder().workers(1).name("p").build().unwrap();
        let mut expected = Vec::new();

        let pid = serves(&pool, 0);
        assert!(outcome(pool.submit(|()| -> () { die(Crash::Abort) }, &())).unwrap_err().is_worker_lost());
        lived(&mut expected, pid, "error", "was ended by SIGABRT (6); it is replaced");

        let pid = serves(&pool, 1);
        signal(pid, Signal::SIGKILL);
        lived(&mut expected, pid, "error", "was ended by SIGKILL (9); it is replaced");

        let pid = serves(&pool, 2);
        assert!(outcome(pool.submit(|()| -> () { die(Crash::Exit(3)) }, &())).unwrap_err().is_worker_lost());
        lived(&mut expected, pid, "error", "left with exit code 3; it is replaced");

        let pid = serves(&pool, 3);
        pool.close().wait();
        lived(&mut expected, pid, "info", "left with exit code 0, as told");
        assert_eq!(*EVENTS.lock().unwrap(), expected);
    });
}

#[test]
fn l_09_each_start_and_each_end_of_a_worker_is_one_event_with_its_reason() {
    both(|| {
        listen();
        const TASKS: u64 = 5;
        let pool = builder().workers(1).name("p").max_tasks_per_worker(TASKS).build().unwrap();
        let mut expected = Vec::new();
        let killed = match in_process() {
            true => "was given up, and ends when its task returns",
            false => "was ended by SIGKILL (9)",
        };

        let pid = serves(&pool, 0);
        let task = pool.submit(hang, &0);
        counter(0).wait_for(1);
        task.kill();
        assert!(outcome(task).unwrap_err().is_cancelled());
        let end = format!("{killed}, because its task was killed; it is replaced");
        lived(&mut expected, pid, "info", &end);

        let pid = serves(&pool, 1);
        let limit = Duration::from_millis(20);
        let task = pool.options().timeout(limit).submit(hang, &1);
        assert!(matches!(outcome(task), Err(TaskError::TimedOut { limit: l }) if l == limit));
        let end = format!("{killed}, because its task ran out of time; it is replaced");
        lived(&mut expected, pid, "info", &end);

        let pid = serves(&pool, 2);
        pool.recycle_workers();
        lived(&mut expected, pid, "info", "left with exit code 0, because it is renewed; it is replaced");

        let pid = serves(&pool, 3);
        // A panic is the task's outcome and no event in a worker's life.
        let panics = pool.submit(|()| -> () { panic!("harmless") }, &());
        assert!(outcome(panics).unwrap_err().is_panicked());
        for _ in 2..TASKS {
            assert_eq!(serves(&pool, 3), pid);
        }
        let end = "left with exit code 0, since it has run max_tasks_per_worker; it is replaced";
        lived(&mut expected, pid, "info", end);

        let pid = serves(&pool, 4);
        pool.close().wait();
        lived(&mut expected, pid, "info", "left with exit code 0, as told");
        assert_eq!(*EVENTS.lock().unwrap(), expected);
    });
}

#[test]
fn l_09_the_events_of_many_workers_come_in_order() {
    scenario(|| {
        listen();
        let pool = Pool::builder().workers(3).name("p").max_tasks_per_worker(4).build().unwrap();
        let tasks: Vec<_> = (0..90_u32)
            .map(|n| {
                let task = |n: u32| if n.is_multiple_of(9) { die(Crash::Kill) } else { n };
                pool.submit(task, &n)
            })
            .collect();
        let lost = tasks.into_iter().map(outcome).filter(Result::is_err).count();
        assert_eq!(lost, 10);
        pool.close().wait();
        let events = EVENTS.lock().unwrap();
        let mut losses = 0;
        for worker in 0..3 {
            let of_worker: Vec<&str> = events
                .iter()
                .map(String::as_str)
                .filter(|text| text.contains(&format!(": {worker} ")))
                .collect();
            let mut lives = of_worker.chunk_by(|a, b| life(a) == life(b)).enumerate().peekable();
            while let Some((generation, events)) = lives.next() {
                assert_eq!(life(events[0]).0, generation.to_string(), "{of_worker:#?}");
                let end = match events {
                    [start, end] if start.contains(" is ready ") => end,
                    // The pool closed before it was ready.
                    [end] if lives.peek().is_none() => end,
                    _ => panic!("{events:#?}"),
                };
                // The last one may have ended while the pool closed.
                assert!(lives.peek().is_none() || end.ends_with("is replaced"), "{end}");
                losses += usize::from(end.starts_with("error: "));
            }
        }
        assert_eq!(losses, lost, "{events:#?}");
    });
}

#[test]
fn l_09_workers_that_are_killed_with_their_pool_have_their_events_too() {
    both(|| {
        listen();
        let pool = builder().workers(3).name("p").build().unwrap();
        pool.spawn(|()| hang(0), &());
        counter(0).wait_for(1);
        pool.terminate();
        let events = EVENTS.lock().unwrap();
        for worker in 0..3 {
            let of_worker = format!(": {worker} (generation 0, ");
            let ends: Vec<_> = events
                .iter()
                .filter(|event| event.contains(&of_worker) && event.ends_with(", as told"))
                .collect();
            assert_eq!(ends.len(), 1, "{events:?}");
            assert!(in_process() || ends[0].contains("was ended by SIGKILL (9)"), "{events:?}");
        }
    });
}

/// After a run of everything, what the log told and what `stats` tells are the same, worker by worker.
#[test]
fn l_09_events_and_figures_agree() {
    both(|| {
        listen();
        let pool = builder().workers(3).name("p").max_tasks_per_worker(7).build().unwrap();
        let impatient = pool.options().timeout(Duration::from_millis(30));
        let (mut losses, mut kills) = (0_usize, 0);
        for round in 0..25 {
            let tasks: Vec<_> = (0..12_u32).map(|n| pool.submit(|n: u32| n, &n)).collect();
            match round % 5 {
                0 => assert!(outcome(impatient.submit(hang, &0)).unwrap_err().is_timed_out()),
                1 => {
                    kills += 1;
                    let task = pool.submit(hang, &1);
                    counter(1).wait_for(kills);
                    task.kill();
                    assert!(outcome(task).unwrap_err().is_cancelled());
                }
                2 => pool.recycle_workers(),
                3 if !in_process() => {
                    losses += 1;
                    let crash = pool.submit(|()| -> () { die(Crash::Abort) }, &());
                    assert!(outcome(crash).unwrap_err().is_worker_lost());
                }
                _ => assert!(outcome(pool.submit(|()| -> () { panic!("harmless") }, &())).is_err()),
            }
            for (n, task) in (0..).zip(tasks) {
                assert_eq!(outcome(task).unwrap(), n);
            }
        }
        eventually("all are ready", || pool.stats().workers.iter().all(|w| w.state == WorkerState::Idle));
        pool.close().wait();
        let (stats, events) = (pool.stats(), EVENTS.lock().unwrap());
        for w in &stats.workers {
            let of_worker: Vec<_> =
                events.iter().filter(|text| text.contains(&format!(": {} ", w.id))).collect();
            let count = |part: &str| of_worker.iter().filter(|text| text.contains(part)).count() as u64;
            assert_eq!(
                (count("; it is replaced"), count(", as told")),
                (w.restarts, 1),
                "{of_worker:#?}\n{stats}"
            );
            assert_eq!(of_worker.len() as u64, w.restarts + 1 + count(" is ready "), "{of_worker:#?}");
            assert_eq!(w.generation, w.restarts);
            assert_eq!(count("because its task ran out of time"), w.timed_out, "{of_worker:#?}\n{stats}");
            assert_eq!(count("error: "), w.lost, "{of_worker:#?}\n{stats}");
        }
        let count = |part: &str| events.iter().filter(|text| text.contains(part)).count();
        assert_eq!(count("because its task was killed"), kills as usize, "{events:#?}");
        assert_eq!((count("error: "), stats.lost), (losses, losses as u64), "{events:#?}");
        assert_eq!((stats.timed_out, stats.done), (5, 300), "{stats}");
        assert!(count("since it has run max_tasks_per_worker") > 10, "{events:#?}");
    });
}
