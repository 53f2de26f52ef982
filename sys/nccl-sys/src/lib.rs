//! Bindings to NCCL, found and loaded at run time, never linked.
//!
//! ```text
//!   Search ──► load() ──► Library { version, path, found, api }
//!                                                          │
//!        api.ncclSend(..)  always there ◄──────────────────┤
//!        api.ncclCommShrink: Option<..>  since NCCL 2.27 ◄─┘
//! ```
//!
//! A program that links this crate builds and starts on a machine without NCCL;
//! what is missing is a [`LoadError`] when it is asked for, never a panic. What
//! NCCL 2.18 has is required, what came later is optional. Written by hand from
//! the public header and held to it by assertions; `nccl.h` itself is not part
//! of the crate. NCCL's own names are kept, so that its documentation applies.
//!
//! A loaded copy is never closed: NCCL's threads, and other users of the same
//! copy, may run on in it.

#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals)]

mod config;
mod image;
mod load;
mod table;
mod types;

pub use config::{CONFIG_FIELDS, ConfigField, ncclConfig_t};
pub use image::{Image, images};
pub use load::{Asked, Found, Library, LoadError, Search, load};
pub use table::{Api, OPTIONAL, REQUIRED, Symbol};
pub use types::*;
