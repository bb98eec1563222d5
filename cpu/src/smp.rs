//! Several logical processors: delivering what their local APICs have sent (SDM 3A 8.4, 10.6).
//!
//! Whoever drives the processors decides when: between two steps of any of them. A message is delivered to every
//! processor that it names before the next one, in the order of sending, processors in the order given.

use crate::apic::{Message, Signal};
use crate::core::{Activity, Core, PinEvents};

/// Delivers everything that waits in the outboxes. Messages that nobody answers to are lost, as on a bus.
pub fn deliver(cores: &mut [&mut Core]) {
    for sender in 0..cores.len() {
        let from = cores[sender].apic.id;
        for message in std::mem::take(&mut cores[sender].apic.outbox) {
            for core in cores.iter_mut().filter(|core| core.apic.is_addressed(message.to, from)) {
                receive(core, message);
            }
        }
    }
}

/// A start-up IPI counts only while the processor waits for one, or will after an INIT that is pending (SDM 3A 8.4.4.1).
fn receive(core: &mut Core, message: Message) {
    match message.signal {
        Signal::Fixed(vector) => core.apic.request(vector),
        Signal::Nmi => core.pins.events.insert(PinEvents::NMI),
        Signal::Smi => core.pins.events.insert(PinEvents::SMI),
        Signal::Init => core.pins.events.insert(PinEvents::INIT),
        Signal::StartUp(vector) => {
            if core.activity == Activity::WaitForSipi {
                core.pins.sipi = Some(vector);
            }
        }
    }
}
