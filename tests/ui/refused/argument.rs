use forkring::Pool;

struct Order(u32);

fn main() {
    let pool = Pool::new(1).unwrap();
    let _ = pool.submit(|order: Order| order.0, &Order(1));
}
