//! Calls into the shared library by name, from a description of each argument.

pub mod entries;

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_void};
use weightsync::capi::mapping::*;
use weightsync::capi::request::*;
use weightsync::capi::session::wsync_binding;
use weightsync::capi::topology::*;
use weightsync::capi::transport::*;
use weightsync::capi::types::*;
use weightsync::capi::views::*;

/// The most arguments that a function of the header has.
pub const WORDS: usize = 9;
pub type Words = [usize; WORDS];
type Raw =
    unsafe extern "C" fn(usize, usize, usize, usize, usize, usize, usize, usize, usize) -> i64;

// ---- the library -------------------------------------------------------

/// The shared library, loaded.
pub struct Library(*mut c_void);

impl Library {
    pub fn open() -> Library {
        let here = std::env::current_exe().expect("a test knows its own path");
        let folder = here.parent().expect("a test lies in a folder");
        let path = folder.join("libweightsync.so");
        let path = CString::new(path.to_str().expect("the path is UTF-8")).expect("no NUL");
        // SAFETY: loads our own library, which runs nothing when loaded.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{path:?} cannot be loaded");
        Library(handle)
    }

    fn find(&self, name: &str) -> Raw {
        let name = CString::new(name).expect("symbols have no NUL");
        // SAFETY: a live handle and a NUL-terminated name.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!address.is_null(), "{name:?} is not exported");
        // SAFETY: a function of the header. Its arguments are integers and
        // pointers, at most nine, which this platform passes like machine
        // words; a callee ignores those it does not have.
        unsafe { std::mem::transmute::<*mut c_void, Raw>(address) }
    }

    pub fn call(&self, name: &str, w: &Words) -> i64 {
        let f = self.find(name);
        // SAFETY: the tests give words that the header allows, or ones that it
        // says are refused.
        unsafe { f(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8]) }
    }

    /// The same with the first few words; the others are 0.
    pub fn call_words(&self, name: &str, words: &[usize]) -> i64 {
        let mut all = [0; WORDS];
        all[..words.len()].copy_from_slice(words);
        self.call(name, &all)
    }

    /// A call that has to work; the error record is added.
    pub fn ok(&self, name: &str, words: &[usize]) {
        let mut err = error_record();
        let status = self.call_words(name, &[words, &[address(&mut err)]].concat());
        assert_eq!(status as i32, 0, "{name}: {}", message(&err));
    }
}

pub fn address<T: ?Sized>(value: &mut T) -> usize {
    std::ptr::from_mut(value).cast::<u8>().expose_provenance()
}

pub fn error_record() -> wsync_error {
    wsync_error {
        struct_size: size_of::<wsync_error>(),
        status: 0,
        native_code: 0,
        native_domain: 0,
        rank: 0,
        message: [0; 496],
    }
}

pub fn message(err: &wsync_error) -> String {
    let bytes = err
        .message
        .iter()
        .take_while(|c| **c != 0)
        .map(|c| *c as u8);
    String::from_utf8(bytes.collect()).expect("messages are UTF-8")
}

pub fn status_of(code: i32) -> wsync_status {
    let status = weightsync::Status::from_code(code);
    status
        .unwrap_or_else(|| panic!("{code} is no status"))
        .into()
}

// ---- one of everything ---------------------------------------------------

pub const LAYOUT: &str = r#"{"weightsync_layout": 1, "ranks": {"first": 0, "count": 1},
    "tensors": [{"name": "w", "shape": [4, 4], "dtype": "f32"}]}"#;

pub const TOPOLOGY: &str = r#"{"weightsync_topology": 1,
    "placement": [{"ranks": {"first": 0, "count": 1}, "gpu": 0}]}"#;

/// How far a world has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nobody was met.
    Alone,
    /// Plan loaded, request never prepared.
    Loaded,
    /// A version was delivered.
    Delivered,
}

/// Live handles of a rank that is alone and on both sides.
pub struct World<'a> {
    pub lib: &'a Library,
    pub layout: usize,
    pub topology: usize,
    pub mapping: usize,
    pub plan: usize,
    pub transport: usize,
    pub session: usize,
    pub request: usize,
    pub slot: u32,
    pub greeting: Vec<u8>,
    pub plan_bytes: Vec<u8>,
    pub layout_bytes: Vec<u8>,
    pub place_bytes: Vec<u8>,
    pub memory: Box<[f32; 32]>,
}

