//! Topologies: hosts, NVLink domains, NICs, and which rank is where.

use super::args::{self, plain_element, plain_struct};
use super::guard;
use super::handle::{self, Handle, shared};
use super::out::{Out, StructOut, TextBuffer};
use super::types::{wsync_bytes, wsync_error, wsync_rank_list, wsync_status, wsync_text};
use crate::error::{Error, Result, Status};
use crate::layout::mesh::RankList;
use crate::limits::{FILE_BYTES_MAX, RANK_COUNT_MAX, TOPOLOGY_ENTRY_COUNT_MAX};
use crate::plan::topology::{
    FabricCut, HostGroup, PlacementRun, RankPlace, SpeedFactor, Topology, TopologySpec,
};
use crate::rank::Rank;
use crate::transport::place;
use std::ffi::{c_char, c_void};

/// What stands between the ranks: hosts, NVLink domains, NICs, the network
/// above them, and where each rank is. Immutable; may be used by any number of
/// threads.
///
/// wsync_topology_create, wsync_topology_create_from_json,
/// wsync_topology_create_from_places, wsync_topology_place,
/// wsync_topology_to_json, wsync_topology_site, wsync_topology_destroy.
///
/// Since: 0.1
pub struct wsync_topology {
    _opaque: [u8; 0],
}

impl Handle for wsync_topology {
    type Value = Topology;
    const MAGIC: u64 = 0x7773_796e_746f_7001;
    const NOUN: &'static str = "topology";
    const SURVIVES_FORK: bool = true;
}

/// Consecutive hosts that are built alike. Speeds are bytes per second, each
/// way.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_host_group {
    /// Hosts; 0, in the last group only, is as many as the ranks need.
    pub count: u32,
    /// GPUs of a host; 0 is 8.
    pub gpus: u32,
    /// NICs of a host, a divisor or a multiple of gpus; 0 is one per GPU.
    pub nics: u32,
    /// Consecutive hosts that form one NVLink domain; 0 is 1.
    pub domain_hosts: u32,
    /// Of one NIC; 0 is 400 Gb/s.
    pub nic_bytes_per_s: u64,
    /// Of one GPU inside its NVLink domain; 0 is 450 GB/s.
    pub nvlink_bytes_per_s: u64,
}

plain_element!(wsync_host_group, 32, "wsync_host_group");

/// Ranks on consecutive GPUs, in the order of the list.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_placement_run {
    /// In this order on GPUs from `gpu` on.
    pub ranks: wsync_rank_list,
    /// The GPU of the first rank, counted over all hosts from 0.
    pub gpu: u32,
    /// Ranks that share a GPU; 0 is 1.
    pub ranks_per_gpu: u32,
}

plain_element!(wsync_placement_run, 24, "wsync_placement_run");

/// Ranks that are slower than their host, or drained.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_speed_factor {
    /// Whose links are slower.
    pub ranks: wsync_rank_list,
    /// Of the NIC's speed, 1 to 100; 0 is 100.
    pub nic_percent: u32,
    /// Of the GPU's NVLink speed, 1 to 100; 0 is 100.
    pub nvlink_percent: u32,
    /// Not 0: these ranks should send nothing that others hold too.
    pub is_drained: u32,
    /// 0.
    pub reserved: u32,
}

plain_element!(wsync_speed_factor, 32, "wsync_speed_factor");

/// A level of the network above the NICs, such as leaf switches or pods.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_fabric_cut {
    /// What reports call it, such as "pods".
    pub name: wsync_text,
    /// Consecutive hosts of one cell.
    pub hosts: u32,
    /// Not 0: every rail of these hosts is a cell of its own.
    pub is_by_rail: u32,
    /// Of a cell, to and from all others.
    pub out_bytes_per_s: u64,
    /// The other way.
    pub in_bytes_per_s: u64,
}

plain_element!(wsync_fabric_cut, 40, "wsync_fabric_cut");

