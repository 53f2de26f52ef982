//! From the layout file to a description: expands layers, names become
//! numbers. Meaning is checked later, on the description itself.

use super::doc::{
    Choice, CopiesDoc, CutDoc, FileDoc, KindDoc, PaddingDoc, Pairs, PartDoc, TensorDoc,
};
use super::explicit::read_explicit;
use super::fault::{Read, Within, all, fault};
use super::fused::{Candidate, assemble, expand_fused};
use super::groups::group_members;
use super::layers::{Stages, check_layer_name, layers_of, list, spell, spell_buffer};
use super::names::{Names, declare_only, declare_part};
use crate::error::Error;
use crate::layout::LayoutSpec;
use crate::layout::cut::{Cut, CutKind};
use crate::layout::marks::Marks;
use crate::layout::mesh::{Mesh, MeshAxis, RankList};
use crate::layout::placement::{CopyAxes, Padding, Part, Rule};
use crate::layout::view::Memory;
use crate::limits::DIM_COUNT_MAX;
use crate::rank::Rank;
use smallvec::SmallVec;

pub(super) fn read(file: FileDoc) -> Read<LayoutSpec> {
    let FileDoc {
        weightsync_layout: _,
        aliases,
        frozen,
        draft,
        parts,
        explicit,
        tensors,
        ranks,
        meshes,
        copies,
        padding,
        stages,
        local_layers,
        fused,
    } = file;
    let shorthand = ranks.is_some();
    let one = PartDoc {
        ranks,
        meshes,
        copies,
        padding,
        stages,
        local_layers,
        tensors: Vec::new(),
        fused,
    };
    let (parts, declared) = if shorthand {
        if !parts.is_empty() {
            return fault("parts", "a file has \"parts\", or \"ranks\" and the other fields of its only part, not both".into());
        }
        (vec![PartDoc { tensors, ..one }], Vec::new())
    } else {
        refuse_stray_fields(&one)?;
        (parts, tensors)
    };
    let path = |i: usize| {
        if shorthand {
            String::new()
        } else {
            format!("parts[{i}]")
        }
    };

    let mut names = Names::new(aliases.0);
    all((0..)
        .zip(&declared)
        .map(|(i, t): (usize, _)| declare_only(t, &mut names).within(|| format!("tensors[{i}]"))))?;
    all((0..)
        .zip(&parts)
        .map(|(i, p)| declare_part(p, &mut names).within(|| path(i))))?;
    let parts = all((0..)
        .zip(&parts)
        .map(|(i, p)| read_part(p, &mut names).within(|| path(i))))?;
    let explicit = all((0..)
        .zip(explicit)
        .map(|(i, r): (usize, _)| read_explicit(r, &names).within(|| format!("explicit[{i}]"))))?;
    Ok(LayoutSpec {
        tensors: names.tensors,
        aliases: names.alias_list,
        parts,
        explicit,
        marks: Marks { frozen, draft },
    })
}

/// Fields of a part at the top level need the ranks they are about.
fn refuse_stray_fields(p: &PartDoc) -> Read<()> {
    let set = [
        ("meshes", !p.meshes.is_empty()),
        ("copies", p.copies.is_some()),
        ("padding", p.padding.is_some()),
        ("stages", !p.stages.is_empty()),
        ("local_layers", !p.local_layers.is_empty()),
        ("fused", !p.fused.is_empty()),
    ];
    match set.iter().find(|(_, is_set)| *is_set) {
        None => Ok(()),
        Some((field, _)) => fault(
            field,
            format!(
                "\"{field}\" belongs to a part: put it into \"parts\", or give \"ranks\" beside it"
            ),
        ),
    }
}

