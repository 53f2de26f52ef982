//! Parallel sizes as people write them: `tp=4,pp=8,ep=16,dp=4`.

use crate::error::{Error, Result};

/// `key=value` pairs, each key once, none that is not accepted.
#[derive(Debug)]
pub(super) struct Sizes<'a> {
    /// Whose they are, for messages.
    of: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Sizes<'a> {
    /// Reads `text`, which may be empty; `accepted` are the keys there are.
    pub fn parse(of: &'a str, text: &'a str, accepted: &[&str]) -> Result<Sizes<'a>> {
        let mut sizes = Sizes {
            of,
            pairs: Vec::new(),
        };
        for pair in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(sizes.fault(format!("\"{pair}\" is not key=value, such as tp=4")));
            };
            let (key, value) = (key.trim(), value.trim());
            if !accepted.contains(&key) {
                return Err(sizes.fault(format!(
                    "\"{key}\" is unknown; accepted are {}",
                    accepted.join(", ")
                )));
            }
            if sizes.given(key).is_some() {
                return Err(sizes.fault(format!("\"{key}\" is given twice")));
            }
            sizes.pairs.push((key, value));
        }
        Ok(sizes)
    }

    pub fn given(&self, key: &str) -> Option<&'a str> {
        let pair = self.pairs.iter().find(|(k, _)| *k == key);
        pair.map(|(_, value)| *value)
    }

    /// A number of at least 1; 1 where it is missing.
    pub fn size(&self, key: &str) -> Result<u32> {
        self.number(key, 1, 1)
    }

    /// A number of at least `least`; `default` where it is missing.
    pub fn number(&self, key: &str, default: u32, least: u32) -> Result<u32> {
        let Some(value) = self.given(key) else {
            return Ok(default);
        };
        match value.parse() {
            Ok(n) if n >= least => Ok(n),
            _ => Err(self.fault(format!(
                "\"{key}\" is {value}; a whole number of at least {least} is accepted"
            ))),
        }
    }

    /// Numbers separated by colons, as `24:24:23:23`; none where it is missing.
    pub fn table(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.given(key) else {
            return Ok(Vec::new());
        };
        let list: std::result::Result<Vec<u32>, _> = value.split(':').map(str::parse).collect();
        list.map_err(|_| {
            self.fault(format!(
                "\"{key}\" is {value}; whole numbers separated by colons are accepted, as 24:24:23:23"
            ))
        })
    }

    /// One of some words, as its position; `None` where it is missing.
    pub fn word(&self, key: &str, accepted: &[&str]) -> Result<Option<usize>> {
        let Some(value) = self.given(key) else {
            return Ok(None);
        };
        match accepted.iter().position(|a| *a == value) {
            Some(i) => Ok(Some(i)),
            None => Err(self.fault(format!(
                "\"{key}\" is {value}; {} is accepted",
                accepted.join(" or ")
            ))),
        }
    }

    /// `on` or `off`.
    pub fn switch(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.word(key, &["off", "on"])?.map_or(default, |i| i == 1))
    }

    /// An error about these sizes.
    pub fn fault(&self, what: impl std::fmt::Display) -> Error {
        Error::layout(format!("{} sizes: {what}", self.of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_and_misspelt_ones_refused() {
        let keys = &["tp", "ep", "pp_layers", "order"];
        let s = Sizes::parse("megatron", "tp=4, pp_layers=2:3", keys).unwrap();
        assert_eq!(s.size("tp").unwrap(), 4);
        assert_eq!(s.size("ep").unwrap(), 1);
        assert_eq!(s.table("pp_layers").unwrap(), [2, 3]);
        for (text, why) in [
            ("tp", "\"tp\" is not key=value"),
            ("tpp=2", "\"tpp\" is unknown; accepted are tp, ep"),
            ("tp=2,tp=2", "given twice"),
        ] {
            let e = Sizes::parse("megatron", text, keys).unwrap_err();
            assert!(e.message.contains(why), "{text}: {e}");
        }
        let s = Sizes::parse("vllm", "tp=0,ep=yes,pp_layers=1:x", keys).unwrap();
        assert!(s.size("tp").unwrap_err().message.contains("tp\" is 0"));
        assert!(
            s.switch("ep", false)
                .unwrap_err()
                .message
                .contains("off or on")
        );
        assert!(s.table("pp_layers").is_err());
    }
}
