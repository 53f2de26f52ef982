//! A small channel between neighbours in a tree over all ranks.
//!
//! ```text
//!   callers ──► eventfd ──► control thread ◄──► parent
//!                             │  Handler    ◄──► children
//! ```
//!
//! One thread per endpoint sleeps in `poll` and never waits for anything else.
//! It moves frames and notices when a neighbour's socket closes; what frames
//! mean is up to its [`Handler`]. A neighbour that says goodbye first has left
//! in good order; one that does not has died.

mod link;
pub(super) mod sys;
mod tree;
mod vigil;

pub use link::{Address, Listener};
pub use sys::{Waker, fill_random, random_u128};
pub use tree::{ARITY, Tree, children_of, is_below, parent_of};
pub use vigil::{Alarm, LastWords};

use crate::error::{Error, Result};
use crate::rank::Rank;
use link::{Link, next_frame};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The frame that says that its sender leaves in good order.
const GOODBYE: &[u8] = &[0xff];
/// How long a leaving rank tries to get its last frames out.
const FAREWELL: Duration = Duration::from_millis(200);
/// How long dropping an endpoint waits for its thread.
const JOIN: Duration = Duration::from_secs(2);

/// A neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Parent,
    Child(usize),
}

/// How a neighbour went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Without a word.
    Died,
    /// It said goodbye.
    Left,
    /// It sends what no peer sends.
    Confused,
}

/// What frames mean. Called by the control thread only; must not wait.
pub trait Handler: Send {
    fn frame(&mut self, net: &mut Net, from: Port, frame: &[u8]);

    /// The neighbour at `port` is gone; its link is closed already.
    fn lost(&mut self, net: &mut Net, port: Port, rank: Rank, how: Loss);

    /// Called after every wake-up, when all frames have been handled. Returns
    /// how long to sleep at most.
    fn tick(&mut self, net: &mut Net, now: Instant) -> Option<Duration>;

    /// The endpoint goes away: the last chance to say something.
    fn leaving(&mut self, net: &mut Net);

    /// The thread ends; nothing is called any more.
    fn ended(&mut self, error: Option<Error>);
}

/// The neighbours that are still there.
#[derive(Debug)]
pub struct Net {
    rank: Rank,
    parent: Option<Link>,
    children: Vec<Option<Link>>,
    /// Neighbours whose socket failed while something was sent.
    broken: Vec<Port>,
}

impl Net {
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Sends a frame to the parent, if there is one.
    pub fn up(&mut self, frame: &[u8]) {
        self.send(Port::Parent, frame);
    }

    /// Sends a frame to every child.
    pub fn down(&mut self, frame: &[u8]) {
        for i in 0..self.children.len() {
            self.send(Port::Child(i), frame);
        }
    }

    /// Sends a frame to every neighbour but one.
    pub fn flood(&mut self, frame: &[u8], except: Option<Port>) {
        let ports = (0..self.children.len()).map(Port::Child);
        for port in ports.chain([Port::Parent]) {
            if Some(port) != except {
                self.send(port, frame);
            }
        }
    }

    pub fn send(&mut self, port: Port, frame: &[u8]) {
        if let Some(link) = self.link(port)
            && link.send(frame).is_err()
        {
            self.broken.push(port);
        }
    }

    fn link(&mut self, port: Port) -> Option<&mut Link> {
        match port {
            Port::Parent => self.parent.as_mut(),
            Port::Child(i) => self.children.get_mut(i)?.as_mut(),
        }
    }

    fn close(&mut self, port: Port) -> Option<Link> {
        match port {
            Port::Parent => self.parent.take(),
            Port::Child(i) => self.children.get_mut(i)?.take(),
        }
    }

    pub fn has_parent(&self) -> bool {
        self.parent.is_some()
    }

    pub fn child_count(&self) -> usize {
        self.children.len()
    }

    /// The neighbour at `port` and when it was last heard of.
    pub fn heard(&self, port: Port) -> Option<(Rank, Instant)> {
        let link = match port {
            Port::Parent => self.parent.as_ref(),
            Port::Child(i) => self.children.get(i)?.as_ref(),
        };
        link.map(|l| (l.rank, l.heard))
    }

