//! What good scenario files mean: the matrix product, expectations, includes, and that everything prints as it parses.

use cpu::profile::TlbProfile;
use mmu::state::{
    AccessedDirty, Config as Module, Contention, DirectMmu, FlushOnReuse, NxHugePages, Pml, ShadowVmcsMode, TdpMode,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use scenarios::cli::args::CommandLine;
use scenarios::cli::{self, ExitCode};
use scenarios::file::{
    self, Action, Actor, Break, Colours, ControlRegister, EntryBits, EntryName, Expectation, Expected, Flags, Flush,
    GuestChange, InveptScope, InvpcidScope, InvvpidScope, Mapping, Observation, PageAge, PageSize, Privilege, Right,
    Rights, Scenario, Selector, Span, TlbControl, VERBS, Vendor,
};
use sim_core::addr::Level;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::{Gpa, Gva};
use std::fs;
use std::path::{Path, PathBuf};

/// The same cases in every run.
fn config() -> Config {
    Config { rng_seed: RngSeed::Fixed(1), failure_persistence: None, cases: 512, ..Config::default() }
}

const HEAD: &str = "title = 't'\nsource = ['s']\nspace.a.mode = 'long4'\nguest.l2.space = 'a'\n";

fn good(text: &str) -> Scenario {
    match file::parse("good.toml", text, &[], &[]) {
        Ok(scenario) => scenario,
        Err(diagnostics) => panic!("{}", diagnostics.render(Colours::Plain)),
    }
}

fn with_matrix(matrix: &str) -> Scenario {
    good(&format!("{HEAD}steps = 'l1: run'\n[matrix]\n{matrix}"))
}

/// The whole product of the two-valued axes, in order, with what cannot exist left out and said.
#[test]
fn product() {
    let all = with_matrix(
        "vendor = ['intel', 'amd']\ntdp = [true, false]\nnested-tdp = [true, false]\nvpid = [true, false]\nat = ['x', 'y']",
    );
    let (runs, skipped) = all.runs();
    let mut shown: Vec<String> = runs.iter().map(ToString::to_string).collect();
    shown.extend(skipped.iter().map(|skipped| format!("skipped {}: {}", skipped.run, skipped.why)));
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(shown.join("\n"));
    });
    assert_eq!(runs.len() + skipped.len(), 32);
}

#[test]
fn products() {
    for (matrix, runs, skipped) in [
        ("", vec!["vendor=intel tdp=true nested-tdp=true vpid=true"], 0),
        ("tdp = [false]", vec!["vendor=intel tdp=false nested-tdp=false vpid=true"], 0),
        ("tdp = [false, true]\nnested-tdp = [true]", vec!["vendor=intel tdp=true nested-tdp=true vpid=true"], 1),
        ("vendor = ['amd']\nat = ['v5.17']", vec!["vendor=amd tdp=true nested-tdp=true vpid=true at=v5.17"], 0),
        (
            "with = [[], ['A', 'B']]\nwithout = [['B']]",
            vec!["vendor=intel tdp=true nested-tdp=true vpid=true without=B"],
            1,
        ),
    ] {
        let (found, left_out) = with_matrix(matrix).runs();
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), runs, "{matrix}");
        assert_eq!(left_out.len(), skipped, "{matrix}");
    }
}

#[test]
fn permuted_steps() {
    let text = "steps = '''\nl1: mov-cr3 a\npermute {\nl1: enter l2\nl1: run\nhost: zap-all\n}\nl2: exit\n'''";
    let scenario = good(&format!("{HEAD}{text}"));
    let orders: Vec<String> = scenario
        .runs()
        .0
        .iter()
        .map(|run| {
            let steps: Vec<&str> = scenario.steps_of(run).map(|step| step.text.as_str()).collect();
            format!("{}: {}", run.order_name(), steps.join("; "))
        })
        .collect();
    assert_eq!(
        orders,
        [
            "1-2-3: mov-cr3 a; enter l2; run; zap-all; exit",
            "1-3-2: mov-cr3 a; enter l2; zap-all; run; exit",
            "2-1-3: mov-cr3 a; run; enter l2; zap-all; exit",
            "2-3-1: mov-cr3 a; run; zap-all; enter l2; exit",
            "3-1-2: mov-cr3 a; zap-all; enter l2; run; exit",
            "3-2-1: mov-cr3 a; zap-all; run; enter l2; exit",
        ]
    );
}

