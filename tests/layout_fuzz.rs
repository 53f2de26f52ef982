//! Damaged descriptions whose damage no checksum finds: whatever is accepted
//! must be usable, and nothing may panic.

mod layout_support;

use layout_support::{Dice, explicit, random_layout};
use weightsync::layout::check::{check, check_pair};
use weightsync::layout::{LAYOUT_BLOB_MAGIC, LAYOUT_BLOB_VERSION, Layout, LayoutSpec, frame};

/// Uses a layout in every way.
fn exercise(layout: &Layout) {
    let text = layout.to_json();
    let again = Layout::from_json(text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(again.spec(), layout.spec());
    assert_eq!(
        Layout::new(layout.spec().clone()).unwrap().spec(),
        layout.spec()
    );
    let _ = layout.describe();
    let _ = check_pair(layout, layout);
    let some = layout.restrict(|name| name.len() % 2 == 0).unwrap();
    for rank in layout.ranks().into_iter().take(64) {
        let views = layout.views(rank);
        for v in views.iter().take(1000) {
            let b = layout.buffer(rank, v.buffer).unwrap();
            let (_, hi) = v.extent().unwrap();
            assert!(hi <= b.bytes, "{v:?} leaves {b:?}");
        }
        let _ = some.buffers(rank);
        assert!(layout.copy_of(rank).unwrap() < layout.copy_count());
    }
}

fn rounds() -> u64 {
    let given = std::env::var("WSYNC_TEST_FUZZ_ROUNDS").ok();
    given.and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

#[test]
fn damaged_blobs_with_good_checksums_do_not_panic() {
    let mut accepted = 0;
    for seed in 0..rounds() {
        let d = &mut Dice(seed);
        let mut layout = random_layout(d);
        if d.chance(30) {
            layout = explicit(&layout);
        }
        let mut payload = layout.to_bytes().split_off(frame::HEADER_BYTES);
        for _ in 0..d.roll(1, 4) {
            let at = d.roll(0, payload.len() as u64 - 1) as usize;
            match d.roll(0, 3) {
                0 => payload[at] = d.roll(0, 255) as u8,
                1 => payload[at] = payload[at].wrapping_add(1),
                2 => payload.insert(at, d.roll(0, 255) as u8),
                _ => payload[at] = [0, 1, 0x7f, 0xff][d.roll(0, 3) as usize],
            }
        }
        let bytes = frame::seal(LAYOUT_BLOB_MAGIC, LAYOUT_BLOB_VERSION, &payload);
        if let Ok(layout) = Layout::from_bytes(&bytes) {
            accepted += 1;
            exercise(&layout);
        }
    }
    assert!(accepted > 0);
}

#[test]
fn damaged_files_do_not_panic() {
    let names = [
        "trainer_tp2_pp2_dp2",
        "inference_2x_tp4",
        "explicit_two_ranks",
    ];
    let texts = names.map(|name| {
        let path = format!("{}/tests/layouts/{name}.json", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).unwrap()
    });
    let numbers = [
        "0",
        "1",
        "3",
        "7",
        "255",
        "4294967295",
        "18446744073709551615",
        "-1",
        "[]",
        "{}",
    ];
    let mut accepted = 0;
    for seed in 0..rounds() / 4 {
        let d = &mut Dice(seed);
        let mut text = d.pick(&texts).clone();
        for _ in 0..d.roll(1, 3) {
            let digits: Vec<usize> = (0..text.len())
                .filter(|&i| text[i].is_ascii_digit())
                .collect();
            match d.roll(0, 2) {
                0 => {
                    let at = *d.pick(&digits);
                    text.splice(at..at + 1, d.pick(&numbers).bytes());
                }
                1 => {
                    let at = d.roll(0, text.len() as u64 - 1) as usize;
                    text[at] = *d.pick(b"{}[]\":, 0a");
                }
                _ => {
                    let at = d.roll(0, text.len() as u64 - 9) as usize;
                    let piece = text[at..at + 8].to_vec();
                    let to = d.roll(0, text.len() as u64 - 1) as usize;
                    text.splice(to..to, piece);
                }
            }
        }
        if let Ok(spec) = LayoutSpec::from_json(&text) {
            let report = check(&spec);
            match Layout::new(spec) {
                Ok(layout) => {
                    accepted += 1;
                    assert!(report.is_ok());
                    exercise(&layout);
                }
                Err(e) => assert!(!report.is_ok(), "{e}"),
            }
        }
    }
    assert!(accepted > 0);
}
