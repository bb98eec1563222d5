//! `docs/kvm-map.md` names functions that exist: each row's third column is a file and a function in it, or says that there
//! is none, and then the last column says why.

use std::fs;
use std::path::Path;

#[test]
fn every_named_function_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let map = fs::read_to_string(root.join("docs/kvm-map.md")).unwrap();
    let (mut found, mut left_out) = (0, 0);
    for line in map.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| KVM ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [kernel, _, here, remarks] = cells[..] else { panic!("four columns: {line}") };
        if here == "—" {
            assert!(!remarks.trim_matches('|').trim().is_empty(), "{kernel}: left out without a reason");
            left_out += 1;
            continue;
        }
        let names: Vec<&str> = here.split('`').filter(|part| !part.trim().is_empty()).collect();
        let [file, function] = names[..] else { panic!("a file and a function: {here}") };
        let source = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let defined = [format!("fn {function}("), format!("fn {function}<")];
        assert!(defined.iter().any(|text| source.contains(text)), "{kernel}: no {function} in {file}");
        found += 1;
    }
    println!("kvm-map: {found} rows are modelled, {left_out} left out");
    assert!(found > 80, "{found}");
}
