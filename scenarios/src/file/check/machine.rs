//! Checks of the machine: main memory, slots, address spaces with their maps, and first contents of memory.

use super::super::diagnostics::{Fault, count, quote};
use super::super::schema::{DirectMmuName, HostPages, MachineTable, Marked, SlotTable, SpaceTable, TlbName};
use super::super::space::{Contents, Machine, Mapping, Slot, Space, check_mapping, parse_contents, parse_mapping};
use super::super::words::size;
use super::Checker;
use cpu::profile::TlbProfile;
use mmu::state::{AccessedDirty, Config, Contention, DirectMmu, FlushOnReuse, NxHugePages, Pml, ShadowVmcsMode};
use sim_core::Gpa;
use sim_core::addr::{Level, PAGE_BYTES};
use std::collections::BTreeMap;
use vmx::controls::SecondaryProc;

/// The largest main memory.
const MOST_MEMORY: u64 = 1 << 30;
/// The smallest main memory: room for the gates, tables and step slots that come by themselves.
const LEAST_MEMORY: u64 = 4 << 20;

/// A control's name as files spell it: `wbinvd-exiting`.
fn feature(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

/// What a file says of the hypervisor's module parameters.
fn module(config: &mut Config, table: &MachineTable) {
    let Config {
        maxphyaddr,
        flush_on_reuse,
        direct,
        host_page,
        nx_huge,
        accessed_dirty,
        pml,
        shadow_vmcs,
        pages_max,
        invalidations,
        mmio_generation_bits,
        tdp_level,
        contention,
        ..
    } = config;
    *maxphyaddr = table.maxphyaddr.map_or(*maxphyaddr, u32::from);
    *flush_on_reuse =
        table.flush_on_reuse.map_or(*flush_on_reuse, |on| if on { FlushOnReuse::Yes } else { FlushOnReuse::No });
    *direct = table.direct_mmu.map_or(*direct, |name| match name {
        DirectMmuName::Tdp => DirectMmu::Tdp,
        DirectMmuName::Legacy => DirectMmu::Legacy,
    });
    *host_page = table.host_pages.map_or(*host_page, |pages| match pages {
        HostPages::Small => Level::L1,
        HostPages::Large => Level::L2,
        HostPages::Huge => Level::L3,
    });
    *nx_huge = table.nx_huge_pages.map_or(*nx_huge, |on| if on { NxHugePages::On } else { NxHugePages::Off });
    *accessed_dirty = table
        .accessed_dirty
        .map_or(*accessed_dirty, |on| if on { AccessedDirty::Hardware } else { AccessedDirty::Tracked });
    *pml = table.pml.map_or(*pml, |on| if on { Pml::On } else { Pml::Off });
    *shadow_vmcs =
        table.shadow_vmcs.map_or(*shadow_vmcs, |on| if on { ShadowVmcsMode::On } else { ShadowVmcsMode::Off });
    *invalidations = table.invalidations.unwrap_or(*invalidations);
    *mmio_generation_bits = table.mmio_generation_bits.unwrap_or(*mmio_generation_bits);
    *pages_max = table.mmu_pages.unwrap_or(*pages_max);
    *contention = table.contended.map_or(*contention, |on| if on { Contention::Always } else { Contention::Never });
    *tdp_level = table.tdp_levels.unwrap_or(*tdp_level);
}

impl Checker<'_> {
    pub(super) fn machine(&mut self) -> Machine {
        let mut machine = Machine::default();
        let mut processors = None;
        for parsed in &self.loaded.parsed {
            let table = &parsed.content.machine;
            if let Some(text) = &table.memory {
                let good =
                    |bytes: &u64| bytes.is_multiple_of(PAGE_BYTES) && (LEAST_MEMORY..=MOST_MEMORY).contains(bytes);
                match size(text.get()).filter(good) {
                    Some(bytes) => machine.memory = bytes,
                    None => {
                        let message = format!("{} is no size of main memory", quote(text.get()));
                        self.fail(parsed.file, text.range(), message, "write \"32M\"; 4M to 1G, in units of K, M or G");
                    }
                }
            }
            machine.vcpus = table.vcpus.unwrap_or(machine.vcpus);
            processors = table.processors.or(processors);
            machine.vpids = table.vpids.unwrap_or(machine.vpids);
            machine.asids = table.asids.unwrap_or(machine.asids);
            machine.tlb = table.tlb.map_or(machine.tlb, |name| match name {
                TlbName::Base => TlbProfile::Base,
                TlbName::Skylake => TlbProfile::Skylake,
                TlbName::Zen4 => TlbProfile::Zen4,
                TlbName::Unbounded => TlbProfile::Unbounded,
                TlbName::Bochs => TlbProfile::Bochs,
            });
            module(&mut machine.module, table);
            if let Some(features) = &table.silicon_without {
                machine.silicon_without = features.iter().map(|name| name.get().clone()).collect();
                self.features(parsed.file, features);
            }
        }
        machine.processors = processors.unwrap_or(machine.vcpus);
        self.scope.vcpus = machine.vcpus;
        self.scope.processors = machine.processors;
        self.scope.physical.push(0..machine.memory);
        machine
    }

    /// Checks the names of silicon features: the secondary processor-based controls in small letters (SDM 3C table 24-7).
    fn features(&mut self, file: usize, names: &[Marked<String>]) {
        let known: Vec<String> = SecondaryProc::all().iter_names().map(|(name, _)| feature(name)).collect();
        for name in names.iter().filter(|name| !known.contains(name.get())) {
            let known = known.iter().map(String::as_str);
            self.fault(file, Fault::unknown(name.range(), "silicon feature", name.get(), known));
        }
    }

    pub(super) fn slots(&mut self, machine: &Machine) -> Vec<Slot> {
        let mut tables: Vec<(usize, &SlotTable)> = Vec::new();
        for parsed in &self.loaded.parsed {
            for slot in &parsed.content.slot {
                let same = |(_, other): &(usize, &SlotTable)| other.name.get() == slot.name.get();
                match tables.iter().position(same) {
                    Some(at) if tables[at].0 != parsed.file => tables[at] = (parsed.file, slot),
                    Some(_) => {
                        let message = format!("slot {} is declared twice", quote(slot.name.get()));
                        self.fail(parsed.file, slot.name.range(), message, "rename one of the two");
                    }
                    None => tables.push((parsed.file, slot)),
                }
            }
        }
        let mut slots = Vec::new();
        for (file, table) in tables {
            slots.extend(self.slot(machine, file, table));
        }
        slots
    }

    fn slot(&mut self, machine: &Machine, file: usize, table: &SlotTable) -> Option<Slot> {
        self.name(file, "slot", &table.name);
        self.scope.slots.insert(table.name.get().clone());
        let at = self.number(file, "at", &table.at)?;
        let bytes = table.pages.saturating_mul(PAGE_BYTES);
        let end =
            at.checked_add(bytes).filter(|end| *end <= 1 << machine.module.maxphyaddr && at.is_multiple_of(PAGE_BYTES));
        let Some(end) = end else {
            let message = format!("a slot of {} x 4 KiB can't be at {at:#x}", table.pages);
            let help = format!("slots are page-aligned and end below 2^{}", machine.module.maxphyaddr);
            self.fail(file, table.at.range(), message, help);
            return None;
        };
        if let Some(other) = self.scope.physical.iter().find(|range| range.start < end && at < range.end) {
            let message = format!("the slot at {at:#x} overlaps {:#x} to {:#x}", other.start, other.end);
            self.fail(file, table.at.range(), message, "place it outside main memory and other slots");
            return None;
        }
        self.scope.physical.push(at..end);
        Some(Slot {
            name: table.name.get().clone(),
            at: Gpa(at),
            pages: table.pages,
            private: table.private,
            seen_by: table.seen_by,
            read_only: table.read_only,
            backed_by: table.backed_by,
            present: table.present,
        })
    }

    /// The root of a space that has no tables of its own.
    fn root(&mut self, file: usize, table: &SpaceTable) -> Option<Gpa> {
        let marked = table.root.as_ref()?;
        let root = self.number(file, "address", marked)?;
        if !root.is_multiple_of(PAGE_BYTES) || root >> 52 != 0 {
            self.fail(file, marked.range(), format!("{root:#x} can't be a root"), "write a page's address below 2^52");
        }
        if let Some(mapping) = table.map.first() {
            let message = "a space with a root given has no tables that could map something";
            self.fail(file, mapping.range(), message.to_owned(), "leave out either `root` or `map`");
        }
        Some(Gpa(root))
    }

    pub(super) fn spaces(&mut self) -> BTreeMap<String, Space> {
        let declared = self.declared(|content| &content.space);
        if declared.is_empty() {
            let help = "declare one, such as [space.a] with mode = \"long4\"";
            self.fail(0, 0..0, "the scenario has no address space, and L1 needs one", help);
        }
        let order = |file: usize| self.loaded.parsed.iter().position(|parsed| parsed.file == file);
        let first = declared.values().min_by_key(|(file, name, _)| (order(*file), name.range().start));
        self.first_space = first.map(|(_, name, _)| name.get().clone());
        let mut spaces = BTreeMap::new();
        for (name, (file, key, table)) in declared {
            self.name(file, "space", key);
            self.scope.spaces.insert(name.to_owned(), table.get().mode);
            let map = self.map(file, table.get());
            let pcid = table.get().pcid.as_ref();
            if let Some(pcid) = pcid.filter(|_| !table.get().mode.is_long()) {
                let message = format!("{} has no PCIDs", table.get().mode.name());
                self.fail(file, pcid.range(), message, "only long4 and long5 do (SDM 3A 4.10.1)");
            }
            let pcid = pcid.map(|pcid| *pcid.get());
            let root = self.root(file, table.get());
            spaces.insert(name.to_owned(), Space { name: name.to_owned(), mode: table.get().mode, map, root, pcid });
        }
        spaces
    }

    fn map(&mut self, file: usize, table: &SpaceTable) -> Vec<Mapping> {
        if let Some(line) = table.map.first()
            && !table.mode.has_paging()
        {
            let message = format!("{} has no paging, so nothing to map", table.mode.name());
            self.fail(file, line.range(), message, "linear addresses are physical ones here: leave `map` out");
            return Vec::new();
        }
        let mut map = Vec::new();
        let mut taken: BTreeMap<u64, Mapping> = BTreeMap::new();
        for line in &table.map {
            let checked =
                parse_mapping(line.get()).and_then(|mapping| self.check_map_line(mapping, line, table, &taken));
            if let Some(mut mapping) = self.parsed(file, line, checked) {
                mapping.span = self.source(file).span(file, line.range());
                taken.insert(mapping.from.0, mapping);
                map.push(mapping);
            }
        }
        map
    }

    fn check_map_line(
        &self,
        mapping: Mapping,
        line: &Marked<String>,
        table: &SpaceTable,
        taken: &BTreeMap<u64, Mapping>,
    ) -> Result<Mapping, Fault> {
        let length = line.get().len();
        check_mapping(&mapping, table.mode, length)?;
        let bytes = mapping.size.bytes();
        if !self.scope.has_physical(mapping.to.0, bytes) {
            let message =
                format!("a {} page at guest-physical {} is outside memory and slots", mapping.size.name(), mapping.to);
            let help = format!("main memory ends at {:#x}; `memory` under [machine] says how much", self.memory_end());
            return Err(Fault::new(0..length, message, help));
        }
        let last = mapping.from.0.wrapping_add(bytes - 1);
        let before = taken.range(..=last).next_back().map(|(_, other)| other);
        match before.filter(|other| other.from.0.wrapping_add(other.size.bytes() - 1) >= mapping.from.0) {
            Some(other) => {
                let message = format!("{} is already mapped by `{other}`", mapping.from);
                Err(Fault::new(0..length, message, "one line an address; another space can map it otherwise"))
            }
            None => Ok(mapping),
        }
    }

    fn memory_end(&self) -> u64 {
        self.scope.physical.first().map_or(0, |memory| memory.end)
    }

    pub(super) fn memory(&mut self) -> Vec<Contents> {
        let mut all = Vec::new();
        for parsed in &self.loaded.parsed {
            for line in parsed.content.all_memory() {
                let checked = parse_contents(line.get()).and_then(|contents| {
                    if self.scope.has_physical(contents.at.0, contents.bytes.len() as u64) {
                        return Ok(contents);
                    }
                    let message = format!(
                        "{} at {} reaches outside memory and slots",
                        count(contents.bytes.len(), "byte"),
                        contents.at
                    );
                    let help = format!("main memory ends at {:#x}", self.memory_end());
                    Err(Fault::new(0..line.get().len(), message, help))
                });
                all.extend(self.parsed(parsed.file, line, checked));
            }
        }
        all
    }
}
