//! Physical memory: sparse 4 KiB frames, copy-on-write, so that a whole machine clones in the time of a few
//! reference counts. Explorers, time travel and checkpoints stand on that.
//!
//! A frame that was never written reads as zero. An address beyond the installed memory reads as all ones and drops
//! writes, as an unclaimed bus cycle does. Accesses are little-endian and may cross frames. Ranges below the end may be
//! holes, which nobody claims either, or read-only ([`Backing`]).
//!
//! A write through the shared structure costs two checks of ownership. Whoever writes one frame again and again opens
//! it ([`PhysMem::open`]): it is then owned by this memory alone and reached by an index, until all are closed
//! again. Every other function sees an open frame as it sees any other.

use crate::addr::{Hfn, Hpa, PAGE_BYTES};
use crate::hash::StateHasher;
use crate::history::{History, Moment, Observer, Version};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::mem;
use std::sync::{Arc, OnceLock};

const FRAME_BYTES: usize = PAGE_BYTES as usize;
const CHUNK_FRAMES: usize = 64;

/// One 4 KiB frame and what is known of its content, computed when first asked for.
#[derive(Clone)]
struct Frame {
    bytes: Box<FrameBytes>,
    summary: OnceLock<Summary>,
}

/// The content of one frame.
pub type FrameBytes = [u8; FRAME_BYTES];

/// What hashing and saving want to know of a frame's content.
#[derive(Clone, Copy)]
struct Summary {
    digest: u64,
    is_zero: bool,
}

impl Summary {
    fn of(bytes: &FrameBytes) -> Self {
        let mut hasher = StateHasher::default();
        hasher.write(bytes);
        Self { digest: hasher.finish(), is_zero: bytes.iter().all(|byte| *byte == 0) }
    }
}

impl Frame {
    fn zeroed() -> Self {
        Self { bytes: Box::new([0; FRAME_BYTES]), summary: OnceLock::new() }
    }

    fn summary(&self) -> Summary {
        *self.summary.get_or_init(|| Summary::of(&self.bytes))
    }
}

/// Where a frame's content is.
#[derive(Clone, Default)]
enum Slot {
    /// Nowhere: it was never written.
    #[default]
    Absent,
    /// Here, perhaps shared with other memories.
    Shared(Arc<Frame>),
    /// Among the open frames of the memory.
    Open(u32),
}

type Chunk = [Slot; CHUNK_FRAMES];

/// A frame that is open for writing; see [`PhysMem::open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFrame(u32);

impl OpenFrame {
    /// No frame.
    pub const NONE: Self = Self(u32::MAX);
}

#[derive(Clone)]
struct Opened {
    hfn: Hfn,
    bytes: Box<FrameBytes>,
}

/// What answers at a frame below the end of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Backing {
    /// Memory.
    #[default]
    Writable,
    /// Memory that drops writes.
    ReadOnly,
    /// Nothing: reads give ones, writes are dropped.
    Hole,
}

/// Installed physical memory. Cloning shares every frame until one side writes it.
#[derive(Clone)]
pub struct PhysMem {
    chunks: Vec<Option<Arc<Chunk>>>,
    open: Vec<Opened>,
    closings: u64,
    frames: u64,
    /// What is not plain memory: first frame, number of frames, what it is. The ranges are disjoint.
    ranges: BTreeMap<Hfn, (u64, Backing)>,
    /// Kept only while someone observes; a checkpoint does not save it.
    history: Option<Box<History>>,
}

impl PhysMem {
    /// Memory of `frames` 4 KiB frames, all zero.
    #[must_use]
    pub fn new(frames: u64) -> Self {
        let chunks = usize::try_from(frames).map_or(0, |count| count.div_ceil(CHUNK_FRAMES));
        let chunks = vec![None; chunks];
        Self { chunks, open: Vec::new(), closings: 0, frames, ranges: BTreeMap::new(), history: None }
    }

