//! What goes back to C: written last, and only on success.

use super::args::{Plain, Sized0, check_elements, plain_struct, struct_size};
use super::handle::{self, Handle};
use super::types::{WSYNC_RANK_NONE, wsync_error};
use crate::error::{Error, Result, Status};
use std::ffi::{c_char, c_void};

/// A place for one result.
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Refuses NULL and misaligned places.
    ///
    /// # Safety
    ///
    /// `ptr` is NULL or points to a writable `T` that nobody else uses during
    /// the call.
    pub unsafe fn new(ptr: *mut T, name: &str) -> Result<Out<T>> {
        if ptr.is_null() {
            return Err(Error::invalid(format!("{name} is NULL")));
        }
        if !ptr.is_aligned() {
            return Err(Error::invalid(format!("{name} at {ptr:p} is not aligned")));
        }
        Ok(Out(ptr))
    }

    pub fn write(self, value: T) {
        // SAFETY: `new` was promised a writable place; it may hold garbage, so
        // nothing is dropped.
        unsafe { self.0.write(value) };
    }
}

impl<H: Handle> Out<*mut H> {
    /// Hands a new object over.
    pub fn put(self, value: H::Value) {
        self.write(handle::into_raw(value));
    }
}

/// A place for a struct that may be longer or shorter than ours.
pub(super) struct StructOut<T> {
    ptr: *mut T,
    size: usize,
}

impl<T: Sized0> StructOut<T> {
    /// Refuses NULL, misaligned places and impossible sizes.
    ///
    /// # Safety
    ///
    /// `ptr` is NULL or points to `struct_size` writable bytes that nobody
    /// else uses during the call.
    pub unsafe fn new(ptr: *mut T) -> Result<StructOut<T>> {
        // SAFETY: passed on.
        let size = unsafe { struct_size(ptr)? };
        Ok(StructOut { ptr, size })
    }

    /// Writes everything after `struct_size` that the caller has room for; a
    /// longer tail becomes zero.
    pub fn write(self, value: &T) {
        let head = size_of::<usize>();
        let known = self.size.min(size_of::<T>());
        let from = std::ptr::from_ref(value).cast::<u8>();
        let to = self.ptr.cast::<u8>();
        // SAFETY: `new` was promised `size` writable bytes, `known <= size`,
        // and `value` has `known` bytes and is not the caller's.
        unsafe {
            to.add(head)
                .copy_from_nonoverlapping(from.add(head), known - head);
            to.add(known).write_bytes(0, self.size - known);
        }
    }
}

/// An array for structs that may be longer or shorter than ours.
pub(super) struct StructsOut<T> {
    ptr: *mut T,
    count: usize,
    stride: usize,
}

impl<T: Sized0 + Plain> StructsOut<T> {
    /// Refuses NULL, misaligned places and impossible strides, unless there are
    /// no elements.
    ///
    /// # Safety
    ///
    /// `ptr` is NULL or points to `count` elements of `stride` writable bytes
    /// each that nobody else uses during the call.
    pub unsafe fn new(ptr: *mut T, count: usize, stride: usize) -> Result<StructsOut<T>> {
        check_elements(ptr, count, stride)?;
        Ok(StructsOut { ptr, count, stride })
    }

    /// Writes all elements, each with the stride as its struct_size.
    pub fn write(self, values: impl Iterator<Item = T>) {
        for (i, value) in values.take(self.count).enumerate() {
            // SAFETY: `new` was promised `count` elements of `stride` bytes,
            // and a stride has room for the size that comes first.
            let ptr = unsafe { self.ptr.byte_add(i * self.stride) };
            // SAFETY: as above.
            unsafe { ptr.cast::<usize>().write(self.stride) };
            let size = self.stride;
            StructOut { ptr, size }.write(&value);
        }
    }
}

/// A buffer of the caller for a result of any length.
pub(super) struct Buffer<T> {
    ptr: *mut T,
    capacity: usize,
    needed: Out<usize>,
}

