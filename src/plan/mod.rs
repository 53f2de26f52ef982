//! From two layouts to a plan, and from a plan to the program of one rank.
//!
//! A [`Plan`] is a value: two layouts and a small [`Decision`]. It is made
//! once, is equal wherever it is made from equal input, can be saved and sent,
//! and has a 128-bit fingerprint. What a rank does is *derived* from it, by
//! that rank alone, in well under a millisecond at any number of ranks:
//!
//! ```text
//!   source layout ─┐
//!                  ├─ Plan ─┬─ program(0)
//!   destination ───┘        ├─ program(1)
//!   options                 └─ ...        no exchange, no expansion
//! ```
//!
//! Nothing in here has a pointer, a clock, an environment or I/O, and no
//! decision depends on a float or on the order of a hash map.

#![forbid(unsafe_code)]

pub mod blocks;
pub mod bounds;
pub mod decision;
pub mod mapping;
pub mod origin;
pub mod program;
pub mod program_info;
pub mod report;
mod selector;
pub mod topology;
pub mod traffic;
pub mod two_stage;
pub mod verify;
pub mod waterfill;

mod boxes;
mod bucket;
mod cells;
mod derive;
mod domains;
mod fanout;
mod layers;
mod line;
mod locality;
mod piece;
mod ranks;
mod replan;
mod senders;
mod slots;
mod sorting;
mod tables;
mod wire;

use crate::crew;
use crate::error::{Error, Result, Status};
use crate::layout::check::check_pair;
use crate::layout::tensor::{Tensor, TensorIndex};
use crate::layout::view::NamedBuffer;
use crate::layout::{Layout, LayoutSpec, Place};
use crate::rank::Rank;
use decision::{Decision, Order, PlanOptions, Strategy};
pub(crate) use derive::share_of;
use derive::{Inputs, Memory, Walks};
use domains::Domains;
use layers::LayerLine;
use locality::Locality;
use program::{BufferUse, Program, Side};
pub use selector::Selector;
use senders::Senders;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use tables::{Kind, PlacementRef, Tables, placement};
use topology::{Topology, TopologySpec};
use two_stage::TwoStage;
use wildmatch::WildMatch;
pub use wire::{PLAN_BLOB_MAGIC, PLAN_BLOB_VERSION, PlanDiff};

/// Version of the rules by which programs are derived; part of every
/// fingerprint, so ranks with other rules never exchange a byte.
pub const PLANNER_VERSION: u32 = 7;

/// Up to this many ranks every program is derived to choose the bucket count;
/// above, one rank of each kind and some between.
const EXACT_RANK_COUNT: usize = 1024;

/// Programs that are in memory at a time while all are looked at.
const PROGRAM_WINDOW_COUNT: usize = 64;

/// The canonical inputs and the decision. Immutable; any thread may use it.
#[derive(Debug)]
pub struct Plan {
    source: Arc<Layout>,
    destination: Arc<Layout>,
    selectors: Vec<Selector>,
    decision: Decision,
    /// As given; `None` is the default.
    topology_spec: Option<TopologySpec>,
    /// With every rank placed.
    topology: Arc<Topology>,
    tables: Tables,
    two_stage: Option<Arc<TwoStage>>,
    domains: Domains,
    rank_bytes: u64,
    senders: Senders,
    locality: Locality,
    layers: LayerLine,
    tensors: Arc<[Tensor]>,
    fingerprint: u128,
    participants: OnceLock<Participants>,
}

#[derive(Debug)]
struct Participants {
    all: Vec<Rank>,
    /// Those on the destination side, whether or not any byte reaches them.
    needing: Vec<Rank>,
    /// Participating ranks of each destination copy.
    copy_ranks: Vec<u32>,
}

/// What the fingerprint covers: the topology only where decisions hang on it.
#[derive(Serialize)]
struct Mark<'a> {
    planner_version: u32,
    decision: &'a Decision,
    topology: Option<&'a TopologySpec>,
    selectors: &'a [Selector],
    /// Digests of the layouts.
    source: u128,
    destination: u128,
}

fn written(value: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_stdvec(value)
        .map_err(|e| Error::internal(format!("a plan cannot be written: {e}")))
}

/// What is serialised.
#[derive(Serialize)]
struct Body<'a> {
    planner_version: u32,
    decision: &'a Decision,
    topology: Option<&'a TopologySpec>,
    selectors: &'a [Selector],
    source: &'a LayoutSpec,
    destination: &'a LayoutSpec,
}

