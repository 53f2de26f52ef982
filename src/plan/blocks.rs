//! Ranks in few enough rows to draw: one by one, by host, or by several hosts.

use super::topology::Topology;
use crate::rank::Rank;
use serde::Serialize;

/// What the numbers of blocks count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    #[default]
    Rank,
    Host,
}

impl Unit {
    /// Ranks as long as there are at most `max` of them, else their hosts.
    pub fn of(rank_count: usize, max: usize) -> Unit {
        match rank_count > max {
            true => Unit::Host,
            false => Unit::Rank,
        }
    }

    /// The rank, or the host it is on. A rank that is not placed counts as on
    /// host 0; no plan has one.
    pub fn number(self, topology: &Topology, rank: Rank) -> u32 {
        match self {
            Unit::Rank => rank.0,
            Unit::Host => topology.site(rank).map_or(0, |s| s.host),
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Unit::Rank => "rank",
            Unit::Host => "host",
        }
    }
}

/// Ranks or hosts, in ascending blocks of equal size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Blocks {
    pub unit: Unit,
    /// First and last number of each block.
    pub ends: Vec<(u32, u32)>,
}

impl Blocks {
    /// At most `max` blocks of these numbers. Blocks of several are powers of
    /// two, so that they fall together with racks and pods.
    pub fn of(unit: Unit, numbers: impl Iterator<Item = u32>, max: usize) -> Blocks {
        let mut all: Vec<u32> = numbers.collect();
        all.sort_unstable();
        all.dedup();
        let size = all.len().div_ceil(max).next_power_of_two();
        let ends = |block: &[u32]| (block[0], block[block.len() - 1]);
        Blocks {
            unit,
            ends: all.chunks(size).map(ends).collect(),
        }
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Numbers in the largest block, or between its ends.
    pub fn size(&self) -> u32 {
        let sizes = self.ends.iter().map(|(first, last)| last - first + 1);
        sizes.max().unwrap_or(1)
    }

    /// The block that a number belongs to.
    pub fn find(&self, number: u32) -> usize {
        self.ends.partition_point(|b| b.1 < number)
    }

    /// `rank 3` or `hosts 0-7`.
    pub fn name(&self, block: usize) -> String {
        let (first, last) = self.ends[block];
        match first == last {
            true => format!("{} {first}", self.unit.name()),
            false => format!("{}s {first}-{last}", self.unit.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_few_and_whole() {
        let some = Blocks::of(Unit::Rank, [3, 1, 3].into_iter(), 96);
        assert_eq!(some.ends, [(1, 1), (3, 3)]);
        let many = Blocks::of(Unit::Host, 0..4096, 96);
        assert_eq!(many.len(), 64);
        assert_eq!((many.ends[0], many.ends[63]), ((0, 63), (4032, 4095)));
        assert_eq!((many.find(63), many.find(64)), (0, 1));
        assert_eq!((many.name(1).as_str(), many.size()), ("hosts 64-127", 64));
        assert!(Blocks::of(Unit::Rank, 0..0, 96).is_empty());
    }
}
