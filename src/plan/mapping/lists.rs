//! Checked sizes, and the rank lists that follow from them.
//!
//! Both sides become a [`Grid`]: lists of equal length, one per source copy or
//! replica, each laid out `[stage][expert row][tensor]`. Source copies are cut
//! out of Megatron's order in one of two ways ([`Cut`]), which differ in what
//! expert parallelism means:
//!
//! ```text
//!   EP 2, PP 2, TP 1: ranks 0 1 | 2 3   (rank = e + 2*p)
//!
//!   Cut::Whole    one copy      [[0, 1], [2, 3]]     stages of EP * TP ranks
//!   Cut::Rows     two copies    [[0], [2]], [[1], [3]]
//! ```

use crate::error::{Error, Result};
use crate::limits::RANK_COUNT_MAX;
use crate::rank::Rank;

use super::{DestinationSizes, MappingSpec, Seat, SourceSizes, constraint};

/// How source ranks are cut into copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A copy holds every expert: `[PP][EP][TP]`.
    Whole,
    /// Each expert row is a copy: `[PP][TP]`. Right for everything but routed
    /// experts, of which every row holds different ones.
    Rows,
}

/// Rank lists of equal length, each laid out `[stages][rows][tensor]`.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    ranks: Vec<Rank>,
    pub stages: usize,
    pub rows: usize,
    pub tensor: usize,
}

impl Grid {
    /// How many lists there are; at least one.
    pub fn copies(&self) -> usize {
        self.ranks.len() / self.list_len()
    }

    /// All ranks of one stage of list `copy`: `rows * tensor` of them.
    pub fn stage(&self, copy: usize, stage: usize) -> &[Rank] {
        let len = self.rows * self.tensor;
        let start = copy * self.list_len() + stage * len;
        &self.ranks[start..start + len]
    }

    /// One expert row of one stage of list `copy`: `tensor` ranks.
    pub fn row(&self, copy: usize, stage: usize, row: usize) -> &[Rank] {
        &self.stage(copy, stage)[row * self.tensor..][..self.tensor]
    }

    /// Every rank with its place, list by list.
    pub fn seats(&self, spec: &MappingSpec) -> Vec<Seat> {
        let seat = |(i, &rank): (usize, &Rank)| Seat {
            rank,
            device: spec.device(rank),
            copy: (i / self.list_len()) as u32,
            stage: (i / (self.rows * self.tensor) % self.stages) as u32,
            expert: (i / self.tensor % self.rows) as u32,
            tensor: (i % self.tensor) as u32,
        };
        self.ranks.iter().enumerate().map(seat).collect()
    }

    fn list_len(&self) -> usize {
        self.stages * self.rows * self.tensor
    }
}

/// Refuses sizes and device lists that contradict each other or the limits.
pub(super) fn check(spec: &MappingSpec) -> Result<()> {
    let SourceSizes { tp, pp, ep, dp, cp } = spec.source;
    let sources = product(
        "source",
        &[("TP", tp), ("PP", pp), ("EP", ep), ("DP", dp), ("CP", cp)],
    )?;
    let DestinationSizes {
        tp,
        pp,
        ep,
        replicas,
    } = spec.destination;
    let destinations = product(
        "destination",
        &[("TP", tp), ("PP", pp), ("EP", ep), ("replicas", replicas)],
    )?;

    let given = spec.source_devices.len() as u64 + spec.destination_devices.len() as u64;
    if given > u64::from(RANK_COUNT_MAX) {
        return Err(Error::limit(format!(
            "devices of {given} ranks were given, at most {RANK_COUNT_MAX} are allowed"
        )));
    }
    let source_lists = spec.source_ranks.is_some() || spec.expert_source_ranks.is_some();
    check_devices("source", sources, spec.source_devices.len(), source_lists)?;
    check_devices(
        "destination",
        destinations,
        spec.destination_devices.len(),
        spec.destination_ranks.is_some(),
    )
}

/// The product of the sizes of one side, at least 1, at most the rank limit.
fn product(side: &str, sizes: &[(&str, u32)]) -> Result<u32> {
    let mut count = 1u32;
    for &(name, size) in sizes {
        if size == 0 {
            return Err(Error::invalid(format!(
                "{side} {name} is 0, must be at least 1"
            )));
        }
        count = match count.checked_mul(size) {
            Some(count) if count <= RANK_COUNT_MAX => count,
            _ => {
                let sizes: Vec<_> = sizes.iter().map(|(n, s)| format!("{n} {s}")).collect();
                return Err(Error::limit(format!(
                    "{side} sizes {} make more than {RANK_COUNT_MAX} ranks",
                    sizes.join(", ")
                )));
            }
        };
    }
    Ok(count)
}

