//! Rows side by side, and stores past the cache.
//!
//! A processor fetches ahead inside one page; rows of a strided region lie in
//! many. So several are copied side by side, a tile of each in turn, and their
//! pages are fetched at the same time:
//!
//! ```text
//!   row 0   1▓▓▓ 9▓▓▓ ...
//!   row 1   2▓▓▓ 10▓▓ ...        numbers: order of the tiles
//!   ...
//!   row 7   8▓▓▓ 16▓▓ ...
//! ```
//!
//! Weights that arrive are not read again soon, and there are more of them
//! than any cache holds. An ordinary store first reads the line it is about to
//! overwrite; a non-temporal one does not, which saves a third of the traffic.
//! Non-temporal stores are not ordered with others: whoever publishes that the
//! bytes are there calls [`finish`] first.

/// Where written bytes shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// In the cache: somebody reads them next.
    Near,
    /// In memory: nobody does for long.
    Far,
}

/// Copies of fewer bytes stay in the cache.
const FAR_BYTES_MIN: u64 = 128 << 10;

impl Store {
    /// For regions: far, if there is much to write.
    pub(super) fn region(bytes: u64) -> Store {
        if bytes >= FAR_BYTES_MIN {
            Store::Far
        } else {
            Store::Near
        }
    }
}

/// Rows shorter than this are not worth it.
#[cfg(target_arch = "x86_64")]
const ROW_BYTES_MIN: usize = 256;

/// Copies `rows` rows of `bytes` bytes; false, and nothing is done, where a
/// plain copy of each row is better: short or unaligned rows, one row that
/// shall stay near, and processors that we have no code for.
///
/// # Safety
///
/// All rows at `from` are readable, all rows at `to` writable, and the two do
/// not overlap.
pub(super) unsafe fn copy_rows(
    to: (*mut u8, isize),
    from: (*const u8, isize),
    bytes: usize,
    rows: usize,
    store: Store,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let is_aligned = to.0.addr().is_multiple_of(16) && (rows == 1 || to.1 % 16 == 0);
        // SAFETY: the caller's contract; rows at `to` are aligned.
        unsafe {
            match store {
                _ if bytes < ROW_BYTES_MIN || !is_aligned => return false,
                Store::Near if rows == 1 => return false,
                Store::Near => x86::copy_rows::<false>(to, from, bytes, rows),
                Store::Far => x86::copy_rows::<true>(to, from, bytes, rows),
            }
        }
        true
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (to, from, bytes, rows, store);
        false
    }
}

/// How far reads of one long run are fetched ahead.
const FETCH_BYTES: usize = 2048;

/// Bytes of a run between two calls of [`fetch_ahead`].
pub(super) const FETCH_CHUNK: usize = 512;

