//! What a task sees of its worker, and the shims that run tasks there.

#![allow(unsafe_code, reason = "the shims recover types that the protocol erased")]

use std::any::Any;
use std::borrow::Borrow;
use std::cell::{Ref, RefMut};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::time::Instant;

use crate::builder::Service;
use crate::error::CodecError;
use crate::faults::{Point, point};
use crate::ground::prefetch::{self, Ahead};
use crate::life::worker::{CatchGuard, WorkerCore, unwind_to_catch};
use crate::memory::codec::{self, AlignedBytes, EncodeError, Encoded, Filler, Input, Payload, View};
use crate::panics::{self, Caught};
use crate::protocol::code::{About, Shape, TaskCode, hash_of};
use crate::protocol::port::{Input as Bytes, Port, Request};
use crate::protocol::records::{Panic, record_stride, sizes_to_bytes, text_to_bytes};
use crate::protocol::wire::{AnswerKind, RESPONSE_INLINE_BYTES, Status, time_code};

/// The worker that a task runs in: its environment, its state, and the way to the master's service.
///
/// ```
/// use forkring::{Pool, View, Worker};
///
/// let pool = Pool::builder().workers(2).env(vec![10, 20, 30]).build()?;
/// let third = pool.submit_with(|w: &Worker<Vec<i32>>, i: &View<usize>| w.env()[i.to_native() as usize], &2_usize);
/// assert_eq!(third.wait()?, 30);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// `E` is the type of the pool's environment, `S` of its service, `W` of its state; `Worker` alone means that it has none. A
/// task that names other types than its pool has is refused:
///
/// ```compile_fail,E0631
/// # use forkring::{Pool, View, Worker};
/// let pool = Pool::builder().workers(1).env(vec![10, 20, 30]).build().unwrap();
/// let _ = pool.submit_with(|_: &Worker, i: &View<u32>| i.to_native(), &2_u32); // `&Worker<Vec<i32>>` is what it has to be
/// ```
///
/// It belongs to the thread that runs the task. Threads that a task starts get what they need from it beforehand:
///
/// ```compile_fail,E0277
/// # use forkring::{Pool, View, Worker};
/// let pool = Pool::new(1).unwrap();
/// let _ = pool.submit_with(
///     |w: &Worker, _: &View<u32>| std::thread::scope(|scope| scope.spawn(|| w.id()).join().unwrap()), // take the id before
///     &2_u32,
/// );
/// ```
pub struct Worker<E = (), S = crate::NoService, W = ()> {
    core: &'static WorkerCore,
    /// `E` and `W` live in the worker, which is one process with one such value: neither `Send` nor `Sync`.
    _types: PhantomData<(*const E, *const S, *const W)>,
}

impl<E, S, W> fmt::Debug for Worker<E, S, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("info", &self.core.info).finish_non_exhaustive()
    }
}

impl<E: 'static, S, W: 'static> Worker<E, S, W> {
    /// The environment that the pool was built with, inherited by fork: the worker's own copy, shared with the other
    /// processes page by page until somebody writes to it. With [`in_process`](crate::Builder::in_process), the one of all workers.
    pub fn env(&self) -> &E {
        self.core.seed.env.downcast_ref().expect("the pool's type says what its environment is")
    }

    /// The worker's state, made by [`Builder::state`](crate::Builder::state).
    ///
    /// # Panics
    ///
    /// If the task has borrowed it already.
    pub fn state(&self) -> RefMut<'_, W> {
        self.core.state_used.set(true);
        let state = self.core.state.try_borrow_mut().expect("the task has borrowed the state already");
        RefMut::map(state, |state| {
            // A pool without `state` has the state `()`.
            let state = state.get_or_insert_with(|| Box::new(()) as Box<dyn Any>);
            state.downcast_mut().expect("the pool's type says what its state is")
        })
    }
}

impl<E, S, W> Worker<E, S, W> {
    /// The worker's id, `0 .. workers`. A replacement has its predecessor's.
    pub fn id(&self) -> usize {
        self.core.info.id
    }

    /// Which process of that worker this is, counted from 0.
    pub fn generation(&self) -> u64 {
        self.core.info.generation
    }

