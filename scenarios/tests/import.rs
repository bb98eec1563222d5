//! Traces of other kernels become audits and skeletons: goldens, bad traces, this program's own traces, and anything at all.

use clap::Parser;
use mmu::audit::Audit;
use mmu::change::Point;
use mmu::spte::Format;
use proptest::prelude::*;
use scenarios::backend::Kind;
use scenarios::cli::args::{Command, CommandLine, ImportArgs};
use scenarios::cli::{self, ExitCode, commands};
use scenarios::engine;
use scenarios::file::{self, Colours, RunConfig, Scenario, Vendor};
use scenarios::import::audit::{self, Audited};
use scenarios::import::event::{Fate, Told};
use scenarios::import::page::Layout;
use scenarios::import::trace::{self, Trace};
use scenarios::import::{skeleton, word};
use scenarios::report::trace as writer;
use sim_core::SimError;
use sim_core::event::{Detail, Event, PageView, Record};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

macro_rules! golden {
    ($name:literal, $text:expr) => {
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!($name, $text);
        })
    };
}

fn crate_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Exit code, output and errors of `import` on a text.
fn import(text: &[u8], words: &[&str]) -> (ExitCode, String, String) {
    let line = CommandLine::parse_from(["rolecall", "import", "-"].iter().chain(words));
    let Command::Import(arguments) = &line.command else { panic!("not import") };
    let arguments: &ImportArgs = arguments;
    let mut out = Vec::new();
    let result = cli::import::import(arguments, &mut io::Cursor::new(text), &mut out);
    let out = String::from_utf8(out).expect("output is text");
    match result {
        Ok(code) => (code, out, String::new()),
        Err(error @ commands::CommandError::Input(_)) => {
            let commands::CommandError::Input(diagnostics) = &error else { unreachable!() };
            (error.exit_code(), out, diagnostics.render(Colours::Plain))
        }
        Err(error) => (error.exit_code(), out, error.to_string()),
    }
}

/// The skeleton of a trace, read by the language.
fn parsed(trace: &Trace, audited: &Audited, at: Option<&str>) -> Scenario {
    let text = skeleton::render(trace, audited, at);
    let scenario = file::parse("skeleton", &text, &commands::known_points(), &commands::known_changes());
    scenario.unwrap_or_else(|problems| panic!("{text}\n{problems}"))
}

fn audited(text: &str, at: Option<&str>) -> (Trace, Audited) {
    let trace = trace::read("trace", text, Layout::Now, None).unwrap_or_else(|problems| panic!("{problems}"));
    let audited = audit::audit(&trace, &word::Words::at(at.and_then(Point::by_name)));
    (trace, audited)
}

/// Traces in the forms of real ones: the audit and the skeleton, whole.
#[test]
fn traces() {
    for (name, at, code) in
        [("nested-npt-off", &[][..], ExitCode::Ok), ("fields-with-findings", &["--at", "v6.14"], ExitCode::Finding)]
    {
        let text =
            fs::read(crate_root().join("tests/traces").join(name).with_extension("txt")).expect("the trace is there");
        let (ended, out, err) = import(&text, at);
        assert_eq!((ended, err.as_str()), (code, ""), "{name}");
        let (trace, audited) = audited(&String::from_utf8(text).expect("text"), at.last().copied());
        parsed(&trace, &audited, at.last().copied());
        match name {
            "nested-npt-off" => golden!("import-nested-npt-off", out),
            _ => golden!("import-fields-with-findings", out),
        }
    }
}

/// The same trace as JSON, and one thread of it.
#[test]
fn json_and_one_thread() {
    let text = fs::read(crate_root().join("tests/traces/fields-with-findings.txt")).expect("the trace is there");
    let (code, out, _) = import(&text, &["--format", "json", "--pid", "101"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &json["lost"], &json["events"]), (ExitCode::Finding, &12.into(), &3.into()));
    let audits: Vec<&str> =
        json["findings"].as_array().expect("a list").iter().filter_map(|one| one["audit"].as_str()).collect();
    assert_eq!(audits, ["unsync-marks", "stored-role", "stored-role"]);
    assert!(json["scenario"].as_str().is_some_and(|text| text.contains("[matrix]")));
}

/// A line that is an event behind a right prefix.
fn line(event: &str) -> String {
    format!("  kvm-7  [000] d..1.  1.000001: {event}\n")
}

