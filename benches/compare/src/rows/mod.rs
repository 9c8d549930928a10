//! The rows: who meets whom, and what forkring is to reach.

mod crowds;
mod hot_loops;
mod job;
mod latency;
mod payloads;
mod streams;
mod upkeep;

use crate::measure::Scale;
use crate::report::Report;

/// What is measured in a process of its own.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) run: fn(Scale) -> Report,
}

const fn row(name: &'static str, title: &'static str, run: fn(Scale) -> Report) -> Row {
    Row { name, title, run }
}

pub(crate) const ROWS: [Row; 16] = [
    row("awake", "round trip of a u64, one worker, both sides awake", latency::awake),
    row("asleep", "round trip of a u64, one worker, both sides asleep (1 ms apart)", latency::asleep),
    row("hot-loop", "submit 10⁶ tasks, then take all results; one worker", hot_loops::one),
    row("hot-loop-4", "the same from 4 threads, on 4 workers", hot_loops::four),
    row(
        "futures",
        "the same as futures, awaited in order on one thread of tokio's; one worker",
        hot_loops::futures,
    ),
    row("stream", "streams of u64 in batches, one worker", streams::batches),
    row("stream-single", "streams of u64, item by item", streams::single),
    row("sum", "1 MiB of f32 in, their sum out; one worker", payloads::sum),
    row("echo", "1 MiB of f32 in and out; one worker", payloads::echo),
    row("payloads", "round trips of 64 B to 1 MiB in and out, one worker", payloads::sizes),
    row(
        "enrich",
        "the main job (examples/enrich), in order; FORKRING_FLIGHTS names the folder of its tables",
        job::enrich,
    ),
    row("many-workers", "one task at a time, 64 workers", crowds::many_workers),
    row("oversubscribed", "tasks of 20 µs, 4 workers on 2 cores", crowds::oversubscribed),
    row("idle", "what an idle pool does, after work", upkeep::idle),
    row("memory", "what an idle worker holds", upkeep::memory),
    row(
        "killed",
        "a killed worker: its task fails, its successor answers; master with 64 MiB",
        upkeep::killed,
    ),
];