/// What a topology is made of. Each stride is the sizeof of its element.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_topology_options {
    /// sizeof(wsync_topology_options).
    pub struct_size: usize,
    /// None means hosts of 8 GPUs, as many as the ranks need.
    pub hosts: *const wsync_host_group,
    /// How many groups there are.
    pub host_count: usize,
    /// sizeof(wsync_host_group).
    pub host_stride: usize,
    /// None means source ranks first, then destination ranks, on hosts of
    /// their own.
    pub placement: *const wsync_placement_run,
    /// How many there are.
    pub placement_count: usize,
    /// sizeof(wsync_placement_run).
    pub placement_stride: usize,
    /// Ranks that are slower than their hosts say; none is usual.
    pub speeds: *const wsync_speed_factor,
    /// How many there are.
    pub speed_count: usize,
    /// sizeof(wsync_speed_factor).
    pub speed_stride: usize,
    /// Levels of the network above the NICs; none is a network that never binds.
    pub cuts: *const wsync_fabric_cut,
    /// How many there are.
    pub cut_count: usize,
    /// sizeof(wsync_fabric_cut).
    pub cut_stride: usize,
    /// By which every message is late; 0 is 20 us.
    pub latency_ns: u64,
    /// Bytes that a GPU packs or unpacks in a second; 0 is 1.34 TB/s.
    pub pack_bytes_per_s: u64,
}

plain_struct!(wsync_topology_options, 120, "wsync_topology_options");

/// Where one rank says that it is.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_rank_place {
    /// sizeof(wsync_rank_place).
    pub struct_size: usize,
    /// Whose place this is.
    pub rank: u32,
    /// 0.
    pub reserved: u32,
    /// Equal on all ranks of a host, and on no others; empty is the boot id of
    /// this host.
    pub host: wsync_text,
    /// The uuid of the GPU; ranks of one uuid share it. Empty is the GPU that
    /// is current on the calling thread.
    pub device: wsync_text,
    /// Of the NVLink fabric, where it spans hosts; else empty.
    pub domain: wsync_text,
    /// Names of the NICs near the GPU: NICs of one name are one rail on all
    /// hosts, and rails are in the order of these names. With an empty device,
    /// none are those that share most PCI bridges with the GPU.
    pub nics: *const wsync_text,
    /// How many there are.
    pub nic_count: usize,
}

plain_struct!(wsync_rank_place, 80, "wsync_rank_place");

/// Where a rank sits. Numbers count over the whole topology from 0.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_site {
    /// sizeof(wsync_site), set by the caller.
    pub struct_size: usize,
    /// Its number, counted over all hosts.
    pub gpu: u32,
    /// Its number.
    pub host: u32,
    /// The NVLink domain.
    pub domain: u32,
    /// Index of the GPU's NIC within its host.
    pub rail: u32,
    /// Of the GPU's NICs together, each way; 0 if it has none.
    pub nic_bytes_per_s: u64,
    /// Of the GPU, each way.
    pub nvlink_bytes_per_s: u64,
}

plain_struct!(wsync_site, 40, "wsync_site");

/// Makes a topology from arrays. `options` may be NULL: the default topology.
///
/// Errors: INVALID_ARGUMENT for what contradicts itself, speeds of 0 and cuts
/// that disconnect, with the numbers; LIMIT_EXCEEDED.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_topology_create(
    options: *const wsync_topology_options,
    out_topology: *mut *mut wsync_topology,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_topology, "out_topology")? };
        // SAFETY: the header asks for NULL or a struct whose struct_size is
        // set and whose arrays have the counts and strides beside them.
        let spec = unsafe { topology_spec(options)? };
        out.put(Topology::new(spec)?);
        Ok(())
    })
}

/// Makes a topology from the text of a topology file (JSON, UTF-8).
///
/// Errors: INVALID_ARGUMENT names line, field and numbers, VERSION_MISMATCH a
/// file of another version; LIMIT_EXCEEDED.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_topology_create_from_json(
    json: *const c_char,
    json_bytes: usize,
    out_topology: *mut *mut wsync_topology,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_topology, "out_topology")? };
        // SAFETY: the header asks for `json_bytes` readable bytes.
        let json = unsafe { args::bytes(json.cast(), json_bytes, "json", FILE_BYTES_MAX)? };
        out.put(Topology::from_json(json)?);
        Ok(())
    })
}

