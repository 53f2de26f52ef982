//! Finding a copy of NCCL.
//!
//! The loader of glibc knows an object by its soname, so whoever loads a copy
//! first decides which one every later user gets, PyTorch included:
//!
//! ```text
//!   asked for by a path        that file, or an error
//!   else in the process        the one that PyTorch and others use
//!   else linked into it        ncclGetVersion among the global symbols
//!   else libnccl.so.2          where the system's loader finds it
//! ```

use crate::image::images;
use crate::table::Api;
use crate::types::{VERSION_MIN, ncclResult_t, version_text};
use std::ffi::{CStr, CString, OsStr, c_int, c_void};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What every copy calls itself.
pub(crate) const SONAME: &str = "libnccl.so.2";

/// A file that somebody wants to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Who asked, for messages: "the option", or a variable's name.
    pub by: String,
    pub path: PathBuf,
}

/// Where to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// If somebody asked for a file, it is that one and no other.
    pub asked: Option<Asked>,
    /// Only a copy that is in the process already will do: for communicators
    /// that somebody else has made with it.
    pub only_loaded: bool,
}

/// How a copy was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// By the path that was asked for, by whom.
    Asked(String),
    /// It was in the process.
    InProcess,
    /// Its functions are linked into the program.
    Global,
    /// By the system's loader.
    System,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Asked(by) => write!(f, "asked for by {by}"),
            Found::InProcess => f.write_str("already in the process"),
            Found::Global => f.write_str("linked into the program"),
            Found::System => f.write_str("found by the system's loader"),
        }
    }
}

/// A copy of NCCL. Lives as long as the process.
#[derive(Clone, Debug)]
pub struct Library {
    pub api: Api,
    /// As `ncclGetVersion` says.
    pub version: c_int,
    /// The file, where the loader knows it.
    pub path: Option<PathBuf>,
    pub found: Found,
    /// Every copy in the process, this one included. More than one is a
    /// misfortune: communicators of one are garbage to the other.
    pub copies: Vec<PathBuf>,
}

/// Why there is no copy to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// Nobody has one; what the loader said.
    NotFound { said: String },
    /// The one that was asked for cannot be loaded.
    CannotLoad { asked: Asked, said: String },
    /// One in the process is needed and there is none, or not the one that
    /// was asked for.
    NotInProcess { asked: Option<Asked> },
    /// Several are in the process and nobody said which.
    Ambiguous { copies: Vec<PathBuf> },
    /// It does not have what 2.18 has.
    Incomplete {
        path: Option<PathBuf>,
        symbol: String,
    },
    /// It is older than 2.18.
    TooOld {
        path: Option<PathBuf>,
        version: c_int,
    },
    /// It does not say its version.
    Mute { path: Option<PathBuf>, code: c_int },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::NotFound { said } => write!(
                f,
                "NCCL was not found: nothing asks for a file, none is in the process, and the \
                 loader says \"{said}\""
            ),
            LoadError::CannotLoad { asked, said } => write!(
                f,
                "NCCL at {}, asked for by {}, cannot be loaded: {said}",
                asked.path.display(),
                asked.by
            ),
            LoadError::NotInProcess { asked: None } => f.write_str(
                "no NCCL is in the process; a borrowed communicator belongs to the copy that made it",
            ),
            LoadError::NotInProcess { asked: Some(asked) } => write!(
                f,
                "NCCL at {}, asked for by {}, is not in the process; a borrowed communicator \
                 belongs to the copy that made it",
                asked.path.display(),
                asked.by
            ),
            LoadError::Ambiguous { copies } => {
                let names: Vec<String> = copies.iter().map(|c| c.display().to_string()).collect();
                write!(
                    f,
                    "{} copies of NCCL are in the process ({}); say which one made the borrowed \
                     communicator",
                    copies.len(),
                    names.join(", ")
                )
            }
            LoadError::Incomplete { path, symbol } => {
                write!(f, "{} has no {symbol}; NCCL 2.18 or later is needed", Shown(path))
            }
            LoadError::TooOld { path, version } => write!(
                f,
                "{} is NCCL {}; 2.18 or later is needed",
                Shown(path),
                version_text(*version)
            ),
            LoadError::Mute { path, code } => {
                write!(f, "{}: ncclGetVersion failed with {code}", Shown(path))
            }
        }
    }
}

impl std::error::Error for LoadError {}

struct Shown<'a>(&'a Option<PathBuf>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(path) => path.display().fmt(f),
            None => f.write_str("the NCCL of the process"),
        }
    }
}