impl World<'_> {
    pub fn new(lib: &Library, state: State) -> World<'_> {
        let mut w = World {
            lib,
            layout: 0,
            topology: 0,
            mapping: 0,
            plan: 0,
            transport: 0,
            session: 0,
            request: 0,
            slot: 0,
            greeting: vec![0; WSYNC_GREETING_BYTES_MAX],
            plan_bytes: Vec::new(),
            layout_bytes: Vec::new(),
            place_bytes: Vec::new(),
            memory: Box::new([1.0; 32]),
        };
        w.describe();
        w.connect(state >= State::Loaded);
        if state >= State::Loaded {
            w.bind_and_load();
        }
        if state == State::Delivered {
            w.deliver();
        }
        w
    }

    fn describe(&mut self) {
        let lib = self.lib;
        let json = LAYOUT.as_ptr().expose_provenance();
        let words = [json, LAYOUT.len(), address(&mut self.layout)];
        lib.ok("wsync_layout_create_from_json", &words);
        let json = TOPOLOGY.as_ptr().expose_provenance();
        let words = [json, TOPOLOGY.len(), address(&mut self.topology)];
        lib.ok("wsync_topology_create_from_json", &words);
        let mut place = rank_place();
        self.place_bytes = self.bytes("wsync_topology_place", address(&mut place));
        let mut options = mapping_options();
        let words = [address(&mut options), address(&mut self.mapping)];
        lib.ok("wsync_mapping_create", &words);
        let words = [self.layout, self.layout, 0, address(&mut self.plan)];
        lib.ok("wsync_plan_create", &words);
        self.plan_bytes = self.bytes("wsync_plan_serialize", self.plan);
        self.layout_bytes = self.bytes("wsync_layout_serialize", self.layout);
    }

    /// The memory of tensor "w" on one side, and how it is seen.
    pub fn binding(&self, side: wsync_side) -> wsync_binding {
        let first = match side {
            wsync_side::WSYNC_SIDE_SOURCE => &self.memory[0],
            wsync_side::WSYNC_SIDE_DESTINATION => &self.memory[16],
        };
        let at = std::ptr::from_ref(first).expose_provenance();
        wsync_binding {
            name: text("w"),
            ptr: std::ptr::with_exposed_provenance_mut(at),
            bytes: 64,
            side: side as u32,
            memory: 0,
            device: 0,
            reserved: 0,
            dtype: wsync_dtype {
                code: 2,
                bits: 32,
                lanes: 1,
            },
            dim_count: 2,
            shape: [4, 4, 0, 0, 0, 0, 0, 0],
            strides: [0; 8],
        }
    }

    fn bytes(&self, function: &str, handle: usize) -> Vec<u8> {
        let mut needed = 0usize;
        self.lib.ok(function, &[handle, 0, 0, address(&mut needed)]);
        let mut bytes = vec![0u8; needed];
        let at = address(&mut bytes[..]);
        self.lib
            .ok(function, &[handle, at, needed, address(&mut needed)]);
        bytes
    }

    fn connect(&mut self, meets: bool) {
        let lib = self.lib;
        let mut options = transport_options();
        let words = [address(&mut options), address(&mut self.transport)];
        lib.ok("wsync_transport_create", &words);
        let mut needed = 0usize;
        let at = address(&mut self.greeting[..]);
        let words = [
            self.transport,
            at,
            self.greeting.len(),
            address(&mut needed),
        ];
        lib.ok("wsync_transport_greeting", &words);
        self.greeting.truncate(needed);
        if meets {
            let mut item = [at, needed];
            let words = [self.transport, address(&mut item), 1, usize::MAX];
            lib.ok("wsync_transport_meet", &words);
        }
    }

    fn bind_and_load(&mut self) {
        let lib = self.lib;
        let words = [self.transport, 0, address(&mut self.session)];
        lib.ok("wsync_session_create", &words);
        let memory = address(&mut self.memory[..]);
        let name = c"w".as_ptr().expose_provenance();
        for (side, at) in [(1, memory), (2, memory + 64)] {
            lib.ok(
                "wsync_session_bind",
                &[self.session, side, name, at, 64, 0, 0],
            );
        }
        let words = [self.session, self.plan, address(&mut self.slot)];
        lib.ok("wsync_session_load", &words);
        let words = [self.session, self.slot as usize, address(&mut self.request)];
        lib.ok("wsync_request_create", &words);
    }

    fn deliver(&mut self) {
        let mut options = request_options();
        options.flags = 1;
        let words = [self.request, address(&mut options), 0];
        self.lib.ok("wsync_request_submit", &words);
        self.lib
            .ok("wsync_request_wait", &[self.request, usize::MAX]);
    }

    pub fn handle(&self, noun: Noun) -> usize {
        match noun {
            Noun::Layout => self.layout,
            Noun::Topology => self.topology,
            Noun::Mapping => self.mapping,
            Noun::Plan => self.plan,
            Noun::Transport => self.transport,
            Noun::Session => self.session,
            Noun::Request => self.request,
        }
    }

    /// Says that the handle was destroyed.
    pub fn forget(&mut self, noun: Noun) {
        match noun {
            Noun::Layout => self.layout = 0,
            Noun::Topology => self.topology = 0,
            Noun::Mapping => self.mapping = 0,
            Noun::Plan => self.plan = 0,
            Noun::Transport => self.transport = 0,
            Noun::Session => self.session = 0,
            Noun::Request => self.request = 0,
        }
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        for noun in Noun::ALL {
            self.lib.call_words(&noun.destroy(), &[self.handle(*noun)]);
        }
    }
}

