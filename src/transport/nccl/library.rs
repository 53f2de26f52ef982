//! The copy of NCCL that this process works with, and what it can do.

use crate::env;
use crate::error::{Error, NativeDomain, Result, Status};
use crate::log::{Level, line};
use crate::transport::queue::lock;
use nccl_sys::{Api, Asked, Found, Library, LoadError, Search, ncclResult_t, ncclUniqueId};
use std::ffi::{CStr, c_int};
use std::path::Path;
use std::sync::Mutex;

pub use nccl_sys::{NCCL_UNIQUE_ID_BYTES, version_text};

/// A copy of NCCL that is loaded. Never unloaded, so a reference to it lasts.
#[derive(Debug)]
pub struct Nccl {
    library: Library,
}

/// The copies in use, by how they were looked for.
static LOADED: Mutex<Vec<(Search, &'static Nccl)>> = Mutex::new(Vec::new());

impl Nccl {
    /// Finds NCCL for communicators of our own, and loads it if it is not in
    /// the process: `asked`, else WSYNC_NCCL_LIBRARY, else VLLM_NCCL_SO_PATH,
    /// else the copy in the process, else what the system's loader finds.
    ///
    /// A copy that is loaded here before PyTorch is the one that PyTorch will
    /// get: import torch first.
    pub fn find(asked: Option<&Path>) -> Result<&'static Nccl> {
        Nccl::search(Search {
            asked: asked_for(asked),
            only_loaded: false,
        })
    }

    /// Finds the NCCL that made a communicator of somebody else: only a copy
    /// that is in the process will do. Where there are several, `asked` or the
    /// environment says which.
    pub fn find_loaded(asked: Option<&Path>) -> Result<&'static Nccl> {
        Nccl::search(Search {
            asked: asked_for(asked),
            only_loaded: true,
        })
    }

    fn search(search: Search) -> Result<&'static Nccl> {
        let mut loaded = lock(&LOADED);
        if let Some((_, nccl)) = loaded.iter().find(|(s, _)| *s == search) {
            return Ok(nccl);
        }
        // SAFETY: the path is the operator's, or the name under which every
        // program on this machine loads NCCL.
        let library = unsafe { nccl_sys::load(&search) }.map_err(not_loaded)?;
        let nccl: &'static Nccl = Box::leak(Box::new(Nccl { library }));
        nccl.say();
        loaded.push((search, nccl));
        Ok(nccl)
    }

    fn say(&self) {
        let place = match self.path() {
            Some(path) => path.display().to_string(),
            None => "the program".to_string(),
        };
        let version = self.version_text();
        let found = &self.library.found;
        line(
            Level::Info,
            format_args!("NCCL {version} from {place}, {found}"),
        );
        if let [first, .., last] = self.library.copies.as_slice() {
            line(
                Level::Warn,
                format_args!(
                    "{} copies of NCCL are in the process, {} and {} among them; their calls on \
                     one device are not ordered with each other",
                    self.library.copies.len(),
                    first.display(),
                    last.display()
                ),
            );
        }
    }

    /// As `ncclGetVersion` says: 23007 for 2.30.7.
    pub fn version(&self) -> c_int {
        self.library.version
    }

    pub fn version_text(&self) -> String {
        version_text(self.library.version)
    }

    /// The file, where the loader knows it.
    pub fn path(&self) -> Option<&Path> {
        self.library.path.as_deref()
    }

    pub fn found(&self) -> &Found {
        &self.library.found
    }

    /// Every copy in the process when this one was found.
    pub fn copies(&self) -> &[std::path::PathBuf] {
        &self.library.copies
    }

    pub(super) fn api(&self) -> &Api {
        &self.library.api
    }

    /// True if this copy can do what `ability` stands for.
    pub fn can(&self, ability: &Ability) -> bool {
        match ability.symbol {
            Some(symbol) => self.library.api.has(symbol),
            None => self.version() >= ability.since,
        }
    }

    /// An id for a new communicator. Opens a socket on which its ranks find
    /// each other, on the interface that NCCL_SOCKET_IFNAME names.
    pub fn unique_id(&self) -> Result<[u8; NCCL_UNIQUE_ID_BYTES]> {
        let mut id = ncclUniqueId::from_bytes([0; NCCL_UNIQUE_ID_BYTES]);
        // SAFETY: writes the 128 bytes it is given.
        let result = unsafe { (self.api().ncclGetUniqueId)(&raw mut id) };
        self.check("ncclGetUniqueId", result)?;
        Ok(id.to_bytes())
    }

    /// NCCL's own words for a result.
    pub fn describe(&self, result: ncclResult_t) -> String {
        // SAFETY: takes any number; returns a string literal.
        let text = unsafe { (self.api().ncclGetErrorString)(result) };
        if text.is_null() {
            return format!("NCCL result {}", result.0);
        }
        // SAFETY: NUL-terminated and never freed.
        let text = unsafe { CStr::from_ptr(text) };
        text.to_string_lossy().into_owned()
    }

    /// What NCCL says of the last failure in this process.
    fn last_error(&self) -> String {
        // SAFETY: NULL asks for the last error of any communicator.
        let text = unsafe { (self.api().ncclGetLastError)(nccl_sys::ncclComm_t::NULL) };
        if text.is_null() {
            return String::new();
        }
        // SAFETY: NUL-terminated; another thread's failure may replace the
        // text while it is read, which NCCL does in place.
        let text = unsafe { CStr::from_ptr(text) };
        text.to_string_lossy().trim().to_string()
    }

    /// An error for a result that is neither success nor in progress.
    pub(super) fn check(&self, call: &str, result: ncclResult_t) -> Result<()> {
        if result == ncclResult_t::SUCCESS || result == ncclResult_t::IN_PROGRESS {
            return Ok(());
        }
        Err(self.failure(call, result))
    }

    /// The error that a failed call makes.
    pub(super) fn failure(&self, call: &str, result: ncclResult_t) -> Error {
        let status = match result {
            ncclResult_t::INVALID_ARGUMENT | ncclResult_t::INVALID_USAGE => Status::InvalidArgument,
            ncclResult_t::INTERNAL_ERROR => Status::Internal,
            ncclResult_t::REMOTE_ERROR => Status::PeerLost,
            ncclResult_t::TIMEOUT => Status::Stalled,
            _ => Status::System,
        };
        let name = result.name().unwrap_or("an unknown result");
        let mut message = format!("{call}: {name}, {}", self.describe(result));
        let detail = self.last_error();
        if !detail.is_empty() {
            message.push_str(&format!(" ({detail})"));
        }
        Error {
            native_domain: NativeDomain::Nccl,
            native_code: result.0,
            ..Error::new(status, message)
        }
    }
}

