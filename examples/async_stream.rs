//! Lines that come over a socket, worked on in other processes, and the answers sent back in order, under tokio.
//!
//!     cargo run --example async_stream
//!
//! The reader is slowed down by whoever reads the answers (the window), and an answer goes out as soon as it is there,
//! even if no further line comes.

use std::error::Error;

use forkring::Pool;
use futures::channel::mpsc;
use futures::{SinkExt, StreamExt};

/// What is not to run on the server's own threads, and may even crash.
fn answer(line: String) -> String {
    if line == "crash" {
        std::process::abort();
    }
    let sum: i64 = line.split('+').filter_map(|word| word.trim().parse::<i64>().ok()).sum();
    format!("{line} = {sum}")
}

async fn serve(pool: Pool, lines: mpsc::Receiver<String>, mut answers: mpsc::Sender<String>) {
    let mut results = pool.map_stream(lines, answer).window(100);
    while let Some(result) = results.next().await {
        let text = result.unwrap_or_else(|error| format!("error: {error}"));
        if answers.send(text).await.is_err() {
            // The client has gone. Dropping the stream calls off what has not started.
            return;
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // The pool forks, so it is there before the runtime's threads.
    let pool = Pool::new(2)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let (mut client, lines) = mpsc::channel(10);
        let (answers, mut replies) = mpsc::channel(10);
        let server = tokio::spawn(serve(pool.clone(), lines, answers));

        // One line, and its answer comes though the client says no more.
        client.send("1 + 2".to_owned()).await?;
        assert_eq!(replies.next().await.as_deref(), Some("1 + 2 = 3"));

        // A line that crashes costs its own answer.
        for line in ["2 + 2", "crash", "3 + 4"] {
            client.send(line.to_owned()).await?;
        }
        assert_eq!(replies.next().await.as_deref(), Some("2 + 2 = 4"));
        let error = replies.next().await.unwrap_or_default();
        assert!(error.starts_with("error: "), "{error}");
        assert_eq!(replies.next().await.as_deref(), Some("3 + 4 = 7"));

        // The client leaves.
        drop(client);
        assert_eq!(replies.next().await, None);
        server.await?;
        pool.close().await;
        Ok(())
    })
}
