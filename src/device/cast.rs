//! Casts between f32, f16 and bf16, in batches.
//!
//! Every cast rounds to nearest even and treats NaN, infinities and denormals
//! bit by bit as the scalar conversions of the crate `half` do. They are
//! written without branches, so that a batch becomes vector code:
//!
//! ```text
//!   f32  s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm
//!   bf16 s eeeeeeee mmmmmmm                   the upper half, rounded
//!   f16  s    eeeee mmmmmmmmmm                other bias, rounded
//! ```

use super::stream::{FETCH_CHUNK, fetch_ahead};
use crate::layout::dtype::Dtype;

/// What happens to an element between two stored types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cast {
    Copy,
    F32ToBf16,
    F32ToF16,
    Bf16ToF32,
    Bf16ToF16,
    F16ToF32,
    F16ToBf16,
}

impl Cast {
    /// The cast from `from` to `to`. Types that do not convert are refused
    /// when a program is bound; here they would be copied.
    pub(crate) fn between(from: Dtype, to: Dtype) -> Cast {
        const F32: Dtype = Dtype::F32;
        const F16: Dtype = Dtype::F16;
        const BF16: Dtype = Dtype::BF16;
        match (from, to) {
            (F32, BF16) => Cast::F32ToBf16,
            (F32, F16) => Cast::F32ToF16,
            (BF16, F32) => Cast::Bf16ToF32,
            (BF16, F16) => Cast::Bf16ToF16,
            (F16, F32) => Cast::F16ToF32,
            (F16, BF16) => Cast::F16ToBf16,
            _ => Cast::Copy,
        }
    }
}

/// Converts `count` elements. Neither side needs to be aligned.
///
/// # Safety
///
/// `from` is readable and `to` writable for `count` elements of their types,
/// the two do not overlap, and `cast` is not `Copy`.
pub(crate) unsafe fn convert(cast: Cast, from: *const u8, to: *mut u8, count: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the caller's contract, and the processor has AVX2.
        return unsafe { convert_avx2(cast, from, to, count) };
    }
    // SAFETY: the caller's contract.
    unsafe { convert_any(cast, from, to, count) }
}

/// The same code, compiled for processors with AVX2.
///
/// # Safety
///
/// As [`convert`], on a processor with AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn convert_avx2(cast: Cast, from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: the caller's contract.
    unsafe { convert_any(cast, from, to, count) }
}

/// # Safety
///
/// As [`convert`].
#[inline(always)]
unsafe fn convert_any(cast: Cast, from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: the caller's contract; each cast names its two types.
    unsafe {
        match cast {
            Cast::Copy => debug_assert!(false, "a copy is not a cast"),
            Cast::F32ToBf16 => map(from.cast(), to.cast(), count, f32_to_bf16),
            Cast::F32ToF16 => map(from.cast(), to.cast(), count, f32_to_f16),
            Cast::Bf16ToF32 => map(from.cast(), to.cast(), count, bf16_to_f32),
            Cast::Bf16ToF16 => {
                by_way_of_f32(from.cast(), to.cast(), count, bf16_to_f32, f32_to_f16)
            }
            Cast::F16ToF32 => map(from.cast(), to.cast(), count, f16_to_f32),
            Cast::F16ToBf16 => {
                by_way_of_f32(from.cast(), to.cast(), count, f16_to_f32, f32_to_bf16)
            }
        }
    }
}

/// # Safety
///
/// `from` is readable and `to` writable for `count` elements, not overlapping.
#[inline(always)]
unsafe fn map<A: Copy, B>(from: *const A, to: *mut B, count: usize, f: impl Fn(A) -> B) {
    let chunk = FETCH_CHUNK / size_of::<A>();
    for start in (0..count).step_by(chunk) {
        fetch_ahead(from.addr() + start * size_of::<A>());
        for i in start..count.min(start + chunk) {
            // SAFETY: `i < count`, and the caller's contract.
            unsafe { to.add(i).write_unaligned(f(from.add(i).read_unaligned())) }
        }
    }
}

/// Two casts, one after the other: each alone becomes better code than both
/// at once.
///
/// # Safety
///
/// As [`map`].
#[inline(always)]
unsafe fn by_way_of_f32(
    from: *const u16,
    to: *mut u16,
    count: usize,
    widen: impl Fn(u16) -> u32,
    narrow: impl Fn(u32) -> u16,
) {
    let mut wide = [0u32; 256];
    let mut at = 0;
    while at < count {
        let n = wide.len().min(count - at);
        // SAFETY: `at + n <= count`, and the caller's contract.
        unsafe {
            map(from.add(at), wide.as_mut_ptr(), n, &widen);
            map(wide.as_ptr(), to.add(at), n, &narrow);
        }
        at += n;
    }
}

#[inline(always)]
fn f32_to_bf16(x: u32) -> u16 {
    let rounded = x.wrapping_add(0x7fff + ((x >> 16) & 1)) >> 16;
    let nan = (x >> 16) | 0x40;
    let is_nan = x & 0x7fff_ffff > 0x7f80_0000;
    (if is_nan { nan } else { rounded }) as u16
}

#[inline(always)]
fn bf16_to_f32(x: u16) -> u32 {
    let is_nan = x & 0x7fff > 0x7f80;
    let quiet = if is_nan { 0x40 } else { 0 };
    (u32::from(x) | quiet) << 16
}

