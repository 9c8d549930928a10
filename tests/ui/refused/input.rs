use forkring::{Pool, View, Worker};

struct Query<'a>(&'a str);

fn main() {
    let pool = Pool::new(1).unwrap();
    let _ = pool.submit_with(|_: &Worker, _: &View<Query>| (), &Query("a"));
}
