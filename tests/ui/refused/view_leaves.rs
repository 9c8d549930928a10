use std::sync::Mutex;

use forkring::{Pool, View, Worker};

static KEPT: Mutex<Option<&'static str>> = Mutex::new(None);

fn main() {
    let pool = Pool::new(1).unwrap();
    let _ = pool.submit_with(|_: &Worker, text: &View<str>| *KEPT.lock().unwrap() = Some(text), "x");
}
