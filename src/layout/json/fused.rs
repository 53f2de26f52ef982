//! Which tensors share a buffer, and which have one of their own.

use super::doc::{Choice, FusedDoc, PartDoc, TensorDoc};
use super::fault::{Read, Within, fault};
use super::layers::{check_layer_name, layers_of, list, numbers_of, spell, spell_buffer};
use super::names::Names;
use crate::layout::placement::{Buffer, Placement};
use crate::layout::tensor::TensorIndex;
use crate::layout::view::Memory;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A placement before its buffer is known.
pub(super) struct Candidate<'a> {
    pub(super) entry: usize,
    pub(super) name: String,
    pub(super) tensor: TensorIndex,
    pub(super) rule: u32,
    pub(super) stage: Option<u32>,
    /// The buffer's name, where the entry gives one.
    pub(super) buffer: Option<String>,
    pub(super) memory: Memory,
    pub(super) doc: &'a TensorDoc,
}

/// One fused buffer with its names spelled out.
pub(super) struct Fused {
    pub(super) entry: usize,
    pub(super) buffer: String,
    pub(super) shared_dims: u8,
    pub(super) groups: Option<u64>,
    pub(super) members: Vec<String>,
}

pub(super) fn expand_fused(p: &PartDoc, names: &mut Names) -> Read<Vec<Fused>> {
    let mut out = Vec::new();
    for (entry, doc) in p.fused.iter().enumerate() {
        expand_one(entry, doc, p, names, &mut out).within(|| format!("fused[{entry}]"))?;
    }
    Ok(out)
}

fn expand_one(
    entry: usize,
    doc: &FusedDoc,
    part: &PartDoc,
    names: &mut Names,
    out: &mut Vec<Fused>,
) -> Read<()> {
    let layers = layers_of(doc.layers.as_ref(), &part.stages)?;
    let unique: HashSet<&String> = doc.members.iter().collect();
    if doc.members.is_empty() || unique.len() < doc.members.len() {
        return fault(
            "members",
            format!("buffer \"{}\" needs members, each once", doc.buffer),
        );
    }
    check_layer_name("buffer", &doc.buffer, &layers, true)?;
    for m in &doc.members {
        check_layer_name("members", m, &layers, true)?;
    }
    names.spend(layers.count().saturating_mul(doc.members.len()))?;
    let by_layers = match &doc.layers {
        Some(Choice::Name(name)) => Some(name),
        _ => None,
    };
    let local = match doc.table.as_ref().or(by_layers) {
        Some(name) => numbers_of(part, name).within(|| "table".into())?,
        None => Vec::new(),
    };
    for layer in layers.iter() {
        out.push(Fused {
            entry,
            buffer: spell_buffer(&doc.buffer, layer, &local)?,
            shared_dims: doc.shared_dims,
            groups: doc.groups,
            members: doc.members.iter().map(|m| spell(m, layer)).collect(),
        });
    }
    Ok(())
}

/// Name, shared dims and members (as candidates) of a buffer.
type Group = (String, u8, Vec<usize>);

/// Placements, spacers and buffers.
pub(super) type Assembled = (Vec<Placement>, Vec<Placement>, Vec<Buffer>);