    /// True if frames to `port` are still waiting to be written.
    pub fn has_backlog(&self, port: Port) -> bool {
        let link = match port {
            Port::Parent => self.parent.as_ref(),
            Port::Child(i) => self.children.get(i).and_then(|c| c.as_ref()),
        };
        link.is_some_and(Link::has_backlog)
    }
}

/// What a test can do to a control channel.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    None = 0,
    /// As if the process were killed: all sockets close, without a word.
    Die = 1,
    /// As if the process were stopped: nothing is read or written.
    Freeze = 2,
}

/// The control thread of one endpoint. Dropping it says goodbye.
#[derive(Debug)]
pub struct Control {
    switch: Arc<Switch>,
    waker: Arc<Waker>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Switch {
    is_stopped: AtomicBool,
    fault: AtomicU8,
    has_ended: Mutex<bool>,
    ended: Condvar,
}

impl Tree {
    /// Starts the thread that serves these connections.
    pub fn run(self, waker: Arc<Waker>, handler: Box<dyn Handler>) -> Result<Control> {
        let switch = Arc::new(Switch::default());
        let mut thread = Thread {
            net: Net {
                rank: self.rank,
                parent: self.parent,
                children: self.children.into_iter().map(Some).collect(),
                broken: Vec::with_capacity(ARITY + 1),
            },
            handler,
            waker: waker.clone(),
            switch: switch.clone(),
            items: Vec::with_capacity(ARITY + 2),
            ports: Vec::with_capacity(ARITY + 1),
        };
        let thread = std::thread::Builder::new()
            .name(format!("wsync-control-{}", self.rank))
            .spawn(move || thread.main())
            .map_err(|e| Error::os("cannot start the control thread", &e))?;
        Ok(Control {
            switch,
            waker,
            thread: Some(thread),
        })
    }
}

impl Control {
    pub fn inject(&self, fault: Fault) {
        self.switch.fault.store(fault as u8, Ordering::Release);
        self.waker.wake();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.switch.is_stopped.store(true, Ordering::Release);
        self.waker.wake();
        let Some(thread) = self.thread.take() else {
            return;
        };
        if thread.thread().id() == std::thread::current().id() {
            return;
        }
        let has_ended = self.switch.has_ended.lock();
        let has_ended = has_ended.unwrap_or_else(PoisonError::into_inner);
        let (has_ended, _) = self
            .switch
            .ended
            .wait_timeout_while(has_ended, JOIN, |e| !*e)
            .unwrap_or_else(PoisonError::into_inner);
        if *has_ended {
            let _ = thread.join();
        }
    }
}

struct Thread {
    net: Net,
    handler: Box<dyn Handler>,
    waker: Arc<Waker>,
    switch: Arc<Switch>,
    items: Vec<libc::pollfd>,
    ports: Vec<Port>,
}

impl Thread {
    fn main(&mut self) {
        let result = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let error = match result {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e),
            Err(_) => Some(Error::internal("the control thread panicked")),
        };
        // Peers see the sockets close before anybody here is told.
        self.net.parent = None;
        self.net.children.clear();
        let handler = &mut self.handler;
        let _ = catch_unwind(AssertUnwindSafe(|| handler.ended(error)));
        let has_ended = self.switch.has_ended.lock();
        *has_ended.unwrap_or_else(PoisonError::into_inner) = true;
        self.switch.ended.notify_all();
    }

    fn serve(&mut self) -> Result<()> {
        let mut timeout = self.handler.tick(&mut self.net, Instant::now());
        loop {
            self.list_items();
            sys::poll(&mut self.items, timeout)
                .map_err(|e| Error::os("cannot wait for neighbours", &e))?;
            self.waker.clear();
            if self.suffer() {
                return Ok(());
            }
            if self.switch.is_stopped.load(Ordering::Acquire) {
                self.handler.tick(&mut self.net, Instant::now());
                self.handler.leaving(&mut self.net);
                self.leave();
                return Ok(());
            }
            for i in 0..self.ports.len() {
                // The first item is the waker's.
                if self.items[i + 1].revents != 0 {
                    self.serve_port(self.ports[i]);
                }
            }
            timeout = self.handler.tick(&mut self.net, Instant::now());
            self.bury();
        }
    }