/// Writes where a rank is as bytes, to be gathered from all ranks over any
/// channel and given to wsync_topology_create_from_places. With a `capacity`
/// of 0 only `out_needed` is written: the number of bytes.
///
/// Errors: INVALID_ARGUMENT if the device is empty and there is no GPU, or the
/// host on a system without a boot id; BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_topology_place(
    place: *const wsync_rank_place,
    buffer: *mut c_void,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { super::out::bytes(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a struct whose struct_size is set and
        // whose array has the count that stands beside it.
        let place = place::complete(unsafe { rank_place(place)? })?;
        place.validate()?;
        out.write(&place.to_bytes())
    })
}

/// Makes a topology from the places of all ranks, in any order. `like` says
/// what ranks cannot know: speeds, cuts and latency; its first group of hosts
/// those of all hosts. NULL takes the defaults.
///
/// Errors: CORRUPT for damaged bytes; INVALID_ARGUMENT for places that
/// contradict each other, with rank and names.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_topology_create_from_places(
    places: *const wsync_bytes,
    place_count: usize,
    like: *const wsync_topology_options,
    out_topology: *mut *mut wsync_topology,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_topology, "out_topology")? };
        // SAFETY: the header asks for `place_count` elements.
        let items = unsafe { args::slice(places, place_count, "places", RANK_COUNT_MAX as usize)? };
        let mut places = Vec::with_capacity(items.len());
        for item in items {
            // SAFETY: each has the number of bytes that stands in it.
            let bytes = unsafe { args::bytes_item(item, "a place", FILE_BYTES_MAX)? };
            places.push(RankPlace::from_bytes(bytes)?);
        }
        // SAFETY: as for wsync_topology_create.
        let like = unsafe { topology_spec(like)? };
        out.put(Topology::discover(&places, &like)?);
        Ok(())
    })
}

/// Writes the topology as a topology file, NUL-terminated. With a `capacity`
/// of 0 only `out_needed` is written: the number of bytes, the NUL included.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_topology_to_json(
    topology: *const wsync_topology,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live topology.
        let topology = unsafe { shared(topology)? };
        out.write(topology.to_json())
    })
}

/// Writes where `rank` sits.
///
/// Errors: NOT_FOUND if the topology does not place it, as one without
/// placement places none.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_topology_site(
    topology: *const wsync_topology,
    rank: u32,
    out_site: *mut wsync_site,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a struct whose struct_size is set.
        let out = unsafe { StructOut::new(out_site)? };
        // SAFETY: the header asks for a live topology.
        let topology = unsafe { shared(topology)? };
        let site = topology.site(Rank(rank)).ok_or_else(|| {
            Error::new(
                Status::NotFound,
                format!("the topology does not place rank {rank}"),
            )
        })?;
        out.write(&wsync_site {
            struct_size: size_of::<wsync_site>(),
            gpu: site.gpu,
            host: site.host,
            domain: site.domain,
            rail: site.rail,
            nic_bytes_per_s: site.nic_bytes_per_s,
            nvlink_bytes_per_s: site.nvlink_bytes_per_s,
        });
        Ok(())
    })
}

/// Destroys the topology. NULL is ignored. Plans that were made with it stay
/// valid.
///
/// Thread safety: nobody else uses the handle any more. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_topology_destroy(topology: *mut wsync_topology) {
    // SAFETY: the header asks for NULL or a live handle nobody else uses.
    unsafe { handle::destroy(topology) }
}

