//! The cases that are measured: real models from Megatron ranks to vLLM ranks.

use std::sync::Arc;
use weightsync::layout::Layout;
use weightsync::layout::models::{Inventory, MegatronSizes, VllmSizes};
use weightsync::plan::decision::PlanOptions;
use weightsync::plan::topology::{HostGroup, TopologySpec};
use weightsync::{Error, Result};

/// Staging per rank in all rows.
const STAGING_BYTES: u64 = 1 << 30;
/// One case: a model from Megatron ranks to vLLM ranks.
pub struct Case {
    model: &'static str,
    source: &'static str,
    destination: &'static str,
    is_nvl72: bool,
    /// Predicted time over the bound, in hundredths.
    pub target: u32,
}

const LLAMA: &str = "llama-3.1-70b";
const QWEN: &str = "qwen3-235b-a22b";
const DEEPSEEK: &str = "deepseek-v3";
const KIMI: &str = "kimi-k2";
const ODD: &str = "odd";

const fn case(
    model: &'static str,
    source: &'static str,
    destination: &'static str,
    target: u32,
) -> Case {
    Case {
        model,
        source,
        destination,
        is_nvl72: false,
        target,
    }
}

const fn on_nvl72(case: Case) -> Case {
    Case {
        is_nvl72: true,
        ..case
    }
}

pub const CASES: [Case; 11] = [
    case(LLAMA, "tp=4,pp=4,dp=4", "tp=8,replicas=8", 105),
    case(QWEN, "tp=4,pp=8,ep=16,dp=4", "tp=8,ep=on,replicas=8", 105),
    case(DEEPSEEK, "pp=16,ep=16,dp=16", "tp=16,ep=on,replicas=8", 105),
    case(
        DEEPSEEK,
        "pp=8,ep=32,dp=32",
        "tp=8,dp=4,ep=on,replicas=4",
        105,
    ),
    case(KIMI, "pp=16,ep=16,dp=16", "tp=16,ep=on,replicas=8", 105),
    case(ODD, "tp=2,pp=5,dp=3", "tp=3,pp=2,replicas=5", 110),
    case(LLAMA, "tp=4,pp=4,dp=4", "tp=8,replicas=64", 108),
    case(LLAMA, "tp=4,pp=4,dp=4", "tp=8,replicas=128", 110),
    case(LLAMA, "tp=4,pp=4,dp=4", "tp=8,replicas=256", 115),
    on_nvl72(case(
        DEEPSEEK,
        "pp=8,ep=16,dp=16",
        "tp=8,ep=on,replicas=16",
        115,
    )),
    on_nvl72(case(
        QWEN,
        "tp=4,pp=4,ep=16,dp=4",
        "tp=8,ep=on,replicas=8",
        115,
    )),
];

/// Rows scaled to 102,400 ranks by data parallelism and replicas: what takes
/// time there, and the last one by numbers that have no divisor in common.
pub const LARGE: [Case; 8] = [
    case(LLAMA, "tp=4,pp=4,dp=3200", "tp=8,replicas=6400", 0),
    case(
        QWEN,
        "tp=4,pp=8,ep=16,dp=1600",
        "tp=8,ep=on,replicas=6400",
        0,
    ),
    case(
        DEEPSEEK,
        "pp=16,ep=64,dp=3200",
        "tp=16,ep=on,replicas=3200",
        0,
    ),
    case(
        DEEPSEEK,
        "pp=8,ep=32,dp=6400",
        "tp=8,dp=4,ep=on,replicas=1600",
        0,
    ),
    case(KIMI, "pp=16,ep=16,dp=3200", "tp=16,ep=on,replicas=3200", 0),
    on_nvl72(case(
        DEEPSEEK,
        "pp=8,ep=16,dp=6400",
        "tp=8,ep=on,replicas=6400",
        0,
    )),
    on_nvl72(case(
        QWEN,
        "tp=4,pp=4,ep=16,dp=3200",
        "tp=8,ep=on,replicas=6400",
        0,
    )),
    case(LLAMA, "tp=4,pp=4,dp=3200", "tp=8,replicas=6401", 0),
];

/// This one has half a million flows when the holders take turns, in 210 buckets.
pub const FLOWS: Case = case(DEEPSEEK, "pp=16,ep=16,dp=16", "tp=16,ep=on,replicas=9", 0);

/// All programs of this one are made.
pub const WHOLE: Case = case(DEEPSEEK, "pp=16,ep=64,dp=64", "tp=16,ep=on,replicas=64", 0);

impl Case {
    pub fn name(&self) -> String {
        let rack = if self.is_nvl72 { "NVL72 " } else { "" };
        format!(
            "{rack}{} {} -> {}",
            self.model, self.source, self.destination
        )
    }

    pub fn layouts(&self) -> Result<(Arc<Layout>, Arc<Layout>)> {
        if self.model == ODD {
            let read = |text: &str| Layout::from_json(text.as_bytes()).map(Arc::new);
            return Ok((
                read(include_str!("../../../benches/layouts/odd_trainer.json"))?,
                read(include_str!("../../../benches/layouts/odd_inference.json"))?,
            ));
        }
        let model = self.inventory()?;
        let sizes: MegatronSizes = self.source.parse()?;
        let world = u32::try_from(sizes.world())
            .map_err(|_| Error::limit(format!("{} has too many ranks", self.source)))?;
        let source = Layout::megatron(&model, &sizes, 0)?;
        let group: VllmSizes = self.destination.parse()?;
        let destination = Layout::vllm(&model, &[group], world)?;
        Ok((Arc::new(source), Arc::new(destination)))
    }

    /// The destination after another replica has joined.
    pub fn with_one_more_replica(&self) -> Result<Layout> {
        let mut group: VllmSizes = self.destination.parse()?;
        group.replicas += 1;
        let world = self.source.parse::<MegatronSizes>()?.world();
        Layout::vllm(&self.inventory()?, &[group], world as u32)
    }

    fn inventory(&self) -> Result<Inventory> {
        let config = match self.model {
            LLAMA => include_str!("../../../tests/models/llama-3.1-70b.json"),
            QWEN => include_str!("../../../tests/models/qwen3-235b-a22b.json"),
            DEEPSEEK => include_str!("../../../tests/models/deepseek-v3.json"),
            _ => include_str!("../../../tests/models/kimi-k2.json"),
        };
        Ok(Inventory::from_config(config.as_bytes())?.without_mtp())
    }

    pub fn options(&self) -> PlanOptions {
        PlanOptions {
            staging_bytes_max: STAGING_BYTES,
            unused_allowed: vec!["*".into()],
            topology: self.is_nvl72.then(nvl72),
            ..PlanOptions::default()
        }
    }
}

/// Racks of which 64 GPUs are used, on hosts of four.
fn nvl72() -> TopologySpec {
    TopologySpec {
        hosts: vec![HostGroup {
            gpus: 4,
            nics: 4,
            nvlink_bytes_per_s: 900_000_000_000,
            domain_hosts: 16,
            ..HostGroup::default()
        }],
        ..TopologySpec::default()
    }
}
