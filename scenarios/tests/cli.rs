//! The command from end to end: the real binary with arguments and files, its exit codes, both of its outputs, and the
//! same bytes whatever the number of threads.

use clap::Parser;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use scenarios::cli::args::CommandLine;
use scenarios::cli::{self, ExitCode};
use scenarios::file::{self, Colours};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const LIBRARY: &str = "library/seed";

/// The binary, run in a directory.
fn binary(directory: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolecall"));
    command.args(words).current_dir(directory).stdin(Stdio::null());
    command
}

/// Exit code, output and errors of the binary.
fn rolecall(directory: &Path, words: &[&str]) -> (i32, String, String) {
    let output = binary(directory, words).output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("output is text");
    (output.status.code().expect("it ended by itself"), text(output.stdout), text(output.stderr))
}

fn crate_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A fresh directory for a test's files.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli").join(name);
    if path.exists() {
        fs::remove_dir_all(&path).expect("the last run's directory can be removed");
    }
    fs::create_dir_all(&path).expect("a directory can be made");
    path
}

macro_rules! golden {
    ($name:literal, $text:expr) => {
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!($name, $text);
        })
    };
}

const GOOD: &str = r#"title = "one CR3 for two levels"
source = ["SDM 3C 26.3"]
memory = ["0x200000: 34 12"]
steps = """
l1: enter l2 cr3=b
l2: read 0x400000 => 0x1234
l2: exit
host: zap-gfn 0x200
"""

[matrix]
vendor = ["intel", "amd"]
tdp = [true, false]
at = ["v5.17", "v5.18"]
with = [[]]

[machine]
vcpus = 1

[[slot]]
name = "apic"
at = "0xfee00000"
present = false

[space.a]
mode = "long4"
map = ["0x400000 -> 0x200000 rw"]

[space.b]
mode = "long4"
map = ["0x400000 -> 0x200000 rw"]

[guest.l2]
space = "a"

[expect]
"*" = { coherent = true }
'at = "v5.17"' = { coherent = true }
"#;

/// Edits of the good file, each of which makes it bad.
const EDITS: &[(&str, &str, &str)] = &[
    ("key", "title =", "titel ="),
    ("verb", "l1: enter l2", "l1: entre l2"),
    ("actor", "l2: exit", "l3: exit"),
    ("space", "cr3=b", "cr3=c"),
    ("guest", "enter l2", "enter l3"),
    (
        "guests",
        "[guest.l2]",
        "[guest.g1]\nspace=\"a\"\n[guest.g2]\nspace=\"a\"\n[guest.g3]\nspace=\"a\"\n[guest.g4]\nspace=\"a\"\n[guest.g5]\nspace=\"a\"\n[guest.g6]\nspace=\"a\"\n[guest.g7]\nspace=\"a\"\n[guest.g8]\nspace=\"a\"\n[guest.l2]",
    ),
    ("slot", "host: zap-gfn 0x200", "host: add-slot apci"),
    ("point", "\"v5.18\"]", "\"v5.81\"]"),
    ("change", "with = [[]]", "with = [[\"d2e5f333416\"]]"),
    ("feature", "vcpus = 1", "silicon-without = [\"wbinvd-exitting\"]"),
    ("vcpu", "l2: exit", "1.l2: exit"),
    ("impossible", "tdp = [true, false]", "tdp = [false]\nnested-tdp = [true]"),
    ("unmapped", "0x400000 -> 0x200000 rw\"]\n\n[space.b]", "0x400000 -> 0x2000000 rw\"]\n\n[space.b]"),
    ("too-large", "read 0x400000 => 0x1234", "read 0x10000000000000000"),
    ("not-canonical", "read 0x400000 => 0x1234", "read 0x800000000000"),
    ("frame", "zap-gfn 0x200", "zap-gfn 0x20000"),
    ("selector", "'at = \"v5.17\"'", "'ta = \"v5.17\"'"),
    ("selects-nothing", "'at = \"v5.17\"'", "'at = \"v5.19\"'"),
];

