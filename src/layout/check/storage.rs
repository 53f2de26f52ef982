//! Buffers: do fused members fit together, and do names stay apart?

use super::cuts::Classes;
use super::{Finding, FindingKind, Findings};
use crate::layout::mesh::{Coords, Mesh};
use crate::layout::placement::{Buffer, LocalAxis, Part, Placement, Rule};
use crate::layout::tensor::{Dims, Tensor, TensorIndex};
use crate::limits::{NAME_BYTES_MAX, TENSOR_BYTES_MAX, VIEW_COUNT_MAX};
use crate::rank::Rank;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Checks the buffers of a part, as far as their members are well-formed.
pub(super) fn check_part(part: &Part, tensors: &[Tensor], classes: &Classes, out: &mut Findings) {
    let mut checker = Checker {
        part,
        tensors,
        classes,
        meetings: Meetings::default(),
        fits: HashMap::new(),
    };
    for b in &part.buffers {
        let is_sound = |&m: &u32| classes.of_member(m).problems.is_empty();
        if !b.members.iter().all(is_sound) {
            continue;
        }
        checker.size(b, out);
        checker.split_name(b, out);
        if b.members.len() > 1 {
            checker.fused(b, out);
        }
    }
    checker.names(out);
}

struct Checker<'a> {
    part: &'a Part,
    tensors: &'a [Tensor],
    classes: &'a Classes,
    meetings: Meetings,
    /// Whether members of these rules and shapes fit; `None` if they do.
    fits: HashMap<FitKey<'a>, Option<Misfit>>,
}

/// Two members: rule, shape and dtype of each, and the axes they share.
type FitKey<'a> = (u32, &'a Dims, u32, &'a Dims, u8);

/// Why two members cannot lie in one buffer.
#[derive(Clone, Debug)]
struct Misfit {
    axis: Option<u8>,
    rank: Option<Rank>,
    text: String,
}

