//! What PyTorch says of a sharded model, against lists of indices that are
//! chunked one by one, as `torch.chunk` does.

mod layout_support;

use layout_support::{Dice, memories_of, tuples};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use weightsync::Rank;
use weightsync::layout::Layout;

/// `torch.chunk`: chunks of the ceiling, the last ones short or empty.
fn chunk(list: &[u64], n: u64, k: u64) -> Vec<u64> {
    let size = (list.len() as u64).div_ceil(n).max(1) as usize;
    let mut chunks = list.chunks(size);
    chunks.nth(k as usize).unwrap_or(&[]).to_vec()
}

/// `_StridedShard` as PyTorch applies it, from left to right.
fn strided(list: &[u64], factor: u64, n: u64, k: u64) -> Vec<u64> {
    let parts = (0..factor).map(|j| chunk(&chunk(list, factor, j), n, k));
    parts.flatten().collect()
}

/// Where every element lies if the local tensor is `held`, row-major.
fn row_major(held: &[Vec<u64>]) -> BTreeMap<Vec<u64>, u64> {
    let extents: Vec<u64> = held.iter().map(|h| h.len() as u64).collect();
    let global =
        |t: &Vec<u64>| -> Vec<u64> { t.iter().zip(held).map(|(&i, h)| h[i as usize]).collect() };
    tuples(&extents).iter().map(global).zip(0..).collect()
}

/// The places of one tensor on one rank, by element, if the buffer is `name`.
fn places(layout: &Layout, rank: u32, name: &str) -> BTreeMap<Vec<u64>, u64> {
    let memories = memories_of(layout, Rank(rank));
    let own = memories.places.into_iter().filter(|((t, _), _)| t == name);
    own.map(|((_, at), places)| {
        let [(_, byte)] = &places.into_iter().collect::<Vec<_>>()[..] else {
            panic!("an element lies in one place");
        };
        (at, byte / 4)
    })
    .collect()
}

/// A device mesh: sizes of its dimensions, and a tensor's shards in the order
/// in which they were taken: (tensor dimension, mesh dimension).
struct Case {
    sizes: Vec<u64>,
    shape: Vec<u64>,
    taken: Vec<(usize, usize)>,
}

impl Case {
    fn random(d: &mut Dice) -> Case {
        let sizes: Vec<u64> = (0..d.roll(1, 3)).map(|_| d.roll(1, 4)).collect();
        let shape: Vec<u64> = (0..d.roll(1, 3)).map(|_| d.roll(1, 13)).collect();
        let mut axes: Vec<usize> = (0..sizes.len()).collect();
        d.shuffle(&mut axes);
        axes.retain(|_| d.chance(75));
        let dim = |d: &mut Dice| d.roll(0, shape.len() as u64 - 1) as usize;
        let taken = axes.iter().map(|&a| (dim(d), a)).collect();
        Case {
            sizes,
            shape,
            taken,
        }
    }

    fn coords(&self, rank: u64) -> Vec<u64> {
        let mut rest = rank;
        let mut c: Vec<u64> = self
            .sizes
            .iter()
            .rev()
            .map(|n| {
                let at = rest % n;
                rest /= n;
                at
            })
            .collect();
        c.reverse();
        c
    }

    fn ranks(&self) -> u64 {
        self.sizes.iter().product()
    }

    /// What a rank holds of each dimension: shard after shard, as taken.
    fn held(&self, rank: u64) -> Vec<Vec<u64>> {
        let mut held: Vec<Vec<u64>> = self.shape.iter().map(|&n| (0..n).collect()).collect();
        for &(dim, axis) in &self.taken {
            held[dim] = chunk(&held[dim], self.sizes[axis], self.coords(rank)[axis]);
        }
        held
    }

    /// Split factor by mesh dimension: how many shards on its right were taken
    /// before it; `None` where it shards nothing.
    fn factors(&self) -> Vec<Option<(usize, u64)>> {
        let mut out = vec![None; self.sizes.len()];
        for (i, &(dim, axis)) in self.taken.iter().enumerate() {
            let before = self.taken[..i].iter();
            let right = before.filter(|(d, a)| *d == dim && *a > axis);
            out[axis] = Some((dim, right.map(|(_, a)| self.sizes[*a]).product()));
        }
        out
    }

    fn placements(&self) -> Vec<String> {
        let spell = |f: &Option<(usize, u64)>| match f {
            None => "Replicate()".into(),
            Some((dim, 1)) => format!("Shard(dim={dim})"),
            Some((dim, n)) => format!("_StridedShard(dim={dim}, sf={n})"),
        };
        self.factors().iter().map(spell).collect()
    }

