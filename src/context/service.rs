//! The master's service, as a task asks it.

use std::fmt;

use super::Worker;
use crate::builder::Service;
use crate::memory::codec::{self, Payload};
use crate::protocol::wire::AnswerKind;

impl<E, Q: Payload, A: Payload, W> Worker<E, Service<Q, A>, W> {
    /// Asks the master's service and waits for the answer. Other workers are served meanwhile.
    ///
    /// Only a pool with a [service](crate::Builder::service) has this method:
    ///
    /// ```compile_fail,E0599
    /// # use forkring::{Pool, View, Worker};
    /// let pool = Pool::new(1).unwrap(); // without `Pool::builder().service(…)`
    /// let _ = pool.submit_with(|w: &Worker, n: &View<u32>| w.call(&n.to_native()), &4_u32);
    /// ```
    ///
    /// Blocks the task for however long the handler takes, and until two threads of the program are awake: 10 to 40 µs on a
    /// machine of two cores that has other things to do. So ask for much at a time, and not in a loop that counts. A time
    /// limit of the task goes on meanwhile.
    ///
    /// # Errors
    ///
    /// [`ServiceError`] if the handler panicked, the pool is ending, one of the values could not be encoded or decoded, or there is
    /// no thread to answer on.
    pub fn call(&self, request: &Q) -> Result<A, ServiceError> {
        let bytes = codec::encode(request, self.core.seed.max_payload).map_err(ServiceError::codec)?;
        let (kind, answer) = match self.core.port.try_borrow_mut() {
            Ok(mut port) => port.call(bytes.as_bytes()),
            Err(_) => {
                return Err(ServiceError::new(ServiceErrorKind::Refused, "a call is under way already"));
            }
        };
        let text = || String::from_utf8_lossy(&answer).into_owned();
        match kind {
            AnswerKind::Value => codec::decode::<A>(&answer).map_err(ServiceError::codec),
            AnswerKind::Panicked => Err(ServiceError::new(ServiceErrorKind::Panicked, text())),
            AnswerKind::Codec => Err(ServiceError::new(ServiceErrorKind::Codec, text())),
            AnswerKind::Refused => Err(ServiceError::new(ServiceErrorKind::Refused, text())),
        }
    }
}

/// Why a service call has no answer. A payload itself, so that a task can return it.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ServiceError {
    kind: ServiceErrorKind,
    message: String,
}

/// What kind of trouble a [`ServiceError`] is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum ServiceErrorKind {
    /// The handler panicked in the master.
    Panicked,
    /// The request or the answer could not be encoded or decoded, or is too large.
    Codec,
    /// The pool is ending, every worker waits for a handler that waits for the pool, or no thread can be started for the handler.
    Refused,
}

impl ServiceError {
    fn new(kind: ServiceErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    fn codec(error: impl fmt::Display) -> Self {
        Self::new(ServiceErrorKind::Codec, error.to_string())
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> ServiceErrorKind {
        self.kind
    }

    /// The cause in words.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            ServiceErrorKind::Panicked => "the service's handler panicked",
            ServiceErrorKind::Codec => "the service call could not be encoded or decoded",
            ServiceErrorKind::Refused => "the service call was refused",
        };
        write!(f, "{what}: {}", self.message)
    }
}

impl std::error::Error for ServiceError {}
