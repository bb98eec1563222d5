//! The transcripts of the README, `docs/bisect.md`, `docs/explore.md` and `docs/import.md` are what the command prints.

#![expect(clippy::unwrap_used, reason = "what can't be run fails the test")]

use clap::Parser;
use scenarios::cli::{self, args::CommandLine};
use scenarios::file::Colours;

/// What the command prints, with the library's path as the README has it.
fn output(words: &str) -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_string_lossy().into_owned();
    let words = words.replace("scenarios/library", &format!("{root}/scenarios/library"));
    let words = words.replace("scenarios/tests", &format!("{root}/scenarios/tests"));
    // A shell's single quotes, as far as transcripts use them.
    let mut quoted = false;
    let split = words.split(|letter| {
        quoted ^= letter == '\'';
        letter == ' ' && !quoted
    });
    let words = split.map(|word| word.trim_matches('\'').to_owned());
    let line = CommandLine::parse_from(std::iter::once("rolecall".to_owned()).chain(words));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    cli::run(&line, Colours::Plain, &mut out, &mut err);
    assert_eq!(String::from_utf8(err).unwrap(), "");
    String::from_utf8(out).unwrap().replace(&format!("{root}/"), "")
}

/// Compares every transcript of a file, and says how many there are.
fn check(name: &str) -> usize {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(name);
    let readme = std::fs::read_to_string(path).unwrap();
    let prompt = "    $ cargo run --release -- ";
    let mut checked = 0;
    for part in readme.split(prompt).skip(1) {
        let (command, rest) = part.split_once('\n').unwrap();
        let shown: String = rest
            .lines()
            .take_while(|line| line.starts_with("    "))
            .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap()))
            .collect();
        let (command, filter) = command.split_once(" | grep -v ").unwrap_or((command, "\0"));
        let printed: String =
            output(command).lines().filter(|line| !line.contains(filter)).map(|line| format!("{line}\n")).collect();
        assert_eq!(shown, printed, "{command}");
        checked += 1;
    }
    checked
}

#[test]
fn transcripts_are_true() {
    let names = ["README.md", "docs/bisect.md", "docs/explore.md", "docs/import.md"];
    assert_eq!(names.map(check), [3, 4, 1, 1]);
}

/// The log that the README quotes is a part of the run's.
#[test]
fn the_quoted_log_is_true() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let log = output("replay scenarios/library/seed/s1.toml --at seed/07 --run 1 --log");
    let start = readme.find("    [2] l1: enter l2").unwrap();
    let quoted = readme[start..].lines().take_while(|line| line.starts_with("    "));
    for line in quoted {
        assert!(log.contains(line.strip_prefix("    ").unwrap()), "{line}");
    }
}

/// What `docs/explore.md` quotes of a search with choices is a part of what it prints.
#[test]
fn the_quoted_choice_is_true() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/explore.md")).unwrap();
    let (command, quoted) = page.split_once("    $ rolecall explore ").unwrap().1.split_once("\n    ...\n").unwrap();
    let quoted = quoted.lines().take_while(|line| line.starts_with("    "));
    let quoted: Vec<_> = quoted.map(|line| line.strip_prefix("    ").unwrap()).collect();
    assert!(quoted.len() > 3, "{quoted:?}");
    let printed = output(&format!("explore {command}"));
    assert!(printed.contains(&quoted.join("\n")), "{printed}");
}
