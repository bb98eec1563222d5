//! The container: what goes in comes out, and every way of being wrong has its own answer.
//! Source of the offsets: docs/SNAPSHOT_FORMAT.md.

mod support;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use sim_core::choice::{ChoicePoint, Choices};
use snapshots::{Checkpoint, CodecError, Kind, Older, Origin, Restored, SECTIONS_MAX, Section, SnapshotError};
use support::{Toy, minimal};

const HEADER: usize = 24;
const ENTRY: usize = 28;
const ORIG: Kind = Origin::KIND;
const TOY: Kind = Toy::KIND;

/// Puts the right checksum over a changed header and table.
fn reseal(bytes: &mut [u8]) {
    let count = u32::from_le_bytes(bytes[16..20].try_into().expect("4 bytes")) as usize;
    let Some(table) = bytes.get(HEADER..HEADER + count.min(SECTIONS_MAX) * ENTRY) else { return };
    let crc = crc32fast::hash(&[&bytes[..20], table].concat());
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn what_goes_in_comes_out() {
    for checkpoint in [Checkpoint::new(), minimal()] {
        let bytes = checkpoint.write();
        let again = Checkpoint::read(&bytes).unwrap();
        assert_eq!(again, checkpoint);
        assert_eq!(again.write(), bytes);
    }
    assert_eq!(minimal().get::<Toy>().unwrap(), Toy { rip: 0xfff0, stack: vec![0xf4] });
    assert_eq!(minimal().get::<Origin>().unwrap().settings["at"], "v7.0");
}

#[test]
fn the_order_of_putting_does_not_reach_the_bytes() {
    let (mut one, mut other) = (Checkpoint::new(), Checkpoint::new());
    one.put(&Toy::default()).unwrap();
    one.put(&Origin::default()).unwrap();
    other.put(&Origin::default()).unwrap();
    other.put(&Toy::default()).unwrap();
    assert_eq!(one.write(), other.write());
    assert_eq!(one.put(&Toy::default()), Err(SnapshotError::DuplicateKind { kind: TOY }));
}

type Spoil = fn(&mut Vec<u8>);

/// Offsets of the second table entry (TOY0): kind at 52, version 56, offset 60, length 68, crc 76; payloads from 80.
const SECOND: usize = HEADER + ENTRY;

fn set_offset(bytes: &mut [u8], entry: usize, change: i64) {
    let at = entry + 8..entry + 16;
    let offset = u64::from_le_bytes(bytes[at.clone()].try_into().expect("8 bytes"));
    bytes[at].copy_from_slice(&offset.wrapping_add_signed(change).to_le_bytes());
    reseal(bytes);
}

fn set_length(bytes: &mut [u8], entry: usize, length: u64) {
    bytes[entry + 16..entry + 24].copy_from_slice(&length.to_le_bytes());
    reseal(bytes);
}

fn set_kind(bytes: &mut [u8], entry: usize, kind: [u8; 4]) {
    bytes[entry..entry + 4].copy_from_slice(&kind);
    reseal(bytes);
}

#[test]
fn every_way_of_being_wrong_has_its_own_error() {
    let len = minimal().write().len();
    #[rustfmt::skip]
    let table: &[(&str, Spoil, &str)] = &[
        ("empty", |b| b.clear(), "not a checkpoint: it starts with []"),
        ("text", |b| b[..8].copy_from_slice(b"#!/bin/s"), "a checkpoint with [89, 52, 43, 53, 0d, 0a, 1a, 0a]"),
        ("line ends changed", |b| { b.remove(4); }, "not a checkpoint"),
        ("magic only", |b| b.truncate(8), "truncated: the header ends at byte 24, the file at byte 8"),
        ("half a magic", |b| b.truncate(3), "truncated: the header ends at byte 24, the file at byte 3"),
        ("half a table", |b| b.truncate(70), "truncated: the section table ends at byte 80, the file at byte 70"),
        ("newer container", |b| b[8] = 2, "container version 2: this build reads 1 to 1"),
        ("container version 0", |b| b[8] = 0, "container version 0: this build reads 1 to 1"),
        ("unknown codec", |b| b[12] = 9, "codec id 9: this build reads 1 (bincode 2"),
        ("huge count", |b| b[16..20].fill(0xff), "4294967295 sections: a checkpoint holds at most 256"),
        ("count beyond the file", |b| b[17] = 1, "258 sections: a checkpoint holds at most 256"),
        ("most sections", |b| { b[16] = 0; b[17] = 1; }, "truncated: the section table ends at byte 7192"),
        ("damaged table", |b| b[30] ^= 1, "damaged header or section table: crc32 0x"),
        ("damaged checksum", |b| b[20] ^= 1, "damaged header or section table: crc32 0x"),
        ("lower-case kind", |b| set_kind(b, SECOND, *b"toy0"), "section 1 has the kind [74, 6f, 79, 30]: a kind is four"),
        ("duplicate kind", |b| set_kind(b, SECOND, *b"ORIG"), "section ORIG twice"),
        ("unordered kind", |b| set_kind(b, SECOND, *b"AAAA"), "section AAAA after ORIG"),
        ("overlap", |b| set_offset(b, SECOND, -1), "section TOY0 at offset 122 overlaps what is before it: it must start at 123"),
        ("payload in the table", |b| set_offset(b, HEADER, -1), "section ORIG at offset 79 overlaps"),
        ("gap", |b| { b.push(0); set_offset(b, SECOND, 1); }, "section TOY0 at offset 124 leaves a gap: it must start at 123"),
        ("offset beyond the file", |b| set_offset(b, SECOND, 1 << 40), "section TOY0 is 5 bytes at offset 1099511627899: the file has 128"),
        ("offset near 2^64", |b| set_offset(b, SECOND, -124), "section TOY0 is 5 bytes at offset 18446744073709551615: the file"),
        ("length beyond the file", |b| set_length(b, SECOND, 6), "section TOY0 is 6 bytes at offset 123: the file has 128 bytes"),
        ("length near 2^64", |b| set_length(b, SECOND, u64::MAX), "section TOY0 is 18446744073709551615 bytes at offset 123"),
        ("damaged payload", |b| b[84] ^= 0x10, "damaged section ORIG: crc32 0x"),
        ("bytes at the end", |b| b.push(0), "the last section ends at byte 128, the file at byte 129: nothing may follow"),
        ("short last section", |b| set_length(b, SECOND, 4), "damaged section TOY0: crc32"),
    ];
    assert_eq!(len, 128, "the offsets in this table are those of a 128-byte file");
    for (what, spoil, expected) in table {
        let mut bytes = minimal().write();
        spoil(&mut bytes);
        let error = Checkpoint::read(&bytes).expect_err(what).to_string();
        assert!(error.contains(expected), "{what}: {error}");
    }
}

/// A later build's state under the same kind.
#[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct ToyV2 {
    rip: u64,
    stack: Vec<u8>,
    halted: bool,
}

