//! The load of every link beside the time that no plan beats.

use super::svg::{Svg, escape};
use super::{WIDTH, table};
use crate::table::{bytes, grouped, time};
use std::collections::BTreeMap;
use weightsync::sim::{Certificate, LinkKind, LinkLoad};

const LEFT: f64 = 150.0;
const TOP: f64 = 18.0;
/// Height of a kind's bars, and from one kind to the next.
const TALL: f64 = 46.0;
const PITCH: f64 = 62.0;
/// More links of a kind share a bar.
const BAR_COUNT_MAX: usize = 128;

/// Links that work this part of the bound hold a plan up.
const BUSY_PERCENT: f64 = 95.0;

/// A row of bars a kind of link, busiest link first.
pub fn draw(loads: &[LinkLoad], bound_ns: u64) -> String {
    let mut kinds: BTreeMap<LinkKind, Vec<&LinkLoad>> = BTreeMap::new();
    for load in loads {
        kinds.entry(load.link.kind).or_default().push(load);
    }
    let bound_s = bound_ns as f64 / 1e9;
    let most = loads.iter().map(|l| l.time_s).fold(bound_s, f64::max);
    let high = |s: f64| if most > 0.0 { TALL * s / most } else { 0.0 };
    let height = TOP + PITCH * kinds.len() as f64;
    let mut svg = Svg::new(WIDTH, height, "links against the bound");
    for (row, (kind, mut links)) in kinds.into_iter().enumerate() {
        links.sort_by(|a, b| b.time_s.total_cmp(&a.time_s));
        let floor = TOP + PITCH * row as f64 + TALL;
        let total: u64 = links.iter().map(|l| l.bytes).sum();
        let count = match links.len() {
            1 => "1 link".to_string(),
            n => format!("{} links", grouped(n as u64)),
        };
        svg.text("strong", 0.0, floor - 26.0, kind.name());
        svg.text(
            "start",
            0.0,
            floor - 10.0,
            &format!("{count}, {}", bytes(total)),
        );
        bars(&mut svg, &links, floor, bound_s, &high);
        let y = floor - high(bound_s);
        let says = format!("no plan beats {}", time(bound_ns));
        svg.line("limit", (LEFT, y), (WIDTH, y), &says);
    }
    svg.text(
        "end limit-text",
        WIDTH,
        TOP - 6.0,
        &format!("bound {}", time(bound_ns)),
    );
    svg.finish()
}

/// The busiest link of each group stands for it.
fn bars(svg: &mut Svg, links: &[&LinkLoad], floor: f64, bound_s: f64, high: &impl Fn(f64) -> f64) {
    let size = links.len().div_ceil(BAR_COUNT_MAX).max(1);
    let groups: Vec<&[&LinkLoad]> = links.chunks(size).collect();
    let pitch = ((WIDTH - LEFT) / groups.len() as f64).min(60.0);
    svg.ground((LEFT, floor, WIDTH - LEFT, 1.0));
    for (i, group) in groups.iter().enumerate() {
        let top = group[0];
        let tall = high(top.time_s);
        let class = match 100.0 * top.time_s >= BUSY_PERCENT * bound_s {
            true => "busy",
            false => "idle",
        };
        let x = LEFT + pitch * i as f64;
        let gap = (pitch * 0.15).min(6.0);
        svg.rect(class, (x, floor - tall, pitch - gap, tall), &says(top));
    }
}

fn says(l: &LinkLoad) -> String {
    let alone = time((l.time_s * 1e9) as u64);
    format!("{}: {} in {alone} alone", l.link, bytes(l.bytes))
}

/// The busiest links by name.
pub fn busiest(c: &Certificate) -> String {
    let end = c.predicted_s.max(c.lower_bound_s);
    let part = |s: f64| if end > 0.0 { 100.0 * s / end } else { 0.0 };
    let rows = c.links_busiest.iter().map(|l| {
        let cells = [
            escape(&l.link.to_string()),
            bytes(l.bytes),
            time((l.time_s * 1e9) as u64),
        ];
        (cells, part(l.time_s))
    });
    table::draw(rows, Some(part(c.lower_bound_s)))
}
