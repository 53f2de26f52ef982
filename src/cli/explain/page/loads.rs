//! Bars of bytes: by rank, and by step.

use super::svg::Svg;
use super::{WIDTH, part_class};
use crate::table::bytes;
use weightsync::plan::traffic::{RankLoad, StepLoad};

const LEFT: f64 = 84.0;
const TOP: f64 = 14.0;
const TALL: f64 = 120.0;
/// More ranks or steps share a bar.
const BAR_COUNT_MAX: usize = 128;

/// Bytes per rank, with the mean of those that move any as a line.
pub fn of_ranks(ranks: &[RankLoad], of: impl Fn(&RankLoad) -> u64, verb: &str) -> String {
    let busy: Vec<&RankLoad> = ranks.iter().filter(|r| of(r) > 0).collect();
    if busy.is_empty() {
        return format!("<p class=\"quiet\">no rank {verb} anything</p>");
    }
    let size = busy.len().div_ceil(BAR_COUNT_MAX);
    let bars: Vec<Bar> = busy
        .chunks(size)
        .map(|group| Bar::of(group, &of, verb))
        .collect();
    let total: u128 = busy.iter().map(|r| u128::from(of(r))).sum();
    let mean = (total / busy.len() as u128) as u64;
    draw(&bars, Some(mean), verb)
}

/// Bytes per step, one colour a stage.
pub fn of_steps(steps: &[StepLoad]) -> String {
    let size = steps.len().div_ceil(BAR_COUNT_MAX).max(1);
    let bars: Vec<Bar> = steps.chunks(size).map(Bar::of_steps).collect();
    draw(&bars, None, "bytes by step")
}

/// The colours of stages, if there is more than one.
pub fn stages(steps: &[StepLoad]) -> String {
    let count = steps.iter().map(|s| s.stage_bytes.len()).max().unwrap_or(0);
    if count < 2 {
        return String::new();
    }
    let mut svg = Svg::new(420.0, 22.0, "stages");
    for stage in 0..count {
        let x = 110.0 * stage as f64;
        let says = match stage {
            0 => "first hop".to_string(),
            n => format!("forward {n}"),
        };
        svg.rect(&part_class(stage), (x, 4.0, 14.0, 14.0), &says);
        svg.text("start", x + 20.0, 15.0, &says);
    }
    svg.finish()
}

/// One bar: parts from the bottom up, and what it says.
struct Bar {
    parts: Vec<u64>,
    label: String,
    says: String,
}

impl Bar {
    /// The most loaded rank of a group stands for it.
    fn of(group: &[&RankLoad], of: &impl Fn(&RankLoad) -> u64, verb: &str) -> Bar {
        let most = group
            .iter()
            .copied()
            .max_by_key(|r| of(r))
            .map_or((0, 0), |r| (r.rank, of(r)));
        Bar {
            parts: vec![most.1],
            label: group[0].rank.to_string(),
            says: format!("rank {} {verb} {}", most.0, bytes(most.1)),
        }
    }

    fn of_steps(group: &[StepLoad]) -> Bar {
        let stages = group.iter().map(|s| s.stage_bytes.len()).max().unwrap_or(0);
        let of = |stage: usize| group.iter().filter_map(|s| s.stage_bytes.get(stage)).sum();
        let parts: Vec<u64> = (0..stages).map(of).collect();
        let messages: u64 = group.iter().map(|s| s.messages).sum();
        let (first, last) = (group[0].step, group[group.len() - 1].step);
        let sent = format!("{} in {messages} messages", bytes(parts.iter().sum()));
        Bar {
            label: first.to_string(),
            says: match first == last {
                true => format!("step {first}: {sent}"),
                false => format!("steps {first} to {last}: {sent}"),
            },
            parts,
        }
    }

    fn total(&self) -> u64 {
        self.parts.iter().sum()
    }
}

fn draw(bars: &[Bar], mean: Option<u64>, name: &str) -> String {
    let most = bars.iter().map(Bar::total).max().unwrap_or(0).max(1);
    let pitch = ((WIDTH - LEFT) / bars.len().max(1) as f64).min(60.0);
    let gap = (pitch * 0.15).min(6.0);
    let high = |amount: u64| TALL * amount as f64 / most as f64;
    let mut svg = Svg::new(WIDTH, TOP + TALL + 26.0, name);
    svg.text("end", LEFT - 8.0, TOP + 8.0, &bytes(most));
    svg.text("end", LEFT - 8.0, TOP + TALL, "0");
    for (i, bar) in bars.iter().enumerate() {
        let (x, mut y) = (LEFT + pitch * i as f64, TOP + TALL);
        for (stage, &part) in bar.parts.iter().enumerate() {
            y -= high(part);
            svg.rect(
                &part_class(stage),
                (x, y, pitch - gap, high(part)),
                &bar.says,
            );
        }
    }
    let every = (40.0 / pitch).ceil().max(1.0) as usize;
    for (i, bar) in bars.iter().enumerate().step_by(every) {
        let x = LEFT + pitch * i as f64 + (pitch - gap) / 2.0;
        svg.text("middle", x, TOP + TALL + 18.0, &bar.label);
    }
    if let Some(mean) = mean {
        let (y, end) = (TOP + TALL - high(mean), LEFT + pitch * bars.len() as f64);
        let says = format!("on average {}", bytes(mean));
        svg.line("limit", (LEFT, y), (end, y), &says);
    }
    svg.finish()
}
