//! The shape of a scenario file, as TOML sees it. The JSON Schema that editors use, and the shape check that errors
//! come from, are both generated from these types; [`Scenario`](super::Scenario) is what a checked file becomes.

use super::guest::Break;
use super::matrix::Vendor;
use super::space::{BackedBy, Mode, SeenBy};
use super::steps::OutOfTurn;
use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
pub(crate) struct Marked<T>(Spanned<T>);

impl<T> Marked<T> {
    pub(crate) fn get(&self) -> &T {
        self.0.get_ref()
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.0.span()
    }
}

impl<T: JsonSchema> JsonSchema for Marked<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A rolecall scenario: one transition of a virtual machine's MMU state, the machines it runs on, and what must hold.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "rolecall scenario")]
pub(crate) struct ScenarioFile {
    /// What the scenario shows, in one line.
    #[schemars(required)]
    pub(crate) title: Option<Marked<String>>,
    /// What happens and why it matters, in a few sentences.
    pub(crate) about: Option<String>,
    /// Where it comes from: a mail, a commit, a manual section. At least one.
    #[schemars(required, length(min = 1))]
    pub(crate) source: Option<Vec<String>>,
    /// The bug of a real kernel that the scenario shows.
    pub(crate) bug: Option<BugTable>,
    /// Files whose spaces, guests, slots, memory and machine come first; this file overrides them by name.
    #[serde(default)]
    pub(crate) include: Vec<Marked<String>>,
    /// What becomes of a guest step whose level does not run when its turn comes: refuse (the default; the run can't be
    /// judged) or skip.
    #[serde(default)]
    pub(crate) out_of_turn: OutOfTurn,
    /// Axes whose product is the file's runs.
    #[serde(default)]
    pub(crate) matrix: MatrixTable,
    /// The machine that every run starts with.
    #[serde(default)]
    pub(crate) machine: MachineTable,
    /// Memory slots beside main memory.
    #[serde(default)]
    pub(crate) slot: Vec<SlotTable>,
    /// Guest address spaces, by name.
    #[serde(default)]
    pub(crate) space: BTreeMap<Marked<String>, Marked<SpaceTable>>,
    /// First contents of memory: "0x200000: 34 12" or "0x201000: u64 0x1234".
    #[serde(default)]
    pub(crate) memory: Vec<Marked<String>>,
    /// L1 (`guest.l1`) and what it puts in the VMCS or VMCB of each nested guest, by name.
    #[serde(default)]
    pub(crate) guest: BTreeMap<Marked<String>, Marked<GuestTable>>,
    /// The steps, one a line: "l1: mov-cr3 a". `rolecall show steps` lists them. In TOML a key belongs to the header
    /// above it, so that steps below a header are that table's; they mean the same there.
    pub(crate) steps: Option<Marked<String>>,
    /// What must hold: "*" or a selector such as 'vendor = "amd", tdp = false'. Later entries override field by field.
    #[serde(default)]
    pub(crate) expect: BTreeMap<Marked<String>, Marked<ExpectTable>>,
}

/// The bug of a real kernel that a scenario shows: it breaks before the fix, and holds from the fix on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct BugTable {
    /// Its number in a list of bugs, such as "C-30".
    pub(crate) number: String,
    /// The change that mended it; `rolecall show changes` lists them.
    pub(crate) fix: Marked<String>,
    /// What a guest or a user of such a kernel sees, in one line.
    pub(crate) symptom: String,
}

/// Axes whose product is the file's runs. An axis is a list of distinct values.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct MatrixTable {
    /// Whose silicon: intel, amd. Without the axis: intel.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub(crate) vendor: Option<Vec<Vendor>>,
    /// Two-dimensional paging in L0. Without the axis: true.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub(crate) tdp: Option<Vec<bool>>,
    /// Two-dimensional paging offered by L1 to L2. Without the axis: as tdp.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub(crate) nested_tdp: Option<Vec<bool>>,
    /// Tagged TLB entries on Intel. Without the axis: true.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub(crate) vpid: Option<Vec<bool>>,
    /// Points of the hypervisor's history: a release, a commit of a series. Without the axis: the newest.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub(crate) at: Option<Vec<Marked<String>>>,
    /// Lists of changes switched on beside those of the point of history. Without the axis: none.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub(crate) with: Option<Vec<Vec<Marked<String>>>>,
    /// Lists of changes switched off. Without the axis: none.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub(crate) without: Option<Vec<Vec<Marked<String>>>>,
    /// The scenario's steps, where this is the last header above them.
    pub(crate) steps: Option<Marked<String>>,
}

