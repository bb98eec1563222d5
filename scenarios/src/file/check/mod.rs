//! From the shape of a file to a checked [`Scenario`]: merges includes, parses the small texts, and checks names,
//! addresses and limits against each other.

mod machine;

use super::budget;
use super::diagnostics::{Diagnostics, Fault, Problem, quote};
use super::guest::{ControlRegister, FirstLevel, Flags, Guest, HostState, MAIN_TABLES};
use super::include::Loaded;
use super::matrix::MOST_RUNS;
use super::schema::{ExpectTable, GuestTable, HostTable, Marked, Number};
use super::steps::{self, Scope, TlbControl};
use super::words::{Place, is_name, number};
use super::{Body, Bound, Bug, ExpectEntry, Expectation, Matrix, RunConfig, Scenario, Selector, Source};
use crate::image::layout::GUESTS_MAX;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Entries of `[expect]`.
const MOST_ENTRIES: usize = 1000;
/// L1's name among the guests.
const FIRST_LEVEL: &str = "l1";

/// The scenario that the loaded files make.
pub(crate) fn scenario(loaded: &Loaded, points: &[&str], changes: &[&str]) -> Result<Scenario, Diagnostics> {
    let mut checker =
        Checker { loaded, diagnostics: Diagnostics::default(), scope: Scope::default(), first_space: None };
    let machine = checker.machine();
    let slots = checker.slots(&machine);
    let spaces = checker.spaces();
    let memory = checker.memory();
    let (first_level, guests) = checker.guests();
    let body = checker.body();
    let matrix = checker.matrix(points, changes);
    let bug = checker.bug(changes);
    let Some(main) = loaded.parsed.last().map(|parsed| &parsed.content) else {
        return Err(checker.diagnostics);
    };
    let mut scenario = Scenario {
        files: loaded.sources.iter().map(|source| source.name().to_owned()).collect(),
        title: main.title.as_ref().map(|title| title.get().clone()).unwrap_or_default(),
        about: main.about.clone(),
        source: main.source.clone().unwrap_or_default(),
        bug,
        matrix,
        machine,
        slots,
        spaces,
        memory,
        first_level,
        guests,
        steps: body.steps,
        out_of_turn: main.out_of_turn,
        permuted: body.permuted,
        expect: Vec::new(),
    };
    if checker.diagnostics.is_empty() {
        scenario.expect = checker.expect(&scenario);
    }
    checker.diagnostics.or(scenario)
}

struct Checker<'a> {
    loaded: &'a Loaded,
    diagnostics: Diagnostics,
    /// What steps are checked against; filled in the order of declaration.
    scope: Scope,
    /// The first space of the files: L1's, if `guest.l1` does not say.
    first_space: Option<String>,
}

/// What a name is declared as: its file, its key, its table.
type Declared<'a, T> = BTreeMap<&'a str, (usize, &'a Marked<String>, &'a Marked<T>)>;

