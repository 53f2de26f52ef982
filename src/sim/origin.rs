//! Where one element comes from, with the links that it crosses on its way.

use super::network::{Link, links_between};
use crate::error::Result;
use crate::plan::origin::{Hop, Origin};
use crate::plan::topology::Topology;
use crate::rank::Rank;
use serde::Serialize;

/// The way of one element, in the order in which it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkedOrigin {
    pub tensor: String,
    pub index: Vec<u64>,
    pub hops: Vec<LinkedHop>,
}

/// A hop and what it crosses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkedHop {
    #[serde(flatten)]
    pub hop: Hop,
    /// In order; see [`links_between`].
    pub links: Vec<Link>,
    /// The NVLink domain that the hop stays in; `None` if it leaves one.
    pub nvlink_domain: Option<u32>,
}

impl LinkedOrigin {
    /// On ranks that sit as `topology` says.
    pub fn of(origin: Origin, topology: &Topology) -> Result<LinkedOrigin> {
        let hops = origin.hops.into_iter();
        Ok(LinkedOrigin {
            tensor: origin.tensor,
            index: origin.index,
            hops: hops
                .map(|hop| LinkedHop::of(hop, topology))
                .collect::<Result<_>>()?,
        })
    }
}

impl LinkedHop {
    fn of(hop: Hop, topology: &Topology) -> Result<LinkedHop> {
        let (from, to) = (Rank(hop.from.rank), Rank(hop.to.rank));
        let domain = topology.domain(from);
        Ok(LinkedHop {
            links: links_between(topology, from, to)?,
            nvlink_domain: domain.filter(|_| domain == topology.domain(to)),
            hop,
        })
    }
}
