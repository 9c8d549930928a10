//! Memory that workers should not keep: what the program had loaded before it built the pool.
//!
//!     cargo run --release --example start_worker
//!
//! A worker inherits the program's memory by fork. It is shared page by page, until one side writes to a page; what
//! the program frees later stays with the workers. `start_worker` lets a worker drop what lies on the stack between
//! `build` and `StartWorker::catch`, and only then begin to work.

use std::error::Error;

use forkring::{Pool, StartWorker};

const LARGE: usize = 256 << 20;

/// Memory that this process shares with nobody, or with processes that have it from the same fork: see proc(5).
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let field = |n| statm.split(' ').nth(n).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0);
    // Resident, without files and shared memory.
    (field(1) - field(2)) * 4096
}

/// A pool that is built while a large table is on the stack; and what it is built for does not need the table.
fn build(start_worker: bool) -> Result<Pool, forkring::Error> {
    StartWorker::catch(|| {
        let table = vec![7_u8; LARGE];
        let builder = Pool::builder().workers(1);
        let pool = match start_worker {
            true => builder.init(|worker| worker.start_worker()).build(),
            false => builder.build(),
        };
        assert_eq!(table.iter().step_by(4096).filter(|&&byte| byte == 7).count(), LARGE / 4096);
        pool
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    for start_worker in [false, true] {
        let pool = build(start_worker)?;
        // The table was dropped by the program when `catch` returned.
        let program = resident_bytes();
        let worker = pool.submit(|()| resident_bytes(), &()).wait()?;
        println!(
            "start_worker {start_worker:>5}: program {} KiB, worker {} KiB",
            program >> 10,
            worker >> 10
        );
        assert!(program < LARGE / 2);
        assert_eq!(worker < LARGE / 2, start_worker);

        // A replacement does the same.
        pool.recycle_workers();
        let fresh = pool.submit(|()| resident_bytes(), &()).wait()?;
        assert_eq!(fresh < LARGE / 2, start_worker);
    }
    Ok(())
}
