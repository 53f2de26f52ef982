//! The rules at the top of the header, held against every function in it.
//!
//! Each function has an entry that says what its arguments *are*: a handle, a
//! name, a struct, a buffer for a result. From that follows what must happen
//! when one of them is wrong while all others are right: which status, that the
//! error record says the same, and that no output is touched. A function in
//! `weightsync.sym` without an entry fails the test.
//!
//! Calls go to the shared library that was built beside this test, found by
//! name, through one signature of machine words: all arguments of this API are
//! integers and pointers.

mod capi_support;

use capi_support::entries::entries;
use capi_support::{
    Arg, CANARY, Call, Contract, Good, Library, Noun, Region, State, World, address, error_record,
    message, status_of, views,
};
use std::ffi::c_void;
use std::path::PathBuf;
use std::ptr::null_mut;
use weightsync::capi::session::wsync_binding;
use weightsync::capi::types::wsync_status::*;
use weightsync::capi::types::*;
use weightsync::capi::views::*;

/// Makes one thing wrong in a fresh call and expects `wanted`.
fn expect(
    world: &World<'_>,
    name: &'static str,
    args: &[Arg],
    what: &str,
    wanted: wsync_status,
    spoil: impl FnOnce(&mut Call<'_>),
) {
    let mut call = Call::new(world, name, args);
    spoil(&mut call);
    let got = call.run();
    assert_eq!(got, wanted, "{name}: {what}");
}

/// A handle of some other type.
fn foreign(world: &World<'_>, noun: Noun) -> usize {
    match noun {
        Noun::Plan => world.layout,
        _ => world.plan,
    }
}

/// Everything that can be wrong with one argument, which begins at word `at`.
fn check_bad_argument(w: &World<'_>, name: &'static str, args: &[Arg], arg: &Arg, at: usize) {
    const INVALID: wsync_status = WSYNC_ERR_INVALID_ARGUMENT;
    let e = |what: &str, wanted, spoil: &dyn Fn(&mut Call<'_>)| {
        let what = format!("argument at word {at}: {what}");
        expect(w, name, args, &what, wanted, spoil);
    };
    let null = &|c: &mut Call<'_>| c.words[at] = 0;
    let odd = &|c: &mut Call<'_>| c.words[at] += 1;
    let check_sizes = |known: usize| {
        for size in [0, 1, known as u64 - 1, 5000, u64::MAX] {
            let what = format!("struct_size {size}");
            e(&what, INVALID, &|c| c.region(at).put(0, size, 8));
        }
    };
    match arg {
        Arg::Handle(noun) => {
            e("NULL", INVALID, null);
            e("foreign", WSYNC_ERR_BAD_HANDLE, &|c| {
                c.words[at] = foreign(w, *noun)
            });
            e("odd", WSYNC_ERR_BAD_HANDLE, odd);
        }
        Arg::OptionalHandle(noun) => {
            e("foreign", WSYNC_ERR_BAD_HANDLE, &|c| {
                c.words[at] = foreign(w, *noun)
            });
            e("odd", WSYNC_ERR_BAD_HANDLE, odd);
        }
        Arg::OutHandle(_) | Arg::Out(4 | 8) => {
            e("NULL", INVALID, null);
            e("odd", INVALID, odd);
        }
        Arg::Out(_) => e("NULL", INVALID, null),
        Arg::OutStruct(bytes) => {
            e("NULL", INVALID, null);
            e("odd", INVALID, odd);
            check_sizes(*bytes);
        }
        Arg::Struct(bytes, bad) | Arg::OptionalStruct(bytes, bad) => {
            if matches!(arg, Arg::Struct(..)) {
                e("NULL", INVALID, null);
            }
            e("odd", INVALID, odd);
            check_sizes(bytes.len());
            // The canary behind the struct becomes its tail.
            e("non-zero tail", WSYNC_ERR_UNSUPPORTED, &|c| {
                c.region(at).put(0, bytes.len() as u64 + 8, 8);
            });
            for (offset, value, wanted) in bad {
                let width = if *value > u64::from(u32::MAX) { 8 } else { 4 };
                let what = format!("{value} at offset {offset}");
                e(&what, *wanted, &|c| {
                    c.region(at).put(*offset, *value, width)
                });
            }
        }
        Arg::Buffer(_) => {
            e("no place for the size", INVALID, &|c| c.words[at + 2] = 0);
            e("NULL with a capacity", INVALID, &|c| {
                c.words[at + 1] = 1 << 30
            });
        }
        Arg::Name(_) => {
            let long = [vec![b'x'; 2000], vec![0]].concat();
            e("NULL", INVALID, null);
            e("not UTF-8", INVALID, &|c| {
                c.point(at, Region::holding(b"w\xff\xfe\0"))
            });
            e("too long", WSYNC_ERR_LIMIT_EXCEEDED, &|c| {
                c.point(at, Region::holding(&long))
            });
        }
        Arg::Bytes(_) | Arg::Items(..) => {
            e("NULL", INVALID, null);
            e("too many", WSYNC_ERR_LIMIT_EXCEEDED, &|c| {
                c.words[at + 1] = usize::MAX
            });
        }
        Arg::OptionalBytes => {
            e("NULL with a size", INVALID, &|c| c.words[at + 1] = 5);
            e("too many", WSYNC_ERR_LIMIT_EXCEEDED, &|c| {
                c.words[at + 1] = usize::MAX
            });
        }
        Arg::Strided(_, item) => {
            e("NULL", INVALID, null);
            e("odd", INVALID, odd);
            e("too many", WSYNC_ERR_LIMIT_EXCEEDED, &|c| {
                c.words[at + 1] = usize::MAX
            });
            for stride in [0, item - 1, item + 1, 1 << 20] {
                e("stride", INVALID, &|c| c.words[at + 2] = stride);
            }
            e("longer items", WSYNC_ERR_UNSUPPORTED, &|c| {
                c.words[at + 2] = item + 8
            });
        }
        Arg::Memory(_) => e("NULL", INVALID, null),
        Arg::Enum(_) => e("unknown", WSYNC_ERR_UNSUPPORTED, &|c| {
            c.words[at] = 0x7fff_ffff
        }),
        Arg::Err => {
            for size in [0, 8, 519, 5000] {
                e("impossible record", INVALID, &|c| {
                    c.region(at).put(0, size, 8)
                });
            }
            e("odd record", INVALID, odd);
        }
        Arg::Rank => {
            for rank in [1, 99, 1 << 20, u32::MAX as usize] {
                let what = format!("rank {rank}");
                e(&what, WSYNC_ERR_NOT_FOUND, &|c| c.words[at] = rank);
            }
        }
        Arg::Index(there) => {
            for index in [there + 1, 1 << 20, u32::MAX as usize] {
                let what = format!("index {index}");
                e(&what, WSYNC_ERR_NOT_FOUND, &|c| c.words[at] = index);
            }
        }
        Arg::Number(_) => {}
    }
}

/// A failure of which nobody wants to know the reason.
fn check_without_record(w: &World<'_>, name: &'static str, args: &[Arg]) {
    let last = args.iter().map(Arg::words).sum::<usize>() - 1;
    if matches!(args.first(), Some(Arg::Handle(_))) {
        let wanted = WSYNC_ERR_INVALID_ARGUMENT;
        expect(w, name, args, "NULL without a record", wanted, |c| {
            c.words[0] = 0;
            c.words[last] = 0;
        });
    }
}

/// Results of any length: asked for, one too small, exactly right, and larger.
fn check_buffer(w: &World<'_>, name: &'static str, args: &[Arg], item: usize, at: usize) {
    let mut query = Call::new(w, name, args);
    assert_eq!(query.run(), WSYNC_OK, "{name}: asking for the size");
    let needed = query.region(at + 2).word(0) as usize;
    assert!(needed > 0, "{name} has a result");
    let filled = |capacity: usize, wanted| {
        let mut c = Call::new(w, name, args);
        c.point(at, Region::new(capacity * item));
        c.words[at + 1] = capacity;
        assert_eq!(c.run(), wanted, "{name}: capacity {capacity} of {needed}");
        c.region(at).bytes()
    };
    if needed > 1 {
        filled(needed - 1, WSYNC_ERR_BUFFER_TOO_SMALL);
    }
    let exact = filled(needed, WSYNC_OK);
    let larger = filled(needed + 5, WSYNC_OK);
    let end = needed * item;
    assert_eq!(larger[..end], exact[..end], "{name} answers alike");
    assert!(
        larger[end..].iter().all(|b| *b == CANARY),
        "{name} writes no more than it says"
    );
}

/// Structs that a newer caller made longer, and NULL where it means defaults.
fn check_good_variants(w: &World<'_>, name: &'static str, args: &[Arg], arg: &Arg, at: usize) {
    let e = |what: &str, spoil: &dyn Fn(&mut Call<'_>)| {
        expect(w, name, args, what, WSYNC_OK, spoil);
    };
    match arg {
        Arg::Struct(bytes, _) | Arg::OptionalStruct(bytes, _) => {
            let longer = [bytes.clone(), vec![0; 16]].concat();
            e("a longer struct", &|c| {
                c.point(at, Region::holding(&longer));
                c.region(at).put(0, longer.len() as u64, 8);
            });
        }
        Arg::OutStruct(bytes) => e("a longer struct", &|c| {
            let mut r = Region::new(bytes + 16);
            r.put(0, *bytes as u64 + 16, 8);
            c.point(at, r);
        }),
        Arg::Buffer(item) => check_buffer(w, name, args, *item, at),
        _ => {}
    }
    if matches!(
        arg,
        Arg::OptionalStruct(..) | Arg::OptionalHandle(_) | Arg::Err
    ) {
        e("NULL where it is allowed", &|c| c.words[at] = 0);
    }
}

fn check_status(w: &World<'_>, name: &'static str, good: Good, args: &[Arg]) {
    let mut at = 0;
    for arg in args {
        check_bad_argument(w, name, args, arg, at);
        at += arg.words();
    }
    check_without_record(w, name, args);
    let wanted = match good {
        Good::Ok => {
            let mut at = 0;
            for arg in args {
                check_good_variants(w, name, args, arg, at);
                at += arg.words();
            }
            WSYNC_OK
        }
        Good::Once => WSYNC_OK,
        Good::Answers(status) => status,
    };
    expect(w, name, args, "nothing wrong", wanted, |_| {});
}

fn check_plain(lib: &Library, name: &str) {
    for number in [0, 1, 12345, i32::MIN as usize, usize::MAX] {
        lib.call_words(name, &[number]);
    }
}

fn check_getter(w: &World<'_>, name: &str, noun: Noun, neutral: u32) {
    // A 32-bit result leaves the upper half of the register to chance.
    let ask = |handle: usize| w.lib.call_words(name, &[handle]) as u32;
    assert_eq!(ask(0), neutral, "{name}: NULL");
    assert_eq!(ask(foreign(w, noun)), neutral, "{name}: foreign");
    assert_eq!(ask(w.handle(noun) + 1), neutral, "{name}: odd");
    ask(w.handle(noun));
}

fn check_destroy(w: &mut World<'_>, name: &str, noun: Noun) {
    let destroy = |handle: usize| w.lib.call_words(name, &[handle]);
    destroy(0);
    destroy(w.handle(noun) + 1);
    destroy(foreign(w, noun));
    // The foreign one is still alive.
    let mut needed = 0usize;
    w.lib.ok("wsync_plan_verify", &[w.plan]);
    w.lib.ok(
        "wsync_layout_to_json",
        &[w.layout, 0, 0, address(&mut needed)],
    );
    destroy(w.handle(noun));
    w.forget(noun);
}

fn symbols() -> Vec<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("include/weightsync.sym");
    let text = std::fs::read_to_string(path).expect("the symbol list is committed");
    text.lines().map(str::to_string).collect()
}

