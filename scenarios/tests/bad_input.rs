//! Bad scenario files: every message is golden, with its file, line, column, underlined text and help. Each case is one
//! edit of one good file, so that nothing but the edit can be wrong.

use scenarios::file::{self, Colours, Diagnostics, Scenario};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const POINTS: &[&str] = &["v5.17", "seed/06", "seed/07", "v5.18"];
const CHANGES: &[&str] = &["FastPgdSwitch", "RootRoleCheck"];

const GOOD: &str = r##"title = "one CR3 for two levels"
about = "L1 and L2 share one CR3."
source = ["SDM 3C 26.3"]
memory = ["0x200000: 34 12", "0x201000: u64 0x1234"]

[matrix]
vendor = ["intel", "amd"]
tdp = [true, false]
nested-tdp = [true, false]
at = ["v5.17", "seed/07"]
with = [[], ["RootRoleCheck"]]

[machine]
memory = "32M"
vcpus = 2

[[slot]]
name = "apic"
at = "0xfee00000"
private = true

[space.a]
mode = "long4"
map = ["0x400000 -> 0x200000 rw", "0x600000 -> 0x400000 rwx user 2M"]
pcid = 1

[space.p]
mode = "pae"

[space.r]
mode = "real"

[guest.l1]
space = "a"
cr0 = "+WP"

[guest.l2]
space = "a"
cr4 = "+SMEP"
vpid = 1
ept-ad = true
host = { space = "a", cr0 = "-WP" }
break = "pdptes"

steps = """
l1: mov-cr3 a noflush    # a comment
l1: enter l2 cr3=p vpid=2
1.l2: read 0x400000 => 0x1234
l2: exit
host: zap-gfn 0x200
permute {
l1: write 0x400000 7
l1: exec 0x600000 user => #PF(0x14) cr2 0x600000
}
"""

[expect]
"*" = { coherent = true, transparent = true }
'at = "seed/07", nested-tdp = false' = { coherent = false, first = "enter l2", audit = "root-role" }
"##;

/// Compares with the golden messages of a test.
macro_rules! golden {
    ($messages:expr) => {
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!($messages);
        })
    };
}

fn parse(text: &str) -> Result<Scenario, Diagnostics> {
    file::parse("case.toml", text, POINTS, CHANGES)
}

#[test]
fn the_good_file_is_good() {
    if let Err(diagnostics) = parse(GOOD) {
        panic!("{}", diagnostics.render(Colours::Plain));
    }
}

/// Applies each edit to the good file, and gives all messages.
fn messages(edits: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (from, to) in edits {
        assert_eq!(GOOD.matches(from).count(), 1, "the edit of {from:?} is not unique");
        let diagnostics = parse(&GOOD.replacen(from, to, 1)).expect_err(&format!("{from:?} to {to:?} is accepted"));
        out.push_str(&format!("## {from}  ~>  {to}\n{}\n", diagnostics.render(Colours::Plain)));
    }
    out
}

#[test]
fn syntax() {
    golden!(messages(&[
        ("title = \"one CR3 for two levels\"", "title = one"),
        ("[matrix]", "[matrix"),
        ("vcpus = 2", "vcpus = 2\nvcpus = 3"),
        ("[space.p]", "[space.a]"),
        ("\"\"\"\n\n[expect]", "\n\n[expect]"),
    ]));
}

#[test]
fn keys() {
    golden!(messages(&[
        ("title =", "titel ="),
        ("nested-tdp = [true, false]\n", "nested_tdp = [true, false]\n"),
        ("vcpus = 2", "vcpu = 2"),
        ("vcpus = 2", "about = 'x'"),
        ("[expect]", "[orderings]\nx = 1\n[expect]"),
        ("ept-ad", "ept_ad"),
        ("coherent = false", "coherant = false"),
        ("source = [\"SDM 3C 26.3\"]\n", ""),
        ("mode = \"pae\"", ""),
        ("name = \"apic\"\n", ""),
    ]));
}

