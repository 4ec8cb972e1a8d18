//! Which node dials: the kernel knows which process holds the other end of a connection.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use strongroom::cli::local_cluster::Layout;
use strongroom::escrow::ids::NodeId;

/// The columns of the kernel's table of connections that are looked at: its own end, the other end, the socket.
const LOCAL: usize = 1;
const REMOTE: usize = 2;
const INODE: usize = 9;

/// Tells nodes by their processes, and those by the configuration they were started with, so that a node which was
/// killed and started again is known at once.
pub(super) struct Callers(Vec<(NodeId, PathBuf)>);

impl Callers {
    pub(super) fn of(layout: &Layout) -> Self {
        Self(layout.nodes.iter().map(|node| (node.id, node.config_path())).collect())
    }

    /// The node that dialled from `from` to `to`; `None` if that was no node, or it has gone.
    pub(super) fn who(&self, from: SocketAddr, to: SocketAddr) -> Option<NodeId> {
        let socket = format!("socket:[{}]", inode(from, to)?);
        let processes =
            fs::read_dir("/proc").expect("Linux").filter_map(Result::ok).map(|entry| entry.path());
        processes.filter_map(|process| Some((self.node(&process)?, process))).find_map(|(node, process)| {
            let open = fs::read_dir(process.join("fd")).ok()?.filter_map(Result::ok);
            let mut targets = open.filter_map(|file| fs::read_link(file.path()).ok());
            targets.any(|target| target == Path::new(&socket)).then_some(node)
        })
    }

    /// The node that a process is.
    fn node(&self, process: &Path) -> Option<NodeId> {
        let command = fs::read(process.join("cmdline")).ok()?;
        let runs = |config: &Path| {
            command.split(|byte| *byte == 0).any(|argument| argument == config.as_os_str().as_encoded_bytes())
        };
        self.0.iter().find(|(_, config)| runs(config)).map(|(id, _)| *id)
    }
}

/// The socket that is connected from `from` to `to`, as the kernel numbers it.
fn inode(from: SocketAddr, to: SocketAddr) -> Option<String> {
    let (from, to) = (as_listed(from)?, as_listed(to)?);
    let table = fs::read_to_string("/proc/net/tcp").expect("Linux");
    let row = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let mut own = row.filter(|row| row.get(LOCAL) == Some(&&*from) && row.get(REMOTE) == Some(&&*to));
    own.next()?.get(INODE).map(|inode| (*inode).to_owned())
}

/// An address as the kernel lists it: the bytes of the address as one number of this machine, and the port.
fn as_listed(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port()))
}
