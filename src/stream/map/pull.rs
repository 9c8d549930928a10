//! Items of the source go into the engine.

use std::borrow::Borrow;

use crate::memory::codec::Payload;
use crate::stream::engine::Engine;
use crate::stream::results::Outbox;

/// How many items a source has, if it says so exactly.
pub(super) type Length<T> = fn(&T) -> Option<u64>;

pub(in crate::stream) fn length<T: Iterator>(source: &T) -> Option<u64> {
    let (least, most) = source.size_hint();
    most.filter(|&most| most == least).map(|most| most as u64)
}

/// Takes an item out of the source, if it has one.
pub(super) type Skip<T> = fn(&mut T) -> bool;

pub(in crate::stream) fn skip<T: Iterator>(source: &mut T) -> bool {
    source.next().is_some()
}

/// Pulls items from the source into the engine until the window is full, results have come, or the source ends, which
/// is then let go. A pointer, so that `Map` has no type parameter for the item; the loop is inside of it, since a call for
/// each item would cost as much as the item. Results that need no worker go behind those that wait to be asked for.
pub(super) type Pull<T, R> = fn(&mut Engine<R>, &mut Option<T>, &mut Outbox<R>);

pub(super) fn pull<T, R, I, B>(engine: &mut Engine<R>, source: &mut Option<T>, out: &mut Outbox<R>)
where
    T: Iterator<Item = B>,
    R: Payload,
    I: Payload,
    B: Borrow<I>,
{
    if engine.fills::<I>() {
        return pull_plain::<T, R, I, B>(engine, source, out);
    }
    let more = source.as_mut().is_some_and(|source| {
        pull_into(engine, source, out, |engine, item, out| engine.push(item.borrow(), out))
    });
    if !more {
        *source = None;
    }
}

/// As [`pull_into`], for items that are filled into a message in one loop.
#[inline]
fn pull_plain<T, R, I, B>(engine: &mut Engine<R>, source: &mut Option<T>, out: &mut Outbox<R>)
where
    T: Iterator<Item = B>,
    R: Payload,
    I: Payload,
    B: Borrow<I>,
{
    let waiting = out.len();
    let room = engine.room(waiting);
    while engine.wants_items(room) {
        if !engine.fill::<T, I, B>(source, room, out) {
            *source = None;
            return engine.flush(out);
        }
        if engine.has_news() || out.len() > waiting || engine.is_over() {
            break;
        }
    }
}

/// The loop of a [`Pull`], around what is to be done with an item. `false`: the source has ended.
#[inline]
pub(in crate::stream) fn pull_into<T: Iterator, R: Payload>(
    engine: &mut Engine<R>,
    source: &mut T,
    out: &mut Outbox<R>,
    push: impl Fn(&mut Engine<R>, T::Item, &mut Outbox<R>),
) -> bool {
    let waiting = out.len();
    let room = engine.room(waiting);
    while engine.wants_items(room) {
        let Some(item) = source.next() else {
            engine.flush(out);
            return false;
        };
        push(engine, item, out);
        if engine.has_quick_news() || out.len() > waiting || engine.is_over() {
            break;
        }
    }
    true
}