fn asked_for(asked: Option<&Path>) -> Option<Asked> {
    let (by, path) = match asked {
        Some(path) => ("the option", path.to_path_buf()),
        None => env::nccl_library()?,
    };
    Some(Asked {
        by: by.to_string(),
        path,
    })
}

fn not_loaded(e: LoadError) -> Error {
    let status = match &e {
        LoadError::TooOld { .. } | LoadError::Incomplete { .. } => Status::LibraryTooOld,
        LoadError::Ambiguous { .. } => Status::InvalidState,
        LoadError::NotFound { .. }
        | LoadError::CannotLoad { .. }
        | LoadError::NotInProcess { .. }
        | LoadError::Mute { .. } => Status::LibraryNotFound,
    };
    Error::new(status, e.to_string())
}

/// Something that not every release can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ability {
    /// What it is for, in a few words.
    pub what: &'static str,
    /// The first release, as `ncclGetVersion` counts.
    pub since: c_int,
    /// The function that it comes with; `None` if it comes without one.
    pub symbol: Option<&'static str>,
}

impl Ability {
    /// `2.27.3`.
    pub fn since_text(&self) -> String {
        version_text(self.since)
    }
}

const fn ability(since: c_int, what: &'static str, symbol: Option<&'static str>) -> Ability {
    Ability {
        what,
        since,
        symbol,
    }
}

/// The communicator takes a limit on how many peers are connected at once.
pub const MAX_P2P_PEERS: Ability = ability(23003, "limit on peers connected (maxP2pPeers)", None);
/// A new communicator can be made of the survivors of a failed one, if that
/// could be kept: which takes [`REVOKE`], for an abort frees it.
pub const SHRINK: Ability = ability(
    22703,
    "a communicator of the survivors (ncclCommShrink)",
    Some("ncclCommShrink"),
);
/// A communicator can be stopped without being freed.
pub const REVOKE: Ability = ability(
    22807,
    "stopping a borrowed communicator, rebuilding by ncclCommShrink (ncclCommRevoke)",
    Some("ncclCommRevoke"),
);
/// Two ranks of a communicator may share a GPU.
pub const MULTI_RANK_GPU: Ability = ability(
    23003,
    "several ranks on one GPU (NCCL_MULTI_RANK_GPU_ENABLE)",
    None,
);

/// What is worth knowing of a release, by age.
pub const ABILITIES: &[Ability] = &[
    ability(21801, "own, split and non-blocking communicators", None),
    ability(
        21901,
        "registered buffers (ncclCommRegister)",
        Some("ncclCommRegister"),
    ),
    ability(22602, "abort within milliseconds", None),
    SHRINK,
    ability(22803, "channels per network peer", None),
    REVOKE,
    MAX_P2P_PEERS,
    MULTI_RANK_GPU,
];