#[test]
fn types_and_values() {
    golden!(messages(&[
        ("source = [\"SDM 3C 26.3\"]", "source = \"SDM\""),
        ("source = [\"SDM 3C 26.3\"]", "source = []"),
        ("\"amd\"]", "\"adm\"]"),
        ("\"amd\"]", "\"intel\"]"),
        ("tdp = [true, false]\nnested", "tdp = []\nnested"),
        ("tdp = [true, false]\nnested", "tdp = [1]\nnested"),
        ("vcpus = 2", "vcpus = 5"),
        ("vcpus = 2", "vcpus = 99999999999999999999"),
        ("vcpus = 2", "vcpus = 1.5"),
        ("mode = \"pae\"", "mode = \"PAE\""),
        ("break = \"pdptes\"", "break = \"pdpte\""),
        ("pcid = 1", "pcid = 4096"),
        ("vpid = 1", "vpid = 0"),
        ("at = \"0xfee00000\"", "at = true"),
    ]));
}

#[test]
fn machine_and_memory() {
    golden!(messages(&[
        ("memory = \"32M\"", "memory = \"2G\""),
        ("memory = \"32M\"", "memory = \"32 MB\""),
        ("at = \"0xfee00000\"", "at = \"0xfee00001\""),
        ("at = \"0xfee00000\"", "at = \"0x1000000\""),
        ("at = \"0xfee00000\"", "at = \"fee00000\""),
        ("at = \"0xfee00000\"", "at = \"0xfffffffffff000\""),
        ("name = \"apic\"", "name = \"the apic\""),
        ("[[slot]]", "[[slot]]\nname = \"apic\"\nat = 0xfed00000\n[[slot]]"),
        ("0x200000: 34 12", "0x200000: 3 12"),
        ("0x200000: 34 12", "0x200000"),
        ("0x200000: 34 12", "0x2000000: 34"),
        ("0x201000: u64 0x1234", "0x201000: u8 0x1234"),
        ("0x201000: u64 0x1234", "0x201000: u64"),
    ]));
}

#[test]
fn spaces() {
    golden!(messages(&[
        ("0x400000 -> 0x200000 rw", "0x400000 => 0x200000 rw"),
        ("0x400000 -> 0x200000 rw", "0x400000 -> 0x200000"),
        ("0x400000 -> 0x200000 rw", "0x400000 -> 0x200000 wr"),
        ("0x400000 -> 0x200000 rw", "0x400000 -> 0x200000 rw usr"),
        ("0x400000 -> 0x200000 rw", "0x400000 -> 0x200000 rw 4M"),
        ("0x400000 -> 0x200000 rw", "0x400008 -> 0x200000 rw"),
        ("0x400000 -> 0x200000 rw", "0x800000000000 -> 0x200000 rw"),
        ("0x400000 -> 0x200000 rw", "0x400000 -> 0x2000000 rw"),
        ("0x400000 -> 0x200000 rw", "0x601000 -> 0x200000 rw"),
        ("mode = \"pae\"", "mode = \"pae\"\nmap = [\"0x100000000 -> 0x200000 r\"]"),
        ("mode = \"pae\"", "mode = \"pae\"\npcid = 1"),
        ("mode = \"real\"", "mode = \"real\"\nmap = [\"0x1000 -> 0x1000 r\"]"),
        ("[space.p]", "[space.\"p p\"]"),
    ]));
}

#[test]
fn guests() {
    golden!(messages(&[
        ("cr0 = \"+WP\"", "cr0 = \"+WQ\""),
        ("cr0 = \"+WP\"", "cr0 = \"WP\""),
        ("cr0 = \"+WP\"", "cr0 = \"+WP -WP\""),
        ("cr0 = \"+WP\"", "vpid = 1"),
        ("cr4 = \"+SMEP\"", "cr4 = \"+SMPE\""),
        ("space = \"a\"\ncr4", "cr4"),
        ("space = \"a\"\ncr4", "space = \"b\"\ncr4"),
        ("host = { space = \"a\"", "host = { space = \"q\""),
        ("[guest.l2]", "[guest.\"l 2\"]"),
    ]));
}

