//! Items of the source go into the engine.

use std::borrow::Borrow;
use std::cell::Cell;

use crate::memory::codec::Payload;
use crate::stream::engine::{Engine, Item};

/// How many items a source has, if it says so exactly.
pub(super) type Length<T> = fn(&T) -> Option<u64>;

pub(in crate::stream) fn length<T: Iterator>(source: &T) -> Option<u64> {
    let (least, most) = source.size_hint();
    most.filter(|&most| most == least).map(|most| most as u64)
}

/// Pulls items from the source into the engine until the window is full, results have come, or the source ends, which
/// is then let go. A pointer, so that `Map` has no type parameter for the item; the loop is inside of it, since a call for
/// each item would cost as much as the item. The number is that of results that wait to be asked for.
pub(super) type Pull<T, R> = fn(&mut Engine<R>, &mut Option<T>, usize, &mut Sink<'_, R>);

/// Where a pull leaves results that need no worker.
pub(in crate::stream) type Sink<'a, R> = dyn FnMut(u64, Item<R>) + 'a;

pub(super) fn pull<T, R, I, B>(
    engine: &mut Engine<R>,
    source: &mut Option<T>,
    waiting: usize,
    deliver: &mut Sink<'_, R>,
) where
    T: Iterator<Item = B>,
    R: Payload,
    I: Payload,
    B: Borrow<I>,
{
    if engine.fills::<I>() {
        return pull_plain::<T, R, I, B>(engine, source, waiting, deliver);
    }
    let more = source.as_mut().is_some_and(|source| {
        pull_into(engine, source, waiting, deliver, |engine, item, mut deliver| {
            engine.push(item.borrow(), &mut deliver);
        })
    });
    if !more {
        *source = None;
    }
}

/// As [`pull_into`], for items that are filled into a message in one loop.
#[inline]
fn pull_plain<T, R, I, B>(
    engine: &mut Engine<R>,
    source: &mut Option<T>,
    waiting: usize,
    deliver: &mut Sink<'_, R>,
) where
    T: Iterator<Item = B>,
    R: Payload,
    I: Payload,
    B: Borrow<I>,
{
    let room = engine.room(waiting);
    let delivered = Cell::new(false);
    let mut deliver = |index, item| {
        delivered.set(true);
        deliver(index, item);
    };
    while engine.wants_items(room) {
        if !engine.fill::<T, I, B>(source, room, &mut deliver) {
            *source = None;
            return engine.flush(&mut deliver);
        }
        if engine.has_news() || delivered.get() || engine.is_over() {
            break;
        }
    }
}

/// The loop of a [`Pull`], around what is to be done with an item. `false`: the source has ended.
#[inline]
pub(in crate::stream) fn pull_into<T: Iterator, R: Payload>(
    engine: &mut Engine<R>,
    source: &mut T,
    waiting: usize,
    deliver: &mut Sink<'_, R>,
    push: impl Fn(&mut Engine<R>, T::Item, &mut Sink<'_, R>),
) -> bool {
    let room = engine.room(waiting);
    let delivered = Cell::new(false);
    let mut deliver = |index, item| {
        delivered.set(true);
        deliver(index, item);
    };
    while engine.wants_items(room) {
        let Some(item) = source.next() else {
            engine.flush(&mut deliver);
            return false;
        };
        push(engine, item, &mut deliver);
        if engine.has_quick_news() || delivered.get() || engine.is_over() {
            break;
        }
    }
    true
}
