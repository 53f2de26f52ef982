//! Canonical order: descriptions of equal meaning become equal data.
//!
//! ```text
//!   given                               canonical
//!   tensors  v, q, k, lm_head           k, q, v (lm_head is an alias of q)
//!   parts    ranks 8..16, ranks 0..8    ranks 0..8, ranks 8..16
//!   rules    as they came, twice        each once, numbered by first use
//! ```
//!
//! On the way every index is checked, so that nothing later can look outside
//! a table. What the numbers *mean* (do cuts divide, do views overlap) is the
//! business of [`check`](super::check).

use super::LayoutSpec;
use super::cut::{Cut, CutKind};
use super::dtype::Dtype;
use super::index::RankIndex;
use super::mesh::Mesh;
use super::placement::{Buffer, CopyAxes, Part, Placement, Rule};
use super::tensor::{Tensor, TensorIndex};
use super::view::{Conversion, Memory, NamedBuffer, RankViews, View};
use crate::error::{Error, Result};
use crate::limits::{
    NAME_BYTES_MAX, PART_COUNT_MAX, RANK_COUNT_MAX, TENSOR_COUNT_MAX, VIEW_COUNT_MAX,
};
use std::collections::HashMap;

/// Puts a description in canonical order and indexes its ranks.
pub(super) fn canonical(spec: LayoutSpec) -> Result<(LayoutSpec, RankIndex)> {
    check_counts(&spec)?;
    let aliases = canonical_aliases(spec.aliases)?;
    let (tensors, numbers) = canonical_tensors(spec.tensors, &aliases)?;
    let table = Table { tensors, numbers };
    let mut parts = spec
        .parts
        .into_iter()
        .map(|p| table.part(p))
        .collect::<Result<Vec<Part>>>()?;
    parts.sort_unstable_by_key(|p| p.ranks.lowest());
    let mut explicit = spec
        .explicit
        .into_iter()
        .map(|r| table.rank_views(r))
        .collect::<Result<Vec<RankViews>>>()?;
    explicit.sort_unstable_by_key(|r| r.rank);
    let spec = LayoutSpec {
        marks: spec.marks.canonical()?,
        tensors: table.tensors,
        aliases,
        parts,
        explicit,
    };
    let index = RankIndex::new(&spec)?;
    Ok((spec, index))
}

/// Refuses a name that is empty or too long; `what` is what it names.
pub(super) fn check_name(what: &str, name: &str) -> Result<()> {
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err(Error::limit(format!(
        "the name of {what} has {} bytes; 1 to {NAME_BYTES_MAX} are allowed",
        name.len()
    )))
}

/// Refuses a name with a placeholder of the layout file left in it.
fn check_symbolic_name(what: &str, name: &str) -> Result<()> {
    check_name(what, name)?;
    match ["{layer}", "{local_layer}"]
        .iter()
        .find(|p| name.contains(**p))
    {
        None => Ok(()),
        Some(p) => Err(Error::layout(format!(
            "{what} is named \"{name}\"; {p} stands for a number in layout files and cannot be \
             part of a name"
        ))),
    }
}

fn check_counts(spec: &LayoutSpec) -> Result<()> {
    let views: usize = spec.explicit.iter().map(|r| r.views.len()).sum();
    let buffers: usize = spec.explicit.iter().map(|r| r.buffers.len()).sum();
    let placements: usize = spec
        .parts
        .iter()
        .map(|p| p.placements.len() + p.spacers.len())
        .sum();
    let counts = [
        ("tensors", spec.tensors.len(), TENSOR_COUNT_MAX),
        ("aliases", spec.aliases.len(), TENSOR_COUNT_MAX),
        ("parts", spec.parts.len(), PART_COUNT_MAX),
        ("placements", placements, VIEW_COUNT_MAX),
        (
            "explicit ranks",
            spec.explicit.len(),
            RANK_COUNT_MAX as usize,
        ),
        ("explicit buffers", buffers, VIEW_COUNT_MAX),
        ("explicit views", views, VIEW_COUNT_MAX),
    ];
    match counts.iter().find(|(_, n, max)| n > max) {
        None => Ok(()),
        Some((what, n, max)) => Err(Error::limit(format!(
            "the layout has {n} {what}; at most {max} are allowed"
        ))),
    }
}

