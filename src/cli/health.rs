//! `strongroom health`: is the node on this host ready? For probes where there is no HTTP client, and for scripts.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::{Exit, Failure, Printer};
use crate::config::ADMIN_PORT;

/// Longest one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Most of an answer that is read; ours has a few lines.
const ANSWER_MAX_BYTES: u64 = 16 * 1024;
/// Between two questions.
const POLL: Duration = Duration::from_millis(200);

/// Ask the admin port of a node whether requests may be sent to it.
#[derive(Debug, Args)]
pub(super) struct HealthCommand {
    /// The node's admin port.
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT)))]
    admin: SocketAddr,
    /// Keep asking for this many seconds until it is ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    wait: u64,
}

impl HealthCommand {
    pub(super) fn run(&self, printer: Printer) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(self.wait);
        loop {
            let reasons = match ask(self.admin) {
                Ok(reasons) if reasons.is_empty() => {
                    return printer.result(&json!({ "ready": true }), || "ready".to_owned());
                }
                Ok(reasons) => reasons.join("; "),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                let message = format!("the node at {} is not ready: {reasons}", self.admin);
                return Err(Failure::new(Exit::Unavailable, message));
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Why the node is not ready; empty if it is.
fn ask(admin: SocketAddr) -> io::Result<Vec<String>> {
    let mut stream = TcpStream::connect_timeout(&admin, ASK_TIMEOUT)?;
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    stream.set_write_timeout(Some(ASK_TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX_BYTES).read_to_string(&mut answer)?;
    reasons(&answer).ok_or_else(|| io::Error::other("what answers is no admin port of a node"))
}

/// What an answer of `/readyz` says: 200, or 503 with `not ready` and a reason a line.
fn reasons(answer: &str) -> Option<Vec<String>> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    match head.split_whitespace().nth(1)? {
        "200" if body.starts_with("ready") => Some(Vec::new()),
        "503" => Some(body.lines().map(str::to_owned).filter(|line| line != "not ready").collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nodes_own_answer_counts() {
        let answer = |status: &str, body: &str| reasons(&format!("HTTP/1.1 {status}\r\na: b\r\n\r\n{body}"));
        assert_eq!(answer("200 OK", "ready\n"), Some(vec![]));
        let waiting =
            answer("503 Service Unavailable", "not ready\nbelongs to no cluster yet\nknows no leader\n");
        assert_eq!(waiting.unwrap(), ["belongs to no cluster yet", "knows no leader"]);
        assert_eq!(answer("200 OK", "<html>welcome</html>"), None);
        assert_eq!(answer("404 Not Found", "ready\n"), None);
        assert_eq!(reasons("SSH-2.0-OpenSSH"), None);
    }
}
