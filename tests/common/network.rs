//! A network between real node processes that can be cut link by link, while clients on every side go on asking.
//!
//! Each node listens for its peers where the layout says, and advertises a port of this proxy instead: all that nodes
//! say to each other goes through here. Clients reach the nodes directly, so that a node which is cut off from its peers
//! still answers whoever is on its side.
//!
//! A link is directed: [`Network::cut`] from 1 to 2 stops whatever node 1 says to node 2, over connections that either
//! of them made, and leaves what node 2 says to node 1 alone. A cut is of one of two kinds ([`Cut`]):
//!
//! - *silent*, as a switch that fails: nobody is told. What was said meanwhile is kept back and comes late, after the
//!   heal, as TCP sends again what was lost; if its connection was given up meanwhile, the end of it comes behind. Who
//!   dials is not answered, and forgotten if it has given up by the heal.
//! - *reset*, as a firewall that rejects: connections between the two break at once, and new ones as soon as they are
//!   made. A connection cannot be broken in one direction, so this concerns both, whichever is cut.
//!
//! A delay holds up every byte of a link by as long, in order.
//!
//! Who dials cannot be seen from a connection, so it is looked up in the kernel's tables (`caller.rs`): that works on
//! Linux, and needs no rights but those of the user who runs the nodes. The proxy has a thread of its own: a test that
//! blocks does not stop its network.

mod caller;
mod relay;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use strongroom::cli::local_cluster::{Layout, NodePlan};
use strongroom::escrow::ids::NodeId;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use self::caller::Callers;
use super::{TestCluster, laid_out, plan};

/// How a link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing arrives, and nobody is told.
    Silent,
    /// Connections break.
    Reset,
}

/// What one node's words to another go through.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    cut: Option<Cut>,
    delay: Duration,
    /// How often it was cut with resets: a connection from before the last one is broken, however soon that was healed.
    resets: u64,
}

/// The network of one cluster. Dropped, it passes nothing any more.
pub struct Network {
    shared: Arc<Shared>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

struct Shared {
    callers: Callers,
    /// By who speaks and to whom.
    links: BTreeMap<(NodeId, NodeId), watch::Sender<Link>>,
}

/// Three voters that have applied the same state, and the network between them.
pub async fn three_nodes_on_a_network(extra_config: &str) -> (TestCluster, Network) {
    let mut test = laid_out(&plan(extra_config));
    let network = Network::between(test.cluster.layout());
    test.cluster.form().await.expect("a cluster forms");
    (test, network)
}

impl Network {
    /// The network between the nodes of `layout`, none of which was started yet: their configurations are changed.
    pub fn between(layout: &Layout) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a thread for the network");
        let ids = || layout.nodes.iter().map(|node| node.id);
        let links = ids().flat_map(|from| ids().map(move |to| ((from, to), watch::Sender::default())));
        let shared = Arc::new(Shared { callers: Callers::of(layout), links: links.collect() });
        for node in &layout.nodes {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            advertise(node, listener.local_addr().expect("bound"));
            let listens: SocketAddr = node.peer_address().parse().expect("an address");
            runtime.spawn(relay::in_front_of(node.id, listens, listener, shared.clone()));
        }
        Self { shared, runtime: Some(runtime) }
    }

    /// Cuts what `from` says to `to`.
    pub fn cut(&self, from: NodeId, to: NodeId, how: Cut) {
        self.shared.link(from, to).send_modify(|link| {
            link.cut = Some(how);
            link.resets += u64::from(how == Cut::Reset);
        });
    }

    /// Cuts `node` off from every other node, in both directions.
    pub fn isolate(&self, node: NodeId, how: Cut) {
        for (from, to) in self.shared.links.keys().filter(|(from, to)| (*from == node) != (*to == node)) {
            self.cut(*from, *to, how);
        }
    }

    /// Ends the cut of what `from` says to `to`.
    pub fn mend(&self, from: NodeId, to: NodeId) {
        self.shared.link(from, to).send_modify(|link| link.cut = None);
    }

    /// Ends every cut. Delays stay.
    pub fn heal(&self) {
        for link in self.shared.links.values() {
            link.send_modify(|link| link.cut = None);
        }
    }

    /// Holds up what `from` says to `to` by `delay` from now on; zero for not at all.
    pub fn delay(&self, from: NodeId, to: NodeId, delay: Duration) {
        self.shared.link(from, to).send_modify(|link| link.delay = delay);
    }
}

impl Shared {
    fn link(&self, from: NodeId, to: NodeId) -> &watch::Sender<Link> {
        self.links.get(&(from, to)).expect("two nodes of this cluster")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Not waited for: a test that ends is asynchronous, and must not block.
        self.runtime.take().expect("dropped once").shutdown_background();
    }
}

/// Has `node` tell the others that it is reached at `proxy`.
fn advertise(node: &NodePlan, proxy: SocketAddr) {
    let path = node.config_path();
    let config = fs::read_to_string(&path).expect("its configuration");
    let mut config: toml::Table = config.parse().expect("TOML");
    let advertise = config.get_mut("advertise").and_then(toml::Value::as_table_mut).expect("written out");
    advertise.insert("peer".to_owned(), proxy.to_string().into());
    fs::write(&path, config.to_string()).expect("written");
}
