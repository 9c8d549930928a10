//! Feature `metrics`: what a recorder gets.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forkring::Pool;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

use crate::support::{
    BOUND, both, builder, counter, eventually, exit_code_of, fork_and, gate, in_process, outcome, quietly,
    scenario,
};

/// Last values, of histograms the numbers of values, by name and labels.
static SEEN: Mutex<BTreeMap<String, f64>> = Mutex::new(BTreeMap::new());
static DESCRIBED: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Whether each figure is to wait at gate 1.
static BLOCKED: AtomicBool = AtomicBool::new(false);

struct Notes;
struct Note(String);

impl Note {
    fn of(key: &Key) -> Arc<Self> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Self(format!("{}{{{}}}", key.name(), labels.join(","))))
    }

    fn set(&self, value: f64) {
        if BLOCKED.load(Ordering::SeqCst) {
            counter(1).bump();
            gate(1).wait();
        }
        SEEN.lock().unwrap().insert(self.0.clone(), value);
    }
}

impl CounterFn for Note {
    fn increment(&self, _: u64) {
        unreachable!("all counters are absolute")
    }

    fn absolute(&self, value: u64) {
        self.set(value as f64);
    }
}

impl GaugeFn for Note {
    fn increment(&self, _: f64) {
        unreachable!("all gauges are set")
    }

    fn decrement(&self, _: f64) {
        unreachable!("all gauges are set")
    }

    fn set(&self, value: f64) {
        self.set(value);
    }
}

impl HistogramFn for Note {
    fn record(&self, value: f64) {
        assert!((0.0..1e3).contains(&value));
        *SEEN.lock().unwrap().entry(self.0.clone()).or_default() += 1.0;
    }
}

impl Recorder for Notes {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        DESCRIBED.lock().unwrap().push(key.as_str().to_owned());
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe_counter(key, unit, text);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.describe_counter(key, unit, text);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Note::of(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Note::of(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Note::of(key))
    }
}

fn seen(name: &str) -> Option<f64> {
    SEEN.lock().unwrap().get(name).copied()
}

#[test]
fn a_recorder_gets_what_stats_tells() {
    both(|| {
        quietly();
        metrics::set_global_recorder(Notes).map_err(|_| ()).unwrap();
        let pool = builder().workers(2).name("till").metrics(true).build().unwrap();
        let silent = builder().workers(1).name("silent").build().unwrap();
        outcome(silent.submit(|n: u32| n, &1)).unwrap();
        let good: Vec<_> = (0..100).map(|n| pool.submit(|n: u32| n, &n)).collect();
        good.into_iter().for_each(|task| assert!(outcome(task).is_ok()));
        assert!(outcome::<()>(pool.submit(|()| panic!("no"), &())).is_err());
        // Where workers are processes one is lost.
        let lost = u64::from(!in_process());
        if lost == 1 {
            assert!(outcome::<()>(pool.submit(|()| std::process::abort(), &())).is_err());
        }
        // It falls idle, so that is published before the next second.
        eventually("histograms have each run", || {
            seen("forkring_task_run_seconds{pool=till}") == Some((101 + lost) as f64)
        });
        eventually("counters", || seen("forkring_tasks_total{pool=till,outcome=done}") == Some(100.0));
        let gated = pool.submit(
            |()| {
                counter(0).bump();
                gate(0).wait()
            },
            &(),
        );
        counter(0).wait_for(1);
        eventually("a gauge", || seen("forkring_tasks_running{pool=till}") == Some(1.0));
        eventually("a busy worker", || seen("forkring_workers{pool=till,state=busy}") == Some(1.0));
        gate(0).open();
        outcome(gated).unwrap();
        let late = pool.options().timeout(Duration::from_millis(30)).submit(|()| gate(1).wait(), &());
        assert!(outcome(late).is_err());
        eventually("a replacement", || pool.stats().workers.iter().any(|worker| worker.restarts > 0));
        pool.close().wait();

        let stats = pool.stats();
        for (name, value) in [
            ("forkring_tasks_submitted_total{pool=till}", stats.submitted),
            ("forkring_tasks_total{pool=till,outcome=done}", 101),
            ("forkring_tasks_total{pool=till,outcome=failed}", 2),
            ("forkring_tasks_total{pool=till,outcome=lost}", lost),
            ("forkring_tasks_total{pool=till,outcome=cancelled}", 0),
            ("forkring_tasks_timed_out_total{pool=till}", 1),
            ("forkring_tasks_queued{pool=till}", 0),
            ("forkring_tasks_running{pool=till}", 0),
            ("forkring_task_wait_seconds{pool=till}", 103 + lost),
            ("forkring_task_run_seconds{pool=till}", 103 + lost),
            ("forkring_worker_bytes_in_total{pool=till,worker=0}", 0),
        ] {
            assert_eq!(seen(name), Some(value as f64), "{name}: {:#?}", SEEN.lock().unwrap());
        }
        let restarts = |n| seen(&format!("forkring_worker_restarts_total{{pool=till,worker={n}}}")).unwrap();
        assert!(restarts(0) + restarts(1) >= 1.0);
        assert!(seen("forkring_worker_busy_seconds{pool=till,worker=0}").unwrap() > 0.0);
        let names = SEEN.lock().unwrap();
        assert!(names.keys().all(|name| name.contains("pool=till")), "{names:#?}");
        let described = DESCRIBED.lock().unwrap();
        assert!(names.keys().all(|name| described.iter().any(|one| name.starts_with(&format!("{one}{{")))));
        assert_eq!(stats.timings, None, "nobody asked for those");
    });
}

