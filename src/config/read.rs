//! Reading fields off the layers of a configuration while collecting everything that is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::Problem;
use super::layers::{Overrides, Source};
use crate::escrow::ids::Invalid;

/// What begins the content of a private file that somebody put where its path belongs.
const SECRET_MARKS: [&str; 2] = ["-----BEGIN", "AGE-SECRET-KEY-"];

/// Takes fields off a table and what is said over it, by names like `raft.heartbeat_ms`. A field that is wrong is
/// noted, and something stands in for it, so that reading goes on; what was read counts only if [`Reader::finish`]
/// has nothing to report.
pub(super) struct Reader<'a> {
    table: Table,
    overrides: BTreeMap<String, (String, Source)>,
    /// Where each field that was found came from.
    sources: BTreeMap<String, Source>,
    /// Sections that were asked for.
    sections: BTreeSet<String>,
    base_dir: &'a Path,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(table: Table, overrides: Overrides, base_dir: &'a Path) -> Self {
        let Overrides { values, problems } = overrides;
        Self {
            table,
            overrides: values,
            sources: BTreeMap::new(),
            sections: BTreeSet::new(),
            base_dir,
            problems,
        }
    }

    /// Notes that `field` is wrong.
    pub(super) fn refuse(&mut self, field: &str, expected: impl Into<String>) {
        let source = self.sources.get(field).cloned();
        self.problems.push(Problem::new(field, expected, source));
    }

    /// Whether nothing is wrong so far with `field` or, if it is a section, with any field of it.
    pub(super) fn accepts(&self, field: &str) -> bool {
        !self.problems.iter().any(|problem| {
            problem.field.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    /// A text that may be missing.
    pub(super) fn text(&mut self, field: &str) -> Option<String> {
        match self.take(field)? {
            Value::String(text) => Some(text),
            other => {
                self.refuse(field, format!("a text in quotes, not {other}"));
                None
            }
        }
    }

    /// A text that may not be missing or empty.
    pub(super) fn required(&mut self, field: &str) -> Option<String> {
        let text = self.text(field).filter(|text| !text.is_empty());
        if text.is_none() && self.accepts(field) {
            self.refuse(field, "required, and not empty");
        }
        text
    }

    /// What `check` makes of `text`; if it refuses, the problem is noted under `field`, with the text.
    pub(super) fn checked<T>(
        &mut self,
        field: &str,
        text: String,
        check: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Option<T> {
        check(&text).map_err(|problem| self.refuse(field, format!("{}, not {text:?}", problem.expected))).ok()
    }

    /// A path that may be missing but not be empty.
    pub(super) fn path(&mut self, field: &str) -> Option<PathBuf> {
        let text = self.text(field)?;
        if text.is_empty() {
            self.refuse(field, "a path, not an empty one");
        }
        Some(self.resolved(field, text))
    }

    /// A path that may not be missing or empty.
    pub(super) fn required_path(&mut self, field: &str) -> PathBuf {
        self.required(field).map(|text| self.resolved(field, text)).unwrap_or_default()
    }

    /// A path of the file is relative to the file's directory, any other to the working directory, as everywhere on
    /// a command line.
    fn resolved(&mut self, field: &str, text: String) -> PathBuf {
        if SECRET_MARKS.iter().any(|mark| text.contains(mark)) || text.contains('\n') {
            // Never repeated: paths are printed, keys are not.
            self.refuse(field, "the path of a file, not its content");
            return PathBuf::new();
        }
        match self.sources.get(field) {
            Some(Source::File) => self.base_dir.join(text),
            _ => PathBuf::from(text),
        }
    }

    /// An IP address and port to listen on.
    pub(super) fn address(&mut self, field: &str, default: SocketAddr) -> SocketAddr {
        let expected = "an IP address and a port from 1, such as 127.0.0.1:7420 or [::]:7420";
        let parse = |text: &str| {
            let address = text.parse().ok().filter(|address: &SocketAddr| address.port() > 0);
            address.ok_or_else(|| Invalid::new(field, expected))
        };
        self.text(field).and_then(|text| self.checked(field, text, parse)).unwrap_or(default)
    }

    /// A whole number within `range`.
    pub(super) fn number(&mut self, field: &str, range: RangeInclusive<u64>, default: u64) -> u64 {
        self.optional_number(field, range).unwrap_or(default)
    }

    /// A whole number within `range` that may be missing.
    pub(super) fn optional_number(&mut self, field: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(field)?;
        let number = match &value {
            // The environment and flags have no numbers but texts.
            Value::String(text) if self.sources.get(field) != Some(&Source::File) => text.parse().ok(),
            value => value.as_integer().and_then(|number| u64::try_from(number).ok()),
        };
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = range.into_inner();
            self.refuse(field, format!("a whole number from {least} to {most}, not {value}"));
        }
        number
    }

    /// A whole number within `range` that may not be missing.
    pub(super) fn required_number(&mut self, field: &str, range: RangeInclusive<u64>) -> u64 {
        // Out of every range in use, so that it is noticed if it is what the field has as well.
        const MISSING: u64 = 0;
        let number = self.number(field, range, MISSING);
        if number == MISSING && self.accepts(field) {
            self.refuse(field, "required");
        }
        number
    }

    /// Everything that was wrong, including fields that nobody asked for, in the order of the fields' names; and where
    /// each field that was found came from.
    pub(super) fn finish(mut self) -> (Vec<Problem>, BTreeMap<String, Source>) {
        let mut unknown = |field: String, what: &str, source: Source| {
            self.problems.push(Problem::new(field, what, Some(source)));
        };
        for (name, value) in std::mem::take(&mut self.table) {
            match value {
                Value::Table(section) if self.sections.contains(&name) => {
                    for field in section.keys() {
                        unknown(format!("{name}.{field}"), "no such field", Source::File);
                    }
                }
                Value::Table(_) => unknown(name, "no such section", Source::File),
                _ => unknown(name, "no such field", Source::File),
            }
        }
        for (field, (_, source)) in std::mem::take(&mut self.overrides) {
            unknown(field, "no such field", source);
        }
        self.problems.sort_by(|one, other| one.field.cmp(&other.field));
        (self.problems, self.sources)
    }

    /// Takes `field` out of all layers, and notes which one said it last.
    fn take(&mut self, field: &str) -> Option<Value> {
        let (value, source) = match (self.take_from_file(field), self.overrides.remove(field)) {
            (_, Some((text, source))) => (Value::String(text), source),
            (Some(value), None) => (value, Source::File),
            (None, None) => return None,
        };
        self.sources.insert(field.to_owned(), source);
        Some(value)
    }

    /// Takes `field` out of the table: `name` or `section.name`.
    fn take_from_file(&mut self, field: &str) -> Option<Value> {
        let Some((section, name)) = field.split_once('.') else { return self.table.remove(field) };
        self.sections.insert(section.to_owned());
        match self.table.get_mut(section)? {
            Value::Table(table) => table.remove(name),
            other => {
                let problem = format!("a section [{section}], not {other}");
                self.table.remove(section);
                self.problems.push(Problem::new(section, problem, Some(Source::File)));
                None
            }
        }
    }
}