#[test]
fn steps() {
    golden!(messages(&[
        ("l1: mov-cr3 a noflush", "mov-cr3 a noflush"),
        ("l1: mov-cr3 a noflush", "l3: mov-cr3 a noflush"),
        ("l1: mov-cr3 a noflush", "l1: mov-cr33 a noflush"),
        ("l1: mov-cr3 a noflush", "l1: mov-cr3 b noflush"),
        ("l1: mov-cr3 a noflush", "l1: mov-cr3 a flush"),
        ("l1: mov-cr3 a noflush", "l1: mov-cr3"),
        ("l1: mov-cr3 a noflush", "l1:"),
        ("l1: mov-cr3 a noflush", "host: mov-cr3 a"),
        ("l1: mov-cr3 a noflush", "l1: mov-cr0 +PGE"),
        ("l1: mov-cr3 a noflush", "l1: invept all"),
        ("l1: mov-cr3 a noflush", "l1: invvpid single 65536"),
        ("l1: mov-cr3 a noflush", "host: add-slot apid"),
        ("enter l2 cr3=p", "enter l3 cr3=p"),
        ("enter l2 cr3=p", "enter l2 cr3=q"),
        ("enter l2 cr3=p", "enter l2 cr2=p"),
        ("enter l2 cr3=p", "enter l2 host-cr0=+WPX"),
        ("enter l2 cr3=p", "enter l2 break=msrs"),
        ("enter l2 cr3=p", "enter l2 cr3=p cr3=a"),
        ("1.l2: read", "2.l2: read"),
        ("read 0x400000 => 0x1234", "read 0x400000 => okay"),
        ("read 0x400000 => 0x1234", "read 0x400000 => vmfail 7"),
        ("read 0x400000 => 0x1234", "read 0x400000 =>"),
        ("read 0x400000 => 0x1234", "read four"),
        ("read 0x400000 => 0x1234", "read 0x800000000000"),
        ("zap-gfn 0x200", "zap-gfn 0x200000"),
        ("#PF(0x14) cr2", "#PG(0x14) cr2"),
        ("permute {", "permute {\npermute {"),
        ("permute {", ""),
        ("l1: write 0x400000 7\n", ""),
        ("\n}\n", "\n"),
        ("[guest.l2]", "[guest.l2]\nsteps = 'l1: run'\n[guest.l3]\nspace = \"a\"\n[guest.l4]"),
    ]));
}

/// Steps that edit page tables or invalidate, and permitted sets.
#[test]
fn tables_and_sets() {
    let step = "l1: mov-cr3 a noflush";
    golden!(messages(&[
        (step, "l1: map a 0x400000 -> 0x201000 rw 2M"),
        (step, "l1: map a 0x400000 -> 0x200800 rw"),
        (step, "l1: map a 0x400000 0x200000 rw"),
        (step, "l1: map a 0x400000 -> 0x200000 rw 4M"),
        (step, "l1: map z 0x400000 -> 0x200000 rw"),
        (step, "l1: map a"),
        (step, "l1: unmap a"),
        (step, "l1: set-entry a 5 0x400000 +W"),
        (step, "l1: set-entry a 1 0x400000 W"),
        (step, "l1: set-entry a 1 0x400000 +V"),
        (step, "l1: set-entry a 1 0x400000 +W -W"),
        (step, "l1: set-entry a 1 0x400000"),
        (step, "l1: link a 0 0x400000 p"),
        (step, "l1: link a 1 0x400000"),
        (step, "l1: read-entry a 1"),
        (step, "l1: nested-map mian 0x400000 -> 0x200000 rwx"),
        (step, "l1: nested-unmap main"),
        (step, "l2: nested-unmap main 0x200000"),
        (step, "l1: invpcid some"),
        (step, "l1: invpcid single 4096"),
        (step, "l1: invvpid but-globl 1"),
        (step, "l1: invlpga 0x400000 65536"),
        ("enter l2 cr3=p", "enter l2 tlb=gast"),
        ("enter l2 cr3=p", "enter l2 asid=65536"),
        ("enter l2 cr3=p", "enter l2 nested=other"),
        ("read 0x400000 => 0x1234", "read 0x400000 => 1 | 2"),
        ("read 0x400000 => 0x1234", "read 0x400000 => may"),
        ("read 0x400000 => 0x1234", "read 0x400000 => may 1 |"),
        ("read 0x400000 => 0x1234", "read 0x400000 => may 1 | 1"),
        ("read 0x400000 => 0x1234", "read 0x400000 => never vmfail 7"),
    ]));
}

