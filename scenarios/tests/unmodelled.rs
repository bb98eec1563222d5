//! What a scenario asks for and the model does not have: every case ends with exit code 125 and an error that names the
//! thing in the field's words, and none with a verdict.

use clap::Parser;
use scenarios::cli::args::CommandLine;
use scenarios::cli::{self, ExitCode};
use scenarios::file::Colours;
use std::fs;
use std::path::Path;

const HEAD: &str = "title = 't'\nsource = ['s']\n";
const SPACES: &str = "[space.a]\nmode = 'long4'\nmap = ['0x200000 -> 0x200000 rwx', '0x400000 -> 0x300000 rw']\n\
    [space.b]\nmode = 'long4'\n[guest.l2]\nspace = 'a'\n";

/// Replays a text as JSON, and gives the exit code and every run.
fn replay(name: &str, text: &str) -> (ExitCode, Vec<serde_json::Value>) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("unmodelled");
    fs::create_dir_all(&directory).expect("a directory can be made");
    let path = directory.join(format!("{name}.toml"));
    fs::write(&path, text).expect("a file can be written");
    let words = ["rolecall", "replay", "--format", "json", path.to_str().expect("the path is text")];
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = cli::run(&CommandLine::parse_from(words), Colours::Plain, &mut out, &mut err);
    assert!(err.is_empty(), "{name}: {}", String::from_utf8_lossy(&err));
    (code, serde_json::from_slice(&out).expect("the output is JSON"))
}

/// Every run of the text is unjudged, and says only `what`.
fn unmodelled(name: &str, text: &str, what: &str) {
    let (code, runs) = replay(name, text);
    assert_eq!(code, ExitCode::Unjudged, "{name}: {runs:#?}");
    assert!(!runs.is_empty());
    for run in &runs {
        assert_eq!(run["verdict"], "unjudged", "{name}");
        assert_eq!(run["judgement"], "unjudged", "{name}");
        let failures = run["failures"].as_array().expect("a list");
        assert_eq!(failures.len(), 1, "{name}: {failures:?}");
        let message = failures[0].as_str().expect("a text");
        assert_eq!(message, format!("not modelled: {what}"), "{name}");
    }
    // A file that expects the gap is right about it.
    let (code, runs) =
        replay(&format!("{name}-expected"), &format!("{text}[expect]\n'*' = {{ unjudged = 'a gap' }}\n"));
    assert_eq!(code, ExitCode::Ok, "{name}: {runs:#?}");
}

fn steps(lines: &[&str], vendor: &str, tdp: &str) -> String {
    let lines = lines.join("\n");
    format!("{HEAD}steps = '''\n{lines}\n'''\n{SPACES}[matrix]\nvendor = [{vendor}]\ntdp = [{tdp}]\n")
}

/// Instructions by their bytes, on both vendors, with and without TDP, in L1 and in L2.
#[test]
fn instructions() {
    for (bytes, what) in [
        ("d9 e8", "x87: instruction fld1 (fld1)"),
        ("c5 f8 57 c0", "instruction vxorps xmm0,xmm0,xmm0 (vxorps)"),
        ("62 f1 7c 48 57 c0", "instruction vxorps zmm0,zmm0,zmm0 (vxorps)"),
        ("c7 f8 00 00 00 00", "instruction xbegin 6 (xbegin)"),
        ("e4 60", "guest access to I/O port 0x60"),
        ("b9 34 12 00 00 0f 32", "RDMSR of 0x1234 by a guest"),
        ("b9 34 12 00 00 0f 30", "WRMSR to 0x1234 by a guest"),
    ] {
        for (level, lines) in [("l1", &["l1: exec 0x200000"][..]), ("l2", &["l1: enter l2", "l2: exec 0x200000"][..])] {
            let text = steps(lines, "'intel', 'amd'", "true, false");
            let text = format!("memory = ['0x200000: {bytes} c3']\n{text}");
            unmodelled(&format!("{level}-{}", bytes.replace(' ', "")), &text, what);
        }
    }
}

