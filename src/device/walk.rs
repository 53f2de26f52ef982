//! A strided region as blocks of equal runs.
//!
//! A region is loops around a run. Loops that continue each other are merged
//! first, so that what is walked is as few and as long runs as there are; then
//! each look at it shows the rest of the innermost loop as one *block*:
//!
//! ```text
//!   address ─► ████████  run      ┐
//!              ░░░░░░░░           │ stride
//!              ████████           ┘
//!              ████████      rows = 3
//! ```
//!
//! A walk counts bytes and can stop at any of them to go on later. The same
//! walk also numbers elements: then an address is an index and a byte is one.

use crate::layout::tensor::IndexBox;
use crate::limits::DIM_COUNT_MAX;
use crate::plan::program::Loop;

/// The runs that can be seen from where a walk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Of the first byte.
    pub address: usize,
    /// Bytes of each run.
    pub run: u64,
    /// Runs.
    pub rows: u64,
    /// Bytes from run to run.
    pub stride: isize,
}

impl Block {
    /// The same block, of at most `bytes` bytes: whole runs if one fits.
    pub(crate) fn limit(self, bytes: u64) -> Block {
        if self.run >= bytes {
            return Block {
                run: bytes,
                rows: 1,
                ..self
            };
        }
        Block {
            rows: self.rows.min(bytes / self.run),
            ..self
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.run * self.rows
    }
}

/// Two blocks, cut so that they have the same runs and rows.
pub(crate) fn align(a: Block, b: Block) -> (Block, Block) {
    if a.run > b.run {
        let (b, a) = align_longer(b, a);
        return (a, b);
    }
    align_longer(a, b)
}

/// `a` has the shorter run; a longer run of `b` is seen as several rows.
fn align_longer(a: Block, b: Block) -> (Block, Block) {
    if a.run == b.run {
        let rows = a.rows.min(b.rows);
        return (Block { rows, ..a }, Block { rows, ..b });
    }
    let rows = a.rows.min(b.run / a.run);
    let cut = Block {
        run: a.run,
        rows,
        stride: a.run as isize,
        ..b
    };
    (Block { rows, ..a }, cut)
}

#[derive(Clone, Copy, Debug, Default)]
struct Axis {
    count: u64,
    stride: i64,
    index: u64,
}

/// A region being walked.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    /// Address of the current run.
    address: usize,
    /// Bytes per run.
    run: u64,
    /// Bytes of the current run that are behind us.
    within: u64,
    /// Bytes ahead.
    left: u64,
    /// Outermost first.
    axes: [Axis; DIM_COUNT_MAX],
    depth: usize,
}

impl Walk {
    /// A walk over `loops`, outermost first, around runs of `run` bytes.
    pub(crate) fn new(address: usize, run: u64, loops: &[Loop]) -> Walk {
        let mut walk = Walk {
            address,
            run,
            within: 0,
            left: run,
            axes: [Axis::default(); DIM_COUNT_MAX],
            depth: 0,
        };
        for l in loops.iter().rev() {
            walk.left *= l.count;
            walk.wrap(l);
        }
        walk.axes[..walk.depth].reverse();
        walk
    }

    /// The flat row-major indices of a box in a tensor of this shape, as a
    /// walk whose addresses are indices.
    pub(crate) fn indices(shape: &[u64], bounds: &IndexBox) -> Walk {
        let spans = bounds.spans();
        let mut loops = [Loop {
            count: 1,
            stride: 0,
        }; DIM_COUNT_MAX];
        let mut first = 0u64;
        let mut stride = 1u64;
        for axis in (0..shape.len()).rev() {
            first += spans[axis].lo * stride;
            loops[axis] = Loop {
                count: spans[axis].len(),
                stride: stride as i64,
            };
            stride *= shape[axis];
        }
        Walk::new(first as usize, 1, &loops[..shape.len()])
    }

    /// Puts a loop around what is there; merges where it can. Axes are kept
    /// innermost first while the walk is built.
    fn wrap(&mut self, l: &Loop) {
        if l.count == 1 {
            return;
        }
        if self.depth == 0 {
            if l.stride == self.run as i64 {
                self.run *= l.count;
                return;
            }
        } else {
            let inner = &mut self.axes[self.depth - 1];
            if inner.stride.checked_mul(inner.count as i64) == Some(l.stride) {
                inner.count *= l.count;
                return;
            }
        }
        self.axes[self.depth] = Axis {
            count: l.count,
            stride: l.stride,
            index: 0,
        };
        self.depth += 1;
    }

    /// Address of the first run, and bytes per run. Before any advance.
    pub(crate) fn first_run(&self) -> (usize, u64) {
        (self.address, self.run)
    }

