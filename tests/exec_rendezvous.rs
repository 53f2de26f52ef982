//! The built-in rendezvous, among friends and among strangers.

mod exec_support;

use exec_support::address::free_address;
use exec_support::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use weightsync::exec::*;
use weightsync::transport::bootstrap::Loopback;
use weightsync::{Error, Rank, Result, Status};

const TOKEN: &[u8] = b"a secret of this test";

fn endpoint(rank: u32, ranks: &RankSet) -> Endpoint {
    Endpoint::new(Rank(rank), ranks.clone(), Box::new(Loopback)).unwrap()
}

/// Every rank of `0..count` comes with the token that `token` gives it; beside
/// them runs `stranger`.
fn rendezvous(
    count: u32,
    deadline_ns: u64,
    token: impl Fn(u32) -> Option<Vec<u8>> + Sync,
    stranger: impl Fn(&str) + Sync,
) -> Vec<Option<Result<()>>> {
    let address = free_address();
    let ranks = RankSet::count(count).unwrap();
    let endpoints: Vec<_> = (0..count).map(|r| endpoint(r, &ranks)).collect();
    std::thread::scope(|scope| {
        let strange = scope.spawn(|| stranger(&address));
        let threads: Vec<_> = endpoints
            .iter()
            .map(|e| {
                let (token, address) = (&token, &address);
                scope.spawn(move || {
                    let token = token(e.rank().0)?;
                    Some(e.rendezvous(address, &token, deadline_ns))
                })
            })
            .collect();
        let results = threads.into_iter().map(|t| t.join().unwrap()).collect();
        strange.join().unwrap();
        results
    })
}

fn all_meet(stranger: impl Fn(&str) + Sync) {
    let results = rendezvous(5, 20 * SECOND, |_| Some(TOKEN.to_vec()), stranger);
    for result in results {
        assert_eq!(result, Some(Ok(())));
    }
}