/// Sorts aliases and refuses chains, cycles and double meanings.
fn canonical_aliases(mut aliases: Vec<(String, String)>) -> Result<Vec<(String, String)>> {
    for (alias, name) in &aliases {
        check_name("an alias", alias)?;
        check_name("a tensor", name)?;
        if alias == name {
            return Err(Error::layout(format!(
                "alias \"{alias}\" stands for itself"
            )));
        }
    }
    aliases.sort_unstable();
    aliases.dedup();
    if let Some(w) = aliases.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(Error::layout(format!(
            "alias \"{}\" stands for both \"{}\" and \"{}\"",
            w[0].0, w[0].1, w[1].1
        )));
    }
    for (alias, name) in &aliases {
        if let Some(next) = find_alias(&aliases, name) {
            return Err(Error::layout(format!(
                "alias \"{alias}\" stands for \"{name}\", which is itself an alias of \"{next}\"; \
                 an alias must name a tensor"
            )));
        }
    }
    Ok(aliases)
}

fn find_alias<'a>(aliases: &'a [(String, String)], alias: &str) -> Option<&'a str> {
    let i = aliases
        .binary_search_by(|(a, _)| a.as_str().cmp(alias))
        .ok()?;
    Some(&aliases[i].1)
}

/// Sorts tensors by name, joins aliases with the tensors they stand for, and
/// returns where each of the given tensors went.
fn canonical_tensors(
    tensors: Vec<Tensor>,
    aliases: &[(String, String)],
) -> Result<(Vec<Tensor>, Vec<TensorIndex>)> {
    // (alias name if it is one, tensor under its final name, given number)
    let mut named: Vec<(Option<String>, Tensor, usize)> = Vec::with_capacity(tensors.len());
    for (i, mut t) in tensors.into_iter().enumerate() {
        t.validate()?;
        check_symbolic_name("a tensor", &t.name)?;
        check_dtype(&format!("tensor \"{}\"", t.name), t.dtype)?;
        let alias = find_alias(aliases, &t.name)
            .map(str::to_string)
            .map(|root| std::mem::replace(&mut t.name, root));
        named.push((alias, t, i));
    }
    named.sort_by(|a, b| (&a.1.name, &a.0).cmp(&(&b.1.name, &b.0)));
    let mut out: Vec<Tensor> = Vec::with_capacity(named.len());
    let mut numbers = vec![TensorIndex(0); named.len()];
    let mut before: Option<Option<String>> = None;
    for (alias, t, i) in named {
        match out.last() {
            Some(root) if root.name == t.name => {
                let name = alias.as_deref().unwrap_or(&t.name);
                if before.as_ref() == Some(&alias) {
                    return Err(Error::layout(format!(
                        "tensor \"{name}\" is declared twice"
                    )));
                }
                check_same(root, &t, &format!("its alias \"{name}\""), "the tensor")?;
            }
            _ => out.push(t),
        }
        before = Some(alias);
        numbers[i] = TensorIndex(out.len() as u32 - 1);
    }
    Ok((out, numbers))
}

fn check_dtype(what: &str, d: Dtype) -> Result<()> {
    Dtype::new(d.code, d.bits, d.lanes)
        .map(|_| ())
        .map_err(|e| Error::layout(format!("{what}: {}", e.message)))
}

/// Refuses two declarations of one tensor that differ; `here` and `there` say
/// whose `b` and `a` are.
pub(super) fn check_same(a: &Tensor, b: &Tensor, here: &str, there: &str) -> Result<()> {
    let differ = |what: &str, x: &dyn std::fmt::Debug, y: &dyn std::fmt::Debug| {
        Err(Error::layout(format!(
            "tensor \"{}\": {here} has {what} {y:?} and {there} has {what} {x:?}; they must agree",
            a.name
        )))
    };
    if a.shape != b.shape {
        return differ("shape", &a.shape.as_slice(), &b.shape.as_slice());
    }
    if a.dtype != b.dtype {
        return differ("dtype", &a.dtype.name(), &b.dtype.name());
    }
    if a.granule != b.granule {
        return differ("granule", &a.granule.as_slice(), &b.granule.as_slice());
    }
    Ok(())
}

/// The canonical tensors, and where the given ones went.
struct Table {
    tensors: Vec<Tensor>,
    numbers: Vec<TensorIndex>,
}

