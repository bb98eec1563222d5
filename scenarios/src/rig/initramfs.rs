//! The file system inside: this command and its libraries, the modules, the jobs, and the places that [`super::init`] mounts on.

use super::setup::MODULES;
use super::{Job, Rig, module, program};
use cpio::newc::{Builder, trailer};
use sim_core::SimError;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Where the jobs are.
pub(super) const JOBS: &str = "jobs";

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const DEVICE: u32 = 0o020_600;

/// Writes it as a newc archive, which the kernel unpacks.
///
/// # Errors
/// If a file can't be read, or the archive not written.
pub(super) fn write(rig: &Rig, jobs: &[Job], to: &Path) -> Result<(), SimError> {
    let parts = program::parts("rolecall")?;
    let archive = || -> io::Result<()> {
        let mut out = io::BufWriter::new(fs::File::create(to)?);
        let places = parts.iter().flat_map(|part| Path::new(&part.place).ancestors().skip(1));
        let directories: BTreeSet<&Path> = places.chain(["proc", "sys", "dev"].map(Path::new)).collect();
        // A directory comes before what is in it; the root is there.
        for directory in directories.into_iter().filter(|directory| !directory.as_os_str().is_empty()) {
            Builder::new(&directory.to_string_lossy()).mode(DIRECTORY).write(&mut out, 0).finish()?;
        }
        // What the first program prints goes here, before anything is mounted.
        let console = Builder::new("dev/console").mode(DEVICE).rdev_major(5).rdev_minor(1);
        console.write(&mut out, 0).finish()?;
        for part in &parts {
            add(&mut out, &part.place, PROGRAM, &part.bytes)?;
        }
        let (vendor, _) = module(rig.vendor, rig.paging);
        for name in MODULES.into_iter().chain([vendor]) {
            add(&mut out, &format!("{name}.ko"), FILE, &fs::read(rig.setup.module(name))?)?;
        }
        add(&mut out, JOBS, FILE, &serde_json::to_vec(jobs)?)?;
        trailer(out)?.flush()
    };
    archive().map_err(|error| SimError::unmodelled(format!("the initramfs of a rig: {error}")))
}

fn add(out: &mut dyn Write, name: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut entry = Builder::new(name).mode(mode).write(out, size);
    entry.write_all(bytes)?;
    entry.finish().map(|_| ())
}
