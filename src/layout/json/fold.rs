//! From one entry per tensor to one entry for all layers that are alike.
//!
//! ```text
//!   layers.0.q   stage 0   decoder.0.q  ┐
//!   layers.1.q   stage 0   decoder.1.q  ├─►  layers.{layer}.q   table   decoder.{local_layer}.q
//!   layers.2.q   stage 1   decoder.0.q  ┘
//! ```
//!
//! Entries are alike if they differ only in the first number of their names.
//! What stage a layer is on, and which number it has there, goes into a table
//! that all entries share.

use super::doc::{Choice, FusedDoc, Pairs, PartDoc, RangeDoc, StageDoc, TensorDoc};
use super::layers::local_layers;
use rustc_hash::FxHashMap;

/// Layers are numbered below this; entries with larger numbers stay single.
const LAYER_MAX: u32 = 1 << 16;

/// Joins the entries of a part that are alike.
pub(super) fn fold(part: &mut PartDoc) {
    let mut tables = Tables::default();
    part.tensors = fold_tensors(std::mem::take(&mut part.tensors), &mut tables);
    part.fused = fold_fused(std::mem::take(&mut part.fused), &mut tables);
    (part.stages, part.local_layers) = tables.finish();
}

/// A name around its first number: `model.layers.` `7` `.mlp`.
struct Numbered {
    before: String,
    number: u32,
    after: String,
}

impl Numbered {
    fn of(name: &str) -> Option<Numbered> {
        let mut at = 0;
        for word in name.split('.') {
            let number = word.parse::<u32>().ok();
            if let Some(number) = number.filter(|n| *n < LAYER_MAX && n.to_string() == word) {
                return Some(Numbered {
                    before: name[..at].into(),
                    number,
                    after: name[at + word.len()..].into(),
                });
            }
            at += word.len() + 1;
        }
        None
    }

    fn with(&self, placeholder: &str) -> String {
        format!("{}{placeholder}{}", self.before, self.after)
    }
}

/// One entry of a group: its layer, its stage, the number in its buffer.
#[derive(Clone, Copy)]
struct Item {
    layer: u32,
    stage: Option<u32>,
    local: Option<u32>,
    entry: usize,
}

/// Groups in order of their first entries.
struct Groups {
    numbers: FxHashMap<(String, usize), usize>,
    list: Vec<Vec<Item>>,
}

impl Groups {
    fn new() -> Groups {
        Groups {
            numbers: FxHashMap::default(),
            list: Vec::new(),
        }
    }

    /// Adds to the first group of this key that has not got the layer yet.
    fn add(&mut self, key: &str, item: Item) {
        for again in 0.. {
            let next = self.list.len();
            let slot = self.numbers.entry((key.to_string(), again)).or_insert(next);
            if *slot == next {
                self.list.push(vec![item]);
                return;
            }
            let group = &mut self.list[*slot];
            if group.iter().rev().all(|i| i.layer != item.layer) {
                group.push(item);
                return;
            }
        }
    }

    /// An entry that is like no other.
    fn add_single(&mut self, entry: usize) {
        self.list.push(vec![Item {
            layer: 0,
            stage: None,
            local: None,
            entry,
        }]);
    }

    /// The groups, each in order of layer.
    fn by_layer(mut self) -> Vec<Vec<Item>> {
        for group in &mut self.list {
            group.sort_by_key(|i| i.layer);
        }
        self.list
    }
}

