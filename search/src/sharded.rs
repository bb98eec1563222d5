//! The same search as a dataflow between workers, of one process or of several (timely dataflow, behind the feature `timely`).
//!
//! A state belongs to the worker that its digest names. Whoever takes a step sends the digest and path of where it leads
//! there; the owner, once nothing more of that depth can come, keeps of each new digest the least path, reaches the states
//! again by their paths, neighbours sharing what their paths have in common, and expands them. So what crosses between
//! processes is digests and paths, never states.
//!
//! States of a depth that [`crate::Search`] numbers in the order of discovery have their paths in lexicographic order, and
//! the path of each is the least. That is why both searches find the same states by the same paths, and why what was found
//! can be brought into the same order at the end.
//!
//! Left out: bounds on states and memory, and saving.

use crate::hosts::{Hosts, Identity};
use crate::link::Lost;
use crate::{Move, Space, Visited};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread;
use thiserror::Error;
use timely::WorkerConfig;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::{Capability, Concat, ConnectLoop, Feedback, Probe, ToStream};
use timely::worker::Worker;

/// Why a sharded search gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// Processes do not find each other, or a worker died.
    #[error("{0}")]
    Dataflow(String),
    /// Another process went away.
    #[error("{0}")]
    Lost(String),
    /// A worker has no player, or a path led elsewhere than for whoever sent it.
    #[error("a worker could not take the steps that another took: are all of them given the same search?")]
    Worker,
}

/// What all workers found together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gathered<R> {
    /// New states at each depth, the first state alone at depth 0.
    pub levels: Vec<u64>,
    /// Steps taken.
    pub taken: u64,
    /// What steps showed, with the path that ends in the step, in the order of discovery.
    pub reports: Vec<(Vec<Move>, R)>,
}

impl<R> Default for Gathered<R> {
    fn default() -> Self {
        Self { levels: Vec::new(), taken: 0, reports: Vec::new() }
    }
}

/// Makes a report of what the last step of a path showed, if it is worth one. Each worker has its own, which is told of
/// steps in the order of discovery.
pub type Tell<N, R> = Box<dyn FnMut(&[Move], N) -> Option<R>>;

/// What workers send each other.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Message<R> {
    /// A state that may be new, to its owner.
    State { digest: u64, path: Vec<Move> },
    /// What a worker did at one depth, to the first worker.
    Level { depth: u32, states: u64, taken: u64 },
    /// What a step showed, to the first worker.
    Report { path: Vec<Move>, report: R },
    /// That a worker failed, to the first worker.
    Broken,
}

impl<R> Message<R> {
    /// Whom it goes to, modulo the number of workers.
    const fn to(&self) -> u64 {
        match self {
            Self::State { digest, .. } => *digest,
            Self::Level { .. } | Self::Report { .. } | Self::Broken => 0,
        }
    }
}

/// States that may be new, each with the least of its paths.
type Candidates = BTreeMap<u64, Vec<Move>>;

/// What a worker has.
struct Shard<S: Space, R> {
    space: S,
    player: S::Player,
    tell: Tell<S::Note, R>,
    visited: Visited,
    first: (u64, S::State),
    /// The way to the state that was reached last: each step with the state behind it and its digest.
    way: Vec<(Move, u64, S::State)>,
    limit: u32,
}

impl<S: Space, R> Shard<S, R> {
    fn new(space: S, tell: Tell<S::Note, R>, limit: u32) -> Result<(Self, u64), S::Error> {
        let mut player = space.player()?;
        let first = space.start(&mut player)?;
        let digest = first.0;
        Ok((Self { space, player, tell, visited: Visited::default(), first, way: Vec::new(), limit }, digest))
    }

    /// Takes the states of one depth that others sent, each with the least of its paths.
    fn level(&mut self, depth: u32, states: Candidates, send: &mut impl FnMut(Message<R>)) {
        let new = states.into_iter().filter(|(digest, _)| self.visited.insert(*digest));
        let mut paths: Vec<(Vec<Move>, u64)> = new.map(|(digest, path)| (path, digest)).collect();
        paths.sort_unstable();
        let states = paths.len() as u64;
        let mut taken = 0;
        if depth < self.limit {
            for (path, digest) in paths {
                if self.reach(&path) == Some(digest) {
                    taken += self.expand(&path, send);
                } else {
                    send(Message::Broken);
                }
            }
        }
        send(Message::Level { depth, states, taken });
    }

