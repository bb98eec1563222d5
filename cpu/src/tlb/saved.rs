//! A TLB as a checkpoint holds it: the entries, in the order of their insertion.

use super::store::{Entry, Store};
use super::{CachedTable, GuestPhysical, Mapping, Tlb, TlbPolicy};
use crate::profile::TlbProfile;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(super) struct SavedTlb {
    profile: TlbProfile,
    policy: TlbPolicy,
    pages: Vec<Vec<Mapping>>,
    guest_physical: Vec<GuestPhysical>,
    tables: Vec<Vec<CachedTable>>,
    stage_tables: Vec<Vec<CachedTable>>,
}

fn save<E: Entry>(arrays: &[Store<E>]) -> Vec<Vec<E>> {
    arrays.iter().map(Store::entries).collect()
}

fn restore<E: Entry>(arrays: &mut [Store<E>], saved: Vec<Vec<E>>) {
    for (array, entries) in arrays.iter_mut().zip(saved) {
        entries.into_iter().for_each(|entry| array.restore(entry));
    }
}

impl From<Tlb> for SavedTlb {
    fn from(tlb: Tlb) -> Self {
        Self {
            profile: tlb.profile,
            policy: tlb.policy,
            pages: save(&tlb.pages),
            guest_physical: tlb.guest_physical.entries(),
            tables: save(&tlb.tables),
            stage_tables: save(&tlb.stage_tables),
        }
    }
}

impl From<SavedTlb> for Tlb {
    fn from(saved: SavedTlb) -> Self {
        let mut tlb = Self::new(saved.profile);
        tlb.policy = saved.policy;
        restore(&mut tlb.pages, saved.pages);
        saved.guest_physical.into_iter().for_each(|entry| tlb.guest_physical.restore(entry));
        restore(&mut tlb.tables, saved.tables);
        restore(&mut tlb.stage_tables, saved.stage_tables);
        tlb
    }
}
