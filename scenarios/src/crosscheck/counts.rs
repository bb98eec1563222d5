//! What the kernel counted (KVM_GET_STATS_FD), held against what the model's hypervisor would tell: a second view of what the MMUs did,
//! and the only one where there is no right to tracefs.
//!
//! [`TABLE`] says which counts are compared. Where all of the guest runs on the processor they are the same after every step. A KVM
//! that emulates the guest's kernel makes no shadow page for it, so there are no more of them than the model has; and what user code
//! alone brings about is the same.

use super::pages::Unlike;
use super::recording::Counted;
use super::sequence::TdpZaps;
use super::{Engines, Here};
use mmu::stats::Stat;

/// How a count is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Both have the same.
    Same,
    /// The kernel has no more than the model, and the same on top in a step of user code behind another one.
    Steps,
    /// Not at all.
    Not,
}

use How::{Not, Same, Steps};

/// A count, how it is compared where everything runs on the processor, and how where the guest's kernel is emulated.
struct Row(Stat, How, How);

/// What is not compared has its reason beside it.
const TABLE: [Row; 23] = [
    Row(Stat::ShadowZapped, Same, Steps),
    // The emulator tells the MMU of every store of the guest's kernel.
    Row(Stat::PteWrite, Same, Not),
    Row(Stat::PdeZapped, Same, Same),
    Row(Stat::Flooded, Same, Same),
    Row(Stat::Recycled, Same, Same),
    Row(Stat::CacheMiss, Same, Steps),
    Row(Stat::Unsync, Same, Same),
    Row(Stat::Pages4k, Same, Steps),
    Row(Stat::Pages2m, Same, Same),
    Row(Stat::Pages1g, Same, Same),
    Row(Stat::NxSplits, Same, Same),
    Row(Stat::PfTaken, Same, Steps),
    Row(Stat::PfFixed, Same, Steps),
    Row(Stat::PfEmulate, Same, Same),
    Row(Stat::PfSpurious, Same, Same),
    Row(Stat::PfFast, Same, Same),
    Row(Stat::PfMmioSpteCreated, Same, Same),
    Row(Stat::PfGuest, Same, Same),
    Row(Stat::Invlpg, Same, Same),
    Row(Stat::NestedRun, Same, Same),
    // A vCPU that goes to another processor flushes too; a remote flush counts only where another processor is interrupted for it.
    Row(Stat::TlbFlush, Not, Not),
    Row(Stat::RemoteTlbFlush, Not, Not),
    Row(Stat::RemoteTlbFlushRequests, Not, Not),
];

/// Counts of what the TDP MMU maps, which goes later where it zaps later.
const MAPPED: [Stat; 4] = [Stat::Pages4k, Stat::Pages2m, Stat::Pages1g, Stat::NxSplits];
/// Counts that depend on entries for MMIO, which a KVM that emulates the guest's kernel does not keep (`mmio_caching`).
const MMIO: [Stat; 3] = [Stat::PfMmioSpteCreated, Stat::PfTaken, Stat::PfEmulate];

/// How a count is compared in a run.
fn how(Row(stat, by_hardware, split): &Row, model: &Counted, here: &Here) -> How {
    let left_out: &[Stat] = match here.engines {
        Engines::Hardware(_) if here.rules().zaps == TdpZaps::Later => &MAPPED,
        Engines::Split if model.series(Stat::PfMmioSpteCreated).is_some_and(|made| made.last() != Some(&0)) => &MMIO,
        Engines::Hardware(_) | Engines::Split => &[],
    };
    match here.engines {
        _ if left_out.contains(stat) => Not,
        Engines::Hardware(_) => *by_hardware,
        Engines::Split => *split,
    }
}

/// A count of both sides after a step, and what came on top in that step, where both were settled before it.
struct Moment {
    step: usize,
    kernel: u64,
    model: u64,
    more: Option<(i64, i64)>,
}

impl Moment {
    fn agrees(&self, how: How) -> bool {
        match how {
            Same => self.kernel == self.model,
            Steps => self.kernel <= self.model && self.more.is_none_or(|(kernel, model)| kernel == model),
            Not => true,
        }
    }

    fn unlike(&self, stat: Stat) -> Unlike {
        let text = |count: u64, more: Option<i64>| {
            let more = more.map_or_else(String::new, |more| format!(" ({more:+})"));
            format!("{} {count}{more}", stat.name())
        };
        Unlike {
            kernel: format!("step {}: {}", self.step, text(self.kernel, self.more.map(|more| more.0))),
            model: text(self.model, self.more.map(|more| more.1)),
        }
    }
}

