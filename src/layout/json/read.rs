//! From the layout file to a description: expands layers, names become
//! numbers. Meaning is checked later, on the description itself.

use super::doc::{
    Choice, CopiesDoc, CutDoc, ExplicitDoc, FileDoc, FusedDoc, KindDoc, PaddingDoc, Pairs, PartDoc,
    StageDoc, TensorDoc, ViewDoc,
};
use crate::error::{Error, Result};
use crate::layout::LayoutSpec;
use crate::layout::canonical::check_same;
use crate::layout::cut::{Cut, CutKind};
use crate::layout::mesh::{Mesh, MeshAxis, RankList};
use crate::layout::placement::{Buffer, CopyAxes, Grouped, Padding, Part, Placement, Rule};
use crate::layout::tensor::{IndexBox, Span, Tensor, TensorIndex};
use crate::layout::view::{Memory, NamedBuffer, RankViews, Strides, View};
use crate::limits::{DIM_COUNT_MAX, TENSOR_COUNT_MAX, VIEW_COUNT_MAX};
use crate::rank::Rank;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap, HashSet};

/// An error and the path of the field it is about.
#[derive(Debug)]
pub(super) struct Fault {
    path: String,
    error: Error,
}

type Read<T> = Result<T, Fault>;

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault {
            path: String::new(),
            error,
        }
    }
}

impl Fault {
    pub(super) fn into_error(self) -> Error {
        let at = if self.path.is_empty() {
            String::new()
        } else {
            format!(", at {}", self.path)
        };
        Error {
            message: format!("layout file{at}: {}", self.error.message),
            ..self.error
        }
    }
}

/// A fault in this field of the object at hand.
fn fault<T>(field: &str, message: String) -> Read<T> {
    Err(Fault {
        path: field.to_string(),
        error: Error::layout(message),
    })
}

trait Within<T> {
    /// Adds the step that led to the object where it failed.
    fn within(self, step: impl FnOnce() -> String) -> Read<T>;
}

impl<T, E: Into<Fault>> Within<T> for Result<T, E> {
    fn within(self, step: impl FnOnce() -> String) -> Read<T> {
        self.map_err(|e| {
            let Fault { path, error } = e.into();
            let step = step();
            let dot = if path.is_empty() || step.is_empty() {
                ""
            } else {
                "."
            };
            Fault {
                path: format!("{step}{dot}{path}"),
                error,
            }
        })
    }
}

