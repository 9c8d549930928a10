//! Where a hostile scenario takes its decisions from: a fuzzer's bytes, or random ones.

/// Bytes that are used up. When there are no more, every decision is the first choice.
#[derive(Debug)]
pub(crate) struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes there are to decide by.
    pub(super) fn left(&self) -> usize {
        self.0.len()
    }

    pub(super) fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    pub(super) fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// A number below `n`, which must not be 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let number = if n <= 256 { u64::from(self.byte()) } else { self.word() };
        (number % n as u64) as usize
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    pub(super) fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A value that may be next to `valid`, or at the edge of some range, or anything.
    pub(super) fn damaged(&mut self, valid: u64) -> u64 {
        const STEPS: [u64; 8] = [1, 2, 128, 256, 64 << 10, 4 << 20, 8 << 20, 1 << 63];
        match self.below(9) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => valid.wrapping_add(self.choose(&STEPS)),
            4 => valid.wrapping_sub(self.choose(&STEPS)),
            5 => valid ^ 1 << self.below(64),
            6 => 1_u64.wrapping_shl(self.below(64) as u32).wrapping_add(self.below(3) as u64).wrapping_sub(1),
            7 => self.below(300) as u64,
            _ => self.word(),
        }
    }
}