/// The copies of NCCL in the process, by file. One that is linked into a
/// program under another name is not among them.
pub(crate) fn copies() -> Vec<PathBuf> {
    let mut copies: Vec<PathBuf> = Vec::new();
    for image in images() {
        let file = image.path.file_name().unwrap_or(OsStr::new(""));
        if image.soname == SONAME || file.as_bytes().starts_with(b"libnccl.so") {
            copies.push(image.path);
        }
    }
    copies
}

/// Finds NCCL, and loads it if it is not in the process. It is never unloaded.
///
/// # Safety
///
/// What is found calls itself NCCL and is believed: loading runs its code.
pub unsafe fn load(search: &Search) -> Result<Library, LoadError> {
    let (handle, found) = match &search.asked {
        Some(asked) => asked_for(asked, search.only_loaded)?,
        None if search.only_loaded => in_process()?,
        None => anywhere()?,
    };
    // SAFETY: by the caller's word these are NCCL's functions.
    let api = unsafe { Api::fill(|name| symbol(handle, name)) };
    let path = file_of(symbol(handle, c"ncclGetVersion"));
    let api = api.map_err(|symbol| LoadError::Incomplete {
        path: path.clone(),
        symbol: symbol.to_string(),
    })?;
    let mut version = 0;
    // SAFETY: writes the number that it is given a place for.
    let result = unsafe { (api.ncclGetVersion)(&raw mut version) };
    if result != ncclResult_t::SUCCESS {
        let code = result.0;
        return Err(LoadError::Mute { path, code });
    }
    if version < VERSION_MIN {
        return Err(LoadError::TooOld { path, version });
    }
    Ok(Library {
        api,
        version,
        path,
        found,
        copies: copies(),
    })
}

/// What `dlsym` takes in place of an object to look everywhere.
const EVERYWHERE: *mut c_void = libc::RTLD_DEFAULT;

fn asked_for(asked: &Asked, only_loaded: bool) -> Result<(*mut c_void, Found), LoadError> {
    let found = Found::Asked(asked.by.clone());
    match (open(&asked.path, only_loaded), only_loaded) {
        (Ok(handle), _) => Ok((handle, found)),
        (Err(_), true) => Err(LoadError::NotInProcess {
            asked: Some(asked.clone()),
        }),
        (Err(said), false) => Err(LoadError::CannotLoad {
            asked: asked.clone(),
            said,
        }),
    }
}

fn in_process() -> Result<(*mut c_void, Found), LoadError> {
    let copies = copies();
    match copies.as_slice() {
        [] if is_linked_in() => Ok((EVERYWHERE, Found::Global)),
        [] => Err(LoadError::NotInProcess { asked: None }),
        [copy] => match open(copy, true) {
            Ok(handle) => Ok((handle, Found::InProcess)),
            Err(_) => Err(LoadError::NotInProcess { asked: None }),
        },
        _ => Err(LoadError::Ambiguous { copies }),
    }
}

fn anywhere() -> Result<(*mut c_void, Found), LoadError> {
    if let Ok(handle) = open(Path::new(SONAME), true) {
        return Ok((handle, Found::InProcess));
    }
    if is_linked_in() {
        return Ok((EVERYWHERE, Found::Global));
    }
    match open(Path::new(SONAME), false) {
        Ok(handle) => Ok((handle, Found::System)),
        Err(said) => Err(LoadError::NotFound { said }),
    }
}

fn is_linked_in() -> bool {
    !symbol(EVERYWHERE, c"ncclGetVersion").is_null()
}

/// Opens an object for good; with `only_loaded`, only if it is there.
fn open(path: &Path, only_loaded: bool) -> Result<*mut c_void, String> {
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else {
        return Err("the path has a NUL in it".into());
    };
    let mut flags = libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NODELETE;
    if only_loaded {
        flags |= libc::RTLD_NOLOAD;
    }
    // SAFETY: a NUL-terminated name. What its code does when it is loaded is
    // the business of `load`'s caller.
    let handle = unsafe { libc::dlopen(name.as_ptr(), flags) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: the loader's message of this thread: NULL, or NUL-terminated.
    let said = unsafe { libc::dlerror() };
    if said.is_null() {
        return Err("it is not in the process".into());
    }
    // SAFETY: as above.
    let said = unsafe { CStr::from_ptr(said) };
    Err(said.to_string_lossy().into_owned())
}

fn symbol(handle: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: a handle that is never closed, or RTLD_DEFAULT.
    unsafe { libc::dlsym(handle, name.as_ptr()) }
}

/// The file that an address belongs to.
fn file_of(address: *mut c_void) -> Option<PathBuf> {
    if address.is_null() {
        return None;
    }
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: fills the record, and returns 0 if it knows nothing.
    let is_known = unsafe { libc::dladdr(address, &raw mut info) } != 0;
    if !is_known || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's names are NUL-terminated.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}
