use forkring::Pool;

fn main() {
    let pool = Pool::new(1).unwrap();
    let _ = pool.iter_stream(0..3, |n: u32| n, |result| result.is_ok());
}
