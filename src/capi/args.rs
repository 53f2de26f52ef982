//! What C passes in, as borrowed Rust values, or a refusal that names it.

use super::types::{wsync_bytes, wsync_rank_list, wsync_text};
use crate::error::{Error, Result, Status};
use crate::limits::{DIM_COUNT_MAX, NAME_BYTES_MAX};
use crate::rank::Rank;
use std::ffi::{c_char, c_void};
use std::fmt::Display;
use std::mem::MaybeUninit;

/// Structs beyond this size are taken for garbage in `struct_size`.
const STRUCT_BYTES_MAX: usize = 4096;

/// A C struct or array element of which later versions may be longer.
///
/// # Safety
///
/// `repr(C)`, of integers, raw pointers, optional function pointers and arrays
/// of these alone: every bit pattern that C may write is valid, all-zero
/// included, and there is no padding that carries meaning.
pub(super) unsafe trait Plain: Copy {
    /// Bytes in the first version of the header that had it.
    const BYTES_V0: usize;
    /// As messages call it.
    const NAME: &'static str;
}

/// A [`Plain`] whose first field is `size_t struct_size`.
///
/// # Safety
///
/// The first field is `struct_size`.
pub(super) unsafe trait Sized0: Plain {}

/// Implements both for a struct whose first field is `struct_size`.
macro_rules! plain_struct {
    ($type:ty, $bytes:expr, $name:literal) => {
        // SAFETY: only integers, pointers and arrays of them; see the struct.
        unsafe impl super::args::Plain for $type {
            const BYTES_V0: usize = $bytes;
            const NAME: &'static str = $name;
        }
        // SAFETY: the first field is `struct_size`, at offset 0.
        unsafe impl super::args::Sized0 for $type {}
        const _: () = assert!(std::mem::offset_of!($type, struct_size) == 0);
        const _: () = assert!(std::mem::size_of::<$type>() >= $bytes);
    };
}

/// Implements [`Plain`] for an element of an array.
macro_rules! plain_element {
    ($type:ty, $bytes:expr, $name:literal) => {
        // SAFETY: only integers, pointers and arrays of them; see the struct.
        unsafe impl super::args::Plain for $type {
            const BYTES_V0: usize = $bytes;
            const NAME: &'static str = $name;
        }
        const _: () = assert!(std::mem::size_of::<$type>() >= $bytes);
    };
}

pub(super) use {plain_element, plain_struct};

/// Reads `struct_size` and refuses impossible ones.
///
/// # Safety
///
/// `ptr` is NULL or points to a readable `size_t`.
pub(super) unsafe fn struct_size<T: Sized0>(ptr: *const T) -> Result<usize> {
    let name = T::NAME;
    if ptr.is_null() {
        return Err(Error::invalid(format!("the {name} is NULL")));
    }
    if !ptr.is_aligned() {
        return Err(Error::invalid(format!(
            "the {name} at {ptr:p} is not aligned"
        )));
    }
    // SAFETY: `Sized0` puts a `size_t` first; the caller promises it readable.
    let size = unsafe { ptr.cast::<usize>().read() };
    if size < T::BYTES_V0 || size > STRUCT_BYTES_MAX {
        return Err(Error::invalid(format!(
            "struct_size of the {name} is {size}; it is {} to {STRUCT_BYTES_MAX}, here {}",
            T::BYTES_V0,
            size_of::<T>()
        )));
    }
    Ok(size)
}

/// Copies a struct in; what the caller's version lacks is zero.
///
/// # Safety
///
/// `ptr` is NULL or points to `struct_size` readable bytes.
pub(super) unsafe fn structure<T: Sized0>(ptr: *const T) -> Result<T> {
    // SAFETY: passed on.
    let size = unsafe { struct_size(ptr)? };
    // SAFETY: the caller promises `struct_size` readable bytes.
    unsafe { grown(ptr.cast(), size) }
}

/// Like [`structure`]; NULL means all defaults.
///
/// # Safety
///
/// As for [`structure`].
pub(super) unsafe fn optional<T: Sized0>(ptr: *const T) -> Result<Option<T>> {
    if ptr.is_null() {
        return Ok(None);
    }
    // SAFETY: passed on.
    unsafe { structure(ptr) }.map(Some)
}