    /// Whether the running task has been cancelled: its result will be thrown away, so it may as well stop. Costs two
    /// loads from shared memory. Once true, it stays true for this task.
    pub fn cancelled(&self) -> bool {
        self.core.request.get().is_some_and(|index| {
            let is_over = |port: Ref<'_, Port>| port.cancelled(index) || port.is_given_up();
            self.core.port.try_borrow().is_ok_and(is_over)
        })
    }

    /// Brings an input, or part of one, back as an owned value.
    ///
    /// # Errors
    ///
    /// Where the type's own deserialization fails.
    pub fn decode<I: Payload>(&self, view: &View<I>) -> Result<I, CodecError> {
        codec::from_view::<I>(view)
    }
}

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
    /// [`ServiceError`] if the handler panicked, the pool is ending, or one of the values could not be encoded.
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
    /// The pool is ending, or every worker waits for a handler that waits for the pool.
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
            ServiceErrorKind::Codec => "the service call could not be encoded",
            ServiceErrorKind::Refused => "the service call was refused",
        };
        write!(f, "{what}: {}", self.message)
    }
}

impl std::error::Error for ServiceError {}

/// Which worker this is, as `init`, `state` and `on_exit` see it.
#[derive(Debug)]
pub struct WorkerInfo {
    id: usize,
    generation: u64,
}

impl WorkerInfo {
    pub(crate) fn new(id: usize, generation: u64) -> Self {
        Self { id, generation }
    }

    /// The worker's id, `0 .. workers`.
    pub fn id(&self) -> usize {
        self.id
    }

    /// Which process of that worker this is, counted from 0.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// From inside `init`: unwinds the stack that the worker inherited, so that what the program had allocated on
    /// the way to [`Builder::build`](crate::Builder::build) is dropped in this worker, up to [`StartWorker::catch`],
    /// which then runs the worker's loop. Never returns.
    ///
    /// The destructors of everything on that stack run here too: one that deletes a file or says goodbye on a socket
    /// does so in every worker. Keep such values off the path between `catch` and `build`.
    ///
    /// Where it cannot work, `build()` fails and says why: without a `catch` on the building thread, in a program
    /// built with `panic = "abort"`, under `iter_stream` and `bind`, or where something between `catch` and `build`
    /// catches panics (`catch_unwind`, `thread::scope`, a runtime's `spawn`).
    pub fn start_worker(&self) -> ! {
        unwind_to_catch()
    }
}

/// The place up to which [`WorkerInfo::start_worker`] unwinds.
#[derive(Debug)]
pub struct StartWorker;

impl StartWorker {
    /// Runs `f`, which builds pools; workers that call [`WorkerInfo::start_worker`] unwind to here and serve.
    ///
    /// ```
    /// use forkring::{Pool, StartWorker};
    ///
    /// let pool = StartWorker::catch(|| {
    ///     let large = vec![1_u8; 1 << 20];
    ///     let pool = Pool::builder().workers(1).init(|info| info.start_worker()).build();
    ///     drop(large); // the worker has dropped its copy too
    ///     pool
    /// })?;
    /// assert_eq!(pool.submit(|n: u32| n + 1, &1).wait()?, 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn catch<T>(f: impl FnOnce() -> T) -> T {
        let _guard = CatchGuard::new();
        f()
    }
}

/// One request in the hands of its shim.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    core: &'static WorkerCore,
    request: &'a Request,
    input: &'a [u8],
}

/// How an item ended that has no value, as it travels.
struct Ended {
    status: Status,
    bytes: Vec<u8>,
}

/// Why an item has no value.
enum Failure {
    Decode(CodecError),
    Encode(EncodeError),
}

impl<'a> Call<'a> {
    pub(crate) fn new(core: &'static WorkerCore, request: &'a Request, input: &'a [u8]) -> Self {
        Self { core, request, input }
    }

