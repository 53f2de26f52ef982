//! The DTensor file as data: one struct per JSON object, unknown fields
//! refused.

use crate::error::{Error, Result};
use crate::layout::dtype::Dtype;
use crate::layout::json::Pairs;
use crate::layout::tensor::Tensor;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileDoc {
    pub weightsync_dtensor: u32,
    pub meshes: Pairs<MeshDoc>,
    #[serde(default)]
    pub aliases: Pairs<String>,
    /// Globs on names of tensors that are not trained.
    #[serde(default)]
    pub frozen: Vec<String>,
    #[serde(default)]
    pub tensors: Vec<TensorDoc>,
    #[serde(default)]
    pub flat: Vec<FlatDoc>,
}

/// A device mesh: names of its dimensions, and its ranks as nested lists or,
/// where they count up, as a shape and the first one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MeshDoc {
    pub names: Vec<String>,
    #[serde(default)]
    pub ranks: Option<Nested>,
    #[serde(default)]
    pub shape: Option<Vec<u32>>,
    #[serde(default)]
    pub first: u32,
}

/// Nested lists of ranks, as `tolist` gives them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Nested {
    Rank(u32),
    List(Vec<Nested>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TensorDoc {
    pub name: String,
    pub shape: Vec<u64>,
    pub dtype: TorchDtype,
    /// The only mesh, where it is left out.
    #[serde(default)]
    pub mesh: Option<String>,
    pub placements: Vec<String>,
    /// The dtype in memory, where it is another one.
    #[serde(default)]
    pub stored: Option<TorchDtype>,
    #[serde(default)]
    pub buffer: Option<String>,
}

impl TensorDoc {
    pub fn tensor(&self) -> Result<Tensor> {
        Tensor::new(self.name.clone(), &self.shape, self.dtype.0)
    }
}

/// A flat parameter of the older FSDP: its parameters one after the other,
/// chunked over one mesh dimension.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FlatDoc {
    /// The name of its buffer.
    pub name: String,
    pub dtype: TorchDtype,
    #[serde(default)]
    pub mesh: Option<String>,
    /// The mesh dimension it is chunked over; the only one, where it is left
    /// out. Over the others it is replicated.
    #[serde(default)]
    pub over: Option<String>,
    /// Elements, padding included; where it is left out, the parameters end it.
    #[serde(default)]
    pub elements: Option<u64>,
    pub parameters: Vec<ParameterDoc>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ParameterDoc {
    pub name: String,
    pub shape: Vec<u64>,
    /// Elements before it; where it is left out, it follows the one before.
    #[serde(default)]
    pub offset: Option<u64>,
}

/// A dtype by the name it has in layout files, or by PyTorch's.
#[derive(Clone, Copy, Debug)]
pub(super) struct TorchDtype(pub Dtype);

/// PyTorch's names that differ from those of layout files.
const NAMES: &[(&str, &str)] = &[
    ("float64", "f64"),
    ("double", "f64"),
    ("float32", "f32"),
    ("float", "f32"),
    ("float16", "f16"),
    ("half", "f16"),
    ("bfloat16", "bf16"),
    ("float8_e4m3fn", "f8e4m3fn"),
    ("float8_e5m2", "f8e5m2"),
    ("float8_e4m3fnuz", "f8e4m3fnuz"),
    ("float8_e5m2fnuz", "f8e5m2fnuz"),
    ("float8_e8m0fnu", "f8e8m0fnu"),
    ("int64", "i64"),
    ("int32", "i32"),
    ("int16", "i16"),
    ("int8", "i8"),
    ("uint64", "u64"),
    ("uint32", "u32"),
    ("uint16", "u16"),
    ("uint8", "u8"),
];

impl<'de> Deserialize<'de> for TorchDtype {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<TorchDtype, D::Error> {
        let given = String::deserialize(d)?;
        let bare = given.strip_prefix("torch.").unwrap_or(&given);
        let known = NAMES.iter().find(|(torch, _)| *torch == bare);
        let name = known.map_or(bare, |(_, own)| own);
        Dtype::from_name(name)
            .map(TorchDtype)
            .map_err(|e: Error| D::Error::custom(e.message))
    }
}
