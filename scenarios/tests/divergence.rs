//! Where two runs part ways: by history, configuration and backend, and what the command prints of it.

#![expect(clippy::unwrap_used, reason = "what can't be run fails the test")]

use clap::Parser;
use scenarios::backend::Kind;
use scenarios::cli::{self, ExitCode, args::CommandLine};
use scenarios::divergence::{self, Scope, Side};
use scenarios::engine;
use scenarios::file::{self, Colours, RunConfig, Scenario};
use sim_core::event::Detail;
use std::path::PathBuf;

macro_rules! golden {
    ($name:literal, $text:expr) => {
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!($name, $text);
        })
    };
}

fn rolecall(words: &[&str]) -> (ExitCode, String, String) {
    let line = CommandLine::parse_from(std::iter::once("rolecall").chain(words.iter().copied()));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = cli::run(&line, Colours::Plain, &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Every file of the library that has steps, with its first run at a point of history.
fn library(at: &str) -> Vec<(String, Scenario, RunConfig)> {
    let files = ["seed", "mechanisms", "nested", "tlb"].map(|name| PathBuf::from("library").join(name));
    let loaded = file::collect(&files).unwrap().into_iter().map(|path| {
        let scenario = file::load(&path, &[], &[]).unwrap();
        let run = scenario.runs().0.swap_remove(0);
        (path.display().to_string(), scenario, RunConfig { at: Some(at.to_owned()), ..run })
    });
    loaded.collect()
}

/// A run does not differ from itself, in whatever is compared.
#[test]
fn a_run_is_like_itself() {
    for (name, scenario, run) in library("v5.17") {
        let side = Side { run, backend: Kind::Sim };
        for scope in [Scope::Transitions, Scope::Architecture, Scope::Observations] {
            let found = divergence::first(&scenario, &[side.clone(), side.clone()], scope, 1).unwrap();
            assert_eq!(found, None, "{name}");
        }
    }
}

/// Where the hypervisor model and bare silicon show the same, exceptions and edges are the same too; where they do not,
/// no event behind the step that differs comes first.
#[test]
fn backends_tell_the_same_while_they_show_the_same() {
    let mut alike = 0;
    for (name, scenario, run) in library("v6.14") {
        let shown = |kind| {
            let outcome = engine::run_on(kind, &scenario, &run, Detail::Nothing).unwrap();
            (outcome.shown, outcome.stopped)
        };
        let ((here, here_stopped), (there, there_stopped)) = (shown(Kind::Sim), shown(Kind::Bare));
        let same = here.iter().zip(&there).take_while(|(here, there)| here.observed.same(&there.observed)).count();
        let all = same == here.len() && same == there.len() && here_stopped == there_stopped;
        let sides = [Kind::Sim, Kind::Bare].map(|backend| Side { run: run.clone(), backend });
        let found = divergence::first(&scenario, &sides, divergence::scope_of(&sides), 2).unwrap();
        let expected = (!all).then_some(same as u32 + 1);
        assert_eq!(found.map(|found| found.step), expected, "{name}");
        alike += usize::from(all);
    }
    assert!(alike > 100, "{alike}");
}

#[test]
fn neighbours_of_a_fix() {
    let words = ["divergence", "library/seed/c1.toml", "--a", "at = \"3cffc89d9d07\"", "--b", "at = \"d2e5f3334169\""];
    let (code, out, err) = rolecall(&words);
    assert_eq!((code, err.as_str()), (ExitCode::Finding, ""));
    golden!("divergence_history", out);
    let (code, out, _) = rolecall(&[&words[..], &["--format", "json", "--context", "1"]].concat());
    assert_eq!(code, ExitCode::Finding);
    golden!("divergence_json", out);
    let (code, out, _) = rolecall(&[&words[..], &["--observations"]].concat());
    assert_eq!(code, ExitCode::Finding);
    assert!(out.contains("    a saw        ok\n    b saw        #PF(0x11) cr2 0x500000\n"), "{out}");
}

#[test]
fn backends_and_configurations() {
    let c1 = "library/seed/c1.toml";
    let (code, out, _) = rolecall(&["divergence", c1, "--b", "backend = \"bare\""]);
    assert_eq!(code, ExitCode::Finding);
    golden!("divergence_backend", out);
    let (code, out, _) =
        rolecall(&["divergence", c1, "--a", "at = \"v5.18\"", "--b", "at = \"v5.18\", backend = \"bare\""]);
    assert_eq!(code, ExitCode::Ok);
    assert!(out.ends_with("\nno difference\n"), "{out}");
    let (code, out, _) = rolecall(&["divergence", c1, "--b", "tdp = true"]);
    assert_eq!(code, ExitCode::Finding);
    golden!("divergence_configuration", out);
    let (code, out, _) = rolecall(&["divergence", c1, "--b", "plant = [\"no-flush-after-drop\"]"]);
    assert_eq!(code, ExitCode::Ok, "nothing is dropped here: {out}");
    let (code, out, _) = rolecall(&["divergence", c1, "--b", "without = [\"d2e5f3334169\"], at = \"v5.18\""]);
    assert_eq!(code, ExitCode::Finding);
    assert!(out.contains(" at=v5.18 without=d2e5f3334169 on sim"), "{out}");
}

/// Two orders of one block differ where their steps do.
#[test]
fn orders() {
    let (path, scenario) = library("v6.14")
        .into_iter()
        .map(|(path, scenario, _)| (path, scenario))
        .find(|(_, scenario)| scenario.permuted.is_some())
        .unwrap();
    let block = scenario.permuted.clone().unwrap();
    let last = scenario.runs().0.into_iter().map(|run| run.order_name()).max().unwrap();
    let (code, out, _) = rolecall(&["divergence", &path, "--b", &format!("order = \"{last}\"")]);
    assert_eq!(code, ExitCode::Finding);
    assert!(out.contains(&format!("first difference in step {}, ", block.start + 1)), "{out}");
    let (code, _, err) = rolecall(&["divergence", &path, "--b", "order = \"7\""]);
    assert_eq!(code, ExitCode::Usage);
    assert!(err.ends_with("7 is no order of the file's permute block\n"), "{err}");
}

#[test]
fn bad_arguments() {
    let mut shown = String::new();
    for words in [
        &["--a", "at = \"nope\""][..],
        &["--a", "tdp = maybe"],
        &["--a", "tpd = true"],
        &["--a", "vendor = \"arm\""],
        &["--a", ""],
        &["--a", "at = \"v5.17\"", "--b", "vendor = \"amd\", vpid = false"],
        &["--b", "nested-tdp = true"],
        &["--b", "with = [\"nope\"]"],
        &["--b", "with = [\"d2e5f3334169\"], without = [\"d2e5f3334169\"]"],
        &["--b", "plant = [\"nope\"]"],
        &["--b", "backend = \"kvm\""],
        &["--b", "x}, s = {"],
        &["--run", "vendor = \"amd\"", "--b", "tdp = true"],
        &["--run", "=", "--b", "tdp = true"],
    ] {
        let (code, out, err) = rolecall(&[&["divergence", "library/seed/c1.toml"], words].concat());
        if code == ExitCode::Usage {
            assert_eq!(out, "", "{words:?}");
        }
        shown.push_str(&format!("## {}\n{code:?} {err}\n", words.join(" ")));
    }
    let (code, _, err) = rolecall(&["divergence", "library/seed/none.toml", "--a", "tdp = true"]);
    assert_eq!(code, ExitCode::Usage);
    assert!(err.contains("can't read"), "{err}");
    for line in ["rolecall divergence x", "rolecall divergence x --a y --context 2000", "rolecall divergence --a y"] {
        assert!(CommandLine::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
    golden!("divergence_bad_arguments", shown);
}
