//! Copies on host memory: gather, scatter, and region to region.
//!
//! Every copy is two walks side by side. A contiguous slice is just a region
//! with one run, so gathering into a slot, scattering from one, and copying
//! view to view without staging are one piece of code:
//!
//! ```text
//!   region  ██░░██░░██░░   ──gather──►  ██████  slot
//!   region  ██░░██░░██░░   ──copy───►   █░█░█░█░█░█░  region
//! ```
//!
//! A [`MessageCursor`] remembers where it is in a message, so that a message
//! can be moved in slots of any size without walking it again. Where the dtype
//! in memory is not the one on the wire, elements are cast on the way.
//!
//! Large copies into regions are written past the cache; slots and staging are
//! read again at once and stay in it.
//!
//! The abort words are read before each piece and at least every
//! [`QUANTUM`]; once one is set, nothing more is written.

use super::Binding;
use super::cast::{Cast, convert};
use super::fence::AbortCell;
use super::stream::{self, Store};
use super::walk::{Block, Walk, align};
use crate::layout::dtype::Dtype;
use crate::plan::program::{LocalCopy, Message, Piece, Region};
use std::mem::MaybeUninit;
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

/// At most so many bytes are written between two looks at the abort words.
pub const QUANTUM: u64 = 1 << 20;

/// Elements that are cast in one go.
const BATCH: u64 = 1024;

/// Bytes of one batch, of the largest type that is cast.
pub(crate) const BATCH_BYTES: usize = BATCH as usize * 4;

/// Why a copy ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// An abort word is set. Nothing was written after it was seen.
    Aborted,
    /// The two ends of a message differ at this byte of it: their pieces lie
    /// elsewhere, have other wire dtypes, or are cut inside an element.
    Mismatch { at: u64 },
}

/// The abort words that stop a copy.
#[derive(Clone, Copy, Debug)]
pub struct Stop<'a>(pub &'a [&'a AbortCell]);

impl Stop<'_> {
    pub(crate) fn check(self) -> Result<(), Halt> {
        if self.0.iter().any(|cell| cell.is_set()) {
            return Err(Halt::Aborted);
        }
        Ok(())
    }
}

/// The walk of a region in bound memory.
pub(crate) fn walk(binding: &Binding, region: &Region) -> Walk {
    Walk::new(
        binding.address(region),
        region.run * region.dtype.bytes(),
        binding.program.loops_of(region),
    )
}

/// What happens to elements between two walks.
#[derive(Clone, Copy, Debug)]
struct Casts {
    from: Dtype,
    to: Dtype,
    /// The type on the wire, if it is neither of the two.
    between: Option<Dtype>,
}

impl Casts {
    fn new(from: Dtype, wire: Dtype, to: Dtype) -> Casts {
        Casts {
            from,
            to,
            between: (wire != from && wire != to).then_some(wire),
        }
    }

    fn is_copy(self) -> bool {
        self.from == self.to && self.between.is_none()
    }
}

/// Copies `elements` elements from walk to walk, looking at the abort words
/// after each quantum; the caller has looked before.
///
/// # Safety
///
/// Both walks are over valid memory with at least as many elements of their
/// dtypes ahead. Nobody else writes what is read or touches what is written.
unsafe fn transfer(
    from: &mut Walk,
    to: &mut Walk,
    casts: Casts,
    elements: u64,
    store: Store,
    stop: Stop<'_>,
) -> Result<(), Halt> {
    let bytes = casts.from.bytes().max(casts.to.bytes());
    let batch = (QUANTUM / bytes).max(1);
    let mut left = elements;
    let mut done = Ok(());
    while left > 0 && done.is_ok() {
        let n = left.min(batch);
        // SAFETY: the caller's contract; `n` elements are ahead.
        unsafe {
            if casts.is_copy() {
                copy_bytes(from, to, n * casts.from.bytes(), store);
            } else {
                cast_elements(from, to, casts, n, store);
            }
        }
        left -= n;
        if left > 0 {
            done = stop.check();
        }
    }
    if store == Store::Far {
        stream::finish();
    }
    done
}

/// Copies bytes from walk to walk.
///
/// # Safety
///
/// As [`transfer`], with `bytes` bytes ahead in both walks.
unsafe fn copy_bytes(from: &mut Walk, to: &mut Walk, bytes: u64, store: Store) {
    let mut left = bytes;
    while left > 0 {
        let (a, b) = align(from.peek().limit(left), to.peek().limit(left));
        // SAFETY: both blocks lie in their walks, which the caller vouches for.
        unsafe { copy_block(a, b, store) };
        let done = a.bytes();
        from.advance(done);
        to.advance(done);
        left -= done;
    }
}

