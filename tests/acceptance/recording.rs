//! `Builder::record`: the file is JSON, while the pool runs too, and tells what has happened.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use forkring::{Granularity, Pool, Stats, Worker, WorkerState, WorkerStats};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::support::{
    both, both_output, builder, children, collect_errors, counter, disposition, errors, eventually, fds_of,
    fork_and, gate, in_process, new_pool, outcome, process, quietly, scenario, signal,
};

/// A file that goes with its owner, and is named by the process that the scenario runs in.
struct Target(PathBuf);

impl Target {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("forkring-recording-{}.json", std::process::id())))
    }

    /// What is in the file.
    #[track_caller]
    fn read(&self) -> Recording {
        // Who reads while something is being added may get the first part from before and the second from after it.
        let mut document = Value::Null;
        eventually("a whole document", || {
            let parsed = serde_json::from_str(&fs::read_to_string(&self.0).unwrap());
            parsed.map(|parsed| document = parsed).is_ok()
        });
        Recording(document["traceEvents"].as_array().expect("a list of events").clone())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

struct Recording(Vec<Value>);

impl Recording {
    fn of<'a>(&'a self, phase: &'a str, category: &'a str) -> impl Iterator<Item = &'a Value> {
        let holds =
            move |event: &&Value| event["ph"] == phase && (category.is_empty() || event["cat"] == category);
        self.0.iter().filter(holds)
    }

    fn tasks(&self) -> Vec<&Value> {
        self.of("X", "task").collect()
    }

    /// How many tasks ended in each way.
    fn outcomes(&self) -> BTreeMap<&str, usize> {
        let mut outcomes = BTreeMap::new();
        for task in self.tasks() {
            *outcomes.entry(task["args"]["outcome"].as_str().unwrap()).or_default() += 1;
        }
        outcomes
    }

    /// What a viewer relies on: each event has its fields, spans of one track do not overlap but by containing each other,
    /// and lives begin and end.
    #[track_caller]
    fn check(&self, workers: usize) {
        let number =
            |event: &Value, key: &str| event[key].as_f64().unwrap_or_else(|| panic!("{key}: {event}"));
        let mut spans: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
        for event in &self.0 {
            assert!(event["pid"].is_u64() && event["tid"].is_u64(), "{event}");
            assert!(event["tid"].as_u64().unwrap() <= workers as u64, "{event}");
            if event["ph"] != "M" {
                assert!(number(event, "ts") >= 0.0);
            }
            if event["ph"] == "X" {
                let (start, took) = (number(event, "ts"), number(event, "dur"));
                spans.entry(event["tid"].as_u64().unwrap()).or_default().push((start, start + took));
            }
        }
        for (track, spans) in &mut spans {
            spans.sort_by(|one, other| one.partial_cmp(other).unwrap());
            let apart = |pair: &[(f64, f64)]| pair[0].1 <= pair[1].0 + 0.001;
            assert!(spans.windows(2).all(apart), "track {track}: one task at a time: {spans:?}");
        }
        let names: Vec<_> =
            self.of("M", "").filter(|e| e["name"] == "thread_name").map(|e| &e["args"]["name"]).collect();
        assert_eq!(names.len(), workers);
        assert!((0..workers).all(|n| *names[n] == format!("worker {n}")));
        assert!(self.of("C", "").count() > 0, "a counter");
    }
}

