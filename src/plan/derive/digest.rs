//! Which regions of a rank enter the digests.

use super::builder::Builder;
use super::cell::Needers;
use super::visit::Visit;
use crate::layout::tensor::TensorIndex;
use crate::plan::program::{DigestItem, Side};

impl<'a> Builder<'a> {
    /// Every element counts at its lowest holder only, so that holders which
    /// have drifted apart are seen.
    pub fn add_source_digests(&mut self, walk: &Visit<'a>, alike_copies: u64) {
        for item in &walk.items {
            let cell = walk.cell_of(item);
            let group = &walk.groups[item.group as usize];
            if walk.own(item.group) != Some(0) {
                continue;
            }
            let is_once = matches!(&cell.needers, Needers::Slice(s) if s.placement == 0)
                || matches!(cell.needers, Needers::Listed(_));
            self.each_region(
                Side::Source,
                item.buffer,
                cell,
                |program, bounds, region| {
                    program.digest_source.push(DigestItem {
                        tensor: TensorIndex(item.tensor),
                        bounds,
                        region,
                        dtype: cell.peers[0].dtype,
                        is_once,
                        weight: group.needer_count / alike_copies,
                    });
                },
            );
        }
    }

    pub fn add_destination_digests(&mut self, walk: &Visit<'a>) {
        for item in &walk.items {
            let cell = walk.cell_of(item);
            self.each_region(
                Side::Destination,
                item.buffer,
                cell,
                |program, bounds, region| {
                    program.digest_destination.push(DigestItem {
                        tensor: TensorIndex(item.tensor),
                        bounds,
                        region,
                        dtype: cell.own.dtype,
                        is_once: false,
                        weight: 1,
                    });
                },
            );
        }
    }
}
