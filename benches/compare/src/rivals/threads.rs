//! Thread pools. Each result comes back through a oneshot channel.

use std::thread::JoinHandle;

use futures::channel::oneshot;
use futures::executor::block_on;
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::runtime::Runtime;

/// A rayon pool of its own, so that its size does not depend on the machine.
pub(crate) fn rayon_pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("threads for rayon")
}

/// Among std's and crossbeam's channels and this one, of the futures crate, this one makes the fastest thread pools here
/// (rayon's hot loop takes 0.33 µs a task with it, 0.7 to 1.2 with the others), so it is what they are given.
pub(crate) type Receiver<T> = oneshot::Receiver<T>;

pub(crate) fn receive<T>(receiver: Receiver<T>) -> T {
    block_on(receiver).expect("a reply")
}

pub(crate) fn rayon_spawn<T: Send + 'static>(
    pool: &ThreadPool,
    job: impl FnOnce() -> T + Send + 'static,
) -> Receiver<T> {
    let (sender, receiver) = oneshot::channel();
    pool.spawn(move || {
        let _ = sender.send(job());
    });
    receiver
}

/// As [`rayon_spawn`] and [`receive`], with the crate that has the name of the channel.
pub(crate) fn rayon_spawn_oneshot<T: Send + 'static>(
    pool: &ThreadPool,
    job: impl FnOnce() -> T + Send + 'static,
) -> ::oneshot::Receiver<T> {
    let (sender, receiver) = ::oneshot::channel();
    pool.spawn(move || {
        let _ = sender.send(job());
    });
    receiver
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread pool that one writes in ten lines: threads that take boxed closures from one channel.
pub(crate) struct ChannelPool {
    jobs: Option<crossbeam_channel::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl ChannelPool {
    pub(crate) fn new(threads: usize) -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded::<Job>();
        let work =
            |receiver: crossbeam_channel::Receiver<Job>| move || receiver.into_iter().for_each(|job| job());
        let threads = (0..threads).map(|_| std::thread::spawn(work(receiver.clone()))).collect();
        Self { jobs: Some(sender), threads }
    }

    pub(crate) fn spawn<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(move || {
            let _ = sender.send(job());
        });
        self.jobs.as_ref().expect("a pool that is not being dropped").send(job).expect("threads that listen");
        receiver
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

/// A tokio runtime on the thread that calls it, with one thread for what blocks.
pub(crate) fn tokio_here() -> Runtime {
    tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().expect("a runtime")
}
