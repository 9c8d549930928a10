//! The job on the threads of a rayon pool, in blocks, as a program without process isolation would do it.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, sync_channel};

use rayon::ThreadPoolBuilder;

use super::block::{Block, Done, enrich_block};
use crate::failure::Failure;
use crate::input::{FIRST_LINE, Lines};
use crate::output::Sink;
use crate::tables::Tables;

/// Blocks under way for each worker: enough that none runs dry while this thread reads and writes.
const BLOCKS_PER_WORKER: usize = 4;

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
        while let Some(block) = Block::read(lines, number, granularity) {
            if under_way.len() == workers * BLOCKS_PER_WORKER
                && let Some(oldest) = under_way.pop_front()
            {
                write_block(&oldest, sink)?;
            }
            number += block.count;
            let (done, receiver) = sync_channel(1);
            under_way.push_back(receiver);
            // The receiver is gone when writing failed; then nobody wants the result.
            scope.spawn(move |_| drop(done.send(on_thread(tables, &block))));
        }
        under_way.iter().try_for_each(|receiver| write_block(receiver, sink))
    })
}

fn on_thread(tables: &Tables, block: &Block) -> Done {
    let worker = rayon::current_thread_index().expect("blocks are spawned on the pool's threads");
    enrich_block(tables, worker, block.first_line, block.count, &block.text)
}

fn write_block(receiver: &Receiver<Done>, sink: &mut Sink) -> Result<(), Failure> {
    receiver.recv().map_err(|_| Failure::new("a thread panicked"))?.write(sink)
}