/// Copies `size` bytes into a zeroed `T`; a longer tail must be zero.
///
/// # Safety
///
/// `ptr` points to `size` readable bytes.
unsafe fn grown<T: Plain>(ptr: *const u8, size: usize) -> Result<T> {
    let known = size.min(size_of::<T>());
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are readable at `ptr` and writable in `value`, which
    // is ours and cannot overlap.
    unsafe {
        value
            .as_mut_ptr()
            .cast::<u8>()
            .copy_from_nonoverlapping(ptr, known)
    };
    for at in known..size {
        // SAFETY: `at < size`.
        if unsafe { ptr.add(at).read() } != 0 {
            return Err(Error::new(
                Status::Unsupported,
                format!(
                    "the {} has {size} bytes, of which byte {at} is not zero; this library knows {}",
                    T::NAME,
                    size_of::<T>()
                ),
            ));
        }
    }
    // SAFETY: `Plain` makes every bit pattern, zeroed tail included, valid.
    Ok(unsafe { value.assume_init() })
}

/// An array whose elements may be shorter or longer than ours.
///
/// # Safety
///
/// `ptr` is NULL or points to `count` elements of `stride` readable bytes each.
pub(super) unsafe fn strided<T: Plain>(
    ptr: *const T,
    count: usize,
    stride: usize,
    count_max: usize,
) -> Result<Vec<T>> {
    check_count(T::NAME, count, count_max)?;
    check_elements(ptr, count, stride)?;
    let bytes = ptr.cast::<u8>();
    (0..count)
        .map(|i| {
            // SAFETY: element `i < count` lies inside the array that the caller
            // promises; `count * stride` is far below the address range.
            unsafe { grown(bytes.add(i * stride), stride) }
        })
        .collect()
}

/// Refuses an array at NULL or misaligned, or with an impossible stride; asks
/// nothing if it has no elements.
pub(super) fn check_elements<T: Plain>(ptr: *const T, count: usize, stride: usize) -> Result<()> {
    let name = T::NAME;
    if count == 0 {
        return Ok(());
    }
    if ptr.is_null() {
        return Err(Error::invalid(format!(
            "{count} {name} elements are at NULL"
        )));
    }
    if stride < T::BYTES_V0 || stride > STRUCT_BYTES_MAX || !stride.is_multiple_of(align_of::<T>())
    {
        return Err(Error::invalid(format!(
            "the stride of the {name} elements is {stride}; it is a multiple of {} from {} to \
             {STRUCT_BYTES_MAX}, here {}",
            align_of::<T>(),
            T::BYTES_V0,
            size_of::<T>()
        )));
    }
    if !ptr.is_aligned() {
        return Err(Error::invalid(format!(
            "the {name} elements at {ptr:p} are not aligned"
        )));
    }
    Ok(())
}

/// A plain array.
///
/// # Safety
///
/// `ptr` is NULL or points to `count` readable elements that nobody writes
/// for `'a`; every bit pattern is a `T`.
pub(super) unsafe fn slice<'a, T>(
    ptr: *const T,
    count: usize,
    name: &str,
    count_max: usize,
) -> Result<&'a [T]> {
    check_count(name, count, count_max)?;
    if count == 0 {
        return Ok(&[]);
    }
    if ptr.is_null() {
        return Err(Error::invalid(format!(
            "{count} elements of {name} are at NULL"
        )));
    }
    if !ptr.is_aligned() {
        return Err(Error::invalid(format!("{name} at {ptr:p} is not aligned")));
    }
    // SAFETY: not NULL, aligned, `count` elements by the caller's promise; the
    // limits keep the size far below `isize::MAX`.
    Ok(unsafe { std::slice::from_raw_parts(ptr, count) })
}

fn check_count(name: &str, count: usize, count_max: usize) -> Result<()> {
    if count <= count_max {
        return Ok(());
    }
    Err(Error::limit(format!(
        "{name} has {count} elements; at most {count_max} are allowed"
    )))
}

/// A range of bytes.
///
/// # Safety
///
/// As for [`slice`].
pub(super) unsafe fn bytes<'a>(
    ptr: *const c_void,
    count: usize,
    name: &str,
    count_max: usize,
) -> Result<&'a [u8]> {
    // SAFETY: passed on; any byte is a `u8`.
    unsafe { slice(ptr.cast::<u8>(), count, name, count_max) }
}