/// One device per rank; explicit lists may use fewer ranks than there are.
fn check_devices(side: &str, ranks: u32, devices: usize, explicit: bool) -> Result<()> {
    if explicit || devices == ranks as usize {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{side} sizes make {ranks} ranks, but devices of {devices} were given"
    )))
}

/// The copies of everything but routed experts, and of a plain single stage.
pub(super) fn sources(spec: &MappingSpec, cut: Cut) -> Result<Grid> {
    let explicit = match (&spec.source_ranks, &spec.expert_source_ranks) {
        (Some(lists), _) => Some(lists),
        (None, Some(lists)) => Some(lists),
        (None, None) => None,
    };
    source_grid(spec, cut, explicit)
}

/// The copies that routed experts come from.
pub(super) fn expert_sources(spec: &MappingSpec) -> Result<Grid> {
    if spec.expert_source_ranks.is_none()
        && let Some(lists) = &spec.source_ranks
    {
        check_rows_are_joined(&Shape::of(&spec.source), lists)?;
    }
    let explicit = spec.expert_source_ranks.as_ref();
    source_grid(spec, Cut::Whole, explicit.or(spec.source_ranks.as_ref()))
}

/// Lists of one expert row each say nothing about who makes up a whole copy.
fn check_rows_are_joined(shape: &Shape, lists: &[Vec<Rank>]) -> Result<()> {
    let Shape { tp, pp, ep, .. } = shape;
    let row = shape.copy(Cut::Rows);
    let is_row = |list: &Vec<Rank>| list.len() == row;
    match lists.iter().position(is_row) {
        Some(i) if *ep > 1 => Err(Error::invalid(format!(
            "source list {i} has TP {tp} x PP {pp} = {row} ranks, one of {ep} expert rows: that \
             serves everything but routed experts, whose lists are missing \
             (expert_source_ranks; `src_ranks_expert` in JSON)"
        ))),
        _ => Ok(()),
    }
}

fn source_grid(spec: &MappingSpec, cut: Cut, explicit: Option<&Vec<Vec<Rank>>>) -> Result<Grid> {
    let shape = Shape::of(&spec.source);
    let ranks = match explicit {
        Some(lists) => {
            check_members("source", lists, 0, spec.source_devices.len())?;
            explicit_copies(&shape, cut, lists)?
        }
        None => megatron_copies(&shape, spec.source.dp, cut),
    };
    let rows = match cut {
        Cut::Whole => shape.ep,
        Cut::Rows => 1,
    };
    Ok(Grid {
        ranks,
        stages: shape.pp,
        rows,
        tensor: shape.tp,
    })
}

/// The replicas of the destination.
pub(super) fn destinations(spec: &MappingSpec) -> Result<Grid> {
    let DestinationSizes {
        tp,
        pp,
        ep,
        replicas,
    } = spec.destination;
    let first = spec.source_devices.len();
    let count = spec.destination_devices.len();
    let ranks = match &spec.destination_ranks {
        Some(lists) => {
            check_members("destination", lists, first, count)?;
            check_replicas(lists, replicas as usize, [tp, pp, ep])?;
            lists.concat()
        }
        None => (first..first + count).map(|r| Rank(r as u32)).collect(),
    };
    Ok(Grid {
        ranks,
        stages: pp as usize,
        rows: ep as usize,
        tensor: tp as usize,
    })
}

/// Explicit ranks lie in `first..first + count`, none twice.
fn check_members(side: &str, lists: &[Vec<Rank>], first: usize, count: usize) -> Result<()> {
    if lists.iter().all(Vec::is_empty) {
        return Err(Error::invalid(format!("the {side} rank lists are empty")));
    }
    let mut seen = vec![false; count];
    for &rank in lists.iter().flatten() {
        let seen = rank
            .index()
            .checked_sub(first)
            .and_then(|k| seen.get_mut(k));
        let Some(seen) = seen else {
            return Err(Error::invalid(format!(
                "{side} rank {rank} has no device: {side} ranks are {first} to {} here",
                (first + count).saturating_sub(1)
            ))
            .by(rank));
        };
        if std::mem::replace(seen, true) {
            return Err(
                Error::invalid(format!("{side} rank {rank} is in the rank lists twice")).by(rank),
            );
        }
    }
    Ok(())
}

fn check_replicas(lists: &[Vec<Rank>], replicas: usize, [tp, pp, ep]: [u32; 3]) -> Result<()> {
    if lists.len() != replicas {
        return Err(Error::invalid(format!(
            "{replicas} replicas, but {} destination rank lists",
            lists.len()
        )));
    }
    let expected = tp as usize * pp as usize * ep as usize;
    for (i, list) in lists.iter().enumerate() {
        if list.len() != expected {
            return Err(Error::invalid(format!(
                "destination list {i} has {} ranks, TP {tp} x PP {pp} x EP {ep} needs {expected}",
                list.len()
            )));
        }
    }
    Ok(())
}

