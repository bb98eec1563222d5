//! Values to bytes and back: the only file that names bincode.
//!
//! bincode is unmaintained (RUSTSEC-2025-0141) and its release 3.0.0 is empty, so the container names the codec by a
//! number and nothing else may depend on it. The layout is that of bincode 2.0.1's serde interface with `standard()`:
//! little-endian, variable-length integers, no names, no types.
//!
//! What bincode alone does not promise, this module adds: every byte must be used, and a hostile length can neither
//! allocate more than the input could fill nor recurse without end (see `bounded`).

mod bounded;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::error::DecodeError;
use bounded::BoundedSeed;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// The container's number for this layout.
pub(crate) const CODEC_ID: u32 = 1;
/// The layout's name, for people.
pub(crate) const CODEC_NAME: &str = "bincode 2 serde layout, standard configuration";

/// The longest payload of one section, in bytes.
pub const SECTION_BYTES_MAX: usize = 1 << 30;

/// bincode counts its limit in decoded bytes, and one encoded byte decodes to at most a 16-byte integer.
const DECODED_BYTES_MAX: usize = SECTION_BYTES_MAX.saturating_mul(16);

const CONFIG: Configuration<LittleEndian, Varint, Limit<DECODED_BYTES_MAX>> =
    bincode::config::standard().with_limit::<DECODED_BYTES_MAX>();

/// Why a value has no bytes, or bytes have no value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The payload is longer than the format allows.
    #[error("{bytes} bytes: a section holds at most {SECTION_BYTES_MAX}")]
    TooLong {
        /// The payload's length.
        bytes: usize,
    },
    /// The value ended before the payload did.
    #[error("the value ends after {used} of {bytes} bytes: every byte must belong to the value")]
    TrailingBytes {
        /// Bytes that the value took.
        used: usize,
        /// The payload's length.
        bytes: usize,
    },
    /// The bytes are not a value of the type, or the value cannot be written.
    #[error("{0}")]
    Malformed(String),
}

/// Encodes a value.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes =
        bincode::serde::encode_to_vec(value, CONFIG).map_err(|cause| CodecError::Malformed(cause.to_string()))?;
    if bytes.len() > SECTION_BYTES_MAX {
        return Err(CodecError::TooLong { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// Decodes a value that takes up all of `bytes`.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > SECTION_BYTES_MAX {
        return Err(CodecError::TooLong { bytes: bytes.len() });
    }
    let seed = BoundedSeed::<T>::new(bytes.len());
    let (value, used) = bincode::serde::seed_decode_from_slice(seed, bytes, CONFIG).map_err(malformed)?;
    if used == bytes.len() { Ok(value) } else { Err(CodecError::TrailingBytes { used, bytes: bytes.len() }) }
}

fn malformed(cause: DecodeError) -> CodecError {
    CodecError::Malformed(match cause {
        DecodeError::UnexpectedEnd { additional } => format!("the payload ends {additional} bytes early"),
        DecodeError::OtherString(text) => text,
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Unit,
        New(u64),
        Pair(i32, u128),
        Named { text: String, inner: Option<Box<Self>> },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Everything {
        flag: bool,
        letter: char,
        shapes: Vec<Shape>,
        map: BTreeMap<u16, [u8; 3]>,
        nothing: (),
        float: f64,
    }

    fn everything() -> Everything {
        let inner = Some(Box::new(Shape::New(u64::MAX)));
        Everything {
            flag: true,
            letter: 'é',
            shapes: vec![Shape::Unit, Shape::Pair(-7, u128::MAX), Shape::Named { text: "x".into(), inner }],
            map: BTreeMap::from([(1, [1, 2, 3]), (0xffff, [0; 3])]),
            nothing: (),
            float: -0.5,
        }
    }

    #[test]
    fn every_kind_of_value_comes_back() {
        let bytes = encode(&everything()).unwrap();
        assert_eq!(decode::<Everything>(&bytes), Ok(everything()));
    }

    /// bincode specification: a value below 251 is one byte, then 251/252/253/254 announce 2, 4, 8, 16 bytes.
    #[test]
    fn the_integer_layout_is_the_documented_one() {
        for (value, bytes) in [
            (0u64, vec![0]),
            (250, vec![250]),
            (251, vec![251, 251, 0]),
            (0x1_0000, vec![252, 0, 0, 1, 0]),
            (0x1_0000_0000, vec![253, 0, 0, 0, 0, 1, 0, 0, 0]),
        ] {
            assert_eq!(encode(&value).unwrap(), bytes, "{value:#x}");
        }
    }

    #[test]
    fn every_prefix_and_every_extension_is_an_error() {
        let bytes = encode(&everything()).unwrap();
        for length in 0..bytes.len() {
            assert!(decode::<Everything>(&bytes[..length]).is_err(), "{length} bytes");
        }
        let longer = [&bytes[..], &[0]].concat();
        let expected = CodecError::TrailingBytes { used: bytes.len(), bytes: longer.len() };
        assert_eq!(decode::<Everything>(&longer), Err(expected));
    }

    /// 253 and eight bytes of ones: a length of 2^64 - 1.
    const HUGE_LENGTH: [u8; 9] = [253, 255, 255, 255, 255, 255, 255, 255, 255];

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Chain(Option<Box<Self>>);

    #[test]
    fn hostile_lengths_and_depths_are_errors() {
        let texts = |error: CodecError| error.to_string();
        let huge = "18446744073709551615 elements in 9 bytes";
        assert!(texts(decode::<Vec<u64>>(&HUGE_LENGTH).unwrap_err()).contains(huge));
        assert!(texts(decode::<Vec<()>>(&HUGE_LENGTH).unwrap_err()).contains(huge));
        assert!(texts(decode::<BTreeMap<(), ()>>(&HUGE_LENGTH).unwrap_err()).contains(huge));
        assert!(decode::<String>(&HUGE_LENGTH).is_err());
        assert!(texts(decode::<Chain>(&[1; 1 << 20]).unwrap_err()).contains("nested deeper than"));
    }

    /// Takes a text only if it is lent from the input, where its length was checked; an allocated one is refused.
    #[derive(Debug, PartialEq)]
    struct Lent(usize);

    impl<'de> Deserialize<'de> for Lent {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Lender;
            impl<'de> serde::de::Visitor<'de> for Lender {
                type Value = Lent;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("a text lent from the input")
                }

                fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Lent, E> {
                    Ok(Lent(text.len()))
                }
            }
            deserializer.deserialize_string(Lender)
        }
    }

    #[test]
    fn texts_are_not_allocated_before_their_length_is_checked() {
        let bytes = encode("text").unwrap();
        assert_eq!(decode::<Lent>(&bytes), Ok(Lent(4)));
        assert!(bincode::serde::decode_from_slice::<Lent, _>(&bytes, CONFIG).is_err(), "what bincode alone would do");
    }

    #[test]
    fn a_payload_beyond_the_limit_is_not_looked_at() {
        let bytes = vec![0; SECTION_BYTES_MAX + 1];
        assert_eq!(decode::<u8>(&bytes), Err(CodecError::TooLong { bytes: bytes.len() }));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(value) = decode::<Everything>(&bytes) {
                // Not byte for byte: an integer has longer spellings, which the decoder also reads. NaN differs from itself.
                prop_assert!(encode(&value).is_ok());
            }
        }
    }
}
