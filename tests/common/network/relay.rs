//! Passing on what two nodes say to each other, as far as the links between them let it.

use std::io;
use std::net::{self, SocketAddr};
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::{self, Either};
use strongroom::escrow::ids::NodeId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use super::{Cut, Link, Shared};

/// Most bytes that are read at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Most chunks of one direction of a connection that are on their way: with what the kernel keeps, as much as a sender
/// gets rid of before it notices that nothing arrives.
const CHUNKS_MAX: usize = 64;

/// Stands in front of `node`, which listens at `listens`.
pub(super) async fn in_front_of(
    node: NodeId,
    listens: SocketAddr,
    listener: net::TcpListener,
    shared: Arc<Shared>,
) {
    listener.set_nonblocking(true).expect("a socket");
    let listener = TcpListener::from_std(listener).expect("on the network's thread");
    loop {
        let (incoming, from) = listener.accept().await.expect("a socket that accepts");
        let to = incoming.local_addr().expect("accepted");
        let shared = shared.clone();
        tokio::spawn(async move {
            let looking = shared.clone();
            let caller = spawn_blocking(move || looking.callers.who(from, to)).await.expect("it ran");
            match caller {
                Some(caller) => between(caller, node, incoming, listens, &shared).await,
                // Nobody's: nothing that is not known to be let through is passed on.
                None => break_off(&incoming),
            }
        });
    }
}

/// Passes on what `caller` and `node` say over a connection that `caller` makes, until it ends or is broken.
async fn between(
    caller: NodeId,
    node: NodeId,
    mut incoming: TcpStream,
    listens: SocketAddr,
    shared: &Shared,
) {
    let (there, back) = (shared.link(caller, node).subscribe(), shared.link(node, caller).subscribe());
    let (resets_there, resets_back) = (reset(there.clone()), reset(back.clone()));
    let broken = async {
        future::select(pin!(resets_there), pin!(resets_back)).await;
    };
    let mut outgoing = None;
    let passed = async {
        opened(&mut there.clone()).await;
        if has_gone(&incoming) {
            return Ok(());
        }
        let outgoing = outgoing.insert(TcpStream::connect(listens).await?);
        let ((from_caller, to_caller), (from_node, to_node)) = (incoming.split(), outgoing.split());
        future::join(pass(from_caller, to_node, there), pass(from_node, to_caller, back)).await;
        io::Result::Ok(())
    };
    let ended = match future::select(pin!(passed), pin!(broken)).await {
        Either::Left((passed, _)) => passed.is_ok(),
        Either::Right(((), _)) => false,
    };
    if !ended {
        break_off(&incoming);
        outgoing.iter().for_each(break_off);
    }
}

/// Has a connection end as if its other end had crashed, and not with a goodbye.
fn break_off(end: &TcpStream) {
    // One that has ended already needs no other end.
    let _ = end.set_zero_linger();
}

/// Resolves once the link is cut with resets, or was since this began.
async fn reset(mut link: watch::Receiver<Link>) {
    let before = link.borrow().resets;
    // Nobody cuts it any more once the network is gone.
    let _ = link.wait_for(|link| link.cut == Some(Cut::Reset) || link.resets > before).await;
}

async fn opened(link: &mut watch::Receiver<Link>) {
    let _ = link.wait_for(|link| link.cut.is_none()).await;
}

/// Whether whoever dialled has given up.
fn has_gone(incoming: &TcpStream) -> bool {
    let ready = incoming.ready(Interest::READABLE).now_or_never();
    ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
}

/// Passes on what is read, and its end, as late as the link has it, until there is no more or nobody to take it.
async fn pass(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut link: watch::Receiver<Link>) {
    let (queue, mut on_the_way) = mpsc::channel(CHUNKS_MAX);
    let reading = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            // A connection that broke has ended.
            let read = from.read(&mut buffer).await.unwrap_or(0);
            let chunk = buffer[..read].to_vec();
            if queue.send((Instant::now(), chunk)).await.is_err() || read == 0 {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((read_at, chunk)) = on_the_way.recv().await {
            let delay = link.borrow().delay;
            sleep_until(read_at + delay).await;
            opened(&mut link).await;
            let written = if chunk.is_empty() { to.shutdown().await } else { to.write_all(&chunk).await };
            if written.is_err() {
                return;
            }
        }
    };
    if let Either::Right(((), writing)) = future::select(pin!(writing), pin!(reading)).await {
        writing.await;
    }
}
