//! The charts of the page, as SVG.
//!
//! Every mark carries a `<title>`, so that a browser shows its numbers where
//! the pointer rests; nothing needs a script.

use crate::table::bytes;
use std::fmt::Write;
use weightsync::plan::traffic::{Matrix, RankLoad, StepLoad};

/// Light to dark, for amounts.
const RAMP: [&str; 7] = [
    "#dbeafe", "#bfdbfe", "#93c5fd", "#60a5fa", "#3b82f6", "#1d4ed8", "#172554",
];
/// One colour a stage.
const STAGES: [&str; 4] = ["#2563eb", "#f59e0b", "#10b981", "#a855f7"];
const MEAN: &str = "#dc2626";

const WIDTH: f64 = 1040.0;
const LEFT: f64 = 96.0;
const BAR_COUNT_MAX: usize = 512;

/// Who sends how much to whom.
pub fn matrix(m: &Matrix) -> String {
    let (rows, columns) = (m.rows.len(), m.columns.len());
    let cell = ((WIDTH - LEFT) / columns.max(1) as f64).min(680.0 / rows.max(1) as f64);
    let cell = cell.clamp(3.0, 44.0);
    let top = 28.0;
    let (width, height) = (
        LEFT + cell * columns as f64 + 8.0,
        top + cell * rows as f64 + 8.0,
    );
    let most = m.bytes.iter().copied().max().unwrap_or(0);
    let mut out = open(width, height, "traffic matrix");
    for (i, block) in ticks(&m.columns, cell, 34.0) {
        let x = LEFT + cell * (i as f64 + 0.5);
        text(&mut out, x, top - 8.0, "middle", &block);
    }
    for (i, block) in ticks(&m.rows, cell, 14.0) {
        let y = top + cell * (i as f64 + 0.5) + 4.0;
        text(&mut out, LEFT - 8.0, y, "end", &block);
    }
    let gap = if cell > 8.0 { 1.0 } else { 0.0 };
    let frame = (cell * columns as f64, cell * rows as f64);
    let _ = writeln!(
        out,
        r##"<rect x="{LEFT}" y="{top}" width="{:.1}" height="{:.1}" fill="#f1f5f9"/>"##,
        frame.0, frame.1
    );
    for r in 0..rows {
        for c in 0..columns {
            let amount = m.at(r, c);
            if amount == 0 {
                continue;
            }
            let (x, y) = (LEFT + cell * c as f64, top + cell * r as f64);
            let says = format!(
                "{} to {}: {}",
                name(m.rows[r]),
                name(m.columns[c]),
                bytes(amount)
            );
            rect(
                &mut out,
                (x, y, cell - gap, cell - gap),
                ramp(amount, most),
                &says,
            );
        }
    }
    close(out)
}

/// The colours of the matrix, with what they stand for.
pub fn legend(m: &Matrix) -> String {
    let most = m.bytes.iter().copied().max().unwrap_or(0);
    let mut out = open(420.0, 22.0, "legend");
    text(&mut out, 0.0, 15.0, "start", "0");
    for (i, color) in RAMP.iter().enumerate() {
        rect(
            &mut out,
            (14.0 + 28.0 * i as f64, 4.0, 28.0, 14.0),
            color,
            color,
        );
    }
    text(
        &mut out,
        20.0 + 28.0 * RAMP.len() as f64,
        15.0,
        "start",
        &bytes(most),
    );
    close(out)
}

/// Bytes per rank, with the mean of those that move any as a line.
pub fn loads(ranks: &[RankLoad], of: impl Fn(&RankLoad) -> u64, verb: &str) -> String {
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
    bar_chart(&bars, Some(mean), verb)
}

/// Bytes per step, one colour a stage.
pub fn steps(steps: &[StepLoad]) -> String {
    let size = steps.len().div_ceil(BAR_COUNT_MAX).max(1);
    let bars: Vec<Bar> = steps.chunks(size).map(Bar::of_steps).collect();
    bar_chart(&bars, None, "sends")
}

