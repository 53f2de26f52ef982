//! Checksums that do not depend on layout.
//!
//! The digest of a tensor is the sum mod 2^64 of [`mix`]`(i, bits)` over its
//! elements: `i` is the row-major index in the *whole* tensor, `bits` what the
//! destination stores there. A sum has no order, so any ranks holding any
//! boxes in any strides come to the same number; each term knows its place, so
//! elements that are swapped change it:
//!
//! ```text
//!   rank 0 holds rows 0..2     Σ mix(i, bits)  ┐
//!   rank 1 holds rows 2..4     Σ mix(i, bits)  ┴─ + ─► digest
//! ```
//!
//! `bits` is the element's bytes as a little-endian number. An element of more
//! than eight bytes is folded word by word: `bits = w0`, then
//! `bits = mix(bits, w)` for each further word, the last one zero-extended.

use super::copy::{BATCH_BYTES, Batch, Halt, QUANTUM, Stop, cast_run, read_ahead, walk};
use super::stream::{FETCH_CHUNK, fetch_ahead};
use super::walk::Walk;
use super::{Binding, DigestSums};
use crate::layout::dtype::Dtype;
use crate::layout::tensor::IndexBox;
use crate::plan::program::DigestItem;
use std::ptr::with_exposed_provenance;
use std::sync::atomic::{AtomicU64, Ordering};

/// One term of a digest. Never changes: digests are compared between versions
/// of the library.
///
/// The index plus one is spread over the word by an odd multiplier (2^64 divided by the
/// golden ratio) and joined with the bits; then two rounds of shift and
/// multiply (the "moremur" constants) make every output bit depend on every
/// input bit. For a fixed index different bits, and for fixed bits different
/// indices, never give the same term.
#[inline(always)]
pub const fn mix(index: u64, bits: u64) -> u64 {
    finish(index.wrapping_add(1).wrapping_mul(SPREAD) ^ bits)
}

const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
const fn finish(x: u64) -> u64 {
    let x = (x ^ (x >> 27)).wrapping_mul(0x3c79_ac49_2ba7_b653);
    let x = (x ^ (x >> 33)).wrapping_mul(0x1c69_b3f7_4ac4_ae35);
    x ^ (x >> 27)
}

/// Sums the source items of a binding: each once into `sums.once` where this
/// rank counts for it, and weighted into `sums.sent`.
pub fn digest_source(binding: &Binding, stop: Stop<'_>) -> Result<(), Halt> {
    let DigestSums { once, sent, .. } = &*binding.sums;
    reset(once);
    reset(sent);
    for item in &binding.program.digest_source {
        let sum = digest_item(binding, item, stop)?;
        let tensor = item.tensor.index();
        if item.is_once {
            once[tensor].fetch_add(sum, Ordering::Relaxed);
        }
        sent[tensor].fetch_add(sum.wrapping_mul(item.weight), Ordering::Relaxed);
    }
    Ok(())
}

/// Sums the destination items of a binding into `sums.held`.
pub fn digest_destination(binding: &Binding, stop: Stop<'_>) -> Result<(), Halt> {
    let held = &binding.sums.held;
    reset(held);
    for item in &binding.program.digest_destination {
        let sum = digest_item(binding, item, stop)?;
        held[item.tensor.index()].fetch_add(sum, Ordering::Relaxed);
    }
    Ok(())
}

fn reset(sums: &[AtomicU64]) {
    for sum in sums {
        sum.store(0, Ordering::Relaxed);
    }
}

/// The sum over one item.
pub fn digest_item(binding: &Binding, item: &DigestItem, stop: Stop<'_>) -> Result<u64, Halt> {
    let shape = &binding.program.tensors[item.tensor.index()].shape;
    let memory = walk(binding, &item.region);
    let types = (item.region.dtype, item.dtype);
    // SAFETY: `Binding::new` checked that the region lies in bound memory and
    // has as many elements as the box.
    unsafe { digest_walk(shape, &item.bounds, memory, types, stop) }
}

