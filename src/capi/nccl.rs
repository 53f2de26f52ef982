//! What an NCCL transport is made with.

use super::args::{self, plain_struct};
use super::guard;
use super::handle::shared;
use super::out::Out;
use super::transport::wsync_transport;
use super::types::{wsync_error, wsync_status};
use crate::error::{Error, Result};
use crate::transport::nccl::library::NCCL_UNIQUE_ID_BYTES;
use crate::transport::nccl::{
    CommLimits, CommSource, IpcScope, Nccl, NcclBootstrap, NcclOptions, OnAbort, Remains,
};
use std::ffi::{CString, c_char, c_void};
use std::path::{Path, PathBuf};

/// Bytes of an NCCL unique id.
///
/// Since: 0.1
pub const WSYNC_NCCL_ID_BYTES: usize = 128;

const _: () = assert!(WSYNC_NCCL_ID_BYTES == NCCL_UNIQUE_ID_BYTES);

/// Whose communicator an NCCL transport works with.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_nccl_mode {
    /// One of its own, made from a unique id. The default without `comm`.
    WSYNC_NCCL_MODE_OWN = 1,
    /// One of its own, split off `comm` while the ranks meet. All ranks of
    /// `comm` have to come; it must be idle, and not be used until the ranks
    /// have met. Afterwards nothing is shared. The default with `comm`.
    WSYNC_NCCL_MODE_SPLIT = 2,
    /// `comm` itself, without further memory. From the start of a request to
    /// its end nobody else issues anything on it or asks for its state. After
    /// a failure it is revoked (ncclCommRevoke) where NCCL can; else `on_abort`
    /// is called. It is never aborted or destroyed by the library, and
    /// outlives the transport.
    WSYNC_NCCL_MODE_DIRECT = 3,
}

/// Which ranks of a host exchange bytes through GPU memory that one process has
/// exported to the other (CUDA IPC), and not through NCCL. NCCL takes one rank
/// per GPU; where several are on one, the lowest is its NCCL rank.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_nccl_ipc {
    /// None: several ranks on a GPU are refused, except where NCCL takes them
    /// (NCCL_MULTI_RANK_GPU_ENABLE=1 on all of them, since NCCL 2.30.3).
    WSYNC_NCCL_IPC_OFF = 1,
    /// Ranks on one GPU, and others of which one is not an NCCL rank; also
    /// where NCCL would take several ranks of a GPU.
    WSYNC_NCCL_IPC_DEVICE = 2,
    /// Any two ranks of a host. Their GPUs have to reach each other's memory.
    WSYNC_NCCL_IPC_DOMAIN = 3,
}

/// Has the owner of a borrowed communicator abort it: ncclCommAbort, by
/// whatever thread may do that. Called at most once, from a thread of the
/// library, when a transfer has failed and this NCCL has no ncclCommRevoke. It
/// must not call the library, must not unwind and must not longjmp.
///
/// Since: 0.1
pub type wsync_nccl_abort_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, reason: *const c_char)>;