/// What the guest's processor lacks, or has switched off, is no gap but an undefined opcode (SDM 2, each page's #UD).
#[test]
fn instructions_that_the_processor_lacks() {
    for bytes in ["0f ae 07", "0f 57 c0", "66 0f 6f 00", "0f 05", "0f 01 c8", "0f 01 d1", "0f c7 f0", "0f aa"] {
        let text = steps(&["l1: exec 0x200000 => #UD"], "'intel', 'amd'", "true, false");
        let text = format!("memory = ['0x200000: {bytes} c3']\n{text}");
        let (code, runs) = replay(&format!("lacks-{}", bytes.replace(' ', "")), &text);
        assert_eq!(code, ExitCode::Ok, "{bytes}: {runs:#?}");
    }
}

/// Steps that the engine or L0 has no model for.
#[test]
fn steps_without_a_model() {
    const HOST: &str = "a host state of its own for VMRUN: SVM gives L1 back what it had";
    const ENTRY: &str = "an entry failure that only VMX has";
    const BOTH: &str = "'intel', 'amd'";
    let cases: &[(&str, &str, &[&str], &str)] = &[
        ("l2-not-entered", BOTH, &["l2: run"], "the step \"run\" while l1 runs"),
        (
            "l2-left",
            BOTH,
            &["l1: enter l2", "l2: exit", "l2: read 0x400000"],
            "the step \"read 0x400000\" while l1 runs",
        ),
        ("l1-not-back", BOTH, &["l1: enter l2", "l1: mov-cr3 b"], "the step \"mov-cr3 b\" while l2 runs"),
        ("not-saved", BOTH, &["host: set-nested-state"], "restoring a state that no save-state step has saved"),
        ("not-saved-sregs", BOTH, &["host: set-sregs"], "restoring a state that no save-state step has saved"),
        ("host-cr3", "'amd'", &["l1: enter l2 host-cr3=b"], HOST),
        ("host-cr4", "'amd'", &["l1: enter l2 host-cr4=+SMEP"], HOST),
        ("host-efer", "'amd'", &["l1: enter l2 host-efer=-NXE"], HOST),
        ("break-host-state", "'amd'", &["l1: enter l2 break=host-state"], ENTRY),
        ("break-msr-load", "'amd'", &["l1: enter l2 break=msr-load"], ENTRY),
        ("break-segments", "'amd'", &["l1: enter l2 break=guest-segments"], ENTRY),
    ];
    for (name, vendor, lines, what) in cases {
        unmodelled(name, &steps(lines, vendor, "true, false"), what);
    }
}

/// Userspace that has a page faulted in while the host invalidates it waits for the end, which nobody would bring about here.
#[test]
fn a_fault_outside_of_a_run_that_waits() {
    let lines = ["l1: run", "host: invalidate-begin 0x200 2", "host: pre-fault 0x201"];
    let text = format!("{}at = ['v6.11', 'v6.15']\nnested-tdp = [false]\n", steps(&lines, "'intel', 'amd'", "true"));
    unmodelled("pre-fault-waits", &text, "KVM_PRE_FAULT_MEMORY that waits for the end of an invalidation");
}

