//! Frames: how messages leave a rig. The channel is one I/O port, to which each emulator listens and to whose bytes Bochs
//! adds what its screen prints; a mark, a length and a checksum tell what is a message, and whether it is whole.

use super::job::Message;
use sim_core::SimError;

/// What a frame begins with: no text has it.
const MARK: [u8; 4] = [0xff, b'R', b'L', 0xfe];
/// Mark, length and checksum.
const HEAD: usize = 12;
/// A longer frame is none: the greatest recording is some hundred kilobytes.
const LONGEST: usize = 64 << 20;

/// The frame of a message.
///
/// # Errors
/// If it can't be written as JSON.
pub(super) fn write(message: &Message) -> Result<Vec<u8>, SimError> {
    let body = serde_json::to_vec(message).map_err(|error| SimError::internal(format!("a frame: {error}")))?;
    let length = u32::try_from(body.len()).map_err(|_| SimError::internal("a frame of more than 4 GiB"))?;
    let mut frame = MARK.to_vec();
    frame.extend(length.to_le_bytes());
    frame.extend(crc32fast::hash(&body).to_le_bytes());
    frame.extend(body);
    Ok(frame)
}

/// Bytes that came, as frames.
#[derive(Debug, Default)]
pub(super) struct Reader(Vec<u8>);

impl Reader {
    /// Takes more bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next whole message. What belongs to none, or is damaged, is passed over: whose frame is missing is known by the
    /// place of its job.
    ///
    /// # Errors
    /// If a whole frame holds no message: the program inside is of another build.
    pub(super) fn next(&mut self) -> Result<Option<Message>, SimError> {
        while let Some(at) = self.0.windows(MARK.len()).position(|bytes| bytes == MARK) {
            self.0.drain(..at);
            let word = |at: usize| {
                let bytes = self.0.get(at..at + 4)?;
                Some(bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)))
            };
            let (Some(length), Some(sum)) = (word(4), word(8)) else { return Ok(None) };
            let length = length as usize;
            if length <= LONGEST {
                let Some(body) = self.0.get(HEAD..HEAD + length) else { return Ok(None) };
                if crc32fast::hash(body) == sum {
                    let message = serde_json::from_slice(body).map_err(|error| {
                        SimError::unmodelled(format!("a rig with another build of rolecall: {error}"))
                    })?;
                    self.0.drain(..HEAD + length);
                    return Ok(Some(message));
                }
            }
            self.0.drain(..MARK.len());
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8], piece: usize) -> Vec<Message> {
        let mut reader = Reader::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(piece) {
            reader.feed(piece);
            while let Some(message) = reader.next().unwrap() {
                found.push(message);
            }
        }
        found
    }

    /// Frames come whole whatever stands between them and however they are cut.
    #[test]
    fn messages_come_back() {
        let messages = [Message::Begin(0), Message::Done(0, Err("no".to_owned())), Message::End];
        let mut bytes = b"\x1b[2J<bochs:1> ".to_vec();
        for message in &messages {
            bytes.extend(write(message).unwrap());
            bytes.extend(b"screen \xff");
        }
        for piece in [1, 7, bytes.len()] {
            assert_eq!(all(&bytes, piece), messages);
        }
    }

    /// A frame with something in its middle is lost; the next is not.
    #[test]
    fn damage_costs_one_frame() {
        let mut bytes = write(&Message::Begin(7)).unwrap();
        bytes.insert(HEAD + 3, b'!');
        bytes.extend(write(&Message::Begin(8)).unwrap());
        bytes.extend(write(&Message::End).unwrap());
        assert_eq!(all(&bytes, 5), [Message::Begin(8), Message::End]);
    }

    #[test]
    fn another_build_is_told() {
        let body = br#"{"Hello":1}"#;
        let mut reader = Reader::default();
        reader.feed(&MARK);
        reader.feed(&(body.len() as u32).to_le_bytes());
        reader.feed(&crc32fast::hash(body).to_le_bytes());
        reader.feed(body);
        assert!(reader.next().is_err());
    }
}
