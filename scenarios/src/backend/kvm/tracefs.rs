//! What the kernel's MMU did, from its own `kvmmmu` trace events: role words and shadow entries as they are in the kernel.
//!
//! An instance of tracefs of our own, filtered to this thread, so that neither other VMs nor other tracers are in it. The
//! `fields` option makes the kernel print the raw fields (v6.18 `kvm_mmu_get_page` and its kin), role word included.
//! Without the right to tracefs there is no inside view, and the table says so; nor is there one where the kernel has dropped
//! events or prints them otherwise. A process that is killed leaves its instance behind, which the next thread of its number
//! takes away.

use sim_core::addr::{Gfn, Hpa, Level};
use sim_core::event::{Event, PageView, RoleWord};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where tracefs is, if it is mounted.
const MOUNTED: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// The events that the model has too.
const EVENTS: [&str; 5] =
    ["kvm_mmu_get_page", "kvm_mmu_unsync_page", "kvm_mmu_sync_page", "kvm_mmu_prepare_zap_page", "kvm_mmu_set_spte"];

thread_local! {
    /// The instance of this thread: to make one takes the kernel longer than a run does.
    static OWN: RefCell<Option<Arc<Trace>>> = const { RefCell::new(None) };
}

/// An instance of tracefs, and its events as they come: to read them there takes them out. The pipe is closed first, for the
/// kernel keeps an instance that is in use.
#[derive(Debug)]
pub(super) struct Trace {
    pipe: File,
    instance: Instance,
}

/// The directory of an instance.
#[derive(Debug)]
struct Instance(PathBuf);

impl Instance {
    fn make(place: PathBuf) -> io::Result<Self> {
        match fs::create_dir(&place) {
            // The number is this thread's own, so that whoever made it is gone.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_dir(&place)?;
                fs::create_dir(&place)?;
            }
            made => made?,
        }
        Ok(Self(place))
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.0.join(file))?.write_all(value.as_bytes())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // There is nobody to tell; see the header for what becomes of it.
        let _ = fs::remove_dir(&self.0);
    }
}

impl Trace {
    /// This thread's, empty.
    ///
    /// # Errors
    /// If there is no tracefs, or no right to it.
    pub(super) fn of_this_thread() -> io::Result<Arc<Self>> {
        OWN.with_borrow_mut(|own| {
            let trace = match own {
                Some(trace) => trace.clone(),
                None => own.insert(Arc::new(Self::open()?)).clone(),
            };
            trace.take()?;
            Ok(trace)
        })
    }

    fn open() -> io::Result<Self> {
        let root = MOUNTED.iter().map(Path::new).find(|root| root.join("instances").is_dir());
        let root = root.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "tracefs is not mounted"))?;
        let thread = fs::read_link("/proc/thread-self")?;
        let id = thread.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let instance = Instance::make(root.join("instances").join(format!("rolecall-{id}")))?;
        // Without a wait: a pipe that holds nothing says so.
        let pipe = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(instance.0.join("trace_pipe"))?;
        let trace = Self { pipe, instance };
        trace.instance.set("buffer_size_kb", "1024")?;
        trace.instance.set("trace_options", "fields")?;
        trace.instance.set("set_event_pid", &id)?;
        for event in EVENTS {
            trace.instance.set(&format!("events/kvmmmu/{event}/enable"), "1")?;
        }
        Ok(trace)
    }

    /// Everything since the last call.
    ///
    /// # Errors
    /// If tracefs can't be read, or its events not understood.
    pub(super) fn take(&self) -> io::Result<Vec<Event>> {
        let mut text = Vec::new();
        match (&self.pipe).read_to_end(&mut text) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        String::from_utf8_lossy(&text).lines().map(understood).filter_map(Result::transpose).collect()
    }
}

/// The event of a line, if it is one that the model has.
///
/// # Errors
/// If the line tells of lost events, or of such a one in other words: what is missing must not pass for agreement.
fn understood(line: &str) -> io::Result<Option<Event>> {
    let found = event(line);
    let known = EVENTS.iter().any(|name| line.contains(&format!(": {name}: ")));
    if line.contains("[LOST ") || (known && found.is_none()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("can't follow {line:?}")));
    }
    Ok(found)
}

/// One line of a trace; none if it is no event that the model has.
fn event(line: &str) -> Option<Event> {
    let (_, rest) = line.split_once(": ")?;
    let (name, fields) = rest.split_once(": ")?;
    let fields = fields_of(fields);
    let field = |name: &str| fields.get(name).copied();
    let page = || {
        Some(PageView {
            generation: field("mmu_valid_gen")? as u8,
            gfn: Gfn(field("gfn")?),
            role: RoleWord(field("role")? as u32),
            root_count: field("root_count")? as u32,
            unsync: field("unsync")? != 0,
        })
    };
    Some(match name {
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

/// `gfn=0x80 (128) unsync=(0)`: numbers stand in hexadecimal before the parenthesis, single bytes and bits in it alone.
fn fields_of(text: &str) -> BTreeMap<&str, u64> {
    let mut fields = BTreeMap::new();
    for word in text.split(' ').filter(|word| word.contains('=')) {
        let Some((name, value)) = word.split_once('=') else { continue };
        let number = match value.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => value.trim_matches(['(', ')']).parse(),
        };
        if let Ok(number) = number {
            fields.insert(name, number);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as a 6.18 kernel printed them.
    #[test]
    fn lines_become_events() {
        let at = "        rolecall-28972   [001] .N.1.  4636.943760: ";
        let page = PageView { generation: 0, gfn: Gfn(0x84), role: RoleWord(0x3701), root_count: 0, unsync: true };
        for (text, expected) in [
            (
                "kvm_mmu_get_page: mmu_valid_gen=(0) gfn=0x84 (132) role=0x3701 (14081) root_count=0x0 (0) unsync=(1) created=(1)",
                Event::PageGet { page, created: true },
            ),
            (
                "kvm_mmu_sync_page: mmu_valid_gen=(0) gfn=0x84 (132) role=0x3701 (14081) root_count=0x0 (0) unsync=(1)",
                Event::PageSync { page },
            ),
            (
                "kvm_mmu_set_spte: gfn=0x200 (512) spte=0x50f7fde67 (21734874727) sptep=0x3e68ca000 (16752877568) level=(1) r=(1) x=(1) u=(1)",
                Event::SpteSet { gfn: Gfn(0x200), level: Level::L1, spte: 0x5_0f7f_de67, sptep: Hpa(0x3_e68c_a000) },
            ),
        ] {
            assert_eq!(event(&format!("{at}{text}")), Some(expected));
        }
        assert_eq!(understood("# tracer: nop").ok(), Some(None));
        assert!(understood("CPU:1 [LOST 12 EVENTS]").is_err());
        assert!(understood(&format!("{at}kvm_mmu_sync_page: sp gen 0 gfn 84 l1")).is_err());
    }
}
