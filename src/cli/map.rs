//! `weightsync map`: rank mappings as JSON, or as a picture.
//!
//! Reads an array of records from standard input and writes an array of answers
//! in the same order. A record that cannot be mapped is answered by an `error`
//! object; the command fails only if the array itself cannot be read, or the
//! picture not be drawn.

use std::io::{BufWriter, Read, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeSeq};
use serde_json::Value;

use weightsync::limits::FILE_BYTES_MAX;
use weightsync::plan::mapping::{
    self, DestinationSizes, ExpertMapping, Mapping, MappingSpec, Moved, Pair, PeerLists, Refusal,
    Regroup, SourceSizes,
};
use weightsync::{Error, Rank};

mod svg;

/// Map trainer ranks to inference ranks: JSON array in, JSON array out
///
/// Each record has `src` {tp, pp, ep, dp, cp}, `dst` {tp, pp, ep, replicas},
/// `src_gpu` and `dst_gpu` (device of every rank); where needed
/// `colocated_flag` and `dst_is_vllm`; optionally `src_ranks`, `dst_ranks`,
/// `src_ranks_expert` and `src_ranks_except_routed`.
#[derive(Args, Debug)]
pub struct MapArgs {
    /// Which mapping
    #[arg(value_enum)]
    variant: VariantArg,

    /// Draw one mapping as an SVG picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Let a trainer rank send to an inference rank of its own device: a local
    /// copy does it
    #[arg(long)]
    keep_same_device: bool,

    /// Which record to draw, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0, requires = "svg")]
    record: usize,

    /// Also answer the load of each receiver, and which pairs were moved or
    /// stay within one device
    #[arg(long)]
    details: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum VariantArg {
    /// To one receiver of each group, which forwards to the others
    TwoStage,
    /// Straight from trainer rank to inference rank
    SingleStage,
    /// Mixture of experts: routed experts apart from the rest
    Hep,
}

impl VariantArg {
    const fn title(self) -> &'static str {
        match self {
            VariantArg::TwoStage => "Two-stage mapping",
            VariantArg::SingleStage => "Single-stage mapping",
            VariantArg::Hep => "Expert mapping",
        }
    }
}

/// Runs `weightsync map`.
pub fn run(args: MapArgs) -> Result<(), Error> {
    let records = read_records()?;
    write_answers(&args, &records)?;
    if let Some(path) = &args.svg {
        let picture = draw(&args, &records)?;
        std::fs::write(path, picture)
            .map_err(|e| Error::os(format_args!("cannot write {}", path.display()), &e))?;
    }
    Ok(())
}

/// The array on standard input.
fn read_records() -> Result<Vec<Value>, Error> {
    let mut text = Vec::new();
    std::io::stdin()
        .lock()
        .take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|e| Error::os("cannot read standard input", &e))?;
    if text.len() > FILE_BYTES_MAX {
        return Err(Error::limit(format!(
            "standard input has more than {FILE_BYTES_MAX} bytes"
        )));
    }
    serde_json::from_slice(&text)
        .map_err(|e| Error::invalid(format!("standard input is not a JSON array: {e}")))
}

/// Maps and writes one record after the other.
fn write_answers(args: &MapArgs, records: &[Value]) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::os("cannot write standard output", &e);
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut json = serde_json::Serializer::new(&mut out);
    let mut write = || {
        let mut array = json.serialize_seq(Some(records.len()))?;
        for record in records {
            array.serialize_element(&answer(args, record))?;
        }
        array.end()
    };
    write().map_err(|e| failed(e.into()))?;
    writeln!(out).and_then(|()| out.flush()).map_err(failed)
}

/// One record as the command reads it. Fields that it does not know belong to
/// the caller and are left alone.
#[derive(Deserialize)]
struct Record {
    src: SourceSizes,
    dst: DestinationSizes,
    src_gpu: Vec<u32>,
    dst_gpu: Vec<u32>,
    colocated_flag: Option<bool>,
    dst_is_vllm: Option<bool>,
    src_ranks: Option<Vec<Vec<Rank>>>,
    src_ranks_expert: Option<Vec<Vec<Rank>>>,
    src_ranks_except_routed: Option<Vec<Vec<Rank>>>,
    dst_ranks: Option<Vec<Vec<Rank>>>,
}

impl Record {
    fn parse(value: &Value) -> Result<Record, Error> {
        // An array would pass for a struct whose fields come in order.
        if !value.is_object() {
            return Err(Error::invalid("the record is not a JSON object"));
        }
        Record::deserialize(value).map_err(|e| Error::invalid(e.to_string()))
    }

