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
#[derive(Debug, PartialEq)]
pub(super) struct Done {
    worker: usize,
    /// The records' text.
    records: Vec<u8>,
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
    // Room for the last words of `into_bytes` too.
    let mut records = String::with_capacity((count as usize + 1) * RECORD_BYTES);
    let (mut count, mut rejects) = (0, Vec::new());
    for (line, number) in text.split_terminator('\n').zip(first_line..) {
        match enrich_line(tables, line, &mut records) {
            Ok(()) => count += 1,
            Err(reason) => rejects.push((number, reason)),
        }
    }
    Done { worker, records: records.into_bytes(), count, rejects }
}

impl Done {
    /// As one row of bytes, which a pool copies into shared memory and out of it, and that is all. As a struct it would be
    /// archived, validated and brought back, each of which goes through all of the text once more. Behind the records come
    /// the rejects, and at the very end the numbers.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let Done { worker, records: mut bytes, count, rejects } = self;
        let records_end = bytes.len() as u64;
        for (line, reason) in rejects {
            bytes.extend_from_slice(&line.to_le_bytes());
            bytes.extend_from_slice(&(reason.len() as u64).to_le_bytes());
            bytes.extend_from_slice(reason.as_bytes());
        }
        for number in [worker as u64, count, records_end] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// What [`into_bytes`](Self::into_bytes) made bytes of.
    pub(super) fn from_bytes(mut bytes: Vec<u8>) -> Option<Done> {
        let [worker, count, records_end] = [3, 2, 1].map(|nth| {
            let at = bytes.len().checked_sub(nth * 8)?;
            number_at(&bytes[at..])
        });
        let (worker, count, records_end) = (worker? as usize, count?, records_end? as usize);
        let mut rest = bytes.get(records_end..bytes.len() - 24)?;
        let mut rejects = Vec::new();
        while !rest.is_empty() {
            let (line, len) = (number_at(rest)?, number_at(rest.get(8..)?)? as usize);
            let reason = String::from_utf8(rest.get(16..16 + len)?.to_owned()).ok()?;
            rejects.push((line, reason));
            rest = &rest[16 + len..];
        }
        bytes.truncate(records_end);
        Some(Done { worker, records: bytes, count, rejects })
    }

    pub(super) fn write(&self, sink: &mut Sink) -> Result<(), Failure> {
        sink.records(&self.records, self.count, self.worker)?;
        self.rejects.iter().try_for_each(|(number, reason)| sink.reject(*number, reason, Some(self.worker)))
    }
}

fn number_at(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_a_block_survives_as_bytes() {
        let rejects = vec![(3, "no carrier".to_owned()), (9, String::new())];
        for (records, rejects) in [(b"{}\n{}\n".to_vec(), rejects), (Vec::new(), Vec::new())] {
            let done = || Done { worker: 1, records: records.clone(), count: 2, rejects: rejects.clone() };
            assert_eq!(Done::from_bytes(done().into_bytes()), Some(done()));
        }
        assert_eq!(Done::from_bytes(vec![0; 23]), None);
    }
}