/// Copies a block to one of the same shape.
///
/// # Safety
///
/// All rows of `from` are readable and all rows of `to` writable.
unsafe fn copy_block(from: Block, to: Block, store: Store) {
    let source: *const u8 = with_exposed_provenance(from.address);
    let target: *mut u8 = with_exposed_provenance_mut(to.address);
    let (run, rows) = (from.run as usize, from.rows as usize);
    let (a, b) = ((source, from.stride), (target, to.stride));
    // SAFETY: the caller's contract.
    if unsafe { stream::copy_rows(b, a, run, rows, store) } {
        return;
    }
    if from.rows == 1 {
        // SAFETY: the caller's contract. `copy` also allows overlap, which
        // only a caller who bound one buffer twice could cause.
        return unsafe { std::ptr::copy(source, target, from.run as usize) };
    }
    // SAFETY: the caller's contract; each arm moves rows of `run` bytes.
    unsafe {
        match from.run {
            1 => copy_rows::<u8>(source, from, target, to),
            2 => copy_rows::<u16>(source, from, target, to),
            4 => copy_rows::<u32>(source, from, target, to),
            8 => copy_rows::<u64>(source, from, target, to),
            16 => copy_rows::<u128>(source, from, target, to),
            32 => copy_rows::<[u128; 2]>(source, from, target, to),
            64 => copy_rows::<[u128; 4]>(source, from, target, to),
            run => {
                for row in 0..from.rows as isize {
                    let a = source.wrapping_offset(row * from.stride);
                    let b = target.wrapping_offset(row * to.stride);
                    std::ptr::copy(a, b, run as usize);
                }
            }
        }
    }
}

/// Copies rows as values of a type of their size.
///
/// # Safety
///
/// As [`copy_block`]; a row has the size of `T`.
#[inline(always)]
unsafe fn copy_rows<T>(source: *const u8, from: Block, target: *mut u8, to: Block) {
    for row in 0..from.rows as isize {
        let a = source.wrapping_offset(row * from.stride).cast::<T>();
        let b = target.wrapping_offset(row * to.stride).cast::<T>();
        // SAFETY: row `row` of either block, and the caller's contract.
        unsafe { b.write_unaligned(a.read_unaligned()) };
    }
}

/// Room for one batch on the stack.
#[repr(align(64))]
pub(crate) struct Batch(MaybeUninit<[u8; BATCH_BYTES]>);

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch(MaybeUninit::uninit())
    }

    pub(crate) fn address(&mut self) -> usize {
        self.0.as_mut_ptr().expose_provenance()
    }
}

/// Casts elements from walk to walk, batch by batch.
///
/// # Safety
///
/// As [`transfer`], with `elements` elements ahead in both walks.
unsafe fn cast_elements(from: &mut Walk, to: &mut Walk, casts: Casts, elements: u64, store: Store) {
    let mut rooms = [Batch::new(), Batch::new(), Batch::new()];
    let mut left = elements;
    while left > 0 {
        let n = left.min(BATCH);
        // SAFETY: `n` elements are ahead in both walks, and a room holds them.
        unsafe {
            let source = read_ahead(from, n * casts.from.bytes(), &mut rooms[0]);
            let source = match casts.between {
                Some(wire) if casts.from != wire => {
                    let room = rooms[1].address();
                    cast_run(casts.from, wire, source, room, n);
                    (wire, room)
                }
                _ => (casts.from, source),
            };
            write(to, n, casts.to, source, &mut rooms[2], store);
        }
        left -= n;
    }
}

/// The address of the next `bytes` bytes of a walk: where they lie if they are
/// in one run, else in `room`, gathered.
///
/// # Safety
///
/// The walk is over readable memory and has as many bytes ahead, which are not
/// more than a room holds.
pub(crate) unsafe fn read_ahead(walk: &mut Walk, bytes: u64, room: &mut Batch) -> usize {
    debug_assert!(BATCH_BYTES as u64 >= bytes);
    let block = walk.peek();
    if block.run >= bytes {
        walk.advance(bytes);
        return block.address;
    }
    let address = room.address();
    let mut slice = Walk::new(address, bytes, &[]);
    // SAFETY: the caller's contract, and the room is ours.
    unsafe { copy_bytes(walk, &mut slice, bytes, Store::Near) };
    address
}

