//! Zygotes that die at a kill point.

use forkring::faults::{Point, arm, deaths};
use forkring::{Task, TaskError, View};
use nix::sys::signal::Signal;

use crate::load::{Blame, Here, Holdings, Tested, WORKERS, at_full_strength, build, judge, run};
use crate::support::{counter, eventually, gate, scenario, signal};

/// The gate that holds the tasks of [`hold`]. Never opened: their workers die.
const HELD: usize = 0;

/// One running task for each worker, and more that have not started.
fn hold(pool: &Tested) -> Vec<Task<u64>> {
    let so_far = counter(HELD).get();
    let body = |_: &Here, _: &View<()>| {
        counter(HELD).bump();
        gate(HELD).wait();
        0_u64
    };
    let tasks = (0..20).map(|_| pool.submit_with(body, &())).collect();
    counter(HELD).wait_for(so_far + WORKERS as u32);
    tasks
}

/// All tasks have ended, with the pool's failure or as lost ones. How many were lost.
#[track_caller]
fn failed(tasks: Vec<Task<u64>>) -> usize {
    let mut lost = 0;
    for task in tasks {
        match task.wait() {
            Err(TaskError::PoolFailed(failure)) => {
                assert!(failure.message().contains("zygote"), "{failure}");
            }
            Err(TaskError::WorkerLost(_)) => lost += 1,
            other => panic!("{other:?}"),
        }
    }
    lost
}

/// The pool has failed, says why, and nothing of it is left.
#[track_caller]
fn is_over(pool: &Tested, before: &Holdings) {
    pool.closed().wait();
    let late = pool.submit_with(|_: &Here, _: &View<()>| (), &()).wait();
    assert!(
        matches!(&late, Err(TaskError::PoolFailed(failure)) if failure.message().contains("zygote")),
        "{late:?}"
    );
    before.again();
}

/// The zygote dies while the pool is built.
fn at_build(point: Point, passages: &[u32]) {
    let before = Holdings::now();
    for &passage in passages {
        let so_far = deaths();
        arm(point, passage);
        let error = build().unwrap_err().to_string();
        assert!(error.contains("the zygote process was ended by SIGKILL"), "{error}");
        assert_eq!(deaths(), so_far + 1);
        before.again();
    }
}

/// The zygote dies while the pool is built, or while it replaces a worker.
fn at_spawn(point: Point) {
    at_build(point, &[1, 2]);
    at_death(point, true);
}

/// As [`at_spawn`], where the workers may have become ready and the pool open before the driver knows.
fn after_spawn(point: Point) {
    at_build(point, &[1]);
    let before = Holdings::now();
    arm(point, WORKERS as u32);
    let so_far = deaths();
    match build() {
        Ok(pool) => is_over(&pool, &before),
        Err(error) => assert!(error.to_string().contains("zygote"), "{error}"),
    }
    assert_eq!(deaths(), so_far + 1);
    before.again();
    at_death(point, true);
}

/// The zygote dies when a worker has died. `reported`: it has told of that worker's end before.
fn at_death(point: Point, reported: bool) {
    let before = Holdings::now();
    let pool = build().unwrap();
    judge(&run(&pool), Blame::Nobody, 0);
    at_full_strength(&pool);
    let tasks = hold(&pool);
    let so_far = deaths();
    arm(point, 1);
    signal(pool.worker_pids()[0], Signal::SIGKILL);
    assert_eq!(failed(tasks), usize::from(reported));
    assert_eq!(deaths(), so_far + 1);
    is_over(&pool, &before);
}

/// As [`at_death`], and the same when the worker has left because the pool closes.
fn at_any_death(point: Point, reported: bool) {
    at_death(point, reported);
    let before = Holdings::now();
    for passage in [1, 2] {
        let pool = build().unwrap();
        judge(&run(&pool), Blame::Nobody, 0);
        let so_far = deaths();
        arm(point, passage);
        pool.close().wait();
        before.again();
        // One look may reap both.
        assert!(deaths() == so_far + 1 || passage == 2);
    }
}

/// The zygote dies when it is told to end.
fn at_end(point: Point) {
    let before = Holdings::now();
    for close in [true, false] {
        let pool = build().unwrap();
        judge(&run(&pool), Blame::Nobody, 0);
        at_full_strength(&pool);
        let so_far = deaths();
        if close {
            arm(point, 1);
            pool.close().wait();
        } else {
            let tasks = hold(&pool);
            arm(point, 1);
            pool.terminate();
            for task in tasks {
                assert!(task.wait().unwrap_err().is_terminated());
            }
        }
        eventually("a death", || deaths() == so_far + 1);
        before.again();
    }
}

crate::kill_points! {
    zygote_serving => at_build(ZygoteServing, &[1]);
    spawn_ordered => at_spawn(SpawnOrdered);
    spawn_forked => at_spawn(SpawnForked);
    spawn_unreported => at_spawn(SpawnUnreported);
    spawn_reported => after_spawn(SpawnReported);
    death_seen => at_any_death(DeathSeen, false);
    death_unreported => at_any_death(DeathUnreported, false);
    death_reported => at_any_death(DeathReported, true);
    end_ordered => at_end(EndOrdered);
    end_killed => at_end(EndKilled);
    end_reaped => at_end(EndReaped);
}
