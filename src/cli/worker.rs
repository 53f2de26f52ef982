//! One rank of `demo` or `sync`: a process, or over loopback a thread.

use super::message::{Answer, Carrier, Failure, Job, Moved, Order, from_hex, to_hex};
use super::reference::Reference;
use super::shard::Shard;
use super::table::complain;
use clap::Args;
use serde_json::json;
use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use weightsync::device::host::HostDevice;
use weightsync::exec::{
    Endpoint, FLAG_VERIFY, Outcome, RankSet, Request, RequestOptions, Session, SessionOptions,
    State,
};
use weightsync::plan::Plan;
use weightsync::plan::program::Side;
use weightsync::transport::Bootstrap;
use weightsync::transport::bootstrap::{Loopback, Shm};
use weightsync::transport::shm::ShmOptions;
use weightsync::{Error, Rank, Result, Status, env};

/// One rank of `demo` or `sync`, as these start it
#[derive(Args, Debug)]
pub struct RankArgs {
    /// Process that this one ends with
    #[arg(long)]
    parent: u32,
}

/// Runs `weightsync rank`: orders from standard input, answers to standard
/// output.
pub fn run(args: &RankArgs) -> ExitCode {
    if let Err(e) = end_with(args.parent) {
        complain(format_args!("weightsync: {e}"));
        return ExitCode::FAILURE;
    }
    let mut lines = std::io::stdin().lock().lines();
    let next = move || match lines.next() {
        Some(Ok(line)) => serde_json::from_str(&line).ok(),
        Some(Err(_)) | None => None,
    };
    let say = |answer: Answer| {
        let failed = |e: std::io::Error| Error::os("cannot answer the command", &e);
        let text = serde_json::to_string(&answer)
            .map_err(|e| Error::internal(format!("an answer is no JSON: {e}")))?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}")
            .and_then(|()| out.flush())
            .map_err(failed)
    };
    match serve(next, say) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Has the kernel end this process when the thread that started it ends.
fn end_with(parent: u32) -> Result<()> {
    // SAFETY: this sets a number of the process and touches no memory.
    let rc = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) };
    if rc != 0 {
        let e = std::io::Error::last_os_error();
        return Err(Error::os("cannot tie the worker to its parent", &e));
    }
    // It may have gone before we asked.
    if std::os::unix::process::parent_id() != parent {
        return Err(Error::invalid(format!(
            "process {parent} is not the parent; workers are started by demo and sync"
        )));
    }
    Ok(())
}

/// Does what it is told until it is to leave; true if all went well.
pub fn serve(
    mut next: impl FnMut() -> Option<Order>,
    mut say: impl FnMut(Answer) -> Result<()>,
) -> bool {
    let mut worker = None;
    let result = obey(&mut worker, &mut next, &mut say);
    if let Err(e) = &result {
        if let Some(worker) = &worker {
            worker.endpoint.abort(&e.message);
        }
        // If nobody hears it, nobody needs to know.
        let _ = say(Answer::Failed(Failure::from(e)));
        // Something may still write to the buffers.
        std::mem::forget(worker);
    }
    result.is_ok()
}

fn obey(
    worker: &mut Option<Worker>,
    next: &mut impl FnMut() -> Option<Order>,
    say: &mut impl FnMut(Answer) -> Result<()>,
) -> Result<()> {
    loop {
        let order = next().ok_or_else(|| Error::new(Status::Aborted, "the command has gone"))?;
        let is_last = matches!(order, Order::Leave);
        let answer = match (order, worker.as_mut()) {
            (Order::Job(job), None) => {
                let made = Worker::new(job)?;
                let greeting = to_hex(made.endpoint.greeting());
                *worker = Some(made);
                Answer::Greeting(greeting)
            }
            (order, Some(worker)) => worker.obey(order)?,
            (_, None) => return Err(Error::internal("the first order is no job")),
        };
        say(answer)?;
        if is_last {
            return Ok(());
        }
    }
}

struct Worker {
    job: Job,
    plan: Arc<Plan>,
    reference: Reference,
    endpoint: Endpoint,
    seat: Option<Seat>,
}

/// What a rank has once all have met.
struct Seat {
    session: Session,
    request: Request,
    source: Shard,
    destination: Shard,
}

impl Worker {
    fn new(job: Job) -> Result<Worker> {
        let ranks = RankSet::list(&job.ranks)?;
        let bootstrap: Box<dyn Bootstrap> = match job.carrier {
            Carrier::Loopback => Box::new(Loopback),
            Carrier::Shm => Box::new(Shm::new(job.rank, shm_options()?)?),
        };
        Ok(Worker {
            plan: Arc::new(Plan::from_bytes(&from_hex(&job.plan)?)?),
            reference: Reference::open(&job.origin)?,
            endpoint: Endpoint::new(job.rank, ranks, bootstrap)?,
            seat: None,
            job,
        })
    }