/// Everything that is wrong with a file: one golden, and nothing else but the message comes out.
#[test]
fn bad_files() {
    let at = directory("bad_files");
    fs::write(at.join("good.toml"), GOOD).unwrap();
    assert_eq!(rolecall(&at, &["replay", "good.toml"]).0, 0, "the good file is good");
    let mut shown = String::new();
    for (name, from, to) in EDITS {
        assert_eq!(GOOD.matches(from).count(), 1, "{name}: the edit is not unique");
        let file = format!("{name}.toml");
        fs::write(at.join(&file), GOOD.replacen(from, to, 1)).unwrap();
        let check = rolecall(&at, &["check", &file]);
        for words in [&["replay", &file][..], &["bisect", &file], &["orders", &file]] {
            assert_eq!(rolecall(&at, words), check, "{words:?} says the same as check");
        }
        let (code, out, err) = check;
        assert_eq!((code, out.as_str()), (2, ""), "{name}: {err}");
        assert!(err.contains(&format!("[{file}:")) && err.contains("help: "), "{name}: {err}");
        shown.push_str(&err);
    }
    golden!("cli_bad_files", shown);
}

/// Files that can't be read, are no text, or form loops. The 100 MB are a hole.
#[test]
fn bad_input() {
    let at = directory("bad_input");
    let text = |name: &str, text: &[u8]| fs::write(at.join(name), text).unwrap();
    text("loop.toml", format!("include = [\"b.toml\"]\n{GOOD}").as_bytes());
    text("b.toml", b"include = [\"c.toml\"]");
    text("c.toml", b"include = [\"b.toml\"]");
    text("empty.toml", b"");
    text("binary.toml", b"\x7fELF\x02\x01\x01\0\0\0\xff\xfe\x90\x90");
    text("escape.toml", b"title = \"\x1b[2Jgone\"");
    text("zeros.toml", &[0; 4096]);
    File::create(at.join("huge.toml")).unwrap().set_len(100 << 20).unwrap();
    fs::create_dir_all(at.join("nothing/in/here")).unwrap();
    fs::write(at.join("nothing/fragment.toml"), "[space.a]\nmode = 'pae'").unwrap();
    // A link to itself can't be read by anyone, whatever their rights.
    std::os::unix::fs::symlink("unreadable.toml", at.join("unreadable.toml")).unwrap();
    let mut shown = String::new();
    for path in [
        "loop.toml",
        "empty.toml",
        "binary.toml",
        "escape.toml",
        "zeros.toml",
        "huge.toml",
        "nowhere.toml",
        "nothing",
        "unreadable.toml",
    ] {
        for command in ["replay", "check", "orders"] {
            let (code, out, err) = rolecall(&at, &[command, path]);
            assert_eq!((code, out.as_str()), (2, ""), "{command} {path}: {err}");
            let place = if path == "loop.toml" { "[c.toml:1:12]".to_owned() } else { format!("[{path}:") };
            assert!(!err.contains(|letter: char| letter.is_control() && letter != '\n'), "{command} {path}: {err:?}");
            assert!(err.contains(&place) && err.contains("help: "), "{command} {path}: {err}");
            if command == "replay" {
                shown.push_str(&err);
            }
        }
    }
    golden!("cli_bad_input", shown);
}

/// Two bad files are told at once, and a good one beside them does not run.
#[test]
fn every_bad_file_is_told() {
    let at = directory("every_bad_file");
    for (name, from, to) in [("a", "title", "titel"), ("b", "cr3=b", "cr3=c"), ("c", "title", "title")] {
        fs::write(at.join(format!("{name}.toml")), GOOD.replacen(from, to, 1)).unwrap();
    }
    let (code, out, err) = rolecall(&at, &["replay", "."]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("a.toml:1:1") && err.contains("b.toml:5:18") && !err.contains("c.toml"), "{err}");
}

