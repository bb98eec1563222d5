//! The connection to another process of a sharded search.
//!
//! timely panics in threads of its own where a connection breaks, and waits for ever where the other machine falls silent.
//! Here whoever waits for the search is told which process is gone; the thread that noticed takes no further part.
//!
//! What timely sends goes in frames behind their length. One frame says that no more follow, so that an end is told from a
//! break, and one comes every few seconds whatever the search does, so that a silence is too.

use std::fmt::Display;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use timely::communication::allocator::zero_copy::stream::Stream;

/// The length that says that no more frames follow.
const END: u32 = 0;
/// The length that says that the process is still there.
const ALIVE: u32 = u32::MAX;
/// Bytes of a frame.
const MOST: usize = 1 << 20;
/// How often a process says that it is still there.
const BETWEEN: Duration = Duration::from_secs(5);
/// How long it may be silent.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

/// Is told what is wrong with another process.
pub(crate) type Lost = Arc<dyn Fn(String) + Send + Sync>;

/// What is sent to the other process; nothing more after the end.
type Out = Arc<Mutex<Option<TcpStream>>>;

/// One end of a connection.
pub(crate) struct Link {
    socket: TcpStream,
    out: Out,
    /// Which process is at the other end.
    name: String,
    lost: Lost,
    /// Bytes that are left of the frame that is being read.
    left: usize,
}

impl Link {
    pub(crate) fn new(socket: TcpStream, name: String, lost: Lost) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(SILENCE))?;
        let out: Out = Arc::new(Mutex::new(Some(socket.try_clone()?)));
        let beats = Arc::clone(&out);
        thread::Builder::new().name("search:alive".to_owned()).spawn(move || {
            while send(&beats, ALIVE, &[]).is_ok() {
                thread::sleep(BETWEEN);
            }
        })?;
        Ok(Self { socket, out, name, lost, left: 0 })
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            let mut length = [0; 4];
            self.socket.read_exact(&mut length)?;
            match u32::from_le_bytes(length) {
                END => return Ok(0),
                ALIVE => {}
                length => self.left = length as usize,
            }
        }
        let most = buffer.len().min(self.left);
        let read = self.socket.read(&mut buffer[..most])?;
        self.left -= read;
        if read == 0 && most > 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
    }

    /// Tells that the other process is gone, and stays here: nothing can go on without it.
    fn give_up(&self, error: &io::Error) -> ! {
        (self.lost)(format!("{} is gone: {}", self.name, why(error)));
        loop {
            thread::park();
        }
    }
}

/// What an error of a connection says of the other process.
pub(crate) fn why(error: &io::Error) -> impl Display + use<> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it has said nothing for {} seconds", SILENCE.as_secs())
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "it closed the connection".to_owned()
        }
        _ => error.to_string(),
    }
}

fn send(out: &Out, length: u32, bytes: &[u8]) -> io::Result<()> {
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(socket) = &mut *out else { return Err(io::ErrorKind::NotConnected.into()) };
    let sent = socket.write_all(&[&length.to_le_bytes(), bytes].concat());
    if length == END {
        *out = None;
    }
    sent
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(buffer).or_else(|error| self.give_up(&error))
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = &bytes[..bytes.len().min(MOST)];
        if !part.is_empty() {
            send(&self.out, part.len() as u32, part).unwrap_or_else(|error| self.give_up(&error));
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Link {
    fn try_clone(&self) -> io::Result<Self> {
        let (out, lost) = (Arc::clone(&self.out), Arc::clone(&self.lost));
        Ok(Self { socket: self.socket.try_clone()?, out, name: self.name.clone(), lost, left: 0 })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let ended = send(&self.out, END, &[]).and_then(|()| self.socket.shutdown(how));
        ended.or_else(|error| self.give_up(&error))
    }
}