    /// Runs `f` on the input, or on each item of a batch, and answers.
    #[inline]
    fn run<I: Input + ?Sized, R: Payload>(
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
    fn run_one<R: Payload>(&mut self, f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>) {
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
    }

    #[cold]
    fn panicked(&self, Caught { message, location }: Caught) -> Ended {
        point(Point::PanicCaught);
        self.core.after_panic();
        let bytes = Panic { message: message.into(), location: location.into() }.to_bytes();
        Ended { status: Status::Panicked, bytes }
    }

    /// Runs items whose results are bare values (no serializer, no length) until there is something to look at; the item
    /// to go on with.
    #[inline]
    fn run_plain_items<I: Input + ?Sized, R: Payload>(
        &self,
        batch: &Items<'_>,
        items: Range<usize>,
        f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>,
    ) -> usize {
        let core = self.core;
        let window = core.port.borrow_mut().window::<R>(self.request.index, items.len());
        let Some(window) = window else { return self.run_plain_item::<I, R>(batch, items.start, &f) };
        // One guard for all of them: whichever panics, it is the one behind those that are published.
        let ended = panics::guard(|| match codec::plain_size::<I>() {
            Some(stride @ 1..) => {
                let end = items.start + window.room().min(items.len());
                let inputs = batch.bytes.get(items.start * stride..end * stride).unwrap_or_default();
                window.run(inputs.chunks_exact(stride), |input| f(core, input))
            }
            _ => window.run(items.clone(), |i| f(core, batch.get::<I>(i).unwrap_or_default())),
        });
        let next = {
            let mut port = core.port.borrow_mut();
            let done = port.leave_window::<R>(items.len());
            port.notify_of_item();
            items.start + done
        };
        let ended = match ended {
            Ok(Ok(())) => return next,
            Ok(Err(error)) => Failure::Decode(error).ended(),
            Err(caught) => self.panicked(caught),
        };
        self.send_record(&ended);
        next + 1
    }

    /// As [`run_plain_items`](Self::run_plain_items), for one item whose result has to wait for room, or is a record since
    /// an earlier item of its batch had no value.
    #[cold]
    fn run_plain_item<I: Input + ?Sized, R: Payload>(
        &self,
        batch: &Items<'_>,
        i: usize,
        f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>,
    ) -> usize {
        let core = self.core;
        point(Point::BeforeFunction);
        let ended = match panics::guard(|| f(core, batch.get::<I>(i).unwrap_or_default())) {
            Ok(Ok(value)) => {
                point(Point::AfterFunction);
                let mut port = core.port.borrow_mut();
                port.append_value(codec::plain_bytes(&value).unwrap_or_default());
                point(Point::RecordUncommitted);
                port.commit();
                point(Point::RecordDone);
                return i + 1;
            }
            Ok(Err(error)) => Failure::Decode(error).ended(),
            Err(caught) => self.panicked(caught),
        };
        self.send_record(&ended);
        i + 1
    }

    /// Runs user code as [`item`](Self::item) does, and hands the outcome to `send`, with `status` for a value. It is encoded
    /// into the buffer
    /// that the worker keeps, so that results of variable size cost no allocation each.
    #[inline]
    fn item_in_buffer<R: Payload>(
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
    }

    #[inline]
    fn run_item<I: Input + ?Sized, R: Payload>(
        &self,
        batch: &Items<'_>,
        i: usize,
        f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>,
    ) -> usize {
        let bytes = batch.get::<I>(i).unwrap_or_default();
        self.item_in_buffer(bytes, Status::SizedValue, f, |port, status, bytes| {
            port.append_sized(status, bytes);
            point(Point::RecordUncommitted);
            port.commit();
            point(Point::RecordDone);
        });
        i + 1
    }

    fn send_record(&self, ended: &Ended) {
        let mut port = self.core.port.borrow_mut();
        port.append_sized(ended.status, &ended.bytes);
        point(Point::RecordUncommitted);
        port.commit();
        point(Point::RecordDone);
    }

    #[inline]
    fn run_batch<I: Input + ?Sized, R: Payload>(
        &mut self,
        items: usize,
        done: usize,
        f: impl Fn(&'static WorkerCore, &[u8]) -> Result<R, CodecError>,
    ) {
        let (core, index) = (self.core, self.request.index);
        core.state_used.set(false);
        let Some(batch) = Items::new::<I>(self.input, items) else {
            return core.port.borrow_mut().answer(index, Status::Decode, b"a batch's table is damaged");
        };
        let since = self.request.timed.then(Instant::now);
        let stride = record_stride::<R>();
        let start = {
            let mut port = core.port.borrow_mut();
            if let Err(error) = port.reserve_stream(items.saturating_mul(stride.map_or(64, |s| s + 1))) {
                return port.answer(index, Status::Memory, error.to_string().as_bytes());
            }
            if self.request.timed {
                port.be_quiet();
            }
            port.open_stream(index, 0, stride.is_some())
        };
        let mut status = Status::BatchDone;
        let mut next = done;
        while next < items {
            // One by one, so that a crash in the next item cannot take this one's result along.
            next = match stride {
                Some(_) => self.run_plain_items::<I, R>(&batch, next..items, &f),
                None => self.run_item::<I, R>(&batch, next, &f),
            };
            // Edge CUT: the record was committed before this look, with a barrier between; the master marks, fences, and
            // looks how many records there are. So it knows the last item that can have started.
            if next < items && core.port.borrow().ends_early(index) {
                status = Status::BatchCut;
                core.left_out.set((items - next) as u64);
                break;
            }
        }
        let time = since.map_or(0, |since| time_code(since.elapsed().as_nanos() as u64));
        core.port.borrow_mut().close_stream(index, start, status, time);
    }
}

impl Failure {
    #[cold]
    fn ended(self) -> Ended {
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

/// The items of a batch's payload: equal strides for plain types, else a table of ends at the end.
///
/// The table has an 8-byte end for each item; an item starts at the next multiple of its alignment.
#[derive(Clone, Copy)]
struct Items<'a> {
    bytes: &'a [u8],
    table: &'a [u8],
    align: usize,
}

impl<'a> Items<'a> {
    #[inline]
    fn new<I: Input + ?Sized>(bytes: &'a [u8], items: usize) -> Option<Self> {
        Self::with_layout(bytes, items, Layout::of::<I>())
    }

    #[inline]
    fn with_layout(bytes: &'a [u8], items: usize, Layout { stride, align }: Layout) -> Option<Self> {
        if let Some(stride) = stride {
            let fits = stride.checked_mul(items)? <= bytes.len();
            return fits.then_some(Self { bytes, table: &[], align });
        }
        let table = bytes.len().checked_sub(items.checked_mul(8)?)?;
        let (bytes, table) = bytes.split_at(table);
        Some(Self { bytes, table, align })
    }

    #[inline]
    fn get<I: Input + ?Sized>(&self, i: usize) -> Option<&'a [u8]> {
        self.item(i, codec::plain_size::<I>())
    }

    #[inline]
    fn item(&self, i: usize, stride: Option<usize>) -> Option<&'a [u8]> {
        if let Some(stride) = stride {
            return self.bytes.get(i * stride..(i + 1) * stride);
        }
        self.by_table(i)
    }

    #[inline]
    fn by_table(&self, i: usize) -> Option<&'a [u8]> {
        let end = self.end(i)?;
        let start = if i == 0 { 0 } else { self.end(i - 1)?.checked_next_multiple_of(self.align)? };
        self.bytes.get(start..end)
    }

