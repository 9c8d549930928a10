//! What workers print: panics once, with their task's name on them; nothing twice, and nothing lost that a task has left in
//! a buffer when its worker is killed later.

#![allow(unsafe_code, reason = "a task that prints as C code does")]

use std::ffi::CString;
use std::io::Write;
use std::thread;
use std::time::Duration;

use forkring::{CurrentTask, Granularity, Pool, Worker, current_task};
use nix::libc;
use nix::sys::signal::{SigSet, Signal};

use crate::support::{
    BOUND, Finished, both, both_output, builder, counter, eventually, gate, in_process, outcome, process,
    scenario_output, signal,
};

/// The lines of standard error that are about a panic.
#[track_caller]
fn panics(finished: &Finished) -> Vec<&str> {
    assert!(finished.status.success(), "{finished:?}");
    finished.stderr.lines().filter(|line| line.contains(" panicked at ")).collect()
}

#[test]
fn a_panic_is_printed_once_with_pool_worker_and_task() {
    both_output(
        || {
            let pool = builder().workers(1).name("till").build().unwrap();
            outcome(pool.submit(|n: u32| n, &1)).unwrap();
            assert!(
                outcome::<()>(pool.submit(|()| panic!("the one and only"), &())).unwrap_err().is_panicked()
            );
            let map =
                pool.map(0..10_u64, |n: u64| assert!(n != 5, "five")).granularity(Granularity::Fixed(10));
            assert_eq!(map.filter(Result::is_err).count(), 1);
            println!("pids: {:?}.", pool.worker_pids());
        },
        |finished| {
            let pid =
                finished.stdout.split_once("pids: [").and_then(|(_, rest)| rest.split_once(']')).unwrap().0;
            let panics = panics(finished);
            let [first, second] = panics[..] else { panic!("{finished:?}") };
            let start = format!("till: worker 0 (generation 0, pid {pid}), task 1 panicked at tests/");
            assert!(first.starts_with(&start) && first.contains("output.rs:"), "{first:?} {start:?}");
            assert!(second.contains(", task 2 panicked at "), "{second:?}");
            assert_eq!(finished.stderr.matches("the one and only").count(), 1, "{finished:?}");
            assert_eq!(finished.stderr.matches("five").count(), 1, "{finished:?}");
        },
    );
}

#[test]
fn a_panic_of_a_detached_task_is_printed_once_too() {
    both_output(
        || {
            let pool = builder().workers(1).name("till").build().unwrap();
            pool.spawn(|()| -> () { panic!("nobody waits") }, &());
            pool.close().wait();
        },
        |finished| {
            assert_eq!(panics(finished).len(), 1, "{finished:?}");
            assert_eq!(finished.stderr.matches("nobody waits").count(), 1, "{finished:?}");
        },
    );
}

#[test]
fn a_log_hook_is_told_of_a_detached_task_whatever_is_printed() {
    both_output(
        || {
            forkring::hooks::set_log_error(|message| println!("hook: {message}"));
            let pool = builder().workers(1).name("till").build().unwrap();
            pool.spawn(|()| -> () { panic!("nobody waits") }, &());
            pool.close().wait();
        },
        |finished| {
            assert_eq!(panics(finished).len(), 1, "{finished:?}");
            assert!(finished.stdout.contains("hook: till: a detached task failed"), "{finished:?}");
        },
    );
}

#[test]
fn a_thread_of_a_task_and_init_are_named_without_a_task() {
    both_output(
        || {
            let pool = builder().workers(1).name("till").build().unwrap();
            let joined = pool.submit(|()| std::thread::spawn(|| panic!("in a thread")).join().is_err(), &());
            assert!(outcome(joined).unwrap());
            let failed = builder().workers(1).name("bank").init(|_| panic!("in init")).build().unwrap_err();
            assert!(failed.to_string().contains("in init"));
            // Panics of the master's are none of a worker's.
            assert!(std::panic::catch_unwind(|| panic!("in the master")).is_err());
        },
        |finished| {
            let panics = panics(finished);
            assert_eq!(panics.len(), 3, "{finished:?}");
            // Nothing tells a thread that a thread has started from the program's own.
            let named =
                panics[0].starts_with("till: worker 0 (generation 0, pid ") && !panics[0].contains(", task");
            assert!(named != finished.in_process, "{panics:?}");
            assert!(panics[1].starts_with("bank: worker 0 (generation 0, pid "), "{panics:?}");
            assert!(panics[2].contains("thread ") && !panics[2].contains("worker"), "{panics:?}");
        },
    );
}

