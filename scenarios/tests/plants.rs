//! Planted faults: every mistake that the hypervisor can be made to make is noticed by the scenario that stands beside it
//! here, in at least one of its runs; and without a mistake every one of those scenarios is as expected.

#![expect(clippy::unwrap_used, reason = "what can't be loaded fails the test")]

use mmu::change::{Change, POINTS};
use mmu::plant::Plant;
use rayon::prelude::*;
use scenarios::file;
use scenarios::replay::{self, Override, Replayed};
use scenarios::report::table;
use scenarios::verdict::Judgement;
use sim_core::event::Detail;
use std::path::Path;

/// Each mistake, and the scenario of `library/mechanisms` that notices it.
const NOTICED: &[(Plant, &str)] = &[
    (Plant::NoFlushAfterMigration, "migrate"),
    (Plant::KeepAsidOnMigration, "migrate"),
    (Plant::NoFlushAtNewGeneration, "asid-generation"),
    (Plant::KeepAsidOfOldGeneration, "asid-generation"),
    (Plant::NoFlushWithoutVpid02, "vpid-exhausted"),
    (Plant::InvpcidCurrentOnly, "invpcid-address"),
    (Plant::PcidFlushCurrentOnly, "invpcid-single"),
    (Plant::GuestFlushKeepsPrevRoots, "invpcid-all"),
    (Plant::SharedVpid, "tags-are-apart"),
];

fn replayed(name: &str, plants: Vec<String>) -> Replayed {
    let points: Vec<_> = POINTS.iter().map(|point| point.name).collect();
    let changes: Vec<_> = Change::ALL.iter().map(|change| change.info().id).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("library/mechanisms/{name}.toml"));
    let scenario = file::load(&path, &points, &changes).unwrap();
    replay::file(name.to_owned(), scenario, &Override { plants, ..Override::default() }, Detail::Nothing)
}

#[test]
fn every_mechanism_is_as_expected() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("library/mechanisms");
    let names = file::collect(&[directory]).unwrap();
    let names: Vec<_> = names.iter().map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    let replayed: Vec<_> = names.par_iter().map(|name| replayed(name, Vec::new())).collect();
    assert_eq!(replay::worst(&replayed), Judgement::Holds, "{}", table::render(&replayed));
}

#[test]
fn planted_faults_are_noticed() {
    let missed: Vec<_> = NOTICED
        .par_iter()
        .filter(|(plant, name)| {
            let verdicts = replayed(name, vec![plant.name().to_owned()]).verdicts;
            !verdicts.iter().any(|verdict| verdict.judgement == Judgement::Fails)
        })
        .collect();
    assert!(missed.is_empty(), "nobody notices {missed:?}");
}