/// The moments at which both sides are settled; none if this kernel does not tell such a count.
fn moments(kernel: &Counted, model: &Counted, settled: &[bool], stat: Stat) -> Vec<Moment> {
    let (Some(kernel), Some(model)) = (kernel.series(stat), model.series(stat)) else { return Vec::new() };
    let at = |step: usize| Some((*kernel.get(step)?, *model.get(step)?)).filter(|_| settled.get(step) == Some(&true));
    let moment = |step: usize| {
        let (kernel, model) = at(step)?;
        let before = step.checked_sub(1).and_then(at);
        let more = before.map(|(theirs, ours)| (kernel.wrapping_sub(theirs) as i64, model.wrapping_sub(ours) as i64));
        Some(Moment { step, kernel, model, more })
    };
    (0..settled.len()).filter_map(moment).collect()
}

/// Compares counts at the moments at which both are settled, and says how many agree.
///
/// # Errors
/// The first one that does not.
pub fn compare(kernel: &Counted, model: &Counted, settled: &[bool], here: &Here) -> Result<usize, Unlike> {
    let mut agreed = 0;
    let mut first: Option<(Stat, Moment)> = None;
    for row in TABLE {
        let how = how(&row, model, here);
        let moments = if how == Not { Vec::new() } else { moments(kernel, model, settled, row.0) };
        for moment in moments {
            if moment.agrees(how) {
                agreed += 1;
            } else if first.as_ref().is_none_or(|(_, first)| moment.step < first.step) {
                first = Some((row.0, moment));
            }
        }
    }
    match first {
        None => Ok(agreed),
        Some((stat, moment)) => Err(moment.unlike(stat)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpu::profile::TlbProfile;
    use std::collections::BTreeMap;

    fn here(engines: Engines) -> Here {
        Here { engines, tdp: false, point: "v6.18".to_owned(), tlb: TlbProfile::Base, plants: Vec::new() }
    }

    fn counted(stat: Stat, values: &[u64]) -> Counted {
        let told: Vec<_> = values.iter().map(|value| BTreeMap::from([(stat, *value)])).collect();
        Counted::of(&told)
    }

    #[test]
    fn each_kind_of_count_is_compared_its_way() {
        use crate::file::Vendor;
        let (hardware, split) = (Engines::Hardware(Vendor::Amd), Engines::Split);
        let all: &[bool] = &[true; 4];
        let some: &[bool] = &[false, true, false, true];
        let ours = [0, 2, 3, 5];
        for (engines, stat, theirs, settled, expected) in [
            (hardware, Stat::CacheMiss, [0, 2, 3, 5], all, Ok(4)),
            (hardware, Stat::CacheMiss, [0, 2, 4, 4], all, Err("step 2: mmu_cache_miss 4 (+2)")),
            (hardware, Stat::CacheMiss, [0, 2, 4, 5], some, Ok(2)),
            (hardware, Stat::TlbFlush, [9, 9, 9, 9], all, Ok(0)),
            (split, Stat::CacheMiss, [0, 1, 2, 4], all, Err("step 1: mmu_cache_miss 1 (+1)")),
            (split, Stat::CacheMiss, [0, 1, 2, 4], some, Ok(2)),
            (split, Stat::CacheMiss, [0, 1, 2, 6], some, Err("step 3: mmu_cache_miss 6")),
            (split, Stat::CacheMiss, [0, 2, 2, 4], all, Err("step 2: mmu_cache_miss 2 (+0)")),
            (split, Stat::PteWrite, [7, 9, 12, 12], all, Ok(0)),
            (split, Stat::Unsync, [0, 1, 3, 5], some, Err("step 1: mmu_unsync 1")),
        ] {
            let compared = compare(&counted(stat, &theirs), &counted(stat, &ours), settled, &here(engines));
            let told = compared.as_ref().map(|count| *count).map_err(|unlike| unlike.kernel.as_str());
            assert_eq!(told, expected, "{engines:?} {} {theirs:?}", stat.name());
        }
    }

    /// Where the model keeps MMIO entries, a KVM that keeps none takes more page faults.
    #[test]
    fn entries_for_mmio_are_left_out_where_there_are_none() {
        let told = |taken, made| BTreeMap::from([(Stat::PfTaken, taken), (Stat::PfMmioSpteCreated, made)]);
        let model = Counted::of(&[told(0, 0), told(1, 1), told(1, 1)]);
        let kernel = Counted::of(&[told(0, 0), told(1, 0), told(2, 0)]);
        assert_eq!(compare(&kernel, &model, &[true; 3], &here(Engines::Split)), Ok(0));
        assert!(compare(&kernel, &model, &[true; 3], &here(Engines::Hardware(crate::file::Vendor::Amd))).is_err());
    }

    /// What a kernel does not tell is no difference, and counts for nothing.
    #[test]
    fn what_is_not_told_is_not_compared() {
        let kernel = counted(Stat::Unsync, &[0, 0]);
        let model = counted(Stat::CacheMiss, &[0, 3]);
        assert_eq!(compare(&kernel, &model, &[true, true], &here(Engines::Split)), Ok(0));
    }
}
