//! Acceptance cases about what surrounds workers: limits on their memory (I-12), processes that their tasks start
//! (E-20), their environment, priority and cores.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use forkring::{Affinity, Builder, LossHint, Payload, Pool, Task, TaskError, View, Worker, WorkerLost};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;

use crate::support::{
    children, count_fds, counter, eventually, gate, gone, held, outcome, process, quietly, scenario,
    scenario_output, signal, status_of,
};

#[track_caller]
fn lost<R: Payload>(task: Task<R>) -> WorkerLost {
    match outcome(task) {
        Err(TaskError::WorkerLost(lost)) => lost,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the task has a result"),
    }
}

// ---- I-12

/// Takes memory for ever, and touches it.
fn devour(_: ()) -> usize {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    loop {
        taken.push(vec![1; 4 << 20]);
        // Where no limit holds, the machine is not to suffer.
        if taken.len() > 1 << 10 {
            return taken.len();
        }
    }
}

#[test]
fn i_12_a_worker_out_of_its_address_space_is_lost_with_that_hint() {
    scenario(|| {
        quietly();
        let pool = Pool::builder().workers(2).max_address_space(128 << 20).build().unwrap();
        let other = pool.submit(held, &5);
        counter(0).wait_for(1);
        for _ in 0..3 {
            // What fits is no trouble.
            assert_eq!(outcome(pool.submit(|n: usize| vec![1_u8; n].len(), &(32 << 20))).unwrap(), 32 << 20);
            let lost = lost(pool.submit(devour, &()));
            assert_eq!(lost.signal(), Some(Signal::SIGABRT as i32));
            assert_eq!(lost.hint(), Some(LossHint::OutOfMemory));
            assert!(lost.to_string().contains("out of memory?"), "{lost}");
        }
        gate(0).open();
        assert_eq!(outcome(other).unwrap(), 5);
        pool.close().wait();
    });
}

#[test]
fn i_12_a_limit_that_a_task_has_set_itself_counts_too() {
    scenario(|| {
        quietly();
        let pool = Pool::new(1).unwrap();
        let body = |_: ()| {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
            let limit = pages * 4096 + (128 << 20);
            setrlimit(Resource::RLIMIT_AS, limit, limit).unwrap();
            devour(())
        };
        let lost = lost(pool.submit(body, &()));
        assert_eq!(lost.hint(), Some(LossHint::OutOfMemory), "{lost}");
    });
}

#[test]
fn i_12_other_deaths_have_no_hint() {
    fn oom_kills() -> Option<String> {
        let text = std::fs::read_to_string("/proc/vmstat").unwrap();
        text.lines().find(|line| line.starts_with("oom_kill ")).map(str::to_owned)
    }
    scenario(|| {
        quietly();
        let before = oom_kills();
        if before.is_none() {
            eprintln!("SKIPPED: this kernel does not count whom it kills");
            return;
        }
        let pool = Pool::builder().workers(1).max_address_space(1 << 30).build().unwrap();
        let ill = |_: ()| nix::sys::signal::raise(Signal::SIGILL).unwrap();
        assert_eq!(lost(pool.submit(ill, &())).hint(), None);
        let unlimited = Pool::new(1).unwrap();
        let abort = |_: ()| nix::sys::signal::raise(Signal::SIGABRT).unwrap();
        assert_eq!(lost(unlimited.submit(abort, &())).hint(), None);
        let task = unlimited.submit(held, &1);
        counter(0).wait_for(1);
        signal(unlimited.worker_pids()[0], Signal::SIGKILL);
        let lost = lost(task);
        assert_eq!(lost.signal(), Some(9));
        // Whatever else is going on on this machine.
        assert!(lost.hint().is_none() || oom_kills() != before, "{lost}");
        gate(0).open();
    });
}

/// A memory cgroup that goes with the value.
struct Group(PathBuf);