pub(super) fn read(file: FileDoc) -> Read<LayoutSpec> {
    let FileDoc {
        weightsync_layout: _,
        aliases,
        parts,
        explicit,
        tensors,
        ranks,
        meshes,
        copies,
        padding,
        stages,
        fused,
    } = file;
    let shorthand = ranks.is_some();
    let one = PartDoc {
        ranks,
        meshes,
        copies,
        padding,
        stages,
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
    for (i, t) in declared.iter().enumerate() {
        declare_only(t, &mut names).within(|| format!("tensors[{i}]"))?;
    }
    for (i, p) in parts.iter().enumerate() {
        declare_part(p, &mut names).within(|| path(i))?;
    }
    let parts = parts
        .iter()
        .enumerate()
        .map(|(i, p)| read_part(p, &mut names).within(|| path(i)))
        .collect::<Read<Vec<Part>>>()?;
    let explicit = explicit
        .into_iter()
        .enumerate()
        .map(|(i, r)| read_explicit(r, &names).within(|| format!("explicit[{i}]")))
        .collect::<Read<Vec<RankViews>>>()?;
    Ok(LayoutSpec {
        tensors: names.tensors,
        aliases: names.alias_list,
        parts,
        explicit,
    })
}

/// Fields of a part at the top level need the ranks they are about.
fn refuse_stray_fields(p: &PartDoc) -> Read<()> {
    let set = [
        ("meshes", !p.meshes.is_empty()),
        ("copies", p.copies.is_some()),
        ("padding", p.padding.is_some()),
        ("stages", !p.stages.is_empty()),
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

/// Tensors by name, as they are declared.
struct Names {
    tensors: Vec<Tensor>,
    numbers: HashMap<String, TensorIndex>,
    alias_list: Vec<(String, String)>,
    aliases: HashMap<String, String>,
    /// Names spelled out so far, against layer ranges without end.
    spelled: usize,
}

impl Names {
    fn new(alias_list: Vec<(String, String)>) -> Names {
        Names {
            tensors: Vec::new(),
            numbers: HashMap::new(),
            aliases: alias_list.iter().cloned().collect(),
            alias_list,
            spelled: 0,
        }
    }

    fn spend(&mut self, count: usize) -> Read<()> {
        self.spelled = self.spelled.saturating_add(count);
        if self.spelled <= 2 * VIEW_COUNT_MAX {
            return Ok(());
        }
        Err(Error::limit(format!(
            "the file spells out more than {VIEW_COUNT_MAX} placements",
        ))
        .into())
    }

    fn declare(&mut self, tensor: Tensor) -> Read<()> {
        match self.numbers.get(&tensor.name) {
            Some(n) => {
                let first = &self.tensors[n.index()];
                Ok(check_same(first, &tensor, "this entry", "an earlier one")?)
            }
            None if self.tensors.len() >= TENSOR_COUNT_MAX => Err(Error::limit(format!(
                "the file declares more than {TENSOR_COUNT_MAX} tensors"
            ))
            .into()),
            None => {
                let n = TensorIndex(self.tensors.len() as u32);
                self.numbers.insert(tensor.name.clone(), n);
                self.tensors.push(tensor);
                Ok(())
            }
        }
    }

    /// The tensor of this name, or the one it is an alias of.
    fn find(&self, name: &str) -> Option<TensorIndex> {
        let of = || self.numbers.get(self.aliases.get(name)?.as_str());
        self.numbers.get(name).or_else(of).copied()
    }
}

/// The layers over which an entry is repeated.
enum Layers<'a> {
    /// The entry is about one tensor.
    Once,
    Range(u32, u32),
    List(&'a [u32]),
}

impl Layers<'_> {
    fn count(&self) -> usize {
        match self {
            Layers::Once => 1,
            Layers::Range(_, count) => *count as usize,
            Layers::List(v) => v.len(),
        }
    }

    fn get(&self, i: usize) -> Option<u32> {
        match self {
            Layers::Once => None,
            Layers::Range(first, _) => Some(first + i as u32),
            Layers::List(v) => Some(v[i]),
        }
    }

    fn iter(&self) -> impl Iterator<Item = Option<u32>> + '_ {
        (0..self.count()).map(|i| self.get(i))
    }

    fn is_once(&self) -> bool {
        matches!(self, Layers::Once)
    }
}

fn layers_of<'a>(choice: Option<&'a Choice>, tables: &Pairs<Vec<u32>>) -> Read<Layers<'a>> {
    match choice {
        None | Some(Choice::One(_)) => Ok(Layers::Once),
        Some(Choice::List(v)) => Ok(Layers::List(v)),
        Some(Choice::Range(r)) => match r.first.checked_add(r.count) {
            Some(_) => Ok(Layers::Range(r.first, r.count)),
            None => fault(
                "layers",
                format!("{} layers from {} on are too many", r.count, r.first),
            ),
        },
        Some(Choice::Name(name)) => {
            let table = find_table(tables, name).within(|| "layers".into())?;
            Ok(Layers::Range(0, table.len() as u32))
        }
    }
}

fn find_table<'a>(tables: &'a Pairs<Vec<u32>>, name: &str) -> Read<&'a [u32]> {
    match tables.0.iter().find(|(n, _)| n == name) {
        Some((_, table)) => Ok(table),
        None => Err(Error::layout(format!(
            "\"stages\" has no table \"{name}\"; it has {}",
            list(tables.0.iter().map(|(n, _)| n.as_str()))
        ))
        .into()),
    }
}

/// Names in quotes, for a message.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.map(|n| format!("\"{n}\"")).collect();
    if quoted.is_empty() {
        "none".into()
    } else {
        quoted.join(", ")
    }
}

/// Checks that a name has a `{layer}` exactly where there are layers.
fn check_layer_name(field: &str, name: &str, layers: &Layers<'_>, must: bool) -> Read<()> {
    let has = name.contains("{layer}") || name.contains("{local_layer}");
    if has && layers.is_once() {
        return fault(
            field,
            format!("\"{name}\" has a place for a layer, but \"layers\" is missing"),
        );
    }
    if must && !has && !layers.is_once() {
        return fault(
            field,
            format!("\"{name}\" is the same for all \"layers\"; write {{layer}} into it"),
        );
    }
    Ok(())
}