/// Later entries override earlier ones field by field, in the file's order and not the keys' order.
#[test]
fn expectations() {
    let scenario = good(&format!(
        "{HEAD}steps = 'l1: run'\n[matrix]\nvendor = ['intel', 'amd']\ntdp = [true, false]\n[expect]\n{}",
        concat!(
            "'vendor = \"intel\"' = { coherent = false, first = 'run', audit = 'root-role', role = '0x23704' }\n",
            "'*' = { transparent = true, audit = ['smm', 'root-pgd'] }\n",
            "'tdp = false' = { coherent = true }\n",
            "'vendor = \"amd\", tdp = false' = { unjudged = 'why' }\n",
        )
    ));
    let both = Some(vec!["smm".to_owned(), "root-pgd".to_owned()]);
    let (true_, false_) = (Some(true), Some(false));
    let base = Expectation { transparent: true_, audit: both, ..Expectation::default() };
    let coherent = Expectation { coherent: true_, transparent: true_, ..Expectation::default() };
    let expected = [
        Expectation { coherent: false_, first: Some("run".to_owned()), role: Some(0x23704), ..base.clone() },
        coherent.clone(),
        base,
        Expectation { unjudged: Some("why".to_owned()), ..coherent },
    ];
    let (runs, _) = scenario.runs();
    assert_eq!(runs.iter().map(|run| scenario.expectation(run)).collect::<Vec<_>>(), expected);
}

/// A selector that names every axis of a run selects that run alone.
#[test]
fn selectors_separate_runs() {
    let scenario = with_matrix(
        "vendor = ['intel', 'amd']\ntdp = [true, false]\nnested-tdp = [true, false]\nat = ['x', 'y']\nwith = [[], ['A'], ['A', 'B']]",
    );
    let (runs, _) = scenario.runs();
    for run in &runs {
        let selector: Selector = format!(
            "vendor = {:?}, tdp = {}, nested-tdp = {}, at = {:?}, with = {:?}",
            run.vendor.name(),
            run.tdp,
            run.nested_tdp,
            run.at.as_ref().unwrap(),
            run.with
        )
        .parse()
        .unwrap();
        assert_eq!(runs.iter().filter(|other| selector.matches(other)).collect::<Vec<_>>(), [run]);
    }
}

fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("language").join(name);
    if path.exists() {
        fs::remove_dir_all(&path).expect("the last run's directory can be removed");
    }
    fs::create_dir_all(&path).expect("a directory can be made");
    path
}

