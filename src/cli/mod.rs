//! The command line: one file per command. Commands parse and check what they can without a node, call the
//! [client](crate::client), and print; they hold no domain logic.
//!
//! Every failure is a [`Failure`] and becomes an exit code in `failure.rs` and nowhere else.

mod approval;
mod audit;
mod bench;
pub mod cert;
mod compliance;
mod custody;
mod demo;
mod dev;
mod escrow;
mod failure;
mod find;
mod health;
mod import;
mod init;
mod input;
mod keyring;
pub mod local_cluster;
mod manual;
mod member;
mod node_config;
mod output;
mod policy;
mod receipt;
mod recover;
mod recover_cluster;
mod report;
mod rotation;
mod sample;
mod server;
mod status;
mod whole_file;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::failure::{Exit, Failure};
pub use self::output::{Format, Printer};

use crate::client::{Client, ClientOptions, EndpointAddress, Preference};
use crate::mutation;
use crate::tls::{Tls, TlsPaths};

/// Hidden flag of `server`: the process id of the parent it must not outlive.
pub(crate) const WITH_PARENT_FLAG: &str = "--with-parent";
/// Longest `--timeout`, in seconds.
const TIMEOUT_MAX_SECONDS: u64 = 3_600;

/// A replicated escrow for disk-encryption recovery keys.
#[derive(Debug, Parser)]
#[command(name = "strongroom", version = mutation::VERSION, long_about = LONG_ABOUT, after_long_help = EXIT_CODES)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const LONG_ABOUT: &str = "A replicated escrow for disk-encryption recovery keys.\n\n\
    Three to five nodes keep the recovery keys of BitLocker, LUKS and FileVault volumes, sealed and replicated; \
    any of them takes a key, and any that survives gives it back to who may have it, and leaves a record of that.";

const EXIT_CODES: &str = "Exit codes:\n  \
    0   done\n  \
    1   failed\n  \
    2   bad usage or invalid input\n  \
    3   not found\n  \
    4   denied\n  \
    5   conflicts with what is stored\n  \
    75  temporarily unavailable: no node or no quorum; try again";

/// Flags every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection and output")]
struct Global {
    /// Nodes of the cluster: host:port of their APIs, separated by commas.
    #[arg(
        long,
        global = true,
        env = "STRONGROOM_ENDPOINTS",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "HOST:PORT"
    )]
    endpoints: Vec<EndpointAddress>,
    /// Directory with ca.crt, client.crt and client.key: who you are.
    #[arg(long, global = true, env = "STRONGROOM_PROFILE", hide_env_values = true, value_name = "DIR")]
    profile: Option<PathBuf>,
    /// How to print results and errors.
    #[arg(
        long,
        global = true,
        env = "STRONGROOM_OUTPUT",
        hide_env_values = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    output: Format,
    /// How long to keep trying until a node answers, in seconds.
    #[arg(
        long, global = true, default_value_t = 10, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=TIMEOUT_MAX_SECONDS),
    )]
    timeout: u64,
    /// Your own site or zone: its nodes are asked first.
    #[arg(long, global = true, env = "STRONGROOM_ZONE", hide_env_values = true, value_name = "ZONE")]
    zone: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See and decide reveals that another person asked for.
    Approval(approval::ApprovalCommand),
    /// Read, export and verify the audit trail.
    Audit(audit::AuditCommand),
    /// Measure a cluster under load.
    Bench(bench::BenchCommand),
    /// A certificate authority for those who have none.
    Cert {
        #[command(subcommand)]
        command: cert::CertCommand,
    },
    /// What devices say of their volumes, what is wanted of them, and who is let off.
    Compliance(compliance::ComplianceCommand),
    /// Print a script that completes this command in a shell.
    Completions(manual::CompletionsCommand),
    /// Challenge every node: does it hold a key, and can it open it? Shows nothing of the key.
    Custody(custody::CustodyCommand),
    /// Show the main job in one go: escrow, loss of the leader, recovery on the survivors.
    Demo(demo::DemoCommand),
    /// Run a local cluster to play with until Ctrl-C.
    Dev(dev::DevCommand),
    /// Keep a recovery key; the secret comes from standard input or a file.
    Escrow(escrow::EscrowCommand),
    /// Look keys up; never shows a secret.
    Find(find::FindCommand),
    /// Ask a node's admin port whether it is ready.
    Health(health::HealthCommand),
    /// Keep the keys in a file: a CSV table, or an LDIF export of an Active Directory.
    Import(import::ImportCommand),
    /// Create a new cluster on its first node.
    Init(init::InitCommand),
    /// The data keys that seal what is kept.
    Keyring {
        #[command(subcommand)]
        command: keyring::KeyringCommand,
    },
    /// Print the manual page.
    Man,
    /// List members, and change who they are.
    Member(member::MemberCommand),
    /// Show the policy of reveals, or replace it.
    Policy(policy::PolicyCommand),
    /// Check receipts.
    Receipt(receipt::ReceiptCommand),
    /// Show one secret, which puts it on record.
    Recover(recover::RecoverCommand),
    /// Begin a new cluster on what one node has, after its quorum is lost for ever.
    RecoverCluster(recover_cluster::RecoverClusterCommand),
    /// Make a report, at any node.
    Report(report::ReportCommand),
    /// What machines owe because a person saw a key, and how it is settled.
    Rotation(rotation::RotationCommand),
    /// Run a node; it waits to be added if it belongs to no cluster.
    Server(server::ServerCommand),
    /// Nodes, roles, lag, digests and how many failures the cluster tolerates.
    Status,
}

