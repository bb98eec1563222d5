//! What the fields of the kernel's `kvmmmu` trace events are, as this kernel's own `format` files say, and the events in
//! the model's terms.

use super::ring::number;
use sim_core::addr::{Gfn, Hpa, Level};
use sim_core::event::{Event, PageView, RoleWord};
use std::collections::BTreeMap;

/// The events that the model has too.
pub(super) const EVENTS: [&str; 5] =
    ["kvm_mmu_get_page", "kvm_mmu_unsync_page", "kvm_mmu_sync_page", "kvm_mmu_prepare_zap_page", "kvm_mmu_set_spte"];

/// How an event lies in its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// Its name.
    pub(super) name: &'static str,
    /// Its number in the ring buffer.
    pub(super) id: u16,
    /// Offset and size, by name.
    fields: BTreeMap<String, (usize, usize)>,
}

impl Format {
    /// The format of an event, from its file.
    pub(super) fn parse(name: &'static str, text: &str) -> Option<Self> {
        let id = text.lines().find_map(|line| line.strip_prefix("ID: "))?.trim().parse().ok()?;
        let fields = text.lines().filter_map(|line| field(line.trim())).collect();
        Some(Self { name, id, fields })
    }

    /// The event in some bytes; none if it lies otherwise.
    pub(super) fn event(&self, bytes: &[u8]) -> Option<Event> {
        let field = |name: &str| self.fields.get(name).and_then(|(offset, size)| number(bytes, *offset, *size));
        let page = || {
            Some(PageView {
                generation: field("mmu_valid_gen")? as u8,
                gfn: Gfn(field("gfn")?),
                role: RoleWord(field("role")? as u32),
                root_count: field("root_count")? as u32,
                unsync: field("unsync")? != 0,
            })
        };
        Some(match self.name {
            "kvm_mmu_get_page" => Event::PageGet { page: page()?, created: field("created")? != 0 },
            "kvm_mmu_unsync_page" => Event::PageUnsync { page: page()? },
            "kvm_mmu_sync_page" => Event::PageSync { page: page()? },
            "kvm_mmu_prepare_zap_page" => Event::PageZap { page: page()? },
            "kvm_mmu_set_spte" => Event::SpteSet {
                gfn: Gfn(field("gfn")?),
                level: Level::from_number(field("level")? as u8)?,
                spte: field("spte")?,
                sptep: Hpa(field("sptep")?),
            },
            _ => return None,
        })
    }
}

/// `field:__u32 role; offset:24; size:4; signed:0;`
fn field(line: &str) -> Option<(String, (usize, usize))> {
    let mut parts = line.strip_prefix("field:")?.split(';').map(str::trim);
    let name = parts.next()?.rsplit([' ', '*']).next()?;
    let value = |part: Option<&str>, key: &str| part?.strip_prefix(key)?.parse().ok();
    let (offset, size) = (value(parts.next(), "offset:")?, value(parts.next(), "size:")?);
    Some((name.to_owned(), (offset, size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file and an event as a 6.18 kernel has them.
    #[test]
    fn bytes_become_events() {
        let text = "name: kvm_mmu_get_page\nID: 128\nformat:\n\
            \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
            \tfield:__u8 mmu_valid_gen;\toffset:8;\tsize:1;\tsigned:0;\n\
            \tfield:__u64 gfn;\toffset:16;\tsize:8;\tsigned:0;\n\
            \tfield:__u32 role;\toffset:24;\tsize:4;\tsigned:0;\n\
            \tfield:__u32 root_count;\toffset:28;\tsize:4;\tsigned:0;\n\
            \tfield:bool unsync;\toffset:32;\tsize:1;\tsigned:0;\n\
            \tfield:bool created;\toffset:33;\tsize:1;\tsigned:0;\n\nprint fmt: \"%s\", REC->role\n";
        let format = Format::parse("kvm_mmu_get_page", text).unwrap();
        assert_eq!(format.id, 128);
        let mut bytes = vec![0; 36];
        bytes[0] = 128;
        bytes[16] = 0x84;
        bytes[24..26].copy_from_slice(&0x3701_u16.to_le_bytes());
        (bytes[32], bytes[33]) = (1, 1);
        let page = PageView { generation: 0, gfn: Gfn(0x84), role: RoleWord(0x3701), root_count: 0, unsync: true };
        assert_eq!(format.event(&bytes), Some(Event::PageGet { page, created: true }));
        assert_eq!(format.event(&bytes[..33]), None);
        let without = text.replace("unsync", "other");
        assert_eq!(Format::parse("kvm_mmu_get_page", &without).unwrap().event(&bytes), None);
    }
}
