//! A server that must not hang: each request is worked on in another process and killed if it takes too long.
//!
//!     cargo run --example timeout_server
//!
//! The protocol is a line in and a line out: a number, and the number of steps that the Collatz sequence takes from
//! there to 1. Nobody knows how long that is, and for 0 it never ends.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use forkring::{Pool, Submitter};

const LIMIT: Duration = Duration::from_millis(200);

fn steps(mut n: u64) -> u64 {
    let mut steps = 0;
    while n != 1 {
        n = if n.is_multiple_of(2) { n / 2 } else { 3 * n + 1 };
        steps += 1;
    }
    steps
}

/// One client: a thread that mostly sleeps, as its requests run elsewhere.
fn serve(client: TcpStream, pool: &Submitter) -> std::io::Result<()> {
    for line in BufReader::new(client.try_clone()?).lines() {
        let answer = match line?.parse() {
            Ok(n) => match pool.submit(steps, &n).wait() {
                Ok(steps) => steps.to_string(),
                Err(error) if error.is_timed_out() => "504 took too long".to_owned(),
                Err(error) => format!("500 {error}"),
            },
            Err(error) => format!("400 {error}"),
        };
        writeln!(&client, "{answer}")?;
    }
    Ok(())
}

fn ask(server: SocketAddr, question: &str) -> std::io::Result<String> {
    let mut client = TcpStream::connect(server)?;
    writeln!(client, "{question}")?;
    let mut answer = String::new();
    BufReader::new(client).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

fn main() -> Result<(), Box<dyn Error>> {
    // The pool forks, so it is built before there are threads. A deadline counts from the submission, so that a
    // request that waits in the queue for too long is given up, too.
    let pool = Pool::new(2)?;
    let impatient = pool.options().deadline(LIMIT);

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let pool = impatient.clone();
            std::thread::spawn(move || serve(client, &pool));
        }
    });

    assert_eq!(ask(server, "27")?, "111");
    assert!(ask(server, "many")?.starts_with("400"));

    // As many endless requests as there are workers. Each costs a worker, and the next request finds another.
    let start = Instant::now();
    let hanging = [0, 1].map(|_| std::thread::spawn(move || ask(server, "0").unwrap_or_default()));
    for client in hanging {
        assert_eq!(client.join().unwrap_or_default(), "504 took too long");
    }
    println!("two endless requests were answered within {:?}", start.elapsed());
    assert_eq!(ask(server, "97")?, "118");
    assert_eq!(pool.stats().timed_out, 2);
    Ok(())
}