/// Connects, as soon as somebody listens.
fn connect(address: &str) -> Option<TcpStream> {
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        if let Ok(stream) = TcpStream::connect(address) {
            return Some(stream);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

#[test]
fn ranks_meet_by_address_and_token() {
    all_meet(|_| {});
}

#[test]
fn one_rank_meets_itself() {
    let results = rendezvous(1, SECOND, |_| Some(TOKEN.to_vec()), |_| {});
    assert_eq!(results, [Some(Ok(()))]);
}

#[test]
fn strangers_that_say_garbage_are_not_heard() {
    all_meet(|address| {
        for n in 0..20u8 {
            let Some(mut s) = connect(address) else {
                return;
            };
            let _ = s.write_all(&vec![n.wrapping_mul(37); 1 << 16]);
        }
    });
}

#[test]
fn strangers_that_say_nothing_hold_up_nobody() {
    let start = Instant::now();
    all_meet(|address| {
        let silent: Vec<_> = (0..30).map_while(|_| connect(address)).collect();
        std::thread::sleep(Duration::from_millis(300));
        drop(silent);
    });
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_crowd_that_drips_bytes_holds_up_nobody() {
    all_meet(|address| {
        let mut crowd: Vec<_> = (0..100).map_while(|_| connect(address)).collect();
        for byte in b"WSYNCRV\x01" {
            for s in &mut crowd {
                let _ = s.write_all(&[*byte]);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn a_hello_that_claims_too_much_is_dropped() {
    all_meet(|address| {
        for _ in 0..5 {
            let Some(mut s) = connect(address) else {
                return;
            };
            let mut hello = b"WSYNCRV\x01".to_vec();
            hello.extend_from_slice(&1u32.to_le_bytes());
            hello.extend_from_slice(&[7; 64]);
            hello.extend_from_slice(&u16::MAX.to_le_bytes());
            hello.extend_from_slice(&vec![9; 1 << 16]);
            let _ = s.write_all(&hello);
            // Cut off instead of read to its end.
            s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut rest = Vec::new();
            let _ = s.read_to_end(&mut rest);
        }
    });
}

#[test]
fn the_wrong_token_is_refused_and_the_missing_rank_named() {
    let token = |rank| {
        Some(if rank == 2 {
            b"guess".to_vec()
        } else {
            TOKEN.to_vec()
        })
    };
    let start = Instant::now();
    let results = rendezvous(4, 3000 * MS, token, |_| {});
    let errors: Vec<Error> = results
        .into_iter()
        .map(|r| r.unwrap().unwrap_err())
        .collect();
    assert_eq!(errors[2].status, Status::Refused, "{}", errors[2]);
    assert_eq!(errors[0].status, Status::MeetTimeout, "{}", errors[0]);
    assert_eq!(errors[0].rank, Some(Rank(2)), "{}", errors[0]);
    for e in [&errors[1], &errors[3]] {
        assert_eq!(e.status, Status::MeetTimeout, "{e}");
    }
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let token = |rank| (rank != 1 && rank != 3).then(|| TOKEN.to_vec());
    let results = rendezvous(4, 700 * MS, token, |_| {});
    let e = results[0].clone().unwrap().unwrap_err();
    assert_eq!((e.status, e.rank), (Status::MeetTimeout, Some(Rank(1))));
    assert!(e.message.contains("ranks 1, 3"), "{e}");
    let e = results[2].clone().unwrap().unwrap_err();
    assert_eq!(e.status, Status::MeetTimeout, "{e}");
}

#[test]
fn without_a_host_the_others_give_up_in_time() {
    let token = |rank| (rank != 0).then(|| TOKEN.to_vec());
    let start = Instant::now();
    let results = rendezvous(3, 500 * MS, token, |_| {});
    for result in results.into_iter().skip(1) {
        let e = result.unwrap().unwrap_err();
        assert_eq!(
            (e.status, e.rank),
            (Status::MeetTimeout, Some(Rank(0))),
            "{e}"
        );
    }
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_host_that_is_somebody_else_makes_nobody_wait_or_crash() {
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = foreign.local_addr().unwrap().to_string();
    let ranks = RankSet::count(2).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            foreign.set_nonblocking(true).unwrap();
            while start.elapsed() < Duration::from_millis(1500) {
                if let Ok((mut s, _)) = foreign.accept() {
                    let _ = s.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let e = endpoint(1, &ranks)
            .rendezvous(&address, TOKEN, 900 * MS)
            .unwrap_err();
        assert_eq!(e.status, Status::MeetTimeout, "{e}");
    });
    assert!(start.elapsed() < Duration::from_secs(6));
}

#[test]
fn bad_arguments_are_refused_at_once() {
    let ranks = RankSet::count(2).unwrap();
    let e = |address: &str, token: &[u8]| {
        endpoint(0, &ranks)
            .rendezvous(address, token, SECOND)
            .unwrap_err()
            .status
    };
    assert_eq!(e("127.0.0.1:1", b""), Status::LimitExceeded);
    assert_eq!(e("127.0.0.1:1", &[7; 300]), Status::LimitExceeded);
    assert_eq!(e("no port", TOKEN), Status::InvalidArgument);
    assert_eq!(e("127.0.0.1:99999", TOKEN), Status::InvalidArgument);
    assert_eq!(e(":29400", TOKEN), Status::InvalidArgument);
}

#[test]
fn a_name_that_does_not_resolve_is_given_up_at_the_deadline() {
    let ranks = RankSet::count(2).unwrap();
    let start = Instant::now();
    let e = endpoint(1, &ranks)
        .rendezvous("nobody.invalid:29400", TOKEN, 300 * MS)
        .unwrap_err();
    assert_eq!(e.status, Status::MeetTimeout, "{e}");
    assert!(e.message.contains("nobody.invalid:29400"), "{e}");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn an_abort_ends_a_rendezvous_at_once_on_the_host_and_on_a_guest() {
    let address = free_address();
    let ranks = RankSet::count(3).unwrap();
    let endpoints = [endpoint(0, &ranks), endpoint(1, &ranks)];
    let start = Instant::now();
    std::thread::scope(|scope| {
        let meet = |e: &Endpoint| e.rendezvous(&address, TOKEN, 60 * SECOND).unwrap_err();
        let threads = endpoints.each_ref().map(|e| scope.spawn(move || meet(e)));
        // Rank 2 never comes.
        std::thread::sleep(Duration::from_millis(200));
        endpoints.iter().for_each(|e| e.abort("enough"));
        for (thread, endpoint) in threads.into_iter().zip(&endpoints) {
            let e = thread.join().unwrap();
            assert_eq!(e.status, Status::Aborted, "{e}");
            assert_eq!(e.message, "enough");
            assert_eq!(e.rank, Some(endpoint.rank()));
        }
    });
    assert!(start.elapsed() < Duration::from_secs(5));
}
