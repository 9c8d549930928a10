use std::time::{SystemTime, UNIX_EPOCH};

use super::*;

/// A seed that is different each time, or the one that is asked for by `FORKRING_SEED`.
fn seed() -> u64 {
    match std::env::var("FORKRING_SEED") {
        Ok(seed) => seed.parse().expect("FORKRING_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64 | 1),
    }
}

/// Splitmix.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut word = *state;
    word = (word ^ word >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ word >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ word >> 31
}

/// Names the seed of a round that does not end well.
struct Round(u64);

impl Drop for Round {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to play this round first: FORKRING_SEED={}", self.0);
        }
    }
}

/// Calls `play` with random bytes, up to `max` of them.
fn rounds(count: usize, max: u64, mut play: impl FnMut(&[u8])) {
    let mut seed = seed();
    for _ in 0..count {
        let round = Round(seed);
        let len = next(&mut seed) % max;
        let bytes: Vec<u8> = (0..len).map(|_| (next(&mut seed) >> 32) as u8).collect();
        play(&bytes);
        drop(round);
    }
}

#[test]
fn the_master_survives_whatever_a_worker_writes() {
    rounds(8_000, 2_000, lane);
}

#[test]
fn any_bytes_are_records_or_not() {
    rounds(20_000, 300, records);
    // Mostly well-formed ones.
    let mut at = 0_u64;
    rounds(2_000, 300, |bytes| {
        at += 1;
        let mut stream = vec![0, 2];
        for chunk in bytes.chunks(20) {
            stream
                .extend_from_slice(&crate::protocol::records::sized_header(Status::SizedValue, chunk.len()));
            stream.extend_from_slice(chunk);
        }
        if let Some(&byte) = bytes.first() {
            let len = stream.len();
            stream[(usize::from(byte) * 7) % len] ^= 1 << (at % 8);
        }
        records(&stream);
    });
}

#[test]
fn any_bytes_are_values_or_errors() {
    rounds(50_000, 120, codec);
    // Offsets and lengths that are small lead into the archive.
    rounds(50_000, 120, |bytes| {
        let small: Vec<u8> = bytes
            .iter()
            .enumerate()
            .map(|(i, &byte)| if i % 4 == 1 { byte % 64 } else { byte % 2 * 255 })
            .collect();
        codec(&small);
    });
}
