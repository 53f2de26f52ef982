//! When each rank or host is in each step.

use super::WIDTH;
use super::svg::Svg;
use crate::table::time;
use std::collections::BTreeMap;
use weightsync::plan::blocks::{Blocks, Unit};
use weightsync::plan::topology::Topology;
use weightsync::sim::{StepTime, Timeline};

const LEFT: f64 = 104.0;
const TOP: f64 = 22.0;
/// Ranks that have a row each; of more, their hosts.
const RANK_COUNT_MAX: usize = 32;
/// More hosts share a row, more steps a bar.
const ROW_COUNT_MAX: usize = 32;
const BAR_COUNT_MAX: u32 = 64;
/// Steps of a rank that may be on the wire at a time, each in a lane.
const LANE_COUNT: u32 = 2;
/// Colours that tell steps apart, `step0` to `step3`: two a lane.
const COLOUR_COUNT: u32 = 4;
/// Bars that have room for the number of their step.
const LABELLED_WIDTH: f64 = 40.0;
/// From one row to the next, and what of it is bars.
const PITCH: f64 = 24.0;
const TALL: f64 = 20.0;

/// Rows of ranks or hosts, with their steps from left to right.
pub struct Picture {
    rows: Blocks,
    /// By row and group of steps.
    bars: Vec<BTreeMap<u32, StepTime>>,
    /// Steps of a bar.
    group: u32,
    total_ns: u64,
    bound_ns: u64,
}

impl Picture {
    pub fn of(t: &Timeline, topology: &Topology, bound_ns: u64) -> Picture {
        let unit = Unit::of(t.ranks.len(), RANK_COUNT_MAX);
        let numbers = t.ranks.iter().map(|r| unit.number(topology, r.rank));
        let rows = Blocks::of(unit, numbers, ROW_COUNT_MAX);
        let steps = t.ranks.iter().flat_map(|r| &r.steps);
        let count = steps.map(|s| s.step + 1).max().unwrap_or(0);
        let group = count.div_ceil(BAR_COUNT_MAX).max(1);
        let mut bars: Vec<BTreeMap<u32, StepTime>> = vec![BTreeMap::new(); rows.len()];
        for rank in &t.ranks {
            let row = &mut bars[rows.find(unit.number(topology, rank.rank))];
            for &step in &rank.steps {
                let bar = row.entry(step.step / group).or_insert(step);
                *bar = bar.with(step);
            }
        }
        Picture {
            rows,
            bars,
            group,
            total_ns: t.total_ns,
            bound_ns,
        }
    }

    pub fn draw(&self) -> String {
        let tall = PITCH * self.rows.len() as f64;
        let mut svg = Svg::new(WIDTH, TOP + tall + 10.0, "timeline");
        self.axis(&mut svg, TOP + tall);
        for (row, bars) in self.bars.iter().enumerate() {
            let y = TOP + PITCH * row as f64 + (PITCH - TALL) / 2.0;
            svg.text(
                "end",
                LEFT - 8.0,
                y + TALL / 2.0 + 4.0,
                &self.rows.name(row),
            );
            for (&group, bar) in bars {
                self.bar(&mut svg, y, row, group, bar);
            }
        }
        let x = self.at(self.bound_ns);
        let says = format!("no plan beats {}", time(self.bound_ns));
        svg.line("limit", (x, TOP - 4.0), (x, TOP + tall), &says);
        svg.finish()
    }

    /// What rows and bars are, in words.
    pub fn caption(&self) -> String {
        let unit = self.rows.unit.name();
        let shared = match self.rows.size() {
            1 => String::new(),
            n => format!(", up to {n} of them together,"),
        };
        let steps = match self.group {
            1 => "step".to_string(),
            n => format!("{n} steps"),
        };
        format!(
            "When {unit}s{shared} are in each {steps}, as simulated: strong while bytes are on the wire, \
             pale while they are packed, wait or are unpacked; one {steps} above, the next below. The \
             dashed line is the time that no plan beats."
        )
    }

    fn axis(&self, svg: &mut Svg, low: f64) {
        const TICKS: u64 = 8;
        for i in 0..=TICKS {
            let ns = self.end_ns() / TICKS * i;
            let x = self.at(ns);
            let class = if i == TICKS { "end" } else { "middle" };
            svg.line("tick", (x, TOP - 4.0), (x, low), "");
            svg.text(class, x, TOP - 10.0, &time(ns));
        }
    }

    fn bar(&self, svg: &mut Svg, y: f64, row: usize, group: u32, bar: &StepTime) {
        let lane = TALL / f64::from(LANE_COUNT);
        let y = y + lane * f64::from(group % LANE_COUNT);
        let says = self.says(row, group, bar);
        let class = format!("step{}", group % COLOUR_COUNT);
        let mut add = |class: &str, from: u64, to: u64| {
            let (x, end) = (self.at(from), self.at(to));
            svg.rect(class, (x, y, (end - x).max(0.5), lane - 1.0), &says);
        };
        add(&format!("{class} pale"), bar.start_ns, bar.end_ns);
        if bar.wire_start_ns < bar.wire_end_ns {
            add(&class, bar.wire_start_ns, bar.wire_end_ns);
        }
        let (x, end) = (self.at(bar.wire_start_ns), self.at(bar.wire_end_ns));
        if end - x >= LABELLED_WIDTH {
            let first = (group * self.group).to_string();
            svg.text("on", x + 4.0, y + lane - 3.0, &first);
        }
    }

    fn says(&self, row: usize, group: u32, bar: &StepTime) -> String {
        let (first, name) = (group * self.group, self.rows.name(row));
        let steps = match self.group {
            1 => format!("step {first}"),
            n => format!("steps {first} to {}", first + n - 1),
        };
        format!(
            "{name}, {steps}: {} to {}, on the wire {} to {}",
            time(bar.start_ns),
            time(bar.end_ns),
            time(bar.wire_start_ns),
            time(bar.wire_end_ns)
        )
    }

    fn end_ns(&self) -> u64 {
        self.total_ns.max(self.bound_ns).max(1)
    }

    fn at(&self, ns: u64) -> f64 {
        LEFT + (WIDTH - LEFT) * ns as f64 / self.end_ns() as f64
    }
}