/// Arguments that name nothing.
#[test]
fn bad_arguments() {
    let at = directory("bad_arguments");
    fs::write(at.join("good.toml"), GOOD).unwrap();
    let mut shown = String::new();
    for line in [
        "replay good.toml --run 0",
        "replay good.toml --run 9999",
        "replay good.toml --run x",
        "replay good.toml --jobs 0",
        "replay good.toml --jobs 65535",
        "replay good.toml --at nope",
        "replay good.toml --with nope",
        "replay good.toml --without nope",
        "replay good.toml --with d2e5f3334169 --without d2e5f3334169",
        "replay good.toml --format yaml",
        "replay good.toml --backend xen",
        "bisect good.toml --good seed/07 --bad v5.18",
        "bisect good.toml --good nope",
        "bisect good.toml --bad nope",
        "bisect good.toml --run vendr=\"amd\"",
        "bisect good.toml --run vendor=\"arm\"",
        "bisect good.toml --run at=\"v6.14\"",
        "bisect good.toml --run =",
        "orders good.toml --base nope",
        "orders good.toml --changes nope",
        "orders good.toml --changes d2e5f3334169,d2e5f3334169",
        "show nothing",
        "frob",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let (code, out, err) = rolecall(&at, &words);
        assert_eq!((code, out.as_str()), (2, ""), "{line}: {err}");
        assert!(!err.is_empty(), "{line}");
        shown.push_str(&format!("## {line}\n{err}"));
    }
    golden!("cli_bad_arguments", shown);
}

/// Exit codes of what runs: the table of `--help`, case by case.
#[test]
fn exit_codes() {
    let at = directory("exit_codes");
    let wrong_value = GOOD.replace("=> 0x1234", "=> 0x4321");
    let opposite = GOOD
        .replace("\"*\" = { coherent = true }\n'at = \"v5.17\"' = { coherent = true }", "'*' = { coherent = false }");
    let gap = GOOD.replace("l2: exit", "l2: exit\nl2: run");
    for (name, text) in [("good", GOOD), ("value", &wrong_value), ("opposite", &opposite), ("gap", &gap)] {
        fs::write(at.join(format!("{name}.toml")), text).unwrap();
    }
    let s1 = crate_root().join(LIBRARY).join("s1.toml");
    let s1 = s1.to_str().unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["replay", "good.toml"], 0, "8 as expected, 0 not, 0 unjudged"),
        (&["replay", "value.toml"], 1, "expected 0x4321, saw 0x1234"),
        (&["replay", "opposite.toml"], 1, "expected incoherent, found nothing"),
        (&["replay", "gap.toml"], 125, "not modelled: the step \"run\" while l1 runs"),
        (&["replay", "gap.toml", "value.toml"], 1, "expected 0x4321"),
        (&["replay", "good.toml", "gap.toml"], 125, "8 as expected"),
        (&["replay", "gap.toml", "--at", "v5.18"], 125, "not modelled"),
        (&["replay", "good.toml", "--backend", "bare"], 0, "8 as expected, 0 not, 0 unjudged"),
        (&["replay", "value.toml", "--backend", "bare"], 1, "expected 0x4321, saw 0x1234"),
        (&["replay", "opposite.toml", "--backend", "bare"], 0, "observed"),
        (&["replay", s1], 0, "0 not"),
        (&["replay", s1, "--at", "seed/07"], 1, "root-role"),
        (&["replay", s1, "--at", "v5.18"], 0, "coherent"),
        (&["replay", s1, "--run", "3"], 0, "seed/07"),
        (&["bisect", s1, "--good", "v5.17", "--bad", "seed/07"], 0, "seed/07"),
        (&["bisect", s1, "--good", "v5.17", "--bad", "v5.18"], 125, ""),
        (&["check", "good.toml", "gap.toml"], 0, "good.toml: 4 steps, 8 runs"),
    ];
    for (words, expected, part) in cases {
        let (code, out, err) = rolecall(&at, words);
        assert_eq!(code, *expected, "{words:?}: {out}{err}");
        assert!(out.contains(part), "{words:?}: {out}{err}");
        assert_eq!(err.is_empty(), !part.is_empty(), "{words:?}: {err}");
    }
}

