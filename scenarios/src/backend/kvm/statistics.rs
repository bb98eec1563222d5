//! What a KVM counts of a VM and its vCPUs (KVM_GET_STATS_FD, Documentation/virt/kvm/api.rst 4.133 and 4.134): a file each, with a
//! header, an id, descriptors and data. It needs no right beyond that to the VM.
//!
//! Only names that the model has ([`Stat`]) are taken; one that this kernel does not tell is not told, and never 0. Counts of vCPUs
//! are added up. Left out: histograms and peaks.

use super::raw;
use super::ring::number;
use kvm_ioctls::{VcpuFd, VmFd};
use mmu::stats::Stat;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Flags, size of a name, number of descriptors, and the offsets of id, descriptors and data: four bytes each.
const HEADER: usize = 24;
/// Flags, exponent, number of values, offset of the first, bucket size; the name follows.
const DESCRIPTOR: usize = 16;
/// Bits of a descriptor's flags that say its type, and the types that are one number: what only goes up, and what there is now.
const TYPE: u64 = 0xf;
const NUMBERS: [u64; 2] = [0, 1];
/// A file of statistics has some kilobytes; a longer one is none.
const LONGEST: usize = 1 << 20;

/// Where in a file the values are.
type Places = Vec<(Stat, u64)>;

/// The files of a VM and its vCPUs.
#[derive(Debug)]
pub(super) struct Statistics(Vec<(File, Places)>);

impl Statistics {
    /// Opens them.
    ///
    /// # Errors
    /// If this kernel has none (before v5.14), or lays them out otherwise than is documented.
    pub(super) fn open<'a>(vm: &VmFd, vcpus: impl Iterator<Item = &'a VcpuFd>) -> io::Result<Self> {
        let mut files = vec![raw::statistics_of(vm)?];
        for vcpu in vcpus {
            files.push(raw::statistics_of(vcpu)?);
        }
        let laid_out = |file: File| Ok((places(&whole(&file)?)?, file));
        let files = files.into_iter().map(laid_out).collect::<io::Result<Vec<_>>>()?;
        Ok(Self(files.into_iter().map(|(places, file)| (file, places)).collect()))
    }

    /// Every count as it is now.
    ///
    /// # Errors
    /// If a file can't be read.
    pub(super) fn told(&self) -> io::Result<BTreeMap<Stat, u64>> {
        let mut told = BTreeMap::new();
        for (file, places) in &self.0 {
            let Some(first) = places.iter().map(|(_, at)| *at).min() else { continue };
            let end = places.iter().map(|(_, at)| *at + 8).max().unwrap_or(first);
            let mut data = vec![0; (end - first) as usize];
            file.read_exact_at(&mut data, first)?;
            for (stat, at) in places {
                let value = number(&data, (at - first) as usize, 8).ok_or_else(|| malformed("ends early"))?;
                *told.entry(*stat).or_default() += value;
            }
        }
        Ok(told)
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a file of statistics {what}"))
}

/// All that is in a file now.
fn whole(file: &File) -> io::Result<Vec<u8>> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    while bytes.len() < LONGEST {
        match file.read_at(&mut piece, bytes.len() as u64)? {
            0 => return Ok(bytes),
            read => bytes.extend_from_slice(&piece[..read]),
        }
    }
    Err(malformed("does not end"))
}

