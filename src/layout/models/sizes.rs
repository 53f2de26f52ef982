//! Parallel sizes as a person writes them: `tp=8,dp=2,ep=on`.

use crate::error::{Error, Result};
use crate::limits::RANK_COUNT_MAX;

/// What was written, each key once.
#[derive(Debug)]
pub(super) struct Sizes<'a> {
    /// What the sizes are of, for messages.
    of: &'a str,
    given: Vec<(&'a str, &'a str)>,
}

impl<'a> Sizes<'a> {
    /// Splits `key=value,..`; refuses keys that are not among `known`, and
    /// empty items, which stand where a size was forgotten.
    pub fn read(of: &'a str, text: &'a str, known: &[&str]) -> Result<Sizes<'a>> {
        let mut given: Vec<(&str, &str)> = Vec::new();
        let items = match text.trim() {
            "" => Vec::new(),
            some => some.split(',').map(str::trim).collect(),
        };
        for item in items {
            let bad = |what: &str| {
                Error::layout(format!(
                    "{of}: \"{item}\" {what}; accepted are {}",
                    spell(known)
                ))
            };
            let (key, value) = item.split_once('=').ok_or_else(|| bad("has no \"=\""))?;
            let (key, value) = (key.trim(), value.trim());
            if !known.contains(&key) {
                return Err(bad("is unknown"));
            }
            if given.iter().any(|(k, _)| *k == key) {
                return Err(Error::layout(format!("{of}: {key} is given twice")));
            }
            given.push((key, value));
        }
        Ok(Sizes { of, given })
    }

    pub fn text(&self, key: &str) -> Option<&'a str> {
        let found = self.given.iter().find(|(k, _)| *k == key);
        found.map(|(_, value)| *value)
    }

    /// A size, 1 where it is not given.
    pub fn size(&self, key: &str) -> Result<u32> {
        Ok(self.size_if_given(key)?.unwrap_or(1))
    }

    pub fn size_if_given(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.text(key) else {
            return Ok(None);
        };
        match value.parse::<u32>() {
            Ok(n) if (1..=RANK_COUNT_MAX).contains(&n) => Ok(Some(n)),
            _ => Err(self.bad(key, value, &format!("1 to {RANK_COUNT_MAX}"))),
        }
    }

    /// `on` or `off`, where it is given.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.text(key) {
            None => Ok(None),
            Some("on") => Ok(Some(true)),
            Some("off") => Ok(Some(false)),
            Some(other) => Err(self.bad(key, other, "\"on\" and \"off\"")),
        }
    }

    /// Counts such as `24:24:23:23`; empty where they are not given.
    pub fn counts(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.text(key) else {
            return Ok(Vec::new());
        };
        let counts: Option<Vec<u32>> = value.split(':').map(|n| n.parse().ok()).collect();
        counts.ok_or_else(|| self.bad(key, value, "counts such as 24:24:23:23"))
    }

    /// Globs such as `model.embed_tokens.*:lm_head.*`; none where they are not
    /// given.
    pub fn globs(&self, key: &str) -> Result<Vec<String>> {
        let Some(value) = self.text(key) else {
            return Ok(Vec::new());
        };
        match value.split(':').any(str::is_empty) {
            false => Ok(value.split(':').map(str::to_string).collect()),
            true => Err(self.bad(key, value, "names and globs, joined by \":\"")),
        }
    }

    /// One of several words, the first where none is given.
    pub fn word(&self, key: &str, words: &[&'static str]) -> Result<&'static str> {
        let given = self.text(key).unwrap_or(words[0]);
        let found = words.iter().find(|w| **w == given);
        found
            .copied()
            .ok_or_else(|| self.bad(key, given, &spell(words)))
    }

    fn bad(&self, key: &str, value: &str, accepted: &str) -> Error {
        Error::layout(format!(
            "{}: {key} is \"{value}\"; accepted are {accepted}",
            self.of
        ))
    }
}

/// The product of sizes, or the largest number where it is larger.
pub(super) fn product(sizes: &[u32]) -> u64 {
    let each = sizes.iter().map(|&n| u64::from(n));
    each.fold(1, u64::saturating_mul)
}

fn spell(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|w| format!("\"{w}\"")).collect();
    quoted.join(", ")
}
