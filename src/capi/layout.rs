//! Layouts: one side's description of who holds which bytes.

use super::args;
use super::buffers::{BufferCache, SideBuffers, buffer_info, no_buffer};
use super::handle::{self, Handle, shared};
use super::out::{Out, StructOut, TextBuffer};
use super::types::{wsync_buffer_info, wsync_error, wsync_status};
use super::views::{views_layout, wsync_rank_views};
use super::{count_u32, guard, guard_value};
use crate::error::Result;
use crate::layout::check::Inspection;
use crate::layout::models::Framework;
use crate::layout::{Layout, LayoutSpec};
use crate::limits::{FILE_BYTES_MAX, TENSOR_COUNT_MAX};
use crate::log::{Level, line};
use crate::rank::Rank;
use std::ffi::{c_char, c_void};
use std::sync::Arc;

/// One side's description: which rank holds which part of which tensor, and
/// where. Immutable; may be used by any number of threads.
///
/// wsync_layout_create_from_json, wsync_layout_create_from_views,
/// wsync_layout_create_from_bytes, wsync_layout_from_model, wsync_layout_merge,
/// wsync_layout_serialize, wsync_layout_to_json, wsync_layout_check,
/// wsync_layout_check_json, wsync_layout_describe, wsync_layout_rank_count,
/// wsync_layout_tensor_count, wsync_layout_copy_count,
/// wsync_layout_buffer_count, wsync_layout_buffer_at, wsync_layout_destroy.
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

impl Handle for wsync_layout {
    type Value = LayoutObject;
    const MAGIC: u64 = 0x7773_796e_6c61_7901;
    const NOUN: &'static str = "layout";
    const SURVIVES_FORK: bool = true;
}

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

/// Makes a layout from a Hugging Face `config.json` and parallel sizes, on
/// ranks from `first_rank` on.
///
/// `framework` is "megatron", "vllm", "sglang", "hf" or "dtensor". `sizes` is
/// text such as "tp=4,pp=8,ep=16,dp=4"; groups of engines that differ are
/// separated by ';'. For "dtensor" it is the text of a DTensor file, which
/// has its own rank numbers. What was assumed is logged at INFO.
///
/// Errors: LAYOUT_INVALID names the field or the size, the numbers and what is
/// accepted; INVALID_ARGUMENT for an unknown framework; LIMIT_EXCEEDED.
/// Thread safety: any thread, concurrently. Since: 0.1
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wsync_layout_from_model(
    config_json: *const c_char,
    config_json_bytes: usize,
    framework: *const c_char,
    sizes: *const c_char,
    sizes_bytes: usize,
    first_rank: u32,
    out_layout: *mut *mut wsync_layout,
    err: *mut wsync_error,
) -> wsync_status {
    guard(err, || {
        // SAFETY: the header asks for a place for the handle.
        let out = unsafe { Out::new(out_layout, "out_layout")? };
        let config = config_json.cast();
        // SAFETY: the header asks for these numbers of readable bytes.
        let (config, sizes) = unsafe {
            (
                args::bytes(config, config_json_bytes, "config_json", FILE_BYTES_MAX)?,
                args::bytes(sizes.cast(), sizes_bytes, "sizes", FILE_BYTES_MAX)?,
            )
        };
        // SAFETY: the header asks for a NUL-terminated name.
        let framework: Framework = unsafe { args::name(framework, "framework")? }.parse()?;
        let sizes = args::utf8(sizes, "sizes")?;
        let made = Layout::from_model(config, framework, sizes, first_rank)?;
        for remark in &made.remarks {
            line(Level::Info, format_args!("layout: {remark}"));
        }
        for hazard in &made.hazards {
            line(Level::Info, format_args!("layout: {hazard}"));
        }
        out.put(LayoutObject::new(made.layout));
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
/// The JSON is one object; what does not apply in it is null:
///
///   { "errors": 47,                 all that hinder
///     "source": S,                  each layout alone
///     "destination": S,             null if `destination` is NULL
///     "pair": P }                   both together, if each alone is well-formed
///   S = { "findings": [F, ..], "omitted": 0, "errors": 0 }
///   F = { "kind": "never_held",     of a small set of words
///         "side": "source",         the layout it is about
///         "tensor": "w",            empty if it is about none
///         "axis": 0, "rank": 3,     the axis, and the lowest rank it shows on
///         "bytes": 4096,            how many are concerned; 0 if not the point
///         "message": ".." }         a sentence for people
///   P = S with { "source": C, "destination": C,
///                "source_only": ["w", ..], "destination_only": [..] }
///   C = { "tensors": 46, "bytes": 23497216, "matched_bytes": 23497216 }
///
/// At most 100 findings of a kind are listed; "omitted" counts the others.
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
        let found = Inspection::of(source.layout.spec(), destination.as_ref().map(|d| d.spec()))?;
        out.write_json(&found)?;
        count.write(usize::try_from(found.errors).unwrap_or(usize::MAX));
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
        let source = LayoutSpec::from_json(source)?;
        let destination = destination.map(LayoutSpec::from_json).transpose()?;
        let found = Inspection::of(&source, destination.as_ref())?;
        out.write_json(&found)?;
        count.write(usize::try_from(found.errors).unwrap_or(usize::MAX));
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