    /// What PyTorch makes of the placements, from left to right.
    fn left_to_right(&self, rank: u64) -> Vec<Vec<u64>> {
        let mut held: Vec<Vec<u64>> = self.shape.iter().map(|&n| (0..n).collect()).collect();
        for (axis, f) in self.factors().into_iter().enumerate() {
            if let Some((dim, factor)) = f {
                let (n, k) = (self.sizes[axis], self.coords(rank)[axis]);
                held[dim] = strided(&held[dim], factor, n, k);
            }
        }
        held
    }

    fn is_even(&self) -> bool {
        let shards = |dim| self.taken.iter().filter(move |(d, _)| *d == dim);
        let count = |dim| shards(dim).map(|(_, a)| self.sizes[*a]).product::<u64>();
        self.shape
            .iter()
            .enumerate()
            .all(|(d, &n)| n % count(d) == 0)
    }
}

/// Ranks as `tolist` gives them.
fn nested(sizes: &[u64], ranks: &[u32]) -> String {
    let Some((&n, inner)) = sizes.split_first() else {
        return ranks[0].to_string();
    };
    let rows = ranks.chunks(ranks.len() / n as usize);
    let rows: Vec<String> = rows.map(|r| nested(inner, r)).collect();
    format!("[{}]", rows.join(", "))
}

