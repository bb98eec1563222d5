//! Minimizing: generated scenarios shrink to a few steps with the same finding, what is printed is a file that shows it,
//! and nothing more can be taken out.

#![expect(clippy::unwrap_used, reason = "what can't be made fails the test")]

use clap::Parser;
use scenarios::cli::args::CommandLine;
use scenarios::cli::{self, ExitCode};
use scenarios::file::{self, Colours, RunConfig, Scenario};
use scenarios::minimize::{self, Document, Minimized, Symptom};
use scenarios::random::{self, Token};
use std::fs;
use std::path::{Path, PathBuf};

/// Exit code, output and errors of a command.
fn rolecall(words: &[&str]) -> (ExitCode, String, String) {
    let line = CommandLine::parse_from([&["rolecall"], words].concat());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = cli::run(&line, Colours::Plain, &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

macro_rules! golden {
    ($name:literal, $text:expr) => {
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!($name, $text);
        })
    };
}

fn parse(text: &str) -> (Scenario, RunConfig) {
    let scenario = file::parse("test", text, &[], &[]).unwrap();
    let run = scenario.runs().0.into_iter().next().unwrap();
    (scenario, run)
}

/// A random scenario of 60 steps: the generator writes at most 48, and what its guests do is done before them once more,
/// as far as needed.
fn sixty(token: &str) -> String {
    let text = random::text(&token.parse::<Token>().unwrap());
    let (head, rest) = text.split_once("steps = \"\"\"\n").unwrap();
    let (steps, tail) = rest.split_once("\"\"\"").unwrap();
    let steps: Vec<&str> = steps.lines().collect();
    let guests = steps.iter().filter(|step| !step.contains("host: ")).cycle();
    let all: Vec<&str> = guests.take(60 - steps.len()).chain(&steps).copied().collect();
    format!("{head}steps = \"\"\"\n{}\n\"\"\"{tail}", all.join("\n"))
}

/// The minimized first symptom, which holds `words`.
fn shrunk(text: &str, words: &str) -> Minimized {
    let (scenario, run) = parse(text);
    let symptoms = minimize::symptoms(&scenario, &run).unwrap();
    let symptom = symptoms.iter().find(|symptom| symptom.to_string().contains(words));
    let symptom = symptom.unwrap_or_else(|| panic!("no {words} in {symptoms:?}"));
    minimize::minimize(&Document::of_text(text, &scenario, &run).unwrap(), &run, symptom).unwrap()
}

fn symptoms(document: &Document) -> Vec<Symptom> {
    let (scenario, run) = parse(&document.to_string());
    minimize::symptoms(&scenario, &run).unwrap()
}

/// Scenarios at v5.17, one row a kind of finding: kvm-mmu.md part C, C-1 and C-14, and CVE-2022-1789.
#[test]
fn sixty_steps_become_eight() {
    const ROWS: [(&str, &str); 6] = [
        ("r3-v5.17-intel-shadow-000006ec", "I2 root-role in root_mmu, differs in smep_andnot_wp"),
        ("r3-v5.17-intel-shadow-0000046c", "I2 root-role"),
        ("r3-v5.17-intel-shadow-00000238", "CVE-2022-1789"),
        ("r3-v5.17-intel-shadow-00000048", "I17 cached-translations"),
        ("r3-v5.17-intel-shadow-0000032c", "transparency"),
        ("r3-v5.17-amd-shadow-00000802", "I11 child-role"),
    ];
    for (token, words) in ROWS {
        let text = sixty(token);
        let before = parse(&text).0.steps.len();
        let minimized = shrunk(&text, words);
        let after = minimized.steps().len();
        println!("{token} {words}: {before} steps become {after}\n{}", minimized.comments());
        assert_eq!(before, 60, "{token}");
        assert!(after <= 8, "{token}: {after} steps are left:\n{}", minimized.document);
        assert!(symptoms(&minimized.document).contains(&minimized.symptom), "{token}:\n{}", minimized.document);
    }
}

/// No step, and no word of one, can be taken out of what is left.
#[test]
fn nothing_more_can_go() {
    let minimized = shrunk(&sixty("r3-v5.17-intel-shadow-000006ec"), "I2 root-role");
    let document = &minimized.document;
    let steps: Vec<String> = document.steps().into_iter().map(str::to_owned).collect();
    for gone in 0..steps.len() {
        let mut rest = steps.clone();
        rest.remove(gone);
        let less = file::parse("less", &document.with_steps(&rest).to_string(), &[], &[]);
        let shown = less.ok().and_then(|scenario| {
            let run = scenario.runs().0.into_iter().next()?;
            minimize::symptoms(&scenario, &run).ok()
        });
        let shows = shown.is_some_and(|symptoms| symptoms.contains(&minimized.symptom));
        assert!(!shows, "without {}", steps[gone]);
    }
}