/// The sum over the elements of `memory`, which are those of `bounds` in a
/// tensor of this shape: of one type in memory, of another where they go.
///
/// # Safety
///
/// `memory` is over readable memory with as many elements as the box.
pub(crate) unsafe fn digest_walk(
    shape: &[u64],
    bounds: &IndexBox,
    mut memory: Walk,
    (from, to): (Dtype, Dtype),
    stop: Stop<'_>,
) -> Result<u64, Halt> {
    let mut numbers = Walk::indices(shape, bounds);
    let largest = from.bytes().max(to.bytes());
    let batch = BATCH_BYTES as u64 / largest;
    let mut sum = 0u64;
    let mut until_check = 0;
    while numbers.left() > 0 {
        if until_check == 0 {
            stop.check()?;
            until_check = QUANTUM;
        }
        let n = numbers.left().min(batch);
        // SAFETY: the caller's contract; `n` are ahead in both walks.
        let part = unsafe { sum_batch(&mut memory, &mut numbers, from, to, n) };
        sum = sum.wrapping_add(part);
        until_check -= (n * largest).min(until_check);
    }
    Ok(sum)
}

/// The sum over the next `n` elements.
///
/// # Safety
///
/// `memory` is over readable memory with `n` elements of `from` ahead, which
/// are not more than a batch; `numbers` has `n` indices ahead.
unsafe fn sum_batch(memory: &mut Walk, numbers: &mut Walk, from: Dtype, to: Dtype, n: u64) -> u64 {
    let mut rooms = [Batch::new(), Batch::new()];
    // SAFETY: the caller's contract.
    let mut at = unsafe { read_ahead(memory, n * from.bytes(), &mut rooms[0]) };
    if from != to {
        let room = rooms[1].address();
        // SAFETY: `at` is readable for `n` elements, a room holds a batch.
        unsafe { cast_run(from, to, at, room, n) };
        at = room;
    }
    let mut sum = 0u64;
    let mut left = n;
    while left > 0 {
        let block = numbers.peek().limit(left);
        for row in 0..block.rows as isize {
            let first = block.address.wrapping_add_signed(row * block.stride) as u64;
            // SAFETY: `block.run` of the elements that `at` is readable for.
            sum = sum.wrapping_add(unsafe { sum_run(first, at, to.bytes(), block.run) });
            at += (block.run * to.bytes()) as usize;
        }
        numbers.advance(block.bytes());
        left -= block.bytes();
    }
    sum
}

/// The sum over a run of elements with consecutive indices.
///
/// # Safety
///
/// `at` is readable for `run` elements of `size` bytes.
unsafe fn sum_run(first: u64, at: usize, size: u64, run: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if run >= 16 {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
            // SAFETY: the caller's contract, and the processor has AVX-512.
            return unsafe { sum_run_avx512(first, at, size, run) };
        }
        if has!("avx2") {
            // SAFETY: the caller's contract, and the processor has AVX2.
            return unsafe { sum_run_avx2(first, at, size, run) };
        }
    }
    // SAFETY: the caller's contract.
    unsafe { sum_run_any(first, at, size, run) }
}

/// The same code, compiled for processors that multiply 64-bit numbers in
/// vectors.
///
/// # Safety
///
/// As [`sum_run`], on a processor with AVX-512 BW, DQ and VL.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bw,avx512dq,avx512vl")]
unsafe fn sum_run_avx512(first: u64, at: usize, size: u64, run: u64) -> u64 {
    // SAFETY: the caller's contract.
    unsafe { sum_run_any(first, at, size, run) }
}

/// The same code, compiled for processors with AVX2.
///
/// # Safety
///
/// As [`sum_run`], on a processor with AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn sum_run_avx2(first: u64, at: usize, size: u64, run: u64) -> u64 {
    // SAFETY: the caller's contract.
    unsafe { sum_run_any(first, at, size, run) }
}

/// # Safety
///
/// As [`sum_run`].
#[inline(always)]
unsafe fn sum_run_any(first: u64, at: usize, size: u64, run: u64) -> u64 {
    // SAFETY: the caller's contract; each arm reads elements of `size` bytes.
    unsafe {
        match size {
            1 => sum_words::<u8>(first, at, run, u64::from),
            2 => sum_words::<u16>(first, at, run, |x| u64::from(u16::from_le(x))),
            4 => sum_words::<u32>(first, at, run, |x| u64::from(u32::from_le(x))),
            8 => sum_words::<u64>(first, at, run, u64::from_le),
            _ => sum_large(first, at, size, run),
        }
    }
}

