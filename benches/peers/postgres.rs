//! PostgreSQL with two standbys as it comes, but for TLS with certificates of clients and for commits that wait until they are
//! on the disk of the primary and of any one standby. Its clients insert a row each, by a prepared statement.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use strongroom::tls::Tls;
use strongroom::tls::ca::FileNames;
use tempfile::TempDir;
use tokio_postgres::config::SslMode;
use tokio_postgres::{Config, Statement};

use crate::encrypted::Encrypt;
use crate::load::{CLIENTS_MAX, Client};
use crate::payload;
use crate::process::{Process, User, command, free_ports, installed, run};
use crate::trust::{self, CLIENT, Trust};

/// How to have it.
pub const INSTALL: &str =
    "apt-get install --no-install-recommends postgresql (and stop the service that starts)";

/// Where Debian has the programs, by version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// It refuses to run as root: whom it runs as then.
const USER: &str = "postgres";
/// Connections: clients, and what asks for the state beside them.
const CONNECTIONS: usize = CLIENTS_MAX + 44;
const TABLE: &str = "CREATE TABLE escrow (id text PRIMARY KEY, record bytea NOT NULL)";
const INSERT: &str = "INSERT INTO escrow (id, record) VALUES ($1, $2)";
const STANDBYS: &str = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'";

/// A running primary and its standbys, gone when dropped.
pub struct Postgres {
    version: String,
    /// The primary first.
    processes: Vec<Process>,
    port: u16,
    tls: Tls,
    rows: Arc<AtomicU64>,
    _dir: TempDir,
}

/// How its processes are started.
struct Place {
    programs: PathBuf,
    user: Option<User>,
    dir: PathBuf,
}

impl Postgres {
    /// `None` if it is not installed.
    pub async fn start(trust: &Trust, dir: TempDir) -> Option<Self> {
        let place =
            Place { programs: programs()?, user: User::unprivileged(USER), dir: dir.path().to_owned() };
        let mut asked = command(&place.programs.join("postgres"), place.user);
        asked.arg("--version");
        let version = run(asked).await.trim().to_owned();

        let [port, first, second] = free_ports();
        let tls = trust.tls(FileNames::CLIENT);
        trust.write(&dir.path().join("tls"));
        place.hand_over().await;
        let mut processes = vec![place.start_primary(port).await];
        let connects = async || connect(&tls, port).await.is_ok();
        processes[0].wait_for("the start of the primary", connects).await;
        for (name, own_port) in [("standby1", first), ("standby2", second)] {
            processes.push(place.start_standby(name, own_port, port).await);
        }
        let has_standbys = async || standbys(&tls, port).await == Some(2);
        processes[0].wait_for("the start of both standbys", has_standbys).await;
        let primary = connect(&tls, port).await.expect("connected");
        primary.batch_execute(TABLE).await.expect("a table");
        Some(Self { version, processes, port, tls, rows: Arc::default(), _dir: dir })
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }

    /// Clients of the primary.
    pub async fn clients(&self, count: usize) -> Vec<PostgresClient> {
        let mut clients = Vec::new();
        for _ in 0..count {
            let client = connect(&self.tls, self.port).await.expect("connected");
            let insert = client.prepare(INSERT).await.expect("prepared");
            clients.push(PostgresClient { client, insert, rows: self.rows.clone() });
        }
        clients
    }

    pub async fn stop(&mut self) {
        for process in &mut self.processes {
            process.stop().await;
        }
    }
}

/// The directory of the newest programs.
fn programs() -> Option<PathBuf> {
    let version = |dir: &Path| dir.file_name()?.to_str()?.parse::<u32>().ok();
    let entries = fs::read_dir(VERSIONS).into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = entries.filter(|dir| version(dir).is_some()).max_by_key(|dir| version(dir));
    let dirs = newest.map(|dir| dir.join("bin")).into_iter();
    let mut dirs = dirs.chain(installed("initdb").and_then(|program| Some(program.parent()?.to_owned())));
    dirs.find(|dir| ["initdb", "pg_basebackup", "postgres"].iter().all(|name| dir.join(name).is_file()))
}

