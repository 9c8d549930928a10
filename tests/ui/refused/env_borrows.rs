use forkring::Pool;

fn main() {
    let table = vec![1, 2, 3];
    let _ = Pool::builder().env(&table).build();
}
