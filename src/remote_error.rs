//! [`RemoteError`]: any error, in a form that travels.

use std::any::type_name;
use std::error::Error;
use std::fmt;
use std::iter::successors;

use crate::Payload;
use crate::error::BoxError;

/// How many errors of a chain are kept. A chain may be endless, and every link is one of the 256 levels that an archive
/// may nest.
const LINKS_MAX: usize = 64;

/// Any error, in a form that travels: what it says, what each of its sources says, and the name of its type.
///
/// Made of every `std::error::Error`, by `?` too, so that a task can fail in whatever way its libraries do:
///
/// ```
/// use forkring::{Pool, RemoteError};
///
/// fn measure(path: String) -> Result<u64, RemoteError> {
///     let text = std::fs::read_to_string(&path)?; // an io::Error
///     Ok(text.trim().parse()?) // a ParseIntError
/// }
///
/// let pool = Pool::new(1)?;
/// let error = pool.submit(measure, &"/no/such/file".to_owned()).wait()?.unwrap_err();
/// assert_eq!(error.message(), "No such file or directory (os error 2)");
/// assert_eq!(error.type_name(), "std::io::error::Error");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// `Display` shows the outermost message, with `{:#}` the whole chain in one line; `Debug` shows the chain, one message
/// a line. The error itself, whose type only its own process may know how to make, does not travel: who has to tell
/// kinds of errors apart returns an enum of its own with [`#[derive(Payload)]`](derive@crate::Payload).
///
/// As every error converts into it, it can be no `std::error::Error` itself, but it converts into one: by `?` in a
/// function that returns a `Box<dyn Error>`, by [`into_error`](Self::into_error), [`as_error`](Self::as_error).
///
/// ```
/// # use forkring::{Pool, RemoteError};
/// fn port(pool: &Pool, text: &str) -> Result<u16, Box<dyn std::error::Error>> {
///     let parse = |text: String| -> Result<u16, RemoteError> {
///         text.parse().map_err(|error| RemoteError::from(error).context(format_args!("{text:?} is no port")))
///     };
///     Ok(pool.submit(parse, &text.to_owned()).wait()??)
/// }
///
/// let pool = Pool::new(1)?;
/// assert_eq!(port(&pool, "80").unwrap(), 80);
/// let error = port(&pool, "https").unwrap_err();
/// assert_eq!(error.to_string(), r#""https" is no port"#);
/// assert_eq!(error.source().unwrap().to_string(), "invalid digit found in string");
/// # Ok::<(), forkring::Error>(())
/// ```
#[derive(Clone, Payload)]
#[payload(crate = crate)]
pub struct RemoteError {
    top: Box<Link>,
}

/// One error of a chain.
#[derive(Clone, Payload)]
#[payload(crate = crate)]
struct Link {
    message: String,
    /// Empty where it is not known: of a `dyn Error` there is no asking.
    type_name: String,
    source: Option<Box<Link>>,
}

impl RemoteError {
    /// An error that is nothing but a message.
    pub fn msg(message: impl fmt::Display) -> Self {
        Self::link(message.to_string(), "", None)
    }

    /// From an error behind a pointer, for which `?` does not work: the `&**e` of a `Box<dyn Error>`.
    ///
    /// ```
    /// use forkring::RemoteError;
    ///
    /// fn work() -> Result<(), Box<dyn std::error::Error>> {
    ///     Err("too late".into())
    /// }
    /// let error = work().map_err(|e| RemoteError::new(&*e)).unwrap_err();
    /// assert_eq!(error.to_string(), "too late");
    /// ```
    pub fn new(error: &dyn Error) -> Self {
        Self::named(error, "")
    }

    /// This error as the source of another one, which says `message`.
    #[must_use]
    pub fn context(self, message: impl fmt::Display) -> Self {
        let mut error = Self::link(message.to_string(), "", Some(self.top));
        error.shorten();
        error
    }

    /// What the error says, without its sources.
    pub fn message(&self) -> &str {
        &self.top.message
    }

    /// What the errors of the chain say, from the outermost to the root cause: at least one, and no more than 64.
    pub fn chain(&self) -> impl Iterator<Item = &str> {
        self.top.chain().map(|link| link.message.as_str())
    }

    /// What the last error of the chain says.
    pub fn root_cause(&self) -> &str {
        self.chain().last().unwrap_or_default()
    }

