//! The comparison with bare silicon: what it permits beside what its own caches show, what it does not, and what is known.

#![expect(clippy::unwrap_used, reason = "what can't be parsed fails the test")]

use mmu::change::POINTS;
use mmu::stats::Stat;
use scenarios::engine;
use scenarios::engine::transparency::{Difference, Transparency};
use scenarios::file::{self, Scenario};
use scenarios::verdict::{Judgement, Verdict};
use sim_core::event::Detail;
use std::path::Path;

/// A scenario on Intel without two-dimensional paging, at a point of history.
fn scenario(at: &str, steps: &str, expect: &str) -> Scenario {
    let text = format!(
        r#"
title = "transparency"
source = ["SDM 3A 4.10"]
memory = ["0x200000: u64 0x1111", "0x201000: u64 0x2222"]
steps = """
{steps}"""

[matrix]
vendor = ["intel"]
tdp = [false]
at = ["{at}"]

[machine]
vcpus = 2

[space.a]
mode = "long4"
map = ["0x400000 -> 0x200000 rw", "0x401000 -> 0x201000 rw", "0x500000 -> 0x200000 rx user"]

[guest.l1]
space = "a"

[guest.l2]
space = "a"

[expect]
"*" = {{ {expect} }}
"#
    );
    file::parse("transparency.toml", &text, &[], &[]).unwrap()
}

fn verdict(scenario: &Scenario) -> Verdict {
    let run = scenario.runs().0.remove(0);
    Verdict::new(scenario, &run, engine::run(scenario, &run, Detail::Nothing))
}

/// A vCPU may see a store to its tables before it invalidates, and may not: whatever the model shows is followed, and
/// what was stored through either translation stays where it went.
#[test]
fn stale_and_fresh_are_both_followed() {
    for steps in [
        "1.l1: read 0x400000\nl1: map a 0x400000 -> 0x201000 rw\n1.l1: read 0x400000\n",
        "1.l1: write 0x400000 5\nl1: map a 0x400000 -> 0x201000 rw\n1.l1: write 0x400000 7\n1.l1: invlpg 0x400000\n\
         1.l1: read 0x400000\nl1: read 0x401000\n",
    ] {
        let verdict = verdict(&scenario("v6.14", steps, "coherent = true"));
        assert_eq!(verdict.judgement, Judgement::Holds, "{:?}", verdict.failures);
        assert!(matches!(verdict.transparency, Some(Transparency::Transparent { .. })), "{:?}", verdict.transparency);
    }
}

const C1: &str = "l1: mov-cr0 -WP\nl1: write 0x500000 0xc3\nl1: enter l2 host-cr4=+SMEP\nl2: exit\nl1: exec 0x500000\n";

/// C-1: the first difference, with what either side can show, fails a run that says nothing of it.
#[test]
fn a_difference_is_told_with_both_sets() {
    let scenario = scenario("v5.17", C1, "coherent = false");
    let verdict = verdict(&scenario);
    assert_eq!(verdict.judgement, Judgement::Fails);
    let Difference { number, seen, bare, model, .. } = verdict.difference().unwrap();
    let texts = |all: &[file::Observation]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((*number, seen.to_string().as_str()), (5, "ok"));
    assert_eq!((texts(bare), texts(model)), (vec!["#PF(0x11) cr2 0x500000".to_owned()], vec!["ok".to_owned()]));
    let expected = "expected transparent: step 5 exec 0x500000: saw ok, bare silicon can show \
                    #PF(0x11) cr2 0x500000, this hypervisor ok";
    assert_eq!(verdict.failures, [expected]);
}

#[test]
fn expectations_of_transparency() {
    for (at, expect, judgement) in [
        ("v5.17", "coherent = false, transparent = false", Judgement::Holds),
        ("v5.17", "coherent = false, transparent = true", Judgement::Fails),
        ("v5.18", "coherent = true", Judgement::Holds),
        ("v5.18", "coherent = true, transparent = true", Judgement::Holds),
        ("v5.18", "coherent = true, transparent = false", Judgement::Fails),
    ] {
        let verdict = verdict(&scenario(at, C1, expect));
        assert_eq!(verdict.judgement, judgement, "{at} {expect}: {:?}", verdict.failures);
    }
}

