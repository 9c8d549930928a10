//! How many items share a message, where the stream finds out itself: [`Granularity::Auto`](super::Granularity::Auto).
//!
//! A message costs both sides a fixed amount, whatever it carries. So it should carry enough work for that not to matter, and
//! no more: items behind each other in one message run one after the other, however many workers there are. The rule
//! aims at [`OVERHEADS`] times the cost of a message, which is the time that workers are not busy for each of them: a caller that
//! has to be woken on a core that a worker needs costs far more than what is copied. It knows no clocks: it is told how long
//! messages took.
//!
//! * It begins with one item a message, and at most doubles their number each time a message of the present size has come
//!   back ([`Auto::done`]), so that a wrong guess costs no more than what was learnt before it.
//! * Items that take longer than was thought shrink the next message at once. Where it is a matter of less than 10 ms it takes
//!   two messages in a row, since a worker may have had to wait for its core.
//! * Where results are large, copying them is what a message costs, and that cannot be shared: a message has few of them, and
//!   one that has 32 KiB travels as a task, whose result is received where it stays.
//! * Towards the end of a source that says how long it is, messages shrink too, so that all workers end together.

/// The work in a message is this many times what the message costs: its share is then 5 %.
const OVERHEADS: f64 = 20.0;
/// What a message is thought to cost before one has been measured, and within which bounds it is believed: whatever else
/// keeps workers waiting, a slow source for one, looks like a cost.
const OVERHEAD_NS: u64 = 1000;
const OVERHEAD_NS_MIN: u64 = 500;
const OVERHEAD_NS_MAX: u64 = 50_000;
/// A message that took longer than was thought, but less than this, may have been interrupted by another process: it takes two
/// in a row.
const BELIEVED_NS: u64 = 10_000_000;
/// What was measured last counts for so much.
const RECENT: f64 = 1.0 / 16.0;
/// Items of a message at most.
const ITEMS_MAX: usize = 1 << 12;
/// What is left of a source is divided among the workers in at least so many messages for each.
const PARTS: u64 = 2;
/// Where a message of one item takes so many times what is aimed at, only every so many-th message is timed.
const LONG: f64 = 2.0;
const TIMED_EVERY: u32 = 8;

/// With so many bytes of results a message is full; a result of that size is large.
const RESULT_BYTES_MAX: usize = 128 << 10;
const LARGE_BYTES: usize = 32 << 10;

/// So much work for a worker is on its way, in so many messages.
const AHEAD_NS: f64 = 2e6;
const DEPTH_MIN: usize = 4;
const DEPTH_MAX: usize = 64;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) struct Auto {
    workers: u64,
    items_max: usize,
    /// Items of the next message.
    size: usize,
    /// How many it would have if it were not to grow step by step.
    goal: usize,
    /// Counts the changes of `size`: which size a message was made with.
    step: u32,
    /// How long an item takes, once that is known.
    item_ns: Option<f64>,
    /// Whether the last message took longer than was thought, which was not believed.
    in_doubt: bool,
    overhead_ns: f64,
    /// Bytes of a result.
    item_bytes: usize,
    /// Messages since one was timed.
    untimed: u32,
}

impl Auto {
    /// `window`: at most so many items are on their way.
    pub(super) fn new(workers: usize, window: Option<usize>) -> Self {
        let share = window.map_or(ITEMS_MAX, |items| items / (workers * PARTS as usize));
        Self {
            workers: workers as u64,
            items_max: share.clamp(1, ITEMS_MAX),
            size: 1,
            goal: 1,
            step: 0,
            item_ns: None,
            in_doubt: false,
            overhead_ns: OVERHEAD_NS as f64,
            item_bytes: 0,
            untimed: 0,
        }
    }

    /// How many items the next message is to have, if so many are left.
    pub(super) fn size(&self, left: Option<u64>) -> usize {
        match left {
            None => self.size,
            Some(left) => {
                let share = left.div_ceil(self.workers * PARTS).max(1);
                self.size.min(usize::try_from(share).unwrap_or(usize::MAX))
            }
        }
    }

    /// How many messages are to be on their way for each worker: some time's work, and few while their size has to double, since
    /// what is on its way has the wrong size. What a message costs varies, so a goal that is somewhat higher is no growth.
    pub(super) fn depth(&self) -> usize {
        match self.item_ns {
            Some(ns) if self.goal < 2 * self.size => {
                ((AHEAD_NS / (ns * self.size as f64)) as usize).clamp(DEPTH_MIN, DEPTH_MAX)
            }
            _ => DEPTH_MIN,
        }
    }

    /// Which size a message that is made at present is of.
    pub(super) fn step(&self) -> u32 {
        self.step
    }