#[test]
fn matrix() {
    golden!(messages(&[
        ("at = [\"v5.17\"", "at = [\"v5.71\""),
        ("[\"RootRoleCheck\"]", "[\"RootRolCheck\"]"),
        ("tdp = [true, false]\nnested-tdp = [true, false]", "tdp = [false]\nnested-tdp = [true]"),
        ("with = [[], [\"RootRoleCheck\"]]", "with = [[\"RootRoleCheck\"], [\"RootRoleCheck\"]]"),
    ]));
}

#[test]
fn expectations() {
    golden!(messages(&[
        ("at = \"seed/07\", nested-tdp", "at = \"seed/7\", nested-tdp"),
        ("at = \"seed/07\", nested-tdp", "art = \"seed/07\", nested-tdp"),
        ("at = \"seed/07\", nested-tdp = false", "at = \"seed/07\", nested-tdp = 0"),
        ("at = \"seed/07\", nested-tdp = false", "at = \"seed/07\" nested-tdp = false"),
        ("\"*\"", "\"\""),
        ("coherent = false", "coherent = true"),
        ("first = \"enter l2\"", "first = \"entre l2\""),
        ("first = \"enter l2\"", "step = 8"),
        ("audit = \"root-role\"", "audit = 1"),
        ("audit = \"root-role\"", "role = \"0xg\""),
        ("audit = \"root-role\"", "budget.remote_flush = 1"),
        ("audit = \"root-role\"", "budget.page_faults = \"about 3\""),
    ]));
}

/// Many problems are found at once, in order, and the rest is counted.
#[test]
fn several_problems() {
    let three = GOOD
        .replace("+WP", "+WQ")
        .replace("l1: mov-cr3 a", "l1: mov-cr3 b")
        .replace("host: zap-gfn 0x200", "host: zap-gfm 0x200");
    let many = format!("{}{GOOD}", (0..50).map(|n| format!("k{n} = 1\n")).collect::<String>());
    let [three, many] = [three, many].map(|text| parse(&text).unwrap_err());
    golden!(format!("{three}\n\n{many}"));
}

/// Windows line ends change no place.
#[test]
fn carriage_returns() {
    let text = GOOD.replace("zap-gfn", "zap-gfm");
    let crlf = parse(&text.replace('\n', "\r\n")).unwrap_err();
    assert_eq!(crlf.to_string(), parse(&text).unwrap_err().to_string());
}

/// A fresh directory for a test's files.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bad_input").join(name);
    if path.exists() {
        fs::remove_dir_all(&path).expect("the last run's directory can be removed");
    }
    fs::create_dir_all(&path).expect("a directory can be made");
    path
}

fn load(path: &Path) -> Result<Scenario, Diagnostics> {
    file::load(path, POINTS, CHANGES)
}

/// The messages without the directory's path.
fn shown(directory: &Path, diagnostics: &Diagnostics) -> String {
    diagnostics
        .to_string()
        .replace(&format!("{}/", directory.display()), "")
        .replace(&directory.display().to_string(), ".")
}

fn including(name: &str) -> String {
    format!("include = [\"{name}\"]\n{GOOD}")
}

