//! The job on the threads of a rayon pool, in batches, as a program without process isolation would do it.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, sync_channel};

use rayon::ThreadPoolBuilder;

use crate::enrich::{RECORD_BYTES, enrich_line};
use crate::failure::Failure;
use crate::input::{FIRST_LINE, Lines};
use crate::output::Sink;
use crate::tables::Tables;

/// Batches under way for each worker: enough that none runs dry while this thread reads and writes.
const BATCHES_PER_WORKER: usize = 4;

pub(crate) fn run(
    tables: &Tables,
    workers: usize,
    granularity: usize,
    lines: &mut Lines,
    sink: &mut Sink,
) -> Result<(), Failure> {
    let pool = ThreadPoolBuilder::new()
        .num_threads(workers)
        .build()
        .map_err(|error| Failure::new(format!("cannot start threads: {error}")))?;
    pool.in_place_scope(|scope| {
        // In input order, which is the order in which they are written, whichever is finished first.
        let mut under_way: VecDeque<Receiver<Done>> = VecDeque::new();
        let mut number = FIRST_LINE;
        while let Some(batch) = read_batch(lines, number, granularity) {
            if under_way.len() == workers * BATCHES_PER_WORKER
                && let Some(oldest) = under_way.pop_front()
            {
                write_batch(&oldest, sink)?;
            }
            number += batch.count;
            let (done, receiver) = sync_channel(1);
            under_way.push_back(receiver);
            // The receiver is gone when writing failed; then nobody wants the result.
            scope.spawn(move |_| drop(done.send(enrich_batch(tables, &batch))));
        }
        under_way.iter().try_for_each(|receiver| write_batch(receiver, sink))
    })
}

struct Batch {
    first_line: u64,
    count: u64,
    /// The lines, each with a newline.
    text: String,
}

struct Done {
    worker: usize,
    records: String,
    count: u64,
    /// Line numbers and reasons.
    rejects: Vec<(u64, String)>,
}

fn read_batch(lines: &mut Lines, first_line: u64, granularity: usize) -> Option<Batch> {
    let mut batch = Batch { first_line, count: 0, text: String::new() };
    while batch.count < granularity as u64 && lines.append_line(&mut batch.text) {
        batch.text.push('\n');
        batch.count += 1;
    }
    (batch.count > 0).then_some(batch)
}

fn enrich_batch(tables: &Tables, batch: &Batch) -> Done {
    let worker = rayon::current_thread_index().expect("batches are spawned on the pool's threads");
    let records = String::with_capacity(batch.count as usize * RECORD_BYTES);
    let mut done = Done { worker, records, count: 0, rejects: Vec::new() };
    for (line, number) in batch.text.split_terminator('\n').zip(batch.first_line..) {
        match enrich_line(tables, line, &mut done.records) {
            Ok(()) => done.count += 1,
            Err(reason) => done.rejects.push((number, reason)),
        }
    }
    done
}

fn write_batch(receiver: &Receiver<Done>, sink: &mut Sink) -> Result<(), Failure> {
    let done = receiver.recv().map_err(|_| Failure::new("a thread panicked"))?;
    sink.records(&done.records, done.count, done.worker)?;
    done.rejects.iter().try_for_each(|(number, reason)| sink.reject(*number, reason, Some(done.worker)))
}