/// # Safety
///
/// NULL, or a struct whose struct_size is set and whose arrays have the counts
/// and strides that stand beside them.
unsafe fn topology_spec(options: *const wsync_topology_options) -> Result<TopologySpec> {
    let mut spec = TopologySpec::default();
    // SAFETY: passed on.
    let Some(given) = (unsafe { args::optional(options)? }) else {
        return Ok(spec);
    };
    let max = TOPOLOGY_ENTRY_COUNT_MAX;
    // SAFETY: the arrays have the counts and strides that stand beside them.
    let (hosts, placement, speeds, cuts) = unsafe {
        (
            args::strided(given.hosts, given.host_count, given.host_stride, max)?,
            args::strided(
                given.placement,
                given.placement_count,
                given.placement_stride,
                max,
            )?,
            args::strided(given.speeds, given.speed_count, given.speed_stride, max)?,
            args::strided(given.cuts, given.cut_count, given.cut_stride, max)?,
        )
    };
    if !hosts.is_empty() {
        spec.hosts = hosts.iter().map(host_group).collect();
    }
    for p in &placement {
        spec.placement.push(PlacementRun {
            // SAFETY: the list has its number of ranks.
            ranks: unsafe { rank_list(&p.ranks, "placement")? },
            gpu: p.gpu,
            ranks_per_gpu: p.ranks_per_gpu.max(1),
        });
    }
    let percent = |p: u32| if p == 0 { 100 } else { p };
    for s in &speeds {
        args::reserved("wsync_speed_factor", s.reserved)?;
        spec.speeds.push(SpeedFactor {
            // SAFETY: the list has its number of ranks.
            ranks: unsafe { rank_list(&s.ranks, "speeds")? },
            nic_percent: percent(s.nic_percent),
            nvlink_percent: percent(s.nvlink_percent),
            is_drained: s.is_drained != 0,
        });
    }
    for c in &cuts {
        spec.cuts.push(FabricCut {
            // SAFETY: the text has its number of bytes.
            name: unsafe { args::text(&c.name, "the name of a cut")? }.to_string(),
            hosts: c.hosts,
            by_rail: c.is_by_rail != 0,
            out_bytes_per_s: c.out_bytes_per_s,
            in_bytes_per_s: c.in_bytes_per_s,
        });
    }
    if given.latency_ns != 0 {
        spec.latency_ns = given.latency_ns;
    }
    if given.pack_bytes_per_s != 0 {
        spec.pack_bytes_per_s = given.pack_bytes_per_s;
    }
    Ok(spec)
}

fn host_group(given: &wsync_host_group) -> HostGroup {
    let default = HostGroup::default();
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    let or_u32 = |value: u32, default: u32| if value == 0 { default } else { value };
    let gpus = or_u32(given.gpus, default.gpus);
    HostGroup {
        count: given.count,
        gpus,
        nics: or_u32(given.nics, gpus),
        nic_bytes_per_s: or(given.nic_bytes_per_s, default.nic_bytes_per_s),
        nvlink_bytes_per_s: or(given.nvlink_bytes_per_s, default.nvlink_bytes_per_s),
        domain_hosts: or_u32(given.domain_hosts, default.domain_hosts),
    }
}

/// # Safety
///
/// The list has its number of ranks.
unsafe fn rank_list(list: &wsync_rank_list, what: &str) -> Result<RankList> {
    // SAFETY: passed on.
    let ranks = unsafe { args::ranks(list, what, RANK_COUNT_MAX as usize)? };
    Ok(RankList::List(ranks).canonical())
}

/// # Safety
///
/// NULL, or a struct whose struct_size is set and whose array has the count
/// that stands beside it.
unsafe fn rank_place(place: *const wsync_rank_place) -> Result<RankPlace> {
    // SAFETY: passed on.
    let given = unsafe { args::structure(place)? };
    args::reserved("wsync_rank_place", given.reserved)?;
    // SAFETY: the texts have their number of bytes.
    unsafe {
        Ok(RankPlace {
            rank: Rank(given.rank),
            host: args::text(&given.host, "host")?.to_string(),
            device: args::text(&given.device, "device")?.to_string(),
            domain: args::text(&given.domain, "domain")?.to_string(),
            nics: args::texts(given.nics, given.nic_count, "nics", 64)?,
        })
    }
}
