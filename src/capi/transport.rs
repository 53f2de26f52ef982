//! Transports: how the bytes of one rank travel.

use super::args::{self, plain_struct};
use super::handle::{self, Handle, exclusive, shared};
use super::nccl::{self, wsync_nccl_options};
use super::out::Out;
use super::types::{WSYNC_RANK_NONE, wsync_bytes, wsync_error, wsync_rank_list, wsync_status};
use super::{copies, count_u32, guard, guard_value};
use crate::env;
use crate::error::Result;
use crate::exec::{Endpoint, RankSet};
use crate::limits::{GREETING_BYTES_MAX, RANK_COUNT_MAX, TOKEN_BYTES_MAX};
use crate::log::{Level, line};
use crate::rank::Rank;
use crate::transport::Bootstrap;
use crate::transport::bootstrap::{Loopback, Shm};
use crate::transport::shm::ShmOptions;
use std::ffi::{c_char, c_void};

/// The way of one rank to all others: a data plane and a small control
/// channel. Used by any number of sessions; outlives them. Owns threads, and
/// does not survive fork.
///
/// wsync_transport_create, wsync_transport_greeting, wsync_transport_meet,
/// wsync_transport_rendezvous, wsync_transport_nccl_id,
/// wsync_transport_nccl_version, wsync_transport_rank,
/// wsync_transport_rank_count, wsync_transport_status, wsync_transport_abort,
/// wsync_transport_finalize, wsync_transport_destroy.
///
/// Since: 0.1
pub struct wsync_transport {
    _opaque: [u8; 0],
}

impl Handle for wsync_transport {
    type Value = TransportObject;
    const MAGIC: u64 = 0x7773_796e_7472_6e01;
    const NOUN: &'static str = "transport";
    const SURVIVES_FORK: bool = false;

    fn poisoned(value: &TransportObject) {
        value
            .endpoint
            .abort("an internal error of the library, on a transport");
    }
}

/// What a transport handle holds.
pub(super) struct TransportObject {
    pub endpoint: Endpoint,
}

impl TransportObject {
    fn log_met(&self) {
        let endpoint = &self.endpoint;
        line(
            Level::Info,
            format_args!(
                "rank {} transport {} met {} ranks",
                endpoint.rank(),
                endpoint.kind().name(),
                endpoint.ranks().len()
            ),
        );
    }
}

/// Which data plane.
///
/// Since: 0.1
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum wsync_transport_kind {
    /// Ranks as threads of one process.
    WSYNC_TRANSPORT_KIND_LOOPBACK = 1,
    /// Ranks as processes on one host, host memory.
    WSYNC_TRANSPORT_KIND_SHM = 2,
    /// Ranks on GPUs, through NCCL.
    WSYNC_TRANSPORT_KIND_NCCL = 3,
}

/// What a transport is made with. The kind and the ranks are to be equal on
/// all ranks.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_transport_options {
    /// sizeof(wsync_transport_options).
    pub struct_size: usize,
    /// A wsync_transport_kind.
    pub kind: u32,
    /// This rank.
    pub rank: u32,
    /// All ranks, in any order; NULL means 0, 1, .. rank_count - 1.
    pub ranks: *const u32,
    /// How many ranks there are.
    pub rank_count: u32,
    /// 0.
    pub reserved: u32,
    /// shm: bytes of shared memory for all that this rank sends, at most; 0
    /// is WSYNC_SHM_RING_BYTES_MAX from the environment, or 128 MiB.
    pub ring_bytes_max: u64,
    /// nccl: how; NULL means all defaults.
    pub nccl: *const wsync_nccl_options,
}

plain_struct!(wsync_transport_options, 48, "wsync_transport_options");

/// Makes a transport that has met nobody yet. Next is wsync_transport_greeting
/// and wsync_transport_meet, or wsync_transport_rendezvous.
///
/// Errors: UNSUPPORTED for an unknown kind; INVALID_ARGUMENT if `rank` is none
/// of the ranks; IO, OUT_OF_MEMORY; for nccl also LIBRARY_NOT_FOUND,
/// LIBRARY_TOO_OLD, and SYSTEM with NCCL's or CUDA's result.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_create(
    options: *const wsync_transport_options,
    out_transport: *mut *mut wsync_transport,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_transport, "out_transport")? };
        // SAFETY: the header asks for a struct whose struct_size is set.
        let options = unsafe { args::structure(options)? };
        // SAFETY: its pointers are what the header asks for.
        let endpoint = unsafe { endpoint(&options)? };
        copies::warn_of_others();
        out.put(TransportObject { endpoint });
        Ok(())
    })
}