/// It happens in the program itself, on whatever thread; what it is about is said as of a worker.
#[test]
fn a_panic_of_a_handler_is_printed_once_with_pool_and_caller() {
    both_output(
        || {
            type Asks = Worker<(), forkring::Service<u32, u32>>;
            let ask = |w: &Asks, n: &forkring::View<u32>| w.call(&n.to_native()).is_err();
            let handler = |n: u32| if n == 1 { panic!("in a handler") } else { n };
            let pool = builder().workers(1).name("till").service(handler).build().unwrap();
            assert!(outcome(pool.submit_with(ask, &1_u32)).unwrap());
            let slow = async |n: u32| if n == 1 { panic!("in a future") } else { n };
            let pool = builder().workers(1).name("bank").service_async(slow).build().unwrap();
            pool.recycle_workers();
            eventually("a replacement", || pool.stats().workers[0].restarts == 1);
            assert!(outcome(pool.submit_with(ask, &1_u32)).unwrap());
        },
        |finished| {
            let panics = panics(finished);
            let [sync, later] = panics[..] else { panic!("{finished:?}") };
            let start = "till: the service, called by worker 0 (generation 0), panicked at tests/";
            assert!(sync.starts_with(start), "{finished:?}");
            assert!(later.starts_with("bank: the service, called by worker 0 (generation 1), panicked at "));
            for text in ["in a handler", "in a future"] {
                assert_eq!(finished.stderr.matches(text).count(), 1, "{finished:?}");
            }
        },
    );
}

#[test]
fn a_pool_without_a_name_has_the_crates_once() {
    let finished = scenario_output(|| {
        let pool = Pool::new(1).unwrap();
        assert!(outcome::<()>(pool.submit(|()| std::process::abort(), &())).is_err());
        assert!(outcome::<()>(pool.submit(|()| panic!("a panic"), &())).is_err());
        pool.close().wait();
    });
    let Some(finished) = finished else { return };
    assert!(finished.stderr.contains("forkring: worker 0 (generation 0, pid "), "{finished:?}");
    assert!(finished.stderr.contains("forkring: worker 0 (generation 1, pid "), "{finished:?}");
    assert!(!finished.stderr.contains("forkring: forkring"), "{finished:?}");
}

#[test]
fn a_hook_of_the_programs_is_called_instead_and_knows_the_task() {
    both_output(
        || {
            std::panic::set_hook(Box::new(|info| {
                let task = current_task().map(|task: CurrentTask| task.to_string());
                let _ = writeln!(std::io::stderr(), "hook: {task:?} {:?}", info.payload_as_str());
            }));
            let pool = builder().workers(1).name("till").build().unwrap();
            assert!(outcome::<()>(pool.submit(|()| panic!("for the hook"), &())).is_err());
        },
        |finished| {
            assert!(panics(finished).is_empty(), "{finished:?}");
            assert_eq!(finished.stderr.matches("for the hook").count(), 1, "{finished:?}");
            assert!(
                finished.stderr.contains("hook: Some(\"till: worker 0 (generation 0, pid "),
                "{finished:?}"
            );
            assert!(finished.stderr.contains("), task 0\") Some(\"for the hook\")"), "{finished:?}");
        },
    );
}

