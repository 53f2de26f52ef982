//! The traffic matrix in characters.
//!
//! ```text
//! sender  receivers are ranks 8-15, from left to right
//! 0-1     ██··▒▒··
//! 2-3     ··██··▒▒
//! ```

use std::fmt::Write;
use weightsync::plan::blocks::Blocks;
use weightsync::plan::traffic::{Matrix, Traffic};

/// Rows and columns that a terminal shows well.
const ROW_COUNT_MAX: usize = 32;
const COLUMN_COUNT_MAX: usize = 64;

/// Empty to full.
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];

/// Who sends to whom; darker is more.
pub fn draw(t: &Traffic) -> String {
    let m = &t.matrix;
    if m.bytes.is_empty() {
        return "nothing is sent: all copies are local\n".to_string();
    }
    let rows = groups(m.rows.len(), ROW_COUNT_MAX);
    let columns = groups(m.columns.len(), COLUMN_COUNT_MAX);
    let cells: Vec<Vec<u64>> = rows
        .iter()
        .map(|r| columns.iter().map(|c| sum(m, r, c)).collect())
        .collect();
    let most = cells.iter().flatten().copied().max().unwrap_or(0);
    let labels: Vec<String> = rows.iter().map(|r| label(&m.rows, r)).collect();
    let width = labels
        .iter()
        .map(String::len)
        .max()
        .unwrap_or(0)
        .max("sender".len());
    let mut out = String::new();
    let (to, unit) = (
        label(&m.columns, &(0..m.columns.len())),
        m.columns.unit.name(),
    );
    let wide = if columns.len() <= COLUMN_COUNT_MAX / 2 {
        2
    } else {
        1
    };
    let _ = writeln!(
        out,
        "{:width$}  receivers are {unit}s {to}, from left to right",
        "sender"
    );
    for (name, row) in labels.iter().zip(&cells) {
        let line: String = row
            .iter()
            .flat_map(|&bytes| std::iter::repeat_n(shade(bytes, most), wide))
            .collect();
        let _ = writeln!(out, "{name:width$}  {line}");
    }
    out
}

fn shade(bytes: u64, most: u64) -> char {
    if bytes == 0 {
        return SHADES[0];
    }
    let full = SHADES.len() as u128 - 1;
    let level = (u128::from(bytes) * full).div_ceil(u128::from(most.max(1)));
    SHADES[level as usize]
}

/// `n` blocks in at most `max` groups of equal size.
fn groups(n: usize, max: usize) -> Vec<std::ops::Range<usize>> {
    let size = n.div_ceil(max).max(1);
    (0..n).step_by(size).map(|i| i..(i + size).min(n)).collect()
}

fn sum(m: &Matrix, rows: &std::ops::Range<usize>, columns: &std::ops::Range<usize>) -> u64 {
    let cells = rows
        .clone()
        .flat_map(|r| columns.clone().map(move |c| (r, c)));
    cells.map(|(r, c)| m.at(r, c)).sum()
}

fn label(blocks: &Blocks, group: &std::ops::Range<usize>) -> String {
    let (first, last) = (blocks.ends[group.start].0, blocks.ends[group.end - 1].1);
    match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_grow_with_bytes_and_zero_stands_alone() {
        assert_eq!(shade(0, 100), '·');
        assert_eq!(shade(1, 100), '░');
        assert_eq!(shade(100, 100), '█');
        assert_eq!(groups(5, 2), [0..3, 3..5]);
    }
}
