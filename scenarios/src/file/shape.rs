//! Checks the shape of a file (keys, types, required values) against the JSON Schema of the schema types, so that
//! editors and `rolecall check` can't disagree, and finds every shape error of a file at once, each at its place.
//!
//! Only what the schema types generate is understood: type, properties, required, additionalProperties, items,
//! minItems, uniqueItems, minimum, maximum, enum, oneOf with const, anyOf and $ref.

use super::diagnostics::{Fault, quote};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Whether a file must have everything that a scenario needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wholeness {
    /// A scenario.
    Scenario,
    /// An included file: its root may leave out what is required.
    Fragment,
}

/// Every shape error of `table`.
pub(crate) fn check(table: &Spanned<DeTable<'_>>, schema: &Value, wholeness: Wholeness) -> Vec<Fault> {
    let mut checker = Checker { root: schema, faults: Vec::new() };
    checker.properties(table.get_ref(), schema, "");
    if wholeness == Wholeness::Scenario {
        checker.required(table.get_ref(), 0..0, schema, "the scenario");
    }
    checker.faults
}

struct Checker<'s> {
    root: &'s Value,
    faults: Vec<Fault>,
}

impl<'s> Checker<'s> {
    fn resolve(&self, schema: &'s Value) -> &'s Value {
        match schema["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
            Some(pointer) => self.root.pointer(pointer).unwrap_or(schema),
            None => schema,
        }
    }

    fn full(&self) -> bool {
        self.faults.len() > super::MOST_PROBLEMS
    }

    fn fault(&mut self, at: Range<usize>, message: String, help: String) {
        self.faults.push(Fault::new(at, message, help));
    }

    fn value(&mut self, key: &str, value: &Spanned<DeValue<'_>>, schema: &'s Value, help: &str) {
        if self.full() {
            return;
        }
        let schema = self.resolve(schema);
        let at = value.span();
        if let Some(cases) = schema["anyOf"].as_array() {
            let fitting = cases.iter().map(|case| self.resolve(case)).find(|case| fits(case, value.get_ref()));
            match fitting {
                Some(case) => self.value(key, value, case, help),
                None => {
                    let types: Vec<&str> = cases.iter().map(|case| type_name(self.resolve(case))).collect();
                    let message = format!("`{key}` must be {}, not {}", types.join(" or "), toml_name(value.get_ref()));
                    self.fault(at, message, help.to_owned());
                }
            }
            return;
        }
        if !fits(schema, value.get_ref()) {
            let message = format!("`{key}` must be {}, not {}", type_name(schema), toml_name(value.get_ref()));
            return self.fault(at, message, help.to_owned());
        }
        match value.get_ref() {
            DeValue::Table(table) => {
                self.properties(table, schema, key);
                self.required(table, at, schema, &format!("`{key}`"));
            }
            DeValue::Array(items) => self.items(key, items, at, schema, help),
            DeValue::String(text) => self.word(key, text, at, schema),
            DeValue::Integer(_) => self.range(key, value.get_ref(), at, schema, help),
            _ => {}
        }
    }

    fn properties(&mut self, table: &DeTable<'_>, schema: &'s Value, of: &str) {
        let known = schema["properties"].as_object();
        let others = &schema["additionalProperties"];
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            if self.full() {
                return;
            }
            let name: &str = key.get_ref();
            if let Some(schema) = known.and_then(|known| known.get(name)) {
                self.value(name, value, schema, &described(self.resolve_described(schema)));
            } else if others.is_object() {
                self.value(name, value, others, &described(self.resolve(others)));
            } else {
                let names = known.into_iter().flatten().map(|(name, _)| name.as_str());
                let mut fault = Fault::unknown(key.span(), "key", name, names);
                if !of.is_empty() {
                    fault.message.push_str(&format!(" of {}", quote(of)));
                }
                if !of.is_empty() && self.root["properties"].get(name).is_some() {
                    fault.help = format!("`{name}` is the scenario's own: move it above the first [header]");
                }
                self.faults.push(fault);
            }
        }
    }