fn names(n: usize) -> String {
    let all: Vec<String> = (0..n).map(|i| format!("\"d{i}\"")).collect();
    all.join(", ")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_dtensor_is_cut_as_its_shards_were_taken(seed: u64) {
        let d = &mut Dice(seed);
        let case = Case::random(d);
        let mut ranks: Vec<u32> = (0..case.ranks() as u32).map(|r| 10 + 3 * r).collect();
        if d.chance(50) {
            d.shuffle(&mut ranks);
        }
        let file = format!(
            r#"{{"weightsync_dtensor": 1,
                "meshes": {{"m": {{"names": [{}], "ranks": {}}}}},
                "tensors": [{{"name": "w", "shape": {:?}, "dtype": "torch.float32",
                             "placements": {:?}}}]}}"#,
            names(case.sizes.len()), nested(&case.sizes, &ranks), case.shape, case.placements(),
        );
        let layout = Layout::from_dtensor(file.as_bytes()).unwrap();
        for (position, &rank) in ranks.iter().enumerate() {
            let want = row_major(&case.held(position as u64));
            prop_assert_eq!(places(&layout, rank, "w"), want, "rank {} {}", rank, file);
            if case.is_even() {
                prop_assert_eq!(case.held(position as u64), case.left_to_right(position as u64));
            }
        }
        // View by view it is the same.
        let views = layout.to_views().unwrap();
        for &rank in &ranks {
            prop_assert_eq!(memories_of(&views, Rank(rank)).places, memories_of(&layout, Rank(rank)).places);
        }
    }

    #[test]
    fn a_flat_parameter_is_a_chunk_of_everything(seed: u64) {
        let d = &mut Dice(seed);
        let (outer, n) = (d.roll(1, 2), d.roll(1, 5));
        let padded = d.chance(50);
        let mut flat: Vec<Option<(usize, Vec<u64>)>> = Vec::new();
        let mut spelled = Vec::new();
        for i in 0..d.roll(1, 4) as usize {
            let shape: Vec<u64> = (0..d.roll(1, 3)).map(|_| d.roll(1, 5)).collect();
            let gap = if padded { d.roll(0, 3) } else { 0 };
            flat.extend((0..gap).map(|_| None));
            let offset = if padded { format!(", \"offset\": {}", flat.len()) } else { String::new() };
            spelled.push(format!("{{\"name\": \"p{i}\", \"shape\": {shape:?}{offset}}}"));
            flat.extend(tuples(&shape).into_iter().map(|t| Some((i, t))));
        }
        let elements = if padded {
            flat.extend((0..d.roll(0, 3)).map(|_| None));
            format!(", \"elements\": {}", flat.len())
        } else {
            String::new()
        };
        let file = format!(
            r#"{{"weightsync_dtensor": 1,
                "meshes": {{"m": {{"names": ["replicate", "shard"], "shape": [{outer}, {n}], "first": 5}}}},
                "tensors": [{{"name": "norm", "shape": [3], "dtype": "f32", "placements": ["R", "R"]}}],
                "flat": [{{"name": "_flat_param", "dtype": "float32", "over": "shard"{elements},
                          "parameters": [{}]}}]}}"#,
            spelled.join(", ")
        );
        let layout = Layout::from_dtensor(file.as_bytes()).unwrap();
        let indices: Vec<u64> = (0..flat.len() as u64).collect();
        for position in 0..outer * n {
            let held = chunk(&indices, n, position % n);
            let want: BTreeSet<(String, Vec<u64>, u64)> = held
                .iter()
                .zip(0..)
                .filter_map(|(&i, local)| {
                    let (p, at) = flat[i as usize].clone()?;
                    Some((format!("p{p}"), at, 4 * local))
                })
                .collect();
            let got: BTreeSet<(String, Vec<u64>, u64)> = memories_of(&layout, Rank(5 + position as u32))
                .places
                .into_iter()
                .filter(|((name, _), _)| name != "norm")
                .flat_map(|((name, at), places)| {
                    places.into_iter().map(move |(buffer, byte)| {
                        assert_eq!(buffer, "_flat_param");
                        (name.clone(), at.clone(), byte)
                    })
                })
                .collect();
            prop_assert_eq!(got, want, "position {} {}", position, file);
        }
    }

    #[test]
    fn stored_tensors_are_told_in_canonical_ones(seed: u64) {
        let d = &mut Dice(seed);
        let (groups, rows, columns) = (d.roll(1, 4), d.roll(1, 4), d.roll(1, 5));
        let experts = d.roll(1, 3);
        let n = d.roll(1, 6);
        let axis = d.roll(0, 1);
        // What is stored, as PyTorch holds it: a projection, and one tensor per expert.
        let tensor = |name: &str| format!(
            r#"{{"name": "{name}", "shape": [{}, {columns}], "dtype": "f32", "placements": ["S({axis})"]}}"#,
            groups * rows,
        );
        let mut stored = vec![tensor("q.weight")];
        stored.extend((0..experts).map(|e| tensor(&format!("experts.{e}.weight"))));
        let held = Layout::from_dtensor(format!(
            r#"{{"weightsync_dtensor": 1, "meshes": {{"m": {{"names": ["dp"], "shape": [{n}]}}}},
                "tensors": [{}]}}"#,
            stored.join(", "),
        ).as_bytes()).unwrap();
        // What it is: heads, and all experts in one tensor.
        let model = Layout::from_json(format!(
            r#"{{"weightsync_layout": 1, "ranks": {{"first": 0, "count": 1}}, "tensors": [
                {{"name": "q", "shape": [{groups}, {rows}, {columns}], "dtype": "f32", "buffer": "q.weight"}},
                {{"name": "e", "shape": [{experts}, {}, {columns}], "dtype": "f32", "split": 0,
                  "buffer": "experts.{{global}}.weight"}}]}}"#,
            groups * rows,
        ).as_bytes()).unwrap();
        let told = held.recast(&model).unwrap();
        for rank in 0..n as u32 {
            let mut want = BTreeMap::new();
            for ((name, at), places) in memories_of(&held, Rank(rank)).places {
                let (row, column) = (at[0], at[1]);
                let key = match name.strip_prefix("experts.") {
                    None => ("q".to_string(), vec![row / rows, row % rows, column]),
                    Some(rest) => {
                        let e = rest.strip_suffix(".weight").unwrap().parse().unwrap();
                        ("e".to_string(), vec![e, row, column])
                    }
                };
                want.insert(key, places);
            }
            prop_assert_eq!(memories_of(&told, Rank(rank)).places, want, "rank {}", rank);
        }
    }
}

#[test]
fn meshes_over_the_same_ranks_may_order_them_their_own_way() {
    let file = r#"{"weightsync_dtensor": 1,
        "meshes": {
            "dense": {"names": ["dp", "tp"], "ranks": [[0, 1], [2, 3]]},
            "turned": {"names": ["tp", "dp"], "ranks": [[0, 2], [1, 3]]},
            "flat": {"names": ["all"], "shape": [4]},
            "elsewhere": {"names": ["dp"], "shape": [2], "first": 4}},
        "tensors": [
            {"name": "a", "shape": [4], "dtype": "f32", "mesh": "dense", "placements": ["R", "S(0)"]},
            {"name": "b", "shape": [4], "dtype": "f32", "mesh": "turned", "placements": ["S(0)", "R"]},
            {"name": "c", "shape": [4], "dtype": "f32", "mesh": "flat", "placements": ["S(0)"]},
            {"name": "d", "shape": [4], "dtype": "f32", "mesh": "elsewhere", "placements": ["S(0)"]}]}"#;
    let layout = Layout::from_dtensor(file.as_bytes()).unwrap();
    for rank in 0..4 {
        assert_eq!(places(&layout, rank, "a"), places(&layout, rank, "b"));
        assert_eq!(
            places(&layout, rank, "c").into_keys().collect::<Vec<_>>(),
            [[u64::from(rank)]]
        );
        assert!(places(&layout, rank, "d").is_empty());
    }
    assert_eq!(
        places(&layout, 5, "d").into_keys().collect::<Vec<_>>(),
        [[2], [3]]
    );
    assert_eq!(layout.parts().len(), 2);
}