/// Every module parameter reaches the machine, and what a file does not say stays as the module has it.
#[test]
fn module_parameters_are_read() {
    let at = directory("module");
    let head = "title = 't'\nsource = ['s']\nsteps = 'l1: run'\n[space.a]\nmode = 'long4'\n[machine]\n";
    let usual = Module::new(TdpMode::Off, 40);
    for (line, module) in [
        ("vcpus = 1", usual),
        ("maxphyaddr = 52", Module { maxphyaddr: 52, ..usual }),
        ("flush-on-reuse = true", Module { flush_on_reuse: FlushOnReuse::Yes, ..usual }),
        ("host-pages = '2M'", Module { host_page: Level::L2, ..usual }),
        ("host-pages = '1G'", Module { host_page: Level::L3, ..usual }),
        ("direct-mmu = 'legacy'", Module { direct: DirectMmu::Legacy, ..usual }),
        ("nx-huge-pages = true", Module { nx_huge: NxHugePages::On, ..usual }),
        ("accessed-dirty = false", Module { accessed_dirty: AccessedDirty::Tracked, ..usual }),
        ("pml = true", Module { pml: Pml::On, ..usual }),
        ("shadow-vmcs = true", Module { shadow_vmcs: ShadowVmcsMode::On, ..usual }),
        ("mmu-pages = 64", Module { pages_max: 64, ..usual }),
        ("mmio-generation-bits = 3", Module { mmio_generation_bits: 3, ..usual }),
        ("invalidations = 7", Module { invalidations: 7, ..usual }),
        ("contended = true", Module { contention: Contention::Always, ..usual }),
        ("tdp-levels = 5", Module { tdp_level: 5, ..usual }),
    ] {
        let path = at.join("main.toml");
        fs::write(&path, format!("{head}{line}\n")).unwrap();
        assert_eq!(file::load(&path, &[], &[]).unwrap().machine.module, module, "{line}");
    }
    for line in ["host-pages = '4M'", "mmu-pages = 63", "tdp-levels = 3", "direct-mmu = 'both'"] {
        let path = at.join("main.toml");
        fs::write(&path, format!("{head}{line}\n")).unwrap();
        assert!(file::load(&path, &[], &[]).is_err(), "{line}");
    }
}

/// Every profile of translation caches has its name.
#[test]
fn translation_caches_are_named() {
    let at = directory("tlb").join("main.toml");
    for profile in TlbProfile::ALL {
        let name = profile.geometry().name;
        let text = format!(
            "title = 't'\nsource = ['s']\nsteps = 'l1: run'\n[space.a]\nmode = 'long4'\n[machine]\ntlb = '{name}'\n"
        );
        fs::write(&at, text).unwrap();
        assert_eq!(file::load(&at, &[], &[]).unwrap().machine.tlb, profile, "{name}");
    }
}

/// What is included comes first, and is overridden by name; a file that two others include counts once.
#[test]
fn includes_are_overridden_by_name() {
    let at = directory("includes");
    for (name, text) in [
        (
            "base.toml",
            "title = 'not this'\nsteps = 'l1: frob'\nmemory = ['0x1000: 01']\n[machine]\nvcpus = 3\nmaxphyaddr = 36\n\
             [space.a]\nmode = 'pae'\n[space.b]\nmode = 'long5'\n[[slot]]\nname = 's'\nat = 0x40000000\n",
        ),
        ("left.toml", "include = ['base.toml']\n[machine]\nvcpus = 2\n[guest.l2]\nspace = 'b'\n"),
        (
            "main.toml",
            "title = 'this'\nsource = ['s']\ninclude = ['left.toml', 'base.toml']\nsteps = 'l1: enter l2'\n\
             memory = ['0x1000: 02']\n[space.a]\nmode = 'long4'\n[[slot]]\nname = 's'\nat = 0x50000000\n",
        ),
    ] {
        fs::write(at.join(name), text).unwrap();
    }
    let scenario = file::load(&at.join("main.toml"), &[], &[]).unwrap();
    assert_eq!(scenario.title, "this");
    assert_eq!((scenario.machine.vcpus, scenario.machine.module.maxphyaddr), (2, 36));
    assert_eq!(scenario.spaces["a"].mode.name(), "long4");
    assert_eq!(scenario.spaces["b"].mode.name(), "long5");
    assert_eq!(scenario.guests["l2"].space, "b");
    assert_eq!(scenario.slots.iter().map(|slot| slot.at.0).collect::<Vec<_>>(), [0x5000_0000]);
    assert_eq!(scenario.memory.iter().map(|contents| contents.bytes[0]).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(scenario.files.len(), 3);
}

/// TOML gives a key to the header above it; steps and memory lines mean the same below one.
#[test]
fn steps_and_memory_below_a_header() {
    let top = good(&format!("{HEAD}memory = ['0x1000: 01']\nsteps = 'l1: run'\n"));
    let below = good(
        "title = 't'\nsource = ['s']\n[space.a]\nmode = 'long4'\nmemory = ['0x1000: 01']\n[guest.l2]\nspace = 'a'\nsteps = 'l1: run'\n",
    );
    assert_eq!(top.memory, below.memory);
    assert_eq!(top.steps[0].action, below.steps[0].action);
}

/// Every step knows its line, so that reports can point at it.
#[test]
fn steps_know_their_place() {
    let scenario = good(&format!("{HEAD}steps = \"\"\"\n# first\n\n  l1: run\nhost: zap-all # why\n\"\"\"\n"));
    let places: Vec<_> = scenario.steps.iter().map(|step| (step.span.line, step.span.column)).collect();
    assert_eq!(places, [(8, 3), (9, 1)]);
}

/// A scenario survives being stored beside a checkpoint.
#[test]
fn scenarios_serialise() {
    let scenario = with_matrix("vendor = ['intel', 'amd']");
    let stored = serde_json::to_string(&scenario).unwrap();
    assert_eq!(serde_json::from_str::<Scenario>(&stored).unwrap(), scenario);
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_-]{0,6}"
}