fn spell(name: &str, layer: Option<u32>) -> String {
    match layer {
        Some(n) => name.replace("{layer}", &n.to_string()),
        None => name.to_string(),
    }
}

fn declare_only(t: &TensorDoc, names: &mut Names) -> Read<()> {
    if let Some(field) = t.placement_field() {
        return fault(
            field,
            format!("\"{field}\" belongs to a tensor of a part; here tensors are only declared"),
        );
    }
    if t.shape.is_none() {
        return fault(
            "",
            format!(
                "tensor \"{}\" is declared without \"shape\" and \"dtype\"",
                t.name
            ),
        );
    }
    declare(t, &Pairs::default(), names)
}

fn declare_part(p: &PartDoc, names: &mut Names) -> Read<()> {
    for (i, t) in p.tensors.iter().enumerate() {
        declare(t, &p.stages, names).within(|| format!("tensors[{i}]"))?;
    }
    Ok(())
}

/// Declares the tensors of an entry, if it has their shape.
fn declare(t: &TensorDoc, tables: &Pairs<Vec<u32>>, names: &mut Names) -> Read<()> {
    let (shape, dtype) = match (&t.shape, t.dtype) {
        (Some(s), Some(d)) => (s, d.0),
        (None, None) if t.granule.is_none() => return Ok(()),
        _ => {
            return fault(
                "",
                format!(
                    "tensor \"{}\" has some of \"shape\", \"dtype\" and \"granule\"; \"granule\" needs both others and they need each other",
                    t.name
                ),
            );
        }
    };
    let layers = layers_of(t.layers.as_ref(), tables)?;
    check_layer_name("name", &t.name, &layers, true)?;
    names.spend(layers.count())?;
    let granule = match &t.granule {
        Some(g) => g.as_slice().into(),
        None => shape.iter().map(|_| 1).collect(),
    };
    let mut tensor = Tensor {
        name: String::new(),
        shape: shape.as_slice().into(),
        dtype,
        granule,
    };
    for layer in layers.iter() {
        tensor.name = spell(&t.name, layer);
        tensor.validate()?;
        names.declare(tensor.clone())?;
    }
    Ok(())
}

/// A placement before its buffer is known.
struct Candidate<'a> {
    entry: usize,
    name: String,
    tensor: TensorIndex,
    rule: u32,
    stage: Option<u32>,
    /// The buffer's name, where the entry gives one.
    buffer: Option<String>,
    memory: Memory,
    doc: &'a TensorDoc,
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
    for (i, t) in p.tensors.iter().enumerate() {
        reader.tensor(i, t).within(|| format!("tensors[{i}]"))?;
    }
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
        let stages = Stages::new(t, &self.doc.stages)?;
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

/// The pipeline stages of an entry.
struct Stages<'a> {
    /// Stage by layer, and the name of the table for messages.
    table: Option<(&'a str, &'a [u32])>,
    /// Index of each layer among those of its stage.
    local: Vec<u32>,
    at: SmallVec<[Option<u32>; 2]>,
}

impl<'a> Stages<'a> {
    fn new(t: &'a TensorDoc, tables: &'a Pairs<Vec<u32>>) -> Read<Stages<'a>> {
        let by_layers = match &t.layers {
            Some(Choice::Name(name)) => Some(name.as_str()),
            _ => None,
        };
        let named = t.stage.as_ref().and_then(|s| s.table.as_deref());
        let local = match named.or(by_layers) {
            Some(name) => local_layers(find_table(tables, name).within(|| "stage.table".into())?),
            None => Vec::new(),
        };
        let (table, at) = match &t.stage {
            None => (None, [None].into_iter().collect()),
            Some(s) => stage_form(s, t.layers.is_some(), tables).within(|| "stage".into())?,
        };
        Ok(Stages { table, local, at })
    }

    /// The stages that hold a layer.
    fn at(&self, layer: Option<u32>) -> Read<SmallVec<[Option<u32>; 2]>> {
        let (Some((name, table)), Some(layer)) = (self.table, layer) else {
            return Ok(self.at.clone());
        };
        match table.get(layer as usize) {
            Some(&stage) => Ok([Some(stage)].into_iter().collect()),
            None => fault(
                "stage.table",
                format!(
                    "table \"{name}\" has {} layers, but \"layers\" names layer {layer}",
                    table.len()
                ),
            ),
        }
    }
}