impl Group {
    /// `None` where this process may not make one.
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("forkring-test-{}", std::process::id());
        for (root, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let path = Path::new(root).join(&name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self(path);
            if std::fs::write(group.0.join(limit), bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        eventually("the end of a cgroup", || std::fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}

#[test]
fn i_12_a_worker_that_the_kernel_kills_for_its_memory_is_lost_with_that_hint() {
    scenario(|| {
        quietly();
        let Some(group) = Group::new(64 << 20) else {
            eprintln!("SKIPPED: no memory cgroup may be made here");
            return;
        };
        let procs = group.0.join("cgroup.procs");
        let pool = Pool::builder()
            .workers(2)
            .init(move |info| {
                if info.id() == 0 {
                    std::fs::write(&procs, std::process::id().to_string())?;
                }
                Ok(())
            })
            .build()
            .unwrap();
        for _ in 0..2 {
            // Whoever gets the task outside of the group leaves it to another round.
            let body = |w: &Worker, _: &View<()>| if w.id() == 0 { devour(()) } else { 0 };
            let lost = loop {
                match outcome(pool.submit_with(body, &())) {
                    Err(TaskError::WorkerLost(lost)) => break lost,
                    Err(other) => panic!("{other}"),
                    Ok(_) => {}
                }
            };
            assert_eq!((lost.worker(), lost.signal()), (0, Some(9)));
            assert_eq!(lost.hint(), Some(LossHint::OutOfMemory), "{lost}");
            assert_eq!(outcome(pool.submit(|n: u32| n, &3)).unwrap(), 3);
        }
        pool.close().wait();
        drop(group);
    });
}

/// oom_score_adj of a process: the higher, the sooner the kernel takes it (proc_pid_oom_score_adj(5)).
fn oom_score_adj(pid: u32) -> i32 {
    std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
}

#[test]
fn i_12_a_worker_is_chosen_before_the_master_when_memory_runs_out() {
    scenario(|| {
        quietly();
        let mine = oom_score_adj(std::process::id());
        let pool = Pool::new(2).unwrap();
        let first = pool.worker_pids();
        signal(first[0], Signal::SIGKILL);
        gone(first[0]);
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        eventually("a replacement", || pool.worker_pids().iter().all(|pid| process(*pid).is_some()));
        for pid in pool.worker_pids() {
            eventually("a worker that is set up", || oom_score_adj(pid) > mine);
        }
        assert_eq!(oom_score_adj(std::process::id()), mine);
        pool.close().wait();
    });
}

// ---- E-20

fn is_alive(pid: u32) -> bool {
    process(pid).is_some_and(|p| p.state != 'Z')
}

/// Starts a process that outlives its task; its pid.
fn start_sleeper(_: ()) -> u32 {
    Command::new("sleep").arg("1000").spawn().unwrap().id()
}

/// As [`start_sleeper`], then ends in a bad way.
fn start_sleeper_and(end: impl FnOnce()) {
    crate::support::cell(0).store(u64::from(start_sleeper(())), Ordering::SeqCst);
    end();
}

fn sleeper() -> u32 {
    crate::support::cell(0).load(Ordering::SeqCst) as u32
}

#[track_caller]
fn dies(pid: u32) {
    eventually("the end of what a task had started", || !is_alive(pid));
}

#[test]
fn e_20_what_a_lost_worker_had_started_goes_with_it() {
    scenario(|| {
        quietly();
        let pool = Pool::builder().workers(2).process_group(true).build().unwrap();
        // From outside, while it runs.
        let task = pool.submit(|_: ()| start_sleeper_and(|| assert_eq!(held(1), 1)), &());
        counter(0).wait_for(1);
        assert!(is_alive(sleeper()));
        let parent = process(sleeper()).unwrap().parent;
        assert_eq!(process(parent).unwrap().group, parent, "a worker leads a group");
        signal(parent, Signal::SIGKILL);
        assert_eq!(lost(task).signal(), Some(9));
        dies(sleeper());
        // By a crash, by leaving in the middle of a task.
        assert!(
            lost(pool.submit(|_: ()| start_sleeper_and(|| std::process::abort()), &())).signal().is_some()
        );
        dies(sleeper());
        assert_eq!(
            lost(pool.submit(|_: ()| start_sleeper_and(|| std::process::exit(0)), &())).exit_code(),
            Some(0)
        );
        dies(sleeper());
        // By a signal while the worker has nothing to do.
        let pid = outcome(pool.submit(start_sleeper, &())).unwrap();
        signal(process(pid).unwrap().parent, Signal::SIGTERM);
        dies(pid);
        // With the pool.
        let pid = outcome(pool.submit(start_sleeper, &())).unwrap();
        assert!(is_alive(pid));
        pool.terminate();
        dies(pid);
        gate(0).open();
    });
}

#[test]
fn e_20_what_a_worker_had_started_goes_when_the_master_is_killed() {
    let finished = scenario_output(|| {
        let pool = Pool::builder().workers(1).process_group(true).build().unwrap();
        let pid = outcome(pool.submit(start_sleeper, &())).unwrap();
        assert!(is_alive(pid));
        signal(std::process::id(), Signal::SIGKILL);
    });
    // That nothing is left is the harness's to see.
    if let Some(finished) = finished {
        assert_eq!(finished.signal(), Some(9));
    }
}

#[test]
fn e_20_without_the_option_and_after_a_leave_in_good_order_it_stays() {
    scenario(|| {
        quietly();
        let stays = |pid: u32| {
            assert!(is_alive(pid));
            signal(pid, Signal::SIGKILL);
            dies(pid);
        };
        let end = |pid: u32| signal(process(pid).unwrap().parent, Signal::SIGKILL);
        // Without the option: the worker is replaced, its child is not touched.
        let pool = Pool::new(1).unwrap();
        let pid = outcome(pool.submit(start_sleeper, &())).unwrap();
        end(pid);
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        pool.terminate();
        stays(pid);
        // A worker that is recycled, one that is closed.
        let pool = Pool::builder().workers(1).process_group(true).max_tasks_per_worker(1).build().unwrap();
        let pid = outcome(pool.submit(start_sleeper, &())).unwrap();
        assert_eq!(outcome(pool.submit(|n: u32| n, &1)).unwrap(), 1);
        stays(pid);
        let pool = Pool::builder().workers(1).process_group(true).build().unwrap();
        let pid = outcome(pool.submit(start_sleeper, &())).unwrap();
        pool.close().wait();
        stays(pid);
    });
}

/// J-01 holds with groups of their own: nothing of the terminal's reaches the workers.
#[test]
fn j_01_an_interrupt_to_the_programs_group_does_not_reach_groups_of_workers() {
    scenario(|| {
        for on in [false, true] {
            crate::support::disposition(Signal::SIGINT, false);
            let pool = Pool::builder().workers(2).process_group(on).build().unwrap();
            let tasks = [pool.submit(held, &1), pool.submit(held, &2)];
            let started = if on { 4 } else { 2 };
            counter(0).wait_for(started);
            let pids = pool.worker_pids();
            let mine = nix::unistd::getpgrp().as_raw() as u32;
            assert!(pids.iter().all(|&pid| (process(pid).unwrap().group == mine) != on));
            nix::sys::signal::killpg(nix::unistd::getpgrp(), Signal::SIGINT).unwrap();
            if on {
                gate(0).open();
                for (n, task) in (1..).zip(tasks) {
                    assert_eq!(outcome(task).unwrap(), n);
                }
                assert_eq!(pool.worker_pids(), pids);
            }
        }
    });
}

// ---- environment, priority, cores

fn variable(name: String) -> Option<String> {
    std::env::var(name).ok()
}

#[test]
fn worker_env_is_set_before_init_in_every_worker_and_nowhere_else() {
    scenario(|| {
        quietly();
        let pool = Pool::builder()
            .workers(2)
            .worker_env("FORKRING_A", "1")
            .worker_env("FORKRING_B", "two = 2")
            .worker_env("FORKRING_A", "3")
            .worker_env("PATH", "/nowhere")
            .init(|_| {
                if variable("FORKRING_A".into()).as_deref() == Some("3") {
                    Ok(())
                } else {
                    Err("too late".into())
                }
            })
            .build()
            .unwrap();
        let of = |name: &str| outcome(pool.submit(variable, &name.to_owned())).unwrap();
        for _ in 0..2 {
            assert_eq!(of("FORKRING_A").as_deref(), Some("3"));
            assert_eq!(of("FORKRING_B").as_deref(), Some("two = 2"));
            assert_eq!(of("PATH").as_deref(), Some("/nowhere"));
            assert_eq!(variable("FORKRING_A".into()), None);
            for pid in pool.worker_pids() {
                signal(pid, Signal::SIGKILL);
            }
            eventually("replacements", || pool.broadcast(|_: &Worker| ()).iter().all(Result::is_ok));
        }
    });
}

/// H-01: another thread holds the lock of the environment at the moment of the fork.
#[test]
fn worker_env_waits_for_no_lock_of_the_programs() {
    static STOP: AtomicBool = AtomicBool::new(false);
    scenario(|| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                std::thread::spawn(|| {
                    while !STOP.load(Ordering::Relaxed) {
                        // Most of its time inside of the lock.
                        std::hint::black_box(std::env::vars_os().count());
                    }
                })
            })
            .collect();
        for round in 0..50 {
            let pool =
                Pool::builder().workers(1).worker_env("FORKRING_ROUND", round.to_string()).build().unwrap();
            pool.terminate();
        }
        STOP.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn settings_that_make_no_sense_are_errors_and_leave_nothing() {
    scenario(|| {
        let fds = count_fds();
        type Set = fn(Builder) -> Builder;
        let builders: [(Set, &str); 8] = [
            (|b| b.worker_env("", "x"), "worker_env"),
            (|b| b.worker_env("a=b", "x"), "worker_env"),
            (|b| b.worker_env("a", "\0"), "zero byte"),
            (|b| b.nice(100), "niceness"),
            (|b| b.affinity(Affinity::Cores(vec![])), "empty"),
            (|b| b.affinity(Affinity::Cores(vec![0, 99_999])), "99999"),
            (|b| b.max_address_space(0), "max_address_space"),
            (|b| b.max_worker_memory(0), "max_worker_memory"),
        ];
        for (set, word) in builders {
            let error = set(Pool::builder().workers(1)).build().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            assert!(children().is_empty());
            assert_eq!(count_fds(), fds);
        }
    });
}

/// The niceness of a process, as `/proc/<pid>/stat` has it.
fn niceness(pid: u32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
}

#[test]
fn nice_is_for_workers_and_is_added() {
    scenario(|| {
        let mine = niceness(std::process::id());
        let pool = Pool::builder().workers(2).nice(3).build().unwrap();
        for pid in pool.worker_pids() {
            assert_eq!(niceness(pid), (mine + 3).min(19));
        }
        assert_eq!(niceness(std::process::id()), mine);
        pool.close().wait();
        if nix::unistd::geteuid().is_root() {
            let uid = nix::unistd::Uid::from_raw(1_000_000 + std::process::id());
            nix::unistd::setresuid(uid, uid, uid).unwrap();
            nix::sys::prctl::set_dumpable(true).unwrap();
        }
        let fds = count_fds();
        let error = Pool::builder().workers(2).nice(-3).build().unwrap_err().to_string();
        assert!(error.contains("nice"), "{error}");
        assert!(children().is_empty());
        assert_eq!(count_fds(), fds);
    });
}

#[test]
fn affinity_puts_workers_on_cores() {
    fn cores_of(pid: u32) -> String {
        status_of(pid)["Cpus_allowed_list"].clone()
    }
    scenario(|| {
        quietly();
        let all = cores_of(std::process::id());
        let pool = Pool::builder().workers(5).affinity(Affinity::Spread).build().unwrap();
        let of_pool = |pool: &Pool| pool.worker_pids().into_iter().map(cores_of).collect::<Vec<_>>();
        let spread = of_pool(&pool);
        let here = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
        let cores: Vec<String> = (0..nix::sched::CpuSet::count())
            .filter(|&core| here.is_set(core).unwrap())
            .map(|core| core.to_string())
            .collect();
        assert_eq!(spread, cores.iter().cycle().take(5).cloned().collect::<Vec<_>>());
        // A replacement has its predecessor's core.
        signal(pool.worker_pids()[4], Signal::SIGKILL);
        eventually("a replacement", || pool.broadcast(|_: &Worker| ()).iter().all(Result::is_ok));
        assert_eq!(of_pool(&pool), spread);
        let first: usize = spread[0].parse().unwrap();
        let pool = Pool::builder().workers(3).affinity(Affinity::Cores(vec![first])).build().unwrap();
        assert_eq!(of_pool(&pool), vec![first.to_string(); 3]);
        let pool = Pool::builder().workers(1).affinity(Affinity::Inherit).build().unwrap();
        assert_eq!(of_pool(&pool), vec![all.clone()]);
        assert_eq!(cores_of(std::process::id()), all);
    });
}

/// The quota of the cgroups above may be less than the cores that are allowed, so one core is all that can be told for sure.
#[test]
fn l_12_a_pool_has_a_worker_for_each_core_that_may_be_used() {
    scenario(|| {
        use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
        let me = nix::unistd::Pid::from_raw(0);
        let all = sched_getaffinity(me).unwrap();
        let cores: Vec<usize> = (0..CpuSet::count()).filter(|&core| all.is_set(core).unwrap()).collect();
        let workers = || {
            let pool = Pool::builder().build().unwrap();
            let alive = pool.broadcast(|_: &Worker| ()).len();
            assert_eq!(alive, pool.workers());
            alive
        };
        assert!((1..=cores.len()).contains(&workers()));
        let mut one = CpuSet::new();
        one.set(cores[0]).unwrap();
        sched_setaffinity(me, &one).unwrap();
        assert_eq!(workers(), 1);
    });
}

#[test]
fn errors_of_the_system_say_what_to_do() {
    scenario(|| {
        quietly();
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 24, 24).unwrap();
        let error = Pool::new(16).unwrap_err().to_string();
        assert!(error.contains("Too many open files") && error.contains("ulimit -n"), "{error}");
        for (built, part) in [
            (Pool::builder().workers(0).build(), "leave Builder::workers out"),
            (Pool::builder().workers(5000).build(), "the limit is 4096"),
            (Pool::builder().granularity(forkring::Granularity::Fixed(0)).build(), "use 1 or more"),
            (Pool::builder().max_tasks_per_worker(0).build(), "use 1 or more"),
        ] {
            let error = built.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    });
}
