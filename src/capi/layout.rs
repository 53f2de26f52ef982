//! Layouts: one side's description of who holds which bytes.

use super::args::{self, plain_element, plain_struct};
use super::handle::{self, Handle, shared};
use super::out::{Out, StructOut, TextBuffer, fill_text};
use super::types::{
    wsync_buffer_info, wsync_dtype, wsync_error, wsync_memory, wsync_side, wsync_status, wsync_text,
};
use super::{count_u32, guard, guard_value};
use crate::error::{Error, Result, Status};
use crate::layout::check::{Finding, PairReport, Report, check, check_pair};
use crate::layout::dtype::Dtype;
use crate::layout::tensor::{IndexBox, Span, Tensor, TensorIndex};
use crate::layout::view::{Memory, NamedBuffer, RankViews, Strides, View};
use crate::layout::{Layout, LayoutSpec};
use crate::limits::{FILE_BYTES_MAX, TENSOR_COUNT_MAX, VIEW_COUNT_MAX};
use crate::plan::program::Side;
use crate::rank::Rank;
use serde::Serialize;
use std::ffi::{c_char, c_void};
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

/// One side's description: which rank holds which part of which tensor, and
/// where. Immutable; may be used by any number of threads.
///
/// wsync_layout_create_from_json, wsync_layout_create_from_views,
/// wsync_layout_create_from_bytes, wsync_layout_merge, wsync_layout_serialize,
/// wsync_layout_to_json, wsync_layout_check, wsync_layout_check_json,
/// wsync_layout_describe, wsync_layout_rank_count, wsync_layout_tensor_count,
/// wsync_layout_copy_count, wsync_layout_buffer_count, wsync_layout_buffer_at,
/// wsync_layout_destroy.
///
/// Since: 0.1
pub struct wsync_layout {
    _opaque: [u8; 0],
}

/// What a layout handle holds.
pub(super) struct LayoutObject {
    pub layout: Arc<Layout>,
    buffers: BufferCache,
}

/// Buffers of a rank, each with its side where a plan tells it.
pub(super) type SideBuffers = Arc<[(Option<Side>, NamedBuffer)]>;

/// The buffers of the rank that was asked for last, so that going through them
/// one by one does not derive them again and again.
#[derive(Default)]
pub(super) struct BufferCache {
    held: Mutex<Option<(Rank, SideBuffers)>>,
}

impl BufferCache {
    pub fn get(
        &self,
        rank: Rank,
        make: impl FnOnce() -> Result<SideBuffers>,
    ) -> Result<SideBuffers> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((of, buffers)) if *of == rank => Ok(buffers.clone()),
            _ => Ok(held.insert((rank, make()?)).1.clone()),
        }
    }
}

impl Handle for wsync_layout {
    type Value = LayoutObject;
    const MAGIC: u64 = 0x7773_796e_6c61_7901;
    const NOUN: &'static str = "layout";
    const SURVIVES_FORK: bool = true;
}

/// A canonical tensor of a layout that is given view by view.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_tensor {
    /// Its canonical name, such as "model.layers.0.self_attn.q_proj.weight".
    pub name: wsync_text,
    /// Axes, at most WSYNC_DIM_COUNT_MAX.
    pub dim_count: u32,
    /// The type in which the tensor is defined.
    pub dtype: wsync_dtype,
    /// Indices along each axis; 0 beyond dim_count.
    pub shape: [u64; 8],
    /// Indices along each axis that no cut may split, such as the rows of a
    /// head; 0 is 1.
    pub granule: [u64; 8],
}

plain_element!(wsync_tensor, 152, "wsync_tensor");

/// A named range of local memory of a layout that is given view by view. The
/// memory itself is bound later, by name.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_buffer {
    pub name: wsync_text,
    pub bytes: u64,
    /// A wsync_memory.
    pub memory: u32,
    /// The GPU, if memory is WSYNC_MEMORY_DEVICE.
    pub device: u32,
}

plain_element!(wsync_buffer, 32, "wsync_buffer");

