//! Which role words can exist at all.
//!
//! A page has its root's role but for what is its own ([`PageRole::PER_PAGE`]), and a root has a role that some registers give
//! (`mmu::audit::role_spec`). What is a page's own has rules too, a table of them. Only bits that the trace tells are judged.
//! Left out: kernels before v5.17, for which `role_spec` does not speak; roles of mirrored pages (TDX, bit 19).

use super::page::Seen;
use mmu::PageRole;
use mmu::audit::role_spec;
use mmu::change::{ChangeSet, POINTS, Point};
use std::collections::BTreeSet;

/// The oldest point of history that the rules of roles speak for.
const FIRST: &str = "v5.17";
/// Bits that have no field in any release that is modelled.
const UNNAMED: u32 = 0x00f8_0000;

/// The role words of a kernel.
#[derive(Clone, Debug)]
pub struct Words {
    /// Roots' roles; none where the kernel is too old to tell.
    roots: Option<BTreeSet<PageRole>>,
}

/// Whether the rules of roles speak for a point of history.
pub(super) fn is_covered(point: &Point) -> bool {
    point.lineage().iter().any(|before| before.name == FIRST)
}

/// The fields of a role that follow from registers, but for those of L2 and SMM.
const FROM_REGISTERS: u32 = !(PageRole::PER_PAGE.0 | PageRole(0).with_guest_mode(1).with_smm(0xff).0 | UNNAMED);

/// A rule about what is a page's own: the fields that it looks at, whether it is broken, and what is then wrong.
type Rule = (PageRole, fn(PageRole) -> bool, &'static str);

const RULES: &[Rule] = &[
    (PageRole(0xf), |role| !(1..=5).contains(&role.level()), "no page has such a level"),
    (
        PageRole(0).with_quadrant(3).with_has_4_byte_gpte(1).with_direct(1),
        |role| role.quadrant() != 0 && role.has_4_byte_gpte() == 0 && role.direct() == 0,
        "only halves of tables with 4-byte entries have a quadrant",
    ),
    (
        PageRole(0xf).with_quadrant(3),
        |role| role.level() == 1 && role.quadrant() > 1,
        "a page table with 4-byte entries has two halves",
    ),
    (
        PageRole(0xf).with_has_4_byte_gpte(1),
        |role| role.has_4_byte_gpte() == 1 && role.level() > 2,
        "tables with 4-byte entries have two levels",
    ),
    (
        PageRole(0xf).with_passthrough(1).with_direct(1),
        |role| role.passthrough() == 1 && (role.level() != 5 || role.direct() == 1),
        "only a shadowed table of level 5 passes through",
    ),
    (PageRole(0).with_smm(0xff), |role| role.smm() > 1, "`smm` is 0 or 1"),
    (
        PageRole(0).with_smm(0xff).with_guest_mode(1),
        |role| role.smm() != 0 && role.guest_mode() == 1,
        "L2 never runs in SMM",
    ),
    (PageRole(UNNAMED), |role| role.0 & UNNAMED != 0, "a bit is set that no field has"),
];

/// What is wrong with a role word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// In words.
    pub what: String,
    /// The nearest word that can exist, where registers would have to give another.
    pub nearest: Option<PageRole>,
}

impl Words {
    /// The words of a kernel, or of every kernel that is modelled.
    #[must_use]
    pub fn at(point: Option<&'static Point>) -> Self {
        let points = point.map_or_else(|| POINTS.iter().collect(), |point| vec![point]);
        let covered: Vec<_> = points.into_iter().filter(|point| is_covered(point)).collect();
        let mut roots = BTreeSet::new();
        let mut known: Vec<BTreeSet<PageRole>> = Vec::new();
        for point in &covered {
            let of_point = role_spec::possible_roots(ChangeSet::at(point));
            if !known.contains(&of_point) {
                roots.extend(of_point.iter().copied());
                known.push(of_point);
            }
        }
        Self { roots: (!covered.is_empty()).then_some(roots) }
    }

    /// Whether the kernel is one that registers can be judged for.
    #[must_use]
    pub const fn judges_registers(&self) -> bool {
        self.roots.is_some()
    }

    /// What is wrong with a role, if anything.
    #[must_use]
    pub fn wrong(&self, seen: Seen) -> Option<Wrong> {
        if let Some((_, _, what)) = RULES.iter().find(|(fields, broken, _)| seen.knows(*fields) && broken(seen.word)) {
            return Some(Wrong { what: (*what).to_owned(), nearest: None });
        }
        let roots = self.roots.as_ref()?;
        let fits = |root: &&PageRole| root.level() >= seen.word.level();
        // A direct page may lie below a shadowed table, not the other way round.
        let fits = |root: &&PageRole| fits(root) && (root.direct() == 0 || seen.word.direct() == 1);
        let judged = seen.known.0 & FROM_REGISTERS;
        let distance = |root: &PageRole| ((root.0 ^ seen.word.0) & judged).count_ones();
        let nearest = roots.iter().filter(fits).min_by_key(|root| distance(root))?;
        if distance(nearest) == 0 {
            return None;
        }
        let nearest = PageRole(seen.word.0 & !judged | nearest.0 & judged);
        let differs = nearest.difference(seen.word).join(" ");
        Some(Wrong {
            what: format!("no registers give such a role; the nearest differs in {differs}"),
            nearest: Some(nearest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_can_and_cannot_exist() {
        let words = Words::at(None);
        for word in
            [0x3704, 0x1704, 0xd704, 0x3781, 0x3501, 0x1782, 0x2_3704, 0x3_0704, 0x3784, 0x0783 | 1 << 16, 0x3731]
        {
            assert_eq!(words.wrong(Seen::whole(PageRole(word))), None, "{word:#x}");
            assert_eq!(words.wrong(Seen::in_text(PageRole(word))), None, "{word:#x}");
        }
        for (word, what) in [
            (0x3700, "level"),
            (0x3706, "level"),
            (0x3724, "quadrant"),
            (0x3771, "two halves"),
            (0x3714, "two levels"),
            (0x7704, "smep_andnot_wp"),
            (0x4_3704, "level 5"),
            (0x200_3704, "`smm`"),
            (0x102_3704, "SMM"),
            (0x8_3704, "no field"),
            (0x1_3704, "ad_disabled"),
        ] {
            let wrong = words.wrong(Seen::whole(PageRole(word))).unwrap();
            assert!(wrong.what.contains(what), "{word:#x}: {wrong:?}");
        }
        // The text hides the bits that are wrong here.
        assert_eq!(words.wrong(Seen::in_text(PageRole(0x7704))), None);
    }

    /// Of old kernels only a page's own fields are judged.
    #[test]
    fn old_kernels() {
        let words = Words::at(Point::by_name("v5.4"));
        assert!(!words.judges_registers());
        assert_eq!(words.wrong(Seen::whole(PageRole(0x7704))), None);
        assert!(words.wrong(Seen::whole(PageRole(0x3700))).is_some());
    }
}
