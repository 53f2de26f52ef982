//! The C boundary: parse, call, translate; nothing else.
//!
//! Every function is one expression inside `guard`: arguments are checked
//! and borrowed by `args`, handles entered by `handle`, one method of the
//! core is called, and results leave through `out`. Outputs are checked
//! before anything else and written last, so a failure leaves them alone.
//!
//! What is true for all of them, and stands at the top of the header:
//!
//! * handles are opaque, and children keep their parents alive;
//! * `const` handles take any number of calls at a time, others one;
//! * structs start with `struct_size`, and all-zero means defaults;
//! * nothing that is passed in is kept, but for bound buffers;
//! * no panic leaves: it becomes `WSYNC_ERR_INTERNAL` and poisons the handle.

#![allow(non_camel_case_types, reason = "C sees these names")]
#![allow(
    clippy::missing_safety_doc,
    clippy::too_many_arguments,
    rustdoc::broken_intra_doc_links,
    reason = "comments here become the header, whose rules are the safety contract"
)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod args;
mod buffers;
mod copies;
pub mod env;
mod handle;
pub mod layout;
pub mod log;
pub mod mapping;
pub mod nccl;
mod out;
pub mod plan;
pub mod request;
pub mod session;
pub mod topology;
pub mod transport;
pub mod types;
pub mod version;
pub mod views;

use crate::error::{Error, Status};
use crate::log::{Level, line};
use out::ErrorRecord;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use types::{wsync_error, wsync_status};

/// Runs the body of a function: failures and panics become a status and fill
/// the caller's record.
fn guard(err: *mut wsync_error, body: impl FnOnce() -> Result<(), Error>) -> wsync_status {
    guard_status(err, || body().map(|()| Status::Ok))
}

/// Like [`guard`], for functions that may also answer `IN_PROGRESS`.
fn guard_status(
    err: *mut wsync_error,
    body: impl FnOnce() -> Result<Status, Error>,
) -> wsync_status {
    // SAFETY: the header asks for NULL or a writable `wsync_error` whose
    // struct_size is set; nobody else uses it during the call.
    let mut record = match unsafe { ErrorRecord::new(err) } {
        Ok(record) => record,
        Err(e) => return e.status.into(),
    };
    // What a panic may leave half-done is behind a handle, and poisoned.
    let result = catch_unwind(AssertUnwindSafe(body));
    let error = match result {
        Ok(Ok(status)) => return status.into(),
        Ok(Err(e)) => e,
        Err(panic) => Error::internal(format!("a panic inside the library: {}", words(&*panic))),
    };
    record.write(&error);
    // Failures are the caller's to report; broken invariants are ours.
    let level = match error.status {
        Status::Internal => Level::Error,
        _ => Level::Debug,
    };
    line(
        level,
        format_args!("status {} {error}", error.status.name()),
    );
    error.status.into()
}

/// Runs the body of a getter that cannot fail; a panic yields `neutral`.
fn guard_value<T>(neutral: T, body: impl FnOnce() -> Option<T>) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Some(value)) => value,
        Ok(None) | Err(_) => neutral,
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    if let Some(s) = panic.downcast_ref::<&str>() {
        return s;
    }
    panic.downcast_ref::<String>().map_or("no words", |s| s)
}

/// `count` as the `u32` that a getter returns.
fn count_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
