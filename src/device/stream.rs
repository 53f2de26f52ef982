//! Rows written past the cache.
//!
//! Weights that arrive are not read again soon, and there are more of them
//! than any cache holds. An ordinary store first reads the line it is about to
//! overwrite; a non-temporal one does not, which saves a third of the traffic.
//! Several rows are copied side by side, a tile of each in turn, so that their
//! pages are fetched at the same time:
//!
//! ```text
//!   row 0   1▓▓▓ 9▓▓▓ ...
//!   row 1   2▓▓▓ 10▓▓ ...        numbers: order of the tiles
//!   ...
//!   row 7   8▓▓▓ 16▓▓ ...
//! ```
//!
//! Non-temporal stores are not ordered with others: whoever publishes that the
//! bytes are there calls [`finish`] first.

/// Copies of fewer bytes stay in the cache.
pub(super) const STREAM_BYTES_MIN: u64 = 128 << 10;

/// Rows shorter than this are not worth it.
#[cfg(target_arch = "x86_64")]
const ROW_BYTES_MIN: usize = 256;

/// Copies `rows` rows of `bytes` bytes past the cache; false, and nothing is
/// done, where ordinary stores are better: short or unaligned rows, and
/// processors that we have no code for.
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
) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let is_aligned = to.0.addr() % 16 == 0 && (rows == 1 || to.1 % 16 == 0);
        if bytes < ROW_BYTES_MIN || !is_aligned {
            return false;
        }
        // SAFETY: the caller's contract; rows at `to` are aligned.
        unsafe { x86::copy_rows(to, from, bytes, rows) };
        true
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (to, from, bytes, rows);
        false
    }
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
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};

    /// Rows copied side by side.
    const ABREAST: usize = 8;
    /// Bytes of a row in its turn.
    const TILE: usize = 256;
    /// A long row is seen as rows of this many bytes.
    const PAGE: usize = 4096;

    /// # Safety
    ///
    /// As [`super::copy_rows`], with rows at `to` aligned to 16 bytes.
    pub(super) unsafe fn copy_rows(
        to: (*mut u8, isize),
        from: (*const u8, isize),
        bytes: usize,
        rows: usize,
    ) {
        // SAFETY: the caller's contract; blocks of whole rows.
        unsafe {
            if bytes >= PAGE * ABREAST {
                for row in 0..rows as isize {
                    let (to, from) = (to.0.offset(row * to.1), from.0.offset(row * from.1));
                    copy_run(to, from, bytes);
                }
                return;
            }
            let mut row = 0;
            while row < rows {
                let count = ABREAST.min(rows - row);
                let at = row as isize;
                let to = (to.0.offset(at * to.1), to.1);
                let from = (from.0.offset(at * from.1), from.1);
                copy_abreast(to, from, bytes, count);
                row += count;
            }
        }
    }

    /// One long run, as pages side by side.
    ///
    /// # Safety
    ///
    /// `bytes` bytes; `to` is aligned to 16.
    unsafe fn copy_run(to: *mut u8, from: *const u8, bytes: usize) {
        const SHEET: usize = PAGE * ABREAST;
        let page = PAGE as isize;
        let sheets = bytes / SHEET;
        // SAFETY: sheets lie inside the run, and the rest follows them.
        unsafe {
            for i in 0..sheets {
                let at = i * SHEET;
                copy_abreast((to.add(at), page), (from.add(at), page), PAGE, ABREAST);
            }
            let at = sheets * SHEET;
            copy_abreast((to.add(at), 0), (from.add(at), 0), bytes - at, 1);
        }
    }

    /// Up to `ABREAST` rows, tile by tile.
    ///
    /// # Safety
    ///
    /// As [`copy_rows`].
    #[inline(always)]
    unsafe fn copy_abreast(
        to: (*mut u8, isize),
        from: (*const u8, isize),
        bytes: usize,
        rows: usize,
    ) {
        let mut at = 0;
        while at < bytes {
            let tile = TILE.min(bytes - at);
            for row in 0..rows as isize {
                // SAFETY: a tile of a row; tiles start at multiples of 16.
                unsafe {
                    let to = to.0.offset(row * to.1).add(at);
                    let from = from.0.offset(row * from.1).add(at);
                    copy_tile(to, from, tile);
                }
            }
            at += tile;
        }
    }

    /// One tile: lines past the cache, then what is left of it.
    ///
    /// # Safety
    ///
    /// `bytes` bytes; `to` is aligned to 16.
    #[inline(always)]
    unsafe fn copy_tile(to: *mut u8, from: *const u8, bytes: usize) {
        let lines = bytes / 64 * 64;
        let mut at = 0;
        // SAFETY: all below `bytes`; `to + at` is aligned to 16.
        unsafe {
            while at < lines {
                let from = from.add(at).cast::<__m128i>();
                let to = to.add(at).cast::<__m128i>();
                let line = [0, 1, 2, 3].map(|i| _mm_loadu_si128(from.add(i)));
                for (i, part) in line.into_iter().enumerate() {
                    _mm_stream_si128(to.add(i), part);
                }
                at += 64;
            }
            if lines < bytes {
                std::ptr::copy(from.add(lines), to.add(lines), bytes - lines);
            }
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
                    check(bytes, rows, gap, skew);
                }
            }
        }
    }

    fn check(bytes: usize, rows: usize, gap: usize, skew: usize) {
        let (stride, source_stride) = ((bytes + gap).next_multiple_of(16), bytes + gap);
        let source: Vec<u8> = (0..rows * source_stride + skew)
            .map(|i| (i * 7 + i / 251) as u8)
            .collect();
        let mut target = vec![0u8; rows * stride + 32];
        let start = target.as_ptr().align_offset(16);
        let to = (target[start..].as_mut_ptr(), stride as isize);
        let from = (source[skew..].as_ptr(), source_stride as isize);
        // SAFETY: both vectors hold as many rows of these strides.
        if !unsafe { copy_rows(to, from, bytes, rows) } {
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
