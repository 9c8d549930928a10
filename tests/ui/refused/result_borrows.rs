use forkring::Pool;

fn main() {
    let pool = Pool::new(1).unwrap();
    let _ = pool.submit(|_: ()| "a", &());
}