/// A box of a tensor and where it lies in a buffer: element (i0, i1, ..) is at
/// offset + (i0 - lo[0]) * strides[0] + (i1 - lo[1]) * strides[1] + ..
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_view {
    /// Index into the tensors given beside it.
    pub tensor: u32,
    /// Index into the buffers given beside it.
    pub buffer: u32,
    /// Bytes from the start of the buffer to the first element of the box.
    pub offset: u64,
    /// First index of the box along each axis; 0 beyond the tensor's axes.
    pub lo: [u64; 8],
    /// One more than its last index along each axis; 0 beyond.
    pub hi: [u64; 8],
    /// Bytes between neighbours along each axis, which may be negative; all 0
    /// means without gaps, the last axis innermost.
    pub strides: [i64; 8],
    /// The type in memory; {0, 0, 0} is the tensor's own.
    pub dtype: wsync_dtype,
    /// 0.
    pub reserved: u32,
}

plain_element!(wsync_view, 216, "wsync_view");

/// Another name of a tensor, such as a tied embedding's.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_alias {
    /// The other name.
    pub alias: wsync_text,
    /// The tensor's name.
    pub name: wsync_text,
}

plain_element!(wsync_alias, 32, "wsync_alias");

/// Everything that one rank holds. Each stride is the sizeof of its element.
///
/// Since: 0.1
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wsync_rank_views {
    /// sizeof(wsync_rank_views).
    pub struct_size: usize,
    pub rank: u32,
    /// The copy (replica) this rank belongs to; any number that its other
    /// ranks use too.
    pub copy: u32,
    pub tensors: *const wsync_tensor,
    pub tensor_count: usize,
    pub tensor_stride: usize,
    pub buffers: *const wsync_buffer,
    pub buffer_count: usize,
    pub buffer_stride: usize,
    pub views: *const wsync_view,
    pub view_count: usize,
    pub view_stride: usize,
    pub aliases: *const wsync_alias,
    pub alias_count: usize,
    pub alias_stride: usize,
}

plain_struct!(wsync_rank_views, 112, "wsync_rank_views");
plain_struct!(wsync_buffer_info, 1064, "wsync_buffer_info");
plain_struct!(wsync_error, 520, "wsync_error");

/// Makes a layout from the text of a layout file (JSON, UTF-8).
///
/// Errors: LAYOUT_INVALID names line, tensor and numbers, VERSION_MISMATCH a
/// file of another version; LIMIT_EXCEEDED.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_create_from_json(
    json: *const c_char,
    json_bytes: usize,
    out_layout: *mut *mut wsync_layout,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_layout, "out_layout")? };
        // SAFETY: the header asks for `json_bytes` readable bytes.
        let json = unsafe { args::bytes(json.cast(), json_bytes, "json", FILE_BYTES_MAX)? };
        out.put(LayoutObject::new(Layout::from_json(json)?));
        Ok(())
    })
}

/// Makes a layout of one rank from flat arrays of tensors, buffers and views.
/// Layouts of several ranks become one by wsync_layout_merge.
///
/// Errors: LAYOUT_INVALID, INVALID_ARGUMENT or LIMIT_EXCEEDED name the tensor
/// or buffer and the numbers.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_create_from_views(
    views: *const wsync_rank_views,
    out_layout: *mut *mut wsync_layout,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_layout, "out_layout")? };
        // SAFETY: the header asks for a struct whose struct_size is set, and
        // whose arrays have the counts and strides that stand beside them.
        let layout = unsafe { views_layout(views)? };
        out.put(LayoutObject::new(layout));
        Ok(())
    })
}

/// Makes a layout from what wsync_layout_serialize wrote, on any machine.
///
/// Errors: CORRUPT for damaged, truncated or foreign bytes; VERSION_MISMATCH.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_create_from_bytes(
    bytes: *const c_void,
    byte_count: usize,
    out_layout: *mut *mut wsync_layout,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_layout, "out_layout")? };
        // SAFETY: the header asks for `byte_count` readable bytes.
        let bytes = unsafe { args::bytes(bytes, byte_count, "bytes", FILE_BYTES_MAX)? };
        out.put(LayoutObject::new(Layout::from_bytes(bytes)?));
        Ok(())
    })
}

