#[derive(forkring::Payload)]
union Number {
    int: u32,
    float: f32,
}

fn main() {}
