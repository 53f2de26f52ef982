//! The buffers of one rank on one side, and what must be in them.
//!
//! ```text
//!   reference ─► elements of a view, in canonical order ─► casts ─► strides
//! ```
//!
//! A source rank's buffers are filled like this before a version is sent, and
//! a destination rank's are compared with such an image afterwards: every
//! byte of them, those between the views included.

use super::reference::{Reference, Values, convert};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::sync::Arc;
use weightsync::device::MemoryRange;
use weightsync::exec::{BufferBinding, Session};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::placement::Padding;
use weightsync::layout::tensor::TensorIndex;
use weightsync::layout::view::{Memory, View};
use weightsync::layout::{BufferKey, Layout, Place};
use weightsync::plan::Plan;
use weightsync::plan::program::Side;
use weightsync::{Error, Rank, Result};

/// What destination buffers hold before a version arrives.
const CANARY: u8 = 0xa5;

/// Buffers of one rank on one side.
#[derive(Debug)]
pub struct Shard {
    plan: Arc<Plan>,
    side: Side,
    /// What bytes that belong to no view are after a transfer.
    rest: Rest,
    /// The type in which the source stores each of its tensors.
    stored: BTreeMap<TensorIndex, Dtype>,
    pub buffers: Vec<Buffer>,
}

/// One buffer, its views and its memory.
#[derive(Debug)]
pub struct Buffer {
    pub name: String,
    pub views: Vec<View<BufferKey>>,
    pub bytes: Bytes,
    memory: Memory,
}

/// The memory of a buffer.
#[derive(Debug)]
pub enum Bytes {
    Owned(Vec<u8>),
    /// A file, which is only read.
    File(Arc<Mmap>),
}

impl Bytes {
    pub fn all(&self) -> &[u8] {
        match self {
            Bytes::Owned(b) => b,
            Bytes::File(m) => m,
        }
    }

    /// Where it is; written to only if it is ours.
    fn address(&mut self) -> usize {
        match self {
            Bytes::Owned(b) => b.as_mut_ptr().expose_provenance(),
            Bytes::File(m) => m.as_ptr().expose_provenance(),
        }
    }
}

/// What became of the bytes of a destination buffer that belong to no view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// They are as they were.
    Left,
    Zeroed,
    /// Some of it is padding, some belongs to tensors that do not move.
    Either,
}