impl Place {
    /// Gives all of the directory to the user that the processes run as.
    async fn hand_over(&self) {
        let Some(User { id, group }) = self.user else { return };
        let mut chown = command(Path::new("chown"), None);
        chown.arg("-R").arg(format!("{id}:{group}")).arg(&self.dir);
        run(chown).await;
    }

    async fn start_primary(&self, port: u16) -> Process {
        let data = self.dir.join("primary");
        let mut initdb = command(&self.programs.join("initdb"), self.user);
        initdb.args(["--username", CLIENT, "--auth", "reject", "--encoding", "UTF8", "--no-locale"]);
        initdb.arg("--pgdata").arg(&data).current_dir(&self.dir);
        run(initdb).await;
        let access = format!(
            "hostssl all {CLIENT} 127.0.0.1/32 cert\nhostssl replication {CLIENT} 127.0.0.1/32 cert\n"
        );
        fs::write(data.join("pg_hba.conf"), access).expect("who may connect");
        let tls = self.dir.join("tls");
        let tls = tls.display();
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n\
             max_connections = {CONNECTIONS}\n\
             ssl = on\nssl_ca_file = '{tls}/ca.crt'\nssl_cert_file = '{tls}/node.crt'\nssl_key_file = '{tls}/node.key'\n\
             fsync = on\nfull_page_writes = on\nsynchronous_commit = on\n\
             synchronous_standby_names = 'ANY 1 (standby1, standby2)'\n"
        );
        set(&data, &settings);
        self.start("primary")
    }

    async fn start_standby(&self, name: &str, own_port: u16, primary: u16) -> Process {
        let (data, tls) = (self.dir.join(name), self.dir.join("tls"));
        let tls = tls.display();
        let connection = format!(
            "host=127.0.0.1 port={primary} user={CLIENT} application_name={name} sslmode=verify-full \
             sslrootcert={tls}/ca.crt sslcert={tls}/client.crt sslkey={tls}/client.key"
        );
        let mut copy = command(&self.programs.join("pg_basebackup"), self.user);
        copy.args(["--checkpoint", "fast", "--dbname", &connection]);
        copy.arg("--pgdata").arg(&data).current_dir(&self.dir);
        run(copy).await;
        fs::write(data.join("standby.signal"), "").expect("the sign of a standby");
        set(&data, &format!("port = {own_port}\nprimary_conninfo = '{connection}'\n"));
        self.hand_over().await;
        self.start(name)
    }

    fn start(&self, name: &str) -> Process {
        let mut command = command(&self.programs.join("postgres"), self.user);
        command.arg("-D").arg(self.dir.join(name)).current_dir(&self.dir);
        Process::spawn(command, self.dir.join(format!("{name}.log")))
    }
}

/// Adds settings, which count more than those before them.
fn set(data: &Path, settings: &str) {
    let file = OpenOptions::new().append(true).open(data.join("postgresql.conf"));
    file.and_then(|mut file| file.write_all(settings.as_bytes())).expect("settings");
}

async fn connect(tls: &Tls, port: u16) -> Result<tokio_postgres::Client, String> {
    let tcp = trust::tcp(&format!("127.0.0.1:{port}")).await.map_err(|error| error.to_string())?;
    let mut config = Config::new();
    config.user(CLIENT).dbname("postgres").ssl_mode(SslMode::Require);
    let connected = config.connect_raw(tcp, Encrypt(tls.clone())).await;
    let (client, connection) = connected.map_err(|error| trust::chain(&error))?;
    // It ends with the client; what went wrong before that the client is told.
    tokio::spawn(connection);
    Ok(client)
}

/// How many standbys are counted for commits.
async fn standbys(tls: &Tls, port: u16) -> Option<i64> {
    let client = connect(tls, port).await.ok()?;
    client.query_one(STANDBYS, &[]).await.ok()?.try_get(0).ok()
}

pub struct PostgresClient {
    client: tokio_postgres::Client,
    insert: Statement,
    rows: Arc<AtomicU64>,
}

impl Client for PostgresClient {
    async fn request(&mut self) -> Result<(), String> {
        let (id, record) = payload::key_and_value(self.rows.fetch_add(1, Ordering::Relaxed));
        let inserted = self.client.execute(&self.insert, &[&id, &record]).await;
        inserted.map(drop).map_err(|error| trust::chain(&error))
    }
}
