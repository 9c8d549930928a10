//! One task's round trip.

use std::hint::black_box;
use std::time::Duration;

use forkring::{Pool, WaitPolicy};

use crate::measure::{Comparison, Outcome, P50, P99, QUANTILES, Sampling, Scale};
use crate::raw::{CacheLines, EventFds, Pipes};
use crate::report::Goal::{AtLeast, AtMost, None as NoGoal};
use crate::report::Waits::{Sleeping, SpinThenSleep, Spinning};
use crate::report::{Axis, Plot, Report, Series};
use crate::rivals::iceoryx::{PublishSubscribe, RequestResponse};
use crate::rivals::processes::{IpcChannel, Procspawn};
use crate::rivals::python::ProcessPoolExecutor;
use crate::rivals::threads::{
    ChannelPool, rayon_pool, rayon_spawn, rayon_spawn_oneshot, receive, tokio_here,
};

fn increment(pool: &Pool) -> impl Fn(u64) -> u64 {
    |n| pool.submit(|n: u64| n + 1, black_box(&n)).wait().expect("a reply")
}

pub(crate) fn awake(scale: Scale) -> Report {
    let sampling = |samples: usize| {
        Sampling::awake(
            scale.pick(samples, samples / 100),
            scale.pick(Duration::from_secs(2), Duration::from_millis(50)),
        )
    };
    let (often, seldom) = (sampling(200_000), sampling(20_000));
    // In this order: what forks comes before what starts threads.
    let [mut raw, mut raw_runs] = [(); 2].map(|()| CacheLines::start());
    let ipc_channel = IpcChannel::start();
    let publish = PublishSubscribe::start();
    let request = RequestResponse::start();
    let pool = Pool::new(1).expect("a pool");
    let procspawn = Procspawn::start();
    let python = ProcessPoolExecutor::start();
    let rayon = rayon_pool(1);
    let channel = ChannelPool::new(1);
    let tokio = tokio_here();
    let mut skipped = Vec::new();

    let mut all = Comparison::new();
    let floor = all.add_waiting(Spinning, "raw cache-line ping-pong", move || {
        raw.awake(|exchange| often.increments(exchange))
    });
    let forkring =
        all.add_waiting(SpinThenSleep, "forkring submit(..).wait()", || often.increments(increment(&pool)));
    let floor_runs = all.add_waiting(Spinning, "raw cache-line ping-pong, in runs of 1000", move || {
        raw_runs.awake(|exchange| often.runs(exchange))
    });
    let forkring_runs = all.add_waiting(SpinThenSleep, "forkring submit(..).wait(), in runs of 1000", || {
        often.runs(increment(&pool))
    });
    let threads = all.add_waiting(SpinThenSleep, "rayon spawn + oneshot", || {
        sampling(50_000).increments(|n| receive(rayon_spawn(&rayon, move || n + 1)))
    });
    let threads_too = all.add_waiting(SpinThenSleep, "rayon spawn + oneshot crate", || {
        seldom.increments(|n| rayon_spawn_oneshot(&rayon, move || n + 1).recv().expect("a reply"))
    });
    all.add_waiting(SpinThenSleep, "crossbeam-channel pool + oneshot", || {
        seldom.increments(|n| receive(channel.spawn(move || n + 1)))
    });
    all.add_waiting(Sleeping, "tokio spawn_blocking", || {
        seldom.increments(|n| {
            tokio.block_on(async { tokio::task::spawn_blocking(move || n + 1).await.expect("a reply") })
        })
    });
    let publish = match publish {
        Ok(mut publish) => {
            Some(all.add_waiting(Spinning, "iceoryx2 publish-subscribe, polling", move || {
                publish.awake(|exchange| often.increments(exchange))
            }))
        }
        Err(error) => {
            skipped.push(("iceoryx2 publish-subscribe, polling", error.to_string()));
            None
        }
    };
    match request {
        Ok(mut request) => {
            all.add_waiting(Spinning, "iceoryx2 request-response, polling", move || {
                request.awake(|exchange| often.increments(exchange))
            });
        }
        Err(error) => skipped.push(("iceoryx2 request-response, polling", error.to_string())),
    }
    match ipc_channel {
        Ok(ipc) => {
            all.add_waiting(Sleeping, "ipc-channel", move || seldom.increments(|n| ipc.exchange(n)));
        }
        Err(error) => skipped.push(("ipc-channel", error.to_string())),
    }
    match procspawn {
        Ok(procspawn) => {
            all.add_waiting(Sleeping, "procspawn pool", move || {
                sampling(5_000).increments(|n| procspawn.exchange(n))
            });
        }
        Err(error) => skipped.push(("procspawn pool", error.to_string())),
    }
    match python {
        Ok(mut python) => {
            all.add_waiting(Sleeping, "Python ProcessPoolExecutor", move || {
                python.measure(scale.pick(2_000, 20))
            });
        }
        Err(error) => skipped.push(("Python ProcessPoolExecutor", error)),
    }

    let outcome = all.run(scale);
    let mut report = outcome.latency_report();
    let threads = outcome.fastest([threads, threads_too], P50);
    report.checks = vec![
        outcome.ratio("p50 / raw ping-pong's", forkring, floor, P50, AtMost(1.3)).stretch(1.1),
        outcome.ratio("p99 / raw ping-pong's", forkring, floor, P99, NoGoal),
        outcome.ratio("mean of runs / raw ping-pong's, p50", forkring_runs, floor_runs, P50, NoGoal),
        outcome.ratio("p50 of rayon / forkring's", threads, forkring, P50, AtLeast(14.0)).stretch(18.0),
    ];
    if let Some(publish) = publish {
        let ratio = outcome.ratio("p50 of iceoryx2 / forkring's", publish, forkring, P50, AtLeast(4.0));
        report.checks.push(ratio.stretch(5.0));
    }
    for (name, why) in skipped {
        report.skip(name, why);
    }
    report.plot = Some(distribution("latency-awake.svg", &report, &outcome));
    report
}