/// Makes one layout of several, such as the layouts of all ranks of a side.
/// No rank may be in two of them; tensors of one name must be equal.
///
/// Errors: LAYOUT_INVALID names the rank or tensor; LIMIT_EXCEEDED.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_merge(
    layouts: *const *const wsync_layout,
    layout_count: usize,
    out_layout: *mut *mut wsync_layout,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_layout, "out_layout")? };
        // SAFETY: the header asks for `layout_count` handles.
        let handles = unsafe { args::slice(layouts, layout_count, "layouts", TENSOR_COUNT_MAX)? };
        let mut parts: Vec<Arc<Layout>> = Vec::with_capacity(handles.len());
        for &handle in handles {
            // SAFETY: each is a live layout, as the header asks.
            parts.push(unsafe { shared(handle)? }.layout.clone());
        }
        let parts: Vec<&Layout> = parts.iter().map(|p| &**p).collect();
        out.put(LayoutObject::new(Layout::merge(&parts)?));
        Ok(())
    })
}

/// Writes the layout as bytes that wsync_layout_create_from_bytes reads. With
/// a `capacity` of 0 only `out_needed` is written: the number of bytes.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_serialize(
    layout: *const wsync_layout,
    buffer: *mut c_void,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { super::out::bytes(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live layout.
        let layout = unsafe { shared(layout)? };
        out.write(&layout.layout.to_bytes())
    })
}

/// Writes the layout as a layout file, NUL-terminated. With a `capacity` of 0
/// only `out_needed` is written: the number of bytes, the NUL included.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_to_json(
    layout: *const wsync_layout,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live layout.
        let layout = unsafe { shared(layout)? };
        out.write(layout.layout.to_json())
    })
}

/// Looks for everything that is wrong with a layout or, if `destination` is
/// not NULL, with planning from one to the other: bytes that are needed and
/// never held, bytes written twice, overlaps, cuts that split a granule, names
/// that one side lacks. Finding something is not a failure of the call.
///
/// Writes all findings as JSON, NUL-terminated, and the number of those that
/// hinder: 0 means that a plan can be made. With a `capacity` of 0 only
/// `out_needed` (bytes, the NUL included) and `out_error_count` are written.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_check(
    source: *const wsync_layout,
    destination: *const wsync_layout,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    out_error_count: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a place for the number.
        let count = unsafe { Out::new(out_error_count, "out_error_count")? };
        // SAFETY: the header asks for a live layout.
        let source = unsafe { shared(source)? };
        let destination = match destination.is_null() {
            true => None,
            // SAFETY: the header asks for NULL or a live layout.
            false => Some(unsafe { shared(destination)? }.layout.clone()),
        };
        let found = CheckReport::of_layouts(&source.layout, destination.as_deref());
        out.write_json(&found)?;
        count.write(found.error_count());
        Ok(())
    })
}

/// Like wsync_layout_check, from the texts of layout files, of which a layout
/// cannot be made if they are ill-formed. `destination_json` may be NULL.
///
/// Errors: BUFFER_TOO_SMALL; LAYOUT_INVALID only where a text is not JSON of
/// the right shape, VERSION_MISMATCH where it is of another version.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_check_json(
    source_json: *const c_char,
    source_json_bytes: usize,
    destination_json: *const c_char,
    destination_json_bytes: usize,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    out_error_count: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a place for the number.
        let count = unsafe { Out::new(out_error_count, "out_error_count")? };
        let (a, a_bytes) = (source_json.cast(), source_json_bytes);
        let (b, b_bytes) = (destination_json.cast(), destination_json_bytes);
        // SAFETY: the header asks for these numbers of readable bytes.
        let (source, destination) = unsafe {
            (
                args::bytes(a, a_bytes, "source_json", FILE_BYTES_MAX)?,
                args::bytes(b, b_bytes, "destination_json", FILE_BYTES_MAX)?,
            )
        };
        let destination = (!destination.is_empty()).then_some(destination);
        let found = CheckReport::of_files(source, destination)?;
        out.write_json(&found)?;
        count.write(found.error_count());
        Ok(())
    })
}

/// Writes a summary of the layout as JSON, NUL-terminated: ranks, copies,
/// tensors, bytes. With a `capacity` of 0 only `out_needed` is written: the
/// number of bytes, the NUL included.
///
/// Errors: BUFFER_TOO_SMALL.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_describe(
    layout: *const wsync_layout,
    buffer: *mut c_char,
    capacity: usize,
    out_needed: *mut usize,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a buffer of `capacity` bytes.
        let out = unsafe { TextBuffer::new(buffer, capacity, out_needed)? };
        // SAFETY: the header asks for a live layout.
        let layout = unsafe { shared(layout)? };
        out.write_json(&layout.layout.describe())
    })
}