fn read_part(p: &PartDoc, names: &mut Names) -> Read<Part> {
    let ranks = match &p.ranks {
        Some(Choice::List(v)) => RankList::List(v.iter().copied().map(Rank).collect()),
        Some(Choice::Range(r)) => RankList::Range {
            first: r.first,
            count: r.count,
        },
        _ => return fault("ranks", "a part has ranks".into()),
    };
    ranks.validate().within(|| "ranks".into())?;
    let meshes = read_meshes(&p.meshes, ranks.count());
    let copies = p
        .copies
        .as_ref()
        .map(|c| read_copies(c, &meshes))
        .transpose()
        .within(|| "copies".into())?;
    let mut reader = PartReader {
        doc: p,
        meshes: &meshes,
        names,
        rules: Vec::new(),
        candidates: Vec::new(),
    };
    let entries = p.tensors.iter().enumerate();
    all(entries.map(|(i, t)| reader.tensor(i, t).within(|| format!("tensors[{i}]"))))?;
    let PartReader {
        mut rules,
        mut candidates,
        ..
    } = reader;
    let fused = expand_fused(p, names)?;
    group_members(&fused, &mut candidates, &mut rules, &names.tensors)?;
    let (placements, spacers, buffers) = assemble(&candidates, &fused)?;
    Ok(Part {
        ranks,
        meshes,
        copies,
        padding: match p.padding {
            Some(PaddingDoc::Zero) => Padding::Zero,
            Some(PaddingDoc::Leave) | None => Padding::Leave,
        },
        rules,
        placements,
        spacers,
        buffers,
    })
}

/// Without any mesh, there is one with a single axis over all ranks.
fn read_meshes(meshes: &Pairs<Vec<(String, u32)>>, ranks: u32) -> Vec<Mesh> {
    if meshes.is_empty() {
        return vec![Mesh::new("ranks", &[("rank", ranks)])];
    }
    let axis = |(name, size): &(String, u32)| MeshAxis {
        name: name.clone(),
        size: *size,
    };
    let mesh = |(name, axes): &(String, Vec<(String, u32)>)| Mesh {
        name: name.clone(),
        axes: axes.iter().map(axis).collect(),
    };
    meshes.0.iter().map(mesh).collect()
}

fn read_copies(c: &CopiesDoc, meshes: &[Mesh]) -> Read<CopyAxes> {
    let mesh = find_mesh(c.mesh.as_deref(), true, meshes)?;
    let axes = c
        .axes
        .iter()
        .map(|a| find_axis(a, &meshes[mesh]))
        .collect::<Read<_>>()
        .within(|| "axes".into())?;
    Ok(CopyAxes {
        mesh: mesh as u16,
        axes,
    })
}

/// The mesh of this name. Without a name it is the only one; where no axis
/// is named either, any will do, and the first by name is taken.
fn find_mesh(name: Option<&str>, names_axes: bool, meshes: &[Mesh]) -> Read<usize> {
    let known = || list(meshes.iter().map(|m| m.name.as_str()));
    let Some(name) = name else {
        let first = (0..meshes.len()).min_by_key(|&i| &meshes[i].name);
        return match first {
            Some(i) if meshes.len() == 1 || !names_axes => Ok(i),
            _ => fault(
                "mesh",
                format!("there are several meshes: name one of {}", known()),
            ),
        };
    };
    match meshes.iter().position(|m| m.name == name) {
        Some(i) => Ok(i),
        None => fault(
            "mesh",
            format!("there is no mesh \"{name}\"; there is {}", known()),
        ),
    }
}

fn find_axis(name: &str, mesh: &Mesh) -> Read<u8> {
    mesh.axis(name).ok_or_else(|| {
        Error::layout(format!(
            "mesh \"{}\" has no axis \"{name}\"; it has {}",
            mesh.name,
            list(mesh.axes.iter().map(|a| a.name.as_str()))
        ))
        .into()
    })
}

struct PartReader<'a, 'n> {
    doc: &'a PartDoc,
    meshes: &'a [Mesh],
    names: &'n mut Names,
    rules: Vec<Rule>,
    candidates: Vec<Candidate<'a>>,
}

