//! [`Given`]: what a builder may be given, by the kind of its workers.

#![allow(unsafe_code, reason = "a promise to `life::seed`, kept by the bounds of two implementations")]

/// What a [`Builder`](crate::Builder) may be given whose workers inherit it by fork: anything, since each has a copy.
#[derive(Debug)]
pub struct Inherited(());

/// What a [`Builder`](crate::Builder) may be given whose workers may be threads: what is `Send` and `Sync`, since they
/// share it. See [`Builder::in_process`](crate::Builder::in_process).
#[derive(Debug)]
pub struct Shared(());

/// What a builder of kind `M` may be given: for [`Inherited`] every type is that, for [`Shared`] every one that is
/// `Send + Sync`. There is nothing to implement.
///
/// ```compile_fail,E0277
/// use std::cell::Cell;
/// // Threads would count at the same time.
/// let pool = forkring::Pool::builder().in_process().env(Cell::new(0)).build();
/// ```
///
/// What workers make for themselves is not shared, and may be anything: states, arguments, results.
///
/// A function that configures builders of either kind says so:
///
/// ```
/// use forkring::{Builder, Error, Given, NoService, Pool};
///
/// fn words<M>(builder: Builder<(), NoService, (), M>) -> Result<Pool<Vec<String>>, Error>
/// where
///     Vec<String>: Given<M>,
/// {
///     builder.workers(1).env(vec!["one".to_owned(), "two".to_owned()]).build()
/// }
///
/// assert_eq!(words(Pool::builder())?.workers(), 1);
/// assert_eq!(words(Pool::builder().in_process())?.workers(), 1);
/// # Ok::<(), Error>(())
/// ```
///
/// # Safety
///
/// What is `Given<Shared>` is `Send` and `Sync`.
#[diagnostic::on_unimplemented(
    message = "workers that are threads would share this, and it is not `Send + Sync`",
    label = "not `Send + Sync`",
    note = "`Builder::in_process` runs the workers on threads of this process; what is made by each worker for itself, in \
            `state`, need not be `Send` or `Sync`"
)]
pub unsafe trait Given<M> {}

// SAFETY: it is not `Given<Shared>`.
unsafe impl<T: ?Sized> Given<Inherited> for T {}

// SAFETY: by its bounds.
#[diagnostic::do_not_recommend]
unsafe impl<T: ?Sized + Send + Sync> Given<Shared> for T {}