/// One run of a matrix, by its number, is the same as in the whole table.
#[test]
fn one_run_of_many() {
    let s1 = format!("{LIBRARY}/s1.toml");
    let json =
        |words: &[&str]| -> Vec<serde_json::Value> { serde_json::from_str(&rolecall(crate_root(), words).1).unwrap() };
    let all = json(&["replay", "--format", "json", &s1]);
    assert_eq!(all.len(), 12);
    for (number, run) in (1..).zip(&all) {
        let one = json(&["replay", "--format", "json", &s1, "--run", &format!("{number}")]);
        assert_eq!(one.iter().collect::<Vec<_>>(), [run]);
    }
    let (code, _, err) = rolecall(crate_root(), &["replay", &s1, "--run", "13"]);
    assert_eq!((code, err.as_str()), (2, "rolecall: --run 13: there are 12 runs\n"));
}

/// The keys of the JSON output are a promise to programs.
#[test]
fn json_keys() {
    let (code, out, err) = rolecall(crate_root(), &["replay", "--format", "json", LIBRARY]);
    assert_eq!((code, err.as_str()), (0, ""));
    let runs: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    let of_runs: BTreeSet<String> = runs.iter().map(keys).collect();
    let findings = runs.iter().flat_map(|run| run["findings"].as_array().unwrap());
    let of_findings: BTreeSet<String> = findings.map(keys).collect();
    assert_eq!(
        of_runs.into_iter().collect::<Vec<_>>(),
        [
            "at cycles failures findings judgement nested-tdp observations order scenario state stats tdp title transparency vendor verdict \
          vpid with without"
        ]
    );
    assert_eq!(
        of_findings.into_iter().collect::<Vec<_>>(),
        ["audit checkpoint differs guest-mode invariant known mmu pgd recent requests role role-text root root-role \
          root-role-text slot smm step step-text vcpu what"]
    );
}

/// What needs no scenario.
#[test]
fn topics_and_schema() {
    for topic in ["audits", "changes", "points", "steps", "costs"] {
        let (code, out, err) = rolecall(crate_root(), &["show", topic]);
        assert_eq!((code, err.as_str()), (0, ""), "{topic}");
        assert!(out.lines().count() > 5, "{topic}: {out}");
        assert!(out.lines().all(|line| line == line.trim_end()), "{topic}: white space at a line's end");
    }
    let (code, out, _) = rolecall(crate_root(), &["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &schema["title"]), (0, &"rolecall scenario".into()));
    for words in [&["--help"][..], &["--version"], &["replay", "--help"]] {
        let (code, out, err) = rolecall(crate_root(), words);
        assert_eq!((code, err.as_str()), (0, ""), "{words:?}");
        assert!(!out.is_empty());
    }
}

/// A reader that goes away early, as `head` does, is no error.
#[test]
fn closed_pipe() {
    for words in
        [&["replay", "--log", LIBRARY][..], &["replay", "--format", "json", LIBRARY], &["schema"], &["show", "steps"]]
    {
        let mut child = binary(crate_root(), words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?}");
        assert_eq!(output.status.code(), Some(0), "{words:?}");
    }
}

/// Twice, and at one and two threads: the same bytes of text, JSON and log.
#[test]
fn threads_change_nothing() {
    for format in [&["--format", "text"][..], &["--format", "json"], &["--log"]] {
        let run = |jobs: &str| {
            let (code, out, err) = rolecall(crate_root(), &[&["replay", LIBRARY, "--jobs", jobs], format].concat());
            assert_eq!((code, err.as_str()), (0, ""));
            out
        };
        let one = run("1");
        assert!(one == run("1"), "{format:?}: twice");
        assert!(one == run("2"), "{format:?}: two threads");
    }
}

/// One piece of damage.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Delete(Index),
    Double(Index),
    Swap(Index, Index),
    Cut(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => (any::<Index>(), 0_u8..7).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        3 => any::<Index>().prop_map(Damage::Delete),
        2 => any::<Index>().prop_map(Damage::Double),
        3 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Damage::Swap(a, b)),
        1 => any::<Index>().prop_map(Damage::Cut),
    ]
}

fn damaged(text: &str, damages: &[Damage]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for damage in damages {
        let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        if lines.is_empty() {
            return bytes;
        }
        match damage {
            Damage::Flip(at, bit) => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
                continue;
            }
            Damage::Cut(at) => {
                bytes.truncate(at.index(bytes.len()));
                continue;
            }
            Damage::Delete(at) => drop(lines.remove(at.index(lines.len()))),
            Damage::Double(at) => {
                let at = at.index(lines.len());
                lines.insert(at, lines[at].clone());
            }
            Damage::Swap(a, b) => {
                let (a, b) = (a.index(lines.len()), b.index(lines.len()));
                lines.swap(a, b);
            }
        }
        bytes = lines.concat();
    }
    bytes
}