#[test]
fn each_task_is_a_span_of_its_worker_with_its_function_id_and_outcome() {
    both(|| {
        quietly();
        let target = Target::new();
        let pool = builder().workers(2).name("till \"1\"").record(&target.0).build().unwrap();
        let first = pool.submit(|n: u64| n * 2, &4);
        let id = first.id().to_string();
        assert_eq!(outcome(first).unwrap(), 8);
        assert_eq!(pool.broadcast(|w: &Worker| w.id()).len(), 2);
        assert!(outcome::<()>(pool.submit(|()| panic!("no"), &())).is_err());
        // Where workers are processes one is lost.
        let lost = usize::from(!in_process());
        if lost == 1 {
            let crash = outcome::<()>(pool.submit(|()| std::process::abort(), &()));
            assert!(crash.unwrap_err().is_worker_lost());
        }
        let slow = pool.options().timeout(Duration::from_millis(40)).submit(|()| gate(0).wait(), &());
        assert!(outcome(slow).unwrap_err().is_timed_out());
        let doomed = pool.submit(
            |()| {
                counter(0).bump();
                gate(0).wait()
            },
            &(),
        );
        counter(0).wait_for(1);
        doomed.kill();
        assert!(outcome(doomed).unwrap_err().is_cancelled());
        let map = pool.map(0..100_u64, |n: u64| n).granularity(Granularity::Fixed(25));
        assert_eq!(map.map(Result::unwrap).count(), 100);
        // One that is not ready when the pool closes has no life.
        let ready = |w: &WorkerStats| w.state == WorkerState::Idle;
        eventually("replacements", || {
            let workers = pool.stats().workers;
            workers.iter().map(|w| w.restarts).sum::<u64>() == 2 + lost as u64 && workers.iter().all(ready)
        });
        pool.close().wait();

        let recording = target.read();
        recording.check(2);
        let expected = [("done", 7), ("panicked", 1), ("lost", lost), ("timed out", 1), ("cancelled", 1)];
        let expected = expected.into_iter().filter(|(_, tasks)| *tasks > 0).collect();
        assert_eq!(recording.outcomes(), expected);
        let task = recording.tasks().into_iter().find(|task| task["args"]["id"] == id.as_str()).unwrap();
        assert!(task["name"].as_str().unwrap().contains("each_task_is_a_span"), "{task}");
        assert!(task["args"]["waited_us"].as_f64().is_some() && task["args"]["number"] == 0, "{task}");
        let items: u64 = recording.tasks().iter().filter_map(|task| task["args"]["items"].as_u64()).sum();
        assert_eq!(items, 100);
        let late = recording.tasks().into_iter().find(|task| task["args"]["outcome"] == "timed out").unwrap();
        // The driver's clock is the coarse one, which is a tick behind at most.
        assert!(late["dur"].as_f64().unwrap() >= 30_000.0, "{late}");
        // Two first processes, and one in the place of each that ended early.
        let lives = 4 + lost;
        assert_eq!(recording.of("B", "worker").count(), lives);
        assert_eq!(recording.of("E", "").count(), lives);
        assert_eq!(recording.of("X", "worker").count(), lives);
        let ends: Vec<&str> =
            recording.of("i", "worker").map(|event| event["args"]["end"].as_str().unwrap()).collect();
        assert_eq!(ends.len(), lives, "{ends:?}");
        for how in [
            if lost == 1 { "SIGABRT" } else { "was given up" },
            "its task ran out of time",
            "its task was killed",
            "as told",
        ] {
            assert!(ends.iter().any(|end| end.contains(how)), "{how}: {ends:?}");
        }
        let name = recording.of("M", "").find(|event| event["name"] == "process_name").unwrap();
        assert_eq!(name["args"]["name"], "till \"1\"");
    });
}

#[test]
fn a_recording_can_be_read_while_the_pool_runs_and_after_it_was_terminated() {
    both(|| {
        quietly();
        let target = Target::new();
        let pool = builder().workers(2).granularity(Granularity::Fixed(1)).record(&target.0).build().unwrap();
        for round in 1..=5 {
            assert_eq!(pool.map(0..100_u64, |n: u64| n).map(Result::unwrap).count(), 100);
            eventually("what has happened is in the file", || target.read().tasks().len() == 100 * round);
        }
        let stuck = [0, 1].map(|_| {
            pool.submit(
                |()| {
                    counter(0).bump();
                    gate(0).wait()
                },
                &(),
            )
        });
        let waiting = pool.submit(|n: u32| n, &1);
        counter(0).wait_for(2);
        // While tasks run the counter goes on.
        eventually("the counter shows both, and the one that waits", || {
            let recording = target.read();
            recording.of("C", "").any(|event| event["args"]["running"] == 2 && event["args"]["queued"] == 1)
        });
        pool.terminate();
        for task in stuck {
            assert!(outcome(task).unwrap_err().is_terminated());
        }
        assert!(outcome(waiting).unwrap_err().is_terminated());
        let recording = target.read();
        recording.check(2);
        assert_eq!(recording.outcomes(), [("done", 500), ("terminated", 2)].into());
        assert_eq!(recording.of("B", "").count(), recording.of("E", "").count());
    });
}

#[test]
fn a_recording_survives_the_death_of_its_program() {
    // The file's name is the program's number, which its parent learns from what it prints.
    both_output(
        || {
            let target = Target::new();
            let pool =
                builder().workers(1).granularity(Granularity::Fixed(1)).record(&target.0).build().unwrap();
            assert_eq!(pool.map(0..50_u64, |n: u64| n).map(Result::unwrap).count(), 50);
            eventually("what has happened is in the file", || target.read().tasks().len() == 50);
            println!("recording: {}.", target.0.display());
            signal(std::process::id(), Signal::SIGKILL);
            gate(0).wait();
        },
        |finished| {
            assert_eq!(finished.signal(), Some(9), "{finished:?}");
            let path = finished
                .stdout
                .split_once("recording: ")
                .and_then(|(_, rest)| rest.split_once(".\n"))
                .unwrap()
                .0;
            let target = Target(path.into());
            assert_eq!(target.read().tasks().len(), 50);
        },
    );
}

