//! The file this library came from, and other copies of it in the process.
//!
//! A program may link the system's library while its Python loads the one of
//! a wheel. Both work, but know nothing of each other: a handle of one is
//! none of the other, and ranks of their loopback transports never meet. The
//! loader keeps silent about it, so we do not.

use std::ffi::{CStr, CString, c_int, c_void};
use std::path::Path;
use std::sync::{Once, OnceLock};

/// Something that lies in this copy and in no other.
static HERE: u8 = 0;

/// A number that no other copy in this process has.
pub(super) fn own_number() -> u64 {
    // Spread over the word, so that it changes more than the low bits.
    (&raw const HERE as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The file this copy was loaded from; that of the program if it was linked
/// statically, and empty where nobody knows.
pub(super) fn own_file() -> &'static CStr {
    static FILE: OnceLock<CString> = OnceLock::new();
    FILE.get_or_init(|| {
        let mut info = libc::Dl_info {
            dli_fname: std::ptr::null(),
            dli_fbase: std::ptr::null_mut(),
            dli_sname: std::ptr::null(),
            dli_saddr: std::ptr::null_mut(),
        };
        let here: *const c_void = (&raw const HERE).cast();
        // SAFETY: the address is ours and `info` is exclusive for the call.
        let found = unsafe { libc::dladdr(here, &raw mut info) };
        if found == 0 || info.dli_fname.is_null() {
            return CString::default();
        }
        // SAFETY: dladdr gives the C string of an object that stays loaded.
        unsafe { CStr::from_ptr(info.dli_fname) }.to_owned()
    })
}

/// Other files of ours in this process; its path is all that is known of one.
fn other_files() -> Vec<String> {
    let mut files: Vec<String> = Vec::new();
    // SAFETY: `visit` matches the callback type and `files` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut files).cast()) };
    let own = own_file().to_string_lossy().into_owned();
    files.retain(|f| !is_same_file(f, &own));
    files
}

unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _bytes: usize,
    files: *mut c_void,
) -> c_int {
    // SAFETY: the loader gives a record that lives through the call.
    let name = unsafe { (*info).dlpi_name };
    if !name.is_null() {
        // SAFETY: as above; the name ends with a NUL.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let base = name.rsplit('/').next().unwrap_or_default();
        if base.starts_with("libweightsync.so") {
            // SAFETY: other_files passed its list, and waits.
            unsafe { &mut *files.cast::<Vec<String>>() }.push(name.into_owned());
        }
    }
    0
}

fn is_same_file(a: &str, b: &str) -> bool {
    let whole = |path: &str| Path::new(path).canonicalize();
    a == b || matches!((whole(a), whole(b)), (Ok(a), Ok(b)) if a == b)
}

/// What is to be said if this copy is not alone.
pub(super) fn others() -> Option<String> {
    let other = other_files().into_iter().next()?;
    Some(format!(
        "two copies of the library are loaded: this one is {}, the other {other}; let the \
         program and Python load one file (WSYNC_LIBRARY={other} for Python)",
        own_file().to_string_lossy()
    ))
}

/// Says so in the log, once.
pub(super) fn warn_of_others() {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        if let Some(text) = others() {
            crate::log::line(crate::log::Level::Warn, format_args!("{text}"));
        }
    });
}
