//! Sorting by small numbers (of items, of steps), by counting: it looks at each
//! entry twice and compares none.

/// Where the entries of each of `count` keys begin among all in order of key,
/// and the end.
pub fn starts(count: usize, keys: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut starts = vec![0u32; count + 1];
    for key in keys {
        starts[key + 1] += 1;
    }
    for key in 0..count {
        starts[key + 1] += starts[key];
    }
    starts
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorted_as_a_stable_sort_does(entries in prop::collection::vec((0usize..9, 0u8..), 0..99)) {
            let mut expected = entries.clone();
            expected.sort_by_key(|e| e.0);
            let (found, starts) = sorted(&entries, 9, |e| e.0);
            for key in 0..9 {
                let own = starts[key] as usize..starts[key + 1] as usize;
                prop_assert!(found[own].iter().all(|e| e.0 == key));
            }
            prop_assert_eq!(found, expected);
        }
    }
}
