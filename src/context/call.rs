//! One request: its function runs, and it is answered.

use crate::error::CodecError;
use crate::faults::{Point, point};
use crate::life::worker::WorkerCore;
use crate::memory::codec::{self, EncodeError, Input, Payload};
use crate::panics::{self, Caught};
use crate::protocol::port::{Input as Bytes, Port, Request};
use crate::protocol::records::{Panic, sizes_to_bytes, text_to_bytes};
use crate::protocol::wire::{RESPONSE_INLINE_BYTES, Status};

/// One request in the hands of its shim.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(super) core: &'static WorkerCore,
    pub(super) request: &'a Request,
    pub(super) input: &'a [u8],
}

/// How an item ended that has no value, as it travels.
pub(super) struct Ended {
    pub(super) status: Status,
    pub(super) bytes: Vec<u8>,
}

/// Why an item has no value.
pub(super) enum Failure {
    Decode(CodecError),
    Encode(EncodeError),
}

impl<'a> Call<'a> {
    pub(crate) fn new(core: &'static WorkerCore, request: &'a Request, input: &'a [u8]) -> Self {
        Self { core, request, input }
    }

    /// Runs `f` on the input, or on each item of a batch, and answers.
    #[inline]
    pub(super) fn run<I: Input + ?Sized, R: Payload>(
        &mut self,
        f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>,
    ) {
        if self.request.flows() && !self.receive() {
            return;
        }
        match self.request.batch {
            None => self.run_one(f),
            Some((items, done)) => self.run_batch::<I, R>(items as usize, done as usize, f),
        }
    }

    /// Waits for all of an input that flows. `false`: it cannot be read, which is answered.
    fn receive(&mut self) -> bool {
        let mut port = self.core.port.borrow_mut();
        match port.input(self.request) {
            Ok(Bytes::InPlace(bytes)) => {
                self.input = bytes;
                true
            }
            _ => {
                port.answer(self.request.index, Status::Decode, b"no such span");
                false
            }
        }
    }

    #[inline]
    pub(super) fn run_one<R: Payload>(
        &mut self,
        f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>,
    ) {
        let core = self.core;
        core.state_used.set(false);
        if codec::element_size::<R>().is_some() {
            return self.run_elements(f);
        }
        if codec::plain_size::<R>().is_none() {
            return self.item_in_buffer(self.input, Status::Value, f, |port, status, bytes| {
                point(Point::Encoded);
                port.answer(self.request.index, status, bytes);
            });
        }
        point(Point::BeforeFunction);
        let ended = match panics::guard(|| f(core, self.input)) {
            Ok(Ok(value)) => {
                point(Point::AfterFunction);
                let plain = codec::plain_words(&value);
                if let Some((len, [low, high])) =
                    plain.filter(|(len, _)| usize::from(*len) <= core.seed.max_payload)
                {
                    point(Point::Encoded);
                    return core.port.borrow_mut().answer_small(self.request.index, len, [low, high, 0]);
                }
                let size = plain.map_or(0, |(len, _)| usize::from(len));
                Failure::Encode(EncodeError::TooLarge { size, limit: core.seed.max_payload }).ended()
            }
            Ok(Err(error)) => Failure::Decode(error).ended(),
            Err(caught) => self.panicked(caught),
        };
        self.answer_other(&ended);
    }

    /// As [`run_one`](Self::run_one), where the result is a row of numbers: what is long enough goes straight into shared memory.
    #[inline]
    fn run_elements<R: Payload>(&self, f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>) {
        let core = self.core;
        point(Point::BeforeFunction);
        let (index, limit) = (self.request.index, core.seed.max_payload);
        let failure = match panics::guard(|| f(core, self.input)) {
            Ok(Ok(value)) => {
                point(Point::AfterFunction);
                let elements = codec::elements(&value).filter(|e| e.archive_bytes() > RESPONSE_INLINE_BYTES);
                match elements.map(|elements| (elements, elements.archive_bytes())) {
                    Some((_, size)) if size > limit => EncodeError::TooLarge { size, limit },
                    Some((elements, _)) => {
                        return core.port.borrow_mut().answer_elements(index, &elements);
                    }
                    None => match codec::encode(&value, limit) {
                        Ok(value) => {
                            point(Point::Encoded);
                            return core.port.borrow_mut().answer(index, Status::Value, value.as_bytes());
                        }
                        Err(error) => error,
                    },
                }
            }
            Ok(Err(error)) => return self.answer_other(&Failure::Decode(error).ended()),
            Err(caught) => return self.answer_other(&self.panicked(caught)),
        };
        self.answer_other(&Failure::Encode(failure).ended());
    }

    #[cold]
    fn answer_other(&self, ended: &Ended) {
        point(Point::Encoded);
        self.core.port.borrow_mut().answer(self.request.index, ended.status, &ended.bytes);
        self.core.leave_if_stateless();
    }

    #[cold]
    pub(super) fn panicked(&self, Caught { message, location }: Caught) -> Ended {
        point(Point::PanicCaught);
        self.core.after_panic();
        let bytes = Panic { message: message.into(), location: location.into() }.to_bytes();
        Ended { status: Status::Panicked, bytes }
    }

    /// Runs user code, and hands the outcome to `send`, with `status` for a value. It is encoded into the buffer that the
    /// worker keeps, so that results of variable size cost no allocation each.
    #[inline]
    pub(super) fn item_in_buffer<R: Payload>(
        &self,
        bytes: &[u8],
        status: Status,
        f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>,
        send: impl FnOnce(&mut Port, Status, &[u8]),
    ) {
        let core = self.core;
        point(Point::BeforeFunction);
        let mut buffer = core.result.take();
        let result = panics::guard(|| {
            let value = f(core, bytes).map_err(Failure::Decode)?;
            point(Point::AfterFunction);
            codec::encode_into(&value, core.seed.max_payload, &mut buffer).map_err(Failure::Encode)
        });
        let ended = match result {
            Ok(Ok((start, end))) => {
                send(&mut core.port.borrow_mut(), status, &buffer[start..end]);
                buffer.clear_for_reuse();
                core.result.set(buffer);
                return;
            }
            Ok(Err(failure)) => failure.ended(),
            Err(caught) => self.panicked(caught),
        };
        // An outcome other than a value is rare, and need not keep the buffer.
        send(&mut core.port.borrow_mut(), ended.status, &ended.bytes);
        core.leave_if_stateless();
    }
}

impl Failure {
    #[cold]
    pub(super) fn ended(self) -> Ended {
        match self {
            Self::Decode(error) => Ended { status: Status::Decode, bytes: text_to_bytes(error.to_string()) },
            Self::Encode(EncodeError::Codec(error)) => {
                Ended { status: Status::Encode, bytes: text_to_bytes(error.to_string()) }
            }
            Self::Encode(EncodeError::TooLarge { size, limit }) => {
                Ended { status: Status::TooLarge, bytes: sizes_to_bytes(size, limit).to_vec() }
            }
        }
    }
}
