//! The job on forked worker processes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use forkring::{Pool, TaskError, View, Worker};

use super::block::{Block, Done, enrich_block};
use crate::failure::Failure;
use crate::input::{FIRST_LINE, Lines};
use crate::output::Sink;
use crate::tables::Tables;

/// Blocks under way for each worker: enough that none runs dry while this process reads and writes.
const BLOCKS_PER_WORKER: usize = 8;

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
        .build()
        .map_err(|error| Failure::new(format!("cannot start the pool: {error}")))?;
    // Kept until the outcome is known, since a worker can take a block along.
    let under_way = RefCell::new(VecDeque::new());
    let mut next_line = FIRST_LINE;
    let blocks = std::iter::from_fn(|| {
        let block = Rc::new(Block::read(lines, next_line, granularity)?);
        next_line += block.count;
        under_way.borrow_mut().push_back(block.clone());
        Some(block)
    });
    for outcome in pool.map_with(blocks, in_worker).window(workers * BLOCKS_PER_WORKER) {
        let block = under_way.borrow_mut().pop_front().expect("results come in the order of their blocks");
        match outcome {
            Ok(bytes) => done(bytes)?.write(sink)?,
            Err(error) if costs_a_line(&error) => line_by_line(&pool, &block, sink)?,
            Err(error) => return Err(failure(block.first_line, &error)),
        }
    }
    pool.close().wait();
    Ok(())
}

/// What a worker does with a block, which it reads in place in shared memory.
fn in_worker(worker: &Worker<Tables>, block: &View<Rc<Block>>) -> Vec<u8> {
    let (first_line, count) = (block.first_line.to_native(), block.count.to_native());
    enrich_block(worker.env(), worker.id(), first_line, count, &block.text).into_bytes()
}

/// A line whose worker panicked or died is one line lost: it is listed with the rejects, and the others of its block go on.
fn line_by_line(pool: &Pool<Tables>, block: &Block, sink: &mut Sink) -> Result<(), Failure> {
    let lines = block.one_by_one().map(Rc::new);
    for (outcome, number) in pool.map_with(lines, in_worker).zip(block.first_line..) {
        match outcome {
            Ok(bytes) => done(bytes)?.write(sink)?,
            Err(error) if costs_a_line(&error) => sink.reject(number, &error.to_string(), None)?,
            Err(error) => return Err(failure(number, &error)),
        }
    }
    Ok(())
}

fn done(bytes: Vec<u8>) -> Result<Done, Failure> {
    Done::from_bytes(bytes).ok_or_else(|| Failure::new("a worker's answer is damaged"))
}

fn costs_a_line(error: &TaskError) -> bool {
    error.is_panicked() || error.is_worker_lost()
}

fn failure(line: u64, error: &TaskError) -> Failure {
    Failure::new(format!("line {line}: {error}"))
}