#[test]
fn a_recorder_that_is_installed_later_gets_descriptions() {
    both(|| {
        let file = std::env::temp_dir().join(format!("forkring-metrics-{}.json", std::process::id()));
        let pool = builder().workers(1).name("till").metrics(true).record(&file).build().unwrap();
        // Each time the file is written first: with the second task in it, the first has been published to nobody.
        for task in 1..=2 {
            outcome(pool.submit(|n: u32| n, &1)).unwrap();
            eventually("the task is in the file", || {
                std::fs::read_to_string(&file).unwrap().matches("\"cat\":\"task\"").count() == task
            });
        }
        std::fs::remove_file(&file).unwrap();
        metrics::set_global_recorder(Notes).map_err(|_| ()).unwrap();
        pool.close().wait();
        assert_eq!(seen("forkring_tasks_total{pool=till,outcome=done}"), Some(2.0));
        let described = DESCRIBED.lock().unwrap();
        assert!(described.iter().any(|name| name == "forkring_tasks_total"), "{described:?}");
    });
}

#[test]
fn the_end_of_a_pool_does_not_wait_for_a_blocked_recorder_for_ever() {
    both(|| {
        metrics::set_global_recorder(Notes).map_err(|_| ()).unwrap();
        let pool = builder().workers(1).name("till").metrics(true).build().unwrap();
        BLOCKED.store(true, Ordering::SeqCst);
        outcome(pool.submit(|n: u32| n, &1)).unwrap();
        counter(1).wait_for(1);
        let start = Instant::now();
        pool.close().wait();
        let took = start.elapsed();
        assert!((Duration::from_secs(4)..BOUND / 2).contains(&took), "{took:?}");
        assert_ne!(seen("forkring_tasks_total{pool=till,outcome=done}"), Some(1.0));
        // Who comes back late finds the pool as it was.
        BLOCKED.store(false, Ordering::SeqCst);
        gate(1).open();
        eventually("the last figures", || seen("forkring_tasks_total{pool=till,outcome=done}") == Some(1.0));
    });
}

#[test]
fn the_recorders_thread_counts_as_one_that_may_hold_a_lock() {
    scenario(|| {
        static NOTICES: Mutex<Vec<String>> = Mutex::new(Vec::new());
        forkring::hooks::set_log_info(|message| NOTICES.lock().unwrap().push(message.to_owned()));
        let warned = || NOTICES.lock().unwrap().iter().any(|line| line.contains("other threads"));
        // Without the threads of the test.
        let child = fork_and(|| {
            let quiet = Pool::new(1).unwrap();
            let pool = Pool::builder().workers(1).metrics(true).build().unwrap();
            assert!(!warned(), "a pool's driver holds nothing");
            Pool::new(1).unwrap().close().wait();
            assert!(warned());
            pool.close().wait();
            quiet.close().wait();
            0
        });
        assert_eq!(exit_code_of(child), 0);
    });
}
