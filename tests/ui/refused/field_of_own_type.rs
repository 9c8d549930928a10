struct Part;

#[derive(forkring::Payload)]
enum Job {
    Whole,
    Parts(Vec<Part>),
}

fn main() {}