#[test]
fn a_pool_inside_a_task_names_its_own_workers() {
    both(|| {
        let pool = builder().workers(1).name("outer").build().unwrap();
        let name = |()| {
            let inner = Pool::builder().workers(1).name("inner").build().unwrap();
            let name =
                inner.submit(|()| current_task().map(|task| task.pool.to_owned()), &()).wait().unwrap();
            (name, current_task().map(|task| task.pool.to_owned()))
        };
        let names = outcome(pool.submit(name, &())).unwrap();
        assert_eq!(names, (Some("inner".to_owned()), Some("outer".to_owned())));
        assert_eq!(current_task(), None);
        let in_thread = |()| std::thread::spawn(|| current_task().map(|task| task.number)).join().unwrap();
        let place = outcome(pool.submit(in_thread, &())).unwrap();
        assert_eq!(place, (!in_process()).then_some(None), "a thread of a task's own");
    });
}

/// Prints as C code does, into C's buffer.
fn print_in_c(text: &std::ffi::CStr) {
    // SAFETY: a format without conversions, and a string that ends with a zero.
    unsafe { libc::printf(c"%s".as_ptr(), text.as_ptr()) };
}

#[test]
fn what_is_in_a_buffer_at_the_fork_is_printed_once() {
    let finished = scenario_output(|| {
        print!("<rust before>");
        print_in_c(c"<c before>");
        let pool = Pool::builder().workers(3).build().unwrap();
        let pids = pool.broadcast(|_: &Worker| std::process::id());
        assert_eq!(pids.len(), 3);
        signal(pids[0].clone().unwrap(), Signal::SIGKILL);
        eventually("a replacement", || pool.stats().workers[0].restarts == 1);
        pool.broadcast(|_: &Worker| ());
        pool.close().wait();
    });
    let Some(finished) = finished else { return };
    assert!(finished.status.success(), "{finished:?}");
    for text in ["<rust before>", "<c before>"] {
        assert_eq!(finished.stdout.matches(text).count(), 1, "{finished:?}");
    }
}

#[test]
fn what_tasks_have_printed_is_there_when_their_worker_is_killed_in_the_middle_of_a_line() {
    let finished = scenario_output(|| {
        let pool = Pool::new(1).unwrap();
        let print = pool.submit(
            |()| {
                print!("<a rust line that goes on");
                print_in_c(c"<a c line that goes on");
            },
            &(),
        );
        outcome(print).unwrap();
        // A worker that has nothing to do writes what it has, and sleeps.
        let pid = pool.worker_pids()[0];
        eventually("the worker sleeps", || process(pid).is_some_and(|process| process.state == 'S'));
        signal(pid, Signal::SIGKILL);
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        // And before it waits for the service.
        pool.terminate();

        let pool = Pool::builder()
            .workers(1)
            .service(|()| {
                counter(0).bump();
                gate(0).wait()
            })
            .build()
            .unwrap();
        let calls = pool.submit_with(
            |w: &Worker<(), forkring::Service<(), ()>>, (): &forkring::View<()>| {
                print!("<before a call");
                w.call(&())
            },
            &(),
        );
        counter(0).wait_for(1);
        let pid = pool.worker_pids()[0];
        eventually("the worker sleeps", || process(pid).is_some_and(|process| process.state == 'S'));
        signal(pid, Signal::SIGKILL);
        gate(0).open();
        assert!(outcome(calls).unwrap_err().is_worker_lost());
        pool.terminate();
    });
    let Some(finished) = finished else { return };
    assert!(finished.status.success(), "{finished:?}");
    for text in ["<a rust line that goes on", "<a c line that goes on", "<before a call"] {
        assert_eq!(finished.stdout.matches(text).count(), 1, "{text}: {finished:?}");
    }
}

