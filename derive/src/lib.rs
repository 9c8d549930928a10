//! The derive macros of [forkring](https://docs.rs/forkring), where they are documented: use them from there.
//!
//! A derive macro cannot call another crate's. What these put out is therefore the item once more, with rkyv's derives
//! on it and, below them, the attribute [`consume`], which makes nothing of it:
//!
//! ```text
//! #[derive(::forkring::rkyv::Archive, ::forkring::rkyv::Serialize, ::forkring::rkyv::Deserialize)]
//! #[rkyv(crate = ::forkring::rkyv)]
//! #[::forkring::__derive::consume]
//! struct Job { … }
//! ```
//!
//! The compiler hands the item to rkyv's macros, whose implementations are for the item that the user wrote, and then
//! to `consume`, so that it is not defined twice.

mod expand;
mod rkyv_args;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

use crate::expand::{Kind, expand};

#[expect(missing_docs, reason = "documented where forkring re-exports it")]
#[proc_macro_derive(Payload, attributes(payload, rkyv))]
pub fn derive_payload(item: TokenStream) -> TokenStream {
    derive(parse_macro_input!(item as DeriveInput), Kind::Payload)
}

#[expect(missing_docs, reason = "documented where forkring re-exports it")]
#[proc_macro_derive(Input, attributes(payload, rkyv))]
pub fn derive_input(item: TokenStream) -> TokenStream {
    derive(parse_macro_input!(item as DeriveInput), Kind::Input)
}

fn derive(item: DeriveInput, kind: Kind) -> TokenStream {
    expand(item, kind).unwrap_or_else(|error| error.into_compile_error()).into()
}

/// Makes nothing of the item that it stands on.
#[doc(hidden)]
#[proc_macro_attribute]
pub fn consume(_: TokenStream, _: TokenStream) -> TokenStream {
    TokenStream::new()
}