/// The same, owned.
#[derive(Deserialize)]
struct OwnedBody {
    planner_version: u32,
    decision: Decision,
    topology: Option<TopologySpec>,
    selectors: Vec<Selector>,
    source: LayoutSpec,
    destination: LayoutSpec,
}

/// The tensor of a kind that comes first, in each layout, and how many of the
/// kind there are.
pub(crate) struct TensorKind {
    pub source: TensorIndex,
    pub destination: TensorIndex,
    pub count: u64,
}

/// A topology as given, and with every rank of two layouts placed.
#[derive(Clone, Debug)]
struct Ground {
    spec: Option<TopologySpec>,
    placed: Arc<Topology>,
}

impl Ground {
    fn new(spec: Option<TopologySpec>, source: &Layout, destination: &Layout) -> Result<Ground> {
        let topology = Topology::new(spec.clone().unwrap_or_default())?;
        let placed = Arc::new(topology.placed_for(source, destination)?);
        Ok(Ground { spec, placed })
    }
}

impl Plan {
    /// Plans the way from `source` to `destination`.
    ///
    /// Fails, naming tensors, ranks and numbers, if anything hinders that
    /// [`check_pair`] finds (a destination byte without a holder or written
    /// twice, shapes, dtypes, granules or copies that do not fit), or the staging
    /// budget is too small for the smallest piece.
    pub fn create(
        source: Arc<Layout>,
        destination: Arc<Layout>,
        options: &PlanOptions,
    ) -> Result<Plan> {
        let mut plan = Plan::unchosen(source, destination, options)?;
        match options.bucket_count {
            0 => plan.choose_buckets(1)?,
            _ => plan.check_buckets()?,
        }
        plan.seal()?;
        Ok(plan)
    }

    /// The same in `bucket_count` buckets, or in as many more as the staging
    /// budget asks for.
    pub(crate) fn create_in_at_least(
        bucket_count: u32,
        source: Arc<Layout>,
        destination: Arc<Layout>,
        options: &PlanOptions,
    ) -> Result<Plan> {
        let mut plan = Plan::unchosen(source, destination, options)?;
        plan.choose_buckets(bucket_count)?;
        plan.seal()?;
        Ok(plan)
    }

    /// A plan for layouts that fit, whose buckets are still to be counted.
    fn unchosen(
        source: Arc<Layout>,
        destination: Arc<Layout>,
        options: &PlanOptions,
    ) -> Result<Plan> {
        options.validate()?;
        let plan = Plan::unsealed(source, destination, options, options.bucket_count.max(1))?;
        plan.refuse_unused(&options.unused_allowed)?;
        plan.refuse_misfits()?;
        plan.refuse_crumbs()?;
        Ok(plan)
    }

    /// A plan of one bucket that no budget limits, to be looked at and not
    /// executed.
    pub(crate) fn draft(
        source: Arc<Layout>,
        destination: Arc<Layout>,
        options: &PlanOptions,
    ) -> Result<Plan> {
        Plan::unsealed(source, destination, options, 1)
    }

    fn unsealed(
        source: Arc<Layout>,
        destination: Arc<Layout>,
        options: &PlanOptions,
        bucket_count: u32,
    ) -> Result<Plan> {
        let decision = Decision {
            bucket_count,
            ..Decision::new(options)
        };
        let ground = Ground::new(options.topology.clone(), &source, &destination)?;
        Plan::assemble(source, destination, decision, ground, Vec::new())
    }

    /// The plan of a decision that was made before, for layouts that
    /// [`check_pair`] found to fit: nothing is chosen, and no rank is looked at
    /// until its program is asked for.
    pub fn with_decision(
        source: Arc<Layout>,
        destination: Arc<Layout>,
        decision: Decision,
        topology: Option<topology::TopologySpec>,
    ) -> Result<Plan> {
        let ground = Ground::new(topology, &source, &destination)?;
        let mut plan = Plan::assemble(source, destination, decision, ground, Vec::new())?;
        plan.seal()?;
        Ok(plan)
    }

    /// The part of this plan that moves the selected tensors, with its own
    /// fingerprint. Selecting again narrows further.
    pub fn select(&self, selector: &Selector) -> Result<Plan> {
        let (by_name, destination) = selector.narrow(&self.destination)?;
        let mut selectors = self.selectors.clone();
        selectors.push(by_name);
        let ground = Ground::new(self.topology_spec.clone(), &self.source, &destination)?;
        let mut plan = Plan::assemble(
            self.source.clone(),
            destination,
            self.decision.clone(),
            ground,
            selectors,
        )?;
        if plan.tables.tensors.is_empty() {
            return Err(self.nothing_matches(selector));
        }
        plan.choose_buckets(1)?;
        plan.seal()?;
        Ok(plan)
    }

