//! Water-filling: how much each sender sends, where they are not equally fast.
//!
//! Bytes that one set of ranks holds are a *pool*: any of its holders can send
//! them. Sets overlap, so one rank has part in several pools. Every pool in
//! turn is taken out and poured again over its senders, up to one level. A
//! sender is a vessel as wide as it is fast, so levels are times:
//!
//! ```text
//!   time
//!    │  ┌──────┐      ┌────┐ ◄ level
//!    │  │▒▒▒▒▒▒│┌────┐│▒▒▒▒│     ▒ the pool that is poured
//!    │  │▒▒▒▒▒▒││    ││▒▒▒▒│     █ what its senders carry of others
//!    │  │██████││████││████│
//!        0       1     2         1 carries more than the level: it gets none
//! ```
//!
//! That ends where no pool moves any more. Then no sender is busy for longer
//! than in the optimum of the linear program, and neither is the next busiest.
//! Whole numbers throughout: all ranks find the same.

use crate::error::{Error, Result};

/// Senders that have part in the same pools and are equally fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderClass {
    pub count: u32,
    /// Of one sender; at least 1.
    pub bytes_per_s: u64,
}

/// Bytes that any sender of some classes can send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub bytes: u64,
    /// Indices of classes, at least one, each once.
    pub classes: Vec<u32>,
}

/// Pools are poured so often at most. Sets as layouts make them need a few.
const SWEEP_COUNT_MAX: u32 = 1000;
/// Less than this fraction of all bytes moving in a sweep is none.
const STILL_FRACTION: u64 = 1 << 32;
/// The fastest sender is so many units wide: a percent of it is a width too.
const WIDTH_MAX: u64 = 1 << 24;

/// What the classes of each pool send of it, in the order of its classes: the
/// sum is the pool.
///
/// Fails if all pools together exceed 64 bits.
pub fn fill(pools: &[Pool], classes: &[SenderClass]) -> Result<Vec<Vec<u64>>> {
    let mut total = 0u64;
    for p in pools {
        total = total.checked_add(p.bytes).ok_or_else(|| {
            Error::limit("the bytes that all ranks send exceed 64 bits".to_string())
        })?;
    }
    let widths = widths(classes);
    let mut carried = vec![0u64; classes.len()];
    let mut given: Vec<Vec<u64>> = pools.iter().map(|p| vec![0; p.classes.len()]).collect();
    for _ in 0..SWEEP_COUNT_MAX {
        let mut moved = 0;
        for (pool, given) in pools.iter().zip(&mut given) {
            moved += pour_again(pool, &widths, &mut carried, given);
        }
        if moved <= total / STILL_FRACTION {
            break;
        }
    }
    Ok(given)
}

/// Width of each class, all its senders together.
fn widths(classes: &[SenderClass]) -> Vec<u64> {
    let fastest = classes.iter().map(|c| c.bytes_per_s).max().unwrap_or(1);
    let of_one = |c: &SenderClass| {
        let width = u128::from(c.bytes_per_s) * u128::from(WIDTH_MAX) / u128::from(fastest.max(1));
        (width as u64).max(1)
    };
    let all = classes.iter().map(|c| of_one(c) * u64::from(c.count));
    all.collect()
}

/// Takes one pool out and pours it again; returns how many bytes changed
/// their sender.
fn pour_again(pool: &Pool, widths: &[u64], carried: &mut [u64], given: &mut [u64]) -> u64 {
    for (&class, given) in pool.classes.iter().zip(given.iter()) {
        carried[class as usize] -= given;
    }
    let vessels: Vec<Vessel> = pool
        .classes
        .iter()
        .map(|&c| Vessel {
            width: widths[c as usize],
            carried: carried[c as usize],
        })
        .collect();
    let mut moved = 0;
    for (i, bytes) in pour(pool.bytes, &vessels).into_iter().enumerate() {
        moved += bytes.abs_diff(given[i]);
        given[i] = bytes;
        carried[pool.classes[i] as usize] += bytes;
    }
    moved
}

