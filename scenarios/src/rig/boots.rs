//! Many jobs in few boots: what is done counts, and where a rig dies or hangs the next boot goes on behind the culprit.

use super::emulator::Emulator;
use super::job::{Header, Job, Message};
use super::{Kind, Rig};
use crate::crosscheck::recording::Recording;
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use std::collections::VecDeque;

/// Seconds in which a rig must be up: Bochs takes 20 to 40 of its own, and a busy machine gives it a tenth.
const BOOT_PATIENCE: i64 = 600;
/// Seconds that one job may take.
const JOB_PATIENCE: i64 = 120;
/// Boots that one call may take: so many jobs may kill their rig.
const MOST_BOOTS: usize = 8;

/// What came out of a rig.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// What the kernel said of itself.
    pub header: Header,
    /// What each job recorded, or why there is nothing, in their order.
    pub results: Vec<Result<Recording, String>>,
    /// How often the rig was booted.
    pub boots: usize,
    /// What it ran on.
    pub emulator: Kind,
}

/// What one boot brought.
#[derive(Debug, Default)]
struct Boot {
    header: Option<Header>,
    done: Vec<(usize, Result<Recording, String>)>,
    /// The job that was being taken when it ended, and why it ended; none if all is well.
    ended: Option<(Option<usize>, String)>,
}

/// Takes jobs in a rig, in as many boots as it needs.
///
/// # Errors
/// If the rig does not come up, or a rule of the simulator is broken.
pub fn take(rig: &Rig, jobs: &[Job]) -> Result<Taken, SimError> {
    take_by(rig.emulator, jobs, |jobs| boot(rig, jobs))
}

fn take_by(emulator: Kind, jobs: &[Job], boot: impl Fn(&[Job]) -> Result<Boot, SimError>) -> Result<Taken, SimError> {
    let mut results: Vec<Option<Result<Recording, String>>> = vec![None; jobs.len()];
    let mut waiting: VecDeque<usize> = (0..jobs.len()).collect();
    let mut header = None;
    let mut boots = 0;
    while (header.is_none() || !waiting.is_empty()) && boots < MOST_BOOTS {
        boots += 1;
        let list: Vec<Job> = waiting.iter().map(|index| jobs[*index].clone()).collect();
        let brought = boot(&list)?;
        for (place, result) in brought.done {
            if let Some(result_of) = waiting.get(place).and_then(|index| results.get_mut(*index)) {
                *result_of = Some(result);
            }
        }
        if header.is_none() {
            header = brought.header;
        }
        match brought.ended {
            None => {}
            Some((Some(place), why)) => {
                if let Some(result_of) = waiting.get(place).and_then(|index| results.get_mut(*index)) {
                    *result_of = Some(Err(format!("the rig died of it: {why}")));
                }
            }
            Some((None, why)) => return Err(SimError::unmodelled(format!("a rig that does not come up: {why}"))),
        }
        waiting.retain(|index| results[*index].is_none());
    }
    let header = header.ok_or_else(|| SimError::unmodelled("a rig that says nothing of itself"))?;
    let lost = || Err(format!("not taken: the rig died {MOST_BOOTS} times before"));
    let results = results.into_iter().map(|result| result.unwrap_or_else(lost)).collect();
    Ok(Taken { header, results, boots, emulator })
}

/// One boot, to its end.
fn boot(rig: &Rig, jobs: &[Job]) -> Result<Boot, SimError> {
    let mut emulator = Emulator::start(rig, jobs)?;
    let mut brought = Boot::default();
    let mut current = None;
    loop {
        let patience = if brought.header.is_some() { JOB_PATIENCE } else { BOOT_PATIENCE };
        match emulator.next(patience)? {
            Ok(Message::Up(header)) => brought.header = Some(header),
            Ok(Message::Begin(place)) => current = Some(place),
            Ok(Message::Done(place, result)) => {
                brought.done.push((place, result));
                // Between two jobs the next is to blame.
                current = Some(place + 1);
            }
            Ok(Message::End) => return Ok(brought),
            Ok(Message::Failed(why)) | Err(why) => {
                brought.ended = Some((current, why));
                return Ok(brought);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::kvm::Abilities;
    use crate::crosscheck::recording::Counted;
    use crate::crosscheck::{Engines, Host};
    use std::collections::BTreeMap;

    fn header() -> Option<Header> {
        let host = Host {
            release: "6.1".to_owned(),
            build: String::new(),
            engines: Engines::Split,
            tdp: false,
            abilities: Abilities::default(),
        };
        Some(Header { host, parameters: BTreeMap::new() })
    }

    fn recording() -> Recording {
        Recording { shown: Vec::new(), stopped: None, inside: Ok(Vec::new()), counted: Ok(Counted::default()) }
    }

    /// A rig that dies of jobs whose name begins with `bad`, and loses the frame of those that begin with `lost` at its first
    /// boot only.
    fn rig(jobs: &[Job], first: bool) -> Boot {
        let mut boot = Boot { header: header(), ..Boot::default() };
        for (place, job) in jobs.iter().enumerate() {
            if job.name.starts_with("bad") {
                boot.ended = Some((Some(place), "it ended".to_owned()));
                return boot;
            }
            if !(first && job.name.starts_with("lost")) {
                boot.done.push((place, Ok(recording())));
            }
        }
        boot
    }

    fn take(names: &[&str]) -> Result<Taken, SimError> {
        let jobs: Vec<Job> = names.iter().map(|name| Job { name: (*name).to_owned(), text: String::new() }).collect();
        let boots = std::cell::Cell::new(0);
        take_by(Kind::Bochs, &jobs, |jobs| {
            boots.set(boots.get() + 1);
            Ok(rig(jobs, boots.get() == 1))
        })
    }

    #[test]
    fn a_culprit_costs_one_boot_and_itself() {
        let taken = take(&["a", "bad", "c", "bad2", "e"]).unwrap();
        let there: Vec<bool> = taken.results.iter().map(Result::is_ok).collect();
        assert_eq!((taken.boots, there), (3, vec![true, false, true, false, true]));
    }

    #[test]
    fn a_lost_frame_is_taken_again() {
        let taken = take(&["a", "lost", "c"]).unwrap();
        assert!(taken.boots == 2 && taken.results.iter().all(Result::is_ok));
    }

    #[test]
    fn boots_are_bounded() {
        let taken = take(&["bad"; 20]).unwrap();
        assert_eq!(taken.boots, MOST_BOOTS);
        assert!(matches!(&taken.results[19], Err(why) if why.starts_with("not taken")));
    }

    #[test]
    fn no_boot_is_an_error() {
        let ended = Some((None, "no word".to_owned()));
        let dead = take_by(Kind::Bochs, &[], |_| Ok(Boot { ended: ended.clone(), ..Boot::default() }));
        assert!(matches!(dead, Err(SimError::Unmodelled { .. })));
    }
}