fn fold_tensors(docs: Vec<TensorDoc>, tables: &mut Tables) -> Vec<TensorDoc> {
    let mut groups = Groups::new();
    for (entry, doc) in docs.iter().enumerate() {
        let Some(name) = Numbered::of(&doc.name) else {
            groups.add_single(entry);
            continue;
        };
        let buffer = doc.buffer.as_deref().and_then(Numbered::of);
        let stage = doc.stage.as_ref().and_then(|s| match s.at {
            Some(Choice::One(n)) => Some(n),
            _ => None,
        });
        let pattern = TensorDoc {
            name: name.with("{layer}"),
            stage: doc.stage.as_ref().map(|s| StageDoc {
                axis: s.axis.clone(),
                table: None,
                at: None,
            }),
            buffer: match &buffer {
                Some(b) => Some(b.with("{layer}")),
                None => doc.buffer.clone(),
            },
            ..doc.clone()
        };
        let item = Item {
            layer: name.number,
            stage,
            local: buffer.map(|b| b.number),
            entry,
        };
        groups.add(&key(&pattern), item);
    }
    let mut docs: Vec<Option<TensorDoc>> = docs.into_iter().map(Some).collect();
    let mut out = Vec::new();
    for group in groups.by_layer() {
        let first = &docs[group[0].entry];
        let joined = match (group.len(), first) {
            (2.., Some(first)) => join_tensor(first, &group, tables),
            _ => None,
        };
        match joined {
            Some(doc) => out.push(doc),
            None => out.extend(group.iter().filter_map(|i| docs[i.entry].take())),
        }
    }
    out
}

fn key<T: serde::Serialize>(pattern: &T) -> String {
    serde_json::to_string(pattern).expect("strings and numbers always serialise")
}

/// One entry for a group, if a table can say its stages and numbers.
fn join_tensor(first: &TensorDoc, group: &[Item], tables: &mut Tables) -> Option<TensorDoc> {
    let is_local = group.iter().any(|i| i.local.is_some_and(|n| n != i.layer));
    let one_stage = group.iter().all(|i| i.stage == group[0].stage);
    let table = match (&first.stage, is_local || !one_stage) {
        (Some(_), true) => Some(tables.find_or_add(group, is_local)),
        (None, true) => return None,
        (_, false) => None,
    };
    let stage = first.stage.as_ref().map(|s| StageDoc {
        axis: s.axis.clone(),
        at: s.at.clone().filter(|_| table.is_none()),
        table,
    });
    let place = if is_local { "{local_layer}" } else { "{layer}" };
    let buffer = first.buffer.as_ref().map(|b| match Numbered::of(b) {
        Some(n) => n.with(place),
        None => b.clone(),
    });
    Some(TensorDoc {
        name: Numbered::of(&first.name)?.with("{layer}"),
        layers: Some(layers(group)),
        stage,
        buffer,
        ..first.clone()
    })
}

fn fold_fused(docs: Vec<FusedDoc>, tables: &mut Tables) -> Vec<FusedDoc> {
    let mut groups = Groups::new();
    for (entry, doc) in docs.iter().enumerate() {
        let members: Option<Vec<Numbered>> = doc.members.iter().map(|m| Numbered::of(m)).collect();
        let buffer = Numbered::of(&doc.buffer);
        let (Some(members), Some(buffer)) = (members, buffer) else {
            groups.add_single(entry);
            continue;
        };
        let layer = members[0].number;
        if members.iter().any(|m| m.number != layer) {
            groups.add_single(entry);
            continue;
        }
        let pattern = FusedDoc {
            buffer: buffer.with("{layer}"),
            members: members.iter().map(|m| m.with("{layer}")).collect(),
            ..doc.clone()
        };
        let item = Item {
            layer,
            stage: None,
            local: Some(buffer.number),
            entry,
        };
        groups.add(&key(&pattern), item);
    }
    let mut docs: Vec<Option<FusedDoc>> = docs.into_iter().map(Some).collect();
    let mut out = Vec::new();
    for group in groups.by_layer() {
        let joined = match (group.len(), &docs[group[0].entry]) {
            (2.., Some(first)) => join_fused(first, &group, tables),
            _ => None,
        };
        match joined {
            Some(doc) => out.push(doc),
            None => out.extend(group.iter().filter_map(|i| docs[i.entry].take())),
        }
    }
    out
}

