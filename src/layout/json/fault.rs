//! Errors in a layout file, and the paths of the fields that they are about.

use crate::error::{Error, Result};

/// Faults of one file that are told; further ones are counted.
const TOLD_MAX: usize = 20;

/// An error and the path of the field it is about.
#[derive(Debug)]
pub(super) struct Fault {
    path: String,
    error: Error,
    /// Those found after it, in other entries.
    others: Vec<Fault>,
}

pub(super) type Read<T> = Result<T, Fault>;

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault {
            path: String::new(),
            error,
            others: Vec::new(),
        }
    }
}

impl Fault {
    pub(super) fn into_error(self) -> Error {
        let told = |f: &Fault| match f.path.is_empty() {
            true => f.error.message.clone(),
            false => format!("at {}: {}", f.path, f.error.message),
        };
        let mut message = format!("layout file, {}", told(&self));
        if self.path.is_empty() {
            message = format!("layout file: {}", told(&self));
        }
        for other in self.others.iter().take(TOLD_MAX - 1) {
            message.push_str(&format!("; {}", told(other)));
        }
        let untold = self.others.len().saturating_sub(TOLD_MAX - 1);
        if untold > 0 {
            message.push_str(&format!("; and {untold} more"));
        }
        Error {
            message,
            ..self.error
        }
    }

    fn step(&mut self, step: &str) {
        let dot = if self.path.is_empty() || step.is_empty() {
            ""
        } else {
            "."
        };
        self.path = format!("{step}{dot}{}", self.path);
    }
}

/// What every entry of a list reads as, or the faults of all of them.
pub(super) fn all<T>(entries: impl Iterator<Item = Read<T>>) -> Read<Vec<T>> {
    let mut read = Vec::new();
    let mut faults: Option<Fault> = None;
    for entry in entries {
        match (entry, &mut faults) {
            (Ok(x), _) => read.push(x),
            (Err(fault), None) => faults = Some(fault),
            (Err(mut fault), Some(first)) => {
                let further = std::mem::take(&mut fault.others);
                first.others.push(fault);
                first.others.extend(further);
            }
        }
    }
    faults.map_or(Ok(read), Err)
}

/// A fault in this field of the object at hand.
pub(super) fn fault<T>(field: &str, message: String) -> Read<T> {
    Err(Fault {
        path: field.to_string(),
        error: Error::layout(message),
        others: Vec::new(),
    })
}

pub(super) trait Within<T> {
    /// Adds the step that led to the object where it failed.
    fn within(self, step: impl FnOnce() -> String) -> Read<T>;
}

impl<T, E: Into<Fault>> Within<T> for Result<T, E> {
    fn within(self, step: impl FnOnce() -> String) -> Read<T> {
        self.map_err(|e| {
            let mut fault: Fault = e.into();
            let step = step();
            fault.step(&step);
            fault.others.iter_mut().for_each(|f| f.step(&step));
            fault
        })
    }
}