    /// The number of installed 4 KiB frames.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// Whether the frame is installed memory.
    #[must_use]
    pub fn is_installed(&self, frame: Hfn) -> bool {
        frame.0 < self.frames && (self.ranges.is_empty() || self.backing(frame) != Backing::Hole)
    }

    /// What answers at a frame below the end.
    #[must_use]
    pub fn backing(&self, frame: Hfn) -> Backing {
        let below = self.ranges.range(..=frame).next_back();
        below
            .filter(|(first, (frames, _))| frame.0 - first.0 < *frames)
            .map_or_else(Backing::default, |(_, range)| range.1)
    }

    fn is_writable(&self, frame: Hfn) -> bool {
        frame.0 < self.frames && (self.ranges.is_empty() || self.backing(frame) == Backing::Writable)
    }

    /// Says what answers in a range of frames. The content of what becomes a hole is lost.
    pub fn set_backing(&mut self, first: Hfn, frames: u64, backing: Backing) {
        self.close();
        let end = first.0.saturating_add(frames);
        for (start, (count, old)) in mem::take(&mut self.ranges) {
            let stop = start.0.saturating_add(count);
            for (from, to) in [(start.0, stop.min(first.0)), (start.0.max(end), stop)] {
                if from < to {
                    self.ranges.insert(Hfn(from), (to - from, old));
                }
            }
        }
        if backing != Backing::Writable && frames > 0 {
            self.ranges.insert(first, (frames, backing));
        }
        if backing == Backing::Hole {
            let lost: Vec<Hfn> =
                self.slots().map(|(frame, _)| frame).filter(|frame| (first.0..end).contains(&frame.0)).collect();
            for (chunk, slot) in lost.into_iter().filter_map(split) {
                if let Some(chunk) = &mut self.chunks[chunk] {
                    Arc::make_mut(chunk)[slot] = Slot::Absent;
                }
            }
        }
    }

    /// The content of a frame; none if it was never written or is not installed.
    #[must_use]
    #[inline]
    pub fn frame(&self, frame: Hfn) -> Option<&FrameBytes> {
        let (chunk, slot) = split(frame)?;
        match &self.chunks.get(chunk)?.as_ref()?[slot] {
            Slot::Absent => None,
            Slot::Shared(frame) => Some(&frame.bytes),
            Slot::Open(index) => self.open.get(*index as usize).map(|opened| &*opened.bytes),
        }
    }

    fn slot_mut(&mut self, frame: Hfn) -> Option<&mut Slot> {
        if !self.is_writable(frame) {
            return None;
        }
        let (chunk, slot) = split(frame)?;
        let chunk = self.chunks[chunk].get_or_insert_with(|| Arc::new([const { Slot::Absent }; CHUNK_FRAMES]));
        Some(&mut Arc::make_mut(chunk)[slot])
    }

    fn frame_mut(&mut self, frame: Hfn) -> Option<&mut FrameBytes> {
        let slot = self.slot_mut(frame)?;
        if let Slot::Open(index) = *slot {
            return self.open.get_mut(index as usize).map(|opened| &mut *opened.bytes);
        }
        if matches!(slot, Slot::Absent) {
            *slot = Slot::Shared(Arc::new(Frame::zeroed()));
        }
        let slot = self.slot_mut(frame)?;
        let Slot::Shared(frame) = slot else { return None };
        let frame = Arc::make_mut(frame);
        frame.summary = OnceLock::new();
        Some(&mut frame.bytes)
    }

    /// Makes a frame this memory's own until [`Self::close`]; none if it can't be written, or if a history is kept.
    /// Copies its content if another memory shares it.
    pub fn open(&mut self, frame: Hfn) -> Option<OpenFrame> {
        if self.is_observed() {
            return None;
        }
        let index = u32::try_from(self.open.len()).ok()?;
        let slot = self.slot_mut(frame)?;
        let bytes = match mem::take(slot) {
            Slot::Open(index) => {
                *slot = Slot::Open(index);
                return Some(OpenFrame(index));
            }
            Slot::Absent => Box::new([0; FRAME_BYTES]),
            Slot::Shared(shared) => Arc::unwrap_or_clone(shared).bytes,
        };
        *slot = Slot::Open(index);
        self.open.push(Opened { hfn: frame, bytes });
        Some(OpenFrame(index))
    }

