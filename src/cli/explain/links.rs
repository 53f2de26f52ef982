//! The load of links beside the bound, in text.

use crate::table::{Table, bytes, grouped};
use weightsync::sim::Certificate;

/// Each kind of link, then the busiest links.
pub fn draw(c: &Certificate) -> String {
    let share = |time_s: f64| match c.lower_bound_s > 0.0 {
        true => format!("{:.0} %", 100.0 * time_s / c.lower_bound_s),
        false => "-".to_string(),
    };
    let mut kinds = Table::default();
    kinds.row(["links", "count", "bytes", "busiest", "of the bound"]);
    for l in &c.links {
        kinds.row([
            l.kind.name(),
            &grouped(l.count),
            &bytes(l.bytes),
            &format!("{:.6} s", l.time_max_s),
            &share(l.time_max_s),
        ]);
    }
    let mut busiest = Table::default();
    busiest.row(["busiest links", "bytes", "alone", "of the bound"]);
    for l in &c.links_busiest {
        busiest.row([
            &l.link.to_string(),
            &bytes(l.bytes),
            &format!("{:.6} s", l.time_s),
            &share(l.time_s),
        ]);
    }
    format!("{kinds}\n{busiest}")
}
