//! The system calls of the shm transport, each as a safe function.
//!
//! Shared memory here is always a memfd whose pages were allocated beforehand
//! and whose size is sealed, so that touching it can never raise SIGBUS.

use crate::device::available::check_available;
use crate::error::{Error, Result, Status};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Descriptors that one message may carry.
const FD_COUNT_MAX: usize = 2;

const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

fn check(doing: &str, result: i32) -> Result<i32> {
    if result >= 0 {
        return Ok(result);
    }
    Err(Error::os(doing, &io::Error::last_os_error()))
}

/// 128 random bits.
pub(super) fn random() -> Result<[u8; 16]> {
    let mut bytes = [0u8; 16];
    let at: *mut libc::c_void = bytes.as_mut_ptr().cast();
    // SAFETY: the buffer is ours and has the length that is given. Not by its
    // C function, which glibc 2.17 does not have.
    let n = unsafe { libc::syscall(libc::SYS_getrandom, at, bytes.len(), 0) };
    if usize::try_from(n) != Ok(bytes.len()) {
        return Err(Error::os("reading randomness", &io::Error::last_os_error()));
    }
    Ok(bytes)
}

/// Anonymous memory of `bytes` bytes that can be passed to other processes.
/// All pages are there, or it is an error.
pub(super) fn memfd(bytes: u64) -> Result<OwnedFd> {
    check_available("shared memory", bytes)?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string; nothing else is passed. Not by its C
    // function, which glibc 2.17 does not have.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_create, c"wsync".as_ptr(), flags) };
    // A descriptor fits its type.
    let fd = check("creating shared memory", fd as RawFd)?;
    // SAFETY: the descriptor is new and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let length = libc::off_t::try_from(bytes).map_err(|_| {
        Error::new(
            Status::OutOfMemory,
            format!("{bytes} bytes of shared memory"),
        )
    })?;
    // Beyond this limit the kernel would not refuse but send SIGXFSZ.
    if bytes > file_bytes_max() {
        return Err(Error::new(
            Status::OutOfMemory,
            format!(
                "{bytes} bytes of shared memory; ulimit -f allows {}",
                file_bytes_max()
            ),
        ));
    }
    // SAFETY: a descriptor of ours and plain numbers.
    while unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, length) } != 0 {
        let error = io::Error::last_os_error();
        // Any signal interrupts it, that of a profiler too.
        if error.kind() == io::ErrorKind::Interrupted {
            continue;
        }
        let doing = format!("allocating {bytes} bytes of shared memory");
        let e = Error::os(doing, &error);
        return Err(Error {
            status: Status::OutOfMemory,
            ..e
        });
    }
    // SAFETY: a descriptor of ours and plain numbers.
    let sealed = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, SEALS) };
    check("sealing shared memory", sealed)?;
    Ok(fd)
}

/// How large a file of ours may become.
fn file_bytes_max() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a local of the right type.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

/// A shared mapping of a whole memfd.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain memory; who touches it does so through atomics
// or by the ring's rules.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the `bytes` bytes of a memfd. One that came from somebody else
    /// must have that size, sealed.
    pub(super) fn new(fd: &OwnedFd, bytes: u64) -> Result<Mapping> {
        let size = std::fs::File::from(fd.try_clone().map_err(|e| Error::os("dup", &e))?)
            .metadata()
            .map_err(|e| Error::os("looking at shared memory", &e))?
            .len();
        // SAFETY: a descriptor of ours and plain numbers.
        let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
        if size != bytes || seals < 0 || seals & SEALS != SEALS {
            return Err(Error::new(
                Status::Protocol,
                format!("shared memory of {size} bytes, seals {seals:#x}; {bytes} were announced"),
            ));
        }
        let length = usize::try_from(bytes)
            .map_err(|_| Error::new(Status::Protocol, format!("{bytes} bytes to map")))?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Mapping {
                start,
                bytes: length,
            }),
            _ => Err(Error::os(
                format!("mapping {bytes} bytes of shared memory"),
                &io::Error::last_os_error(),
            )),
        }
    }

    /// Address of byte `offset`, which lies inside.
    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.bytes, "beyond the mapping");
        // SAFETY: not beyond one past the end of the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// The start of the mapping as a structure of atomics.
    ///
    /// # Safety
    ///
    /// `T` consists of atomics only, so that any bytes are a value and others
    /// may write them at any time.
    pub(super) unsafe fn head<T>(&self) -> &T {
        assert!(size_of::<T>() <= self.bytes, "beyond the mapping");
        // SAFETY: inside the mapping, which lives as long as the reference and
        // is page-aligned; the caller vouches for `T`.
        unsafe { self.start.cast::<T>().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping; references into it borrow from us.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Sleeps while `*word == value`, at most `timeout`. Works across processes.
pub(super) fn futex_wait(word: &AtomicU32, value: u32, timeout: Duration) {
    let time = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: word and time outlive the call. All ends of it (woken, changed,
    // timed out, interrupted) are the same to the caller.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            &raw const time,
        );
    }
}

/// Wakes whoever sleeps on `word`.
pub(super) fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word outlives the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// True if the process at the other end runs under our user.
pub(super) fn is_same_user(stream: &UnixStream) -> Result<bool> {
    let mut who = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to locals of the sizes that are given.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &raw mut length,
        )
    };
    check("asking who is connecting", got)?;
    // SAFETY: takes nothing and cannot fail.
    Ok(who.uid == unsafe { libc::geteuid() })
}

