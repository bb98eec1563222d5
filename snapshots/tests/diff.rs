//! What the diff of two states looks like, and that it is empty exactly for equal ones.

use proptest::prelude::*;
use serde::Serialize;
use sim_core::memory::PhysMem;
use sim_core::{Gpa, Hpa, Level};
use snapshots::{Node, diff, diff_nodes, tree};
use std::collections::BTreeMap;

#[derive(Clone, Serialize)]
enum Exit {
    Halt,
    EptViolation { gpa: Gpa, qualification: u64 },
    Msr(u32, bool),
}

#[derive(Clone, Serialize)]
struct Vcpu {
    rip: u64,
    delta: i32,
    cr3: Option<Hpa>,
    exit: Exit,
    tlb: Vec<(Level, u64)>,
    msrs: BTreeMap<u32, u64>,
    vmcs: Vec<u8>,
    name: &'static str,
    mac: [u8; 4],
    unit: (),
}

fn vcpu() -> Vcpu {
    Vcpu {
        rip: 0xfff0,
        delta: -2,
        cr3: Some(Hpa(0x1000)),
        exit: Exit::EptViolation { gpa: Gpa(0x2000), qualification: 0x181 },
        tlb: vec![(Level::L1, 0x10), (Level::L1, 0x20), (Level::L2, 0x30)],
        msrs: BTreeMap::from([(0x1b, 0xfee0_0000), (0xc000_0080, 0x500)]),
        vmcs: vec![0; 64],
        name: "one",
        mac: [1, 2, 3, 4],
        unit: (),
    }
}

fn lines<A: Serialize, B: Serialize>(old: &A, new: &B) -> Vec<String> {
    diff(old, new).expect("both serialise").iter().map(ToString::to_string).collect()
}

