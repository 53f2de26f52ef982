//! Fused buffers whose members alternate group by group.

use super::fault::{Read, Within, fault};
use super::fused::{Candidate, Fused};
use crate::layout::placement::{Grouped, Rule};
use crate::layout::tensor::Tensor;
use std::collections::HashMap;

/// Gives members that alternate group by group a rule that says so.
pub(super) fn group_members(
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
