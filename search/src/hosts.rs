//! How the processes of a sharded search find each other. timely could do it, but tells of every attempt on standard output.
//!
//! Each process listens at its own address for those with higher numbers, and calls those with lower ones, which may not
//! have started yet. They tell each other who they are and what they are to search, which must be the same. Nobody waits
//! longer than a minute.

use crate::link::{Link, Lost, SILENCE, why};
use std::any::Any;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use timely::communication::Hooks;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};

use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;

/// How long another process is waited for, and how long in between two looks.
const PATIENCE: Duration = Duration::from_secs(60);
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

    /// Finds the others, which must be given the same search. `lost` is told of one that goes away later.
    pub(crate) fn start(&self, search: Identity, lost: &Lost) -> io::Result<Started> {
        let hooks = Hooks::default();
        let builders = ProcessBuilder::new_typed_vector(self.workers, hooks.refill.clone(), hooks.spill.clone());
        let sockets = if self.addresses.len() < 2 { vec![None] } else { self.connect(search)? };
        let links = (0..).zip(sockets).map(|(number, socket)| {
            socket.map(|socket| Link::new(socket, self.name(number), Arc::clone(lost))).transpose()
        });
        let links = links.collect::<io::Result<Vec<_>>>()?;
        let (builders, guard) = initialize_networking_from_sockets(builders, links, self.process, self.workers, hooks)?;
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
    }

    /// A process as messages name it.
    fn name(&self, number: usize) -> String {
        let address = self.addresses.get(number).map_or("no address", String::as_str);
        format!("process {number} ({address})")
    }

    /// A connection to each other process, by number.
    fn connect(&self, search: Identity) -> io::Result<Vec<Option<TcpStream>>> {
        let own = self.addresses.get(self.process).ok_or_else(|| wrong("there is no such process"))?;
        let listener = TcpListener::bind(own).map_err(|error| wrong(format!("{own}: {error}")))?;
        listener.set_nonblocking(true)?;
        let ours = Greeting { process: self.process, workers: self.workers, processes: self.addresses.len(), search };
        let mut sockets: Vec<Option<TcpStream>> = self.addresses.iter().map(|_| None).collect();
        for (number, socket) in sockets.iter_mut().enumerate().take(self.process) {
            *socket = Some(self.call(number, &ours)?);
        }
        while let Some(missing) = (self.process + 1..sockets.len()).find(|number| sockets[*number].is_none()) {
            let (stream, number) = self.answer(&listener, &ours, missing)?;
            match sockets.get_mut(number) {
                Some(socket @ None) if number > self.process => *socket = Some(stream),
                _ => return Err(wrong(format!("two processes have the number {number}"))),
            }
        }
        Ok(sockets)
    }

    /// Calls a process with a lower number.
    fn call(&self, number: usize, ours: &Greeting) -> io::Result<TcpStream> {
        let named = |error: io::Error| wrong(format!("{}: {}", self.name(number), why(&error)));
        let mut stream = patiently(|| TcpStream::connect(&self.addresses[number])).map_err(named)?;
        ours.say(&mut stream).map_err(named)?;
        let theirs = Greeting::hear(&mut stream).map_err(named)?;
        if theirs.process != number {
            return Err(wrong(format!("{} says that it is process {}", self.name(number), theirs.process)));
        }
        self.compare(ours, &theirs)?;
        Ok(stream)
    }

    /// Answers a process with a higher number; one is known not to have called yet.
    fn answer(&self, listener: &TcpListener, ours: &Greeting, missing: usize) -> io::Result<(TcpStream, usize)> {
        let late = |error: io::Error| wrong(format!("{} has not called: {error}", self.name(missing)));
        let (mut stream, _) = patiently(|| listener.accept()).map_err(late)?;
        stream.set_nonblocking(false)?;
        let strange = |error: io::Error| wrong(format!("a caller that is no such process: {}", why(&error)));
        let theirs = Greeting::hear(&mut stream).map_err(strange)?;
        ours.say(&mut stream).map_err(|error| wrong(format!("{}: {}", self.name(theirs.process), why(&error))))?;
        self.compare(ours, &theirs)?;
        Ok((stream, theirs.process))
    }

    /// Whether another process is given the same as this one.
    fn compare(&self, ours: &Greeting, theirs: &Greeting) -> io::Result<()> {
        let counts = |greeting: &Greeting| (greeting.processes, greeting.workers);
        let what = if ours.search.space != theirs.search.space {
            "another search"
        } else if ours.search.depth != theirs.search.depth {
            "another depth"
        } else if counts(ours) != counts(theirs) {
            "another number of processes or threads"
        } else {
            return Ok(());
        };
        Err(wrong(format!("{} is given {what} than process {}", self.name(theirs.process), self.process)))
    }
}

/// What tells one search from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// A digest of whatever the space depends on.
    pub(crate) space: u64,
    pub(crate) depth: u32,
}

/// What processes tell each other first.
struct Greeting {
    process: usize,
    workers: usize,
    processes: usize,
    search: Identity,
}

/// The first word of a greeting.
const HELLO: u64 = u64::from_le_bytes(*b"rolecall");

impl Greeting {
    fn say(&self, stream: &mut TcpStream) -> io::Result<()> {
        let Self { process, workers, processes, search: Identity { space, depth } } = self;
        let words = [HELLO, *process as u64, *workers as u64, *processes as u64, *space, u64::from(*depth)];
        stream.write_all(&words.map(u64::to_le_bytes).concat())
    }

    fn hear(stream: &mut TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(SILENCE))?;
        let mut word = || {
            let mut bytes = [0; 8];
            stream.read_exact(&mut bytes).map(|()| u64::from_le_bytes(bytes))
        };
        if word()? != HELLO {
            return Err(wrong("it does not greet as a process of a search does"));
        }
        let [process, workers, processes] = [word()? as usize, word()? as usize, word()? as usize];
        let (space, depth) = (word()?, word()?);
        let depth = u32::try_from(depth).map_err(|_| wrong("it greets with no depth"))?;
        Ok(Self { process, workers, processes, search: Identity { space, depth } })
    }
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.into())
}

/// Tries something that another process may not be ready for.
fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..PATIENCE.as_millis() / BETWEEN_TRIES.as_millis() {
        match attempt() {
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock) => {
                thread::sleep(BETWEEN_TRIES);
            }
            other => return other,
        }
    }
    attempt()
}