impl<'a> Checker<'a> {
    fn tensor(&self, p: &Placement) -> &'a Tensor {
        &self.tensors[p.tensor.index()]
    }

    fn say(&self, kind: FindingKind, b: &Buffer, misfit: Misfit, out: &mut Findings) {
        let first = self.tensor(self.part.member(b.members[0]));
        out.push(Finding {
            kind,
            side: None,
            tensor: first.name.clone(),
            axis: misfit.axis,
            rank: misfit.rank.or(self.part.ranks.lowest()),
            bytes: 0,
            message: format!("buffer \"{}\": {}", b.name, misfit.text),
        });
    }

    fn size(&self, b: &Buffer, out: &mut Findings) {
        let bytes = b.members.iter().fold(0u64, |a, &m| {
            a.saturating_add(self.classes.of_member(m).bytes)
        });
        if bytes > TENSOR_BYTES_MAX {
            let text = format!(
                "its {} members need {bytes} bytes on one rank; at most {TENSOR_BYTES_MAX} are allowed",
                b.members.len()
            );
            self.say(FindingKind::Storage, b, plain(text), out);
        }
    }

    /// A split buffer needs a name for each of its indices.
    fn split_name(&self, b: &Buffer, out: &mut Findings) {
        let first = self.part.member(b.members[0]);
        let Some(axis) = self.part.rule(first).split else {
            return;
        };
        let holes = holes_of(&b.name);
        if holes != 1 {
            let text = format!(
                "tensor \"{}\" is split along axis {axis} into one buffer per index, so the \
                 name needs one {{local}} or {{global}}; it has {holes}",
                self.tensor(first).name
            );
            self.say(
                FindingKind::Storage,
                b,
                Misfit {
                    axis: Some(axis),
                    ..plain(text)
                },
                out,
            );
        }
    }

    fn fused(&mut self, b: &Buffer, out: &mut Findings) {
        let part = self.part;
        let first = part.member(b.members[0]);
        let a = self.tensor(first);
        for &m in &b.members {
            let other = part.member(m);
            let c = self.tensor(other);
            if usize::from(b.shared_dims) > c.shape.len() {
                let text = format!(
                    "its members share {} axes, but tensor \"{}\" has {}",
                    b.shared_dims,
                    c.name,
                    c.shape.len()
                );
                self.say(FindingKind::Fused, b, plain(text), out);
                return;
            }
            let axes = [a.shape.len(), c.shape.len()];
            if let Some(text) = order_misfit(part, first, other, b.shared_dims, axes) {
                self.say(FindingKind::Fused, b, plain(text), out);
                return;
            }
            if let Some(text) = self.group_misfit(b, first, other) {
                self.say(FindingKind::Fused, b, plain(text), out);
                return;
            }
        }
        let mut seen: BTreeSet<TensorIndex> = BTreeSet::from([first.tensor]);
        for &m in &b.members[1..] {
            let other = part.member(m);
            let c = self.tensor(other);
            if !seen.insert(other.tensor) {
                let text = format!("tensor \"{}\" is a member twice; once is enough", c.name);
                self.say(FindingKind::Fused, b, plain(text), out);
            }
            if !self.same_stage(first, other) {
                let text = format!(
                    "tensor \"{}\" is on {} and tensor \"{}\" on {}; members of one buffer are on \
                     the same ranks",
                    a.name,
                    stage_of(part, first),
                    c.name,
                    stage_of(part, other)
                );
                self.say(FindingKind::Fused, b, plain(text), out);
            }
            let key = (first.rule, &a.shape, other.rule, &c.shape, b.shared_dims);
            let misfit = match self.fits.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let found = extents_misfit(part, first, a, other, c, b.shared_dims);
                    self.fits.insert(key, found.clone());
                    found
                }
            };
            if let Some(mut misfit) = misfit {
                misfit.text = format!(
                    "tensors \"{}\" and \"{}\" cannot share it: {}",
                    a.name, c.name, misfit.text
                );
                self.say(FindingKind::Fused, b, misfit, out);
            }
        }
    }

    /// Why a member does not alternate with the others group by group.
    fn group_misfit(&self, b: &Buffer, first: &Placement, other: &Placement) -> Option<String> {
        let part = self.part;
        let (r, s) = (part.rule(first), part.rule(other));
        let (a, c) = (self.tensor(first), self.tensor(other));
        let (g, h) = match (r.grouped, s.grouped) {
            (None, None) => return None,
            (Some(g), Some(h)) => (g, h),
            _ => return Some("some of its members lie in groups and some do not".into()),
        };
        let size_of = |&m: &u32| part.rule(part.member(m)).grouped.map_or(0, |g| g.size);
        let pitch: u64 = b.members.iter().map(size_of).sum();
        if b.shared_dims != 0 || g.pitch != pitch || h.pitch != pitch {
            return Some(format!(
                "a group of all its members has {pitch} indices, but tensor \"{}\" counts {} and \
                 the members share {} axes; groups share none",
                c.name, h.pitch, b.shared_dims
            ));
        }
        let bytes = |r: &Rule, t: &Tensor| r.stored_dtype(t).bytes();
        if a.shape.get(1..) != c.shape.get(1..) || bytes(r, a) != bytes(s, c) {
            return Some(format!(
                "members that lie in groups differ in axis 0 only, but tensor \"{}\" has shape \
                 {:?} and tensor \"{}\" {:?}",
                a.name,
                a.shape.as_slice(),
                c.name,
                c.shape.as_slice()
            ));
        }
        None
    }

    /// True if two placements are on exactly the same ranks.
    fn same_stage(&mut self, a: &Placement, b: &Placement) -> bool {
        match (Station::of(self.part, a), Station::of(self.part, b)) {
            (None, None) => true,
            (Some(x), Some(y)) => x == y || self.meetings.coincide(self.part, x, y),
            _ => false,
        }
    }

    /// Finds buffers that have one name on one rank.
    fn names(&mut self, out: &mut Findings) {
        let mut by_name: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        let mut count = 0;
        for (i, b) in self.part.buffers.iter().enumerate() {
            let is_sound = |&m: &u32| self.classes.of_member(m).problems.is_empty();
            if !b.members.iter().all(is_sound) {
                continue;
            }
            let names = self.names_of(b);
            count += names;
            if count > VIEW_COUNT_MAX as u64 {
                let text = format!("a rank would have more than {VIEW_COUNT_MAX} buffers");
                self.say(FindingKind::Storage, b, plain(text), out);
                return;
            }
            for n in 0..names {
                let n = n.to_string();
                let is_split = self
                    .part
                    .rule(self.part.member(b.members[0]))
                    .split
                    .is_some();
                let name = match is_split {
                    true => b.name.replace("{local}", &n).replace("{global}", &n),
                    false => b.name.clone(),
                };
                if name.len() > NAME_BYTES_MAX {
                    let text = format!(
                        "with its numbers the name has {} bytes; at most {NAME_BYTES_MAX} are allowed",
                        name.len()
                    );
                    self.say(FindingKind::BufferName, b, plain(text), out);
                    break;
                }
                by_name.entry(name).or_default().push(i as u32);
            }
        }
        let mut told = BTreeSet::new();
        for (name, buffers) in by_name.iter().filter(|(_, v)| v.len() > 1) {
            if let Some((a, b)) = self.conflict(buffers)
                && told.insert((a, b))
            {
                self.say_conflict(name, a, b, out);
            }
        }
    }

    /// How many names a buffer may have over all ranks.
    fn names_of(&self, b: &Buffer) -> u64 {
        let first = self.part.member(b.members[0]);
        let Some(axis) = self.part.rule(first).split else {
            return 1;
        };
        if holes_of(&b.name) != 1 {
            return 1;
        }
        match b.name.contains("{global}") {
            true => self.tensor(first).shape[axis as usize],
            false => self.classes.of_member(b.members[0]).extents[axis as usize],
        }
    }

    /// Two of the buffers that are on one rank.
    fn conflict(&mut self, buffers: &[u32]) -> Option<(u32, u32)> {
        let mut first_at: BTreeMap<Option<Station>, u32> = BTreeMap::new();
        for &i in buffers {
            let members = &self.part.buffers[i as usize].members;
            let station = Station::of(self.part, self.part.member(members[0]));
            if let Some(&other) = first_at.get(&station) {
                return Some((other, i));
            }
            first_at.insert(station, i);
        }
        let is_elsewhere = |s: &Option<Station>| match (s, first_at.keys().next()) {
            (Some(s), Some(Some(first))) => (s.mesh, s.axis) != (first.mesh, first.axis),
            _ => true,
        };
        // Buffers on the stages of one axis never meet.
        if first_at.len() < 2 || !first_at.keys().any(is_elsewhere) {
            return None;
        }
        let all: Vec<(Option<Station>, u32)> = first_at.into_iter().collect();
        for (i, (a, x)) in all.iter().enumerate() {
            for (b, y) in &all[..i] {
                let meet = match (a, b) {
                    (Some(a), Some(b)) => self.meetings.meet(self.part, *a, *b),
                    _ => true,
                };
                if meet {
                    return Some((*y, *x));
                }
            }
        }
        None
    }

    fn say_conflict(&self, name: &str, a: u32, b: u32, out: &mut Findings) {
        let part = self.part;
        let of = |i: u32| {
            let members = &part.buffers[i as usize].members;
            &self.tensor(part.member(members[0])).name
        };
        let text = match (of(a), of(b)) {
            (x, y) if x == y => {
                format!("tensor \"{x}\" lies in it twice, cut or stored in two ways")
            }
            (x, y) => format!(
                "tensors \"{x}\" and \"{y}\" both lie in it; list them in \"fused\", or give them \
                 buffers of their own"
            ),
        };
        let mut finding = Finding {
            kind: FindingKind::BufferName,
            side: None,
            tensor: of(a).clone(),
            axis: None,
            rank: part.ranks.lowest(),
            bytes: 0,
            message: String::new(),
        };
        finding.message = format!("two buffers of one rank are named \"{name}\": {text}");
        out.push(finding);
    }
}

