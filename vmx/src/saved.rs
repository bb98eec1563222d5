//! How a decoded VMX instruction is saved in a checkpoint. The types are the CPU's, which does not save them itself.

use cpu::Gpr;
use cpu::virt::{VirtInstruction, VirtTarget};
use serde::{Deserialize, Serialize};
use sim_core::Gva;

#[derive(Serialize, Deserialize)]
#[serde(remote = "VirtTarget")]
enum Target {
    Register(Gpr),
    Memory(Gva),
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "VirtInstruction")]
enum Instruction {
    Vmxon(u64),
    Vmclear(u64),
    Vmptrld(u64),
    Vmptrst(#[serde(with = "Target")] VirtTarget),
    Vmread {
        field: u64,
        #[serde(with = "Target")]
        target: VirtTarget,
    },
    Vmwrite {
        field: u64,
        value: u64,
    },
    Vmlaunch,
    Vmresume,
    Vmxoff,
    Vmcall,
    Invept {
        kind: u64,
        descriptor: [u64; 2],
    },
    Invvpid {
        kind: u64,
        descriptor: [u64; 2],
    },
    Vmrun(u64),
    Vmload(u64),
    Vmsave(u64),
    Stgi,
    Clgi,
    Vmmcall,
    Invlpga {
        address: Gva,
        asid: u32,
    },
}

/// An instruction that may be absent.
pub(crate) mod option {
    use super::{Instruction, VirtInstruction};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Wrapped(#[serde(with = "Instruction")] VirtInstruction);

    pub(crate) fn serialize<S: Serializer>(value: &Option<VirtInstruction>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(Wrapped).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(source: D) -> Result<Option<VirtInstruction>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(source)?.map(|wrapped| wrapped.0))
    }
}
