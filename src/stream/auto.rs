//! How many items share a message, where the stream finds out itself: [`Granularity::Auto`](super::Granularity::Auto).
//!
//! A message costs both sides a fixed amount, whatever it carries. So it should carry enough work for that not to matter, and
//! no more: items behind each other in one message run one after the other, however many workers there are. The rule
//! aims at [`OVERHEADS`] times the cost of a message. It knows no clocks: it is told how long messages took.
//!
//! * It begins with one item a message, and at most doubles their number each time a message of the present size has come
//!   back ([`Auto::done`]), so that a wrong guess costs no more than what was learnt before it.
//! * Items that take longer than was thought shrink the next message at once.
//! * Towards the end of a source that says how long it is, messages shrink too, so that all workers end together.

/// The work in a message is this many times what the message costs: its share is then 5 %.
const OVERHEADS: u64 = 20;
/// What a message is thought to cost before one has been measured, and within which bounds it is believed: whoever measures
/// may be interrupted.
const OVERHEAD_NS: u64 = 1000;
const OVERHEAD_NS_MIN: u64 = 500;
const OVERHEAD_NS_MAX: u64 = 10_000;
/// No message is made to take longer than this.
const LATENCY_NS_MAX: u64 = 1_000_000;
/// Items of a message at most.
const ITEMS_MAX: usize = 1 << 14;
/// What is left of a source is divided among the workers in at least so many messages for each.
const PARTS: u64 = 2;
/// Where a message of one item takes so many times what is aimed at, only every so many-th message is timed.
const LONG: u64 = 8;
const TIMED_EVERY: u32 = 8;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) struct Auto {
    workers: u64,
    items_max: usize,
    /// Items of the next message.
    size: usize,
    /// Counts the changes of `size`: which size a message was made with.
    step: u32,
    /// How long an item takes, once that is known.
    item_ns: Option<f64>,
    overhead_ns: u64,
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
            step: 0,
            item_ns: None,
            overhead_ns: OVERHEAD_NS,
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

    /// Which size a message that is made at present is of.
    pub(super) fn step(&self) -> u32 {
        self.step
    }

    /// Whether the next message, of one item, may do without being timed.
    pub(super) fn skips_timing(&mut self) -> bool {
        let long = self.item_ns.is_some_and(|ns| ns > (LONG * self.goal_ns()) as f64);
        self.untimed = if long && self.untimed + 1 < TIMED_EVERY { self.untimed + 1 } else { 0 };
        self.untimed != 0
    }

    /// A message has cost so much to send.
    pub(super) fn sent(&mut self, ns: u64) {
        // Both ways.
        let ns = (2 * ns).clamp(OVERHEAD_NS_MIN, OVERHEAD_NS_MAX);
        // What takes longer was interrupted, as a rule.
        self.overhead_ns = if ns < self.overhead_ns { ns } else { self.overhead_ns + (ns - self.overhead_ns) / 64 };
    }

    /// So many items, of a message that was made in this step, have taken so long in all.
    pub(super) fn done(&mut self, step: u32, items: u32, ns: u64) {
        let now = ns.max(1) as f64 / f64::from(items.max(1));
        let item_ns = match self.item_ns {
            Some(known) if now < known => (known + 3.0 * now) / 4.0,
            _ => now,
        };
        self.item_ns = Some(item_ns);
        let goal = (self.goal_ns() as f64 / item_ns).clamp(1.0, self.items_max as f64) as usize;
        if goal < self.size {
            self.set(goal);
        } else if step == self.step && goal > self.size {
            self.set(goal.min(2 * self.size));
        }
    }

    /// An item has been running for so long.
    pub(super) fn is_running(&mut self, ns: u64) {
        if self.item_ns.is_none_or(|known| known < ns as f64) {
            self.done(self.step.wrapping_sub(1), 1, ns);
        }
    }

    fn set(&mut self, size: usize) {
        self.size = size;
        self.step = self.step.wrapping_add(1);
    }

    fn goal_ns(&self) -> u64 {
        (OVERHEADS * self.overhead_ns).min(LATENCY_NS_MAX)
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

    /// F-24, F-25.
    #[test]
    fn it_begins_with_one_and_at_most_doubles() {
        let mut auto = Auto::new(2, None);
        let sizes = run(&mut auto, 20, 10);
        assert_eq!(sizes[..4], [1, 2, 4, 8]);
        assert!(sizes.windows(2).all(|pair| pair[1] <= 2 * pair[0]), "{sizes:?}");
        // 20 overheads of 1 µs.
        assert_eq!(*sizes.last().unwrap(), 2000);
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
        assert!(sizes.ends_with(&[1; 8]), "{sizes:?}");
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
    fn dear_messages_carry_more_and_one_that_was_interrupted_counts_for_little() {
        let mut auto = Auto::new(2, None);
        auto.sent(1_000_000);
        assert!(auto.overhead_ns < 2 * OVERHEAD_NS);
        (0..1000).for_each(|_| auto.sent(3000));
        assert!(auto.overhead_ns > 5000);
        auto.sent(100);
        assert_eq!(auto.overhead_ns, OVERHEAD_NS_MIN);
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
    fn a_window_bounds_messages() {
        let mut auto = Auto::new(2, Some(40));
        assert_eq!(run(&mut auto, 20, 10).pop(), Some(10));
        assert_eq!(Auto::new(8, Some(1)).size(None), 1);
    }
}
