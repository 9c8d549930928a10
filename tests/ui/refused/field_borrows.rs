#[derive(forkring::Payload)]
struct Line {
    text: &'static str,
}

fn main() {}
