//! Python's `ProcessPoolExecutor`, which measures itself.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::measure::QUANTILES;

/// Answers each number of samples with the quantiles of so many round trips, in microseconds.
const SCRIPT: &str = "
import sys, json, time, multiprocessing
from concurrent.futures import ProcessPoolExecutor

def increment(n):
    return n + 1

if __name__ == '__main__':
    shares = json.loads(sys.argv[1])
    fork = multiprocessing.get_context('fork')
    with ProcessPoolExecutor(max_workers=1, mp_context=fork) as pool:
        for line in sys.stdin:
            times = []
            for n in range(int(line)):
                start = time.perf_counter_ns()
                reply = pool.submit(increment, n).result()
                times.append(time.perf_counter_ns() - start)
                assert reply == n + 1
            times.sort()
            print(json.dumps([times[int(len(times) * share)] / 1000 for share in shares]), flush=True)
";

pub(crate) struct ProcessPoolExecutor {
    process: Child,
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl ProcessPoolExecutor {
    /// The reason why not, otherwise.
    pub(crate) fn start() -> Result<Self, String> {
        let shares = serde_json::to_string(&QUANTILES).map_err(|error| error.to_string())?;
        let mut process = Command::new("python3")
            .args(["-c", SCRIPT, &shares])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("python3 does not start: {error}"))?;
        let requests = process.stdin.take();
        let replies = BufReader::new(process.stdout.take().ok_or("no stdout")?);
        let mut this = Self { process, requests, replies };
        this.try_measure(10)?;
        Ok(this)
    }

    pub(crate) fn measure(&mut self, samples: usize) -> Vec<f64> {
        self.try_measure(samples).expect("the script goes on")
    }

    fn try_measure(&mut self, samples: usize) -> Result<Vec<f64>, String> {
        let requests = self.requests.as_mut().ok_or("no stdin")?;
        writeln!(requests, "{samples}").map_err(|error| format!("the script has ended: {error}"))?;
        let mut line = String::new();
        self.replies.read_line(&mut line).map_err(|error| error.to_string())?;
        serde_json::from_str(&line).map_err(|_| "the script fails".to_owned())
    }
}

impl Drop for ProcessPoolExecutor {
    fn drop(&mut self) {
        // The end of its input ends it, with its workers.
        drop(self.requests.take());
        let _ = self.process.wait();
    }
}
