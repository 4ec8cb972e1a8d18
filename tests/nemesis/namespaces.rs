//! Nodes in network namespaces of their own, and packets between them that are lost. A proxy can only close connections or
//! hold back what was said on them, and acknowledges it to whoever said it; here nothing arrives, nothing is acknowledged, and
//! after the heal it is TCP that sends again what was lost.
//!
//! The test runs itself once more in a network, process and mount namespace (`unshare`), the hub. Each node has another
//! network namespace, with one cable to the hub, which forwards packets between nodes and loses those that nftables is told to.
//! Nobody but the processes in them holds any of these namespaces, so the kernel takes all of it away with them, however they
//! end; runs side by side do not see each other, and the machine's own network is not touched.
//!
//! A layout has every address on the loopback interface. So in each namespace what goes to a port of a node there is sent to
//! that node, and comes from the sender's own address.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use strongroom::cli::local_cluster::{Layout, NodePlan};
use strongroom::escrow::ids::NodeId;
use tokio::time::timeout;

use crate::common::network::Cut;
use crate::plan::{Event, Link, Plan};
use crate::shim::NAMESPACE_FILE;
use crate::trial::Trial;

/// There in the test that runs in the hub.
const INSIDE: &str = "NEMESIS_INSIDE";
/// A hub that ends with whoever made it.
const UNSHARE: [&str; 5] = ["--net", "--pid", "--fork", "--mount-proc", "--kill-child"];
/// Whether this process may do all that is needed, and has what it takes.
const PROBE: &str = "nsenter --version && ip link set lo up && ip link add probe type veth peer name eborp && \
                     nft 'add table ip probe; add chain ip probe nat { type nat hook output priority -100; }'";
/// Longest the test may take in there.
const INSIDE_TIMEOUT: Duration = Duration::from_secs(240);
/// How long each cut lasts: longer than an election, and than a connection stands when nothing is heard.
const CUT_MS: u64 = 2_500;
/// Between two cuts: enough for words to arrive, and too little for all to be as it was.
const CALM_MS: u64 = 700;

/// One namespace for each node, around this process's own.
pub struct Namespaces {
    /// What keeps them: a process in each, that does nothing.
    holders: Vec<Child>,
}

impl Namespaces {
    /// The namespaces of the nodes of `layout`, none of which was started yet: they will be in there by
    /// [`crate::shim::program_with_faults`], and listen where their cables end.
    pub fn of(layout: &Layout) -> Self {
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a namespace of ours");
        ip("", "link set lo up");
        let mut made = Self { holders: Vec::new() };
        for node in &layout.nodes {
            made.connect(node, layout);
        }
        translate("", layout, None);
        nft("", LOSSES);
        made
    }

    /// Makes the namespace of a node.
    fn connect(&mut self, node: &NodePlan, layout: &Layout) {
        // It has its namespace as soon as it says so.
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sh", "-c", "echo; exec sleep infinity"]).stdout(Stdio::piped());
        let mut holder = holder.spawn().expect("as the probe did");
        std::io::Read::read_exact(holder.stdout.as_mut().expect("piped"), &mut [0]).expect("a line");
        let (id, pid) = (node.id, holder.id());
        self.holders.push(holder);
        let namespace = node.dir.join(NAMESPACE_FILE);
        symlink(format!("/proc/{pid}/ns/net"), &namespace).expect("of this test alone");
        let inside = namespace.to_str().expect("UTF-8");
        ip("", &format!("link add node-{id} type veth peer name hub netns {pid}"));
        ip("", &format!("addr add {}/24 dev node-{id}", address(id, 1)));
        ip("", &format!("link set node-{id} up"));
        for command in [
            "link set lo up".to_owned(),
            format!("addr add {}/24 dev hub", address(id, 2)),
            "link set hub up".to_owned(),
            format!("route add default via {}", address(id, 1)),
        ] {
            ip(inside, &command);
        }
        translate(inside, layout, Some(id));
        listen_everywhere(node);
    }

    /// Loses whatever `from` says to `to`, or refuses it.
    pub fn cut(&self, from: NodeId, to: NodeId, how: Cut) {
        self.mend(from, to);
        let set = match how {
            Cut::Reset => "refused",
            Cut::Silent => "lost",
        };
        nft("", &format!("add element ip links {set} {{ {} }}", between(from, to)));
    }

    pub fn mend(&self, from: NodeId, to: NodeId) {
        // Added first: what is not there cannot be removed.
        let one = between(from, to);
        for set in ["lost", "refused"] {
            nft(
                "",
                &format!("add element ip links {set} {{ {one} }}; delete element ip links {set} {{ {one} }}"),
            );
        }
    }

    pub fn heal(&self) {
        nft("", "flush set ip links lost; flush set ip links refused");
    }

