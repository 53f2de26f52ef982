//! Data planes before their ranks have met.

use super::loopback::LoopbackHub;
use super::shm::{ShmOptions, ShmTransport};
use super::{Bootstrap, Kind, Transport};
use crate::error::{Error, Result};
use crate::rank::Rank;
use std::sync::Arc;
use std::time::Instant;

/// Ranks as threads of one process: they find each other by the secret that
/// their greetings make.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loopback;

impl Bootstrap for Loopback {
    fn kind(&self) -> Kind {
        Kind::Loopback
    }

    fn address(&self) -> &[u8] {
        &[]
    }

    fn meet(
        self: Box<Self>,
        rank: Rank,
        peers: &[(Rank, Vec<u8>)],
        group: u128,
        _deadline: Instant,
    ) -> Result<Arc<dyn Transport>> {
        let highest = peers.last().map_or(0, |(rank, _)| rank.0);
        let hub = LoopbackHub::by_key(group as u64, highest + 1)?;
        Ok(hub.attach(rank)?)
    }
}

/// Ranks as processes of one host: each listens before anybody meets.
#[derive(Debug)]
pub struct Shm {
    transport: Arc<ShmTransport>,
    address: Vec<u8>,
}

impl Shm {
    /// Starts to listen.
    pub fn new(rank: Rank, options: ShmOptions) -> Result<Shm> {
        Ok(Shm::of(ShmTransport::with(rank, options)?))
    }

    /// This transport, which listens and has no peers yet.
    pub fn of(transport: Arc<ShmTransport>) -> Shm {
        Shm {
            address: transport.address(),
            transport,
        }
    }
}

impl Bootstrap for Shm {
    fn kind(&self) -> Kind {
        Kind::Shm
    }

    fn address(&self) -> &[u8] {
        &self.address
    }

    fn meet(
        self: Box<Self>,
        rank: Rank,
        peers: &[(Rank, Vec<u8>)],
        _group: u128,
        _deadline: Instant,
    ) -> Result<Arc<dyn Transport>> {
        check_rank(&*self.transport, rank)?;
        self.transport.set_peers(peers.to_vec())?;
        Ok(self.transport)
    }
}

/// A transport whose ranks have met already, by other means.
#[derive(Debug)]
pub struct Ready {
    kind: Kind,
    transport: Arc<dyn Transport>,
}

impl Ready {
    pub fn new(kind: Kind, transport: Arc<dyn Transport>) -> Ready {
        Ready { kind, transport }
    }
}

impl Bootstrap for Ready {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn address(&self) -> &[u8] {
        &[]
    }

    fn meet(
        self: Box<Self>,
        rank: Rank,
        _peers: &[(Rank, Vec<u8>)],
        _group: u128,
        _deadline: Instant,
    ) -> Result<Arc<dyn Transport>> {
        check_rank(&*self.transport, rank)?;
        Ok(self.transport)
    }
}

fn check_rank(transport: &dyn Transport, rank: Rank) -> Result<()> {
    if transport.rank() == rank {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the transport is that of rank {}; the endpoint is rank {rank}'s",
        transport.rank()
    )))
}
