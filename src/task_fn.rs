//! [`TaskFn`]: what a task function must be besides a function.

/// A task function's own bounds: `Copy + Send + 'static`, which every closure has that captures nothing.
///
/// Workers have a program's code, but not its present memory, so only the name of a function travels. One that captures
/// is refused, whether it is `Copy` or not, and the compiler's message names the ways out: pass the data as the argument,
/// put it into the pool's [`env`](crate::Builder::env), or make the pool around the closure, with
/// [`Builder::bind`](crate::Builder::bind) or [`Builder::iter_stream`](crate::Builder::iter_stream).
///
/// A `fn` pointer, to which `if` and `match` turn two closures, is refused as well: it is a value, not a name. Submit in each branch.
///
/// ```compile_fail,E0277
/// let pool = forkring::Pool::new(1).unwrap();
/// let names = vec!["a".to_owned(), "b".to_owned()];
/// let _ = pool.submit(move |n: usize| names[n].clone(), &0); // captures `names`, which is no `Copy`
/// ```
///
/// Implemented for every such type; there is nothing to implement by hand.
#[diagnostic::on_unimplemented(
    message = "a task function captures nothing, and this one does",
    label = "not `Copy + Send + 'static`, as no closure is that captures values or borrows",
    note = "workers have the program's code but not its present memory: pass the data as the argument, put it into the \
            pool's `env`, or make the pool around the closure with `Builder::bind` or `Builder::iter_stream`"
)]
pub trait TaskFn: Copy + Send + 'static {}

#[diagnostic::do_not_recommend]
impl<F: Copy + Send + 'static> TaskFn for F {}