/// The steps that events become.
#[test]
fn steps() {
    let root = |gfn: u64, role: u32| {
        format!("kvm_mmu_get_page: mmu_valid_gen=(0) gfn={gfn:#x} role={role:#x} root_count=0 unsync=(0) created=(1)")
    };
    let enter =
        |cr3: u64| format!("kvm_nested_vmenter: rip: 0x0 vmcs: 0x1 nested_rip: 0x0 nested_ept=n guest_cr3: {cr3:#x}");
    let leave = || "kvm_nested_vmexit_inject: reason: VMCALL ext_inf1: 0x0".to_owned();
    let fault = |at: u64, error: u32| format!("kvm_page_fault: vcpu 0 rip 0x0 address {at:#x} error_code {error:#x}");
    let exit = |why: &str, info: u64| format!("kvm_exit: vcpu 0 reason {why} rip 0x0 info1 {info:#x} info2 0x0");
    let cases: [(&str, Vec<String>, &[&str]); 9] = [
        (
            "a second root",
            vec![root(1, 0x3704), root(2, 0x3704), root(1, 0x3704)],
            &["l1: mov-cr3 s2", "l1: mov-cr3 s1"],
        ),
        ("another mode", vec![root(1, 0x3704), root(2, 0x3712)], &["l1: become s2"]),
        ("WP and SMEP", vec![root(1, 0x3704), root(1, 0x5704)], &["l1: mov-cr0 -WP", "l1: mov-cr4 +SMEP"]),
        (
            "an entry with a CR3 and other registers",
            vec![root(1, 0x3704), enter(0x1000), leave(), enter(0x2000), root(2, 0x2_1704)],
            &["l1: enter l2", "l2: exit", "l1: enter l2 cr3=s2 cr0=-WP"],
        ),
        (
            "accesses",
            vec![root(1, 0x3704), fault(0x40_1008, 6), fault(0x40_1008, 6), fault(0x40_1fff, 0x10), fault(0x100, 2)],
            &["l1: write 0x401008 0xc3 user", "l1: exec 0x401000"],
        ),
        (
            "frames",
            vec![exit("EPT_VIOLATION", 2), fault(0x5008, 2), fault(0x6000, 4), fault(0x5000, 1)],
            &["l1: write 0x40000000 0xc3", "l1: exec 0x40001000", "l1: read 0x40000000"],
        ),
        ("INVLPG", vec![root(1, 0x3704), exit("INVLPG", 0x40_0000), exit("INVLPG", 1 << 50)], &["l1: invlpg 0x400000"]),
        (
            "registers",
            vec!["kvm_cr: cr_write 4 = 0x100020".to_owned(), "kvm_msr: msr_write c0000080 = 0x500".to_owned()],
            &["l1: mov-cr4 +SMEP", "l1: wrmsr-efer -NXE"],
        ),
        ("nothing", vec!["kvm_cr: cr_write 8 = 0x1".to_owned()], &["l1: run"]),
    ];
    for (name, events, steps) in cases {
        let text: String = events.iter().map(|event| line(event)).collect();
        let (trace, audited) = audited(&text, None);
        let told: Vec<String> = parsed(&trace, &audited, None).steps.iter().map(ToString::to_string).collect();
        assert_eq!(told, steps, "{name}: {}", skeleton::render(&trace, &audited, None));
    }
}