impl Section for ToyV2 {
    const KIND: Kind = TOY;
    const VERSION: u32 = 2;

    fn from_older(older: Older<'_>) -> Result<Self, SnapshotError> {
        match older.version() {
            1 => older.decode::<Toy>().map(|Toy { rip, stack }| Self { rip, stack, halted: false }),
            _ => Err(older.refused(Self::VERSION)),
        }
    }
}

/// The same version with a field of another type: the mistake that the digest is there for.
#[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct ToySigned {
    rip: i64,
    stack: Vec<u8>,
}

impl Section for ToySigned {
    const KIND: Kind = TOY;
    const VERSION: u32 = 1;
}

#[test]
fn sections_are_refused_or_migrated_by_version() {
    let mut newer = Checkpoint::new();
    newer.put(&ToyV2 { rip: 1, stack: vec![], halted: true }).unwrap();
    assert_eq!(newer.get::<Toy>(), Err(SnapshotError::SectionVersion { kind: TOY, found: 2, expected: 1 }));
    assert_eq!(newer.get::<Origin>(), Err(SnapshotError::MissingSection { kind: ORIG, present: vec![TOY] }));
    let migrated = ToyV2 { rip: 0xfff0, stack: vec![0xf4], halted: false };
    assert_eq!(minimal().get::<ToyV2>(), Ok(migrated));
}

#[test]
fn a_state_that_cannot_be_read_gives_its_recipe() {
    let Restored::State { state, origin } = minimal().restore::<Toy>().unwrap() else {
        panic!("the state is readable")
    };
    assert_eq!((state.rip, origin.steps), (0xfff0, 2));

    let mut newer = Checkpoint::new();
    newer.put(&origin).unwrap();
    newer.put(&ToyV2 { rip: 1, stack: vec![], halted: true }).unwrap();
    let why = SnapshotError::SectionVersion { kind: TOY, found: 2, expected: 1 };
    assert_eq!(newer.restore::<Toy>(), Ok(Restored::Replay { origin, why }));

    assert!(minimal().get::<ToySigned>().is_ok(), "the payload fits the wrong struct");
    let Restored::Replay { why, .. } = minimal().restore::<ToySigned>().unwrap() else { panic!("the digest differs") };
    assert!(matches!(why, SnapshotError::StateDigest { kind: TOY, .. }), "{why}");

    assert!(matches!(Checkpoint::new().restore::<Toy>(), Err(SnapshotError::MissingSection { kind: ORIG, .. })));
}