/// One class while a pool is poured over it.
#[derive(Clone, Copy)]
struct Vessel {
    width: u64,
    carried: u64,
}

impl Vessel {
    /// True if this one stands at least as high as `bytes` over `width`.
    fn reaches(&self, bytes: u64, width: u64) -> bool {
        u128::from(self.carried) * u128::from(width) >= u128::from(bytes) * u128::from(self.width)
    }
}

/// What each vessel gets of `bytes`, so that those which get any stand equally
/// high.
fn pour(bytes: u64, vessels: &[Vessel]) -> Vec<u64> {
    let mut order: Vec<usize> = (0..vessels.len()).collect();
    order.sort_unstable_by(|&a, &b| {
        let (v, w) = (&vessels[a], &vessels[b]);
        let height = |v: &Vessel, w: &Vessel| u128::from(v.carried) * u128::from(w.width);
        height(v, w).cmp(&height(w, v)).then(a.cmp(&b))
    });
    // The level is `under` over `width`.
    let (mut under, mut width) = (bytes, 0u64);
    let mut wet = 0;
    for &i in &order {
        if wet > 0 && vessels[i].reaches(under, width) {
            break;
        }
        under += vessels[i].carried;
        width += vessels[i].width;
        wet += 1;
    }
    let mut given = vec![0; vessels.len()];
    let mut left = bytes;
    for &i in &order[..wet] {
        let level = u128::from(under) * u128::from(vessels[i].width) / u128::from(width.max(1));
        given[i] = (level as u64).saturating_sub(vessels[i].carried).min(left);
        left -= given[i];
    }
    if let Some(&first) = order.first() {
        given[first] += left;
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    fn senders(speeds: &[u64]) -> Vec<SenderClass> {
        let one = |&bytes_per_s| SenderClass {
            count: 1,
            bytes_per_s,
        };
        speeds.iter().map(one).collect()
    }

    fn pool(bytes: u64, classes: &[u32]) -> Pool {
        Pool {
            bytes,
            classes: classes.to_vec(),
        }
    }

    #[test]
    fn a_pool_is_shared_by_speed() {
        let given = fill(&[pool(1100, &[0, 1])], &senders(&[10, 100])).unwrap();
        assert_eq!(given, [[100, 1000]]);
    }

    #[test]
    fn who_carries_more_than_the_level_gets_none() {
        let pools = [pool(900, &[1]), pool(600, &[0, 1, 2])];
        let given = fill(&pools, &senders(&[1, 1, 1])).unwrap();
        assert_eq!(given[1], [300, 0, 300]);
    }

    #[test]
    fn overlapping_pools_settle() {
        // 0 and 1 share a pool, 1 and 2 another, 2 and 3 a third: 4 for each.
        let pools = [pool(8, &[0, 1]), pool(2, &[1, 2]), pool(6, &[2, 3])];
        let scaled = pools.map(|p| pool(p.bytes << 20, &p.classes));
        let given = fill(&scaled, &senders(&[1, 1, 1, 1])).unwrap();
        let mut carried = [0u64; 4];
        for (p, given) in scaled.iter().zip(&given) {
            assert_eq!(given.iter().sum::<u64>(), p.bytes);
            for (&c, g) in p.classes.iter().zip(given) {
                carried[c as usize] += g;
            }
        }
        for c in carried {
            assert!(c.abs_diff(4 << 20) < 1 << 4, "{carried:?}");
        }
    }

    #[test]
    fn a_class_of_many_counts_as_many() {
        let many = [
            SenderClass {
                count: 3,
                bytes_per_s: 5,
            },
            SenderClass {
                count: 1,
                bytes_per_s: 5,
            },
        ];
        let given = fill(&[pool(400, &[0, 1])], &many).unwrap();
        assert_eq!(given, [[300, 100]]);
    }

    #[test]
    fn more_than_64_bits_are_refused() {
        let pools = [pool(u64::MAX, &[0]), pool(1, &[0])];
        assert!(fill(&pools, &senders(&[1])).is_err());
    }
}