    /// Reaches a state by its path, from where the last one parts from it: its digest.
    fn reach(&mut self, path: &[Move]) -> Option<u64> {
        let common = self.way.iter().zip(path).take_while(|((step, ..), wanted)| step == *wanted).count();
        self.way.truncate(common);
        for (step, depth) in path.iter().zip(1..).skip(common) {
            let from = self.way.last().map_or(&self.first.1, |(.., state)| state);
            let digest = self.space.take_alone(&mut self.player, from, depth, *step)?;
            self.way.push((*step, digest, self.space.keep(&mut self.player)));
        }
        Some(self.way.last().map_or(self.first.0, |(_, digest, _)| *digest))
    }

    /// Every step from the state that was reached.
    fn expand(&mut self, path: &[Move], send: &mut impl FnMut(Message<R>)) -> u64 {
        let (mut taken, mut notes) = (0, Vec::new());
        let mut next = Some(Move::of(0)).filter(|_| self.space.steps() > 0);
        while let Some(by) = next {
            let from = self.way.last().map_or(&self.first.1, |(.., state)| state);
            let digest = self.space.take(&mut self.player, from, path.len() as u32 + 1, by, &mut notes);
            next = self.space.after(&self.player, by);
            let path = [path, &[by]].concat();
            for note in notes.drain(..) {
                if let Some(report) = (self.tell)(&path, note) {
                    send(Message::Report { path: path.clone(), report });
                }
            }
            if let Some(digest) = digest {
                taken += 1;
                send(Message::State { digest, path });
            }
        }
        taken
    }
}

/// What the first worker hears.
struct Heard<R> {
    gathered: Gathered<R>,
    broken: bool,
}

impl<R> Heard<R> {
    fn take(&mut self, message: Message<R>) {
        match message {
            Message::Level { depth, states, taken } => {
                let levels = &mut self.gathered.levels;
                levels.resize(levels.len().max(depth as usize + 1), 0);
                levels[depth as usize] += states;
                self.gathered.taken += taken;
            }
            Message::Report { path, report } => self.gathered.reports.push((path, report)),
            Message::State { .. } | Message::Broken => self.broken = true,
        }
    }
}

/// Searches to a depth with the workers of some processes. What they found, in the process of the first worker;
/// nothing in any other. `make` gives each worker the space and what makes its reports; `identity` is a digest of what
/// they depend on, which processes compare.
///
/// # Errors
/// If the workers can't work together.
pub fn run<S, R, M>(hosts: &Hosts, identity: u64, depth: u32, make: M) -> Result<Option<Gathered<R>>, Failure>
where
    S: Space + 'static,
    S::State: 'static,
    S::Player: 'static,
    R: Clone + Send + Serialize + DeserializeOwned + 'static,
    M: Fn() -> (S, Tell<S::Note, R>) + Send + Sync + 'static,
{
    let (sender, receiver) = mpsc::channel();
    let other = sender.clone();
    // Once this process has given up, nobody listens.
    let lost: Lost = Arc::new(move |why| drop(other.send(Event::Lost(why))));
    let started = hosts.start(Identity { space: identity, depth }, &lost);
    let (builders, guard) = started.map_err(|error| Failure::Dataflow(format!("the other processes: {error}")))?;
    let part = move |worker: &mut Worker| work(worker, depth, make());
    let guards = timely::execute::execute_from(builders, guard, WorkerConfig::default(), part);
    let guards = guards.map_err(Failure::Dataflow)?;
    // Workers that wait for a process that is gone wait for ever: so they are waited for apart.
    let join = move || {
        let joined = catch_unwind(AssertUnwindSafe(|| guards.join()));
        drop(sender.send(Event::Ended(joined.unwrap_or_else(|_| vec![Err("a worker died".to_owned())]))));
    };
    let joiner = thread::Builder::new().name("search:join".to_owned()).spawn(join);
    joiner.map_err(|error| Failure::Dataflow(error.to_string()))?;
    let joined = match receiver.recv() {
        Ok(Event::Ended(joined)) => joined,
        Ok(Event::Lost(why)) => return Err(Failure::Lost(why)),
        Err(error) => return Err(Failure::Dataflow(error.to_string())),
    };
    let mut first = None;
    for joined in joined {
        if let Some(heard) = joined.map_err(Failure::Dataflow)? {
            first = Some(heard);
        }
    }
    let Some(Heard { mut gathered, broken }) = first else { return Ok(None) };
    if broken {
        return Err(Failure::Worker);
    }
    while gathered.levels.last() == Some(&0) {
        gathered.levels.pop();
    }
    // Reports of one step come from one worker, in its order.
    gathered.reports.sort_by(|(one, _), (other, _)| (one.len(), one).cmp(&(other.len(), other)));
    Ok(Some(gathered))
}

