//! The first program inside a rig: mounts, loads KVM, takes the jobs, and sends what each recorded through one I/O port.
//! When it is done the machine resets, which ends the emulator.

use super::frame;
use super::initramfs::JOBS;
use super::job::{Header, Job, Message};
use super::module;
use super::setup::MODULES;
use crate::backend::kvm::Port;
use crate::crosscheck::Host;
use crate::file::Vendor;
use crate::random::Paging;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use sim_core::SimError;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

/// What is mounted where.
const MOUNTS: [(&str, &str); 4] =
    [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tracefs", "/sys/kernel/tracing")];
/// The numbers of `/dev/kvm`.
const KVM_DEVICE: (u32, u32) = (10, 232);

/// Takes the jobs of a rig.
///
/// # Errors
/// If this is no rig, or the machine does not reset.
pub fn main(vendor: Vendor, paging: Paging) -> Result<(), SimError> {
    // On a machine that is somebody's, mounting and resetting would do harm.
    if std::process::id() != 1 {
        return Err(SimError::unmodelled("rig-init outside a rig: it is the first program of one"));
    }
    let port = Port::open().map_err(|error| failed("ioperm", &error))?;
    let ended = work(vendor, paging, &port);
    let last = ended.map_or_else(|error| Message::Failed(error.to_string()), |()| Message::End);
    port.write(&frame::write(&last)?);
    reboot(RebootCommand::Restart).map_err(|error| failed("reboot", &error))
}

fn work(vendor: Vendor, paging: Paging, port: &Port) -> Result<(), SimError> {
    for (kind, place) in MOUNTS {
        mount(kind, place, kind, MountFlags::empty(), None).map_err(|error| failed(place, &error))?;
    }
    let (own, parameters) = module(vendor, paging);
    for (name, parameters) in MODULES.map(|name| (name, "")).into_iter().chain([(own, parameters.as_str())]) {
        load(name, parameters)?;
    }
    if !Path::new("/dev/kvm").exists() {
        let (major, minor) = KVM_DEVICE;
        mknodat(CWD, "/dev/kvm", FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, makedev(major, minor))
            .map_err(|error| failed("/dev/kvm", &error))?;
    }
    let jobs = fs::read(Path::new("/").join(JOBS)).map_err(|error| failed("the jobs", &error))?;
    let jobs: Vec<Job> = serde_json::from_slice(&jobs).map_err(|error| failed("the jobs", &error))?;
    let send = |message: &Message| frame::write(message).map(|bytes| port.write(&bytes));
    send(&Message::Up(header(own)?))?;
    for (place, job) in jobs.iter().enumerate() {
        send(&Message::Begin(place))?;
        send(&Message::Done(place, job.take()))?;
    }
    Ok(())
}

fn load(name: &str, parameters: &str) -> Result<(), SimError> {
    let file = File::open(format!("/{name}.ko")).map_err(|error| failed(name, &error))?;
    let words = CString::new(parameters).map_err(|error| failed(name, &error))?;
    finit_module(&file, &words, 0).map_err(|error| failed(&format!("{name} {parameters}"), &error))
}

fn header(own: &str) -> Result<Header, SimError> {
    let kvm = kvm_ioctls::Kvm::new().map_err(|error| failed("/dev/kvm", &error))?;
    let mut parameters = BTreeMap::new();
    for module in ["kvm", own] {
        let directory = format!("/sys/module/{}/parameters", module.replace('-', "_"));
        for entry in fs::read_dir(&directory).map_err(|error| failed(&directory, &error))?.flatten() {
            // Some can only be written.
            if let Ok(value) = fs::read_to_string(entry.path()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                parameters.insert(format!("{module}.{name}"), value.trim().to_owned());
            }
        }
    }
    Ok(Header { host: Host::find(&kvm)?, parameters })
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> SimError {
    SimError::unmodelled(format!("{what} in a rig: {error}"))
}
