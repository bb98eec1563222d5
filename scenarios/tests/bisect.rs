//! Bisection: what a verdict is made of, tier by tier.

#![expect(clippy::unwrap_used, reason = "what can't be run fails the test")]

use clap::Parser;
use scenarios::bisect::{self, BisectError, Failure, Flip, Newer};
use scenarios::cli::{self, ExitCode, args::CommandLine};
use scenarios::file::{self, Colours, Scenario};
use std::path::Path;

/// Exit code, output and errors of the command, run in the crate's directory.
fn rolecall(words: &[&str]) -> (ExitCode, String, String) {
    let line = CommandLine::parse_from(std::iter::once("rolecall").chain(words.iter().copied()));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = cli::run(&line, Colours::Plain, &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn library(path: &str) -> Scenario {
    file::load(&Path::new("library").join(path), &[], &[]).unwrap()
}

fn first(scenario: &Scenario, ends: (&str, &str), words: Option<&str>) -> Result<Flip, BisectError> {
    bisect::run_for(scenario, &bisect::runs_at_no_point(scenario, None)[0], ends, words)
}

/// A guest that runs on with CR0.WP = 0 after an exit sets CR4.SMEP: C-1 in one file.
const STALE_SMEP: &str = r#"
title = "an exit that sets CR4.SMEP"
source = ["kvm-mmu.md C-1"]
steps = """
l1: write 0x500000 0xc3
l1: enter l2 cr3=x host-cr4=+SMEP
l2: exit
l1: exec 0x500000 => #PF
"""
[space.a]
mode = "long4"
map = ["0x400000 -> 0x200000 rw", "0x500000 -> 0x300000 rx user"]
[space.x]
mode = "long4"
map = ["0x400000 -> 0x200000 rw"]
[guest.l1]
space = "a"
cr0 = "-WP"
[guest.l2]
space = "a"
vpid = 1
[matrix]
vendor = ["intel"]
tdp = [false]
"#;

/// Findings come first; what else fails is found by its words, and each names the same change.
#[test]
fn every_tier_names_the_change() {
    let scenario = file::parse("smep.toml", STALE_SMEP, &[], &[]).unwrap();
    for (words, failures) in [
        (None, "I2 root-role in root_mmu, differs in smep_andnot_wp"),
        (Some("root-role"), "I2 root-role in root_mmu, differs in smep_andnot_wp"),
        (Some("must"), "step 4 does not show what it must: l1: exec 0x500000 => #PF"),
        (Some("transparency"), "step 4 transparency: l1 exec shows ok, bare silicon #PF(0x11)"),
    ] {
        let flip = first(&scenario, ("v5.18", "v5.17"), words).unwrap();
        assert_eq!((flip.info().id, flip.newer), ("d2e5f3334169", Newer::Good));
        let told: Vec<_> = flip.failures.iter().map(ToString::to_string).collect();
        assert_eq!(told, [failures], "{words:?}");
    }
    let none = first(&scenario, ("v5.18", "v5.17"), Some("no failure has these words"));
    assert!(matches!(none, Err(BisectError::Same { .. })), "{none:?}");
}

/// Where the audits find the same on both sides, what steps must show and counters decide.
#[test]
fn expectations_are_judged() {
    let flip = first(&library("mechanisms/ept-violation-while-emulating.toml"), ("v6.14", "v5.17"), None).unwrap();
    assert_eq!((flip.info().id, flip.newer), ("a9466078687f", Newer::Good));
    assert!(flip.failures.iter().all(|failure| matches!(failure, Failure::Step { .. })), "{flip:?}");

    let flip = first(&library("mechanisms/split-large-page.toml"), ("v5.17", "v5.18"), None).unwrap();
    assert_eq!((flip.info().id, flip.newer), ("a3fe5dbda0a4", Newer::Bad));
    let told: Vec<_> = flip.failures.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["pf_fast is not exactly 0"]);
}

/// Where either side fails by something, the one that the caller calls bad is; where only one does, it is that one.
#[test]
fn the_named_side_is_the_bad_one() {
    let fetch = "l1: exec 0x500000 => #PF";
    let both = STALE_SMEP.replace(fetch, &format!("{fetch}\nl1: exec 0x500000 => ok"));
    for (text, ends, newer) in [
        (both.as_str(), ("v5.18", "v5.17"), Newer::Good),
        (&both, ("v5.17", "v5.18"), Newer::Bad),
        (STALE_SMEP, ("v5.18", "v5.17"), Newer::Good),
        (STALE_SMEP, ("v5.17", "v5.18"), Newer::Good),
    ] {
        let scenario = file::parse("smep.toml", text, &[], &[]).unwrap();
        let flip = first(&scenario, ends, Some("must")).unwrap();
        assert_eq!((flip.info().id, flip.newer), ("d2e5f3334169", newer), "{ends:?}");
        assert_eq!(flip.failures.len(), 1);
    }
}

#[test]
fn command_takes_words() {
    let words = ["bisect", "library/seed/c1.toml", "--good", "v5.18", "--bad", "v5.17", "--finding", "transparency"];
    let (code, out, err) = rolecall(&words);
    assert_eq!((code, err.as_str()), (ExitCode::Ok, ""));
    assert!(out.starts_with("d2e5f3334169 ") && out.contains("step 4 transparency: l1 exec shows ok"), "{out}");
    let (code, _, err) = rolecall(&["bisect", "library/seed/c1.toml", "--finding", "nothing like it"]);
    assert_eq!(code, ExitCode::Unjudged);
    assert!(err.contains("the same verdict"), "{err}");
}

fn toggled(path: &str, ends: (&str, &str)) -> String {
    let scenario = library(path);
    let runs = bisect::runs_at_no_point(&scenario, None);
    let flip = runs.iter().find_map(|run| bisect::run(&scenario, run, ends.0, ends.1).ok()).unwrap();
    bisect::toggles(&scenario, &flip).unwrap().to_string()
}

/// One change may flip a verdict alone, need another one, or be one of several that each suffice.
#[test]
fn toggles_say_what_it_takes() {
    assert_eq!(
        toggled("seed/c1.toml", ("v6.14", "v5.17")),
        "it takes this change alone: v5.17 with it and v6.14 without it flip"
    );
    assert_eq!(
        toggled("seed/s1.toml", ("v5.17", "seed/07")),
        "it takes this change alone: v5.17 with it and seed/07 without it flip"
    );
    // The shadow root's role has efer_nx always only where it is stored apart from the guest's.
    assert_eq!(
        toggled("mechanisms/set-efer.toml", ("v5.17", "v6.14")),
        "v5.17 flips only with e5ed0fb01004 and 362505deb8e2 together; v6.14 flips without this change alone"
    );
}

macro_rules! golden {
    ($name:literal, $text:expr) => {
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!($name, $text);
        })
    };
}