impl Table {
    /// The canonical number of a given tensor.
    fn number(&self, given: TensorIndex, who: &str) -> Result<TensorIndex> {
        self.numbers.get(given.index()).copied().ok_or_else(|| {
            Error::layout(format!(
                "{who} names tensor number {}, but {} are declared",
                given.0,
                self.numbers.len()
            ))
        })
    }

    fn tensor(&self, t: TensorIndex) -> &Tensor {
        &self.tensors[t.index()]
    }

    fn renumber_companions(&self, conversion: &mut Option<Conversion>) -> Result<()> {
        for c in conversion.iter_mut().flat_map(|c| &mut c.companions) {
            *c = self.number(*c, "a conversion")?;
        }
        Ok(())
    }

    fn part(&self, part: Part) -> Result<Part> {
        part.ranks.validate()?;
        let lowest = part.ranks.lowest().unwrap_or_default();
        self.part_of_valid_ranks(part).map_err(|e| Error {
            message: format!("part of rank {lowest}: {}", e.message),
            ..e
        })
    }

    fn part_of_valid_ranks(&self, part: Part) -> Result<Part> {
        let (meshes, mesh_numbers) = canonical_meshes(part.meshes)?;
        let copies = canonical_copies(part.copies, &meshes, &mesh_numbers)?;
        let mut given_rules = part.rules;
        for (i, r) in given_rules.iter_mut().enumerate() {
            check_rule(i, r, &meshes, &mesh_numbers)?;
            self.renumber_companions(&mut r.conversion)?;
        }
        let count = part.placements.len();
        let mut given = part.placements;
        given.extend(part.spacers);
        check_links(&given, &given_rules, &part.buffers)?;
        let mut rules = Interner::new(&given_rules, &meshes, &mesh_numbers);
        for p in &mut given {
            p.tensor = self.number(p.tensor, "a placement")?;
            let tensor = self.tensor(p.tensor);
            if p.stage.is_some() && given_rules[p.rule as usize].stage_axis.is_none() {
                return Err(Error::layout(format!(
                    "tensor \"{}\" has stage {} but its rule has no stage axis",
                    tensor.name,
                    p.stage.unwrap_or_default()
                )));
            }
            p.rule = rules.intern(p, tensor);
        }
        let placed = order_placements(given, count, part.buffers, &rules.table);
        let (rules, placed) = renumber_rules(rules.table, placed);
        Ok(Part {
            ranks: part.ranks.canonical(),
            meshes,
            copies,
            padding: part.padding,
            rules,
            placements: placed.placements,
            spacers: placed.spacers,
            buffers: placed.buffers,
        })
    }

    fn rank_views(&self, r: RankViews) -> Result<RankViews> {
        let rank = r.rank;
        if rank.0 >= RANK_COUNT_MAX {
            return Err(Error::limit(format!(
                "rank {rank} is out of range; ranks are 0 to {}",
                RANK_COUNT_MAX - 1
            )));
        }
        let (buffers, buffer_numbers) = canonical_buffers(r.buffers).map_err(|e| Error {
            message: format!("rank {rank}: {}", e.message),
            ..e
        })?;
        let mut views = Vec::with_capacity(r.views.len());
        for (i, v) in r.views.into_iter().enumerate() {
            let v = self.view(v, &buffer_numbers).map_err(|e| Error {
                message: format!("rank {rank}, view {i}: {}", e.message),
                ..e
            })?;
            if !v.bounds.is_empty() {
                views.push(v);
            }
        }
        views.sort_by(|a, b| view_key(a).cmp(&view_key(b)));
        views.dedup();
        Ok(RankViews {
            rank,
            copy: r.copy,
            buffers,
            views,
        })
    }

