//! The permission maps: IOPM (APM2 15.10.1) and MSRPM (APM2 15.11), bitmaps in physical memory.

use sim_core::Hpa;
use sim_core::memory::PhysMem;

/// The I/O permission map's size: three pages, so that an access at port FFFFh has bits for all its bytes.
pub(crate) const IOPM_BYTES: u64 = 0x3000;
/// The MSR permission map's size.
pub(crate) const MSRPM_BYTES: u64 = 0x2000;
/// MSRs a vector of the map covers.
const VECTOR_MSRS: u32 = 0x2000;
/// The first MSR of each vector; a vector takes 800h bytes.
const VECTORS: [u32; 3] = [0x0000_0000, 0xc000_0000, 0xc001_0000];

/// Which access to an MSR, with its bit in a pair of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MsrAccess {
    Read = 0,
    Write = 1,
}

/// Whether any byte of an I/O access has its bit set. The low 12 bits of the base are ignored.
pub(crate) fn io_intercepted(mem: &PhysMem, iopm: Hpa, port: u16, bytes: u8) -> bool {
    (0..u32::from(bytes)).any(|byte| {
        let port = u32::from(port) + byte;
        mem.read(iopm.page_base().offset(u64::from(port / 8)), 1) & (1 << (port % 8)) != 0
    })
}

/// Whether an MSR access has its bit set; an MSR outside the map is always intercepted.
pub(crate) fn msr_intercepted(mem: &PhysMem, msrpm: Hpa, index: u32, access: MsrAccess) -> bool {
    let place = VECTORS.iter().enumerate().find_map(|(vector, first)| {
        let offset = index.checked_sub(*first)?;
        (offset < VECTOR_MSRS).then_some(vector as u32 * VECTOR_MSRS + offset)
    });
    place.is_none_or(|msr| {
        let byte = mem.read(msrpm.page_base().offset(u64::from(msr / 4)), 1);
        byte & (1 << (2 * (msr % 4) + access as u32)) != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// APM2 15.11: where the bit of an MSR is.
    #[test]
    fn msr_bits() {
        let map = Hpa(0x1000);
        for (index, byte, bit) in [
            (0x0000_0000, 0x0000, 0),
            (0x0000_0174, 0x005d, 0),
            (0x0000_1fff, 0x07ff, 6),
            (0xc000_0080, 0x0820, 0),
            (0xc000_0102, 0x0840, 4),
            (0xc001_0114, 0x1045, 0),
        ] {
            for (access, extra) in [(MsrAccess::Read, 0), (MsrAccess::Write, 1)] {
                let mut mem = PhysMem::new(4);
                assert!(!msr_intercepted(&mem, map, index, access));
                mem.write(map.offset(byte), 1 << (bit + extra), 1);
                assert!(msr_intercepted(&mem, map, index, access), "{index:#x} {access:?}");
            }
        }
        let mem = PhysMem::new(4);
        for index in [0x2000, 0xbfff_ffff, 0xc000_2000, 0xc001_2000] {
            assert!(msr_intercepted(&mem, map, index, MsrAccess::Read), "{index:#x} is outside the map");
        }
    }

    /// APM2 15.10.1: an access is intercepted if any of its bytes is.
    #[test]
    fn io_bits() {
        let map = Hpa(0x1000);
        for marked in [0_u32, 7, 0x80, 0xffff, 0x1_0000] {
            let mut mem = PhysMem::new(8);
            mem.write(map.offset(u64::from(marked / 8)), 1 << (marked % 8), 1);
            for port in marked.saturating_sub(5)..=(marked + 1).min(0xffff) {
                for bytes in [1_u8, 2, 4] {
                    let covered = (port..port + u32::from(bytes)).contains(&marked);
                    assert_eq!(io_intercepted(&mem, map, port as u16, bytes), covered, "{port:#x}+{bytes}");
                }
            }
        }
    }
}
