//! The segment registers of the guest-state area (SDM 3C 24.4.1): which fields belong to which register.

use super::{Field, Region};
use cpu::core::Segments;
use sim_core::Ground;
use sim_core::arch::segment::{Rights, Segment};

macro_rules! segments {
    ($($name:ident $slot:ident: $selector:ident $base:ident $limit:ident $rights:ident;)*) => {
        /// A segment register.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the names are the registers'")]
        pub enum SegmentName {
            $($name,)*
        }

        impl SegmentName {
            /// Every segment register.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The fields: selector, base, limit, access rights.
            #[must_use]
            pub const fn fields(self) -> [Field; 4] {
                match self {
                    $(Self::$name => [Field::$selector, Field::$base, Field::$limit, Field::$rights],)*
                }
            }

            /// The register in the processor.
            #[must_use]
            pub const fn of(self, segments: &Segments) -> &Segment {
                match self {
                    $(Self::$name => &segments.$slot,)*
                }
            }

            /// The register in the processor, to be changed.
            pub const fn of_mut(self, segments: &mut Segments) -> &mut Segment {
                match self {
                    $(Self::$name => &mut segments.$slot,)*
                }
            }
        }
    };
}

segments! {
    Es es: GuestEsSelector GuestEsBase GuestEsLimit GuestEsRights;
    Cs cs: GuestCsSelector GuestCsBase GuestCsLimit GuestCsRights;
    Ss ss: GuestSsSelector GuestSsBase GuestSsLimit GuestSsRights;
    Ds ds: GuestDsSelector GuestDsBase GuestDsLimit GuestDsRights;
    Fs fs: GuestFsSelector GuestFsBase GuestFsLimit GuestFsRights;
    Gs gs: GuestGsSelector GuestGsBase GuestGsLimit GuestGsRights;
    Ldtr ldtr: GuestLdtrSelector GuestLdtrBase GuestLdtrLimit GuestLdtrRights;
    Tr tr: GuestTrSelector GuestTrBase GuestTrLimit GuestTrRights;
}

impl SegmentName {
    /// The register as the guest-state area holds it.
    #[must_use]
    pub fn load(self, region: Region, ground: &Ground) -> Segment {
        self.load_with(|field| region.get(ground, field))
    }

    /// The register as fields from wherever they are hold it.
    pub(crate) fn load_with(self, get: impl FnMut(Field) -> u64) -> Segment {
        let [selector, base, limit, rights] = self.fields().map(get);
        Segment { selector: selector as u16, base, limit: limit as u32, rights: Rights(rights as u32) }
    }

    /// Writes the register to the guest-state area.
    pub fn save(self, region: Region, ground: &mut Ground, segment: &Segment) {
        let values = [u64::from(segment.selector), segment.base, u64::from(segment.limit), u64::from(segment.rights.0)];
        for (field, value) in self.fields().into_iter().zip(values) {
            region.set(ground, field, value);
        }
    }
}
