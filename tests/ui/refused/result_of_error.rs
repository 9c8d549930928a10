use forkring::Pool;

fn main() {
    let pool = Pool::new(1).unwrap();
    let _ = pool.submit(|path: String| std::fs::read(path), &"a".to_owned());
}
