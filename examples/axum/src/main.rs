//! An HTTP server that runs its users' regular expressions, some of which never end.
//!
//!     cargo run --release --manifest-path examples/axum/Cargo.toml
//!
//! With look-around and back-references a regular expression may backtrack: 56 letters are enough to keep a core busy for
//! minutes. A thread that does so cannot be stopped. A worker can: at the deadline it is killed, the request is answered
//! with 504, and the next one finds a fresh worker. The program attacks itself and prints what other users noticed.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use fancy_regex::RegexBuilder;
use forkring::{Pool, Submitter, TaskError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const DEADLINE: Duration = Duration::from_millis(300);
/// Generous: on a quiet machine it is a millisecond or two.
const P99_MAX: Duration = Duration::from_millis(250);

/// What runs in the workers: the first line of the body is the pattern, the rest is the text.
fn search(body: String) -> Result<Option<String>, String> {
    let (pattern, text) = body.split_once('\n').ok_or("no pattern")?;
    // Without its own limit: the deadline is one for every kind of task.
    let regex = RegexBuilder::new(pattern).backtrack_limit(usize::MAX).build().map_err(|e| e.to_string())?;
    let found = regex.find(text).map_err(|e| e.to_string())?;
    Ok(found.map(|found| found.as_str().to_owned()))
}

async fn handle(State(pool): State<Submitter>, body: String) -> (StatusCode, String) {
    match pool.submit_async(search, &body).await {
        Ok(Ok(Some(found))) => (StatusCode::OK, found),
        Ok(Ok(None)) => (StatusCode::NOT_FOUND, String::new()),
        Ok(Err(wrong)) => (StatusCode::BAD_REQUEST, wrong),
        Err(TaskError::TimedOut { .. }) => (StatusCode::GATEWAY_TIMEOUT, "took too long".to_owned()),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Posts a body; the status.
async fn ask(server: SocketAddr, body: &str) -> Result<u16, Box<dyn Error + Send + Sync>> {
    let mut stream = TcpStream::connect(server).await?;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    Ok(reply.split(' ').nth(1).ok_or("no status")?.parse()?)
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // The pool forks, so it is built before the runtime's threads. Deaths are told to the log, which nobody wants to see here.
    forkring::hooks::set_log_error(|_| {});
    let pool = Pool::builder().workers(4).queue_limit(1000).build()?;
    let impatient = pool.options().deadline(DEADLINE).kill_on_drop();
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let server = listener.local_addr()?;
        let app = Router::new().route("/", post(handle)).with_state(impatient);
        tokio::spawn(async move { axum::serve(listener, app).await });

        assert_eq!(ask(server, r"(\w)\1").await?, 400);
        assert_eq!(ask(server, "(\nx").await?, 400);
        assert_eq!(ask(server, "(\\w)\\1\nabc").await?, 404);

        // Two attackers, five requests each, one after the other.
        let evil = format!("^(a|b|ab)*(?>c)$\n{}cx", "ab".repeat(28));
        let over = Arc::new(AtomicBool::new(false));
        let attackers = (0..2).map(|_| {
            let evil = evil.clone();
            tokio::spawn(async move {
                for _ in 0..5 {
                    let start = Instant::now();
                    assert_eq!(ask(server, &evil).await?, 504);
                    assert!(start.elapsed() >= DEADLINE);
                }
                Ok::<(), Box<dyn Error + Send + Sync>>(())
            })
        });
        let attackers: Vec<_> = attackers.collect();
        // Meanwhile, somebody else.
        let user = tokio::spawn({
            let over = over.clone();
            async move {
                let mut times = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    assert_eq!(ask(server, "(\\w)\\1\nsome letters").await?, 200);
                    times.push(start.elapsed());
                }
                Ok::<_, Box<dyn Error + Send + Sync>>(times)
            }
        });
        for attacker in attackers {
            attacker.await??;
        }
        over.store(true, Ordering::Relaxed);
        let mut times = user.await??;
        times.sort();
        let quantile = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!(
            "10 requests took too long and were answered with 504; of {} others p50 was {:?}, p99 {:?}",
            times.len(),
            quantile(50),
            quantile(99)
        );
        assert!(quantile(99) < P99_MAX, "others had to wait");
        assert_eq!(pool.stats().timed_out, 10);
        pool.close().await;
        Ok(())
    })
}
