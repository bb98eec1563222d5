//! The local APIC in x2APIC mode, as far as interprocessor interrupts need it (SDM 3A 10.12; APM2 16.9): identification,
//! task and processor priority, interrupt command, end of interrupt, self-IPI, the in-service and request registers.
//!
//! What it sends waits in an outbox until whoever drives several processors delivers it ([`crate::smp`]). The xAPIC page,
//! the timer and the other local vectors, lowest-priority delivery and error interrupts are left out: the MSRs of the
//! local vectors say so by name, and the page is ordinary memory.

use crate::core::Core;
use crate::exec::Fault;
use serde::{Deserialize, Serialize};
use sim_core::arch::exception::Exception;

/// IA32_APIC_BASE: x2APIC mode, and the APIC is on.
const EXTENDED: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;

/// The MSRs of x2APIC mode.
pub const FIRST_MSR: u32 = 0x800;
/// The last of them.
pub const LAST_MSR: u32 = 0x8ff;

/// The registers that a processor's local APIC has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Apic {
    /// The x2APIC ID.
    pub id: u32,
    /// Interrupts requested, one bit a vector.
    pub requested: [u64; 4],
    /// Interrupts in service.
    pub in_service: [u64; 4],
    /// Bits 3:0 of the task priority; its class is CR8.
    pub subclass: u8,
    /// The spurious-interrupt vector register; bit 8 turns the APIC on by software.
    pub spurious: u32,
    /// What is sent and not delivered yet, oldest first.
    pub outbox: Vec<Message>,
}

/// Who gets a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Destination {
    /// The sender.
    Itself,
    /// Every processor.
    All,
    /// Every processor but the sender.
    Others,
    /// The processor with this APIC ID.
    Physical(u32),
    /// The processors of a cluster, bits 31:16, that bits 15:0 name (SDM 3A 10.12.10.2).
    Logical(u32),
}

/// What a message does at its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Signal {
    /// A maskable interrupt.
    Fixed(u8),
    /// NMI.
    Nmi,
    /// SMI.
    Smi,
    /// INIT.
    Init,
    /// A start-up IPI.
    StartUp(u8),
}

/// An interprocessor interrupt under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who gets it.
    pub to: Destination,
    /// What it does there.
    pub signal: Signal,
}

/// The highest vector set.
fn highest(bits: &[u64; 4]) -> Option<u8> {
    let word = (0..4).rev().find(|word| bits[*word] != 0)?;
    Some((64 * word + 63 - bits[word].leading_zeros() as usize) as u8)
}

const fn bit(vector: u8) -> (usize, u64) {
    ((vector >> 6) as usize, 1 << (vector & 63))
}

impl Apic {
    /// The logical x2APIC ID (SDM 3A 10.12.10.2).
    #[must_use]
    pub const fn logical_id(&self) -> u32 {
        ((self.id >> 4) << 16) | (1 << (self.id & 0xf))
    }

    /// Whether a message from the processor with APIC ID `from` is for this one.
    #[must_use]
    pub const fn is_addressed(&self, to: Destination, from: u32) -> bool {
        match to {
            Destination::Itself => self.id == from,
            Destination::All => true,
            Destination::Others => self.id != from,
            Destination::Physical(id) => id == self.id || id == u32::MAX,
            Destination::Logical(mask) => {
                let own = self.logical_id();
                mask == u32::MAX || (mask >> 16 == own >> 16 && mask & own & 0xffff != 0)
            }
        }
    }

    /// Requests a maskable interrupt.
    pub const fn request(&mut self, vector: u8) {
        let (word, mask) = bit(vector);
        self.requested[word] |= mask;
    }

    fn task_priority(&self, class: u8) -> u8 {
        (class << 4) | (self.subclass & 0xf)
    }

    /// The processor priority (SDM 3A 10.8.3.1).
    fn processor_priority(&self, class: u8) -> u8 {
        let task = self.task_priority(class);
        let service = highest(&self.in_service).unwrap_or(0);
        if task >> 4 >= service >> 4 { task } else { service & 0xf0 }
    }
}

impl Core {
    /// The maskable interrupt that the task and processor priority let through: the local APIC's, else the one at
    /// [`Pins::interrupt`](crate::core::Pins::interrupt), which only the task priority holds back.
    #[must_use]
    pub fn waiting_interrupt(&self) -> Option<u8> {
        let apic = &self.apic;
        let own = highest(&apic.requested).filter(|vector| vector >> 4 > apic.processor_priority(self.cr8) >> 4);
        own.or_else(|| self.pins.interrupt.filter(|vector| vector >> 4 > self.cr8))
    }
}