    fn nothing_matches(&self, selector: &Selector) -> Error {
        Error::new(
            Status::NotFound,
            format!(
                "no tensor matches {selector}; the plan has {} tensors, the first is \"{}\"",
                self.tensors.len(),
                self.tensors.first().map_or("", |t| &t.name)
            ),
        )
    }

    /// The same plan with its bytes in another order; in more buckets where
    /// these would not keep staging inside its budget.
    pub fn in_order(&self, order: Order) -> Result<Plan> {
        let mut plan = self.decided_anew(Decision {
            order,
            ..self.decision.clone()
        })?;
        plan.keep_buckets(&plan.sample_ranks().0, self)?;
        plan.seal()?;
        Ok(plan)
    }

    /// A draft of the same in so many buckets.
    pub(crate) fn draft_in_buckets(&self, bucket_count: u32) -> Result<Plan> {
        self.decided_anew(Decision {
            bucket_count,
            ..self.decision.clone()
        })
    }

    fn decided_anew(&self, decision: Decision) -> Result<Plan> {
        let ground = Ground {
            spec: self.topology_spec.clone(),
            placed: self.topology.clone(),
        };
        let (source, destination) = (self.source.clone(), self.destination.clone());
        Plan::assemble(
            source,
            destination,
            decision,
            ground,
            self.selectors.clone(),
        )
    }

    fn assemble(
        source: Arc<Layout>,
        destination: Arc<Layout>,
        decision: Decision,
        ground: Ground,
        selectors: Vec<Selector>,
    ) -> Result<Plan> {
        let mut marks = destination.spec().marks.clone();
        marks.extend(&source.spec().marks);
        let tables = Tables::join(&source, &destination, |name| {
            selectors.iter().all(|s| s.selects(name, &marks))
        })?;
        let tensors = match tables.tensors.len() == destination.tensors().len() {
            true => destination.shared_tensors().clone(),
            false => {
                let moved = tables.tensors.iter().map(|t| t.destination.index());
                moved.map(|i| destination.tensors()[i].clone()).collect()
            }
        };
        let two_stage = match &decision.two_stage {
            None => None,
            Some(options) => Some(Arc::new(TwoStage::between(
                &source,
                &destination,
                options,
                |rank| device_of(&ground.placed, rank),
            )?)),
        };
        let domains = match decision.strategy {
            Strategy::Direct | Strategy::TwoStage => Domains::default(),
            Strategy::Relay | Strategy::Fanout => {
                let relays = decision.source_relay;
                Domains::new(&source, &destination, &ground.placed, relays)
            }
        };
        let rank_bytes = bucket::rank_bytes(
            &decision,
            tables.copy_bytes,
            &domains,
            (&source, &destination),
        );
        let layers = match decision.order {
            Order::Fraction => LayerLine::default(),
            Order::Layer => LayerLine::new(&tables, &destination),
        };
        let mut plan = Plan {
            source,
            destination,
            selectors,
            decision,
            topology_spec: ground.spec,
            topology: ground.placed,
            tables,
            two_stage,
            domains,
            rank_bytes,
            senders: Senders::default(),
            locality: Locality::default(),
            layers,
            tensors,
            fingerprint: 0,
            participants: OnceLock::new(),
        };
        if plan.decision.strategy == Strategy::Fanout {
            plan.decision.copies = fanout::copies(plan.inputs())?;
        }
        plan.choose_senders()?;
        Ok(plan)
    }

    /// How much each holder sends, and whom it sends it to first.
    fn choose_senders(&mut self) -> Result<()> {
        match self.decision.strategy {
            // The mapping names the senders.
            Strategy::TwoStage => {}
            Strategy::Relay | Strategy::Fanout => self.senders = Senders::new(self.inputs())?,
            Strategy::Direct => {
                self.senders = Senders::new(self.inputs())?;
                self.locality = Locality::new(&self.source, &self.destination, &self.topology);
            }
        }
        Ok(())
    }