    fn end(&self, i: usize) -> Option<usize> {
        let word = self.table.get(i * 8..i * 8 + 8)?;
        usize::try_from(u64::from_le_bytes(word.try_into().ok()?)).ok()
    }
}

/// An item of a batch whose type is known by its shape only. As [`Items::get`].
pub(crate) fn item_of(bytes: &[u8], items: usize, i: usize, shape: Shape) -> Option<&[u8]> {
    let Shape { size, align, plain } = shape;
    if plain {
        return bytes.get(i.checked_mul(size)?..(i + 1).checked_mul(size)?);
    }
    let table = bytes.len().checked_sub(items.checked_mul(8)?)?;
    let (bytes, table) = bytes.split_at(table);
    let items = Items { bytes, table, align };
    items.by_table(i)
}

/// Collects the items of a batch in the form that [`Items`] reads.
#[derive(Debug, Default)]
pub(crate) struct BatchBytes {
    bytes: AlignedBytes,
    ends: Vec<u8>,
    items: u32,
    /// Where it is going to be copied to, and what is going to be read next, as far as is known.
    pub(crate) ahead: Ahead,
    /// What the items are, once there was one.
    layout: Option<Layout>,
}

/// What [`Items`] has to know of a type to find its values in a batch.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// The size of each, if they are all of one size.
    stride: Option<usize>,
    align: usize,
}

impl Layout {
    #[inline]
    fn of<I: Input + ?Sized>() -> Self {
        Self { stride: codec::plain_size::<I>(), align: codec::view_align::<I>() }
    }
}

