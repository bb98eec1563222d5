//! Virtual interrupt control, the field at 060h: V_TPR, virtual interrupts, virtual GIF and virtual NMI (APM2 15.17,
//! 15.21, 15.33.2), and what becomes due between two instructions of a guest. Pure functions; [`crate::virt`] applies.

use crate::capability::{Capabilities, Features};
use crate::intercept::Intercepts;
use crate::unit::{Gif, Running};
use bitflags::bitflags;
use cpu::Core;
use cpu::core::{Blocking, PinEvents};
use serde::{Deserialize, Serialize};
use sim_core::arch::rflags::Rflags;

bitflags! {
    /// The single bits of the field.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct VirtualFlags: u64 {
        /// V_IRQ: a virtual interrupt is pending.
        const IRQ = 1 << 8;
        /// VGIF: the virtual GIF.
        const GIF = 1 << 9;
        /// V_NMI: a virtual NMI is pending.
        const NMI = 1 << 11;
        /// V_NMI_MASK: virtual NMIs are held until IRET.
        const NMI_MASK = 1 << 12;
        /// V_IGN_TPR: V_TPR does not hold the virtual interrupt back.
        const IGN_TPR = 1 << 20;
        /// V_INTR_MASKING: the guest's RFLAGS.IF and CR8 govern virtual interrupts only.
        const INTR_MASKING = 1 << 24;
        /// AMD virtual GIF enabled.
        const GIF_ENABLE = 1 << 25;
        /// V_NMI_ENABLE.
        const NMI_ENABLE = 1 << 26;
    }
}

/// Enables, and the capability without which the processor ignores each.
const ENABLES: [(VirtualFlags, Features); 2] =
    [(VirtualFlags::GIF_ENABLE, Features::VIRTUAL_GIF), (VirtualFlags::NMI_ENABLE, Features::VIRTUAL_NMI)];
/// V_TPR as far as it counts: bits 3:0.
const TPR_MASK: u64 = 0xf;
/// V_TPR whole.
const TPR_BYTE: u64 = 0xff;

/// The field at 060h while a guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VirtualInterrupts(pub u64);

impl VirtualInterrupts {
    /// What #VMEXIT writes back (APM2 15.6, 15.21.10, 15.33.2).
    pub(crate) const WRITTEN_BACK: u64 = TPR_BYTE
        | VirtualFlags::IRQ.bits()
        | VirtualFlags::GIF.bits()
        | VirtualFlags::NMI.bits()
        | VirtualFlags::NMI_MASK.bits();

    /// The field as a processor with these capabilities understands it.
    #[must_use]
    pub fn load(field: u64, capabilities: &Capabilities) -> Self {
        let lacking = ENABLES.iter().filter(|(_, feature)| !capabilities.has(*feature));
        Self(lacking.fold(field, |field, (enable, _)| field & !enable.bits()))
    }

    /// Whether all these bits are set.
    #[must_use]
    pub const fn has(self, flags: VirtualFlags) -> bool {
        self.0 & flags.bits() == flags.bits()
    }

    /// Sets or clears bits.
    pub const fn set(&mut self, flags: VirtualFlags, on: bool) {
        self.0 = if on { self.0 | flags.bits() } else { self.0 & !flags.bits() };
    }

    /// V_TPR, 0 to 15.
    #[must_use]
    pub const fn tpr(self) -> u8 {
        (self.0 & TPR_MASK) as u8
    }

    /// Sets V_TPR.
    pub const fn set_tpr(&mut self, tpr: u8) {
        self.0 = (self.0 & !TPR_BYTE) | (tpr as u64 & TPR_MASK);
    }

    /// V_INTR_PRIO, 0 to 15.
    #[must_use]
    pub const fn priority(self) -> u8 {
        ((self.0 >> 16) & 0xf) as u8
    }

