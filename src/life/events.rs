//! What happens to workers, as lines of the log.

use super::core::Core;

pub(crate) fn info(core: &Core, text: std::fmt::Arguments<'_>) {
    crate::hooks::info(format_args!("{}: {text}", core.name));
}

pub(crate) fn error(core: &Core, text: std::fmt::Arguments<'_>) {
    crate::hooks::error(format_args!("{}: {text}", core.name));
}