impl BatchBytes {
    /// Adds an item. On an error, what was there before stays.
    #[inline]
    pub(crate) fn push<I: Input + ?Sized>(&mut self, item: &I, limit: usize) -> Result<(), EncodeError> {
        self.layout = Some(Layout::of::<I>());
        if let Some(plain) = codec::plain_bytes(item).filter(|plain| plain.len() <= limit) {
            self.bytes.extend_from_slice(plain);
            self.items += 1;
            return Ok(());
        }
        let (_, end) = codec::encode_into(item, limit, &mut self.bytes)?;
        if codec::plain_size::<I>().is_none() {
            self.ends.extend_from_slice(&(end as u64).to_le_bytes());
        }
        self.items += 1;
        Ok(())
    }

    /// Whether items of this type are [`fill`](Self::fill)ed in.
    #[inline]
    pub(crate) fn are_plain<I: Input>(limit: usize) -> bool {
        codec::plain_size::<I>().is_some_and(|bytes| (1..=limit).contains(&bytes))
    }

    /// Adds items of a plain type until there are `goal`, `enough` says so after an item, or the source ends, which is
    /// `false`; and counts them. Whatever the source does, the items that it has given are there.
    #[inline]
    pub(crate) fn fill<T: Iterator<Item = B>, I: Input, B: Borrow<I>>(
        &mut self,
        source: &mut Option<T>,
        goal: u32,
        pulled: &mut u64,
        enough: impl Fn() -> bool,
    ) -> bool {
        if size_of::<T>() > HELD_BYTES_MAX {
            return source
                .as_mut()
                .is_some_and(|source| self.fill_from::<I, B>(source, goal, pulled, enough));
        }
        let mut held = Held { source: source.take(), home: source };
        held.source.as_mut().is_some_and(|source| self.fill_from::<I, B>(source, goal, pulled, enough))
    }

    #[inline(always)]
    fn fill_from<I: Input, B: Borrow<I>>(
        &mut self,
        source: &mut impl Iterator<Item = B>,
        goal: u32,
        pulled: &mut u64,
        enough: impl Fn() -> bool,
    ) -> bool {
        let Some(stride) = codec::plain_size::<I>().filter(|&bytes| bytes > 0) else { return true };
        self.layout = Some(Layout::of::<I>());
        let room = (goal.saturating_sub(self.items) as usize).min(FILL_BYTES / stride);
        let filler = Filler::new(&mut self.bytes, room * stride);
        let mut filling = Filling { filler, stride, items: &mut self.items, pulled };
        let mut line = self.ahead.after(filling.filler.len());
        while filling.filler.room() >= stride {
            line.ask();
            for _ in 0..(prefetch::LINE_BYTES / stride).max(1) {
                if filling.filler.room() < stride {
                    return true;
                }
                let Some(item) = source.next() else { return false };
                filling.filler.push(codec::plain_bytes(item.borrow()).unwrap_or_default());
                if enough() {
                    return true;
                }
            }
        }
        true
    }

    pub(crate) fn len(&self) -> u32 {
        self.items
    }

    /// The bytes of the items so far.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Part of a batch of so many items of the type that was collected last, as a batch of its own.
    pub(crate) fn part(&self, payload: &[u8], items: usize, part: Range<usize>) -> Option<Encoded> {
        let shape = self.layout?;
        let batch = Items::with_layout(payload, items, shape)?;
        if let Some(stride) = shape.stride {
            let bytes = batch.bytes.get(part.start * stride..part.end * stride)?;
            return Some(Encoded::Heap(AlignedBytes::from(bytes)));
        }
        let (mut bytes, mut ends) = (AlignedBytes::new(), Vec::new());
        for i in part {
            bytes.pad_to(shape.align);
            bytes.extend_from_slice(batch.item(i, shape.stride)?);
            ends.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        }
        bytes.extend_from_slice(&ends);
        Some(Encoded::Heap(bytes))
    }

    /// The payload of what was collected, until [`clear`](Self::clear).
    pub(crate) fn payload(&mut self) -> &[u8] {
        if !self.ends.is_empty() {
            self.bytes.extend_from_slice(&self.ends);
            self.ends.clear();
        }
        &self.bytes
    }

