//! The layout file as data: one struct per JSON object, unknown fields refused.

use crate::layout::dtype::Dtype;
use crate::layout::view::Memory;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use std::marker::PhantomData;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileDoc {
    pub weightsync_layout: u32,
    #[serde(default, skip_serializing_if = "Pairs::is_empty")]
    pub aliases: Pairs<String>,
    /// Globs on the names of tensors that are set apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frozen: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draft: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartDoc>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub explicit: Vec<ExplicitDoc>,
    /// Declarations; in the shorthand form the tensors of the only part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorDoc>,
    // The fields of the only part, in the shorthand form.
    #[serde(default, deserialize_with = "ranks", skip_serializing)]
    pub ranks: Option<Choice>,
    #[serde(default, skip_serializing)]
    pub meshes: Pairs<Vec<AxisDoc>>,
    #[serde(default, deserialize_with = "some", skip_serializing)]
    pub copies: Option<CopiesDoc>,
    #[serde(default, deserialize_with = "some", skip_serializing)]
    pub padding: Option<PaddingDoc>,
    #[serde(default, skip_serializing)]
    pub stages: Pairs<Vec<u32>>,
    #[serde(default, skip_serializing)]
    pub local_layers: Pairs<Vec<u32>>,
    #[serde(default, skip_serializing)]
    pub fused: Vec<FusedDoc>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PartDoc {
    #[serde(deserialize_with = "ranks")]
    pub ranks: Option<Choice>,
    #[serde(default, skip_serializing_if = "Pairs::is_empty")]
    pub meshes: Pairs<Vec<AxisDoc>>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub copies: Option<CopiesDoc>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub padding: Option<PaddingDoc>,
    #[serde(default, skip_serializing_if = "Pairs::is_empty")]
    pub stages: Pairs<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Pairs::is_empty")]
    pub local_layers: Pairs<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorDoc>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fused: Vec<FusedDoc>,
}

/// Name and size of a mesh axis.
pub(super) type AxisDoc = (String, u32);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CopiesDoc {
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub mesh: Option<String>,
    pub axes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PaddingDoc {
    Leave,
    Zero,
}

/// A tensor and, inside a part, where it lies.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TensorDoc {
    pub name: String,
    #[serde(
        default,
        deserialize_with = "layers",
        skip_serializing_if = "Option::is_none"
    )]
    pub layers: Option<Choice>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub shape: Option<Vec<u64>>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub dtype: Option<DtypeDoc>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub granule: Option<Vec<u64>>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub mesh: Option<String>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub stage: Option<StageDoc>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cuts: Vec<CutDoc>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub stored: Option<DtypeDoc>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<u8>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub split: Option<u8>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub buffer: Option<String>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub memory: Option<MemoryDoc>,
    /// Takes room in a fused buffer, but is neither held nor needed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spacer: bool,
}

