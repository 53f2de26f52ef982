//! Where log lines go.

use super::args;
use super::guard;
use super::types::{wsync_error, wsync_status};
use crate::log::{self, Level};
use std::ffi::{CString, c_char, c_void};

/// How much is logged. Each level includes the ones before.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_log_level {
    WSYNC_LOG_LEVEL_OFF = 0,
    /// Something failed.
    WSYNC_LOG_LEVEL_ERROR = 1,
    /// Something is odd, and goes on.
    WSYNC_LOG_LEVEL_WARN = 2,
    /// What happens once in a session.
    WSYNC_LOG_LEVEL_INFO = 3,
    /// What happens once in a request, and more.
    WSYNC_LOG_LEVEL_DEBUG = 4,
}

/// Takes one log line: UTF-8, without a line break, valid during the call.
///
/// Called from any thread, several at a time. It must not call the library,
/// must not unwind and must not longjmp.
///
/// Since: 0.1
pub type wsync_log_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, level: u32, message: *const c_char)>;

/// What the caller gave us to call.
struct Callback {
    function: unsafe extern "C" fn(*mut c_void, u32, *const c_char),
    user: *mut c_void,
}

// SAFETY: the header asks for a function that any thread may call with `user`.
unsafe impl Send for Callback {}
// SAFETY: likewise, several at a time.
unsafe impl Sync for Callback {}

impl Callback {
    fn call(&self, level: Level, message: &str) {
        let Ok(message) = CString::new(message.replace('\0', " ")) else {
            return;
        };
        // SAFETY: the header asks for a function that takes these and does not
        // unwind; `user` is valid until the function is replaced.
        unsafe { (self.function)(self.user, level as u32, message.as_ptr()) };
    }
}

/// Sends log lines up to `max_level`, a wsync_log_level, to `function`, which
/// is called with `user`. A NULL function restores the default: standard error
/// if the environment variable WSYNC_LOG is set, nowhere otherwise. Where
/// WSYNC_LOG is set, its level holds instead of `max_level`.
///
/// When this returns, the function that was set before is not running and will
/// never be called again, so that its `user` may go.
///
/// Errors: UNSUPPORTED for an unknown level; BUSY if called by a log function.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_set_log(
    function: wsync_log_fn,
    user: *mut c_void,
    max_level: u32,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        let level =
            Level::from_code(max_level).ok_or_else(|| args::unknown("max_level", max_level))?;
        let sink = function.map(|function| {
            let callback = Callback { function, user };
            let sink: log::Sink =
                Box::new(move |level: Level, message: &str| callback.call(level, message));
            sink
        });
        log::set(sink, level)
    })
}