/// Rank 0 to a group of ranks 1 and 2, of which the first is on its device: one
/// pair, moved, and one forward.
pub fn mapping_options() -> wsync_mapping_options {
    static DEVICES: [u32; 3] = [0, 0, 1];
    // SAFETY: integers and pointers; the header allows all zero but the size.
    let mut options: wsync_mapping_options = unsafe { std::mem::zeroed() };
    options.struct_size = size_of::<wsync_mapping_options>();
    options.kind = wsync_mapping_kind::WSYNC_MAPPING_KIND_TWO_STAGE as u32;
    options.source_devices = &raw const DEVICES[0];
    options.source_device_count = 1;
    options.destination_devices = &raw const DEVICES[1];
    options.destination_device_count = 2;
    options.destination_tp = 2;
    options
}

pub fn transport_options() -> wsync_transport_options {
    wsync_transport_options {
        struct_size: size_of::<wsync_transport_options>(),
        kind: wsync_transport_kind::WSYNC_TRANSPORT_KIND_LOOPBACK as u32,
        rank: 0,
        ranks: std::ptr::null(),
        rank_count: 1,
        reserved: 0,
        ring_bytes_max: 0,
        nccl: std::ptr::null(),
    }
}

pub fn request_options() -> wsync_request_options {
    wsync_request_options {
        struct_size: size_of::<wsync_request_options>(),
        version: 1,
        agree_deadline_ns: 0,
        stall_deadline_ns: 0,
        flags: 0,
        reserved: 0,
    }
}

pub fn text(s: &'static str) -> wsync_text {
    wsync_text {
        ptr: s.as_ptr().cast::<c_char>(),
        bytes: s.len(),
    }
}

pub fn topology_options() -> wsync_topology_options {
    // SAFETY: integers and pointers; the header allows all zero but the size.
    let mut options: wsync_topology_options = unsafe { std::mem::zeroed() };
    options.struct_size = size_of::<wsync_topology_options>();
    options
}

pub fn rank_place() -> wsync_rank_place {
    wsync_rank_place {
        struct_size: size_of::<wsync_rank_place>(),
        rank: 0,
        reserved: 0,
        host: text("host"),
        device: text("GPU-0"),
        domain: text(""),
        nics: std::ptr::null(),
        nic_count: 0,
    }
}