/// The machine that every run starts with.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct MachineTable {
    /// Main memory from guest-physical 0, such as "32M" (the default); at most "1G".
    pub(crate) memory: Option<Marked<String>>,
    /// vCPUs, 1 (the default) to 4.
    #[schemars(range(min = 1, max = 4))]
    pub(crate) vcpus: Option<u8>,
    /// Physical-address bits, 32 to 52; 40 is the default.
    #[schemars(range(min = 32, max = 52))]
    pub(crate) maxphyaddr: Option<u8>,
    /// Silicon features that this machine lacks, such as "wbinvd-exiting".
    #[schemars(extend("uniqueItems" = true))]
    pub(crate) silicon_without: Option<Vec<Marked<String>>>,
    /// Whose translation caches the processors have, in size and in what invalidates them: base (the default), skylake, zen4,
    /// unbounded, bochs.
    pub(crate) tlb: Option<TlbName>,
    /// Whether a shadow page is flushed when it is used again; false is the default.
    pub(crate) flush_on_reuse: Option<bool>,
    /// Logical processors, 1 to 8; as many as vCPUs is the default. vCPU n begins on processor n, modulo their number.
    #[schemars(range(min = 1, max = 8))]
    pub(crate) processors: Option<u8>,
    /// VPIDs that the hypervisor has for its guests (Intel), 0 to 65535; 65535 is the default.
    pub(crate) vpids: Option<u16>,
    /// ASIDs of each processor, the host's 0 included, that the hypervisor has for its guests (AMD), 2 to 65536; 32768 is
    /// the default.
    #[schemars(range(min = 2, max = 65536))]
    pub(crate) asids: Option<u32>,
    /// The largest pages with which the host maps guest memory: 4K (the default), 2M, 1G.
    pub(crate) host_pages: Option<HostPages>,
    /// Which MMU maps guest memory under two-dimensional paging: tdp (the default), legacy.
    pub(crate) direct_mmu: Option<DirectMmuName>,
    /// Whether executable large pages are forbidden; false is the default.
    pub(crate) nx_huge_pages: Option<bool>,
    /// Whether the hypervisor uses accessed and dirty flags of EPT (Intel); true is the default.
    pub(crate) accessed_dirty: Option<bool>,
    /// Whether the hypervisor uses the page-modification log (Intel); false is the default.
    pub(crate) pml: Option<bool>,
    /// Whether the hypervisor lets L1 reach VMCS fields without an exit (Intel); default false.
    pub(crate) shadow_vmcs: Option<bool>,
    /// Shadow pages that the VM may have before old ones are zapped, at least 64; 1024 is the default.
    #[schemars(range(min = 64))]
    pub(crate) mmu_pages: Option<u64>,
    /// Invalidations by the host that the VM has lived through already; 0 is the default.
    pub(crate) invalidations: Option<u64>,
    /// Bits of the memory slots' generation that an MMIO entry holds, 3 to 19; 19 is the default.
    #[schemars(range(min = 3, max = 19))]
    pub(crate) mmio_generation_bits: Option<u32>,
    /// Whether others always wait for the MMU lock, so that what may give it up does; false is the default.
    pub(crate) contended: Option<bool>,
    /// Levels of the hypervisor's own two-dimensional tables, 4 (the default) or 5.
    #[schemars(range(min = 4, max = 5))]
    pub(crate) tdp_levels: Option<u8>,
    /// The scenario's steps, where this is the last header above them.
    pub(crate) steps: Option<Marked<String>>,
}

/// Sizes of host pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum HostPages {
    /// 4 KiB.
    #[serde(rename = "4K")]
    Small,
    /// 2 MiB.
    #[serde(rename = "2M")]
    Large,
    /// 1 GiB.
    #[serde(rename = "1G")]
    Huge,
}

/// Translation caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TlbName {
    /// 64 entries for everything.
    Base,
    /// Intel Skylake.
    Skylake,
    /// AMD Zen 4.
    Zen4,
    /// Everything is kept until it is invalidated.
    Unbounded,
    /// The emulator Bochs 2.7.
    Bochs,
}

