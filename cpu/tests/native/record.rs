//! What a case starts with and ends in, as bytes that the native program reads and writes.

/// Where the program's own code is; a fault here means that it could not start a case.
pub(crate) const PROGRAM: u64 = 0x5671_2340_0000;
/// The page with the instruction under test; every other byte of it is INT3.
pub(crate) const CODE: u64 = 0x2000_0000;
/// Two pages of data, with nothing mapped before and after them.
pub(crate) const DATA: u64 = 0x2001_0000;
/// Bytes of data.
pub(crate) const DATA_BYTES: usize = 0x2000;
/// The bytes that a case fills, across the boundary of the two pages.
pub(crate) const WINDOW: u64 = DATA + 0x1000 - 128;
/// Bytes of the window.
pub(crate) const WINDOW_BYTES: usize = 256;
/// The last bytes of the data, which a case fills too.
pub(crate) const TAIL: u64 = DATA + DATA_BYTES as u64 - TAIL_BYTES as u64;
/// Bytes of the tail.
pub(crate) const TAIL_BYTES: usize = 64;
/// A page that can only be read.
pub(crate) const READ_ONLY: u64 = 0x2001_4000;
/// The program's own memory.
pub(crate) const WORK: u64 = 0x5671_4560_0000;

/// Offsets in a case.
pub(crate) mod case {
    pub(crate) const RIP: usize = 128;
    pub(crate) const CS: usize = 136;
    pub(crate) const RFLAGS: usize = 144;
    pub(crate) const RSP: usize = 152;
    pub(crate) const SS: usize = 160;
    pub(crate) const DS: usize = 168;
    pub(crate) const ES: usize = 176;
    pub(crate) const OFFSET: usize = 184;
    pub(crate) const MXCSR: usize = 192;
    pub(crate) const XMM: usize = 256;
    pub(crate) const CODE: usize = 512;
    pub(crate) const WINDOW: usize = 544;
    pub(crate) const TAIL: usize = 800;
    pub(crate) const BYTES: usize = 896;
}

/// Offsets in a result.
pub(crate) mod result {
    pub(crate) const SIGNAL: usize = 184;
    pub(crate) const CHECKSUM: usize = 192;
    pub(crate) const MXCSR: usize = 200;
    pub(crate) const SELECTORS: usize = 208;
    pub(crate) const XMM: usize = 256;
    pub(crate) const WINDOW: usize = 512;
    pub(crate) const TAIL: usize = 768;
    pub(crate) const BYTES: usize = 832;
}

/// The code that a case runs, by the width and segments that it runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 64-bit mode.
    Bits64,
    /// Compatibility mode, flat 32-bit segments.
    Bits32,
    /// Compatibility mode, 16-bit code and data segments of the LDT; the stack stays flat.
    Bits16,
}

/// The 16-bit code segment's limit and the 16-bit data segment's.
pub(crate) const LIMIT16: u32 = 0x2fff;
/// The base of the 16-bit data segment: offset 0x1000 is [`DATA`].
pub(crate) const BASE16: u64 = DATA - 0x1000;

impl Mode {
    /// The decoder's bitness.
    pub(crate) const fn bitness(self) -> u32 {
        match self {
            Self::Bits64 => 64,
            Self::Bits32 => 32,
            Self::Bits16 => 16,
        }
    }

    /// CS, and DS and ES, as the kernel numbers them; the LDT's are the program's.
    pub(crate) const fn selectors(self) -> (u16, u16) {
        match self {
            Self::Bits64 => (0x33, 0),
            Self::Bits32 => (0x23, 0x2b),
            Self::Bits16 => (0x07, 0x0f),
        }
    }

    /// The bases of code and data.
    pub(crate) const fn bases(self) -> (u64, u64) {
        match self {
            Self::Bits64 | Self::Bits32 => (0, 0),
            Self::Bits16 => (CODE, BASE16),
        }
    }
}

/// The stack segment of every mode.
pub(crate) const SS: u16 = 0x2b;