/// The colours of stages, if there is more than one.
pub fn stages(steps: &[StepLoad]) -> String {
    let count = steps.iter().map(|s| s.stage_bytes.len()).max().unwrap_or(0);
    if count < 2 {
        return String::new();
    }
    let mut out = open(420.0, 22.0, "stages");
    for stage in 0..count {
        let x = 110.0 * stage as f64;
        let says = match stage {
            0 => "first hop".to_string(),
            n => format!("forward {n}"),
        };
        rect(&mut out, (x, 4.0, 14.0, 14.0), color(stage), &says);
        text(&mut out, x + 20.0, 15.0, "start", &says);
    }
    close(out)
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
        let total = parts.iter().sum();
        Bar {
            label: first.to_string(),
            says: match first == last {
                true => format!("step {first}: {} in {messages} messages", bytes(total)),
                false => format!(
                    "steps {first} to {last}: {} in {messages} messages",
                    bytes(total)
                ),
            },
            parts,
        }
    }

    fn total(&self) -> u64 {
        self.parts.iter().sum()
    }
}

fn bar_chart(bars: &[Bar], mean: Option<u64>, what: &str) -> String {
    let (top, tall) = (14.0, 150.0);
    let most = bars.iter().map(Bar::total).max().unwrap_or(0).max(1);
    let pitch = ((WIDTH - LEFT) / bars.len().max(1) as f64).min(84.0);
    let gap = if pitch > 5.0 {
        (pitch * 0.12).clamp(1.5, 8.0)
    } else {
        0.0
    };
    let high = |amount: u64| tall * amount as f64 / most as f64;
    let mut out = open(WIDTH, top + tall + 26.0, what);
    text(&mut out, LEFT - 8.0, top + 8.0, "end", &bytes(most));
    text(&mut out, LEFT - 8.0, top + tall, "end", "0");
    for (i, bar) in bars.iter().enumerate() {
        let x = LEFT + pitch * i as f64;
        let mut y = top + tall;
        for (stage, &part) in bar.parts.iter().enumerate() {
            y -= high(part);
            rect(
                &mut out,
                (x, y, pitch - gap, high(part)),
                color(stage),
                &bar.says,
            );
        }
    }
    let every = (40.0 / pitch).ceil().max(1.0) as usize;
    for (i, bar) in bars.iter().enumerate().step_by(every) {
        let x = LEFT + pitch * (i as f64 + 0.5);
        text(&mut out, x, top + tall + 18.0, "middle", &bar.label);
    }
    if let Some(mean) = mean {
        let y = top + tall - high(mean);
        let end = LEFT + pitch * bars.len() as f64;
        let says = format!("on average {}", bytes(mean));
        let _ = writeln!(
            out,
            r##"<line x1="{LEFT}" x2="{end:.1}" y1="{y:.1}" y2="{y:.1}" stroke="{MEAN}" stroke-dasharray="5 4"><title>{says}</title></line>"##
        );
    }
    close(out)
}

fn color(stage: usize) -> &'static str {
    STAGES[stage % STAGES.len()]
}

fn ramp(amount: u64, most: u64) -> &'static str {
    let steps = RAMP.len() as u128;
    let level = (u128::from(amount) * steps).div_ceil(u128::from(most.max(1)));
    RAMP[(level.clamp(1, steps) - 1) as usize]
}

/// `rank 3` or `ranks 0-7`.
fn name((first, last): (u32, u32)) -> String {
    match first == last {
        true => format!("rank {first}"),
        false => format!("ranks {first}-{last}"),
    }
}

/// The blocks to label, so that labels do not touch.
fn ticks(blocks: &[(u32, u32)], cell: f64, room: f64) -> impl Iterator<Item = (usize, String)> {
    let every = (room / cell).ceil().max(1.0) as usize;
    blocks
        .iter()
        .enumerate()
        .step_by(every)
        .map(|(i, b)| (i, b.0.to_string()))
}

fn open(width: f64, height: f64, what: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"{what}\">\n"
    )
}

fn close(mut out: String) -> String {
    out.push_str("</svg>\n");
    out
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, what: &str) {
    let _ = writeln!(
        out,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{what}</text>"#
    );
}

fn rect(out: &mut String, (x, y, w, h): (f64, f64, f64, f64), fill: &str, says: &str) {
    let _ = writeln!(
        out,
        r#"<rect x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" fill="{fill}"><title>{says}</title></rect>"#
    );
}