    /// A frame's number among the open ones, [`OpenFrame::NONE`] if it is not open.
    #[must_use]
    pub fn open_frame(&self, frame: Hfn) -> OpenFrame {
        let slot = split(frame).and_then(|(chunk, slot)| Some(&self.chunks.get(chunk)?.as_ref()?[slot]));
        if let Some(Slot::Open(index)) = slot { OpenFrame(*index) } else { OpenFrame::NONE }
    }

    /// The content of an open frame; none if frames have been closed since.
    #[must_use]
    #[inline]
    pub fn opened(&self, frame: OpenFrame) -> Option<&FrameBytes> {
        self.open.get(frame.0 as usize).map(|opened| &*opened.bytes)
    }

    /// The content of an open frame, to be written; none if frames have been closed since.
    #[inline]
    pub fn opened_mut(&mut self, frame: OpenFrame) -> Option<&mut FrameBytes> {
        self.open.get_mut(frame.0 as usize).map(|opened| &mut *opened.bytes)
    }

    /// How often frames were closed: while it stays, every [`OpenFrame`] stays good.
    #[must_use]
    pub const fn closings(&self) -> u64 {
        self.closings
    }

    /// Puts every open frame back where clones can share it. Every [`OpenFrame`] is void from here on.
    pub fn close(&mut self) {
        self.closings = self.closings.wrapping_add(1);
        for Opened { hfn, bytes } in mem::take(&mut self.open) {
            if let Some(slot) = self.slot_mut(hfn) {
                *slot = Slot::Shared(Arc::new(Frame { bytes, summary: OnceLock::new() }));
            }
        }
    }

