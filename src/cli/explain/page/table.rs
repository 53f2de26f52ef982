//! Rows of cells with a bar at their end.

use std::fmt::Write;

/// Each row's cells and the length of its bar in percent; `limit` is where a
/// dashed line crosses all bars.
pub fn draw<const N: usize>(
    rows: impl Iterator<Item = ([String; N], f64)>,
    limit: Option<f64>,
) -> String {
    let line = limit.map(|at| format!("<u style=\"left:{at:.1}%\"></u>"));
    let line = line.unwrap_or_default();
    let mut out = String::from("<table>\n");
    for (cells, percent) in rows {
        out.push_str("<tr>");
        for cell in cells {
            let _ = write!(out, "<td>{cell}</td>");
        }
        let _ = writeln!(
            out,
            "<td class=\"bar\"><i style=\"width:{percent:.1}%\"></i>{line}</td></tr>"
        );
    }
    out.push_str("</table>\n");
    out
}

/// Names with amounts: bars are parts of the largest.
pub fn parts(rows: impl Iterator<Item = (String, u64)>, amount: impl Fn(u64) -> String) -> String {
    let rows: Vec<(String, u64)> = rows.collect();
    let most = rows.iter().map(|r| r.1).max().unwrap_or(0).max(1);
    let part = |n: u64| 100.0 * n as f64 / most as f64;
    let rows = rows
        .into_iter()
        .map(|(name, n)| ([name, amount(n)], part(n)));
    draw(rows, None)
}
