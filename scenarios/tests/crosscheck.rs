//! The model against this machine's own KVM: where there is one, and with the cargo feature `kvm`. Elsewhere each test says
//! that it is skipped, and why.

#![cfg(feature = "kvm")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use cpu::profile::TlbProfile;
use mmu::change::{Change, POINTS};
use scenarios::backend::kvm;
use scenarios::crosscheck::recording::{self, Recording};
use scenarios::crosscheck::{self, Answer, Engines, Here, Host, Inside, Row, View, campaign, random};
use scenarios::file::{self, RunConfig, Scenario, Vendor};
use std::path::Path;

/// This machine, if it has a KVM.
fn here() -> Option<Here> {
    match kvm_ioctls::Kvm::new() {
        Ok(kvm) => {
            Some(Here::of(&Host::find(&kvm).expect("what this KVM can do")).expect("the release of this kernel"))
        }
        Err(error) => {
            eprintln!("skipped: no /dev/kvm ({error})");
            None
        }
    }
}

/// What this KVM shows of the library's scenarios about translations, silicon can show.
#[test]
fn translations_agree() {
    let Some(here) = here() else { return };
    let points: Vec<_> = POINTS.iter().map(|point| point.name).collect();
    let changes: Vec<_> = Change::ALL.iter().map(|change| change.info().id).collect();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("library/tlb");
    let mut agreed = 0;
    for path in file::collect(&[directory]).unwrap() {
        let scenario = file::load(&path, &points, &changes).unwrap();
        for run in crosscheck::runs(&scenario, &here) {
            let row = crosscheck::check(&scenario, &run, &here).unwrap();
            assert!(!matches!(row.answer, Answer::Differs(_)), "{}: {row:#?}", path.display());
            assert!(!matches!(row.inside, Inside::Differs(_)), "{}: {row:#?}", path.display());
            agreed += usize::from(row.answer == Answer::Agrees);
        }
    }
    assert!(agreed >= 50, "only {agreed} runs could be judged");
}

/// Random scenarios, observations and what the MMUs did, of which there are only counts where there is no right to tracefs.
#[test]
fn random_scenarios_agree() {
    let Some(here) = here() else { return };
    for kind in [random::Kind::User, random::Kind::Walk] {
        let campaign = campaign::run(kind, 0..100, &here).unwrap();
        assert!(campaign.differ.is_empty() && campaign.unlike.is_empty(), "{campaign:#?}");
        assert_eq!(campaign.agreed, 100, "{campaign:#?}");
    }
}

/// A role bit, a rule about tables out of sync, and a permission, each wrong in the model: the kernel tells.
#[test]
fn planted_mistakes_are_caught() {
    let Some(here) = here() else { return };
    let sound = campaign::run(random::Kind::User, 0..60, &here).unwrap();
    if sound.inside == 0 {
        eprintln!("skipped: no inside view: {:?}", sound.not_compared);
        return;
    }
    for plant in ["role-forgets-wp", "no-unsync-mark-in-parents", "clean-is-writable"] {
        let wrong = Here { plants: vec![plant.to_owned()], ..here.clone() };
        let campaign = campaign::run(random::Kind::User, 0..60, &wrong).unwrap();
        assert!(!campaign.unlike.is_empty(), "{plant} was not noticed");
    }
}

/// A run as it comes back where there is no right to tracefs.
type Blind = (Scenario, RunConfig, Recording);

/// Random scenarios of user code without the kernel's events; nothing where this kernel has no statistics.
fn blind(here: &Here, count: u64) -> Vec<Blind> {
    let take = |seed| {
        let (scenario, run) = campaign::scenario(random::Kind::User, seed, here).expect("a scenario");
        let mut recording = recording::record(&scenario, &run).expect("a run");
        recording.inside = Err("tracefs is not mounted".to_owned());
        (scenario, run, recording)
    };
    let all: Vec<Blind> = (0..count).map(take).collect();
    match all.first().map(|(.., recording)| &recording.counted) {
        Some(Err(why)) => {
            eprintln!("skipped: {why}");
            Vec::new()
        }
        _ => all,
    }
}

fn judge((scenario, run, recording): &Blind, here: &Here) -> Row {
    crosscheck::judge(scenario, run, here, Ok(recording.clone())).expect("an answer")
}

/// What the kernel counts agrees, and the table says that it is all there is.
#[test]
fn statistics_alone_agree() {
    let Some(here) = here() else { return };
    for one in blind(&here, 100) {
        let row = judge(&one, &here);
        let Inside::Agrees(agreed, view) = &row.inside else { panic!("{row:#?}") };
        assert_eq!(*view, View::Statistics("tracefs is not mounted".to_owned()));
        assert!(agreed.counts > 0 && agreed.pages == 0, "{row:#?}");
    }
}

/// Mistakes that change how much is done show in the statistics.
#[test]
fn statistics_alone_catch_planted_mistakes() {
    let Some(here) = here() else { return };
    let all = blind(&here, 60);
    if all.is_empty() {
        return;
    }
    for plant in ["role-forgets-wp", "no-unsync-mark-in-parents", "clean-is-writable"] {
        let wrong = Here { plants: vec![plant.to_owned()], ..here.clone() };
        let caught = all.iter().filter(|one| matches!(judge(one, &wrong).inside, Inside::Differs(_))).count();
        assert!(caught > 0, "{plant} was not noticed");
    }
}

/// A guest that comes back neither on the kernel nor in the model agrees where the model can say why, and is not judged elsewhere.
#[test]
fn what_never_returns_needs_a_name() {
    let (points, changes): (Vec<_>, Vec<_>) =
        (POINTS.iter().map(|point| point.name).collect(), Change::ALL.iter().map(|change| change.info().id).collect());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("library/nested/vmx-unpaged-smep-hangs.toml");
    let scenario = file::load(&path, &points, &changes).unwrap();
    let stopped = Some(kvm::NO_GATE.to_owned());
    let recording = Recording { shown: Vec::new(), stopped, inside: Ok(Vec::new()), counted: Err("none".to_owned()) };
    let no_gate = Answer::Unjudged(kvm::NO_GATE.to_owned());
    for (point, expected) in [("v6.1.176", Answer::Agrees), ("v6.14", no_gate)] {
        let here = Here {
            engines: Engines::Hardware(Vendor::Intel),
            tdp: false,
            point: point.to_owned(),
            tlb: TlbProfile::Bochs,
            plants: Vec::new(),
        };
        let run = &crosscheck::runs(&scenario, &here)[0];
        let row = crosscheck::judge(&scenario, run, &here, Ok(recording.clone())).unwrap();
        let names: Vec<_> = row.known.iter().copied().collect();
        assert_eq!(names, if expected == Answer::Agrees { vec!["vmx-unpaged-smep"] } else { Vec::new() }, "{point}");
        assert_eq!(row.answer, expected, "{point}");
    }
}

/// A recording of before there were statistics is read, and says so.
#[test]
fn older_recordings_are_read() {
    let older = r#"{"shown":[],"stopped":null,"inside":{"Ok":[]}}"#;
    let recording: Recording = serde_json::from_str(older).unwrap();
    assert!(recording.counted.unwrap_err().contains("before statistics"));
}