/// Places for an index in the name of a split buffer.
fn holes_of(name: &str) -> usize {
    name.matches("{local}").count() + name.matches("{global}").count()
}

fn plain(text: String) -> Misfit {
    Misfit {
        axis: None,
        rank: None,
        text,
    }
}

/// Shared axes are the same axes of every member.
fn order_misfit(
    part: &Part,
    p: &Placement,
    q: &Placement,
    shared: u8,
    axes: [usize; 2],
) -> Option<String> {
    let shared = usize::from(shared);
    let orders = [p, q].map(|x| part.rule(x));
    let [a, b] = [0, 1].map(|i| orders[i].memory_order(axes[i]));
    if a.iter().take(shared).eq(b.iter().take(shared)) {
        return None;
    }
    Some(format!(
        "its members share the {shared} axes that come first in memory, but one is stored in the \
         order {:?} and one in the order {:?}",
        a.as_slice(),
        b.as_slice()
    ))
}

/// The stage of a placement, for a message.
fn stage_of(part: &Part, p: &Placement) -> String {
    match Station::of(part, p) {
        None => "every stage".into(),
        Some(s) => {
            let mesh = &part.meshes[s.mesh as usize];
            format!("stage {} of mesh \"{}\"", s.stage, mesh.name)
        }
    }
}

