use forkring::Pool;

struct Receipt(u32);

fn main() {
    let pool = Pool::new(1).unwrap();
    let _ = pool.submit(|n: u32| Receipt(n).0, &1);
    let _ = pool.submit(|n: u32| Receipt(n), &1);
    let _ = pool.map(0..3, |n: u32| std::cell::RefCell::new(n));
}