/// Number of ranks of the layout; 0 if `layout` is NULL or not a layout.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_rank_count(layout: *const wsync_layout) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live layout.
        let layout = unsafe { shared(layout) }.ok()?;
        Some(layout.layout.rank_count())
    })
}

/// Number of canonical tensors; 0 if `layout` is NULL or not a layout.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_tensor_count(layout: *const wsync_layout) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live layout.
        let layout = unsafe { shared(layout) }.ok()?;
        Some(count_u32(layout.layout.tensors().len()))
    })
}

/// Number of copies (replicas); 0 if `layout` is NULL or not a layout.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_copy_count(layout: *const wsync_layout) -> u32 {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live layout.
        let layout = unsafe { shared(layout) }.ok()?;
        Some(layout.layout.copy_count())
    })
}

/// Number of buffers that `rank` binds for all of the layout; 0 if the rank
/// takes no part, or if `layout` is NULL or not a layout.
///
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_buffer_count(
    layout: *const wsync_layout,
    rank: u32,
) -> usize {
    guard_value(0, || {
        // SAFETY: the header asks for NULL or a live layout.
        let layout = unsafe { shared(layout) }.ok()?;
        Some(layout.buffers(Rank(rank)).ok()?.len())
    })
}

/// Name, size and memory of buffer `index` of `rank`, in order of name.
///
/// Errors: NOT_FOUND if the rank has no such buffer.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_buffer_at(
    layout: *const wsync_layout,
    rank: u32,
    index: usize,
    out_info: *mut wsync_buffer_info,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a struct whose struct_size is set.
        let out = unsafe { StructOut::new(out_info)? };
        // SAFETY: the header asks for a live layout.
        let layout = unsafe { shared(layout)? };
        let buffers = layout.buffers(Rank(rank))?;
        let (side, buffer) = buffers
            .get(index)
            .ok_or_else(|| no_buffer(rank, index, buffers.len()))?;
        out.write(&buffer_info(*side, buffer));
        Ok(())
    })
}

/// Ends the layout. Plans made from it go on. NULL is fine.
///
/// Thread safety: once, with no other call on it under way. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_destroy(layout: *mut wsync_layout) {
    // SAFETY: the header asks for NULL or a layout that nobody uses any more.
    unsafe { handle::destroy(layout) };
}

impl LayoutObject {
    pub fn new(layout: Layout) -> LayoutObject {
        LayoutObject {
            layout: Arc::new(layout),
            buffers: BufferCache::default(),
        }
    }

    fn buffers(&self, rank: Rank) -> Result<SideBuffers> {
        self.buffers.get(rank, || {
            let all = self.layout.buffers(rank).into_iter();
            Ok(all.map(|b| (None, b)).collect())
        })
    }
}

/// All findings about one layout, or about two and what is between them.
#[derive(Serialize)]
struct CheckReport {
    source: Report,
    destination: Option<Report>,
    /// What is between them; absent unless both are well-formed.
    pair: Option<PairReport>,
}

impl CheckReport {
    fn of_layouts(source: &Layout, destination: Option<&Layout>) -> CheckReport {
        CheckReport {
            source: check(source.spec()),
            destination: destination.map(|d| check(d.spec())),
            pair: destination.map(|d| check_pair(source, d)),
        }
    }

    fn of_files(source: &[u8], destination: Option<&[u8]>) -> Result<CheckReport> {
        let source = LayoutSpec::from_json(source)?;
        let destination = destination.map(LayoutSpec::from_json).transpose()?;
        let mut found = CheckReport {
            source: check(&source),
            destination: destination.as_ref().map(check),
            pair: None,
        };
        if found.error_count() == 0
            && let Some(destination) = destination
        {
            found.pair = Some(check_pair(
                &Layout::new(source)?,
                &Layout::new(destination)?,
            ));
        }
        Ok(found)
    }

