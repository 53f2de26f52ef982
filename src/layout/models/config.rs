//! Fields of a `config.json`, under the names Hugging Face gives them.

use super::family::{Family, Flag};
use super::formula::evaluate;
use crate::error::{Error, Result};
use crate::layout::dtype::Dtype;
use crate::layout::json::Pairs;
use crate::limits::FILE_BYTES_MAX;
use serde_json::{Map, Value};

/// The largest number that a field may hold.
const FIELD_MAX: u64 = 1 << 32;

/// A configuration, looked at with the eyes of its family.
#[derive(Debug)]
pub(super) struct Config {
    fields: Map<String, Value>,
    pub architecture: String,
    pub family: Family,
}

impl Config {
    /// Reads a `config.json` and finds its family.
    pub fn read(text: &[u8]) -> Result<Config> {
        if text.len() > FILE_BYTES_MAX {
            return Err(Error::limit(format!(
                "config.json has {} bytes; at most {FILE_BYTES_MAX} are allowed",
                text.len()
            )));
        }
        let fields = fields(text)?;
        let architecture = match fields.get("architectures") {
            Some(Value::Array(list)) => match list.as_slice() {
                [Value::String(one)] => one.clone(),
                _ => return Err(fault("\"architectures\" is not a list of one name")),
            },
            _ => {
                return Err(fault(
                    "\"architectures\" is missing; it is a list of one name, as [\"LlamaForCausalLM\"]",
                ));
            }
        };
        let family = Family::find(&architecture)?;
        let config = Config {
            fields,
            architecture,
            family,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if let Some(given) = self.given("model_type") {
            let known = &self.family.model_types;
            if !known.iter().any(|k| given.as_str() == Some(k)) {
                return Err(fault(&format!(
                    "\"model_type\" is {given}, but architecture {} has {}",
                    self.architecture,
                    known.join(" or ")
                )));
            }
        }
        for (field, accepted) in &self.family.accepts {
            if let Some(given) = self.given(field).filter(|v| !accepted.contains(v)) {
                let accepted: Vec<String> = accepted.iter().map(Value::to_string).collect();
                return Err(fault(&format!(
                    "\"{field}\" is {given}; for {} this library knows {}",
                    self.architecture,
                    accepted.join(", ")
                )));
            }
        }
        for (field, default) in &self.family.fields {
            let is_flag = matches!(default.as_str(), "true" | "false");
            match default.as_str() {
                "optional" if self.given(field).is_none() => {}
                _ if is_flag => drop(self.is_set(field)?),
                _ => drop(self.number(field)?),
            }
        }
        self.check_relations()
    }

    fn check_relations(&self) -> Result<()> {
        for field in &self.family.positive {
            if self.given(field).is_some() && self.number(field)? == 0 {
                return Err(fault(&format!("\"{field}\" is 0; at least 1 is accepted")));
            }
        }
        for (field, by) in &self.family.multiples {
            let (a, b) = (self.number(field)?, self.number(by)?);
            if b == 0 || a % b != 0 {
                return Err(fault(&format!(
                    "\"{field}\" is {a}, which is not a multiple of \"{by}\", {b}"
                )));
            }
        }
        for (field, most) in &self.family.ordered {
            if self.given(field).is_none() {
                continue;
            }
            let (a, b) = (self.number(field)?, self.number(most)?);
            if a > b {
                return Err(fault(&format!(
                    "\"{field}\" is {a}, more than \"{most}\", {b}"
                )));
            }
        }
        Ok(())
    }

    /// A field that is present and not null.
    fn given(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|v| !v.is_null())
    }

    /// A whole number, or what the family says it is where it is missing.
    pub fn number(&self, field: &str) -> Result<u64> {
        if let Some(value) = self.given(field) {
            return match value.as_u64() {
                Some(n) if n <= FIELD_MAX => Ok(n),
                _ => Err(fault(&format!(
                    "\"{field}\" is {value}; a whole number from 0 to {FIELD_MAX} is accepted"
                ))),
            };
        }
        match self.family.fields.get(field).map(String::as_str) {
            Some("required" | "optional") | None => Err(fault(&format!(
                "\"{field}\" is missing; {} needs it, a whole number",
                self.architecture
            ))),
            Some(formula) => self
                .evaluate(formula)
                .map_err(|e| fault(&format!("\"{field}\" is missing, and {}", e.message))),
        }
    }

