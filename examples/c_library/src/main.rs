//! A C library that corrupts its own memory on some inputs, and a program that does not mind.
//!
//!     cargo run -p forkring-c-library
//!
//! The library also keeps its result in one place, so that no two threads may use a decoder at a time. Each worker
//! makes a decoder of its own, as its *state*: there is one thread in it, and when the decoder has ruined itself, the
//! worker dies of it and its replacement makes another one.

#![allow(unsafe_code, reason = "calls into C")]

use std::error::Error;
use std::ffi::{CStr, CString, c_char};
use std::ptr::NonNull;

use forkring::{BoxError, NoService, Payload, Pool, View, Worker};

#[repr(C)]
struct RawDecoder {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn decoder_new() -> Option<NonNull<RawDecoder>>;
    fn decoder_length(decoder: NonNull<RawDecoder>, text: *const c_char) -> usize;
    fn decoder_free(decoder: NonNull<RawDecoder>);
}

/// The library's object. Neither `Send` nor `Sync`, and it need not be: it never leaves its worker.
struct Decoder(NonNull<RawDecoder>);

impl Decoder {
    fn new() -> Result<Self, BoxError> {
        // SAFETY: takes nothing, and says by null that it has no memory.
        unsafe { decoder_new() }.map(Self).ok_or_else(|| "no memory for a decoder".into())
    }

    /// What the library promises for every text, and does not keep.
    fn length(&mut self, text: &CStr) -> usize {
        // SAFETY: a living decoder, and a text that ends with a zero. That the library itself is sound cannot be said,
        // and this process has nothing that is worth anything but the task's own data.
        unsafe { decoder_length(self.0, text.as_ptr()) }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: it is not used any more.
        unsafe { decoder_free(self.0) }
    }
}

/// A task's own errors come back as values.
#[derive(Debug, PartialEq, Payload)]
enum Refused {
    ZeroByte,
}

fn length(worker: &Worker<(), NoService, Decoder>, text: &View<String>) -> Result<u64, Refused> {
    let text = CString::new(text.as_str()).map_err(|_| Refused::ZeroByte)?;
    Ok(worker.state().length(&text) as u64)
}

fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::builder().workers(2).state(|_, ()| Decoder::new()).build()?;

    let good = pool.submit_with(length, &"3a2b".to_owned());
    assert_eq!(good.wait()?, Ok(5));
    let refused = pool.submit_with(length, &"1\0".to_owned());
    assert_eq!(refused.wait()?, Err(Refused::ZeroByte));

    // A hundred texts, of which three are longer than the library was made for.
    let texts = (0..100).map(|n| if n % 33 == 32 { "9x".repeat(20) } else { format!("{}y", n % 10) });
    let mut lost = Vec::new();
    for (n, outcome) in pool.map_with(texts, length).enumerate() {
        match outcome {
            Ok(length) => assert_eq!(length, Ok(n as u64 % 10)),
            Err(error) => {
                println!("text {n}: {error}");
                assert!(error.is_worker_lost());
                lost.push(n);
            }
        }
    }
    assert_eq!(lost, [32, 65, 98]);
    println!("all others have their results; {} tasks were lost", pool.stats().lost);
    Ok(())
}