/// Connects to an abstract socket without waiting: `WouldBlock` if the
/// listener's queue is full.
pub(super) fn connect(name: &[u8]) -> io::Result<UnixStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    let stream = unsafe { UnixStream::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid address structure.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // Abstract: the first byte of the path stays zero.
    for (to, from) in address.sun_path[1..].iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    // SAFETY: the address is a local, of at least the length that is given:
    // names are 38 bytes, paths have room for 108.
    let connected = unsafe { libc::connect(fd, (&raw const address).cast(), length as u32) };
    if connected != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stream)
}

/// Room for the control message that carries descriptors.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends bytes, and descriptors if there are any, in one message. Never raises
/// SIGPIPE.
pub(super) fn send(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    assert!(fds.len() <= FD_COUNT_MAX, "at most two descriptors");
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; 64]);
    // SAFETY: all zeroes is a valid message header.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        put_fds(&mut message, &mut control, fds);
    }
    // SAFETY: all pointers are to locals that outlive the call.
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Attaches descriptors to a message.
fn put_fds(message: &mut libc::msghdr, control: &mut Control, fds: &[RawFd]) {
    let length = size_of_val(fds) as u32;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: the control room is aligned and large enough for one header and
    // two descriptors, and its length is set before the header is looked for.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(length) as _;
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(length) as _;
        let to = libc::CMSG_DATA(header).cast::<RawFd>();
        for (i, fd) in fds.iter().enumerate() {
            to.add(i).write_unaligned(*fd);
        }
    }
}

/// Receives bytes, and any descriptors that come with them; 0 is the end of
/// the stream.
pub(super) fn receive(
    stream: &UnixStream,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; 64]);
    // SAFETY: all zeroes is a valid message header.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: all pointers are to locals, or to the caller's slice, with the
    // lengths that are given.
    let got =
        unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    take_fds(&message, fds);
    if message.msg_flags & libc::MSG_CTRUNC != 0 || fds.len() > FD_COUNT_MAX {
        return Err(io::Error::other("too many descriptors"));
    }
    Ok(got)
}

/// Takes ownership of the descriptors that a message brought.
fn take_fds(message: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: the message was just filled by the kernel, and its control room
    // is alive; each descriptor in it is new and ours.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let is_fds =
                (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS;
            if is_fds {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let from = libc::CMSG_DATA(header).cast::<RawFd>();
                for i in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(from.add(i).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
}

/// An eventfd: what wakes a thread that sleeps in [`poll`].
pub(super) fn eventfd() -> Result<std::fs::File> {
    // SAFETY: plain numbers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    let fd = check("creating an eventfd", fd)?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { std::fs::File::from_raw_fd(fd) })
}

/// Sleeps until a descriptor has news; `revents` says which.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) {
    let ms = timeout.map_or(-1, |t| t.as_millis().min(60_000) as i32 + 1);
    // SAFETY: the slice is ours and has the length that is given.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, ms) };
}

/// Ends this process as `kill -9` would.
pub(super) fn die() -> ! {
    loop {
        // SAFETY: our own process; it does not come back from this.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        // SAFETY: sleeps until a signal comes.
        unsafe { libc::pause() };
    }
}