impl<'a> PartReader<'a, '_> {
    /// Reads one entry into a rule and its placements.
    fn tensor(&mut self, entry: usize, t: &'a TensorDoc) -> Read<()> {
        let layers = layers_of(t.layers.as_ref(), &self.doc.stages)?;
        check_layer_name("name", &t.name, &layers, true)?;
        if t.name.contains("{local_layer}") {
            return fault(
                "name",
                format!(
                    "\"{}\": names count layers by {{layer}}; {{local_layer}} is for buffers",
                    t.name
                ),
            );
        }
        if let Some(b) = &t.buffer {
            check_layer_name("buffer", b, &layers, false)?;
        }
        if t.split.is_some() && t.buffer.is_none() && !self.is_fused(&t.name) {
            return fault(
                "split",
                format!(
                    "tensor \"{}\" is split into one buffer per index: give \"buffer\" with {{local}} or {{global}} in it",
                    t.name
                ),
            );
        }
        let rule = self.rule(t)?;
        let stages = Stages::new(t, self.doc)?;
        let number = self.rules.len() as u32;
        self.rules.push(rule);
        for layer in layers.iter() {
            let name = spell(&t.name, layer);
            let Some(tensor) = self.names.find(&name) else {
                return fault(
                    "",
                    format!(
                        "tensor \"{name}\" has no \"shape\" and \"dtype\", here or in another entry"
                    ),
                );
            };
            let at = stages.at(layer)?;
            self.names.spend(at.len())?;
            for stage in at {
                let buffer = t
                    .buffer
                    .as_deref()
                    .map(|b| spell_buffer(b, layer, &stages.local))
                    .transpose()?;
                self.candidates.push(Candidate {
                    entry,
                    name: name.clone(),
                    tensor,
                    rule: number,
                    stage,
                    buffer,
                    memory: t.memory.map(Memory::from).unwrap_or_default(),
                    doc: t,
                });
            }
        }
        Ok(())
    }

    fn is_fused(&self, name: &str) -> bool {
        self.doc
            .fused
            .iter()
            .any(|f| f.members.iter().any(|m| m == name))
    }

    fn rule(&self, t: &TensorDoc) -> Read<Rule> {
        let names_axes = t.stage.is_some() || !t.cuts.is_empty();
        let mesh = find_mesh(t.mesh.as_deref(), names_axes, self.meshes)?;
        let axes = &self.meshes[mesh];
        let stage_axis = t
            .stage
            .as_ref()
            .map(|s| find_axis(&s.axis, axes).within(|| "stage.axis".into()))
            .transpose()?;
        let mut padded = 0;
        let mut cuts = Vec::with_capacity(t.cuts.len());
        for (i, c) in t.cuts.iter().enumerate() {
            let cut = read_cut(c, axes).within(|| format!("cuts[{i}]"))?;
            if c.pad {
                padded |= 1 << c.dim;
            }
            cuts.push(cut);
        }
        Ok(Rule {
            mesh: mesh as u16,
            stage_axis,
            cuts,
            dtype: t.stored.map(|d| d.0),
            order: t.order.iter().copied().collect(),
            padded,
            split: t.split,
            grouped: None,
            conversion: None,
        })
    }
}

fn read_cut(c: &CutDoc, mesh: &Mesh) -> Read<Cut> {
    if usize::from(c.dim) >= DIM_COUNT_MAX {
        return fault(
            "dim",
            format!(
                "axis {} is out of range; a tensor has at most {DIM_COUNT_MAX} axes",
                c.dim
            ),
        );
    }
    let axes: SmallVec<[u8; 4]> = c
        .axes
        .iter()
        .map(|a| find_axis(a, mesh))
        .collect::<Read<_>>()
        .within(|| "axes".into())?;
    let kind = match &c.kind {
        KindDoc::Even => CutKind::Even,
        KindDoc::Floor => CutKind::Floor,
        KindDoc::Ceil => CutKind::Ceil,
        KindDoc::Chunk(n) => CutKind::Chunk(*n),
        KindDoc::At(bounds) => CutKind::At(bounds.clone()),
        KindDoc::Blocks(n) => CutKind::Blocks(*n),
    };
    if c.pad && !matches!(kind, CutKind::Ceil | CutKind::Chunk(_)) {
        return fault(
            "pad",
            "only \"ceil\" and {\"chunk\": n} leave chunks that can be padded".into(),
        );
    }
    Ok(Cut {
        dim: c.dim,
        axes,
        kind,
        parts: c.parts,
    })
}