fn flags(register: ControlRegister) -> impl Strategy<Value = Flags> {
    let all = register.flags();
    let bits = all.len() as u32;
    (1_u64..1 << bits, 0_u64..1 << bits).prop_map(move |(changed, set)| {
        let mut flags = Flags::none(register);
        for (index, (_, bit)) in all.iter().enumerate().filter(|(index, _)| changed >> index & 1 == 1) {
            if set >> index & 1 == 1 { flags.set |= bit } else { flags.clear |= bit }
        }
        flags
    })
}

fn any_flags() -> impl Strategy<Value = Flags> {
    prop_oneof![flags(ControlRegister::Cr0), flags(ControlRegister::Cr4), flags(ControlRegister::Efer)]
}

fn privilege() -> impl Strategy<Value = Privilege> {
    prop_oneof![Just(Privilege::Supervisor), Just(Privilege::User)]
}

fn observation() -> impl Strategy<Value = Observation> {
    let vector = proptest::sample::select(Vector::ALL.to_vec());
    let exception = (vector, any::<Option<u32>>(), any::<Option<u64>>()).prop_map(|(vector, error, cr2)| Exception {
        vector,
        error: error.filter(|_| vector.has_error_code()),
        cr2: cr2.filter(|_| vector == Vector::PageFault).map(Gva),
    });
    prop_oneof![
        any::<u64>().prop_map(Observation::Value),
        exception.prop_map(Observation::Exception),
        Just(Observation::Ok),
        any::<u32>().prop_map(Observation::VmFail),
        proptest::option::of(name()).prop_map(Observation::EntryFailed),
        name().prop_map(Observation::Exit),
        proptest::collection::btree_set(any::<u64>(), 0..4)
            .prop_map(|frames| Observation::Dirty(frames.into_iter().collect())),
        prop_oneof![Just(PageAge::Young), Just(PageAge::Old)].prop_map(Observation::Age),
    ]
}

/// Changes with distinct keys, as `enter` demands.
fn changes() -> impl Strategy<Value = Vec<GuestChange>> {
    let change = prop_oneof![
        name().prop_map(GuestChange::Cr3),
        name().prop_map(GuestChange::HostCr3),
        any_flags().prop_map(GuestChange::Register),
        any_flags().prop_map(GuestChange::HostRegister),
        any::<u16>().prop_map(GuestChange::Vpid),
        any::<u16>().prop_map(GuestChange::Asid),
        proptest::sample::select(TlbControl::ALL.to_vec()).prop_map(GuestChange::TlbControl),
        name().prop_map(GuestChange::Nested),
        proptest::sample::select(Break::ALL.to_vec()).prop_map(GuestChange::Break),
    ];
    proptest::collection::vec(change, 0..6).prop_map(|mut changes| {
        let key = |change: &GuestChange| change.to_string().split('=').next().map(str::to_owned);
        changes.sort_by_key(key);
        changes.dedup_by_key(|change| key(change));
        changes
    })
}

