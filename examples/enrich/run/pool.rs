//! The job on forked worker processes.

use forkring::{Granularity, Pool, TaskError, View, Worker};

use crate::enrich::{RECORD_BYTES, enrich_line};
use crate::failure::Failure;
use crate::input::{FIRST_LINE, Lines};
use crate::output::Sink;
use crate::tables::Tables;

/// The worker that handled a line, and the record or the reason why there is none.
type Outcome = (usize, Result<String, String>);

pub(crate) fn run(
    tables: Tables,
    workers: usize,
    granularity: usize,
    lines: &mut Lines,
    sink: &mut Sink,
) -> Result<(), Failure> {
    let pool = Pool::builder()
        .name("enrich")
        .workers(workers)
        .env(tables)
        .granularity(Granularity::Fixed(granularity))
        .build()
        .map_err(|error| Failure::new(format!("cannot start the pool: {error}")))?;
    for (outcome, number) in pool.map_with(lines, in_worker).zip(FIRST_LINE..) {
        write_outcome(outcome, number, sink)?;
    }
    pool.close().wait();
    Ok(())
}

/// What a worker does with a line, which it reads in place in shared memory.
fn in_worker(worker: &Worker<Tables>, line: &View<String>) -> Outcome {
    let mut record = String::with_capacity(RECORD_BYTES);
    let parsed = enrich_line(worker.env(), line, &mut record);
    (worker.id(), parsed.map(|()| record))
}

/// A line whose worker panicked or died is one line lost: it is listed with the rejects, and the others go on.
fn write_outcome(outcome: Result<Outcome, TaskError>, number: u64, sink: &mut Sink) -> Result<(), Failure> {
    match outcome {
        Ok((worker, Ok(record))) => sink.records(&record, 1, worker),
        Ok((worker, Err(reason))) => sink.reject(number, &reason, Some(worker)),
        Err(error) if error.is_panicked() || error.is_worker_lost() => {
            sink.reject(number, &error.to_string(), None)
        }
        Err(error) => Err(Failure::new(format!("line {number}: {error}"))),
    }
}
