//! What commands print: aligned columns for people, JSON for programs.

use serde::Serialize;
use std::io::{Read, Write};
use weightsync::limits::FILE_BYTES_MAX;
use weightsync::{Error, Result};

/// Rows of text under each other; every column but the last is as wide as its
/// widest cell.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows
            .push(cells.iter().map(|c| c.to_string()).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |i: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(i));
            cells.map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, &width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Writes text to standard output. A reader that has gone away is an error:
/// the data did not arrive.
pub fn print(text: impl std::fmt::Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|e| Error::os("cannot write standard output", &e))
}

/// Writes one value as JSON on a line of its own.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|e| Error::internal(format!("a report is no JSON: {e}")))?;
    print(format_args!("{text}\n"))
}

/// Writes a line to standard error, if anybody still reads it.
pub fn complain(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Reads a whole file, unless it is too large to be a layout or a plan; the
/// error names it.
pub fn read_file(path: &std::path::Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|e| Error::os(format_args!("cannot read {}", path.display()), &e))?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Error::limit(format!(
            "{} has more than {FILE_BYTES_MAX} bytes; that is no layout and no plan",
            path.display()
        )));
    }
    Ok(bytes)
}

/// `12,345,678`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1.23 GB`, in powers of ten.
pub fn bytes(n: u64) -> String {
    let units = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.iter().find(|(_, size)| n as f64 >= *size) {
        Some((unit, size)) => format!("{:.2} {unit}", n as f64 / size),
        None => format!("{n} B"),
    }
}

/// `12.3 ms`.
pub fn time(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{:.0} us", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500_000), "1.50 MB");
        assert_eq!(bytes(36_128_000_000_000), "36.13 TB");
        assert_eq!(time(1_500), "2 us");
        assert_eq!(time(2_500_000), "2.5 ms");
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::default();
        table.row(["a", "long", "x"]);
        table.row(["abc", "b", "y"]);
        assert_eq!(table.to_string(), "a    long  x\nabc  b     y\n");
    }
}
