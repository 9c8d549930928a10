//! What happens to workers, as lines of the log.

use super::core::Core;
use crate::error::TaskError;

pub(crate) fn info(core: &Core, text: std::fmt::Arguments<'_>) {
    crate::hooks::info(format_args!("{}: {text}", core.name));
}

/// Nobody takes this failure. A panic has been printed where it happened, and is not printed again.
pub(crate) fn detached(core: &Core, failure: &TaskError) {
    if !(failure.is_panicked() && crate::hooks::errors_join_panics()) {
        error(core, format_args!("a detached task failed: {failure}"));
    }
}

pub(crate) fn error(core: &Core, text: std::fmt::Arguments<'_>) {
    crate::hooks::error(format_args!("{}: {text}", core.name));
}
