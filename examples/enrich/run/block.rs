//! Lines by the block, for whoever hands them to somebody else.

use forkring::Payload;

use crate::enrich::{RECORD_BYTES, enrich_line};
use crate::failure::Failure;
use crate::input::Lines;
use crate::output::Sink;
use crate::tables::Tables;

/// Some lines that follow one another in the input.
#[derive(Payload)]
pub(super) struct Block {
    pub(super) first_line: u64,
    pub(super) count: u64,
    /// The lines, each with a newline.
    pub(super) text: String,
}

/// What came of a block.
#[derive(Payload)]
pub(super) struct Done {
    worker: usize,
    records: String,
    count: u64,
    /// Line numbers and reasons.
    rejects: Vec<(u64, String)>,
}

impl Block {
    /// Reads the next `count_max` lines, or what is left of them.
    pub(super) fn read(lines: &mut Lines, first_line: u64, count_max: usize) -> Option<Block> {
        let mut block = Block { first_line, count: 0, text: String::new() };
        while block.count < count_max as u64 && lines.append_line(&mut block.text) {
            block.text.push('\n');
            block.count += 1;
        }
        (block.count > 0).then_some(block)
    }

    /// The lines, each in a block of its own.
    pub(super) fn one_by_one(&self) -> impl Iterator<Item = Block> {
        let lines = self.text.split_inclusive('\n').zip(self.first_line..);
        lines.map(|(line, first_line)| Block { first_line, count: 1, text: line.to_owned() })
    }
}

/// What `worker` does with the `count` lines of `text`.
pub(super) fn enrich_block(tables: &Tables, worker: usize, first_line: u64, count: u64, text: &str) -> Done {
    let records = String::with_capacity(count as usize * RECORD_BYTES);
    let mut done = Done { worker, records, count: 0, rejects: Vec::new() };
    for (line, number) in text.split_terminator('\n').zip(first_line..) {
        match enrich_line(tables, line, &mut done.records) {
            Ok(()) => done.count += 1,
            Err(reason) => done.rejects.push((number, reason)),
        }
    }
    done
}

impl Done {
    pub(super) fn write(&self, sink: &mut Sink) -> Result<(), Failure> {
        sink.records(&self.records, self.count, self.worker)?;
        self.rejects.iter().try_for_each(|(number, reason)| sink.reject(*number, reason, Some(self.worker)))
    }
}