/// What silicon can't do ends the comparison, and only who asks for it minds.
#[test]
fn what_bare_silicon_lacks_is_not_judged() {
    let steps = "l1: enter l2\nl2: run\nhost: leave-nested\nl1: read 0x400000\n";
    for (expect, judgement) in [("coherent = true", Judgement::Holds), ("transparent = true", Judgement::Unjudged)] {
        let verdict = verdict(&scenario("v6.14", steps, expect));
        assert_eq!(verdict.judgement, judgement, "{expect}: {:?}", verdict.failures);
        assert!(matches!(verdict.transparency, Some(Transparency::Unjudged { judged: 2, .. })));
    }
}

/// Each known difference from silicon, by the shortest steps that show it.
#[test]
fn known_differences_have_names() {
    for (name, steps) in [
        (
            "fault-keeps-stale",
            "l1: read 0x400000\nl1: unmap a 0x400000\nl1: read 0x400000 user\nl1: write 0x400000 1 user\nl1: read 0x400000\n",
        ),
        (
            "fault-keeps-stale",
            "l1: map a 0x400000 -> 0x200000 rw user\nl1: mov-cr3 a\nl1: read 0x400000 user\nl1: unmap a 0x400000\n\
             l1: exec 0x400000 user\nl1: map a 0x400000 -> 0x200000 rw\nl1: read 0x400000 user\n",
        ),
        ("shadow-ignores-nxe", "l1: read 0x400000\nl1: wrmsr-efer -NXE\nl1: mov-cr3 a\nl1: read 0x400000\n"),
    ] {
        let verdict = verdict(&scenario("v6.14", steps, "coherent = true"));
        assert_eq!(verdict.judgement, Judgement::Holds, "{name}: {:?}", verdict.failures);
        assert_eq!(verdict.known().into_iter().collect::<Vec<_>>(), [name]);
    }
}

/// The same for one that needs EPT and a processor that lacks what L0 offers.
#[test]
fn a_refused_entry_gives_back_an_old_wp() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("library/mechanisms/late-vmfail-wp.toml");
    let points: Vec<_> = POINTS.iter().map(|point| point.name).collect();
    let scenario = file::load(&path, &points, &[]).unwrap();
    for run in scenario.runs().0 {
        let verdict = Verdict::new(&scenario, &run, engine::run(&scenario, &run, Detail::Nothing));
        let owned = run.tdp && !run.to_string().contains("v6.3");
        let known: &[&str] = if owned { &["late-vmfail-keeps-wp"] } else { &[] };
        assert_eq!(verdict.known().into_iter().collect::<Vec<_>>(), known, "{run}");
    }
}

/// Budgets bound the hypervisor's counters.
#[test]
fn budgets() {
    let steps = "l1: read 0x400000\nl1: read 0x401000\nl1: read 0x400000\n";
    let scenario = |budget: &str| scenario("v6.14", steps, budget);
    let taken = verdict(&scenario("coherent = true")).outcome.unwrap().stats.get(Stat::PfTaken);
    assert!(taken >= 2, "{taken}");
    let fewer = taken - 1;
    for (budget, judgement) in [
        (format!("budget.page_faults = {taken}"), Judgement::Holds),
        (format!("budget.pf_taken = \"exactly {taken}\""), Judgement::Holds),
        (format!("budget.page_faults = {fewer}"), Judgement::Fails),
        (format!("budget.page_faults = \"at least {}\"", taken + 1), Judgement::Fails),
    ] {
        let verdict = verdict(&scenario(&budget));
        assert_eq!(verdict.judgement, judgement, "{budget}: {:?}", verdict.failures);
    }
    let verdict = verdict(&scenario(&format!("budget.page_faults = {fewer}")));
    assert_eq!(verdict.failures, [format!("expected page_faults at most {fewer}, counted {taken}")]);
}