/// Why the shared axes, or the split axes, of two members differ.
fn extents_misfit(
    part: &Part,
    p: &Placement,
    a: &Tensor,
    q: &Placement,
    b: &Tensor,
    shared: u8,
) -> Option<Misfit> {
    let (r, s) = (part.rule(p), part.rule(q));
    if r.split != s.split {
        return Some(plain("they are split along different axes".into()));
    }
    if let (Some(g), Some(h)) = (r.grouped, s.grouped) {
        let same = |x: &LocalAxis, y: &LocalAxis| x.extent / g.size == y.extent / h.size;
        if let Some(found) = axis_misfit(part, (r, a), (s, b), 0, same) {
            return Some(found);
        }
    }
    for dim in r
        .memory_order(a.shape.len())
        .into_iter()
        .take(usize::from(shared))
    {
        let dim = usize::from(dim);
        if r.split != Some(dim as u8) {
            let same = |x: &LocalAxis, y: &LocalAxis| x.extent == y.extent;
            if let Some(found) = axis_misfit(part, (r, a), (s, b), dim, same) {
                return Some(found);
            }
        }
    }
    let split = usize::from(r.split?);
    if split >= b.shape.len() {
        return Some(plain(
            "they are split along an axis that one of them does not have".into(),
        ));
    }
    axis_misfit(part, (r, a), (s, b), split, |x, y| x.spans == y.spans)
}

