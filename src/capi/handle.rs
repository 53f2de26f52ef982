//! Opaque handles: what stands behind a pointer that C holds.
//!
//! ```text
//!   wsync_plan *  ──►  Object { magic, pid era, busy, poisoned, value }
//! ```
//!
//! * A *magic* word per type, and per copy of the library in the process, turns
//!   a pointer to anything else into `BAD_HANDLE`. It does not detect use after
//!   destroy; nothing can, short of reading freed memory.
//! * *Busy* turns two exclusive calls at a time into `BUSY` instead of a race.
//! * *Poisoned* is set when a panic unwinds through a call; every later call
//!   but destroy answers `POISONED`.
//! * Objects that own threads do not survive `fork`: in the child they answer
//!   `INVALID_STATE`, and destroying them there frees nothing, so that the
//!   parent's peers see nothing of it.

use super::copies;
use crate::error::{Error, Result, Status};
use std::ops::Deref;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// A C type and what is behind it.
pub(super) trait Handle: Sized {
    /// What the object holds.
    type Value: Send + Sync;
    /// What tells such objects from others; their first word comes from it.
    const MAGIC: u64;
    /// As messages call it: `"plan"`.
    const NOUN: &'static str;
    /// False for values that own threads or sockets.
    const SURVIVES_FORK: bool;

    /// Called once, when a panic has unwound through a call on the object.
    fn poisoned(_value: &Self::Value) {}
}

/// The object itself. `magic` is the first word.
#[repr(C)]
struct Object<T> {
    magic: AtomicU64,
    era: u32,
    is_busy: AtomicBool,
    is_poisoned: AtomicBool,
    value: T,
}

/// What `magic` becomes when an object is destroyed.
const MAGIC_DEAD: u64 = 0xdead_dead_dead_dead;

/// How many forks lie between this process and the one that loaded us.
static ERA: AtomicU32 = AtomicU32::new(0);
static WATCH_FORKS: Once = Once::new();

extern "C" fn forked() {
    ERA.fetch_add(1, Ordering::Relaxed);
}

fn era() -> u32 {
    WATCH_FORKS.call_once(|| {
        // SAFETY: `forked` is a plain function that lives as long as the
        // process (the library is never unloaded) and only adds to an atomic.
        // Failure is only ENOMEM, and means that forks go unnoticed.
        unsafe { libc::pthread_atfork(None, None, Some(forked)) };
    });
    ERA.load(Ordering::Relaxed)
}

/// The first word of every live object of this copy of the library.
fn magic<H: Handle>() -> u64 {
    H::MAGIC ^ copies::own_number()
}

/// Moves `value` behind a new handle.
pub(super) fn into_raw<H: Handle>(value: H::Value) -> *mut H {
    let object = Box::new(Object {
        magic: AtomicU64::new(magic::<H>()),
        era: era(),
        is_busy: AtomicBool::new(false),
        is_poisoned: AtomicBool::new(false),
        value,
    });
    Box::into_raw(object).cast()
}

/// Enters an object for a call that may run beside others.
///
/// # Safety
///
/// `handle` is NULL or points to memory that begins like an object of ours,
/// and no destroy overlaps the call.
pub(super) unsafe fn shared<'a, H: Handle>(handle: *const H) -> Result<Entered<'a, H>> {
    // SAFETY: passed on.
    unsafe { enter(handle, false) }
}

/// Enters an object for a call that must be the only exclusive one.
///
/// # Safety
///
/// As for [`shared`].
pub(super) unsafe fn exclusive<'a, H: Handle>(handle: *mut H) -> Result<Entered<'a, H>> {
    // SAFETY: passed on.
    unsafe { enter(handle, true) }
}

/// # Safety
///
/// As for [`shared`].
unsafe fn enter<'a, H: Handle>(handle: *const H, exclusive: bool) -> Result<Entered<'a, H>> {
    let noun = H::NOUN;
    if handle.is_null() {
        return Err(Error::invalid(format!("the {noun} is NULL")));
    }
    let object = handle.cast::<Object<H::Value>>();
    if !object.is_aligned() {
        return Err(bad_handle(noun));
    }
    // SAFETY: the caller promises memory that begins like an object; the magic
    // word is its first, so reading it is in bounds for every type of ours.
    let found = unsafe { &*object.cast::<AtomicU64>() }.load(Ordering::Acquire);
    if found != magic::<H>() {
        return Err(bad_handle(noun));
    }
    // SAFETY: the magic word says that this is a live object of type `H`.
    let object = unsafe { &*object };
    if !H::SURVIVES_FORK && object.era != era() {
        return Err(Error::new(
            Status::InvalidState,
            format!("the {noun} was made before a fork; make one in this process"),
        ));
    }
    if object.is_poisoned.load(Ordering::Acquire) {
        return Err(Error::new(
            Status::Poisoned,
            format!("an earlier internal error made this {noun} unusable"),
        ));
    }
    if exclusive && object.is_busy.swap(true, Ordering::Acquire) {
        return Err(Error::new(
            Status::Busy,
            format!("another call on this {noun} is under way"),
        ));
    }
    Ok(Entered {
        object,
        exclusive,
        was_panicking: std::thread::panicking(),
    })
}

fn bad_handle(noun: &str) -> Error {
    let mut text = format!("the pointer is not a {noun} of this library");
    if let Some(others) = copies::others() {
        text = format!("{text}; {others}");
    }
    Error::new(Status::BadHandle, text)
}

