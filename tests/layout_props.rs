//! Random layouts against the reference in `layout_support`.

mod layout_support;

use layout_support::{
    Dice, axis_held, explicit, explicit_rank, lay_out, memories_of, random_layout, random_part,
    shuffled, tuples,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use weightsync::Rank;
use weightsync::layout::check::{Finding, FindingKind, check, check_pair};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::mesh::Mesh;
use weightsync::layout::placement::Rule;
use weightsync::layout::tensor::{IndexBox, Span, Tensor, TensorIndex};
use weightsync::layout::view::{Memory, NamedBuffer, RankViews, View};
use weightsync::layout::{Layout, LayoutSpec};

/// Ranks that hold index `x` of an axis, by looking at all.
fn holders_of(rule: &Rule, mesh: &Mesh, dim: usize, size: u64, x: u64) -> Vec<u32> {
    let holds = |p: &u32| {
        axis_held(rule, mesh, &mesh.coords(*p), dim, size)
            .0
            .contains(&x)
    };
    (0..mesh.size() as u32).filter(holds).collect()
}

/// Two parts may store a tensor in two dtypes, which a source may not.
fn is_mixed(f: &Finding) -> bool {
    f.message.contains("store a tensor alike")
}

/// Random sides may be mixed, may pad differently, which is no error, and may
/// call copies what holds only some of a tensor.
fn is_expected(f: &Finding) -> bool {
    is_mixed(f) || !f.kind.is_error() || f.kind == FindingKind::CopyIncomplete
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_element_lies_where_the_reference_puts_it(seed: u64) {
        let layout = random_layout(&mut Dice(seed));
        for part in layout.parts() {
            for position in 0..part.ranks.count() {
                let rank = part.ranks.rank(position);
                let want = lay_out(part, layout.tensors(), position);
                prop_assert_eq!(memories_of(&layout, rank), want, "rank {}", rank);
            }
        }
    }

    #[test]
    fn holders_are_the_ranks_that_hold(seed: u64) {
        let layout = random_layout(&mut Dice(seed));
        for (number, part) in layout.parts().iter().enumerate() {
            for p in &part.placements {
                let rule = part.rule(p);
                let mesh = part.mesh(rule);
                let shape = &layout.tensors()[p.tensor.index()].shape;
                for tuple in tuples(shape) {
                    let slice = rule.holders(number as u16, mesh, p.stage, shape, |d| tuple[d]);
                    let got: Vec<u32> = (0..slice.len()).map(|i| slice.nth(mesh, i)).collect();
                    let holds = |position: &u32| {
                        let c = mesh.coords(*position);
                        let on_stage = rule.stage_axis.is_none_or(|a| Some(c[a as usize]) == p.stage);
                        let has = |d: usize, x: u64| axis_held(rule, mesh, &c, d, shape[d]).0.contains(&x);
                        on_stage && tuple.iter().enumerate().all(|(d, &x)| has(d, x))
                    };
                    let want: Vec<u32> = (0..part.ranks.count()).filter(holds).collect();
                    prop_assert_eq!(got, want);
                }
            }
        }
    }

    #[test]
    fn bounds_are_where_slabs_end(seed: u64) {
        let d = &mut Dice(seed);
        let layout = random_layout(d);
        for part in layout.parts() {
            for p in &part.placements {
                let rule = part.rule(p);
                let mesh = part.mesh(rule);
                for (dim, &size) in layout.tensors()[p.tensor.index()].shape.iter().enumerate() {
                    let lo = d.roll(0, size);
                    let range = Span::new(lo, d.roll(lo, size));
                    let mut got = Default::default();
                    rule.bounds_within(mesh, dim, size, range, &mut got);
                    let slab = |x: u64| rule.span_at(mesh, dim, size, x);
                    let is_bound = |x: &u64| slab(*x - 1) != slab(*x);
                    let want: Vec<u64> = (range.lo + 1..range.hi).filter(is_bound).collect();
                    prop_assert_eq!(got.to_vec(), want, "{:?} {}", rule, range);
                    for x in 0..size {
                        let s = slab(x);
                        prop_assert!(s.lo <= x && x < s.hi);
                        // No bound inside a slab, so its ends have the same holders.
                        let held = |x| holders_of(rule, mesh, dim, size, x);
                        prop_assert_eq!(held(s.lo), held(x));
                    }
                }
            }
        }
    }

    #[test]
    fn order_of_description_does_not_matter(seed: u64) {
        let d = &mut Dice(seed);
        let layout = random_layout(d);
        let other = Layout::new(shuffled(d, layout.spec())).unwrap();
        prop_assert_eq!(layout.spec(), other.spec());
        prop_assert_eq!(layout.to_bytes(), other.to_bytes());
        let ranks: Vec<Layout> = layout.ranks().iter().map(|&r| explicit_rank(&layout, r)).collect();
        let mut refs: Vec<&Layout> = ranks.iter().collect();
        let merged = Layout::merge(&refs).unwrap();
        d.shuffle(&mut refs);
        let other = Layout::merge(&refs).unwrap();
        prop_assert_eq!(other.spec(), merged.spec());
        let again = Layout::new(shuffled(d, merged.spec())).unwrap();
        prop_assert_eq!(again.spec(), merged.spec());
        for r in layout.ranks() {
            prop_assert_eq!(memories_of(&merged, r), memories_of(&layout, r));
        }
    }

    #[test]
    fn files_and_blobs_give_back_what_was_written(seed: u64) {
        let layout = random_layout(&mut Dice(seed));
        let some = layout.restrict(|name| ["t1", "t2", "t4"].contains(&name)).unwrap();
        for l in [&layout, &explicit(&layout), &some] {
            let text = l.to_json();
            let read = Layout::from_json(text.as_bytes()).unwrap();
            prop_assert_eq!(read.spec(), l.spec(), "{}", text);
            let read = Layout::from_bytes(&l.to_bytes()).unwrap();
            prop_assert_eq!(read.spec(), l.spec());
        }
    }

    #[test]
    fn a_restricted_layout_moves_nothing(seed: u64) {
        let d = &mut Dice(seed);
        let layout = random_layout(d);
        let keep: Vec<bool> = layout.tensors().iter().map(|_| d.chance(50)).collect();
        let kept = |name: &str| keep[layout.find_tensor(name).unwrap().index()];
        let some = layout.restrict(kept).unwrap();
        prop_assert_eq!(some.ranks(), layout.ranks());
        for r in layout.ranks() {
            prop_assert_eq!(some.copy_of(r), layout.copy_of(r));
            let mut want = memories_of(&layout, r);
            want.places.retain(|(name, _), _| kept(name));
            let used: BTreeSet<&String> = want.places.values().flatten().map(|(b, _)| b).collect();
            want.sizes.retain(|name, _| used.contains(name));
            prop_assert_eq!(memories_of(&some, r), want);
        }
        let twice = layout.restrict(|_| true).unwrap().restrict(kept).unwrap();
        prop_assert_eq!(twice.spec(), some.spec());
    }

    #[test]
    fn two_layouts_of_the_same_tensors_fit(a: u64, b: u64) {
        let source = random_layout(&mut Dice(a));
        let mut spec = LayoutSpec { tensors: source.tensors().to_vec(), ..LayoutSpec::default() };
        spec.parts.push(random_part(&mut Dice(b), 3, 6, &spec.tensors));
        let destination = Layout::new(spec).unwrap();
        let bytes: u64 = source.tensors().iter().map(|t| t.bytes()).sum();
        for s in [&source, &explicit(&source)] {
            for t in [&destination, &explicit(&destination)] {
                let report = check_pair(s, t);
                prop_assert!(report.findings.iter().all(is_expected), "{:#?}", report.findings);
                prop_assert_eq!(report.source.matched_bytes, bytes);
                prop_assert_eq!(report.destination.matched_bytes, bytes);
            }
        }
    }

    #[test]
    fn what_is_needed_and_not_held_is_counted_to_the_byte(seed: u64) {
        let d = &mut Dice(seed);
        let whole = random_layout(d);
        let ranks: Vec<Layout> = whole.ranks().iter().map(|&r| explicit_rank(&whole, r)).collect();
        let some: Vec<&Layout> = ranks.iter().filter(|_| d.chance(60)).collect();
        prop_assume!(!some.is_empty());
        let source = Layout::merge(&some).unwrap();
        let mut held = BTreeSet::new();
        for r in source.ranks() {
            held.extend(memories_of(&source, r).places.into_keys());
        }
        let held = 2 * held.len() as u64;
        let all: u64 = whole.tensors().iter().map(|t| t.bytes()).sum();
        let report = check_pair(&source, &whole);
        prop_assert_eq!(report.destination.matched_bytes, held);
        prop_assert_eq!(report.destination.bytes, all);
        let missing = report.findings.iter().filter(|f| !is_mixed(f)).map(|f| f.bytes);
        prop_assert_eq!(missing.sum::<u64>(), all - held, "{:#?}", report.findings);
    }

    #[test]
    fn damaged_files_and_blobs_are_errors(seed: u64, at: prop::sample::Index, bit in 0..8u8) {
        let layout = random_layout(&mut Dice(seed));
        let mut blob = layout.to_bytes();
        let cut = at.index(blob.len());
        prop_assert!(Layout::from_bytes(&blob[..cut]).is_err());
        blob[cut] ^= 1 << bit;
        prop_assert!(Layout::from_bytes(&blob).is_err());
        let mut text = layout.to_json().into_bytes();
        let cut = at.index(text.len() - 1);
        prop_assert!(Layout::from_json(&text[..cut]).is_err());
        // A flipped bit in a file may leave another good file, or none: no panic.
        text[cut] ^= 1 << bit;
        let _ = Layout::from_json(&text);
    }
}

/// Random views against a map of bytes.
#[test]
fn overlaps_are_found_exactly() {
    for seed in 0..3000 {
        let d = &mut Dice(seed);
        let tensors: Vec<Tensor> = (0..d.roll(2, 4))
            .map(|i| {
                Tensor::new(format!("t{i}"), &[d.roll(1, 4), d.roll(1, 4)], Dtype::U8).unwrap()
            })
            .collect();
        let views: Vec<View> = tensors
            .iter()
            .zip(0..)
            .map(|(t, i)| View {
                tensor: TensorIndex(i),
                bounds: IndexBox::whole(&t.shape),
                buffer: 0,
                offset: 40 + d.roll(0, 30),
                strides: (0..2).map(|_| d.roll(0, 16) as i64 - 8).collect(),
                dtype: Dtype::U8,
                conversion: None,
            })
            .collect();
        let mut bytes: BTreeMap<i64, BTreeSet<usize>> = BTreeMap::new();
        for (i, v) in views.iter().enumerate() {
            for t in tuples(&tensors[i].shape) {
                let at = v.offset as i64 + t[0] as i64 * v.strides[0] + t[1] as i64 * v.strides[1];
                bytes.entry(at).or_default().insert(i);
            }
        }
        let is_apart = bytes.values().all(|v| v.len() == 1);
        let is_inside = bytes.keys().all(|&at| (0..100).contains(&at));
        let buffer = NamedBuffer {
            name: "w".into(),
            bytes: 100,
            memory: Memory::Host,
        };
        let rank = RankViews {
            rank: Rank(5),
            copy: 0,
            buffers: vec![buffer],
            views,
        };
        let spec = LayoutSpec {
            tensors,
            explicit: vec![rank],
            ..LayoutSpec::default()
        };
        let report = check(&spec);
        assert_eq!(
            report.is_ok(),
            is_inside && is_apart,
            "seed {seed}: {:#?}",
            report.findings
        );
    }
}
