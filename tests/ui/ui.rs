//! What the compiler says to whoever does what cannot be done: each program in `refused` is refused, with the words in the
//! file beside it. `TRYBUILD=overwrite cargo test -p forkring-ui` writes those anew, to be read before they are committed.

use std::io::Write;
use std::process::Command;

/// Other compilers find other words.
const COMPILER: &str = "rustc 1.95.";

#[test]
fn messages() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(&rustc).arg("--version").output().unwrap();
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if !version.starts_with(COMPILER) {
        // Past the test harness, which keeps what passing tests print to itself.
        let _ = write!(
            std::io::stderr(),
            "SKIPPED: the messages are those of {COMPILER}*, and this is {version}"
        );
        return;
    }
    let cases = trybuild::TestCases::new();
    // With forkring alone, as a program that says so in its manifest.
    cases.pass("shapes.rs");
    cases.compile_fail("refused/*.rs");
}