#[test]
fn every_function_keeps_the_rules_of_the_header() {
    let lib = Library::open();
    let states: Vec<(&'static str, State)> = {
        let w = World::new(&lib, State::Alone);
        let all = entries(&w).into_iter();
        all.map(|(name, (state, _))| (name, state)).collect()
    };
    for name in symbols() {
        let is_there = states.iter().any(|(n, _)| *n == name);
        assert!(is_there, "{name} has no contract in this test");
    }
    assert_eq!(
        states.len(),
        symbols().len(),
        "a contract is for no function"
    );
    for (name, state) in states {
        // A world of its own, for some calls end it.
        let mut w = World::new(&lib, state);
        let contract = entries(&w).remove(name).expect("the entry is there").1;
        match contract {
            Contract::Plain => check_plain(&lib, name),
            Contract::Getter(noun, neutral) => check_getter(&w, name, noun, neutral),
            Contract::Destroy(noun) => check_destroy(&mut w, name, noun),
            Contract::Status(good, args) => check_status(&w, name, good, &args),
        }
    }
}

// ---- arrays inside structs -------------------------------------------------

/// The elements behind a `wsync_rank_views`.
struct Parts {
    tensor: wsync_tensor,
    buffer: wsync_buffer,
    view: wsync_view,
}

type Spoil = fn(&mut wsync_rank_views, &mut Parts);