/// Signals and CPUID: what KVM refuses, and what L0 has no model for.
#[test]
fn signals_and_cpuid() {
    const BOTH: &str = "'intel', 'amd'";
    const REAL_MODE: &str = "real mode without unrestricted guest, which L0 would have to emulate";
    const CPUID: &str = "KVM_SET_CPUID2 of another CPUID for a vCPU that has run, which KVM refuses";
    let cases: &[(&str, &str, &str, &[&str], &str)] = &[
        ("smi-no-ept", "'intel'", "false", &["host: smi"], REAL_MODE),
        ("late-cpuid", BOTH, "true, false", &["l1: run", "host: set-cpuid maxphyaddr=36"], CPUID),
        (
            "smm-user",
            "'amd'",
            "true, false",
            &["host: smi", "smm: read 0x300000 user"],
            "ring 3 in SMM code, which has no page for it",
        ),
        (
            "smm-save",
            "'amd'",
            "true, false",
            &["host: smi", "host: save-state"],
            "the host's step \"save-state\" while SMM code runs",
        ),
        (
            "smm-twice",
            "'amd'",
            "true, false",
            &["host: smi", "host: smi"],
            "the host's step \"smi\" while SMM code runs",
        ),
        (
            "smm-init",
            "'amd'",
            "true, false",
            &["host: smi", "host: init-vcpu"],
            "the host's step \"init-vcpu\" while SMM code runs",
        ),
        (
            "guest-flush-l2",
            BOTH,
            "true, false",
            &["l1: enter l2", "host: guest-flush"],
            "a flush that L1 asks for while its L2 runs",
        ),
        ("no-smi", BOTH, "true, false", &["smm: rsm"], "the step \"rsm\" while l1 runs"),
    ];
    for (name, vendor, tdp, lines, what) in cases {
        unmodelled(name, &steps(lines, vendor, tdp), what);
    }
}

/// Hypercalls to L0 itself are no gap: none is offered, and L0 says so with -KVM_ENOSYS (kvm_emulate_hypercall).
#[test]
fn hypercalls_of_l1() {
    for (name, vendor, bytes) in [("vmcall", "'intel'", "0f 01 c1"), ("vmmcall", "'amd'", "0f 01 d9")] {
        // The result goes to memory: mov [0x400000], rax.
        let bytes = format!("{bytes} 48 89 04 25 00 00 40 00 c3");
        let lines = ["l1: exec 0x200000 => ok", "l1: read 0x400000 => 0xfffffffffffffc18"];
        let text = steps(&lines, vendor, "true, false");
        // Silicon has nobody to call.
        let text = format!("memory = ['0x200000: {bytes}']\n{text}[expect]\n'*' = {{ transparent = false }}\n");
        let (code, runs) = replay(name, &text);
        assert_eq!(code, ExitCode::Ok, "{name}: {runs:#?}");
    }
}

/// INVEPT and INVVPID are no gap on AMD but undefined opcodes (SDM 3C 30.3 needs VMX operation).
#[test]
fn vmx_instructions_on_amd() {
    for step in ["invept single", "invept global", "invvpid all", "invvpid single 1", "invvpid address 1 0x400000"] {
        let text = steps(&[&format!("l1: {step} => #UD"), "l1: run"], "'amd'", "true, false");
        let (code, runs) = replay("amd-ud", &text);
        assert_eq!(code, ExitCode::Ok, "{step}: {runs:#?}");
    }
}

/// A file that expects a gap where there is none is wrong.
#[test]
fn a_gap_that_is_none() {
    let text = steps(&["l1: run"], "'intel', 'amd'", "true, false");
    let (code, runs) = replay("no-gap", &format!("{text}[expect]\n'*' = {{ unjudged = 'a gap' }}\n"));
    assert_eq!(code, ExitCode::Finding);
    for run in &runs {
        assert_eq!(run["failures"][0], "expected not to be judged (a gap), but it ran to its end");
    }
}

/// A guest that never comes back is stopped, and that is a finding, whatever the kernel.
#[test]
fn a_loop_is_stopped() {
    let text = steps(&["l1: exec 0x200000"], "'intel'", "true");
    let (code, runs) = replay("loop", &format!("memory = ['0x200000: eb fe']\n{text}"));
    assert_eq!(code, ExitCode::Finding);
    assert_eq!(runs[0]["failures"][0], "no gate reached within 200000 instructions (last rip 0x200000)");
    assert_eq!(runs[0]["verdict"], "unjudged");
}