type StageForm<'a> = (Option<(&'a str, &'a [u32])>, SmallVec<[Option<u32>; 2]>);

fn stage_form<'a>(
    s: &'a StageDoc,
    has_layers: bool,
    tables: &'a Pairs<Vec<u32>>,
) -> Read<StageForm<'a>> {
    match (&s.table, &s.at) {
        (Some(name), None) if has_layers => {
            let table = find_table(tables, name).within(|| "table".into())?;
            Ok((Some((name, table)), SmallVec::new()))
        }
        (Some(_), None) => fault(
            "table",
            "a stage table says the stage of each layer; \"layers\" is missing".into(),
        ),
        (None, Some(Choice::One(n))) => Ok((None, [Some(*n)].into_iter().collect())),
        (None, Some(Choice::List(v))) if !v.is_empty() => {
            Ok((None, v.iter().copied().map(Some).collect()))
        }
        _ => fault(
            "",
            "a stage has either a \"table\", or \"at\" with a stage or a list of stages".into(),
        ),
    }
}

/// The index of each layer among those of its stage.
fn local_layers(table: &[u32]) -> Vec<u32> {
    let mut next: HashMap<u32, u32> = HashMap::new();
    table
        .iter()
        .map(|stage| {
            let n = next.entry(*stage).or_default();
            *n += 1;
            *n - 1
        })
        .collect()
}

/// One fused buffer with its names spelled out.
struct Fused {
    entry: usize,
    buffer: String,
    shared_dims: u8,
    groups: Option<u64>,
    members: Vec<String>,
}

fn expand_fused(p: &PartDoc, names: &mut Names) -> Read<Vec<Fused>> {
    let mut out = Vec::new();
    for (entry, doc) in p.fused.iter().enumerate() {
        expand_one(entry, doc, &p.stages, names, &mut out).within(|| format!("fused[{entry}]"))?;
    }
    Ok(out)
}