/// Every bad event is told with its place and with what would be right.
#[test]
fn bad_events() {
    let page = "sp gen 0 gfn 1 l4 8-byte q0 wux nxe ad root 0 sync";
    let mut told = String::new();
    for event in [
        "kvm_mmu_get_page: sp gen 0 gfn 1 l4 8-byte q0 wux nxe ad root 0 sync",
        "kvm_mmu_get_page: sp gen 0 gfn 1 l4 8-byte q0 wux nxe ad root 0 sink new",
        "kvm_mmu_get_page: sp gen 0 gfn xyz l4 8-byte q0 wux nxe ad root 0 sync new",
        "kvm_mmu_get_page: sp gen 0 gfn 1 l4 8-byte q0 rwux nxe ad root 0 sync new",
        "kvm_mmu_get_page: sp gen 0 gfn 1 l99 8-byte q0 wux nxe ad root 0 sync new",
        "kvm_mmu_get_page: new sp gfn 1 4 q0 wux !pae nxe wp root 0 sync",
        "kvm_mmu_sync_page: 1 q0 wux !pae nxe wp root 0 sync",
        "kvm_mmu_sync_page: sp gen 0 gfn 1 l1 8-byte q0 wux nxe ad root 0 unsync  # role 0x3702",
        "kvm_mmu_sync_page: mmu_valid_gen=(0) gfn=0x1 (1) root_count=0x0 (0) unsync=(1)",
        "kvm_mmu_sync_page: mmu_valid_gen=(0) gfn=0x1 (1) role=seven root_count=0x0 (0) unsync=(1)",
        "kvm_page_fault: vcpu 0 rip 0x1 error_code 0x2",
        "kvm_exit: vcpu 0 rip 0x1",
        "kvm_cr: cr_wrote 3 = 0x1000",
        "kvm_nested_vmenter: rip: 0x1",
    ] {
        let (code, _, err) =
            import(format!("{}{}", line(&format!("kvm_mmu_unsync_page: {page}")), line(event)).as_bytes(), &[]);
        assert_eq!(code, ExitCode::Usage, "{event}: {err}");
        assert!(err.contains("[<stdin>:2:") && err.contains("help: "), "{event}: {err}");
        told.push_str(&err);
    }
    golden!("import-bad-events", told);
}

/// What is no trace, or not asked for rightly.
#[test]
fn bad_input() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("import");
    fs::create_dir_all(&directory).expect("a directory can be made");
    let there = directory.join("there.toml");
    fs::write(&there, "kept").expect("a file can be written");
    let good = line("kvm_mmu_unsync_page: sp gen 0 gfn 1 l1 8-byte q0 wux nxe ad root 0 sync");
    let runs = "# a.toml: vendor=intel tdp=false nested-tdp=false vpid=true\n".repeat(2);
    let cases: [(&[u8], &[&str], ExitCode, &str); 8] = [
        (b"\x17\x08\x44tracing6\0\0", &[], ExitCode::Usage, "trace-cmd report -R"),
        (b"a\0b", &[], ExitCode::Usage, "import reads text"),
        (good.as_bytes(), &["--at", "v9.9"], ExitCode::Usage, "rolecall show points"),
        (good.as_bytes(), &["--pid", "8"], ExitCode::Usage, "kvm-7"),
        (good.as_bytes(), &["-o", &there.to_string_lossy()], ExitCode::Usage, "it exists"),
        (runs.as_bytes(), &[], ExitCode::Usage, "--run N"),
        (b"kvm-7 0d..2. 58us+: kvm_mmu_get_page: sp\n", &[], ExitCode::Usage, "TASK-PID"),
        (b"hello\n", &[], ExitCode::Unjudged, "nothing to import"),
    ];
    for (text, words, code, part) in cases {
        let (ended, out, err) = import(text, words);
        assert_eq!(ended, code, "{words:?}: {err}");
        assert!(out.contains(part) || err.contains(part), "{part}: {out}{err}");
    }
    assert_eq!(fs::read_to_string(&there).expect("it is there"), "kept");
    let new = directory.join("new.toml");
    let _ = fs::remove_file(&new);
    let (code, out, _) = import(good.as_bytes(), &["-o", &new.to_string_lossy()]);
    assert_eq!((code, out.contains("[matrix]")), (ExitCode::Ok, false));
    assert!(file::load(&new, &[], &[]).is_ok());
    // A last line without an end is a trace that was cut off.
    let (code, out, _) = import(&good.as_bytes()[..good.len() - 6], &[]);
    assert_eq!(code, ExitCode::Unjudged, "{out}");
    let (code, out, _) = import([good.as_bytes(), &good.as_bytes()[..60]].concat().as_slice(), &[]);
    assert!(code == ExitCode::Ok && out.contains("line 2 is cut off"), "{out}");
}

fn page_of(event: &Event) -> Option<(Fate, PageView)> {
    Some(match event {
        Event::PageGet { page, created: true } => (Fate::Made, *page),
        Event::PageGet { page, created: false } => (Fate::Found, *page),
        Event::PageUnsync { page } => (Fate::Unsync, *page),
        Event::PageSync { page } => (Fate::Sync, *page),
        Event::PageZap { page } => (Fate::Zapped, *page),
        _ => return None,
    })
}

/// What a page's event says, of the model and of its trace.
type Said = (Fate, u64, u32, u64, bool);

