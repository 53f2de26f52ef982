//! Entries that stand for many layers, and the pipeline stages these lie on.

use super::doc::{Choice, Pairs, PartDoc, StageDoc, TensorDoc};
use super::fault::{Read, Within, fault};
use crate::error::Error;
use smallvec::SmallVec;
use std::collections::HashMap;

/// The layers over which an entry is repeated.
pub(super) enum Layers<'a> {
    /// The entry is about one tensor.
    Once,
    Range(u32, u32),
    List(&'a [u32]),
}

impl Layers<'_> {
    pub(super) fn count(&self) -> usize {
        match self {
            Layers::Once => 1,
            Layers::Range(_, count) => *count as usize,
            Layers::List(v) => v.len(),
        }
    }

    pub(super) fn get(&self, i: usize) -> Option<u32> {
        match self {
            Layers::Once => None,
            Layers::Range(first, _) => Some(first + i as u32),
            Layers::List(v) => Some(v[i]),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Option<u32>> + '_ {
        (0..self.count()).map(|i| self.get(i))
    }

    pub(super) fn is_once(&self) -> bool {
        matches!(self, Layers::Once)
    }
}

pub(super) fn layers_of<'a>(
    choice: Option<&'a Choice>,
    tables: &Pairs<Vec<u32>>,
) -> Read<Layers<'a>> {
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

pub(super) fn find_table<'a>(tables: &'a Pairs<Vec<u32>>, name: &str) -> Read<&'a [u32]> {
    match tables.0.iter().find(|(n, _)| n == name) {
        Some((_, table)) => Ok(table),
        None => Err(Error::layout(format!(
            "\"stages\" has no table \"{name}\"; it has {}",
            list(tables.0.iter().map(|(n, _)| n.as_str()))
        ))
        .into()),
    }
}

/// Checks that a name has a `{layer}` exactly where there are layers.
pub(super) fn check_layer_name(
    field: &str,
    name: &str,
    layers: &Layers<'_>,
    must: bool,
) -> Read<()> {
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

pub(super) fn spell(name: &str, layer: Option<u32>) -> String {
    match layer {
        Some(n) => name.replace("{layer}", &n.to_string()),
        None => name.to_string(),
    }
}

/// A buffer's name with the layer, and its index on its stage, filled in.
pub(super) fn spell_buffer(buffer: &str, layer: Option<u32>, local: &[u32]) -> Read<String> {
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

/// The pipeline stages of an entry.
pub(super) struct Stages<'a> {
    /// Stage by layer, and the name of the table for messages.
    pub(super) table: Option<(&'a str, &'a [u32])>,
    /// Index of each layer among those of its stage.
    pub(super) local: Vec<u32>,
    pub(super) at: SmallVec<[Option<u32>; 2]>,
}

impl<'a> Stages<'a> {
    pub(super) fn new(t: &'a TensorDoc, part: &'a PartDoc) -> Read<Stages<'a>> {
        let by_layers = match &t.layers {
            Some(Choice::Name(name)) => Some(name.as_str()),
            _ => None,
        };
        let named = t.stage.as_ref().and_then(|s| s.table.as_deref());
        let local = match named.or(by_layers) {
            Some(name) => numbers_of(part, name).within(|| "stage.table".into())?,
            None => Vec::new(),
        };
        let (table, at) = match &t.stage {
            None => (None, [None].into_iter().collect()),
            Some(s) => stage_form(s, t.layers.is_some(), &part.stages).within(|| "stage".into())?,
        };
        Ok(Stages { table, local, at })
    }

    /// The stages that hold a layer.
    pub(super) fn at(&self, layer: Option<u32>) -> Read<SmallVec<[Option<u32>; 2]>> {
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

pub(super) type StageForm<'a> = (Option<(&'a str, &'a [u32])>, SmallVec<[Option<u32>; 2]>);

pub(super) fn stage_form<'a>(
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

/// The number of each layer of a table on its stage: as given, or counted.
pub(super) fn numbers_of(part: &PartDoc, name: &str) -> Read<Vec<u32>> {
    let stages = find_table(&part.stages, name)?;
    let given = part.local_layers.0.iter().find(|(n, _)| n == name);
    match given {
        None => Ok(local_layers(stages)),
        Some((_, numbers)) if numbers.len() == stages.len() => Ok(numbers.clone()),
        Some((_, numbers)) => Err(Error::layout(format!(
            "\"local_layers\" numbers {} layers of table \"{name}\", which has {}",
            numbers.len(),
            stages.len()
        ))
        .into()),
    }
}

/// The index of each layer among those of its stage.
pub(super) fn local_layers(table: &[u32]) -> Vec<u32> {
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

/// Names in quotes, for a message.
pub(super) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.map(|n| format!("\"{n}\"")).collect();
    if quoted.is_empty() {
        "none".into()
    } else {
        quoted.join(", ")
    }
}