#[inline(always)]
fn f32_to_f16(x: u32) -> u16 {
    const INFINITY: u32 = 255 << 23;
    /// The smallest power of two beyond f16.
    const OVERFLOW: u32 = (127 + 16) << 23;
    /// The smallest normal f16.
    const NORMAL: u32 = (127 - 14) << 23;
    /// A float whose last bit is worth the last bit of a denormal f16: adding
    /// it leaves the rounded denormal in the low bits.
    const SHIFTER: u32 = ((127 - 15) + (23 - 10) + 1) << 23;

    let sign = x & 0x8000_0000;
    let x = x ^ sign;
    let special = if x > INFINITY {
        0x7e00 | ((x >> 13) & 0x3ff)
    } else {
        0x7c00
    };
    let denormal = (f32::from_bits(x) + f32::from_bits(SHIFTER))
        .to_bits()
        .wrapping_sub(SHIFTER);
    let odd = (x >> 13) & 1;
    let normal = x.wrapping_sub((127 - 15) << 23).wrapping_add(0xfff + odd) >> 13;
    let bits = if x >= OVERFLOW {
        special
    } else if x < NORMAL {
        denormal
    } else {
        normal
    };
    (bits | (sign >> 16)) as u16
}

#[inline(always)]
fn f16_to_f32(x: u16) -> u32 {
    /// 2^-14 as f32: the exponent of a denormal f16.
    const SMALLEST: u32 = (127 - 14) << 23;

    let x = u32::from(x);
    let sign = (x & 0x8000) << 16;
    let magnitude = (x & 0x7fff) << 13;
    let exponent = magnitude & (0x1f << 23);
    let normal = magnitude + ((127 - 15) << 23);
    let is_nan = x & 0x7fff > 0x7c00;
    let special = magnitude | (255 << 23) | if is_nan { 1 << 22 } else { 0 };
    // Denormals: put the bits under an exponent of their own, take it off.
    let denormal = (f32::from_bits(magnitude + SMALLEST) - f32::from_bits(SMALLEST)).to_bits();
    let bits = if exponent == 0x1f << 23 {
        special
    } else if exponent == 0 {
        denormal
    } else {
        normal
    };
    bits | sign
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn run<A: Copy, B: Copy + Default>(cast: Cast, from: &[A]) -> Vec<B> {
        let mut to = vec![B::default(); from.len()];
        // SAFETY: two slices of equal length; the tests name the right types.
        unsafe {
            convert(
                cast,
                from.as_ptr().cast(),
                to.as_mut_ptr().cast(),
                from.len(),
            )
        };
        to
    }

    /// Every upper half of an f32 with the lower halves where rounding turns,
    /// and pseudo-random ones.
    fn floats() -> Vec<u32> {
        const LOW: &[u32] = &[
            0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000,
            0x8001, 0xefff, 0xf000, 0xf001, 0xffff,
        ];
        let mut all: Vec<u32> = (0..=0xffffu32)
            .flat_map(|high| LOW.iter().map(move |low| high << 16 | low))
            .collect();
        let mut x = 1u32;
        for _ in 0..1_000_000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            all.push(x ^ (x >> 15));
        }
        all
    }

    fn halves() -> Vec<u16> {
        (0..=0xffff).collect()
    }

    #[test]
    fn f32_narrows_as_half_does() {
        let from = floats();
        let to_bf16: Vec<u16> = run(Cast::F32ToBf16, &from);
        let to_f16: Vec<u16> = run(Cast::F32ToF16, &from);
        for (i, &x) in from.iter().enumerate() {
            let x = f32::from_bits(x);
            assert_eq!(
                to_bf16[i],
                bf16::from_f32(x).to_bits(),
                "{:#x}",
                x.to_bits()
            );
            assert_eq!(
                to_f16[i],
                f16::from_f32_const(x).to_bits(),
                "{:#x}",
                x.to_bits()
            );
            assert_eq!(to_f16[i], f16::from_f32(x).to_bits(), "{:#x}", x.to_bits());
        }
    }

    #[test]
    fn halves_widen_as_half_does() {
        let from = halves();
        let a: Vec<u32> = run(Cast::Bf16ToF32, &from);
        let b: Vec<u32> = run(Cast::F16ToF32, &from);
        for (i, &x) in from.iter().enumerate() {
            assert_eq!(a[i], bf16::from_bits(x).to_f32().to_bits(), "{x:#x}");
            assert_eq!(b[i], f16::from_bits(x).to_f32_const().to_bits(), "{x:#x}");
            assert_eq!(b[i], f16::from_bits(x).to_f32().to_bits(), "{x:#x}");
        }
    }

    #[test]
    fn halves_convert_into_each_other_as_half_does() {
        let from = halves();
        let a: Vec<u16> = run(Cast::Bf16ToF16, &from);
        let b: Vec<u16> = run(Cast::F16ToBf16, &from);
        for (i, &x) in from.iter().enumerate() {
            let want = f16::from_f32(bf16::from_bits(x).to_f32()).to_bits();
            assert_eq!(a[i], want, "{x:#x}");
            let want = bf16::from_f32(f16::from_bits(x).to_f32()).to_bits();
            assert_eq!(b[i], want, "{x:#x}");
        }
    }

    #[test]
    fn the_plain_code_and_the_vector_code_agree() {
        let from = floats();
        let want: Vec<u16> = run(Cast::F32ToF16, &from);
        let mut got = vec![0u16; from.len()];
        // SAFETY: two slices of equal length.
        unsafe {
            convert_any(
                Cast::F32ToF16,
                from.as_ptr().cast(),
                got.as_mut_ptr().cast(),
                from.len(),
            )
        };
        assert_eq!(got, want);
    }
}
