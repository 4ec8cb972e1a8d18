//! The pages of a node's admin port, as a monitoring system reads them.

use std::time::{Duration, Instant};

use strongroom::escrow::ids::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{SOON, TestCluster};

/// Between two looks at a page.
const POLL: Duration = Duration::from_millis(20);

/// Status code and body of a page at `admin`, host and port. `None` if nobody answers.
pub async fn try_page(admin: &str, path: &str, accept: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(admin).await.ok()?;
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {admin}\r\naccept: {accept}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// As [`try_page`], of a node that answers.
pub async fn page(admin: &str, path: &str) -> (u16, String) {
    try_page(admin, path, "*/*").await.expect("the admin port answers")
}

/// Waits until a page at `admin` is as it should be, and returns its body.
pub async fn wait_for_page_at(admin: &str, path: &str, holds: impl Fn(u16, &str) -> bool) -> String {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = try_page(admin, path, "*/*").await;
        if let Some((code, body)) = &answer
            && holds(*code, body)
        {
            return body.clone();
        }
        assert!(Instant::now() < deadline, "{admin}{path}: {answer:?}");
        tokio::time::sleep(POLL).await;
    }
}

impl TestCluster {
    /// Status code and body of a page of a node's admin port.
    pub async fn page(&self, node: NodeId, path: &str) -> (u16, String) {
        page(&self.admin(node), path).await
    }

    /// Waits until a page of a node is as it should be, and returns its body.
    pub async fn wait_for_page(&self, node: NodeId, path: &str, holds: impl Fn(u16, &str) -> bool) -> String {
        wait_for_page_at(&self.admin(node), path, holds).await
    }

    /// Host and port of a node's admin service.
    pub fn admin(&self, node: NodeId) -> String {
        self.cluster.layout().node(node).expect("a node").admin_address()
    }
}