/// How the workers of this process ended.
enum Event<T> {
    /// Each with what it heard, or why it died.
    Ended(Vec<Result<T, String>>),
    /// They can't: another process is gone.
    Lost(String),
}

/// One worker's part.
fn work<S, R>(worker: &mut Worker, limit: u32, (space, tell): (S, Tell<S::Note, R>)) -> Option<Heard<R>>
where
    S: Space + 'static,
    S::State: 'static,
    S::Player: 'static,
    R: Clone + Send + Serialize + DeserializeOwned + 'static,
{
    let index = worker.index();
    let heard = Rc::new(RefCell::new(Heard { gathered: Gathered::default(), broken: false }));
    let listener = Rc::clone(&heard);
    let (mut shard, first) = match Shard::new(space, tell, limit) {
        Ok((shard, digest)) => (Some(shard), vec![Message::State { digest, path: Vec::new() }]),
        Err(_) => (None, vec![Message::Broken]),
    };
    // Everyone knows the first state, and one of them says so. A failure is told by whoever has it.
    let first = if index == 0 || shard.is_none() { first } else { Vec::new() };
    let probe = worker.dataflow::<u32, _, _>(move |scope| {
        let (handle, cycle) = scope.feedback(1);
        let route = Exchange::new(|message: &Message<R>| message.to());
        let found = first.to_stream(scope).container::<Vec<_>>().concat(cycle);
        type Messages<R> = CapacityContainerBuilder<Vec<Message<R>>>;
        let found = found.unary_frontier::<Messages<R>, _, _, _>(route, "explore", move |_, _| {
            let mut waiting: BTreeMap<u32, (Capability<u32>, Candidates)> = BTreeMap::new();
            move |(input, frontier), output| {
                input.for_each_stamp(|stamp, data| {
                    let Some(capability) = stamp.retain_least(output.output_index()) else { return };
                    let depth = *capability.time();
                    for message in data.flat_map(std::mem::take) {
                        match message {
                            Message::State { digest, path } => {
                                let (_, states) =
                                    waiting.entry(depth).or_insert_with(|| (capability.clone(), BTreeMap::new()));
                                let least = states.entry(digest).or_insert_with(|| path.clone());
                                if path < *least {
                                    *least = path;
                                }
                            }
                            other => listener.borrow_mut().take(other),
                        }
                    }
                });
                while let Some(depth) = waiting.keys().next().copied() {
                    if frontier.frontier().less_equal(&depth) {
                        break;
                    }
                    if let (Some((capability, states)), Some(shard)) = (waiting.remove(&depth), &mut shard) {
                        let mut session = output.session(&capability);
                        shard.level(depth, states, &mut |message| session.give(message));
                    }
                }
            }
        });
        let (probe, found) = found.probe();
        found.connect_loop(handle);
        probe
    });
    worker.step_or_park_while(None, || !probe.done());
    let heard = std::mem::replace(&mut *heard.borrow_mut(), Heard { gathered: Gathered::default(), broken: false });
    (index == 0).then_some(heard)
}
