//! NCCL on a single GPU: one rank that sends to itself, and up to four ranks
//! that share it. On the stand-in, or with WSYNC_TEST_GPU=1 on the GPU of this
//! machine with the NCCL that is found there (sharing needs 2.30.3).

mod exec_support;

use exec_support::address::free_address;
use exec_support::fake_gpu::nccl::{self as fake, alone, share_gpu};
use exec_support::*;
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};
use weightsync::exec::*;
use weightsync::transport::nccl::Nccl;
use weightsync::transport::nccl::library::MULTI_RANK_GPU;
use weightsync::{Rank, Status};

/// True if ranks can share a GPU here.
fn can_share() -> bool {
    let library = (!fake_gpu::is_real()).then(fake::library);
    let nccl = Nccl::find(library.as_deref()).unwrap();
    if !nccl.can(&MULTI_RANK_GPU) {
        eprintln!(
            "skipped: NCCL {} takes one rank per GPU",
            nccl.version_text()
        );
        return false;
    }
    true
}

fn begin() -> impl Drop {
    static ONCE: Once = Once::new();
    ONCE.call_once(share_gpu);
    alone()
}

#[test]
fn one_rank_sends_to_itself() {
    let _alone = begin();
    // The warm-up is a send and a receive, and looks at what came.
    let endpoints = meet(1, |rank| Box::new(fake::bootstrap(rank))).unwrap();
    let transport = endpoints[0].transport().unwrap();
    assert_eq!((transport.name(), transport.gpu()), ("nccl", Some(0)));
    assert!(endpoints[0].abort_reason().is_none());
}

#[test]
fn ranks_that_share_a_gpu_exchange_every_byte() {
    let _alone = begin();
    if !can_share() {
        return;
    }
    let world = World::new(Carrier::Nccl, Shape::Half, 4);
    world.run(|rig| {
        for version in 1..=3 {
            let o = RequestOptions {
                flags: FLAG_VERIFY,
                ..options(version)
            };
            assert_eq!(rig.sync(&o), Ok(State::Done));
            if let Some(d) = rig.destination() {
                assert_eq!(d.now(), d.expected(version));
            }
        }
    });
}

#[test]
fn a_rank_that_does_not_start_is_named_and_the_others_are_aborted() {
    let _alone = begin();
    if !can_share() {
        return;
    }
    let world = World::new(Carrier::Nccl, Shape::Half, 3);
    let begun = Instant::now();
    world.run(|rig| {
        rig.store(1);
        let o = RequestOptions {
            stall_deadline_ns: SECOND,
            ..options(1)
        };
        rig.request.prepare(&o).unwrap();
        assert_eq!(rig.request.wait_ready(20 * SECOND), Ok(State::Ready));
        if rig.rank != 1 {
            rig.request.start().unwrap();
        }
        // Rank 1 has given its word and keeps it not.
        assert!(eventually(|| rig.endpoint.abort_reason().is_some()));
        let e = rig.endpoint.abort_reason().unwrap();
        assert_eq!((e.status, e.rank), (Status::Stalled, Some(Rank(1))), "{e}");
        if rig.rank != 1 {
            assert!(rig.request.wait(20 * SECOND).is_err());
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
#[ignore = "a process of the test below"]
fn as_process() {
    let Ok(rank) = std::env::var("NCCL_TEST_RANK") else {
        return;
    };
    let rank: u32 = rank.parse().unwrap();
    let address = std::env::var("NCCL_TEST_ADDRESS").unwrap();
    let _alone = begin();
    let world = World::new(Carrier::Nccl, Shape::Half, 3);
    let ranks = RankSet::count(4).unwrap();
    let endpoint = Endpoint::new(Rank(rank), ranks, world.bootstrap(rank)).unwrap();
    let token = b"a token of the test";
    endpoint.rendezvous(&address, token, 60 * SECOND).unwrap();
    let rig = world.rig(endpoint, &|_| world.plan(3));
    rig.sync(&options(1)).unwrap();
    if let Some(d) = rig.destination() {
        assert_eq!(d.now(), d.expected(1));
    }
    println!("rank {rank}: first version complete");
    let before = rig.snapshot();
    rig.store(2);
    rig.request.prepare(&options(2)).unwrap();
    rig.request.wait_ready(20 * SECOND).unwrap();
    if rank == 2 {
        std::process::abort();
    }
    let e = rig
        .request
        .start()
        .and_then(|()| rig.request.wait(20 * SECOND).map(drop))
        .unwrap_err();
    let verdict = rig.verdict(&world, 2, &before);
    check_verdicts(&[verdict], "rank 2 died");
    println!("rank {rank}: {:?}", e.status);
}

#[test]
fn a_process_that_dies_does_not_keep_the_others() {
    {
        let _alone = begin();
        if !can_share() {
            return;
        }
    }
    let address = free_address();
    let spawn = |rank: u32| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "as_process", "--ignored", "--nocapture"])
            .env("NCCL_TEST_RANK", rank.to_string())
            .env("NCCL_TEST_ADDRESS", &address)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let processes: Vec<_> = (0..4).map(spawn).collect();
    for (rank, process) in processes.into_iter().enumerate() {
        let output = process.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("first version complete"), "{rank}: {said}");
        assert_eq!(output.status.success(), rank != 2, "{rank}: {said}");
        assert!(rank == 2 || said.contains("PeerLost"), "{rank}: {said}");
    }
}