/// One rank with one tensor, all of it in one buffer.
pub fn views() -> wsync_rank_views {
    let tensor = wsync_tensor {
        name: text("w"),
        dim_count: 2,
        dtype: wsync_dtype {
            code: 2,
            bits: 32,
            lanes: 1,
        },
        shape: [4, 4, 0, 0, 0, 0, 0, 0],
        granule: [0; 8],
    };
    let buffer = wsync_buffer {
        name: text("b"),
        bytes: 64,
        memory: 0,
        device: 0,
    };
    let view = wsync_view {
        tensor: 0,
        buffer: 0,
        offset: 0,
        lo: [0; 8],
        hi: [4, 4, 0, 0, 0, 0, 0, 0],
        strides: [0; 8],
        dtype: wsync_dtype {
            code: 0,
            bits: 0,
            lanes: 0,
        },
        reserved: 0,
    };
    // Leaked: these few bytes outlive every call of the test.
    wsync_rank_views {
        struct_size: size_of::<wsync_rank_views>(),
        rank: 0,
        copy: 0,
        tensors: Box::leak(Box::new(tensor)),
        tensor_count: 1,
        tensor_stride: size_of::<wsync_tensor>(),
        buffers: Box::leak(Box::new(buffer)),
        buffer_count: 1,
        buffer_stride: size_of::<wsync_buffer>(),
        views: Box::leak(Box::new(view)),
        view_count: 1,
        view_stride: size_of::<wsync_view>(),
        aliases: std::ptr::null(),
        alias_count: 0,
        alias_stride: size_of::<wsync_alias>(),
    }
}

/// The bytes of a struct, as the caller lays them out.
pub fn bytes_of<T: Copy>(value: T) -> Vec<u8> {
    let from = std::ptr::from_ref(&value).cast::<u8>();
    // SAFETY: a struct of the header; its fields leave no padding, as the
    // pinned offsets show.
    unsafe { std::slice::from_raw_parts(from, size_of::<T>()) }.to_vec()
}

// ---- what arguments are --------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noun {
    Layout,
    Topology,
    Mapping,
    Plan,
    Transport,
    Session,
    Request,
}

impl Noun {
    /// Children first.
    pub const ALL: &'static [Noun] = &[
        Noun::Request,
        Noun::Session,
        Noun::Transport,
        Noun::Plan,
        Noun::Mapping,
        Noun::Topology,
        Noun::Layout,
    ];

    pub fn destroy(self) -> String {
        let noun = match self {
            Noun::Layout => "layout",
            Noun::Topology => "topology",
            Noun::Mapping => "mapping",
            Noun::Plan => "plan",
            Noun::Transport => "transport",
            Noun::Session => "session",
            Noun::Request => "request",
        };
        format!("wsync_{noun}_destroy")
    }
}

/// Where in a struct a value is wrong, the value, and the answer to it.
pub type BadField = (usize, u64, wsync_status);

#[derive(Clone, Debug)]
pub enum Arg {
    /// A live handle.
    Handle(Noun),
    /// A live handle that may be NULL instead.
    OptionalHandle(Noun),
    /// A place for a new handle.
    OutHandle(Noun),
    /// A place for that many bytes.
    Out(usize),
    /// A place for a struct of that many bytes.
    OutStruct(usize),
    /// A struct that is read.
    Struct(Vec<u8>, Vec<BadField>),
    /// One that may be NULL instead.
    OptionalStruct(Vec<u8>, Vec<BadField>),
    /// Pointer, capacity and place for the size of a result; bytes of an item.
    Buffer(usize),
    /// A NUL-terminated name.
    Name(&'static str),
    /// Pointer and number of bytes.
    Bytes(Vec<u8>),
    /// The same, which are missing.
    OptionalBytes,
    /// Pointer and number of items, bytes of an item.
    Items(Vec<u8>, usize),
    /// Pointer, number and stride of items.
    Strided(Vec<u8>, usize),
    /// A pointer that is not NULL.
    Memory(usize),
    /// A number, any value of which is allowed.
    Number(usize),
    /// A rank: any other than 0 is unknown.
    Rank,
    /// A number of something that exists.
    Index(usize),
    /// One of an enum of the header.
    Enum(u32),
    /// The error record.
    Err,
}

impl Arg {
    /// Machine words that it takes.
    pub fn words(&self) -> usize {
        match self {
            Arg::Buffer(_) | Arg::Strided(..) => 3,
            Arg::Bytes(_) | Arg::OptionalBytes | Arg::Items(..) => 2,
            Arg::Handle(_)
            | Arg::OptionalHandle(_)
            | Arg::OutHandle(_)
            | Arg::Out(_)
            | Arg::OutStruct(_)
            | Arg::Struct(..)
            | Arg::OptionalStruct(..)
            | Arg::Name(_)
            | Arg::Memory(_)
            | Arg::Number(_)
            | Arg::Rank
            | Arg::Index(_)
            | Arg::Enum(_)
            | Arg::Err => 1,
        }
    }
}

/// What a call with nothing wrong does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Good {
    /// Succeeds, as often as it is called.
    Ok,
    /// Succeeds once.
    Once,
    /// Answers something else, and changes nothing.
    Answers(wsync_status),
}