/// Runs the command in `arguments` (the program's own name first) and says how the process should end.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = command().try_get_matches_from(&arguments).and_then(|found| Cli::from_arg_matches(&found));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return usage(error, format_in(&arguments)),
    };
    let printer = Printer::new(cli.global.output);
    match dispatch(cli, printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            printer.failure(&failure);
            failure.exit.into()
        }
    }
}

fn dispatch(cli: Cli, printer: Printer) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("starting threads: {error}")))?;
    let Cli { global, command } = cli;
    runtime.block_on(async {
        match command {
            Command::Approval(approval) => approval.run(&global, printer).await,
            Command::Audit(audit) => audit.run(&global, printer).await,
            Command::Bench(bench) => bench.run(&global, printer).await,
            Command::Cert { command } => cert::run(command, printer),
            Command::Compliance(compliance) => compliance.run(&global, printer).await,
            Command::Completions(completions) => completions.run(),
            Command::Custody(custody) => custody.run(&global, printer).await,
            Command::Demo(demo) => demo.run(printer).await,
            Command::Dev(dev) => dev.run(printer).await,
            Command::Escrow(escrow) => escrow.run(&global, printer).await,
            Command::Find(find) => find.run(&global, printer).await,
            Command::Health(health) => health.run(printer),
            Command::Import(import) => import.run(&global, printer).await,
            Command::Init(init) => init.run(printer).await,
            Command::Keyring { command } => command.run(&global, printer).await,
            Command::Man => manual::print(),
            Command::Member(member) => member.run(&global, printer).await,
            Command::Policy(policy) => policy.run(&global, printer).await,
            Command::Receipt(receipt) => receipt.run(&global, printer),
            Command::Recover(recover) => recover.run(&global, printer).await,
            Command::RecoverCluster(recover) => recover.run(printer).await,
            Command::Report(report) => report.run(&global, printer).await,
            Command::Rotation(rotation) => rotation.run(&global, printer).await,
            Command::Server(server) => server.run(printer).await,
            Command::Status => status::run(&global, printer).await,
        }
    })
}

impl Global {
    /// A client of the cluster, as the profile's identity.
    fn client(&self) -> Result<Client, Failure> {
        self.client_preferring(Preference::Nearest, self.endpoints.clone())
    }

    fn client_preferring(
        &self,
        preference: Preference,
        endpoints: Vec<EndpointAddress>,
    ) -> Result<Client, Failure> {
        let options =
            ClientOptions { zone: self.zone.clone(), timeout: Duration::from_secs(self.timeout), preference };
        // The order of complaints: first what is missing on the command line, then what is wrong in the profile.
        if endpoints.is_empty() {
            return Err(Failure::new(Exit::Invalid, "endpoints: no node to ask was given")
                .with_hint("give --endpoints HOST:PORT,… or set STRONGROOM_ENDPOINTS"));
        }
        Ok(Client::new(endpoints, self.identity()?, options)?)
    }