/// Writes `n` elements that lie at `source.1` in dtype `source.0`.
///
/// # Safety
///
/// The walk is over writable memory and has `n` elements of `to` ahead.
unsafe fn write(
    walk: &mut Walk,
    n: u64,
    to: Dtype,
    source: (Dtype, usize),
    room: &mut Batch,
    store: Store,
) {
    let bytes = n * to.bytes();
    let block = walk.peek();
    // SAFETY: the caller's contract; the room holds one batch.
    unsafe {
        if store == Store::Near && block.run >= bytes {
            cast_run(source.0, to, source.1, block.address, n);
            walk.advance(bytes);
        } else {
            let address = room.address();
            cast_run(source.0, to, source.1, address, n);
            copy_bytes(&mut Walk::new(address, bytes, &[]), walk, bytes, store);
        }
    }
}

/// Copies the first `bytes` bytes of a walk to one run.
///
/// # Safety
///
/// The walk is over readable memory with as many bytes ahead, `to` is writable
/// for them, and the two do not overlap.
pub(crate) unsafe fn gather_run(from: &Walk, to: *mut u8, bytes: u64) {
    let mut slice = Walk::new(to.expose_provenance(), bytes, &[]);
    // SAFETY: the caller's contract.
    unsafe { copy_bytes(&mut from.clone(), &mut slice, bytes, Store::Near) };
}

/// Casts one run.
///
/// # Safety
///
/// `source` is readable for `n` elements of `from`, `target` writable for as
/// many of `to`, and the two do not overlap.
pub(crate) unsafe fn cast_run(from: Dtype, to: Dtype, source: usize, target: usize, n: u64) {
    let source: *const u8 = with_exposed_provenance(source);
    let target: *mut u8 = with_exposed_provenance_mut(target);
    // SAFETY: the caller's contract.
    unsafe {
        match Cast::between(from, to) {
            Cast::Copy => std::ptr::copy(source, target, (n * to.bytes()) as usize),
            cast => convert(cast, source, target, n as usize),
        }
    }
}

/// Does one local copy: region to region, one copy, cast where dtypes differ.
///
/// The memory is the binding's; its maker promised that nobody else uses it.
pub fn copy_local(binding: &Binding, local: &LocalCopy, stop: Stop<'_>) -> Result<(), Halt> {
    let mut from = walk(binding, &local.source);
    let mut to = walk(binding, &local.destination);
    let (a, b) = (local.source.dtype, local.destination.dtype);
    let elements = binding.program.elements(&local.source);
    let store = Store::region(local.bytes);
    stop.check()?;
    // SAFETY: `Binding::new` checked that both regions lie in bound memory and
    // have equally many elements; the binding's maker vouches for the memory.
    unsafe {
        transfer(
            &mut from,
            &mut to,
            Casts::new(a, a, b),
            elements,
            store,
            stop,
        )
    }
}

/// Zeroes a region.
pub fn fill_zero(binding: &Binding, region: &Region, stop: Stop<'_>) -> Result<(), Halt> {
    let mut to = walk(binding, region);
    while to.left() > 0 {
        stop.check()?;
        let block = to.peek().limit(QUANTUM);
        for row in 0..block.rows as isize {
            let start: *mut u8 = with_exposed_provenance_mut(block.address);
            // SAFETY: a row of a region that `Binding::new` checked.
            unsafe {
                start
                    .wrapping_offset(row * block.stride)
                    .write_bytes(0, block.run as usize);
            }
        }
        to.advance(block.bytes());
    }
    Ok(())
}

/// A place in a message: how far it has been gathered or scattered.
///
/// All calls on one cursor name the same binding and the same message.
#[derive(Clone, Debug)]
pub struct MessageCursor {
    /// The next piece, in [`crate::plan::program::Program::pieces`].
    next: u32,
    /// Bytes of the message behind us.
    at: u64,
    /// The piece we are in.
    inside: Option<(u32, Walk)>,
}

impl MessageCursor {
    /// The start of a message.
    pub fn new(message: &Message) -> MessageCursor {
        MessageCursor {
            next: message.pieces.0,
            at: 0,
            inside: None,
        }
    }

    /// Byte `at` of a message.
    pub fn seek(binding: &Binding, message: &Message, at: u64) -> MessageCursor {
        let mut cursor = MessageCursor::new(message);
        for piece in binding.program.pieces_of(message) {
            if piece.at + piece.bytes > at {
                break;
            }
            cursor.next += 1;
        }
        cursor.at = at.min(message.bytes);
        if let Some(ahead) = cursor.piece(binding, message)
            && ahead.at < at
        {
            let mut walk = walk(binding, &ahead.region);
            let (memory, wire) = (ahead.region.dtype, ahead.wire);
            let behind = at - ahead.at;
            walk.skip(if memory == wire {
                behind
            } else {
                behind / wire.bytes() * memory.bytes()
            });
            cursor.inside = Some((cursor.next, walk));
            cursor.next += 1;
        }
        cursor
    }