    /// Findings that hinder a plan, counted also where they are not listed.
    fn error_count(&self) -> usize {
        let of = |report: &Report| errors(&report.findings, report.omitted);
        of(&self.source)
            + self.destination.as_ref().map_or(0, of)
            + self
                .pair
                .as_ref()
                .map_or(0, |p| errors(&p.findings, p.omitted))
    }
}

/// Errors among findings, and the omitted ones if there are any errors.
fn errors(findings: &[Finding], omitted: u64) -> usize {
    match findings.iter().filter(|f| f.kind.is_error()).count() {
        0 => 0,
        listed => listed.saturating_add(usize::try_from(omitted).unwrap_or(usize::MAX)),
    }
}

pub(super) fn no_buffer(rank: u32, index: usize, count: usize) -> Error {
    Error::new(
        Status::NotFound,
        format!("rank {rank} has {count} buffers; index {index} is none"),
    )
}

pub(super) fn buffer_info(side: Option<Side>, buffer: &NamedBuffer) -> wsync_buffer_info {
    let (memory, device) = match buffer.memory {
        Memory::Host => (wsync_memory::WSYNC_MEMORY_HOST, 0),
        Memory::PinnedHost => (wsync_memory::WSYNC_MEMORY_PINNED_HOST, 0),
        Memory::Device(n) => (wsync_memory::WSYNC_MEMORY_DEVICE, n),
    };
    let mut info = wsync_buffer_info {
        struct_size: 0,
        bytes: buffer.bytes,
        side: match side {
            None => 0,
            Some(Side::Source) => wsync_side::WSYNC_SIDE_SOURCE as u32,
            Some(Side::Destination) => wsync_side::WSYNC_SIDE_DESTINATION as u32,
        },
        memory: memory as u32,
        device,
        name_bytes: 0,
        name: [0; 1032],
    };
    info.name_bytes = count_u32(fill_text(&mut info.name, &buffer.name));
    info
}

/// # Safety
///
/// `views` has its struct_size set, and its arrays have the counts and strides
/// that stand beside them.
unsafe fn views_layout(views: *const wsync_rank_views) -> Result<Layout> {
    // SAFETY: passed on.
    let given = unsafe { args::structure(views)? };
    // SAFETY: passed on.
    let (tensors, buffers, views, aliases) = unsafe {
        (
            args::strided(
                given.tensors,
                given.tensor_count,
                given.tensor_stride,
                TENSOR_COUNT_MAX,
            )?,
            args::strided(
                given.buffers,
                given.buffer_count,
                given.buffer_stride,
                VIEW_COUNT_MAX,
            )?,
            args::strided(
                given.views,
                given.view_count,
                given.view_stride,
                VIEW_COUNT_MAX,
            )?,
            args::strided(
                given.aliases,
                given.alias_count,
                given.alias_stride,
                TENSOR_COUNT_MAX,
            )?,
        )
    };
    // SAFETY: passed on, for each element.
    let (tensors, buffers, aliases) = unsafe {
        (
            tensors
                .iter()
                .map(|t| tensor_of(t))
                .collect::<Result<Vec<Tensor>>>()?,
            buffers
                .iter()
                .map(|b| buffer_of(b))
                .collect::<Result<Vec<NamedBuffer>>>()?,
            aliases
                .iter()
                .map(|a| alias_of(a))
                .collect::<Result<Vec<_>>>()?,
        )
    };
    let views = views
        .iter()
        .map(|v| view_of(v, &tensors))
        .collect::<Result<Vec<View>>>()?;
    Layout::new(LayoutSpec {
        tensors,
        aliases,
        explicit: vec![RankViews {
            rank: Rank(given.rank),
            copy: given.copy,
            buffers,
            views,
        }],
        ..LayoutSpec::default()
    })
}

/// # Safety
///
/// The name points to its number of readable bytes.
unsafe fn tensor_of(item: &wsync_tensor) -> Result<Tensor> {
    // SAFETY: passed on.
    let name = unsafe { args::text(&item.name, "a tensor name")? };
    let shape = numbers(&item.shape, item.dim_count, "shape", name)?;
    let granule = numbers(&item.granule, item.dim_count, "granule", name)?;
    let made = Tensor {
        name: name.to_string(),
        shape: shape.into(),
        dtype: dtype_of(item.dtype)?,
        granule: granule.iter().map(|&g| g.max(1)).collect(),
    };
    made.validate()?;
    Ok(made)
}

