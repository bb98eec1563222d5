//! Every planted mistake of the hypervisor is noticed by a scenario of the library: by an audit, by what the guest sees, or
//! by what the scenario records, in a step, a budget, and a golden of its transitions.

#![expect(clippy::unwrap_used, reason = "what can't be loaded fails the test")]

use mmu::change::{Change, POINTS};
use mmu::plant::Plant;
use scenarios::engine;
use scenarios::file::{self, RunConfig, Scenario};
use scenarios::plants::{self, Caught, Witness};
use scenarios::report::log;
use sim_core::event::Detail;
use std::collections::BTreeMap;
use std::path::Path;

/// Mistakes that no scenario notices, with the reason. A row that is noticed after all fails the test.
const SLIP_THROUGH: &[(&str, &str)] = &[(
    "init-keeps-tlb",
    "an INIT that leaves paging behind also gives up the roots, and loading one flushes; without paging nothing is stale",
)];

/// Which scenario notices which mistake, as `rolecall plants scenarios/library/mechanisms scenarios/library/nested` finds by trying
/// them all.
const NOTICED_BY: &[(&str, &str)] = &[
    ("no-flush-after-write-protect", "clean-large-page"),
    ("no-flush-after-drop", "move-page-of-l2"),
    ("no-flush-after-migration", "migrate-in-l2"),
    ("keep-asid-on-migration", "migrate-in-l2"),
    ("no-flush-at-new-generation", "asid-generation"),
    ("keep-asid-of-old-generation", "asid-generation"),
    ("no-flush-without-vpid02", "vpid-exhausted"),
    ("invpcid-current-only", "invpcid-address"),
    ("pcid-flush-current-only", "invpcid-single"),
    ("guest-flush-keeps-prev-roots", "invpcid-all"),
    ("no-reset-after-set-sregs", "access-tracking"),
    ("no-reset-after-set-efer", "set-efer-keeps-pdptes"),
    ("smm-changed-without-reset", "smi-in-vmx-operation"),
    ("smm-slots-for-all", "smm-slot-without-tdp"),
    ("smi-keeps-guest-mode", "signals-intercepted-by-l1"),
    ("rsm-forgets-l2", "signals-intercepted-by-l1"),
    ("init-keeps-mmu", "init-vcpu"),
    ("cpuid-keeps-roles", "set-cpuid"),
    ("no-zap-at-invalidation", "move-page-of-l2"),
    ("no-zap-after-slot-move", "fault-overtaken-by-zap-all"),
    ("shared-vpid", "no-vpids"),
    ("no-notifier-retry", "notifier-retry"),
    ("no-dirty-mark", "age-tracked"),
    ("mmio-any-generation", "mmio-entry"),
    ("no-protect-after-dirty-log", "dirty-log-by-hardware"),
    ("no-flush-for-dirty-log", "age-tracked"),
    ("clear-dirty-of-l2", "dirty-log-of-l2-with-pml"),
    ("pml-not-drained", "dirty-log-by-hardware"),
    ("no-flush-after-tracking", "age-tracked"),
    ("change-pte-keeps-write", "change-page"),
    ("no-flush-after-change-pte", "change-page"),
    ("fast-ignores-promise", "large-pages"),
    ("fast-forgets-dirty", "age-tracked"),
    ("unsync-upper-tables", "ept-violation-while-emulating-before"),
    ("no-unsync-mark-in-parents", "fault-overtaken-by-table-write"),
    ("link-forgets-unsync", "flush-of-a-hit-table"),
    ("link-without-sync", "link-sync"),
    ("no-sync-on-hit", "hit-on-unsync-table"),
    ("no-protect-before-sync", "invept-of-small-pages"),
    ("no-flush-after-sync", "flush-of-a-hit-table"),
    ("sync-keeps-dropped", "flush-of-a-hit-table"),
    ("sync-writes-clean", "migrate-in-l2"),
    ("no-write-protect", "clean-large-page"),
    ("no-unaccount", "fault-overtaken-by-zap-all"),
    ("table-write-unseen", "ept-violation-while-emulating-before"),
    ("one-spte-of-two", "two-halves-of-a-directory-entry"),
    ("zap-keeps-parents", "nested-orphans"),
    ("no-reload-after-root-zap", "write-across-entries"),
    ("no-reload-after-zap-all", "fault-overtaken-by-zap-all"),
    ("drop-keeps-rmap", "change-page"),
    ("unlink-keeps-parent", "clean-large-page"),
    ("keep-nested-orphans", "nested-orphans"),
    ("no-gpte-recheck", "fault-overtaken-after-walk"),
    ("recheck-leaf-only", "fault-overtaken-after-walk"),
    ("invlpg-current-only", "invpcid-address"),
    ("large-over-shadowed-table", "large-pages"),
    ("large-while-logged", "split-large-page"),
    ("split-repeats-frame", "large-page-of-a-logged-slot"),
    ("keep-direct-child", "clean-large-page"),
    ("prefetch-not-accessed", "age-page"),
    ("prefetch-while-logged", "dirty-log-of-l2"),
    ("role-forgets-wp", "access-tracking"),
    ("lookup-ignores-role", "counters"),
    ("lookup-ignores-pgd", "asid-generation"),
    ("no-pgd-write", "access-tracking"),
    ("root-keeps-count", "clear-nxe-without-tdp"),
    ("wp0-keeps-user", "rights-of-upper-entries"),
    ("clean-is-writable", "age-page"),
    ("private-for-l2", "rights-of-upper-entries"),
    ("write-read-only-slot", "emulator-reads-wp"),
    ("quadrant-zero", "five-levels"),
    ("no-accessed-flag", "age-page"),
    ("cr8-of-the-processor", "task-priority"),
    ("ept-violation-wrong-rights", "ept-violation-while-emulating-before"),
    ("ignores-msrpm", "l1-permission-maps"),
    ("ignores-iopm", "l1-permission-maps"),
    ("pf-filter-not-merged", "l1-interception"),
    ("nested-walk-skips-stage", "emulated-behind-nested-tables"),
    ("retry-without-guard", "table-writers"),
    ("transition-flush-missing", "emulated-behind-nested-tables"),
    ("invept-frees-nothing", "invept-of-small-pages"),
    ("invvpid-frees-nothing", "invvpid-of-l2"),
    ("host-state-keeps-cr4", "invlpg-over-cached-64-bit-root"),
    ("nx-huge-page-executable", "nx-huge-pages"),
    ("nx-recovery-skips", "nx-recovery"),
    ("requests-cross-contexts", "flush-before-leaving-l2"),
    ("init-keeps-limits", "set-cpuid"),
    ("shadow-not-copied", "shadow-vmcs"),
    ("shadow-not-filled", "shadow-vmcs"),
    ("pml5-not-linked", "five-levels"),
    ("passthrough-forgotten", "five-levels"),
    ("limit-ignored", "page-limit"),
    ("direct-table-unaligned", "emulated-behind-nested-tables"),
    ("emulator-keeps-wp", "emulator-reads-wp"),
    ("access-not-inherited", "flooded-table"),
];