/// Takes the waiting interrupt: the local APIC's goes into service. What an extension does that acknowledges an
/// interrupt on exit (SDM 3C 27.2.2).
pub fn acknowledge(core: &mut Core) -> Option<u8> {
    let vector = core.waiting_interrupt()?;
    let (word, mask) = bit(vector);
    if core.apic.requested[word] & mask != 0 {
        core.apic.requested[word] &= !mask;
        core.apic.in_service[word] |= mask;
    } else {
        core.pins.interrupt = None;
    }
    Some(vector)
}

/// INIT keeps the APIC ID and what is under way to others.
pub(crate) fn init(core: &mut Core) {
    let apic = &mut core.apic;
    *apic = Apic { id: apic.id, spurious: 0xff, outbox: std::mem::take(&mut apic.outbox), ..Apic::default() };
}

/// Whether the MSRs of x2APIC mode exist now.
pub(crate) const fn is_x2apic(core: &Core) -> bool {
    core.msrs.apic_base & (EXTENDED | ENABLED) == EXTENDED | ENABLED
}

fn words(bits: &[u64; 4], index: u32) -> u64 {
    let word = bits[(index / 2) as usize & 3];
    if index.is_multiple_of(2) { word & 0xffff_ffff } else { word >> 32 }
}

/// RDMSR of a register of x2APIC mode (SDM 3A table 10-6).
pub(crate) fn read(core: &Core, index: u32) -> Result<u64, Fault> {
    if !is_x2apic(core) {
        return Err(Exception::gp0().into());
    }
    let apic = &core.apic;
    Ok(match index {
        0x802 => apic.id.into(),
        0x803 => 0x0005_0014,
        0x808 => apic.task_priority(core.cr8).into(),
        0x80a => apic.processor_priority(core.cr8).into(),
        0x80d => apic.logical_id().into(),
        0x80f => apic.spurious.into(),
        0x810..=0x817 => words(&apic.in_service, index - 0x810),
        0x818..=0x81f | 0x828 => 0,
        0x820..=0x827 => words(&apic.requested, index - 0x820),
        0x830 => 0,
        0x82f | 0x832..=0x839 | 0x83e => return Err(Fault::unmodelled("local vector table and timer of the APIC")),
        _ => return Err(Exception::gp0().into()),
    })
}

/// WRMSR of a register of x2APIC mode: reserved bits and read-only registers are #GP(0).
pub(crate) fn write(core: &mut Core, index: u32, value: u64) -> Result<(), Fault> {
    if !is_x2apic(core) {
        return Err(Exception::gp0().into());
    }
    let fits = |mask: u64| if value & !mask == 0 { Ok(()) } else { Err(Fault::from(Exception::gp0())) };
    match index {
        0x808 => {
            fits(0xff)?;
            core.cr8 = (value >> 4) as u8;
            core.apic.subclass = (value & 0xf) as u8;
        }
        0x80b => {
            fits(0)?;
            if let Some(vector) = highest(&core.apic.in_service) {
                let (word, mask) = bit(vector);
                core.apic.in_service[word] &= !mask;
            }
        }
        0x80f => {
            fits(0x11ff)?;
            core.apic.spurious = value as u32;
        }
        0x828 => fits(0)?,
        0x830 => command(core, value)?,
        0x83f => {
            fits(0xff)?;
            core.apic.request(value as u8);
        }
        0x82f | 0x832..=0x839 | 0x83e => return Err(Fault::unmodelled("local vector table and timer of the APIC")),
        _ => return Err(Exception::gp0().into()),
    }
    Ok(())
}

/// The interrupt command register: vector 7:0, delivery mode 10:8, logical 11, level 14, trigger 15, shorthand 19:18,
/// destination 63:32 (SDM 3A 10.12.9).
fn command(core: &mut Core, value: u64) -> Result<(), Fault> {
    const RESERVED: u64 = 0xfff3_2000;
    if value & RESERVED != 0 {
        return Err(Exception::gp0().into());
    }
    let vector = value as u8;
    let field = (value >> 32) as u32;
    let to = match ((value >> 18) & 3, value & (1 << 11) != 0) {
        (0, false) => Destination::Physical(field),
        (0, true) => Destination::Logical(field),
        (1, _) => Destination::Itself,
        (2, _) => Destination::All,
        _ => Destination::Others,
    };
    let signal = match (value >> 8) & 7 {
        0 => Signal::Fixed(vector),
        2 => Signal::Smi,
        4 => Signal::Nmi,
        5 if value & (1 << 14) == 0 => return Ok(()), // INIT level de-assert does nothing (SDM 3A 10.6.1).
        5 => Signal::Init,
        6 => Signal::StartUp(vector),
        mode => return Err(Fault::unmodelled(format!("delivery mode {mode} of the interrupt command register"))),
    };
    match (to, signal) {
        (Destination::Itself, Signal::Fixed(vector)) => core.apic.request(vector),
        _ => core.apic.outbox.push(Message { to, signal }),
    }
    Ok(())
}
