//! Fetch and decode.
//!
//! Bytes are fetched through the fetch translation of every instruction, one page at a time: a second page is
//! touched only if the instruction reaches into it. SDM 2A 2.3.11 (15-byte limit), SDM 3A 5.3 (CS limit).
//!
//! Decoding is a pure function of (bytes, bitness), and the cache is a memo of that function: its key is the whole
//! window of bytes just fetched, its bitness and its length, never an address. A hit returns what decoding again would
//! return, whatever wrote the bytes, so the cache can't influence a result; it is not machine state, and one cache a
//! host thread serves every machine on that thread.

use crate::core::Bitness;
use crate::exec::Fault;
use crate::exec::context::Context;
use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Register};
use sim_core::addr::{Gva, PAGE_BYTES};
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::Exception;
use std::cell::RefCell;

/// The longest instruction (SDM 2A 2.3.11).
const INSTRUCTION_BYTES_MAX: usize = 15;
/// Slots of the cache; a power of two.
const CACHE_SLOTS: usize = 1024;

/// Bytes at the instruction pointer: those of its page, and the next page's if they are needed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Window {
    bytes: [u8; INSTRUCTION_BYTES_MAX],
    length: u8,
    bitness: u8,
}

/// What a window holds.
#[derive(Clone, Copy)]
enum Decoded {
    /// A whole instruction.
    Whole(Instruction),
    /// No instruction begins like this.
    Invalid,
    /// The instruction goes on beyond the window.
    Short,
}

/// One-byte opcodes that do not exist in 64-bit mode (SDM 2D table A-2, superscript i64), but for those that became
/// prefixes.
const UNDEFINED_IN_64BIT: [u8; 20] = [
    0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x82, 0x9a, 0xce, 0xd4, 0xd5, 0xd6,
    0xea,
];

