//! Which regions of a rank enter the digests.

use super::builder::Builder;
use super::cell::{Cell, Needers};
use super::visit::Visit;
use super::walk::Item;
use crate::layout::tensor::TensorIndex;
use crate::plan::program::{DigestItem, Side};

impl<'a> Builder<'a> {
    /// The buffers of regions that enter digests, without the regions. All that
    /// is needed comes from somewhere, so those of the destination are there.
    pub fn add_digest_buffers(&mut self, walk: &Visit<'a>) {
        let part = self.part_of(Side::Source);
        for item in counted(walk) {
            let Cell { bounds, own, .. } = walk.cell_of(item);
            let leads = match own.split {
                None => bounds.lead()..bounds.lead() + 1,
                Some(_) => bounds.0[0].lo..bounds.0[0].hi,
            };
            for lead in leads {
                self.slot(Side::Source, (part, item.buffer), own, lead);
            }
        }
    }

    /// Every element counts at its lowest holder only, so that holders which
    /// have drifted apart are seen.
    pub fn add_source_digests(&mut self, walk: &Visit<'a>, alike_copies: u64) {
        for item in counted(walk) {
            let cell = walk.cell_of(item);
            let group = &walk.groups[item.group as usize];
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

/// What the rank is the lowest holder of.
fn counted<'w>(walk: &'w Visit<'_>) -> impl Iterator<Item = &'w Item> {
    let items = walk.items.iter();
    items.filter(|i| walk.own(i.group) == Some(0))
}