impl Shard {
    /// The buffers of `rank`, none if it is not on that side: files of the
    /// checkpoint that a source holds as they are, and touched memory.
    pub fn new(plan: &Arc<Plan>, rank: Rank, side: Side, reference: &Reference) -> Result<Shard> {
        let layout = plan.layout(side);
        let mut by_key: BTreeMap<BufferKey, Vec<View<BufferKey>>> = BTreeMap::new();
        for view in layout.views(rank) {
            by_key.entry(view.buffer).or_default().push(view);
        }
        let mut buffers = Vec::new();
        for (key, views) in by_key {
            let b = layout
                .buffer(rank, key)
                .ok_or_else(|| Error::internal("a view is in no buffer"))?;
            let file = match side {
                Side::Source => reference.file(&b.name, b.bytes),
                Side::Destination => None,
            };
            buffers.push(Buffer {
                bytes: match file {
                    Some(file) => Bytes::File(file.clone()),
                    None => Bytes::Owned(memory(&b.name, b.bytes)?),
                },
                name: b.name,
                views,
                memory: b.memory,
            });
        }
        Ok(Shard {
            stored: match buffers.is_empty() {
                true => BTreeMap::new(),
                false => stored_types(plan.source())?,
            },
            plan: plan.clone(),
            side,
            rest: rest(layout, rank),
            buffers,
        })
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> u64 {
        self.buffers
            .iter()
            .map(|b| b.bytes.all().len() as u64)
            .sum()
    }

    /// Gives the session the addresses of the buffers. They are not touched
    /// again until the request has ended.
    pub fn bind(&mut self, session: &Session) -> Result<()> {
        let side = self.side;
        let bindings: Vec<BufferBinding<'_>> = self
            .buffers
            .iter_mut()
            .map(|b| BufferBinding {
                side,
                name: &b.name,
                range: MemoryRange {
                    bytes: b.bytes.all().len() as u64,
                    address: b.bytes.address(),
                },
                memory: b.memory,
                array: None,
            })
            .collect();
        session.bind_all(&bindings)
    }

    /// Makes the buffers ready for a version: a source's hold its values, a
    /// destination's nothing that could pass for them.
    pub fn fill(&mut self, reference: &Reference, version: u64) -> Result<()> {
        let mut buffers = std::mem::take(&mut self.buffers);
        let filled = buffers.iter_mut().try_for_each(|b| {
            let Bytes::Owned(bytes) = &mut b.bytes else {
                return Ok(());
            };
            bytes.fill(CANARY);
            match self.side {
                Side::Source => self.paint(&b.views, reference, version, bytes),
                Side::Destination => Ok(()),
            }
        });
        self.buffers = buffers;
        filled
    }

    /// Compares every byte with what it must be. Returns how many there are;
    /// the error says how many are wrong and where the first is.
    pub fn check(&self, reference: &Reference, version: u64) -> Result<u64> {
        let mut image = Vec::new();
        for b in &self.buffers {
            image.clear();
            let bytes = b.bytes.all();
            image.resize(
                bytes.len(),
                if self.rest == Rest::Zeroed { 0 } else { CANARY },
            );
            self.paint(&b.views, reference, version, &mut image)?;
            if bytes == image {
                continue;
            }
            if self.rest == Rest::Either {
                // The image with zeros for the canary: either is right.
                let mut zeroed = vec![0; image.len()];
                self.paint(&b.views, reference, version, &mut zeroed)?;
                let pairs = bytes.iter().zip(image.iter().zip(&zeroed));
                if pairs.clone().all(|(got, (a, z))| got == a || got == z) {
                    continue;
                }
            }
            return Err(wrong(b, &image, version));
        }
        Ok(self.bytes())
    }

    /// Writes the elements of all views into the image of their buffer.
    fn paint(
        &self,
        views: &[View<BufferKey>],
        reference: &Reference,
        version: u64,
        image: &mut [u8],
    ) -> Result<()> {
        for view in views {
            let Some(tensor) = self.in_source(view.tensor)? else {
                continue;
            };
            let source = self.plan.source();
            let canonical = source.tensors()[tensor.index()].dtype;
            let stored = self.stored.get(&tensor).copied().unwrap_or(canonical);
            let wire = Dtype::wire(stored, view.dtype);
            let chain = match self.side {
                Side::Source => vec![canonical, view.dtype],
                Side::Destination => vec![canonical, stored, wire, view.dtype],
            };
            let values = reference.values(source, tensor, version)?;
            paint(view, self.shape(view.tensor), values, &chain, image)?;
        }
        Ok(())
    }

    /// The tensor of the source that a tensor of this side means.
    fn in_source(&self, tensor: TensorIndex) -> Result<Option<TensorIndex>> {
        if self.side == Side::Source {
            return Ok(Some(tensor));
        }
        let own = &self.plan.destination().tensors()[tensor.index()].name;
        let moves = self.plan.tensors().binary_search_by(|t| t.name.cmp(own));
        if moves.is_err() {
            return Ok(None);
        }
        let found = self
            .plan
            .source()
            .find_counterpart(self.plan.destination(), tensor);
        found.map(Some).ok_or_else(|| {
            Error::internal(format!("tensor \"{own}\" moves and is not on the source"))
        })
    }

    fn shape(&self, tensor: TensorIndex) -> &[u64] {
        &self.plan.layout(self.side).tensors()[tensor.index()].shape
    }
}

/// Touched memory, or an error where there is none.
fn memory(name: &str, bytes: u64) -> Result<Vec<u8>> {
    let refused = || {
        Error::new(
            weightsync::Status::OutOfMemory,
            format!("no memory for buffer \"{name}\" of {bytes} bytes"),
        )
    };
    let length = usize::try_from(bytes).map_err(|_| refused())?;
    let mut memory = Vec::new();
    memory.try_reserve_exact(length).map_err(|_| refused())?;
    memory.resize(length, CANARY);
    Ok(memory)
}

fn rest(layout: &Layout, rank: Rank) -> Rest {
    match layout.place(rank) {
        Some(Place::Part(part, _)) => match (part.padding, part.spacers.is_empty()) {
            (Padding::Leave, _) => Rest::Left,
            (Padding::Zero, true) => Rest::Zeroed,
            (Padding::Zero, false) => Rest::Either,
        },
        Some(Place::Explicit(_)) | None => Rest::Left,
    }
}

/// How the source stores each tensor. What arrives would depend on the sender
/// if holders disagreed, and could not be checked byte by byte.
fn stored_types(source: &Layout) -> Result<BTreeMap<TensorIndex, Dtype>> {
    let mut types = BTreeMap::new();
    for rank in source.ranks() {
        for view in source.views(rank) {
            let first = *types.entry(view.tensor).or_insert(view.dtype);
            if first != view.dtype {
                return Err(Error::layout(format!(
                    "tensor \"{}\" is stored as {first} and as {} on the source; \
                     what arrives cannot be checked then",
                    source.tensors()[view.tensor.index()].name,
                    view.dtype
                )));
            }
        }
    }
    Ok(types)
}

/// Writes the elements of one view, run by run of its last axis.
fn paint(
    view: &View<BufferKey>,
    shape: &[u64],
    values: Values<'_>,
    chain: &[Dtype],
    image: &mut [u8],
) -> Result<()> {
    if view.bounds.is_empty() {
        return Ok(());
    }
    match view.extent() {
        Some((_, hi)) if hi <= image.len() as u64 => {}
        _ => return Err(Error::internal("a view reaches beyond its buffer")),
    }
    let spans = view.bounds.spans();
    let (run, step) = match (spans.last(), view.strides.last()) {
        (Some(s), Some(&step)) => (s.len(), step),
        _ => (1, 0),
    };
    let canonical = chain[0].bytes();
    let element = view.dtype.bytes() as usize;
    let outer = spans.len().saturating_sub(1);
    let mut at: Vec<u64> = spans.iter().map(|s| s.lo).collect();
    let (mut row, mut spare) = (Vec::new(), Vec::new());
    loop {
        let mut flat = 0;
        let mut place = view.offset as i64;
        for (axis, s) in spans.iter().enumerate() {
            flat = flat * shape[axis] + at[axis];
            place += (at[axis] - s.lo) as i64 * view.strides[axis];
        }
        row.clear();
        row.resize((run * canonical) as usize, 0);
        values.read(flat, canonical, &mut row);
        convert(chain, &mut row, &mut spare);
        if step == element as i64 {
            image[place as usize..][..row.len()].copy_from_slice(&row);
        } else {
            for (i, value) in (0..).zip(row.chunks_exact(element)) {
                image[(place + i * step) as usize..][..element].copy_from_slice(value);
            }
        }
        // The next row, last axis but one fastest.
        let mut axis = outer;
        loop {
            let Some(up) = axis.checked_sub(1) else {
                return Ok(());
            };
            axis = up;
            at[axis] += 1;
            if at[axis] < spans[axis].hi {
                break;
            }
            at[axis] = spans[axis].lo;
        }
    }
}

fn wrong(b: &Buffer, image: &[u8], version: u64) -> Error {
    let bytes = b.bytes.all();
    let pairs = || bytes.iter().zip(image).enumerate();
    let count = pairs().filter(|(_, (got, want))| got != want).count();
    let first = pairs().find(|(_, (got, want))| got != want);
    let (at, (got, want)) = first.unwrap_or((0, (&0, &0)));
    Error::new(
        weightsync::Status::ChecksumMismatch,
        format!(
            "version {version}: {count} of {} bytes of buffer \"{}\" are wrong; \
             byte {at} is {got:#04x} and should be {want:#04x}",
            bytes.len(),
            b.name
        ),
    )
}
