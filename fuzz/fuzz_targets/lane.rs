#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| forkring::faults::fuzz::lane(bytes));
