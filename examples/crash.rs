//! Every way in which a task can go wrong, and what the program sees of it.
//!
//!     cargo run --example crash

use std::error::Error;
use std::time::Duration;

use forkring::{Granularity, LossHint, Pool, TaskError};

/// Misbehaves as told.
fn misbehave(how: String) -> Result<u32, String> {
    match how.as_str() {
        "return an error" => Err("no such luck".to_owned()),
        "panic" => panic!("that was not expected"),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(3),
        "recurse" => Ok(recurse(1)),
        "hang" => loop {
            std::thread::park();
        },
        "eat memory" => Ok(vec![1_u8; 8 << 30].len() as u32),
        _ => Ok(42),
    }
}

/// Ends in a stack overflow, which is a signal that no program survives.
#[allow(unconditional_recursion, reason = "that is the point")]
fn recurse(n: u32) -> u32 {
    let frame = std::hint::black_box([n; 256]);
    recurse(frame[17] + 1) + frame[3]
}

fn main() -> Result<(), Box<dyn Error>> {
    // The deaths of workers are told to the log as well; without a logger they go to standard error.
    forkring::hooks::set_log_error(|_| {});
    let pool = Pool::builder()
        .workers(2)
        .task_timeout(Duration::from_millis(300)) // a limit for each task
        .max_address_space(1 << 30) // so that a hungry task fails before the machine does
        .build()?;
    let run = |how: &str| {
        let outcome = pool.submit(misbehave, &how.to_owned()).wait();
        match &outcome {
            Ok(value) => println!("{how:>16}: {value:?}"),
            Err(error) => println!("{how:>16}: {error}"),
        }
        outcome
    };

    // What a task returns comes back as it is, its own errors too.
    assert_eq!(run("nothing special")?, Ok(42));
    assert_eq!(run("return an error")?, Err("no such luck".to_owned()));

    // A panic is caught in the worker, which goes on.
    let Err(TaskError::Panicked(panic)) = run("panic") else { return Err("no panic".into()) };
    assert_eq!(panic.message(), "that was not expected");

    // The rest costs a worker, which is replaced. The error says what is known of its end.
    for (how, signal, exit_code) in
        [("abort", Some(6), None), ("exit", None, Some(3)), ("recurse", Some(6), None)]
    {
        let Err(TaskError::WorkerLost(lost)) = run(how) else { return Err(how.into()) };
        assert_eq!((lost.signal(), lost.exit_code()), (signal, exit_code), "{how}");
    }
    let Err(TaskError::WorkerLost(lost)) = run("eat memory") else { return Err("memory".into()) };
    assert_eq!(lost.hint(), Some(LossHint::OutOfMemory));
    let Err(TaskError::TimedOut { limit }) = run("hang") else { return Err("no time-out".into()) };
    assert_eq!(limit, Duration::from_millis(300));

    // In a stream each item has its own outcome: here one of a batch of ten crashes, and the other nine have results.
    let items = (0..10).map(|n| if n == 4 { "abort" } else { "nothing" }.to_owned());
    let outcomes: Vec<bool> = pool
        .map(items, misbehave)
        .granularity(Granularity::Fixed(10))
        .map(|outcome| outcome.is_ok())
        .collect();
    assert_eq!(outcomes.iter().filter(|&&ok| ok).count(), 9);
    assert!(!outcomes[4]);
    println!("{}", pool.stats());
    Ok(())
}