    /// Reads `buffer.len()` bytes.
    pub fn read_bytes(&self, address: Hpa, buffer: &mut [u8]) {
        let mut done = 0;
        while done < buffer.len() {
            let at = address.offset(done as u64);
            let within = at.page_offset() as usize;
            let count = (FRAME_BYTES - within).min(buffer.len() - done);
            let part = &mut buffer[done..done + count];
            match self.frame(at.frame()) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + count]),
                None => part.fill(if self.is_installed(at.frame()) { 0 } else { 0xff }),
            }
            done += count;
        }
    }

    /// Writes all of `bytes`; those beyond the installed memory are dropped.
    pub fn write_bytes(&mut self, address: Hpa, bytes: &[u8]) {
        if self.history.is_none() {
            return self.put(address, bytes);
        }
        self.remembering(address, bytes.len() as u64, |memory| memory.put(address, bytes));
    }

    fn put(&mut self, address: Hpa, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = address.offset(done as u64);
            let within = at.page_offset() as usize;
            let count = (FRAME_BYTES - within).min(bytes.len() - done);
            if let Some(frame) = self.frame_mut(at.frame()) {
                frame[within..within + count].copy_from_slice(&bytes[done..done + count]);
            }
            done += count;
        }
    }

    /// Reads one little-endian value of `bytes` bytes (1 to 8), zero-extended.
    #[must_use]
    pub fn read(&self, address: Hpa, bytes: usize) -> u64 {
        let within = address.page_offset() as usize;
        if let Some(frame) = self.frame(address.frame())
            && let Some(value) = load(frame, within, bytes)
        {
            return value;
        }
        let mut buffer = [0; 8];
        self.read_bytes(address, &mut buffer[..bytes]);
        u64::from_le_bytes(buffer)
    }

    /// Writes the low `bytes` bytes (1 to 8) of `value`, little-endian.
    pub fn write(&mut self, address: Hpa, value: u64, bytes: usize) {
        self.write_bytes(address, &value.to_le_bytes()[..bytes]);
    }

    /// Reads a little-endian quadword.
    #[must_use]
    pub fn read_u64(&self, address: Hpa) -> u64 {
        self.read(address, 8)
    }

    /// Writes a little-endian quadword.
    pub fn write_u64(&mut self, address: Hpa, value: u64) {
        self.write(address, value, 8);
    }

    /// Reads a little-endian doubleword.
    #[must_use]
    pub fn read_u32(&self, address: Hpa) -> u32 {
        self.read(address, 4) as u32
    }

    /// Writes a little-endian doubleword.
    pub fn write_u32(&mut self, address: Hpa, value: u32) {
        self.write(address, u64::from(value), 4);
    }

    /// Sets every byte of a frame to zero.
    pub fn clear_frame(&mut self, frame: Hfn) {
        self.remembering(frame.base(), PAGE_BYTES, |memory| memory.clear(frame));
    }

    fn clear(&mut self, frame: Hfn) {
        if let Some(bytes) = self.frame_mut(frame) {
            bytes.fill(0);
        }
    }

    /// Does something that changes bytes of a range, and adds what changed to the history.
    fn remembering(&mut self, address: Hpa, bytes: u64, change: impl FnOnce(&mut Self)) {
        let Some(mut history) = self.history.take() else { return change(self) };
        let words = address.0 / 8..address.0.saturating_add(bytes).div_ceil(8);
        let before: Vec<_> = words.map(|word| (word, self.read_u64(Hpa(word * 8)))).collect();
        change(self);
        for (word, old) in before {
            history.changed(word, old, self.read_u64(Hpa(word * 8)));
        }
        self.history = Some(history);
    }

    /// Keeps the history of every word from now on, for one more observer.
    pub fn observe(&mut self) -> Observer {
        self.close();
        self.history.get_or_insert_default().observe()
    }

    /// An observer asks about nothing before a moment any more.
    pub fn release(&mut self, observer: Observer, before: Moment) {
        if let Some(history) = &mut self.history {
            history.release(observer, before);
        }
    }

    /// Whether a history is kept.
    #[must_use]
    pub const fn is_observed(&self) -> bool {
        self.history.is_some()
    }

    /// The present moment of the history, the first one while none is kept.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.history.as_ref().map_or(Moment(0), |history| history.now())
    }

    /// Gives something that happens its place in the history: the moment after it.
    pub fn tick(&mut self) -> Moment {
        self.history.as_mut().map_or(Moment(0), |history| history.tick())
    }

    /// The values that an aligned entry of 4 or 8 bytes had, oldest first, the present one last. Neighbours may be
    /// equal.
    #[must_use]
    pub fn versions(&self, address: Hpa, bytes: usize) -> Vec<Version> {
        let word = address.0 / 8;
        let present = self.read_u64(Hpa(word * 8));
        let found = match &self.history {
            Some(history) => history.versions(word, present),
            None => History::default().versions(word, present),
        };
        let part = |value: u64| if bytes == 8 { value } else { value >> (8 * (address.0 & 4)) & 0xffff_ffff };
        found.into_iter().map(|version| Version { value: part(version.value), ..version }).collect()
    }

    /// Every frame that holds a non-zero byte, in address order, with the digest of its content.
    pub fn written_frames(&self) -> impl Iterator<Item = (Hfn, u64)> + '_ {
        self.written().map(|(hfn, _, summary)| (hfn, summary.digest))
    }

    fn written(&self) -> impl Iterator<Item = (Hfn, &FrameBytes, Summary)> + '_ {
        self.slots().filter_map(|(hfn, slot)| {
            let (bytes, summary) = match slot {
                Slot::Absent => return None,
                Slot::Shared(frame) => (&*frame.bytes, frame.summary()),
                Slot::Open(index) => {
                    let bytes = &*self.open.get(*index as usize)?.bytes;
                    (bytes, Summary::of(bytes))
                }
            };
            (!summary.is_zero).then_some((hfn, bytes, summary))
        })
    }

    fn slots(&self) -> impl Iterator<Item = (Hfn, &Slot)> + '_ {
        self.chunks.iter().enumerate().flat_map(|(index, chunk)| {
            chunk.iter().flat_map(move |chunk| {
                chunk.iter().enumerate().map(move |(slot, frame)| (Hfn((index * CHUNK_FRAMES + slot) as u64), frame))
            })
        })
    }
}

