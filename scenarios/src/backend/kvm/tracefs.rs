//! What the kernel's MMU did, from its own `kvmmmu` trace events: role words and shadow entries as they are in the kernel.
//!
//! An instance of tracefs of our own, filtered to this thread, so that neither other VMs nor other tracers are in it; what
//! the kernel does in threads of its own is not either, but for the first process of a machine. The ring buffers are read raw ([`super::ring`]).
//! Without the right to tracefs there is no inside view, and the table says so; nor is there one where the kernel has dropped
//! events or lays them out otherwise. A process that is killed leaves its instance behind, which the next thread of its number
//! takes away.

use super::format::{EVENTS, Format};
use super::ring;
use sim_core::event::Event;
use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where tracefs is, if it is mounted.
const MOUNTED: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// Bytes of a page of a ring buffer.
const PAGE: usize = 4096;

thread_local! {
    /// The instance of this thread: to make one takes the kernel longer than a run does.
    static OWN: RefCell<Option<Arc<Trace>>> = const { RefCell::new(None) };
}

/// An instance of tracefs, and the buffers of its processors: to read them takes events out. They are closed first, for the
/// kernel keeps an instance that is in use.
#[derive(Debug)]
pub(super) struct Trace {
    buffers: Vec<File>,
    formats: Vec<Format>,
    _instance: Instance,
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

    /// The raw buffer of each processor, read without a wait: one that holds nothing says so.
    fn buffers(&self) -> io::Result<Vec<File>> {
        let mut places: Vec<PathBuf> =
            fs::read_dir(self.0.join("per_cpu"))?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        places.sort();
        let open = |place: PathBuf| {
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(place.join("trace_pipe_raw"))
        };
        places.into_iter().map(open).collect()
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
        instance.set("buffer_size_kb", "1024")?;
        // Of all clocks the one that orders the events of all processors.
        instance.set("trace_clock", "counter")?;
        // The first process of a machine has that to itself, and sees what the kernel's own threads do as well.
        if std::process::id() != 1 {
            instance.set("set_event_pid", &id)?;
        }
        let mut formats = Vec::new();
        for event in EVENTS {
            let place = instance.0.join("events/kvmmmu").join(event);
            let format = Format::parse(event, &fs::read_to_string(place.join("format"))?);
            formats.push(format.ok_or_else(|| unlike(event))?);
            instance.set(&format!("events/kvmmmu/{event}/enable"), "1")?;
        }
        Ok(Self { buffers: instance.buffers()?, formats, _instance: instance })
    }

    /// Everything since the last call.
    ///
    /// # Errors
    /// If tracefs can't be read, or its events not understood.
    pub(super) fn take(&self) -> io::Result<Vec<Event>> {
        let mut timed = Vec::new();
        for buffer in &self.buffers {
            let mut page = [0; PAGE];
            while let Some(read) = read(buffer, &mut page)? {
                for raw in ring::events(&page[..read])? {
                    let id = ring::number(raw.fields, 0, 2).unwrap_or_default();
                    let Some(format) = self.formats.iter().find(|format| u64::from(format.id) == id) else { continue };
                    timed.push((raw.time, format.event(raw.fields).ok_or_else(|| unlike(format.name))?));
                }
            }
        }
        timed.sort_by_key(|(time, _)| *time);
        Ok(timed.into_iter().map(|(_, event)| event).collect())
    }
}

/// One page of a buffer; none if it is empty.
fn read(mut buffer: &File, page: &mut [u8; PAGE]) -> io::Result<Option<usize>> {
    match buffer.read(page) {
        Ok(0) => Ok(None),
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn unlike(event: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the event {event} in another form than is known"))
}