/// One instruction with everything that it can see.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) mode: Mode,
    pub(crate) gprs: [u64; 16],
    pub(crate) rflags: u64,
    pub(crate) mxcsr: u32,
    pub(crate) xmm: [u128; 16],
    /// At most 16 bytes.
    pub(crate) code: Vec<u8>,
    /// Where the code begins in its page.
    pub(crate) offset: u64,
    pub(crate) window: [u8; WINDOW_BYTES],
    pub(crate) tail: [u8; TAIL_BYTES],
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) gprs: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    /// The exception that ended it: vector, error code and, for #PF, the address. INT3 ends a completed instruction.
    pub(crate) vector: u8,
    pub(crate) error: u32,
    pub(crate) cr2: u64,
    pub(crate) mxcsr: u32,
    /// DS, ES, FS, GS, CS, SS.
    pub(crate) selectors: [u16; 6],
    pub(crate) xmm: [u128; 16],
    pub(crate) window: [u8; WINDOW_BYTES],
    pub(crate) tail: [u8; TAIL_BYTES],
    /// Of all data.
    pub(crate) checksum: u64,
}

/// Folds data as the native program does.
pub(crate) fn checksum(data: &[u8]) -> u64 {
    data.chunks_exact(8).fold(0, |sum: u64, chunk| sum.rotate_left(5) ^ u64_at(chunk, 0))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("as many bytes"))
}

fn xmm_at(bytes: &[u8], at: usize) -> [u128; 16] {
    std::array::from_fn(|index| {
        u128::from_le_bytes(bytes[at + 16 * index..at + 16 * (index + 1)].try_into().expect("as many bytes"))
    })
}

impl Case {
    /// The instruction pointer of the instruction, an offset in CS.
    pub(crate) fn rip(&self) -> u64 {
        CODE - self.mode.bases().0 + self.offset
    }

    /// The case as the program reads it.
    pub(crate) fn to_bytes(&self) -> [u8; case::BYTES] {
        let mut bytes = [0; case::BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        for (index, value) in self.gprs.iter().enumerate() {
            put(8 * index, &value.to_le_bytes());
        }
        let (cs, data) = self.mode.selectors();
        put(case::RIP, &self.rip().to_le_bytes());
        put(case::CS, &cs.to_le_bytes());
        put(case::RFLAGS, &self.rflags.to_le_bytes());
        put(case::RSP, &self.gprs[4].to_le_bytes());
        put(case::SS, &SS.to_le_bytes());
        put(case::DS, &data.to_le_bytes());
        put(case::ES, &data.to_le_bytes());
        put(case::OFFSET, &self.offset.to_le_bytes());
        put(case::MXCSR, &self.mxcsr.to_le_bytes());
        for (index, value) in self.xmm.iter().enumerate() {
            put(case::XMM + 16 * index, &value.to_le_bytes());
        }
        let mut code = [0xcc; 16];
        code[..self.code.len()].copy_from_slice(&self.code);
        put(case::CODE, &code);
        put(case::WINDOW, &self.window);
        put(case::TAIL, &self.tail);
        bytes
    }
}

impl Ended {
    /// The result as the program wrote it. It begins with the kernel's `struct sigcontext`.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        /// Where the signal frame has RAX to R15.
        const GPRS: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
        let field = |index: usize| u64_at(bytes, 8 * index);
        let vector = field(20) as u8;
        let selector = |index: usize| u64_at(bytes, result::SELECTORS + 8 * index) as u16;
        Self {
            gprs: GPRS.map(field),
            // #BP and #OF are traps: the frame has the next instruction's address. INT3 is one byte long.
            rip: if vector == 3 { field(16).wrapping_sub(1) } else { field(16) },
            rflags: field(17),
            vector,
            error: field(19) as u32,
            cr2: if vector == 14 { field(22) } else { 0 },
            mxcsr: u64_at(bytes, result::MXCSR) as u32,
            selectors: [selector(0), selector(1), selector(2), selector(3), field(18) as u16, (field(18) >> 48) as u16],
            xmm: xmm_at(bytes, result::XMM),
            window: bytes[result::WINDOW..result::WINDOW + WINDOW_BYTES].try_into().expect("as many bytes"),
            tail: bytes[result::TAIL..result::TAIL + TAIL_BYTES].try_into().expect("as many bytes"),
            checksum: u64_at(bytes, result::CHECKSUM),
        }
    }
}
