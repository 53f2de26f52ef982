//! The tensors that a file declares, by name.

use super::doc::{Pairs, PartDoc, TensorDoc};
use super::fault::{Read, Within, all, fault};
use super::layers::{check_layer_name, layers_of, spell};
use crate::error::Error;
use crate::layout::canonical::check_same;
use crate::layout::tensor::{Tensor, TensorIndex};
use crate::limits::{TENSOR_COUNT_MAX, VIEW_COUNT_MAX};
use std::collections::HashMap;

/// Tensors by name, as they are declared.
pub(super) struct Names {
    pub(super) tensors: Vec<Tensor>,
    pub(super) numbers: HashMap<String, TensorIndex>,
    pub(super) alias_list: Vec<(String, String)>,
    pub(super) aliases: HashMap<String, String>,
    /// Names spelled out so far, against layer ranges without end.
    pub(super) spelled: usize,
}

impl Names {
    pub(super) fn new(alias_list: Vec<(String, String)>) -> Names {
        Names {
            tensors: Vec::new(),
            numbers: HashMap::new(),
            aliases: alias_list.iter().cloned().collect(),
            alias_list,
            spelled: 0,
        }
    }

    pub(super) fn spend(&mut self, count: usize) -> Read<()> {
        self.spelled = self.spelled.saturating_add(count);
        if self.spelled <= 2 * VIEW_COUNT_MAX {
            return Ok(());
        }
        Err(Error::limit(format!(
            "the file spells out more than {VIEW_COUNT_MAX} placements",
        ))
        .into())
    }

    pub(super) fn declare(&mut self, tensor: Tensor) -> Read<()> {
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
    pub(super) fn find(&self, name: &str) -> Option<TensorIndex> {
        let of = || self.numbers.get(self.aliases.get(name)?.as_str());
        self.numbers.get(name).or_else(of).copied()
    }
}

pub(super) fn declare_only(t: &TensorDoc, names: &mut Names) -> Read<()> {
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

pub(super) fn declare_part(p: &PartDoc, names: &mut Names) -> Read<()> {
    let entries = p.tensors.iter().enumerate();
    all(entries.map(|(i, t)| declare(t, &p.stages, names).within(|| format!("tensors[{i}]"))))?;
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
        // Whether granules fit is for the check to say, of all tensors.
        tensor.validate_size()?;
        names.declare(tensor.clone())?;
    }
    Ok(())
}