/// Reads 1, 2, 4 or 8 bytes of a frame, zero-extended; none for any other count or beyond the frame's end.
#[must_use]
#[inline]
pub fn load(frame: &FrameBytes, within: usize, bytes: usize) -> Option<u64> {
    let tail = frame.get(within..)?;
    match bytes {
        1 => tail.first().map(|byte| u64::from(*byte)),
        2 => tail.first_chunk().map(|bytes| u64::from(u16::from_le_bytes(*bytes))),
        4 => tail.first_chunk().map(|bytes| u64::from(u32::from_le_bytes(*bytes))),
        8 => tail.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)),
        _ => None,
    }
}

/// Writes the low 1, 2, 4 or 8 bytes of a value into a frame; none, and nothing is written, for any other count or
/// beyond the frame's end.
#[inline]
pub fn store(frame: &mut FrameBytes, within: usize, value: u64, bytes: usize) -> Option<()> {
    let tail = frame.get_mut(within..)?;
    match bytes {
        1 => *tail.first_mut()? = value as u8,
        2 => *tail.first_chunk_mut()? = (value as u16).to_le_bytes(),
        4 => *tail.first_chunk_mut()? = (value as u32).to_le_bytes(),
        8 => *tail.first_chunk_mut()? = value.to_le_bytes(),
        _ => return None,
    }
    Some(())
}

fn split(frame: Hfn) -> Option<(usize, usize)> {
    let index = usize::try_from(frame.0).ok()?;
    Some((index / CHUNK_FRAMES, index % CHUNK_FRAMES))
}

/// Two memories are equal if every byte is, and the history that is kept; a frame never written equals a frame of
/// zeroes.
impl PartialEq for PhysMem {
    fn eq(&self, other: &Self) -> bool {
        let content = |memory: &Self| memory.written_frames().collect::<Vec<_>>();
        self.frames == other.frames
            && self.ranges == other.ranges
            && self.history == other.history
            && content(self) == content(other)
    }
}

impl Eq for PhysMem {}

impl Hash for PhysMem {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.frames.hash(state);
        if !self.ranges.is_empty() {
            self.ranges.hash(state);
        }
        for (frame, digest) in self.written_frames() {
            frame.hash(state);
            digest.hash(state);
        }
        if let Some(history) = &self.history {
            history.hash(state);
        }
    }
}

impl fmt::Debug for PhysMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PhysMem({} frames, {} written)", self.frames, self.written_frames().count())
    }
}

#[derive(Serialize, Deserialize)]
struct SavedMemory {
    frames: u64,
    content: Vec<(Hfn, Vec<u8>)>,
    ranges: BTreeMap<Hfn, (u64, Backing)>,
}