/// # Safety
///
/// The name points to its number of readable bytes.
unsafe fn buffer_of(item: &wsync_buffer) -> Result<NamedBuffer> {
    // SAFETY: passed on.
    let name = unsafe { args::text(&item.name, "a buffer name")? };
    Ok(NamedBuffer {
        name: name.to_string(),
        bytes: item.bytes,
        memory: memory(item.memory, item.device)?,
    })
}

/// # Safety
///
/// Both names point to their number of readable bytes.
unsafe fn alias_of(item: &wsync_alias) -> Result<(String, String)> {
    // SAFETY: passed on.
    let (alias, name) = unsafe {
        (
            args::text(&item.alias, "an alias")?,
            args::text(&item.name, "a tensor name")?,
        )
    };
    Ok((alias.to_string(), name.to_string()))
}

fn view_of(item: &wsync_view, tensors: &[Tensor]) -> Result<View> {
    let Some(tensor) = tensors.get(item.tensor as usize) else {
        return Err(Error::invalid(format!(
            "a view is of tensor {}; {} are given",
            item.tensor,
            tensors.len()
        )));
    };
    args::reserved(<wsync_view as args::Plain>::NAME, item.reserved)?;
    let axes = count_u32(tensor.shape.len());
    let lo = numbers(&item.lo, axes, "lo", &tensor.name)?;
    let hi = numbers(&item.hi, axes, "hi", &tensor.name)?;
    let bounds = IndexBox(
        lo.iter()
            .zip(hi)
            .map(|(&lo, &hi)| Span::new(lo, hi))
            .collect(),
    );
    let dtype = match item.dtype {
        wsync_dtype {
            code: 0,
            bits: 0,
            lanes: 0,
        } => tensor.dtype,
        given => dtype_of(given)?,
    };
    let strides: Strides = numbers(&item.strides, axes, "strides", &tensor.name)?.into();
    let strides = match strides.iter().all(|&s| s == 0) {
        false => strides,
        true => bounds.contiguous_strides(dtype.bytes()).ok_or_else(|| {
            Error::limit(format!(
                "tensor \"{}\": the box {bounds} exceeds 2^63 bytes",
                tensor.name
            ))
        })?,
    };
    Ok(View {
        tensor: TensorIndex(item.tensor),
        bounds,
        buffer: item.buffer,
        offset: item.offset,
        strides,
        dtype,
        conversion: None,
    })
}

/// The first `axes` of eight numbers; the others must be 0.
fn numbers<'a, T: Copy + Default + PartialEq + Display>(
    all: &'a [T; 8],
    axes: u32,
    field: &str,
    tensor: &str,
) -> Result<&'a [T]> {
    let Some((used, rest)) = all.split_at_checked(axes as usize) else {
        return Err(Error::limit(format!(
            "tensor \"{tensor}\" has {axes} axes; at most {} are allowed",
            all.len()
        )));
    };
    match rest.iter().find(|n| **n != T::default()) {
        None => Ok(used),
        Some(n) => Err(Error::invalid(format!(
            "tensor \"{tensor}\" has {axes} axes, and {field} has a {n} beyond them"
        ))),
    }
}

fn dtype_of(dtype: wsync_dtype) -> Result<Dtype> {
    Dtype::new(dtype.code, dtype.bits, dtype.lanes)
}

/// The memory kind that two numbers of C mean.
pub(super) fn memory(memory: u32, device: u32) -> Result<Memory> {
    const HOST: u32 = wsync_memory::WSYNC_MEMORY_HOST as u32;
    const PINNED_HOST: u32 = wsync_memory::WSYNC_MEMORY_PINNED_HOST as u32;
    const DEVICE: u32 = wsync_memory::WSYNC_MEMORY_DEVICE as u32;
    match (memory, device) {
        (DEVICE, n) => Ok(Memory::Device(n)),
        (HOST, 0) => Ok(Memory::Host),
        (PINNED_HOST, 0) => Ok(Memory::PinnedHost),
        (HOST | PINNED_HOST, n) => Err(Error::invalid(format!(
            "host memory has device {n}; it must be 0"
        ))),
        (other, _) => Err(args::unknown("memory", other)),
    }
}