    /// Source tensors that no destination rank wants are an error unless named.
    fn refuse_unused(&self, allowed: &[String]) -> Result<()> {
        let used: BTreeSet<u32> = self.tables.tensors.iter().map(|t| t.source.0).collect();
        let allowed: Vec<WildMatch> = allowed.iter().map(|g| WildMatch::new(g)).collect();
        let unused: Vec<&Tensor> = self
            .source
            .tensors()
            .iter()
            .enumerate()
            .filter(|(i, t)| {
                !used.contains(&(*i as u32)) && !allowed.iter().any(|g| g.matches(&t.name))
            })
            .map(|(_, t)| t)
            .collect();
        let Some(first) = unused.first() else {
            return Ok(());
        };
        let bytes: u64 = unused.iter().map(|t| t.bytes()).sum();
        Err(Error::layout(format!(
            "{} source tensors ({bytes} bytes) are not on the destination, the first is \"{}\"; \
             name them in unused_allowed if that is meant",
            unused.len(),
            first.name
        )))
    }

    /// What hinders between the layouts is an error, all of it counted. Unused
    /// source tensors are judged by what the caller allows.
    fn refuse_misfits(&self) -> Result<()> {
        check_pair(&self.source, &self.destination).refuse_misfits()
    }

    /// Cuts that leave far too many cells are refused by what the lowest
    /// destination rank needs, before every other rank is asked.
    fn refuse_crumbs(&self) -> Result<()> {
        match self.destination.lowest_rank() {
            Some(rank) => derive::needs(self.inputs(), rank).map(|_| ()),
            None => Ok(()),
        }
    }

    /// All ranks, or, of very many, the first, a middle and the last one of
    /// each kind; says whether these are all.
    pub(crate) fn sample_ranks(&self) -> (Vec<Rank>, bool) {
        let all = self.ranks();
        if all.len() <= EXACT_RANK_COUNT {
            return (all, true);
        }
        let mut chosen = BTreeSet::new();
        for layout in [&self.source, &self.destination] {
            let ranks = layout.ranks();
            let step = (ranks.len() / (EXACT_RANK_COUNT / 4)).max(1);
            // Ranks at equal distances have the same place in their groups.
            let drifting = (0..).map(|i| i * step + i % step);
            chosen.extend(drifting.map_while(|at| ranks.get(at)));
            chosen.extend(ranks.last());
            chosen.extend(ranks.iter().take(EXACT_RANK_COUNT / 8));
        }
        (chosen.into_iter().collect(), false)
    }

    fn seal(&mut self) -> Result<()> {
        let topology = match self.topology_decides() {
            true => self.topology_spec.as_ref(),
            false => None,
        };
        let mark = Mark {
            planner_version: PLANNER_VERSION,
            decision: &self.decision,
            topology,
            selectors: &self.selectors,
            source: self.source.digest()?,
            destination: self.destination.digest()?,
        };
        self.fingerprint = xxhash_rust::xxh3::xxh3_128(&written(&mark)?);
        Ok(())
    }

    /// True if programs may differ with the topology.
    fn topology_decides(&self) -> bool {
        match self.decision.strategy {
            Strategy::Direct => {
                let has_speeds = !self.topology.spec().speeds.is_empty();
                has_speeds || self.senders.decide() || self.locality.decides()
            }
            // Which ranks share a device.
            Strategy::TwoStage => {
                let options = self.decision.two_stage.as_ref();
                options.is_some_and(|o| o.avoid_same_device)
            }
            Strategy::Relay | Strategy::Fanout => true,
        }
    }