/// Where the values of known names are.
fn places(bytes: &[u8]) -> io::Result<Places> {
    let short = || malformed("ends early");
    let word = |index: usize| number(bytes, index * 4, 4).map(|word| word as usize).ok_or_else(short);
    bytes.get(..HEADER).ok_or_else(short)?;
    let (name_size, count, descriptors, data) = (word(1)?, word(2)?, word(4)?, word(5)?);
    let size = DESCRIPTOR + name_size;
    let mut places = Places::new();
    for index in 0..count {
        let at = index.checked_mul(size).and_then(|at| at.checked_add(descriptors)).ok_or_else(short)?;
        let descriptor = bytes.get(at..).and_then(|rest| rest.get(..size)).ok_or_else(short)?;
        let field = |offset, size| number(descriptor, offset, size).ok_or_else(short);
        let name = descriptor[DESCRIPTOR..].split(|byte| *byte == 0).next().unwrap_or_default();
        let Some(stat) = Stat::ALL.iter().find(|stat| stat.name().as_bytes() == name) else { continue };
        if !NUMBERS.contains(&(field(0, 4)? & TYPE)) || field(6, 2)? != 1 {
            return Err(malformed(&format!("tells {} otherwise than as one number", stat.name())));
        }
        if places.iter().any(|(other, _)| other == stat) {
            return Err(malformed(&format!("tells {} twice", stat.name())));
        }
        let value = data as u64 + field(8, 4)?;
        number(bytes, value as usize, 8).ok_or_else(short)?;
        places.push((*stat, value));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A descriptor: flags, number of values, offset, name.
    type Described<'a> = (u32, u16, u32, &'a str);

    /// A file with an id between header and descriptors, and so many bytes of data.
    fn file(name_size: u32, described: &[Described<'_>], data: &[u8]) -> Vec<u8> {
        let descriptors = 24 + name_size;
        let start = descriptors + described.len() as u32 * (16 + name_size);
        let header = [0, name_size, described.len() as u32, 24, descriptors, start];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(descriptors as usize, b'k');
        for (flags, size, offset, name) in described {
            bytes.extend(flags.to_le_bytes());
            bytes.extend((-9_i16).to_le_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            bytes.extend([0; 4]);
            let mut text = name.as_bytes().to_vec();
            text.resize(name_size as usize, 0);
            bytes.extend(text);
        }
        bytes.extend(data);
        bytes
    }

    const SOUND: [Described<'_>; 4] = [
        (0, 1, 8, "mmu_shadow_zapped"),
        (0x24, 32, 24, "halt_wait_hist"),
        (1, 1, 0, "mmu_unsync"),
        (0, 1, 16, "of_a_later_kernel"),
    ];

    #[test]
    fn known_names_are_found() {
        for name_size in [24, 48, 18] {
            let bytes = file(name_size, &SOUND, &[7; 32]);
            let start = bytes.len() as u64 - 32;
            assert_eq!(places(&bytes).unwrap(), [(Stat::ShadowZapped, start + 8), (Stat::Unsync, start)]);
        }
        // A name without an end is as long as names are.
        let tight = file(17, &[(0, 1, 0, "mmu_shadow_zapped")], &[0; 8]);
        assert_eq!(places(&tight).unwrap().len(), 1);
        assert_eq!(places(&file(48, &[], &[])).unwrap(), []);
    }

    #[test]
    fn values_are_read_where_they_are_and_added_up() {
        let on_disk = |data: &[u64]| {
            let data: Vec<u8> = data.iter().flat_map(|value| value.to_le_bytes()).collect();
            let bytes = file(48, &SOUND, &data);
            let place = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(place.path(), &bytes).unwrap();
            (place.reopen().unwrap(), places(&whole(&place.reopen().unwrap()).unwrap()).unwrap())
        };
        let both = Statistics(vec![on_disk(&[3, 40, 0, 0]), on_disk(&[1, u64::from(u32::MAX), 0, 0])]);
        let told = both.told().unwrap();
        assert_eq!(told, BTreeMap::from([(Stat::Unsync, 4), (Stat::ShadowZapped, u64::from(u32::MAX) + 40)]));
    }

    #[test]
    fn broken_files_are_told() {
        let sound = file(48, &SOUND, &[0; 32]);
        let with = |at: usize, word: u32| {
            let mut bytes = sound.clone();
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            bytes
        };
        let described = |described: &[Described<'_>]| file(48, described, &[0; 32]);
        let cases = [
            ("nothing", Vec::new(), "ends early"),
            ("half a header", sound[..20].to_vec(), "ends early"),
            ("half the descriptors", sound[..200].to_vec(), "ends early"),
            ("half the data", sound[..sound.len() - 20].to_vec(), "ends early"),
            ("names without end", with(4, u32::MAX), "ends early"),
            ("more descriptors than there are", with(8, 1000), "ends early"),
            ("descriptors behind the end", with(16, u32::MAX), "ends early"),
            ("data behind the end", with(20, u32::MAX), "ends early"),
            ("a value behind the end", described(&[(0, 1, 25, "mmu_unsync")]), "ends early"),
            ("several values", described(&[(0, 2, 0, "mmu_unsync")]), "tells mmu_unsync otherwise than as one number"),
            ("a histogram", described(&[(3, 1, 0, "mmu_unsync")]), "tells mmu_unsync otherwise than as one number"),
            ("twice", described(&[(1, 1, 0, "mmu_unsync"), (1, 1, 8, "mmu_unsync")]), "tells mmu_unsync twice"),
        ];
        for (name, bytes, why) in cases {
            assert_eq!(places(&bytes).unwrap_err().to_string(), format!("a file of statistics {why}"), "{name}");
        }
    }
}
