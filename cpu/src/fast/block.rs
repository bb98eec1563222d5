//! Basic blocks, and the memo of them.
//!
//! A block is a pure function of bytes: the memo keeps the bytes that it was made of and is believed only while memory
//! still holds them. It is no part of a machine's state, and one memo a host thread serves every machine.

use super::decode::decode;
use super::uop::{Binary, Unary, Uop, ends_block, specialised, touches};
use crate::exec::flags::Width;
use iced_x86::{Decoder, DecoderError, DecoderOptions};
use sim_core::addr::{Hfn, PAGE_BYTES};
use sim_core::clock::Cost;
use sim_core::memory::FrameBytes;

/// The most instructions of a block.
const INSTRUCTIONS_MAX: usize = 48;
/// The longest instruction.
const INSTRUCTION_BYTES_MAX: usize = 15;
/// Blocks that are kept; a power of two.
const SLOTS: usize = 4096;

/// How far a block has come before one of its micro-operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes from the block's first.
    pub(super) offset: u16,
    /// Instructions retired.
    pub(super) retired: u16,
    /// What they cost, in cycles.
    pub(super) cycles: u32,
}

/// What one translation costs that hits the TLB.
pub(super) const TRANSLATION: Cost = Cost::TlbHit;

/// What a micro-operation costs: its fetch, its issue, and its accesses to data.
const fn cycles(uop: &Uop) -> u32 {
    let (translations, accesses) = touches(uop);
    let fetch = TRANSLATION.cycles().0 + Cost::Instruction.cycles().0;
    (fetch + translations * TRANSLATION.cycles().0 + accesses * Cost::DataAccess.cycles().0) as u32
}

/// Instructions of one page, entered at the first.
#[derive(Clone, Debug, Default)]
pub(super) struct Block {
    frame: Hfn,
    offset: u16,
    bytes: Box<[u8]>,
    pub(super) uops: Box<[Uop]>,
    /// One more than there are micro-operations: the last is how far the whole block comes.
    pub(super) progress: Box<[Progress]>,
    /// How many instructions the whole block has.
    pub(super) instructions: u64,
}

impl Block {
    /// The block at an offset of a frame. It is empty if the first instruction is left to the slow path.
    fn build(frame: Hfn, offset: u16, content: &FrameBytes) -> Self {
        let tail = &content[usize::from(offset)..];
        let mut decoder = Decoder::with_ip(64, tail, 0, DecoderOptions::NONE);
        let mut uops: Vec<Uop> = Vec::new();
        let mut progress = vec![Progress::default()];
        let mut here = Progress::default();
        while usize::from(here.retired) < INSTRUCTIONS_MAX && decoder.can_decode() {
            let instruction = decoder.decode();
            if decoder.last_error() != DecoderError::None {
                break;
            }
            let Some(uop) = decode(&instruction) else { break };
            here.offset += instruction.len() as u16;
            here.retired += 1;
            here.cycles += cycles(&uop);
            match uops.last().and_then(|last| fuse(last, &uop)) {
                Some(fused) => {
                    uops.pop();
                    progress.pop();
                    uops.push(fused);
                }
                None => uops.push(uop),
            }
            progress.push(here);
            if ends_block(&uop) {
                break;
            }
        }
        let seen = usize::from(here.offset).max(INSTRUCTION_BYTES_MAX).min(tail.len());
        let uops = uops.into_iter().map(specialised).collect();
        let instructions = u64::from(here.retired);
        Self { frame, offset, bytes: tail[..seen].into(), uops, progress: progress.into(), instructions }
    }

    fn is_at(&self, frame: Hfn, offset: u16) -> bool {
        self.frame == frame && self.offset == offset && !self.bytes.is_empty()
    }

    fn holds(&self, content: &FrameBytes) -> bool {
        content[usize::from(self.offset)..].starts_with(&self.bytes)
    }
}

/// A comparison and the jump behind it.
fn fuse(last: &Uop, jump: &Uop) -> Option<Uop> {
    let Uop::JumpIf { condition, target } = *jump else { return None };
    match *last {
        Uop::Binary { op: Binary::Cmp, width, to, from } => {
            Some(Uop::CompareJumpIf { condition, width, a: to, b: from, target })
        }
        Uop::BinaryImmediate { op: Binary::Cmp, width, to, value } => {
            let b = i16::try_from(value).ok()?;
            Some(Uop::CompareImmediateJumpIf { condition, width, a: to, b, target })
        }
        Uop::BinaryImmediate { op: Binary::Test, width, to, value } => {
            let b = i16::try_from(value).ok()?;
            Some(Uop::TestImmediateJumpIf { condition, width, a: to, b, target })
        }
        Uop::Binary { op: Binary::Test, width, to, from } => {
            Some(Uop::TestJumpIf { condition, width, a: to, b: from, target })
        }
        Uop::Unary { op: Unary::Dec, width: width @ (Width::Dword | Width::Qword), to } => {
            Some(Uop::DecrementJumpIf { condition, width, to, target })
        }
        _ => None,
    }
}

/// What became of a search for a block.
pub(super) enum Found {
    /// It is in this slot, as it was before.
    Same(usize),
    /// It is in this slot, and another one was there before.
    Replaced(usize),
}

/// Blocks by where they are. An empty slot is like a block of no bytes.
#[derive(Debug)]
pub(super) struct Blocks(Vec<Block>);

impl Default for Blocks {
    fn default() -> Self {
        Self(vec![Block::default(); SLOTS])
    }
}

impl Blocks {
    /// The block at an offset of a frame with this content.
    pub(super) fn find(&mut self, frame: Hfn, offset: u64, content: &FrameBytes) -> Found {
        let offset = (offset % PAGE_BYTES) as u16;
        let hash = (frame.0 << 12 | u64::from(offset)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let index = (hash >> 52) as usize % SLOTS;
        let slot = &mut self.0[index];
        if slot.is_at(frame, offset) && slot.holds(content) {
            return Found::Same(index);
        }
        let was_empty = slot.bytes.is_empty();
        *slot = Block::build(frame, offset, content);
        if was_empty { Found::Same(index) } else { Found::Replaced(index) }
    }

    /// The block in a slot.
    #[inline]
    pub(super) fn get(&self, slot: usize) -> &Block {
        &self.0[slot % SLOTS]
    }
}
