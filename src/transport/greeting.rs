//! What a rank tells the others so that they can find it.
//!
//! ```text
//!   magic 8 │ format 2 │ ABI 2 │ library 4 │ kind 1 │ rank 4 │ hash of the
//!   rank list 8 │ token 16 │ control address │ data address │ checksum 8
//! ```
//!
//! Numbers are little endian; addresses carry a length. Every field of every
//! greeting is checked before anybody is connected to, and what is wrong is
//! named with the rank that it comes from. The tokens of all greetings make
//! the *group*, a secret that only those who were given the same greetings
//! share.

use super::Kind;
use super::control::Address;
use super::mac::mac;
use crate::error::{Error, Result, Status};
use crate::limits::GREETING_BYTES_MAX;
use crate::rank::Rank;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"WSYNCHI\x01";
/// Changes whenever the fields do.
const FORMAT: u16 = 1;
/// Bytes of a data plane's address.
pub const ADDRESS_BYTES_MAX: usize = 256;

/// The library's version, packed: major, minor, patch.
pub fn library_version() -> u32 {
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    number(env!("CARGO_PKG_VERSION_MAJOR")) << 20
        | number(env!("CARGO_PKG_VERSION_MINOR")) << 10
        | number(env!("CARGO_PKG_VERSION_PATCH"))
}

/// The number in the library's SONAME.
pub fn abi_version() -> u16 {
    env!("WSYNC_ABI").parse().unwrap_or(0)
}

/// Tells rank lists apart.
pub fn hash_ranks(ranks: &[Rank]) -> u64 {
    let mut bytes = Vec::with_capacity(ranks.len() * 4);
    for rank in ranks {
        bytes.extend_from_slice(&rank.0.to_le_bytes());
    }
    xxh3_64(&bytes)
}

/// One rank's greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub kind: Kind,
    pub rank: Rank,
    /// Hash of the list of all ranks.
    pub ranks: u64,
    /// Random; secret.
    pub token: u128,
    pub control: Address,
    /// Whatever the data plane needs to be found.
    pub data: Vec<u8>,
}

impl Greeting {
    pub fn encode(&self) -> Result<Vec<u8>> {
        if self.data.len() > ADDRESS_BYTES_MAX {
            return Err(Error::limit(format!(
                "a data address has {} bytes; at most {ADDRESS_BYTES_MAX} are allowed",
                self.data.len()
            )));
        }
        let mut out = Vec::with_capacity(GREETING_BYTES_MAX);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&abi_version().to_le_bytes());
        out.extend_from_slice(&library_version().to_le_bytes());
        out.push(self.kind as u8);
        out.extend_from_slice(&self.rank.0.to_le_bytes());
        out.extend_from_slice(&self.ranks.to_le_bytes());
        out.extend_from_slice(&self.token.to_le_bytes());
        put_address(&mut out, &self.control);
        put_bytes(&mut out, &self.data);
        let checksum = xxh3_64(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        debug_assert!(out.len() <= GREETING_BYTES_MAX);
        Ok(out)
    }

    /// Reads one greeting; whatever is wrong with it is an error.
    pub fn decode(bytes: &[u8]) -> Result<Greeting> {
        if bytes.len() > GREETING_BYTES_MAX {
            return Err(Error::corrupt(format!(
                "a greeting has {} bytes; at most {GREETING_BYTES_MAX} are allowed",
                bytes.len()
            )));
        }
        let head = bytes.get(..12).filter(|h| h.starts_with(MAGIC));
        let Some(head) = head else {
            return Err(Error::corrupt(format!(
                "{} bytes are not a greeting of a rank",
                bytes.len()
            )));
        };
        check_versions(head)?;
        let (body, checksum) = bytes.split_at(bytes.len().saturating_sub(8));
        let is_intact = checksum == xxh3_64(body).to_le_bytes();
        let greeting = body.get(12..).filter(|_| is_intact).and_then(parse);
        greeting.ok_or_else(|| {
            Error::corrupt(format!("a greeting of {} bytes is damaged", bytes.len()))
        })
    }
}

fn check_versions(head: &[u8]) -> Result<()> {
    let number = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let (format, abi) = (number(8), number(10));
    if (format, abi) != (FORMAT, abi_version()) {
        return Err(Error::new(
            Status::VersionMismatch,
            format!(
                "a greeting has format {format} and ABI {abi}; this library has format {FORMAT} \
                 and ABI {}",
                abi_version()
            ),
        ));
    }
    Ok(())
}

