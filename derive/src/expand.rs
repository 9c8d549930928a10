//! From the user's item to what is put out for it.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Error, Field, Path, Result, parse_quote};

use crate::rkyv_args::{has_argument, is_rkyv, mentions};

/// Which of the two traits is derived.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Payload,
    Input,
}

pub(crate) fn expand(mut item: DeriveInput, kind: Kind) -> Result<TokenStream> {
    match &item.data {
        Data::Union(data) => {
            let message =
                "a union cannot travel: nothing tells which of its fields holds a value; use an enum";
            return Err(Error::new(data.union_token.span(), message));
        }
        Data::Enum(data) if data.variants.is_empty() => {
            let message = "an enum without variants has no value that could travel";
            return Err(Error::new(item.ident.span(), message));
        }
        Data::Enum(_) | Data::Struct(_) => {}
    }
    let forkring = crate_path(&item.attrs)?;
    let recursive = omit_own_bounds(&mut item)?;
    let checks = checks(&item, kind, &forkring);

    keep_rkyv_attributes(&mut item);
    let rkyv = quote!(#forkring::rkyv);
    let arguments = arguments(&item.attrs, recursive, &rkyv);
    let deserialize = (kind == Kind::Payload).then(|| quote!(#rkyv::Deserialize));
    Ok(quote! {
        #checks
        #[derive(#rkyv::Archive, #rkyv::Serialize, #deserialize)]
        #[rkyv(#(#arguments),*)]
        #[#forkring::__derive::consume]
        #item
    })
}

/// How to get at forkring: `#[payload(crate = path)]`, or the name that it has where nobody renamed it.
fn crate_path(attributes: &[Attribute]) -> Result<Path> {
    let mut path = None;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("payload")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("crate") {
                let message =
                    "unknown argument; there is `crate = path`, and `#[rkyv(…)]` for what rkyv takes";
                return Err(meta.error(message));
            }
            path = Some(meta.value()?.call(Path::parse_mod_style)?);
            Ok(())
        })?;
    }
    Ok(path.unwrap_or_else(|| parse_quote!(::forkring)))
}

/// All fields, whatever the shape.
fn fields(data: &Data) -> impl Iterator<Item = &Field> {
    let (of_struct, of_enum) = match data {
        Data::Struct(data) => (Some(&data.fields), None),
        Data::Enum(data) => (None, Some(data.variants.iter().map(|variant| &variant.fields))),
        Data::Union(_) => (None, None),
    };
    of_struct.into_iter().chain(of_enum.into_iter().flatten()).flatten()
}

fn fields_mut(data: &mut Data) -> impl Iterator<Item = &mut Field> {
    let (of_struct, of_enum) = match data {
        Data::Struct(data) => (Some(&mut data.fields), None),
        Data::Enum(data) => (None, Some(data.variants.iter_mut().map(|variant| &mut variant.fields))),
        Data::Union(_) => (None, None),
    };
    of_struct.into_iter().chain(of_enum.into_iter().flatten()).flatten()
}

/// Has rkyv leave out the bounds of fields that lead back to the item, which would lead to themselves. Says whether
/// there are any such fields, by this or by the user's hand.
fn omit_own_bounds(item: &mut DeriveInput) -> Result<bool> {
    let name = item.ident.clone();
    let mut any = false;
    if let Data::Enum(data) = &item.data {
        data.variants.iter().try_for_each(|variant| refuse_payload_attribute(&variant.attrs))?;
    }
    for field in fields_mut(&mut item.data) {
        refuse_payload_attribute(&field.attrs)?;
        let said = has_argument(&field.attrs, "omit_bounds");
        if !said && mentions(field.ty.to_token_stream(), &name) {
            field.attrs.push(parse_quote!(#[rkyv(omit_bounds)]));
            any = true;
        }
        any |= said;
    }
    Ok(any)
}

fn refuse_payload_attribute(attributes: &[Attribute]) -> Result<()> {
    match attributes.iter().find(|attribute| attribute.path().is_ident("payload")) {
        None => Ok(()),
        Some(misplaced) => {
            let message = "`#[payload(…)]` belongs to the type; variants and fields take `#[rkyv(…)]`";
            Err(Error::new(misplaced.span(), message))
        }
    }
}

/// The arguments that rkyv is given besides the user's: where it is and, where bounds were left out, what all
/// serializers, deserializers and validators of forkring can do. What the user says counts.
fn arguments(said: &[Attribute], recursive: bool, rkyv: &TokenStream) -> Vec<TokenStream> {
    let mut arguments = Vec::new();
    let mut add = |name, argument| {
        if !has_argument(said, name) {
            arguments.push(argument);
        }
    };
    add("crate", quote!(crate = #rkyv));
    if recursive {
        let source = quote!(#rkyv::rancor::Source);
        let (ser, validation) = (quote!(#rkyv::ser), quote!(#rkyv::validation));
        add(
            "serialize_bounds",
            quote!(serialize_bounds(__S: #ser::Writer + #ser::Allocator + #ser::Sharing, __S::Error: #source)),
        );
        add("deserialize_bounds", quote!(deserialize_bounds(__D: #rkyv::de::Pooling, __D::Error: #source)));
        add(
            "bytecheck",
            quote!(bytecheck(bounds(
                __C: #validation::ArchiveContext + #validation::SharedContext,
                <__C as #rkyv::rancor::Fallible>::Error: #source,
            ))),
        );
    }
    arguments
}

/// Leaves what rkyv reads: every other attribute has done its work on the user's own item.
fn keep_rkyv_attributes(item: &mut DeriveInput) {
    item.attrs.retain(is_rkyv);
    if let Data::Enum(data) = &mut item.data {
        data.variants.iter_mut().for_each(|variant| variant.attrs.retain(is_rkyv));
    }
    fields_mut(&mut item.data).for_each(|field| field.attrs.retain(is_rkyv));
}

/// Asks of the fields what is asked of the item, so that the first error names forkring's trait, says what to do, and
/// points at the field: a signature is looked at before bodies are, and before what comes later in the source. Left out
/// where it depends on parameters, or on what the user says to rkyv.
fn checks(item: &DeriveInput, kind: Kind, forkring: &Path) -> Option<TokenStream> {
    if !item.generics.params.is_empty() || has_argument(&item.attrs, "remote") {
        return None;
    }
    let field_of = match kind {
        Kind::Payload => quote!(FieldOfPayload),
        Kind::Input => quote!(FieldOfInput),
    };
    let plain = |field: &&Field| !field.attrs.iter().any(is_rkyv);
    let fields = fields(&item.data).filter(plain).map(|Field { ty, .. }| {
        let at = ty.span().resolved_at(Span::call_site());
        quote_spanned!(at=> _: FieldOf<#ty>)
    });
    Some(quote! {
        const _: () = {
            #[allow(unused_imports)]
            use #forkring::__derive::#field_of as FieldOf;
            #[allow(dead_code, clippy::all)]
            fn fields_travel(#(#fields),*) {}
        };
    })
}
