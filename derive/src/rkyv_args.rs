//! What the user says to rkyv: read as far as it matters here, and passed on untouched.

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::{Attribute, Meta};

/// Whether an attribute is `#[rkyv(…)]`.
pub(crate) fn is_rkyv(attribute: &Attribute) -> bool {
    attribute.path().is_ident("rkyv")
}

/// Whether one of the `#[rkyv(…)]` among `attributes` has the argument `name`, in any of its forms.
pub(crate) fn has_argument(attributes: &[Attribute], name: &str) -> bool {
    attributes.iter().filter(|attribute| is_rkyv(attribute)).any(|attribute| match &attribute.meta {
        Meta::List(list) => names(list.tokens.clone()).any(|found| found == name),
        _ => false,
    })
}

/// What stands at the beginning and behind each comma. Arguments may be no proper metas (`bounds(T: A)`), hence tokens.
fn names(arguments: TokenStream) -> impl Iterator<Item = Ident> {
    let mut at_start = true;
    arguments.into_iter().filter_map(move |token| {
        let starts =
            std::mem::replace(&mut at_start, matches!(&token, TokenTree::Punct(p) if p.as_char() == ','));
        match token {
            TokenTree::Ident(name) if starts => Some(name),
            _ => None,
        }
    })
}

/// Whether a type leads back to the item of that `name`: by the bare name, by `Self`, or by a path within its crate. A
/// path from elsewhere (`std::io::Error` in an `Error`) is another type of the same name.
pub(crate) fn mentions(ty: TokenStream, name: &Ident) -> bool {
    let (mut root, mut colons) = (None, 0);
    for token in ty {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == ':' => {
                colons += 1;
                continue;
            }
            TokenTree::Ident(ident) => {
                let goes_on = colons == 2;
                if !goes_on || root.is_none() {
                    let local =
                        ident == *name || ["Self", "crate", "self", "super"].iter().any(|own| ident == own);
                    root = Some(local && !goes_on);
                }
                if root == Some(true) && (ident == *name || ident == "Self") {
                    return true;
                }
            }
            TokenTree::Group(group) => {
                if mentions(group.stream(), name) {
                    return true;
                }
                root = None;
            }
            _ => root = None,
        }
        colons = 0;
    }
    false
}