/// How a transport uses NCCL. NCCL is searched for in this order: `library`,
/// WSYNC_NCCL_LIBRARY, VLLM_NCCL_SO_PATH, the copy in the process, symbols that
/// are linked into the program, libnccl.so.2. With a borrowed communicator only
/// copies in the process count. A process that is going to load PyTorch does
/// so before, or PyTorch gets the copy that was loaded here.
///
/// The GPU is the one that `comm` is on, else the current device of the thread
/// that creates the transport. All ranks have the same NCCL version.
///
/// NCCL lets one thread at a time launch on a device. Callers with other
/// communicators on this device keep to it while wsync_transport_meet,
/// wsync_transport_rendezvous, wsync_request_start and wsync_request_submit run
/// and while the transport is aborted or destroyed; the library's own calls on
/// one device wait for each other. And whatever is launched on several
/// communicators of a device is launched in the same order on all ranks.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_nccl_options {
    /// sizeof(wsync_nccl_options).
    pub struct_size: usize,
    /// A wsync_nccl_mode; 0 is SPLIT with `comm`, OWN without.
    pub mode: u32,
    /// Thread blocks, and so multiprocessors, that its kernels take; 0 is
    /// NCCL's own choice. A minimum needs a maximum.
    pub cta_count_min: u32,
    /// See `cta_count_min`.
    pub cta_count_max: u32,
    /// Peers that are connected at once (since NCCL 2.30); 0 is NCCL's choice.
    pub p2p_peer_count_max: u32,
    /// Channels to a peer on another host (since NCCL 2.28); 0 is NCCL's
    /// choice.
    pub net_channel_count: u32,
    /// 1: after a failure keep what a transport of the survivors can be made
    /// of by ncclCommShrink, without meeting through a unique id.
    pub is_rebuildable: u32,
    /// SPLIT and DIRECT: an ncclComm_t.
    pub comm: *mut c_void,
    /// OWN: WSYNC_NCCL_ID_BYTES bytes of wsync_transport_nccl_id, the same on
    /// all ranks. NULL: the lowest rank makes an id, which travels with its
    /// greeting.
    pub id: *const c_void,
    /// Full path of libnccl.so.2; NULL searches.
    pub library: *const c_char,
    /// OWN: the transport of this rank that has failed, if the ranks are the
    /// survivors of it. Shrinks its communicator if every rank has kept its
    /// part, else makes one from a unique id. NULL: none.
    pub rebuild_from: *const wsync_transport,
    /// DIRECT: see wsync_nccl_abort_fn. NULL: kernels that wait for a lost
    /// peer go on until the owner aborts the communicator.
    pub on_abort: wsync_nccl_abort_fn,
    /// Handed to `on_abort` as it is.
    pub on_abort_user: *mut c_void,
    /// A wsync_nccl_ipc, the same on all ranks. 0: as DEVICE, but ranks of a
    /// GPU that NCCL takes are left to it. A rank has 16 MiB of GPU memory for
    /// each rank that it hands bytes to so.
    pub ipc: u32,
    /// 1: ranks that are reached by IPC read contiguous bytes where they lie in
    /// this rank's buffers, one copy instead of two, if CUDA can export those:
    /// what cudaMalloc gave, not what the virtual memory calls gave. Such a
    /// buffer stays allocated, whatever becomes of a request, until a later one
    /// of the same plan, with other buffers in its place, has ended, or the
    /// ranks that it went to have destroyed their transports: CUDA does not
    /// allow memory to be freed that another process has open.
    pub is_lending: u32,
}

plain_struct!(wsync_nccl_options, 80, "wsync_nccl_options");

/// Makes a unique id for a communicator: WSYNC_NCCL_ID_BYTES bytes. One rank
/// makes it and gives it to all. NCCL opens a socket on which they find each
/// other; it lives as long as this process. `library` as in
/// wsync_nccl_options.
///
/// Errors: LIBRARY_NOT_FOUND, LIBRARY_TOO_OLD; BUFFER_TOO_SMALL; SYSTEM with
/// NCCL's result as native code.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_nccl_id(
    library: *const c_char,
    buffer: *mut c_void,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { super::out::bytes(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for NULL or a NUL-terminated path.
        let library = unsafe { path(library, "the library's path")? };
        let nccl = Nccl::find(library.as_deref())?;
        // An id opens a socket: none is made just to say how long it is.
        match capacity {
            0 => out.write(&[0; WSYNC_NCCL_ID_BYTES]),
            _ => out.write(&nccl.unique_id()?),
        }
    })
}

/// Writes the version of NCCL that a transport would use, as ncclGetVersion
/// counts: 23007 is 2.30.7. Loads it if it is not in the process. `library` as
/// in wsync_nccl_options.
///
/// Errors: LIBRARY_NOT_FOUND, LIBRARY_TOO_OLD.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_nccl_version(
    library: *const c_char,
    out_version: *mut u32,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the number.
        let out = unsafe { Out::new(out_version, "out_version")? };
        // SAFETY: the header asks for NULL or a NUL-terminated path.
        let library = unsafe { path(library, "the library's path")? };
        out.write(Nccl::find(library.as_deref())?.version() as u32);
        Ok(())
    })
}

/// # Safety
///
/// NULL or a NUL-terminated path.
unsafe fn path(text: *const c_char, what: &str) -> Result<Option<PathBuf>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: passed on.
    let text = unsafe { args::name(text, what)? };
    Ok(Some(Path::new(text).to_path_buf()))
}

/// A data plane of one rank, by what the caller wants; NULL means all defaults.
///
/// # Safety
///
/// NULL or a struct whose struct_size is set and whose pointers are NULL or
/// what the header says.
pub(super) unsafe fn bootstrap(
    given: *const wsync_nccl_options,
    is_lowest: bool,
) -> Result<NcclBootstrap> {
    // SAFETY: passed on.
    let Some(given) = (unsafe { args::optional(given)? }) else {
        return NcclBootstrap::new(is_lowest, NcclOptions::default());
    };
    let options = NcclOptions {
        // SAFETY: passed on.
        library: unsafe { path(given.library, "the library's path")? },
        device: None,
        // SAFETY: passed on.
        source: unsafe { source(&given)? },
        limits: CommLimits {
            ctas_min: given.cta_count_min,
            ctas_max: given.cta_count_max,
            p2p_peers_max: given.p2p_peer_count_max,
            channels_per_net_peer: given.net_channel_count,
        },
        is_rebuildable: given.is_rebuildable != 0,
        ipc: ipc(given.ipc)?,
        is_lending: given.is_lending != 0,
        host: None,
        slot_bytes: 0,
    };
    NcclBootstrap::new(is_lowest, options)
}

