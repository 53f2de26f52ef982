//! The tables: which tensors a family has, by formulas over its fields.
//!
//! A family file names blocks (`ends`, `gqa`, `mla`, `experts`, ...) and adds
//! what is its own; a block has the same form. Later entries win.

use super::role::Role;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Named tables, as they are in `families/`.
macro_rules! tables {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("families/", $name, ".json")))),*]
    };
}

const BLOCKS: &[(&str, &str)] = tables![
    "ends",
    "gqa",
    "mla",
    "gated_mlp",
    "experts",
    "shared_experts",
    "mtp",
];

const FAMILIES: &[(&str, &str)] = tables![
    "llama",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "deepseek_v3",
    "glm4_moe",
    "gpt_oss",
];

/// One table: a family, or a block of one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Family {
    pub family: String,
    pub architectures: Vec<String>,
    pub model_types: Vec<String>,
    blocks: Vec<String>,
    /// Field of the configuration: `required`, `optional`, or what it is
    /// where it is missing.
    pub fields: BTreeMap<String, String>,
    /// Values a field may have, where it is given.
    pub accepts: BTreeMap<String, Vec<serde_json::Value>>,
    /// The first field is a multiple of the second.
    pub multiples: Vec<(String, String)>,
    /// The first field is at most the second, where both are given.
    pub ordered: Vec<(String, String)>,
    /// Fields that are at least 1, where they are given.
    pub positive: Vec<String>,
    /// What rows name in `when`: fixed, or the field that says so.
    pub flags: BTreeMap<String, Flag>,
    pub axes: BTreeMap<String, AxisRow>,
    /// Which layers have experts; none where it is missing.
    pub moe_layers: Option<MoeLayers>,
    /// The field that counts the layers of multi-token prediction.
    pub mtp_layers: Option<String>,
    /// Tensors of the model, of every layer, of layers without and with
    /// experts, and what a layer of multi-token prediction has on top.
    pub model: Vec<Row>,
    pub layer: Vec<Row>,
    pub dense: Vec<Row>,
    pub moe: Vec<Row>,
    pub mtp: Vec<Row>,
    /// Where a checkpoint stores several tensors, or other axis orders.
    pub stored: Vec<StoredRow>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Flag {
    Fixed(bool),
    Field(String),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AxisRow {
    pub size: String,
    /// What no tensor-parallel cut of the axis should split.
    pub granule: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub(super) enum MoeLayers {
    /// From this layer on.
    From { from: String },
    /// Every n-th, except those that a field lists.
    Step { step: String, except: String },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    /// Within its layer; `{expert}.` is where a checkpoint counts experts.
    pub name: String,
    pub role: Role,
    pub axes: Vec<String>,
    /// A flag, or `!flag`.
    pub when: Option<String>,
    /// Where it is not that of the model.
    pub dtype: Option<String>,
    #[serde(default)]
    pub is_buffer: bool,
    pub alias_of: Option<String>,
    /// The flag that makes it an alias; always, where it is missing.
    pub alias_when: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredRow {
    pub name: String,
    pub members: Vec<Role>,
    #[serde(default)]
    pub order: Vec<u8>,
    #[serde(default)]
    pub shared_dims: u8,
}

/// The names of all families.
pub fn family_names() -> Vec<&'static str> {
    FAMILIES.iter().map(|(name, _)| *name).collect()
}

impl Family {
    /// The table of this architecture, with its blocks put in.
    pub fn find(architecture: &str) -> Result<Family> {
        let mut known = Vec::new();
        for (name, text) in FAMILIES {
            let own = parse(name, text)?;
            if own.architectures.iter().any(|a| a == architecture) {
                return own.assemble();
            }
            known.extend(own.architectures);
        }
        Err(Error::layout(format!(
            "config.json: architecture \"{architecture}\" is unknown; known are {}",
            known.join(", ")
        )))
    }

    fn assemble(mut self) -> Result<Family> {
        let mut whole = Family::default();
        for wanted in std::mem::take(&mut self.blocks) {
            let block = BLOCKS.iter().find(|(name, _)| *name == wanted);
            let (name, text) = block.ok_or_else(|| {
                Error::internal(format!(
                    "family \"{}\" names no block \"{wanted}\"",
                    self.family
                ))
            })?;
            whole.add(parse(name, text)?);
        }
        whole.add(self);
        Ok(whole)
    }

    fn add(&mut self, other: Family) {
        if !other.family.is_empty() {
            self.family = other.family;
        }
        self.architectures.extend(other.architectures);
        self.model_types.extend(other.model_types);
        self.fields.extend(other.fields);
        self.accepts.extend(other.accepts);
        self.multiples.extend(other.multiples);
        self.ordered.extend(other.ordered);
        self.positive.extend(other.positive);
        self.flags.extend(other.flags);
        self.axes.extend(other.axes);
        self.moe_layers = other.moe_layers.or(self.moe_layers.take());
        self.mtp_layers = other.mtp_layers.or(self.mtp_layers.take());
        self.model.extend(other.model);
        self.layer.extend(other.layer);
        self.dense.extend(other.dense);
        self.moe.extend(other.moe);
        self.mtp.extend(other.mtp);
        self.stored.extend(other.stored);
    }
}

fn parse(name: &str, text: &str) -> Result<Family> {
    serde_json::from_str(text)
        .map_err(|e| Error::internal(format!("the built-in table \"{name}\": {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_well_formed() {
        for (name, text) in FAMILIES {
            let own = parse(name, text).unwrap();
            assert_eq!(own.family, *name);
            let whole = Family::find(&own.architectures[0]).unwrap();
            let rows = [
                &whole.model,
                &whole.layer,
                &whole.dense,
                &whole.moe,
                &whole.mtp,
            ];
            for row in rows.into_iter().flatten() {
                for axis in &row.axes {
                    assert!(
                        whole.axes.contains_key(axis),
                        "{name}: {}: {axis}",
                        row.name
                    );
                }
            }
        }
    }
}
