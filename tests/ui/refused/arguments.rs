#[derive(forkring::Payload)]
#[payload(krate = forkring)]
struct One(u32);

#[derive(forkring::Payload)]
struct Two(#[payload(crate = forkring)] u32);

#[derive(forkring::Payload)]
enum Either {
    #[payload(crate = forkring)]
    Or(u32),
}

#[derive(forkring::Payload)]
#[rkyv(no_such_thing)]
struct Three(u32);

fn main() {}
