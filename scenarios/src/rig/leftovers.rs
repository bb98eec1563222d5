//! Directories of boots whose process was killed: their names say which process made them, and where that runs no more the next
//! one takes them away. A number that another program has got since keeps its directory until that ends too. Left out: processes
//! that share the directory and not the numbers, as containers may.

use std::fs;
use std::path::Path;

/// What the directories of all boots begin with.
const BOOT: &str = "boot-";

/// What the directories of this process begin with.
pub(super) fn prefix() -> String {
    format!("{BOOT}{}-", std::process::id())
}

/// Takes away what processes that are gone have left in a directory.
pub(super) fn remove(directory: &Path) {
    let gone = |process: u32| !Path::new("/proc").join(process.to_string()).exists();
    // Without /proc nobody knows who is gone.
    if !gone(std::process::id()) {
        remove_of(directory, gone);
    }
}

fn remove_of(directory: &Path, gone: impl Fn(u32) -> bool) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_left = entry.file_name().to_str().and_then(process).is_some_and(&gone);
        if is_left && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // What can't be removed is in nobody's way.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The process in a name such as `boot-4711-x7Yw2a`.
fn process(name: &str) -> Option<u32> {
    name.strip_prefix(BOOT)?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_processes() {
        assert_eq!(process(&format!("{}x7Yw2a", prefix())), Some(std::process::id()));
        for other in ["boot-x7Yw2a", "boot--a", "boot-12", "boot-12x-a", "boot-99999999999-a", "6.12", "rolecall"] {
            assert_eq!(process(other), None, "{other}");
        }
    }

    #[test]
    fn only_what_the_dead_left_goes() {
        let place = tempfile::tempdir().unwrap();
        for name in ["boot-7-a", "boot-7-b", "boot-8-a", "boot-old", "6.12"] {
            fs::create_dir(place.path().join(name)).unwrap();
            fs::write(place.path().join(name).join("console"), "x").unwrap();
        }
        fs::write(place.path().join("boot-7-file"), "x").unwrap();
        remove_of(place.path(), |process| process == 7);
        let mut left: Vec<_> = fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["6.12", "boot-7-file", "boot-8-a", "boot-old"]);
    }

    /// This process lives.
    #[test]
    fn nothing_of_a_living_process_goes() {
        let place = tempfile::tempdir().unwrap();
        let own = place.path().join(format!("{}a", prefix()));
        fs::create_dir(&own).unwrap();
        remove(place.path());
        assert!(own.is_dir());
    }
}