/// A run's trace, written and read again: the pages are those of the model.
fn round_trip(records: &[Record], run: &RunConfig) -> (Trace, Audited) {
    let format = if run.vendor == Vendor::Intel && run.tdp { Format::Ept } else { Format::Paging };
    let text = format!("# run: {run}\n{}", writer::render(records, format));
    let (trace, audited) = audited(&text, run.at.as_deref());
    let mine: Vec<Said> = records
        .iter()
        .filter_map(|record| page_of(&record.event))
        .map(|(fate, page)| (fate, page.gfn.0, page.role.0, page.root_count.into(), page.unsync))
        .collect();
    let read: Vec<Said> = trace
        .entries
        .iter()
        .filter_map(|entry| match &entry.told {
            Told::Page(fate, page) => Some((*fate, page.gfn, page.role.word.0, page.root_count, page.unsync)),
            _ => None,
        })
        .collect();
    assert_eq!(mine, read, "{run}");
    (trace, audited)
}

/// Every run of a folder of the library, from v5.17 on: its trace, and whether it was coherent.
fn library(folder: &str, mut each: impl FnMut(&RunConfig, Trace, Audited, bool)) -> usize {
    let paths = file::collect(&[crate_root().join("library").join(folder)]).expect("the library is there");
    let mut runs = 0;
    for path in paths {
        let path: PathBuf = path;
        let scenario = file::load(&path, &commands::known_points(), &commands::known_changes()).expect("it is right");
        for run in scenario.runs().0 {
            match engine::run_on(Kind::Sim, &scenario, &run, Detail::Everything) {
                Ok(outcome) => {
                    let (trace, audited) = round_trip(&outcome.records, &run);
                    let found = outcome.records.iter().any(|record| matches!(record.event, Event::Finding { .. }));
                    each(&run, trace, audited, !found);
                    runs += 1;
                }
                Err(SimError::Unmodelled { .. }) => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }
    runs
}

/// The traces of this program's own runs hold the pages of the model, and what is coherent has no finding.
#[test]
fn own_traces() {
    let (mut skeletons, mut found) = (BTreeSet::new(), BTreeSet::new());
    let mut each = |run: &RunConfig, trace: Trace, audited: Audited, is_coherent: bool| {
        assert!(audited.findings.is_empty() || !is_coherent, "{run}: {:#?}", audited.findings);
        found.extend(audited.findings.iter().map(|finding| finding.audit));
        skeletons.insert(skeleton::render(&trace, &audited, None));
        parsed(&trace, &audited, None);
    };
    let runs = library("seed", &mut each) + library("nested", &mut each);
    assert!(runs > 300, "{runs}");
    // What the model's audits find of roots shows in traces too, where pages are made below such a root.
    assert!(found.contains(&Audit::ChildRole) || found.contains(&Audit::GuestMode), "{found:?}");
    println!("{runs} runs, {} skeletons, found {found:?}", skeletons.len());
    // A skeleton is a scenario that runs.
    for text in skeletons.iter().step_by(7) {
        let scenario =
            file::parse("skeleton", text, &commands::known_points(), &commands::known_changes()).expect("it is right");
        for run in scenario.runs().0 {
            let ended = engine::run_on(Kind::Sim, &scenario, &run, Detail::Nothing);
            assert!(matches!(ended, Ok(_) | Err(SimError::Unmodelled { .. })), "{text}\n{:?}", ended.err());
        }
    }
}

/// An event of some thread, in the words of a kernel.
fn event() -> impl Strategy<Value = String> {
    let bytes = prop_oneof![Just("8-byte"), Just("4-byte")];
    let direct = prop_oneof![Just(""), Just(" direct")];
    let access = prop_oneof![Just("wux"), Just("-u-"), Just("--x")];
    let gfn = prop_oneof![0u64..8, any::<u64>()];
    let page = (gfn, 0u32..7, bytes, 0u32..4, direct, access, 0u32..2, any::<bool>()).prop_map(
        |(gfn, level, bytes, quadrant, direct, access, roots, unsync)| {
            let sync = if unsync { "unsync" } else { "sync" };
            format!("sp gen 0 gfn {gfn:x} l{level} {bytes} q{quadrant}{direct} {access} nxe ad root {roots} {sync}")
        },
    );
    let fields = (0u64..8, any::<u32>(), 0u8..2).prop_map(|(gfn, role, one)| {
        format!("mmu_valid_gen=(0) gfn={gfn:#x} role={role:#x} root_count=0 unsync=({one}) created=({one})")
    });
    let address = prop_oneof![0u64..0x80_0000, any::<u64>(), Just(0x40_0000u64)];
    prop_oneof![
        (page.clone(), any::<bool>())
            .prop_map(|(page, new)| { format!("kvm_mmu_get_page: {page} {}", if new { "new" } else { "existing" }) }),
        page.clone().prop_map(|page| format!("kvm_mmu_unsync_page: {page}")),
        page.clone().prop_map(|page| format!("kvm_mmu_sync_page: {page}")),
        page.prop_map(|page| format!("kvm_mmu_prepare_zap_page: {page}")),
        fields.prop_map(|fields| format!("kvm_mmu_get_page: {fields}")),
        (address.clone(), 0u32..0x20)
            .prop_map(|(at, error)| format!("kvm_page_fault: vcpu 0 rip 0x0 address {at:#x} error_code {error:#x}")),
        (address.clone(), 0u32..0x20)
            .prop_map(|(at, error)| format!("kvm_mmu_pagetable_walk: addr {at:x} pferr {error:x} ")),
        (address.clone(), 0u8..4)
            .prop_map(|(gfn, level)| format!("kvm_mmu_set_spte: gfn {gfn:x} spte 0 (r---) level {level} at 0")),
        (0u8..5, any::<u64>()).prop_map(|(register, value)| format!("kvm_cr: cr_write {register} = {value:#x}")),
        any::<u64>().prop_map(|value| format!("kvm_msr: msr_write c0000080 = {value:#x}")),
        (
            address.clone(),
            prop_oneof![Just("INVLPG"), Just("invlpg"), Just("npf"), Just("VMLAUNCH"), Just("CR_ACCESS")]
        )
            .prop_map(|(at, why)| format!("kvm_exit: vcpu 0 reason {why} rip 0x0 info1 {at:#x} info2 0x0")),
        (
            any::<u64>(),
            prop_oneof![Just("vmcs: 0x1"), Just("vmcb: 0x1")],
            prop_oneof![Just("nested_ept=n"), Just("nested_npt=y")]
        )
            .prop_map(|(cr3, region, tdp)| format!(
                "kvm_nested_vmenter: rip: 0x0 {region} nested_rip: 0x0 {tdp} guest_cr3: {cr3:#x}"
            )),
        Just("kvm_nested_vmexit_inject: reason: HLT ext_inf1: 0x0".to_owned()),
        Just("kvm_nested_vmenter_failed: \"\"\"\\ # => odd\u{1b}é".to_owned()),
        (address, any::<u32>()).prop_map(|(at, asid)| format!("kvm_invlpga: rip: 0x0 asid: {asid} address: {at:#x}")),
        prop_oneof![Just("entering"), Just("leaving")]
            .prop_map(|way| format!("kvm_smm_transition: vcpu 0: {way} SMM, smbase 0x0")),
        Just("kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 1 used_pages 1f".to_owned()),
        Just("kvm_fpu: load".to_owned()),
    ]
}

fn lines() -> impl Strategy<Value = String> {
    let line = (event(), 1u32..7)
        .prop_map(|(event, pid)| format!("  \"CPU\\ {pid}\"-{pid}  [000] .....  1.000001: {event}\n"));
    let line = prop_oneof![20 => line, 1 => Just("CPU:0 [LOST 3 EVENTS]\n".to_owned())];
    prop::collection::vec(line, 1..60).prop_map(|lines| lines.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a kernel could write is taken, and its skeleton is a scenario of the language.
    #[test]
    fn skeletons_are_scenarios(text in lines(), at in prop_oneof![Just(None), Just(Some("v5.18")), Just(Some("v4.19"))]) {
        let (trace, audited) = audited(&text, at);
        let scenario = parsed(&trace, &audited, at);
        prop_assert!(!scenario.steps.is_empty());
    }

    /// No text makes the reader panic: arbitrary text, and traces with something cut out of them.
    #[test]
    fn any_text(text in ".{0,200}", good in lines(), from in any::<prop::sample::Index>(), length in 0usize..30) {
        let _ = import(text.as_bytes(), &[]);
        let from = from.index(good.len());
        let mut bytes = good.into_bytes();
        bytes.drain(from..(from + length).min(bytes.len()));
        let _ = import(&bytes, &[]);
        bytes.splice(from.min(bytes.len())..from.min(bytes.len()), text.bytes());
        let _ = import(&bytes, &["--format", "json"]);
    }
}