    fn list_items(&mut self) {
        self.items.clear();
        self.ports.clear();
        self.items.push(sys::poll_item(self.waker.raw_fd(), false));
        let children = self.net.children.iter().enumerate();
        let children = children.map(|(i, link)| (Port::Child(i), link.as_ref()));
        let parent = [(Port::Parent, self.net.parent.as_ref())];
        for (port, link) in children.chain(parent) {
            let Some(link) = link else { continue };
            self.ports.push(port);
            self.items
                .push(sys::poll_item(link.stream.raw_fd(), link.has_backlog()));
        }
    }

    /// Plays the fault that a test has asked for; true if it was to die.
    fn suffer(&mut self) -> bool {
        loop {
            match self.switch.fault.load(Ordering::Acquire) {
                f if f == Fault::Die as u8 => return true,
                f if f == Fault::Freeze as u8 => {
                    if self.switch.is_stopped.load(Ordering::Acquire) {
                        return true;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                _ => return false,
            }
        }
    }

    fn serve_port(&mut self, port: Port) {
        let Some(link) = self.net.link(port) else {
            return;
        };
        let flushed = link.flush();
        let is_open = flushed.is_ok() & link.fill().unwrap_or(false);
        let is_sane = self.deliver(port);
        if !is_sane {
            self.lose(port, Some(Loss::Confused));
        } else if !is_open {
            self.lose(port, None);
        }
    }

    /// Hands the frames that have come from `port` to the handler.
    fn deliver(&mut self, port: Port) -> bool {
        let Some(link) = self.net.link(port) else {
            return true;
        };
        // Taken out, so that the handler can use the net meanwhile.
        let mut inbox = std::mem::take(&mut link.inbox);
        let filled = link.filled;
        let mut at = 0;
        let mut is_sane = true;
        loop {
            match next_frame(&inbox[at..filled]) {
                Ok(None) => break,
                Err(_) => {
                    is_sane = false;
                    break;
                }
                Ok(Some((range, next))) => {
                    let frame = &inbox[at + range.start..at + range.end];
                    if frame == GOODBYE {
                        if let Some(link) = self.net.link(port) {
                            link.said_goodbye = true;
                        }
                    } else {
                        self.handler.frame(&mut self.net, port, frame);
                    }
                    at += next;
                }
            }
        }
        inbox.copy_within(at..filled, 0);
        if let Some(link) = self.net.link(port) {
            link.inbox = inbox;
            link.filled = filled - at;
        }
        is_sane
    }

    /// Closes the links that failed while something was sent, after reading
    /// what the neighbour had still to say.
    fn bury(&mut self) {
        while let Some(port) = self.net.broken.pop() {
            if let Some(link) = self.net.link(port) {
                let _ = link.fill();
                self.deliver(port);
                self.lose(port, None);
            }
        }
    }

    fn lose(&mut self, port: Port, how: Option<Loss>) {
        if let Some(link) = self.net.close(port) {
            let polite = if link.said_goodbye {
                Loss::Left
            } else {
                Loss::Died
            };
            let how = how.unwrap_or(polite);
            self.handler.lost(&mut self.net, port, link.rank, how);
        }
    }

    /// Says goodbye to everybody and gives it a moment to get out.
    fn leave(&mut self) {
        self.net.flood(GOODBYE, None);
        let end = Instant::now() + FAREWELL;
        loop {
            self.list_items();
            let waits = self.ports.iter().any(|p| self.net.has_backlog(*p));
            let left = end.saturating_duration_since(Instant::now());
            if !waits || left.is_zero() {
                return;
            }
            // Only writing matters now.
            for item in &mut self.items {
                item.events &= libc::POLLOUT;
            }
            if sys::poll(&mut self.items, Some(left)).is_err() {
                return;
            }
            for i in 0..self.ports.len() {
                let port = self.ports[i];
                if self.net.link(port).is_some_and(|l| l.flush().is_err()) {
                    drop(self.net.close(port));
                }
            }
        }
    }
}