/// Compares what two members hold of one axis, on every rank where they could
/// differ.
fn axis_misfit(
    part: &Part,
    (r, a): (&Rule, &Tensor),
    (s, b): (&Rule, &Tensor),
    dim: usize,
    same: impl Fn(&LocalAxis, &LocalAxis) -> bool,
) -> Option<Misfit> {
    let bit = 1 << dim;
    let is_cut_alike = r.mesh == s.mesh
        && r.cuts_of(dim).eq(s.cuts_of(dim))
        && r.padded & bit == s.padded & bit
        && a.shape[dim] == b.shape[dim];
    if is_cut_alike {
        return None;
    }
    let (m, n) = (part.mesh(r), part.mesh(s));
    let differs = |x: &Coords, y: &Coords| {
        let u = r.local_axis(m, x, dim, a.shape[dim]);
        let v = s.local_axis(n, y, dim, b.shape[dim]);
        (!same(&u, &v)).then_some((u.extent, v.extent))
    };
    let (position, (x, y)) = if r.mesh == s.mesh {
        let mut free = vec![false; m.axes.len()];
        let used = r.cuts_of(dim).chain(s.cuts_of(dim)).flat_map(|c| &c.axes);
        used.for_each(|&a| free[a as usize] = true);
        coordinates(m, &free).find_map(|(p, c)| Some((p, differs(&c, &c)?)))?
    } else {
        let all = 0..part.ranks.count().min(m.size() as u32).min(n.size() as u32);
        all.into_iter()
            .find_map(|p| Some((p, differs(&m.coords(p), &n.coords(p))?)))?
    };
    let rank = (position < part.ranks.count()).then(|| part.ranks.rank(position));
    let on = rank.map_or(String::new(), |r| format!(" on rank {r}"));
    Some(Misfit {
        axis: Some(dim as u8),
        rank,
        text: format!(
            "{on} axis {dim} has {x} local indices in one and {y} in the other; shared and split \
             axes must be cut alike"
        )
        .trim_start()
        .to_string(),
    })
}

/// Every combination of the chosen axes, the others at 0, with its position.
fn coordinates(mesh: &Mesh, chosen: &[bool]) -> impl Iterator<Item = (u32, Coords)> {
    let sizes: Vec<u32> = mesh
        .axes
        .iter()
        .zip(chosen)
        .map(|(a, &is_chosen)| if is_chosen { a.size } else { 1 })
        .collect();
    let weights: Vec<u64> = (0..sizes.len())
        .map(|i| {
            mesh.axes[i + 1..]
                .iter()
                .map(|a| u64::from(a.size))
                .product()
        })
        .collect();
    let count: u64 = sizes.iter().map(|&n| u64::from(n)).product();
    (0..count).map(move |i| {
        let mut rest = i;
        let mut c: Coords = sizes.iter().map(|_| 0).collect();
        let mut position = 0;
        for (d, &n) in sizes.iter().enumerate().rev() {
            c[d] = (rest % u64::from(n)) as u32;
            rest /= u64::from(n);
            position += u64::from(c[d]) * weights[d];
        }
        (position as u32, c)
    })
}

/// A stage of a pipeline axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Station {
    mesh: u16,
    axis: u8,
    stage: u32,
}

impl Station {
    fn of(part: &Part, p: &Placement) -> Option<Station> {
        let rule = part.rule(p);
        Some(Station {
            mesh: rule.mesh,
            axis: rule.stage_axis?,
            stage: p.stage?,
        })
    }
}

/// Stages, one of each of two pipeline axes, that have ranks in common.
type StagePairs = BTreeSet<(u32, u32)>;

/// Which stages of two pipeline axes have ranks in common.
#[derive(Default)]
struct Meetings {
    known: BTreeMap<[(u16, u8); 2], StagePairs>,
}

impl Meetings {
    fn of(&mut self, part: &Part, a: Station, b: Station) -> &StagePairs {
        let key = [(a.mesh, a.axis), (b.mesh, b.axis)];
        self.known.entry(key).or_insert_with(|| {
            let stage = |s: Station, position: u32| {
                part.meshes[s.mesh as usize].coords(position)[s.axis as usize]
            };
            (0..part.ranks.count())
                .map(|p| (stage(a, p), stage(b, p)))
                .collect()
        })
    }

    /// True if some rank is on both stages.
    fn meet(&mut self, part: &Part, a: Station, b: Station) -> bool {
        self.of(part, a, b).contains(&(a.stage, b.stage))
    }

    /// True if the two stages have the same ranks.
    fn coincide(&mut self, part: &Part, a: Station, b: Station) -> bool {
        let touching = |&&(s, t): &&(u32, u32)| s == a.stage || t == b.stage;
        let all = self.of(part, a, b);
        all.iter().filter(touching).eq([&(a.stage, b.stage)])
    }
}
