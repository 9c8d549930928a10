//! Compiles the library.

fn main() {
    println!("cargo::rerun-if-changed=src/rle.c");
    cc::Build::new().file("src/rle.c").compile("rle");
}