    fn view(&self, mut v: View, buffers: &[u32]) -> Result<View> {
        v.tensor = self.number(v.tensor, "it")?;
        let t = self.tensor(v.tensor);
        let bad = |what: String| Err(Error::layout(format!("tensor \"{}\": {what}", t.name)));
        let Some(&buffer) = buffers.get(v.buffer as usize) else {
            return bad(format!(
                "buffer number {} is out of range; the rank has {} buffers",
                v.buffer,
                buffers.len()
            ));
        };
        v.buffer = buffer;
        check_dtype(&format!("tensor \"{}\"", t.name), v.dtype)?;
        let axes = t.shape.len();
        if v.bounds.0.len() != axes || v.strides.len() != axes {
            return bad(format!(
                "it has {axes} axes, but the box has {} and the strides {}",
                v.bounds.0.len(),
                v.strides.len()
            ));
        }
        for (axis, s) in v.bounds.spans().iter().enumerate() {
            if s.lo > s.hi {
                return bad(format!(
                    "axis {axis} of the box is {s}, which ends before it starts"
                ));
            }
        }
        self.renumber_companions(&mut v.conversion)?;
        Ok(v)
    }
}

type ViewKey<'a> = (
    TensorIndex,
    &'a super::tensor::IndexBox,
    u32,
    u64,
    &'a [i64],
    Dtype,
    &'a Option<Conversion>,
);

fn view_key(v: &View) -> ViewKey<'_> {
    (
        v.tensor,
        &v.bounds,
        v.buffer,
        v.offset,
        &v.strides,
        v.dtype,
        &v.conversion,
    )
}

/// Sorts by name and returns where each given one went.
fn sort_named<T>(items: Vec<T>, name: impl Fn(&T) -> &str) -> (Vec<T>, Vec<u32>) {
    let mut tagged: Vec<(usize, T)> = items.into_iter().enumerate().collect();
    tagged.sort_by(|a, b| name(&a.1).cmp(name(&b.1)));
    let mut numbers = vec![0; tagged.len()];
    for (new, (old, _)) in tagged.iter().enumerate() {
        numbers[*old] = new as u32;
    }
    (tagged.into_iter().map(|(_, t)| t).collect(), numbers)
}

fn canonical_meshes(meshes: Vec<Mesh>) -> Result<(Vec<Mesh>, Vec<u16>)> {
    if meshes.len() > usize::from(u16::MAX) {
        return Err(Error::limit(format!(
            "a part has {} meshes; at most {} are allowed",
            meshes.len(),
            u16::MAX
        )));
    }
    for m in &meshes {
        m.validate_axes()?;
    }
    let (meshes, numbers) = sort_named(meshes, |m| &m.name);
    if let Some(w) = meshes.windows(2).find(|w| w[0].name == w[1].name) {
        return Err(Error::layout(format!(
            "two meshes are named \"{}\"",
            w[0].name
        )));
    }
    Ok((meshes, numbers.into_iter().map(|n| n as u16).collect()))
}

fn canonical_copies(
    copies: Option<CopyAxes>,
    meshes: &[Mesh],
    numbers: &[u16],
) -> Result<Option<CopyAxes>> {
    let Some(c) = copies.filter(|c| !c.axes.is_empty()) else {
        return Ok(None);
    };
    let Some(&mesh) = numbers.get(c.mesh as usize) else {
        return Err(Error::layout(format!(
            "copies name mesh number {}, but there are {}",
            c.mesh,
            meshes.len()
        )));
    };
    check_axes("copies", &c.axes, &meshes[mesh as usize])?;
    if let Some(a) = repeated(&c.axes) {
        return Err(Error::layout(format!(
            "copies name axis \"{}\" twice",
            meshes[mesh as usize].axes[a as usize].name
        )));
    }
    Ok(Some(CopyAxes { mesh, ..c }))
}

/// The first value that occurs twice.
pub(super) fn repeated(axes: &[u8]) -> Option<u8> {
    (1..axes.len())
        .find(|&i| axes[..i].contains(&axes[i]))
        .map(|i| axes[i])
}

fn check_axes(who: &str, axes: &[u8], mesh: &Mesh) -> Result<()> {
    match axes.iter().find(|&&a| a as usize >= mesh.axes.len()) {
        None => Ok(()),
        Some(a) => Err(Error::layout(format!(
            "{who} name axis number {a}, but mesh \"{}\" has {} axes",
            mesh.name,
            mesh.axes.len()
        ))),
    }
}