/// The fields from the library version on, less the checksum.
fn parse(body: &[u8]) -> Option<Greeting> {
    let mut r = Reader { rest: body };
    let _library = r.array::<4>()?;
    let greeting = Greeting {
        kind: Kind::from_code(r.array::<1>()?[0])?,
        rank: Rank(u32::from_le_bytes(r.array()?)),
        ranks: u64::from_le_bytes(r.array()?),
        token: u128::from_le_bytes(r.array()?),
        control: r.address()?,
        data: r.bytes(ADDRESS_BYTES_MAX)?.to_vec(),
    };
    r.rest.is_empty().then_some(greeting)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_address(out: &mut Vec<u8>, address: &Address) {
    match address {
        Address::Unix(name) => {
            out.push(1);
            out.extend_from_slice(&name.to_le_bytes());
        }
        Address::Tcp(SocketAddr::V4(a)) => {
            out.push(4);
            out.extend_from_slice(&a.ip().octets());
            out.extend_from_slice(&a.port().to_le_bytes());
        }
        Address::Tcp(SocketAddr::V6(a)) => {
            out.push(6);
            out.extend_from_slice(&a.ip().octets());
            out.extend_from_slice(&a.port().to_le_bytes());
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn bytes(&mut self, max: usize) -> Option<&'a [u8]> {
        let n = usize::from(u16::from_le_bytes(self.array()?));
        if n > max {
            return None;
        }
        self.take(n)
    }

    fn address(&mut self) -> Option<Address> {
        match self.array::<1>()?[0] {
            1 => Some(Address::Unix(u128::from_le_bytes(self.array()?))),
            4 => {
                let ip = IpAddr::V4(Ipv4Addr::from(self.array::<4>()?));
                self.port(ip)
            }
            6 => {
                let ip = IpAddr::V6(Ipv6Addr::from(self.array::<16>()?));
                self.port(ip)
            }
            _ => None,
        }
    }

    fn port(&mut self, ip: IpAddr) -> Option<Address> {
        let port = u16::from_le_bytes(self.array()?);
        Some(Address::Tcp(SocketAddr::new(ip, port)))
    }
}

/// The greetings of all ranks, checked.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// By rank, ascending.
    pub greetings: Vec<Greeting>,
    /// The secret that all of them make.
    pub group: u128,
}

/// Checks that `blobs` are one greeting of each of `ranks` and fit together.
pub fn gather<G: AsRef<[u8]>>(kind: Kind, ranks: &[Rank], blobs: &[G]) -> Result<Gathered> {
    let mut greetings = Vec::with_capacity(blobs.len());
    for (i, blob) in blobs.iter().enumerate() {
        let greeting = Greeting::decode(blob.as_ref()).map_err(|e| Error {
            message: format!("greeting {i}: {}", e.message),
            ..e
        })?;
        check_one(&greeting, kind, ranks)?;
        greetings.push(greeting);
    }
    greetings.sort_unstable_by_key(|g| g.rank);
    check_duplicates(&greetings)?;
    check_missing(&greetings, ranks)?;
    let group = group_of(&greetings)?;
    Ok(Gathered { greetings, group })
}

fn check_one(greeting: &Greeting, kind: Kind, ranks: &[Rank]) -> Result<()> {
    let rank = greeting.rank;
    if greeting.kind != kind {
        return Err(Error::invalid(format!(
            "rank {rank} greets for transport {}; this is {}",
            greeting.kind.name(),
            kind.name()
        ))
        .by(rank));
    }
    if ranks.binary_search(&rank).is_err() {
        return Err(Error::invalid(format!(
            "a greeting comes from rank {rank}, which is none of the {} ranks of the transport",
            ranks.len()
        ))
        .by(rank));
    }
    if greeting.ranks != hash_ranks(ranks) {
        return Err(Error::invalid(format!(
            "rank {rank} was made with another list of ranks than this one's {}",
            ranks.len()
        ))
        .by(rank));
    }
    Ok(())
}

fn check_duplicates(sorted: &[Greeting]) -> Result<()> {
    match sorted.windows(2).find(|w| w[0].rank == w[1].rank) {
        None => Ok(()),
        Some(pair) => {
            let rank = pair[0].rank;
            Err(Error::invalid(format!("rank {rank} has greeted more than once")).by(rank))
        }
    }
}

fn check_missing(sorted: &[Greeting], ranks: &[Rank]) -> Result<()> {
    let is_here = |r: &&Rank| sorted.binary_search_by_key(*r, |g| g.rank).is_ok();
    let missing: Vec<Rank> = ranks.iter().filter(|r| !is_here(r)).copied().collect();
    let Some(&first) = missing.first() else {
        return Ok(());
    };
    Err(Error::invalid(format!(
        "{} of {} greetings are missing: {}",
        missing.len(),
        ranks.len(),
        list_ranks(&missing)
    ))
    .by(first))
}

/// Some rank numbers, the first few of them spelled out.
pub fn list_ranks(ranks: &[Rank]) -> String {
    const SHOWN: usize = 8;
    let mut text = String::from(if ranks.len() == 1 { "rank " } else { "ranks " });
    for (i, rank) in ranks.iter().take(SHOWN).enumerate() {
        if i > 0 {
            text.push_str(", ");
        }
        text.push_str(&rank.to_string());
    }
    if ranks.len() > SHOWN {
        text.push_str(&format!(" and {} more", ranks.len() - SHOWN));
    }
    text
}

fn group_of(sorted: &[Greeting]) -> Result<u128> {
    let mut all = Vec::with_capacity(sorted.len() * 64);
    for greeting in sorted {
        all.extend_from_slice(&greeting.encode()?);
    }
    let hash = mac(b"weightsync group", &[&all]);
    let (half, _) = hash.split_at(16);
    Ok(half
        .iter()
        .fold(0, |group, byte| group << 8 | u128::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(rank: u32, ranks: &[Rank]) -> Greeting {
        Greeting {
            kind: Kind::Shm,
            rank: Rank(rank),
            ranks: hash_ranks(ranks),
            token: u128::from(rank) << 77 | 5,
            control: Address::Unix(u128::MAX - 7),
            data: vec![1, 2, 3],
        }
    }

    fn blobs(ranks: &[Rank]) -> Vec<Vec<u8>> {
        let encode = |r: &Rank| greeting(r.0, ranks).encode().unwrap();
        ranks.iter().map(encode).collect()
    }

    #[test]
    fn greetings_come_back_as_they_went() {
        let ranks = [0, 3, 4].map(Rank);
        let v6: SocketAddr = "[2001:db8::1]:9".parse().unwrap();
        let v4: SocketAddr = "10.1.2.3:65535".parse().unwrap();
        for control in [Address::Unix(9), Address::Tcp(v4), Address::Tcp(v6)] {
            let mut g = greeting(3, &ranks);
            g.control = control;
            g.data = vec![0xab; ADDRESS_BYTES_MAX];
            let blob = g.encode().unwrap();
            assert!(blob.len() <= GREETING_BYTES_MAX);
            assert_eq!(Greeting::decode(&blob).unwrap(), g);
        }
    }

    #[test]
    fn damaged_greetings_are_refused() {
        let blob = greeting(1, &[Rank(1)]).encode().unwrap();
        for n in 0..blob.len() {
            assert!(Greeting::decode(&blob[..n]).is_err());
        }
        for bit in 0..blob.len() * 8 {
            let mut bad = blob.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Greeting::decode(&bad).is_err(), "bit {bit}");
        }
        assert!(Greeting::decode(&[0; 4096]).is_err());
    }

    #[test]
    fn other_versions_are_named() {
        let mut blob = greeting(1, &[Rank(1)]).encode().unwrap();
        blob[8] = 99;
        let e = Greeting::decode(&blob).unwrap_err();
        assert_eq!(e.status, Status::VersionMismatch);
        assert!(e.message.contains("99"));
    }

    #[test]
    fn order_does_not_matter_and_the_group_is_shared() {
        let ranks = [0, 1, 2, 5].map(Rank);
        let mut blobs = blobs(&ranks);
        let a = gather(Kind::Shm, &ranks, &blobs).unwrap();
        blobs.reverse();
        let b = gather(Kind::Shm, &ranks, &blobs).unwrap();
        assert_eq!(a.group, b.group);
        assert_eq!(a.greetings, b.greetings);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let ranks = [0, 1, 2, 5].map(Rank);
        let good = blobs(&ranks);
        let culprit = |kind, blobs: &[Vec<u8>]| gather(kind, &ranks, blobs).unwrap_err();

        let e = culprit(Kind::Shm, &good[..2]);
        assert_eq!(e.rank, Some(Rank(2)));
        assert!(e.message.contains("ranks 2, 5"), "{}", e.message);

        let mut twice = good.clone();
        twice.push(good[1].clone());
        assert_eq!(culprit(Kind::Shm, &twice).rank, Some(Rank(1)));

        assert!(culprit(Kind::Loopback, &good).message.contains("shm"));

        let mut stranger = good.clone();
        stranger[3] = greeting(7, &ranks).encode().unwrap();
        assert_eq!(culprit(Kind::Shm, &stranger).rank, Some(Rank(7)));

        let mut other_list = good.clone();
        other_list[1] = greeting(1, &ranks[..2]).encode().unwrap();
        assert_eq!(culprit(Kind::Shm, &other_list).rank, Some(Rank(1)));

        let mut garbage = good;
        garbage[2] = vec![7; 60];
        let e = culprit(Kind::Shm, &garbage);
        assert_eq!(e.status, Status::Corrupt);
        assert!(e.message.contains("greeting 2"));
    }
}
