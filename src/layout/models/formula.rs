//! Sizes as formulas over fields of a configuration:
//! `num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim)`.
//!
//! Whole numbers only; a division must come out even.

use crate::error::{Error, Result};

/// The value of `text`, with names looked up by `field`.
pub(super) fn evaluate(text: &str, field: &dyn Fn(&str) -> Result<u64>) -> Result<u64> {
    let mut parser = Parser {
        text,
        rest: text,
        field,
    };
    let value = parser.sum()?;
    match parser.peek() {
        None => Ok(value),
        Some(c) => Err(parser.fault(&format!("'{c}' is out of place"))),
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    field: &'a dyn Fn(&str) -> Result<u64>,
}

impl Parser<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn eat(&mut self, c: char) -> bool {
        let is_next = self.peek() == Some(c);
        if is_next {
            self.rest = &self.rest[c.len_utf8()..];
        }
        is_next
    }

    fn sum(&mut self) -> Result<u64> {
        let mut value = self.product()?;
        loop {
            if self.eat('+') {
                let more = self.product()?;
                value = self.checked(value.checked_add(more))?;
            } else if self.eat('-') {
                let less = self.product()?;
                value = self.checked(value.checked_sub(less))?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Result<u64> {
        let mut value = self.atom()?;
        loop {
            if self.eat('*') {
                let factor = self.atom()?;
                value = self.checked(value.checked_mul(factor))?;
            } else if self.eat('/') {
                let by = self.atom()?;
                if by == 0 || value % by != 0 {
                    return Err(self.fault(&format!("{value} / {by} is not a whole number")));
                }
                value /= by;
            } else {
                return Ok(value);
            }
        }
    }

    fn atom(&mut self) -> Result<u64> {
        if self.eat('(') {
            let value = self.sum()?;
            return match self.eat(')') {
                true => Ok(value),
                false => Err(self.fault("a ')' is missing")),
            };
        }
        self.peek();
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word.parse() {
            Ok(n) => Ok(n),
            Err(_) if word.is_empty() => Err(self.fault("a number or a field is missing")),
            Err(_) => (self.field)(word),
        }
    }

    fn checked(&self, value: Option<u64>) -> Result<u64> {
        value.ok_or_else(|| self.fault("the numbers are out of range"))
    }

    fn fault(&self, what: &str) -> Error {
        Error::layout(format!("\"{}\": {what}", self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<u64> {
        evaluate(text, &|name| match name {
            "heads" => Ok(32),
            "hidden" => Ok(4096),
            _ => Err(Error::layout(format!("no {name}"))),
        })
    }

    #[test]
    fn formulas_bind_as_usual() {
        assert_eq!(value("2 + heads * 3 - 1").unwrap(), 97);
        assert_eq!(value("heads*(2+3)").unwrap(), 160);
        assert_eq!(value("hidden / heads").unwrap(), 128);
    }

    #[test]
    fn what_does_not_come_out_even_is_refused() {
        for (text, why) in [
            ("hidden / 5", "4096 / 5 is not a whole number"),
            ("heads / 0", "not a whole number"),
            ("1 - heads", "out of range"),
            ("(heads", "')' is missing"),
            ("heads +", "is missing"),
            ("heads heads", "out of place"),
            ("tails", "no tails"),
        ] {
            let e = value(text).unwrap_err();
            assert!(e.message.contains(why), "{text}: {e}");
        }
    }
}