/// Checks the mesh and axis numbers of a rule.
fn check_rule(i: usize, rule: &Rule, meshes: &[Mesh], numbers: &[u16]) -> Result<()> {
    let Some(&mesh) = numbers.get(rule.mesh as usize) else {
        return Err(Error::layout(format!(
            "rule {i} names mesh number {}, but there are {}",
            rule.mesh,
            meshes.len()
        )));
    };
    let mesh = &meshes[mesh as usize];
    check_axes(
        &format!("the stages of rule {i}"),
        rule.stage_axis.as_slice(),
        mesh,
    )?;
    for cut in &rule.cuts {
        check_axes(&format!("the cuts of rule {i}"), &cut.axes, mesh)?;
    }
    match rule.dtype {
        Some(d) => check_dtype(&format!("rule {i}"), d),
        None => Ok(()),
    }
}

/// Checks that placements and buffers point at each other and at rules.
fn check_links(placements: &[Placement], rules: &[Rule], buffers: &[Buffer]) -> Result<()> {
    for (i, p) in placements.iter().enumerate() {
        if p.rule as usize >= rules.len() {
            return Err(Error::layout(format!(
                "placement {i} names rule number {}, but there are {}",
                p.rule,
                rules.len()
            )));
        }
        let member = buffers
            .get(p.buffer as usize)
            .and_then(|b| b.members.get(p.member as usize));
        if member.copied() != Some(i as u32) {
            return Err(Error::layout(format!(
                "placement {i} is not member {} of buffer number {}, as it says",
                p.member, p.buffer
            )));
        }
    }
    for (i, b) in buffers.iter().enumerate() {
        check_symbolic_name("a buffer", &b.name)?;
        for (k, &m) in b.members.iter().enumerate() {
            let back = placements
                .get(m as usize)
                .map(|p| (p.buffer, p.member as usize));
            if back != Some((i as u32, k)) {
                return Err(Error::layout(format!(
                    "buffer \"{}\" names placement {m} as member {k}, which lies elsewhere",
                    b.name
                )));
            }
        }
    }
    Ok(())
}

/// Gives equal rules one number.
struct Interner<'a> {
    given: &'a [Rule],
    meshes: &'a [Mesh],
    mesh_numbers: &'a [u16],
    table: Vec<Rule>,
    numbers: HashMap<Rule, u32>,
    /// By what the normal form of a given rule depends on.
    seen: HashMap<(u32, bool, bool, usize), u32>,
}

impl<'a> Interner<'a> {
    fn new(given: &'a [Rule], meshes: &'a [Mesh], mesh_numbers: &'a [u16]) -> Interner<'a> {
        Interner {
            given,
            meshes,
            mesh_numbers,
            table: Vec::new(),
            numbers: HashMap::new(),
            seen: HashMap::new(),
        }
    }

    fn intern(&mut self, p: &Placement, tensor: &Tensor) -> u32 {
        let rule = &self.given[p.rule as usize];
        let own_dtype = rule.dtype == Some(tensor.dtype);
        let key = (p.rule, p.stage.is_some(), own_dtype, tensor.shape.len());
        if let Some(&n) = self.seen.get(&key) {
            return n;
        }
        let normal = self.normal(rule, p.stage.is_some(), own_dtype, tensor.shape.len());
        let n = match self.numbers.get(&normal) {
            Some(&n) => n,
            None => {
                let n = self.table.len() as u32;
                self.numbers.insert(normal.clone(), n);
                self.table.push(normal);
                n
            }
        };
        self.seen.insert(key, n);
        n
    }

    /// The rule with everything left out that changes nothing.
    fn normal(&self, rule: &Rule, staged: bool, own_dtype: bool, axes: usize) -> Rule {
        let mut r = rule.clone();
        r.mesh = self.mesh_numbers[r.mesh as usize];
        r.stage_axis = r.stage_axis.filter(|_| staged);
        r.dtype = r.dtype.filter(|_| !own_dtype);
        if r.order.iter().copied().eq(0..axes as u8) {
            r.order.clear();
        }
        let mesh = &self.meshes[r.mesh as usize];
        r.cuts.sort_by_key(|c| c.dim);
        for cut in &mut r.cuts {
            cut.parts = cut.parts.filter(|&n| u64::from(n) != cut.width(mesh));
        }
        r.padded &= can_be_padded(&r.cuts);
        // A group of one member only is no group.
        r.grouped = r.grouped.filter(|g| g.size != g.pitch);
        r
    }
}

/// The axes whose last cut may leave a shorter chunk, as bits.
fn can_be_padded(cuts: &[Cut]) -> u8 {
    let mut bits = 0;
    for cut in cuts.iter().filter(|c| c.dim < 8) {
        let bit = 1 << cut.dim;
        match cut.kind {
            CutKind::Ceil | CutKind::Chunk(_) => bits |= bit,
            _ => bits &= !bit,
        }
    }
    bits
}

/// Placements, spacers and buffers of one part.
struct Placed {
    placements: Vec<Placement>,
    spacers: Vec<Placement>,
    buffers: Vec<Buffer>,
}

/// What a member of a buffer is, for comparing buffers of one name.
type MemberKey<'a> = (TensorIndex, Option<u32>, bool, &'a Rule);

