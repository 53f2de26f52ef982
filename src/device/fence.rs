//! Points in queues of work, and the word that stops all of them.

use crate::error::Error;
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Something that sleeps until a timeline moves. `moved` is called with a lock
/// of the timeline held: it wakes a thread and does nothing else.
pub trait Watch: Send + Sync {
    fn moved(&self);
}

/// How far one queue has come. Only ever grows.
pub struct Timeline {
    reached: AtomicU64,
    order: Option<Arc<dyn Any + Send + Sync>>,
    watchers: Mutex<Vec<Weak<dyn Watch>>>,
    moved: Condvar,
}

/// Watchers that a timeline has room for from the start: a device and a
/// transport watch each other, a transport whose steps follow one another
/// watches itself. Which of them comes first to wait is chance, and a warm
/// request allocates nothing.
const WATCHER_COUNT: usize = 8;

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline {
            reached: AtomicU64::new(0),
            order: None,
            watchers: Mutex::new(Vec::with_capacity(WATCHER_COUNT)),
            moved: Condvar::new(),
        }
    }
}

impl std::fmt::Debug for Timeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Timeline({})", self.reached())
    }
}

impl Timeline {
    /// The timeline of a queue that is not on this processor. Others of its
    /// kind find `order` and can have their queues wait for it without us.
    pub fn ordered(order: Arc<dyn Any + Send + Sync>) -> Timeline {
        Timeline {
            order: Some(order),
            ..Timeline::default()
        }
    }

    /// What [`Timeline::ordered`] was given, if it is a `T`.
    pub fn order<T: 'static>(&self) -> Option<&T> {
        self.order.as_deref()?.downcast_ref()
    }

    /// Says that everything up to `value` is finished.
    pub fn advance(&self, value: u64) {
        self.reached.fetch_max(value, Ordering::Release);
        // Taking the lock orders us after a waiter's last look.
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        for watcher in watchers.iter().filter_map(Weak::upgrade) {
            watcher.moved();
        }
        drop(watchers);
        self.moved.notify_all();
    }

    /// Has `watcher` called at every later advance. Adding one twice is adding
    /// it once; one that is dropped is forgotten.
    pub fn watch(&self, watcher: &Arc<dyn Watch>) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        if watchers
            .iter()
            .any(|w| std::ptr::addr_eq(w.as_ptr(), Arc::as_ptr(watcher)))
        {
            return;
        }
        watchers.retain(|w| w.strong_count() > 0);
        watchers.push(Arc::downgrade(watcher));
    }

    pub fn reached(&self) -> u64 {
        self.reached.load(Ordering::Acquire)
    }
}

/// A point in a queue. Cheap to clone; the default is already reached.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    at: Option<(Arc<Timeline>, u64)>,
}

impl Fence {
    pub fn new(timeline: &Arc<Timeline>, value: u64) -> Fence {
        Fence {
            at: Some((timeline.clone(), value)),
        }
    }

    /// The queue and the point in it; `None` if there is nothing to wait for.
    pub fn point(&self) -> Option<(&Arc<Timeline>, u64)> {
        self.at.as_ref().map(|(line, value)| (line, *value))
    }

    /// True once everything before the point is finished.
    pub fn is_reached(&self) -> bool {
        match &self.at {
            None => true,
            Some((line, value)) => line.reached() >= *value,
        }
    }

    /// True if the point is reached; else `watcher` is called when its queue
    /// moves. Never misses a move between the two.
    pub fn watch(&self, watcher: &Arc<dyn Watch>) -> bool {
        let Some((line, value)) = &self.at else {
            return true;
        };
        if line.reached() >= *value {
            return true;
        }
        line.watch(watcher);
        line.reached() >= *value
    }

    /// Waits until the point is reached or `timeout` is over; says which.
    pub fn wait(&self, timeout: Duration) -> bool {
        let Some((line, value)) = &self.at else {
            return true;
        };
        if line.reached() >= *value {
            return true;
        }
        let end = Instant::now().checked_add(timeout);
        let mut guard = line.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        while line.reached() < *value {
            let left = match end {
                Some(end) => end.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                return false;
            }
            guard = line
                .moved
                .wait_timeout(guard, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

/// Something that has an abort word of its own, where we cannot read ours: a
/// GPU. Called once, by whoever aborts: it stores a word and does nothing else.
pub trait AbortMirror: Send + Sync {
    fn aborted(&self);
}

/// The abort word: the first reason wins and is what every later call reports.
#[derive(Default)]
pub struct AbortCell {
    is_set: AtomicBool,
    reason: Mutex<Option<Error>>,
    mirrors: Mutex<Vec<Weak<dyn AbortMirror>>>,
}

impl std::fmt::Debug for AbortCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AbortCell({:?})", self.reason())
    }
}

impl AbortCell {
    /// Sets the reason if none is set; true if this one won.
    pub fn set(&self, reason: Error) -> bool {
        let mut held = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() {
            return false;
        }
        *held = Some(reason);
        self.is_set.store(true, Ordering::Release);
        drop(held);
        for mirror in self.lock_mirrors().drain(..) {
            if let Some(mirror) = mirror.upgrade() {
                mirror.aborted();
            }
        }
        true
    }

    /// Has `mirror` told of the abort: now, if it has happened already. One
    /// that is dropped is forgotten.
    pub fn mirror(&self, mirror: &Arc<dyn AbortMirror>) {
        let mut mirrors = self.lock_mirrors();
        mirrors.retain(|m| m.strong_count() > 0);
        mirrors.push(Arc::downgrade(mirror));
        drop(mirrors);
        // Set before we were on the list, or by somebody who sees us there.
        if self.is_set() {
            mirror.aborted();
        }
    }

    fn lock_mirrors(&self) -> std::sync::MutexGuard<'_, Vec<Weak<dyn AbortMirror>>> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One load: what every copy asks before it writes.
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    pub fn reason(&self) -> Option<Error> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
