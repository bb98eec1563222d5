//! Whether an access is allowed by a guest translation, decided from the MMU's stored CPU role and never from the
//! vCPU's registers (`permission_fault`, kvm-mmu.md A.2.4). A stale role therefore means stale permissions.
//!
//! Left out: protection keys (`pkru_mask`), which KVM offers only with two-dimensional paging, where the processor itself
//! checks them.

use crate::role::{ACCESS_EXEC, ACCESS_USER, ACCESS_WRITE, CpuRole, ExtRole};
use crate::state::Paging;
use serde::{Deserialize, Serialize};
use sim_core::arch::exception::PageFaultError;

/// An access as the walker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// W, U and F of the error code that the access would have.
    pub error: PageFaultError,
    /// EFLAGS.AC is set and the access is explicit, so SMAP does not apply.
    pub smap_suppressed: bool,
}

/// Whether the access faults on a page with these permissions.
#[must_use]
pub fn faults(paging: Paging, role: CpuRole, access: u32, attempt: Attempt) -> bool {
    let Attempt { error, smap_suppressed } = attempt;
    let (write, user, fetch) =
        (error.contains(PageFaultError::W), error.contains(PageFaultError::U), error.contains(PageFaultError::F));
    let lacks = |bit: u32| access & bit == 0;
    if paging == Paging::Ept {
        return (write && lacks(ACCESS_WRITE)) || (user && lacks(ACCESS_USER)) || (fetch && lacks(ACCESS_EXEC));
    }
    let supervisor_on_user_page = !user && !lacks(ACCESS_USER);
    let smep = role.ext.contains(ExtRole::CR4_SMEP) && fetch;
    let smap = role.ext.contains(ExtRole::CR4_SMAP) && !fetch && !smap_suppressed;
    (write && lacks(ACCESS_WRITE) && (user || role.base.cr0_wp() == 1))
        || (user && lacks(ACCESS_USER))
        || (fetch && lacks(ACCESS_EXEC) && role.base.efer_nx() == 1)
        || (supervisor_on_user_page && (smep || smap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::PageRole;

    /// SDM 3A 4.6.1, sentence by sentence, over every access mask, access and role bit.
    fn architecture(access: u32, attempt: Attempt, [wp, nx, smep, smap]: [bool; 4]) -> bool {
        let user_page = access & ACCESS_USER != 0;
        let writable = access & ACCESS_WRITE != 0;
        let executable = access & ACCESS_EXEC != 0 || !nx;
        let fetch = attempt.error.contains(PageFaultError::F);
        let write = attempt.error.contains(PageFaultError::W);
        let allowed = if attempt.error.contains(PageFaultError::U) {
            user_page && (!write || writable) && (!fetch || executable)
        } else if fetch {
            executable && !(smep && user_page)
        } else {
            let smap_ok = !user_page || !smap || attempt.smap_suppressed;
            smap_ok && (!write || writable || !wp)
        };
        !allowed
    }

    #[test]
    fn agrees_with_the_manual_everywhere() {
        let mut cases = 0;
        for access in 0..8 {
            for bits in 0..0x80u32 {
                let bit = |n: u32| bits >> n & 1 == 1;
                let mut error = PageFaultError::empty();
                error.set(PageFaultError::U, bit(0));
                match bits >> 1 & 3 {
                    1 => error |= PageFaultError::W,
                    2 => error |= PageFaultError::F,
                    _ => {}
                }
                let attempt = Attempt { error, smap_suppressed: bits & 1 == 0 && bit(3) };
                for smap in [false, true] {
                    let (wp, nx, smep) = (bit(4), bit(5), bit(6));
                    let base = PageRole(0).with_cr0_wp(u32::from(wp)).with_efer_nx(u32::from(nx));
                    let mut ext = ExtRole::VALID;
                    ext.set(ExtRole::CR4_SMEP, smep);
                    ext.set(ExtRole::CR4_SMAP, smap);
                    let got = faults(Paging::Paging64, CpuRole { base, ext }, access, attempt);
                    assert_eq!(got, architecture(access, attempt, [wp, nx, smep, smap]), "{access} {attempt:?}");
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 8 * 128 * 2);
    }
}
