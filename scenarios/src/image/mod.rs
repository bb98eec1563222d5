//! The guest image: what lies in guest memory before the first instruction runs. It depends on the scenario and on the
//! run's vendor and nested paging, never on the backend.

pub mod descriptors;
pub mod layout;
pub mod tables;

use crate::file::{Break, RunConfig, Scenario, Vendor};
use sim_core::{Gpa, SimError};
use std::collections::{BTreeMap, BTreeSet};
use tables::{NestedFormat, Tables};

/// The image of one run.
#[derive(Debug)]
pub struct Image {
    /// What to write, in order, as (address, bytes).
    pub contents: Vec<(Gpa, Vec<u8>)>,
    /// The CR3 of each address space.
    pub roots: BTreeMap<String, u64>,
    /// The roots of L1's nested tables by name, each in every format that L1 can need: EPT, or the paging format of each
    /// mode that it can be in (AMD).
    pub nested: BTreeMap<String, Vec<(NestedFormat, Gpa)>>,
    /// Every table, with what steps wrote since.
    pub tables: Tables,
}

impl Image {
    /// The PDPTEs that a PAE address space's root holds at the start.
    #[must_use]
    pub fn pdptes(&self, root: u64) -> [u64; 4] {
        [0, 1, 2, 3].map(|index| self.tables.first_value(Gpa((root & 0xffff_ffe0) + index * 8)))
    }

    /// Builds the image.
    ///
    /// # Errors
    /// If its page tables do not fit.
    pub fn build(scenario: &Scenario, run: &RunConfig) -> Result<Self, SimError> {
        let mut tables = Tables::default();
        let mut roots = BTreeMap::new();
        for (name, space) in &scenario.spaces {
            let root = match space.root {
                Some(root) => root,
                None => tables.space(space)?,
            };
            roots.insert(name.clone(), root.0 | u64::from(space.pcid.unwrap_or(0)));
        }
        let nested = nested(&mut tables, scenario, run)?;
        let mut contents = descriptors::all(scenario.machine.vcpus);
        contents.extend(tables.contents());
        if breaks(scenario, Break::Pdptes) {
            // Present, with the reserved bits 2:1 set (SDM 3A table 4-8).
            contents.push((layout::BAD_PDPTES, 0x7u64.to_le_bytes().repeat(4)));
        }
        if breaks(scenario, Break::MsrLoad) {
            // IA32_FS_BASE may not be loaded by VM entry (SDM 3C 26.4).
            contents.push((layout::MSR_AREA, 0xc000_0100u64.to_le_bytes().to_vec()));
        }
        contents.extend(scenario.memory.iter().map(|piece| (piece.at, piece.bytes.clone())));
        Ok(Self { contents, roots, nested, tables })
    }

    /// The root of L1's nested tables of a name in a format.
    #[must_use]
    pub fn nested_root(&self, name: &str, format: NestedFormat) -> Option<Gpa> {
        let roots = self.nested.get(name)?;
        roots.iter().find(|(other, _)| *other == format).map(|(_, root)| *root)
    }
}

type NestedRoots = BTreeMap<String, Vec<(NestedFormat, Gpa)>>;

fn nested(tables: &mut Tables, scenario: &Scenario, run: &RunConfig) -> Result<NestedRoots, SimError> {
    if !run.nested_tdp || scenario.guests.is_empty() {
        return Ok(BTreeMap::new());
    }
    let slots: Vec<Gpa> = scenario.slots.iter().map(|slot| slot.at).collect();
    let memory = scenario.machine.memory;
    let modes: BTreeSet<_> =
        scenario.spaces.values().map(|space| space.mode).filter(|mode| mode.has_paging()).collect();
    let formats: Vec<NestedFormat> = match run.vendor {
        Vendor::Intel => vec![NestedFormat::Ept],
        Vendor::Amd => modes.into_iter().map(NestedFormat::Paging).collect(),
    };
    let names: BTreeSet<&String> = scenario.guests.values().map(|guest| &guest.nested).collect();
    let mut roots = BTreeMap::new();
    for name in names {
        let built = formats.iter().map(|format| Ok((*format, tables.nested(*format, memory, &slots)?)));
        roots.insert(name.clone(), built.collect::<Result<Vec<_>, SimError>>()?);
    }
    Ok(roots)
}

/// Whether any guest, from the start or by a step, has this made bad.
fn breaks(scenario: &Scenario, what: Break) -> bool {
    use crate::file::{Action, GuestChange};
    let at_start = scenario.guests.values().any(|guest| guest.broken == Some(what));
    let by_step = scenario.steps.iter().any(|step| match &step.action {
        Action::Enter { changes, .. } => changes.contains(&GuestChange::Break(what)),
        _ => false,
    });
    at_start || by_step
}