fn printed(words: &[&str]) -> String {
    let (code, out, err) = rolecall(words);
    assert_eq!((code, err.as_str()), (ExitCode::Ok, ""), "{words:?}");
    out
}

#[test]
fn history_of_a_file() {
    golden!("bisect_c2", printed(&["bisect", "library/seed/c2.toml", "--good", "v6.14", "--bad", "v5.17"]));
    let words = ["bisect", "library/mechanisms/set-efer.toml", "--good", "v5.18", "--bad", "v5.19"];
    golden!("bisect_set_efer", printed(&words));
}

/// A run without a step that it needs, or with two in another order, has another verdict; the others keep it.
#[test]
fn critical_steps() {
    golden!("bisect_steps_c1", printed(&["bisect", "library/seed/c1.toml", "--steps"]));
    golden!("bisect_steps_read", printed(&["bisect", "library/seed/c1.toml", "--steps", "--finding", "transparency"]));
    golden!("bisect_steps_s3", printed(&["bisect", "library/seed/s3.toml", "--steps", "--bad", "seed/07"]));
}

/// C-2 needs AMD and nested paging, C-1 shadow paging and CR0.WP = 0: either must be among the switches that flip.
#[test]
fn switches_of_a_run() {
    golden!("bisect_switches_c1", printed(&["bisect", "library/seed/c1.toml", "--switches"]));
    let c2 = printed(&["bisect", "library/seed/c2.toml", "--switches"]);
    let flips: Vec<_> = c2.lines().filter_map(|line| line.strip_prefix("! ")?.split_whitespace().next()).collect();
    assert_eq!(flips, ["vendor", "tdp", "nested-tdp"]);
}

/// Beside a run that passes, as few of the failing run's values as it takes are told.
#[test]
fn smallest_sets() {
    let c2 = printed(&["bisect", "library/seed/c2.toml", "--switches"]);
    assert!(c2.ends_with(" passes, and fails so with at=v5.17\n"), "{c2}");
    let s1 =
        printed(&["bisect", "library/seed/s1.toml", "--switches", "--against", "at = \"v5.18\", vendor = \"amd\""]);
    assert!(
        s1.ends_with("vendor=amd tdp=false nested-tdp=false vpid=true at=v5.18 passes, and fails so with at=seed/07\n"),
        "{s1}"
    );
    let l2 = printed(&["bisect", "library/mechanisms/migrate-in-l2.toml", "--switches", "--against", "tdp = false"]);
    assert!(l2.ends_with(" passes, and fails so with vendor=amd and tdp=true and nested-tdp=true\n"), "{l2}");
}

#[test]
fn modes_refuse_what_is_wrong() {
    let c1 = "library/seed/c1.toml";
    for (words, code, says) in [
        (&["--steps", "--bad", "nope"][..], ExitCode::Usage, "--bad nope: no such point of history"),
        (&["--switches", "--bad", "nope"], ExitCode::Usage, "--bad nope: no such point of history"),
        (&["--steps", "--run", "tdp = true"], ExitCode::Usage, "--run tdp = true: no run of the matrix"),
        (&["--switches", "--against", "tdp = true"], ExitCode::Usage, "--against tdp = true: no run of the matrix"),
        (&["--switches", "--against", "="], ExitCode::Usage, "column 1"),
        (&["--steps", "--bad", "v6.14"], ExitCode::Unjudged, "no run fails by anything"),
        (&["--switches", "--bad", "v6.14"], ExitCode::Unjudged, "no run fails by anything"),
        (&["--steps", "--finding", "nothing like it"], ExitCode::Unjudged, "no run fails by anything"),
    ] {
        let (seen, out, err) = rolecall(&[&["bisect", c1], words].concat());
        assert_eq!((seen, out.as_str()), (code, ""), "{words:?}: {err}");
        assert!(err.contains(says), "{words:?}: {err}");
    }
    for line in ["--steps --good v5.17", "--steps --switches", "--against x", "--switches --good v5.17"] {
        let words = ["rolecall", "bisect", c1].into_iter().chain(line.split(' '));
        assert!(CommandLine::try_parse_from(words).is_err(), "{line}");
    }
}
