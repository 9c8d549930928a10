#[derive(forkring::Payload)]
enum Never {}

fn main() {}