/// The two MMUs that can map guest memory under two-dimensional paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DirectMmuName {
    /// The TDP MMU.
    Tdp,
    /// The shadow MMU's direct pages.
    Legacy,
}

/// A memory slot beside main memory.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SlotTable {
    /// Its name in steps.
    pub(crate) name: Marked<String>,
    /// Its guest-physical address, such as "0xfee00000".
    pub(crate) at: Marked<Number>,
    /// Its 4 KiB pages; 1 is the default.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 262_144))]
    pub(crate) pages: u64,
    /// Whether user space does not see it (KVM's own slots); false is the default.
    #[serde(default)]
    pub(crate) private: bool,
    /// Who sees it; everyone is the default.
    #[serde(default)]
    pub(crate) seen_by: SeenBy,
    /// Whether guest writes to it exit; false is the default.
    #[serde(default)]
    pub(crate) read_only: bool,
    /// What the host has behind it; pages is the default.
    #[serde(default)]
    pub(crate) backed_by: BackedBy,
    /// Whether it is there before `add-slot`; true is the default.
    #[serde(default = "yes")]
    pub(crate) present: bool,
    /// The scenario's steps, where this is the last header above them.
    pub(crate) steps: Option<Marked<String>>,
}

const fn one() -> u64 {
    1
}

const fn yes() -> bool {
    true
}

/// A number: an integer, or text such as "0xfee00000".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Number {
    /// An integer.
    Integer(u64),
    /// Text.
    Text(String),
}

/// A guest address space.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SpaceTable {
    /// The paging mode: real, flat32, legacy32, pae, long4, long5.
    pub(crate) mode: Mode,
    /// What it maps: "0x400000 -> 0x200000 rw", with `user`, `global`, and a page size 2M, 4M or 1G if wanted.
    #[serde(default)]
    pub(crate) map: Vec<Marked<String>>,
    /// Where its root is, instead of tables of its own: an address that nothing need be at.
    pub(crate) root: Option<Marked<Number>>,
    /// The PCID in its CR3 value, 0 to 4095.
    #[schemars(range(min = 0, max = 4095))]
    pub(crate) pcid: Option<Marked<u16>>,
    /// First contents of memory, as at the root, where this is the last header above them.
    #[serde(default)]
    pub(crate) memory: Vec<Marked<String>>,
    /// The scenario's steps, where this is the last header above them.
    pub(crate) steps: Option<Marked<String>>,
}

/// L1's registers, or a nested guest's VMCS or VMCB.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct GuestTable {
    /// The address space in its CR3, which also says its mode.
    pub(crate) space: Option<Marked<String>>,
    /// Changes to CR0 on top of the mode's bits, such as "+WP".
    pub(crate) cr0: Option<Marked<String>>,
    /// Changes to CR4 on top of the mode's bits, such as "+SMEP".
    pub(crate) cr4: Option<Marked<String>>,
    /// Changes to EFER on top of the mode's bits, such as "+NXE".
    pub(crate) efer: Option<Marked<String>>,
    /// The VPID of a nested guest, 1 to 65535 (Intel); without it L1 does not use VPIDs.
    #[schemars(range(min = 1, max = 65_535))]
    pub(crate) vpid: Option<Marked<u16>>,
    /// Whether L1 turns on accessed and dirty flags in EPT (Intel); false is the default.
    pub(crate) ept_ad: Option<Marked<bool>>,
    /// The ASID of a nested guest, 1 to 255 (AMD); 1 is the default.
    #[schemars(range(min = 1, max = 255))]
    pub(crate) asid: Option<Marked<u16>>,
    /// Which of L1's nested tables the guest runs on: a name; guests that say none share the tables `main`.
    pub(crate) nested: Option<Marked<String>>,
    /// What a VM exit loads on Intel; without it, what L1 has at entry.
    pub(crate) host: Option<Marked<HostTable>>,
    /// What is made bad in the VMCS or VMCB, so that VM entry must fail.
    pub(crate) r#break: Option<Marked<Break>>,
    /// The scenario's steps, where this is the last header above them.
    pub(crate) steps: Option<Marked<String>>,
}

