//! A node's configuration on the command line: reading it with all that is said over it, and showing it.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::{Exit, Failure, Printer};
use crate::config::{Config, ConfigError, Loaded, Overrides, Problem};
use crate::escrow::ids::Invalid;
use crate::server::preflight::{Findings, ports_in_use, preflight};

/// Where a node's configuration is, and what is said over it.
#[derive(Debug, Args)]
pub(super) struct NodeConfig {
    /// The node's configuration.
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
    /// Set one field over the file and the environment, such as listen.api=0.0.0.0:7420. May be repeated.
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
}

impl NodeConfig {
    /// The configuration, if a node can run with it: everything that is wrong with it, with the files it names and
    /// with the data directory is reported at once. What is only worth a warning is handed to `warn`.
    pub(super) fn load_checked(&self, mut warn: impl FnMut(&str)) -> Result<Config, Failure> {
        let (loaded, findings) = self.look()?;
        for warning in &findings.warnings {
            warn(&sourced(&loaded, warning).to_string());
        }
        Ok(loaded.config)
    }

    /// Prints the configuration with where each value came from, if a node can run with it.
    pub(super) fn check(&self, printer: Printer) -> Result<(), Failure> {
        let (loaded, mut findings) = self.look()?;
        findings.warnings.extend(ports_in_use(&loaded.config));
        let fields = loaded.fields().map_err(|error| refused(&self.config, error))?;
        let warnings: Vec<String> =
            findings.warnings.iter().map(|warning| sourced(&loaded, warning).to_string()).collect();
        for warning in &warnings {
            printer.note(&format!("warning: {warning}"));
        }
        let report: serde_json::Map<String, serde_json::Value> = fields
            .iter()
            .map(|(field, value, source)| (field.clone(), json!({ "value": value, "source": source })))
            .collect();
        printer.result(&json!({ "fields": report, "warnings": warnings }), || {
            let lines: Vec<(String, String)> = fields
                .iter()
                .map(|(field, value, source)| (format!("{field} = {value}"), format!("# {source}")))
                .collect();
            let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
            let lines: Vec<String> =
                lines.iter().map(|(line, source)| format!("{line:width$}  {source}")).collect();
            lines.join("\n")
        })
    }

    fn look(&self) -> Result<(Loaded, Findings), Failure> {
        let overrides = Overrides::new(std::env::vars_os(), &self.set);
        let loaded = Loaded::load(&self.config, overrides).map_err(|error| refused(&self.config, error))?;
        let mut findings = preflight(&loaded.config);
        if findings.problems.is_empty() {
            return Ok((loaded, findings));
        }
        findings.problems.sort_by(|one, other| one.field.cmp(&other.field));
        let problems = findings.problems.iter().map(|problem| sourced(&loaded, problem)).collect();
        Err(refused(&self.config, ConfigError::Invalid(problems)))
    }
}

fn sourced(loaded: &Loaded, finding: &Invalid) -> Problem {
    Problem::new(&finding.field, &finding.expected, Some(loaded.source(&finding.field)))
}

/// Why there is no configuration: one problem on the line of the file's name, several on a line each.
fn refused(path: &Path, error: ConfigError) -> Failure {
    let path = path.display();
    let message = match &error {
        ConfigError::Invalid(problems) if problems.len() > 1 => {
            let lines: String = problems.iter().map(|problem| format!("\n  {problem}")).collect();
            format!("{path}: {} problems{lines}", problems.len())
        }
        error => format!("{path}: {}", crate::error::chain(error)),
    };
    Failure::new(Exit::Invalid, message)
}
