//! Inputs that cost a worker: what is kept of them, and that it can be replayed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forkring::{
    Crasher, Granularity, Input, OnWorkerLoss, Payload, Pool, Task, TaskError, View, Worker, replay,
    replay_with,
};
use nix::libc;

use crate::support::{
    both, builder, collect_errors, counter, errors, gate, in_process, quietly, scenario, scenario_output,
};

/// A directory of the scenario's own, removed when it is over.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("forkring-crashers-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Self(dir)
    }

    /// The files, in the order of their names, which is that of their times.
    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn only(&self) -> PathBuf {
        let mut files = self.files();
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// After so long a task of the scenarios that run on threads too is out of time.
const LIMIT: Duration = Duration::from_millis(500);

/// Ends with a task that costs its worker: by a crash, or, where that would be the end of the scenario, by a limit of time.
fn cost_a_worker() -> ! {
    match in_process() {
        true => hang(),
        false => std::process::abort(),
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Whether a task has cost its worker in that way.
#[track_caller]
fn has_cost_a_worker(task: Task<impl Payload>) {
    let error = task.wait().map(drop).unwrap_err();
    assert!(error.is_worker_lost() || in_process() && error.is_timed_out(), "{error}");
}

/// Dies of a text that says so.
fn parse(text: String) -> usize {
    match text.as_str() {
        "die" => cost_a_worker(),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(3),
        "panic" => panic!("as told"),
        "hang" => hang(),
        _ => text.len(),
    }
}

#[derive(Clone, Debug, PartialEq, Payload)]
struct Job {
    name: String,
    numbers: Vec<(u32, f64)>,
}

#[test]
fn the_input_of_a_crash_is_kept_and_replayed() {
    scenario(|| {
        quietly();
        let dir = Dir::new();
        let pool = Pool::builder().workers(1).name("my pool").save_crashers(&dir.0).build().unwrap();
        let Err(TaskError::WorkerLost(lost)) = pool.submit(parse, &"abort".to_owned()).wait() else {
            panic!()
        };
        assert_eq!(pool.submit(parse, &"fine".to_owned()).wait().unwrap(), 4);
        pool.close().wait();

        let path = dir.only();
        assert!(name(&path).ends_with("__crashers__parse.crasher"), "{path:?}");
        assert!(name(&path).contains("-my_pool-w0-SIGABRT-"), "{path:?}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let crasher = Crasher::read(&path).unwrap();
        assert_eq!((crasher.pool(), crasher.worker(), crasher.pid()), ("my pool", 0, lost.pid()));
        assert_eq!(crasher.function(), concat!(module_path!(), "::parse"));
        assert!(crasher.cause().contains("SIGABRT"), "{crasher}");
        assert_eq!(crasher.input::<String>().unwrap(), "abort");
        assert_eq!(replay(&path, |text: String| text.len()).unwrap(), 5);
    });
}

#[test]
fn a_replay_does_what_the_task_did() {
    let finished = scenario_output(|| {
        quietly();
        let dir = Dir::new();
        let pool = Pool::builder().workers(1).save_crashers(&dir.0).build().unwrap();
        assert!(pool.submit(parse, &"abort".to_owned()).wait().unwrap_err().is_worker_lost());
        pool.close().wait();
        let path = dir.only();
        let text = fs::read(&path).unwrap();
        drop(dir);
        // Where it is taken from is all the same.
        let path = std::env::temp_dir().join(format!("forkring-replay-{}", std::process::id()));
        fs::write(&path, text).unwrap();
        let opened = Crasher::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        parse(opened.input().unwrap());
    });
    if let Some(finished) = finished {
        assert_eq!(finished.signal(), Some(libc::SIGABRT), "{finished:?}");
    }
}

#[test]
fn only_what_cost_a_worker_is_kept() {
    both(|| {
        quietly();
        let dir = Dir::new();
        let pool = builder().workers(1).save_crashers(&dir.0).build().unwrap();
        let run = |text: &str| pool.submit(parse, &text.to_owned());
        assert!(run("panic").wait().unwrap_err().is_panicked());
        let killed = pool.submit(
            |_: ()| {
                counter(0).bump();
                gate(0).wait()
            },
            &(),
        );
        counter(0).wait_for(1);
        killed.kill();
        assert!(killed.wait().unwrap_err().is_cancelled());
        // A deadline that is over before its task could start.
        let busy = pool.submit(
            |_: ()| {
                counter(1).bump();
                gate(1).wait()
            },
            &(),
        );
        counter(1).wait_for(1);
        let late = pool.options().deadline(Duration::from_millis(20)).submit(parse, &"fine".to_owned());
        assert!(late.wait().unwrap_err().is_timed_out());
        gate(1).open();
        busy.wait().unwrap();
        assert_eq!(dir.files(), Vec::<PathBuf>::new());

        if !in_process() {
            assert!(run("exit").wait().unwrap_err().is_worker_lost());
        }
        assert!(
            pool.with_timeout(Duration::from_millis(30)).submit(parse, &"hang".to_owned()).wait().is_err()
        );
        let last = pool.submit(parse, &"hang".to_owned());
        counter(2).bump();
        pool.terminate();
        assert!(last.wait().unwrap_err().is_terminated());
        let files = dir.files();
        let [exits @ .., late] = &files[..] else { panic!("none") };
        assert_eq!(exits.len(), usize::from(!in_process()), "{files:?}");
        assert!(exits.iter().all(|path| name(path).contains("-exit3-")), "{files:?}");
        assert!(name(late).contains("-timeout-"), "{files:?}");
        assert_eq!(Crasher::read(late).unwrap().input::<String>().unwrap(), "hang");
    });
}

#[test]
fn of_a_batch_it_is_the_item_that_was_running() {
    both(|| {
        quietly();
        let dir = Dir::new();
        let pool = builder().workers(2).task_timeout(LIMIT).save_crashers(&dir.0).build().unwrap();
        // Plain items, which have no table.
        let outcomes = pool.map(0..100_u64, |n: u64| if n % 40 == 13 { cost_a_worker() } else { n });
        let lost: Vec<usize> = outcomes
            .granularity(Granularity::Fixed(10))
            .enumerate()
            .filter_map(|(n, outcome)| outcome.is_err().then_some(n))
            .collect();
        assert_eq!(lost, [13, 53, 93]);
        // Items that have one.
        let jobs =
            |n: u32| Job { name: format!("job {n}"), numbers: vec![(n, f64::from(n)); n as usize % 7] };
        let late = pool.with_timeout(LIMIT);
        let count = late
            .map((0..50).map(jobs), |job: Job| if job.name == "job 27" { hang() } else { job.numbers.len() })
            .granularity(Granularity::Fixed(20))
            .filter(Result::is_err)
            .count();
        assert_eq!(count, 1);
        pool.close().wait();

        let files = dir.files();
        assert_eq!(files.len(), 4, "{files:?}");
        let mut numbers: Vec<u64> = files[..3].iter().map(|path| replay(path, |n: u64| n).unwrap()).collect();
        numbers.sort();
        assert_eq!(numbers, [13, 53, 93]);
        assert_eq!(Crasher::read(&files[3]).unwrap().input::<Job>().unwrap(), jobs(27));
        assert!(name(&files[3]).contains("-timeout-"), "{files:?}");
    });
}

#[test]
fn items_and_tasks_that_are_started_again_are_kept_once() {
    scenario(|| {
        quietly();
        let dir = Dir::new();
        let pool = Pool::builder().workers(1).retries(2).save_crashers(&dir.0).build().unwrap();
        let flaky = |n: u64| if n == 3 && counter(3).bump() < 2 { std::process::abort() } else { n };
        let ok = pool.map(0..6_u64, flaky).granularity(Granularity::Fixed(3)).filter(Result::is_ok).count();
        assert_eq!(ok, 6);
        let bad = |n: u64| if n == 3 { std::process::abort() } else { n };
        let ok = pool.map(0..6_u64, bad).granularity(Granularity::Fixed(3)).filter(Result::is_ok).count();
        assert_eq!(ok, 5);
        assert!(pool.submit(bad, &3).wait().is_err());
        pool.close().wait();
        let files = dir.files();
        assert_eq!(files.len(), 2, "{files:?}");
        assert!(files.iter().all(|path| replay(path, |n: u64| n).unwrap() == 3));
    });
}

#[derive(Input)]
struct Query<'a> {
    #[rkyv(with = forkring::rkyv::with::InlineAsBox)]
    text: &'a str,
    limit: u32,
}

#[test]
fn inputs_of_every_kind_are_kept() {
    both(|| {
        quietly();
        let dir = Dir::new();
        let pool = builder().workers(1).task_timeout(LIMIT).save_crashers(&dir.0).build().unwrap();
        has_cost_a_worker(pool.submit_with(|_: &Worker, _: &View<str>| -> () { cost_a_worker() }, "words"));
        let rows: Vec<f32> = (0..300_000).map(|n| n as f32).collect();
        has_cost_a_worker(
            pool.submit_with(|_: &Worker, _: &View<[f32]>| -> () { cost_a_worker() }, &rows[..]),
        );
        has_cost_a_worker(pool.submit(|_: Vec<f32>| -> () { cost_a_worker() }, &rows));
        // Larger than the arena, so that it flows.
        let large = vec![7_u8; 6 << 20];
        has_cost_a_worker(pool.submit(|_: Vec<u8>| -> () { cost_a_worker() }, &large));
        let query = Query { text: "a rose", limit: 3 };
        has_cost_a_worker(pool.submit_with(|_: &Worker, _: &View<Query>| -> () { cost_a_worker() }, &query));
        has_cost_a_worker(pool.submit(|()| -> () { cost_a_worker() }, &()));
        pool.spawn(
            |n: u8| -> () {
                if n == 9 {
                    cost_a_worker()
                }
            },
            &9,
        );
        pool.close().wait();

        let files = dir.files();
        assert_eq!(files.len(), 7, "{files:?}");
        replay_with::<str, _>(&files[0], |text| assert_eq!(text, "words")).unwrap();
        replay_with::<[f32], _>(&files[1], |row| {
            assert!(row.iter().map(|n| n.to_native()).eq(rows.iter().copied()))
        })
        .unwrap();
        replay(&files[2], |row: Vec<f32>| assert_eq!(row, rows)).unwrap();
        replay(&files[3], |bytes: Vec<u8>| assert_eq!(bytes, large)).unwrap();
        replay_with::<Query, _>(&files[4], |query| {
            assert_eq!((&*query.text, query.limit.to_native()), ("a rose", 3));
        })
        .unwrap();
        replay(&files[5], |()| ()).unwrap();
        replay(&files[6], |n: u8| assert_eq!(n, 9)).unwrap();
    });
}

#[test]
fn wrong_types_and_damaged_files_are_refused() {
    both(|| {
        quietly();
        let dir = Dir::new();
        let pool = builder().workers(1).task_timeout(LIMIT).save_crashers(&dir.0).build().unwrap();
        has_cost_a_worker(pool.submit(parse, &"die".to_owned()));
        pool.close().wait();
        let path = dir.only();
        let error = replay(&path, |n: u64| n).unwrap_err().to_string();
        for part in ["alloc::string::String", "u64", concat!(module_path!(), "::parse"), name(&path)] {
            assert!(error.contains(part), "{error}");
        }
        assert!(replay_with::<str, _>(&path, |_| ()).is_err(), "it was an owned string");
        assert!(
            replay(dir.0.join("nothing"), |_: String| ()).unwrap_err().to_string().contains("cannot be read")
        );

        let good = fs::read(&path).unwrap();
        let refused = |bytes: &[u8], what: &str| {
            fs::write(&path, bytes).unwrap();
            let error = replay(&path, |_: String| ()).expect_err(what).to_string();
            assert!(
                error.contains("damaged") || error.contains("no file of save_crashers"),
                "{what}: {error}"
            );
        };
        for at in 0..good.len() {
            refused(&good[..at], "cut");
            for bit in [1, 128] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                refused(&bad, "a bit");
            }
        }
        refused(&[&good[..], b"x"].concat(), "longer");
        fs::write(&path, &good).unwrap();
        assert_eq!(replay(&path, |text: String| text).unwrap(), "die");
    });
}

#[test]
fn a_directory_is_bounded() {
    both(|| {
        collect_errors();
        let dir = Dir::new();
        let pool = builder().workers(2).task_timeout(LIMIT).save_crashers(&dir.0).build().unwrap();
        // From an earlier run; and something that is none of ours.
        for n in 0..98 {
            fs::write(dir.0.join(format!("{n}.crasher")), "old").unwrap();
        }
        fs::write(dir.0.join("notes.txt"), "notes").unwrap();
        for _ in 0..5 {
            has_cost_a_worker(pool.submit(parse, &"die".to_owned()));
        }
        pool.close().wait();
        assert_eq!(dir.files().len(), 101);
        assert!((0..98).all(|n| fs::read(dir.0.join(format!("{n}.crasher"))).unwrap() == b"old"));
        let errors = errors();
        assert_eq!(
            errors.iter().filter(|text| text.contains("it is full: remove some")).count(),
            3,
            "{errors:?}"
        );
    });
}

#[test]
fn what_the_disk_refuses_is_told_and_harms_nobody() {
    both(|| {
        collect_errors();
        let dir = Dir::new();
        let pool =
            builder().workers(1).task_timeout(LIMIT).save_crashers(dir.0.join("deep")).build().unwrap();
        fs::remove_dir(dir.0.join("deep")).unwrap();
        fs::write(dir.0.join("deep"), "a file in its place").unwrap();
        has_cost_a_worker(pool.submit(parse, &"die".to_owned()));
        assert_eq!(pool.submit(parse, &"fine".to_owned()).wait().unwrap(), 4);
        pool.close().wait();
        assert!(errors().iter().any(|text| text.contains("is not saved in")), "{:?}", errors());
        assert_eq!(fs::read(dir.0.join("deep")).unwrap(), b"a file in its place");

        let error =
            builder().workers(1).save_crashers(dir.0.join("deep/er")).build().unwrap_err().to_string();
        assert!(error.contains("save_crashers") && error.contains("deep/er"), "{error}");
    });
}

#[test]
fn a_program_that_aborts_with_its_worker_has_the_input_on_disk() {
    let finished = scenario_output(|| {
        quietly();
        let dir = Dir::new();
        println!("dir={}=", dir.0.display());
        let pool = Pool::builder()
            .workers(1)
            .on_worker_loss(OnWorkerLoss::Abort)
            .save_crashers(&dir.0)
            .build()
            .unwrap();
        let _ = pool.submit(parse, &"abort".to_owned()).wait();
        // The abort is the driver's.
        loop {
            std::thread::park();
        }
    });
    if let Some(finished) = finished {
        assert_eq!(finished.signal(), Some(libc::SIGABRT), "{finished:?}");
        let dir = Dir(finished.stdout.split('=').nth(1).unwrap().into());
        assert_eq!(replay(dir.only(), |text: String| text).unwrap(), "abort");
    }
}
