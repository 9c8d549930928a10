//! The three ways to run the job. Each feeds lines to [`enrich_line`](crate::enrich::enrich_line) and hands what
//! comes of them to the sink in input order.
//!
//! * [`pool`]: forked worker processes, the library this example is for
//! * [`threads`]: the same on rayon
//! * [`sequential`]: one thread
//!
//! The first two send lines by the [`block`].

mod block;
mod pool;
mod sequential;
mod threads;

use crate::failure::Failure;
use crate::input::Lines;
use crate::options::Options;
use crate::output::Sink;
use crate::tables::Tables;

pub(crate) fn run(
    options: &Options,
    tables: Tables,
    lines: &mut Lines,
    sink: &mut Sink,
) -> Result<(), Failure> {
    if options.sequential {
        sequential::run(&tables, lines, sink)
    } else if options.threads {
        threads::run(&tables, options.workers(), options.granularity, lines, sink)
    } else {
        pool::run(tables, options.workers(), options.granularity, lines, sink)
    }
}
