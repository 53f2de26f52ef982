//! What a delivery amounted to.

use super::drive::Delivery;
use super::message::{Carrier, Moved};
use super::table::{Table, bytes, grouped, time};
use serde::Serialize;
use weightsync::Rank;
use weightsync::plan::report::PlanReport;

/// All of a delivery that succeeded.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub transport: Carrier,
    pub ranks: u64,
    pub plan: PlanReport,
    /// Bytes of all buffers of all ranks.
    pub buffer_bytes: u64,
    /// From the first process until the plan was loaded everywhere.
    pub start_ns: u64,
    pub versions: Vec<VersionSummary>,
    /// One thread's plain copy in the same run, in 10^9 bytes per second.
    pub memcpy_gigabytes_per_second: f64,
    /// Best version over the yardstick.
    pub share_of_memcpy: f64,
    /// Destination bytes compared with what they must be, all versions. One that
    /// is wrong ends the delivery with an error.
    pub bytes_checked: u64,
}

/// How one version went.
#[derive(Debug, Serialize)]
pub struct VersionSummary {
    pub version: u64,
    pub outcome: String,
    /// True if the ranks compared digests of what was sent and delivered.
    pub is_verified: bool,
    /// Bytes over the transport and copied locally.
    pub bytes_delivered: u64,
    pub gigabytes_per_second: f64,
    pub phases: Phases,
    /// The rank that took longest to move its bytes.
    pub slowest_rank: Rank,
    /// The rank that moved most bytes, and how many.
    pub busiest_rank: Rank,
    pub busiest_rank_bytes: u64,
    pub bytes_checked: u64,
    /// One digest over those of all tensors.
    pub digest: String,
    pub digests: Vec<(String, String)>,
}

/// How long the phases took, in nanoseconds: of the slowest rank.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Phases {
    /// Putting values into source buffers.
    pub fill_ns: u64,
    pub agree_ns: u64,
    pub move_ns: u64,
    pub settle_ns: u64,
    /// Agree, move and settle, as the command saw it.
    pub request_ns: u64,
    /// Comparing every destination byte.
    pub check_ns: u64,
}

impl VersionSummary {
    pub fn new(
        version: u64,
        mut moved: Vec<(Rank, Moved)>,
        [fill_ns, request_ns, check_ns]: [u64; 3],
        bytes_checked: u64,
    ) -> VersionSummary {
        let slowest = |of: fn(&Moved) -> u64| {
            let all = moved.iter().map(|(rank, m)| (of(m), *rank));
            all.max_by_key(|(n, _)| *n).unwrap_or_default()
        };
        let (move_ns, slowest_rank) = slowest(|m| m.move_ns);
        let (busiest_rank_bytes, busiest_rank) =
            slowest(|m| m.bytes_sent + m.bytes_received + m.bytes_local);
        let phases = Phases {
            fill_ns,
            agree_ns: slowest(|m| m.agree_ns).0,
            move_ns,
            settle_ns: slowest(|m| m.settle_ns).0,
            request_ns,
            check_ns,
        };
        let bytes = moved.iter().map(|(_, m)| m.bytes_received + m.bytes_local);
        let bytes_delivered = bytes.sum();
        let first = moved.iter().find(|(_, m)| m.outcome != "COMPLETE");
        let outcome = first.map_or("COMPLETE".into(), |(_, m)| m.outcome.clone());
        let is_verified = moved.iter().all(|(_, m)| m.is_verified);
        let told = moved.iter_mut().find(|(_, m)| !m.digests.is_empty());
        let digests = told.map_or(Vec::new(), |(_, m)| std::mem::take(&mut m.digests));
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for (name, digest) in &digests {
            hash.update(name.as_bytes());
            hash.update(digest.as_bytes());
        }
        VersionSummary {
            version,
            outcome,
            is_verified,
            bytes_delivered,
            gigabytes_per_second: bytes_delivered as f64 / move_ns.max(1) as f64,
            phases,
            slowest_rank,
            busiest_rank,
            busiest_rank_bytes,
            bytes_checked,
            digest: format!("{:016x}", hash.digest()),
            digests,
        }
    }
}

impl Summary {
    pub fn new(
        delivery: &Delivery,
        plan: PlanReport,
        start_ns: u64,
        buffer_bytes: u64,
        yardstick: f64,
        versions: Vec<VersionSummary>,
    ) -> Summary {
        let best = versions.iter().map(|v| v.gigabytes_per_second);
        let best = best.fold(0.0, f64::max);
        Summary {
            transport: delivery.carrier,
            ranks: delivery.plan.ranks().len() as u64,
            plan,
            buffer_bytes,
            start_ns,
            memcpy_gigabytes_per_second: yardstick / 1e9,
            share_of_memcpy: best * 1e9 / yardstick,
            bytes_checked: versions.iter().map(|v| v.bytes_checked).sum(),
            versions,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let one = match self.transport {
            Carrier::Shm => "process",
            Carrier::Loopback => "thread",
        };
        let mut out = format!(
            "{} ranks over {}, one {one} each, {} of buffers; ready after {}\n\n",
            self.ranks,
            self.transport.kind().name(),
            bytes(self.buffer_bytes),
            time(self.start_ns)
        );
        out.push_str(&self.versions_text());
        out.push_str(&self.yardstick_text());
        out.push_str(&format!(
            "every one of {} bytes checked: right\n",
            grouped(self.bytes_checked)
        ));
        out
    }

    fn versions_text(&self) -> String {
        let mut t = Table::default();
        t.row([
            "VERSION", "OUTCOME", "BYTES", "FILL", "AGREE", "MOVE", "SETTLE", "CHECK", "GB/S",
            "DIGEST",
        ]);
        for v in &self.versions {
            let p = v.phases;
            let outcome = match v.is_verified {
                true => format!("{}, verified", v.outcome),
                false => v.outcome.clone(),
            };
            t.row([
                &v.version.to_string(),
                &outcome,
                &bytes(v.bytes_delivered),
                &time(p.fill_ns),
                &time(p.agree_ns),
                &time(p.move_ns),
                &time(p.settle_ns),
                &time(p.check_ns),
                &format!("{:.2}", v.gigabytes_per_second),
                &v.digest,
            ]);
        }
        format!("{t}\n")
    }

    fn yardstick_text(&self) -> String {
        let mut t = Table::default();
        let text = format!(
            "{:.2} GB/s by one thread in the same run; the best version did {:.2} of it",
            self.memcpy_gigabytes_per_second, self.share_of_memcpy
        );
        t.row(["memcpy", &text]);
        if let Some(v) = self.versions.last() {
            let text = format!(
                "rank {} moved most, {}; rank {} was last, after {}",
                v.busiest_rank,
                bytes(v.busiest_rank_bytes),
                v.slowest_rank,
                time(v.phases.move_ns)
            );
            t.row(["bottleneck", &text]);
        }
        t.to_string()
    }
}
