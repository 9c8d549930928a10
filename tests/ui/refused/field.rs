#[derive(forkring::Payload)]
struct Job {
    name: String,
    out: std::fs::File,
}

fn main() {}