/// The same input gives the same bytes, and minimizing what is minimal changes nothing.
#[test]
fn is_deterministic_and_settles() {
    let text = sixty("r3-v5.17-intel-shadow-0000046c");
    let (one, two) = (shrunk(&text, "I2"), shrunk(&text, "I2"));
    assert_eq!(one, two);
    assert_eq!(shrunk(&one.document.to_string(), "I2").document, one.document);
}

/// What is written means what was read: every run of every library file has the same symptoms as its document.
#[test]
fn documents_keep_their_meaning() {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("library");
    let mut compared = 0;
    for path in file::collect(&[library]).unwrap() {
        let scenario = file::load(&path, &[], &[]).unwrap();
        for run in scenario.runs().0.iter().take(1) {
            let document = Document::of_file(&path, &scenario, run).unwrap();
            let mut document = document;
            document.expect(toml::Table::new());
            let again = file::parse("again", &document.to_string(), &[], &[]);
            let again = again.unwrap_or_else(|error| panic!("{}: {error}\n{document}", path.display()));
            let run_again = again.runs().0.into_iter().next().unwrap();
            assert_eq!(
                minimize::symptoms(&scenario, run).map_err(|error| error.to_string()),
                minimize::symptoms(&again, &run_again).map_err(|error| error.to_string()),
                "{}:\n{document}",
                path.display()
            );
            assert_eq!(again.spaces.len(), scenario.spaces.len(), "{}", path.display());
            assert_eq!(again.memory.len(), scenario.memory.len(), "{}", path.display());
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared}");
}

fn target(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("minimize");
    fs::create_dir_all(&directory).unwrap();
    directory.join(name)
}

#[test]
fn command() {
    let (code, token, _) = rolecall(&["minimize", "--token", "r3-v5.17-intel-shadow-000006ec"]);
    assert_eq!(code, ExitCode::Ok);
    golden!("minimize_token", token);

    let output = target("c1.toml");
    let path = output.to_str().unwrap();
    let (code, told, err) = rolecall(&["minimize", "library/seed/c1.toml", "--at", "v5.17", "--output", path]);
    assert_eq!((code, err.as_str()), (ExitCode::Ok, ""));
    let written = fs::read_to_string(&output).unwrap();
    assert!(written.starts_with(&told));
    golden!("minimize_file", written);
    let (code, _, _) = rolecall(&["replay", path]);
    assert_eq!(code, ExitCode::Finding, "the file breaks what it expects");
}

#[test]
fn command_says_why_not() {
    let (code, out, _) = rolecall(&["minimize", "library/seed/c1.toml", "--at", "v6.14"]);
    assert_eq!(code, ExitCode::Unjudged);
    assert!(out.contains("nothing to minimize"), "{out}");
    let (code, out, _) =
        rolecall(&["minimize", "--token", "r3-v5.17-intel-shadow-000006ec", "--finding", "transparency"]);
    assert_eq!(code, ExitCode::Unjudged);
    assert!(out.contains("finding like \"transparency\""), "{out}");
    for (words, says) in [
        (&["minimize", "library/seed/c1.toml", "--at", "v1"][..], "no such point"),
        (&["minimize", "library/seed/c1.toml", "--plant", "x"], "no such mistake"),
        (&["minimize", "library/seed/c1.toml", "--run", "order = \"9-9\""], "--run"),
        (&["minimize", "library/seed/none.toml"], "can't read"),
    ] {
        let (code, _, err) = rolecall(words);
        assert_eq!(code, ExitCode::Usage, "{words:?}");
        assert!(err.contains(says), "{words:?}: {err}");
    }
}

/// A mistake that the hypervisor is made to make is no key of a file: it is told beside it.
#[test]
fn planted_mistakes_are_told() {
    let mut files = file::collect(&[PathBuf::from("library/mechanisms")]).unwrap().into_iter();
    let found = files.find_map(|path| {
        let words = ["minimize", path.to_str().unwrap(), "--plant", "no-flush-after-drop"];
        let (code, out, _) = rolecall(&words);
        (code == ExitCode::Ok && out.contains("# with --plant no-flush-after-drop")).then_some(out)
    });
    assert!(found.is_some());
}