/// What a VM exit loads on Intel.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct HostTable {
    /// The address space in host CR3.
    pub(crate) space: Option<Marked<String>>,
    /// Changes to CR0.
    pub(crate) cr0: Option<Marked<String>>,
    /// Changes to CR4.
    pub(crate) cr4: Option<Marked<String>>,
    /// Changes to EFER.
    pub(crate) efer: Option<Marked<String>>,
    /// The scenario's steps, where this is the last header above them.
    pub(crate) steps: Option<Marked<String>>,
}

/// What must hold in the runs that an entry selects. What is not said is not compared.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct ExpectTable {
    /// Whether every invariant of the audit catalogue holds at every checkpoint.
    pub(crate) coherent: Option<bool>,
    /// Whether the guest observes what bare silicon can show; true is the default wherever it can be judged.
    pub(crate) transparent: Option<bool>,
    /// The text of the first bad step, or its beginning.
    pub(crate) first: Option<Marked<String>>,
    /// The number of the first bad step, from 1 in the order it runs.
    pub(crate) step: Option<Marked<u64>>,
    /// The audits that find it.
    pub(crate) audit: Option<OneOrMore>,
    /// The role word of the vCPU's MMU, such as "0x23704".
    pub(crate) role: Option<Marked<Number>>,
    /// The role word of the root in use, such as "0x3704".
    pub(crate) root_role: Option<Marked<Number>>,
    /// The names of the role bits that differ.
    pub(crate) differ: Option<OneOrMore>,
    /// Open bugs of the kernel at that point of history that the run must meet, such as C-2, and no others.
    pub(crate) known: Option<OneOrMore>,
    /// Bounds on the hypervisor's counters at the end of the run, by KVM's names (mmu_shadow_zapped) or short ones
    /// (remote_flushes): 3 is at most 3, "exactly 3" and "at least 3" are what they say. `replay --report stats` prints counters.
    pub(crate) budget: BTreeMap<Marked<String>, Marked<Number>>,
    /// Why these runs can't be judged.
    pub(crate) unjudged: Option<String>,
    /// Whether a step never comes to an end: the vCPU faults, or the guest runs, for ever.
    pub(crate) hangs: Option<bool>,
}

/// One name, or a list of names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMore {
    /// One.
    One(String),
    /// Several.
    More(Vec<String>),
}

impl ScenarioFile {
    /// The steps, wherever they stand: one place in a right file.
    pub(crate) fn all_steps(&self) -> Vec<&Marked<String>> {
        let guests = self.guest.values().map(Marked::get);
        let hosts = guests.clone().filter_map(|guest| guest.host.as_ref()).map(|host| &host.get().steps);
        let tables = [&self.steps, &self.matrix.steps, &self.machine.steps].into_iter();
        let slots = self.slot.iter().map(|slot| &slot.steps);
        let spaces = self.space.values().map(|space| &space.get().steps);
        let mut all: Vec<&Marked<String>> =
            tables.chain(slots).chain(spaces).chain(guests.map(|guest| &guest.steps)).chain(hosts).flatten().collect();
        all.sort_by_key(|steps| steps.range().start);
        all
    }

    /// The lines of first contents in the file's order, wherever they stand.
    pub(crate) fn all_memory(&self) -> Vec<&Marked<String>> {
        let spaces = self.space.values().flat_map(|space| &space.get().memory);
        let mut all: Vec<&Marked<String>> = self.memory.iter().chain(spaces).collect();
        all.sort_by_key(|line| line.range().start);
        all
    }
}

impl OneOrMore {
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Self::One(name) => vec![name.clone()],
            Self::More(names) => names.clone(),
        }
    }
}

/// The JSON Schema of scenario files (draft 2020-12).
#[must_use]
pub fn json_schema() -> serde_json::Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<ScenarioFile>();
    without_null(&mut schema);
    schema.to_value()
}

/// TOML has no null: an optional key is left out. Defaults are told in words.
fn without_null(schema: &mut Schema) {
    schema.remove("default");
    if let Some(serde_json::Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(serde_json::Value::Array(cases)) = schema.get_mut("anyOf") {
        cases.retain(|case| case["type"] != "null");
        if let [only] = cases.as_slice()
            && let Some(only) = only.as_object().cloned()
        {
            schema.remove("anyOf");
            for (key, value) in only {
                schema.insert(key, value);
            }
        }
    }
    transform_subschemas(&mut without_null, schema);
}