    /// Bytes of the message behind us.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The piece we are in, or the next one.
    fn piece<'b>(&self, binding: &'b Binding, message: &Message) -> Option<&'b Piece> {
        let index = match &self.inside {
            Some((index, _)) => *index,
            None if self.next < message.pieces.1 => self.next,
            None => return None,
        };
        Some(&binding.program.pieces[index as usize])
    }

    /// Where the gap we are in ends; where we are if we are in none.
    fn gap_end(&self, binding: &Binding, message: &Message) -> u64 {
        match self.piece(binding, message) {
            Some(piece) => piece.at.max(self.at),
            None => message.bytes,
        }
    }

    /// Enters the piece that starts here, if none is entered yet.
    fn enter(&mut self, binding: &Binding) -> &mut Walk {
        let next = &mut self.next;
        let (_, walk) = self.inside.get_or_insert_with(|| {
            let index = *next;
            *next += 1;
            let piece = &binding.program.pieces[index as usize];
            (index, walk(binding, &piece.region))
        });
        walk
    }

    /// Goes on inside a piece; leaves it at its end.
    fn advance(&mut self, bytes: u64) {
        self.at += bytes;
        if self.inside.as_ref().is_some_and(|(_, w)| w.left() == 0) {
            self.inside = None;
        }
    }

    /// Gathers the next `bytes` bytes of the message, in wire dtype, to `to`.
    /// Gaps between pieces are zeroed.
    ///
    /// # Safety
    ///
    /// `to` is writable for `bytes` bytes, which are not more than are left,
    /// and lies outside the memory of the binding.
    pub unsafe fn gather(
        &mut self,
        binding: &Binding,
        message: &Message,
        to: *mut u8,
        bytes: u64,
        stop: Stop<'_>,
    ) -> Result<(), Halt> {
        let slot = to.expose_provenance();
        // SAFETY: the caller's contract; reading pieces, writing the slot.
        unsafe { self.pass(binding, message, slot, bytes, Way::Gather, stop) }
    }

    /// Scatters the next `bytes` bytes of the message from `from`.
    ///
    /// # Safety
    ///
    /// `from` is readable for `bytes` bytes, which are not more than are left,
    /// and lies outside the memory of the binding.
    pub unsafe fn scatter(
        &mut self,
        binding: &Binding,
        message: &Message,
        from: *const u8,
        bytes: u64,
        stop: Stop<'_>,
    ) -> Result<(), Halt> {
        let slot = from.expose_provenance();
        // SAFETY: the caller's contract; reading the slot, writing pieces.
        unsafe { self.pass(binding, message, slot, bytes, Way::Scatter, stop) }
    }

    /// # Safety
    ///
    /// As [`MessageCursor::gather`] or [`MessageCursor::scatter`].
    unsafe fn pass(
        &mut self,
        binding: &Binding,
        message: &Message,
        slot: usize,
        bytes: u64,
        way: Way,
        stop: Stop<'_>,
    ) -> Result<(), Halt> {
        let mut slot = slot;
        let mut left = bytes;
        while left > 0 {
            stop.check()?;
            let gap = (self.gap_end(binding, message) - self.at).min(left);
            if gap > 0 {
                if way == Way::Gather {
                    // SAFETY: `gap` is not more than what is left of the slot.
                    unsafe { with_exposed_provenance_mut::<u8>(slot).write_bytes(0, gap as usize) };
                }
                self.at += gap;
                slot += gap as usize;
                left -= gap;
                continue;
            }
            let Some(piece) = self.piece(binding, message) else {
                return Err(Halt::Mismatch { at: self.at });
            };
            let n = left.min(piece.at + piece.bytes - self.at);
            // SAFETY: `n` is not more than what is left of piece and slot.
            unsafe { self.pass_piece(binding, piece, slot, n, way, stop)? };
            slot += n as usize;
            left -= n;
        }
        Ok(())
    }

    /// # Safety
    ///
    /// As [`MessageCursor::pass`], inside one piece.
    unsafe fn pass_piece(
        &mut self,
        binding: &Binding,
        piece: &Piece,
        slot: usize,
        bytes: u64,
        way: Way,
        stop: Stop<'_>,
    ) -> Result<(), Halt> {
        let (memory, wire) = (piece.region.dtype, piece.wire);
        let mut slice = Walk::new(slot, bytes, &[]);
        let store = match way {
            Way::Gather => Store::Near,
            Way::Scatter => Store::region(bytes),
        };
        let walk = self.enter(binding);
        let done = if memory == wire {
            // Any byte may be a cut where nothing is converted.
            let bytes_only = Casts::new(Dtype::U8, Dtype::U8, Dtype::U8);
            // SAFETY: the caller's contract; regions were checked when bound.
            unsafe {
                match way {
                    Way::Gather => transfer(walk, &mut slice, bytes_only, bytes, store, stop),
                    Way::Scatter => transfer(&mut slice, walk, bytes_only, bytes, store, stop),
                }
            }
        } else if !bytes.is_multiple_of(wire.bytes()) {
            Err(Halt::Mismatch { at: self.at })
        } else {
            let n = bytes / wire.bytes();
            let to_wire = Casts::new(memory, wire, wire);
            let from_wire = Casts::new(wire, wire, memory);
            // SAFETY: the caller's contract; regions were checked when bound.
            unsafe {
                match way {
                    Way::Gather => transfer(walk, &mut slice, to_wire, n, store, stop),
                    Way::Scatter => transfer(&mut slice, walk, from_wire, n, store, stop),
                }
            }
        };
        done?;
        self.advance(bytes);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Gather,
    Scatter,
}

