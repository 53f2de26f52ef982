//! Log lines: a level, a place for them to go, and nothing else.
//!
//! By default there is no such place. With `WSYNC_LOG` set, lines go to
//! standard error, each written whole:
//!
//! ```text
//! weightsync[4711] warn: rank 3 variable WSYNC_LOGG is unknown
//! ```
//!
//! A [`Sink`] of the caller takes them instead. Lines are lower case, with
//! `key value` words separated by spaces, so that a double click selects a
//! value. An error is logged once, where it is first known.

#![forbid(unsafe_code)]

use crate::env;
use crate::error::{Error, Result, Status};
use std::cell::Cell;
use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};

/// How loud a line is. Each level includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Level {
    /// No line has this level; as a limit it lets none through.
    Off = 0,
    /// Something failed.
    Error = 1,
    /// Something is odd, and goes on.
    Warn = 2,
    /// What happens once in a session.
    Info = 3,
    /// What happens once in a request, and more.
    Debug = 4,
}

impl Level {
    pub const ALL: &'static [Level] = &[
        Level::Off,
        Level::Error,
        Level::Warn,
        Level::Info,
        Level::Debug,
    ];

    /// As `WSYNC_LOG` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Off => "off",
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }

    pub fn from_code(code: u32) -> Option<Level> {
        Level::ALL.iter().copied().find(|l| *l as u32 == code)
    }

    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.iter().copied().find(|l| l.name() == name)
    }
}

/// Takes lines. May be called from several threads at a time, and must not
/// call [`set`].
pub type Sink = Box<dyn Fn(Level, &str) + Send + Sync>;

/// `limit` before the environment was looked at.
const UNKNOWN: u32 = u32::MAX;

static LIMIT: AtomicU32 = AtomicU32::new(UNKNOWN);
static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    /// True while this thread is inside a sink.
    static IS_LOGGING: Cell<bool> = const { Cell::new(false) };
}

/// Replaces the sink; `None` restores the default. `WSYNC_LOG`, where it is
/// set, holds instead of `max_level`. Once this returns, the sink before has
/// returned from its last call.
pub fn set(sink: Option<Sink>, max_level: Level) -> Result<()> {
    if IS_LOGGING.get() {
        return Err(Error::new(
            Status::Busy,
            "a log function cannot replace itself",
        ));
    }
    let limit = match (env::log_level(), &sink) {
        (Some(level), _) => level,
        (None, Some(_)) => max_level,
        (None, None) => Level::Off,
    };
    let mut held = SINK.write().unwrap_or_else(PoisonError::into_inner);
    let before = std::mem::replace(&mut *held, sink);
    LIMIT.store(limit as u32, Ordering::Release);
    drop(held);
    drop(before);
    if is_on(Level::Warn) {
        env::warn_of_unknown();
    }
    Ok(())
}

/// True if a line of `level` goes anywhere: one load once warm.
pub fn is_on(level: Level) -> bool {
    let mut limit = LIMIT.load(Ordering::Acquire);
    if limit == UNKNOWN {
        let from_env = env::log_level().unwrap_or(Level::Off) as u32;
        let swapped =
            LIMIT.compare_exchange(UNKNOWN, from_env, Ordering::AcqRel, Ordering::Acquire);
        limit = swapped.map_or_else(|set| set, |_| from_env);
        if limit >= Level::Warn as u32 {
            env::warn_of_unknown();
        }
    }
    level as u32 <= limit && level != Level::Off
}

/// Writes a line, if anybody listens.
///
/// ```
/// use weightsync::log::{Level, line};
/// line(Level::Info, format_args!("rank {} bound {} buffers", 3, 17));
/// ```
pub fn line(level: Level, message: fmt::Arguments<'_>) {
    if !is_on(level) || IS_LOGGING.replace(true) {
        return;
    }
    let _done = Done;
    let text = message.to_string().replace(char::is_control, " ");
    match &*SINK.read().unwrap_or_else(PoisonError::into_inner) {
        Some(sink) => sink(level, &text),
        None => to_stderr(level, &text),
    }
}

/// Says that this thread is outside a sink again, however it left it.
struct Done;

impl Drop for Done {
    fn drop(&mut self) {
        IS_LOGGING.set(false);
    }
}

fn to_stderr(level: Level, text: &str) {
    let line = format!(
        "weightsync[{}] {}: {text}\n",
        std::process::id(),
        level.name()
    );
    // Nobody is left to be told that standard error is closed.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    // One test, since the sink is one per process.
    #[test]
    fn lines_reach_the_sink_up_to_its_level_and_not_after_it_is_gone() {
        let got: Arc<Mutex<Vec<(Level, String)>>> = Arc::default();
        let to = got.clone();
        let sink: Sink = Box::new(move |level, text| {
            line(Level::Error, format_args!("from inside: dropped"));
            let refused = set(None, Level::Off).unwrap_err();
            assert_eq!(refused.status, Status::Busy);
            to.lock().unwrap().push((level, text.to_string()));
        });
        set(Some(sink), Level::Warn).unwrap();
        let limit = env::log_level().unwrap_or(Level::Warn);
        line(Level::Warn, format_args!("odd {}", 1));
        line(Level::Debug, format_args!("detail"));
        set(None, Level::Off).unwrap();
        line(Level::Error, format_args!("nobody hears"));
        let got = got.lock().unwrap();
        let heard = |l: Level, t: &str| got.iter().any(|(x, y)| *x == l && y == t);
        assert_eq!(heard(Level::Warn, "odd 1"), limit >= Level::Warn);
        assert_eq!(heard(Level::Debug, "detail"), limit >= Level::Debug);
        assert!(!heard(Level::Error, "nobody hears"));
        assert!(!heard(Level::Error, "from inside: dropped"));
    }

    #[test]
    fn names_and_codes_round_trip() {
        for &l in Level::ALL {
            assert_eq!(Level::from_name(l.name()), Some(l));
            assert_eq!(Level::from_code(l as u32), Some(l));
        }
        assert_eq!(Level::from_code(99), None);
    }
}
