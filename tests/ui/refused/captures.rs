use forkring::Pool;

fn main() {
    let pool = Pool::new(1).unwrap();
    let names = vec!["a".to_owned()];
    let _ = pool.submit(move |n: usize| names[n].clone(), &0);
}