    fn into_spec(self, args: &MapArgs) -> Result<MappingSpec, Error> {
        let hep = args.variant == VariantArg::Hep;
        if hep && self.dst_is_vllm.is_none() {
            return Err(Error::invalid("missing field `dst_is_vllm`"));
        }
        let mut spec = MappingSpec {
            source: self.src,
            destination: self.dst,
            source_devices: self.src_gpu,
            destination_devices: self.dst_gpu,
            colocated: false,
            keep_same_device: args.keep_same_device,
            destination_is_vllm: self.dst_is_vllm.unwrap_or(false),
            source_ranks: if hep {
                self.src_ranks_except_routed
            } else {
                self.src_ranks
            },
            expert_source_ranks: if hep { self.src_ranks_expert } else { None },
            destination_ranks: self.dst_ranks,
        };
        spec.colocated = self.colocated_flag.unwrap_or_else(|| spec.shares_devices());
        Ok(spec)
    }
}

/// Either kind of outcome.
enum Outcome {
    Plain(Mapping),
    Expert(ExpertMapping),
}

fn map(args: &MapArgs, record: &Value) -> Result<(MappingSpec, Outcome), Error> {
    let spec = Record::parse(record)?.into_spec(args)?;
    let outcome = match args.variant {
        VariantArg::TwoStage => mapping::two_stage(&spec).map(Outcome::Plain),
        VariantArg::SingleStage => mapping::single_stage(&spec).map(Outcome::Plain),
        VariantArg::Hep => mapping::expert(&spec).map(Outcome::Expert),
    }?;
    Ok((spec, outcome))
}

/// What is written for one record, made and written one at a time.
#[derive(Serialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "one is alive at a time, on the stack"
)]
#[serde(untagged)]
enum Answer {
    Plain {
        pair_list: Vec<Pair>,
        p2p_list: Vec<Pair>,
        #[serde(skip_serializing_if = "Option::is_none")]
        regroup_groups: Option<Vec<Vec<Rank>>>,
        #[serde(flatten)]
        details: Option<Details>,
    },
    Expert {
        routed_map: PeerMap,
        stage1_map: PeerMap,
        stage2_map: PeerMap,
        regroup_groups: Vec<Vec<Rank>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        regroup_comm: Option<Regroup>,
        #[serde(flatten)]
        details: Option<Details>,
    },
    Refused {
        error: Refused,
    },
}

#[derive(Serialize)]
struct Details {
    /// `[rank, pairs of stage 1 that end there]`
    load: Vec<(Rank, u32)>,
    moved: Vec<Moved>,
    same_gpu_pairs: Vec<Pair>,
}

#[derive(Serialize)]
struct Refused {
    kind: &'static str,
    message: String,
}

/// `[[rank, [peers]], ...]`, in order of first appearance.
struct PeerMap(PeerLists);

impl Serialize for PeerMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter())
    }
}

fn answer(args: &MapArgs, record: &Value) -> Answer {
    let details = |mapping: &mut Mapping| {
        args.details.then(|| Details {
            load: mapping.loads(),
            moved: std::mem::take(&mut mapping.moved),
            same_gpu_pairs: std::mem::take(&mut mapping.same_device),
        })
    };
    match map(args, record).map(|(_, outcome)| outcome) {
        Ok(Outcome::Plain(mut mapping)) => Answer::Plain {
            details: details(&mut mapping),
            regroup_groups: (args.variant == VariantArg::SingleStage)
                .then_some(mapping.regroup_groups),
            pair_list: mapping.pairs,
            p2p_list: mapping.forwards,
        },
        Ok(Outcome::Expert(mut mapping)) => Answer::Expert {
            routed_map: PeerMap(PeerLists::by_sender(&mapping.routed)),
            stage1_map: PeerMap(mapping.rest.sends()),
            stage2_map: PeerMap(mapping.rest.forward_sends()),
            regroup_groups: mapping.regroup_groups,
            regroup_comm: args.details.then_some(mapping.regroup),
            details: details(&mut mapping.rest),
        },
        Err(e) => Answer::Refused {
            error: Refused {
                kind: Refusal::of(&e).name(),
                message: e.message,
            },
        },
    }
}

/// The picture of the record that was asked for.
fn draw(args: &MapArgs, records: &[Value]) -> Result<String, Error> {
    let record = records.get(args.record).ok_or_else(|| {
        Error::invalid(format!(
            "there is no record {} to draw: {} were given",
            args.record,
            records.len()
        ))
    })?;
    let (spec, outcome) = map(args, record)?;
    let (mapping, routed) = match outcome {
        Outcome::Plain(mapping) => (mapping, Vec::new()),
        Outcome::Expert(mapping) => (mapping.rest, mapping.routed),
    };
    svg::draw(args.variant.title(), &spec, &mapping, &routed)
}
