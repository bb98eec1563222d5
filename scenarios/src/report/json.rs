//! The verdicts as JSON, for other programs: one object a run, the same facts as the table and more of each finding.

use crate::engine::transparency::{Difference, Transparency};
use crate::file::Observation;
use crate::replay::Replayed;
use crate::verdict::Verdict;
use mmu::audit::Finding;
use serde_json::{Map, Value, json};

/// All runs as one JSON array.
#[must_use]
pub fn render(replayed: &[Replayed]) -> Value {
    Value::Array(replayed.iter().flat_map(|file| file.verdicts.iter().map(move |verdict| one(file, verdict))).collect())
}

fn one(file: &Replayed, verdict: &Verdict) -> Value {
    let run = &verdict.run;
    let findings: Vec<Value> = verdict.kinds().values().map(|finding| finding_json(file, verdict, finding)).collect();
    let (observations, state, cycles) = match &verdict.outcome {
        Ok(outcome) => (
            outcome
                .shown
                .iter()
                .map(|shown| json!({ "step": shown.number, "saw": shown.observed.to_string() }))
                .collect(),
            Some(format!("{:016x}", outcome.state)),
            Some(outcome.cycles),
        ),
        Err(_) => (Vec::new(), None, None),
    };
    let counted = verdict.outcome.iter().flat_map(|outcome| outcome.stats.nonzero());
    let stats: Map<String, Value> = counted.map(|(stat, count)| (stat.name().to_owned(), count.into())).collect();
    let mut object = json!({
        "scenario": file.name,
        "title": file.scenario.title,
        "vendor": run.vendor.name(),
        "tdp": run.tdp,
        "nested-tdp": run.nested_tdp,
        "vpid": run.vpid,
        "at": run.at,
        "with": run.with,
        "without": run.without,
        "order": run.order,
        "verdict": super::table::summary(verdict),
        "judgement": verdict.judgement.to_string(),
        "failures": verdict.failures,
        "findings": findings,
        "transparency": verdict.transparency.as_ref().map(|transparency| transparency_json(file, transparency)),
        "observations": observations,
        "state": state,
        "cycles": cycles,
        "stats": stats,
    });
    if let Some(backend) = file.backend {
        object["backend"] = backend.name().into();
    }
    object
}

fn transparency_json(file: &Replayed, transparency: &Transparency) -> Value {
    let texts = |all: &[Observation]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    match transparency {
        Transparency::Transparent { known } => json!({ "holds": true, "known": known }),
        Transparency::Unjudged { judged, error } => json!({ "judged-steps": judged, "why": error.to_string() }),
        Transparency::Differs(difference) => {
            let Difference { number, index, seen, bare, model } = &**difference;
            json!({
                "holds": false,
                "step": number,
                "step-text": file.scenario.steps.get(*index).map(|step| step.text.as_str()),
                "saw": seen.to_string(),
                "bare-can-show": texts(bare),
                "hypervisor-can-show": texts(model),
            })
        }
    }
}

fn finding_json(file: &Replayed, verdict: &Verdict, finding: &Finding) -> Value {
    json!({
        "audit": finding.audit.name(),
        "invariant": finding.audit.id(),
        "step": finding.step,
        "step-text": verdict.step_text(&file.scenario, finding),
        "vcpu": finding.vcpu,
        "checkpoint": format!("{:?}", finding.moment).to_lowercase(),
        "mmu": finding.mmu.to_string(),
        "what": finding.what,
        "role": finding.roles.map(|roles| roles.expected.to_string()),
        "root-role": finding.roles.map(|roles| roles.actual.to_string()),
        "role-text": finding.roles.map(|roles| roles.expected.describe()),
        "root-role-text": finding.roles.map(|roles| roles.actual.describe()),
        "differs": finding.difference(),
        "root": finding.root.to_string(),
        "pgd": format!("{:#x}", finding.pgd),
        "slot": finding.slot,
        "requests": finding.requests,
        "guest-mode": finding.nesting == mmu::state::Nesting::L2,
        "smm": finding.smm == mmu::state::Smm::Inside,
        "known": finding.known,
        "recent": super::log::lines(&finding.recent),
    })
}
