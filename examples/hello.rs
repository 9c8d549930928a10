//! The first program: tasks that run in other processes, and one that crashes.
//!
//!     cargo run --example hello

use std::error::Error;

use forkring::Pool;

/// Any function will do, and any closure that captures nothing.
fn greet(name: String) -> String {
    format!("hello {name}, says process {}", std::process::id())
}

fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::new(2)?;

    // One task. It is on its way when `submit` returns; `wait` blocks until its result is there.
    let task = pool.submit(greet, &"world".to_owned());
    let greeting = task.wait()?;
    println!("{greeting}");
    assert!(greeting.starts_with("hello world"));
    assert!(!greeting.ends_with(&format!(" {}", std::process::id())), "it ran elsewhere");

    // Many tasks: results in order, while the items are pulled as fast as they are worked on.
    let squares: Vec<u64> = pool.map(1..=5, |n: u64| n * n).collect::<Result<_, _>>()?;
    println!("squares: {squares:?}");
    assert_eq!(squares, [1, 4, 9, 16, 25]);

    // A crash ends its own task, and nothing else.
    let crash = pool.submit(|n: u32| if n > 3 { std::process::abort() } else { n }, &7);
    match crash.wait() {
        Ok(n) => return Err(format!("{n} should have been too much").into()),
        Err(error) => {
            println!("a crash: {error}");
            assert!(error.is_worker_lost());
        }
    }
    assert_eq!(pool.submit(|n: u32| n + 1, &7).wait()?, 8);

    // Lets everything finish. Dropping the pool instead would kill what still runs.
    pool.close().wait();
    Ok(())
}