impl Serialize for PhysMem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let content = self.written().map(|(hfn, bytes, _)| (hfn, bytes.to_vec())).collect();
        SavedMemory { frames: self.frames, content, ranges: self.ranges.clone() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PhysMem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A checkpoint may not make us allocate more than this: 4 TiB of address space, 8 bytes a 256 KiB chunk.
        const FRAMES_MAX: u64 = 1 << 30;
        let saved = SavedMemory::deserialize(deserializer)?;
        if saved.frames > FRAMES_MAX {
            return Err(serde::de::Error::custom(format!("{} frames of memory, at most {FRAMES_MAX}", saved.frames)));
        }
        let mut memory = Self::new(saved.frames);
        for (frame, bytes) in saved.content {
            if bytes.len() != FRAME_BYTES || !memory.is_installed(frame) {
                return Err(serde::de::Error::custom(format!("frame {frame}: not a whole installed 4 KiB frame")));
            }
            memory.write_bytes(frame.base(), &bytes);
        }
        for (first, (frames, backing)) in saved.ranges {
            memory.set_backing(first, frames, backing);
        }
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::digest;

    #[test]
    fn reads_what_was_written_across_frames() {
        let mut memory = PhysMem::new(130);
        memory.write_u64(Hpa(0x40_ffc), 0x1122_3344_5566_7788);
        assert_eq!(memory.read_u64(Hpa(0x40_ffc)), 0x1122_3344_5566_7788);
        assert_eq!(memory.read(Hpa(0x41_000), 4), 0x1122_3344);
    }

    #[test]
    fn beyond_the_installed_memory_is_an_unclaimed_bus() {
        let mut memory = PhysMem::new(1);
        memory.write_u64(Hpa(0xffc), 0);
        assert_eq!(memory.read_u64(Hpa(0xffc)), 0xffff_ffff_0000_0000);
        memory.write_u64(Hpa(0x7000), 1);
        assert_eq!(memory.read_u64(Hpa(0x7000)), u64::MAX);
    }

    #[test]
    fn ranges_are_holes_or_read_only() {
        let mut memory = PhysMem::new(256);
        memory.write_u64(Hpa(0x10_000), 7);
        memory.set_backing(Hfn(0x10), 4, Backing::ReadOnly);
        memory.write_u64(Hpa(0x10_000), 8);
        assert_eq!(memory.read_u64(Hpa(0x10_000)), 7, "writes are dropped");
        memory.set_backing(Hfn(0x11), 2, Backing::Hole);
        let seen: Vec<_> = (0xf..0x15).map(|frame| memory.backing(Hfn(frame))).collect();
        let (free, fixed, hole) = (Backing::Writable, Backing::ReadOnly, Backing::Hole);
        assert_eq!(seen, [free, fixed, hole, hole, fixed, free]);
        assert_eq!(memory.read_u64(Hpa(0x11_000)), u64::MAX);
        memory.set_backing(Hfn(0x10), 4, Backing::Hole);
        memory.set_backing(Hfn(0x10), 4, Backing::Writable);
        assert_eq!(memory.read_u64(Hpa(0x10_000)), 0, "what a hole held is lost");
        assert_eq!(memory, PhysMem::new(256));
    }

    #[test]
    fn clones_share_until_written_and_zero_equals_absent() {
        let mut memory = PhysMem::new(64);
        memory.write_u64(Hpa(0x1000), 7);
        let mut other = memory.clone();
        assert_eq!(digest(&memory), digest(&other));
        other.write_u64(Hpa(0x1000), 8);
        assert_eq!(memory.read_u64(Hpa(0x1000)), 7);
        assert_ne!(digest(&memory), digest(&other));
        other.write_u64(Hpa(0x1000), 7);
        other.write_u64(Hpa(0x5000), 0);
        assert_eq!(memory, other);
        assert_eq!(digest(&memory), digest(&other));
    }

    /// An open frame is like any other to everybody else, and closing it shows nothing.
    #[test]
    fn open_frames_are_seen_by_all() {
        let mut memory = PhysMem::new(64);
        memory.write_u64(Hpa(0x1000), 7);
        let shared = memory.clone();
        let before = digest(&memory);
        let open = memory.open(Hfn(1)).expect("installed");
        assert_eq!(memory.open(Hfn(1)), Some(open));
        assert_eq!(memory.open(Hfn(64)), None);
        assert_eq!(digest(&memory), before);
        store(memory.opened_mut(open).expect("open"), 0, 8, 8).expect("inside");
        assert_eq!((memory.read_u64(Hpa(0x1000)), shared.read_u64(Hpa(0x1000))), (8, 7));
        assert_ne!(digest(&memory), before);
        let mut copy = memory.clone();
        memory.write_u64(Hpa(0x1000), 9);
        assert_eq!(memory.opened(open).and_then(|frame| load(frame, 0, 8)), Some(9));
        assert_eq!(copy.read_u64(Hpa(0x1000)), 8);
        let during = digest(&memory);
        memory.close();
        copy.close();
        assert_eq!(digest(&memory), during);
        assert!(memory.opened(open).is_none());
        copy.write_u64(Hpa(0x1000), 9);
        assert_eq!(memory, copy);
    }
}
