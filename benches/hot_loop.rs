//! A hot loop: submit a million tasks, then take all results in order; one worker and one submitting thread, and four
//! of each. Beside it the same loop over threads: rayon's `spawn`, and a pool around a crossbeam channel, both with a
//! oneshot channel for each result. All in one process run, taking turns; every result is checked.

mod common;

use std::hint::black_box;
use std::thread::JoinHandle;

use common::{Contender, Mode, alternate, ns_each, rayon_pool, receive, timed};
use criterion::{BenchmarkId, Criterion, Throughput};
use forkring::Pool;
use futures::channel::oneshot;
use rayon::ThreadPool;

fn main() {
    let mode = Mode::from_args();
    // In this order: what forks comes before what starts threads.
    let forkrings = [1, 4].map(|workers| Pool::new(workers).expect("a pool"));
    let [one, four] = forkrings.map(|forkring| {
        let threads = forkring.workers();
        Size { threads, forkring, rayon: rayon_pool(threads), channel: ChannelPool::new(threads) }
    });
    let mut criterion = common::criterion();
    for size in [one, four] {
        size.check();
        if mode != Mode::List {
            size.compare(mode);
        }
        size.bench(&mut criterion, mode);
    }
    criterion.final_summary();
}

/// The contenders, all with so many workers, which get their tasks from as many threads.
struct Size {
    threads: usize,
    forkring: Pool,
    rayon: ThreadPool,
    channel: ChannelPool,
}

impl Size {
    fn check(&self) {
        self.run_forkring(1000);
        self.run_rayon(1000);
        self.run_channel(1000);
    }

    /// Submits `tasks` in all from all threads at once, each of which takes the results of its own.
    fn run<T>(&self, tasks: u64, submit: impl Fn(u64) -> T + Sync, take: impl Fn(T) -> u64 + Sync) {
        let share = tasks / self.threads as u64;
        let one_thread = || {
            let sent: Vec<T> = (0..share).map(|n| submit(black_box(n))).collect();
            for (n, task) in (0..).zip(sent) {
                assert_eq!(take(task), n + 1);
            }
        };
        if self.threads == 1 {
            return one_thread();
        }
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(one_thread);
            }
        });
    }

    fn run_forkring(&self, tasks: u64) {
        self.run(tasks, |n| self.forkring.submit(|n: u64| n + 1, &n), |task| task.wait().expect("a result"));
    }

    fn run_rayon(&self, tasks: u64) {
        self.run(
            tasks,
            |n| {
                let (sender, receiver) = oneshot::channel();
                self.rayon.spawn(move || sender.send(n + 1).expect("a listener"));
                receiver
            },
            receive,
        );
    }

    fn run_channel(&self, tasks: u64) {
        self.run(
            tasks,
            |n| {
                let (sender, receiver) = oneshot::channel();
                self.channel.spawn(move || sender.send(n + 1).expect("a listener"));
                receiver
            },
            receive,
        );
    }

    fn compare(&self, mode: Mode) {
        let tasks = mode.pick(1_000_000, 20_000);
        let figures = |ns: f64| [ns, 1000.0 / ns];
        let results = alternate(
            mode.rounds(),
            vec![
                Contender::new("forkring", || figures(ns_each(tasks, || self.run_forkring(tasks)))),
                Contender::new("rayon spawn + oneshot", || figures(ns_each(tasks, || self.run_rayon(tasks)))),
                Contender::new("crossbeam-channel pool + oneshot", || {
                    figures(ns_each(tasks, || self.run_channel(tasks)))
                }),
            ],
        );
        let title = format!("hot loop of {tasks} tasks, workers and submitters: {} each", self.threads);
        results.print(&title, ["ns a task", "M tasks/s"]);
    }

    fn bench(&self, criterion: &mut Criterion, mode: Mode) {
        let tasks = mode.pick(100_000, 1_000);
        let mut group = criterion.benchmark_group("hot_loop");
        group.throughput(Throughput::Elements(tasks));
        let contenders: [(&str, &dyn Fn(u64)); 3] = [
            ("forkring", &|tasks| self.run_forkring(tasks)),
            ("rayon", &|tasks| self.run_rayon(tasks)),
            ("crossbeam-channel", &|tasks| self.run_channel(tasks)),
        ];
        for (name, run) in contenders {
            group.bench_function(BenchmarkId::new(name, self.threads), |b| {
                b.iter_custom(|loops| timed(|| (0..loops).for_each(|_| run(tasks))));
            });
        }
        group.finish();
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread pool that one writes in ten lines: threads that take boxed closures from one channel.
struct ChannelPool {
    jobs: Option<crossbeam_channel::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl ChannelPool {
    fn new(threads: usize) -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded::<Job>();
        let work =
            |receiver: crossbeam_channel::Receiver<Job>| move || receiver.into_iter().for_each(|job| job());
        let threads = (0..threads).map(|_| std::thread::spawn(work(receiver.clone()))).collect();
        Self { jobs: Some(sender), threads }
    }

    fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        let jobs = self.jobs.as_ref().expect("a pool that is not being dropped");
        jobs.send(Box::new(job)).expect("threads that listen");
    }
}

impl Drop for ChannelPool {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            thread.join().expect("jobs do not panic");
        }
    }
}