    /// Starts anew, in the same memory.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear_for_reuse();
        self.ends.clear();
        self.items = 0;
    }

    /// The payload of what was collected, to be kept; starts anew.
    pub(crate) fn finish(&mut self) -> Encoded {
        self.payload();
        self.items = 0;
        Encoded::Heap(std::mem::take(&mut self.bytes))
    }
}

/// Items are filled in up to this many bytes at a time, so that a source that gives few takes little memory.
const FILL_BYTES: usize = 64 << 10;

/// Larger sources are not moved.
const HELD_BYTES_MAX: usize = 128;

/// A source on the stack, where nothing points to it, so that the loop over its items keeps it in registers: through a
/// reference it would be stored for each of them. It goes back when the loop ends, by a panic too.
struct Held<'a, T> {
    source: Option<T>,
    home: &'a mut Option<T>,
}

impl<T> Drop for Held<'_, T> {
    #[inline]
    fn drop(&mut self) {
        *self.home = self.source.take();
    }
}

/// A [`BatchBytes::fill`] under way. Its counts are right also after a panic of the source.
struct Filling<'a> {
    filler: Filler<'a>,
    stride: usize,
    items: &'a mut u32,
    pulled: &'a mut u64,
}

impl Drop for Filling<'_> {
    #[inline]
    fn drop(&mut self) {
        let added = self.filler.added() / self.stride.max(1);
        *self.items += added as u32;
        *self.pulled += added as u64;
    }
}

/// A function that captures nothing, conjured up in a worker.
///
/// # Safety
///
/// `F` is `Copy` and of size zero, and a value of it existed where the task was submitted.
#[inline]
unsafe fn conjure<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0) };
    // SAFETY: a value of size zero has no bytes; the caller vouches that one may exist.
    unsafe { NonNull::<F>::dangling().read() }
}

/// Makes sure that a task function captures nothing, and says what to do if it does.
#[inline]
pub(crate) fn assert_captures_nothing<F>() {
    const {
        assert!(
            size_of::<F>() == 0,
            "a task function captures nothing: pass the data as the argument, put it into the pool's env, or make \
             the pool around the closure with Builder::bind or Builder::iter_stream"
        );
    }
}

/// A function with what is needed to name it in a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named {
    pub(crate) code: &'static TaskCode,
    pub(crate) types: u64,
}

/// `Fn(I) -> R`.
#[inline]
pub(crate) fn plain_task<F, I, R>(_: &F) -> Named
where
    F: Fn(I) -> R + Copy + Send + 'static,
    I: Payload,
    R: Payload,
{
    assert_captures_nothing::<F>();
    Named {
        code: const { &TaskCode::new(run_plain::<F, I, R>, hash_of::<(F, I, R)>, About::of::<F, I, R>) },
        types: hash_of::<(F, I, R)>(),
    }
}

unsafe fn run_plain<F: Fn(I) -> R + Copy + 'static, I: Payload, R: Payload>(call: NonNull<()>) {
    // SAFETY: CODE-1: `call` is the worker's `Call`, and nobody else uses it meanwhile.
    let call = unsafe { call.cast::<Call<'_>>().as_mut() };
    // SAFETY: `plain_task` had a value.
    let f = unsafe { conjure::<F>() };
    let request = call.request;
    match codec::element_size::<I>() {
        // What is copied anyway can be while it comes.
        Some(size) if request.flows() => call.run_one(|core, _| {
            let elements = core.port.borrow_mut().receive_elements(request, size);
            let elements = elements.ok_or_else(|| CodecError::new("a row of something else"))?;
            Ok(f(elements.into_value::<I>()?))
        }),
        _ => call.run::<I, R>(|_, bytes| Ok(f(codec::decode::<I>(bytes)?))),
    }
}

/// `Fn(&Worker, &View<I>) -> R`.
#[inline]
pub(crate) fn context_task<F, E, S, W, I, R>(_: &F) -> Named
where
    F: Fn(&Worker<E, S, W>, &View<I>) -> R + Copy + Send + 'static,
    I: Input + ?Sized,
    R: Payload,
{
    assert_captures_nothing::<F>();
    // `I` may borrow and then has no type id; `F` fixes it but for lifetimes.
    Named {
        code: const { &TaskCode::new(run_context::<F, E, S, W, I, R>, hash_of::<(F, R)>, About::of::<F, I, R>) },
        types: hash_of::<(F, R)>(),
    }
}