/// # Safety
///
/// `at` is readable for `run` values of `T`.
#[inline(always)]
unsafe fn sum_words<T: Copy>(first: u64, at: usize, run: u64, bits: impl Fn(T) -> u64) -> u64 {
    let start: *const T = with_exposed_provenance(at);
    let mut spread = first.wrapping_add(1).wrapping_mul(SPREAD);
    let mut sum = 0u64;
    let chunk = FETCH_CHUNK / size_of::<T>();
    let run = run as usize;
    for from in (0..run).step_by(chunk) {
        fetch_ahead(at + from * size_of::<T>());
        for i in from..run.min(from + chunk) {
            // SAFETY: `i < run`, and the caller's contract.
            let x = unsafe { start.add(i).read_unaligned() };
            sum = sum.wrapping_add(finish(spread ^ bits(x)));
            spread = spread.wrapping_add(SPREAD);
        }
    }
    sum
}

/// Elements of odd sizes, and of more than eight bytes.
///
/// # Safety
///
/// As [`sum_run`].
unsafe fn sum_large(first: u64, at: usize, size: u64, run: u64) -> u64 {
    let mut sum = 0u64;
    for i in 0..run {
        let start: *const u8 = with_exposed_provenance(at + (i * size) as usize);
        // SAFETY: element `i < run`, and the caller's contract.
        let bytes = unsafe { std::slice::from_raw_parts(start, size as usize) };
        sum = sum.wrapping_add(mix(first.wrapping_add(i), fold(bytes)));
    }
    sum
}

/// The bits of an element of any size.
fn fold(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    let first = words.next().unwrap_or(0);
    words.fold(first, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded once. A change here breaks every comparison of digests
    /// between two versions of the library.
    const VECTORS: &[(u64, u64, u64)] = &[
        (0x0, 0x0, 0xb70fb2cc55af013f),
        (0x0, 0x1, 0x087164d5c9e6ae5e),
        (0x1, 0x0, 0x48351dbe177366f6),
        (0x1, 0x1, 0x25f31cc6c3559f2d),
        (0x7, 0x3f80, 0x2cdffb24cb10e55c),
        (0x7, 0x4000, 0x61fb9c8431840951),
        (0x100000000, 0x3f800000, 0xe09316055c23c3ba),
        (0x3ffffffffffff, 0xffffffffffffffff, 0xb549655924d87f43),
        (0xffffffffffffffff, 0x0, 0x0000000000000000),
        (0xffffffffffffffff, 0x5, 0x24dfbc5ef38ab030),
    ];

    #[test]
    fn terms_are_pinned() {
        for &(index, bits, want) in VECTORS {
            assert_eq!(mix(index, bits), want, "mix({index:#x}, {bits:#x})");
        }
    }

    #[test]
    fn a_run_is_the_sum_of_its_terms_in_every_size() {
        let bytes: Vec<u8> = (0..4096u32).map(|i| (i * 37 + (i >> 8)) as u8).collect();
        for size in [1u64, 2, 3, 4, 8, 16, 24, 20] {
            for run in [0u64, 1, 15, 16, 17, 100] {
                let want = (0..run).fold(0u64, |sum, i| {
                    let start = (i * size) as usize + 1;
                    let bits = fold(&bytes[start..start + size as usize]);
                    sum.wrapping_add(mix(77 + i, bits))
                });
                let at = bytes[1..].as_ptr().expose_provenance();
                // SAFETY: at most 2400 bytes of a slice of 4095.
                let got = unsafe { sum_run(77, at, size, run) };
                assert_eq!(got, want, "size {size}, run {run}");
            }
        }
    }

    #[test]
    fn single_bits_change_about_half_of_a_term() {
        let mut changed = 0;
        for bit in 0..64 {
            let (a, b) = (mix(12345, 678), mix(12345, 678 ^ (1 << bit)));
            let (c, d) = (mix(12345, 678), mix(12345 ^ (1 << bit), 678));
            changed += (a ^ b).count_ones() + (c ^ d).count_ones();
        }
        let mean = f64::from(changed) / 128.0;
        assert!((30.0..34.0).contains(&mean), "{mean}");
    }
}