    /// V_INTR_VECTOR.
    #[must_use]
    pub const fn vector(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// Whether a virtual interrupt waits that V_TPR lets through (APM2 15.21.4).
    #[must_use]
    pub const fn is_pending(self) -> bool {
        self.has(VirtualFlags::IRQ) && (self.has(VirtualFlags::IGN_TPR) || self.priority() > self.tpr())
    }

    /// Whether virtual NMIs are in use and one waits that may be taken.
    #[must_use]
    pub const fn is_nmi_pending(self) -> bool {
        self.has(VirtualFlags::NMI_ENABLE.union(VirtualFlags::NMI)) && !self.has(VirtualFlags::NMI_MASK)
    }

    /// The GIF that holds virtual events back: the virtual one where it is enabled.
    #[must_use]
    pub const fn gif(self, physical: Gif) -> Gif {
        match (self.has(VirtualFlags::GIF_ENABLE), self.has(VirtualFlags::GIF)) {
            (true, true) => Gif::Set,
            (true, false) => Gif::Clear,
            (false, _) => physical,
        }
    }
}

/// What becomes due before the next instruction of a guest, beside what the processor itself looks after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// A physical NMI while the guest's NMI mask is the virtual one.
    PhysicalNmi,
    /// A physical interrupt that the guest's RFLAGS.IF does not mask, because of V_INTR_MASKING.
    PhysicalInterrupt,
    /// A virtual NMI.
    Nmi,
    /// A virtual interrupt.
    Interrupt(u8),
}

/// The first of the events that are due, by priority (APM2 15.21.4: physical before virtual).
pub(crate) fn due(running: &Running, gif: Gif, core: &Core) -> Option<Due> {
    let word = running.virtual_interrupts;
    let enabled = core.rflags.contains(Rflags::IF);
    let shadow = core.blocking.intersects(Blocking::STI | Blocking::MOV_SS);
    let physical = gif == Gif::Set;
    let intercepts = running.controls.intercepts;
    let virtual_nmi = word.has(VirtualFlags::NMI_ENABLE);
    if physical
        && virtual_nmi
        && !running.host.nmi_blocked
        && core.pins.events.contains(PinEvents::NMI)
        && intercepts.contains(Intercepts::NMI)
    {
        return Some(Due::PhysicalNmi);
    }
    if physical && word.has(VirtualFlags::INTR_MASKING) && running.host.interrupts && core.pins.interrupt.is_some() {
        return Some(Due::PhysicalInterrupt);
    }
    if word.gif(gif) == Gif::Clear || shadow {
        return None;
    }
    if word.is_nmi_pending() {
        return Some(Due::Nmi);
    }
    (word.is_pending() && enabled).then_some(Due::Interrupt(word.vector()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// APM2 15.21.4: every priority against every V_TPR, with and without V_IGN_TPR and V_IRQ.
    #[test]
    fn priorities() {
        let mut cases = 0;
        for (priority, tpr) in (0..16_u64).flat_map(|priority| (0..16_u64).map(move |tpr| (priority, tpr))) {
            for (irq, ignores) in [(false, false), (false, true), (true, false), (true, true)] {
                let field = tpr | u64::from(irq) << 8 | priority << 16 | u64::from(ignores) << 20 | 0x77 << 32;
                let word = VirtualInterrupts(field);
                assert_eq!(word.is_pending(), irq && (ignores || priority > tpr), "{field:#x}");
                assert_eq!((word.tpr(), word.priority(), word.vector()), (tpr as u8, priority as u8, 0x77));
                cases += 1;
            }
        }
        println!("{cases} virtual interrupts against V_TPR");
    }

    /// Without the capability the enables read as zero.
    #[test]
    fn enables_need_capabilities() {
        let none = Capabilities { features: Features::empty(), ..Capabilities::default() };
        for (enable, _) in ENABLES {
            assert!(VirtualInterrupts::load(u64::MAX, &Capabilities::default()).has(enable));
            assert!(!VirtualInterrupts::load(u64::MAX, &none).has(enable));
        }
    }
}