#[derive(Clone, Debug)]
pub enum Contract {
    /// Takes numbers only and cannot fail.
    Plain,
    /// A handle and numbers; answers this for NULL and foreign handles.
    Getter(Noun, u32),
    Destroy(Noun),
    Status(Good, Vec<Arg>),
}

// ---- one call --------------------------------------------------------------

/// What memory holds that nobody has written.
pub const CANARY: u8 = 0xa5;

/// Memory with a canary in it and behind it, eight-byte aligned.
pub struct Region {
    words: Vec<u64>,
    bytes: usize,
}

impl Region {
    pub fn new(bytes: usize) -> Region {
        Region {
            words: vec![u64::from_ne_bytes([CANARY; 8]); bytes / 8 + 4],
            bytes,
        }
    }

    pub fn holding(bytes: &[u8]) -> Region {
        let mut r = Region::new(bytes.len());
        r.as_mut()[..bytes.len()].copy_from_slice(bytes);
        r
    }

    fn as_mut(&mut self) -> &mut [u8] {
        let len = self.words.len() * 8;
        let at = self.words.as_mut_ptr().cast::<u8>();
        // SAFETY: the words are `len` initialised bytes, borrowed by `self`.
        unsafe { std::slice::from_raw_parts_mut(at, len) }
    }

    /// All of it, the canary behind it included.
    pub fn bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    pub fn word(&self, index: usize) -> u64 {
        self.words[index]
    }

    pub fn put(&mut self, at: usize, value: u64, width: usize) {
        self.as_mut()[at..at + width].copy_from_slice(&value.to_ne_bytes()[..width]);
    }

    fn address(&mut self) -> usize {
        self.words.as_mut_ptr().expose_provenance()
    }

    /// True if nothing behind the memory was written.
    fn is_fenced(&self) -> bool {
        self.bytes()[self.bytes..].iter().all(|b| *b == CANARY)
    }
}

/// The words of a call with nothing wrong, and the memory behind them.
pub struct Call<'a> {
    world: &'a World<'a>,
    name: &'static str,
    args: Vec<Arg>,
    pub words: Words,
    /// By word.
    regions: BTreeMap<usize, Region>,
    /// First word of each argument.
    first: Vec<usize>,
}

