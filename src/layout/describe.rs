//! A layout in numbers, for a person or a program to look at.

use super::Layout;
use super::placement::{Padding, Part};
use super::tensor::Tensor;
use crate::rank::Rank;
use serde_json::{Map, Value, json};

/// Tensors listed as the largest ones.
const LARGEST_COUNT: usize = 10;
/// Runs of ranks that are spelled out.
const RUN_COUNT_MAX: usize = 16;
/// Placements, over all ranks, up to which the bytes of ranks are added up.
const SHARDS_MAX: u64 = 1 << 20;

impl Layout {
    /// Ranks, copies, tensors, bytes, meshes and the largest tensors.
    ///
    /// `bytes` counts each tensor once. `bytes_per_rank` is absent where the
    /// layout is too large to add it up rank by rank.
    pub fn describe(&self) -> Value {
        let placed = self.placed();
        let tensors: Vec<&Tensor> = self
            .tensors()
            .iter()
            .zip(&placed)
            .filter_map(|(t, &placed)| placed.then_some(t))
            .collect();
        let bytes: u128 = tensors.iter().map(|t| u128::from(t.bytes())).sum();
        let mut out = json!({
            "ranks": self.rank_count(),
            "rank_runs": runs(self.index.ranks()),
            "copies": self.copy_count(),
            "tensors": tensors.len(),
            "declared_only": self.tensors().len() - tensors.len(),
            "aliases": self.spec().aliases.len(),
            "bytes": u64::try_from(bytes).unwrap_or(u64::MAX),
            "parts": self.parts().iter().map(part).collect::<Vec<Value>>(),
            "explicit": explicit(self),
            "largest": largest(tensors),
        });
        if let Some((least, most)) = self.bytes_per_rank() {
            out["bytes_per_rank"] = json!({ "least": least, "most": most });
        }
        out
    }

    /// Which tensors are held, rather than only declared.
    fn placed(&self) -> Vec<bool> {
        let mut placed = vec![false; self.tensors().len()];
        for p in self.parts().iter().flat_map(|p| &p.placements) {
            placed[p.tensor.index()] = true;
        }
        for v in self.explicit().iter().flat_map(|r| &r.views) {
            placed[v.tensor.index()] = true;
        }
        placed
    }

    /// The smallest and the largest sum of buffer bytes of a rank.
    fn bytes_per_rank(&self) -> Option<(u64, u64)> {
        let shards = |p: &Part| u64::from(p.ranks.count()) * p.placements.len() as u64;
        if self.parts().iter().map(shards).sum::<u64>() > SHARDS_MAX {
            return None;
        }
        let bytes = |r: Rank| -> u64 {
            let all = self.buffers(r);
            all.iter().fold(0, |a, b| a.saturating_add(b.bytes))
        };
        let all: Vec<u64> = self.index.ranks().map(bytes).collect();
        Some((*all.iter().min()?, *all.iter().max()?))
    }
}

/// The largest tensors, ties by name.
fn largest(mut tensors: Vec<&Tensor>) -> Vec<Value> {
    tensors.sort_unstable_by(|a, b| b.bytes().cmp(&a.bytes()).then_with(|| a.name.cmp(&b.name)));
    let show = |t: &Tensor| {
        json!({
            "name": t.name,
            "shape": t.shape.as_slice(),
            "dtype": t.dtype.name(),
            "bytes": t.bytes(),
        })
    };
    tensors.into_iter().take(LARGEST_COUNT).map(show).collect()
}

/// Runs of consecutive ranks as `"0..8"`, the end excluded; `".."` stands for
/// the runs beyond a handful.
fn runs(ranks: impl Iterator<Item = Rank>) -> Vec<String> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for r in ranks {
        let r = u64::from(r.0);
        match runs.last_mut() {
            Some(run) if run.1 == r => run.1 += 1,
            _ => runs.push((r, r + 1)),
        }
    }
    let spell = |(lo, hi): &(u64, u64)| format!("{lo}..{hi}");
    let mut out: Vec<String> = runs.iter().take(RUN_COUNT_MAX).map(spell).collect();
    if runs.len() > RUN_COUNT_MAX {
        out.push("..".into());
    }
    out
}

fn part(p: &Part) -> Value {
    let meshes: Map<String, Value> = p
        .meshes
        .iter()
        .map(|m| (m.name.clone(), Value::String(m.to_string())))
        .collect();
    json!({
        "ranks": p.ranks.count(),
        "first_rank": p.ranks.lowest(),
        "copies": p.copy_count(),
        "meshes": meshes,
        "padding": match p.padding {
            Padding::Leave => "leave",
            Padding::Zero => "zero",
        },
        "rules": p.rules.len(),
        "placements": p.placements.len(),
        "buffers": p.buffers.len(),
        "fused_buffers": p.buffers.iter().filter(|b| b.members.len() > 1).count(),
    })
}

fn explicit(layout: &Layout) -> Value {
    let all = layout.explicit();
    json!({
        "ranks": all.len(),
        "buffers": all.iter().map(|r| r.buffers.len()).sum::<usize>(),
        "views": all.iter().map(|r| r.views.len()).sum::<usize>(),
    })
}
