//! What one rank holds, as flat arrays of C, and the layout they make.

use super::args::{self, plain_element, plain_struct};
use super::buffers::memory;
use super::count_u32;
use super::types::{wsync_dtype, wsync_text};
use crate::error::{Error, Result};
use crate::layout::tensor::{IndexBox, Span, Tensor, TensorIndex};
use crate::layout::view::{NamedBuffer, RankViews, Strides, View};
use crate::layout::{Layout, LayoutSpec};
use crate::limits::{TENSOR_COUNT_MAX, VIEW_COUNT_MAX};
use crate::rank::Rank;

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
    /// Unique among the rank's buffers; memory is bound by it.
    pub name: wsync_text,
    /// Its size.
    pub bytes: u64,
    /// A wsync_memory.
    pub memory: u32,
    /// The GPU, if memory is WSYNC_MEMORY_DEVICE.
    pub device: u32,
}

plain_element!(wsync_buffer, 32, "wsync_buffer");

/// A box of a tensor and where it lies in a buffer: element (i0, i1, ..) is at
/// offset + (i0 - lo[0]) * strides[0] + (i1 - lo[1]) * strides[1] and so on.
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
    /// Whose views these are.
    pub rank: u32,
    /// The copy (replica) this rank belongs to; any number that its other
    /// ranks use too.
    pub copy: u32,
    /// The tensors that views speak of, each with its full shape.
    pub tensors: *const wsync_tensor,
    /// How many there are.
    pub tensor_count: usize,
    /// sizeof(wsync_tensor).
    pub tensor_stride: usize,
    /// The memory that views lie in.
    pub buffers: *const wsync_buffer,
    /// How many there are.
    pub buffer_count: usize,
    /// sizeof(wsync_buffer).
    pub buffer_stride: usize,
    /// Which box of which tensor lies where in which buffer.
    pub views: *const wsync_view,
    /// How many there are.
    pub view_count: usize,
    /// sizeof(wsync_view).
    pub view_stride: usize,
    /// Tensors that are others by another name, as tied embeddings are.
    pub aliases: *const wsync_alias,
    /// How many there are.
    pub alias_count: usize,
    /// sizeof(wsync_alias).
    pub alias_stride: usize,
}

plain_struct!(wsync_rank_views, 112, "wsync_rank_views");

/// # Safety
///
/// `views` has its struct_size set, and its arrays have the counts and strides
/// that stand beside them.
pub(super) unsafe fn views_layout(views: *const wsync_rank_views) -> Result<Layout> {
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
    let what = format!("tensor \"{name}\"");
    let shape = args::axes(&item.shape, item.dim_count, "shape", &what)?;
    let granule = args::axes(&item.granule, item.dim_count, "granule", &what)?;
    let made = Tensor {
        name: name.to_string(),
        shape: shape.into(),
        dtype: item.dtype.try_into()?,
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
    let what = format!("tensor \"{}\"", tensor.name);
    let lo = args::axes(&item.lo, axes, "lo", &what)?;
    let hi = args::axes(&item.hi, axes, "hi", &what)?;
    let bounds = IndexBox(
        lo.iter()
            .zip(hi)
            .map(|(&lo, &hi)| Span::new(lo, hi))
            .collect(),
    );
    let dtype = match item.dtype {
        wsync_dtype::NONE => tensor.dtype,
        given => given.try_into()?,
    };
    let strides: Strides = args::axes(&item.strides, axes, "strides", &what)?.into();
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
