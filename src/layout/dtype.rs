//! Element types, as DLPack numbers them.
//!
//! One *element* is `bits * lanes` bits and always a whole number of bytes: a
//! packed pair of 4-bit values is one element with two lanes (`fp4x2`), so no
//! cut can ever fall inside the pair.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A DLPack type: code, bits of one lane, lanes of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dtype {
    pub code: u8,
    pub bits: u8,
    pub lanes: u16,
}

/// Name, DLPack code, bits, lanes. The names are those of the layout file.
const NAMES: &[(&str, u8, u8, u16)] = &[
    ("i8", 0, 8, 1),
    ("i16", 0, 16, 1),
    ("i32", 0, 32, 1),
    ("i64", 0, 64, 1),
    ("u8", 1, 8, 1),
    ("u16", 1, 16, 1),
    ("u32", 1, 32, 1),
    ("u64", 1, 64, 1),
    ("f16", 2, 16, 1),
    ("f32", 2, 32, 1),
    ("f64", 2, 64, 1),
    ("bf16", 4, 16, 1),
    ("c64", 5, 64, 1),
    ("c128", 5, 128, 1),
    ("bool", 6, 8, 1),
    ("f8e3m4", 7, 8, 1),
    ("f8e4m3", 8, 8, 1),
    ("f8e4m3b11fnuz", 9, 8, 1),
    ("f8e4m3fn", 10, 8, 1),
    ("f8e4m3fnuz", 11, 8, 1),
    ("f8e5m2", 12, 8, 1),
    ("f8e5m2fnuz", 13, 8, 1),
    ("f8e8m0fnu", 14, 8, 1),
    ("f6e2m3fnx4", 15, 6, 4),
    ("f6e3m2fnx4", 16, 6, 4),
    ("f4e2m1fnx2", 17, 4, 2),
    ("i4x2", 0, 4, 2),
    ("u4x2", 1, 4, 2),
];

impl Dtype {
    pub const F32: Dtype = Dtype::of(2, 32);
    pub const F16: Dtype = Dtype::of(2, 16);
    pub const BF16: Dtype = Dtype::of(4, 16);
    pub const U8: Dtype = Dtype::of(1, 8);
    pub const I64: Dtype = Dtype::of(0, 64);
    pub const F8E4M3FN: Dtype = Dtype::of(10, 8);

    const fn of(code: u8, bits: u8) -> Dtype {
        Dtype {
            code,
            bits,
            lanes: 1,
        }
    }

    /// The type with these DLPack numbers; refuses codes we do not know and
    /// elements that are not whole bytes.
    pub fn new(code: u8, bits: u8, lanes: u16) -> Result<Dtype> {
        let known = NAMES.iter().any(|&(_, c, b, _)| c == code && b == bits);
        let total = u32::from(bits) * u32::from(lanes);
        if known && lanes > 0 && total.is_multiple_of(8) && total <= 2048 {
            return Ok(Dtype { code, bits, lanes });
        }
        Err(Error::invalid(format!(
            "dtype {{code {code}, bits {bits}, lanes {lanes}}} is not a known type of whole bytes; \
             packed types carry their lanes, as {{17, 4, 2}}"
        )))
    }

    /// The type with this name of the layout file, such as `bf16`.
    pub fn from_name(name: &str) -> Result<Dtype> {
        match NAMES.iter().find(|n| n.0 == name) {
            Some(&(_, code, bits, lanes)) => Ok(Dtype { code, bits, lanes }),
            None => {
                let known: Vec<&str> = NAMES.iter().map(|n| n.0).collect();
                Err(Error::layout(format!(
                    "dtype \"{name}\" is unknown; known are {}",
                    known.join(", ")
                )))
            }
        }
    }

    /// The name in the layout file, or the three numbers.
    pub fn name(self) -> String {
        let known = NAMES
            .iter()
            .find(|n| (n.1, n.2, n.3) == (self.code, self.bits, self.lanes));
        match known {
            Some(n) => n.0.to_string(),
            None => format!("dtype({},{},{})", self.code, self.bits, self.lanes),
        }
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        self.bits as u64 * self.lanes as u64 / 8
    }

    /// Whole elements in so many bytes. Nearly all have a power of two, by which
    /// it takes less time to divide.
    pub const fn elements_in(self, bytes: u64) -> u64 {
        let size = self.bytes();
        match size.is_power_of_two() {
            true => bytes >> size.trailing_zeros(),
            false => bytes / size,
        }
    }

    /// True for unsigned integers of one lane.
    pub const fn is_unsigned(self) -> bool {
        self.code == Dtype::U8.code && self.lanes == 1
    }

    /// True for the floats that we convert into each other: f32, f16, bf16.
    pub fn is_castable(self) -> bool {
        [Dtype::F32, Dtype::F16, Dtype::BF16].contains(&self)
    }

    /// True if values stored as `self` can be stored as `other`.
    pub fn converts_to(self, other: Dtype) -> bool {
        self == other || (self.is_castable() && other.is_castable())
    }

    /// The type on the wire between two stored types: the smaller one, the
    /// source's where they are equal in size.
    pub fn wire(source: Dtype, destination: Dtype) -> Dtype {
        if destination.bytes() < source.bytes() {
            destination
        } else {
            source
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_elements_are_whole_bytes() {
        for &(name, code, bits, lanes) in NAMES {
            let d = Dtype::from_name(name).unwrap();
            assert_eq!(d, Dtype::new(code, bits, lanes).unwrap());
            assert_eq!(d.name(), name);
            assert!(d.bytes() > 0);
        }
    }

    #[test]
    fn half_bytes_are_refused() {
        assert!(Dtype::new(17, 4, 1).is_err());
        assert!(Dtype::new(17, 4, 3).is_err());
        assert!(Dtype::new(99, 8, 1).is_err());
    }

    #[test]
    fn the_wire_carries_the_smaller_type() {
        assert_eq!(Dtype::wire(Dtype::F32, Dtype::BF16), Dtype::BF16);
        assert_eq!(Dtype::wire(Dtype::BF16, Dtype::F32), Dtype::BF16);
        assert_eq!(Dtype::wire(Dtype::F16, Dtype::BF16), Dtype::F16);
    }
}