/// Writes this rank's greeting, at most WSYNC_GREETING_BYTES_MAX bytes: what
/// the others need to find it. Gather the greetings of all ranks by any
/// channel, and give all of them to wsync_transport_meet on each. A greeting
/// holds a secret of the group; do not publish it. With a `capacity` of 0 only
/// `out_needed` is written.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_greeting(
    transport: *const wsync_transport,
    buffer: *mut c_void,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { super::out::bytes(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live transport.
        let transport = unsafe { shared(transport)? };
        out.write(transport.endpoint.greeting())
    })
}

/// Takes the greetings of all ranks, this one's included, in any order, and
/// connects. Waits for the others at most `deadline_ns` nanoseconds.
///
/// Errors: MEET_TIMEOUT names a rank that did not come; CORRUPT,
/// VERSION_MISMATCH or INVALID_ARGUMENT the greeting that does not fit;
/// ABORTED.
/// Thread safety: one call at a time per transport; abort may be called
/// meanwhile. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_meet(
    transport: *mut wsync_transport,
    greetings: *const wsync_bytes,
    greeting_count: usize,
    deadline_ns: u64,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live transport.
        let transport = unsafe { exclusive(transport)? };
        // SAFETY: the header asks for `greeting_count` elements.
        let greetings = unsafe {
            args::slice(
                greetings,
                greeting_count,
                "greetings",
                RANK_COUNT_MAX as usize,
            )?
        };
        let greetings = greetings.iter().map(|g| {
            // SAFETY: each has its number of readable bytes.
            unsafe { args::bytes_item(g, "a greeting", GREETING_BYTES_MAX) }
        });
        let greetings = greetings.collect::<Result<Vec<&[u8]>>>()?;
        transport.endpoint.meet(&greetings, deadline_ns)?;
        transport.log_met();
        Ok(())
    })
}

/// Finds the others through a TCP meeting point, instead of
/// wsync_transport_greeting and wsync_transport_meet. `address` is "host:port";
/// the lowest rank listens there, the others connect. `token` is a secret that
/// all ranks share; whoever does not know it is turned away. Waits at most
/// `deadline_ns` nanoseconds.
///
/// Errors: MEET_TIMEOUT names a rank that did not come; IO, INVALID_ARGUMENT,
/// ABORTED.
/// Thread safety: one call at a time per transport; abort may be called
/// meanwhile. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_rendezvous(
    transport: *mut wsync_transport,
    address: *const c_char,
    token: *const c_void,
    token_bytes: usize,
    deadline_ns: u64,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live transport.
        let transport = unsafe { exclusive(transport)? };
        // SAFETY: the header asks for a NUL-terminated address.
        let address = unsafe { args::name(address, "the address")? };
        // SAFETY: the header asks for `token_bytes` readable bytes.
        let token = unsafe { args::bytes(token, token_bytes, "token", TOKEN_BYTES_MAX)? };
        transport.endpoint.rendezvous(address, token, deadline_ns)?;
        transport.log_met();
        Ok(())
    })
}

/// This transport's rank; WSYNC_RANK_NONE if `transport` is NULL or not a
/// transport.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_rank(transport: *const wsync_transport) -> u32 {
    guard_value(WSYNC_RANK_NONE, || {
        // SAFETY: the header asks for NULL or a live transport.
        let transport = unsafe { shared(transport) }.ok()?;
        Some(transport.endpoint.rank().0)
    })
}

/// Number of ranks; 0 if `transport` is NULL or not a transport.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_rank_count(transport: *const wsync_transport) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live transport.
        let transport = unsafe { shared(transport) }.ok()?;
        Some(count_u32(transport.endpoint.ranks().len()))
    })
}