#[test]
fn a_recording_is_quiet_while_nothing_happens_and_leaves_nothing() {
    scenario(|| {
        let target = Target::new();
        let fds = crate::support::count_fds();
        let pool = Pool::builder().workers(1).record(&target.0).build().unwrap();
        // Neither the zygote nor its worker has the file; another pool's have it neither.
        let other = Pool::new(1).unwrap();
        let name = target.0.to_str().unwrap();
        for child in children() {
            assert!(!fds_of(child.pid).values().any(|file| file == name), "{child:?}");
        }
        other.close().wait();
        outcome(pool.submit(|n: u32| n, &1)).unwrap();
        eventually("the task is in the file", || target.read().tasks().len() == 1);
        let switches = || -> u64 {
            let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
            let of = |task: fs::DirEntry| {
                let status = fs::read_to_string(task.path().join("status")).ok()?;
                let name = status.lines().find_map(|line| line.strip_prefix("Name:\t"))?;
                let switches =
                    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:\t"))?;
                name.ends_with("record").then(|| switches.parse::<u64>().unwrap())
            };
            tasks.filter_map(of).sum()
        };
        assert!(switches() > 0, "the thread is found");
        // It makes its last rounds, then no more.
        eventually("the thread sleeps", || {
            let before = switches();
            std::thread::sleep(Duration::from_millis(200));
            before == switches()
        });
        // In a fork of the program nobody writes.
        let child = fork_and(|| {
            let stats: Stats = pool.stats();
            i32::from(stats.submitted != 0)
        });
        assert_eq!(crate::support::exit_code_of(child), 0);
        pool.close().wait();
        assert_eq!(crate::support::count_fds(), fds);
        assert_eq!(target.read().tasks().len(), 1);
        assert!(process(std::process::id()).is_some());
    });
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_of_build() {
    both(|| {
        let fds = crate::support::count_fds();
        let error = builder().workers(1).record("/proc/no/such/file").build().unwrap_err();
        let text = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(text.contains("record"), "{text}");
        assert_eq!(crate::support::count_fds(), fds);
        assert!(children().is_empty());

        // A full disk ends the recording, and nothing else.
        collect_errors();
        let pool = builder().workers(1).record("/dev/full").build().unwrap();
        for n in 0..100 {
            assert_eq!(outcome(pool.submit(|n: u32| n, &n)).unwrap(), n);
        }
        pool.close().wait();
        let told = errors();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("the recording ends"), "{told:?}");
    });
}

#[test]
fn processes_of_pools_that_are_built_later_do_not_have_the_file() {
    both(|| {
        let target = Target::new();
        let name = target.0.to_str().unwrap();
        let has_it = |pid| fds_of(pid).values().any(|file| file == name);
        let pool = builder().workers(1).record(&target.0).build().unwrap();
        assert!(has_it(std::process::id()));
        let other = Pool::new(2).unwrap();
        let children = children();
        assert_eq!(children.len(), if in_process() { 3 } else { 5 }, "{children:?}");
        for child in children {
            assert!(!has_it(child.pid), "{child:?}");
        }
        pool.close().wait();
        assert!(!has_it(std::process::id()));
        other.close().wait();
    });
}

#[test]
fn a_disk_that_is_full_half_way_leaves_a_whole_document() {
    both(|| {
        collect_errors();
        let target = Target::new();
        let pool = builder().workers(1).record(&target.0).build().unwrap();
        outcome(pool.submit(|n: u32| n, &0)).unwrap();
        eventually("the task is in the file", || target.read().tasks().len() == 1);
        // What goes beyond the limit is written up to the limit, and no signal tells of it.
        disposition(Signal::SIGXFSZ, true);
        let limit = fs::metadata(&target.0).unwrap().len() + 1500;
        setrlimit(Resource::RLIMIT_FSIZE, limit, limit).unwrap();
        let mut tasks = 1;
        eventually("the disk is full", || {
            outcome(pool.submit(|n: u32| n, &1)).unwrap();
            tasks += 1;
            !errors().is_empty()
        });
        pool.close().wait();
        let recording = target.read();
        recording.check(1);
        assert!((1..tasks).contains(&recording.tasks().len()), "{tasks}: {:?}", recording.tasks());
        assert_eq!(errors().len(), 1, "{:?}", errors());
        assert!(errors()[0].contains("the recording ends"), "{:?}", errors());
    });
}

#[test]
fn a_fifo_is_an_error_of_build() {
    both(|| {
        let target = Target::new();
        mkfifo(&target.0, Mode::S_IRWXU).unwrap();
        let fds = crate::support::count_fds();
        // Nobody reads; then somebody does.
        for reads in [false, true] {
            let open = || fs::OpenOptions::new().read(true).write(true).open(&target.0).unwrap();
            let reader = reads.then(open);
            let error = builder().workers(1).record(&target.0).build().unwrap_err();
            let text = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
            assert!(text.contains("not a FIFO"), "{text}");
            drop(reader);
            assert_eq!(crate::support::count_fds(), fds);
        }
        new_pool(1).unwrap().close().wait();
    });
}

#[test]
fn a_logger_that_panics_takes_no_thread_with_it() {
    struct Angry;
    impl log::Log for Angry {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            counter(usize::from(record.level() == log::Level::Error)).bump();
            panic!("no disk for logs either");
        }

        fn flush(&self) {}
    }
    both(|| {
        log::set_logger(&Angry).unwrap();
        log::set_max_level(log::LevelFilter::Info);
        std::panic::set_hook(Box::new(|_| ()));
        // The error comes while it is built, and the notices from the driver.
        let pool = builder().workers(1).record("/dev/full").build().unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &7)).unwrap(), 7);
        pool.close().wait();
        assert!(counter(0).get() > 0 && counter(1).get() > 0, "it was called");
    });
}
