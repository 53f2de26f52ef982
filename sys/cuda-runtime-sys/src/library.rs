//! Shared libraries: found, never closed.

use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null_mut};

/// Why a library, or something in it, was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError(pub String);

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LoadError {}

/// Where a library came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file, where the loader tells.
    pub path: Option<PathBuf>,
    /// True if it was in the process before we looked.
    pub was_loaded: bool,
}

/// A library that is in the process, or the global symbols of the process.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    /// NULL stands for the global symbols.
    handle: *mut c_void,
    marker: NonNull<c_void>,
    was_loaded: bool,
}

/// Finds a library that has the symbol `marker`: `path` and nothing else where
/// it is given, else the first of `names` that is in the process already, else
/// the program's own symbols, else the first of `names` that can be loaded.
pub fn find(path: Option<&Path>, names: &[&CStr], marker: &CStr) -> Result<Library, LoadError> {
    if let Some(path) = path {
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| LoadError(format!("{} holds a NUL byte", path.display())))?;
        let handle = open(&name, libc::RTLD_NOW).map_err(|reason| {
            LoadError(format!("{} cannot be loaded: {reason}", path.display()))
        })?;
        return with_marker(handle, marker, false)
            .ok_or_else(|| LoadError(format!("{} has no {}", path.display(), text(marker))));
    }
    let loaded = |name: &&CStr| {
        let handle = open(name, libc::RTLD_NOW | libc::RTLD_NOLOAD).ok()?;
        with_marker(handle, marker, true)
    };
    if let Some(library) = names.iter().find_map(loaded) {
        return Ok(library);
    }
    if let Some(library) = with_marker(null_mut(), marker, true) {
        return Ok(library);
    }
    let mut reasons = Vec::new();
    for name in names {
        match open(name, libc::RTLD_NOW) {
            Ok(handle) => match with_marker(handle, marker, false) {
                Some(library) => return Ok(library),
                None => reasons.push(format!("{} has no {}", text(name), text(marker))),
            },
            Err(reason) => reasons.push(reason),
        }
    }
    Err(LoadError(reasons.join("; ")))
}

fn with_marker(handle: *mut c_void, marker: &CStr, was_loaded: bool) -> Option<Library> {
    let marker = symbol(handle, marker)?;
    Some(Library {
        handle,
        marker,
        was_loaded,
    })
}

impl Library {
    /// The address of a function.
    pub fn symbol(&self, name: &CStr) -> Option<NonNull<c_void>> {
        symbol(self.handle, name)
    }

    /// Which file it is.
    pub fn origin(&self) -> Origin {
        let mut info = libc::Dl_info {
            dli_fname: null_mut(),
            dli_fbase: null_mut(),
            dli_sname: null_mut(),
            dli_saddr: null_mut(),
        };
        // SAFETY: `info` is writable; any address may be asked for.
        let is_known = unsafe { libc::dladdr(self.marker.as_ptr(), &mut info) } != 0;
        let path = (is_known && !info.dli_fname.is_null()).then(|| {
            // SAFETY: the loader's own string, of a library that stays.
            let name = unsafe { CStr::from_ptr(info.dli_fname) };
            PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()))
        });
        Origin {
            path,
            was_loaded: self.was_loaded,
        }
    }
}

fn symbol(handle: *mut c_void, name: &CStr) -> Option<NonNull<c_void>> {
    let handle = if handle.is_null() {
        libc::RTLD_DEFAULT
    } else {
        handle
    };
    // SAFETY: a handle that is never closed, or the global scope.
    NonNull::new(unsafe { libc::dlsym(handle, name.as_ptr()) })
}

/// `dlopen`, or what it says is wrong.
fn open(name: &CStr, flags: i32) -> Result<*mut c_void, String> {
    // SAFETY: running a library's initialisers is what loading it means; the
    // ones we name are made to be loaded into any process.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: the loader's string for this thread's last error, or NULL.
    let reason: *const c_char = unsafe { libc::dlerror() };
    if reason.is_null() {
        return Err(format!("{} is not loaded", text(name)));
    }
    // SAFETY: not NULL, and valid until the next call of the loader.
    Err(text(unsafe { CStr::from_ptr(reason) }))
}

fn text(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

/// Defines a table of functions that is filled from a [`Library`]: those of
/// `required`, without which there is no table, and those of `optional`.
macro_rules! functions {
    (
        $(#[$about:meta])*
        $name:ident
        required { $($rf:ident = $rs:literal: fn($($ra:ty),* $(,)?) -> $rr:ty;)* }
        optional { $($of:ident = $os:literal: fn($($oa:ty),* $(,)?) -> $or:ty;)* }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name {
            $(pub $rf: unsafe extern "C" fn($($ra),*) -> $rr,)*
            $(pub $of: Option<unsafe extern "C" fn($($oa),*) -> $or>,)*
        }

        impl $name {
            /// Fills the table; names every required function that is missing.
            pub(crate) fn new(library: &$crate::library::Library) -> Result<$name, $crate::LoadError> {
                let mut missing: Vec<&str> = Vec::new();
                $(
                    let $rf = library.symbol($rs);
                    if $rf.is_none() {
                        missing.push($rs.to_str().unwrap_or_default());
                    }
                )*
                $(let $of = library.symbol($os);)*
                if let ($(Some($rf),)*) = ($($rf,)*) {
                    return Ok($name {
                        // SAFETY: the address of the function of that name,
                        // whose C signature is the one written down here.
                        $($rf: unsafe { std::mem::transmute::<
                            std::ptr::NonNull<std::ffi::c_void>,
                            unsafe extern "C" fn($($ra),*) -> $rr,
                        >($rf) },)*
                        $($of: $of.map(|f| {
                            // SAFETY: as above.
                            unsafe { std::mem::transmute::<
                                std::ptr::NonNull<std::ffi::c_void>,
                                unsafe extern "C" fn($($oa),*) -> $or,
                            >(f) }
                        }),)*
                    });
                }
                let file = library.origin().path;
                let file = file.map_or("the library".into(), |p| p.display().to_string());
                Err($crate::LoadError(format!("{file} lacks {}", missing.join(", "))))
            }
        }
    };
}

pub(crate) use functions;
