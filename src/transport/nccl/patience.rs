//! Waiting for NCCL to have done what a non-blocking call has begun.

use crate::device::fence::AbortCell;
use crate::error::{Error, Result, Status};
use std::time::{Duration, Instant};

/// Looks without sleeping; most calls are over by then.
const SPINS: u32 = 64;
/// Then how long it sleeps: longer and longer.
const NAP_MIN: Duration = Duration::from_micros(20);
const NAP_MAX: Duration = Duration::from_millis(2);

/// How long to go on asking.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience<'a> {
    /// Stops the waiting.
    pub abort: &'a AbortCell,
    /// `None`: until done or aborted. Somebody else watches the time then.
    pub deadline: Option<Instant>,
}

impl Patience<'_> {
    /// Asks `is_done` until it says so. Fails with the abort's reason, or with
    /// MEET_TIMEOUT that says what was waited for.
    pub(super) fn wait(&self, what: &str, mut is_done: impl FnMut() -> Result<bool>) -> Result<()> {
        let mut looks = 0;
        let mut nap = NAP_MIN;
        while !is_done()? {
            if let Some(reason) = self.abort.is_set().then(|| self.abort.reason()).flatten() {
                return Err(reason);
            }
            if self.deadline.is_some_and(|d| Instant::now() >= d) {
                return Err(Error::new(
                    Status::MeetTimeout,
                    format!("{what} was not over in time"),
                ));
            }
            looks += 1;
            if looks < SPINS {
                std::thread::yield_now();
            } else {
                std::thread::sleep(nap);
                nap = (nap * 2).min(NAP_MAX);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_by_success_abort_deadline_and_failure() {
        let abort = AbortCell::default();
        let until = |ms| Patience {
            abort: &abort,
            deadline: Some(Instant::now() + Duration::from_millis(ms)),
        };
        let mut left = 100;
        let countdown = || {
            left -= 1;
            Ok(left == 0)
        };
        until(5000).wait("counting", countdown).unwrap();

        let e = until(1).wait("splitting", || Ok(false)).unwrap_err();
        assert_eq!(e.status, Status::MeetTimeout);
        assert!(e.message.contains("splitting"), "{e}");

        let e = until(5000).wait("failing", || Err(Error::internal("broken")));
        assert_eq!(e.unwrap_err().status, Status::Internal);

        abort.set(Error::new(Status::Aborted, "enough"));
        let e = until(5000).wait("anything", || Ok(false)).unwrap_err();
        assert_eq!(e.message, "enough");
    }
}
