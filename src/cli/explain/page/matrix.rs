//! Who sends how much to whom.

use super::svg::Svg;
use crate::table::bytes;
use weightsync::plan::blocks::Blocks;
use weightsync::plan::traffic::Matrix;

/// Colours from little to much, `ramp1` to `ramp7` in the style sheet.
const LEVEL_COUNT: u64 = 7;

const LEFT: f64 = 48.0;
const TOP: f64 = 26.0;
/// Side of the drawing, and of a cell.
const SIDE: f64 = 600.0;
const CELL_MAX: f64 = 44.0;

/// The matrix, a square a pair of ranks or hosts.
pub fn draw(m: &Matrix) -> String {
    let (rows, columns) = (m.rows.len(), m.columns.len());
    let cell = (SIDE / rows.max(columns).max(1) as f64).min(CELL_MAX);
    let frame = (LEFT, TOP, cell * columns as f64, cell * rows as f64);
    let mut svg = Svg::new(LEFT + frame.2 + 8.0, TOP + frame.3 + 8.0, "traffic matrix");
    svg.ground(frame);
    for (i, label) in labels(&m.columns, cell, 34.0) {
        svg.text("middle", LEFT + cell * (i as f64 + 0.5), TOP - 8.0, &label);
    }
    for (i, label) in labels(&m.rows, cell, 14.0) {
        svg.text(
            "end",
            LEFT - 8.0,
            TOP + cell * (i as f64 + 0.5) + 4.0,
            &label,
        );
    }
    let most = m.bytes.iter().copied().max().unwrap_or(0);
    let gap = if cell > 6.0 { 1.0 } else { 0.0 };
    for r in 0..rows {
        for c in 0..columns {
            let amount = m.at(r, c);
            if amount == 0 {
                continue;
            }
            let (x, y) = (LEFT + cell * c as f64, TOP + cell * r as f64);
            let (from, to) = (m.rows.name(r), m.columns.name(c));
            let says = format!("{from} to {to}: {}", bytes(amount));
            let class = format!("ramp{}", level(amount, most));
            svg.rect(&class, (x, y, cell - gap, cell - gap), &says);
        }
    }
    svg.finish()
}

/// The colours of the matrix, with what they stand for.
pub fn legend(m: &Matrix) -> String {
    let most = m.bytes.iter().copied().max().unwrap_or(0);
    let mut svg = Svg::new(320.0, 22.0, "legend");
    svg.text("start", 0.0, 15.0, "0");
    for level in 1..=LEVEL_COUNT {
        let x = 14.0 + 28.0 * (level - 1) as f64;
        let up_to = u128::from(most) * u128::from(level) / u128::from(LEVEL_COUNT);
        let says = format!("up to {}", bytes(up_to as u64));
        svg.rect(&format!("ramp{level}"), (x, 4.0, 28.0, 14.0), &says);
    }
    svg.text(
        "start",
        20.0 + 28.0 * LEVEL_COUNT as f64,
        15.0,
        &bytes(most),
    );
    svg.finish()
}

/// What rows and columns are, in words.
pub fn caption(m: &Matrix) -> String {
    let unit = m.rows.unit.name();
    let most = m.rows.size().max(m.columns.size());
    let grouped = match most {
        1 => String::new(),
        n => format!(", up to {n} of them together"),
    };
    format!("Rows are {unit}s that send, columns {unit}s that receive{grouped}. Stronger is more.")
}

/// One of the levels; only nothing is none.
fn level(amount: u64, most: u64) -> u64 {
    let level = (u128::from(amount) * u128::from(LEVEL_COUNT)).div_ceil(u128::from(most.max(1)));
    (level as u64).clamp(1, LEVEL_COUNT)
}

/// The blocks to label, so that labels do not touch.
fn labels(blocks: &Blocks, cell: f64, room: f64) -> impl Iterator<Item = (usize, String)> {
    let every = (room / cell).ceil().max(1.0) as usize;
    let ends = blocks.ends.iter().enumerate().step_by(every);
    ends.map(|(i, b)| (i, b.0.to_string()))
}