fn guest_action() -> impl Strategy<Value = (Actor, Action)> {
    let l1 = |action| (Actor::L1, action);
    prop_oneof![
        (name(), prop_oneof![Just(Flush::Yes), Just(Flush::No)])
            .prop_map(move |(space, flush)| l1(Action::MovCr3 { space, flush })),
        flags(ControlRegister::Cr0).prop_map(move |flags| l1(Action::MovCr0(flags))),
        flags(ControlRegister::Cr4).prop_map(move |flags| l1(Action::MovCr4(flags))),
        flags(ControlRegister::Efer).prop_map(move |flags| l1(Action::WrmsrEfer(flags))),
        (any::<u64>(), privilege()).prop_map(move |(at, user)| l1(Action::Read { at, user })),
        (any::<u64>(), any::<u64>(), privilege()).prop_map(move |(at, value, user)| l1(Action::Write {
            at,
            value,
            user
        })),
        (any::<u64>(), privilege()).prop_map(move |(at, user)| l1(Action::Exec { at, user })),
        any::<u64>().prop_map(move |at| l1(Action::Invlpg(at))),
        Just(l1(Action::Run)),
        name().prop_map(move |space| l1(Action::Become { space })),
        (name(), changes()).prop_map(move |(guest, changes)| l1(Action::Enter { guest, changes })),
        prop_oneof![Just(InveptScope::Single), Just(InveptScope::Global)]
            .prop_map(move |scope| l1(Action::Invept(scope))),
        any::<u16>().prop_map(move |vpid| l1(Action::Invvpid(InvvpidScope::Single(vpid)))),
        Just(l1(Action::Invvpid(InvvpidScope::All))),
        (any::<u16>(), any::<u64>())
            .prop_map(move |(vpid, at)| l1(Action::Invvpid(InvvpidScope::Address { vpid, at }))),
        Just((Actor::L2, Action::Exit)),
        table_action().prop_map(l1),
    ]
}