/// Whether a byte is a legacy or REX prefix in 64-bit mode (SDM 2A 2.1.1, 2.2.1).
const fn is_prefix_in_64bit(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

fn is_undefined_in_64bit(bytes: &[u8]) -> bool {
    let opcode = bytes.iter().find(|byte| !is_prefix_in_64bit(**byte));
    opcode.is_some_and(|opcode| UNDEFINED_IN_64BIT.contains(opcode))
}

impl Window {
    fn decode(&self) -> Decoded {
        let bytes = &self.bytes[..usize::from(self.length)];
        match self.decode_bytes(bytes) {
            // The decoder calls an instruction of more than 15 bytes invalid. Only redundant prefixes make one so long,
            // and without the first of them it is still longer than what is left.
            Decoded::Invalid if bytes.len() == INSTRUCTION_BYTES_MAX => match self.decode_bytes(&bytes[1..]) {
                Decoded::Short => Decoded::Short,
                Decoded::Whole(_) | Decoded::Invalid => Decoded::Invalid,
            },
            decoded => decoded,
        }
    }

    fn decode_bytes(&self, bytes: &[u8]) -> Decoded {
        let mut decoder = Decoder::new(u32::from(self.bitness), bytes, DecoderOptions::NONE);
        let instruction = decoder.decode();
        match decoder.last_error() {
            DecoderError::None => Decoded::Whole(instruction),
            // The decoder looks for a ModRM byte after an opcode that does not exist; the processor need not.
            DecoderError::NoMoreBytes if self.bitness == 64 && is_undefined_in_64bit(bytes) => Decoded::Invalid,
            DecoderError::NoMoreBytes => Decoded::Short,
            _ => Decoded::Invalid,
        }
    }

    fn slot(&self) -> usize {
        let mut word = [0; 16];
        word[..INSTRUCTION_BYTES_MAX].copy_from_slice(&self.bytes);
        word[INSTRUCTION_BYTES_MAX] = self.bitness ^ self.length;
        let word = u128::from_le_bytes(word);
        let folded = (word as u64) ^ ((word >> 64) as u64).rotate_left(29);
        (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize % CACHE_SLOTS
    }

    fn decode_cached(&self) -> Decoded {
        CACHE.with_borrow_mut(|cache| {
            let slot = &mut cache[self.slot()];
            if let Some((window, decoded)) = slot
                && window == self
            {
                return *decoded;
            }
            let decoded = self.decode();
            *slot = Some((*self, decoded));
            decoded
        })
    }
}

thread_local! {
    static CACHE: RefCell<Vec<Option<(Window, Decoded)>>> = RefCell::new(vec![None; CACHE_SLOTS]);
}

const fn bits(bitness: Bitness) -> u8 {
    match bitness {
        Bitness::Bits16 => 16,
        Bitness::Bits32 => 32,
        Bitness::Bits64 => 64,
    }
}

/// How many bytes may be fetched from the instruction pointer before the CS limit or the canonical boundary.
fn room(cx: &Context<'_>) -> usize {
    let rip = cx.core.rip;
    let beyond = if cx.is_64bit() {
        let boundary = 1 << (cx.core.linear_width() - 1);
        if rip < boundary { boundary - rip } else { u64::MAX }
    } else {
        (u64::from(cx.core.segments.cs.limit) + 1).saturating_sub(rip)
    };
    usize::try_from(beyond).unwrap_or(usize::MAX).min(INSTRUCTION_BYTES_MAX)
}

/// Fetches and decodes the instruction at the instruction pointer.
pub(crate) fn fetch(cx: &mut Context<'_>) -> Result<Instruction, Fault> {
    let start = cx.linear(Register::CS, cx.core.rip, 1, AccessKind::Fetch)?;
    let room = room(cx);
    let in_page = ((PAGE_BYTES - start.page_offset()) as usize).min(room);
    let mut window = Window { bytes: [0; INSTRUCTION_BYTES_MAX], length: 0, bitness: bits(cx.core.bitness()) };
    extend(cx, &mut window, start, in_page)?;
    let mut decoded = window.decode_cached();
    if matches!(decoded, Decoded::Short) && in_page < room {
        extend(cx, &mut window, start, room - in_page)?;
        decoded = window.decode_cached();
    }
    match decoded {
        Decoded::Whole(instruction) => Ok(instruction),
        Decoded::Invalid => Err(Exception::ud().into()),
        // Longer than 15 bytes, or beyond the limit: #GP(0) either way.
        Decoded::Short => Err(Exception::gp0().into()),
    }
}

fn extend(cx: &mut Context<'_>, window: &mut Window, start: Gva, more: usize) -> Result<(), Fault> {
    let from = usize::from(window.length);
    let address = start.offset(from as u64).0;
    let address = if cx.is_64bit() { address } else { address & 0xffff_ffff };
    cx.fetch_bytes(Gva(address), &mut window.bytes[from..from + more])?;
    window.length = (from + more) as u8;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(bytes: &[u8], bitness: u8) -> Window {
        let mut window = Window { bytes: [0; INSTRUCTION_BYTES_MAX], length: bytes.len() as u8, bitness };
        window.bytes[..bytes.len()].copy_from_slice(bytes);
        window
    }

    /// The memo answers as the decoder does, also when windows fight for one slot.
    #[test]
    fn the_cache_is_a_memo() {
        for round in 0..3 {
            for first in 0..=255 {
                for bitness in [16, 32, 64] {
                    let window = window(&[first, 0xc0 + round, 0x12, 0x34], bitness);
                    match (window.decode_cached(), window.decode()) {
                        (Decoded::Whole(a), Decoded::Whole(b)) => assert_eq!(a, b),
                        (Decoded::Invalid, Decoded::Invalid) | (Decoded::Short, Decoded::Short) => {}
                        _ => panic!("the memo differs for {first:#x} at {bitness} bits"),
                    }
                }
            }
        }
    }

    /// SDM 2A 2.3.11: fifteen prefixes and an opcode are one byte too long; fourteen are not.
    #[test]
    fn fifteen_bytes_at_most() {
        let mut bytes = [0x66; INSTRUCTION_BYTES_MAX];
        assert!(matches!(window(&bytes, 64).decode(), Decoded::Short));
        bytes[14] = 0x90;
        assert!(matches!(window(&bytes, 64).decode(), Decoded::Whole(_)));
        // An opcode that does not exist is #UD, however many prefixes it has.
        bytes[14] = 0x06;
        assert!(matches!(window(&bytes, 64).decode(), Decoded::Invalid));
    }
}
