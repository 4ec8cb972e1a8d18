//! Where values come from: the file, the environment over it, flags over both.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use serde::Serialize;

use super::Problem;

/// What begins the name of every environment variable that sets a field: `STRONGROOM_NODE__LISTEN__API` sets
/// `listen.api`. The two underscores keep it apart from the variables of the client and from those a container
/// platform makes of a service's name.
pub const ENVIRONMENT_PREFIX: &str = "STRONGROOM_NODE__";
/// Between a section and a field in the name of a variable.
const ENVIRONMENT_SEPARATOR: &str = "__";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nobody said it.
    Default,
    /// This environment variable.
    Environment(String),
    /// The file.
    File,
    /// The flag `--set`.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File => f.write_str("file"),
            Self::Flag => f.write_str("--set"),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is said over the file. The default says nothing.
#[derive(Debug, Default)]
pub struct Overrides {
    /// By field, with the text it was given.
    pub(super) values: BTreeMap<String, (String, Source)>,
    /// What is not even a field and a value.
    pub(super) problems: Vec<Problem>,
}

impl Overrides {
    /// Takes `flags` (`field=value`, the last one of a field counts) over the variables of `environment` whose names
    /// begin with [`ENVIRONMENT_PREFIX`]. Other variables are nobody's business here.
    pub fn new(environment: impl IntoIterator<Item = (OsString, OsString)>, flags: &[String]) -> Self {
        let mut overrides = Self::default();
        for (name, value) in environment {
            let Some(name) = name.to_str().filter(|name| name.starts_with(ENVIRONMENT_PREFIX)) else {
                continue;
            };
            overrides.take_variable(name, value);
        }
        for flag in flags {
            overrides.take_flag(flag);
        }
        overrides
    }

    fn take_variable(&mut self, name: &str, value: OsString) {
        let source = Source::Environment(name.to_owned());
        let Some(field) = field_of(name) else {
            return self.refuse(name, "no such variable: names are in capitals, as the one for listen.api is STRONGROOM_NODE__LISTEN__API");
        };
        match value.into_string() {
            Ok(value) => drop(self.values.insert(field, (value, source))),
            Err(_) => self.problems.push(Problem::new(field, "UTF-8", Some(source))),
        }
    }

    fn take_flag(&mut self, flag: &str) {
        match flag.split_once('=') {
            Some((field, value)) if !field.trim().is_empty() => {
                let set = (value.trim().to_owned(), Source::Flag);
                self.values.insert(field.trim().to_owned(), set);
            }
            // Not repeated: what has no field may be anything.
            _ => self.refuse("--set", "a field and its value, such as listen.api=0.0.0.0:7420"),
        }
    }

    fn refuse(&mut self, what: &str, expected: &str) {
        self.problems.push(Problem::new(what, expected, None));
    }
}

/// The field a variable names.
fn field_of(name: &str) -> Option<String> {
    let rest = name.strip_prefix(ENVIRONMENT_PREFIX)?;
    if rest.is_empty() || rest.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return None;
    }
    Some(rest.to_ascii_lowercase().replace(ENVIRONMENT_SEPARATOR, "."))
}

/// The variable that sets `field`.
pub fn variable_of(field: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", field.to_ascii_uppercase().replace('.', ENVIRONMENT_SEPARATOR))
}