fn table_action() -> impl Strategy<Value = Action> {
    let pcid = || 0_u16..0x1000;
    let entry = || (name(), 1_u8..=5, any::<u64>()).prop_map(|(space, level, at)| EntryName { space, level, at });
    let mapping = |size: PageSize| {
        (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(move |(from, to, write)| {
            let cut = |at: u64| at & !(size.bytes() - 1);
            let rights = if write { Rights::default().with(Right::Write) } else { Rights::default() };
            Mapping { span: Span::default(), from: Gva(cut(from)), to: Gpa(cut(to)), size, rights }
        })
    };
    let bits = (any::<u8>(), any::<u8>()).prop_filter_map("no bit", |(set, clear)| {
        let pick = |bits: u8| EntryBits::NAMES.iter().enumerate().filter(move |(index, _)| bits >> index & 1 == 1);
        let sum = |bits: u8| pick(bits).map(|(_, (_, bit))| bit).sum::<u64>();
        (set | clear != 0).then(|| EntryBits { set: sum(set & !clear), clear: sum(clear) })
    });
    prop_oneof![
        (pcid(), any::<u64>()).prop_map(|(pcid, at)| Action::Invpcid(InvpcidScope::Address { pcid, at })),
        pcid().prop_map(|pcid| Action::Invpcid(InvpcidScope::Single(pcid))),
        Just(Action::Invpcid(InvpcidScope::All)),
        Just(Action::Invpcid(InvpcidScope::AllButGlobal)),
        any::<u16>().prop_map(|vpid| Action::Invvpid(InvvpidScope::ButGlobal(vpid))),
        (any::<u64>(), any::<u16>()).prop_map(|(at, asid)| Action::Invlpga { at, asid }),
        (name(), mapping(PageSize::Size4K)).prop_map(|(space, mapping)| Action::Map { space, mapping }),
        (name(), mapping(PageSize::Size2M)).prop_map(|(space, mapping)| Action::Map { space, mapping }),
        (name(), mapping(PageSize::Size2M)).prop_map(|(tables, mapping)| Action::NestedMap { tables, mapping }),
        (name(), any::<u64>()).prop_map(|(space, at)| Action::Unmap { space, at }),
        (name(), any::<u64>()).prop_map(|(tables, at)| Action::NestedUnmap { tables, at }),
        (entry(), bits).prop_map(|(entry, bits)| Action::SetEntry { entry, bits }),
        (entry(), name()).prop_map(|(entry, other)| Action::Link { entry, other }),
        entry().prop_map(Action::ReadEntry),
    ]
}

fn host_action() -> impl Strategy<Value = (Actor, Action)> {
    prop_oneof![
        Just(Action::ZapAll),
        any::<u64>().prop_map(Action::ZapGfn),
        name().prop_map(Action::AddSlot),
        name().prop_map(Action::DeleteSlot),
        Just(Action::SaveState),
        Just(Action::SetSregs),
        Just(Action::SetNestedState),
        Just(Action::LeaveNested),
        Just(Action::HostRun),
        Just(Action::UnloadMmu),
        Just(Action::FlushTlb),
    ]
    .prop_map(|action| (Actor::Host, action))
}

const MUTATED: &str = "title = 't'\nsource = ['s']\ninclude = []\n[matrix]\nvendor = ['intel', 'amd']\nwith = [[], ['A']]\n\
    [machine]\nmemory = '32M'\nvcpus = 2\n[[slot]]\nname = 's'\nat = '0xfee00000'\n[space.a]\nmode = 'long4'\n\
    map = ['0x400000 -> 0x200000 rwx user 2M']\nmemory = ['0x1000: u64 1']\n[guest.l2]\nspace = 'a'\ncr0 = '+WP -AM'\nhost = { cr4 = '+SMEP' }\n\
    steps = \"\"\"\nl1: mov-cr3 a noflush # é\n1.l1: enter l2 cr3=a cr0=+WP-AM break=cr3\n\
    permute {\nl2: read 0x400000 user => #PF(0x3) cr2 0x400000\nl2: exit => ok\n}\n\"\"\"\n[expect]\n\"*\" = { coherent = true }\n\
    'vendor = \"amd\", with = [[\"A\"]]' = { coherent = false, first = 'read', audit = ['smm'], role = '0x1' }\n";

/// Loads whatever it is, and renders whatever is wrong with it. Nothing may panic.
fn survives(text: &str) {
    match file::parse("any.toml", text, &["v1"], &["A"]) {
        Ok(scenario) => {
            for run in scenario.runs().0.iter().take(8) {
                let _ = scenario.expectation(run);
            }
        }
        Err(diagnostics) => {
            assert!(!diagnostics.problems().is_empty());
            for colours in [Colours::Plain, Colours::Ansi] {
                assert!(!diagnostics.render(colours).is_empty());
            }
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn observations_print_as_they_parse(observation in observation()) {
        prop_assert_eq!(observation.to_string().parse::<Observation>().unwrap(), observation);
    }

    #[test]
    fn flags_print_as_they_parse(flags in any_flags()) {
        prop_assert_eq!(Flags::parse(flags.register, &flags.to_string()).unwrap(), flags);
        prop_assert_eq!(Flags::parse(flags.register, &flags.compact()).unwrap(), flags);
    }

    #[test]
    fn steps_print_as_they_parse(
        (actor, action) in prop_oneof![guest_action(), host_action()],
        vcpu in 0_u8..4,
        seen in proptest::option::of(observation()),
        kind in 0..3,
    ) {
        let mut step = file::parse_step(&format!("{vcpu}.{}: {action}", actor.name())).unwrap();
        prop_assert_eq!((step.vcpu, step.actor, &step.action), (vcpu, actor, &action));
        let verb = step.text.split_whitespace().next().unwrap();
        let row = VERBS.iter().find(|row| row.name == verb && row.actors.contains(&actor)).unwrap();
        let seen = seen.filter(|seen| row.observes.contains(&seen.kind()));
        step.expect = seen.map(|seen| match kind {
            0 => Expected::Shows(seen),
            1 => Expected::May(vec![seen]),
            _ => Expected::Never(vec![seen]),
        });
        prop_assert_eq!(file::parse_step(&step.to_string()).unwrap(), step);
    }

    #[test]
    fn any_text_is_survived(text in any::<String>()) {
        survives(&text);
        survives(&format!("{HEAD}steps = '''\n{}\n'''", text.replace('\'', "")));
        let _ = text.parse::<Selector>();
        let _ = text.parse::<Observation>();
        let _ = file::parse_step(&text);
    }

    /// Pieces of the language in any order.
    #[test]
    fn any_pieces_are_survived(pieces in proptest::collection::vec(proptest::sample::select(
        MUTATED.split_inclusive([' ', '\n', ':', '=', '\'', '"']).collect::<Vec<_>>()), 0..60)) {
        survives(&pieces.concat());
    }

    /// A good file with some characters replaced, inserted or cut out.
    #[test]
    fn any_damage_is_survived(damage in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..4, any::<char>()), 1..4)) {
        let mut letters: Vec<char> = MUTATED.chars().collect();
        for (index, cut, letter) in damage {
            let at = index.index(letters.len());
            let end = (at + cut).min(letters.len());
            letters.splice(at..end, [letter]);
        }
        survives(&letters.into_iter().collect::<String>());
    }
}

#[test]
fn the_damaged_file_was_good() {
    let scenario = file::parse("good.toml", MUTATED, &["v1"], &["A"]).unwrap();
    assert_eq!(scenario.matrix.vendor, Vendor::ALL);
}

/// Runs the command, and gives exit code, output and errors.
fn command(words: &[&str]) -> (ExitCode, String, String) {
    use clap::Parser;
    let line = CommandLine::try_parse_from([&["rolecall"], words].concat()).expect("good arguments");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = cli::run(&line, Colours::Plain, &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).expect("output is text");
    (code, text(out), text(err))
}

#[test]
fn commands() {
    let at = directory("commands");
    let (good, bad) = (at.join("good.toml"), at.join("bad.toml"));
    fs::write(&good, format!("{HEAD}steps = 'l1: run'\n[matrix]\ntdp = [true, false]\nnested-tdp = [true]\n")).unwrap();
    fs::write(&bad, "title = 1").unwrap();
    let (code, out, err) = command(&["check", good.to_str().unwrap()]);
    assert_eq!((code, err.as_str()), (ExitCode::Ok, ""));
    assert_eq!(out, format!("{}: 1 step, 1 run, 1 skipped\n", good.display()));
    let (code, out, err) = command(&["check", at.to_str().unwrap()]);
    assert_eq!(code, ExitCode::Usage);
    assert!(
        out.contains("good.toml") && err.contains("bad.toml:1:9") && err.contains("must be a string"),
        "{out}{err}"
    );
    let (code, out, err) = command(&["check", at.join("nowhere").to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (ExitCode::Usage, ""));
    assert!(err.contains("can't read the file"), "{err}");
}

/// The schema is a promise to editors, the verbs are one to authors.
#[test]
fn schema_and_steps_are_golden() {
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("schema", command(&["schema"]).1);
        insta::assert_snapshot!("show_steps", command(&["show", "steps"]).1);
    });
}
