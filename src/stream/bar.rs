//! Feature `indicatif`: the progress of a stream as a bar.

use indicatif::ProgressBar;

use super::progress::Progress;

/// Draws a stream's progress on a bar of the `indicatif` crate: to be given to `on_progress`.
///
/// The bar gets its length when the stream begins, if the source says how many items there are; without, it counts. Failed items
/// are part of the position, and their number is the bar's message, once there are any. At the end the bar is
/// [finished](ProgressBar::finish); a stream that ends early [abandons](ProgressBar::abandon) it where it is. How it looks, and where it
/// is drawn, is the bar's own: see its `with_style`. It does not draw where nobody looks (not on a terminal).
///
/// ```
/// use indicatif::{ProgressBar, ProgressStyle};
///
/// let pool = forkring::Pool::new(2)?;
/// let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {msg}")?;
/// let bar = ProgressBar::new(0).with_style(style);
/// let map = pool.map(0..1000_u64, |n: u64| n * n).on_progress(forkring::progress_bar(&bar));
/// assert_eq!(map.map(Result::unwrap).sum::<u64>(), 332_833_500);
/// assert!(bar.is_finished() && bar.position() == 1000 && bar.length() == Some(1000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn progress_bar(bar: &ProgressBar) -> impl FnMut(Progress) + use<> {
    let bar = bar.clone();
    move |progress| {
        match progress.total {
            Some(total) => bar.set_length(total),
            None => bar.unset_length(),
        }
        bar.set_position(progress.done);
        if progress.failed > 0 {
            bar.set_message(format!("{} failed", progress.failed));
        }
        if progress.is_last {
            match progress.total {
                Some(total) if progress.done < total => bar.abandon(),
                _ => bar.finish(),
            }
        }
    }
}