/// The sizes of one block of source ranks laid out `[pp][ep][cp][tp]`.
struct Shape {
    tp: usize,
    pp: usize,
    ep: usize,
    cp: usize,
}

impl Shape {
    fn of(sizes: &SourceSizes) -> Shape {
        Shape {
            tp: sizes.tp as usize,
            pp: sizes.pp as usize,
            ep: sizes.ep as usize,
            cp: sizes.cp as usize,
        }
    }

    /// Ranks of a block: all that share one data-parallel index.
    fn block(&self) -> usize {
        self.pp * self.ep * self.cp * self.tp
    }

    /// Ranks of one copy.
    fn copy(&self, cut: Cut) -> usize {
        match cut {
            Cut::Whole => self.pp * self.ep * self.tp,
            Cut::Rows => self.pp * self.tp,
        }
    }

    /// Cuts a block, whose i-th rank is `rank(i)`, into its copies.
    ///
    /// Context parallel ranks hold equal weights: each context index is a copy
    /// of its own, or several copies if expert rows are copies as well.
    fn cut(&self, cut: Cut, rank: impl Fn(usize) -> Rank, out: &mut Vec<Rank>) {
        let mut tensor_run = |p: usize, e: usize, c: usize| {
            let start = ((p * self.ep + e) * self.cp + c) * self.tp;
            out.extend((start..start + self.tp).map(&rank));
        };
        for c in 0..self.cp {
            match cut {
                Cut::Whole => {
                    for pe in 0..self.pp * self.ep {
                        tensor_run(pe / self.ep, pe % self.ep, c);
                    }
                }
                Cut::Rows => {
                    for ep in 0..self.ep * self.pp {
                        tensor_run(ep % self.pp, ep / self.pp, c);
                    }
                }
            }
        }
    }
}

/// Copies in Megatron's order: the block of data-parallel index d holds the
/// ranks whose number, divided as in the [module](super) docs, has that d.
fn megatron_copies(shape: &Shape, dp: u32, cut: Cut) -> Vec<Rank> {
    let dp = dp as usize;
    let per_stage = shape.ep * shape.cp * shape.tp;
    let mut out = Vec::with_capacity(dp * shape.block());
    for d in 0..dp {
        let rank = |i: usize| {
            let (stage, inner) = (i / per_stage, i % per_stage);
            Rank(((stage * dp + d) * per_stage + inner) as u32)
        };
        shape.cut(cut, rank, &mut out);
    }
    out
}

/// Copies out of lists as a runtime has them: already cut, or block by block.
fn explicit_copies(shape: &Shape, cut: Cut, lists: &[Vec<Rank>]) -> Result<Vec<Rank>> {
    let (copy, whole, block) = (shape.copy(cut), shape.copy(Cut::Whole), shape.block());
    let mut out = Vec::with_capacity(lists.iter().map(Vec::len).sum());
    for (i, list) in lists.iter().enumerate() {
        if list.len() == copy {
            out.extend_from_slice(list);
            continue;
        }
        if list.len() == whole {
            Shape { cp: 1, ..*shape }.cut(cut, |k| list[k], &mut out);
            continue;
        }
        if list.is_empty() || list.len() % block != 0 {
            return Err(ragged_list(shape, cut, i, list.len()));
        }
        for chunk in list.chunks_exact(block) {
            shape.cut(cut, |k| chunk[k], &mut out);
        }
    }
    Ok(out)
}