/// Has the chunk fetched that a reader of `address` will come to soon. A hint:
/// the address may be anything.
#[inline(always)]
pub(super) fn fetch_ahead(address: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..FETCH_CHUNK).step_by(64) {
        let ahead = address.wrapping_add(FETCH_BYTES + line);
        x86::fetch(std::ptr::without_provenance(ahead));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Orders all stores so far before all later ones.
pub(super) fn finish() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64 processor.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_storeu_si128, _mm_stream_si128,
    };

    /// Rows copied side by side, and pages of a long run.
    const ROWS_ABREAST: usize = 8;
    const PAGES_ABREAST: usize = 4;
    /// Bytes of a row in its turn.
    const TILE: usize = 256;
    /// A long row is seen as rows of this many bytes.
    const PAGE: usize = 4096;
    /// Rows up to this size end before the processor has understood that it
    /// should fetch ahead; we do it, by so many rows.
    const SHORT: usize = 1536;
    const ROWS_AHEAD: isize = 2;

    /// # Safety
    ///
    /// As [`super::copy_rows`], with rows at `to` aligned to 16 bytes.
    pub(super) unsafe fn copy_rows<const FAR: bool>(
        to: (*mut u8, isize),
        from: (*const u8, isize),
        bytes: usize,
        rows: usize,
    ) {
        let ahead = if bytes <= SHORT {
            ROWS_AHEAD * from.1
        } else {
            0
        };
        let is_long = bytes >= 2 * PAGE * PAGES_ABREAST;
        let step = if is_long { 1 } else { ROWS_ABREAST };
        let mut row = 0;
        while row < rows {
            let at = row as isize;
            // SAFETY: the caller's contract; blocks of whole rows.
            unsafe {
                let to = (to.0.offset(at * to.1), to.1);
                let from = (from.0.offset(at * from.1), from.1);
                if is_long {
                    copy_run::<FAR>(to.0, from.0, bytes);
                } else {
                    copy_abreast::<FAR>(to, from, bytes, step.min(rows - row), ahead);
                }
            }
            row += step;
        }
    }

    /// One long run, as pages side by side.
    ///
    /// # Safety
    ///
    /// `bytes` bytes; `to` is aligned to 16.
    unsafe fn copy_run<const FAR: bool>(to: *mut u8, from: *const u8, bytes: usize) {
        const SHEET: usize = PAGE * PAGES_ABREAST;
        let page = PAGE as isize;
        let sheets = bytes / SHEET * SHEET;
        // SAFETY: sheets lie inside the run, and the rest follows them.
        unsafe {
            for at in (0..sheets).step_by(SHEET) {
                let (to, from) = ((to.add(at), page), (from.add(at), page));
                copy_abreast::<FAR>(to, from, PAGE, PAGES_ABREAST, 0);
            }
            let (to, from) = ((to.add(sheets), 0), (from.add(sheets), 0));
            copy_abreast::<FAR>(to, from, bytes - sheets, 1, 0);
        }
    }

    /// A few rows, tile by tile, fetching what is `ahead` bytes further.
    ///
    /// # Safety
    ///
    /// As [`copy_rows`].
    #[inline(always)]
    unsafe fn copy_abreast<const FAR: bool>(
        to: (*mut u8, isize),
        from: (*const u8, isize),
        bytes: usize,
        rows: usize,
        ahead: isize,
    ) {
        let tiles = bytes / TILE * TILE;
        // SAFETY: tiles lie inside their rows, and the rest follows them.
        unsafe {
            for at in (0..tiles).step_by(TILE) {
                for row in 0..rows as isize {
                    let to = to.0.offset(row * to.1).add(at);
                    let from = from.0.offset(row * from.1).add(at);
                    for line in (0..TILE).step_by(64) {
                        if ahead != 0 {
                            fetch(from.wrapping_offset(ahead).wrapping_add(line));
                        }
                        copy_line::<FAR>(to.add(line), from.add(line));
                    }
                }
            }
            if tiles < bytes {
                for row in 0..rows as isize {
                    let to = to.0.offset(row * to.1).add(tiles);
                    let from = from.0.offset(row * from.1).add(tiles);
                    copy_rest::<FAR>(to, from, bytes - tiles);
                }
            }
        }
    }

    /// Has a line fetched.
    #[inline(always)]
    pub(super) fn fetch(line: *const u8) {
        // SAFETY: a hint; it never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }

    /// 64 bytes.
    ///
    /// # Safety
    ///
    /// 64 bytes at either; `to` is aligned to 16.
    #[inline(always)]
    unsafe fn copy_line<const FAR: bool>(to: *mut u8, from: *const u8) {
        let (to, from) = (to.cast::<__m128i>(), from.cast::<__m128i>());
        // SAFETY: the caller's contract.
        unsafe {
            let line = [0, 1, 2, 3].map(|i| _mm_loadu_si128(from.add(i)));
            for (i, part) in line.into_iter().enumerate() {
                if FAR {
                    _mm_stream_si128(to.add(i), part);
                } else {
                    _mm_storeu_si128(to.add(i), part);
                }
            }
        }
    }

    /// Less than a tile: whole lines, then the rest.
    ///
    /// # Safety
    ///
    /// `bytes` bytes at either; `to` is aligned to 16.
    unsafe fn copy_rest<const FAR: bool>(to: *mut u8, from: *const u8, bytes: usize) {
        let lines = bytes / 64 * 64;
        // SAFETY: all of it lies below `bytes`.
        unsafe {
            for at in (0..lines).step_by(64) {
                copy_line::<FAR>(to.add(at), from.add(at));
            }
            std::ptr::copy(from.add(lines), to.add(lines), bytes - lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_any_size_arrive_and_nothing_else_changes() {
        for bytes in [256, 257, 300, 320, 1000, 4096, 5000, 32768, 40000, 100_001] {
            for rows in [1, 2, 7, 8, 9, 17] {
                for (gap, skew) in [(0, 0), (48, 3), (16, 1)] {
                    for store in [Store::Near, Store::Far] {
                        check(bytes, rows, gap, skew, store);
                    }
                }
            }
        }
    }

    fn check(bytes: usize, rows: usize, gap: usize, skew: usize, store: Store) {
        let (stride, source_stride) = ((bytes + gap).next_multiple_of(16), bytes + gap);
        let source: Vec<u8> = (0..rows * source_stride + skew)
            .map(|i| (i * 7 + i / 251) as u8)
            .collect();
        let mut target = vec![0u8; rows * stride + 32];
        let start = target.as_ptr().align_offset(16);
        let to = (target[start..].as_mut_ptr(), stride as isize);
        let from = (source[skew..].as_ptr(), source_stride as isize);
        // SAFETY: both vectors hold as many rows of these strides.
        if !unsafe { copy_rows(to, from, bytes, rows, store) } {
            return;
        }
        finish();
        let mut want = vec![0u8; target.len()];
        for row in 0..rows {
            let (a, b) = (start + row * stride, skew + row * source_stride);
            want[a..a + bytes].copy_from_slice(&source[b..b + bytes]);
        }
        assert!(target == want, "{rows} rows of {bytes}, gap {gap}");
    }
}
