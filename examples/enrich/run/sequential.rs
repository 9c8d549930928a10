//! One thread, one line after the other.

use crate::enrich::enrich_line;
use crate::failure::Failure;
use crate::input::{FIRST_LINE, Lines};
use crate::output::Sink;
use crate::tables::Tables;

/// The only worker there is.
const WORKER: usize = 0;

pub(crate) fn run(tables: &Tables, lines: &mut Lines, sink: &mut Sink) -> Result<(), Failure> {
    let mut line = String::new();
    let mut record = String::new();
    let mut number = FIRST_LINE;
    while lines.append_line(&mut line) {
        match enrich_line(tables, &line, &mut record) {
            Ok(()) => sink.records(record.as_bytes(), 1, WORKER)?,
            Err(reason) => sink.reject(number, &reason, Some(WORKER))?,
        }
        line.clear();
        record.clear();
        number += 1;
    }
    Ok(())
}