    /// Whether the next message, of one item, may do without being timed.
    pub(super) fn skips_timing(&mut self) -> bool {
        let long = self.item_ns.is_some_and(|ns| ns > LONG * self.goal_ns());
        self.untimed = if (long || self.item_bytes >= LARGE_BYTES) && self.untimed + 1 < TIMED_EVERY {
            self.untimed + 1
        } else {
            0
        };
        self.untimed != 0
    }

    /// Since the answer before, so much time has passed, in which the answer's message kept one worker busy for so long: what
    /// is left of the workers' time went by between messages.
    pub(super) fn answered(&mut self, elapsed_ns: u64, busy_ns: u64) {
        let idle_ns =
            elapsed_ns.saturating_mul(self.workers).saturating_sub(busy_ns).min(4 * OVERHEAD_NS_MAX);
        self.overhead_ns += (idle_ns as f64 - self.overhead_ns) * RECENT;
    }

    /// So many items, whose message is about to be [`done`](Self::done), had so many bytes of results.
    pub(super) fn received(&mut self, items: u32, bytes: usize) {
        self.item_bytes = bytes / items.max(1) as usize;
    }

    /// So many items, of a message that was made in this step, have taken so long in all.
    pub(super) fn done(&mut self, step: u32, items: u32, ns: u64) {
        let now = ns.max(1) as f64 / f64::from(items.max(1));
        let slower = self.item_ns.is_some_and(|known| now > 2.0 * known);
        if slower && ns < BELIEVED_NS && !std::mem::replace(&mut self.in_doubt, true) {
            return;
        }
        self.in_doubt = false;
        let item_ns = match self.item_ns {
            Some(known) if now < known => (known + 3.0 * now) / 4.0,
            _ => now,
        };
        self.item_ns = Some(item_ns);
        let items_max = self.items_max.min(RESULT_BYTES_MAX / self.item_bytes.max(1)).max(1);
        let goal = (self.goal_ns() / item_ns).clamp(1.0, items_max as f64) as usize;
        self.goal = goal;
        if goal < self.size {
            self.set(goal);
        } else if step == self.step && goal > self.size {
            self.set(goal.min(2 * self.size));
        }
    }

    /// An item has been running for so long.
    pub(super) fn is_running(&mut self, ns: u64) {
        if self.item_ns.is_none_or(|known| known < ns as f64) {
            self.in_doubt = true;
            self.done(self.step.wrapping_sub(1), 1, ns);
        }
    }

    fn set(&mut self, size: usize) {
        self.size = size;
        self.step = self.step.wrapping_add(1);
    }