impl TensorDoc {
    /// The first field that only makes sense inside a part.
    pub fn placement_field(&self) -> Option<&'static str> {
        let set = [
            ("mesh", self.mesh.is_some()),
            ("stage", self.stage.is_some()),
            ("cuts", !self.cuts.is_empty()),
            ("stored", self.stored.is_some()),
            ("order", !self.order.is_empty()),
            ("split", self.split.is_some()),
            ("buffer", self.buffer.is_some()),
            ("memory", self.memory.is_some()),
            ("spacer", self.spacer),
        ];
        set.iter()
            .find(|(_, is_set)| *is_set)
            .map(|(name, _)| *name)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StageDoc {
    pub axis: String,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub table: Option<String>,
    #[serde(
        default,
        deserialize_with = "stages",
        skip_serializing_if = "Option::is_none"
    )]
    pub at: Option<Choice>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CutDoc {
    pub dim: u8,
    pub axes: Vec<String>,
    #[serde(default, skip_serializing_if = "KindDoc::is_even")]
    pub kind: KindDoc,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub parts: Option<u32>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pad: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KindDoc {
    #[default]
    Even,
    Floor,
    Ceil,
    Chunk(u64),
    At(Vec<u64>),
    Blocks(u32),
}

impl KindDoc {
    fn is_even(&self) -> bool {
        *self == KindDoc::Even
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MemoryDoc {
    Host,
    PinnedHost,
    Device(u32),
}

impl From<MemoryDoc> for Memory {
    fn from(m: MemoryDoc) -> Memory {
        match m {
            MemoryDoc::Host => Memory::Host,
            MemoryDoc::PinnedHost => Memory::PinnedHost,
            MemoryDoc::Device(n) => Memory::Device(n),
        }
    }
}

/// The field for a memory kind; the default is left out.
pub(super) fn memory_doc(m: Memory) -> Option<MemoryDoc> {
    match m {
        Memory::Host => None,
        Memory::PinnedHost => Some(MemoryDoc::PinnedHost),
        Memory::Device(n) => Some(MemoryDoc::Device(n)),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FusedDoc {
    pub buffer: String,
    #[serde(
        default,
        deserialize_with = "layers",
        skip_serializing_if = "Option::is_none"
    )]
    pub layers: Option<Choice>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shared_dims: u8,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub groups: Option<u64>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub table: Option<String>,
    pub members: Vec<String>,
}

fn is_zero(n: &u8) -> bool {
    *n == 0
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExplicitDoc {
    pub rank: u32,
    #[serde(default)]
    pub copy: u32,
    pub buffers: Vec<BufferDoc>,
    pub views: Vec<ViewDoc>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BufferDoc {
    pub name: String,
    pub bytes: u64,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub memory: Option<MemoryDoc>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ViewDoc {
    pub tensor: String,
    #[serde(rename = "box")]
    pub bounds: Vec<(u64, u64)>,
    pub buffer: String,
    #[serde(default)]
    pub offset: u64,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub strides: Option<Vec<i64>>,
    #[serde(
        default,
        deserialize_with = "some",
        skip_serializing_if = "Option::is_none"
    )]
    pub dtype: Option<DtypeDoc>,
}

/// An optional field that is not `null` where it is present.
fn some<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

/// `first, first + 1, ..`, `count` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RangeDoc {
    pub first: u32,
    pub count: u32,
}

/// A field with several forms; each field takes some of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Choice {
    One(u32),
    Name(String),
    Range(RangeDoc),
    List(Vec<u32>),
}

/// Reads the forms of one field; `expected` words them.
struct ChoiceVisitor {
    expected: &'static str,
    one: bool,
    name: bool,
    range: bool,
}

fn ranks<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Choice>, D::Error> {
    let visitor = ChoiceVisitor {
        expected: "{\"first\": 0, \"count\": 8} or a list of ranks",
        one: false,
        name: false,
        range: true,
    };
    d.deserialize_any(visitor).map(Some)
}

fn layers<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Choice>, D::Error> {
    let visitor = ChoiceVisitor {
        expected: "the name of a stage table, {\"first\": 0, \"count\": 28} or a list of layers",
        one: false,
        name: true,
        range: true,
    };
    d.deserialize_any(visitor).map(Some)
}

fn stages<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Choice>, D::Error> {
    let visitor = ChoiceVisitor {
        expected: "a stage or a list of stages",
        one: true,
        name: false,
        range: false,
    };
    d.deserialize_any(visitor).map(Some)
}

impl<'de> Visitor<'de> for ChoiceVisitor {
    type Value = Choice;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Choice, E> {
        match u32::try_from(v) {
            Ok(n) if self.one => Ok(Choice::One(n)),
            _ => Err(E::invalid_type(Unexpected::Unsigned(v), &self)),
        }
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Choice, E> {
        if self.name {
            return Ok(Choice::Name(v.to_string()));
        }
        Err(E::invalid_type(Unexpected::Str(v), &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Choice, A::Error> {
        if self.range {
            return RangeDoc::deserialize(MapAccessDeserializer::new(map)).map(Choice::Range);
        }
        Err(A::Error::invalid_type(Unexpected::Map, &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Choice, A::Error> {
        let mut list = Vec::new();
        while let Some(n) = seq.next_element()? {
            list.push(n);
        }
        Ok(Choice::List(list))
    }
}

/// A JSON object as a list of named values; a name given twice is refused.
#[derive(Debug)]
pub(in crate::layout) struct Pairs<T>(pub Vec<(String, T)>);

impl<T> Default for Pairs<T> {
    fn default() -> Pairs<T> {
        Pairs(Vec::new())
    }
}

impl<T> Pairs<T> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Serialize> Serialize for Pairs<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Pairs<T>, D::Error> {
        d.deserialize_map(PairsVisitor(PhantomData))
    }
}

struct PairsVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for PairsVisitor<T> {
    type Value = Pairs<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
        let mut seen = std::collections::HashSet::new();
        let mut pairs = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("\"{name}\" is given twice")));
            }
            let value = map.next_value()?;
            pairs.push((name, value));
        }
        Ok(Pairs(pairs))
    }
}

/// A dtype by name, or as the three DLPack numbers where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DtypeDoc(pub Dtype);

impl Serialize for DtypeDoc {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let name = self.0.name();
        if Dtype::from_name(&name).is_ok() {
            return s.serialize_str(&name);
        }
        (self.0.code, self.0.bits, self.0.lanes).serialize(s)
    }
}

impl<'de> Deserialize<'de> for DtypeDoc {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<DtypeDoc, D::Error> {
        d.deserialize_any(DtypeVisitor)
    }
}

struct DtypeVisitor;

impl<'de> Visitor<'de> for DtypeVisitor {
    type Value = DtypeDoc;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the name of a dtype, such as \"bf16\", or [code, bits, lanes]")
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<DtypeDoc, E> {
        Dtype::from_name(v).map(DtypeDoc).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<DtypeDoc, A::Error> {
        let numbers = serde::de::value::SeqAccessDeserializer::new(seq);
        let (code, bits, lanes) = <(u8, u8, u16)>::deserialize(numbers)?;
        Dtype::new(code, bits, lanes)
            .map(DtypeDoc)
            .map_err(A::Error::custom)
    }
}