#[test]
fn trailing_bytes_in_a_payload_are_an_error() {
    #[derive(Serialize, Deserialize)]
    struct Longer(Toy, u8);
    impl Section for Longer {
        const KIND: Kind = TOY;
        const VERSION: u32 = 1;
    }
    let mut checkpoint = Checkpoint::new();
    checkpoint.put(&Longer(Toy::default(), 0)).unwrap();
    let cause = CodecError::TrailingBytes { used: 2, bytes: 3 };
    assert_eq!(checkpoint.get::<Toy>(), Err(SnapshotError::Decode { kind: TOY, cause }));
}

#[test]
fn choices_come_back_as_a_script() {
    let mut choices = Choices::scripted(vec![2, 0, 1]);
    let ask = |choices: &mut Choices| [3, 4, 5].map(|of| choices.choose(ChoicePoint::Schedule, of));
    let taken = ask(&mut choices);
    let origin = Origin::default().with_choices(&choices);
    assert_eq!(origin.choices, taken);
    assert_eq!(ask(&mut origin.script()), taken);
}

#[test]
#[should_panic(expected = "four capital ASCII letters or digits")]
fn a_bad_kind_is_a_mistake_of_the_programmer() {
    let _ = Kind::new(*b"ab c");
}

/// Bytes to overwrite, and where, as a fraction of the file.
fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

fn edited(edits: &[(prop::sample::Index, u8)], within: impl Fn(usize) -> usize) -> Vec<u8> {
    let mut bytes = minimal().write();
    let length = within(bytes.len());
    for (index, value) in edits {
        bytes[index.index(length)] = *value;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damage_is_an_error_or_no_damage(edits in edits()) {
        if let Ok(checkpoint) = Checkpoint::read(&edited(&edits, |length| length)) {
            prop_assert_eq!(checkpoint, minimal());
        }
    }

    #[test]
    fn cutting_and_growing_is_an_error(cut in any::<prop::sample::Index>(), more in prop::collection::vec(any::<u8>(), 1..40)) {
        let bytes = minimal().write();
        prop_assert!(Checkpoint::read(&bytes[..cut.index(bytes.len())]).is_err());
        prop_assert!(Checkpoint::read(&[bytes, more].concat()).is_err());
    }

    /// With the header's checksum made right again, the table's own checks are what is left.
    #[test]
    fn a_forged_table_never_panics_and_what_it_reads_is_canonical(edits in edits()) {
        let mut bytes = edited(&edits, |_| HEADER + 2 * ENTRY);
        reseal(&mut bytes);
        if let Ok(checkpoint) = Checkpoint::read(&bytes) {
            prop_assert_eq!(checkpoint.write(), bytes);
        }
    }

    /// With the payload's checksums right as well, the codec is what is left.
    #[test]
    fn a_forged_payload_never_panics(edits in edits()) {
        let mut bytes = edited(&edits, |length| length);
        let whole = minimal().write();
        bytes[..HEADER + 2 * ENTRY].copy_from_slice(&whole[..HEADER + 2 * ENTRY]);
        for (entry, (start, end)) in [(HEADER, (80, 123)), (SECOND, (123, 128))] {
            let crc = crc32fast::hash(&bytes[start..end]);
            bytes[entry + 24..entry + 28].copy_from_slice(&crc.to_le_bytes());
        }
        reseal(&mut bytes);
        let checkpoint = Checkpoint::read(&bytes).unwrap();
        match checkpoint.restore::<Toy>() {
            Ok(Restored::State { state, .. }) => prop_assert_eq!(state, minimal().get::<Toy>().unwrap()),
            Ok(Restored::Replay { why, .. }) | Err(why) => prop_assert!(!why.to_string().is_empty()),
        }
    }

    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Checkpoint::read(&tail).is_err());
        let mut bytes = minimal().write()[..16].to_vec();
        bytes.extend(tail);
        if bytes.len() >= HEADER {
            bytes[17..20].fill(0);
            reseal(&mut bytes);
        }
        if let Ok(checkpoint) = Checkpoint::read(&bytes) {
            prop_assert_eq!(checkpoint.write(), bytes);
        }
    }
}
