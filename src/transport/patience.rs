//! How long a meeting may take, and whether it has been called off.
//!
//! Ranks that meet wait for sockets, for names to resolve, for peers that start
//! late. All of it ends at one deadline, and within a blink when somebody
//! aborts: nothing waits longer than [`LOOK`] without a look at the abort word.

use crate::device::fence::AbortCell;
use crate::error::{Error, Result};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// The longest wait without a look at the abort word.
pub const LOOK: Duration = Duration::from_millis(50);

/// A deadline, and the word that calls the meeting off.
#[derive(Clone, Copy, Debug)]
pub struct Patience<'a> {
    deadline: Instant,
    abort: &'a AbortCell,
}

impl<'a> Patience<'a> {
    pub fn new(deadline: Instant, abort: &'a AbortCell) -> Patience<'a> {
        Patience { deadline, abort }
    }

    /// The same, with an earlier end.
    pub fn until(self, end: Instant) -> Patience<'a> {
        Patience {
            deadline: self.deadline.min(end),
            ..self
        }
    }

    /// The time that is left; zero from the deadline on. Fails once the meeting
    /// is called off, with the reason.
    pub fn left(&self) -> Result<Duration> {
        if self.abort.is_set()
            && let Some(reason) = self.abort.reason()
        {
            return Err(reason);
        }
        Ok(self.deadline.saturating_duration_since(Instant::now()))
    }

    /// How long to wait before the next look: no longer than what is left.
    pub fn nap(&self) -> Result<Duration> {
        Ok(self.left()?.min(LOOK))
    }

    /// Does `work`, which may block longer than it should, on a thread of its
    /// own; `None` if it is not done in time. Then the thread ends when the
    /// work does, and nobody hears of it.
    pub fn within<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>> {
        let (done, result) = sync_channel(1);
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || drop(done.send(work())))
            .map_err(|e| Error::os(format!("starting the thread {name}"), &e))?;
        loop {
            let nap = self.nap()?;
            match result.recv_timeout(nap) {
                Ok(value) => return Ok(Some(value)),
                Err(RecvTimeoutError::Timeout) if !nap.is_zero() => {}
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal(format!("the thread {name} panicked")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn slow_work_is_given_up_at_the_deadline_and_at_an_abort() {
        let abort = AbortCell::default();
        let slow = || std::thread::sleep(Duration::from_secs(2));
        let soon = Instant::now() + Duration::from_millis(20);
        let patience = Patience::new(soon, &abort);
        assert_eq!(patience.within("wsync-test", slow).unwrap(), None);
        assert!(patience.left().unwrap().is_zero());

        let patience = Patience::new(soon + Duration::from_secs(60), &abort);
        assert_eq!(patience.within("wsync-test", || 7).unwrap(), Some(7));
        abort.set(Error::new(Status::Aborted, "enough"));
        let error = patience.within("wsync-test", slow).unwrap_err();
        assert_eq!(error.message, "enough");
        assert!(Instant::now() < soon + Duration::from_secs(1));
    }
}