    fn obey(&mut self, order: Order) -> Result<Answer> {
        match order {
            Order::Job(_) => Err(Error::internal("a second job")),
            Order::Meet(greetings) => self.meet(&greetings),
            Order::Fill(version) => {
                let (seat, reference) = self.seat()?;
                seat.source.fill(reference, version)?;
                seat.destination.fill(reference, version)?;
                Ok(Answer::Filled)
            }
            Order::Move(version) => self.transfer(version).map(Answer::Moved),
            Order::Check(version) => {
                let (seat, reference) = self.seat()?;
                Ok(Answer::Checked {
                    destination_bytes: seat.destination.check(reference, version)?,
                })
            }
            Order::Save(folder) => self.save(&folder),
            Order::Leave => {
                self.endpoint.finalize(self.job.deadline_ns)?;
                Ok(Answer::Left)
            }
        }
    }

    fn seat(&mut self) -> Result<(&mut Seat, &Reference)> {
        let seat = self.seat.as_mut();
        let seat = seat.ok_or_else(|| Error::internal("the ranks have not met"))?;
        Ok((seat, &self.reference))
    }

    fn meet(&mut self, greetings: &[String]) -> Result<Answer> {
        let greetings: Result<Vec<Vec<u8>>> = greetings.iter().map(|g| from_hex(g)).collect();
        self.endpoint.meet(&greetings?, self.job.deadline_ns)?;
        let device = Arc::new(HostDevice::new()?);
        let options = SessionOptions {
            load_deadline_ns: self.job.deadline_ns,
        };
        let session = Session::new(&self.endpoint, device, options)?;
        let mut source = Shard::new(&self.plan, self.job.rank, Side::Source, &self.reference)?;
        let mut destination = Shard::new(
            &self.plan,
            self.job.rank,
            Side::Destination,
            &self.reference,
        )?;
        source.bind(&session)?;
        destination.bind(&session)?;
        let slot = session.load(self.plan.clone())?;
        let buffer_bytes = source.bytes() + destination.bytes();
        self.seat = Some(Seat {
            request: Request::new(&session, slot)?,
            session,
            source,
            destination,
        });
        Ok(Answer::Met { buffer_bytes })
    }

    fn transfer(&mut self, version: u64) -> Result<Moved> {
        let deadline = self.job.deadline_ns;
        let is_first = self.endpoint.ranks().lowest() == self.job.rank;
        let (seat, _) = self.seat()?;
        seat.source.bind(&seat.session)?;
        seat.destination.bind(&seat.session)?;
        seat.request.submit(&RequestOptions {
            version,
            agree_deadline_ns: env::agree_deadline_ns()?.unwrap_or(0),
            stall_deadline_ns: env::stall_deadline_ns()?.unwrap_or(0),
            flags: FLAG_VERIFY,
        })?;
        let state = seat.request.wait(deadline)?;
        let r = seat.request.report();
        let outcome = r.copy_outcome.unwrap_or(Outcome::Torn);
        if state != State::Done || outcome != Outcome::Complete {
            return Err(Error::new(
                Status::Stalled,
                format!("version {version} is {} after the deadline", state.name()),
            ));
        }
        let digests = r.digests.into_iter().filter(|_| is_first);
        Ok(Moved {
            outcome: outcome.name().into(),
            is_verified: r.is_verified,
            agree_ns: r.times.agree_ns.unwrap_or(0),
            move_ns: r.times.move_ns.unwrap_or(0),
            settle_ns: r.times.settle_ns.unwrap_or(0),
            bytes_sent: r.bytes_sent,
            bytes_received: r.bytes_received,
            bytes_local: r.bytes_local,
            digests: digests.map(|d| (d.tensor, d.digest)).collect(),
        })
    }

    /// Writes a destination rank's buffers as they are, with their views as
    /// metadata; a rank that is source only has nothing to write.
    fn save(&mut self, folder: &Path) -> Result<Answer> {
        let Rank(rank) = self.job.rank;
        let plan = self.plan.clone();
        let (seat, _) = self.seat()?;
        let shard = &seat.destination;
        if shard.buffers.is_empty() {
            return Ok(Answer::Saved);
        }
        let path = folder.join(format!("rank_{rank}.safetensors"));
        let failed = |e: safetensors::SafeTensorError| {
            let text = format!("cannot write {}: {e}", path.display());
            Error::new(Status::Io, text)
        };
        let mut tensors = Vec::new();
        let mut views = Vec::new();
        for b in &shard.buffers {
            let bytes = b.bytes.all();
            let shape = vec![bytes.len()];
            let u8s = safetensors::tensor::Dtype::U8;
            let view = safetensors::tensor::TensorView::new(u8s, shape, bytes);
            tensors.push((b.name.as_str(), view.map_err(failed)?));
            views.extend(b.views.iter().map(|v| {
                let bounds = v.bounds.spans().iter().map(|s| [s.lo, s.hi]);
                json!({
                    "tensor": plan.destination().tensors()[v.tensor.index()].name,
                    "box": bounds.collect::<Vec<_>>(),
                    "buffer": b.name,
                    "offset": v.offset,
                    "strides": v.strides.as_slice(),
                    "dtype": v.dtype.name(),
                })
            }));
        }
        let views = serde_json::Value::from(views).to_string();
        let metadata = HashMap::from([("views".to_string(), views)]);
        safetensors::serialize_to_file(tensors, Some(metadata), &path).map_err(failed)?;
        Ok(Answer::Saved)
    }
}

fn shm_options() -> Result<ShmOptions> {
    let mut options = ShmOptions::default();
    if let Some(bytes) = env::shm_ring_bytes_max()? {
        options.ring_bytes_max = bytes;
    }
    Ok(options)
}
