//! Cuts stretches into buckets, where that was not done when they were found:
//! with strategy `direct`, whose buckets are parts of what a pair exchanges.

use super::legs::Leg;
use super::route::{Hop, Routes, StreamKey, Stretch, There, scattered, share_of};
use super::{Decision, Strategy};
use crate::plan::decision::Order;

impl Routes<'_, '_> {
    pub fn cut(&mut self) {
        let Decision {
            strategy, order, ..
        } = self.inputs.decision;
        match (*strategy, *order) {
            (Strategy::Direct, Order::Fraction) => self.cut_by_pair(),
            (Strategy::Direct, Order::Layer) => self.cut_in_layers(),
            (Strategy::TwoStage | Strategy::Relay | Strategy::Fanout, _) => {}
        }
    }

    /// Part `b` is the `b`-th one of what a pair exchanges.
    fn cut_by_pair(&mut self) {
        let legs = self.legs();
        let whole = std::mem::take(&mut self.stretches);
        self.stretches.reserve(whole.len() * 2);
        for stream in 0..self.streams.len() {
            self.cut_stream(stream, &whole, legs.of(stream));
        }
    }

    /// Cuts what a stream carries, in the order of both ends.
    fn cut_stream(&mut self, stream: usize, whole: &[Stretch], legs: &[Leg]) {
        let all = || legs.iter().map(|l| &whole[l.stretch as usize]);
        let total: u64 = all().map(Stretch::bytes).sum();
        let cuts = self.inputs.cuts_of(total, 100);
        let StreamKey {
            peer, direction, ..
        } = self.streams[stream];
        // Streams that carry the same are cut each by itself.
        let way = self.way(&[Hop::plain(peer, direction, 0, There::Across)]);
        let phase = scattered(u64::from(self.rank.0) + u64::from(peer.0));
        let bound = |part: u64| share_of(part, total, cuts.count);
        let (mut part, mut position, mut next) = (0, 0, bound(1));
        for s in all() {
            let walk = &self.walks[s.walk as usize];
            let unit = walk.cell_of(&walk.items[s.item as usize]).unit;
            let mut from = s.from;
            while from < s.to {
                // Where this part ends inside the stretch, on a whole unit.
                let inside = s.from + next.saturating_sub(position);
                let to = match inside >= s.to {
                    true => s.to,
                    false => (inside / unit * unit).max(from),
                };
                if from < to {
                    let bucket = cuts.bucket_of(part, phase);
                    self.stretches.push(Stretch {
                        bucket,
                        from,
                        to,
                        way,
                        ..*s
                    });
                }
                from = to;
                if inside < s.to {
                    part += 1;
                    next = bound(part + 1);
                }
            }
            position += s.bytes();
            while part + 1 < cuts.count && position >= next {
                part += 1;
                next = bound(part + 1);
            }
        }
    }

    /// Stretches cut where buckets of layers end.
    fn cut_in_layers(&mut self) {
        let whole = std::mem::take(&mut self.stretches);
        let mut cut = Vec::with_capacity(whole.len());
        for s in &whole {
            let walk = &self.walks[s.walk as usize];
            walk.cut_in_layers(s.item, (s.from, s.to), |bucket, from, to| {
                cut.push(Stretch {
                    bucket,
                    from,
                    to,
                    ..*s
                });
            });
        }
        self.stretches = cut;
    }
}