/// One end of a message that is copied without staging.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    pub binding: &'a Binding,
    pub message: &'a Message,
}

/// A message being copied from the sender's pieces straight to the receiver's.
#[derive(Clone, Debug)]
pub struct MessageCopy<'a> {
    from: End<'a>,
    to: End<'a>,
    source: MessageCursor,
    target: MessageCursor,
}

impl<'a> MessageCopy<'a> {
    pub fn new(from: End<'a>, to: End<'a>) -> MessageCopy<'a> {
        MessageCopy {
            source: MessageCursor::new(from.message),
            target: MessageCursor::new(to.message),
            from,
            to,
        }
    }

    /// True once the whole message is copied.
    pub fn is_done(&self) -> bool {
        self.target.at == self.to.message.bytes
    }

    /// Copies about `bytes` more: pieces are taken until that many are done.
    /// Both ends' memory is touched only during the call.
    pub fn advance(&mut self, bytes: u64, stop: Stop<'_>) -> Result<(), Halt> {
        let mut left = bytes;
        while left > 0 && !self.is_done() {
            stop.check()?;
            if !self.skip_gap()? {
                continue;
            }
            left -= self.copy_some(left, stop)?.min(left);
        }
        Ok(())
    }

    /// Steps over a gap; true if there was none. Both ends must see it.
    fn skip_gap(&mut self) -> Result<bool, Halt> {
        let a = self.source.gap_end(self.from.binding, self.from.message);
        let b = self.target.gap_end(self.to.binding, self.to.message);
        if a != b || self.source.at != self.target.at {
            return Err(Halt::Mismatch { at: self.target.at });
        }
        let is_inside = self.target.at == b;
        self.source.at = a;
        self.target.at = b;
        Ok(is_inside)
    }

    /// Copies what both ends see as one piece, at most `limit` bytes or one
    /// element.
    fn copy_some(&mut self, limit: u64, stop: Stop<'_>) -> Result<u64, Halt> {
        let at = self.target.at;
        let (Some(a), Some(b)) = (
            self.source.piece(self.from.binding, self.from.message),
            self.target.piece(self.to.binding, self.to.message),
        ) else {
            return Err(Halt::Mismatch { at });
        };
        if a.wire != b.wire {
            return Err(Halt::Mismatch { at });
        }
        let wire = a.wire.bytes();
        let ahead = (a.at + a.bytes - at).min(b.at + b.bytes - at);
        let n = ahead.min(limit.max(wire)) / wire;
        if n == 0 {
            return Err(Halt::Mismatch { at });
        }
        let casts = Casts::new(a.region.dtype, a.wire, b.region.dtype);
        let store = Store::region(n * wire);
        let from = self.source.enter(self.from.binding);
        let to = self.target.enter(self.to.binding);
        // SAFETY: both regions were checked when they were bound and have `n`
        // elements ahead; the makers of the bindings vouch for the memory.
        unsafe { transfer(from, to, casts, n, store, stop)? };
        self.source.advance(n * wire);
        self.target.advance(n * wire);
        Ok(n * wire)
    }
}
