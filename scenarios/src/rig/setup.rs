//! What `rig/setup.sh` leaves in its directory: a folder for each kernel.

use sim_core::SimError;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules that are loaded before the vendor's.
pub(super) const MODULES: [&str; 2] = ["irqbypass", "kvm"];

/// One kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The directory of the script.
    pub dir: PathBuf,
    /// The kernel's package and its version.
    pub version: String,
    kernel: PathBuf,
}

impl Setup {
    /// The kernel of this name, such as `6.1`.
    ///
    /// # Errors
    /// If it is not there.
    pub fn find(dir: &Path, kernel: &str) -> Result<Self, SimError> {
        let place = dir.join(kernel);
        let missing = |what: &Path| {
            SimError::unmodelled(format!("a rig without {}: run rig/setup.sh {}", what.display(), dir.display()))
        };
        let version = fs::read_to_string(place.join("version")).map_err(|_| missing(&place))?;
        let setup = Self { dir: dir.to_owned(), version: version.trim().to_owned(), kernel: place };
        let files = [setup.vmlinux()].into_iter().chain(MODULES.map(|name| setup.module(name)));
        match files.into_iter().find(|file| !file.is_file()) {
            Some(file) => Err(missing(&file)),
            None => Ok(setup),
        }
    }

    /// The release of the kernel, which its package is named after.
    #[must_use]
    pub fn release(&self) -> &str {
        let package = self.version.split(' ').next().unwrap_or_default();
        package.strip_prefix("linux-image-").unwrap_or(package)
    }

    /// The kernel as an ELF file.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.kernel.join("vmlinux")
    }

    /// A module.
    #[must_use]
    pub fn module(&self, name: &str) -> PathBuf {
        self.kernel.join(format!("{name}.ko"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is missing is said, and what makes it.
    #[test]
    fn without_the_script_there_is_no_rig() {
        let place = tempfile::tempdir().unwrap();
        let text = Setup::find(place.path(), "6.1").unwrap_err().to_string();
        assert!(text.contains("rig/setup.sh") && text.contains("6.1"), "{text}");
        fs::create_dir(place.path().join("6.1")).unwrap();
        fs::write(place.path().join("6.1/version"), "linux-image-6.1.0-50-cloud-amd64 6.1.176-1\n").unwrap();
        let text = Setup::find(place.path(), "6.1").unwrap_err().to_string();
        assert!(text.contains("vmlinux"), "{text}");
    }
}