/// The file that the guide to vLLM shows: rows first cut in two over `dp` as
/// FSDP does, after each half was cut over `tp`; a flat parameter over `dp`.
#[test]
fn two_dimensions_shard_one_tensor() {
    let layout = Layout::from_dtensor(include_bytes!("torch/sharded.json")).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight";
    let rows = |rank| -> BTreeSet<u64> {
        places(&layout, rank, name)
            .into_keys()
            .map(|at| at[0])
            .collect()
    };
    // Ranks are [[0, 1], [2, 3]]: tp takes halves, dp halves of those.
    assert_eq!(rows(0), (0..16).collect());
    assert_eq!(rows(1), (32..48).collect());
    assert_eq!(rows(2), (16..32).collect());
    assert_eq!(rows(3), (48..64).collect());
    let norm = |rank| -> Vec<_> {
        places(&layout, rank, "model.norm.weight")
            .into_keys()
            .collect()
    };
    assert_eq!(norm(1), (0..8).map(|i| vec![i]).collect::<Vec<_>>());
    assert_eq!(norm(2), (8..16).map(|i| vec![i]).collect::<Vec<_>>());
}

#[test]
fn mistakes_are_named() {
    let of = |meshes: &str, rest: &str| {
        let file = format!(r#"{{"weightsync_dtensor": 1, "meshes": {{{meshes}}}, {rest}}}"#);
        Layout::from_dtensor(file.as_bytes()).unwrap_err().message
    };
    let one = r#""m": {"names": ["dp"], "shape": [2]}"#;
    let tensor = |placements: &str| {
        format!(
            r#""tensors": [{{"name": "w", "shape": [4], "dtype": "f32", "placements": {placements}}}]"#
        )
    };
    let cases = [
        (of(one, &tensor(r#"["Partial(sum)"]"#)), "not reduced yet"),
        (
            of(one, &tensor(r#"["S(0)", "R"]"#)),
            "2 placements for the 1 dimensions",
        ),
        (
            of(one, &tensor(r#"["S(1)"]"#)),
            "sharded along dimension 1 and has 1",
        ),
        (of(one, &tensor(r#"["_S(0, 2)"]"#)), "split factor 2"),
        (of(one, r#""tensor": []"#), "unknown field `tensor`"),
        (
            of(r#""m": {"names": ["dp"]}"#, &tensor(r#"["R"]"#)),
            "either \"ranks\"",
        ),
        (
            of(
                r#""m": {"names": ["a"], "ranks": [0, 0]}"#,
                &tensor(r#"["R"]"#),
            ),
            "a rank twice",
        ),
        (
            of(
                r#""m": {"names": ["a", "b"], "ranks": [[0, 1], [2]]}"#,
                &tensor(r#"["R", "R"]"#),
            ),
            "different lengths",
        ),
        (
            of(
                r#""m": {"names": ["a"], "ranks": [0, 1]}, "n": {"names": ["a"], "ranks": [1, 2]}"#,
                r#""tensors": []"#,
            ),
            "some of its ranks, and not all",
        ),
        (
            of(
                r#""m": {"names": ["a"], "ranks": [0, 1, 2]}, "n": {"names": ["a"], "ranks": [0, 2, 1]}"#,
                r#""tensors": []"#,
            ),
            "orders its ranks unlike",
        ),
        (
            of(
                one,
                r#""flat": [{"name": "f", "dtype": "f32", "elements": 2, "parameters": [{"name": "p", "shape": [3]}]}]"#,
            ),
            "has 2 elements, but its parameters end at 3",
        ),
    ];
    for (got, want) in cases {
        assert!(got.contains(want), "{want}: {got}");
    }
}
