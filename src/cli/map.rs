//! `weightsync map`: rank mappings as JSON, or as a picture.
//!
//! What is read and answered is in the help of the command (`MapArgs`) and in
//! docs/mapping.md. A record that cannot be mapped is answered by an `error`
//! object; the command fails only if the array itself cannot be read, or the
//! picture not be written.

use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize, Serializer as _, ser::SerializeSeq};
use serde_json::Value;

use weightsync::limits::FILE_BYTES_MAX;
use weightsync::plan::mapping::{
    self, DestinationSizes, ExpertMapping, Mapping, MappingSpec, Moved, Pair, PeerLists, RankLists,
    Refusal, Regroup, SourceSizes,
};
use weightsync::{Error, Rank};

use super::table::complain;

mod svg;

/// Map trainer ranks to inference ranks
///
/// Reads a JSON array of records from standard input and writes a JSON array
/// of answers in the same order. Source rank k is rank k, destination rank k
/// is rank len(src_gpu) + k.
///
/// A record has
///   src             {tp, pp, ep, dp, cp}; ep, dp, cp are 1 if absent
///   dst             {tp, pp, ep, replicas}; ep, replicas are 1 if absent
///   src_gpu         device of every source rank, numbered over all hosts
///   dst_gpu         device of every destination rank
///   dst_is_vllm     hep: true for vLLM, false for Megatron (required)
///   colocated_flag  whether both models live on the same devices; if absent,
///                   they do if any device is in both lists. If source TP is
///                   odd, single-stage and hep then take the source copies
///                   from the last to the first
/// and, where a runtime knows better than Megatron's order,
///   src_ranks       one list of ranks per source copy, [PP][TP] or with all
///                   expert rows [PP][EP][TP]; longer lists are cut
///   dst_ranks       one list per replica, [PP][EP][TP]
///   src_ranks_expert, src_ranks_except_routed
///                   hep: the same for routed experts and for everything else;
///                   src_ranks stands for whichever is absent
/// Other fields are left alone.
///
/// An answer has
///   pair_list       stage 1: [sender, receiver] in the order of the sends
///   p2p_list        stage 2: the same inside the groups of a replica
///   regroup_groups  single-stage, hep: source ranks that bring their routed
///                   experts together before stage 1
///   routed_map, stage1_map, stage2_map
///                   hep, instead of the first two: [[sender, [receivers]], ...]
/// or, instead,
///   error           {kind, message}; kind is `constraint` (the sizes do not
///                   suit this mapping; strategy `direct` has no such limit),
///                   `infeasible` (a source rank shares its device with every
///                   candidate) or `invalid_input`
///
/// The exit status is 0 if all records were answered, by errors too.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct MapArgs {
    /// Which mapping
    #[arg(value_enum)]
    variant: VariantArg,

    /// Draw one mapping as an SVG picture; where the record is refused, say so
    /// on standard error and write none
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Let a trainer rank send to an inference rank of its own device, as
    /// strategy `two_stage` does unless told otherwise
    #[arg(long)]
    keep_same_device: bool,

    /// Which record to draw, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0, requires = "svg")]
    record: usize,

    /// Also answer what each rank sends and receives (`sends`, `receives`,
    /// `forward_sends`, ...), how many pairs end at it (`loads`), and which pairs
    /// were `moved` off a shared device or stay within one (`same_gpu_pairs`)
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
    let records = parse_records(&read_input()?)?;
    write_answers(&args, &records, std::io::stdout().lock())?;
    match &args.svg {
        Some(path) => write_picture(&args, &records, path),
        None => Ok(()),
    }
}

/// What `map two-stage` answers to `text`, for those who measure it.
pub fn two_stage_text(text: &[u8]) -> Result<Vec<u8>, Error> {
    let args = MapArgs {
        variant: VariantArg::TwoStage,
        svg: None,
        keep_same_device: false,
        record: 0,
        details: false,
    };
    let mut out = Vec::new();
    write_answers(&args, &parse_records(text)?, &mut out)?;
    Ok(out)
}