fn ipc(code: u32) -> Result<IpcScope> {
    const OFF: u32 = wsync_nccl_ipc::WSYNC_NCCL_IPC_OFF as u32;
    const DEVICE: u32 = wsync_nccl_ipc::WSYNC_NCCL_IPC_DEVICE as u32;
    const DOMAIN: u32 = wsync_nccl_ipc::WSYNC_NCCL_IPC_DOMAIN as u32;
    match code {
        0 => Ok(IpcScope::Needed),
        OFF => Ok(IpcScope::Off),
        DEVICE => Ok(IpcScope::Device),
        DOMAIN => Ok(IpcScope::Domain),
        other => Err(args::unknown("ipc", other)),
    }
}

/// # Safety
///
/// As for [`bootstrap`].
unsafe fn source(given: &wsync_nccl_options) -> Result<CommSource> {
    const OWN: u32 = wsync_nccl_mode::WSYNC_NCCL_MODE_OWN as u32;
    const SPLIT: u32 = wsync_nccl_mode::WSYNC_NCCL_MODE_SPLIT as u32;
    const DIRECT: u32 = wsync_nccl_mode::WSYNC_NCCL_MODE_DIRECT as u32;
    let comm = given.comm.expose_provenance();
    let mode = match (given.mode, comm) {
        (0, 0) => OWN,
        (0, _) => SPLIT,
        (mode, _) => mode,
    };
    let is_borrowed = mode == SPLIT || mode == DIRECT;
    if is_borrowed != (comm != 0) {
        return Err(Error::invalid(match is_borrowed {
            true => "modes SPLIT and DIRECT need a communicator, and comm is NULL",
            false => "mode OWN makes a communicator of its own, and comm is not NULL",
        }));
    }
    if mode != OWN && !(given.id.is_null() && given.rebuild_from.is_null()) {
        return Err(Error::invalid(
            "id and rebuild_from are for mode OWN; a communicator is borrowed",
        ));
    }
    match mode {
        // SAFETY: passed on.
        OWN => unsafe { own(given) },
        SPLIT => Ok(CommSource::Split { comm }),
        DIRECT => Ok(CommSource::Direct {
            comm,
            on_abort: on_abort(given),
        }),
        other => Err(args::unknown("mode", other)),
    }
}

/// # Safety
///
/// As for [`bootstrap`].
unsafe fn own(given: &wsync_nccl_options) -> Result<CommSource> {
    if !given.rebuild_from.is_null() {
        // SAFETY: the header asks for a live transport.
        let failed = unsafe { shared(given.rebuild_from)? };
        let transport = failed.endpoint.transport()?;
        let from = Remains::of(&*transport).ok_or_else(|| {
            Error::invalid(format!(
                "rebuild_from is a transport of kind {}; it is to be nccl",
                transport.name()
            ))
        })?;
        return Ok(CommSource::Rebuilt { from });
    }
    if given.id.is_null() {
        return Ok(CommSource::Own { id: None });
    }
    // SAFETY: the header asks for 128 bytes.
    let id = unsafe { given.id.cast::<[u8; WSYNC_NCCL_ID_BYTES]>().read() };
    Ok(CommSource::Own { id: Some(id) })
}

/// What the caller gave us to call.
struct Callback {
    function: unsafe extern "C" fn(*mut c_void, *const c_char),
    user: *mut c_void,
}

// SAFETY: the header asks for a function that a thread of ours may call.
unsafe impl Send for Callback {}
// SAFETY: it is called at most once.
unsafe impl Sync for Callback {}

impl Callback {
    fn call(&self, reason: &Error) {
        let text = CString::new(reason.message.replace('\0', " ")).unwrap_or_default();
        // SAFETY: the header asks for a function that takes these and does not
        // unwind.
        unsafe { (self.function)(self.user, text.as_ptr()) };
    }
}

fn on_abort(given: &wsync_nccl_options) -> OnAbort {
    let user = given.on_abort_user;
    match given.on_abort {
        None => OnAbort::default(),
        Some(function) => {
            let callback = Callback { function, user };
            OnAbort::new(move |reason| callback.call(reason))
        }
    }
}