    /// The directory with the caller's credentials.
    fn profile(&self) -> Result<&Path, Failure> {
        self.profile.as_deref().ok_or_else(|| {
            Failure::new(Exit::Invalid, "profile: none was given")
                .with_hint("give --profile DIR or set STRONGROOM_PROFILE")
        })
    }

    fn identity(&self) -> Result<Tls, Failure> {
        let profile = self.profile()?;
        Tls::load(TlsPaths::profile(profile)).map_err(|error| {
            Failure::new(Exit::Invalid, format!("profile: {error}")).with_hint(
                "a profile holds ca.crt, client.crt and client.key; `strongroom cert issue` makes them",
            )
        })
    }
}

/// Reports that the arguments do not parse; or prints the help that was asked for.
fn usage(error: clap::Error, format: Format) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return match output::line(error.render().to_string().trim_end()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.exit.into(),
        };
    }
    let printer = Printer::new(format);
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand && format == Format::Table {
        printer.note(error.render().to_string().trim_end());
        return Exit::Invalid.into();
    }
    let failure = Failure::new(Exit::Invalid, usage_message(&error)).with_hint("see --help");
    printer.failure(&failure);
    failure.exit.into()
}

/// What is wrong with the arguments. An argument that belongs to no flag is not repeated: it may be a secret.
fn usage_message(error: &clap::Error) -> String {
    let stray = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => !argument.starts_with('-'),
        _ => false,
    };
    match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is needed".to_owned(),
        ErrorKind::UnknownArgument if stray => {
            "an argument was given that belongs to no flag; secrets are read from standard input or a file"
                .to_owned()
        }
        ErrorKind::InvalidSubcommand => "there is no such command".to_owned(),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => refused_value(error),
        _ => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            // What follows the first paragraphs is how to get help, which is the hint.
            text.split("\n\nFor more information").next().unwrap_or(text).trim_end().to_owned()
        }
    }
}

/// A value that is not accepted, without the value: it may be a secret that was typed in the wrong place.
fn refused_value(error: &clap::Error) -> String {
    let context = |kind| error.get(kind).map(ToString::to_string);
    let mut text = match context(ContextKind::InvalidArg) {
        Some(argument) => format!("the value of {argument} is not accepted"),
        None => "a value is not accepted".to_owned(),
    };
    if let Some(cause) = std::error::Error::source(error) {
        text = format!("{text}: {cause}");
    }
    if let Some(values) = context(ContextKind::ValidValue) {
        text = format!("{text}; one of {values}");
    }
    text
}

/// The format that was asked for, of arguments that do not parse otherwise.
fn format_in(arguments: &[OsString]) -> Format {
    let mut words = arguments.iter().filter_map(|argument| argument.to_str());
    let asked = loop {
        match words.next() {
            Some("--output") => break words.next().map(str::to_owned),
            Some(word) if word.starts_with("--output=") => {
                break word.strip_prefix("--output=").map(str::to_owned);
            }
            Some(_) => {}
            None => break std::env::var("STRONGROOM_OUTPUT").ok(),
        }
    };
    if asked.as_deref() == Some("json") { Format::Json } else { Format::Table }
}

/// The whole command. What a command does not use is not in its help, though it takes it: the flags of every
/// command may stand before its name.
fn command() -> clap::Command {
    let mut command = Cli::command();
    // Only now do the commands have the flags that every command takes.
    command.build();
    command.mut_subcommands(|subcommand| match subcommand.get_name() {
        "cert" | "completions" | "demo" | "dev" | "health" | "init" | "man" | "receipt"
        | "recover-cluster" | "server" => offline(subcommand),
        "compliance" => subcommand.mut_subcommand("schema", offline),
        "keyring" => subcommand.mut_subcommand("open", offline),
        _ => subcommand,
    })
}

/// A command that asks no node.
fn offline(command: clap::Command) -> clap::Command {
    let verifies = command.get_name() == "verify";
    let prints_text_only = matches!(command.get_name(), "completions" | "dev" | "man" | "schema");
    command
        .mut_args(|argument| match argument.get_id().as_str() {
            "endpoints" | "timeout" | "zone" => argument.hide(true),
            "profile" if !verifies => argument.hide(true),
            "output" if prints_text_only => argument.hide(true),
            _ => argument,
        })
        .mut_subcommands(offline)
}

#[cfg(test)]
mod tests;
