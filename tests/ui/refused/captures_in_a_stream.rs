use std::rc::Rc;

use forkring::Pool;

fn main() {
    let pool = Pool::new(1).unwrap();
    let factor = Rc::new(3);
    let _ = pool.map(0..3, move |n: u32| n * *factor);
}
