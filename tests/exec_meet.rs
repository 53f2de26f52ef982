//! How ranks find each other, and what happens when they do not.

mod exec_support;

use exec_support::*;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use weightsync::device::host::HostDevice;
use weightsync::exec::endpoint::Fault;
use weightsync::exec::*;
use weightsync::plan::Plan;
use weightsync::transport::Kind;
use weightsync::transport::bootstrap::{Loopback, Ready};
use weightsync::transport::control::Address;
use weightsync::transport::greeting::Greeting;
use weightsync::transport::loopback::LoopbackHub;
use weightsync::{Error, Rank, Result, Status};

fn endpoints(count: u32) -> Vec<Endpoint> {
    let ranks = RankSet::count(count).unwrap();
    (0..count)
        .map(|r| Endpoint::new(Rank(r), ranks.clone(), Box::new(Loopback)).unwrap())
        .collect()
}

fn greetings(endpoints: &[Endpoint]) -> Vec<Vec<u8>> {
    endpoints.iter().map(|e| e.greeting().to_vec()).collect()
}

/// Has all of these meet at once.
fn meet_all(endpoints: &[Endpoint], greetings: &[Vec<u8>], deadline: u64) -> Vec<Result<()>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = endpoints
            .iter()
            .map(|e| scope.spawn(|| e.meet(greetings, deadline)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn control_name(greeting: &[u8]) -> SocketAddr {
    match Greeting::decode(greeting).unwrap().control {
        Address::Unix(name) => {
            SocketAddr::from_abstract_name(format!("weightsync-control-{name:032x}")).unwrap()
        }
        Address::Tcp(address) => panic!("{address}"),
    }
}

#[test]
fn any_rank_set_meets_in_any_order() {
    let ranks = RankSet::list(&[Rank(7), Rank(3), Rank(1000), Rank(4)]).unwrap();
    assert_eq!(ranks.lowest(), Rank(3));
    let endpoints: Vec<_> = [1000, 4, 3, 7]
        .map(|r| Endpoint::new(Rank(r), ranks.clone(), Box::new(Loopback)).unwrap())
        .into();
    let greetings = greetings(&endpoints);
    for result in meet_all(&endpoints, &greetings, 20 * SECOND) {
        assert_eq!(result, Ok(()));
    }
}

#[test]
fn a_hundred_ranks_meet() {
    let endpoints = endpoints(100);
    let greetings = greetings(&endpoints);
    for result in meet_all(&endpoints, &greetings, 20 * SECOND) {
        assert_eq!(result, Ok(()));
    }
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let endpoints = endpoints(4);
    let greetings = greetings(&endpoints);
    let start = Instant::now();
    let results = meet_all(&endpoints[..3], &greetings, 400 * MS);
    let e = results[0].as_ref().unwrap_err();
    assert_eq!(
        (e.status, e.rank),
        (Status::MeetTimeout, Some(Rank(3))),
        "{e}"
    );
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// Rank 9 is a child of rank 1, whom rank 0 has met by then.
#[test]
fn those_who_have_met_hear_who_did_not_come() {
    let endpoints = endpoints(10);
    let greetings = greetings(&endpoints);
    let results = meet_all(&endpoints[..9], &greetings, 600 * MS);
    let wanted = Some((Status::MeetTimeout, Some(Rank(9))));
    let why = |e: &Error| (e.status, e.rank);
    assert_eq!(results[1].as_ref().err().map(why), wanted);
    for rank in [0, 2, 8] {
        assert_eq!(results[rank], Ok(()));
        let reason = || endpoints[rank].abort_reason();
        assert!(eventually(|| reason().is_some()), "rank {rank}");
        assert_eq!(reason().as_ref().map(why), wanted, "rank {rank}");
    }
}

#[test]
fn a_parent_that_is_gone_is_named_at_once() {
    let mut endpoints = endpoints(3);
    let greetings = greetings(&endpoints);
    drop(endpoints.remove(0));
    let start = Instant::now();
    for result in meet_all(&endpoints, &greetings, 20 * SECOND) {
        let e = result.unwrap_err();
        assert_eq!((e.status, e.rank), (Status::PeerLost, Some(Rank(0))), "{e}");
    }
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn ranks_that_were_given_other_greetings_do_not_meet() {
    let (a, b) = (endpoints(3), endpoints(3));
    let (right, mut mixed) = (greetings(&a), greetings(&a));
    mixed[2] = b[2].greeting().to_vec();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(a[0].meet(&right, 400 * MS).is_err()));
        scope.spawn(|| assert!(a[1].meet(&mixed, 400 * MS).is_err()));
        scope.spawn(|| assert!(b[2].meet(&mixed, 400 * MS).is_err()));
    });
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn strangers_at_the_control_socket_hold_up_nobody() {
    let endpoints = endpoints(4);
    let greetings = greetings(&endpoints);
    let mut strangers = Vec::new();
    for greeting in &greetings[..1] {
        let name = control_name(greeting);
        for n in 0..100u8 {
            let mut s = UnixStream::connect_addr(&name).unwrap();
            s.set_nonblocking(true).unwrap();
            match n % 3 {
                0 => drop(s.write_all(&[n; 4096])),
                1 => drop(s.write_all(b"WSHELLO1")),
                _ => {}
            }
            strangers.push(s);
        }
    }
    for result in meet_all(&endpoints, &greetings, 20 * SECOND) {
        assert_eq!(result, Ok(()));
    }
}

#[test]
fn meeting_is_tried_once_and_comes_before_sessions() {
    let endpoints = endpoints(2);
    let greetings = greetings(&endpoints);
    let device = Arc::new(HostDevice::new().unwrap());
    let early = Session::new(&endpoints[0], device, SessionOptions::default());
    assert_eq!(early.unwrap_err().status, Status::InvalidState);
    let e = endpoints[0].meet(&greetings[..1], SECOND).unwrap_err();
    assert_eq!(
        (e.status, e.rank),
        (Status::InvalidArgument, Some(Rank(1))),
        "{e}"
    );
    // Bad greetings are no attempt.
    for result in meet_all(&endpoints, &greetings, 20 * SECOND) {
        assert_eq!(result, Ok(()));
    }
    let e = endpoints[0].meet(&greetings, SECOND).unwrap_err();
    assert_eq!(e.status, Status::InvalidState);
    endpoints[1].abort("enough");
    assert!(eventually(|| endpoints[0].abort_reason().is_some()));
    let e = endpoints[0].abort_reason().unwrap();
    assert_eq!((e.status, e.rank), (Status::Aborted, Some(Rank(1))));
    assert_eq!(e.message, "enough");
}

#[test]
fn an_abort_ends_a_meeting_at_once() {
    let endpoints = endpoints(2);
    let greetings = greetings(&endpoints);
    let start = Instant::now();
    std::thread::scope(|scope| {
        // Rank 1 never meets.
        let meeting = scope.spawn(|| endpoints[0].meet(&greetings, 60 * SECOND));
        std::thread::sleep(Duration::from_millis(100));
        endpoints[0].abort("enough");
        let e = meeting.join().unwrap().unwrap_err();
        assert_eq!((e.status, &*e.message), (Status::Aborted, "enough"));
    });
    assert!(start.elapsed() < Duration::from_secs(5));
    let e = endpoints[1].meet(&greetings, SECOND).unwrap_err();
    assert_eq!((e.status, e.rank), (Status::PeerLost, Some(Rank(0))), "{e}");
}

#[test]
fn rank_sets_are_checked() {
    let status = |r: Result<RankSet>| r.unwrap_err().status;
    assert_eq!(status(RankSet::count(0)), Status::InvalidArgument);
    assert_eq!(status(RankSet::count(u32::MAX)), Status::LimitExceeded);
    assert_eq!(
        status(RankSet::list(&[Rank(1), Rank(1)])),
        Status::InvalidArgument
    );
    assert_eq!(
        status(RankSet::list(&[Rank(u32::MAX)])),
        Status::LimitExceeded
    );
    let ranks = RankSet::count(2).unwrap();
    let e = Endpoint::new(Rank(2), ranks, Box::new(Loopback)).unwrap_err();
    assert_eq!(e.status, Status::InvalidArgument);
}

/// The control channel over TCP, as transports across hosts have it.
fn over_tcp(script: impl Fn(&World, Endpoint, Arc<Plan>) + Sync) {
    let world = World::new(Carrier::Loopback, Shape::Wide, 3);
    let plan = world.shape.plan(3);
    let hub = LoopbackHub::new(18);
    let endpoints = meet(18, |r| {
        let transport = hub.attach(Rank(r)).unwrap();
        Box::new(Ready::new(Kind::Custom, transport))
    })
    .unwrap();
    std::thread::scope(|scope| {
        for endpoint in endpoints {
            assert!(matches!(
                Greeting::decode(endpoint.greeting()).unwrap().control,
                Address::Tcp(_)
            ));
            let (world, script, plan) = (&world, &script, plan.clone());
            scope.spawn(move || script(world, endpoint, plan));
        }
    });
}

#[test]
fn versions_arrive_with_a_control_channel_over_tcp() {
    let gate = Gate::new(18);
    over_tcp(|world, endpoint, plan| {
        let rig = world.rig(endpoint, &|_| plan.clone());
        for version in 1..=3 {
            assert_eq!(rig.sync(&options(version)), Ok(State::Done));
            if let Some(d) = rig.destination() {
                assert_eq!(d.now(), d.expected(version));
            }
        }
        gate.wait();
        assert_eq!(rig.endpoint.finalize(20 * SECOND), Ok(()));
    });
}

#[test]
fn a_death_is_seen_over_tcp() {
    let gate = Gate::new(18);
    over_tcp(|world, endpoint, plan| {
        let rig = world.rig(endpoint, &|_| plan.clone());
        gate.wait();
        if rig.rank == 1 {
            rig.request.prepare(&options(1)).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            rig.endpoint.inject(Fault::Die);
        } else {
            let result = rig.sync(&options(1));
            let e = failure(&result);
            assert_eq!((e.status, e.rank), (Status::PeerLost, Some(Rank(1))), "{e}");
        }
        gate.wait();
    });
}