/// Of a task that is killed itself, what is behind its last line's end is lost, and nothing else.
#[test]
fn a_task_that_is_killed_has_printed_its_whole_lines_and_what_it_flushed() {
    let finished = scenario_output(|| {
        let pool = Pool::new(1).unwrap();
        let run = |()| -> () {
            println!("<a whole line>");
            print!("<a part that is flushed>");
            std::io::stdout().flush().unwrap();
            print!("<a part that is lost>");
            counter(0).bump();
            gate(0).wait();
        };
        let task = pool.submit(run, &());
        counter(0).wait_for(1);
        task.kill();
        assert!(outcome(task).unwrap_err().is_cancelled());
        pool.close().wait();
    });
    let Some(finished) = finished else { return };
    assert!(finished.status.success(), "{finished:?}");
    for (text, times) in
        [("<a whole line>", 1), ("<a part that is flushed>", 1), ("<a part that is lost>", 0)]
    {
        assert_eq!(finished.stdout.matches(text).count(), times, "{text}: {finished:?}");
    }
}

/// With a thread that the first signal wakes, not even that is lost.
#[test]
fn a_thread_that_waits_for_the_first_signal_saves_the_unfinished_line() {
    let finished = scenario_output(|| {
        let pool = Pool::builder()
            .workers(1)
            .kill_signal(Signal::SIGTERM, BOUND)
            .init(|_| {
                let signals = SigSet::from(Signal::SIGTERM);
                signals.thread_block()?;
                thread::spawn(move || {
                    let _ = signals.wait();
                    std::process::exit(1);
                });
                Ok(())
            })
            .build()
            .unwrap();
        let run = |round: u64| -> () {
            print!("<rust {round}>");
            print_in_c(&CString::new(format!("<c {round}>")).unwrap());
            counter(0).bump();
            gate(0).wait();
        };
        let late = pool.with_timeout(Duration::from_millis(100)).submit(run, &1);
        assert!(outcome(late).unwrap_err().is_timed_out());
        let killed = pool.submit(run, &2);
        counter(0).wait_for(2);
        killed.kill();
        assert!(outcome(killed).unwrap_err().is_cancelled());
        pool.close().wait();
    });
    let Some(finished) = finished else { return };
    assert!(finished.status.success(), "{finished:?}");
    for text in ["<rust 1>", "<c 1>", "<rust 2>", "<c 2>"] {
        assert_eq!(finished.stdout.matches(text).count(), 1, "{text}: {finished:?}");
    }
}

#[test]
fn a_worker_that_leaves_has_written_what_was_printed() {
    both_output(
        || {
            let pool = builder()
                .workers(1)
                .max_tasks_per_worker(1)
                .on_exit(|_| {
                    print!("<rust at exit>");
                    print_in_c(c"<c at exit>");
                })
                .build()
                .unwrap();
            let print = |()| {
                print!("<rust>");
                print_in_c(c"<c>");
            };
            for _ in 0..3 {
                outcome(pool.submit(print, &())).unwrap();
            }
            pool.close().wait();
        },
        |finished| {
            assert!(finished.status.success(), "{finished:?}");
            for text in ["<rust>", "<c>", "<rust at exit>", "<c at exit>"] {
                assert!(finished.stdout.matches(text).count() >= 3, "{text}: {finished:?}");
            }
            assert_eq!(finished.stdout.matches("<c>").count(), 3, "{finished:?}");
        },
    );
}

#[test]
fn lines_of_many_workers_are_whole() {
    const LINES: usize = 300;
    both_output(
        || {
            // Processes that share a memfd's position overwrite each other's lines; each of these writes goes to the end.
            let end = std::fs::File::options().append(true).open("/proc/self/fd/2").unwrap();
            nix::unistd::dup2_stderr(end).unwrap();
            let pool = builder().workers(4).name("till").build().unwrap();
            let shout = |n: usize| -> () { panic!("line {n} {}", "x".repeat(200)) };
            let tasks: Vec<_> = (0..LINES).map(|n| pool.submit(shout, &n)).collect();
            assert!(tasks.into_iter().all(|task| outcome(task).unwrap_err().is_panicked()));
        },
        |finished| {
            assert_eq!(panics(finished).len(), LINES, "{}", finished.stderr);
            let whole = format!(" {}", "x".repeat(200));
            let lines =
                finished.stderr.lines().filter(|line| line.starts_with("line ") && line.ends_with(&whole));
            assert_eq!(lines.count(), LINES, "{}", finished.stderr);
        },
    );
}