fn expand_one(
    entry: usize,
    doc: &FusedDoc,
    tables: &Pairs<Vec<u32>>,
    names: &mut Names,
    out: &mut Vec<Fused>,
) -> Read<()> {
    let layers = layers_of(doc.layers.as_ref(), tables)?;
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
    let local = match &doc.layers {
        Some(Choice::Name(name)) => local_layers(find_table(tables, name)?),
        _ => Vec::new(),
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

/// A buffer's name with the layer, and its index on its stage, filled in.
fn spell_buffer(buffer: &str, layer: Option<u32>, local: &[u32]) -> Read<String> {
    let spelled = spell(buffer, layer);
    if !buffer.contains("{local_layer}") {
        return Ok(spelled);
    }
    match layer.and_then(|layer| local.get(layer as usize)) {
        Some(n) => Ok(spelled.replace("{local_layer}", &n.to_string())),
        None => fault(
            "buffer",
            format!(
                "\"{buffer}\" counts the layers of a stage, which needs a stage table with the layer"
            ),
        ),
    }
}

/// Name, shared dims and members (as candidates) of a buffer.
type Group = (String, u8, Vec<usize>);

/// Placements, spacers and buffers.
type Assembled = (Vec<Placement>, Vec<Placement>, Vec<Buffer>);

/// Puts candidates into fused buffers, the rest into buffers of their own.
fn assemble(candidates: &[Candidate<'_>], fused: &[Fused]) -> Read<Assembled> {
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

/// Gives members that alternate group by group a rule that says so.
fn group_members(
    fused: &[Fused],
    candidates: &mut [Candidate<'_>],
    rules: &mut Vec<Rule>,
    tensors: &[Tensor],
) -> Read<()> {
    let grouped: HashMap<&str, &Fused> = fused
        .iter()
        .filter(|f| f.groups.is_some())
        .flat_map(|f| f.members.iter().map(move |m| (m.as_str(), f)))
        .collect();
    if grouped.is_empty() {
        return Ok(());
    }
    let rows: HashMap<&str, u64> = candidates
        .iter()
        .map(|c| (c.name.as_str(), rows_of(&tensors[c.tensor.index()])))
        .collect();
    let mut known: HashMap<(u32, Grouped), u32> = HashMap::new();
    let mut numbers = Vec::with_capacity(candidates.len());
    for c in candidates.iter() {
        let f = grouped.get(c.name.as_str()).copied();
        let f = f.filter(|f| c.buffer.as_ref().is_none_or(|b| *b == f.buffer));
        let Some((f, groups)) = f.and_then(|f| Some((f, f.groups?))) else {
            numbers.push(c.rule);
            continue;
        };
        let sizes = f
            .members
            .iter()
            .map(|m| rows.get(m.as_str()).copied().unwrap_or(0));
        let mut pitch = 0u64;
        for (m, n) in f.members.iter().zip(sizes) {
            if groups == 0 || n % groups != 0 {
                return fault(
                    "groups",
                    format!("tensor \"{m}\" has {n} indices on axis 0, not a multiple of {groups} groups"),
                )
                .within(|| format!("fused[{}]", f.entry));
            }
            pitch = pitch.saturating_add(n / groups);
        }
        let size = rows.get(c.name.as_str()).copied().unwrap_or(0) / groups;
        let key = (c.rule, Grouped { size, pitch });
        numbers.push(*known.entry(key).or_insert_with(|| {
            let rule = Rule {
                grouped: Some(key.1),
                ..rules[c.rule as usize].clone()
            };
            rules.push(rule);
            rules.len() as u32 - 1
        }));
    }
    for (c, rule) in candidates.iter_mut().zip(numbers) {
        c.rule = rule;
    }
    Ok(())
}

fn rows_of(t: &Tensor) -> u64 {
    t.shape.first().copied().unwrap_or(1)
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
    order.sort_by_key(|&i| numbers[i]);
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

fn read_explicit(doc: ExplicitDoc, names: &Names) -> Read<RankViews> {
    let buffers: Vec<NamedBuffer> = doc
        .buffers
        .into_iter()
        .map(|b| NamedBuffer {
            name: b.name,
            bytes: b.bytes,
            memory: b.memory.map(Memory::from).unwrap_or_default(),
        })
        .collect();
    let numbers: HashMap<&str, u32> = buffers
        .iter()
        .zip(0..)
        .map(|(b, i)| (b.name.as_str(), i))
        .collect();
    let views = doc
        .views
        .into_iter()
        .enumerate()
        .map(|(i, v)| read_view(v, &numbers, names).within(|| format!("views[{i}]")))
        .collect::<Read<Vec<View>>>()?;
    Ok(RankViews {
        rank: Rank(doc.rank),
        copy: doc.copy,
        buffers,
        views,
    })
}

fn read_view(v: ViewDoc, buffers: &HashMap<&str, u32>, names: &Names) -> Read<View> {
    let Some(tensor) = names.find(&v.tensor) else {
        return fault(
            "tensor",
            format!(
                "tensor \"{}\" is not declared; add it, with \"shape\" and \"dtype\", to \"tensors\"",
                v.tensor
            ),
        );
    };
    let Some(&buffer) = buffers.get(v.buffer.as_str()) else {
        return fault("buffer", format!("the rank has no buffer \"{}\"", v.buffer));
    };
    let dtype = v.dtype.map_or(names.tensors[tensor.index()].dtype, |d| d.0);
    let bounds = IndexBox(v.bounds.iter().map(|&(lo, hi)| Span::new(lo, hi)).collect());
    let strides = match v.strides {
        Some(s) => s.into_iter().collect(),
        None => contiguous(&bounds, dtype.bytes()).within(|| "box".into())?,
    };
    Ok(View {
        tensor,
        bounds,
        buffer,
        offset: v.offset,
        strides,
        dtype,
        conversion: None,
    })
}

/// Strides of a box that is stored row-major without gaps.
fn contiguous(bounds: &IndexBox, element: u64) -> Result<Strides> {
    bounds.contiguous_strides(element).ok_or_else(|| {
        Error::limit(format!(
            "box {bounds} of {element}-byte elements exceeds 2^63 bytes"
        ))
    })
}