/// The bytes on standard input.
fn read_input() -> Result<Vec<u8>, Error> {
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
    Ok(text)
}

fn parse_records(text: &[u8]) -> Result<Vec<Value>, Error> {
    serde_json::from_slice(text)
        .map_err(|e| Error::invalid(format!("standard input is not a JSON array: {e}")))
}

/// Maps and writes one record after the other.
fn write_answers(args: &MapArgs, records: &[Value], out: impl Write) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::os("cannot write standard output", &e);
    let mut out = BufWriter::new(out);
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
        let (source_ranks, expert_source_ranks) = match hep {
            true => (
                self.src_ranks_except_routed.or(self.src_ranks.clone()),
                self.src_ranks_expert.or(self.src_ranks),
            ),
            false => (self.src_ranks, None),
        };
        Ok(MappingSpec {
            source: self.src,
            destination: self.dst,
            source_devices: self.src_gpu,
            destination_devices: self.dst_gpu,
            colocated: self.colocated_flag,
            keep_same_device: args.keep_same_device,
            destination_is_vllm: self.dst_is_vllm.unwrap_or(false),
            source_ranks,
            expert_source_ranks,
            destination_ranks: self.dst_ranks,
        })
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
        routed_map: PeerLists,
        stage1_map: PeerLists,
        stage2_map: PeerLists,
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
    #[serde(flatten)]
    ranks: RankLists,
    moved: Vec<Moved>,
    same_gpu_pairs: Vec<Pair>,
}

#[derive(Serialize)]
struct Refused {
    kind: &'static str,
    message: String,
}

fn answer(args: &MapArgs, record: &Value) -> Answer {
    let details = |mapping: &mut Mapping, routed: &[Pair]| {
        args.details.then(|| Details {
            ranks: RankLists::new(mapping, routed),
            moved: std::mem::take(&mut mapping.moved),
            same_gpu_pairs: std::mem::take(&mut mapping.same_device),
        })
    };
    match map(args, record).map(|(_, outcome)| outcome) {
        Ok(Outcome::Plain(mut mapping)) => Answer::Plain {
            details: details(&mut mapping, &[]),
            regroup_groups: (args.variant == VariantArg::SingleStage)
                .then_some(mapping.regroup_groups),
            pair_list: mapping.pairs,
            p2p_list: mapping.forwards,
        },
        Ok(Outcome::Expert(mut mapping)) => Answer::Expert {
            details: details(&mut mapping.rest, &mapping.routed),
            routed_map: PeerLists::by_sender(&mapping.routed),
            stage1_map: mapping.rest.sends(),
            stage2_map: mapping.rest.forward_sends(),
            regroup_groups: mapping.regroup_groups,
            regroup_comm: args.details.then_some(mapping.regroup),
        },
        Err(e) => Answer::Refused {
            error: Refused {
                kind: Refusal::of(&e).name(),
                message: e.message,
            },
        },
    }
}

/// Draws the record that was asked for. A refused one has been answered and
/// has no picture, which is no failure.
fn write_picture(args: &MapArgs, records: &[Value], path: &Path) -> Result<(), Error> {
    let record = records.get(args.record).ok_or_else(|| {
        Error::invalid(format!(
            "there is no record {} to draw: {} were given",
            args.record,
            records.len()
        ))
    })?;
    let (spec, outcome) = match map(args, record) {
        Ok(mapped) => mapped,
        Err(e) => {
            let n = args.record;
            complain(format_args!("weightsync: record {n} has no picture: {e}"));
            return Ok(());
        }
    };
    let (mapping, routed, routed_sources) = match &outcome {
        Outcome::Plain(mapping) => (mapping, &[][..], &[][..]),
        Outcome::Expert(expert) => (&expert.rest, &expert.routed[..], &expert.routed_sources[..]),
    };
    let picture = svg::draw(&svg::Subject {
        title: args.variant.title(),
        spec: &spec,
        mapping,
        routed,
        routed_sources,
    })?;
    std::fs::write(path, picture)
        .map_err(|e| Error::os(format_args!("cannot write {}", path.display()), &e))
}
