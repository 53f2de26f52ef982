//! The program of one rank, from layouts and decision alone.
//!
//! Nothing is exchanged and no other rank is expanded. The rank walks its own
//! tensors, twice: as needer over the boxes it wants, as holder over the boxes
//! it has. Both walks see the same cells in the same order:
//!
//! ```text
//!   own boxes ─► cells ─► items on a line per (holders, needers) ─► routes
//!             ─► stretches per peer and stage ─► buckets ─► messages of pieces
//! ```
//!
//! A rank that forwards what it does not need itself walks the needs of those
//! it forwards to, or what those hold that it relays for, as well.

mod builder;
mod cell;
mod cluster;
mod clustered;
mod cut;
mod digest;
mod direct;
mod ends;
mod exits;
mod group;
mod legs;
mod memory;
mod pattern;
mod route;
mod stream;
mod two_stage;
mod view;
mod visit;
mod walk;

use super::decision::{Cuts, Decision, Spread, Strategy};
use super::domains::Domains;
use super::layers::LayerLine;
use super::locality::Locality;
use super::program::{Direction, Program};
use super::senders::Senders;
use super::tables::Tables;
use super::topology::Topology;
use super::two_stage::TwoStage;
use crate::error::Result;
use crate::layout::Layout;
use crate::layout::tensor::Tensor;
use crate::rank::Rank;
use builder::Builder;
pub use memory::{Memory, memory};
use route::Routes;
pub use route::share_of;
use std::sync::Arc;
use visit::Visit;
pub use visit::Walks;
use walk::Walk;

/// What a program is derived from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub source: &'a Layout,
    pub destination: &'a Layout,
    pub tables: &'a Tables,
    pub tensors: &'a Arc<[Tensor]>,
    pub decision: &'a Decision,
    pub topology: &'a Topology,
    /// Who sends to whom, where the strategy is `two_stage`.
    pub two_stage: Option<&'a TwoStage>,
    pub domains: &'a Domains,
    /// What a rank moves between domains, in the mean.
    pub rank_bytes: u64,
    pub senders: &'a Senders,
    pub locality: &'a Locality,
    /// Where the order is by layer.
    pub layers: &'a LayerLine,
}

impl Inputs<'_> {
    /// Stages of the longest route: 1 if nothing is forwarded.
    pub fn stage_count(&self) -> u32 {
        let relayed = u32::from(self.decision.source_relay);
        match (self.decision.strategy, self.decision.spread) {
            (Strategy::Direct, _) => 1,
            (Strategy::TwoStage, _) => {
                1 + u32::from(self.two_stage.is_some_and(TwoStage::forwards))
            }
            (Strategy::Relay, _) => relayed + 2,
            // Across domains, then inside them.
            (Strategy::Fanout, Spread::Scatter) => relayed + 3,
            (Strategy::Fanout, Spread::Chain) => relayed + 1 + self.chain_length(),
        }
    }

    /// Into how many buckets a share is cut of which some rank moves so many
    /// hundredths.
    fn cuts_of(&self, bytes: u64, burden_percent: u64) -> Cuts {
        let moved = u128::from(bytes) * u128::from(burden_percent) / 100;
        let moved = u64::try_from(moved).unwrap_or(u64::MAX);
        self.decision.cuts_of(moved, self.rank_bytes)
    }

    /// Domains of the longest chain.
    fn chain_length(&self) -> u32 {
        let copies = self.decision.copies.iter().map(|c| c.copies.max(1));
        let fewest = u64::from(copies.min().unwrap_or(1));
        self.domains.destination_count().div_ceil(fewest).max(1) as u32
    }

    /// Bucket `b` of stage `s` travels in step `b + s`.
    pub fn step_count(&self) -> u32 {
        self.decision.bucket_count + self.stage_count() - 1
    }
}

/// Derives and verifies the program of `rank`.
pub fn derive<'a>(inputs: Inputs<'a>, walks: &Walks<'a>, rank: Rank) -> Result<Program> {
    Ok(built(inputs, walks, rank)?.1.finish())
}