unsafe fn run_context<F, E, S, W, I, R>(call: NonNull<()>)
where
    F: Fn(&Worker<E, S, W>, &View<I>) -> R + Copy + 'static,
    I: Input + ?Sized,
    R: Payload,
{
    // SAFETY: as in `run_plain`.
    let call = unsafe { call.cast::<Call<'_>>().as_mut() };
    // SAFETY: `context_task` had a value.
    let f = unsafe { conjure::<F>() };
    call.run::<I, R>(|core, bytes| {
        // The item before in its batch may have used it.
        core.state_used.set(false);
        with_view::<I, R>(bytes, |view| f(&Worker { core, _types: PhantomData }, view))
    });
}

/// Views the input in place; items of size zero and inline ones are aligned already.
#[inline]
fn with_view<I: Input + ?Sized, R>(bytes: &[u8], f: impl FnOnce(&View<I>) -> R) -> Result<R, CodecError> {
    Ok(f(codec::view::<I>(bytes)?))
}

/// `Fn(I) -> R` that the pool was made around.
pub(crate) fn bound_task<F: Fn(I) -> R, I: Payload, R: Payload>() -> Named {
    Named {
        code: const { &TaskCode::new(run_bound::<F, I, R>, hash_of::<(I, R)>, About::of::<F, I, R>) },
        types: hash_of::<(I, R)>(),
    }
}

unsafe fn run_bound<F: Fn(I) -> R, I: Payload, R: Payload>(call: NonNull<()>) {
    // SAFETY: as in `run_plain`.
    let call = unsafe { call.cast::<Call<'_>>().as_mut() };
    let Some(bound) = call.core.seed.bound else { return };
    // SAFETY: the pool was forked while an `F` lay there, and its handle submits no other task; the memory is this
    // worker's own copy and nothing that lies there is ever dropped in it.
    let f = unsafe { &*bound.0.cast::<F>() };
    call.run::<I, R>(|_, bytes| Ok(f(codec::decode::<I>(bytes)?)));
}

/// `Fn(&Worker, &View<I>) -> R` that the pool was made around.
pub(crate) fn bound_context_task<F, E, S, W, I, R>() -> Named
where
    F: Fn(&Worker<E, S, W>, &View<I>) -> R,
    I: Payload,
    R: Payload,
{
    Named {
        code: const {
            &TaskCode::new(run_bound_context::<F, E, S, W, I, R>, hash_of::<(I, R)>, About::of::<F, I, R>)
        },
        types: hash_of::<(I, R)>(),
    }
}

unsafe fn run_bound_context<F, E, S, W, I, R>(call: NonNull<()>)
where
    F: Fn(&Worker<E, S, W>, &View<I>) -> R,
    I: Payload,
    R: Payload,
{
    // SAFETY: as in `run_plain`.
    let call = unsafe { call.cast::<Call<'_>>().as_mut() };
    let Some(bound) = call.core.seed.bound else { return };
    // SAFETY: as in `run_bound`.
    let f = unsafe { &*bound.0.cast::<F>() };
    call.run::<I, R>(|core, bytes| {
        // The item before in its batch may have used it.
        core.state_used.set(false);
        with_view::<I, R>(bytes, |view| f(&Worker { core, _types: PhantomData }, view))
    });
}

/// `Fn(&Worker) -> R`, for a broadcast.
#[inline]
pub(crate) fn broadcast_task<F, E, S, W, R>(_: &F) -> Named
where
    F: Fn(&Worker<E, S, W>) -> R + Copy + Send + 'static,
    R: Payload,
{
    assert_captures_nothing::<F>();
    Named {
        code: const { &TaskCode::new(run_broadcast::<F, E, S, W, R>, hash_of::<(F, R)>, About::of::<F, (), R>) },
        types: hash_of::<(F, R)>(),
    }
}

unsafe fn run_broadcast<F, E, S, W, R>(call: NonNull<()>)
where
    F: Fn(&Worker<E, S, W>) -> R + Copy + 'static,
    R: Payload,
{
    // SAFETY: as in `run_plain`.
    let call = unsafe { call.cast::<Call<'_>>().as_mut() };
    // SAFETY: `broadcast_task` had a value.
    let f = unsafe { conjure::<F>() };
    call.run::<(), R>(|core, _| Ok(f(&Worker { core, _types: PhantomData })));
}
