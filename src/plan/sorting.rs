//! Sorting: by small numbers (of items, of steps), by counting, which looks at each
//! entry twice and compares none; and of all else, by comparing.

use smallvec::SmallVec;
use std::cmp::Ordering;

/// Where the entries of each of `count` keys begin among all in order of key,
/// and the end.
pub fn starts(count: usize, keys: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut counts = vec![0u32; count + 1];
    keys.for_each(|key| counts[key] += 1);
    starts_of(counts)
}

/// The same of how many entries each key has, and a last count of 0.
pub fn starts_of(mut counts: Vec<u32>) -> Vec<u32> {
    let mut next = 0;
    for count in &mut counts {
        next += std::mem::replace(count, next);
    }
    counts
}

/// The numbers below `total` in order of key, each below `count`; those of one
/// key ascend. With where each key's begin.
pub fn order(total: usize, count: usize, key: impl Fn(u32) -> usize) -> (Vec<u32>, Vec<u32>) {
    let all = 0..total as u32;
    let starts = starts(count, all.clone().map(&key));
    let mut next = starts.clone();
    let mut order = vec![0; total];
    for i in all {
        let at = &mut next[key(i)];
        order[*at as usize] = i;
        *at += 1;
    }
    (order, starts)
}

/// The entries in order of key, each below `count`; those of one key stay in
/// their order. With where each key's begin.
pub fn sorted<T: Copy>(
    entries: &[T],
    count: usize,
    key: impl Fn(&T) -> usize,
) -> (Vec<T>, Vec<u32>) {
    let (order, starts) = order(entries.len(), count, |i| key(&entries[i as usize]));
    let sorted = order.iter().map(|&i| entries[i as usize]).collect();
    (sorted, starts)
}

/// Puts entries in an order, if they are not; of equal ones, those in front stay
/// so. For all types there is one sort, which saves some kB for each.
pub fn sort<T: Copy>(entries: &mut [T], order: impl Fn(&T, &T) -> Ordering) {
    if entries.is_sorted_by(|a, b| order(a, b).is_le()) {
        return;
    }
    let before: SmallVec<[T; 8]> = SmallVec::from_slice(entries);
    let mut all: SmallVec<[u32; 8]> = (0..before.len() as u32).collect();
    sort_numbers(&mut all, &|a, b| {
        order(&before[a as usize], &before[b as usize]).then(a.cmp(&b))
    });
    for (entry, i) in entries.iter_mut().zip(all) {
        *entry = before[i as usize];
    }
}

fn sort_numbers(all: &mut [u32], order: &dyn Fn(u32, u32) -> Ordering) {
    all.sort_unstable_by(|&a, &b| order(a, b));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorted_as_a_stable_sort_does(entries in prop::collection::vec((0usize..9, 0u8..), 0..99)) {
            let mut expected = entries.clone();
            expected.sort_by_key(|e| e.0);
            let mut again = entries.clone();
            sort(&mut again, |a, b| a.0.cmp(&b.0));
            prop_assert_eq!(&again, &expected);
            let (found, starts) = sorted(&entries, 9, |e| e.0);
            for key in 0..9 {
                let own = starts[key] as usize..starts[key + 1] as usize;
                prop_assert!(found[own].iter().all(|e| e.0 == key));
            }
            prop_assert_eq!(found, expected);
        }
    }
}
