//! What the hypervisor's MMU costs in the simulator: page faults and nested transitions a second, and the memory of a
//! machine state.
//!
//! `cargo bench -p scenarios --bench mmu`. A figure includes the whole step: its code is written, the guest runs, exits,
//! L0 handles it with every audit of the checkpoint, and the guest runs on to its gate. The allocation columns of
//! `machine_state` are the memory that a copy of a machine takes, and what the copy takes more after one step.

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use mmu::audit::Extent;
use mmu::stats::Stat;
use scenarios::engine;
use scenarios::file::{self, RunConfig, Scenario};
use sim_core::event::Detail;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// Rounds of the steps under measurement.
const ROUNDS: usize = 200;

/// The machines that are compared.
#[derive(Clone, Copy, Debug)]
enum Machine {
    IntelShadow,
    IntelTdp,
    AmdShadow,
    AmdTdp,
}

const MACHINES: [Machine; 4] = [Machine::IntelShadow, Machine::IntelTdp, Machine::AmdShadow, Machine::AmdTdp];

fn scenario(machine: Machine, round: &str) -> (Scenario, RunConfig) {
    let (vendor, tdp) = match machine {
        Machine::IntelShadow => ("intel", false),
        Machine::IntelTdp => ("intel", true),
        Machine::AmdShadow => ("amd", false),
        Machine::AmdTdp => ("amd", true),
    };
    let steps = round.repeat(ROUNDS);
    let text = format!(
        "title = 'a benchmark'\nsource = ['none']\nsteps = '''\nl1: read 0x400000\n{steps}'''\n\
         [matrix]\nvendor = ['{vendor}']\ntdp = [{tdp}]\n\
         [space.a]\nmode = 'long4'\nmap = ['0x400000 -> 0x200000 rw']\n\
         [guest.l1]\nspace = 'a'\n[guest.l2]\nspace = 'a'\nvpid = 1\n"
    );
    let scenario = file::parse("benchmark", &text, &[], &[]).expect("a valid scenario");
    let run = scenario.runs().0.remove(0);
    (scenario, run)
}

/// Items are page faults that L0 handles.
#[divan::bench(args = MACHINES)]
fn page_faults(bencher: Bencher<'_, '_>, machine: Machine) {
    let (scenario, run) = scenario(machine, "host: zap-gfn 0x200\nl1: read 0x400000\n");
    let faults = engine::run(&scenario, &run, Detail::Nothing).expect("a machine").stats.get(Stat::PfTaken);
    bencher.counter(ItemsCount::new(faults)).bench(|| engine::run(black_box(&scenario), &run, Detail::Nothing));
}

/// Items are nested entries and exits.
#[divan::bench(args = MACHINES)]
fn nested_transitions(bencher: Bencher<'_, '_>, machine: Machine) {
    let (scenario, run) = scenario(machine, "l1: enter l2\nl2: exit\n");
    let transitions = ItemsCount::new(2 * ROUNDS);
    bencher.counter(transitions).bench(|| engine::run(black_box(&scenario), &run, Detail::Nothing));
}

/// The same runs with less and less audited: the differences are what the audits cost. Items are scenario steps.
#[divan::bench(args = [Extent::Nothing, Extent::Roots, Extent::Everything])]
fn audited_steps(bencher: Bencher<'_, '_>, audits: Extent) {
    let runs: Vec<_> = MACHINES
        .into_iter()
        .map(|machine| {
            let (scenario, run) =
                scenario(machine, "l1: enter l2\nl2: write 0x400000 1\nl2: exit\nhost: zap-gfn 0x200\n");
            (scenario, RunConfig { audits, ..run })
        })
        .collect();
    bencher.counter(ItemsCount::new(4 * ROUNDS * runs.len())).bench(|| {
        for (scenario, run) in &runs {
            black_box(engine::run(scenario, run, Detail::Nothing).expect("a machine"));
        }
    });
}

/// A copy of a machine that has run 200 faults: memory is shared until it is written.
#[divan::bench(args = MACHINES)]
fn machine_state(bencher: Bencher<'_, '_>, machine: Machine) {
    let (scenario, run) = scenario(machine, "host: zap-gfn 0x200\nl1: read 0x400000\n");
    let machine = engine::machine_after(&scenario, &run).expect("a machine");
    bencher.bench(|| black_box(machine.clone()));
}

/// The copy, and one host step on it.
#[divan::bench(args = MACHINES)]
fn machine_state_and_a_step(bencher: Bencher<'_, '_>, machine: Machine) {
    let (scenario, run) = scenario(machine, "host: zap-gfn 0x200\nl1: read 0x400000\n");
    let machine = engine::machine_after(&scenario, &run).expect("a machine");
    bencher.bench(|| {
        let mut copy = machine.clone();
        copy.zap_gfn(sim_core::addr::Gfn(0x10)).expect("vCPU 0");
        black_box(copy)
    });
}