    /// The type of the error that this was made of, as [`std::any::type_name`] spells it: for people to read. Empty if
    /// it was made of a message or a `dyn Error`.
    pub fn type_name(&self) -> &str {
        self.top.chain().map(|link| link.type_name.as_str()).find(|name| !name.is_empty()).unwrap_or_default()
    }

    /// The same as an error, with its sources.
    pub fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.top
    }

    /// The same as an error, with its sources.
    pub fn into_error(self) -> BoxError {
        self.top
    }

    fn link(message: String, type_name: &str, source: Option<Box<Link>>) -> Self {
        Self { top: Box::new(Link { message, type_name: type_name.to_owned(), source }) }
    }

    fn named(error: &dyn Error, type_name: &str) -> Self {
        let mut sources = Vec::new();
        let mut next = error.source();
        while let Some(source) = next.filter(|_| sources.len() + 1 < LINKS_MAX) {
            sources.push(source.to_string());
            next = source.source();
        }
        let unnamed = |source, message| Some(Box::new(Link { message, type_name: String::new(), source }));
        Self::link(error.to_string(), type_name, sources.into_iter().rev().fold(None, unnamed))
    }

    /// Drops what is beyond the longest chain there may be.
    fn shorten(&mut self) {
        let mut last = &mut self.top;
        for _ in 1..LINKS_MAX {
            match &mut last.source {
                Some(source) => last = source,
                None => return,
            }
        }
        last.source = None;
    }
}

impl<E: Error> From<E> for RemoteError {
    fn from(error: E) -> Self {
        Self::named(&error, type_name::<E>())
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.top, f)
    }
}

impl fmt::Debug for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.top, f)
    }
}

impl AsRef<dyn Error + Send + Sync> for RemoteError {
    fn as_ref(&self) -> &(dyn Error + Send + Sync + 'static) {
        self.as_error()
    }
}

impl From<RemoteError> for Box<dyn Error + Send + Sync> {
    fn from(error: RemoteError) -> Self {
        error.into_error()
    }
}

impl From<RemoteError> for Box<dyn Error> {
    fn from(error: RemoteError) -> Self {
        error.into_error()
    }
}

impl Link {
    fn chain(&self) -> impl Iterator<Item = &Link> {
        successors(Some(self), |link| link.source.as_deref())
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if f.alternate() {
            self.chain().skip(1).try_for_each(|link| write!(f, ": {}", link.message))?;
        }
        Ok(())
    }
}

/// For people: it is what `main` and `unwrap` show.
impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.type_name.is_empty() {
            write!(f, " ({})", self.type_name)?;
        }
        self.chain().skip(1).try_for_each(|link| write!(f, "\n  caused by: {}", link.message))
    }
}

impl Error for Link {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|link| link as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error whose source is itself.
    #[derive(Debug)]
    struct Endless;

    impl fmt::Display for Endless {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("again")
        }
    }

    impl Error for Endless {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self)
        }
    }

    #[test]
    fn a_chain_is_cut_where_it_is_made_and_where_it_grows() {
        let mut error = RemoteError::from(Endless);
        assert_eq!(error.chain().count(), LINKS_MAX);
        for n in 0..LINKS_MAX {
            error = error.context(n);
            assert_eq!(error.chain().count(), LINKS_MAX);
        }
        assert_eq!(error.root_cause(), "0");
        assert_eq!(error.type_name(), "");
    }

    #[test]
    fn what_is_shown() {
        let error =
            RemoteError::from("x".parse::<u8>().unwrap_err()).context("no number").context("no line 7");
        assert_eq!(error.to_string(), "no line 7");
        assert_eq!(format!("{error:#}"), "no line 7: no number: invalid digit found in string");
        let shown = "no line 7\n  caused by: no number\n  caused by: invalid digit found in string";
        assert_eq!(format!("{error:?}"), shown);
        assert_eq!(format!("{:?}", error.as_error()), shown);
        assert_eq!(error.type_name(), "core::num::error::ParseIntError");
        assert_eq!(error.root_cause(), "invalid digit found in string");
        let error: Box<dyn Error> = error.into();
        let (mut source, mut says) = (Some(&*error), Vec::new());
        while let Some(error) = source {
            says.push(error.to_string());
            source = error.source();
        }
        assert_eq!(says, ["no line 7", "no number", "invalid digit found in string"]);
    }

    #[test]
    fn an_error_of_one_word() {
        assert_eq!(size_of::<Result<(), RemoteError>>(), size_of::<usize>());
    }
}