/// Ends an object; NULL and foreign pointers are left alone.
///
/// # Safety
///
/// `handle` is NULL or a handle that was not destroyed before, and no call on
/// it is under way.
pub(super) unsafe fn destroy<H: Handle>(handle: *mut H) {
    let object = handle.cast::<Object<H::Value>>();
    if handle.is_null() || !object.is_aligned() {
        return;
    }
    // SAFETY: as in `enter`.
    let word = unsafe { &*object.cast::<AtomicU64>() };
    let swapped = word.compare_exchange(
        magic::<H>(),
        MAGIC_DEAD,
        Ordering::AcqRel,
        Ordering::Relaxed,
    );
    if swapped.is_err() {
        return;
    }
    // SAFETY: the magic word said that this is a live object of type `H`, and
    // only one destroy can have replaced it, so the box is ours again.
    let object = unsafe { Box::from_raw(object) };
    if !H::SURVIVES_FORK && object.era != era() {
        // Its threads and peers belong to the parent.
        std::mem::forget(object);
        return;
    }
    super::guard_value((), || {
        drop(object);
        Some(())
    });
}

/// A call that is inside an object.
pub(super) struct Entered<'a, H: Handle> {
    object: &'a Object<H::Value>,
    exclusive: bool,
    was_panicking: bool,
}

impl<H: Handle> Deref for Entered<'_, H> {
    type Target = H::Value;

    fn deref(&self) -> &H::Value {
        &self.object.value
    }
}

impl<H: Handle> Drop for Entered<'_, H> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.was_panicking {
            self.object.is_poisoned.store(true, Ordering::Release);
            super::guard_value((), || {
                H::poisoned(&self.object.value);
                Some(())
            });
        }
        if self.exclusive {
            self.object.is_busy.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::guard;
    use super::super::types::wsync_status;
    use super::*;
    use std::sync::Mutex;

    struct thing;
    struct other;
    type Log = Mutex<Vec<&'static str>>;

    impl Handle for thing {
        type Value = Log;
        const MAGIC: u64 = 0x7468_696e_6700_0001;
        const NOUN: &'static str = "thing";
        const SURVIVES_FORK: bool = false;

        fn poisoned(value: &Log) {
            value
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .push("poisoned");
        }
    }

    impl Handle for other {
        type Value = Log;
        const MAGIC: u64 = 0x6f74_6865_7200_0001;
        const NOUN: &'static str = "other";
        const SURVIVES_FORK: bool = true;
    }

    fn status_of(handle: *mut thing) -> Option<Status> {
        // SAFETY: the tests pass live handles.
        unsafe { shared(handle) }.err().map(|e| e.status)
    }

    #[test]
    fn a_pointer_to_another_type_is_a_bad_handle() {
        let h: *mut other = into_raw(Mutex::default());
        assert_eq!(status_of(h.cast()), Some(Status::BadHandle));
        assert_eq!(
            status_of(std::ptr::null_mut()),
            Some(Status::InvalidArgument)
        );
        assert_eq!(
            status_of(h.cast::<u8>().wrapping_add(1).cast()),
            Some(Status::BadHandle)
        );
        // SAFETY: live, and of the wrong type first: left alone.
        unsafe { destroy(h.cast::<thing>()) };
        // SAFETY: still live.
        unsafe { destroy(h) };
    }

    #[test]
    fn one_exclusive_call_at_a_time_and_any_number_of_others() {
        let h: *mut thing = into_raw(Mutex::default());
        // SAFETY: live.
        let first = unsafe { exclusive(h) };
        assert!(first.is_ok());
        assert_eq!(status_of(h), None);
        // SAFETY: live.
        let second = unsafe { exclusive(h) }.err().map(|e| e.status);
        assert_eq!(second, Some(Status::Busy));
        drop(first);
        // SAFETY: live.
        assert!(unsafe { exclusive(h) }.is_ok());
        // SAFETY: live, no call is under way.
        unsafe { destroy(h) };
    }

    #[test]
    fn a_panic_poisons_the_handle_once_and_for_all() {
        let h: *mut thing = into_raw(Mutex::default());
        let body = || -> Result<()> {
            // SAFETY: live.
            let inside = unsafe { exclusive(h)? };
            let nothing: Option<u32> = inside.lock().ok().and(None);
            #[allow(clippy::unwrap_used, reason = "the panic is the test")]
            nothing.unwrap();
            Ok(())
        };
        assert_eq!(
            guard(std::ptr::null_mut(), body),
            wsync_status::WSYNC_ERR_INTERNAL
        );
        assert_eq!(status_of(h), Some(Status::Poisoned));
        // SAFETY: live, no call is under way.
        unsafe { destroy(h) };
    }

    #[test]
    fn what_owns_threads_is_refused_after_a_fork() {
        let h: *mut thing = into_raw(Mutex::default());
        let o: *mut other = into_raw(Mutex::default());
        let before = era();
        // SAFETY: a child that only calls us and _exit, both fit for it.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let moved = era() == before.wrapping_add(1);
            let refused = status_of(h) == Some(Status::InvalidState);
            // SAFETY: live; plain values go on working.
            let works = unsafe { shared(o) }.is_ok();
            let code = if moved && refused && works { 0 } else { 1 };
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) };
        }
        let mut code = -1;
        // SAFETY: our own child, and a place for its status.
        unsafe { libc::waitpid(child, &mut code, 0) };
        assert_eq!(code, 0);
        // SAFETY: live, no call is under way.
        unsafe {
            destroy(h);
            destroy(o);
        }
    }
}