/// Changes one thing in a rank's views and says what the library answers.
fn views_status(lib: &Library, spoil: Spoil) -> (wsync_status, String) {
    let good = views();
    // SAFETY: `views` points to one live element of each.
    let mut parts = unsafe {
        Parts {
            tensor: *good.tensors,
            buffer: *good.buffers,
            view: *good.views,
        }
    };
    let mut given = good;
    given.tensors = &raw const parts.tensor;
    given.buffers = &raw const parts.buffer;
    given.views = &raw const parts.view;
    spoil(&mut given, &mut parts);
    let mut err = error_record();
    let mut out: *mut c_void = null_mut();
    let words = [address(&mut given), address(&mut out), address(&mut err)];
    let code = lib.call_words("wsync_layout_create_from_views", &words);
    let status = status_of(code as i32);
    assert_eq!(out.is_null(), status != WSYNC_OK);
    lib.call_words("wsync_layout_destroy", &[out.expose_provenance()]);
    (status, message(&err))
}

#[test]
fn views_that_are_wrong_are_refused_by_name_and_number() {
    let lib = Library::open();
    let refused = |wanted, word: &str, spoil: Spoil| {
        let (status, text) = views_status(&lib, spoil);
        assert_eq!(status, wanted, "{word}: {text}");
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    };
    assert_eq!(views_status(&lib, |_, _| {}), (WSYNC_OK, String::new()));

    refused(WSYNC_ERR_INVALID_ARGUMENT, "tensor 7", |_, p| {
        p.view.tensor = 7
    });
    refused(WSYNC_ERR_INVALID_ARGUMENT, "beyond", |_, p| {
        p.view.hi[5] = 9
    });
    refused(WSYNC_ERR_INVALID_ARGUMENT, "beyond", |_, p| {
        p.tensor.shape[2] = 9
    });
    refused(WSYNC_ERR_LIMIT_EXCEEDED, "9 axes", |_, p| {
        p.tensor.dim_count = 9
    });
    refused(WSYNC_ERR_INVALID_ARGUMENT, "dtype", |_, p| {
        p.tensor.dtype.bits = 3
    });
    refused(WSYNC_ERR_INVALID_ARGUMENT, "dtype", |_, p| {
        p.view.dtype.code = 200
    });
    refused(WSYNC_ERR_LIMIT_EXCEEDED, "name", |_, p| {
        p.tensor.name.bytes = 0
    });
    refused(WSYNC_ERR_LIMIT_EXCEEDED, "name", |_, p| {
        p.tensor.name.bytes = 1 << 40
    });
    refused(WSYNC_ERR_INVALID_ARGUMENT, "NULL", |_, p| {
        p.buffer.name.ptr = std::ptr::null()
    });
    refused(WSYNC_ERR_UNSUPPORTED, "memory", |_, p| p.buffer.memory = 77);
    refused(WSYNC_ERR_INVALID_ARGUMENT, "device", |_, p| {
        p.buffer.device = 1
    });
    refused(WSYNC_ERR_UNSUPPORTED, "reserved", |_, p| {
        p.view.reserved = 1
    });
    refused(WSYNC_ERR_LIMIT_EXCEEDED, "\"w\"", |_, p| {
        p.tensor.shape[0] = u64::MAX
    });
    refused(WSYNC_ERR_LIMIT_EXCEEDED, "wsync_view", |v, _| {
        v.view_count = usize::MAX
    });
    refused(WSYNC_ERR_INVALID_ARGUMENT, "stride", |v, _| {
        v.view_stride = 0
    });
    refused(WSYNC_ERR_INVALID_ARGUMENT, "NULL", |v, _| {
        v.tensors = std::ptr::null()
    });

    // What only the layout as a whole can tell.
    let wrong: [(&str, Spoil); 7] = [
        ("buffer", |_, p| p.view.buffer = 3),
        ("\"w\"", |_, p| p.view.hi[0] = 5),
        ("\"w\"", |_, p| p.view.offset = 4),
        ("\"w\"", |_, p| p.view.offset = u64::MAX),
        ("\"w\"", |_, p| p.view.strides[0] = i64::MIN),
        ("\"w\"", |_, p| p.tensor.granule[0] = 3),
        ("\"b\"", |_, p| p.buffer.bytes = 63),
    ];
    for (word, spoil) in wrong {
        let (status, text) = views_status(&lib, spoil);
        assert!((status as i32) < 0, "what should name {word} was taken");
        assert!(text.contains(word), "{word} is not in: {text}");
    }
}

