use forkring::*;
use std::time::Duration;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::builder()
        .in_process()
        .workers(2)
        .env(vec![1, 2, 3])
        .init(|i| {
            println!("init {}", i.id());
            Ok(())
        })
        .build()?;
    println!("{:?}", pool.submit(|n: u64| n * 2, &21).wait());
    println!(
        "{:?}",
        pool.submit_with(|w: &Worker<Vec<i32>>, n: &View<usize>| w.env()[n.to_native() as usize], &1).wait()
    );
    let s: u64 =
        pool.map(0..100_000u64, |n: u64| n).granularity(Granularity::Fixed(100)).map(Result::unwrap).sum();
    println!("{s}");
    println!("{:?}", pool.submit(|v: Vec<f32>| v, &vec![1.0; 10_000_000]).wait().map(|v| v.len()));
    println!("{:?}", pool.submit(|s: String| s, &"x".repeat(10_000_000)).wait().map(|v| v.len()));
    println!(
        "{:?}",
        pool.with_timeout(Duration::from_millis(50))
            .submit(|()| std::thread::sleep(Duration::from_secs(1)), &())
            .wait()
    );
    println!("{:?}", pool.submit(|()| panic!("oh"), &()).wait().map(|()| ()));
    println!("{:?}", pool.broadcast(|w: &Worker<Vec<i32>>| (w.id(), w.generation())));
    println!("{:?}", pool.stats());
    println!("{:?}", pool.close().wait());
    let k = 5;
    let mut sum = 0;
    let r = Pool::builder().in_process().workers(2).iter_stream(
        0..1000u64,
        |n: u64| n + k,
        |r| sum += r.unwrap(),
    )?;
    println!("{sum} {r:?}");
    let t = std::time::Instant::now();
    let pool = Pool::builder().in_process().workers(1).build()?;
    let task = pool.submit(|()| std::thread::sleep(Duration::from_secs(1)), &());
    while pool.stats().running == 0 {}
    drop(pool);
    println!("{:?} {:?}", task.wait(), t.elapsed());
    Ok(())
}
