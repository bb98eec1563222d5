//! Two processes on loopback share a search, and print what one prints.
#![cfg(feature = "timely")]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn start(more: &[&str]) -> Child {
    start_to("3", more)
}

fn start_to(depth: &str, more: &[&str]) -> Child {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("library/explore/nested-transitions.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolecall"));
    command.arg("explore").arg(file).args(["--at", "seed/07", "--depth", depth]).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("rolecall starts")
}

fn printed(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("rolecall ends");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned() + &errors)
}

/// Two free ports. Nothing keeps others from taking them meanwhile but that the system seldom gives one twice.
fn hosts() -> String {
    let listeners: Vec<_> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let addresses = listeners.iter().map(|listener| listener.local_addr().expect("an address").to_string() + "\n");
    addresses.collect()
}

fn hosts_file(name: &str) -> String {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, hosts()).expect("a file");
    file.display().to_string()
}

#[test]
fn two_processes() {
    let path = hosts_file("sharded.hosts");
    let shared = |process| start(&["--processes", "2", "--process", process, "--hosts", &path]);
    let (first, second) = (shared("0"), shared("1"));
    let (first, second) = (printed(first), printed(second));
    let alone = printed(start(&["--jobs", "1"]));
    assert!(alone.0 == Some(1) && alone.1.contains("guest_mode"), "{alone:?}");
    assert_eq!(first, alone);
    assert_eq!(second, (Some(0), String::new()));
}

/// Bounds are not for shared searches: they are refused, not ignored.
#[test]
fn bounds_are_refused() {
    for (bound, value) in [("--states", "10"), ("--memory", "1M"), ("--time", "1"), ("--save", "some.search")] {
        let (code, text) = printed(start(&["--processes", "2", "--process", "0", bound, value]));
        assert!(code == Some(2) && text.contains(bound) && text.contains("--processes"), "{bound}: {text}");
    }
}

/// Processes that are given different searches say so, both of them.
#[test]
fn different_searches() {
    let path = hosts_file("different.hosts");
    let others: [(&str, &[&str], &str); 3] = [
        ("2", &[], "another depth"),
        ("3", &["--choices"], "another search"),
        ("3", &["--jobs", "2"], "another number of processes or threads"),
    ];
    for (depth, more, what) in others {
        let shared = |depth: &str, process, more: &[&str]| {
            start_to(depth, &[&["--processes", "2", "--process", process, "--hosts", &path], more].concat())
        };
        let (first, second) = (shared("3", "0", &[]), shared(depth, "1", more));
        for ((code, text), other) in [(printed(first), "process 1"), (printed(second), "process 0")] {
            assert!(code == Some(3) && text.contains(what) && text.contains(other), "{code:?} {text}");
        }
    }
}

/// A process that is lost is named by the other, which does not wait for it.
#[test]
fn a_lost_process() {
    let path = hosts_file("lost.hosts");
    let shared = |process| start_to("12", &["--processes", "2", "--process", process, "--hosts", &path]);
    let (first, mut second) = (shared("0"), shared("1"));
    std::thread::sleep(std::time::Duration::from_secs(3));
    second.kill().expect("it runs");
    let (code, text) = printed(first);
    assert!(code == Some(3) && text.contains("process 1 (127.0.0.1:") && text.contains("is gone"), "{code:?} {text}");
    second.wait().expect("it was killed");
}