    /// A property's own description, or that of its type.
    fn resolve_described(&self, schema: &'s Value) -> &'s Value {
        if schema["description"].is_string() { schema } else { self.resolve(schema) }
    }

    fn required(&mut self, table: &DeTable<'_>, at: Range<usize>, schema: &'s Value, whose: &str) {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !table.contains_key(name) {
                let help = described(self.resolve_described(&schema["properties"][name]));
                self.fault(at.clone(), format!("{whose} has no `{name}`"), help);
            }
        }
    }

    fn items(&mut self, key: &str, items: &[Spanned<DeValue<'_>>], at: Range<usize>, schema: &'s Value, help: &str) {
        let least = schema["minItems"].as_u64().unwrap_or(0);
        if (items.len() as u64) < least {
            self.fault(at, format!("`{key}` is empty"), help.to_owned());
        }
        let mut seen = BTreeSet::new();
        let distinct = schema["uniqueItems"] == true;
        for item in items {
            if distinct && !seen.insert(plain(item.get_ref()).to_string()) {
                let message = format!("`{key}` has {} twice", plain(item.get_ref()));
                self.fault(item.span(), message, "remove one of the two".to_owned());
            }
            self.value(key, item, &schema["items"], help);
        }
    }

    fn word(&mut self, key: &str, text: &str, at: Range<usize>, schema: &'s Value) {
        let listed = schema["enum"].as_array().into_iter().flatten();
        let described = schema["oneOf"].as_array().into_iter().flatten();
        let known: Vec<&str> = listed.chain(described.map(|case| &case["const"])).filter_map(Value::as_str).collect();
        if !known.is_empty() && !known.contains(&text) {
            self.faults.push(Fault::unknown(at, key, text, known));
        }
    }

    fn range(&mut self, key: &str, value: &DeValue<'_>, at: Range<usize>, schema: &'s Value, help: &str) {
        let Some(number) = integer(value) else {
            return self.fault(at, format!("`{key}` has more than 64 bits"), help.to_owned());
        };
        let least = schema["minimum"].as_i64().unwrap_or(i64::MIN);
        let most = schema["maximum"].as_i64().unwrap_or(i64::MAX);
        if !(least..=most).contains(&number) {
            let allowed = if most == i64::MAX { format!("{least} or more") } else { format!("{least} to {most}") };
            self.fault(at, format!("`{key}` can't be {number}: it is {allowed}"), help.to_owned());
        }
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// The schema's TOML type: `oneOf` only occurs for the words of an enum.
fn schema_type(schema: &Value) -> &str {
    schema["type"].as_str().unwrap_or(if schema["oneOf"].is_array() { "string" } else { "" })
}

fn fits(schema: &Value, value: &DeValue<'_>) -> bool {
    match value {
        DeValue::String(_) => schema_type(schema) == "string",
        DeValue::Integer(_) => schema_type(schema) == "integer",
        DeValue::Boolean(_) => schema_type(schema) == "boolean",
        DeValue::Array(_) => schema_type(schema) == "array",
        DeValue::Table(_) => schema_type(schema) == "object",
        DeValue::Float(_) | DeValue::Datetime(_) => false,
    }
}

fn type_name(schema: &Value) -> &'static str {
    match schema_type(schema) {
        "string" => "a string",
        "integer" => "an integer",
        "boolean" => "true or false",
        "array" => "a list",
        _ => "a table",
    }
}

fn toml_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The first paragraph of a schema's description, in one line.
fn described(schema: &Value) -> String {
    let text = schema["description"].as_str().and_then(|text| text.split("\n\n").next());
    text.unwrap_or("`rolecall schema` has the keys").replace('\n', " ")
}

/// A value to compare and to show.
pub(crate) fn plain(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(_) => integer(value).map_or(Value::Null, Value::from),
        DeValue::Boolean(truth) => Value::from(*truth),
        DeValue::Array(items) => items.iter().map(|item| plain(item.get_ref())).collect(),
        DeValue::Table(table) => {
            table.iter().map(|(key, value)| (key.get_ref().to_string(), plain(value.get_ref()))).collect()
        }
        DeValue::Float(float) => Value::from(quote(float.as_str())),
        DeValue::Datetime(date) => Value::from(date.to_string()),
    }
}
