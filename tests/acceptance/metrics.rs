//! Feature `metrics`: what a recorder gets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forkring::Pool;
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

use crate::support::{counter, eventually, gate, outcome, quietly, scenario};

/// Last values, of histograms the numbers of values, by name and labels.
static SEEN: Mutex<BTreeMap<String, f64>> = Mutex::new(BTreeMap::new());
static DESCRIBED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Notes;
struct Note(String);

impl Note {
    fn of(key: &Key) -> Arc<Self> {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Self(format!("{}{{{}}}", key.name(), labels.join(","))))
    }

    fn set(&self, value: f64) {
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
    scenario(|| {
        quietly();
        metrics::set_global_recorder(Notes).map_err(|_| ()).unwrap();
        let pool = Pool::builder().workers(2).name("till").metrics(true).build().unwrap();
        let silent = Pool::builder().workers(1).name("silent").build().unwrap();
        outcome(silent.submit(|n: u32| n, &1)).unwrap();
        let good: Vec<_> = (0..100).map(|n| pool.submit(|n: u32| n, &n)).collect();
        good.into_iter().for_each(|task| assert!(outcome(task).is_ok()));
        assert!(outcome::<()>(pool.submit(|()| panic!("no"), &())).is_err());
        assert!(outcome::<()>(pool.submit(|()| std::process::abort(), &())).is_err());
        // It falls idle, so that is published before the next second.
        eventually("histograms have each run", || {
            seen("forkring_task_run_seconds{pool=till}") == Some(102.0)
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
        pool.close().wait();

        let stats = pool.stats();
        for (name, value) in [
            ("forkring_tasks_submitted_total{pool=till}", stats.submitted),
            ("forkring_tasks_total{pool=till,outcome=done}", 101),
            ("forkring_tasks_total{pool=till,outcome=failed}", 2),
            ("forkring_tasks_total{pool=till,outcome=lost}", 1),
            ("forkring_tasks_total{pool=till,outcome=cancelled}", 0),
            ("forkring_tasks_timed_out_total{pool=till}", 1),
            ("forkring_tasks_queued{pool=till}", 0),
            ("forkring_tasks_running{pool=till}", 0),
            ("forkring_task_wait_seconds{pool=till}", 104),
            ("forkring_task_run_seconds{pool=till}", 104),
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