/// The same with all buffers that digest items are of, and without these.
pub fn derive_with_buffers<'a>(
    inputs: Inputs<'a>,
    walks: &Walks<'a>,
    rank: Rank,
) -> Result<Program> {
    let (walks, mut builder) = built(inputs, walks, rank)?;
    builder.add_digest_buffers(&walks[HOLDINGS]);
    Ok(builder.finish())
}

/// The same with digest items. Their weights are per copy where
/// `alike_copies` are alike.
pub fn derive_with_digests<'a>(
    inputs: Inputs<'a>,
    walks: &Walks<'a>,
    rank: Rank,
    alike_copies: u64,
) -> Result<Program> {
    let (walks, mut builder) = built(inputs, walks, rank)?;
    builder.add_source_digests(&walks[HOLDINGS], alike_copies);
    builder.add_destination_digests(&walks[NEEDS]);
    Ok(builder.finish())
}

fn built<'a>(
    inputs: Inputs<'a>,
    walks: &Walks<'a>,
    rank: Rank,
) -> Result<(Vec<Visit<'a>>, Builder<'a>)> {
    let walks = visits(inputs, walks, rank)?;
    let routes = routes(inputs, rank, &walks);
    routes.verify()?;
    let mut builder = Builder::new(inputs, rank);
    builder.add_locals(&walks[NEEDS], &routes.locals)?;
    builder.add_streams(routes);
    builder.add_fills();
    Ok((walks, builder))
}

/// The way of everything that the rank exchanges.
fn routes<'w, 'a>(inputs: Inputs<'a>, rank: Rank, walks: &'w [Visit<'a>]) -> Routes<'w, 'a> {
    let mut routes = Routes::new(inputs, rank, walks);
    match (inputs.decision.strategy, inputs.two_stage) {
        (Strategy::Relay | Strategy::Fanout, _) => routes.clustered(),
        (Strategy::TwoStage, Some(mapped)) => routes.two_stage(mapped),
        (Strategy::TwoStage | Strategy::Direct, _) => routes.direct(),
    }
    routes
}

/// Index of the walk over what the rank needs, and of the one over what it
/// holds. More walks are over the needs of ranks it may forward to, or over
/// what ranks hold that it may relay for.
const NEEDS: usize = 0;
const HOLDINGS: usize = 1;

fn visits<'a>(inputs: Inputs<'a>, walks: &Walks<'a>, rank: Rank) -> Result<Vec<Visit<'a>>> {
    let needs = |rank| walks.visit(inputs, rank, Direction::Receive);
    let holdings = |rank| walks.visit(inputs, rank, Direction::Send);
    let mut visits = vec![needs(rank)?, holdings(rank)?];
    if let Some(mapped) = inputs.two_stage {
        for mate in mapped.forwards_to(rank) {
            visits.push(needs(mate)?);
        }
    }
    let domain = inputs.topology.domain(rank);
    let mates = domain.map_or(&[][..], |d| inputs.domains.source_ranks(d));
    if mates.contains(&rank) {
        for &mate in mates.iter().filter(|&&m| m != rank) {
            visits.push(holdings(mate)?);
        }
    }
    Ok(visits)
}

/// A box that a rank needs and does not hold, of one tensor of each kind.
pub struct Need {
    pub kind: u32,
    pub bounds_hash: u128,
    /// On the wire, in all tensors of the kind.
    pub bytes: u128,
}

/// What a rank needs and does not hold.
pub fn needs(inputs: Inputs<'_>, rank: Rank) -> Result<Vec<Need>> {
    let walk = Visit::new(Arc::new(Walk::over_kinds(inputs, rank)?), rank);
    let items = walk.items.iter();
    let wanted = items.filter(|i| walk.own(i.group).is_some());
    let need = wanted.map(|i| {
        let cell = walk.cell_of(i);
        let kind = inputs.tables.glances[i.tensor as usize].kind;
        let count = inputs.tables.kinds[kind as usize].count;
        Need {
            kind,
            bounds_hash: cell.hash,
            bytes: u128::from(cell.bytes) * u128::from(count),
        }
    });
    Ok(need.collect())
}
