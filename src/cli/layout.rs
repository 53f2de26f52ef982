//! `weightsync layout`: the layout file of a real model.

use super::check::of_file;
use super::checkpoint::Checkpoint;
use super::table::{complain, grouped, print, print_json, read_file};
use clap::{ArgGroup, Args};
use serde_json::json;
use std::path::{Path, PathBuf};
use weightsync::layout::Layout;
use weightsync::layout::models::{Framework, ModelLayout};
use weightsync::limits::FILE_BYTES_MAX;
use weightsync::{Error, Result};

/// Write the layout file of a model, from its config.json and parallel sizes
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("framework").required(true))]
pub struct LayoutArgs {
    /// config.json of the model, as on Hugging Face; a checkpoint has its own
    #[arg(long, value_name = "FILE", required_unless_present = "checkpoint")]
    config: Option<PathBuf>,
    /// Write the layout file here instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Megatron-core: tp=,cp=,pp=,vpp=,ep=,etp=,dp=, pp_layers=24:24:23:23,
    /// order=tp-cp-ep-dp-pp, vocab_multiple=128,
    /// experts=per_expert|sequential|grouped, mla_down=whole|cut|fused,
    /// norms=fused|separate, mtp=on|off,
    /// mtp_layer=transformer_layer|mtp_model_layer; a missing size is 1
    #[arg(long, value_name = "SIZES", group = "framework")]
    megatron: Option<String>,
    /// vLLM: tp=,pp=,dp=,ep=on|off,replicas=; given again, a group of other
    /// replicas
    #[arg(long, value_name = "SIZES", group = "framework")]
    vllm: Vec<String>,
    /// SGLang: tp=,dp=,ep=,pp=,replicas=; given again, a group of other
    /// replicas
    #[arg(long, value_name = "SIZES", group = "framework")]
    sglang: Vec<String>,
    /// Whole models, as Hugging Face has them: replicas=,mtp=on|off
    #[arg(long, value_name = "SIZES", group = "framework", num_args = 0..=1,
          default_missing_value = "")]
    hf: Option<String>,
    /// What PyTorch says of its sharded tensors: a DTensor file
    #[arg(long, value_name = "FILE", group = "framework")]
    dtensor: Option<PathBuf>,
    /// A checkpoint as a source by itself: safetensors file, or directory with
    /// an index; its files are the buffers
    #[arg(long, value_name = "PATH", group = "framework")]
    checkpoint: Option<PathBuf>,
    /// Ranks that read the checkpoint, each some of its files
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        requires = "checkpoint",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    readers: u32,
    /// The rank that comes first; a DTensor file has its own numbers
    #[arg(
        long,
        value_name = "RANK",
        default_value_t = 0,
        conflicts_with = "dtensor"
    )]
    first_rank: u32,
    /// Mark tensors whose name matches as not trained; may be given several
    /// times. A DTensor file has its own "frozen"
    #[arg(long, value_name = "GLOB", conflicts_with_all = ["dtensor", "checkpoint"])]
    frozen: Vec<String>,
    /// Print JSON about the layout to standard output; needs --output
    #[arg(long, requires = "output")]
    json: bool,
}

impl LayoutArgs {
    /// The layout that the arguments ask for.
    fn make(&self) -> Result<ModelLayout> {
        let config = self.config.as_deref();
        if let Some(path) = &self.checkpoint {
            let checkpoint = Checkpoint::open(path, config)?;
            return Ok(ModelLayout {
                layout: checkpoint.layout(self.first_rank, self.readers)?,
                remarks: Vec::new(),
                hazards: Vec::new(),
            });
        }
        let path = config.ok_or_else(|| Error::invalid("--config is missing"))?;
        let (framework, sizes) = self.sizes_with_frozen()?;
        let made = Layout::from_model(&read_file(path)?, framework, &sizes, self.first_rank);
        made.map_err(|e| match e.message.strip_prefix("config.json: ") {
            Some(what) => of_file(
                path,
                Error {
                    message: what.into(),
                    ..e
                },
            ),
            None => e,
        })
    }

    /// The framework, and its sizes as text, with what is not trained.
    fn sizes_with_frozen(&self) -> Result<(Framework, String)> {
        let (framework, mut sizes) = self.sizes()?;
        if !self.frozen.is_empty() {
            let comma = if sizes.is_empty() { "" } else { "," };
            sizes += &format!("{comma}frozen={}", self.frozen.join(":"));
        }
        Ok((framework, sizes))
    }

    /// The framework, and its sizes as text.
    fn sizes(&self) -> Result<(Framework, String)> {
        if let Some(sizes) = &self.megatron {
            return Ok((Framework::Megatron, sizes.clone()));
        }
        if let Some(sizes) = &self.hf {
            return Ok((Framework::HuggingFace, sizes.clone()));
        }
        if let Some(path) = &self.dtensor {
            let text = String::from_utf8(read_file(path)?);
            let text = text.map_err(|_| Error::layout("it is not UTF-8"));
            return Ok((Framework::Dtensor, text.map_err(|e| of_file(path, e))?));
        }
        Ok(match self.vllm.is_empty() {
            false => (Framework::Vllm, self.vllm.join(";")),
            true => (Framework::Sglang, self.sglang.join(";")),
        })
    }
}

/// Runs `weightsync layout`.
pub fn run(args: &LayoutArgs) -> Result<()> {
    let made = args.make()?;
    let text = made.layout.to_json();
    if text.len() > FILE_BYTES_MAX {
        return Err(Error::limit(format!(
            "the layout file would have {} bytes, and none is read with more than \
             {FILE_BYTES_MAX}; tensors that are placed alike on all ranks make it short",
            text.len()
        )));
    }
    let Some(path) = &args.output else {
        say(&made);
        return print(text);
    };
    std::fs::write(path, &text)
        .map_err(|e| Error::os(format_args!("cannot write {}", path.display()), &e))?;
    match args.json {
        true => print_json(&json!({
            "layout": made.layout.describe(),
            "file_bytes": text.len(),
            "remarks": made.remarks,
            "hazards": made.hazards,
        })),
        false => {
            say(&made);
            print(summary(&made.layout, path, text.len()))
        }
    }
}

/// Remarks and hazards, to standard error.
fn say(made: &ModelLayout) {
    for remark in &made.remarks {
        complain(format_args!("remark: {remark}"));
    }
    for hazard in &made.hazards {
        complain(format_args!("hazard: {hazard}"));
    }
}

fn summary(layout: &Layout, path: &Path, file_bytes: usize) -> String {
    let first = layout.ranks().first().copied().unwrap_or_default();
    let bytes: u64 = layout.tensors().iter().map(|t| t.bytes()).sum();
    format!(
        "{}: ranks {first} to {}, {} tensors of {} bytes, {} bytes of file\n",
        path.display(),
        layout.ranks().last().copied().unwrap_or_default(),
        grouped(layout.tensors().len() as u64),
        grouped(bytes),
        grouped(file_bytes as u64),
    )
}
