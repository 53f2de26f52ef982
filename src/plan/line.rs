//! The wrap-around cut: which holder sends which bytes to which needer.
//!
//! All bytes that one set of holders has and one set of needers wants form a
//! *stream* of `bytes` bytes. Lay one copy of it per needer end to end and cut
//! the line into one equal slot per holder:
//!
//! ```text
//!   needers      |------ A ------|------ B ------|------ C ------|
//!   holders      |---- 0 ----|---- 1 ----|---- 2 ----|---- 3 ----|
//!                 0 sends to A, 1 to A and B, 2 to B and C, 3 to C
//! ```
//!
//! Loads are equal to the byte (but for rounding to whole granules) and there
//! are at most `holders + needers - 1` pairs. Both ends compute it alone.

/// Where the line is cut: `needers` copies of a stream over `holders` slots.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub bytes: u64,
    pub holders: u64,
    pub needers: u64,
}

/// A range of one needer's stream and the holder that sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub holder: u64,
    pub needer: u64,
    pub from: u64,
    pub to: u64,
}

impl Line {
    /// Where slot `i` begins on the whole line.
    fn cut(&self, i: u64) -> u128 {
        u128::from(i) * u128::from(self.needers) * u128::from(self.bytes) / u128::from(self.holders)
    }

    /// The first slot that ends after `at`.
    fn slot_after(&self, at: u128) -> u64 {
        let total = u128::from(self.needers) * u128::from(self.bytes);
        if total == 0 {
            return 0;
        }
        let mut i = (at * u128::from(self.holders) / total) as u64;
        while self.cut(i + 1) <= at {
            i += 1;
        }
        i
    }

    /// Who sends what to `needer`, in stream order.
    pub fn shares_of_needer(&self, needer: u64, mut f: impl FnMut(Share)) {
        let base = u128::from(needer) * u128::from(self.bytes);
        let end = base + u128::from(self.bytes);
        let mut at = base;
        let mut holder = self.slot_after(at);
        while at < end {
            let to = self.cut(holder + 1).min(end);
            if to > at {
                f(Share {
                    holder,
                    needer,
                    from: (at - base) as u64,
                    to: (to - base) as u64,
                });
            }
            at = to;
            holder += 1;
        }
    }

    /// What `holder` sends to whom, by needer.
    pub fn shares_of_holder(&self, holder: u64, mut f: impl FnMut(Share)) {
        let (mut at, end) = (self.cut(holder), self.cut(holder + 1));
        while at < end {
            let needer = (at / u128::from(self.bytes)) as u64;
            let base = u128::from(needer) * u128::from(self.bytes);
            let to = end.min(base + u128::from(self.bytes));
            f(Share {
                holder,
                needer,
                from: (at - base) as u64,
                to: (to - base) as u64,
            });
            at = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_ends_see_the_same_shares(bytes in 0u64..5000, holders in 1u64..40, needers in 1u64..40) {
            let line = Line { bytes, holders, needers };
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            for h in 0..holders {
                line.shares_of_holder(h, |s| sent.push(s));
            }
            for n in 0..needers {
                let mut at = 0;
                line.shares_of_needer(n, |s| {
                    assert_eq!(s.from, at);
                    at = s.to;
                    received.push(s);
                });
                prop_assert_eq!(at, bytes);
            }
            sent.sort_by_key(|s| (s.needer, s.from));
            prop_assert_eq!(&sent, &received);
            prop_assert!(sent.len() as u64 <= holders + needers);
            for h in 0..holders {
                let load: u64 = sent.iter().filter(|s| s.holder == h).map(|s| s.to - s.from).sum();
                prop_assert!(load * holders <= needers * bytes + holders);
            }
        }
    }
}