impl<T: Copy> Buffer<T> {
    /// Refuses a missing buffer and a missing place for the size.
    ///
    /// # Safety
    ///
    /// `ptr` is NULL or points to `capacity` writable elements, and `needed`
    /// is NULL or points to a writable `size_t`; nobody else uses them during
    /// the call.
    pub unsafe fn new(
        ptr: *mut T,
        capacity: usize,
        needed: *mut usize,
        needed_name: &str,
    ) -> Result<Buffer<T>> {
        // SAFETY: passed on.
        let needed = unsafe { Out::new(needed, needed_name)? };
        if capacity > 0 && (ptr.is_null() || !ptr.is_aligned()) {
            return Err(Error::invalid(format!(
                "the buffer of {capacity} elements at {ptr:p} is NULL or not aligned"
            )));
        }
        Ok(Buffer {
            ptr,
            capacity,
            needed,
        })
    }

    /// Copies `items`, or only tells how many there are if the capacity is 0.
    pub fn write(self, items: &[T]) -> Result<()> {
        if self.capacity > 0 {
            self.check_fits(items.len())?;
            // SAFETY: the buffer has room for `items`, which are ours.
            unsafe {
                self.ptr
                    .copy_from_nonoverlapping(items.as_ptr(), items.len())
            };
        }
        self.needed.write(items.len());
        Ok(())
    }

    fn check_fits(&self, count: usize) -> Result<()> {
        if count <= self.capacity {
            return Ok(());
        }
        Err(Error::new(
            Status::BufferTooSmall,
            format!("the buffer holds {}; {count} are needed", self.capacity),
        ))
    }
}

/// A buffer for bytes.
///
/// # Safety
///
/// As for [`Buffer::new`].
pub(super) unsafe fn bytes(
    ptr: *mut c_void,
    capacity: usize,
    needed: *mut usize,
) -> Result<Buffer<u8>> {
    // SAFETY: passed on.
    unsafe { Buffer::new(ptr.cast(), capacity, needed, "out_needed") }
}

/// A buffer for text, whose NUL counts.
pub(super) struct TextBuffer(Buffer<u8>);

impl TextBuffer {
    /// # Safety
    ///
    /// As for [`Buffer::new`].
    pub unsafe fn new(ptr: *mut c_char, capacity: usize, needed: *mut usize) -> Result<TextBuffer> {
        // SAFETY: passed on.
        unsafe { Buffer::new(ptr.cast(), capacity, needed, "out_needed") }.map(TextBuffer)
    }

    pub fn write(self, text: String) -> Result<()> {
        let mut bytes = text.into_bytes();
        bytes.push(0);
        self.0.write(&bytes)
    }

    pub fn write_json(self, value: &impl serde::Serialize) -> Result<()> {
        let text = serde_json::to_string(value)
            .map_err(|e| Error::internal(format!("a result cannot be written as JSON: {e}")))?;
        self.write(text)
    }
}

plain_struct!(wsync_error, 520, "wsync_error");

/// The caller's error record, if there is one.
pub(super) struct ErrorRecord(Option<StructOut<wsync_error>>);

impl ErrorRecord {
    /// # Safety
    ///
    /// As for [`StructOut::new`]; NULL is no record.
    pub unsafe fn new(ptr: *mut wsync_error) -> Result<ErrorRecord> {
        if ptr.is_null() {
            return Ok(ErrorRecord(None));
        }
        // SAFETY: passed on.
        unsafe { StructOut::new(ptr) }.map(|out| ErrorRecord(Some(out)))
    }

    pub fn write(&mut self, error: &Error) {
        let Some(out) = self.0.take() else {
            return;
        };
        let mut record = wsync_error {
            struct_size: 0,
            status: error.status.code(),
            native_code: error.native_code,
            native_domain: error.native_domain as u32,
            rank: error.rank.map_or(WSYNC_RANK_NONE, |r| r.0),
            message: [0; 496],
        };
        // Names may have line breaks; the message has one line.
        let line = error.message.replace(char::is_control, " ");
        fill_text(&mut record.message, &line);
        out.write(&record);
    }
}

/// Copies as many whole characters as fit before the NUL.
pub(super) fn fill_text(to: &mut [c_char], text: &str) -> usize {
    let room = to.len().saturating_sub(1);
    let cut = text.floor_char_boundary(room);
    let bytes = text.bytes().take(cut);
    for (place, byte) in to.iter_mut().zip(bytes.chain(std::iter::once(0))) {
        *place = byte as c_char;
    }
    cut
}