impl<'a> Call<'a> {
    pub fn new(world: &'a World<'a>, name: &'static str, args: &[Arg]) -> Call<'a> {
        let mut c = Call {
            world,
            name,
            args: args.to_vec(),
            words: [0; WORDS],
            regions: BTreeMap::new(),
            first: Vec::new(),
        };
        let mut at = 0;
        for arg in args {
            c.first.push(at);
            c.fill(at, arg);
            at += arg.words();
        }
        c
    }

    fn fill(&mut self, at: usize, arg: &Arg) {
        match arg {
            Arg::Handle(noun) | Arg::OptionalHandle(noun) => {
                self.words[at] = self.world.handle(*noun);
            }
            Arg::OutHandle(_) => self.point(at, Region::new(8)),
            Arg::Out(bytes) => self.point(at, Region::new(*bytes)),
            Arg::OutStruct(bytes) => {
                let mut r = Region::new(*bytes);
                r.put(0, *bytes as u64, 8);
                self.point(at, r);
            }
            Arg::Struct(bytes, _) | Arg::OptionalStruct(bytes, _) => {
                self.point(at, Region::holding(bytes));
            }
            Arg::Buffer(_) => self.point(at + 2, Region::new(8)),
            Arg::Name(name) => {
                self.point(at, Region::holding(&[name.as_bytes(), b"\0"].concat()));
            }
            Arg::Bytes(bytes) => {
                self.point(at, Region::holding(bytes));
                self.words[at + 1] = bytes.len();
            }
            Arg::OptionalBytes => {}
            Arg::Items(bytes, item) => {
                self.point(at, Region::holding(bytes));
                self.words[at + 1] = bytes.len() / item;
            }
            Arg::Strided(bytes, item) => {
                self.point(at, Region::holding(bytes));
                self.words[at + 1] = bytes.len() / item;
                self.words[at + 2] = *item;
            }
            Arg::Memory(n) | Arg::Number(n) | Arg::Index(n) => self.words[at] = *n,
            Arg::Rank => {}
            Arg::Enum(n) => self.words[at] = *n as usize,
            Arg::Err => self.point(at, Region::holding(&bytes_of(error_record()))),
        }
    }

    /// Puts memory behind a word.
    pub fn point(&mut self, word: usize, mut region: Region) {
        self.words[word] = region.address();
        self.regions.insert(word, region);
    }

    pub fn region(&mut self, word: usize) -> &mut Region {
        self.regions
            .get_mut(&word)
            .expect("the word points to memory")
    }

    /// Makes the call, checks what holds whatever it answers, and destroys
    /// what it made.
    pub fn run(&mut self) -> wsync_status {
        let before: BTreeMap<usize, Vec<u8>> =
            self.regions.iter().map(|(w, r)| (*w, r.bytes())).collect();
        let status = self.world.lib.call(self.name, &self.words) as i32;
        for (word, region) in &self.regions {
            let is_fenced = region.is_fenced();
            assert!(
                is_fenced,
                "{} writes beyond the memory of word {word}",
                self.name
            );
            let wrote = region.bytes() != before[word];
            if self.is_record(*word) {
                self.check_record(*word, status, wrote);
            } else {
                let changed = status < 0 && wrote;
                assert!(!changed, "{} failed and wrote to word {word}", self.name);
            }
        }
        if status == 0 {
            self.destroy_results();
        }
        status_of(status)
    }

    fn is_record(&self, word: usize) -> bool {
        let mut args = self.args.iter().zip(&self.first);
        args.any(|(arg, first)| *first == word && matches!(arg, Arg::Err))
    }

    /// The record is written if the call failed and the record is well-formed,
    /// and then says what the status says.
    fn check_record(&self, word: usize, status: i32, wrote: bool) {
        let name = self.name;
        let region = &self.regions[&word];
        let is_given = self.words[word] == region.words.as_ptr().addr();
        let is_whole = region.words[0] == size_of::<wsync_error>() as u64;
        assert_eq!(
            wrote,
            status < 0 && is_given && is_whole,
            "{name}: record and {status}"
        );
        if !wrote {
            return;
        }
        let bytes = region.bytes();
        let said = i32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        assert_eq!(said, status, "{name}: the record disagrees");
        let text: Vec<u8> = bytes[24..520]
            .iter()
            .copied()
            .take_while(|b| *b != 0)
            .collect();
        let text = String::from_utf8(text).expect("messages are UTF-8");
        assert!(!text.is_empty(), "{name}: no message for {status}");
        assert!(!text.contains('\n'), "{name}: more than one line: {text}");
        assert!(!text.contains(name), "{name}: names the function: {text}");
    }

    fn destroy_results(&self) {
        for (arg, at) in self.args.iter().zip(&self.first) {
            if let Arg::OutHandle(noun) = arg {
                let made = self.regions[at].words[0] as usize;
                self.world.lib.call_words(&noun.destroy(), &[made]);
            }
        }
    }
}
