//! The program inside a rig: this one, as it runs here, with the libraries that it has loaded. Both sides are of one build then, and
//! nothing has to be linked statically. Source: the ELF specification, and proc(5) on `/proc/self/maps`.
//!
//! Left out: libraries that are loaded by name as it runs (dlopen), of which there are none.

use object::Endianness;
use object::elf::{DT_SONAME, FileHeader64, PT_INTERP};
use object::read::elf::{Dyn, FileHeader, ProgramHeader, SectionHeader};
use sim_core::SimError;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// Where the libraries are inside; the kernel's command line says so to the loader.
pub(super) const LIBRARIES: &str = "lib";

/// What an ELF header says of sections: their offset, and their number and which has their names.
const SECTIONS: [Range<usize>; 2] = [0x28..0x30, 0x3c..0x40];

/// A file of the program, and where it is inside, without the leading `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) place: String,
    pub(super) bytes: Vec<u8>,
}

/// The program as `name`, its loader and its libraries; a static program has neither.
///
/// # Errors
/// If this process does not know its own files.
pub(super) fn parts(name: &str) -> Result<Vec<Part>, SimError> {
    let own = std::env::current_exe().map_err(|error| failed("its file", &error))?;
    let bytes = fs::read(&own).map_err(|error| failed("its file", &error))?;
    let interpreter = interpreter(&bytes).map_err(|error| failed("its loader", &error))?;
    let maps = fs::read_to_string("/proc/self/maps").map_err(|error| failed("its libraries", &error))?;
    let mut parts = vec![Part { place: name.to_owned(), bytes: loaded(bytes)? }];
    for path in mapped(&maps).into_iter().filter(|path| Path::new(path) != own) {
        let bytes = fs::read(path).map_err(|error| failed(path, &error))?;
        // What else is mapped, such as a locale, is no library.
        if let Some(name) = soname(&bytes) {
            parts.push(Part { place: format!("{LIBRARIES}/{name}"), bytes: bytes.clone() });
        }
        if let Some(place) = interpreter.as_deref().filter(|loader| is_same(loader, path)) {
            parts.push(Part { place: place.trim_start_matches('/').to_owned(), bytes });
        }
    }
    Ok(parts)
}

/// The files that a process has mapped, by `/proc/self/maps`: the sixth column.
fn mapped(maps: &str) -> BTreeSet<&str> {
    maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).collect()
}

fn is_same(one: &str, other: &str) -> bool {
    matches!((fs::canonicalize(one), fs::canonicalize(other)), (Ok(one), Ok(other)) if one == other)
}

/// What of a program is loaded: symbols and debug information behind its segments make a rig slow.
fn loaded(mut bytes: Vec<u8>) -> Result<Vec<u8>, SimError> {
    let broken = |error: object::read::Error| failed("its file", &error);
    let header = FileHeader64::<Endianness>::parse(&*bytes).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    let segments = header.program_headers(endian, &*bytes).map_err(broken)?;
    let end = segments.iter().map(|segment| segment.p_offset(endian) + segment.p_filesz(endian)).max().unwrap_or(0);
    bytes.truncate(usize::try_from(end).unwrap_or(usize::MAX));
    // The header says that there are no sections.
    for at in SECTIONS.into_iter().flatten() {
        if let Some(byte) = bytes.get_mut(at) {
            *byte = 0;
        }
    }
    Ok(bytes)
}

/// The loader that a program asks for, none if it is static.
fn interpreter(bytes: &[u8]) -> object::read::Result<Option<String>> {
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let segment = header.program_headers(endian, bytes)?.iter().find(|segment| segment.p_type(endian) == PT_INTERP);
    let path = segment.and_then(|segment| segment.data(endian, bytes).ok());
    Ok(path.map(|path| String::from_utf8_lossy(path).trim_end_matches('\0').to_owned()))
}

/// The name by which a library is asked for.
fn soname(bytes: &[u8]) -> Option<String> {
    let header = FileHeader64::<Endianness>::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, bytes).ok()?;
    let (entries, strings) = sections.iter().find_map(|section| section.dynamic(endian, bytes).ok().flatten())?;
    let names = sections.strings(endian, bytes, strings).ok()?;
    let entry = entries.iter().find(|entry| entry.tag(endian) == DT_SONAME)?;
    Some(String::from_utf8_lossy(names.get(entry.val32(endian)?).ok()?).into_owned())
}

fn failed(what: &str, error: &dyn Display) -> SimError {
    SimError::unmodelled(format!("a rig with this program inside: {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_files_are_told_apart() {
        let maps = "7f00-7f01 r--p 00000000 fe:00 12   /usr/lib/libc.so.6\n7f01-7f02 r-xp 00001000 fe:00 12   /usr/lib/libc.so.6\n\
                    7f02-7f03 rw-p 00000000 00:00 0\n7ffe-7fff r-xp 00000000 00:00 0   [vdso]\n8000-8001 r--p 0 fe:00 9 /a b/c\n";
        assert_eq!(mapped(maps).into_iter().collect::<Vec<_>>(), ["/a b/c", "/usr/lib/libc.so.6"]);
    }

    /// This very test is a program: what is taken along of it is an ELF file with the same segments, but that its header, which the
    /// first one holds, knows of no sections; and nothing is missing that the loader would ask for.
    #[test]
    fn a_program_takes_itself_along() {
        let parts = parts("rolecall").unwrap();
        assert_eq!(parts[0].place, "rolecall");
        let mut whole = fs::read(std::env::current_exe().unwrap()).unwrap();
        SECTIONS.into_iter().flatten().for_each(|at| whole[at] = 0);
        let segments = |bytes: &[u8]| {
            let header = FileHeader64::<Endianness>::parse(bytes).unwrap();
            let all = header.program_headers(Endianness::Little, bytes).unwrap();
            all.iter().map(|segment| segment.data(Endianness::Little, bytes).unwrap().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(segments(&parts[0].bytes), segments(&whole));
        let places: BTreeSet<&str> = parts.iter().map(|part| part.place.as_str()).collect();
        assert_eq!(places.len(), parts.len(), "a file twice: {places:?}");
        match interpreter(&whole).unwrap() {
            Some(loader) => {
                assert!(places.contains(loader.trim_start_matches('/')), "{places:?}");
                assert!(places.contains("lib/libc.so.6"), "{places:?}");
            }
            None => assert_eq!(places.len(), 1),
        }
    }
}