    /// The value of a formula over fields.
    pub fn evaluate(&self, formula: &str) -> Result<u64> {
        evaluate(formula, &|field| self.number(field))
    }

    /// True or false; a number is true unless it is 0. A missing field is
    /// what the family says, or else false.
    fn is_set(&self, field: &str) -> Result<bool> {
        match self.given(field) {
            Some(Value::Bool(b)) => Ok(*b),
            Some(Value::Number(n)) if n.as_u64().is_some() => Ok(n.as_u64() != Some(0)),
            Some(other) => Err(fault(&format!(
                "\"{field}\" is {other}; true or false is accepted"
            ))),
            None => Ok(self.family.fields.get(field).is_some_and(|d| d == "true")),
        }
    }

    /// The value of a flag of the family, or of its opposite, `!flag`.
    pub fn flag(&self, name: &str) -> Result<bool> {
        if let Some(opposite) = name.strip_prefix('!') {
            return Ok(!self.flag(opposite)?);
        }
        match self.family.flags.get(name) {
            None => Ok(false),
            Some(Flag::Fixed(b)) => Ok(*b),
            Some(Flag::Field(field)) => self.is_set(field),
        }
    }

    /// A list of numbers; empty where it is missing.
    pub fn numbers(&self, field: &str) -> Result<Vec<u64>> {
        let Some(value) = self.given(field) else {
            return Ok(Vec::new());
        };
        let list = value
            .as_array()
            .and_then(|v| v.iter().map(Value::as_u64).collect());
        list.ok_or_else(|| {
            fault(&format!(
                "\"{field}\" is {value}; a list of whole numbers is accepted"
            ))
        })
    }

    /// The dtype of the weights, under its new or its old name; bf16 where
    /// nothing is said.
    pub fn dtype(&self) -> Result<Dtype> {
        match (self.dtype_in("dtype")?, self.dtype_in("torch_dtype")?) {
            (Some(new), Some(old)) if new != old => Err(fault(&format!(
                "\"dtype\" is {} and \"torch_dtype\" {}; both mean the dtype of the weights",
                self.fields["dtype"], self.fields["torch_dtype"]
            ))),
            (new, old) => Ok(new.or(old).unwrap_or(Dtype::BF16)),
        }
    }

    fn dtype_in(&self, field: &str) -> Result<Option<Dtype>> {
        let Some(value) = self.given(field) else {
            return Ok(None);
        };
        match value.as_str() {
            Some("bfloat16") => Ok(Some(Dtype::BF16)),
            Some("float16") => Ok(Some(Dtype::F16)),
            Some("float32") => Ok(Some(Dtype::F32)),
            _ => Err(fault(&format!(
                "\"{field}\" is {value}; bfloat16, float16 and float32 are accepted"
            ))),
        }
    }

    /// How the released checkpoint is quantised: method, and the block of
    /// rows and columns that share a scale, if it says one.
    pub fn quantization(&self) -> Result<Option<(String, Option<[u64; 2]>)>> {
        let Some(q) = self.given("quantization_config") else {
            return Ok(None);
        };
        let Some(method) = q.get("quant_method").and_then(Value::as_str) else {
            return Err(fault("\"quantization_config\" has no \"quant_method\""));
        };
        let block = match q.get("weight_block_size").filter(|v| !v.is_null()) {
            None => None,
            Some(v) => {
                let sizes: Option<Vec<u64>> = v
                    .as_array()
                    .and_then(|a| a.iter().map(Value::as_u64).collect());
                match sizes.as_deref() {
                    Some(&[rows, cols]) if rows > 0 && cols > 0 => Some([rows, cols]),
                    _ => {
                        return Err(fault(&format!(
                            "\"weight_block_size\" is {v}; two numbers of at least 1 are accepted"
                        )));
                    }
                }
            }
        };
        Ok(Some((method.to_string(), block)))
    }
}

/// The fields of a JSON object, none of them twice.
fn fields(text: &[u8]) -> Result<Map<String, Value>> {
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(fault("it is not a JSON object"));
    }
    let pairs: Pairs<Value> = serde_json::from_slice(text).map_err(|e| fault(&e.to_string()))?;
    Ok(pairs.0.into_iter().collect())
}

/// An error about the configuration.
pub(super) fn fault(what: &str) -> Error {
    Error::layout(format!("config.json: {what}"))
}
