//! A sign of life from work whose length nobody knows.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// How often it moves; what is over sooner shows nothing.
const TICK: Duration = Duration::from_millis(250);

/// Does `work` and meanwhile says, if standard error is a terminal, what it is and
/// how long it has taken.
pub fn while_waiting<T>(what: &'static str, work: impl FnOnce() -> T) -> T {
    let sign = ProgressBar::new_spinner().with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        sign.set_style(style);
    }
    sign.enable_steady_tick(TICK);
    let done = work();
    sign.finish_and_clear();
    done
}
