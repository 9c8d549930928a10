//! Lines that come over a socket, worked on in other processes, and the answers sent back in order: under tokio, smol,
//! and the executor of `futures`.
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

/// One connection. Knows of no runtime.
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

/// The other end of it.
async fn talk(
    mut server: mpsc::Sender<String>,
    mut replies: mpsc::Receiver<String>,
) -> Result<(), mpsc::SendError> {
    // One line, and its answer comes though the client says no more.
    server.send("1 + 2".to_owned()).await?;
    assert_eq!(replies.next().await.as_deref(), Some("1 + 2 = 3"));

    // A line that crashes costs its own answer.
    for line in ["2 + 2", "crash", "3 + 4"] {
        server.send(line.to_owned()).await?;
    }
    assert_eq!(replies.next().await.as_deref(), Some("2 + 2 = 4"));
    let error = replies.next().await.unwrap_or_default();
    assert!(error.starts_with("error: "), "{error}");
    assert_eq!(replies.next().await.as_deref(), Some("3 + 4 = 7"));

    // The client leaves, and so does the server.
    drop(server);
    assert_eq!(replies.next().await, None);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    // The pool forks, so it is there before any runtime's threads.
    let pool = Pool::new(2)?;
    let connect = || (pool.clone(), mpsc::channel(10), mpsc::channel(10));

    let (server, (to_server, lines), (answers, replies)) = connect();
    tokio::runtime::Runtime::new()?.block_on(async {
        let server = tokio::spawn(serve(server, lines, answers));
        talk(to_server, replies).await?;
        Ok::<(), Box<dyn Error>>(server.await?)
    })?;

    let (server, (to_server, lines), (answers, replies)) = connect();
    smol::block_on(async {
        let server = smol::spawn(serve(server, lines, answers));
        talk(to_server, replies).await?;
        server.await;
        Ok::<(), Box<dyn Error>>(())
    })?;

    let (server, (to_server, lines), (answers, replies)) = connect();
    let both = async { futures::join!(serve(server, lines, answers), talk(to_server, replies)) };
    futures::executor::block_on(both).1?;

    pool.close().wait();
    Ok(())
}