type SpoilBinding = fn(&mut wsync_binding);

/// Changes one thing in the binding of a destination and says what the library
/// answers to it, or else to the plan that is loaded with it.
fn binding_status(spoil: SpoilBinding, stride: usize) -> (wsync_status, String) {
    let lib = Library::open();
    let w = World::new(&lib, State::Loaded);
    let mut given = w.binding(wsync_side::WSYNC_SIDE_DESTINATION);
    spoil(&mut given);
    let mut err = error_record();
    let words = [w.session, address(&mut given), 1, stride, address(&mut err)];
    let mut code = lib.call_words("wsync_session_bind_many", &words);
    if code == 0 {
        let mut slot = 0u32;
        let words = [w.session, w.plan, address(&mut slot), address(&mut err)];
        code = lib.call_words("wsync_session_load", &words);
    }
    (status_of(code as i32), message(&err))
}

#[test]
fn bindings_that_are_wrong_are_refused_by_name_and_number() {
    let answer = |spoil: SpoilBinding| binding_status(spoil, size_of::<wsync_binding>());
    let refused = |wanted, words: &[&str], spoil: SpoilBinding| {
        let (status, text) = answer(spoil);
        assert_eq!(status, wanted, "{words:?}: {text}");
        for word in [&["\"w\""], words].concat() {
            assert!(text.contains(word), "{word} is not in: {text}");
        }
    };
    let fits = |spoil: SpoilBinding| assert_eq!(answer(spoil), (WSYNC_OK, String::new()));
    fits(|_| {});
    fits(|b| b.strides[..2].copy_from_slice(&[16, 4]));
    // One row; a row of bytes; the type alone; nothing at all.
    fits(|b| (b.dim_count, b.shape) = (1, [16, 0, 0, 0, 0, 0, 0, 0]));
    fits(|b| {
        (b.dim_count, b.shape) = (1, [64, 0, 0, 0, 0, 0, 0, 0]);
        (b.dtype.code, b.dtype.bits) = (1, 8);
    });
    fits(|b| (b.dim_count, b.shape) = (0, [0; 8]));
    fits(|b| {
        (b.dim_count, b.shape) = (0, [0; 8]);
        (b.dtype.code, b.dtype.bits, b.dtype.lanes) = (0, 0, 0);
    });

    let mismatch = WSYNC_ERR_BUFFER_MISMATCH;
    refused(mismatch, &["[4, 16]", "[16, 4]"], |b| {
        b.strides[..2].copy_from_slice(&[4, 16])
    });
    refused(mismatch, &["f64", "f32"], |b| {
        (b.dtype.bits, b.shape[0]) = (64, 2)
    });
    refused(mismatch, &["i32", "f32"], |b| b.dtype.code = 0);
    refused(mismatch, &["[2, 8]", "[4, 4]"], |b| {
        b.shape[..2].copy_from_slice(&[2, 8])
    });
    refused(mismatch, &["[-4]"], |b| {
        (b.dim_count, b.shape) = (1, [16, 0, 0, 0, 0, 0, 0, 0]);
        b.strides[0] = -4;
    });

    let invalid = WSYNC_ERR_INVALID_ARGUMENT;
    refused(invalid, &["68", "64"], |b| {
        (b.dim_count, b.shape) = (1, [17, 0, 0, 0, 0, 0, 0, 0])
    });
    refused(invalid, &["64"], |b| b.strides[0] = i64::MIN);
    refused(invalid, &["beyond", "shape"], |b| b.shape[2] = 9);
    refused(invalid, &["beyond", "strides"], |b| b.strides[7] = 9);
    refused(invalid, &["dtype"], |b| {
        (b.dtype.code, b.dtype.bits, b.dtype.lanes) = (0, 0, 0)
    });
    refused(WSYNC_ERR_LIMIT_EXCEEDED, &["9 axes"], |b| b.dim_count = 9);
    refused(WSYNC_ERR_LIMIT_EXCEEDED, &["2^63"], |b| {
        b.shape[..2].copy_from_slice(&[u64::MAX, u64::MAX])
    });
}

/// Callers of the first header give no array.
#[test]
fn bindings_of_older_callers_are_as_long_as_they_were() {
    const FIRST: usize = 48;
    let told = |b: &mut wsync_binding| b.dtype.code = 99;
    assert_eq!(binding_status(told, FIRST), (WSYNC_OK, String::new()));
    let (status, _) = binding_status(told, size_of::<wsync_binding>());
    assert_eq!(status, WSYNC_ERR_INVALID_ARGUMENT);
}