    /// What is serialised of the plan.
    fn body(&self) -> Result<Vec<u8>> {
        written(&Body {
            planner_version: PLANNER_VERSION,
            decision: &self.decision,
            topology: self.topology_spec.as_ref(),
            selectors: &self.selectors,
            source: self.source.spec(),
            destination: self.destination.spec(),
        })
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            source: &self.source,
            destination: &self.destination,
            tables: &self.tables,
            tensors: &self.tensors,
            decision: &self.decision,
            two_stage: self.two_stage.as_deref(),
            domains: &self.domains,
            rank_bytes: self.rank_bytes,
            senders: &self.senders,
            locality: &self.locality,
            layers: &self.layers,
            topology: &self.topology,
        }
    }

    /// The verified program of one rank; empty if it takes no part.
    pub fn program(&self, rank: Rank) -> Result<Program> {
        derive::derive(self.inputs(), &Walks::alone(), rank)
    }

    /// What the program of one rank stages, which takes less time than to make
    /// it.
    fn memory<'a>(&'a self, walks: &Walks<'a>, rank: Rank) -> Result<Memory> {
        derive::memory(self.inputs(), walks, rank)
    }

    /// Hands the programs of `ranks` to `take`, in their order. Some threads
    /// derive them, a few at a time.
    pub(crate) fn each_program(
        &self,
        ranks: &[Rank],
        mut take: impl FnMut(Program) -> Result<()>,
    ) -> Result<()> {
        let walks = Walks::shared();
        let derive = |rank| derive::derive(self.inputs(), &walks, rank);
        for window in ranks.chunks(PROGRAM_WINDOW_COUNT) {
            for program in crew::for_each(window, derive)? {
                take(program)?;
            }
        }
        Ok(())
    }

    /// The program of one rank with all buffers that it binds.
    fn program_with_buffers<'a>(&'a self, walks: &Walks<'a>, rank: Rank) -> Result<Program> {
        derive::derive_with_buffers(self.inputs(), walks, rank)
    }

    /// The program of one rank with its digest items, as a session loads it.
    pub fn program_with_digests(&self, rank: Rank) -> Result<Program> {
        let alike = match self.copies_are_alike() {
            true => u64::from(self.destination.copy_count().max(1)),
            false => 1,
        };
        derive::derive_with_digests(self.inputs(), &Walks::alone(), rank, alike)
    }

    /// One tensor of each kind: of those that are cut and stored alike, in the
    /// same stages. Tensors described view by view stand for themselves.
    pub(crate) fn kinds(&self) -> Vec<TensorKind> {
        let kind = |kind: &Kind| {
            let tensor = &self.tables.tensors[kind.first as usize];
            TensorKind {
                source: tensor.source,
                destination: tensor.destination,
                count: kind.count,
            }
        };
        self.tables.kinds.iter().map(kind).collect()
    }

    /// 128 bits over inputs, decision and planner version.
    pub fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// What the plan was made for, with every rank placed.
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    pub fn selectors(&self) -> &[Selector] {
        &self.selectors
    }

    pub fn source(&self) -> &Arc<Layout> {
        &self.source
    }

    pub fn destination(&self) -> &Arc<Layout> {
        &self.destination
    }

    pub fn layout(&self, side: Side) -> &Arc<Layout> {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    /// The tensors that move, sorted by name.
    pub fn tensors(&self) -> &Arc<[Tensor]> {
        &self.tensors
    }

    /// Buckets, and one more for each further stage of the routes.
    pub fn step_count(&self) -> u32 {
        self.inputs().step_count()
    }

    pub fn staging_bytes_max(&self) -> u64 {
        self.decision.staging_bytes_max
    }

    /// Every rank of either layout, ascending.
    pub fn ranks(&self) -> Vec<Rank> {
        let mut all = self.source.ranks();
        all.extend(self.destination.ranks());
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Refuses a rank that is in neither layout, with those that are.
    pub fn check_rank(&self, rank: Rank) -> Result<()> {
        if self.source.place(rank).is_some() || self.destination.place(rank).is_some() {
            return Ok(());
        }
        let ranks = self.ranks();
        let of = |end: Option<&Rank>| end.copied().unwrap_or_default();
        Err(Error::new(
            Status::NotFound,
            format!(
                "rank {rank} is in neither layout; they have {} ranks, {} to {}",
                ranks.len(),
                of(ranks.first()),
                of(ranks.last())
            ),
        ))
    }

    /// Ranks that hold or need a tensor of this plan, ascending.
    pub fn participants(&self) -> &[Rank] {
        &self.participation().all
    }

    /// The destination copy that `rank` takes part in, if it is one of its
    /// participants: a rank may also have a shard without elements.
    pub fn copy_of(&self, rank: Rank) -> Option<u32> {
        let needing = &self.participation().needing;
        needing.binary_search(&rank).ok()?;
        self.destination.copy_of(rank)
    }

    /// Participating ranks of a destination copy.
    pub fn copy_ranks(&self, copy: u32) -> u32 {
        let counts = &self.participation().copy_ranks;
        counts.get(copy as usize).copied().unwrap_or(0)
    }

    /// Name, bytes and memory kind of a buffer in a program.
    pub fn buffer(&self, rank: Rank, used: &BufferUse) -> Option<NamedBuffer> {
        self.layout(used.side).buffer(rank, used.key)
    }

    /// True if every copy holds every element equally often, so that digests
    /// can be compared copy by copy.
    pub fn copies_are_alike(&self) -> bool {
        let d = &self.destination;
        if d.copy_count() <= 1 {
            return true;
        }
        let [part] = d.parts() else { return false };
        let Some(copies) = &part.copies else {
            return false;
        };
        d.explicit().is_empty()
            && part.rules.iter().all(|r| {
                r.mesh == copies.mesh
                    && copies.axes.iter().all(|a| {
                        r.stage_axis != Some(*a) && r.cuts.iter().all(|c| !c.axes.contains(a))
                    })
            })
    }

    fn participation(&self) -> &Participants {
        self.participants.get_or_init(|| {
            let mut source = self.involved(&self.source, |t| &t.holders, |t| &t.explicit_holders);
            // A source rank may relay what it does not hold.
            if self.decision.source_relay {
                let domain = |r: &Rank| self.topology.domain(*r);
                let sending: BTreeSet<u32> = source.iter().filter_map(domain).collect();
                source.extend(sending.iter().flat_map(|&d| self.domains.source_ranks(d)));
            }
            let needing = self.involved(&self.destination, |t| &t.needers, |t| &t.explicit_needers);
            // A receiver may pass on what it does not need.
            let mut needing = needing;
            if let Some(mapped) = &self.two_stage
                && !needing.is_empty()
            {
                needing.extend(mapped.receivers());
            }
            let mut copy_ranks = vec![0; self.destination.copy_count() as usize];
            for &r in &needing {
                if let Some(c) = self.destination.copy_of(r) {
                    copy_ranks[c as usize] += 1;
                }
            }
            Participants {
                all: source.union(&needing).copied().collect(),
                needing: needing.into_iter().collect(),
                copy_ranks,
            }
        })
    }

    /// Ranks of one layout with a placement or view of a tensor of the plan.
    fn involved(
        &self,
        layout: &Layout,
        refs: impl Fn(&tables::PlanTensor) -> &[PlacementRef],
        boxes: impl Fn(&tables::PlanTensor) -> &[boxes::ExplicitBox],
    ) -> BTreeSet<Rank> {
        // Per part, the stages in use: (mesh, axis, stage), or all of it.
        let mut stages: Vec<BTreeSet<Option<(u16, u8, u32)>>> =
            vec![BTreeSet::new(); layout.parts().len()];
        let mut ranks = BTreeSet::new();
        for t in &self.tables.tensors {
            for r in refs(t) {
                let (part, p) = placement(layout, *r);
                let rule = part.rule(p);
                stages[r.part as usize]
                    .insert(rule.stage_axis.zip(p.stage).map(|(a, s)| (rule.mesh, a, s)));
            }
            for e in boxes(t) {
                ranks.extend(e.ranks.iter().map(|x| x.0));
            }
        }
        for (part, wanted) in layout.parts().iter().zip(&stages) {
            let is_in = |position: u32| {
                wanted.iter().any(|w| match w {
                    None => true,
                    Some((mesh, axis, stage)) => {
                        part.meshes[*mesh as usize].coords(position)[*axis as usize] == *stage
                    }
                })
            };
            let all = (0..part.ranks.count()).filter(|&i| is_in(i));
            ranks.extend(all.map(|i| part.ranks.rank(i)));
        }
        ranks
    }

    /// The last step in which `rank` receives bytes of the tensor called
    /// `name`; `None` if it receives none.
    pub fn tensor_last_step(&self, rank: Rank, name: &str) -> Result<Option<u32>> {
        let Some(index) = self.tensors.iter().position(|t| t.name == name) else {
            return Err(Error::new(
                Status::NotFound,
                format!("tensor \"{name}\" is not in the plan"),
            ));
        };
        self.check_rank(rank)?;
        let program = self.program(rank)?;
        let mut last = None;
        for m in &program.messages {
            let pieces = program.pieces_of(m);
            let is_in = pieces.iter().any(|p| p.tensor.index() == index);
            if m.direction == program::Direction::Receive && is_in {
                last = last.max(Some(m.step()));
            }
        }
        if program.locals.iter().any(|l| l.tensor.index() == index) {
            last = last.max(Some(0));
        }
        Ok(last)
    }
}

/// The device of a rank of a placed topology.
fn device_of(topology: &Topology, rank: Rank) -> u32 {
    topology.site(rank).map_or(u32::MAX, |s| s.gpu)
}

/// True if a rank is part of a layout.
pub(crate) fn is_in(layout: &Layout, rank: Rank) -> bool {
    matches!(
        layout.place(rank),
        Some(Place::Part(..) | Place::Explicit(_))
    )
}
