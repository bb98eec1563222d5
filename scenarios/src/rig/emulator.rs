//! An emulator as a process: it is given files in a directory of its own, watched, and ended when it has been silent for too
//! long.

use super::frame::Reader;
use super::job::Message;
use super::{Job, Kind, Rig, bochs, initramfs, leftovers, qemu};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sim_core::SimError;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use tempfile::TempDir;

/// Guest memory.
pub(super) const MEMORY: u64 = 1536 << 20;
/// Lines of the console that are told when something went wrong.
const LAST_LINES: usize = 3;

/// The directory of one boot, gone with it; where this process is killed, the next one takes it away.
#[derive(Debug)]
pub(super) struct Place(TempDir);

impl Place {
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn initramfs(&self) -> PathBuf {
        self.file("initramfs")
    }

    /// What the kernel prints.
    pub(super) fn console(&self) -> PathBuf {
        self.file("console")
    }

    /// What the emulator prints where it should not.
    fn complaints(&self) -> PathBuf {
        self.file("stderr")
    }
}

/// What to run.
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) arguments: Vec<String>,
}

/// A rig that runs.
#[derive(Debug)]
pub(super) struct Emulator {
    child: Child,
    output: ChildStdout,
    frames: Reader,
    place: Place,
}

impl Emulator {
    /// Starts one with some jobs inside.
    ///
    /// # Errors
    /// If its files can't be written, or the emulator is not installed.
    pub(super) fn start(rig: &Rig, jobs: &[Job]) -> Result<Self, SimError> {
        let failed = |what: &str, error: &io::Error| SimError::unmodelled(format!("a rig: {what}: {error}"));
        leftovers::remove(&rig.setup.dir);
        let place = tempfile::Builder::new().prefix(&leftovers::prefix()).tempdir_in(&rig.setup.dir);
        let place = Place(place.map_err(|error| failed("its directory", &error))?);
        initramfs::write(rig, jobs, &place.initramfs())?;
        let program = match rig.emulator {
            Kind::Qemu => qemu::program(rig, &place),
            Kind::Bochs => bochs::program(rig, &place)?,
        };
        let complaints = File::create(place.complaints()).map_err(|error| failed("its directory", &error))?;
        // Whatever ends this process ends the emulator.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program.name]).args(&program.arguments).env("TERM", "dumb");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(complaints);
        let mut child = command.spawn().map_err(|error| failed("setpriv", &error))?;
        let output = child.stdout.take();
        let output = output.ok_or_else(|| SimError::internal("a process without the output that it was given"))?;
        Ok(Self { child, output, frames: Reader::default(), place })
    }

    /// The next message, or why there is none: the rig is gone, or has been silent for so many seconds.
    ///
    /// # Errors
    /// If the program inside is of another build.
    pub(super) fn next(&mut self, patience: i64) -> Result<Result<Message, String>, SimError> {
        let mut piece = vec![0; 1 << 16];
        loop {
            if let Some(message) = self.frames.next()? {
                return Ok(Ok(message));
            }
            let mut wait = [PollFd::new(&self.output, PollFlags::IN)];
            match poll(&mut wait, Some(&Timespec { tv_sec: patience, tv_nsec: 0 })) {
                Ok(0) => return Ok(Err(self.tell(&format!("no word for {patience} seconds")))),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Ok(Err(self.tell(&format!("its output: {error}")))),
            }
            match self.output.read(&mut piece) {
                Ok(0) => return Ok(Err(self.tell("it ended"))),
                Ok(count) => self.frames.feed(&piece[..count]),
                Err(error) => return Ok(Err(self.tell(&format!("its output: {error}")))),
            }
        }
    }

    /// A reason, with the last lines that the kernel and the emulator printed.
    fn tell(&self, what: &str) -> String {
        let mut text = what.to_owned();
        for (who, file) in [("console", self.place.console()), ("emulator", self.place.complaints())] {
            let lines = last_lines(&file);
            if !lines.is_empty() {
                text += &format!("; {who}: {}", lines.join(" / "));
            }
        }
        text
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may be gone already, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Words by which a kernel says what it died of.
const LAST_WORDS: [&str; 5] = ["kernel BUG at", "BUG:", "general protection fault", "RIP: 0010:", "Kernel panic"];

/// What a kernel said that it died of, if it did; the last lines otherwise.
fn last_lines(file: &Path) -> Vec<String> {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let dying = lines.iter().filter(|line| LAST_WORDS.iter().any(|words| line.contains(words)));
    let dying: Vec<String> = dying.take(LAST_LINES).map(|line| (*line).to_owned()).collect();
    if !dying.is_empty() {
        return dying;
    }
    lines[lines.len().saturating_sub(LAST_LINES)..].iter().map(|line| (*line).to_owned()).collect()
}
