//! VMX against the manual: checks, operation, intercepts, transitions.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod checks;
#[cfg(test)]
mod events;
#[cfg(test)]
mod exits;
#[cfg(test)]
mod features;
#[cfg(test)]
mod inject;
#[cfg(test)]
mod instructions;
#[cfg(test)]
mod intercepts;
#[cfg(test)]
mod operation;
#[cfg(test)]
mod transition;