/// Sorts placements and buffers, and joins buffers that are described twice.
/// The first `count` placements are real, the rest spacers.
fn order_placements(
    given: Vec<Placement>,
    count: usize,
    buffers: Vec<Buffer>,
    rules: &[Rule],
) -> Placed {
    let members = |b: &Buffer| -> Vec<MemberKey<'_>> {
        let key = |&m: &u32| {
            let p = &given[m as usize];
            (
                p.tensor,
                p.stage,
                m as usize >= count,
                &rules[p.rule as usize],
            )
        };
        b.members.iter().map(key).collect()
    };
    let head = |b: &Buffer| -> (u8, Memory) { (b.shared_dims, b.memory) };
    let mut kept: Vec<Buffer> = buffers
        .into_iter()
        .filter(|b| !b.members.is_empty())
        .map(alone_shares_nothing)
        .collect();
    kept.sort_by(|a, b| {
        a.name
            .cmp(&b.name)
            .then_with(|| head(a).cmp(&head(b)))
            .then_with(|| members(a).cmp(&members(b)))
    });
    kept.dedup_by(|a, b| a.name == b.name && head(a) == head(b) && members(a) == members(b));

    let mut order: Vec<(bool, Placement, u32)> = Vec::with_capacity(given.len());
    for (new, b) in kept.iter().enumerate() {
        for &m in &b.members {
            let p = Placement {
                buffer: new as u32,
                ..given[m as usize].clone()
            };
            order.push((m as usize >= count, p, m));
        }
    }
    order.sort_by_key(|(spacer, p, _)| (*spacer, p.tensor, p.stage, p.buffer, p.member));
    for (new, (_, p, _)) in order.iter().enumerate() {
        kept[p.buffer as usize].members[p.member as usize] = new as u32;
    }
    let real = order.partition_point(|(spacer, ..)| !spacer);
    let mut placements: Vec<Placement> = order.into_iter().map(|(_, p, _)| p).collect();
    let spacers = placements.split_off(real);
    Placed {
        placements,
        spacers,
        buffers: kept,
    }
}

/// Shared axes only mean something between several members.
fn alone_shares_nothing(mut b: Buffer) -> Buffer {
    if b.members.len() == 1 {
        b.shared_dims = 0;
    }
    b
}

/// Numbers rules by first use and drops unused ones.
fn renumber_rules(rules: Vec<Rule>, mut placed: Placed) -> (Vec<Rule>, Placed) {
    let mut numbers: Vec<Option<u32>> = vec![None; rules.len()];
    let mut used = 0;
    for p in placed.placements.iter_mut().chain(&mut placed.spacers) {
        let n = *numbers[p.rule as usize].get_or_insert_with(|| {
            used += 1;
            used - 1
        });
        p.rule = n;
    }
    let mut order: Vec<(u32, Rule)> = numbers
        .into_iter()
        .zip(rules)
        .filter_map(|(n, r)| Some((n?, r)))
        .collect();
    order.sort_by_key(|(n, _)| *n);
    (order.into_iter().map(|(_, r)| r).collect(), placed)
}

fn canonical_buffers(buffers: Vec<NamedBuffer>) -> Result<(Vec<NamedBuffer>, Vec<u32>)> {
    for b in &buffers {
        check_name("a buffer", &b.name)?;
    }
    let (buffers, numbers) = sort_named(buffers, |b| &b.name);
    match buffers.windows(2).find(|w| w[0].name == w[1].name) {
        Some(w) => Err(Error::layout(format!(
            "two buffers are named \"{}\"",
            w[0].name
        ))),
        None => Ok((buffers, numbers)),
    }
}
