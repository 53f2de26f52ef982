//! Where one element on one rank comes from, and over which links.

use crate::table::{Table, print, print_json};
use std::str::FromStr;
use weightsync::plan::Plan;
use weightsync::plan::origin::Cell;
use weightsync::plan::topology::Topology;
use weightsync::sim::{Link, LinkKind, LinkedHop, LinkedOrigin};
use weightsync::{Rank, Result};

/// `TENSOR[I,J]@RANK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    tensor: String,
    index: Vec<u64>,
    rank: Rank,
}

impl FromStr for Element {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Element, String> {
        let wanted = || {
            format!(
                "\"{text}\" is no element; write TENSOR[I,J]@RANK, such as model.norm.weight[5]@12"
            )
        };
        let (element, rank) = text.rsplit_once('@').ok_or_else(wanted)?;
        let inner = element.strip_suffix(']').ok_or_else(wanted)?;
        let (tensor, index) = inner.rsplit_once('[').ok_or_else(wanted)?;
        let numbers = index.split(',').map(str::trim).filter(|n| !n.is_empty());
        let index: std::result::Result<Vec<u64>, _> = numbers.map(str::parse).collect();
        Ok(Element {
            tensor: tensor.to_string(),
            index: index.map_err(|_| wanted())?,
            rank: Rank(rank.trim().parse().map_err(|_| wanted())?),
        })
    }
}

/// Prints the way of an element, on ranks that sit as `topology` says.
pub fn show(plan: &Plan, topology: &Topology, e: &Element, json: bool) -> Result<()> {
    let origin = plan.origin(e.rank, &e.tensor, &e.index)?;
    let origin = LinkedOrigin::of(origin, topology)?;
    match json {
        true => print_json(&origin),
        false => print(text(&origin)),
    }
}

/// The way of an element, a line a stop.
fn text(o: &LinkedOrigin) -> String {
    let mut t = Table::default();
    let place = |c: &Cell| format!("\"{}\" at byte {}", c.buffer, c.offset);
    if let Some(first) = o.hops.first() {
        let from = &first.hop.from;
        t.row([
            "held by",
            &format!("rank {}", from.rank),
            &place(from),
            "",
            "",
        ]);
    }
    for linked in &o.hops {
        let hop = &linked.hop;
        let how = if hop.is_sent { "sent to" } else { "copied to" };
        let rank = format!("rank {}", hop.to.rank);
        let when = match hop.is_sent {
            true => format!(
                "step {}, bucket {}, stage {}",
                hop.step, hop.bucket, hop.stage
            ),
            false => format!("step {}", hop.step),
        };
        t.row([how, &rank, &place(&hop.to), &when, &over(linked)]);
    }
    format!("\"{}\" {:?}\n{t}", o.tensor, o.index)
}

/// What a hop crosses, for people.
fn over(hop: &LinkedHop) -> String {
    let names: Vec<String> = hop.links.iter().map(Link::to_string).collect();
    match (hop.links.first(), hop.nvlink_domain) {
        (Some(l), _) if l.kind == LinkKind::Memory => format!("inside {}", l.place),
        (_, Some(domain)) => format!("NVLink domain {domain}: {}", names.join(" → ")),
        _ => names.join(" → "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_they_are_written() {
        let e: Element = "a.b[3, 4]@12".parse().unwrap();
        assert_eq!((e.tensor.as_str(), e.rank), ("a.b", Rank(12)));
        assert_eq!(e.index, [3, 4]);
        assert_eq!("scalar[]@0".parse::<Element>().unwrap().index.len(), 0);
        for bad in ["", "a", "a[1]", "a@1", "a[x]@1", "a[1]@x", "a[1]@-1"] {
            let error = bad.parse::<Element>().unwrap_err();
            assert!(error.contains("TENSOR[I,J]@RANK"), "{error}");
        }
    }
}