/// OK while the transport is healthy; afterwards the status of the first
/// reason for which it was aborted, here or on any peer, with its record. A
/// lost transport is destroyed and made anew.
///
/// Errors: those of the range -80..-99, and whatever else ended it.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_status(
    transport: *const wsync_transport,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live transport.
        let transport = unsafe { shared(transport)? };
        transport.endpoint.abort_reason().map_or(Ok(()), Err)
    })
}

/// Stops everything that uses this transport, here and on all peers. The first
/// reason wins; aborting again changes nothing. Never waits. A meeting that is
/// under way fails with the reason at once, and its peers hear of it or see this
/// rank go.
///
/// Errors: none but a wrong argument.
/// Thread safety: any thread, at any time, during other calls on the transport
/// too. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_abort(
    transport: *mut wsync_transport,
    reason: *const c_char,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live transport.
        let transport = unsafe { shared(transport)? };
        // SAFETY: the header asks for a NUL-terminated reason.
        let reason = unsafe { args::name(reason, "the reason")? };
        transport.endpoint.abort(reason);
        Ok(())
    })
}

/// The polite end: leaves together with all other ranks. Waits until every
/// rank has called this, at most `deadline_ns` nanoseconds. No request can be
/// prepared any more. After MEET_TIMEOUT it may be called again, to wait on.
///
/// Errors: MEET_TIMEOUT names a rank that did not come; BUSY while a request
/// is under way; INVALID_STATE if the
/// ranks have not met; the reason, if the transport was aborted.
/// Thread safety: one call at a time per transport; abort may be called
/// meanwhile. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_finalize(
    transport: *mut wsync_transport,
    deadline_ns: u64,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a live transport.
        let transport = unsafe { exclusive(transport)? };
        transport.endpoint.finalize(deadline_ns)
    })
}

/// Ends the transport; sessions that use it keep it alive until they are gone.
/// Never waits for peers. NULL is fine.
///
/// Thread safety: once, with no other call on it under way. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_transport_destroy(transport: *mut wsync_transport) {
    // SAFETY: the header asks for NULL or a transport that nobody uses.
    unsafe { handle::destroy(transport) };
}

/// # Safety
///
/// The list of ranks is NULL or has the count that stands beside it, and what
/// else is pointed to is NULL or as the header says.
unsafe fn endpoint(given: &wsync_transport_options) -> Result<Endpoint> {
    const LOOPBACK: u32 = wsync_transport_kind::WSYNC_TRANSPORT_KIND_LOOPBACK as u32;
    const SHM: u32 = wsync_transport_kind::WSYNC_TRANSPORT_KIND_SHM as u32;
    const NCCL: u32 = wsync_transport_kind::WSYNC_TRANSPORT_KIND_NCCL as u32;
    args::reserved(
        <wsync_transport_options as args::Plain>::NAME,
        given.reserved,
    )?;
    let ranks = match given.ranks.is_null() {
        true => RankSet::count(given.rank_count)?,
        false => {
            let list = wsync_rank_list {
                ranks: given.ranks,
                count: given.rank_count as usize,
            };
            // SAFETY: passed on.
            RankSet::list(&unsafe { args::ranks(&list, "ranks", RANK_COUNT_MAX as usize)? })?
        }
    };
    let bootstrap: Box<dyn Bootstrap> = match given.kind {
        LOOPBACK => Box::new(Loopback),
        SHM => Box::new(Shm::new(Rank(given.rank), shm_options(given)?)?),
        NCCL => {
            let is_lowest = ranks.lowest() == Rank(given.rank);
            // SAFETY: passed on.
            Box::new(unsafe { nccl::bootstrap(given.nccl, is_lowest)? })
        }
        other => return Err(args::unknown("kind", other)),
    };
    Endpoint::new(Rank(given.rank), ranks, bootstrap)
}

fn shm_options(given: &wsync_transport_options) -> Result<ShmOptions> {
    let mut options = ShmOptions::default();
    let wanted = match given.ring_bytes_max {
        0 => env::shm_ring_bytes_max()?,
        bytes => Some(bytes),
    };
    if let Some(bytes) = wanted {
        options.ring_bytes_max = bytes;
    }
    Ok(options)
}
