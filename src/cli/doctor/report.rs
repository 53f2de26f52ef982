//! What was found, for people and for programs.

use crate::table::{Table, bytes};
use serde_json::{Value, json};
use std::fmt;
use weightsync::device::cuda::inspect::Inspection;
use weightsync::transport::nccl::Nccl;
use weightsync::transport::nccl::library::ABILITIES;

/// Everything that `weightsync doctor` says.
#[derive(Debug, Default)]
pub struct Report {
    pub cuda: Option<Inspection>,
    pub nccl: Option<&'static Nccl>,
    pub findings: Vec<Finding>,
}

/// Something worth knowing, and what to do about it.
#[derive(Debug)]
pub struct Finding {
    is_problem: bool,
    text: String,
    advice: String,
}

impl Finding {
    /// GPU transports do not work, or not as somebody seems to expect.
    pub fn problem(text: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding {
            is_problem: true,
            text: text.into(),
            advice: advice.into(),
        }
    }

    /// Nothing is wrong yet.
    pub fn remark(text: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding {
            is_problem: false,
            ..Finding::problem(text, advice)
        }
    }

    fn severity(&self) -> &'static str {
        match self.is_problem {
            true => "problem",
            false => "remark",
        }
    }
}

impl Report {
    /// True if nothing stands in the way of a GPU transport.
    pub fn is_ready(&self) -> bool {
        self.findings.iter().all(|f| !f.is_problem)
    }

    pub fn to_json(&self) -> Value {
        let findings: Vec<_> = self
            .findings
            .iter()
            .map(|f| json!({"severity": f.severity(), "text": f.text, "advice": f.advice}))
            .collect();
        json!({
            "ready": self.is_ready(),
            "cuda": self.cuda.as_ref().map(cuda_json),
            "nccl": self.nccl.map(nccl_json),
            "findings": findings,
        })
    }
}

/// `13.0` for 13000.
pub fn cuda_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn cuda_json(cuda: &Inspection) -> Value {
    let devices: Vec<_> = cuda
        .devices
        .iter()
        .flatten()
        .map(|d| {
            json!({
                "index": d.index,
                "address": d.address,
                "capability": format!("{}.{}", d.capability.0, d.capability.1),
                "sm_count": d.sm_count,
                "memory_bytes": d.memory_bytes,
            })
        })
        .collect();
    json!({
        "runtime": cuda_text(cuda.runtime_version),
        "path": cuda.runtime_path,
        "driver": (cuda.driver_version > 0).then(|| cuda_text(cuda.driver_version)),
        "devices": devices,
    })
}

fn nccl_json(nccl: &'static Nccl) -> Value {
    let abilities: Vec<_> = ABILITIES
        .iter()
        .map(|a| json!({"what": a.what, "since": a.since_text(), "has": nccl.can(a)}))
        .collect();
    json!({
        "version": nccl.version_text(),
        "version_code": nccl.version(),
        "path": nccl.path(),
        "found": nccl.found().to_string(),
        "copies": nccl.copies(),
        "abilities": abilities,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::default();
        cuda_rows(self.cuda.as_ref(), &mut table);
        nccl_rows(self.nccl, &mut table);
        write!(f, "{table}")?;
        for finding in &self.findings {
            writeln!(
                f,
                "{}: {}\n  {}",
                finding.severity(),
                finding.text,
                finding.advice
            )?;
        }
        match self.is_ready() {
            true => writeln!(f, "nothing is wrong"),
            false => writeln!(
                f,
                "GPU transports will not work here as it is; loopback and shm do"
            ),
        }
    }
}

fn cuda_rows(cuda: Option<&Inspection>, table: &mut Table) {
    let Some(cuda) = cuda else {
        return table.row(["CUDA", "not found"]);
    };
    let path = cuda.runtime_path.as_ref().map(|p| p.display().to_string());
    table.row(["CUDA", &cuda_text(cuda.runtime_version)]);
    table.row(["  file", path.as_deref().unwrap_or("(the program itself)")]);
    let driver = match cuda.driver_version {
        0 => "none".to_string(),
        version => format!("takes CUDA up to {}", cuda_text(version)),
    };
    table.row(["  driver", &driver]);
    for d in cuda.devices.iter().flatten() {
        let (major, minor) = d.capability;
        let text = format!(
            "{} at {}: capability {major}.{minor}, {} multiprocessors, {}",
            d.index,
            d.address,
            d.sm_count,
            bytes(d.memory_bytes)
        );
        table.row(["  GPU", &text]);
    }
}

fn nccl_rows(nccl: Option<&'static Nccl>, table: &mut Table) {
    let Some(nccl) = nccl else {
        return table.row(["NCCL", "not found"]);
    };
    let path = nccl.path().map(|p| p.display().to_string());
    table.row(["NCCL", &nccl.version_text()]);
    table.row(["  file", path.as_deref().unwrap_or("(the program itself)")]);
    table.row(["  found", &nccl.found().to_string()]);
    for ability in ABILITIES {
        let has = match nccl.can(ability) {
            true => "yes".to_string(),
            false => format!("no, since {}", ability.since_text()),
        };
        table.row(["  can", &format!("{}: {has}", ability.what)]);
    }
}
