//! What a plan amounts to, for people and for tools.

use super::Plan;
use super::program::{Direction, Program};
use crate::error::Result;
use crate::rank::Rank;
use serde::Serialize;

/// Totals over all ranks (or over the sampled ones of very many).
#[derive(Clone, Debug, Default, Serialize)]
pub struct PlanReport {
    pub fingerprint: String,
    pub strategy: super::decision::Strategy,
    pub source_rule: super::decision::SourceRule,
    pub order: super::decision::Order,
    pub spread: super::decision::Spread,
    pub source_relay: bool,
    pub tensors: u64,
    pub source_ranks: u32,
    pub destination_ranks: u32,
    pub destination_copies: u32,
    /// False if the totals below are of a sample of ranks.
    pub is_exact: bool,
    pub ranks_counted: u64,
    pub steps: u32,
    /// Bytes over the transport.
    pub bytes_moved: u64,
    /// Of these, bytes that their sender had received before.
    pub bytes_forwarded: u64,
    /// Bytes copied within a rank.
    pub bytes_local: u64,
    pub pairs: u64,
    pub messages: u64,
    /// Messages that need no staging at their sender or receiver.
    pub messages_direct: u64,
    pub peers_max: u64,
    pub sent_bytes_max: u64,
    pub sent_bytes_mean: u64,
    pub received_bytes_max: u64,
    /// Staging and relay memory of one rank, at most.
    pub staging_bytes_peak: u64,
    /// Of which relay memory, on whatever rank has most.
    pub relay_bytes_peak: u64,
    pub staging_bytes_max: u64,
    /// The ranks that send and receive most.
    pub busiest_sender: u32,
    pub busiest_receiver: u32,
}

/// One operation of one rank: a box, or a part of one, in a message or copied.
#[derive(Clone, Debug, Serialize)]
pub struct Op {
    pub step: u32,
    pub stage: u32,
    pub bucket: u32,
    pub peer: u32,
    /// `send`, `receive` or `local`.
    pub direction: &'static str,
    pub tensor: String,
    /// `[lo, hi)` per axis.
    #[serde(rename = "box")]
    pub bounds: Vec<[u64; 2]>,
    pub bytes: u64,
    /// True if our end is packed into or unpacked from staging for it.
    #[serde(rename = "staged")]
    pub is_staged: bool,
}

impl Plan {
    /// Totals of the plan.
    pub fn report(&self) -> Result<PlanReport> {
        let (ranks, is_exact) = self.sample_ranks();
        let d = self.decision();
        let mut r = PlanReport {
            fingerprint: format!("{:032x}", self.fingerprint()),
            strategy: d.strategy,
            source_rule: d.source_rule,
            order: d.order,
            spread: d.spread,
            source_relay: d.source_relay,
            tensors: self.tensors().len() as u64,
            source_ranks: self.source().rank_count(),
            destination_ranks: self.destination().rank_count(),
            destination_copies: self.destination().copy_count(),
            is_exact,
            ranks_counted: ranks.len() as u64,
            steps: self.step_count(),
            staging_bytes_max: d.staging_bytes_max,
            ..PlanReport::default()
        };
        let mut senders = 0u64;
        let mut sent_all = 0u64;
        self.each_program(&ranks, |p| {
            senders += u64::from(super::is_in(self.source(), p.rank) || p.forwards());
            sent_all += p.bytes_sent;
            r.add(p.rank, &p);
            Ok(())
        })?;
        r.sent_bytes_mean = sent_all / senders.max(1);
        Ok(r)
    }

    /// The operations of one rank, one by one.
    pub fn ops(&self, rank: Rank) -> Result<Vec<Op>> {
        self.check_rank(rank)?;
        let p = self.program(rank)?;
        let name = |t: crate::layout::tensor::TensorIndex| self.tensors()[t.index()].name.clone();
        let show =
            |b: &crate::layout::tensor::IndexBox| b.spans().iter().map(|s| [s.lo, s.hi]).collect();
        let mut ops: Vec<Op> = p
            .locals
            .iter()
            .map(|l| Op {
                step: 0,
                stage: 0,
                bucket: 0,
                peer: rank.0,
                direction: "local",
                tensor: name(l.tensor),
                bounds: show(&l.bounds),
                bytes: l.bytes,
                is_staged: false,
            })
            .collect();
        for m in &p.messages {
            let direction = match m.direction {
                Direction::Send => "send",
                Direction::Receive => "receive",
            };
            for x in p.pieces_of(m) {
                ops.extend(p.boxes_of(x).iter().map(|bounds| Op {
                    step: m.step(),
                    stage: m.stage,
                    bucket: m.bucket,
                    peer: m.peer.0,
                    direction,
                    tensor: name(x.tensor),
                    bounds: show(bounds),
                    bytes: bounds.elements() * x.wire.bytes(),
                    is_staged: !m.is_direct && !m.is_packed_before,
                }));
            }
        }
        Ok(ops)
    }
}

impl PlanReport {
    fn add(&mut self, rank: Rank, p: &Program) {
        let sends = p.messages.iter().filter(|m| m.direction == Direction::Send);
        let mut peers: Vec<Rank> = sends.clone().map(|m| m.peer).collect();
        peers.dedup();
        peers.sort_unstable();
        peers.dedup();
        self.pairs += peers.len() as u64;
        self.messages += sends.clone().count() as u64;
        self.messages_direct += sends.clone().filter(|m| m.is_direct).count() as u64;
        self.bytes_moved += p.bytes_sent;
        self.bytes_local += p.bytes_local;
        self.peers_max = self.peers_max.max(p.peers().len() as u64);
        let forwards = sends.filter(|m| m.stage > 0);
        let pieces = forwards.flat_map(|m| p.pieces_of(m));
        self.bytes_forwarded += pieces.map(|x| x.bytes).sum::<u64>();
        self.relay_bytes_peak = self.relay_bytes_peak.max(p.relay_bytes);
        self.staging_bytes_peak = self.staging_bytes_peak.max(p.memory_bytes());
        if p.bytes_sent > self.sent_bytes_max {
            self.sent_bytes_max = p.bytes_sent;
            self.busiest_sender = rank.0;
        }
        if p.bytes_received > self.received_bytes_max {
            self.received_bytes_max = p.bytes_received;
            self.busiest_receiver = rank.0;
        }
    }
}