impl<'a> Checker<'a> {
    fn source(&self, file: usize) -> &'a Arc<Source> {
        &self.loaded.sources[file]
    }

    fn fault(&mut self, file: usize, fault: Fault) {
        self.diagnostics.push(Problem::new(self.source(file), fault));
    }

    fn fail(&mut self, file: usize, at: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.fault(file, Fault::new(at, message, help));
    }

    /// The value, or none and a problem placed in the marked string.
    fn parsed<T>(&mut self, file: usize, text: &Marked<String>, result: Result<T, Fault>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(fault) => {
                let place = Place::of(self.source(file).text(), text.range(), text.get());
                self.fault(file, place.fault(fault));
                None
            }
        }
    }

    fn name(&mut self, file: usize, kind: &str, name: &Marked<String>) {
        if !is_name(name.get()) {
            let message = format!("{} can't be the name of a {kind}", quote(name.get()));
            self.fail(file, name.range(), message, "a letter, then letters, digits, - and _; at most 40");
        }
    }

    fn number(&mut self, file: usize, what: &str, marked: &Marked<Number>) -> Option<u64> {
        match marked.get() {
            Number::Integer(value) => Some(*value),
            Number::Text(text) => {
                let value = number(text);
                if value.is_none() {
                    let message = format!("`{what}` must be a 64-bit number, not {}", quote(text));
                    self.fail(
                        file,
                        marked.range(),
                        message,
                        "write an integer, or hexadecimal text such as \"0xfee00000\"",
                    );
                }
                value
            }
        }
    }

    /// Every declaration, the including file's instead of the included one's.
    fn declared<T>(
        &self,
        tables: impl Fn(&'a super::schema::ScenarioFile) -> &'a BTreeMap<Marked<String>, Marked<T>>,
    ) -> Declared<'a, T> {
        let mut all = BTreeMap::new();
        for parsed in &self.loaded.parsed {
            for (name, table) in tables(&parsed.content) {
                all.insert(name.get().as_str(), (parsed.file, name, table));
            }
        }
        all
    }

    fn space_of(&mut self, file: usize, space: Option<&Marked<String>>) -> Option<String> {
        let space = space?;
        if !self.scope.spaces.contains_key(space.get()) {
            let known: Vec<String> = self.scope.spaces.keys().cloned().collect();
            let fault = Fault::unknown(space.range(), "space", space.get(), known.iter().map(String::as_str));
            self.fault(file, fault);
        }
        Some(space.get().clone())
    }

    fn flags(&mut self, file: usize, register: ControlRegister, text: Option<&Marked<String>>) -> Flags {
        let parsed = text.and_then(|text| self.parsed(file, text, Flags::parse(register, text.get())));
        parsed.unwrap_or(Flags::none(register))
    }

    fn guests(&mut self) -> (FirstLevel, BTreeMap<String, Guest>) {
        let mut declared = self.declared(|content| &content.guest);
        let own = declared.remove(FIRST_LEVEL);
        let first_level = self.first_level(own.map(|(file, _, table)| (file, table.get())));
        let mut guests = BTreeMap::new();
        for (name, (file, key, table)) in declared {
            self.name(file, "guest", key);
            self.scope.guests.insert(name.to_owned());
            if guests.len() == GUESTS_MAX {
                let help = "split the scenario, or let `enter` change one guest";
                self.fail(file, key.range(), format!("more than {GUESTS_MAX} nested guests"), help);
                continue;
            }
            if table.get().space.is_none() {
                let message = format!("guest {} has no `space`", quote(name));
                self.fail(file, key.range(), message, "name the address space in its CR3, such as space = \"a\"");
            }
            guests.insert(name.to_owned(), self.guest(name, file, table.get()));
        }
        (first_level, guests)
    }

    fn first_level(&mut self, own: Option<(usize, &GuestTable)>) -> FirstLevel {
        let none = GuestTable::default();
        let (file, table) = own.unwrap_or((0, &none));
        let only_nested = [
            ("vpid", table.vpid.as_ref().map(Marked::range)),
            ("ept-ad", table.ept_ad.as_ref().map(Marked::range)),
            ("asid", table.asid.as_ref().map(Marked::range)),
            ("nested", table.nested.as_ref().map(Marked::range)),
            ("host", table.host.as_ref().map(Marked::range)),
            ("break", table.r#break.as_ref().map(Marked::range)),
        ];
        for (key, range) in only_nested {
            if let Some(range) = range {
                let help = "L1's own VMCS or VMCB is the hypervisor's; it belongs to a nested guest such as guest.l2";
                self.fail(file, range, format!("guest.l1 can't have `{key}`"), help);
            }
        }
        let space = self.space_of(file, table.space.as_ref()).or_else(|| self.first_space.clone());
        FirstLevel {
            space: space.unwrap_or_default(),
            cr0: self.flags(file, ControlRegister::Cr0, table.cr0.as_ref()),
            cr4: self.flags(file, ControlRegister::Cr4, table.cr4.as_ref()),
            efer: self.flags(file, ControlRegister::Efer, table.efer.as_ref()),
        }
    }

    fn guest(&mut self, name: &str, file: usize, table: &GuestTable) -> Guest {
        if let Some(tables) = &table.nested {
            self.name(file, "set of nested tables", tables);
        }
        let nested = table.nested.as_ref().map_or_else(|| MAIN_TABLES.to_owned(), |tables| tables.get().clone());
        self.scope.nested.insert(nested.clone());
        Guest {
            name: name.to_owned(),
            space: self.space_of(file, table.space.as_ref()).unwrap_or_default(),
            cr0: self.flags(file, ControlRegister::Cr0, table.cr0.as_ref()),
            cr4: self.flags(file, ControlRegister::Cr4, table.cr4.as_ref()),
            efer: self.flags(file, ControlRegister::Efer, table.efer.as_ref()),
            vpid: table.vpid.as_ref().map(|vpid| *vpid.get()),
            ept_ad: table.ept_ad.as_ref().is_some_and(|ept_ad| *ept_ad.get()),
            asid: table.asid.as_ref().map_or(1, |asid| *asid.get()),
            tlb_control: TlbControl::Nothing,
            nested,
            host: table.host.as_ref().map(|host| self.host(file, host.get())),
            broken: table.r#break.as_ref().map(|broken| *broken.get()),
        }
    }

    fn host(&mut self, file: usize, table: &HostTable) -> HostState {
        HostState {
            space: self.space_of(file, table.space.as_ref()),
            cr0: self.flags(file, ControlRegister::Cr0, table.cr0.as_ref()),
            cr4: self.flags(file, ControlRegister::Cr4, table.cr4.as_ref()),
            efer: self.flags(file, ControlRegister::Efer, table.efer.as_ref()),
        }
    }

    fn body(&mut self) -> Body {
        let all = self.loaded.parsed.last().map(|parsed| parsed.content.all_steps()).unwrap_or_default();
        let Some((text, more)) = all.split_first() else {
            self.fail(
                0,
                0..0,
                "the scenario has no `steps`",
                "steps = \"\"\", then one a line, such as `l1: mov-cr3 a`",
            );
            return Body::default();
        };
        for second in more {
            self.fail(0, second.range(), "a second `steps`", "a scenario has one; join them");
        }
        let source = self.source(0);
        let place = Place::of(source.text(), text.range(), text.get());
        let (body, faults) = steps::parse_body(source, &place, text.get(), &self.scope);
        for fault in faults {
            self.fault(0, fault);
        }
        body
    }

    fn matrix(&mut self, points: &[&str], changes: &[&str]) -> Matrix {
        let Some(main) = self.loaded.parsed.last() else { return Matrix::default() };
        let table = &main.content.matrix;
        let toggles = |axis: &Option<Vec<Vec<Marked<String>>>>| axis.clone().unwrap_or_default();
        let (with, without) = (toggles(&table.with), toggles(&table.without));
        let at = table.at.clone().unwrap_or_default();
        self.known("point of history", &at, points);
        for names in with.iter().chain(&without) {
            self.known("change", names, changes);
        }
        let plain = |names: &[Marked<String>]| names.iter().map(|name| name.get().clone()).collect::<Vec<_>>();
        Matrix {
            vendor: table.vendor.clone().unwrap_or_default(),
            tdp: table.tdp.clone().unwrap_or_default(),
            nested_tdp: table.nested_tdp.clone().unwrap_or_default(),
            vpid: table.vpid.clone().unwrap_or_default(),
            at: plain(&at),
            with: with.iter().map(|names| plain(names)).collect(),
            without: without.iter().map(|names| plain(names)).collect(),
        }
    }

    fn bug(&mut self, changes: &[&str]) -> Option<Bug> {
        let table = self.loaded.parsed.last()?.content.bug.as_ref()?;
        self.known("change", std::slice::from_ref(&table.fix), changes);
        let (number, symptom) = (table.number.clone(), table.symptom.clone());
        Some(Bug { number, fix: table.fix.get().clone(), symptom })
    }

    fn known(&mut self, kind: &str, names: &[Marked<String>], known: &[&str]) {
        for name in names.iter().filter(|name| !known.is_empty() && !known.contains(&name.get().as_str())) {
            self.fault(0, Fault::unknown(name.range(), kind, name.get(), known.iter().copied()));
        }
    }

    /// The entries of `[expect]` in the file's order. Needs a scenario that is right otherwise.
    fn expect(&mut self, scenario: &Scenario) -> Vec<ExpectEntry> {
        let Some(main) = self.loaded.parsed.last() else { return Vec::new() };
        let body = Body { steps: Vec::new(), permuted: scenario.permuted.clone() };
        if scenario.matrix.combinations(&body) > MOST_RUNS {
            self.fail(0, 0..0, format!("the matrix has more than {MOST_RUNS} runs"), "split the scenario");
            return Vec::new();
        }
        let (runs, _) = scenario.runs();
        if runs.is_empty() {
            let help = "nested-tdp needs tdp, AMD needs vpid, and no change can be in both with and without";
            self.fail(0, 0..0, "no combination of the matrix can exist", help);
            return Vec::new();
        }
        let mut entries: Vec<_> = main.content.expect.iter().collect();
        entries.sort_by_key(|(key, _)| key.range().start);
        if entries.len() > MOST_ENTRIES {
            self.fail(0, 0..0, format!("[expect] has more than {MOST_ENTRIES} entries"), "split the scenario");
            return Vec::new();
        }
        let mut expect = Vec::new();
        for (key, table) in entries {
            let selector = key.get().parse::<Selector>().and_then(|selector| selects(selector, key.get(), &runs));
            let expectation = self.expectation(scenario, table.get(), table.range());
            if let Some(selector) = self.parsed(0, key, selector) {
                expect.push(ExpectEntry { selector, expectation });
            }
        }
        expect
    }

    fn expectation(&mut self, scenario: &Scenario, table: &ExpectTable, whole: Range<usize>) -> Expectation {
        let details =
            table.audit.is_some() || table.role.is_some() || table.root_role.is_some() || table.differ.is_some();
        if table.coherent == Some(true) && details {
            let help = "write coherent = false, or leave audit, role, root-role and differ out";
            self.fail(0, whole.clone(), "a coherent run has no audit finding to describe", help);
        }
        if let Some(first) = &table.first
            && !scenario.steps.iter().any(|step| step.text.starts_with(first.get().as_str()))
        {
            let words = first.get().split_whitespace().count();
            let texts: BTreeSet<String> = scenario.steps.iter().map(|step| beginning(&step.text, words)).collect();
            let fault = Fault::unknown(first.range(), "step", first.get(), texts.iter().map(String::as_str));
            self.fault(0, fault);
        }
        if let Some(step) = table.step.as_ref().filter(|step| !(1..=scenario.steps.len() as u64).contains(step.get())) {
            let message = format!("there is no step {}", step.get());
            self.fail(0, step.range(), message, format!("the steps are 1 to {}", scenario.steps.len()));
        }
        let audits = mmu::audit::Audit::ALL.iter().map(|audit| audit.name());
        self.names(table.audit.as_ref(), &whole, "audit", &audits.collect::<Vec<_>>());
        let bits = mmu::PageRole::FIELDS.iter().map(|(name, _, _)| *name);
        self.names(table.differ.as_ref(), &whole, "role bit", &bits.collect::<Vec<_>>());
        let role = table.role.as_ref().and_then(|role| self.number(0, "role", role));
        let root_role = table.root_role.as_ref().and_then(|role| self.number(0, "root-role", role));
        Expectation {
            coherent: table.coherent,
            transparent: table.transparent,
            first: table.first.as_ref().map(|first| first.get().clone()),
            step: table.step.as_ref().and_then(|step| usize::try_from(*step.get()).ok()),
            audit: table.audit.as_ref().map(super::schema::OneOrMore::names),
            role,
            root_role,
            differ: table.differ.as_ref().map(super::schema::OneOrMore::names),
            known: table.known.as_ref().map(super::schema::OneOrMore::names),
            budget: self.budget(table),
            unjudged: table.unjudged.clone(),
            hangs: table.hangs,
        }
    }

    fn budget(&mut self, table: &ExpectTable) -> BTreeMap<String, Bound> {
        let mut budget = BTreeMap::new();
        for (name, value) in &table.budget {
            if budget::counter(name.get()).is_none() {
                let fault = Fault::unknown(name.range(), "counter", name.get(), budget::names());
                self.fault(0, fault);
            }
            match Bound::parse(value.get()) {
                Ok(bound) => {
                    budget.insert(name.get().clone(), bound);
                }
                Err(fault) => self.fault(0, Fault { at: value.range(), ..fault }),
            }
        }
        budget
    }

    /// Names that an expectation gives must exist, or it could never hold.
    fn names(&mut self, names: Option<&super::schema::OneOrMore>, whole: &Range<usize>, kind: &str, known: &[&str]) {
        for name in names.map(super::schema::OneOrMore::names).unwrap_or_default() {
            if !known.contains(&name.as_str()) {
                self.fault(0, Fault::unknown(whole.clone(), kind, &name, known.iter().copied()));
            }
        }
    }
}

/// The first words of a step.
fn beginning(text: &str, words: usize) -> String {
    text.split_whitespace().take(words).collect::<Vec<_>>().join(" ")
}

/// The selector, if it selects some run.
fn selects(selector: Selector, text: &str, runs: &[RunConfig]) -> Result<Selector, Fault> {
    if runs.iter().any(|run| selector.matches(run)) {
        return Ok(selector);
    }
    let message = format!("{} selects no run of the matrix", quote(text));
    let help =
        format!("one of the {} runs is: {}", runs.len(), runs.first().map(ToString::to_string).unwrap_or_default());
    Err(Fault::new(0..text.len(), message, help))
}
