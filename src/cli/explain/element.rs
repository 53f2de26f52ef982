//! Where one element on one rank comes from, and over which links.

use crate::table::{Table, print, print_json};
use serde::Serialize;
use std::str::FromStr;
use weightsync::plan::Plan;
use weightsync::plan::origin::{Cell, Hop, Origin};
use weightsync::plan::topology::Topology;
use weightsync::sim::{Link, LinkKind, links_between};
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

/// What is printed as JSON.
#[derive(Serialize)]
struct Way<'a> {
    tensor: &'a str,
    index: &'a [u64],
    hops: Vec<LinkedHop<'a>>,
}

/// A hop and the links that it crosses, in order.
#[derive(Serialize)]
struct LinkedHop<'a> {
    #[serde(flatten)]
    hop: &'a Hop,
    links: Vec<Link>,
    /// The NVLink domain that the hop stays in; missing if it leaves one.
    nvlink_domain: Option<u32>,
}

impl<'a> LinkedHop<'a> {
    fn of(hop: &'a Hop, topology: &Topology) -> Result<LinkedHop<'a>> {
        let (from, to) = (Rank(hop.from.rank), Rank(hop.to.rank));
        let domain = topology.domain(from);
        Ok(LinkedHop {
            hop,
            links: links_between(topology, from, to)?,
            nvlink_domain: domain.filter(|_| domain == topology.domain(to)),
        })
    }

    /// The links, for people.
    fn over(&self) -> String {
        let names: Vec<String> = self.links.iter().map(Link::to_string).collect();
        match (self.links.first().map(|l| l.kind), self.nvlink_domain) {
            (Some(LinkKind::Memory), _) => format!("inside {}", self.links[0].place),
            (_, Some(domain)) => format!("NVLink domain {domain}: {}", names.join(" → ")),
            _ => names.join(" → "),
        }
    }
}

/// Prints the way of an element, on ranks that sit as `topology` says.
pub fn show(plan: &Plan, topology: &Topology, e: &Element, json: bool) -> Result<()> {
    let origin = plan.origin(e.rank, &e.tensor, &e.index)?;
    let hops = origin.hops.iter().map(|hop| LinkedHop::of(hop, topology));
    let hops: Vec<LinkedHop> = hops.collect::<Result<_>>()?;
    if json {
        return print_json(&Way {
            tensor: &origin.tensor,
            index: &origin.index,
            hops,
        });
    }
    print(text(&origin, &hops))
}

/// The way of an element, a line a stop.
fn text(o: &Origin, hops: &[LinkedHop]) -> String {
    let mut t = Table::default();
    let place = |c: &Cell| format!("\"{}\" at byte {}", c.buffer, c.offset);
    if let Some(first) = o.hops.first() {
        let rank = format!("rank {}", first.from.rank);
        t.row(["held by", &rank, &place(&first.from), "", ""]);
    }
    for linked in hops {
        let hop = linked.hop;
        let how = if hop.is_sent { "sent to" } else { "copied to" };
        let rank = format!("rank {}", hop.to.rank);
        let when = match hop.is_sent {
            true => format!(
                "step {}, bucket {}, stage {}",
                hop.step, hop.bucket, hop.stage
            ),
            false => format!("step {}", hop.step),
        };
        t.row([how, &rank, &place(&hop.to), &when, &linked.over()]);
    }
    format!("\"{}\" {:?}\n{t}", o.tensor, o.index)
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