#[test]
fn each_change_of_a_state_is_one_line() {
    type Case = (fn(&mut Vcpu), &'static [&'static str]);
    #[rustfmt::skip]
    let cases: &[Case] = &[
        (|_| {}, &[]),
        (|v| v.rip = 0x7c00, &["rip: 0xfff0 -> 0x7c00"]),
        (|v| v.delta = 16, &["delta: -0x2 -> 0x10"]),
        (|v| v.cr3 = None, &["cr3: 0x1000 -> none"]),
        (|v| v.cr3 = Some(Hpa(0x3000)), &["cr3: 0x1000 -> 0x3000"]),
        (|v| v.exit = Exit::EptViolation { gpa: Gpa(0x2008), qualification: 0x181 }, &["exit.EptViolation.gpa: 0x2000 -> 0x2008"]),
        (|v| v.exit = Exit::Halt, &["exit: EptViolation {gpa: 0x2000, qualification: 0x181} -> Halt"]),
        (|v| v.exit = Exit::Msr(0x10, true), &["exit: EptViolation {gpa: 0x2000, qualification: 0x181} -> Msr(0x10, true)"]),
        (|v| v.tlb[1].1 = 0x21, &["tlb[1][1]: 0x20 -> 0x21"]),
        (|v| v.tlb[1].0 = Level::L3, &["tlb[1][0]: L1 -> L3"]),
        (|v| { v.tlb.remove(0); }, &["tlb[0]: (L1, 0x10) -> absent"]),
        (|v| v.tlb.insert(1, (Level::L4, 1)), &["tlb[1]: absent -> (L4, 0x1)"]),
        (|v| v.tlb.clear(), &["tlb[0]: (L1, 0x10) -> absent", "tlb[1]: (L1, 0x20) -> absent", "tlb[2]: (L2, 0x30) -> absent"]),
        (|v| { v.msrs.remove(&0x1b); v.msrs.insert(0x3a, 5); }, &["msrs[0x1b]: 0xfee00000 -> absent", "msrs[0x3a]: absent -> 0x5"]),
        (|v| v.vmcs[3] = 0xff, &["vmcs[0x3]: [00] -> [ff]"]),
        (|v| { v.vmcs[8..12].fill(1); v.vmcs[14] = 2; v.vmcs[40] = 3; },
            &["vmcs[0x8..0xf]: [00 00 00 00 00 00 00] -> [01 01 01 01 00 00 02]", "vmcs[0x28]: [00] -> [03]"]),
        (|v| { v.vmcs[0] = 1; v.vmcs[4] = 1; }, &["vmcs[0x0..0x5]: [00 00 00 00 00] -> [01 00 00 00 01]"]),
        (|v| { v.vmcs[0] = 1; v.vmcs[5] = 1; }, &["vmcs[0x0]: [00] -> [01]", "vmcs[0x5]: [00] -> [01]"]),
        (|v| v.vmcs.fill(7), &["vmcs[0x0..0x40]: [00 x 64] -> [07 x 64]"]),
        (|v| v.vmcs.truncate(2), &["vmcs: [00 x 64] -> [00 00]"]),
        (|v| v.vmcs.clear(), &["vmcs: [00 x 64] -> []"]),
        (|v| v.vmcs = (0..64).collect(), &["vmcs[0x1..0x40]: [00 x 63] -> [01 02 03 04 05 06 07 08 .. 63 bytes, crc32 8d29775e]"]),
        (|v| v.name = "two\n", &[r#"name: "one" -> "two\n""#]),
        (|v| v.mac[2] = 0xaa, &["mac[2]: 0x3 -> 0xaa"]),
        (|v| { v.rip = 0; v.mac[0] = 0; v.delta = 0; }, &["rip: 0xfff0 -> 0x0", "delta: -0x2 -> 0x0", "mac[0]: 0x1 -> 0x0"]),
    ];
    for (change, expected) in cases {
        let mut new = vcpu();
        change(&mut new);
        assert_eq!(&lines(&vcpu(), &new), expected);
    }
}

/// Memory is compared by frame: a frame more does not shift the others.
#[test]
fn memory_is_compared_by_frame() {
    let mut old = PhysMem::new(16);
    old.write_u64(Hpa(0x5008), 0x1122);
    let mut new = old.clone();
    new.write_u64(Hpa(0x2ff8), 0x00ff_0000_0000_0001);
    new.write_u64(Hpa(0x5008), 0x1133);
    assert_eq!(
        lines(&old, &new),
        [
            "content[0x2]: absent -> [00 00 00 00 00 00 00 00 .. 4096 bytes, crc32 9892fdfd]",
            "content[0x5][0x8]: [22] -> [33]",
        ]
    );
}

#[test]
fn scattered_bytes_are_listed_up_to_a_bound() {
    let old = vec![0u8; 4096];
    let new: Vec<u8> = (0..4096).map(|index| u8::from(index % 8 == 0)).collect();
    let lines = lines(&old, &new);
    assert_eq!(lines.len(), 17);
    assert_eq!(lines[15], "[0x78]: [00] -> [01]");
    assert_eq!(
        lines[16],
        "[0x80..0xff9] (496 more runs): [00 x 3961] -> [01 00 00 00 00 00 00 00 .. 3961 bytes, crc32 4b3a79af]"
    );
}

#[test]
fn whole_values_and_other_types_compare_too() {
    assert_eq!(lines(&1u8, &2u64), [".: 0x1 -> 0x2"]);
    assert_eq!(lines(&1u8, &"x"), [r#".: 0x1 -> "x""#]);
    assert_eq!(lines(&Some(None::<u8>), &None::<Option<u8>>), [".: some(none) -> none"]);
    assert_eq!(lines(&vec![1.5f64], &vec![f64::NAN]), ["[0]: 1.5 -> NaN"]);
    assert_eq!(lines(&vec![f64::NAN], &vec![f64::NAN]), [""; 0]);
    assert_eq!(lines(&vec!['a'], &vec![true]), ["[0]: 'a' -> true"]);
    assert_eq!(
        lines(&[0u8; 8], &[0u8; 9]),
        [".: (0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0) -> [00 00 00 00 00 00 00 00 00]"]
    );
}

#[test]
fn the_tree_keeps_names_and_packs_bytes() {
    let name = tree(&vcpu()).unwrap().to_string();
    assert_eq!(
        name,
        "{rip: 0xfff0, delta: -0x2, cr3: 0x1000, exit: EptViolation {gpa: 0x2000, qualification: 0x181}, \
         tlb: [(L1, 0x10), (L1, 0x20), (L2, 0x30)], msrs: {0x1b: 0xfee00000, 0xc0000080: 0x500}, \
         vmcs: [00 x 64], name: \"one\", mac: (0x1, 0x2, 0x3, 0x4), unit: ()}"
    );
    assert_eq!(tree(&vec![1u8, 2]), Ok(Node::Bytes(vec![1, 2])));
    assert_eq!(tree(&vec![1u16]), Ok(Node::Seq(vec![Node::Unsigned(1)])));
    assert_eq!(tree(&(1u8, 2u16)), Ok(Node::Tuple(vec![Node::Unsigned(1), Node::Unsigned(2)])));
}

#[test]
fn a_value_that_refuses_is_an_error() {
    struct Refuses;
    impl Serialize for Refuses {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("poisoned"))
        }
    }
    assert_eq!(diff(&Refuses, &1).unwrap_err().to_string(), "can't serialise: poisoned");
}

fn nodes() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        Just(Node::Unit),
        Just(Node::None),
        (0u128..3).prop_map(Node::Unsigned),
        prop::collection::vec(0u8..2, 1..12).prop_map(Node::Bytes),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        let items = prop::collection::vec(inner.clone(), 0..4);
        let map = prop::collection::btree_map(inner.clone(), inner.clone(), 0..4);
        prop_oneof![
            inner.clone().prop_map(|node| Node::Some(Box::new(node))),
            inner.clone().prop_map(|node| Node::Variant("A", Box::new(node))),
            items.clone().prop_map(Node::Seq),
            items.prop_map(Node::Tuple),
            map.prop_map(|map| Node::Map(map.into_iter().collect())),
            (inner.clone(), inner).prop_map(|(a, b)| Node::Struct(vec![("a", a), ("b", b)])),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_diff_is_empty_exactly_for_equal_trees((old, new) in (nodes(), nodes())) {
        prop_assert!(diff_nodes(&old, &old).is_empty());
        prop_assert_eq!(diff_nodes(&old, &new).is_empty(), old == new);
        prop_assert_eq!(diff_nodes(&old, &new).len(), diff_nodes(&new, &old).len());
    }
}