#[test]
fn includes() {
    let at = directory("includes");
    let mut out = String::new();
    for (name, text) in [
        ("loop.toml", including("b.toml")),
        ("b.toml", "include = [\"c.toml\"]".to_owned()),
        ("c.toml", "include = [\"./b.toml\"]".to_owned()),
        ("self.toml", including("self.toml")),
        ("missing.toml", including("nowhere.toml")),
        ("broken.toml", including("fragment.toml")),
        ("fragment.toml", "spice = 1\n[guest.l2]\nspace = 7".to_owned()),
        ("deep.toml", including("1.toml")),
    ] {
        fs::write(at.join(name), text).unwrap();
    }
    for depth in 1..12 {
        fs::write(at.join(format!("{depth}.toml")), format!("include = [\"{}.toml\"]", depth + 1)).unwrap();
    }
    for name in ["loop", "self", "missing", "broken", "deep"] {
        let diagnostics = load(&at.join(format!("{name}.toml"))).unwrap_err();
        out.push_str(&format!("## {name}\n{}\n", shown(&at, &diagnostics)));
    }
    golden!(out);
}

/// Files that are not text, not there, or far too large. The 100 MB are a hole: reading them would take their time.
#[test]
fn files() {
    let at = directory("files");
    fs::write(at.join("latin1.toml"), b"title = \"x\"\nabout = \"caf\xe9\"\n").unwrap();
    fs::write(at.join("first-byte.toml"), b"\xff\xfe").unwrap();
    fs::write(at.join("empty.toml"), b"").unwrap();
    fs::create_dir(at.join("directory.toml")).unwrap();
    File::create(at.join("junk.toml")).unwrap().set_len(100 << 20).unwrap();
    File::create(at.join("limit.toml")).unwrap().set_len((4 << 20) + 1).unwrap();
    let mut out = String::new();
    for name in ["latin1", "first-byte", "empty", "directory", "junk", "limit", "nowhere"] {
        let diagnostics = load(&at.join(format!("{name}.toml"))).unwrap_err();
        out.push_str(&format!("## {name}\n{}\n", shown(&at, &diagnostics)));
    }
    golden!(out);
}

/// Large files at the limit end with an error, whatever they are made of.
#[test]
fn large_junk_is_refused() {
    let size = 4 << 20;
    for (what, unit) in [
        ("zero bytes", "\0"),
        ("brackets", "["),
        ("nested inline tables", "a={"),
        ("dotted key", "a."),
        ("one dotted header", "[a."),
        ("keys", "k=1\n"),
        ("spaces", " "),
        ("comment", "#"),
        ("quotation marks", "\""),
        ("headers", "[[slot]]\n"),
    ] {
        let text = unit.repeat(size / unit.len());
        let diagnostics = parse(&text).expect_err(what);
        assert!(diagnostics.render(Colours::Plain).len() < 100_000, "{what}: the report is short");
    }
    for (what, key) in
        [("header", format!("[{}a]", "a. ".repeat(1_000_000))), ("quoted", format!("{}a=1", "'a'.".repeat(1_000_000)))]
    {
        assert!(parse(&key).is_err(), "{what}");
    }
}

/// A directory gives its scenarios in byte order, without what is only good for including.
#[test]
fn collecting() {
    let at = directory("collect");
    fs::create_dir_all(at.join("sub/empty")).unwrap();
    for (name, text) in [
        ("b.toml", GOOD),
        ("B.toml", GOOD),
        ("sub/a.toml", GOOD),
        ("sub/notes.txt", ""),
        ("common.toml", "[space.a]\nmode = \"pae\""),
        ("broken.toml", "="),
    ] {
        fs::write(at.join(name), text).unwrap();
    }
    let names: Vec<String> = file::collect(std::slice::from_ref(&at))
        .unwrap()
        .iter()
        .map(|path| path.strip_prefix(&at).unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["B.toml", "b.toml", "broken.toml", "sub/a.toml"]);
    let twice = file::collect(&[at.join("b.toml"), at.join("b.toml")]).unwrap();
    assert_eq!(twice, [at.join("b.toml")]);
    let empty = file::collect(&[at.join("sub/empty")]).unwrap_err();
    assert_eq!(
        shown(&at, &empty),
        "sub/empty:1:1: the directory holds no scenario (scenarios are files that end in .toml and have a title)"
    );
}