fn ragged_list(shape: &Shape, cut: Cut, index: usize, len: usize) -> Error {
    let Shape { tp, pp, ep, cp } = shape;
    let copy = shape.copy(cut);
    let copy_sizes = match cut {
        Cut::Whole => format!("TP {tp} x PP {pp} x EP {ep}"),
        Cut::Rows => format!("TP {tp} x PP {pp}"),
    };
    if copy == shape.block() {
        return constraint(format_args!(
            "source list {index} has {len} ranks, not a multiple of {copy_sizes} = {copy}, \
             so that some stage would have no source"
        ));
    }
    constraint(format_args!(
        "source list {index} has {len} ranks, neither one copy of {copy_sizes} = {copy} \
         nor a multiple of TP {tp} x PP {pp} x EP {ep} x CP {cp} = {}",
        shape.block()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(grid: &Grid) -> Vec<Vec<u32>> {
        let ranks: Vec<u32> = grid.ranks.iter().map(|r| r.0).collect();
        ranks.chunks(grid.list_len()).map(<[u32]>::to_vec).collect()
    }

    fn spec(tp: u32, pp: u32, ep: u32, dp: u32, cp: u32) -> MappingSpec {
        let n = tp * pp * ep * dp * cp;
        MappingSpec {
            source: SourceSizes { tp, pp, ep, dp, cp },
            source_devices: (0..n).collect(),
            destination_devices: vec![n],
            ..MappingSpec::default()
        }
    }

    #[test]
    fn megatron_order() {
        let spec = spec(1, 2, 2, 2, 1);
        let whole = sources(&spec, Cut::Whole).unwrap();
        assert_eq!(lists(&whole), [[0, 1, 4, 5], [2, 3, 6, 7]]);
        let rows = sources(&spec, Cut::Rows).unwrap();
        assert_eq!(lists(&rows), [[0, 4], [1, 5], [2, 6], [3, 7]]);
    }

    #[test]
    fn context_parallel_is_one_more_data_parallel() {
        let spec = spec(2, 2, 1, 1, 2);
        let rows = sources(&spec, Cut::Rows).unwrap();
        assert_eq!(lists(&rows), [[0, 1, 4, 5], [2, 3, 6, 7]]);
    }

    #[test]
    fn long_lists_are_cut_into_copies() {
        let mut spec = spec(1, 2, 1, 3, 1);
        spec.source_ranks = Some(vec![(0..6).map(Rank).collect()]);
        let rows = sources(&spec, Cut::Rows).unwrap();
        assert_eq!(lists(&rows), [[0, 1], [2, 3], [4, 5]]);
    }

    #[test]
    fn explicit_blocks_and_explicit_rows_agree() {
        let mut spec = spec(1, 2, 2, 1, 2);
        let implied = lists(&sources(&spec, Cut::Rows).unwrap());
        spec.source_ranks = Some(vec![(0..8).map(Rank).collect()]);
        assert_eq!(lists(&sources(&spec, Cut::Rows).unwrap()), implied);
        let rows = implied.iter().map(|l| l.iter().map(|&r| Rank(r)).collect());
        spec.source_ranks = Some(rows.collect());
        assert_eq!(lists(&sources(&spec, Cut::Rows).unwrap()), implied);
        // One copy per context index, which holds both expert rows.
        let whole = lists(&expert_sources(&self::spec(1, 2, 2, 1, 2)).unwrap());
        let whole = whole.iter().map(|l| l.iter().map(|&r| Rank(r)).collect());
        spec.source_ranks = Some(whole.collect());
        assert_eq!(lists(&sources(&spec, Cut::Rows).unwrap()), implied);
    }

    #[test]
    fn routed_experts_do_not_come_from_single_rows() {
        let mut spec = spec(1, 2, 2, 1, 1);
        spec.source_ranks = Some(vec![vec![Rank(0), Rank(2)], vec![Rank(1), Rank(3)]]);
        let e = expert_sources(&spec).unwrap_err();
        assert_eq!(e.status, crate::Status::InvalidArgument);
        assert!(e.message.contains("TP 1 x PP 2 = 2 ranks"), "{e}");
        assert!(e.message.contains("`src_ranks_expert`"), "{e}");
        spec.expert_source_ranks = Some(vec![(0..4).map(Rank).collect()]);
        let whole = expert_sources(&spec).unwrap();
        assert_eq!(lists(&whole), [[0, 1, 2, 3]]);
    }

    #[test]
    fn contradictions_are_named() {
        let message = |spec: &MappingSpec| match check(spec) {
            Err(e) => e.message,
            Ok(()) => sources(spec, Cut::Rows).unwrap_err().message,
        };
        let mut a = spec(2, 2, 1, 1, 1);
        a.source_devices.pop();
        assert_eq!(
            message(&a),
            "source sizes make 4 ranks, but devices of 3 were given"
        );
        let mut a = spec(2, 2, 1, 1, 1);
        a.source.pp = 0;
        assert_eq!(message(&a), "source PP is 0, must be at least 1");
        a.source.pp = u32::MAX;
        assert!(message(&a).contains("make more than 1048576 ranks"));
        let mut a = spec(2, 2, 1, 1, 1);
        a.source_ranks = Some(vec![vec![Rank(0), Rank(1), Rank(2)]]);
        assert!(message(&a).contains("3 ranks, not a multiple of TP 2 x PP 2 = 4"));
        a.source_ranks = Some(vec![vec![Rank(0), Rank(1), Rank(2), Rank(0)]]);
        assert_eq!(message(&a), "source rank 0 is in the rank lists twice");
        a.source_ranks = Some(vec![vec![Rank(0), Rank(1), Rank(2), Rank(4)]]);
        assert_eq!(
            message(&a),
            "source rank 4 has no device: source ranks are 0 to 3 here"
        );
        a.source_ranks = Some(vec![]);
        assert_eq!(message(&a), "the source rank lists are empty");
    }
}