/// Every file of the library, each damaged a few times: never a panic, and an exit code that says whose fault it is. A
/// quarter of the damaged files still runs; those run once only.
#[test]
fn damaged_library() {
    let at = directory("damaged_library");
    let library = at.join("seed");
    fs::create_dir_all(at.join("common")).unwrap();
    fs::create_dir_all(&library).unwrap();
    fs::copy(crate_root().join("library/common/base.toml"), at.join("common/base.toml")).unwrap();
    let path = library.join("damaged.toml");
    let codes = RefCell::new(BTreeMap::new());
    for original in file::collect(&[crate_root().join(LIBRARY)]).unwrap() {
        let text = fs::read_to_string(&original).unwrap();
        let config = Config { rng_seed: RngSeed::Fixed(7), failure_persistence: None, cases: 12, ..Config::default() };
        let strategy = proptest::collection::vec(damage(), 1..4);
        let result = TestRunner::new(config).run(&strategy, |damages| {
            fs::write(&path, damaged(&text, &damages)).unwrap();
            let line = CommandLine::parse_from(["rolecall", "replay", path.to_str().unwrap(), "--jobs", "1"]);
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let code = cli::run(&line, Colours::Plain, &mut out, &mut err);
            *codes.borrow_mut().entry(code).or_insert(0) += 1;
            prop_assert_ne!(code, ExitCode::Internal, "{}", String::from_utf8_lossy(&out));
            prop_assert_eq!(code == ExitCode::Usage, !err.is_empty());
            prop_assert_eq!(code == ExitCode::Usage, out.is_empty());
            Ok(())
        });
        if let Err(error) = result {
            panic!("{}: {error}", original.display());
        }
    }
    let codes = codes.into_inner();
    let seen: Vec<ExitCode> = codes.keys().copied().collect();
    assert_eq!(seen, [ExitCode::Ok, ExitCode::Finding, ExitCode::Usage, ExitCode::Unjudged], "{codes:?}");
}

/// The over-flush report tells flushes that an audit needs from those that none does, and `--trace` writes KVM's words.
#[test]
fn reports_of_a_run() {
    let file = format!("{LIBRARY}/../mechanisms/change-page.toml");
    let words = ["replay", &file, "--run", "1", "--report", "over-flush", "--report", "stats"];
    let (code, out, err) = rolecall(crate_root(), &words);
    assert_eq!((code, err.as_str()), (0, ""));
    for part in ["TLB_FLUSH needed: a cached translation leads to host frame", "TLB_FLUSH not needed: ", "pf_taken"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let at = directory("trace");
    let trace = at.join("run.trace");
    let (code, _, err) =
        rolecall(crate_root(), &["replay", &file, "--run", "1", "--trace", &trace.display().to_string()]);
    assert_eq!((code, err.as_str()), (0, ""));
    let text = fs::read_to_string(&trace).unwrap();
    assert!(
        text.contains(
            ": kvm_mmu_get_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 1 sync new  # role 0x3784"
        )
    );
}

/// What `explore` finds can be replayed: by the numbers of its steps, and as the files that it writes.
#[test]
fn explored_findings_replay() {
    let directory = directory("explored");
    let out = directory.join("found").display().to_string();
    let file = "library/explore/nested-transitions.toml";
    let run = "vendor = \"intel\", tdp = false";
    let words = ["explore", file, "--at", "seed/07", "--run", run, "--depth", "2", "--output", &out];
    let (code, text, errors) = rolecall(crate_root(), &words);
    assert_eq!((code, errors.as_str()), (1, ""), "{text}");
    let orderings: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("(replay --steps ")).collect();
    let files: Vec<PathBuf> = fs::read_dir(&out).expect("found").map(|entry| entry.expect("a file").path()).collect();
    assert!(orderings.len() > 1 && orderings.len() == files.len(), "{text}");
    for ordering in orderings {
        let steps = ordering.trim_end_matches(')');
        let (code, text, _) = rolecall(crate_root(), &["replay", file, "--at", "seed/07", "--steps", steps]);
        assert!(code == 1 && text.contains("INCOHERENT"), "{steps}: {text}");
    }
    for path in files {
        // The file says what is wrong: it holds while that is so, and no longer once the kernel is mended.
        let path = path.display().to_string();
        let (code, text, _) = rolecall(crate_root(), &["replay", &path]);
        assert!(code == 0 && text.contains("INCOHERENT"), "{path}: {text}");
        let (_, text, _) = rolecall(crate_root(), &["replay", &path, "--at", "v6.14"]);
        assert!(!text.contains("INCOHERENT"), "{path}: {text}");
        let said = fs::read_to_string(&path).expect("a file");
        assert!(said.contains("coherent = false") && said.contains("differ = "), "{said}");
    }
    let (code, _, errors) = rolecall(crate_root(), &["replay", file, "--steps", "3.99"]);
    assert!(code == 2 && errors.contains("step 99"), "{errors}");
}

