//! What a task costs in instructions, which no noise touches: `.ci/instructions` runs this under callgrind and compares.
//!
//! Nobody may wait in a part that is counted, since how often one looks in vain is chance. So the worker is *held* in a
//! task, a gate, while others are submitted; then it runs through them, and finds each one there, until the next gate
//! holds it; only then are the results taken. The pool's driver, which comes by when it likes, is held in the waker of a
//! future meanwhile. Between two gates nobody's steps depend on anybody's pace.
//!
//! Callgrind begins to count where a function that is never inlined is entered, and writes down what it has where one
//! is left or entered (`--zero-before`, `--dump-after`, `--dump-before`):
//!
//! | part | counts |
//! |---|---|
//! | submit | `submit_all` |
//! | worker | from one entry of `hold`, in the worker, to the next |
//! | complete | `take_all` |
//!
//! Two laps differ in the number of tasks, so what does not depend on it goes away in the difference.

#![allow(unsafe_code, reason = "stands in for a system call")]

use std::hint::black_box;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

use forkring::{Pool, Task, View, Worker};

/// The first lap makes what the others find. All fit into the ring.
const LAPS: [u64; 3] = [1000, 200, 1000];

fn main() {
    // `--list` of `cargo bench -- --list`: there is nothing to choose from.
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    let mut gates = Gates::new();
    let pool =
        Pool::builder().workers(1).env(gates.worker.take().expect("made once")).build().expect("a pool");
    let release = hold_the_driver(&pool, &mut gates);
    let mut sent = Vec::with_capacity(LAPS[0] as usize);
    let mut gate = gates.submit(&pool);
    gates.await_worker();
    for tasks in LAPS {
        submit_all(&pool, tasks, &mut sent);
        let next = gates.submit(&pool);
        gates.open();
        gates.await_worker();
        take_all(&mut sent);
        std::mem::replace(&mut gate, next).wait().expect("a gate that was passed");
    }
    gates.open();
    gate.wait().expect("the last gate");
    println!("laps of {LAPS:?} tasks; .ci/instructions counts");
    release.send(()).expect("a driver that is held");
    if stand_in::WAS_NEEDED.load(Relaxed) {
        // Closing waits for the zygote, by its pidfd. It leaves, and takes the worker along, when this process has.
        std::process::exit(0);
    }
    pool.close().wait();
}

#[inline(never)]
fn submit_all(pool: &Pool<Gate>, tasks: u64, sent: &mut Vec<Task<u64>>) {
    for n in 0..tasks {
        sent.push(pool.submit(|n: u64| n + 1, black_box(&n)));
    }
}

#[inline(never)]
fn take_all(sent: &mut Vec<Task<u64>>) {
    for (n, task) in (0..).zip(sent.drain(..)) {
        assert_eq!(task.wait().expect("a result"), n + 1);
    }
}

/// In the worker: says that it is here, and waits until it may go on.
#[inline(never)]
fn hold(gate: &Gate) {
    (&gate.reached).write_all(&[1]).expect("a master that listens");
    (&gate.opened).read_exact(&mut [0]).expect("a master that opens");
}

/// The worker's ends of two pipes.
struct Gate {
    reached: PipeWriter,
    opened: PipeReader,
}

/// The master's ends.
struct Gates {
    reached: PipeReader,
    open: PipeWriter,
    worker: Option<Gate>,
}

impl Gates {
    fn new() -> Self {
        let [(reached, reach), (opened, open)] = [(); 2].map(|()| pipe().expect("a pipe"));
        Self { reached, open, worker: Some(Gate { reached: reach, opened }) }
    }

    fn submit(&self, pool: &Pool<Gate>) -> Task<()> {
        pool.submit_with(|worker: &Worker<Gate>, _: &View<()>| hold(worker.env()), &())
    }

    /// Until the worker is at a gate.
    fn await_worker(&mut self) {
        self.reached.read_exact(&mut [0]).expect("a worker that comes");
    }

    fn open(&mut self) {
        self.open.write_all(&[1]).expect("a worker that is held");
    }
}

/// Holds the driver until told to release it.
fn hold_the_driver(pool: &Pool<Gate>, gates: &mut Gates) -> Sender<()> {
    let (holds, held) = channel();
    let (release, released) = channel();
    let waker = Waker::from(Arc::new(Hold(Mutex::new((holds, released)))));
    let mut task = gates.submit(pool);
    gates.await_worker();
    assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
    gates.open();
    // This thread does not look, so it is the driver that finds the result and calls the waker.
    held.recv().expect("a driver that is held");
    assert!(task.is_finished());
    release
}

/// A waker that keeps whoever calls it.
struct Hold(Mutex<(Sender<()>, Receiver<()>)>);

impl Wake for Hold {
    fn wake(self: Arc<Self>) {
        let gate = self.0.lock().expect("one driver");
        gate.0.send(()).expect("a master that listens");
        // A master that is gone releases as well.
        let _ = gate.1.recv();
    }
}

/// Callgrind runs programs that make the system calls that it knows, and before 3.22 `pidfd_open` is none of them. No
/// process is to be killed here, nor is one expected to die, so any descriptor will do that is never readable.
mod stand_in {
    use std::mem::transmute;
    use std::ptr::null_mut;
    use std::sync::atomic::Ordering::Relaxed;
    use std::sync::atomic::{AtomicBool, AtomicPtr};

    use nix::errno::Errno;
    use nix::libc::{EFD_CLOEXEC, RTLD_NEXT, SYS_pidfd_open, c_long, c_void, dlsym, eventfd};

    pub(super) static WAS_NEEDED: AtomicBool = AtomicBool::new(false);

    type Syscall = unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

    static LIBC: AtomicPtr<c_void> = AtomicPtr::new(null_mut());

    /// Goes in front of libc's.
    ///
    /// # Safety
    ///
    /// As for libc's. That takes a variable number of arguments, which all are integers or pointers and are passed in
    /// registers, as here.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn syscall(
        number: c_long,
        a: c_long,
        b: c_long,
        c: c_long,
        d: c_long,
        e: c_long,
        f: c_long,
    ) -> c_long {
        if LIBC.load(Relaxed).is_null() {
            // SAFETY: the name ends with a zero.
            LIBC.store(unsafe { dlsym(RTLD_NEXT, c"syscall".as_ptr()) }, Relaxed);
        }
        let libc = LIBC.load(Relaxed);
        assert!(!libc.is_null(), "libc has `syscall`");
        // SAFETY: the symbol is this function's of libc.
        let libc = unsafe { transmute::<*mut c_void, Syscall>(libc) };
        // SAFETY: the caller answers for it.
        let result = unsafe { libc(number, a, b, c, d, e, f) };
        if number == SYS_pidfd_open && result == -1 && Errno::last() == Errno::ENOSYS {
            WAS_NEEDED.store(true, Relaxed);
            // SAFETY: takes integers.
            return c_long::from(unsafe { eventfd(0, EFD_CLOEXEC) });
        }
        result
    }
}
