//! Reading fields off a TOML table while collecting everything that is wrong with them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::escrow::ids::Invalid;

/// Takes fields off a table, by names like `raft.heartbeat_ms`. A field that is wrong is noted, and something stands
/// in for it, so that reading goes on; what was read counts only if [`Reader::finish`] has nothing to report.
pub(super) struct Reader<'a> {
    table: Table,
    /// Sections that were asked for.
    sections: BTreeSet<String>,
    base_dir: &'a Path,
    problems: Vec<Invalid>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(table: Table, base_dir: &'a Path) -> Self {
        Self { table, sections: BTreeSet::new(), base_dir, problems: Vec::new() }
    }

    /// Notes that `field` is wrong.
    pub(super) fn refuse(&mut self, field: &str, expected: impl Into<String>) {
        self.problems.push(Invalid::new(field, expected));
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
        Some(self.base_dir.join(text))
    }

    /// A path that may not be missing or empty.
    pub(super) fn required_path(&mut self, field: &str) -> PathBuf {
        self.required(field).map(|text| self.base_dir.join(text)).unwrap_or_default()
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
        let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
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

    /// Everything that was wrong, including fields that nobody asked for, in the order of the fields' names.
    pub(super) fn finish(mut self) -> Vec<Invalid> {
        for (name, value) in std::mem::take(&mut self.table) {
            match value {
                Value::Table(section) if self.sections.contains(&name) => {
                    for field in section.keys() {
                        self.refuse(&format!("{name}.{field}"), "no such field");
                    }
                }
                Value::Table(_) => self.refuse(&name, "no such section"),
                _ => self.refuse(&name, "no such field"),
            }
        }
        self.problems.sort_by(|one, other| one.field.cmp(&other.field));
        self.problems
    }

    /// Takes `field` out of the table: `name` or `section.name`.
    fn take(&mut self, field: &str) -> Option<Value> {
        let Some((section, name)) = field.split_once('.') else { return self.table.remove(field) };
        self.sections.insert(section.to_owned());
        match self.table.get_mut(section)? {
            Value::Table(table) => table.remove(name),
            other => {
                let problem = format!("a section [{section}], not {other}");
                self.table.remove(section);
                self.refuse(section, problem);
                None
            }
        }
    }
}
