//! Placements, and the cuts they mean.

use crate::error::{Error, Result};
use crate::layout::cut::{Cut, CutKind};
use smallvec::smallvec;
use std::str::FromStr;

/// What one mesh dimension does to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    Replicate,
    Shard {
        dim: u8,
    },
    /// A shard of what earlier shards left, of which there are this many.
    Strided {
        dim: u8,
        split_factor: u64,
    },
}

impl FromStr for Placement {
    type Err = Error;

    /// Reads `repr` and `str` of a placement, and the way code writes it.
    fn from_str(text: &str) -> Result<Placement> {
        let bad = || {
            Error::layout(format!(
                "placement \"{text}\" is unknown; known are \"Shard(0)\", \"Replicate()\" and \
                 \"_StridedShard(0, 2)\", as Python prints them"
            ))
        };
        let text = text.trim();
        let (head, rest) = match text.split_once('(') {
            Some((head, rest)) => (head, rest.strip_suffix(')').ok_or_else(bad)?),
            None => (text, ""),
        };
        let numbers = rest
            .split(',')
            .map(|a| a.rsplit('=').next().unwrap_or(a).trim())
            .filter(|a| !a.is_empty())
            .map(|a| a.parse::<u64>().map_err(|_| bad()))
            .collect::<Result<Vec<u64>>>();
        if matches!(head, "Partial" | "_Partial" | "P") {
            return Err(Error::layout(format!(
                "placement \"{text}\" holds sums that are not reduced yet; redistribute the tensor \
                 first"
            )));
        }
        let dim = |d: u64| u8::try_from(d).map_err(|_| bad());
        match (head, numbers?.as_slice()) {
            ("R" | "Replicate", []) => Ok(Placement::Replicate),
            ("S" | "Shard", [d]) => Ok(Placement::Shard { dim: dim(*d)? }),
            ("_S" | "_StridedShard", [d, n]) if *n > 0 => Ok(Placement::Strided {
                dim: dim(*d)?,
                split_factor: *n,
            }),
            _ => Err(bad()),
        }
    }
}

/// The cuts of a tensor, in nesting order, over mesh dimensions as they are
/// numbered there.
pub(super) fn cuts(placements: &[Placement], sizes: &[u32], shape: &[u64]) -> Result<Vec<Cut>> {
    if placements.len() != sizes.len() {
        return Err(Error::layout(format!(
            "has {} placements for the {} dimensions of its mesh",
            placements.len(),
            sizes.len()
        )));
    }
    let mut out = Vec::new();
    for dim in 0..shape.len() {
        for axis in nesting(placements, sizes, dim as u8)? {
            if sizes[axis as usize] > 1 {
                out.push(Cut {
                    dim: dim as u8,
                    axes: smallvec![axis],
                    kind: CutKind::Ceil,
                    parts: None,
                });
            }
        }
    }
    let outside = placements.iter().find_map(|p| match *p {
        Placement::Shard { dim } | Placement::Strided { dim, .. } => {
            (usize::from(dim) >= shape.len()).then_some(dim)
        }
        Placement::Replicate => None,
    });
    match outside {
        None => Ok(out),
        Some(dim) => Err(Error::layout(format!(
            "is sharded along dimension {dim} and has {}",
            shape.len()
        ))),
    }
}

/// The mesh dimensions that cut `dim`, the outermost cut first.
///
/// From right to left: a plain shard was taken before all on its right, a
/// strided one after as many of them as multiply to its split factor.
fn nesting(placements: &[Placement], sizes: &[u32], dim: u8) -> Result<Vec<u8>> {
    let mut order: Vec<u8> = Vec::new();
    for (axis, p) in placements.iter().enumerate().rev() {
        let factor = match *p {
            Placement::Shard { dim: d } if d == dim => 1,
            Placement::Strided {
                dim: d,
                split_factor,
            } if d == dim => split_factor,
            _ => continue,
        };
        let mut product = 1u64;
        let mut before = 0;
        while product < factor && before < order.len() {
            product = product.saturating_mul(u64::from(sizes[order[before] as usize]));
            before += 1;
        }
        if product != factor {
            let shards: Vec<String> = order
                .iter()
                .map(|&a| sizes[a as usize].to_string())
                .collect();
            return Err(Error::layout(format!(
                "mesh dimension {axis} shards dimension {dim} with split factor {factor}, but the \
                 shards on its right are [{}], of which none multiply to it",
                shards.join(", ")
            )));
        }
        order.insert(before, axis as u8);
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements_are_read_as_python_prints_them() {
        let strided = Placement::Strided {
            dim: 1,
            split_factor: 4,
        };
        for (text, want) in [
            ("R", Placement::Replicate),
            ("Replicate()", Placement::Replicate),
            ("S(0)", Placement::Shard { dim: 0 }),
            ("Shard(dim=1)", Placement::Shard { dim: 1 }),
            ("_S(1, 4)", strided),
            ("_StridedShard(dim=1, sf=4)", strided),
            ("_StridedShard(1, split_factor=4)", strided),
        ] {
            assert_eq!(text.parse::<Placement>().unwrap(), want, "{text}");
        }
        for text in [
            "",
            "Shard",
            "Shard(-1)",
            "Shard(0",
            "S(0, 1)",
            "_S(0, 0)",
            "Partial(sum)",
        ] {
            assert!(text.parse::<Placement>().is_err(), "{text}");
        }
    }

    #[test]
    fn strided_shards_come_after_what_they_count() {
        let of = |texts: &[&str], sizes: &[u32]| -> Result<Vec<u8>> {
            let all: Vec<Placement> = texts.iter().map(|t| t.parse().unwrap()).collect();
            nesting(&all, sizes, 0)
        };
        assert_eq!(of(&["S(0)", "S(0)"], &[2, 4]).unwrap(), [0, 1]);
        assert_eq!(of(&["_S(0, 4)", "S(0)"], &[2, 4]).unwrap(), [1, 0]);
        assert_eq!(
            of(&["_S(0, 4)", "S(1)", "S(0)"], &[2, 3, 4]).unwrap(),
            [2, 0]
        );
        assert_eq!(
            of(&["_S(0, 8)", "_S(0, 4)", "S(0)"], &[3, 2, 4]).unwrap(),
            [2, 1, 0]
        );
        assert_eq!(
            of(&["_S(0, 4)", "_S(0, 4)", "S(0)"], &[3, 2, 4]).unwrap(),
            [2, 0, 1]
        );
        let e = of(&["_S(0, 3)", "S(0)"], &[2, 4]).unwrap_err();
        assert!(e.message.contains("split factor 3"), "{e}");
    }
}
