//! An error in a layout file, and the path of the field that it is about.

use crate::error::{Error, Result};

/// An error and the path of the field it is about.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) path: String,
    pub(super) error: Error,
}

pub(super) type Read<T> = Result<T, Fault>;

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault {
            path: String::new(),
            error,
        }
    }
}

impl Fault {
    pub(super) fn into_error(self) -> Error {
        let at = if self.path.is_empty() {
            String::new()
        } else {
            format!(", at {}", self.path)
        };
        Error {
            message: format!("layout file{at}: {}", self.error.message),
            ..self.error
        }
    }
}

/// A fault in this field of the object at hand.
pub(super) fn fault<T>(field: &str, message: String) -> Read<T> {
    Err(Fault {
        path: field.to_string(),
        error: Error::layout(message),
    })
}

pub(super) trait Within<T> {
    /// Adds the step that led to the object where it failed.
    fn within(self, step: impl FnOnce() -> String) -> Read<T>;
}

impl<T, E: Into<Fault>> Within<T> for Result<T, E> {
    fn within(self, step: impl FnOnce() -> String) -> Read<T> {
        self.map_err(|e| {
            let Fault { path, error } = e.into();
            let step = step();
            let dot = if path.is_empty() || step.is_empty() {
                ""
            } else {
                "."
            };
            Fault {
                path: format!("{step}{dot}{path}"),
                error,
            }
        })
    }
}