pub(crate) fn asleep(scale: Scale) -> Report {
    let sampling = Sampling::asleep(scale.pick(700, 20), Duration::from_secs(3));
    let eventfds = EventFds::start();
    let mut pipes = Pipes::start(size_of::<u64>());
    let pool = Pool::new(1).expect("a pool");
    let parked = Pool::builder().workers(1).wait_policy(WaitPolicy::Park).build().expect("a pool");
    let rayon = rayon_pool(1);

    let mut all = Comparison::new();
    let floor =
        all.add_waiting(Sleeping, "raw eventfd ping-pong", || sampling.increments(|n| eventfds.exchange(n)));
    let pipe =
        all.add_waiting(Sleeping, "raw pipe ping-pong", || sampling.increments(|n| pipes.increment(n)));
    let forkring = all
        .add_waiting(SpinThenSleep, "forkring submit(..).wait()", || sampling.increments(increment(&pool)));
    all.add_waiting(Sleeping, "forkring, WaitPolicy::Park", || sampling.increments(increment(&parked)));
    all.add_waiting(SpinThenSleep, "rayon spawn + oneshot", || {
        sampling.increments(|n| receive(rayon_spawn(&rayon, move || n + 1)))
    });
    let outcome = all.run(scale);
    let mut report = outcome.latency_report();
    report.checks = vec![
        outcome.ratio("p50 / raw eventfd's", forkring, floor, P50, AtMost(1.1)).stretch(0.8),
        outcome.ratio("p99 / raw eventfd's", forkring, floor, P99, AtMost(2.0)),
        outcome.ratio("p50 / raw pipe's", forkring, pipe, P50, NoGoal),
        outcome.ratio("p99 / raw pipe's", forkring, pipe, P99, NoGoal),
    ];
    report.plot = Some(distribution("latency-asleep.svg", &report, &outcome));
    report
}

/// The plot of the quantiles of every line, but for those of runs, whose quantiles are of means.
fn distribution(file: &str, report: &Report, outcome: &Outcome) -> Plot {
    let series = outcome.ids().zip(&report.lines).filter(|(_, line)| !line.name.contains("in runs of"));
    let series = series.map(|(id, line)| Series {
        name: line.name.clone(),
        points: QUANTILES.iter().enumerate().map(|(at, &share)| (share, outcome.figure(id, at))).collect(),
    });
    Plot {
        file: file.to_owned(),
        x: Axis::Nines,
        x_label: "share of the round trips that take at most this".to_owned(),
        y_label: "µs".to_owned(),
        series: series.collect(),
    }
}
