//! The environment variables of the library, for tools and bug reports.

use super::args::plain_struct;
use super::guard;
use super::out::StructOut;
use super::types::{wsync_error, wsync_status};
use crate::env;
use crate::error::{Error, Status};
use std::ffi::{CString, c_char};
use std::sync::OnceLock;

/// One environment variable. All text is static.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_env_info {
    /// sizeof(wsync_env_info), set by the caller.
    pub struct_size: usize,
    /// Its name, such as "WSYNC_LOG".
    pub name: *const c_char,
    /// What holds if it is not set.
    pub default_value: *const c_char,
    /// What holds in this process.
    pub value: *const c_char,
    /// One sentence on what it does.
    pub meaning: *const c_char,
    /// 1 if it is set, else 0.
    pub is_set: u32,
    /// 0.
    pub reserved: u32,
}

plain_struct!(wsync_env_info, 48, "wsync_env_info");

/// The text of one variable, kept for ever.
struct Row {
    name: CString,
    default: CString,
    value: CString,
    meaning: CString,
    is_set: bool,
}

fn rows() -> &'static [Row] {
    static ROWS: OnceLock<Vec<Row>> = OnceLock::new();
    let text = |s: &str| CString::new(s).unwrap_or_default();
    ROWS.get_or_init(|| {
        let of = |v: &env::Effective| Row {
            name: text(v.variable.name),
            default: text(v.variable.default),
            value: text(&v.value),
            meaning: text(v.variable.meaning),
            is_set: v.is_set,
        };
        env::effective().iter().map(of).collect()
    })
}

/// Number of environment variables that the library knows.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub extern "C" fn wsync_env_count() -> usize {
    rows().len()
}

/// Name, default, effective value and meaning of variable `index`, which is
/// less than wsync_env_count(). The environment is read once, at the first
/// call that needs it.
///
/// Errors: NOT_FOUND for an index that is too large.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_env_at(
    index: usize,
    out_info: *mut wsync_env_info,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a struct whose struct_size is set.
        let out = unsafe { StructOut::new(out_info)? };
        let row = rows().get(index).ok_or_else(|| {
            Error::new(
                Status::NotFound,
                format!(
                    "there are {} variables; index {index} is none",
                    rows().len()
                ),
            )
        })?;
        out.write(&wsync_env_info {
            struct_size: 0,
            name: row.name.as_ptr(),
            default_value: row.default.as_ptr(),
            value: row.value.as_ptr(),
            meaning: row.meaning.as_ptr(),
            is_set: row.is_set.into(),
            reserved: 0,
        });
        Ok(())
    })
}
