//! Three nodes of ours as they come, in processes of their own. Its clients escrow a key each and get a signed receipt.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use strongroom::escrow::ids::NodeId;
use tempfile::TempDir;

use crate::common::{ALL, TestCluster};
use crate::load::Client;
use crate::{payload, running};

/// A running cluster, gone when dropped.
pub struct Ours {
    pub test: TestCluster,
    /// How many keys clients were given to escrow; they are numbered from 0.
    pub escrows: Arc<AtomicU64>,
}

impl Ours {
    /// With more lines in the configuration of the nodes.
    pub async fn start(dir: TempDir, config: &str) -> Self {
        Self { test: running::form(dir, config).await, escrows: Arc::default() }
    }

    pub fn pids(&self) -> Vec<u32> {
        ALL.iter().filter_map(|node| self.test.cluster.pid(*node)).collect()
    }

    /// Clients that escrow, at the leader and the others in turns.
    pub async fn clients(&self, count: usize) -> Vec<EscrowClient> {
        let clients = self.connections("importer", count).await.into_iter();
        clients.map(|client| EscrowClient { client, escrows: self.escrows.clone() }).collect()
    }

    /// Clients with the credentials of `profile`, at the leader and the others in turns.
    pub async fn connections(&self, profile: &str, count: usize) -> Vec<strongroom::client::Client> {
        let leader = self.test.leader().await;
        let others = ALL.into_iter().filter(|node| *node != leader);
        let order: Vec<NodeId> = std::iter::once(leader).chain(others).collect();
        let at = |number: usize| {
            let mut nodes = order.clone();
            nodes.rotate_left(number % order.len());
            self.test.client(profile, &nodes)
        };
        (0..count).map(at).collect()
    }
}

pub struct EscrowClient {
    client: strongroom::client::Client,
    escrows: Arc<AtomicU64>,
}

impl Client for EscrowClient {
    async fn request(&mut self) -> Result<(), String> {
        let deposit = payload::deposit(self.escrows.fetch_add(1, Ordering::Relaxed));
        self.client.escrow(&deposit).await.map(drop).map_err(|error| error.to_string())
    }
}
