//! Tasks that ask the program for what only the program has: here a cache that all workers share, and a count.
//!
//!     cargo run --example service
//!
//! Workers are processes of their own, so what one of them learns no other one knows. A service is the way back: a
//! task calls it like a function, and it runs in the program's process.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use forkring::{Payload, Pool, Service, View, Worker};

#[derive(Payload)]
enum Request {
    /// Is the answer known already?
    Get(u64),
    Put(u64, u64),
}

/// What a task sees: no environment, and a service from `Request` to `Option<u64>`.
type Me = Worker<(), Service<Request, Option<u64>>>;

fn slow_square(n: u64) -> u64 {
    (0..n).fold(0, |sum, _| sum + n)
}

fn main() -> Result<(), Box<dyn Error>> {
    let (cache, hits) = (Mutex::new(HashMap::new()), Arc::new(AtomicUsize::new(0)));
    let counter = hits.clone();
    // Handlers run on threads of the pool's, one for each worker at most.
    let answer = move |request| {
        let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
        match request {
            Request::Get(n) => {
                let known = cache.get(&n).copied();
                counter.fetch_add(usize::from(known.is_some()), Ordering::Relaxed);
                known
            }
            Request::Put(n, square) => cache.insert(n, square),
        }
    };
    let pool = Pool::builder().workers(2).service(answer).build()?;

    let square = |worker: &Me, n: &View<u64>| {
        let n = n.to_native();
        if let Some(known) = worker.call(&Request::Get(n))? {
            return Ok(known);
        }
        let square = slow_square(n);
        worker.call(&Request::Put(n, square))?;
        Ok::<u64, forkring::ServiceError>(square)
    };
    for round in 0..3 {
        for n in 1..=100_u64 {
            assert_eq!(pool.submit_with(square, &n).wait()??, n * n);
        }
        println!("round {round}: {} answers came from the cache so far", hits.load(Ordering::Relaxed));
    }
    // Whichever worker computed a square, both of them knew it afterwards.
    assert_eq!(hits.load(Ordering::Relaxed), 200);
    Ok(())
}