    /// Count and stride of the loops around the runs, innermost first.
    pub(crate) fn loops(&self) -> impl ExactSizeIterator<Item = (u64, i64)> {
        let axes = self.axes[..self.depth].iter().rev();
        axes.map(|axis| (axis.count, axis.stride))
    }

    /// Bytes ahead.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// What can be seen from here. Nothing is seen at the end.
    pub(crate) fn peek(&self) -> Block {
        let (rows, stride) = match self.axes[..self.depth].last() {
            Some(axis) if self.within == 0 => (axis.count - axis.index, axis.stride as isize),
            _ => (1, 0),
        };
        Block {
            address: self.address.wrapping_add(self.within as usize),
            run: self.run - self.within,
            rows: if self.left == 0 { 0 } else { rows },
            stride,
        }
    }

    /// Goes on by `bytes`: whole rows of the last block, or a part of one run.
    #[inline]
    pub(crate) fn advance(&mut self, bytes: u64) {
        self.left -= bytes;
        let total = self.within + bytes;
        if total < self.run {
            self.within = total;
            return;
        }
        let rows = if total == self.run {
            1
        } else {
            total / self.run
        };
        self.within = total - rows * self.run;
        self.step(rows);
    }

    /// Goes on by whole rows of the innermost loop.
    fn step(&mut self, rows: u64) {
        let mut rows = rows;
        for axis in self.axes[..self.depth].iter_mut().rev() {
            axis.index += rows;
            self.address = self.address.wrapping_add_signed(shift(axis.stride, rows));
            if axis.index < axis.count {
                return;
            }
            axis.index = 0;
            self.address = self
                .address
                .wrapping_add_signed(shift(axis.stride, axis.count).wrapping_neg());
            rows = 1;
        }
    }

    /// Goes on by any number of bytes.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.left -= bytes;
        let total = self.within + bytes;
        self.within = total % self.run;
        let mut runs = total / self.run;
        for axis in self.axes[..self.depth].iter_mut().rev() {
            if runs == 0 {
                return;
            }
            let to = axis.index + runs;
            let index = to % axis.count;
            let moved = (index as i64).wrapping_sub(axis.index as i64);
            self.address = self
                .address
                .wrapping_add_signed(axis.stride.wrapping_mul(moved) as isize);
            axis.index = index;
            runs = to / axis.count;
        }
    }
}

fn shift(stride: i64, count: u64) -> isize {
    stride.wrapping_mul(count as i64) as isize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(mut walk: Walk, limit: u64) -> Vec<usize> {
        let mut seen = Vec::new();
        while walk.left() > 0 {
            let block = walk.peek().limit(limit);
            for row in 0..block.rows {
                let start = block
                    .address
                    .wrapping_add_signed(block.stride * row as isize);
                seen.extend(start..start + block.run as usize);
            }
            walk.advance(block.bytes());
        }
        seen
    }

    fn naive(address: usize, run: u64, loops: &[Loop]) -> Vec<usize> {
        match loops.split_first() {
            None => (address..address + run as usize).collect(),
            Some((l, inner)) => (0..l.count)
                .flat_map(|i| {
                    let at = address.wrapping_add_signed((l.stride * i as i64) as isize);
                    naive(at, run, inner)
                })
                .collect(),
        }
    }

    const CASES: &[(u64, &[(u64, i64)])] = &[
        (7, &[]),
        (6, &[(4, 6)]),
        (6, &[(4, 24), (4, 6)]),
        (6, &[(2, 100), (4, 8)]),
        (4, &[(3, 4), (5, 12)]),
        (2, &[(2, -64), (3, -8), (1, 7), (2, 4)]),
        (2, &[(2, 1000), (3, 200), (2, 40), (2, 10), (2, 5)]),
    ];

    #[test]
    fn a_walk_sees_every_byte_once_in_order_at_any_pace() {
        for &(run, loops) in CASES {
            let loops: Vec<Loop> = loops
                .iter()
                .map(|&(count, stride)| Loop { count, stride })
                .collect();
            let want = naive(5000, run, &loops);
            for limit in [1, 2, 3, 5, 7, 1000] {
                assert_eq!(addresses(Walk::new(5000, run, &loops), limit), want);
            }
            for skip in 0..=want.len() {
                for pre in 0..=skip {
                    let mut walk = Walk::new(5000, run, &loops);
                    walk.skip(pre as u64);
                    walk.skip((skip - pre) as u64);
                    assert_eq!(addresses(walk, 3), want[skip..]);
                }
            }
        }
    }

    #[test]
    fn loops_that_continue_each_other_are_one_run() {
        let l = |count, stride| Loop { count, stride };
        let walk = Walk::new(0, 16, &[l(3, 64), l(4, 16)]);
        assert_eq!(walk.peek().run, 192);
        assert_eq!(walk.peek().rows, 1);
    }
}
