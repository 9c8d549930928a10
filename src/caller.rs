//! Feature `tracing`: the span that a task is submitted in, on its way to the worker that runs it.
//!
//! What travels is the caller's span's id and the first [`NAME_BYTES`] bytes of its name, nothing else: its fields and parents are
//! the business of a subscriber in another process. A worker cannot use the id as a parent: its copy of the subscriber
//! is as old as the pool and has never heard of the span.

pub(crate) use this::Caller;
#[cfg(feature = "tracing")]
pub(crate) use this::enter;

/// Words beside a request: the id, the length of the name, the name.
pub(crate) const CALLER_WORDS: usize = 8;
#[cfg(feature = "tracing")]
const NAME_BYTES: usize = 8 * (CALLER_WORDS - 2);

#[cfg(feature = "tracing")]
mod this {
    use tracing::Span;
    use tracing::field::Empty;
    use tracing::span::EnteredSpan;

    use super::{CALLER_WORDS, NAME_BYTES};
    use crate::here::CurrentTask;

    /// A span of the program's.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Caller {
        id: u64,
        name: &'static str,
    }

    impl Caller {
        /// The span that this thread is in, if anybody listens.
        #[inline]
        pub(crate) fn current() -> Option<Self> {
            if tracing::dispatcher::has_been_set() { Self::look() } else { None }
        }

        #[cold]
        fn look() -> Option<Self> {
            let span = Span::current();
            Some(Self { id: span.id()?.into_u64(), name: span.metadata()?.name() })
        }

        pub(crate) fn to_words(self) -> [u64; CALLER_WORDS] {
            let mut name = self.name;
            while name.len() > NAME_BYTES {
                let (end, _) = name.char_indices().next_back().unwrap_or_default();
                name = &name[..end];
            }
            let mut words = [self.id, name.len() as u64, 0, 0, 0, 0, 0, 0];
            for (word, part) in words[2..].iter_mut().zip(name.as_bytes().chunks(8)) {
                let mut bytes = [0; 8];
                bytes[..part.len()].copy_from_slice(part);
                *word = u64::from_le_bytes(bytes);
            }
            words
        }
    }

    /// Id and name, back from [`Caller::to_words`].
    fn from_words(words: [u64; CALLER_WORDS]) -> (u64, String) {
        let [id, len, name @ ..] = words;
        let bytes: Vec<u8> = name.iter().flat_map(|word| word.to_le_bytes()).take(len as usize).collect();
        (id, String::from_utf8_lossy(&bytes).into_owned())
    }

    /// In a worker: the span that a task runs in, for as long as the result lives.
    pub(crate) fn enter(task: &CurrentTask, caller: Option<[u64; CALLER_WORDS]>) -> EnteredSpan {
        let CurrentTask { pool, worker, generation, number } = *task;
        // No parent: what this process was in when it was forked has nothing to do with the task.
        let span = tracing::info_span!(
            target: "forkring", parent: None, "task",
            pool, worker, generation, number, caller.id = Empty, caller.name = Empty
        );
        if let Some((id, name)) = caller.map(from_words) {
            span.record("caller.id", id);
            span.record("caller.name", name.as_str());
        }
        span.entered()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn names_travel_as_far_as_there_is_room() {
            let far = |name| from_words(Caller { id: 7, name }.to_words());
            assert_eq!(far("request"), (7, "request".to_owned()));
            assert_eq!(far(""), (7, String::new()));
            let long = "0123456789".repeat(4) + "abcdefgh";
            assert_eq!(far(String::leak(long.clone())).1, long);
            // 47 bytes and one of two, which is left out whole.
            let cut = "a".repeat(47);
            assert_eq!(far(String::leak(format!("{cut}ümlaut"))).1, cut);
        }
    }
}

#[cfg(not(feature = "tracing"))]
mod this {
    use super::CALLER_WORDS;

    /// There is none.
    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Caller {}

    impl Caller {
        #[inline]
        pub(crate) fn current() -> Option<Self> {
            None
        }

        pub(crate) fn to_words(self) -> [u64; CALLER_WORDS] {
            match self {}
        }
    }
}