    fn goal_ns(&self) -> f64 {
        OVERHEADS * self.overhead_ns.clamp(OVERHEAD_NS_MIN as f64, OVERHEAD_NS_MAX as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages one after the other, each told how long it took; their sizes.
    fn run(auto: &mut Auto, messages: usize, item_ns: u64) -> Vec<usize> {
        let one = |auto: &mut Auto| {
            let (size, step) = (auto.size(None), auto.step());
            auto.done(step, size as u32, size as u64 * item_ns);
            size
        };
        (0..messages).map(|_| one(auto)).collect()
    }

    #[test]
    fn it_begins_with_one_and_at_most_doubles() {
        let mut auto = Auto::new(2, None);
        let sizes = run(&mut auto, 20, 10);
        assert_eq!(sizes[..4], [1, 2, 4, 8]);
        assert!(sizes.windows(2).all(|pair| pair[1] <= 2 * pair[0]), "{sizes:?}");
        // 20 overheads of 1 µs.
        assert_eq!(*sizes.last().unwrap(), 2000);
        (0..1000).for_each(|_| auto.answered(1_000_000, 0));
        assert_eq!(run(&mut auto, 20, 10).pop(), Some(ITEMS_MAX));
    }

    #[test]
    fn large_results_travel_alone_and_small_ones_together() {
        let mut auto = Auto::new(2, None);
        assert_eq!(run(&mut auto, 20, 1000).pop(), Some(20));
        assert!(!auto.skips_timing());
        auto.received(20, 20 * (40 << 10));
        assert_eq!(run(&mut auto, 3, 1000).pop(), Some(3));
        auto.received(3, 3 * (200 << 10));
        assert_eq!(run(&mut auto, 2, 1000).pop(), Some(1));
        assert_eq!((0..16).filter(|_| !auto.skips_timing()).count(), 2);
        auto.received(1, 8);
        assert_eq!(run(&mut auto, 20, 1000).pop(), Some(20));
    }

    #[test]
    fn slow_items_travel_alone() {
        for item_ns in [100_000, 10_000_000, 1_000_000_000] {
            assert!(run(&mut Auto::new(2, None), 20, item_ns).iter().all(|&size| size == 1));
        }
        assert_eq!(run(&mut Auto::new(2, None), 20, 1000).pop(), Some(20));
    }

    /// F-25.
    #[test]
    fn it_shrinks_at_once_and_grows_again_step_by_step() {
        let mut auto = Auto::new(2, None);
        run(&mut auto, 20, 1000);
        assert_eq!(run(&mut auto, 2, 100_000_000), [20, 1]);
        let sizes = run(&mut auto, 60, 1000);
        assert!(sizes.windows(2).all(|pair| pair[1] <= 2 * pair[0]), "{sizes:?}");
        assert_eq!(sizes.last(), Some(&20));
    }

    #[test]
    fn a_message_that_was_interrupted_counts_only_if_the_next_one_was_too() {
        let mut auto = Auto::new(2, None);
        run(&mut auto, 20, 1000);
        auto.done(auto.step(), 20, 4_000_000);
        assert_eq!(auto.size(None), 20);
        assert_eq!(run(&mut auto, 1, 1000), [20]);
        auto.done(auto.step(), 20, 4_000_000);
        auto.done(auto.step(), 20, 4_000_000);
        assert_eq!(auto.size(None), 1);
    }

    /// What was sent with an earlier size says how long items take, but is no step.
    #[test]
    fn only_messages_of_the_present_size_are_a_step() {
        let mut auto = Auto::new(2, None);
        let step = auto.step();
        for _ in 0..10 {
            auto.done(step, 1, 10);
        }
        assert_eq!(auto.size(None), 2);
    }

    /// F-26.
    #[test]
    fn the_end_of_a_known_length_is_divided() {
        let mut auto = Auto::new(4, None);
        run(&mut auto, 20, 1000);
        assert_eq!(auto.size(Some(1 << 30)), 20);
        let (mut left, mut sizes) = (103_u64, Vec::new());
        while left > 0 {
            let size = auto.size(Some(left)).min(left as usize);
            sizes.push(size);
            left -= size as u64;
        }
        assert!(sizes.is_sorted_by(|one, next| one >= next), "{sizes:?}");
        assert_eq!(sizes[0], 13);
        assert!(sizes.ends_with(&[1; 4]), "{sizes:?}");
    }

    #[test]
    fn an_item_that_runs_for_long_shrinks_and_teaches_nothing_else() {
        let mut auto = Auto::new(2, None);
        run(&mut auto, 20, 1000);
        auto.is_running(2_000_000);
        assert_eq!(auto.size(None), 1);
        let mut slow = Auto::new(2, None);
        run(&mut slow, 1, 10_000_000);
        slow.is_running(2_000_000);
        assert_eq!(slow.item_ns, Some(10_000_000.0));
    }

    #[test]
    fn messages_that_keep_workers_waiting_carry_more() {
        let mut auto = Auto::new(2, None);
        let goal = |auto: &Auto| auto.goal_ns();
        assert_eq!(goal(&auto), 20_000.0);
        // Two workers, busy all the time.
        (0..200).for_each(|_| auto.answered(10_000, 20_000));
        assert_eq!(goal(&auto), 10_000.0);
        // Half of the time each.
        (0..200).for_each(|_| auto.answered(10_000, 10_000));
        assert!((190_000.0..=200_000.0).contains(&goal(&auto)), "{}", goal(&auto));
        // Within bounds, however long nobody looked.
        (0..200).for_each(|_| auto.answered(u64::MAX, 10_000));
        assert_eq!(goal(&auto), 1_000_000.0);
    }

    #[test]
    fn long_items_are_timed_now_and_then() {
        let mut auto = Auto::new(2, None);
        assert!(!auto.skips_timing());
        run(&mut auto, 2, 10_000_000);
        let timed = (0..80).filter(|_| !auto.skips_timing()).count();
        assert_eq!(timed, 10);
    }

    #[test]
    fn few_messages_are_on_their_way_while_they_grow_or_are_long() {
        let mut auto = Auto::new(2, None);
        assert_eq!(auto.depth(), 4);
        run(&mut auto, 3, 1000);
        assert_eq!(auto.depth(), 4);
        run(&mut auto, 20, 1000);
        assert_eq!(auto.depth(), 64);
        run(&mut auto, 2, 100_000);
        assert_eq!(auto.depth(), 20);
        run(&mut auto, 1, 100_000_000);
        assert_eq!(auto.depth(), 4);
    }

    #[test]
    fn a_window_bounds_messages() {
        let mut auto = Auto::new(2, Some(40));
        assert_eq!(run(&mut auto, 20, 10).pop(), Some(10));
        assert_eq!(Auto::new(8, Some(1)).size(None), 1);
    }
}