fn join_fused(first: &FusedDoc, group: &[Item], tables: &Tables) -> Option<FusedDoc> {
    let is_local = group.iter().any(|i| i.local != Some(i.layer));
    let table = match is_local {
        true => Some(tables.find(group)?),
        false => None,
    };
    let place = if is_local { "{local_layer}" } else { "{layer}" };
    let members = first.members.iter();
    let members: Option<Vec<String>> = members
        .map(|m| Some(Numbered::of(m)?.with("{layer}")))
        .collect();
    Some(FusedDoc {
        buffer: Numbered::of(&first.buffer)?.with(place),
        layers: Some(layers(group)),
        table,
        members: members?,
        ..first.clone()
    })
}

fn layers(group: &[Item]) -> Choice {
    let first = group[0].layer;
    let count = group.len() as u32;
    match group.iter().zip(first..).all(|(i, n)| i.layer == n) {
        true => Choice::Range(RangeDoc { first, count }),
        false => Choice::List(group.iter().map(|i| i.layer).collect()),
    }
}

/// Stage and local number of layers, as far as anybody asked.
#[derive(Default)]
struct Table {
    stages: Vec<Option<u32>>,
    locals: Vec<Option<u32>>,
}

impl Table {
    fn get(list: &[Option<u32>], layer: u32) -> Option<u32> {
        list.get(layer as usize).copied().flatten()
    }

    fn takes(&self, group: &[Item], is_local: bool) -> bool {
        group.iter().all(|i| {
            let agrees = |list: &[Option<u32>], want: Option<u32>| {
                let known = Table::get(list, i.layer);
                known.is_none() || want.is_none() || known == want
            };
            agrees(&self.stages, i.stage) && (!is_local || agrees(&self.locals, i.local))
        })
    }

    fn add(&mut self, group: &[Item], is_local: bool) {
        for i in group {
            let at = i.layer as usize;
            if self.stages.len() <= at {
                self.stages.resize(at + 1, None);
                self.locals.resize(at + 1, None);
            }
            self.stages[at] = i.stage.or(self.stages[at]);
            if is_local {
                self.locals[at] = i.local.or(self.locals[at]);
            }
        }
    }

    /// The stages of all layers up to the last one asked for; those between
    /// are where the layer before is.
    fn stages(&self) -> Vec<u32> {
        let mut last = 0;
        let filled = self.stages.iter().map(|s| {
            last = s.unwrap_or(last);
            last
        });
        filled.collect()
    }

    /// The numbers, if counting the layers of each stage gives others.
    fn numbers(&self) -> Option<Vec<u32>> {
        let counted = local_layers(&self.stages());
        let differ = |(n, c): (&Option<u32>, &u32)| n.is_some_and(|n| n != *c);
        let needed = self.locals.iter().zip(&counted).any(differ);
        let number = |(n, c): (&Option<u32>, &u32)| n.unwrap_or(*c);
        needed.then(|| self.locals.iter().zip(&counted).map(number).collect())
    }
}

#[derive(Default)]
struct Tables {
    list: Vec<Table>,
}

impl Tables {
    fn name(i: usize) -> String {
        match i {
            0 => "layers".into(),
            n => format!("layers_{}", n + 1),
        }
    }

    fn find_or_add(&mut self, group: &[Item], is_local: bool) -> String {
        let found = self.list.iter().position(|t| t.takes(group, is_local));
        let i = found.unwrap_or(self.list.len());
        if i == self.list.len() {
            self.list.push(Table::default());
        }
        self.list[i].add(group, is_local);
        Tables::name(i)
    }

    /// A table that gives the entries of a group their numbers.
    fn find(&self, group: &[Item]) -> Option<String> {
        let fits = |t: &Table| {
            group
                .iter()
                .all(|i| Table::get(&t.locals, i.layer) == i.local)
        };
        self.list.iter().position(fits).map(Tables::name)
    }

    fn finish(self) -> (Pairs<Vec<u32>>, Pairs<Vec<u32>>) {
        let named = |(i, t): (usize, &Table)| (Tables::name(i), t.stages());
        let stages = self.list.iter().enumerate().map(named).collect();
        let numbered = |(i, t): (usize, &Table)| Some((Tables::name(i), t.numbers()?));
        let numbers = self.list.iter().enumerate().filter_map(numbered).collect();
        (Pairs(stages), Pairs(numbers))
    }
}