    /// How many packets were lost so far.
    pub fn lost(&self) -> u64 {
        let listed =
            Command::new("nft").args(["list", "chain", "ip", "links", "between"]).output().expect("nft");
        let text = String::from_utf8(listed.stdout).expect("words");
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut counts = words.windows(2).filter(|pair| pair[0] == "packets");
        counts.next().expect("a counter")[1].parse().expect("a number")
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for holder in &mut self.holders {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

/// What the hub forwards, and what not.
const LOSSES: &str = "
    table ip links {
        set lost { type ipv4_addr . ipv4_addr; }
        set refused { type ipv4_addr . ipv4_addr; }
        chain between {
            type filter hook forward priority 0;
            ip saddr . ip daddr @lost counter drop
            ip saddr . ip daddr @refused reject with tcp reset
        }
    }";

/// At one end of the cable of `node`: 1 is the hub's, 2 its own.
fn address(node: NodeId, end: u8) -> String {
    format!("10.0.{node}.{end}")
}

/// An element of a set of links.
fn between(from: NodeId, to: NodeId) -> String {
    format!("{} . {}", address(from, 2), address(to, 2))
}

/// Has what goes to a port of a node on the loopback interface go to that node; `own` is at home there.
fn translate(namespace: &str, layout: &Layout, own: Option<NodeId>) {
    let mut rules = "table ip addresses {
        chain there { type nat hook output priority -100;\n"
        .to_owned();
    for node in layout.nodes.iter().filter(|node| Some(node.id) != own) {
        let (ports, to) = (node.ports, address(node.id, 2));
        let ports = format!("{{ {}, {}, {} }}", ports.api, ports.peer, ports.admin);
        writeln!(rules, "ip daddr 127.0.0.1 tcp dport {ports} dnat to {to}").expect("a string");
    }
    rules.push_str(
        "}
        chain back { type nat hook postrouting priority 100; ip saddr 127.0.0.1 oifname != \"lo\" masquerade; }
    }",
    );
    nft(namespace, &rules);
    // Otherwise such addresses go nowhere else.
    let allow = "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet";
    assert!(within(namespace, "sh").args(["-c", allow]).status().expect("sh").success());
}

/// Its configuration has it listen on the loopback interface, which is another one for everybody else.
fn listen_everywhere(node: &NodePlan) {
    let path = node.config_path();
    let mut config: toml::Table = fs::read_to_string(&path).expect("written").parse().expect("TOML");
    let listen = config.get_mut("listen").and_then(toml::Value::as_table_mut).expect("written out");
    for (_, address) in listen.iter_mut() {
        let port = address.as_str().and_then(|text| text.rsplit_once(':')).expect("host and port").1;
        *address = format!("0.0.0.0:{port}").into();
    }
    fs::write(&path, config.to_string()).expect("written");
}

/// A command to be run in a namespace, or in this one if it has no name.
fn within(namespace: &str, program: &str) -> Command {
    if namespace.is_empty() {
        return Command::new(program);
    }
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={namespace}")).arg(program);
    command
}

fn ip(namespace: &str, arguments: &str) {
    let made = within(namespace, "ip").args(arguments.split(' ')).status().expect("ip");
    assert!(made.success(), "ip {arguments}");
}

fn nft(namespace: &str, rules: &str) {
    let mut command = within(namespace, "nft");
    let mut nft = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    nft.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("it reads");
    assert!(nft.wait().expect("nft").success(), "nft: {rules}");
}

/// Runs the test called `test` once more, in the hub, unless this is it; says whether it is.
async fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = || {
        let mut command = tokio::process::Command::new("unshare");
        command.args(UNSHARE).stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    let probe =
        unshare().args(["sh", "-c", PROBE]).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!(
            "SKIPPED: lost packets between network namespaces (this process may not make them, or ip, nft, unshare or \
             nsenter are not installed)"
        );
        return false;
    }
    let own = std::env::current_exe().expect("this test");
    let mut again = unshare();
    again.arg(own).args(["--exact", test, "--nocapture"]).env(INSIDE, "yes");
    let ended = timeout(INSIDE_TIMEOUT, again.status()).await;
    assert!(ended.expect("it ends").expect("it runs").success(), "it fails in there");
    false
}

/// The leader cut off; then nothing of what it says is heard; then it hears nothing; then it and one other do not hear each
/// other: packets are lost while keys are escrowed, looked up and revealed at every node.
#[tokio::test(flavor = "multi_thread")]
async fn packets_are_lost_between_namespaces_and_what_clients_were_told_goes_together() {
    if !is_inside("namespaces::packets_are_lost_between_namespaces_and_what_clients_were_told_goes_together")
        .await
    {
        return;
    }
    let mut trial = Trial::in_namespaces(3).await;
    let leader = 1;
    let others = [2, 3];
    let said = || others.map(|other| (leader, other));
    let heard = || others.map(|other| (other, leader));
    let cuts: [Vec<Link>; 4] =
        [[said(), heard()].concat(), said().to_vec(), heard().to_vec(), vec![(leader, 2), (2, leader)]];
    let mut events = Vec::new();
    for (links, turn) in cuts.into_iter().zip(0..) {
        let begin = CALM_MS + turn * (CUT_MS + CALM_MS);
        let mut at = |at: u64, event| events.push((Duration::from_millis(at), event));
        at(begin, Event::Cut(links.clone(), Cut::Silent));
        at(begin + CUT_MS, Event::Mend(links));
    }
    trial.run(Plan { seed: 1, leader, events }).await;
    assert!(trial.wires.lost() > 0, "nothing was said that could be lost");
    for what in ["keys kept", "quorum reads", "reveals", "reveals without a quorum"] {
        assert!(trial.tally.contains_key(what), "nothing was seen of {what}: {:?}", trial.tally);
    }
}
