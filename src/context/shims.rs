//! The functions that requests name: each knows the types of a task, and runs it.

#![allow(unsafe_code, reason = "the shims recover types that the protocol erased")]

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::{Call, Worker};
use crate::error::CodecError;
use crate::memory::codec::{self, Input, Payload, View};
use crate::protocol::code::{About, TaskCode, hash_of};

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
fn assert_captures_nothing<F>() {
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
        codec::with_view::<I, R>(bytes, |view| f(&Worker { core, _types: PhantomData }, view))
    });
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
        codec::with_view::<I, R>(bytes, |view| f(&Worker { core, _types: PhantomData }, view))
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
