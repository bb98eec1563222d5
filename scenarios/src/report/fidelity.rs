//! What the silicon models, clause by clause of the manuals: the tables that `cpu`, `vmx` and `svm` keep beside their
//! code, in columns, with totals a chapter.
//!
//! | column | meaning |
//! |---|---|
//! | section | the manual and its section; SDM 3C is numbered as in the editions up to 2023 |
//! | grade | modelled, simplified, not modelled |
//! | title | what the clause is about |
//! | note | what differs or is missing |

use serde_json::{Value, json};
use sim_core::fidelity::{Clause, Grade};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Every table with its subject.
pub const TABLES: [(&str, &[Clause]); 5] = [
    ("paging", cpu::fidelity::paging::CLAUSES),
    ("translation caches", cpu::fidelity::tlb::CLAUSES),
    ("processor", cpu::fidelity::processor::CLAUSES),
    ("VMX", vmx::fidelity::CLAUSES),
    ("SVM", svm::fidelity::CLAUSES),
];

/// How many clauses have each grade.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Modelled as the manual says.
    pub modelled: usize,
    /// Modelled with a difference.
    pub simplified: usize,
    /// Not modelled.
    pub missing: usize,
}

impl Count {
    const fn add(&mut self, grade: Grade) {
        match grade {
            Grade::Modelled => self.modelled += 1,
            Grade::Simplified => self.simplified += 1,
            Grade::NotModelled => self.missing += 1,
        }
    }
}

/// The manual and chapter of a section: `SDM 3A 4.10.4.1` is in `SDM 3A 4`. The chapter is the first number that is
/// not part of the manual's name.
#[must_use]
pub fn chapter(section: &str) -> &str {
    let is_number = |word: &str| word.chars().all(|letter| letter.is_ascii_digit() || ".,".contains(letter));
    let Some(number) = section.split(' ').find(|word| is_number(word)) else { return section };
    let (Some(at), digits) = (section.find(&format!(" {number}")), number.split(['.', ',']).next().unwrap_or(""))
    else {
        return section;
    };
    &section[..at + 1 + digits.len()]
}

/// The totals of each chapter, in the order of the manuals' names and chapter numbers.
#[must_use]
pub fn totals() -> Vec<(&'static str, Count)> {
    let mut totals: BTreeMap<(&str, u32, &str), Count> = BTreeMap::new();
    for clause in TABLES.iter().flat_map(|(_, clauses)| *clauses) {
        let chapter = chapter(clause.section);
        let (manual, number) = chapter.rsplit_once(' ').unwrap_or((chapter, ""));
        totals.entry((manual, number.parse().unwrap_or(0), chapter)).or_default().add(clause.grade);
    }
    totals.into_iter().map(|((_, _, chapter), count)| (chapter, count)).collect()
}

/// Columns for people.
#[must_use]
pub fn text() -> String {
    let clauses = || TABLES.iter().flat_map(|(_, clauses)| *clauses);
    let section = clauses().map(|clause| clause.section.chars().count()).max().unwrap_or(0);
    let title = clauses().map(|clause| clause.title.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (subject, clauses) in TABLES {
        let _ = writeln!(text, "{subject}");
        for clause in clauses {
            let row = format!(
                "  {:<section$}  {:<12}  {:<title$}  {}",
                clause.section, clause.grade, clause.title, clause.note
            );
            let _ = writeln!(text, "{}", row.trim_end());
        }
    }
    text.push_str("totals                modelled  simplified  not modelled\n");
    for (chapter, count) in totals() {
        let _ = writeln!(text, "  {chapter:<20}{:>8}{:>12}{:>14}", count.modelled, count.simplified, count.missing);
    }
    text
}

/// The same for programs.
#[must_use]
pub fn json() -> Value {
    let row = |subject: &str, clause: &Clause| {
        json!({
            "subject": subject,
            "section": clause.section,
            "grade": clause.grade.to_string(),
            "title": clause.title,
            "note": clause.note,
        })
    };
    let rows = TABLES.iter().flat_map(|(subject, clauses)| clauses.iter().map(move |clause| row(subject, clause)));
    let totals = totals().into_iter().map(|(chapter, count)| {
        json!({
            "chapter": chapter,
            "modelled": count.modelled,
            "simplified": count.simplified,
            "not-modelled": count.missing,
        })
    });
    json!({ "clauses": rows.collect::<Vec<_>>(), "totals": totals.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn chapters() {
        for (section, expected) in [
            ("SDM 3A 4.10.4.1", "SDM 3A 4"),
            ("SDM 3C 26", "SDM 3C 26"),
            ("APM2 15.25.6", "APM2 15"),
            ("SDM 2A INVLPG", "SDM 2A INVLPG"),
            ("SDM 3A 10.6, 10.8, 10.9", "SDM 3A 10"),
            ("SDM 3A 4.4 (since 2023)", "SDM 3A 4"),
            ("SDM 3C 30.3 INVEPT", "SDM 3C 30"),
            ("SDM 3A 6.15 interrupt 17", "SDM 3A 6"),
        ] {
            assert_eq!(chapter(section), expected);
        }
    }

    /// A rule is graded once a table, and what is not as the manual says is explained.
    #[test]
    fn tables_are_sound() {
        let mut clauses = 0;
        for (subject, table) in TABLES {
            let mut rules = BTreeSet::new();
            for clause in table {
                clauses += 1;
                let rule = (clause.section, clause.title);
                assert!(rules.insert(rule), "{subject}: {rule:?} twice");
                assert!(!clause.title.is_empty(), "{subject}: {} has no title", clause.section);
                let explained = clause.grade == Grade::Modelled || !clause.note.is_empty();
                assert!(explained, "{subject}: {} is {} without a note", clause.section, clause.grade);
            }
        }
        let counted =
            totals().iter().map(|(_, count)| count.modelled + count.simplified + count.missing).sum::<usize>();
        assert_eq!(counted, clauses);
        println!("fidelity clauses: {clauses}");
    }
}