/// Puts candidates into fused buffers, the rest into buffers of their own.
pub(super) fn assemble(candidates: &[Candidate<'_>], fused: &[Fused]) -> Read<Assembled> {
    let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, c) in candidates.iter().enumerate() {
        by_name.entry(&c.name).or_default().push(i);
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut taken: Vec<bool> = vec![false; candidates.len()];
    let mut seen = HashSet::new();
    let mut wanted: HashMap<&str, &Fused> = HashMap::new();
    for f in fused {
        for m in &f.members {
            wanted.insert(m, f);
        }
        // The same buffer may be listed once per stage that has it.
        if !seen.insert((&f.buffer, f.shared_dims, &f.members)) {
            continue;
        }
        let step = || format!("fused[{}]", f.entry);
        for members in fuse(f, candidates, &by_name).within(step)? {
            take(f, &members, candidates, &mut taken).within(step)?;
            groups.push((f.buffer.clone(), f.shared_dims, members));
        }
    }
    for (i, c) in candidates.iter().enumerate().filter(|(i, _)| !taken[*i]) {
        let f = wanted.get(c.name.as_str()).copied();
        let group = alone(i, c, f).within(|| format!("tensors[{}]", c.entry))?;
        groups.push(group);
    }
    Ok(number(candidates, groups))
}

/// The members of a fused buffer, on each stage that has all of them.
fn fuse(
    f: &Fused,
    candidates: &[Candidate<'_>],
    by_name: &HashMap<&str, Vec<usize>>,
) -> Read<Vec<Vec<usize>>> {
    let mut stages: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
    for (k, name) in f.members.iter().enumerate() {
        let placed = by_name.get(name.as_str()).map_or(&[][..], |v| v);
        if placed.is_empty() {
            return fault(
                "members",
                format!(
                    "buffer \"{}\": no entry of this part places its member \"{name}\"",
                    f.buffer
                ),
            );
        }
        for &i in placed {
            let c = &candidates[i];
            if c.buffer.as_ref().is_some_and(|b| *b != f.buffer) {
                continue;
            }
            let members = stages.entry(c.stage).or_default();
            match members.len() {
                n if n == k => members.push(i),
                n if n > k => {
                    return fault(
                        "members",
                        format!(
                            "buffer \"{}\": two entries place its member \"{name}\"",
                            f.buffer
                        ),
                    );
                }
                _ => {}
            }
        }
    }
    stages.retain(|_, members| members.len() == f.members.len());
    Ok(stages.into_values().collect())
}

/// Marks the members of a fused buffer as taken; each is in one, and all are
/// in one kind of memory.
fn take(
    f: &Fused,
    members: &[usize],
    candidates: &[Candidate<'_>],
    taken: &mut [bool],
) -> Read<()> {
    let first = &candidates[members[0]];
    for &i in members {
        let c = &candidates[i];
        if std::mem::replace(&mut taken[i], true) {
            return fault(
                "members",
                format!(
                    "tensor \"{}\" is in two fused buffers, one of them \"{}\"; give \"buffer\" in \
                     the tensor's own entry",
                    c.name, f.buffer
                ),
            );
        }
        if c.memory != first.memory {
            return fault(
                "members",
                format!(
                    "buffer \"{}\": tensor \"{}\" is in {:?} memory and tensor \"{}\" in {:?}; \
                     a buffer is in one kind of memory",
                    f.buffer, first.name, first.memory, c.name, c.memory
                ),
            );
        }
    }
    Ok(())
}

/// The buffer of a candidate that no fused buffer took; `wanted` is one that
/// has its name as a member.
fn alone(i: usize, c: &Candidate<'_>, wanted: Option<&Fused>) -> Read<Group> {
    if let Some(f) = wanted.filter(|f| c.buffer.as_ref().is_none_or(|b| *b == f.buffer)) {
        let at = c
            .stage
            .map_or("every stage".into(), |s| format!("stage {s}"));
        return fault(
            "",
            format!(
                "tensor \"{}\" on {at} belongs to the fused buffer \"{}\", but other members of it \
                 ({}) are not there",
                c.name,
                f.buffer,
                list(
                    f.members
                        .iter()
                        .map(String::as_str)
                        .filter(|m| *m != c.name)
                )
            ),
        );
    }
    if c.doc.spacer {
        return fault(
            "spacer",
            format!(
                "tensor \"{}\" is a spacer, but a member of no fused buffer",
                c.name
            ),
        );
    }
    let name = c.buffer.clone().unwrap_or_else(|| c.name.clone());
    Ok((name, 0, vec![i]))
}

/// Numbers placements (spacers last) and links them with their buffers.
fn number(candidates: &[Candidate<'_>], groups: Vec<Group>) -> Assembled {
    let real = candidates.iter().filter(|c| !c.doc.spacer).count();
    let mut next = (0, real);
    let numbers: Vec<usize> = candidates
        .iter()
        .map(|c| {
            let n = if c.doc.spacer {
                &mut next.1
            } else {
                &mut next.0
            };
            *n += 1;
            *n - 1
        })
        .collect();
    let mut placements: Vec<Placement> = Vec::with_capacity(candidates.len());
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_unstable_by_key(|&i| (numbers[i], i));
    for i in order {
        let c = &candidates[i];
        placements.push(Placement {
            tensor: c.tensor,
            rule: c.rule,
            stage: c.stage,
            buffer: 0,
            member: 0,
        });
    }
    let mut buffers = Vec::with_capacity(groups.len());
    for (name, shared_dims, members) in groups {
        let memory = candidates[members[0]].memory;
        for (k, &i) in members.iter().enumerate() {
            let p = &mut placements[numbers[i]];
            p.buffer = buffers.len() as u32;
            p.member = k as u16;
        }
        buffers.push(Buffer {
            name,
            memory,
            shared_dims,
            members: members.iter().map(|&i| numbers[i] as u32).collect(),
        });
    }
    let spacers = placements.split_off(real);
    (placements, spacers, buffers)
}