fn library(folder: &str) -> Vec<(String, Scenario)> {
    let points: Vec<_> = POINTS.iter().map(|point| point.name).collect();
    let changes: Vec<_> = Change::ALL.iter().map(|change| change.info().id).collect();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("library").join(folder);
    let load = |path: &std::path::PathBuf| {
        (path.file_stem().unwrap().to_string_lossy().into_owned(), file::load(path, &points, &changes).unwrap())
    };
    file::collect(&[directory]).unwrap().iter().map(load).collect()
}

/// What neither an audit nor the guest can notice, such as work done twice, a golden does: the transitions of the sound run,
/// for people to read, which the mistake changes.
fn golden_notices(files: &[(String, Scenario)], plant: Plant, caught: &Caught) {
    let scenario = &files.iter().find(|(name, _)| *name == caught.scenario).unwrap().1;
    let sound = RunConfig { plants: Vec::new(), ..caught.run.clone() };
    let transitions = |run: &RunConfig| log::render(&engine::run(scenario, run, Detail::Transitions).unwrap().records);
    let text = transitions(&sound);
    assert_ne!(text, transitions(&caught.run), "{}", plant.name());
    insta::with_settings!({ snapshot_path => "../../snapshots/golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(caught.scenario.as_str(), format!("{}\n{sound}\n{text}", scenario.title));
    });
}

/// Each mistake is planted where it is known to be noticed; one that is known nowhere, and those that slip through, everywhere.
#[test]
fn every_planted_mistake_is_noticed() {
    let files: Vec<_> = ["mechanisms", "nested"].into_iter().flat_map(library).collect();
    let unknown = NOTICED_BY.iter().find(|(name, _)| Plant::ALL.iter().all(|plant| plant.name() != *name));
    assert_eq!(unknown, None, "a mistake that there is not");
    let mut by: BTreeMap<&str, u32> = BTreeMap::new();
    let mut unnoticed = Vec::new();
    for plant in Plant::ALL {
        let place = NOTICED_BY.iter().find(|(name, _)| *name == plant.name()).map(|(_, place)| *place);
        let place: Vec<_> = files.iter().filter(|(name, _)| place.is_none_or(|place| name == place)).cloned().collect();
        let rows = plants::all(&place, &[*plant]);
        match &rows[0].caught {
            Some(caught) => {
                assert!(place.len() == 1, "{} is noticed by {}: put it into the table", plant.name(), caught.scenario);
                *by.entry(caught.by.name()).or_default() += 1;
                if caught.by == Witness::Expectation {
                    golden_notices(&files, *plant, caught);
                }
            }
            None => unnoticed.push(plant.name()),
        }
    }
    println!("planted mistakes: {} of {} noticed, by {by:?}", Plant::ALL.len() - unnoticed.len(), Plant::ALL.len());
    let expected: Vec<_> = SLIP_THROUGH.iter().map(|(name, _)| *name).collect();
    assert_eq!(unnoticed, expected);
}