/// What the silicon may choose is told, and replayed by the answers behind a step.
#[test]
fn explored_choices_replay() {
    let file = "library/explore/stale-translations.toml";
    let run = "vendor = \"intel\", tdp = true";
    let (code, text, errors) = rolecall(crate_root(), &["explore", file, "--run", run, "--depth", "3", "--choices"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    assert!(text.contains("shows 0x2222") && text.contains("(replay --steps 1.2.1/0)"), "{text}");
    let (_, modelled, _) = rolecall(crate_root(), &["explore", file, "--run", run, "--depth", "3"]);
    assert!(!modelled.contains("choice"), "{modelled}");
    for (steps, shown) in [("1.2.1/0", "0x2222"), ("1.2.1/1", "0x1111"), ("1.2.1", "0x1111")] {
        let (code, text, errors) = rolecall(crate_root(), &["replay", file, "--run", "1", "--steps", steps, "--log"]);
        assert_eq!((code, errors.as_str()), (0, ""), "{text}");
        let last = text.lines().rfind(|line| line.contains("0x1111") || line.contains("0x2222")).unwrap_or_default();
        assert!(last.contains(shown), "{steps}: {text}");
    }
    for steps in ["1/", "1/a", "/1", "0/1", "1//2"] {
        let (code, _, errors) = rolecall(crate_root(), &["replay", file, "--steps", steps]);
        assert!(code == 2 && errors.contains("11.3.6"), "{steps}: {errors}");
    }
}

/// A step that does not come to an end is a finding, as it is of a replay.
#[test]
fn explored_runaway() {
    let file = directory("explored-runaway").join("runaway.toml");
    let text = "
title = 'a jump to itself'
source = ['none']
steps = 'l1: exec 0x400000'
memory = ['0x200000: eb fe']
[matrix]
vendor = ['intel']
tdp = [true]
[space.a]
mode = 'long4'
map = ['0x400000 -> 0x200000 rx']
[guest.l1]
space = 'a'
";
    fs::write(&file, text).unwrap();
    let (code, text, errors) = rolecall(crate_root(), &["explore", &file.display().to_string(), "--depth", "1"]);
    assert_eq!((code, errors.as_str()), (1, ""), "{text}");
    assert!(text.contains("not taken: no gate reached"), "{text}");
}

/// Each step once: as many states as there are subsets at most, and no progress line where no terminal is.
#[test]
fn explored_once() {
    let file = "library/explore/nested-transitions.toml";
    let run = "vendor = \"amd\", tdp = false";
    let words = ["explore", file, "--at", "v6.14", "--run", run, "--interleave", "--memory", "1G"];
    let (code, text, errors) = rolecall(crate_root(), &words);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    let (code, _, errors) = rolecall(crate_root(), &["explore", file, "--permute", "--interleave"]);
    assert!(code == 2 && errors.contains("--permute"), "{errors}");
    let (code, _, errors) = rolecall(crate_root(), &["explore", file, "--memory", "0"]);
    assert!(code == 2 && errors.contains("512M"), "{errors}");
}
