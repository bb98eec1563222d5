//! How the processes of a sharded search find each other. timely could do it, but tells of every attempt on standard output.
//!
//! Each process listens at its own address for those with higher numbers, and calls those with lower ones, which may not
//! have started yet. A caller says its number. Nobody waits longer than a minute.

use std::any::Any;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;
use timely::communication::Hooks;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};

use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;

/// How often another process is looked for, and how long it is waited for in between.
const TRIES: u32 = 1200;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// The processes that share a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    /// The address of each, as HOST:PORT. One process needs none.
    pub addresses: Vec<String>,
    /// Which of them this is.
    pub process: usize,
    /// Workers of each process.
    pub workers: usize,
}

/// What timely is started with.
pub(crate) type Started = (Vec<AllocatorBuilder>, Box<dyn Any + Send>);

impl Hosts {
    /// One process alone.
    #[must_use]
    pub const fn alone(workers: usize) -> Self {
        Self { addresses: Vec::new(), process: 0, workers }
    }

    /// Finds the others.
    pub(crate) fn start(&self) -> io::Result<Started> {
        let hooks = Hooks::default();
        let builders = ProcessBuilder::new_typed_vector(self.workers, hooks.refill.clone(), hooks.spill.clone());
        let sockets = if self.addresses.len() < 2 { vec![None] } else { self.connect()? };
        let (builders, guard) =
            initialize_networking_from_sockets(builders, sockets, self.process, self.workers, hooks)?;
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
    }

    /// A connection to each other process, by number.
    fn connect(&self) -> io::Result<Vec<Option<TcpStream>>> {
        let own = self.addresses.get(self.process).ok_or_else(|| wrong("there is no such process"))?;
        let mut sockets: Vec<Option<TcpStream>> = self.addresses.iter().map(|_| None).collect();
        let listener = TcpListener::bind(own)?;
        listener.set_nonblocking(true)?;
        for (address, socket) in self.addresses.iter().zip(&mut sockets).take(self.process) {
            let mut stream = patiently(|| TcpStream::connect(address))?;
            stream.write_all(&(self.process as u64).to_le_bytes())?;
            *socket = Some(stream);
        }
        for _ in self.process + 1..self.addresses.len() {
            let (mut stream, _) = patiently(|| listener.accept())?;
            stream.set_nonblocking(false)?;
            let mut number = [0; 8];
            stream.read_exact(&mut number)?;
            let number = u64::from_le_bytes(number) as usize;
            match sockets.get_mut(number) {
                Some(socket @ None) if number > self.process => *socket = Some(stream),
                _ => return Err(wrong("two processes have the same number, or one has none of these")),
            }
        }
        for socket in sockets.iter().flatten() {
            socket.set_nodelay(true)?;
        }
        Ok(sockets)
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// Tries something that another process may not be ready for.
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..TRIES {
        match attempt() {
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock) => {
                thread::sleep(BETWEEN_TRIES);
            }
            other => return other,
        }
    }
    attempt()
}