/// A range of bytes inside an array.
///
/// # Safety
///
/// As for [`slice`].
pub(super) unsafe fn bytes_item<'a>(
    item: &wsync_bytes,
    name: &str,
    count_max: usize,
) -> Result<&'a [u8]> {
    // SAFETY: passed on.
    unsafe { bytes(item.ptr, item.bytes, name, count_max) }
}

/// A NUL-terminated name.
///
/// # Safety
///
/// `ptr` is NULL or points to a NUL-terminated string that nobody writes for
/// `'a`.
pub(super) unsafe fn name<'a>(ptr: *const c_char, what: &str) -> Result<&'a str> {
    if ptr.is_null() {
        return Err(Error::invalid(format!("{what} is NULL")));
    }
    // SAFETY: reads up to the NUL that the caller promises, and at most one
    // byte past the limit.
    let length = unsafe { libc::strnlen(ptr, NAME_BYTES_MAX + 1) };
    if length > NAME_BYTES_MAX {
        return Err(Error::limit(format!(
            "{what} has more than {NAME_BYTES_MAX} bytes, or no NUL"
        )));
    }
    // SAFETY: `length` bytes before the NUL are readable.
    utf8(
        unsafe { std::slice::from_raw_parts(ptr.cast(), length) },
        what,
    )
}

/// A name inside an array.
///
/// # Safety
///
/// `item` is empty or points to its number of readable bytes, which nobody
/// writes for `'a`.
pub(super) unsafe fn text<'a>(item: &wsync_text, what: &str) -> Result<&'a str> {
    // SAFETY: passed on.
    let bytes = unsafe { bytes(item.ptr.cast(), item.bytes, what, NAME_BYTES_MAX)? };
    utf8(bytes, what)
}

/// Several of them.
///
/// # Safety
///
/// `ptr` is NULL or points to `count` texts, each as for [`text`].
pub(super) unsafe fn texts(
    ptr: *const wsync_text,
    count: usize,
    what: &str,
    count_max: usize,
) -> Result<Vec<String>> {
    // SAFETY: passed on; any bit pattern is a `wsync_text`.
    let items = unsafe { slice(ptr, count, what, count_max)? };
    items
        .iter()
        .map(|item| {
            // SAFETY: passed on.
            unsafe { text(item, what) }.map(str::to_string)
        })
        .collect()
}

pub(super) fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        Error::invalid(format!(
            "{what} is not UTF-8 from byte {} on",
            e.valid_up_to()
        ))
    })?;
    if text.contains('\0') {
        return Err(Error::invalid(format!("{what} has a NUL inside")));
    }
    Ok(text)
}

/// A list of ranks.
///
/// # Safety
///
/// The list is empty or points to its number of readable elements.
pub(super) unsafe fn ranks(
    list: &wsync_rank_list,
    what: &str,
    count_max: usize,
) -> Result<Vec<Rank>> {
    // SAFETY: passed on; any bit pattern is a `u32`.
    let ranks = unsafe { slice(list.ranks, list.count, what, count_max)? };
    Ok(ranks.iter().map(|&r| Rank(r)).collect())
}

/// The first `count` of eight numbers, one per axis of `what`; the others must
/// be 0.
pub(super) fn axes<'a, T: Copy + Default + PartialEq + Display>(
    all: &'a [T; DIM_COUNT_MAX],
    count: u32,
    field: &str,
    what: &str,
) -> Result<&'a [T]> {
    let Some((used, rest)) = all.split_at_checked(count as usize) else {
        return Err(Error::limit(format!(
            "{what} has {count} axes; at most {DIM_COUNT_MAX} are allowed"
        )));
    };
    match rest.iter().find(|n| **n != T::default()) {
        None => Ok(used),
        Some(n) => Err(Error::invalid(format!(
            "{what} has {count} axes, and {field} has a {n} beyond them"
        ))),
    }
}

/// Refuses a number that is none of an enum of the header.
pub(super) fn unknown(what: &str, value: u32) -> Error {
    Error::new(
        Status::Unsupported,
        format!("{what} is {value}, which this library does not know"),
    )
}

/// Refuses padding and reserved fields that are not zero.
pub(super) fn reserved(what: &str, value: u32) -> Result<()> {
    if value == 0 {
        return Ok(());
    }
    Err(Error::new(
        Status::Unsupported,
        format!("a reserved field of the {what} is {value}; it must be 0"),
    ))
}
