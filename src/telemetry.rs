//! Logs: to standard error, for people on a terminal and as JSON elsewhere.
//!
//! Standard output belongs to results. What is logged is ids and positions, never a request, so that no secret can
//! get here (see [`Secret`](crate::secret::Secret)).
//!
//! Whatever is logged for a request carries its [id](crate::request_id). At `info` is what people do and what is refused:
//! reveals, membership changes, new leaders; at `debug` what agents do all day.

use std::env::VarError;
use std::io::IsTerminal;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// The environment variable that says what is logged, such as `debug` or `warn,openraft=info`.
pub const LOG_VARIABLE: &str = "STRONGROOM_LOG";

/// Libraries that say at `info` what interests their own developers. [`LOG_VARIABLE`] can ask for more of each by
/// its name; a level without a name leaves them as they are.
///
/// Three parts of openraft say at `warn`, at each attempt, that a member is away or refuses: several lines a second for as
/// long as it does. `raft/link.rs` says it once a minute. They have to be named in full.
const QUIET: &str = "chunked_wal=warn,h2=warn,hyper=warn,openraft=warn,openraft::core::heartbeat=error,\
    openraft::engine::handler::replication_handler=error,openraft::replication=error,raft_log=warn,sled=warn";

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// This process already logs elsewhere.
    #[error("logs were already set up")]
    AlreadyInitialized(#[source] TryInitError),
    /// [`LOG_VARIABLE`] does not parse.
    #[error(
        "{LOG_VARIABLE}: a list of levels (error, warn, info, debug, trace, off) or target=level, not {value:?}"
    )]
    Filter {
        /// Its value.
        value: String,
        /// Why not.
        source: ParseError,
    },
    /// [`LOG_VARIABLE`] is not text.
    #[error("{LOG_VARIABLE} is not UTF-8")]
    NotText,
}

/// How an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// One JSON object a line.
    Json,
    /// One readable line, in colour unless `NO_COLOR` is set.
    Terminal,
}

/// Sets up logs for the whole process: at `default` (servers: info, commands: warn) and as [`LOG_VARIABLE`] says.
///
/// # Errors
/// [`TelemetryError::Filter`] or [`TelemetryError::NotText`] if the variable is wrong,
/// [`TelemetryError::AlreadyInitialized`] on a second call.
pub fn init(default: LevelFilter) -> Result<(), TelemetryError> {
    let asked = match std::env::var(LOG_VARIABLE) {
        Ok(asked) => Some(asked),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(_)) => return Err(TelemetryError::NotText),
    };
    let style = if std::io::stderr().is_terminal() { Style::Terminal } else { Style::Json };
    subscriber(filter(default, asked.as_deref())?, style, std::io::stderr)
        .try_init()
        .map_err(TelemetryError::AlreadyInitialized)
}

fn filter(default: LevelFilter, asked: Option<&str>) -> Result<EnvFilter, TelemetryError> {
    // A later directive for the same target replaces an earlier one, so what was asked for comes last.
    let asked = asked.map(str::trim).filter(|asked| !asked.is_empty());
    let directives = [Some(QUIET), asked].into_iter().flatten().collect::<Vec<_>>().join(",");
    EnvFilter::builder()
        .parse(format!("{default},{directives}"))
        .map_err(|source| TelemetryError::Filter { value: asked.unwrap_or_default().to_owned(), source })
}

fn subscriber<W>(filter: EnvFilter, style: Style, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match style {
        Style::Json => Box::new(builder.json().flatten_event(true).with_span_list(false).finish()),
        Style::Terminal => Box::new(builder.compact().finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written of a few events when `asked` for.
    fn logged(default: LevelFilter, asked: Option<&str>, style: Style) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let filter = filter(default, asked).unwrap();
        tracing::subscriber::with_default(subscriber(filter, style, move || writer.clone()), || {
            tracing::debug!("ours-debug");
            tracing::info!(index = 7, "ours-info");
            tracing::warn!("ours-warn");
            tracing::info!(target: "openraft::engine", "openraft-info");
            tracing::warn!(target: "openraft::replication", "member-away");
            tracing::warn!(target: "sled::pagecache", "sled-warn");
        });
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn messages(text: &str) -> Vec<&str> {
        let all = ["ours-debug", "ours-info", "ours-warn", "openraft-info", "member-away", "sled-warn"];
        all.into_iter().filter(|message| text.contains(message)).collect()
    }

    #[test]
    fn libraries_stay_quiet_unless_named() {
        let cases: [(LevelFilter, Option<&str>, &[&str]); 8] = [
            (LevelFilter::INFO, None, &["ours-info", "ours-warn", "sled-warn"]),
            (LevelFilter::INFO, Some(" "), &["ours-info", "ours-warn", "sled-warn"]),
            (LevelFilter::WARN, None, &["ours-warn", "sled-warn"]),
            (LevelFilter::INFO, Some("debug"), &["ours-debug", "ours-info", "ours-warn", "sled-warn"]),
            (
                LevelFilter::INFO,
                Some("openraft=info"),
                &["ours-info", "ours-warn", "openraft-info", "sled-warn"],
            ),
            (LevelFilter::INFO, Some("off,openraft::replication=warn"), &["member-away", "sled-warn"]),
            (LevelFilter::INFO, Some("off,sled=off"), &[]),
            (LevelFilter::INFO, Some("error,openraft=info"), &["openraft-info", "sled-warn"]),
        ];
        for (default, asked, expected) in cases {
            assert_eq!(messages(&logged(default, asked, Style::Json)), expected, "{default} {asked:?}");
        }
    }

    #[test]
    fn elsewhere_than_on_a_terminal_every_line_is_one_json_object_with_the_fields_on_top() {
        let text = logged(LevelFilter::INFO, None, Style::Json);
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["message"], "ours-info");
        assert_eq!(lines[0]["index"], 7);
        assert_eq!(lines[0]["level"], "INFO");
        assert!(lines[0]["timestamp"].is_string() && lines[0]["target"].is_string());
    }

    #[test]
    fn on_a_terminal_every_event_is_one_line() {
        let text = logged(LevelFilter::INFO, None, Style::Terminal);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("ours-info") && text.contains('7'), "{text}");
    }

    #[test]
    fn a_filter_that_does_not_parse_is_refused_with_its_value() {
        let refused = filter(LevelFilter::INFO, Some("openraft=loud")).unwrap_err().to_string();
        assert!(refused.contains(LOG_VARIABLE) && refused.contains("openraft=loud"), "{refused}");
    }
}
