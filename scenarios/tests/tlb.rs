//! The TLB litmus library: one file a sentence of the manuals. On the bare machine every `may` is compared with the
//! whole permitted set; beside the hypervisor model, what the guest sees must fit it.

#![expect(clippy::unwrap_used, reason = "what can't be loaded fails the test")]

use scenarios::backend::Kind;
use scenarios::file::{self, Expected, Scenario};
use scenarios::replay::{self, Override};
use scenarios::report::table;
use scenarios::verdict::Judgement;
use sim_core::event::Detail;
use std::path::Path;

fn library() -> Vec<(String, Scenario)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("library/tlb");
    let load = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        (name, file::load(path, &[], &[]).unwrap())
    };
    file::collect(&[directory]).unwrap().iter().map(load).collect()
}

/// SDM 3A 4.10, 3C 28.3; APM2 5.5, 15.16, 15.25.
#[test]
fn bare_silicon_shows_exactly_what_is_permitted() {
    let files = library();
    let count = files.len();
    let change = Override { backend: Some(Kind::Bare), ..Override::default() };
    let replayed = replay::files(files, &change, Detail::Nothing);
    let runs: usize = replayed.iter().map(|file| file.verdicts.len()).sum();
    let outcomes = || replayed.iter().flat_map(|file| &file.verdicts).flat_map(|verdict| &verdict.outcome);
    let sets = outcomes().flat_map(|outcome| &outcome.shown).filter(|shown| shown.possible.is_some()).count();
    println!("TLB litmus files: {count} ({runs} runs, {sets} permitted sets)");
    assert_eq!(replay::worst(&replayed), Judgement::Holds, "{}", table::render(&replayed));
}

/// The hypervisor model may show less than bare silicon permits, never more; what it does not model is unjudged.
#[test]
fn the_hypervisor_model_shows_nothing_else() {
    let replayed = replay::files(library(), &Override::default(), Detail::Nothing);
    let verdicts = || replayed.iter().flat_map(|file| &file.verdicts);
    let count = |judgement| verdicts().filter(|verdict| verdict.judgement == judgement).count();
    println!("TLB litmus beside L0: {} hold, {} unjudged", count(Judgement::Holds), count(Judgement::Unjudged));
    assert_eq!(count(Judgement::Fails), 0, "{}", table::render(&replayed));
}

/// A file is named after its clause, says what it is about, and asks for a permitted set.
#[test]
fn files_are_explained() {
    for (name, scenario) in library() {
        assert!(name.starts_with("sdm-") || name.starts_with("apm-"), "{name}");
        assert!(scenario.about.as_ref().is_some_and(|about| about.trim().len() > 8), "{name} has no about");
        let asks = scenario.steps.iter().any(|step| matches!(step.expect, Some(Expected::May(_) | Expected::Never(_))));
        assert!(asks, "{name} asks for nothing");
    }
}
